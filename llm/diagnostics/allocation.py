"""How an objective allocates its effort over examples, compared with their lengths and their needs.

This module works on the tables of `llm.diagnostics.weights`. Two efforts are compared with two
needs:

    weight = d loss / d logp     the push on the log-probability of a response
    push = weight * length       the push on its log-probability per token:
                                 d loss / d theta if logp = |y| theta
    needed = ref - retrained     how far the response has to fall, nats;
                                 per token: needed / length

The weight should match `needed` if gradients of logp are equally large for all responses, and the
push should match `needed_per_token` if all tokens share what is trained (the scalar law). Intervals
(`llm.intervals`) use the same resamples for every objective.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import stats

from llm.diagnostics.weights import WEIGHT
from llm.intervals import Estimate, bootstrap
from markov.errors import require
from markov.numerics import MARGIN, exceeds

Array = Float[np.ndarray, "*resamples examples"]
Values = Float[np.ndarray, "*resamples"]


class Curve(NamedTuple):
    """Cumulated shares of need and of effort spent, from 0 on, the neediest examples first."""

    needed: Float[np.ndarray, "*resamples points"]
    effort: Float[np.ndarray, "*resamples points"]


def pearson(x: Array, y: Array) -> Values:
    """Return the correlation along the last axis; nan if x or y is constant up to rounding."""
    varies = _varies(x) & _varies(y)
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    scale = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.where(varies, (x * y).sum(-1) / np.where(varies, scale, 1.0), np.nan)


def spearman(x: Array, y: Array) -> Values:
    """Return the rank correlation along the last axis; nan if x or y is constant up to rounding.

    Equal values share their mean rank.
    """
    # The values must vary, not the ranks: values that differ in the last digit alone have ranks
    # that vary.
    ranks = pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))
    return np.where(_varies(x) & _varies(y), ranks, np.nan)


def _varies(values: Array) -> Bool[np.ndarray, "*resamples"]:
    return exceeds(values.max(-1), values.min(-1))


def allocation_curve(needed: Array, effort: Array) -> Curve:
    """Return the cumulated shares of need and effort, the neediest examples first.

    A proportional effort lies on the diagonal. Above it the neediest get more than their share,
    below it less. An example whose `needed` is negative needs nothing: it has no share of the need
    and comes last, and effort spent on it makes the curve rise vertically at the right edge. Of
    examples with equal need, those with less effort come first. The shares are nan if nothing is
    needed or spent.
    """
    order = np.lexsort((effort, -needed), axis=-1)
    running = []
    for values in (np.maximum(needed, 0.0), effort):
        shares = np.take_along_axis(_shares(values), order, axis=-1)
        running.append(np.concatenate([np.zeros_like(shares[..., :1]), shares.cumsum(-1)], axis=-1))
    return Curve(*running)


def allocation_area(needed: Array, effort: Array) -> Values:
    """Return the area under the allocation curve: 1/2 for an effort in proportion to need.

    It is towards 1 if all effort goes to the neediest, and towards 0 if it goes to those that need
    least or nothing.
    """
    x, y = allocation_curve(needed, effort)
    return ((x[..., 1:] - x[..., :-1]) * (y[..., 1:] + y[..., :-1])).sum(-1) / 2


def misplaced(needed: Array, effort: Array) -> Values:
    """Return the share of the effort that other examples should have had, in [0, 1].

    It is sum |share of effort - share of need| / 2.
    """
    return np.abs(_shares(np.maximum(needed, 0.0)) - _shares(effort)).sum(-1) / 2


def _shares(values: Array) -> Array:
    whole = values.sum(-1, keepdims=True)
    return np.where(whole > 0, values / np.where(whole > 0, whole, 1.0), np.nan)


def length_correlation(
    table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return the Pearson and Spearman correlations of weight and length, one row per objective.

    These are the numbers of the paper's Figure 4. The columns are `objective`, `count`, and each
    statistic with its bounds, `pearson`, `pearson_low`, `pearson_high`, ...; a constant weight
    gives nan. Raises `InvalidInput` for a table without weights, or of fewer than 3 examples.
    """
    length = _finite("length", table["length"])
    rows = []
    for name, weight in _weights(table).items():
        weight = _comparable(weight)
        found = {"objective": name, "count": len(table)}
        for label, statistic in (("pearson", pearson), ("spearman", spearman)):
            found |= _columns(
                label, bootstrap(statistic, length, weight, resamples=resamples, seed=seed)
            )
        rows.append(found)
    return pd.DataFrame(rows)


def bias(table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return whether the effort goes where it is needed: one row per objective, effort and need.

    The efforts are weight and push, and the needs total and per_token. The columns are

        objective, effort, need, count
        spearman     of effort and need, nan for a constant effort
        area         under the allocation curve
        misplaced    the misplaced share of the effort
        unneeded     the share of effort spent on examples that need nothing

    The first three statistics come with their bounds `_low` and `_high`. An example needs nothing
    if its `needed` is negative, or 0 but for rounding (at most `markov.numerics.MARGIN` of `ref`).
    Raises `InvalidInput` for a table without weights or needs, of fewer than 3 examples, with
    numbers that are not finite, or in which nothing is needed.
    """
    needs = _needs(table)
    positive = int((needs["total"] > 0).sum())
    require(
        positive > 0,
        "needed",
        f"{positive} of {len(table)} positive",
        "an example with something to forget",
    )
    length, rows = _finite("length", table["length"]), []
    for name, weight in _weights(table).items():
        for effort, spent in {"weight": weight, "push": weight * length}.items():
            spent = _comparable(spent)
            for need, needed in needs.items():
                found = {"objective": name, "effort": effort, "need": need, "count": len(table)}
                for label, statistic in STATISTICS.items():
                    found |= _columns(
                        label, bootstrap(statistic, needed, spent, resamples=resamples, seed=seed)
                    )
                rows.append({**found, "unneeded": float(_shares(spent)[needed <= 0].sum())})
    return pd.DataFrame(rows)


def allocation(table: pd.DataFrame, effort: str = "weight", need: str = "total") -> pd.DataFrame:
    """Return the allocation curves of all objectives, from (0, 0) to (1, 1).

    The columns are `objective`, `needed_share` and `effort_share`.
    """
    require(effort in ("weight", "push"), "effort", effort, "weight or push")
    require(need in ("total", "per_token"), "need", need, "total or per_token")
    needed = _needs(table)[need]
    scale = _finite("length", table["length"]) if effort == "push" else 1.0
    curves = {
        name: allocation_curve(needed, weight * scale) for name, weight in _weights(table).items()
    }
    frames = (
        pd.DataFrame(
            {"objective": name, "needed_share": curve.needed, "effort_share": curve.effort}
        )
        for name, curve in curves.items()
    )
    return pd.concat(frames, ignore_index=True)


def _needs(table: pd.DataFrame) -> dict[str, Float[np.ndarray, "examples"]]:
    """Return what each example needs, `total` and `per_token` (nats).

    The need is 0 if ref and retrained are equal but for rounding. Equal sums that were added in
    another order differ in their last digits: without this, the processor would decide whether such
    an example needs something, and its rank among others.
    """
    lacking = [name for name in ("ref", "needed") if name not in table]
    require(not lacking, "table", list(table.columns), "columns `ref`, `needed`: see `with_needed`")
    found = {"total": "needed", "per_token": "needed_per_token"}
    needed, ref = (_finite(name, table[name]) for name in ("needed", "ref"))
    differs = np.abs(needed) > MARGIN * np.abs(ref)
    return {
        need: np.where(differs, _finite(name, table[name]), 0.0) for need, name in found.items()
    }


def _weights(table: pd.DataFrame) -> dict[str, Float[np.ndarray, "examples"]]:
    columns = [column for column in table.columns if column.startswith(WEIGHT)]
    require(bool(columns), "table", list(table.columns), f"a column of weights, {WEIGHT}...")
    return {column.removeprefix(WEIGHT): _finite(column, table[column]) for column in columns}


def _finite(field: str, column: pd.Series) -> Float[np.ndarray, "examples"]:
    """Return the numbers of a column; raises `InvalidInput` if one of them is not finite.

    Such a number would otherwise pass for a constant or a 0.
    """
    values = column.to_numpy(dtype=float)
    bad = values[~np.isfinite(values)]
    require(
        len(bad) == 0,
        field,
        bad[:1].tolist(),
        f"finite numbers ({len(bad)} of {len(values)} are not)",
    )
    return values


def _comparable(effort: Array) -> Array:
    """Return the effort relative to the largest, rounded to 12 digits.

    1/length * length is 1 only up to rounding, and differences of rounding would have ranks.
    """
    return np.round(effort / max(float(effort.max()), np.finfo(float).tiny), 12)


def _columns(label: str, found: Estimate) -> dict[str, float]:
    return {label: found.value, f"{label}_low": found.low, f"{label}_high": found.high}


STATISTICS = {"spearman": spearman, "area": allocation_area, "misplaced": misplaced}
