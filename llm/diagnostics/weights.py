"""Per-example weights of any objective, and how far each example has to move, as one table.

A table has one row per example, the columns of `COLUMNS`, and one column of weights per objective:
`weight_` + its name, such as weight_npo_b0.1 (see `named`). How the weights are allocated is in
`llm.diagnostics.allocation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from llm.logs.log import EvaluationLog, align, sequence_logprobs, total_loss, with_lengths
from markov.errors import require
from markov.objectives import (
    Objective,
    SequenceLogProbs,
    length_normalized_npo,
    method_name,
    npo,
    reference_free_npo,
    simnpo,
    validate,
)

COLUMNS: dict[str, str] = {
    "index": "which example of the set it is",
    "logp": "log pi_theta of the response, nats",
    "length": "scored tokens of the response",
    "ref": "log pi_ref of the response, nats; the reference is the model before unlearning",
    "retrained": "log pi of the response under the model retrained without the set, nats",
    "needed": (
        "ref - retrained, nats: how far the response has to fall for the model to look retrained"
    ),
    "needed_per_token": "needed / length, nats",
}
WEIGHT, PUSH = "weight_", "push_"


def named(objectives: Iterable[Objective]) -> dict[str, Objective]:
    """Return objectives by name: the corner, beta and, if it is not 0, gamma.

    Such names are npo_b0.1, simnpo_b2.5_g0.5 and gradient_ascent. Between the corners reference and
    normalize are named too: between_r0.5_n1_b0.1. Raises `InvalidInput` for an objective that is
    not valid, is a stack, or comes twice.
    """
    found: dict[str, Objective] = {}
    for objective in map(validate, objectives):
        require(
            all(torch.as_tensor(x).ndim == 0 for x in objective),
            "objectives",
            objective,
            "four numbers each",
        )
        beta, gamma, reference, normalize = (float(value) for value in objective)
        parts = [method_name(objective)]
        parts += [f"r{reference:g}", f"n{normalize:g}"] if parts[0] == "between" else []
        parts += [f"n{normalize:g}"] if beta == 0 and normalize not in (0, 1) else []
        parts += [f"b{beta:g}"] if beta else []
        parts += [f"g{gamma:g}"] if gamma else []
        name = "_".join(parts)
        require(name not in found, "objectives", name, "each objective once")
        found[name] = objective
    return found


def corners(
    beta: float = 0.1, beta_per_token: float = 2.5, gamma: float = 0.0
) -> dict[str, Objective]:
    """Return the four corners by name.

    `beta` is that of corners that sum log-probabilities, and `beta_per_token` that of corners that
    average them. The defaults are the paper's for TOFU's forget05; for forget10 it has
    beta_per_token = 4.5. `gamma` is SimNPO's.
    """
    summed = (npo(beta), reference_free_npo(beta))
    return named([*summed, length_normalized_npo(beta_per_token), simnpo(beta_per_token, gamma)])


def weights_table(
    seq: SequenceLogProbs,
    objectives: Mapping[str, Objective],
    index: Int[np.ndarray, "examples"] | None = None,
) -> pd.DataFrame:
    """Return `index`, `logp`, `length`, `ref` of each example, and its weight under each objective.

    The weight is d loss / d logp, and everything is computed in float64. `index` counts from 0 if
    it is not given. Raises `InvalidInput` for numbers that no response can have (see
    `markov.objectives.check_logprobs`), unequal counts, or an objective that is not four valid
    numbers.
    """
    seq = SequenceLogProbs.of(*(torch.as_tensor(part).detach().double().cpu() for part in seq))
    count = len(seq.logp) if seq.logp.ndim == 1 else 0
    require(
        seq.logp.ndim == 1, "logp", tuple(seq.logp.shape), "one value per example, along one axis"
    )
    index = np.arange(count) if index is None else np.asarray(index)
    require(index.shape == (count,), "index", index.shape, f"{count} values, one per example")
    columns = {"index": index, **{field: values.numpy() for field, values in seq._asdict().items()}}
    for name, objective in objectives.items():
        single = all(torch.as_tensor(value).ndim == 0 for value in validate(objective))
        require(single, "objectives", objective, "four numbers each")
        columns[WEIGHT + name] = objective.weight(seq).numpy()
    return pd.DataFrame(columns)


def with_needed(table: pd.DataFrame, retrained: Float[np.ndarray, "examples"]) -> pd.DataFrame:
    """Return the table with `retrained`, `needed` and `needed_per_token` (nats) added after `ref`.

    needed = ref - retrained. It is negative if the retrained model finds the response more likely
    than the reference does: there is nothing to forget. Raises `InvalidInput` unless `retrained`
    has one finite number per example.
    """
    retrained = np.asarray(retrained, dtype=np.float64)
    require(
        retrained.shape == (len(table),),
        "retrained",
        retrained.shape,
        f"{len(table)} values, one per example",
    )
    require(
        bool(np.isfinite(retrained).all()),
        "retrained",
        retrained[~np.isfinite(retrained)][:1],
        "finite numbers",
    )
    needed = table["ref"].to_numpy() - retrained
    found = {
        "retrained": retrained,
        "needed": needed,
        "needed_per_token": needed / table["length"].to_numpy(),
    }
    at = list(table.columns).index("ref") + 1
    before, after = table.iloc[:, :at], table.iloc[:, at:]
    return pd.concat([before, pd.DataFrame(found, index=table.index), after], axis=1)


def diagnose(
    original: EvaluationLog, retrained: EvaluationLog, objectives: Mapping[str, Objective]
) -> pd.DataFrame:
    """Return the weights at the start of unlearning beside what is needed, from logs alone.

    At the start theta = reference = original, and no model is loaded. The columns are `index`,
    `length`, `ref`, `retrained`, `needed`, `needed_per_token` and a column of weights per
    objective; NPO's are all 1. Raises `InvalidInput` if the logs do not fit together (see
    `llm.logs.log.align`), and warns if they are the same model's.
    """
    retrained = align(original, retrained, allow_identical=False)
    table = weights_table(sequence_logprobs(original, original), objectives, original.index)
    return with_needed(table, -total_loss(retrained)).drop(columns="logp")


def diagnose_per_token(
    original: EvaluationLog, retrained: EvaluationLog, objectives: Mapping[str, Objective]
) -> pd.DataFrame:
    """Return what `diagnose` can say of logs with mean losses but no numbers of scored tokens.

    Without lengths nothing is known of a response except its mean log-probability per token, as if
    each were one token long. For an objective that divides the length out, normalize = 1, this
    suffices to compute the push of its weight on the log-probability per token, weight * length.
    Nothing can be said of other objectives.

    The columns are `index`, `ref_per_token`, `retrained_per_token`, `needed_per_token` (nats) and a
    column `push_` + its name per objective. Raises `InvalidInput` as `diagnose` does, and for an
    objective that needs the lengths.
    """
    retrained = align(original, retrained, allow_identical=False)
    for name, objective in objectives.items():
        allowed = (
            f"one that divides the length out, since {original.file} stores no numbers of "
            "scored tokens"
        )
        require(float(objective.normalize) == 1, "objectives", name, allowed)
    one = np.ones(len(original.index))
    own, theirs = (with_lengths(log, one) for log in (original, retrained))
    table = with_needed(
        weights_table(sequence_logprobs(own, own), objectives, own.index), -total_loss(theirs)
    )
    pushes = {WEIGHT + name: PUSH + name for name in objectives}
    renamed = table.rename(
        columns={"ref": "ref_per_token", "retrained": "retrained_per_token", **pushes}
    )
    return renamed.drop(columns=["logp", "length", "needed"])


def upper_half(
    values: Float[np.ndarray, "examples"], index: Int[np.ndarray, "examples"]
) -> Bool[np.ndarray, "examples"]:
    """Return which half of the examples has the larger values (the smaller half if odd in number).

    Of equal values, those of larger index count as larger. Raises `InvalidInput` for fewer than two
    examples.
    """
    require(len(values) >= 2, "examples", len(values), "at least 2, to be split in halves")
    upper = np.zeros(len(values), dtype=bool)
    upper[np.lexsort((index, values))[(len(values) + 1) // 2 :]] = True
    return upper


def with_halves(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with `length_half`, short or long, and `memorised_half`, weak or strong.

    An example is memorised strongly if the model before unlearning knows it and the retrained one
    does not: these are the upper half by `needed_per_token`. The likelihood under the original
    alone would not do, since that of a fine-tuned model also counts what it would have known
    anyway. (The paper does not say how it splits its Figure 1b.)
    """
    index = table["index"].to_numpy()
    long, strong = (
        upper_half(table[name].to_numpy(), index) for name in ("length", "needed_per_token")
    )
    return table.assign(
        length_half=np.where(long, "long", "short"),
        memorised_half=np.where(strong, "strong", "weak"),
    )
