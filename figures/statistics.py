"""Estimates with intervals over pretrained models, or whatever else is drawn independently."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from llm.intervals import Estimate, mean_interval


def over_models(values: pd.Series, models: pd.Series | np.ndarray, level: float = 0.95) -> Estimate:
    """Return the mean over pretrained models with Student's t interval over them.

    Orders of batches of one model are averaged first, those that are finite, since they are no
    independent draws (`between_models` says how far from it). `models` has the model of each value.
    """
    known = values.where(np.isfinite(values.to_numpy(dtype=float)))
    return mean_interval(known.groupby(models).mean().to_numpy(dtype=float), level)


def geometric_over_models(values: pd.Series, models: pd.Series) -> Estimate:
    """Return the geometric mean over pretrained models, as `over_models` does of the logarithms."""
    return ratio(over_models(logs(values), models))


def between_models(values: pd.Series, models: pd.Series | np.ndarray) -> float:
    """Return the share of the variance of runs that lies between pretrained models, from 0 to 1.

    It is v / (v + w) with the mean variance w of the runs of one model, and v = (m - w) / n, at
    least 0, where m is n times the variance of the models' means, and n the number of runs of each
    (analysis of variance in one direction). It is nan for unequal numbers of runs, fewer than two
    models, or one run each.
    """
    grouped = values.groupby(models)
    (runs, *others), count = grouped.count().unique(), grouped.ngroups
    if others or runs < 2 or count < 2:
        return float("nan")
    within = float(grouped.var(ddof=1).mean())
    between = max(0.0, float(grouped.mean().var(ddof=1)) - within / runs)
    return between / (between + within) if between + within > 0 else float("nan")


def p_value(estimate: Estimate, none: float = 0.0, level: float = 0.95) -> float:
    """Return the two-sided p-value of Student's t test that belongs to an interval.

    The interval is that of `mean_interval`. The p-value is nan without one. Where the values do not
    differ at all it is 1 if they are `none`, else 0.
    """
    if not np.isfinite(estimate.high - estimate.low):
        return float("nan")
    half = (estimate.high - estimate.low) / 2
    if half == 0:
        return float(estimate.value == none)
    error = half / stats.t.ppf((1 + level) / 2, estimate.count - 1)
    return float(2 * stats.t.sf(abs(estimate.value - none) / error, estimate.count - 1))


def verdict(estimate: Estimate, threshold: float = 0.0) -> str:
    """Return what an interval says of the claim that a number exceeds a threshold of at least 0.

    Without the effect the number is 0. The claim "holds" where the whole interval lies beyond the
    threshold, "holds weakly" where the interval excludes no effect but not the threshold, is
    "contradicted" where the whole interval lies on the other side of no effect, and is
    "inconclusive" otherwise, and where there is no interval.
    """
    if estimate.low > threshold:
        return "holds"
    if estimate.low > 0:
        return "holds weakly"
    return "contradicted" if estimate.high < 0 else "inconclusive"


def at_level(estimate: Estimate, level: float, known: float = 0.95) -> Estimate:
    """Return an estimate with its interval, Student's t, at another level than the `known` one."""
    wide, narrow = (stats.t.ppf((1 + one) / 2, estimate.count - 1) for one in (level, known))
    half = (estimate.high - estimate.low) / 2 * float(wide / narrow)
    return estimate._replace(low=estimate.value - half, high=estimate.value + half)


def holm_levels(p_values: Sequence[float], alpha: float = 0.05) -> list[float]:
    """Return the level of the interval by which each of several claims is judged together.

    Holm's procedure: the smallest of m p-values is compared with alpha/m, the next with
    alpha/(m-1), and so on until one is larger; the others are compared with what that one was. An
    interval of 1 - that number leaves "no effect" out exactly where Holm's test rejects it. So the
    probability that any effect is found where there is none is at most alpha. A p-value that is nan
    comes last.
    """
    order = sorted(range(len(p_values)), key=lambda at: (math.isnan(p_values[at]), p_values[at]))
    levels, left = [0.0] * len(p_values), len(p_values)
    for place in order:
        levels[place] = 1 - alpha / left
        if p_values[place] <= alpha / left and left > 1:
            left -= 1
    return levels


class Judged(NamedTuple):
    """What several claims that are judged together come to, for one of them.

    `p` is its two-sided p-value against no effect, and `level` that of the interval by which its
    `verdict` goes.
    """

    p: float
    level: float
    verdict: str


def judged(
    estimates: Sequence[Estimate], thresholds: Sequence[float] | None = None
) -> list[Judged]:
    """Return the verdicts on claims that are judged together, by Holm's procedure.

    The estimates have t intervals of 95%. A claim is that its number exceeds a threshold, which is
    0 where none are given (see `verdict`).
    """
    p_values = [p_value(one) for one in estimates]
    levels = holm_levels(p_values)
    wide = [at_level(one, level) for one, level in zip(estimates, levels, strict=True)]
    every = [0.0] * len(wide) if thresholds is None else thresholds
    said = [verdict(one, threshold) for one, threshold in zip(wide, every, strict=True)]
    return [Judged(*one) for one in zip(p_values, levels, said, strict=True)]


def full_means(grouped: Any) -> Any:
    """Return the means of groups of a frame or a column, nan if any value of the group is nan.

    The mean of pandas leaves nan out: a run that diverged would silently be missing from a curve.
    """
    return grouped.mean().where(grouped.count().eq(grouped.size(), axis=0))


def ratio(logs: Estimate) -> Estimate:
    """Return the estimate of a factor, given that of its logarithm."""
    low, value, high = (float(np.exp(number)) for number in (logs.low, logs.value, logs.high))
    return Estimate(value, low, high, logs.count)


def ratio_interval(logs: np.ndarray, level: float = 0.95) -> Estimate:
    """Return a geometric mean with its interval, from logarithms."""
    return ratio(mean_interval(logs, level))


def lookup(frame: pd.DataFrame, keys: Sequence[str]) -> dict[Any, Estimate]:
    """Return the estimates in a frame by the values in the columns `keys`.

    Their parts are the columns `value`, `low`, `high` and `count`.
    """
    found = {}
    for row in frame.to_dict("records"):
        place = tuple(row[key] for key in keys)
        found[place if len(keys) > 1 else place[0]] = Estimate(
            row["value"], row["low"], row["high"], row["count"]
        )
    return found


def logs(values: pd.Series) -> pd.Series:
    """Return the natural logarithms of the values, with the same index."""
    return pd.Series(np.log(values.to_numpy(dtype=float)), index=values.index)


def interval_text(estimate: Estimate) -> str:
    """Return a value and its interval as text for a legend."""
    interval = f" ({estimate.low:.2f} to {estimate.high:.2f})" if estimate.count > 1 else ""
    return f"{estimate.value:.2f}{interval}"


def smallest_distance(p: float, examples: int) -> float:
    """Return the smallest D of two samples whose exact p-value is at most p, or nan if none is.

    Both samples have n = `examples` values. P(D >= k/n) = 2 sum_{j>=1} (-1)^(j-1) C(2n, n - jk) /
    C(2n, n): paths of 2n steps that leave a strip, counted by reflection.
    """
    if p >= 1:
        return 0.0
    for count in range(1, examples + 1):
        terms = range(1, examples // count + 1)
        ways = sum(
            (-1) ** (term - 1) * math.comb(2 * examples, examples - term * count) for term in terms
        )
        if 2 * ways / math.comb(2 * examples, examples) <= p:
            return count / examples
    return math.nan
