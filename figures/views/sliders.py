"""Sliders that stop at round numbers, with a box for any number between.

A pressed key moves such a slider to its next stop, which is far enough for the picture to show it.
A slider of the usual kind cannot do that: its one step is what a key moves, and the browser moves
every value to the nearest step, so that a step that shows would turn 4.5 into something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import traitlets

from markov.errors import require

ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # of every power of ten


class Kind(NamedTuple):
    """What a slider is of: its stops, from the lowest value to the highest, and its name."""

    stops: tuple[float, ...]
    description: str


def steps(low: float, high: float, step: float) -> tuple[float, ...]:
    """Return the multiples of a step that lie between two values, and those two."""
    inside = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return _stops(low, high, inside)


def decades(low: float, high: float) -> tuple[float, ...]:
    """Return the round numbers that lie between two positive values, and those two."""
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    return _stops(low, high, np.outer(10**powers, ROUND).ravel())


def lengths(low: int, high: int) -> tuple[int, ...]:
    """Return the whole numbers that lie between two: each up to 10, then ever fewer."""
    known = [one for one in decades(low, high) if one == int(one)]
    every = {low, high, *range(low, min(10, high) + 1), *known}
    return tuple(sorted(int(one) for one in every))


def _stops(low: float, high: float, inside: np.ndarray) -> tuple[float, ...]:
    exact = {float(f"{one:.6g}") for one in inside if low < one < high}  # 0.3, not 0.1 + 0.2
    return tuple(sorted({float(low), float(high), *exact}))


SLIDERS = {
    "beta": Kind(decades(0.001, 30.0), "β"),
    "gamma": Kind(steps(-2.0, 2.0, 0.1), "γ"),
    "reference": Kind(steps(0.0, 1.0, 0.05), "reference"),
    "normalize": Kind(steps(0.0, 1.0, 0.05), "normalize"),
    "length": Kind(lengths(1, 200), "|y|, tokens"),
    "start": Kind(steps(-4.0, -0.05, 0.1), "at the start"),
    "fall": Kind(steps(0.0, 3.0, 0.1), "fallen by"),
}


class RoundSlider(widgets.HBox):
    """A slider over `stops`, beside a box for any number between the first and the last of them.

    `value` is what stands in the box, and is kept as it is: the slider lies at the stop that is
    nearest to it. It is a whole number where all stops are.
    """

    value = traitlets.Any()

    def __init__(self, value: float, stops: Sequence[float], description: str) -> None:
        self.stops = tuple(stops)
        whole = all(isinstance(one, int) for one in stops)
        self.kind = int if whole else float
        box = widgets.BoundedIntText if whole else widgets.BoundedFloatText
        self.slider = widgets.SelectionSlider(
            options=[(f"{one:g}", one) for one in stops],
            value=self._nearest(value),
            description=description,
            readout=False,
            style={"description_width": "76px"},
            layout=widgets.Layout(flex="1 1 auto", width="auto", min_width="0"),
        )
        self.box = box(
            value,
            min=stops[0],
            max=stops[-1],
            layout=widgets.Layout(flex="0 0 auto", width="64px"),
        )
        self._follows = False
        super().__init__(
            [self.slider, self.box], value=self.kind(value), layout=widgets.Layout(width="98%")
        )
        self.observe(self._show, "value")
        self.box.observe(self._typed, "value")
        self.slider.observe(self._moved, "value")

    @traitlets.validate("value")
    def _inside(self, proposal: Any) -> Any:
        return self.kind(min(max(proposal["value"], self.stops[0]), self.stops[-1]))

    def _nearest(self, value: float) -> float:
        places = np.arange(len(self.stops))
        return self.stops[round(float(np.interp(value, self.stops, places)))]

    def _show(self, change: object) -> None:
        self._follows = True
        try:
            self.box.value, self.slider.value = self.value, self._nearest(self.value)
        finally:
            self._follows = False

    def _typed(self, change: object) -> None:
        self.value = self.box.value

    def _moved(self, change: object) -> None:
        if not self._follows:
            self.value = self.slider.value


def slider(name: str, value: float, description: str | None = None) -> RoundSlider:
    """Return the control of a quantity named in `SLIDERS`, under its own description or another.

    Raises `InvalidInput` for another name, and for a value beyond its limits.
    """
    require(name in SLIDERS, "slider", name, f"one of {sorted(SLIDERS)}")
    stops, known = SLIDERS[name]
    low, high = stops[0], stops[-1]
    require(low <= value <= high, name, value, f"a number from {low:g} to {high:g}")
    return RoundSlider(value, stops, description or known)
