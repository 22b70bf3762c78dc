"""Where the effort goes: failure (a), uneven allocation, and failure (b), no weighting at first.

For each corner of the family at its best beta, along the path: share of the total gradient weight
of the forget set that goes to the second component (short, or never memorised), share of the
gradient norm that it receives, and the spread of the weights over all forget examples (standard
deviation over mean). Half the sequences belong to each component. NPO starts with a spread of 0:
every weight is 1, so that it starts as gradient ascent; length-normalised NPO starts with the
spread of 1/|y| alone. Where all responses have one length (memorisation), normalising only changes
the scale of beta, so that corners with one reference must nearly coincide. Lines are means over
pretrained models, bands the 95% interval over them (Student's t, orders of batches averaged first).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.chains.runs import corner_runs
from figures.statistics import full_means, over_models
from markov.objectives import CORNERS

ROWS = {
    "weight_share": "share of gradient weight",
    "gradient_share": "share of gradient norm",
    "spread": "spread of the weights: sd / mean",
}


def data(context: Context) -> pd.DataFrame:
    """Return the second forget component's shares and the spread of weights, per run and step."""
    frame = corner_runs(context)
    keys = ["run", "case", "method", "beta", "pretrain_seed", "seed", "step"]
    forget = frame[frame["component"] != "retain"]
    squares = forget.assign(square=forget["weight"] ** 2 + forget["weight_std"] ** 2)
    moments = full_means(squares.groupby(keys)[["weight", "square"]])
    variance = (moments["square"] - moments["weight"] ** 2).clip(lower=0)
    spread = (variance**0.5 / moments["weight"]).rename("spread")
    second = frame[frame["component"] == "forget2"].set_index(keys)[
        ["weight_share", "gradient_share"]
    ]
    return second.join(spread).reset_index()


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    cases = list(dict.fromkeys(frame["case"]))
    figure, panels = style.grid_figure(
        len(ROWS), len(cases), 5 * len(cases), 7.8, sharex=True, sharey="row"
    )
    for row, (measure, label) in zip(panels, ROWS.items(), strict=True):
        for axes, case in zip(row, cases, strict=True):
            for method in CORNERS:
                own = frame[(frame["case"] == case) & (frame["method"] == method)]
                _line(axes, own, measure, style.COLORS[method])
            axes.set(xlabel="unlearning step", ylabel=label)
            if measure != "spread":
                axes.axhline(0.5, color="grey", lw=0.8, zorder=0)
                axes.set_ylim(0, 1.02)
    for top, bottom, case in zip(panels[0], panels[-1], cases, strict=True):
        top.set_title(
            f"{style.CASE_LABELS[case]}\nthe component that is "
            f"{style.COMPONENT_LABELS[case]['forget2']}"
        )
        betas = frame[frame["case"] == case].groupby("method")["beta"].first()
        for method in CORNERS:
            bottom.plot(
                [],
                [],
                color=style.COLORS[method],
                label=f"{style.LABELS[method]}, β = {betas[method]:g}",
            )
        bottom.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
    return figure


def _line(axes: Axes, own: pd.DataFrame, measure: str, color: str) -> None:
    found = [
        over_models(at[measure], at["pretrain_seed"])[:3]
        for _, at in own.groupby("step", sort=True)
    ]
    style.band(axes, np.sort(own["step"].unique()), np.array(found).T, color)
