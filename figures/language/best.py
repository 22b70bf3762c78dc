"""The four corners at their best settings: every run of a grid, not only the best.

The grid is over beta and the retain weight.

Small dots: the runs, six for each corner. Large marks: the best of each by one rule, the smallest
statistic D among the runs that keep 95% of the original's utility (dotted), with 95% intervals over
examples; where no run keeps as much, that with the largest utility. Upper right is better. One run
each, and the settings are judged on the answers on which they were chosen.
"""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane
from figures.language.runs import source_of
from figures.language.sweeps import swept
from llm.logs.summaries import TOLERANCE, best
from llm.unlearning.methods import METHODS
from markov.objectives import CORNERS

# (beta, retain weight) where log-probabilities are summed, and where they are averaged over tokens.
SUMMED = ((0.02, 0.05, 0.1), (1.0, 4.0))
PER_TOKEN = ((0.5, 1.0, 2.5), (0.125, 0.5))


def words_of() -> tuple[str, ...]:
    """Return every corner at every beta and retain weight of its grid."""
    found = []
    for name, (_, normalize) in CORNERS.items():
        grid = itertools.product(*(PER_TOKEN if normalize else SUMMED))
        found += [f"{name}:{beta:g}@{weight:g}" for beta, weight in grid]
    return tuple(found)


def data(context: Context) -> pd.DataFrame:
    """Return all measures of every run, as `llm.sweeps.sweep.sweep` has them.

    `source` and `method` are added, and whether a run is the `best` by `llm.sweeps.sweep.best`:
    that with the smallest D among the runs of a corner that keep 95% of the original's utility.
    """
    frame = swept(context, words_of())
    chosen = best(frame)
    within = chosen.set_index("model")["within"]
    frame = frame.assign(
        best=frame["model"].isin(chosen["model"]), within=frame["model"].map(within)
    )
    return frame.assign(method=frame["model"].map(plane.method_of), source=source_of(context))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((axes,),) = style.grid_figure(1, 1, 7.2, 5.2)
    points = plane.points(frame)
    chosen = frame[frame["best"]].groupby("model")["within"].first()
    keep = (1 - TOLERANCE) * float(points.set_index("model").loc["original", "model_utility"])  # pyright: ignore[reportArgumentType]
    axes.axvline(keep, color="black", lw=1, ls=":", zorder=0)
    axes.annotate(
        f"{1 - TOLERANCE:.0%} of the utility", (keep, 0.99), rotation=90, ha="right", fontsize=7
    )
    for _, row in points.iterrows():
        method = str(row["method"])
        if method in plane.BASELINES:
            plane.mark(axes, row, "ks_statistic")
        elif row["model"] in chosen.index:
            settings = f"β = {row['beta']:g}, λ = {row['retain_weight']:g}"
            note = "" if chosen[row["model"]] else ", below the line"
            label = f"{METHODS[method].title}, {settings}{note}"
            plane.mark(axes, row, "ks_statistic", label=label, ms=9)
        else:
            color = style.COLORS[method]
            axes.plot(
                row["model_utility"], row["ks_statistic"], "o", ms=4, color=color, alpha=0.45, mew=0
            )
    plane.distance_axis(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
