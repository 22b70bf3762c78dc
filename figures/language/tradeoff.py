"""Forget quality against model utility on TOFU's measures (the paper's Figure 1c).

Drawn are the methods of the paper's table.

Left: forget quality, the p-value of the test between the truth ratios of forget answers under a
model and under the retrained one, against model utility, the harmonic mean of nine numbers; upper
right is better. Right: the statistic D behind that p-value, which does not depend on how many
answers are compared, with the corners' way there along the epochs. The settings are the paper's for
forget10. Settings chosen for a model of seven billion parameters need not be those of a small one:
see the figure llm_best. Grey: D between any two retrained models of a study. Bars: 95% intervals,
over trainings of the default model or of a study with several seeds, else over examples; then those
of D lie too low on the page, since resampled distributions differ more.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane, studies
from figures.language.runs import source_of, study
from figures.language.study import floors
from figures.language.sweeps import along, corner_words, swept, table_words
from markov.objectives import CORNERS

OTHERS = ("gradient_ascent", "grad_diff")  # methods of the table that are no corners
TOLD = ("kind", "model", "other", "task", "measure", "value", "low", "high", "seeds", "examples")


def data(context: Context) -> pd.DataFrame:
    """Return all measures of the methods of the table, and the way of the four corners.

    Columns `source`, `kind`, `model` (original, retrained, or the method in a word), `method`,
    `title`, and by kind:

        measure   a row per measure and task, as `llm.sweeps.sweep.sweep` has them, with intervals
                  over examples
        difference  by how much a method lies above NPO, of a study with several seeds (see
                  `figures.language.studies.differences_of`); not drawn, for what is told of it
        floor     `value`, D between any two retrained models of a study
        epoch     `epoch`, `ks_statistic`, `forget_quality`, `model_utility` and what else a run has
                  of an epoch; of a study only where it measured along its runs
    """
    chosen = study(context.scale)
    # The models of the corners are those that relearning attacks.
    table = swept(context, table_words(chosen), models=True).assign(kind="measure")
    path = along(context, corner_words(chosen), table).assign(kind="epoch")
    ways = [path.loc[path["model_utility"].notna()]] if len(path) else []
    parts = [table, *ways]
    if context.study is not None:
        apart = studies.differences_of(context.study, [*OTHERS, *CORNERS], "npo")
        parts += [apart.assign(kind="difference"), floors(context.study)]
    frame = pd.concat(parts, ignore_index=True)
    method = frame["model"].map(plane.method_of, na_action="ignore")
    return frame.assign(method=method, source=source_of(context))


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that README and findings tell: all measures, and how methods differ."""
    kept = frame[frame["kind"].isin(["measure", "difference"])]
    return {"table": kept[[name for name in TOLD if name in kept]]}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((paper, exact),) = style.grid_figure(1, 2, 9.5, 4.6)
    points = plane.points(frame[frame["kind"] == "measure"])
    for _, row in points.iterrows():
        plane.mark(paper, row, "forget_quality")
        plane.mark(exact, row, "ks_statistic")
    for (method, _), own in frame[frame["kind"] == "epoch"].groupby(
        ["method", "model"], sort=False
    ):
        exact.plot(
            own["model_utility"],
            own["ks_statistic"],
            ".-",
            ms=3,
            lw=1,
            alpha=0.8,
            color=style.COLORS[str(method)],
        )
    least = points[[name for name in points if str(name).startswith("forget_quality")]].min()
    plane.quality_axis(paper, float(least.min()))
    paper.set_xlabel(plane.UTILITY)
    plane.distance_axis(exact)
    plane.floor(exact, frame)
    count = frame.loc[frame["measure"] == "ks_statistic", "examples"].max()
    paper.set_title(f"p-value of {count:.0f} answers beside {count:.0f}")
    way = ", epoch by epoch" if (frame["kind"] == "epoch").any() else ""
    exact.set_title(f"the statistic behind it{way}")
    for axes in (paper, exact):
        axes.set_xlim(left=-0.02)
    handles = dict(zip(*reversed(paper.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5)
    return figure
