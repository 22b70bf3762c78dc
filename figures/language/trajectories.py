"""Weights along runs of unlearning, and how they go with length.

The figures of weights draw them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from figures import style
from figures.cache import Context
from figures.language import studies
from figures.language.runs import runs, source_of, trajectories
from figures.statistics import interval_text
from llm.diagnostics.allocation import pearson, spearman
from llm.intervals import Estimate, bootstrap
from llm.unlearning.runs import Run
from markov.errors import require
from markov.objectives import CORNERS

KNOWN = ["run", "method", "beta", "gamma", "epoch"]


def weights_along(context: Context) -> pd.DataFrame:
    """Return the frame of the user's runs, or of the four corners on the default model.

    `source` is what unlearns. Of a study with several seeds the correlations are means over them,
    and the examples those of the first.
    """
    found = [runs(context)] if context.study is None else studies.corners(context.study)
    keys, bounds = (
        ["run", "epoch", "kind"],
        {name: (f"{name}_low", f"{name}_high") for name in ("pearson", "spearman")},
    )
    frame = studies.over([frame_of_runs(own) for own in found], keys, bounds)
    return frame.assign(source=source_of(context))


def frame_of_runs(found: Sequence[Run], *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return a row per run, epoch and example, and one per run and epoch.

    The former, `kind` example, have the columns of `trajectories`. The latter, `kind` statistic,
    have `pearson` and `spearman`, correlations of weight and length over examples, with their
    bounds `_low` and `_high` and `count`; nan for a constant weight.
    """
    frame, rows = trajectories(found), []
    for known, own in frame.groupby(KNOWN, sort=False):
        length, weight = (own[name].to_numpy(dtype=float) for name in ("length", "weight"))
        row = dict(zip(KNOWN, known, strict=True)) | {"count": len(own)}
        for label, statistic in (("pearson", pearson), ("spearman", spearman)):
            # Rounded, since equal weights that differ in their last digit would get different
            # ranks.
            estimate = bootstrap(
                statistic, length, np.round(weight, 12), resamples=resamples, seed=seed
            )
            row |= {
                label: estimate.value,
                f"{label}_low": estimate.low,
                f"{label}_high": estimate.high,
            }
        rows.append(row)
    statistics = pd.DataFrame(rows).assign(kind="statistic")
    return pd.concat([frame.assign(kind="example"), statistics], ignore_index=True)


def at_epochs(frame: pd.DataFrame, epochs: Iterable[int]) -> pd.DataFrame:
    """Return the rows of some epochs; raise `InvalidInput` for an epoch that no run has reached."""
    known = sorted(set(frame["epoch"]))
    for epoch in epochs:
        require(epoch in known, "epoch", epoch, f"one of those recorded: {known}")
    return frame[frame["epoch"].isin(list(epochs))].reset_index(drop=True)


def panels_of(frame: pd.DataFrame) -> list[tuple[int, str]]:
    """Return the runs of a frame with their labels, the corners in their own order."""
    known = frame[["run", "method", "beta", "gamma"]].drop_duplicates()
    order = [*CORNERS, *(method for method in known["method"] if method not in CORNERS)]
    rows = sorted(
        known.to_dict("records"), key=lambda row: (order.index(row["method"]), row["run"])
    )
    return [(row["run"], label_of(row["method"], row["beta"], row["gamma"])) for row in rows]


def label_of(method: str, beta: float, gamma: float) -> str:
    """Return a method with its settings, for a title."""
    margin = f", γ = {gamma:g}" if gamma else ""
    settings = f", β = {beta:g}{margin}" if beta else ""
    return f"{style.LABELS.get(method, method)}{settings}"


def correlation_text(row: pd.Series, name: str) -> str:
    """Return a correlation with its interval as text, or that a constant weight has none."""
    if np.isnan(row[name]):
        return "none: constant"
    return interval_text(
        Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row["count"]))
    )
