"""The law of an objective in words: every step from a log-probability to a weight, with numbers."""

from __future__ import annotations

import torch

from markov.errors import is_whole, require
from markov.numerics import away_from_zero
from markov.objectives import (
    AT_BETA_ZERO,
    CORNERS,
    Objective,
    SequenceLogProbs,
    check_logprobs,
    check_shapes,
    validate,
)


def explain(objective: Objective, seq: SequenceLogProbs, index: int = 0) -> str:
    """Write out the law with the numbers of the `index`-th example, one line per step.

    Raises `InvalidInput` where there is no such example, and for a stack of objectives.
    """
    check_shapes(seq)
    for name, value in seq._asdict().items():
        require(isinstance(value, torch.Tensor), name, value, "a tensor")
    count = seq.logp.numel()
    require(is_whole(index, -count, count - 1), "index", index, f"{-count} to {count - 1}")
    for name, value in validate(objective)._asdict().items():
        require(torch.as_tensor(value).numel() == 1, name, value, "one number, not a stack")
    one = check_logprobs(SequenceLogProbs(*(x.detach().reshape(-1)[index] for x in seq)))
    of_one = (f(one) for f in (objective.score, objective.logit, objective.loss, objective.weight))
    shown = (f"{float(x):.6g}" for x in (*one, one.logp / one.length, *of_one, *objective))
    logp, length, ref, mean, u, z, loss, weight, beta, gamma, reference, normalize = shown
    at_zero = bool(away_from_zero(objective.beta, one.logp)[1])
    curved = f"(2 / beta) * softplus(logit) = (2 / {beta}) * softplus({z})"
    how = (
        f"2 * sigmoid(gamma) * score at beta = 0, = 2 * sigmoid({gamma}) * {u}"
        if at_zero
        else curved
    )
    table, place = (
        (AT_BETA_ZERO, objective.normalize)
        if at_zero
        else (CORNERS, (objective.reference, objective.normalize))
    )
    corner = next(
        (name for name, numbers in table.items() if numbers == place), "none of the named ones"
    )
    over = f"{length}**{normalize}"
    score = f"({logp} - {reference} * {ref}) / {over}"
    lines = [
        f"corner:    {corner} (reference = {reference}, normalize = {normalize}, margin gamma "
        f"= {gamma})",
        f"per token: logp / length = {logp} / {length} = {mean} nats",
        f"score:     (logp - reference * ref) / length**normalize = {score} = {u}",
        f"logit:     beta * score + gamma = {beta} * {u} + {gamma} = {z}",
        f"loss:      {how} = {loss}",
        f"weight:    2 * sigmoid(logit) / length**normalize = 2 * sigmoid({z}) / {over} = {weight}",
    ]
    return "\n".join(lines)
