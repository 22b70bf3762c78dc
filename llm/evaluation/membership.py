"""Whether a model has read a text: scores that are lower for texts that it has read.

With l_t = log pi(x_t | x_<t) of the n scored tokens of a text x (nats) and m = max(1, floor(k n)),
the scores are

    loss                 -(1/n) sum_t l_t
    min_k                -(1/m) sum of the m smallest l_t (Shi et al. 2024a)
    min_k_plus_plus      the same of (l_t - mu_t) / sigma_t, with the mean and the standard
                         deviation of log pi over the vocabulary under pi itself at t
                         (Zhang et al. 2024)
    zlib                 loss over the bytes of the text compressed (Carlini et al. 2021)
    lower                loss over the loss of the text in lower case (Carlini et al. 2021)

How well a score tells texts that were read from others is measured by

    AUC                  P(score of a held-out text < score of a forget text), a tie counting half
    PrivLeak             100 (AUC - AUC of the retrained model) / AUC of the retrained model
                         (MUSE, Shi et al. 2024b)

The AUC is in MUSE's orientation: 0 where all of the forget set is known by heart, 1/2 where nothing
tells it from the hold-out. PrivLeak is then -100 for the former, 0 for the retrained model, and
above 0 for a model that has unlearned too much, at most 100 (1/AUC_retrained - 1). Its denominator
is the AUC of the very retrained model with which it compares: MUSE's code has a constant there, of
other models. The first token of a text is never scored.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from llm.intervals import LEVEL, Estimate, percentile_interval, resample
from llm.models.language_model import LanguageModel
from llm.scoring.documents import whole
from llm.scoring.encoding import BUDGET, Batch, Encoded, batches
from llm.scoring.finite import Named, check_finite
from llm.scoring.logprobs import (
    check_fits,
    check_model,
    evaluating,
    scored_logits,
    token_logprobs,
)
from llm.scoring.passes import by_batch
from markov.errors import require, require_number

K = 0.4  # MUSE's share of tokens
NEAR_ZERO = 0.05  # below it an AUC is a doubtful divisor
SMALLEST_VARIANCE = 1e-6  # of log pi, as published for min_k_plus_plus
Scores = Float[np.ndarray, "*resamples texts"]


class Membership(NamedTuple):
    """Scores of texts to forget and of texts held out, under one model."""

    forget: Float[np.ndarray, " forget"]
    holdout: Float[np.ndarray, " holdout"]


class Leakage(NamedTuple):
    """The AUCs of a model and of the retrained one, and PrivLeak, which compares them.

    Each has a percentile interval over texts.
    """

    auc: Estimate
    auc_retrained: Estimate
    privleak: Estimate


def min_k(logprobs: Float[np.ndarray, " tokens"], k: float = K) -> float:
    """Return minus the mean of the smallest share `k` of the values.

    Their number is rounded down, and is at least one. Raises `InvalidInput` for no value, for one
    that is not finite, and for a share outside (0, 1].
    """
    _check_share(k)
    logprobs = np.asarray(logprobs, dtype=float)
    require(len(logprobs) > 0, "logprobs", logprobs, "at least one")
    # Sorting puts nan behind all numbers, so that the mean of the smallest would not show it.
    bad = logprobs[~np.isfinite(logprobs)]
    require(
        len(bad) == 0,
        "logprobs",
        bad[:1].tolist(),
        f"finite numbers ({len(bad)} of {len(logprobs)} are not)",
    )
    # A product such as 0.29 * 100 may come out just below the whole number.
    count = max(1, math.floor(k * len(logprobs) + 1e-9))
    return float(-np.sort(logprobs)[:count].mean())


def membership(
    language: LanguageModel, forget: Sequence[str], holdout: Sequence[str], **options: object
) -> Membership:
    """Return `min_k` of both sets of texts; options are those of `text_scores`."""
    table = text_scores(language, [*forget, *holdout], **options)  # pyright: ignore[reportArgumentType]
    scores = table["min_k"].to_numpy()
    return Membership(scores[: len(forget)], scores[len(forget) :])


def text_scores(
    language: LanguageModel,
    texts: Sequence[str],
    *,
    k: float = K,
    standardised: bool = False,
    lowered: bool = False,
    max_length: int | None = None,
    budget: int = BUDGET,
    progress: bool = True,
) -> pd.DataFrame:
    """Return a table of scores with a row per text.

    Its columns are `index`, `length` (scored tokens), `loss`, `min_k`, `zlib` and, if asked for,
    two costlier scores: `standardised` adds `min_k_plus_plus`, which holds the logits of a whole
    batch, and `lowered` adds `lower`, which takes a second pass. `max_length` cuts texts. Raises
    `InvalidInput` as `whole` and `score_encoded` do, and for a share `k` outside (0, 1].
    """
    _check_share(k)
    encoded = whole(language.tokenizer, texts, max_length=max_length)
    found = _tokens(language, encoded, budget, standardised, progress)
    loss = np.array([-own[0].mean() for own in found])
    columns = {
        "index": np.arange(len(texts)),
        "length": [len(own[0]) for own in found],
        "loss": loss,
        "min_k": [min_k(own[0], k) for own in found],
        "zlib": loss / [len(zlib.compress(text.encode())) for text in texts],
    }
    if standardised:
        columns["min_k_plus_plus"] = [min_k(own[1], k) for own in found]
    if lowered:
        lower = whole(language.tokenizer, [text.lower() for text in texts], max_length=max_length)
        columns["lower"] = loss / [
            -own[0].mean() for own in _tokens(language, lower, budget, False, progress)
        ]
    return pd.DataFrame(columns)


def _check_share(k: float) -> None:
    require_number(k, "k", lambda number: 0 < number <= 1, "a share > 0, at most 1")


def _tokens(
    language: LanguageModel,
    encoded: Sequence[Encoded],
    budget: int,
    standardised: bool,
    progress: bool,
) -> list[list[np.ndarray]]:
    """Return log pi of each text's scored tokens and, if wanted, the same standardised.

    Raises `NotFinite` for a text with a number that is not finite, named by its place among the
    texts.
    """
    model, named = language.model, Named(range(len(encoded)), language.name)
    check_model(model)
    check_fits(model, encoded)
    plan, found = batches(encoded, budget), {}

    def one(rows: Sequence[int]) -> list[list[np.ndarray]]:
        batch = Batch.pad([encoded[row] for row in rows])
        logprobs = token_logprobs(model, batch)
        values, parts = [logprobs], []
        if standardised:
            values.append(_standardised(scored_logits(model, batch), logprobs))
        for part in values:
            split = part.double().cpu().split(batch.scored.sum(-1).tolist())
            check_finite("logp", torch.stack([own.sum() for own in split]), model, rows, named)
            parts.append([own.numpy() for own in split])
        return [list(own) for own in zip(*parts, strict=True)]

    with evaluating(model), torch.no_grad():
        parts = by_batch(model, encoded, plan, one, "score", progress=progress)
    for rows, part in zip(plan, parts, strict=True):
        found |= dict(zip(rows, part, strict=True))
    return [found[row] for row in range(len(encoded))]


def _standardised(
    logits: Float[Tensor, "scored vocab"], logprobs: Float[Tensor, " scored"]
) -> Tensor:
    laws = logits.to(logprobs.dtype).log_softmax(-1)
    law = laws.exp()
    laws = laws.masked_fill(law == 0, 0.0)  # 0 log 0 = 0, also for tokens of probability 0
    mean = (law * laws).sum(-1)
    variance = (law * laws**2).sum(-1) - mean**2
    return (logprobs - mean) / variance.clamp(min=SMALLEST_VARIANCE).sqrt()


def auc(forget: Scores, holdout: Scores) -> Float[np.ndarray, "*resamples"]:
    """Return P(score of a held-out text < score of a forget text), a tie counting half.

    It is taken along the last axis. Raises `InvalidInput` for an empty set and for scores that are
    not numbers.
    """
    count, other = forget.shape[-1], holdout.shape[-1]
    require(count > 0 and other > 0, "scores", (count, other), "at least one text in each set")
    pooled = np.concatenate([forget, holdout], -1)
    unknown = int(np.isnan(pooled).sum())
    require(not unknown, "scores", math.nan, f"numbers for all texts ({unknown} are none)")
    ranks = stats.rankdata(pooled, axis=-1)[..., :count].sum(-1)
    return (ranks - count * (count + 1) / 2) / (count * other)


def privleak(value: float, retrained: float) -> float:
    """Return PrivLeak, 100 (AUC - AUC_retrained) / AUC_retrained, in percent.

    Warns of a denominator below 0.05, whose own error dominates the result. Raises `InvalidInput`
    where it is 0: then the retrained model knows the forget texts by heart, or they differ from
    those held out in more than having been read.
    """
    allowed = "an AUC of the retrained model above 0, near 1/2 if forget and hold-out are alike"
    require(0 <= value <= 1, "auc", value, "a number from 0 to 1")
    require(0 < retrained <= 1, "auc_retrained", retrained, allowed)
    if retrained < NEAR_ZERO:
        warnings.warn(
            f"PrivLeak divides by {retrained:.3g}, not {allowed}", RuntimeWarning, stacklevel=2
        )
    return 100 * (value - retrained) / retrained


def auc_interval(
    own: Membership, *, resamples: int = 1000, seed: int = 0, level: float = LEVEL
) -> Estimate:
    """Return the AUC with its percentile interval; both sets are resampled with replacement."""
    drawn = _resampled(own, resamples, seed)
    return percentile_interval(float(auc(*own)), drawn, sum(map(len, own)), level)


def leakage(
    own: Membership,
    retrained: Membership,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Leakage:
    """Return both AUCs and PrivLeak with percentile intervals.

    Each resample has the same texts for both models. Resamples in which the retrained AUC is 0 are
    left out. Raises `InvalidInput` as `privleak` does, for scores of other numbers of texts, fewer
    than 100 resamples and a level outside (0, 1).
    """
    shapes = [[len(scores) for scores in one] for one in (own, retrained)]
    require(
        shapes[0] == shapes[1],
        "retrained",
        shapes[1],
        f"scores of the same texts, {shapes[0]} of them",
    )
    value = privleak(found := float(auc(*own)), base := float(auc(*retrained)))
    drawn, drawn_base = (_resampled(one, resamples, seed) for one in (own, retrained))
    usable = drawn_base > 0
    quotient = 100 * (drawn[usable] - drawn_base[usable]) / drawn_base[usable]
    pairs = ((found, drawn), (base, drawn_base), (value, quotient))
    texts = sum(map(len, own))
    return Leakage(*(percentile_interval(*pair, texts, level) for pair in pairs))


def _resampled(own: Membership, resamples: int, seed: int) -> Float[np.ndarray, " resamples"]:
    """Return AUCs of resamples, which have the same texts for the same seed."""
    rng = np.random.default_rng(seed)
    return auc(*(scores[resample(len(scores), resamples, rng)] for scores in own))
