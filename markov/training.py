"""Pretraining and unlearning of an ensemble: many runs at once, along one leading axis.

Every run has its own data, start, objective, step size and generators; the ensemble only shares the
shapes, and no run knows its company. On one thread a run's numbers are the same to the last bit in
every company: products of matrices are batched, elementwise functions fill whole vectors
(`markov.numerics.VECTOR`), and only runs whose batches are cut alike are computed side by side.
(Several threads may divide a long sum, at a place that depends on the size of the ensemble.)

What is recorded is the sufficient statistic, log-probabilities and distances. So weights under any
objective, rates and profiles are functions of a `Trajectory` and need no new run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from markov.batching import (
    Batches,
    Corpus,
    alike,
    common_count,
    cuts,
    derived_seed,
    draw,
    generator,
    longest_first,
    part_lengths,
    parts,
    pieces,
    take,
)
from markov.console.choices import RetainTerm
from markov.errors import require, require_whole
from markov.models import Model, Parameters, stack_parameters
from markov.objectives import Objective, SequenceLogProbs, stack
from markov.optimizers import Optimizer
from markov.recording import CHUNK, Probe, Trajectory, loss_and_weight, record, score

Runs = slice | list[int]  # all runs of an ensemble, or some


class Member(NamedTuple):
    """All that may differ between the runs of an ensemble."""

    start: Parameters
    objective: Objective
    learning_rate: float
    retain_weight: float
    seed: int
    forget: Corpus
    retain: Corpus
    probes: tuple[Probe, ...]


def pretrain(
    model: Model,
    corpora: Sequence[Corpus],
    seeds: Sequence[int],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    optimizer: Optimizer,
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, Parameters], None] | None = None,
) -> dict[str, Tensor]:
    """Minimise the mean cross-entropy over scored tokens and return the runs' stacked parameters.

    Each run has one corpus and one seed. A seed gives the same start to every corpus.
    `on_step(step, parameters)` is called after every step. Raises `InvalidInput` for corpora of
    different shapes.
    """
    count = common_count(model, corpora, "corpora")
    parameters = _trainable(
        [model.init(derived_seed(seed, "start")) for seed in seeds], dtype, corpora[0].tokens.device
    )
    generators = [generator(seed, "pretraining batches") for seed in seeds]
    rates = next(iter(parameters.values())).new_full((len(seeds),), learning_rate)
    state, step = optimizer.init(parameters), 0
    for _ in range(epochs):
        order = torch.stack([torch.randperm(count, generator=own) for own in generators])
        for rows in order.split(batch, dim=1):
            now, step = take(corpora, rows), step + 1

            def losses(own: Parameters, chosen: Runs, now: Batches = now) -> Iterator[Tensor]:
                mine = now.of(chosen, slice(None))
                total = mine.mask.sum((-1, -2))
                for part in parts(mine):
                    loss = _cross_entropy(model, own, own, part) * part.mask
                    yield (loss.sum((-1, -2)) / total).sum()

            gradients = _gradients(parameters, alike(part_lengths(now)), losses)
            optimizer.step(parameters, gradients, state, rates, step)
            if on_step is not None:
                on_step(step, parameters)
    return {name: value.detach() for name, value in parameters.items()}


def unlearn(
    model: Model,
    runs: Sequence[Member],
    *,
    steps: int,
    batch: int,
    optimizer: Optimizer,
    recorded: Sequence[int] = (0,),
    retain_term: RetainTerm = "none",
    gradient_examples: int = 0,
    on_step: Callable[[int, Parameters], None] | None = None,
) -> Trajectory:
    """Minimise E[objective loss] + retain_weight E[retain loss] from each run's own start.

    Batches come from each run's own shuffled forget (and retain) training sequences. Step 0 and the
    steps in `recorded` are recorded; `gradient_examples` is the number of probe sequences behind a
    gradient norm. `on_step(step, parameters)` is called before every step and at the end; an
    exception that it raises ends the run. Raises `InvalidInput` for runs whose data differ in
    shape. Source: paper, section 2.
    """
    require_whole(steps, "steps", 1)
    require_whole(batch, "batch", 1)
    for field in ("forget", "retain"):
        common_count(model, [getattr(run, field) for run in runs], field)
    sizes = {tuple(tuple(probe.tokens.shape) for probe in run.probes) for run in runs}
    require(len(sizes) == 1, "probes", sorted(sizes), "one common shape")
    like = next(iter(runs[0].start.values()))
    parameters = _trainable([run.start for run in runs], like.dtype, like.device)
    rates, retain_weight = (
        like.new_tensor([getattr(run, field) for run in runs])
        for field in ("learning_rate", "retain_weight")
    )
    stacked = stack([run.objective for run in runs], dtype=like.dtype, device=like.device)
    laws = [torch.as_tensor(field)[:, None] for field in stacked]
    objective = Objective(*laws)
    forget = draw(
        [run.forget for run in runs], [generator(run.seed, "forget") for run in runs], steps * batch
    )
    forget = longest_first(forget, batch)
    retain = draw(
        [run.retain for run in runs], [generator(run.seed, "retain") for run in runs], steps * batch
    )
    # The reference is frozen: it is scored once, and not at all where no run of the ensemble uses
    # it.
    ref = like.new_zeros(forget.component.shape)
    if any(run.objective.reference != 0 for run in runs):
        ref = _score_all(model, parameters, forget)
    start = (
        {name: value.detach().clone() for name, value in parameters.items()}
        if retain_term == "kl"
        else {}
    )
    wanted = {0, *(step for step in recorded if 0 <= step <= steps)}
    patterns = [
        [cuts(now) for now in own]
        for own in forget.mask.sum(-1).view(len(runs), steps, batch).tolist()
    ]
    weights = like.new_zeros(len(runs), steps, batch)
    state, records = optimizer.init(parameters), []
    for step in range(steps + 1):
        if on_step is not None:
            on_step(step, parameters)
        if step in wanted:
            at_start = records[0].logp if records else None
            probes = [run.probes for run in runs]
            records.append(
                record(model, parameters, probes, objective, gradient_examples, at_start)
            )
        if step == steps:
            break

        def losses(own: Parameters, chosen: Runs, step: int = step) -> Iterator[Tensor]:
            rows = slice(step * batch, (step + 1) * batch)
            now = forget.of(chosen, rows)
            logp = torch.cat([score(model, own, *piece).logp for piece in pieces(now)], dim=1)
            seq = SequenceLogProbs(logp, now.mask.sum(-1).to(logp.dtype), ref[chosen, rows])
            each, weight = loss_and_weight(Objective(*(field[chosen] for field in laws)), seq)
            weights[chosen, step], loss = weight.detach(), each.mean(-1)
            if retain_term != "none":
                kept, first = (
                    retain.of(chosen, rows),
                    {name: value[chosen] for name, value in start.items()},
                )
                found = RETAIN_LOSSES[retain_term](model, own, first, kept)
                loss = loss + retain_weight[chosen] * _token_mean(found, kept.mask)
            yield loss.sum()

        gradients = _gradients(parameters, alike(own[step] for own in patterns), losses)
        optimizer.step(parameters, gradients, state, rates, step + 1)
    labels = [index for index, probe in enumerate(runs[0].probes) for _ in probe.tokens]
    lengths = [float(probe.tokens.shape[1] - 1) for probe in runs[0].probes for _ in probe.tokens]
    logp, truth, retrained, reference, norms = (
        torch.stack(column, dim=1).cpu() for column in zip(*records, strict=True)
    )
    return Trajectory(
        step=torch.tensor(sorted(wanted)),
        component=torch.tensor(labels),
        length=torch.tensor(lengths, dtype=like.dtype),
        logp=logp,
        kl_to_truth=truth,
        kl_to_retrained=retrained,
        kl_to_reference=reference,
        gradient_norm=norms,
        batch_weight=weights.cpu(),
        batch_component=forget.component.view(len(runs), steps, batch).cpu(),
    )


def _trainable(
    runs: Sequence[Parameters], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    stacked = stack_parameters(runs)
    return {
        name: value.detach().to(device, dtype).requires_grad_() for name, value in stacked.items()
    }


def _gradients(
    parameters: Parameters,
    groups: Sequence[list[int]],
    losses: Callable[[Parameters, Runs], Iterable[Tensor]],
) -> dict[str, Tensor]:
    """Return the gradient of every run's sum of losses.

    It is found for one group of runs after the other. `losses(parameters of the group, its runs)`
    are scalars; each is freed of its graph before the next is computed.
    """

    def found(own: Parameters, chosen: Runs) -> dict[str, Tensor]:
        each = (torch.autograd.grad(loss, list(own.values())) for loss in losses(own, chosen))
        return dict(
            zip(own, (reduce(torch.add, one) for one in zip(*each, strict=True)), strict=True)
        )

    if len(groups) == 1:
        return found(parameters, slice(None))
    whole = {name: torch.empty_like(value) for name, value in parameters.items()}
    for chosen in groups:
        own = {name: value.detach()[chosen].requires_grad_() for name, value in parameters.items()}
        for name, gradient in found(own, chosen).items():
            whole[name][chosen] = gradient
    return whole


@torch.no_grad()
def _score_all(
    model: Model, parameters: Parameters, batches: Batches
) -> Float[Tensor, "runs rows"]:
    parts = zip(batches.tokens.split(CHUNK, dim=1), batches.mask.split(CHUNK, dim=1), strict=True)
    return torch.cat([score(model, parameters, tokens, mask).logp for tokens, mask in parts], dim=1)


def _cross_entropy(
    model: Model, parameters: Parameters, start: Parameters, now: Batches
) -> Float[Tensor, "runs rows time"]:
    """Return -log pi(token | prefix) at every position."""
    laws = model.logits(parameters, now.tokens[..., :-1]).log_softmax(-1)
    return -laws.gather(-1, now.tokens[..., 1:, None]).squeeze(-1)


def _kl_to_start(
    model: Model, parameters: Parameters, start: Parameters, now: Batches
) -> Float[Tensor, "runs rows time"]:
    """Return KL(start || model) at every position."""
    with torch.no_grad():
        truth = model.logits(start, now.tokens[..., :-1]).log_softmax(-1)
    laws = model.logits(parameters, now.tokens[..., :-1]).log_softmax(-1)
    return (truth.exp() * (truth - laws)).sum(-1)


def _token_mean(
    values: Float[Tensor, "runs rows time"], mask: Bool[Tensor, "runs rows time"]
) -> Float[Tensor, " runs"]:
    return (values * mask).sum((-1, -2)) / mask.sum((-1, -2))


# One reduction for both, the mean over tokens, so that retain_weight means the same.
RETAIN_LOSSES = {"cross_entropy": _cross_entropy, "kl": _kl_to_start}
