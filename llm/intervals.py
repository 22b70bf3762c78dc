"""Intervals, computed in the same way for every measure: over examples, and over models.

An interval over examples lies between percentiles of a bootstrap. A resample draws as many examples
as there are, with replacement. It says what another draw of examples would change, and nothing
about another training run. Statistics that are computed on the same resamples, such as two models'
scores of the same texts, can be compared resample by resample. What another training would change
is said by Student's t interval over models that were trained independently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from markov.errors import require, require_whole

LEVEL = 0.95
FEWEST = 100  # resamples; with fewer, the outermost percentiles mean little
FEWEST_AUTHORS = 10
Groups = Int[np.ndarray, " n"] | None  # the group of each example; None where each is its own


class Estimate(NamedTuple):
    """An estimate, the bounds of its interval, and the number of examples or runs behind it."""

    value: float
    low: float
    high: float
    count: int


def resample(
    count: int, resamples: int, rng: np.random.Generator
) -> Int[np.ndarray, "resamples count"]:
    """Return the positions of the examples of each resample, drawn with replacement.

    Raises `InvalidInput` unless `resamples` is a whole number of at least 100.
    """
    require_whole(resamples, "resamples", FEWEST)
    return rng.integers(count, size=(resamples, count))


def resample_groups(
    groups: Shaped[np.ndarray, "examples"], resamples: int, rng: np.random.Generator
) -> Int[np.ndarray, "resamples examples"]:
    """Return how often each example is drawn where whole groups are, with replacement.

    Examples with one label in `groups` are of one group, such as the questions about one author:
    what is hard about an author is hard in all of them, so that they are no independent draws. As
    many groups are drawn as there are. Raises `InvalidInput` as `resample` does.
    """
    require_whole(resamples, "resamples", FEWEST)
    _, own = np.unique(groups, return_inverse=True)
    count = int(own.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples)[:, own]


def groups_of(index: Int[np.ndarray, " n"], per_author: int | None) -> Groups:
    """Return the number of the author of each index, of whom each has so many consecutive ones.

    It is None where that is not known, and for fewer authors than `FEWEST_AUTHORS`, of which a
    bootstrap over authors would make too narrow an interval.
    """
    if per_author is None:
        return None
    authors = np.asarray(index) // per_author
    return authors if len(np.unique(authors)) >= FEWEST_AUTHORS else None


def percentile_interval(
    value: float, replicates: Float[np.ndarray, "resamples"], count: int, level: float = LEVEL
) -> Estimate:
    """Return a value with the percentiles (1 - level) / 2 and (1 + level) / 2 of its replicates.

    Raises `InvalidInput` for a level outside (0, 1).
    """
    _check_level(level)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high), count)


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, "*resamples"]],
    *samples: Float[np.ndarray, "examples"],
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
    least: int = 3,
) -> Estimate:
    """Return a statistic of examples with its percentile interval.

    `samples` are arrays of numbers of the same examples, which are drawn together; `statistic`
    takes them along their last axis. Resamples in which the statistic is undefined are left out.
    The value and its bounds are nan if it is undefined on the examples themselves. Raises
    `InvalidInput` for samples of unequal lengths or of fewer than `least` examples, for fewer than
    100 resamples, and for a level outside (0, 1).
    """
    counts = tuple(len(sample) for sample in samples)
    enough = len(set(counts)) == 1 and counts[0] >= least
    require(enough, "examples", counts, f"as many of each, at least {least}")
    _check_level(level)
    places = resample(counts[0], resamples, np.random.default_rng(seed))
    value = float(statistic(*samples))
    if not np.isfinite(value):
        return Estimate(np.nan, np.nan, np.nan, counts[0])
    replicates = statistic(*(sample[places] for sample in samples))
    return percentile_interval(value, replicates[np.isfinite(replicates)], counts[0], level)


def mean_interval(values: Float[np.ndarray, "runs"], level: float = LEVEL) -> Estimate:
    """Return the mean of the finite values with Student's t interval, mean +- t sd / sqrt(n).

    The interval is nan for n < 2. The values are taken as independent: runs that share a pretrained
    model are averaged first.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    count = len(known)
    if count < 2:
        return Estimate(float(known.mean()) if count else np.nan, np.nan, np.nan, count)
    half = stats.t.ppf((1 + level) / 2, count - 1) * known.std(ddof=1) / np.sqrt(count)
    return Estimate(
        float(known.mean()), float(known.mean() - half), float(known.mean() + half), count
    )


def _check_level(level: float) -> None:
    require(0 < level < 1, "level", level, "a number between 0 and 1")
