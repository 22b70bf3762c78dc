"""What the notebooks' views are made of: controls and a picture that follows them.

A line of text names what cannot be drawn. A `Picture` is a figure of which some artists move. The
rest is drawn once and kept; a moved slider restores it, moves the artists and encodes the result, a
matter of milliseconds, so that no window system and no extension is needed: the picture is an image
like any other, in a live notebook and on a printed page.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.core.getipython import get_ipython
from IPython.display import HTML, display
from IPython.display import Image as Still
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator
from PIL import Image

from figures import style
from markov.errors import InvalidInput, require

QUICK = "SIMNPO_LAB_QUICK"
# of the encoded picture; it is shown at SHOWN pixels per inch, so that it is sharp on fine screens
# too
DPI = 115
SHOWN = 96
WIDTH = 6.6  # inches, of every view: as wide as a notebook in a window of 800 pixels has room for
# A picture is not shown smaller than this share of its size, at which its text can still be read:
# in a narrower window it scrolls.
SMALLEST = 0.75
NARROW = 250  # pixels that a control needs
WRONG, RIGHT = "#D55E00", "#009E73"  # from the palette of the figures


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """A figure, its artists that move, and the function of the controls' values that moves them."""

    figure: Figure
    moving: Sequence[Artist]
    update: Callable[..., None]


class View(widgets.VBox):
    """Controls above a picture.

    `controls` are by name, `image` holds the PNG, and `message` says what is wrong with the values.
    Controls may be those of another view, which then move both. They stand in at most `columns`
    columns, fewer in a narrow window. `shown` gives what stands in place of a control, by its name,
    and further widgets after the controls.
    """

    def __init__(
        self,
        picture: Picture,
        controls: Mapping[str, Any],
        columns: int = 3,
        shown: Mapping[str, Any] | None = None,
    ) -> None:
        self.picture, self.controls = picture, dict(controls)
        self.canvas = FigureCanvasAgg(picture.figure)
        picture.figure.set_dpi(DPI)
        for artist in picture.moving:
            artist.set_animated(True)
        with style.look():
            self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(picture.figure.bbox)
        width = round(SHOWN * picture.figure.get_figwidth())
        self.image = widgets.Image(
            format="png",
            layout=widgets.Layout(
                width=f"{width}px",
                max_width="100%",
                min_width=f"{round(SMALLEST * width)}px",
                margin="0",
            ),
        )
        self.message = widgets.HTML()
        grid = widgets.GridBox(
            list({**self.controls, **(shown or {})}.values()),
            layout=widgets.Layout(
                grid_template_columns=(
                    f"repeat(auto-fit, minmax(max({NARROW}px, {99 // columns}%), 1fr))"
                ),
                width=f"{width}px",
                max_width="100%",
            ),
        )
        frame = widgets.Box(
            [self.image],
            layout=widgets.Layout(width="100%", overflow="auto hidden", margin="0"),
        )
        self.redraw()
        for control in self.controls.values():
            control.observe(self.redraw, "value")
        super().__init__([grid, self.message, frame] if self.controls else [self.message, frame])

    @property
    def values(self) -> dict[str, Any]:
        """The values of the controls, by name."""
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self, change: object = None) -> None:
        """Draw the picture of the values.

        Values that cannot be used leave it as it is and are named in the message.
        """
        try:
            self.picture.update(**self.values)
        except InvalidInput as error:
            self.message.value = one_line(error)
            return
        self.message.value = ""
        self.canvas.restore_region(self.background)
        for artist in self.picture.moving:
            self.picture.figure.draw_artist(artist)
        self.image.value = _png(np.asarray(self.canvas.buffer_rgba()))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Return the view as a widget and as the picture that it shows now.

        The picture is for pages without a kernel.
        """
        return self.printed(super()._repr_mimebundle_(**options))

    def printed(self, bundle: Any) -> Any:
        """Return what a widget shows itself as, and the picture beside it."""
        data, *rest = bundle if isinstance(bundle, tuple) else (bundle,)
        shown = {**(data or {}), "image/png": base64.b64encode(self.image.value).decode()}
        width = round(SHOWN * self.picture.figure.get_figwidth())
        return shown, {**(rest[0] if rest else {}), "image/png": {"width": width}}


def _png(pixels: np.ndarray) -> bytes:
    # Speed before size: the picture travels no further than from the kernel to the browser.
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def lengths_box(lengths: str) -> Any:
    """Return a box to type response lengths into; `read_lengths` reads what stands there."""
    return widgets.Text(
        lengths,
        description="lengths |y|",
        continuous_update=False,
        style={"description_width": "76px"},
        layout=widgets.Layout(width="98%"),
    )


def whole_row() -> Any:
    """Return the layout of a control that takes a row of its own."""
    # Not `grid_column`, which the browser's side of ipywidgets clears again.
    return widgets.Layout(width="98%", grid_area="auto / 1 / auto / -1")


def hint(text: str) -> Any:
    """Return a widget with a line of small text that tells how to use a view.

    It takes a row of its own among the controls.
    """
    small = f'<div style="font-size:12px;line-height:1.4;opacity:0.75">{text}</div>'
    return widgets.HTML(small, layout=whole_row())


def read_lengths(text: str) -> np.ndarray:
    """Return lengths as typed, "4, 19, 80".

    Raises `InvalidInput` for what is no whole number from 1 to 1000.
    """
    allowed = "whole numbers from 1 to 1000, apart by commas"
    words = [word.strip() for word in text.split(",")]
    for word in words:
        require(word.isdecimal() and 1 <= int(word) <= 1000, "lengths", word, allowed)
    return np.array(sorted({int(word) for word in words}))


def one_line(error: BaseException) -> str:
    """Return an error as one line of HTML."""
    return f'<span style="color:{WRONG}"><b>cannot be used:</b> {html.escape(str(error))}</span>'


def friendly() -> None:
    """From here on, answer input that cannot be used, and a stop, by one line in the notebook.

    There is no traceback. The cell still counts as failed. Does nothing outside IPython.
    """
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((InvalidInput, KeyboardInterrupt), _answer)


def _answer(
    shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None
) -> list[str]:
    stopped = isinstance(error, KeyboardInterrupt)
    said = "<b>stopped</b>; what was finished is kept" if stopped else one_line(error)
    display(HTML(said))
    return [str(error)]


def quick() -> bool:
    """Return whether notebooks should make do with small runs.

    They should where the variable SIMNPO_LAB_QUICK is set to 1. Raises `InvalidInput` for any other
    value than 0, 1 or nothing.
    """
    chosen = os.environ.get(QUICK, "")
    require(chosen in ("", "0", "1"), QUICK, chosen, "0 or 1")
    return chosen == "1"


def still(figure: Figure) -> Any:
    """Return a figure of `figures` as a picture in a notebook."""
    with style.look():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = _png(np.asarray(canvas.buffer_rgba()))
    return Still(pixels, width=round(SHOWN * figure.get_figwidth()))


def plain_log_axis(axis: Any, ticks: Sequence[float]) -> None:
    """Give a logarithmic axis plain numbers at the given ticks and none elsewhere."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def heat(axes: Axes, states: int, title: str) -> Any:
    """Draw an empty heat map of a transition matrix, with probabilities from 0 to 0.5.

    Rows are states from, columns states to.
    """
    image = axes.imshow(
        np.zeros((states, states)), vmin=0, vmax=0.5, cmap="viridis", interpolation="nearest"
    )
    axes.set(title=title, xlabel="next state", xticks=range(states), yticks=range(states))
    axes.tick_params(length=0, labelsize=7)
    return image


def mixed(first: str, second: str, share: float) -> str:
    """Return a colour between two: `share` of the second."""
    parts = zip(to_rgb(first), to_rgb(second), strict=True)
    red, green, blue = ((1 - share) * a + share * b for a, b in parts)
    return to_hex((red, green, blue))


def room_for_a_line(figure: Figure, share: float = 0.91) -> Any:
    """Lay a figure out with room above its panels, and return the text there, still empty.

    `share` is how much of the height the panels get.
    """
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, 0, 1, share), wspace=0.04))
    return figure.text(0.5, (1 + share) / 2, "", ha="center", va="center", fontsize=10)
