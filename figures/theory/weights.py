"""Who is pushed how hard: the gradient weight of the shipped law.

It is drawn against length, and against what has been forgotten.

Nothing is simulated. Every response has -1 nat per token under the reference and under the model at
the start, and all fall by the same d nats per token; gamma = 0. One column per corner of the
family, one line per beta, darker where it is larger; thin: the limit beta = 0, gradient ascent of
weight 1 or, length-weighted, of weight 1/|y|. Upper row, before the first step: with a reference
every beta is at that limit, so that NPO starts as gradient ascent, failure (b); without it the
weight is lower already, the more so the larger beta. Middle row, after a fall of 0.5: where the
log-probability is summed the weight dies out exponentially in |y|, at rate beta d for NPO and beta
(1 + d) without a reference; where it is a mean over tokens, the weight is proportional to 1/|y| at
every beta and every d. Lower row, the same against d at one beta each: once lengths 4 and 80 have
fallen by 0.5, the short response weighs 1197 times as much as the long one under NPO, and 20 times,
the ratio of their lengths, under SimNPO at any time. Dotted: 2 and 2/|y|, which no model can
exceed. As printed for SimNPO that is loose by a factor of 2: its weight never exceeds the thin
line, 1/|y|; nor does NPO's exceed 1 while a response is no more likely than under the reference.
"""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from figures import style
from figures.cache import Context
from figures.scale import BETAS
from markov.objectives import AT_BETA_ZERO, CORNERS, Objective, SequenceLogProbs, method_name

START = -1.0  # nats per token, under the model and under the reference
FALLS = (0.0, 0.5)  # nats per token
SHOWN = {"npo": 0.2, "reference_free_npo": 0.2, "length_normalized_npo": 4.0, "simnpo": 4.0}
LOOK = {4: "-.", 19: "--", 80: "-"}  # by length
LOWEST = 1e-6
# The law in each panel, top to bottom: at the start, after the fall, and what follows for lengths
# that fall together.
NOTES = {
    "npo": (
        "1 at every β: GA",
        "2σ(−βd|y|): exponential in |y|",
        "long responses are let go first",
    ),
    "length_normalized_npo": (
        "1/|y| at every β",
        "2σ(−βd)/|y|: a power law",
        "lengths keep their proportions",
    ),
    "reference_free_npo": (
        "2σ(−β|y|): exponential in |y|",
        "2σ(−β(1 + d)|y|): exponential",
        "long responses are hardly pushed",
    ),
    "simnpo": (
        "2σ(−β)/|y|: a power law",
        "2σ(−β(1 + d))/|y|: a power law",
        "lengths keep their proportions",
    ),
}


def data(context: Context) -> pd.DataFrame:
    """Return weights on a grid of lengths for the upper rows and of falls for the lower row.

    No scale changes them. Columns: `corner` (the column of the figure), `method`, `beta`, `gamma`,
    `view` ("length" or "fall"), `length`, `fall` (nats per token since the start), `logp` and `ref`
    (nats), `weight`, `bound` (what no weight can exceed).
    """
    lengths = torch.logspace(0, 2, 61, dtype=torch.float64)
    falls = torch.linspace(0, 1.5, 61, dtype=torch.float64)
    frames = []
    for corner in CORNERS:
        for beta in (0.0, *BETAS[corner]):
            objective = Objective(beta, 0.0, *CORNERS[corner])
            frames += [
                _rows(corner, objective, "length", lengths, torch.full_like(lengths, fall))
                for fall in FALLS
            ]
            if beta in (0.0, SHOWN[corner]):
                frames += [
                    _rows(corner, objective, "fall", torch.full_like(falls, length), falls)
                    for length in LOOK
                ]
    return pd.concat(frames, ignore_index=True)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(3, len(CORNERS), 12, 8.4, sharey=True)
    for column, corner in enumerate(CORNERS):
        own, axes = frame[frame["corner"] == corner], [row[column] for row in panels]
        for place, fall in enumerate(FALLS):
            _against_length(axes[place], own[(own["view"] == "length") & (own["fall"] == fall)])
        _against_fall(axes[-1], own[own["view"] == "fall"])
        *formulas, meaning = NOTES[corner]
        for one, note in zip(axes, (*formulas, f"β = {SHOWN[corner]:g}: {meaning}"), strict=True):
            one.text(
                0.03, 0.97, note, transform=one.transAxes, va="top", fontsize=8.5, in_layout=False
            )
        axes[0].set_title(style.LABELS[corner], pad=21, fontsize=11, fontweight="bold")
        above = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.98), "ncols": 6}
        axes[0].legend(
            **above, handlelength=0.9, columnspacing=0.7, handletextpad=0.3, fontsize=7.5
        )
        axes[1].set_xlabel("|y|, scored tokens")
        axes[2].set_xlabel("d, fall since the start, nats per token")
    rows = (
        "at the start: d = 0",
        f"after a fall of d = {FALLS[1]:g}",
        f"at |y| = {', '.join(map(str, LOOK))}",
    )
    for row, label in zip(panels, rows, strict=True):
        row[0].set(
            ylabel=f"weight {label}", yscale="log", ylim=(LOWEST, 30), yticks=[1e-6, 1e-4, 1e-2, 1]
        )
        row[0].yaxis.set_minor_locator(NullLocator())
    return figure


def _rows(
    corner: str, objective: Objective, view: str, length: Tensor, fall: Tensor
) -> pd.DataFrame:
    seq = SequenceLogProbs(
        *torch.broadcast_tensors(length * (START - fall), length, length * START)
    )
    settings = {
        "corner": corner,
        "method": method_name(objective),
        "beta": objective.beta,
        "gamma": objective.gamma,
    }
    return pd.DataFrame(
        {
            **settings,
            "view": view,
            "length": length.numpy(),
            "fall": fall.numpy(),
            "logp": seq.logp.numpy(),
            "ref": seq.ref.numpy(),
            "weight": objective.weight(seq).numpy(),
            "bound": (2 / length**objective.normalize).numpy(),
        }
    )


def _against_length(axes: Axes, frame: pd.DataFrame) -> None:
    betas = sorted(frame["beta"].unique())
    for place, beta in enumerate(betas):
        part = frame[frame["beta"] == beta]
        color = style.COLORS[part["method"].iloc[0]]
        if beta:
            shade = _shade(color, (place - 1) / max(len(betas) - 2, 1))
            axes.plot(part["length"], part["weight"], color=shade, lw=2.2, label=f"{beta:g}")
        else:
            axes.plot(
                part["length"], part["weight"], color=color, lw=1, zorder=3, label=f"β = {beta:g}"
            )
    axes.plot(part["length"], part["bound"], ":", color="black", lw=0.9, label="bound")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def _against_fall(axes: Axes, frame: pd.DataFrame) -> None:
    for method in frame["method"].unique():
        for length, look in LOOK.items():
            part = frame[(frame["method"] == method) & (frame["length"] == length)]
            limit, seen = method in AT_BETA_ZERO, part[part["weight"] > LOWEST]
            axes.plot(
                part["fall"], part["weight"], look, color=style.COLORS[method], lw=1 if limit else 2
            )
            if limit:
                continue
            label, end = f"{length}: below the axis", (0.0, LOWEST)
            if len(seen):
                label, end = f"{length}", (seen["fall"].iloc[-1], seen["weight"].iloc[-1])
            axes.annotate(
                label, end, xytext=(3, 3), textcoords="offset points", color=style.COLORS[method]
            )


def _shade(color: str, place: float) -> tuple[float, float, float]:
    """Return a shade from a light tint (0) over the colour itself (1/2) to a dark shade (1)."""
    toward = 1.0 if place < 0.5 else 0.0
    mix = abs(2 * place - 1) * (0.6 if place < 0.5 else 0.4)
    red, green, blue = (part + mix * (toward - part) for part in to_rgb(color))
    return red, green, blue
