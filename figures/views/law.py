"""Views of the law itself: sliders for its numbers, its four corners, and the scalar law of time.

The corners are drawn side by side. Nothing is simulated: every picture is the shipped objective or
its closed form, on lengths and falls of which all responses have the same log-probability per
token, as in the figure `weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.views.sliders import slider
from figures.views.view import (
    WIDTH,
    Picture,
    View,
    lengths_box,
    mixed,
    plain_log_axis,
    read_lengths,
    room_for_a_line,
)
from markov.errors import require
from markov.objectives import CORNERS, Objective, SequenceLogProbs, validate
from markov.theory import fallen_beside, theta, time_to_forget

GRID = np.geomspace(1, 200, 80)
FALLS = np.linspace(0, 3, 80)
TICKS = (1, 4, 20, 80, 200)
MIDDLE = 20  # scored tokens of the response whose time is the unit of time
AROUND_AND_GRID = np.array([MIDDLE, MIDDLE - 1, MIDDLE + 1, *GRID])
WEIGHTS = (1e-5, 4.0)
SHORT = {
    "length_normalized_npo": "length-normalised\nNPO",
    "reference_free_npo": "reference-free\nNPO",
}


def sequences(lengths: Any, start: Any, fall: Any) -> SequenceLogProbs:
    """Return responses with `start` nats per token under the reference and `start` - `fall` now.

    All three arguments broadcast.
    """
    length, first, fallen = np.broadcast_arrays(
        *(np.asarray(value, dtype=float) for value in (lengths, start, fall))
    )
    for name, values, least in (
        ("lengths", length, 1.0),
        ("start", -first, 0.0),
        ("fall", fallen, -np.inf),
    ):
        proper = np.isfinite(values) & (values >= least)
        allowed = (
            "at least 1 scored token"
            if name == "lengths"
            else "finite nats per token, a start of at most 0"
        )
        require(bool(proper.all()), name, np.asarray(values)[~proper][:1].tolist(), allowed)
    logp, own, ref = (
        torch.from_numpy(np.array(value))
        for value in (length * (first - fallen), length, length * first)
    )
    return SequenceLogProbs(logp, own, ref)


def law_view(
    *,
    beta: float = 0.2,
    gamma: float = 0.0,
    reference: float = 1.0,
    normalize: float = 0.0,
    length: int = 19,
    start: float = -1.0,
    fall: float = 0.5,
    controls: Mapping[str, Any] | None = None,
) -> View:
    """View the place in the square of methods and the gradient weight there.

    The weight is drawn against length and against what has fallen. `start` is the log-probability
    per token under the reference, `fall` what has been lost of it since (nats). With `controls`,
    those of another view, the two move together.
    """
    values = {"beta": beta, "gamma": gamma, "reference": reference, "normalize": normalize}
    values |= {"length": length, "start": start, "fall": fall}
    known = dict(controls or {})
    chosen = {name: known.get(name) or slider(name, value) for name, value in values.items()}
    with style.look():
        figure = Figure(figsize=(WIDTH, 4.5))
        said = room_for_a_line(figure, share=0.94)
        # Two figures in one, so that each row is laid out by itself.
        rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1.35))
        upper, lower = rows
        square, beside = upper.subplots(1, 2, width_ratios=(1.15, 1))
        by_length, by_fall = lower.subplots(1, 2, sharey=True)
        (place,) = square.plot([], [], "o", ms=13, mec="black", zorder=5)
        _square(square)
        first, now, at = _curves(by_length, "|y|, scored tokens")
        by_length.set(xscale="log", xlim=(1, 200), ylabel="gradient weight")
        plain_log_axis(by_length.xaxis, TICKS)
        _, path, here = _curves(by_fall, "fallen since the start, nats per token")
        by_fall.set(xlim=(0, 3))
        beside.legend(handles=_legend(), loc="center", labelspacing=0.8)
        beside.set_axis_off()

    def update(length: int, start: float, fall: float, **numbers: float) -> None:
        objective = validate(Objective(**numbers))
        color = _color(objective)
        place.set_data([numbers["reference"]], [numbers["normalize"]])
        place.set_markerfacecolor(color)
        first.set_data(GRID, objective.weight(sequences(GRID, start, 0.0)))
        now.set_data(GRID, objective.weight(sequences(GRID, start, fall)))
        path.set_data(FALLS, objective.weight(sequences(length, start, FALLS)))
        for line in (first, now, path):
            line.set_color(color)
        one = sequences(length, start, fall)
        weight, z = float(objective.weight(one)), float(objective.logit(one))
        at.set_data([length], [weight])
        here.set_data([fall], [weight])
        said.set_text(
            f"|y| = {length}:   z = {z:.3g},   weight = 2σ(z)/|y|^{objective.normalize:g} = "
            f"{weight:.3g}"
        )

    moving = (place, first, now, at, path, here, said)
    return View(Picture(figure=figure, moving=moving, update=update), chosen)


def corners_view(
    *,
    lengths: str = "4, 20, 80",
    summed: float = 0.05,
    per_token: float = 1.0,
    start: float = -1.0,
    fall: float = 0.0,
) -> View:
    """View the four corners side by side while responses of typed lengths fall.

    They fall under the scalar law. The moment shown is when 20 tokens have fallen by `fall` nats
    each; `summed` is the beta of the two corners that sum over tokens, `per_token` that of the two
    that average.
    """
    controls = {
        "lengths": lengths_box(lengths),
        "summed": slider("beta", summed, "β summed"),
        "per_token": slider("beta", per_token, "β per token"),
        "start": slider("start", start),
        "fall": slider("fall", fall),
    }
    with style.look():
        figure, panels = style.grid_figure(2, len(CORNERS), WIDTH, 4.3, sharex=True, sharey="row")
        moving: dict[str, tuple[Any, Any]] = {}
        for (name, (_, normalize)), upper, lower in zip(CORNERS.items(), *panels, strict=True):
            look = {"marker": "o", "color": style.COLORS[name], "ms": 5}
            moving[name] = (upper.plot([], [], **look)[0], lower.plot([], [], **look)[0])
            lower.plot([1, 1000], [1, 1000**-normalize], ":", color="grey", lw=1)
            title = SHORT.get(name, style.LABELS[name])
            upper.set_title(title, color=style.COLORS[name], fontweight="bold")
            lower.set(
                xscale="log",
                yscale="log",
                xlim=(1, 1000),
                ylim=WEIGHTS,
                xlabel="|y|, scored tokens",
            )
            plain_log_axis(lower.xaxis, (1, 4, 20, 80, 400))
        panels[0][0].set(ylim=(-0.2, 6), ylabel="fallen, nats per token")
        panels[1][0].set(ylabel="gradient weight")
        plain_log_axis(panels[1][0].yaxis, (1e-4, 1e-3, 1e-2, 0.1, 1))
        for axes in panels[0]:
            axes.plot([MIDDLE, MIDDLE], [-0.2, 6], ":", color="grey", lw=1)

    def update(lengths: str, summed: float, per_token: float, start: float, fall: float) -> None:
        own = read_lengths(lengths)
        # All corners at once, a row each: what is asked once is checked once.
        fields = np.array(
            [(per_token if row[1] else summed, 0.0, *row) for row in CORNERS.values()]
        )
        objective = Objective(*fields.T[:, :, None])
        fallen = fallen_beside(objective, own, MIDDLE, fall, start)
        # A time may lie beyond all numbers: nothing is drawn of that corner.
        known = np.nan_to_num(fallen, nan=0.0)
        weights = Objective(*map(torch.from_numpy, objective)).weight(sequences(own, start, known))
        weights[torch.from_numpy(np.isnan(fallen))] = torch.nan
        for (upper, lower), falls, row in zip(moving.values(), fallen, weights, strict=True):
            upper.set_data(own, falls)
            lower.set_data(own, row)

    lines = [line for pair in moving.values() for line in pair]
    return View(Picture(figure=figure, moving=lines, update=update), controls)


def pace_view(
    *,
    beta: float = 0.05,
    gamma: float = 0.0,
    reference: float = 1.0,
    normalize: float = 0.0,
    start: float = -1.0,
    fall: float = 0.5,
    controls: Mapping[str, Any] | None = None,
) -> View:
    """View the scalar law of time: how responses of 4, 20 and 80 tokens fall.

    The time to fall is drawn against length. Times are in units of the time in which 20 tokens fall
    by `fall` nats each. `controls` are as in `law_view`.
    """
    values = {
        "beta": beta,
        "gamma": gamma,
        "reference": reference,
        "normalize": normalize,
        "start": start,
        "fall": fall,
    }
    known = dict(controls or {})
    chosen = {name: known.get(name) or slider(name, value) for name, value in values.items()}
    span = np.geomspace(0.02, 50, 80)
    with style.look():
        figure, ((falling, needed),) = style.grid_figure(1, 2, WIDTH, 3.3)
        looks = {4: "-.", 20: "-", 80: "--"}
        paths = [falling.plot([], [], look, lw=2)[0] for look in looks.values()]
        falling.set(
            xscale="log",
            xlim=(0.02, 50),
            ylim=(-0.1, 6),
            xlabel="time, in units of that of 20 tokens",
        )
        falling.set_ylabel("fallen, nats per token")
        handles = [
            Line2D([], [], color="black", ls=look, label=f"|y| = {length}")
            for length, look in looks.items()
        ]
        falling.legend(handles=handles, loc="upper left")
        (curve,) = needed.plot([], [], lw=2)
        needed.plot(MIDDLE, 1, "o", color="black", mfc="white")
        needed.plot(GRID, MIDDLE / GRID, ":", color="grey", lw=1, label="1/|y|")
        needed.set(
            xscale="log", yscale="log", xlim=(1, 200), ylim=(0.02, 50), xlabel="|y|, scored tokens"
        )
        needed.set_ylabel("time to fall")
        needed.legend(loc="lower left")
        plain_log_axis(needed.xaxis, TICKS)
        plain_log_axis(needed.yaxis, (0.1, 1, 10))
        plain_log_axis(falling.xaxis, (0.1, 1, 10))
        said = room_for_a_line(figure)

    def update(start: float, fall: float, **numbers: Any) -> None:
        objective = validate(Objective(*(numbers[name] for name in Objective._fields)))
        needed_times = time_to_forget(objective, AROUND_AND_GRID, max(fall, 1e-6), start)
        color, (unit, *ends) = _color(objective), needed_times[:3]
        # A time may lie beyond all numbers: nothing is drawn in units of it.
        known = bool(np.isfinite(needed_times[:3]).all())
        unit = unit if known else 1.0
        fallen = start - theta(objective, np.array([[*looks]]).T, span * unit, start)
        for line, values in zip(paths, fallen, strict=True):
            line.set_data(span, np.where(known, values, np.nan))
            line.set_color(color)
        curve.set_data(GRID, np.where(known, needed_times[3:] / unit, np.nan))
        curve.set_color(color)
        told = "around |y| = 20:   time is beyond all numbers"
        if known:
            # so that no minus stands before a zero
            exponent = round(float(np.log(ends[1] / ends[0]) / np.log(21 / 19)), 2) + 0.0
            told = f"around |y| = 20:   time ~ |y|^{exponent:z.2f}"
        said.set_text(told)

    return View(Picture(figure=figure, moving=(*paths, curve, said), update=update), chosen)


def _legend() -> list[Line2D]:
    """Return what the legend of the law explains: the mark of the square, then the lines below."""
    return [
        Line2D([], [], ls="", marker="o", ms=11, mfc="white", mec="black", label="the method here"),
        Line2D([], [], color="black", lw=1, label="weight at the start"),
        Line2D([], [], color="black", lw=2.4, label="weight now"),
        Line2D([], [], color="black", ls="", marker="o", ms=6, label="the response of length |y|"),
        Line2D([], [], color="grey", lw=0.7, label="weight 1, as of gradient ascent"),
    ]


def _square(axes: Axes) -> None:
    for name, (reference, normalize) in CORNERS.items():
        axes.plot(reference, normalize, "s", color=style.COLORS[name], ms=8)
        sides: dict[str, Any] = {
            "ha": "right" if reference else "left",
            "va": "bottom" if normalize else "top",
        }
        shift = (6 if reference else -6, 9 if normalize else -9)
        axes.annotate(
            style.LABELS[name],
            (reference, normalize),
            xytext=shift,
            textcoords="offset points",
            fontsize=8,
            **sides,
        )
    axes.set(
        xlim=(-0.22, 1.22),
        ylim=(-0.75, 1.75),
        xlabel="reference",
        ylabel="normalize",
        xticks=(0, 1),
        yticks=(0, 1),
    )


def _curves(axes: Axes, label: str) -> tuple[Any, Any, Any]:
    (thin,) = axes.plot([], [], lw=1)
    (bold,) = axes.plot([], [], lw=2.4)
    (point,) = axes.plot([], [], "o", color="black", ms=6, zorder=5)
    axes.set(yscale="log", ylim=WEIGHTS, xlabel=label)
    axes.axhline(1, color="grey", lw=0.7, zorder=0)
    plain_log_axis(axes.yaxis, (1e-4, 1e-3, 1e-2, 0.1, 1))
    return thin, bold, point


def _color(objective: Objective) -> str:
    """Return a colour between those of the corners as the objective lies between them."""
    rows = {}
    for name, (reference, normalize) in CORNERS.items():
        rows.setdefault(normalize, {})[reference] = style.COLORS[name]
    low, high = (mixed(rows[n][0.0], rows[n][1.0], float(objective.reference)) for n in (0.0, 1.0))
    return mixed(low, high, float(objective.normalize))
