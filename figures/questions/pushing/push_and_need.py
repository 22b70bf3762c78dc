"""Does the push match the need? What a step moves, beside what the retrained model asks to move.

A small step with a weight w per answer lowers all log-probabilities by K w times its size, where K
holds the inner products of the answers' gradients; needed is to fall to the retrained model's
log-probability. Upper row, before the first update: how much of the need each weighting meets, at
its best step size, on the default language model and on the chains of both of the paper's cases.
Filled: of the whole need, the fall that all share included (1 minus the squared rest over the
squared need); open: of the differences between needs (squared correlation, 0 where it is negative).
Circles: gradient descent; squares: AdamW, whose step divides by the root of the mean squared
gradients. "need / norm²" would be right if no answer moved another one; "|y| / norm²" takes the
length for the need and knows no retrained model; the best weights >= 0 are as many as there are
answers, so that they say what is possible, not what a rule reaches.

Lower left: these weights of one training's answers, over their mean, against length (AdamW), with
powers |y|^-n, and in colour how well the model knows the answer; the title has means over
trainings. Then, where runs were followed: what a run's own push meets of what is still needed,
along NPO and SimNPO, and what the best weights would there. Last: runs of NPO's loss with fixed
weights, each on top of NPO's own: by how much D against the retrained model lies above that of
equal weights, where these have as much utility (filled) or as much probability on retain answers
(open); below 0 is better. The best weights know the retrained model and are
no method. Dots are trainings, intervals are 95% over trainings, or over pretrained models of the
chains.

Of a study (--study) there are the first panel and the weights, of its own models and corners.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from figures import style
from figures.cache import Context, cached_each
from figures.language.studies import NAME, check
from figures.questions.graded import trainings
from figures.questions.pushing import chain_pushes, pushes, study_pushes, weightings
from figures.questions.pushing.matching_told import (
    AT,
    LANGUAGE,
    assess,
    causes,
    excess,
    excesses,
    laws,
    matches,
    runs,
)
from figures.statistics import lookup
from llm.intervals import Estimate

NAMES = {
    "npo": "NPO",
    "length_normalized_npo": "length-normalised NPO",
    "reference_free_npo": "reference-free NPO",
    "simnpo": "SimNPO",
    "power_best": "best power of |y|",
    "length_over_norm": "|y| / norm²",
    "need_over_norm": "need / norm²",
    "nnls_kept": "best w ≥ 0, retaining",
    "nnls": "best w ≥ 0",
}
FACTORS = {
    "power_0.25": "|y|^-1/4",
    "power_0.5": "|y|^-1/2",
    "power_1": "1/|y|",
    "length_over_norm": "|y| / norm²",
    "nnls_kept": "best w ≥ 0, retaining\n(not a method)",
    "nnls": "best w ≥ 0\n(not a method)",
}
LOOKS = {"gradient descent": ("o", "#555555", 0.17), "AdamW": ("s", "#CC79A7", -0.17)}
LINES = {0.0: "-", 0.25: "--", 0.5: "-.", 1.0: ":"}


def data(context: Context) -> pd.DataFrame:
    """Return what is pushed and needed, and what runs with given weights became.

    Columns `kind` (example, match, law: see `pushes.of_point`; run: see `weightings.unlearned`),
    `model` (language model, or the case of the chains), `seed`, `corner` and `epoch`. Examples are
    those before the first update, and of a study there is nothing else.
    """
    if context.study is not None:
        found = study_pushes.compared(context, check(context.study))
        return found.assign(model=LANGUAGE, corner="", epoch=0)
    studies = trainings(context.scale)
    ways = [
        pushes.Way(study=own, corner=corner) for corner in ("", *pushes.PATHS) for own in studies
    ]
    cached_each(context, pushes.__name__, ways, pushes.compared)  # several at a time
    kept = replace(context, since=0.0)
    found = pd.concat(
        [
            weightings.at_start(kept, way).assign(seed=way.study.models.seed, corner=way.corner)
            for way in ways
        ],
        ignore_index=True,
    )
    shown = (found["kind"] != "example") | (found["corner"] == "")
    jobs = weightings.wanted(studies)
    made = cached_each(context, weightings.__name__, jobs, partial(weightings.unlearned, context))
    chains = chain_pushes.compared(context).rename(columns={"case": "model"})
    parts = [
        found[shown].assign(model=LANGUAGE),
        chains.assign(corner="", epoch=0),
        made.assign(kind="run", model=LANGUAGE),
    ]
    return pd.concat(parts, ignore_index=True)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that findings tell of the frame; of a study, which has no runs, fewer."""
    start = {"matches": matches(frame), "laws": laws(frame), "causes": causes(frame)}
    if NAME in frame:
        return start
    made = {"runs": runs(frame), "excess": excesses(frame)}
    return {"claims": assess(frame), **start, **made}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    found = matches(frame)
    if NAME in frame:
        return _of_study(frame, found)
    figure, panels = style.grid_figure(2, 3, 13, 8.2)
    models = [LANGUAGE, *(name for name in found["model"].unique() if name != LANGUAGE)]
    titles = {LANGUAGE: "default language model", **style.CASE_LABELS}
    titles = {model: f"{titles[model]}, n = {_count(found, model)}" for model in models}
    for axes, model in zip(panels[0], models, strict=False):
        own = found[(found["model"] == model) & (found["corner"] == "")]
        varied = model in set(frame[frame["kind"] == "law"]["model"])
        _matched(axes, own[own["need_of"] == "total"], titles[model], varied=varied)
    for axes in panels[0][len(models) :]:
        axes.set_visible(False)
    _legend(figure, panels[0][0])
    _weights(panels[1][0], frame)
    if (found["corner"] != "").any():
        _path(panels[1][1], found)
        _judged(panels[1][2], frame)
    else:  # no run was followed
        _judged(panels[1][1], frame)
        panels[1][2].set_visible(False)
    return figure


def _of_study(frame: pd.DataFrame, found: pd.DataFrame) -> Figure:
    figure, ((left, right),) = style.grid_figure(1, 2, 9.4, 4.4)
    title = f"{frame[NAME].iloc[0]}, n = {_count(found, LANGUAGE)}"
    _matched(left, found[found["need_of"] == "total"], title, varied=True)
    _legend(figure, left)
    _weights(right, frame)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=7)


def _count(found: pd.DataFrame, model: str) -> int:
    return int(found.loc[found["model"] == model, "count"].max())


def _matched(axes: Axes, found: pd.DataFrame, title: str, *, varied: bool) -> None:
    known = lookup(found, ["optimizer", "weighting", "measure"])
    there = [name for name in NAMES if name in set(found["weighting"])]
    if not varied:  # all powers of one length are equal weights
        there.remove("power_best")
    for place, name in enumerate(there):
        for optimizer, (marker, color, shift) in LOOKS.items():
            for measure, face in (("whole", color), ("differences", "white")):
                one = known[optimizer, name, measure]
                label = None
                if place == 0:
                    told = "whole need" if measure == "whole" else "differences"
                    label = f"{optimizer}, {told}"
                look: Any = {"color": color, "mfc": face, "ms": 5, "lw": 1, "capsize": 2}
                _across(axes, one, -place + shift, marker, label=label, **look)
    axes.set_yticks([-place for place in range(len(there))], [NAMES[name] for name in there])
    axes.set(xlim=(-0.04, 1.04), xlabel="share of the need that is met", title=title)
    axes.grid(axis="x", lw=0.4, alpha=0.5)


def _across(axes: Axes, one: Estimate, y: float, marker: str, **look: Any) -> None:
    error = np.nan_to_num([[one.value - one.low], [one.high - one.value]])
    axes.errorbar(one.value, y, xerr=error, fmt=marker, **look)


def _weights(axes: Axes, frame: pd.DataFrame) -> None:
    own = frame[(frame["kind"] == "example") & (frame["optimizer"] == "AdamW")]
    own = own[(own["seed"] == own["seed"].min()) & (own["nnls"] > 0)]
    weights, loss = own["nnls"] / own["nnls"].mean(), -own["logp"] / own["length"]
    length = np.array([own["length"].min(), own["length"].max()])
    middle, level = (float(np.exp(np.log(one).mean())) for one in (own["length"], weights))
    norm = LogNorm(*np.quantile(loss, (0.02, 0.98)))
    dots = axes.scatter(own["length"], weights, c=loss, norm=norm, s=7, cmap="viridis_r")
    bar = axes.figure.colorbar(dots, ax=axes, extend="both", pad=0.02)
    bar.set_label("loss per token, nats")
    for power, look in LINES.items():
        name, line = "equal" if power == 0 else f"|y|^-{power:g}", (length / middle) ** -power
        axes.plot(length, level * line, look, color="black", lw=1, label=name)
    found = lookup(laws(frame).query("optimizer == 'AdamW'"), ["model", "weighting", "measure"])
    power, share = (found[LANGUAGE, "nnls", measure] for measure in ("power", "explained"))
    zero = found[LANGUAGE, "nnls", "zero"]
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="|y|, scored tokens",
        ylabel="best weight ≥ 0, over their mean",
        title=f"as |y|^{power.value:.2f}, which explains {share.value:.0%}; {zero.value:.0%} are 0",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.set_ylim(low / 10, high)  # room for the legend
    axes.legend(fontsize=7, loc="lower center", ncols=2)


def _path(axes: Axes, found: pd.DataFrame) -> None:
    own = found[(found["model"] == LANGUAGE) & (found["need_of"] == "total")]
    own = own[own["optimizer"] == "AdamW"]
    known = lookup(own, ["corner", "epoch", "weighting", "measure"])
    last = int(own["epoch"].max())
    epochs = [0, 1, last]
    for corner, shift in (("npo", -0.06), ("simnpo", 0.06)):
        for weighting, look, name in ((corner, "-", "its own push"), ("nnls", ":", "best w ≥ 0")):
            points = [
                known["" if epoch == 0 else corner, epoch, weighting, "whole"] for epoch in epochs
            ]
            value, low, high, _ = np.array(points, dtype=float).T
            error = np.nan_to_num([value - low, high - value])
            at = np.arange(len(epochs)) + shift
            label = f"{style.LABELS[corner]}: {name}"
            color = style.COLORS[corner]
            axes.errorbar(
                at, value, error, fmt=look, marker="s", ms=4, color=color, capsize=2, label=label
            )
    axes.set_xticks(range(len(epochs)), ["start", "after epoch 1", f"after epoch {last}"])
    axes.set(ylim=(-0.04, 1.3), ylabel="share of what is still needed", title="along a run (AdamW)")
    axes.legend(fontsize=7, loc="upper center", ncols=2, columnspacing=1, handlelength=1.5)


def _judged(axes: Axes, frame: pd.DataFrame) -> None:
    single, over = excess(frame), excesses(frame)
    over = over[(over["trainings"] == "all") & (over["measure"] == "distance")]
    known = lookup(over, ["factor", "at"])
    kept = {"utility": "as much utility", "retain": "as much on retain"}
    there = [factor for factor in FACTORS if factor in set(single["factor"])]
    for place, factor in enumerate(there):
        for at, shift in zip(AT, (0.15, -0.15), strict=True):
            face = "black" if at == "utility" else "white"
            dots = single[(single["factor"] == factor) & (single["at"] == at)]["distance"]
            axes.plot(dots, [-place + shift - 0.1] * len(dots), ".", color="grey", ms=3)
            label = kept[at] if place == 0 else None
            look: Any = {"color": "black", "mfc": face, "ms": 5, "lw": 1, "capsize": 2}
            _across(axes, known[factor, at], -place + shift, "o", label=label, **look)
    axes.axvline(0, color="grey", lw=0.8, zorder=0)
    names = [FACTORS[factor] for factor in there]
    axes.set_yticks([-place for place in range(len(there))], names)
    axes.set(
        ylim=(-len(there) + 0.5, 1.0),
        xlabel="D above that of equal weights",
        title=f"unlearning with fixed weights, n = {single['seed'].nunique()}",
    )
    axes.legend(fontsize=7, loc="upper center", ncols=2)
