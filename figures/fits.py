"""Fitted exponents and rates with intervals: the numbers that captions quote and tests assert.

A power law y = c x^p is a straight line in logarithms, fitted by least squares. Growth in time is
fitted by two models,

    linear         y = a t + b
    logarithmic    y = a log(1 + t/tau) + b

of which the second solves the scalar law where the weight is a mere exponential, ~ e^z: theta falls
by a log(1 + t/tau) with a = 1 / (beta |y|^(1 - normalize)) and tau = e^-z0 / k, in the notation of
`markov.theory`. It needs no choice of a time that counts as late, as a log t would, and it is a
straight line where t is far below tau. Where the weight starts out at 1, as NPO's does, the fitted
a comes down to the true one only slowly: on the exact solution, observed at even times, it is 33%
too large when the last time is 10/k, 11% at 100/k and 3% at 1000/k.

Intervals are Student's, at 95%, and take the residuals as independent. Points along one run are
not: where there are runs, fit each of them and take `figures.statistics.mean_interval` over runs,
as `exponent_over_runs` does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from figures.statistics import mean_interval
from llm.intervals import Estimate
from markov.errors import require
from markov.numerics import MARGIN

LEVEL = 0.95
NAN = float("nan")


class Line(NamedTuple):
    """y = slope x + intercept."""

    slope: Estimate
    intercept: Estimate


class PowerLaw(NamedTuple):
    """y = exp(log_prefactor) x^exponent, and how many points had no logarithm to fit."""

    exponent: Estimate
    log_prefactor: Estimate
    missing: int


class OverRuns(NamedTuple):
    """The mean exponent over those runs that could be fitted.

    Of `runs`, `exponent.count` could be fitted; of all `points`, `missing` had no logarithm.
    """

    exponent: Estimate
    runs: int
    points: int
    missing: int


class Growth(NamedTuple):
    """Both models of growth: rates with intervals, residuals, and the exponent d log y / d log t.

    Residuals are standard deviations. `linear` is in units of y per time, `logarithmic` in units of
    y per e-fold of time, nan where the curve does not bend down at all; `onset` is tau. `p_linear`
    is the p-value of the F test of the straight line within the other model.
    """

    linear: Estimate
    logarithmic: Estimate
    onset: float
    exponent: Estimate
    linear_residual: float
    logarithmic_residual: float
    p_linear: float

    @property
    def better(self) -> str:
        """The model with the smaller residual.

        It is linear unless the third parameter improves the fit significantly (F test at 5%).
        """
        return "logarithmic" if self.p_linear < 1 - LEVEL else "linear"


def straight_line(x: ArrayLike, y: ArrayLike) -> Line:
    """Fit y on x by least squares, with Student's intervals.

    They are nan where there are fewer than three points or only one x. Errors are taken from the
    residuals themselves: by way of 1 - r^2, as in `scipy.stats.linregress`, an exact fit loses half
    its digits, and a slope of exactly 0, SimNPO's exponent in the length, gets no interval at all.
    Raises `InvalidInput` for shapes that do not fit and for what is not finite.
    """
    known, other = _same_length("x", x, "y", y)
    _require_all(np.isfinite(known), "x", known, "finite")
    _require_all(np.isfinite(other), "y", other, "finite")
    count = len(known)
    if count < 3 or not _distinct(known):
        return Line(Estimate(NAN, NAN, NAN, count), Estimate(NAN, NAN, NAN, count))
    middle, spread = known.mean(), ((known - known.mean()) ** 2).sum()
    slope, squares = _residuals(known, other)
    variance = squares / (count - 2)
    error = np.sqrt(variance * (1 / count + middle**2 / spread))
    return Line(
        slope=_estimate(slope, np.sqrt(variance / spread), count - 2, count),
        intercept=_estimate(other.mean() - slope * middle, error, count - 2, count),
    )


def power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """Fit log y on log x by least squares, with Student's interval of n - 2 degrees of freedom.

    Points where y is 0, nan or inf, as for a goal that was never reached, are left out and counted.
    If fewer than three others are left, or all are at one x, the fit is nan. Raises `InvalidInput`
    for an x that is not positive, or a negative y.
    """
    known_x, known_y = _same_length("x", x, "y", y)
    _require_all(np.isfinite(known_x) & (known_x > 0), "x", known_x, "a positive number")
    _require_all(~(known_y < 0), "y", known_y, "at least 0")
    kept = np.isfinite(known_y) & (known_y > 0)
    return PowerLaw(
        *straight_line(np.log(known_x[kept]), np.log(known_y[kept])), int((~kept).sum())
    )


def exponent_over_runs(frame: pd.DataFrame, x: str, y: str, run: str = "run") -> OverRuns:
    """Fit a `power_law` of column y on column x for each run, and average the exponents over runs.

    The interval of the mean is over runs: they are the replicates, points within a run are not.
    Points never reached are not spread evenly: they lie where y would be large. So an exponent with
    many of them missing is one of the easy part. Raises `InvalidInput` for a column that is not
    there.
    """
    for field, column in (("x", x), ("y", y), ("run", run)):
        require(
            column in frame.columns,
            field,
            column,
            f"one of the columns {', '.join(map(str, frame.columns))}",
        )
    fits = [
        power_law(own[x].to_numpy(dtype=float), own[y].to_numpy(dtype=float))
        for _, own in frame.groupby(run)
    ]
    exponents = np.array([fit.exponent.value for fit in fits])
    return OverRuns(
        mean_interval(exponents, LEVEL), len(fits), len(frame), sum(fit.missing for fit in fits)
    )


def growth(t: ArrayLike, y: ArrayLike) -> Growth:
    """Compare y = a t + b with y = a log(1 + t/tau) + b by least squares, where y is finite.

    tau is sought between a thousandth of the first positive time and a thousand times the last; at
    the upper end the curve counts as straight. A curve that bends up is fitted by neither: its
    logarithm is nan, its exponent above 1. The exponent is that of `power_law` over the times above
    0, and nan where some y there is not positive. It is 1 if growth is linear, and ever lower the
    longer a logarithm is followed. Raises `InvalidInput` for a negative time, and for fewer than
    four different times with a finite y.
    """
    times, values = _same_length("t", t, "y", y)
    _require_all(np.isfinite(times) & (times >= 0), "t", times, "a finite time of at least 0")
    known = np.isfinite(values)
    times, values = times[known], values[known]
    different, free = len(np.unique(times)), len(times) - 3
    require(different >= 4, "t", f"{different} different times with a finite y", "at least 4")
    onset, bent = _onset(times, values)
    (_, straight), (_, curved) = (
        _residuals(times, values),
        _residuals(np.log1p(times / onset), values),
    )
    started = times > 0
    positive = values[started] if (values[started] > 0).all() else np.full(int(started.sum()), NAN)
    return Growth(
        linear=straight_line(times, values).slope,
        logarithmic=_logarithmic(times, values, onset)
        if bent
        else Estimate(NAN, NAN, NAN, len(times)),
        onset=onset if bent else float("inf"),
        exponent=power_law(times[started], positive).exponent,
        linear_residual=float(np.sqrt(straight / (free + 1))),
        logarithmic_residual=float(np.sqrt(curved / free)),
        p_linear=_f_test(straight, curved, free, values) if bent else 1.0,
    )


def _estimate(value: float, error: float, free: int, count: int) -> Estimate:
    half = float(stats.t.ppf((1 + LEVEL) / 2, free) * error)
    return Estimate(float(value), float(value) - half, float(value) + half, count)


def _residuals(column: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of y on a column next to a constant, and the sum of squared residuals."""
    centred, rest = column - column.mean(), y - y.mean()
    slope = float(centred @ rest / (centred @ centred))
    rest = rest - slope * centred
    return slope, float(rest @ rest)


def _onset(t: np.ndarray, y: np.ndarray) -> tuple[float, bool]:
    """Return the best tau, and False where it is the upper end of the range.

    It is found on a grid and then refined around the best point.
    """

    def cost(log_tau: float) -> float:
        return _residuals(np.log1p(t / np.exp(log_tau)), y)[1]

    grid = np.linspace(np.log(t[t > 0].min() / 1000), np.log(t.max() * 1000), 100)
    costs = np.array([cost(point) for point in grid])
    # Of fits that are equally good but for rounding, as to a curve that does not move, take the
    # straightest.
    best = int(np.flatnonzero(costs <= max(costs.min(), _rounding(y)))[-1])
    if best == len(grid) - 1:
        return float(np.exp(grid[best])), False
    bounds = (grid[max(best - 1, 0)], grid[best + 1])
    found = optimize.minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x)), True


def _logarithmic(t: np.ndarray, y: np.ndarray, onset: float) -> Estimate:
    """Return the factor of the logarithm with an interval that accounts for the fit of tau as well.

    Its variance is that of a linear fit on three columns: log(1 + t/tau), 1 and the slope of y in
    tau. They span the same as log(1 + t/tau), 1 and 1 / (1 + t/tau). The variance is s^2 over the
    squares of what the first column has that the others have not.
    """
    column, count = np.log1p(t / onset), len(t)
    value, squares = _residuals(column, y)
    _, alone = _residuals(1 / (1 + t / onset), column)
    return _estimate(value, np.sqrt(squares / (count - 3) / alone), count - 3, count)


def _f_test(straight: float, curved: float, free: int, y: np.ndarray) -> float:
    """Return the p-value of the straight line.

    Residuals within rounding of the values count as none.
    """
    rounding = _rounding(y)
    if straight <= rounding:
        return 1.0
    gained = max(straight - max(curved, rounding), 0.0)
    return float(stats.f.sf(gained * free / max(curved, rounding), 1, free))


def _rounding(y: np.ndarray) -> float:
    """Return the squared residuals that are within rounding of the values, which count as none."""
    return len(y) * (16 * np.finfo(float).eps * float(np.abs(y).max())) ** 2


def _distinct(x: np.ndarray) -> bool:
    """Return whether the values differ by more than rounding."""
    return bool(np.ptp(x) > MARGIN * np.abs(x).max())


def _same_length(
    first: str, x: ArrayLike, second: str, y: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    known, other = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    require(known.ndim == 1, first, known.shape, "one dimension")
    require(other.shape == known.shape, second, other.shape, f"the shape {known.shape} of {first}")
    return known, other


def _require_all(good: np.ndarray, field: str, values: np.ndarray, allowed: str) -> None:
    for bad in values[~good][:1]:
        require(False, field, float(bad), allowed)
