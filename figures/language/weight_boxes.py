"""How the weights spread as a language model unlearns (paper, Figure 3b).

They are drawn for the four corners of the family.

A box per epoch over the forget answers: quartiles, whiskers to 1.5 times the box, points beyond.
Upper row: the weight itself. Lower row: the share of the total weight that goes to the tenth of the
answers that weigh most; dotted: 0.1, as if all weighed alike.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import studies
from figures.language.runs import runs, trajectories
from figures.language.trajectories import panels_of

TOP = 0.1
COLUMNS = ["run", "method", "beta", "gamma", "epoch", "index", "length", "weight"]


def data(context: Context) -> pd.DataFrame:
    """Return the weights of all answers at all epochs, and `top_share` for every epoch.

    That is the share of the heaviest tenth of the answers; of a study with several seeds its mean
    over them, with an interval `top_share_low` to `top_share_high`.
    """
    found = [runs(context)] if context.study is None else studies.corners(context.study)
    frames = [with_top_share(trajectories(own)[COLUMNS]) for own in found]
    bounds = {"top_share": ("top_share_low", "top_share_high")}
    return studies.over(frames, ["run", "epoch", "index"], bounds)


def with_top_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with `top_share`.

    It is the share of the total weight of an epoch that the heaviest tenth of its answers gets.
    """

    def share(weight: pd.Series) -> float:
        values = np.sort(weight.to_numpy(dtype=float))[::-1]
        count, total = max(1, round(TOP * len(values))), values.sum()
        return float(values[:count].sum() / total) if total > 0 else np.nan

    return frame.assign(top_share=frame.groupby(["run", "epoch"])["weight"].transform(share))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    found = panels_of(frame)
    figure, panels = style.grid_figure(
        2, len(found), 3.4 * len(found), 5, sharex="col", height_ratios=(2, 1)
    )
    for column, (run, label) in enumerate(found):
        own = frame[frame["run"] == run]
        color = style.COLORS.get(own["method"].iloc[0], "black")
        _boxes(panels[0][column], own, color)
        shares = own.groupby("epoch")["top_share"].first()
        panels[1][column].plot(shares.index, shares, "o-", ms=3, color=color)
        if "top_share_low" in own:
            low, high = (
                own.groupby("epoch")[f"top_share_{end}"].first().to_numpy()
                for end in ("low", "high")
            )
            panels[1][column].fill_between(shares.index, low, high, color=color, alpha=0.2, lw=0)
        panels[1][column].axhline(TOP, ls=":", color="black", lw=1)
        panels[1][column].set(ylim=(0, 1), xlabel="epoch")
        panels[0][column].set_title(label)
    beside = {"transform": panels[1][0].get_yaxis_transform(), "fontsize": 7}
    panels[1][0].text(0.99, TOP, "if all weighed alike", ha="right", va="top", **beside)
    panels[0][0].set_ylabel("weight")
    panels[1][0].set_ylabel("heaviest tenth's share")
    return figure


def _boxes(axes: Axes, own: pd.DataFrame, color: str) -> None:
    epochs = sorted(own["epoch"].unique())
    values = [own.loc[own["epoch"] == epoch, "weight"].to_numpy(dtype=float) for epoch in epochs]
    fill = {"facecolor": color, "alpha": 0.5, "linewidth": 0.6}
    points = {"marker": "o", "markersize": 2, "markerfacecolor": color, "markeredgewidth": 0}
    axes.boxplot(
        values,
        positions=epochs,
        widths=0.7,
        patch_artist=True,
        manage_ticks=False,
        boxprops=fill,
        flierprops=points,
        medianprops={"color": "black", "linewidth": 1.2},
    )
    axes.set_ylim(bottom=0)
