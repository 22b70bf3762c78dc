"""What the two numbers of SimNPO do to forget quality and model utility (paper, Figure A2).

SimNPO on the default model at every beta (upwards) and gamma (to the right), everything else as in
the table: the statistic D between its truth ratios and the retrained model's, the p-value of that
D, coloured by its logarithm, and model utility. One run for each field. Where beta is large little
is forgotten, since answers are let go once they have lost a fraction of a nat per token; the margin
gamma does what a smaller beta does. The paper's choice for forget10 is beta = 4.5 and gamma = 0.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane
from figures.language.runs import AuthorsStudy, source_of, study
from figures.language.sweeps import swept

BETAS, GAMMAS = (1.0, 2.5, 4.5, 8.0), (0.0, 1.0, 2.0)
PANELS = {
    "ks_statistic": (plane.DISTANCE, "viridis_r"),
    "forget_quality": (plane.QUALITY, "viridis"),
    "model_utility": (plane.UTILITY, "viridis"),
}


def words_of(chosen: AuthorsStudy) -> tuple[str, ...]:
    """Return SimNPO at every beta and gamma, at the study's retain weight.

    With gamma = 0 and the study's beta it is in the table.
    """
    weight = f"@{chosen.retain_weight_per_token:g}"
    grid = itertools.product(BETAS, GAMMAS)
    return tuple(
        f"simnpo:{beta:g}" + (f":{gamma:g}" if gamma else "") + weight for beta, gamma in grid
    )


def data(context: Context) -> pd.DataFrame:
    """Return all measures of SimNPO on the grid, and of original and retrained, with `source`.

    Where a study has SimNPO at several retain weights, the grid is of the one with most settings.
    """
    frame = swept(context, words_of(study(context.scale)))
    found = frame.drop_duplicates("model")["retain_weight"].dropna()
    frame = frame[
        frame["retain_weight"].isin([found.mode().iloc[0]]) | frame["retain_weight"].isna()
    ]
    return frame.assign(source=source_of(context)).reset_index(drop=True)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, (line,) = style.grid_figure(1, 3, 10.5, 3.6)
    points = plane.points(frame)
    grid, levels = points[points["method"] == "simnpo"], points.set_index("model")
    for axes, (measure, (label, colors)) in zip(line, PANELS.items(), strict=True):
        before = float(levels.loc["original", measure])  # pyright: ignore[reportArgumentType]
        _heat(
            axes, grid.pivot(index="beta", columns="gamma", values=measure), measure, colors, before
        )
        axes.set_title(f"{label}\nbefore unlearning: {before:.2g}")
    return figure


def _heat(axes: Axes, grid: pd.DataFrame, measure: str, colors: str, before: float) -> None:
    """Draw a field of numbers, beta upwards and gamma to the right.

    p-values have the colours of their logarithms.
    """
    values = grid.to_numpy(dtype=float)
    shown, low, high = values, 0.0, max(before, np.nanmax(values))
    if measure == "forget_quality":
        shown, low, high = np.log(values.clip(plane.SMALLEST)), np.log(plane.SMALLEST), 0.0
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high)
    for row, column in np.argwhere(np.isfinite(values)):  # a study's grid may have gaps
        red, green, blue, _ = image.cmap(image.norm(shown[row, column]))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = (
            f"{values[row, column]:.2f}"
            if values[row, column] >= 0.005
            else f"{values[row, column]:.0e}"
        )
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(grid.columns)), [f"{gamma:g}" for gamma in grid.columns])
    axes.set_yticks(range(len(grid.index)), [f"{beta:g}" for beta in grid.index])
    axes.set(xlabel="γ", ylabel="β")
    axes.spines[:].set_visible(False)
