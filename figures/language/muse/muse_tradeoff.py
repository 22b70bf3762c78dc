"""Does a model forget what it has read and keep the rest?

Drawn are MUSE's measures along unlearning, as in Figure 1d.

A small model has read generated news, of which a third is to be forgotten; it unlearns the articles
in pieces of 256 tokens. Left: answers kept about the articles to retain, against PrivLeak: how far
the AUC that tells forget from held-out texts is from the retrained model's. -100 is known by heart,
0 (line) is ideal, and the band is what the AUC of the retrained model itself is uncertain by.
Middle: against answers still known about the articles to forget. Right: against how well these are
recited. Lines: the retrained model's value. Paths lead from the original model (circle) over epochs
2, 5 and 10, the end (filled), where both 95% intervals over texts or questions are drawn; star:
retrained.

One run each, of 30 articles to forget: too few to judge PrivLeak by, of which the paper has 109
under NPO and 73 under SimNPO. The paper's code puts raw logits, which have no bound, in the place
of log-probabilities. Pieces have one length, so that dividing by it changes no more than beta and
the retain weight (see `llm.evaluation.muse`): what tells summed from averaged corners here is how
large beta is per token, 2.55 and 0.7, and with it how far a piece falls before it is let go.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context
from figures.language.muse.muse_runs import GRADDIFF, ORIGINAL, RETRAINED, measures

KEEP = "knowmem_retain"
PANELS = {
    "privleak_forget": "PrivLeak: 0 is ideal, below: still remembered",
    "knowmem_forget": "KnowMem on forget: answers known",
    "verbmem_forget": "VerbMem: passages recited",
}
LOOKS: dict[str, dict[str, Any]] = {
    ORIGINAL: dict(color="black", marker="o", mfc="white", ms=7, ls="none", label="original"),
    RETRAINED: dict(color="black", marker="*", ms=11, ls="none", label="retrained"),
    "gradient_ascent": dict(color=style.COLORS["gradient_ascent"], ls=":", marker="X", label="GA"),
    GRADDIFF: dict(
        color=style.COLORS["gradient_ascent"], ls="-", label="summed GradDiff (GA and retain term)"
    ),
}


def data(context: Context) -> pd.DataFrame:
    """Return the measures of original and retrained models, and along each run.

    See `figures.language.muse.muse_runs.measures`.
    """
    return measures(context)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, (panels,) = style.grid_figure(1, len(PANELS), 10, 4.2, sharey=True)
    for axes, (measure, label) in zip(panels, PANELS.items(), strict=True):
        for method in dict.fromkeys(frame["method"]):
            _path(axes, frame, method, measure)
        axes.set_xlabel(label)
    base = _points(frame, RETRAINED, "auc_retrained_forget").iloc[0]
    low, high = (100 * (base[end] / base["value"] - 1) for end in ("low", "high"))
    panels[0].axvspan(low, high, color="grey", alpha=0.15, lw=0)
    panels[0].axvline(0, color="grey", lw=0.8)
    for axes, measure in zip(panels[1:], list(PANELS)[1:], strict=True):
        axes.axvline(_points(frame, RETRAINED, measure)["value"].iloc[0], color="grey", lw=0.8)
        axes.set_xlim(left=-3)
    panels[0].set_ylabel("KnowMem on retain: answers kept")
    panels[0].set_ylim(-3, max(10.0, panels[0].get_ylim()[1]))  # where nothing is kept too
    handles = [Line2D([], [], **_look(method)) for method in dict.fromkeys(frame["method"])]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _path(axes: Axes, frame: pd.DataFrame, method: str, measure: str) -> None:
    """Draw a run from the original model on, with a dot per epoch that was measured.

    Both intervals are drawn where it ends.
    """
    found = _points(frame, method, measure).join(_points(frame, method, KEEP).add_suffix("_kept"))
    look = _look(method)
    if method not in (ORIGINAL, RETRAINED):
        start = _points(frame, ORIGINAL, measure).join(
            _points(frame, ORIGINAL, KEEP).add_suffix("_kept")
        )
        path = pd.concat([start, found])
        axes.plot(
            path["value"],
            path["value_kept"],
            **{**look, "lw": 1.2, "marker": "o", "ms": 2.5},
            alpha=0.8,
        )
    end = found.iloc[-1]
    bars: dict[str, Any] = {
        f"{axis}err": [[max(0.0, end[value] - end[low])], [max(0.0, end[high] - end[value])]]
        for axis, value, low, high in (
            ("x", "value", "low", "high"),
            ("y", "value_kept", "low_kept", "high_kept"),
        )
    }
    axes.errorbar(
        end["value"],
        end["value_kept"],
        **bars,
        color=look["color"],
        fmt="none",
        elinewidth=0.8,
        alpha=0.6,
    )
    marked = {"marker": "s", "ms": 6, **look}
    axes.plot(end["value"], end["value_kept"], **{**marked, "ls": "none"}, zorder=5)


def _points(frame: pd.DataFrame, method: str, measure: str) -> pd.DataFrame:
    """Return value and interval of a measure by epoch, as far as a run went."""
    own = frame[frame["method"].eq(method) & frame["measure"].eq(measure)]
    return own.set_index("epoch")[["value", "low", "high"]].dropna().astype(float)


def _look(method: str) -> dict[str, Any]:
    found = LOOKS.get(method)
    return found if found else dict(color=style.COLORS[method], ls="-", label=style.LABELS[method])
