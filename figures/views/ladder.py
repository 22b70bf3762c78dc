"""Time to forget against length, rung by rung: the picture of the notebook on length.

Each rung has its own unit of time, so times are shown relative to their geometric mean over
lengths, with the fitted exponent p of time ~ |y|^p in the legend.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from figures import style
from figures.fits import power_law
from figures.views.view import plain_log_axis
from llm.intervals import Estimate
from markov.errors import require

MARKERS = ("", "D", "o", "s", "^", "v")


def rung(name: str, method: str, lengths: ArrayLike, times: ArrayLike) -> pd.DataFrame:
    """Return the times to forget on one rung under one method, one row per response length.

    A time that was not reached is inf. Raises `InvalidInput` for a method without a name, or unless
    there are as many times as lengths.
    """
    require(method in style.LABELS, "method", method, f"one of {sorted(style.LABELS)}")
    length, time = np.asarray(lengths, dtype=float), np.asarray(times, dtype=float)
    require(
        length.shape == time.shape,
        "times",
        time.shape,
        f"one for each of the lengths, {length.shape}",
    )
    return pd.DataFrame({"rung": name, "method": method, "length": length, "time": time})


def exponents(rungs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the exponent p of time ~ |y|^p with its 95% interval.

    There is one row per rung, and one column per method and bound.
    """
    rows: dict[str, dict[str, float]] = {}
    for own in rungs:
        found, method = _fit(own), str(own["method"].iloc[0])
        bounds = {method: found.value, f"{method}, low": found.low, f"{method}, high": found.high}
        rows.setdefault(str(own["rung"].iloc[0]), {}).update(bounds)
    return pd.DataFrame.from_dict(rows, orient="index")


def ladder_figure(rungs: Sequence[pd.DataFrame]) -> Figure:
    """Draw times against length, one panel per method and one marker per rung.

    A rung without a marker is a line. Raises `InvalidInput` if there are no rungs.
    """
    require(len(rungs) > 0, "rungs", rungs, "at least one")
    frame = pd.concat(rungs, ignore_index=True)
    names, methods = list(dict.fromkeys(frame["rung"])), list(dict.fromkeys(frame["method"]))
    with style.look():
        figure, (panels,) = style.grid_figure(1, len(methods), 4.9 * len(methods), 3.9, sharey=True)
        for axes, method in zip(panels, methods, strict=True):
            for own in (one for one in rungs if one["method"].iloc[0] == method):
                name, place = str(own["rung"].iloc[0]), names.index(str(own["rung"].iloc[0]))
                means = own[np.isfinite(own["time"])].groupby("length")["time"].agg(_geometric)
                relative = means / _geometric(means)
                shift = 1.05 ** (place - (len(names) - 1) / 2) if place else 1.0
                look = {
                    "color": style.COLORS[method],
                    "marker": MARKERS[place % len(MARKERS)],
                    "ms": 6,
                }
                look |= (
                    {"ls": "", "mfc": "white" if place % 2 else style.COLORS[method]}
                    if place
                    else {"color": "black"}
                )
                axes.plot(
                    means.index * shift,
                    relative,
                    label=f"{name}: p = {_fit(own).value:.2f}",
                    **look,
                )
            axes.set(
                xscale="log", yscale="log", xlabel="|y|, scored tokens", title=style.LABELS[method]
            )
            plain_log_axis(axes.xaxis, sorted(set(frame["length"])))
            plain_log_axis(axes.yaxis, (0.1, 0.2, 0.5, 1, 2, 5, 10))
            axes.legend(loc="best")
        panels[0].set_ylabel("time to forget, relative to its mean")
    return figure


def _fit(own: pd.DataFrame) -> Estimate:
    return power_law(own["length"], own["time"]).exponent


def _geometric(values: pd.Series) -> float:
    return float(np.exp(np.log(values.to_numpy(dtype=float)).mean()))
