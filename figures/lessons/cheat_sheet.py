"""The cheat sheet: the law, the square of objectives, the symbols and four pictures on one page.

`python -m figures.lessons.cheat_sheet` (`make cheat-sheet`) writes cheat_sheet.pdf and
cheat_sheet.png to out/. The book offers the same page. Every curve is computed by the law that
trains, and nothing is simulated: all responses start at -1 nat per token, under the model and under
the reference, and gamma is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures import style
from markov.files.storage import atomic_path
from markov.objectives import CORNERS, Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from markov.theory import theta, time_to_forget

A4 = (210 / 25.4, 297 / 25.4)  # inches
NAME = "cheat_sheet"
START = -1.0  # nats per token
FALL = 0.5  # nats per token
SUMMED, PER_TOKEN = 0.2, 4.0  # betas, of sums over tokens and of means
BETAS = (0.05, 0.2, 1.0)
LENGTHS = {4: "--", 80: "-"}

LAW = (
    r"$z=\beta\,\frac{\log\pi\,-\,r\cdot\log\pi_{\mathrm{ref}}}{|y|^{\,n}}+\gamma$",
    r"loss $=\frac{2}{\beta}\,\log(1+e^{z})$",
    r"weight $w=\frac{2\,\sigma(z)}{|y|^{\,n}}$",
)
# Of each corner: the logit, the weight before the first step, and what follows.
SQUARE = {
    "npo": (
        r"$z=\beta\,(\log\pi-\log\pi_{\mathrm{ref}})$",
        "at the start: w = 1 for all, as in GA",
        "then long answers are let go first",
    ),
    "length_normalized_npo": (
        r"$z=\beta\,(\log\pi-\log\pi_{\mathrm{ref}})\,/\,|y|+\gamma$",
        "at the start: w = 1/|y| (γ = 0)",
        "then all lengths fall alike",
    ),
    "reference_free_npo": (
        r"$z=\beta\,\log\pi$",
        "at the start: w = 2σ(β log π)",
        "long answers are hardly pushed at all",
    ),
    "simnpo": (
        r"$z=\beta\,\log\pi\,/\,|y|+\gamma$",
        "at the start: w = 2σ(β log π/|y|)/|y| (γ = 0)",
        "short, well-known answers are pushed most",
    ),
}
SYMBOLS = (
    ("log π", "logp", "log-probability of an answer, nats, summed over its tokens"),
    ("log π_ref", "ref", "the same before unlearning, under the reference"),
    ("|y|", "length", "scored tokens of the answer"),
    ("r", "reference", "share of log π_ref that is subtracted: 0 or 1 at a corner"),
    ("n", "normalize", "power of |y| that divides: 0 or 1 at a corner"),
    ("β", "beta", "how fast the weight falls; at β = 0 it does not: GA"),
    ("γ", "gamma", "margin, outside β; released code has γ/β in its place"),
    ("λ", "retain_weight", "factor of the loss on the data that are to stay"),
    ("z", "logit", "at z = 0 half of the largest weight is left"),
    ("σ", "sigmoid", "σ(z) = 1/(1 + exp(-z)), between 0 and 1"),
    ("w", "weight", "d loss / d log π: how hard an answer is pushed down"),
    ("θ", "theta", "log π / |y|, nats per token"),
    ("D", "ks_statistic", "distance of two models' truth ratios, 0 to 1; 0 is the goal"),
)


def sheet() -> Figure:
    """Return the page, drawn."""
    with style.look():
        figure = Figure(figsize=A4)
        figure.text(0.06, 0.962, "Forgetting by NPO and SimNPO", fontsize=17, fontweight="bold")
        figure.text(0.06, 0.945, "one law, four corners: minimise the loss over the forget data")
        for x, formula in zip((0.06, 0.42, 0.72), LAW, strict=True):
            figure.text(x, 0.9, formula, fontsize=13)
        _square(figure)
        _symbols(figure)
        panels = [figure.add_axes((x, y, 0.37, 0.125)) for y in (0.255, 0.05) for x in (0.1, 0.58)]
        for draw, axes in zip((_lengths, _ratios, _times, _falls), panels, strict=True):
            draw(axes)
        return figure


def write(folder: Path = Path("out")) -> tuple[Path, Path]:
    """Write the page as PDF and as PNG, and return both paths.

    Equal pages are equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{NAME}.pdf", folder / f"{NAME}.png"
    with style.look():
        figure = sheet()
        for path in paths:
            with atomic_path(path) as partial:
                style.save(figure, partial)
    return paths


def _square(figure: Figure) -> None:
    left, bottom, width, height = 0.16, 0.662, 0.39, 0.09
    heads = ("n = 0: a sum over tokens", "n = 1: a mean over tokens")
    for column, head in enumerate(heads):
        x = left + (column + 0.5) * (width + 0.01)
        figure.text(x, 0.862, head, ha="center", fontweight="bold")
    for row, head in enumerate(("r = 1:\nwith a\nreference", "r = 0:\nwithout a\nreference")):
        y = bottom + (1.5 - row) * (height + 0.008)
        figure.text(0.06, y, head, va="center", fontweight="bold")
    for corner, (reference, normalize) in CORNERS.items():
        x, y = left + normalize * (width + 0.01), bottom + reference * (height + 0.008)
        color = style.COLORS[corner]
        box = Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.8)
        figure.add_artist(box)
        title = {"color": color, "fontweight": "bold", "fontsize": 11}
        figure.text(x + 0.012, y + height - 0.021, style.LABELS[corner], **title)
        logit, *meaning = SQUARE[corner]
        figure.text(x + 0.012, y + height - 0.043, logit, fontsize=10)
        figure.text(x + 0.012, y + 0.025, meaning[0])
        figure.text(x + 0.012, y + 0.009, meaning[1])
    foot = "β → 0: gradient ascent (GA) on the left, w = 1; on the right w = 1/|y|, length-weighted"
    figure.text(left, bottom - 0.017, foot)


def _symbols(figure: Figure) -> None:
    for place, (symbol, code, meaning) in enumerate(SYMBOLS):
        y = 0.618 - place * 0.0152
        figure.text(0.06, y, symbol, fontweight="bold")
        figure.text(0.16, y, code, family="monospace", fontsize=8)
        figure.text(0.31, y, meaning)


def _weight(objective: Objective, length: Iterable[float], logp: Iterable[float]) -> np.ndarray:
    """Return the weights of responses whose tokens had -1 nat each under the reference."""
    tokens, now = (torch.as_tensor(np.array(list(one), float)) for one in (length, logp))
    return objective.weight(SequenceLogProbs(now, tokens, START * tokens)).numpy()


def _lengths(axes: Axes) -> None:
    length = np.geomspace(1, 100, 61)
    for corner, (reference, normalize) in CORNERS.items():
        objective = Objective(PER_TOKEN if normalize else SUMMED, 0.0, reference, normalize)
        weight = _weight(objective, length, START * length)
        axes.plot(length, weight, color=style.COLORS[corner], label=style.LABELS[corner])
    axes.set(xscale="log", yscale="log", ylim=(1e-5, 3), xlabel="|y|, tokens", ylabel="weight w")
    axes.set_title("1  Before the first step: who is pushed?")
    axes.legend(fontsize=6.5, loc="lower left", handlelength=1.2)


def _ratios(axes: Axes) -> None:
    ratio = np.linspace(-30, 10, 81)
    length = np.full_like(ratio, 40.0)
    for beta, line in zip(BETAS, (":", "-", "--"), strict=True):
        weight = _weight(npo(beta), length, START * length + ratio)
        axes.plot(ratio, weight, line, color=style.COLORS["npo"], label=f"NPO, β = {beta:g}")
    flat = _weight(gradient_ascent(), length, START * length + ratio)
    axes.plot(ratio, flat, color=style.COLORS["gradient_ascent"], lw=1, label="GA, β = 0")
    axes.set(xlabel="log π − log π_ref, nats in all", ylabel="weight w", ylim=(-0.05, 2.1))
    axes.set_title("2  The brake: less likely, less pushed")
    axes.legend(fontsize=6.5, loc="upper left", handlelength=1.6)


def _times(axes: Axes) -> None:
    length = np.geomspace(2, 100, 61)
    shown = {
        "GA": (gradient_ascent(), "gradient_ascent", "-"),
        f"NPO, β = {BETAS[0]:g}": (npo(BETAS[0]), "npo", ":"),
        f"NPO, β = {BETAS[1]:g}": (npo(BETAS[1]), "npo", "-"),
        f"SimNPO, β = {PER_TOKEN:g}": (simnpo(PER_TOKEN), "simnpo", "-"),
    }
    for label, (objective, name, line) in shown.items():
        time = time_to_forget(objective, length, FALL, START)
        unit = time_to_forget(objective, 20.0, FALL, START)
        axes.plot(length, time / unit, line, color=style.COLORS[name], label=label)
    axes.set(xscale="log", yscale="log", ylim=(0.02, 40), xlabel="|y|, tokens")
    axes.set(ylabel="time, |y| = 20 is 1")
    axes.set_title("3  Time to lose half a nat per token, alone")
    axes.legend(fontsize=6.5, loc="lower left", handlelength=1.6)


def _falls(axes: Axes) -> None:
    moment = np.linspace(0, 4, 81)
    for label, name, objective in (
        ("NPO", "npo", npo(SUMMED)),
        ("SimNPO", "simnpo", simnpo(PER_TOKEN)),
    ):
        unit = time_to_forget(objective, 20.0, FALL, START)
        for length, line in LENGTHS.items():
            told = f"{label}, {length} tokens" if name == "npo" else f"{label}, both"
            if name == "npo" or line == "-":
                now = theta(objective, float(length), moment * unit, START)
                axes.plot(moment, now, line, color=style.COLORS[name], label=told)
    axes.set(xlabel="time, 1: 20 tokens have lost half a nat each", ylabel="θ, nats per token")
    axes.set_title("4  Falling: under NPO short answers start slowly")
    axes.legend(fontsize=6.5, loc="upper right", handlelength=1.6)


if __name__ == "__main__":
    for written in tyro.cli(write, prog="python -m figures.lessons.cheat_sheet"):
        print(written)
