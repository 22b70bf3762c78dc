"""What length does to the time that forgetting takes.

Drawn is the time to bring a response's per-token log-probability down by 0.5 nats, against its
length.

Upper row, one panel per corner of the family at the middle of its grid of beta, gradient flow or
SGD: the scalar law (line), the exact flow of a transition table (diamonds) and a small transformer
(circles), the latter two forgetting each length alone (filled) or all six together (open), relative
to the geometric mean over lengths; bars are 95% intervals over pretrained models. p is the fitted
exponent, time ~ |y|^p. Without the length in the denominator the scalar law says about -1, with it
0. Forgetting one length at a time the transformer agrees with it. Together, the long responses,
which NPO pushes hardest, drag the short ones along through what they share, and NPO's exponent
shrinks. In the table what starts the fall is the accidents of the forget set, which longer
responses even out: that takes a logarithm of them longer, and both exponents rise.

Lower row: the exponent against beta, the scalar law as a line. NPO's turns positive once beta |y|
times the fall is large, since its weight dies before long responses are forgotten. Squares: under
AdamW, grey under that of transformers before version 5. Dividing the size of the gradient out
again, Adam takes away most of what length does when lengths are forgotten alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context
from figures.fits import power_law
from figures.statistics import geometric_over_models, interval_text, lookup, over_models
from figures.theory.rungs import all_times
from figures.theory.sweeps import BETAS
from llm.intervals import Estimate
from markov.objectives import CORNERS

LOOK = {
    ("tabular", "alone", "flow"): ("D", True, "table, alone"),
    ("tabular", "together", "flow"): ("D", False, "table, together"),
    ("transformer", "alone", "sgd"): ("o", True, "transformer, alone"),
    ("transformer", "together", "sgd"): ("o", False, "transformer, together"),
    ("transformer", "alone", "adamw"): ("s", True, "transformer, alone, AdamW"),
    ("transformer", "together", "adamw"): ("s", False, "transformer, together, AdamW"),
    ("transformer", "together", "adamw_transformers"): (
        "s",
        False,
        "the same, AdamW of transformers < 5",
    ),
}


def data(context: Context) -> pd.DataFrame:
    """Return the times to forget by rung, mode, optimiser, corner, beta, run and length."""
    return all_times(context)


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the fitted exponent of every setting, and how many times were not reached.

    There is one fit per run, and the interval is over pretrained models.
    """
    rows = []
    for key, own in frame.groupby(["rung", "mode", "optimizer", "method", "beta"], sort=False):
        fits = [
            (model, power_law(run["length"], run["step"]).exponent.value)
            for (model, _), run in own.groupby(["pretrain_seed", "seed"])
        ]
        models, values = (pd.Series(column) for column in zip(*fits, strict=True))
        exact = Estimate(float(values[0]), float("nan"), float("nan"), 1)
        found = exact if key[0] == "scalar" else over_models(values, models)
        missing = int((~np.isfinite(own["step"])).sum())
        names = dict(zip(["rung", "mode", "optimizer", "method", "beta"], key, strict=True))
        rows.append({**names, **found._asdict(), "missing": missing, "times": len(own)})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(2, len(CORNERS), 13, 6.6, sharey="row")
    found = exponents(frame)
    for column, method in enumerate(CORNERS):
        beta = BETAS[method][1]
        own = frame[(frame["method"] == method) & (frame["beta"] == beta)]
        numbers = lookup(
            found[(found["method"] == method) & (found["beta"] == beta)],
            ["rung", "mode", "optimizer"],
        )
        _times(panels[0][column], own, numbers, style.COLORS[method])
        panels[0][column].set_title(f"{style.LABELS[method]}, β = {beta:g}")
        _against_beta(panels[1][column], found[found["method"] == method], style.COLORS[method])
    panels[0][0].set_ylabel(
        "time to fall by 0.5 nats per token,\nrelative to the mean over lengths"
    )
    panels[0][0].set_ylim(0.05, 20)
    panels[1][0].set(ylabel="exponent p of time ~ |y|^p", ylim=(-1.6, 1.1))
    handles = [
        Line2D(
            [],
            [],
            ls="",
            marker=marker,
            color="black",
            mfc="black" if filled else "white",
            ms=4.5,
            label=name,
        )
        for marker, filled, name in [*list(LOOK.values())[:6]]
    ]
    panels[1][-1].legend(handles=handles, fontsize=6.5, loc="lower left")
    return figure


def _times(axes: Axes, own: pd.DataFrame, numbers: Mapping[Any, Estimate], color: str) -> None:
    scalar = own[own["rung"] == "scalar"]
    label = f"scalar law, p = {interval_text(numbers['scalar', 'alone', 'flow'])}"
    axes.plot(scalar["length"], scalar["relative"], color="black", lw=1, label=label)
    for shift, (key, (marker, filled, name)) in enumerate(list(LOOK.items())[:4]):
        part = own[(own["rung"] == key[0]) & (own["mode"] == key[1]) & (own["optimizer"] == key[2])]
        points = [_mean(one) for _, one in part.groupby("length")]
        lengths = np.array(sorted(part["length"].unique())) * 1.06 ** (shift - 1.5)
        value, low, high = np.array([[p.value, p.low, p.high] for p in points]).T
        label = f"{name}, p = {interval_text(numbers[key])}"
        look = {
            "mfc": color if filled else "white",
            "mec": color,
            "color": color,
            "ms": 4.5,
            "lw": 0.8,
        }
        axes.errorbar(
            lengths, value, [value - low, high - value], fmt=marker, label=label, capsize=2, **look
        )
    axes.set(xscale="log", yscale="log", xlabel="|y|, scored tokens")
    axes.set_xticks([2, 5, 10, 20, 40, 80], ["2", "5", "10", "20", "40", "80"], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _mean(one: pd.DataFrame) -> Estimate:
    """Return the geometric mean over pretrained models of the times that were reached."""
    return geometric_over_models(one["relative"], one["pretrain_seed"])


def _against_beta(axes: Axes, found: pd.DataFrame, color: str) -> None:
    scalar = found[found["rung"] == "scalar"].sort_values("beta")
    axes.plot(scalar["beta"], scalar["value"], color="black", lw=1)
    for shift, (key, (marker, filled, _)) in enumerate(LOOK.items()):
        part = found[
            (found["rung"] == key[0]) & (found["mode"] == key[1]) & (found["optimizer"] == key[2])
        ]
        error = [part["value"] - part["low"], part["high"] - part["value"]]
        shade = "grey" if key[2] == "adamw_transformers" else color
        look = {
            "mfc": shade if filled else "white",
            "mec": shade,
            "color": shade,
            "ms": 4.5,
            "lw": 0.8,
        }
        axes.errorbar(
            part["beta"] * 1.07 ** (shift - 3), part["value"], error, fmt=marker, capsize=2, **look
        )
    axes.axhline(0, color="grey", lw=0.6, zorder=0)
    axes.axhline(-1, color="grey", lw=0.6, ls=":", zorder=0)
    axes.set(xscale="log", xlabel="β")
    ticks = sorted(found.loc[found["rung"] == "tabular", "beta"].unique())
    axes.set_xticks(ticks, [f"{beta:g}" for beta in ticks])
    axes.minorticks_off()
