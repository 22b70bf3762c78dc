"""What weightings push and what is needed, of the default language model, computed.

At one point of one training: the model before unlearning, or a run of NPO or SimNPO after its first
and after its last epoch. Needs are those of the retrained model of the same training. Two
optimisers are asked, gradient descent and AdamW; the preconditioner of the latter is from the mean
square of the gradients that batches have at this very point, under the weights of the objective
that runs there (at the start NPO's) and its retain term (see `llm.scoring.gram`).

Half of a sample of retain examples stands for the retain loss, the other half says what is lost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import nn

from figures.language.runs import AuthorsStudy
from llm.diagnostics.matching import best_weights, match, retaining
from llm.models.answers import responses
from llm.models.small_authors import build, sets
from llm.randomness import shuffled
from llm.scoring.encoding import Encoded
from llm.scoring.gram import Metric, adam_of_batches, grams, plain
from llm.scoring.logprobs import score_encoded
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import unlearn
from markov.objectives import CORNERS, Objective, SequenceLogProbs

PATHS = ("npo", "simnpo")
OPTIMIZERS = ("gradient descent", "AdamW")
NEEDS = ("total", "per_token")
POWERS = (0.0, 0.25, 0.5, 1.0)
SEARCHED = np.linspace(-1, 2, 121)  # powers of |y| among which the best one is sought
RETAINED = 200  # retain examples of the sample
HELD = 2**30  # numbers of gradients in memory: 400 responses of the default model at once

Array = Float[np.ndarray, "examples"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A training, and what is run on it: a corner by its name, or nothing, for the start."""

    study: AuthorsStudy
    corner: str = ""
    retained: int = RETAINED


class Given(NamedTuple):
    """What does not change along a way: responses, forget ones first, and what they need."""

    encoded: list[Encoded]
    forget: int
    length: Array
    ref: Array
    retrained: Array


class Steps(NamedTuple):
    """What is asked of a point: corners by their own names, and whose batches AdamW has seen.

    These are those of `law` with its retain term, of `batch` forget examples and as many retain
    ones, in the order of `seed`.
    """

    corners: Mapping[str, Objective]
    law: Objective
    retain_weight: float
    batch: int
    seed: int


def compared(way: Way) -> pd.DataFrame:
    """Return what is pushed and needed along a way, as `of_point` does, with `epoch`."""
    models, chosen = way.study.models, way.study
    language = build(models, "original", progress=False)
    forget, retain = sets(models)
    every = responses(language, forget), responses(language, retain)
    rows = shuffled(len(retain), len(retain), models.seed, 0, label="pushes")[0][: way.retained]
    encoded = [*every[0], *(every[1][row] for row in rows)]
    retrained = build(models, "retrained", progress=False).model
    length = np.array([len(one.tokens) - one.prompt for one in encoded], dtype=float)
    given = Given(
        encoded, len(forget), length, _logp(language.model, encoded), _logp(retrained, encoded)
    )
    laws = objectives(chosen)
    law = laws[way.corner or "npo"]
    settings = chosen.unlearning(law, ends=True)
    steps = Steps(laws, law, settings.retain_weight, chosen.batch, chosen.optimization().seed)
    if not way.corner:
        return of_point(language.model, given, steps).assign(epoch=0)
    last, seen = chosen.epochs, {}

    def keep(epoch: int, model: nn.Module) -> Mapping[str, float]:
        if epoch in (1, last):
            seen[epoch] = copy.deepcopy(model)
        return {}

    unlearn(language.model, *every, settings, measure=Measure("kept", keep), progress=False)
    found = [of_point(model, given, steps).assign(epoch=epoch) for epoch, model in seen.items()]
    return pd.concat(found, ignore_index=True)


def objectives(chosen: AuthorsStudy) -> dict[str, Objective]:
    """Return the four corners by their own names, at the study's settings."""
    return dict(zip(CORNERS, _in_order(chosen), strict=True))


def _in_order(chosen: AuthorsStudy) -> Iterator[Objective]:
    for reference, normalize in CORNERS.values():
        beta = chosen.beta_per_token if normalize else chosen.beta
        yield Objective(beta, 0.0, reference, normalize)


def of_point(
    model: nn.Module, given: Given, steps: Steps, *, held: int = HELD, progress: bool = False
) -> pd.DataFrame:
    """Return how weightings match the needs at a point, under both optimisers.

    About `held` numbers of gradients are in memory (see `llm.scoring.gram.grams`).

    Columns `kind` and `optimizer`, and by kind:

        example   `index`, `length`, `logp`, `need` (nats), `norm` of the gradient (under the
                  optimiser's metric), and weights w >= 0: `nnls`, which match the need best,
                  `nnls_kept`, the same with what is retained, and `length_over_norm`, |y| / norm^2;
                  `moved_` and a name: K w under the weights of that corner, or under `nnls`
        match     `weighting`, `need_of` (total or per_token), `whole` and `differences` of
                  `llm.diagnostics.matching.match`; `retain_moved`, the root of the mean square of
                  what retain responses move, and `retain_fell`, their mean fall, both over the
                  root of the mean square of what forget responses move
        law       `weighting`: how its weights go with the length, the exponent `power` of a least
                  squares fit of log w on log |y|, the share `explained` of the variance of log w,
                  and the share of weights that are 0, `zero`
    """
    count, length = given.forget, given.length
    logp = _logp(model, given.encoded)
    need = (logp - given.retrained)[:count]
    seq = SequenceLogProbs(*(torch.tensor(own[:count]) for own in (logp, length, given.ref)))
    metrics, frames = [plain, _adam(given, steps, steps.law.weight(seq).numpy())], []
    every = grams(model, given.encoded, metrics, elements=held, progress=progress)
    for optimizer, k in zip(OPTIMIZERS, (one.numpy() for one in every), strict=True):
        forget = k[:count, :count]
        weightings = {name: own.weight(seq).numpy() for name, own in steps.corners.items()}
        weightings |= {f"power_{power:g}": length[:count] ** -power for power in POWERS}
        weightings |= ratios(forget, need, length[:count])
        trained = (len(k) - count) // 2
        fitted = {"nnls": best_weights(forget, need)}
        kept = retaining(k, need, length, trained)
        fitted["nnls_kept"] = best_weights(*kept)[:count]
        weightings |= fitted
        moving = (*steps.corners, "nnls")
        unseen = slice(count + trained, None)
        rows = matches(k[:, :count], need, length, weightings, unseen)
        laws = [
            {"kind": "law", "weighting": name, **power_of(length[:count], own)}
            for name, own in weightings.items()
        ]
        examples = pd.DataFrame(
            {
                "kind": "example",
                "index": np.arange(count),
                "length": length[:count],
                "logp": logp[:count],
                "need": need,
                "norm": np.sqrt(np.diag(forget)),
                "length_over_norm": weightings["length_over_norm"],
                **fitted,
                **{f"moved_{name}": forget @ weightings[name] for name in moving},
            }
        )
        frames += [examples, pd.DataFrame([*rows, *laws])]
        frames[-2:] = [own.assign(optimizer=optimizer) for own in frames[-2:]]
    return pd.concat(frames, ignore_index=True)


def ratios(forget: np.ndarray, need: Array, length: Array) -> dict[str, Array]:
    """Return weights that would do if no response moved another one: need over squared norm.

    `length_over_norm` takes the length for the need, and no retrained model.
    """
    norms = np.diag(forget)
    return {
        "need_over_norm": np.maximum(need, 0) / norms,
        "length_over_norm": length / norms,
        "one_over_norm": 1 / norms,
    }


def matches(
    k: Float[np.ndarray, "all forget"],
    need: Array,
    length: Array,
    weightings: Mapping[str, Array],
    unseen: slice,
) -> list[dict[str, Any]]:
    """Return the rows of kind match, per need and weighting.

    Of each need there are also the power of |y| that matches it best, `power_best`, and the
    weights w >= 0 that do, `best`.
    """
    count, rows = len(need), []
    for name in NEEDS:
        per = length[:count] if name == "per_token" else np.ones(count)
        wanted = need / per
        pushes = k[:count] / per[:, None]
        tried = {power: match(wanted, pushes @ length[:count] ** -power) for power in SEARCHED}
        power = max(tried, key=lambda one: tried[one].whole)
        own = {"power_best": length[:count] ** -power, "best": best_weights(pushes, wanted)}
        for weighting, weights in {**weightings, **own}.items():
            movement = k @ weights
            found, lost = match(wanted, pushes @ weights), movement[unseen]
            size = float(np.sqrt((movement[:count] ** 2).mean())) or np.nan
            rows.append(
                {
                    "kind": "match",
                    "need_of": name,
                    "weighting": weighting,
                    "whole": found.whole,
                    "differences": found.differences,
                    "retain_moved": float(np.sqrt((lost**2).mean())) / size,
                    "retain_fell": float(lost.mean()) / size,
                    "power": -power if weighting == "power_best" else np.nan,
                }
            )
    return rows


def power_of(length: Array, weights: Array) -> dict[str, float]:
    """Return the exponent of weights in the length, and how much of their logarithm it explains."""
    some = weights > 0
    x, y = np.log(length[some]), np.log(weights[some])
    if some.sum() < 3:
        return {"power": np.nan, "explained": np.nan, "zero": float(1 - some.mean())}
    if np.ptp(y) < 1e-9:
        return {"power": 0.0, "explained": np.nan, "zero": float(1 - some.mean())}
    slope = float(np.polyfit(x, y, 1)[0])
    share = float(np.corrcoef(x, y)[0, 1] ** 2)
    return {"power": slope, "explained": share, "zero": float(1 - some.mean())}


def _adam(given: Given, steps: Steps, weights: Array) -> Metric:
    """Return AdamW's metric of the gradients of an epoch's batches, retain term included."""
    count, others = given.forget, len(given.encoded) - given.forget
    signed = np.concatenate([weights, -steps.retain_weight / given.length[count:]])
    order = (steps.batch, steps.seed, 1)
    forget = shuffled(count, *order, label="forget")
    retain = shuffled(others, *order, label="retain", total=count)
    plan = [
        [*own, *(count + row for row in kept)] for own, kept in zip(forget, retain, strict=True)
    ]
    return adam_of_batches(torch.tensor(signed / steps.batch), plan)


def _logp(model: nn.Module, encoded: list[Encoded]) -> Array:
    return score_encoded(model, encoded, progress=False).logp.double().numpy()
