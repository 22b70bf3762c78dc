"""Do weights go with length? After one epoch of unlearning a language model (paper, Figure 3a).

The gradient weight of each forget answer against its length, for the four corners of the family,
each along its own run. Grey: before the first update, where the weights of the corners with a
reference are all 1, or 1/|y|, and those without it begin below. Above: correlations of weight and
length after the epoch, with 95% intervals over answers.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context
from figures.language.trajectories import at_epochs, correlation_text, panels_of, weights_along

EPOCH = 1
BEFORE = "0.75"  # a grey


def data(context: Context) -> pd.DataFrame:
    """Return the weights before and after the first epoch, and correlations with length.

    See `figures.language.trajectories.frame_of_runs`.
    """
    return at_epochs(weights_along(context), [0, EPOCH])


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    found = panels_of(frame)
    figure, panels = style.grid_figure(1, len(found), 3.4 * len(found), 3.4)
    for axes, (run, label) in zip(panels[0], found, strict=True):
        own = frame[frame["run"] == run]
        _panel(
            axes,
            own[own["kind"] == "example"],
            own[(own["kind"] == "statistic") & (own["epoch"] == EPOCH)],
        )
        axes.set_title(label)
        axes.set_xlabel("|y|, scored tokens")
    panels[0][0].set_ylabel("weight")
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, mew=0, color=color, label=name)
        for color, name in (
            (BEFORE, "before unlearning"),
            ("black", f"after epoch {EPOCH}, in the colour of the method"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _panel(axes: Axes, own: pd.DataFrame, statistics: pd.DataFrame) -> None:
    color = style.COLORS.get(own["method"].iloc[0], "black")
    for epoch, look in (
        (0, {"color": BEFORE, "ms": 3}),
        (EPOCH, {"color": color, "ms": 4, "alpha": 0.7}),
    ):
        part = own[own["epoch"] == epoch]
        axes.plot(part["length"], part["weight"], "o", mew=0, **look)
    for _, found in statistics.iterrows():  # there is none for a run that ended before
        text = (
            f"Pearson {correlation_text(found, 'pearson')}\nSpearman "
            f"{correlation_text(found, 'spearman')}"
        )
        axes.text(0.97, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5)
    axes.set_ylim(0, 1.3 * own["weight"].max())
