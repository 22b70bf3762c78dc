"""One look for all figures, readable in print and by colour-blind readers.

Every method has one colour everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

# Okabe and Ito's palette (2008): distinguishable with any form of colour vision.
COLORS = {
    "npo": "#D55E00",
    "length_normalized_npo": "#E69F00",
    "reference_free_npo": "#009E73",
    "simnpo": "#0072B2",
    "gradient_ascent": "#000000",
    "length_weighted_gradient_ascent": "#999999",
    "grad_diff": "#8C564B",
    "weighted_grad_diff": "#882255",
    "idk": "#44AA99",
    "dpo": "#999933",
}
LABELS = {
    "npo": "NPO",
    "length_normalized_npo": "length-normalised NPO",
    "reference_free_npo": "reference-free NPO",
    "simnpo": "SimNPO",
    "gradient_ascent": "GA",
    "length_weighted_gradient_ascent": "length-weighted GA",
    "grad_diff": "GradDiff",
    "weighted_grad_diff": "weighted GradDiff",
    "idk": "refusals taught (IDK)",
    "dpo": "refusals preferred (DPO)",
}
COMPONENT_LABELS = {
    "length": {"forget1": "long (|y| = 19)", "forget2": "short (|y| = 4)"},
    "memorisation": {"forget1": "memorised", "forget2": "never memorised"},
}
CASE_LABELS = {"length": "Case A: two lengths", "memorisation": "Case B: memorised or not"}
OPTIMIZER_LABELS = {"adamw_transformers": "AdamW of transformers < 5", "adamw": "AdamW of torch"}
VERDICTS = {
    "holds": "#0072B2",
    "holds weakly": "#56B4E9",
    "inconclusive": "#999999",
    "contradicted": "#D55E00",
}
LINES = {"forget1": "-", "forget2": "--"}
MARKERS = {"forget1": "o", "forget2": "s"}

SETTINGS: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,
    "svg.hashsalt": "simnpo-lab",
}


@contextmanager
def look() -> Iterator[None]:
    """Apply the settings of matplotlib that every figure is drawn and saved with."""
    with matplotlib.rc_context(SETTINGS):
        yield


def grid_figure(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of panels, made without a window system."""
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in panels]


def band(
    axes: Axes, x: np.ndarray, estimates: np.ndarray, color: Any, fmt: str = "-", **look: Any
) -> None:
    """Draw a line along x and, where there are any, its intervals as a band.

    The rows of `estimates` are the values and the lower and upper bounds.
    """
    value, low, high = estimates
    axes.plot(x, value, fmt, color=color, **look)
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)


def plain_log_ticks(axes: Axes) -> None:
    """Label a logarithmic axis with plain numbers at 1, 1.5, 2, 3, 5 and 7 of every decade."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.3g}")


def around_zero(axes: Axes, linear: float, sizes: Sequence[float]) -> None:
    """Set an axis of x that is linear up to some size on either side of 0, and logarithmic beyond.

    It is labelled at the sizes, with either sign.
    """
    axes.set_xscale("symlog", linthresh=linear)
    ticks = [sign * size for size in sizes for sign in (-1, 1)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def room_for_labels(figure: Figure) -> None:
    """Leave room on the left for labels that are sentences.

    They are a little wider in pixels than in points, in which the layout is found.
    """
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0.02, 0, 0.98, 1))


def save(figure: Figure, path: Path, dpi: int | None = None) -> None:
    """Write a figure without a date, so that equal figures are equal files."""
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    figure.savefig(path, metadata=metadata, dpi=dpi or "figure")
