"""The phase diagram to move in: two responses forgotten at once, cell by cell.

Left: one measure of one corner of the family, over beta and length. Right: cuts at the chosen beta,
of all four corners, with 95% intervals over pretrained models and the scalar law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from figures import style
from figures.statistics import mean_interval
from figures.theory.phase import KEYS, LOOKS, ROWS, cells, of_models
from figures.theory.sweeps import MIDDLE
from figures.views.view import WIDTH, Picture, View, plain_log_axis
from markov.errors import require
from markov.objectives import CORNERS

SHORT = {
    "npo": "NPO",
    "simnpo": "SimNPO",
    "length_normalized_npo": "length-norm. NPO",
    "reference_free_npo": "ref.-free NPO",
}
NAMES = {
    "retain_distance": "retain distance paid",
    "over_forgetting": "over-forgetting",
    "predicted": "over-forgetting, scalar law",
}
CUTS = {
    "retain_distance": "retain distance\npaid, nats",
    "over_forgetting": "over-forgetting,\nnats",
}


def phase_view(
    frame: pd.DataFrame,
    *,
    method: str = "npo",
    measure: str = "over_forgetting",
    share: float = 1.0,
    level: float | None = None,
) -> View:
    """View the table of `figures.theory.phase`, with controls for what is shown of it.

    `method` is a corner of the family, `measure` one of `figures.theory.phase.ROWS`, `share` what
    pretraining saw of the swept response, and `level` a beta of the table on the scale of a mean
    over tokens (default: its middle one). Raises `InvalidInput` for a value that the table lacks.
    """
    levels, shares, lengths = (
        tuple(sorted(frame[name].unique())) for name in ("level", "share", "length")
    )
    at = levels[len(levels) // 2] if level is None else level
    require(method in CORNERS, "method", method, f"one of {sorted(CORNERS)}")
    require(measure in ROWS, "measure", measure, f"one of {sorted(ROWS)}")
    require(share in shares, "share", share, f"one of {shares}")
    require(at in levels, "level", level, f"one of {levels}")
    known, points = cells(frame), _points(frame)
    controls = {
        "method": _choice("method", {style.LABELS[name]: name for name in CORNERS}, method),
        "measure": _choice("shown", {name: key for key, name in NAMES.items()}, measure),
        "share": _steps("share seen", shares, share),
        "level": _steps("β per token", levels, at),
    }
    with style.look():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        panels = figure.subplot_mosaic(
            [["map", "retain_distance"], ["map", "over_forgetting"]], width_ratios=(1, 1.15)
        )
        left = panels["map"]
        image = left.imshow(np.zeros((len(lengths), len(levels))), origin="lower", aspect="auto")
        left.set_facecolor("0.82")
        left.set_xticks(range(len(levels)), [f"{one:g}" for one in levels], fontsize=7)
        left.set_yticks(range(len(lengths)), [f"{one:g}" for one in lengths])
        left.set(xlabel="β, on the scale of a mean over tokens", ylabel="|y|, scored tokens")
        written = [
            left.text(x, y, "", ha="center", va="center", fontsize=6.5)
            for y in range(len(lengths))
            for x in range(len(levels))
        ]
        chosen = Rectangle((0, -0.5), 1, len(lengths), fill=False, ec="black", lw=1.5)
        left.add_patch(chosen)
        lines = {
            (name, of): _line(panels[of], style.COLORS[name]) for of in CUTS for name in CORNERS
        }
        law = {
            name: panels["over_forgetting"].plot([], [], ":", color=style.COLORS[name], lw=1.2)[0]
            for name in CORNERS
        }
        _axes(panels, lengths)
        titles = [axes.set_title("\n") for axes in (left, panels["retain_distance"])]

    def update(method: str, measure: str, share: float, level: float) -> None:
        own = known[(known["share"] == share) & (known["method"] == method)]
        table = own.pivot(index="length", columns="level", values=measure).to_numpy(float)
        cmap, norm = LOOKS[measure]
        image.set(cmap=cmap, norm=norm)
        image.set_data(np.ma.masked_invalid(table))
        for text, value in zip(written, table.ravel(), strict=True):
            shade = norm(value) if np.isfinite(value) else 0.5
            middle = 0.25 < shade < 0.75
            dark = shade > 0.5 if measure == "retain_distance" else not middle
            text.set_text(f"{value:.2g}" if np.isfinite(value) else "–")
            text.set_color("white" if dark else "black")
        chosen.set_x(levels.index(level) - 0.5)
        cut = points[(points["share"] == share) & (points["level"] == level)]
        for (name, of), (line, bars) in lines.items():
            shown = cut[(cut["method"] == name) & (cut["of"] == of)]
            line.set_data(shown["length"], shown["value"])
            line.set_linewidth(2.2 if name == method else 1.0)
            ends = shown[["length", "low", "high"]].dropna().to_numpy(float)
            bars.set_segments([[(x, low), (x, high)] for x, low, high in ends])
        for name, line in law.items():
            exact = cut[(cut["method"] == name) & (cut["of"] == "predicted")]
            line.set_data(exact["length"], exact["value"])
        titles[0].set_text(f"{style.LABELS[method]}\n{NAMES[measure]}, nats")
        titles[1].set_text(f"all four at β = {level:g} per token\ndotted: the scalar law")

    moving: list[Any] = [image, *written, chosen, *titles, *law.values()]
    moving += [artist for pair in lines.values() for artist in pair]
    return View(Picture(figure=figure, moving=moving, update=update), controls, columns=2)


def _line(axes: Axes, color: str) -> tuple[Any, Any]:
    return axes.plot([], [], "o-", ms=4, color=color)[0], axes.vlines([], [], [], color=color, lw=1)


def _axes(panels: Mapping[str, Axes], lengths: Sequence[float]) -> None:
    """Set the scales of the cuts, which stay as they are while lines move."""
    for name, label in CUTS.items():
        axes = panels[name]
        axes.set(xscale="log", xlim=(lengths[0] / 1.4, lengths[-1] * 1.4), ylabel=label)
        axes.axvline(MIDDLE, color="grey", lw=0.6, ls=":")
        axes.set_xticks(lengths, [f"{one:g}" for one in lengths])
        axes.minorticks_off()
    upper, lower = panels["retain_distance"], panels["over_forgetting"]
    upper.set(yscale="log", ylim=(0.02, 1.0))
    plain_log_axis(upper.yaxis, (0.02, 0.05, 0.1, 0.2, 0.5, 1))
    lower.set_yscale("symlog", linthresh=0.2)
    lower.set(ylim=(-8, 8), xlabel="|y|, scored tokens", yticks=(-5, -1, -0.2, 0, 0.2, 1, 5))
    lower.yaxis.set_major_formatter("{x:g}")
    lower.axhline(0, color="grey", lw=0.6)
    handles = [Line2D([], [], color=style.COLORS[name], label=SHORT[name]) for name in CORNERS]
    upper.legend(handles=handles, fontsize=6, loc="upper center", ncols=2)


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of every cell and measure with its interval over pretrained models."""
    rows = []
    for key, own in of_models(frame, list(ROWS)).groupby(KEYS):
        known = dict(zip(KEYS, key, strict=True))
        for measure in ROWS:
            values = own[measure].to_numpy(float)
            found = mean_interval(values if np.isfinite(values).all() else values[:0])
            rows.append({**known, "of": measure, **found._asdict()})
    return pd.DataFrame(rows)


def _choice(name: str, options: dict[str, str], value: str) -> Any:
    return widgets.Dropdown(
        options=list(options.items()),
        value=value,
        description=name,
        style={"description_width": "76px"},
        layout=widgets.Layout(width="98%"),
    )


def _steps(name: str, options: tuple[float, ...], value: float) -> Any:
    return widgets.SelectionSlider(
        options=[(f"{one:g}", one) for one in options],
        value=value,
        description=name,
        style={"description_width": "76px"},
        layout=widgets.Layout(width="98%"),
    )
