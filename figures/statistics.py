"""Estimates with intervals over runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from llm.intervals import Estimate


def mean_interval(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Return the mean of the finite values with Student's t interval, mean +- t sd / sqrt(n).

    The interval is nan for n < 2. Runs that share a pretrained model are taken as independent,
    which is optimistic if that model matters.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    count = len(known)
    if count < 2:
        return Estimate(
            float(known.mean()) if count else float("nan"), float("nan"), float("nan"), count
        )
    half = stats.t.ppf((1 + level) / 2, count - 1) * known.std(ddof=1) / np.sqrt(count)
    return Estimate(
        float(known.mean()), float(known.mean() - half), float(known.mean() + half), count
    )


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
