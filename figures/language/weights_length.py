"""Weight against length as a language model unlearns (paper, Figure 4).

It is drawn for the four corners of the family.

Upper row as in the paper: NPO's weight, and 10 times SimNPO's, after some epochs, each along its
own run; r is its Pearson correlation with length. Lower row, the two corners between: the reference
dropped and the length kept, and 10 times the weight with the length normalised and the reference
kept. Methods beyond the four corners have a row below.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language.trajectories import at_epochs, label_of, weights_along
from markov.objectives import AT_BETA_ZERO, CORNERS

EPOCHS = (1, 2, 3, 10)
ROWS = (("npo", "simnpo"), ("reference_free_npo", "length_normalized_npo"))
FACTOR = 10  # on weights that are divided by the length
NORMALIZED = {
    *(name for name, (_, power) in CORNERS.items() if power),
    *(name for name, power in AT_BETA_ZERO.items() if power),
}


def data(context: Context) -> pd.DataFrame:
    """Return the weights after those epochs of the paper that were run, and after the last one.

    Correlations with length are in the frame too.
    """
    frame = weights_along(context)
    last = int(frame["epoch"].max())
    return at_epochs(frame, sorted({*(epoch for epoch in EPOCHS if epoch < last), last}))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    epochs = sorted(frame["epoch"].unique())
    others = tuple(method for method in frame["method"].unique() if method not in CORNERS)
    rows = [row for row in (*ROWS, others) if frame["method"].isin(row).any()]
    figure, panels = style.grid_figure(
        len(rows), len(epochs), 3.1 * len(epochs), 3.1 * len(rows), sharex=True, sharey="row"
    )
    for line, methods in zip(panels, rows, strict=True):
        for axes, epoch in zip(line, epochs, strict=True):
            _panel(
                axes,
                frame[(frame["epoch"] == epoch) & frame["method"].isin(methods)],
                f"epoch {epoch:.0f}",
            )
        line[0].set_ylabel("weight")
        line[0].set_ylim(bottom=0)
    for axes in panels[-1]:
        axes.set_xlabel("|y|, scored tokens")
    return figure


def _panel(axes: Axes, own: pd.DataFrame, title: str) -> None:
    for run in sorted(own["run"].unique()):
        part = own[own["run"] == run]
        examples, found = part[part["kind"] == "example"], part[part["kind"] == "statistic"].iloc[0]
        method = str(found["method"])
        factor = FACTOR if method in NORMALIZED else 1
        times = f"{factor} × " if factor > 1 else ""
        r = "constant" if np.isnan(found["pearson"]) else f"r = {found['pearson']:.2f}"
        label = f"{times}{label_of(method, found['beta'], found['gamma'])}: {r}"
        look = {"ms": 3.5, "mew": 0, "alpha": 0.7, "color": style.COLORS.get(method, "black")}
        axes.plot(examples["length"], factor * examples["weight"], "o", label=label, **look)
    place = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1),
        "borderaxespad": 0,
        "borderpad": 0,
        "alignment": "left",
    }
    axes.legend(
        handles=axes.get_lines(),
        title=title,
        title_fontsize=9,
        fontsize=7,
        handlelength=0.8,
        handletextpad=0.4,
        **place,
    )
