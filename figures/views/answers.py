"""A view of a language model's answers: what each weighs, and what it still has to fall.

The weights are those of any objective. A table of scores is enough, whichever model it is of: the
shipped objective is taken at recorded log-probabilities.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from ipyevents import Event
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from figures import style
from figures.views.sliders import slider
from figures.views.view import (
    SHOWN,
    WIDTH,
    Picture,
    View,
    hint,
    mixed,
    plain_log_axis,
    room_for_a_line,
    whole_row,
)
from llm.data.tofu import Example
from markov.errors import require
from markov.objectives import CORNERS, Objective, SequenceLogProbs, check_logprobs, validate

ORDERS = {
    "heaviest first": "weight",
    "neediest first": "needed",
    "longest first": "length",
    "as in the file": "index",
}
LINES = 7  # rows of the table of answers that are shown at a time
FLOOR = 1e-6  # of the mean: an answer that weighs less is drawn as if it weighed this
ENDS = (1, 1.5, 2, 3, 5, 7)  # of every power of ten: where the axis of the weight may end
TICKS = ((1, 2, 5), (1, 3), (1,))  # the same of its ticks, from dense to sparse
FEW = 6  # ticks of an axis, at most
NEAR, SAME = 25, 2  # pixels: a click within NEAR of a dot means it; closer than SAME is one place
ROOM = "padding:2px 6px"  # in the cells themselves, since a page of the book has no style sheet
CLICKS = (
    "<style>.simnpo-answers td {cursor: pointer; overflow-wrap: break-word; "
    "vertical-align: top}</style>"
    "To ring an answer, click on a dot, on a row of the table, or in the list."
)


class AnswersView(View):
    """A view with a page of answers beneath it; `rows` holds the page as HTML.

    A click on a dot of the picture, or on a row of the page, chooses that answer.
    """

    def __init__(
        self,
        picture: Picture,
        controls: Mapping[str, Any],
        page: Callable[..., str],
        dots: Mapping[Axes, Line2D],
    ) -> None:
        self.page, self.dots, self.rows = page, dots, widgets.HTML()
        super().__init__(picture, controls, shown={"hint": hint(CLICKS)})
        self.rows.layout = widgets.Layout(
            width=self.image.layout.width, max_width="100%", margin="0"
        )
        self.children = (*self.children, self.rows)
        self.clicks = [
            Event(source=source, watched_events=["click"]) for source in (self.image, self.rows)
        ]
        for one in self.clicks:
            one.on_dom_event(self._choose)

    def redraw(self, change: object = None) -> None:
        """Draw the picture and write the page."""
        super().redraw(change)
        if not self.message.value:
            self.rows.value = self.page(**self.values)

    def printed(self, bundle: Any) -> Any:
        """Return the view as a widget and as a picture.

        For pages without a kernel it is the picture above the page of answers.
        """
        shown, known = super().printed(bundle)
        width = round(SHOWN * self.picture.figure.get_figwidth())
        image = f'<img width="{width}" src="data:image/png;base64,{shown["image/png"]}">'
        return {**shown, "text/html": image + self.rows.value}, known

    def dot_at(self, x: float, y: float) -> int | None:
        """Return the place of the answer whose dot is nearest to a pixel of the picture.

        Pixels count from the upper left, as in a browser. Of dots that lie on one another, it is
        the one after the answer that is chosen now, so that further clicks reach them all. None
        where no dot is near.
        """
        height = self.picture.figure.bbox.height
        steps = [
            axes.transData.transform(np.asarray(line.get_xydata())) - (x, height - y)
            for axes, line in self.dots.items()
        ]
        away = np.min([np.hypot(*step.T) for step in steps], axis=0)
        if away.min() > NEAR:
            return None
        close = np.flatnonzero(away <= away.min() + SAME)
        following = close[close > self.controls["example"].value]
        return int((following if len(following) else close)[0])

    def _choose(self, event: Mapping[str, Any]) -> None:
        row = re.fullmatch(r"answer-(\d+)", str(event["target"].get("className", "")))
        found = int(row[1]) if row else None
        if "dataX" in event:
            found = self.dot_at(event["dataX"], event["dataY"])
        if found is not None:
            self.controls["example"].value = found


def weights_of(table: pd.DataFrame, objective: Objective) -> Float[np.ndarray, " examples"]:
    """Return d loss / d logp of each row, from the columns `logp`, `length` and `ref`."""
    return objective.weight(check_logprobs(_responses(table))).numpy()


def _responses(table: pd.DataFrame) -> SequenceLogProbs:
    numbers = (torch.tensor(table[name].to_numpy(dtype=float)) for name in SequenceLogProbs._fields)
    return SequenceLogProbs(*numbers)


def relative_weights(table: pd.DataFrame, objective: Objective) -> Float[np.ndarray, " examples"]:
    """Return each row's weight over the mean of all, at least `FLOOR`.

    The table has been checked: a slider that is moved does not check it again.
    """
    weight = objective.weight(_responses(table)).numpy()
    return np.maximum(weight / max(np.nanmean(weight), np.finfo(float).tiny), FLOOR)


def answers_view(
    table: pd.DataFrame,
    examples: Sequence[Example],
    *,
    beta: float = 0.1,
    gamma: float = 0.0,
    reference: float = 1.0,
    normalize: float = 0.0,
    epoch: int = 0,
    order: str = "heaviest first",
) -> AnswersView:
    """View weight against what an answer still has to fall, and against its length.

    One answer is ringed, several are read; a click on a dot or a row chooses it. `table` has the
    columns `index`, `length`, `ref` and, where known, `logp` (else the model is its reference),
    `retrained` (nats) and `epoch`, as in the tables of `llm.diagnostics.weights` and of runs. Drawn
    is the weight relative to the mean of all, or a millionth where it is less; "still needed" is
    logp - retrained, which at the start is the needed movement. The axes end where the answers of
    all epochs do, so that they stay where they are while the epoch is changed. Raises
    `InvalidInput` for a table without these columns and for examples that are not all of it.
    """
    frames, texts = _by_epoch(table), {one.index: one for one in examples}
    for one in frames.values():
        check_logprobs(_responses(one))
    first = next(iter(frames.values()))
    lacking = [int(one) for one in first["index"] if int(one) not in texts]
    require(
        not lacking,
        "examples",
        f"none of index {lacking[:1]}",
        "the example of every row of the table",
    )
    require(order in ORDERS, "order", order, f"one of {', '.join(ORDERS)}")
    require(epoch in frames, "epoch", epoch, f"one of {sorted(frames)}")
    values = {"beta": beta, "gamma": gamma, "reference": reference, "normalize": normalize}
    controls: dict[str, Any] = {name: slider(name, value) for name, value in values.items()}
    look = {"style": {"description_width": "76px"}, "layout": widgets.Layout(width="98%")}
    names = [
        (f"{one}: {texts[int(one)].prompt}", place) for place, one in enumerate(first["index"])
    ]
    controls["example"] = widgets.Select(
        options=names,
        value=0,
        rows=4,
        description="answer",
        style=look["style"],
        layout=whole_row(),
    )
    controls["order"] = widgets.Dropdown(
        options=list(ORDERS), value=order, description="table", **look
    )
    if len(frames) > 1:
        controls["epoch"] = widgets.SelectionSlider(
            options=sorted(frames), value=epoch, description="epoch", **look
        )
    known = "needed" in first
    with style.look():
        figure, (panels,) = style.grid_figure(1, 1 + known, WIDTH, 3.3, sharey=True)
        moving = [
            (*_dots(axes), name) for axes, name in zip(panels, ("length", "needed"), strict=False)
        ]
        fixed = _axes(panels, frames)
        said = room_for_a_line(figure)

    def now(epoch: int | None, **numbers: float) -> tuple[Objective, pd.DataFrame]:
        objective = validate(Objective(**numbers))
        own = frames[epoch if epoch is not None else next(iter(frames))]
        return objective, own.assign(weight=objective.weight(_responses(own)).numpy())

    def update(example: int, order: str, epoch: int | None = None, **numbers: float) -> None:
        objective, own = now(epoch, **numbers)
        relative = relative_weights(own, objective)
        _fit(panels[0], [relative_weights(one, objective) for one in frames.values()])
        for dots, ring, name in moving:
            dots.set_data(own[name], relative)
            ring.set_data(own[name].iloc[[example]], relative[[example]])
            dots.set_color(_color(objective))
        row = own.iloc[example]
        need = f",  still needed {row['needed']:.1f} nats" if known else ""
        said.set_text(
            f"the ringed answer: {row['length']:.0f} tokens,  weight {row['weight']:.3g}{need}"
        )

    def page(example: int, order: str, epoch: int | None = None, **numbers: float) -> str:
        return _page(now(epoch, **numbers)[1], texts, example, ORDERS[order])

    lines = [*fixed, *(line for dots, ring, _ in moving for line in (dots, ring))]
    picture = Picture(figure=figure, moving=[*lines, said], update=update)
    by_panel = {axes: dots for axes, (dots, _, _) in zip(panels, moving, strict=True)}
    return AnswersView(picture, controls, page, by_panel)


def _by_epoch(table: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Return a frame per epoch, with its examples in one order.

    It has `logp` and, where it can be told, what is `needed` from there.
    """
    for name in ("index", "length", "ref"):
        require(name in table, "table", list(table.columns), f"a column `{name}`")
    require(len(table) > 0, "table", "no row", "at least one answer")
    whole = table if "logp" in table else table.assign(logp=table["ref"])
    whole = whole if "epoch" in whole else whole.assign(epoch=0)
    if "retrained" in whole:
        whole = whole.assign(needed=whole["logp"] - whole["retrained"])
    return {
        int(cast(Any, epoch)): own.sort_values("index").reset_index(drop=True)
        for epoch, own in whole.groupby("epoch")
    }


def _dots(axes: Axes) -> tuple[Any, Any]:
    (dots,) = axes.plot([], [], "o", ms=4.5, mew=0, alpha=0.65)
    (ring,) = axes.plot([], [], "o", ms=11, mfc="none", mec="black", mew=1.5, zorder=5)
    return dots, ring


def _axes(panels: Sequence[Axes], frames: Mapping[int, pd.DataFrame]) -> list[Artist]:
    """Set the axes but for the weight's limits, and return what moves when these do."""
    every = pd.concat(frames.values())
    low, high = 0.9 * every["length"].min(), every["length"].max() / 0.9
    panels[0].set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        xlabel="|y|, scored tokens",
        ylabel="weight / mean weight",
    )
    plain_log_axis(panels[0].xaxis, [one for one in _ticks(low, high) if one == int(one)])
    # The widest number that can come to stand at the axis, so that there is room for it.
    panels[0].set_ylim(1e-4, 10)
    plain_log_axis(panels[0].yaxis, (1e-4,))
    for axes in panels[1:]:
        low, high = every["needed"].min(), every["needed"].max()
        room = 0.05 * (high - low) or 0.5
        axes.set(
            xlim=(low - room, high + room),
            xlabel=r"still needed, $\log\pi - \log\pi_{retrained}$, nats",
        )
        axes.tick_params(axis="y", which="both", left=False)  # they would have to move too
    means = [axes.axhline(1, color="grey", ls=":", lw=1, zorder=0) for axes in panels]
    return [panels[0].yaxis, *means]


def _fit(axes: Axes, relative: Sequence[np.ndarray]) -> None:
    """Let the panels' axis of the weight end where the answers of all epochs do."""
    low, high = _ends(np.concatenate(relative))
    axes.set_ylim(low, high)
    plain_log_axis(axes.yaxis, _ticks(low, high))


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return the nearest round numbers between which some values lie, with room at either end."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
    room = max((high / low) ** 0.04, 1.1)
    ends = _round_numbers(ENDS, low / room / 10, 10 * high * room)
    below, above = ends[ends <= low / room], ends[ends >= high * room]
    return float(below[-1]), float(above[0])


def _ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between the ends of a logarithmic axis."""
    if high < 5 * low:
        found = MaxNLocator(FEW - 1).tick_values(low, high)
        return [float(one) for one in found if low <= one <= high]
    every = [_round_numbers(steps, low, high) for steps in TICKS]
    decades = every[-1][:: max(1, -(-len(every[-1]) // FEW))]
    return next((ticks for ticks in every if len(ticks) <= FEW), decades).tolist()


def _round_numbers(steps: Sequence[float], low: float, high: float) -> np.ndarray:
    """Return the multiples of powers of ten that lie between two numbers, in order."""
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    found = np.outer(10.0**powers, steps).ravel()
    return found[(found >= low * (1 - 1e-9)) & (found <= high * (1 + 1e-9))]


def _color(objective: Objective) -> str:
    """Return the colour of the corner, mixed in between."""
    own = {place: style.COLORS[name] for name, place in CORNERS.items()}
    sides = [mixed(own[0, power], own[1, power], float(objective.reference)) for power in (0, 1)]
    return mixed(sides[0], sides[1], float(objective.normalize))


def _page(own: pd.DataFrame, texts: Mapping[int, Example], example: int, by: str) -> str:
    """Return the answers around one of them, in an order, as a page."""
    columns = {"weight": "{:.3g}", "length": "{:.0f}", "needed": "{:.1f}"}
    names = [name for name in columns if name in own]
    by = by if by in own else "weight"
    ranked = own.sort_values(by, ascending=by == "index", kind="stable")
    place = ranked.index.get_loc(example)
    start = min(max(0, int(place) - LINES // 2), max(0, len(own) - LINES))  # pyright: ignore[reportArgumentType]
    heads = {"weight": "weight", "length": "tokens", "needed": "still needed, nats"}
    lines = [
        "".join(
            f'<th style="{ROOM}">{name}</th>'
            for name in ("rank", *(heads[name] for name in names), "question", "answer")
        )
    ]
    for rank, (index, row) in enumerate(ranked.iloc[start : start + LINES].iterrows(), start + 1):
        one = texts[int(row["index"])]
        cells = [str(rank), *(columns[name].format(row[name]) for name in names)]
        cells += [html.escape(one.prompt), html.escape(one.response)]
        mark = ' style="background:#fff2cc;color:black"' if index == example else ""
        left = [
            f'<td class="answer-{index}" '
            f'style="{ROOM};text-align:{"left" if at > len(names) else "right"}">{cell}</td>'
            for at, cell in enumerate(cells)
        ]
        lines.append(f"<tr{mark}>{''.join(left)}</tr>")
    look = "font-size:12px;line-height:1.3;border-collapse:collapse"
    return f'<table class="simnpo-answers" style="{look}">{"".join(lines)}</table>'
