"""Is it the length alone? GradDiff with and without it in its weight (paper, Figure A3).

NPO, SimNPO and refusals stand beside it.

The statistic D between the truth ratios of the forget answers and the retrained model's, against
model utility; upper right is better, bars are 95% intervals over examples. Both forms of GradDiff,
which have no beta to let go of an answer, at three retain weights each: as released, a mean over
tokens on both sides, and weighted, with 1/|y| for the weight of each answer. The four corners at
those of the table; and two methods that teach refusals. One run each.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from figures import style
from figures.cache import Context
from figures.language import plane
from figures.language.runs import AuthorsStudy, source_of, study
from figures.language.sweeps import corner_words, swept

# retain weights, both beside a mean over tokens
PLAIN, WEIGHTED = (0.5, 1.0, 2.0), (0.125, 0.5, 2.0)
LOST = 0.1  # utility of a model that has nearly none left


def words_of(chosen: AuthorsStudy) -> tuple[str, ...]:
    """Return both forms of GradDiff at several retain weights, the corners, and refusals.

    The four corners are those of the table; refusals are taught or preferred.
    """
    plain, weighted = (
        [f"{name}@{weight:g}" for weight in weights]
        for name, weights in (("grad_diff", PLAIN), ("weighted_grad_diff", WEIGHTED))
    )
    weight = f"@{chosen.retain_weight:g}"
    return (
        *plain,
        *weighted,
        *corner_words(chosen),
        f"idk{weight}",
        f"dpo:{chosen.beta:g}{weight}",
    )


def data(context: Context) -> pd.DataFrame:
    """Return all measures of these methods, as `llm.sweeps.sweep.sweep` has them.

    `source` and `method` are added.
    """
    frame = swept(context, words_of(study(context.scale)))
    return frame.assign(method=frame["model"].map(plane.method_of), source=source_of(context))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((axes,),) = style.grid_figure(1, 1, 7.4, 5.2)
    points = plane.points(frame)
    paths = points[points.groupby("method")["retain_weight"].transform("nunique") > 1]
    for method, own in points.groupby("method", sort=False):
        if own["retain_weight"].nunique() > 1:
            path = own.sort_values("retain_weight")
            axes.plot(
                path["model_utility"],
                path["ks_statistic"],
                lw=1,
                color=style.COLORS[str(method)],
                zorder=0,
            )
            others = paths[paths["method"] != method]
            for _, row in path.iterrows():
                _name(axes, row, others)
        for _, row in own.iterrows():
            plane.mark(axes, row, "ks_statistic")
    plane.distance_axis(axes)
    axes.set_xlim(left=-0.02)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    return figure


def _name(axes: Axes, row: pd.Series, others: pd.DataFrame) -> None:
    """Write the retain weight of a point on the side on which the other form's points are not."""
    x, y = float(row["model_utility"]), float(row["ks_statistic"])
    away = (others["model_utility"] - x).abs() + (others["ks_statistic"] - y).abs()
    beside = float(others["ks_statistic"].to_numpy()[away.to_numpy().argmin()]) if len(away) else 1
    # Smaller is higher on this axis. Of two that are level, one goes up and the other down.
    up = y < beside or (y == beside and row["method"] == "grad_diff")
    text = axes.annotate(
        f"λ = {row['retain_weight']:g}",
        (x, y),
        xytext=(6 if x < LOST else 0, 7 if up else -7),
        textcoords="offset points",
        ha="left" if x < LOST else "center",  # where all utility is lost there is no room
        va="bottom" if up else "top",
        fontsize=8,
        color=style.COLORS[str(row["method"])],
        zorder=6,
    )
    text.set_path_effects([withStroke(linewidth=3, foreground="white")])
