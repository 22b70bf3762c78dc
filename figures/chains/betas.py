"""What each corner pays at each beta, for each of the two parts to forget.

Retain distance at which a corner brings a forget component to the retrained model's forget distance
(geometric mean over pretrained models with the 95% interval over them), against beta. Open where
some run does not get there within the steps of the search, which is written beside the point; not
drawn where none does. Dotted: the beta that is best for both components together, at which the
other figures of chains compare the corners. Grey: the retain distance before unlearning. A corner
may be cheaper for one component at a beta at which it never reaches the other's goal.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.chains.runs import best_of, search_runs
from figures.statistics import geometric_over_models, over_models
from markov.diagnostics import crossings
from markov.objectives import CORNERS

COMPONENTS = ("forget1", "forget2")


def data(context: Context) -> pd.DataFrame:
    """Return where each run of the search first reaches its goals, a row per run and component.

    See `markov.diagnostics.crossings`.
    """
    return crossings(search_runs(context))


def prices(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what each corner pays at each beta (nats), and how many of its `runs` get there.

    `value` is the geometric mean over models of the runs that `reached` the goal, with its
    interval; `paid` is the mean of what is above the start.
    """
    keys = ["case", "method", "beta", "component"]
    rows = []
    for key, own in frame.groupby(keys, sort=True):
        found = geometric_over_models(own["retain_distance"], own["pretrain_seed"])
        paid = over_models(own["retain_paid"], own["pretrain_seed"]).value
        known = {"runs": len(own), "reached": int(own["reached"].sum()), "paid": paid}
        rows.append({**dict(zip(keys, key, strict=True)), **found._asdict(), **known})
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame."""
    return {"prices": prices(frame)}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    cases = list(dict.fromkeys(frame["case"]))
    figure, panels = style.grid_figure(
        len(cases), len(CORNERS), 12, 2.9 * len(cases), sharex="col", sharey="row"
    )
    found, best = prices(frame), best_of(frame).set_index(["case", "method"])["beta"].to_dict()
    start = frame.assign(start=frame["retain_distance"] - frame["retain_paid"])
    for row, case in zip(panels, cases, strict=True):
        labels = style.COMPONENT_LABELS[case]
        for axes, method in zip(row, CORNERS, strict=True):
            own = found[(found["case"] == case) & (found["method"] == method)]
            for component in COMPONENTS:
                part = own[own["component"] == component]
                _line(axes, part, style.COLORS[method], component, labels[component])
            axes.axvline(best[case, method], color="grey", lw=0.8, ls=":")
            axes.axhline(start.loc[start["case"] == case, "start"].mean(), color="grey", lw=0.8)
            axes.set(xscale="log", yscale="log")
            style.plain_log_ticks(axes)
        row[0].set_ylabel(f"{style.CASE_LABELS[case]}\nretain distance paid, nats")
        row[0].legend(fontsize=7)
    for top, bottom, method in zip(panels[0], panels[-1], CORNERS, strict=True):
        top.set_title(style.LABELS[method])
        bottom.set_xlabel("β")
    return figure


def _line(axes: Axes, part: pd.DataFrame, color: str, component: str, label: str) -> None:
    part = part[part["reached"] > 0].sort_values("beta")
    line, marker = style.LINES[component], style.MARKERS[component]
    axes.plot(part["beta"], part["value"], line, color=color, lw=1)
    whole = (part["reached"] == part["runs"]).to_numpy()
    for chosen, fill in ((whole, color), (~whole, "white")):
        own = part[chosen]
        error = np.array([own["value"] - own["low"], own["high"] - own["value"]])
        shown = label if fill == color else None
        look = {"color": color, "mfc": fill, "ms": 4, "lw": 0.8, "capsize": 2, "label": shown}
        axes.errorbar(own["beta"], own["value"], error, fmt=marker, **look)
    for one in part[~whole].to_dict("records"):
        axes.annotate(
            f"{one['reached']} of {one['runs']}",
            (one["beta"], one["value"]),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=6,
        )
