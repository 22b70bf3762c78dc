"""The NPO paper's synthetic study, with SimNPO and a control added.

It shows how far each run is from the retrained model.

Upper row: forget and retain inputs lie apart (alpha = 1); lower row: they follow one law, only
their labels differ (alpha = 0), so that both distances are the same but for sampling. Left to
right: forget and retain distance, that is KL(retrained || model) on test inputs, against the step;
one against the other, from the circle on; and Theorem 2's distance, the change of the forget data's
logits. Step sizes and beta are the paper's; SimNPO, which the paper does not have, takes NPO's. A
response is one label, so length normalisation does nothing: NPO and length-normalised NPO coincide,
and so do SimNPO and reference-free NPO. Lines are geometric means over instances with 95% bands,
dashed with a retain term; the dotted control is the retain loss alone, at NPO's step size.

At alpha = 1, as the paper says, GA leaves the retrained model behind on the retain data, with a
retain term or without, while NPO nearly stops, or comes back. But up to where they have forgotten,
GA and NPO pay the same without a retain term: NPO does not take a better way, it slows down in
time. SimNPO pays less. All three lower the commoner label everywhere, so that every forget example
with the rarer label ends up more probable than it was. At alpha = 0, NPO with a retain term beats
GA with one, as the paper says, but not the control. SimNPO without a retain term goes the wrong way
there: at NPO's beta its weight is small but for examples of which the reference is nearly certain.
With one it is close to the control, for the same reason.

Rates, after the paper's last step (grey): GA is linear in the step. NPO and SimNPO are logarithmic
at alpha = 1. At alpha = 0, far from the orthogonal features of Theorem 2, NPO is neither: its
logits move as a power of the step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from figures import style
from figures.cache import Context, cached, cached_each
from figures.fits import growth
from figures.statistics import full_means, mean_interval, ratio_interval
from llm.intervals import Estimate
from markov.errors import require
from markov.logistic import Descent, LogisticWorld, run
from markov.objectives import gradient_ascent, npo, simnpo

# From the paper's Table 1, by alpha: step size of GA, step size of NPO, beta of NPO. They are the
# same with and without a retain term.
PUBLISHED = {1.0: (5e-4, 5e-3, 1.0), 0.0: (1e-4, 5e-2, 10.0)}
STEPS, HORIZON = 2000, 10_000  # the paper's steps; rates need a longer look
GOAL = 0.1  # nats of forget distance at which costs are compared
TITLES = {1.0: "α = 1: inputs apart", 0.0: "α = 0: inputs alike"}
LABELS = {"forget_distance": "forget distance, nats", "retain_distance": "retain distance, nats"}
Curve = tuple[float, float, str]
UNITS = {"linear": "{} per step", "logarithmic": "{} per e-fold", "power": "∝ step^{}"}
CURVE = ["retain_weight", "forget_weight", "method"]
ALONE, HELD = (
    {name: (weight, 1.0, name) for name in ("gradient_ascent", "npo", "simnpo")}
    for weight in (0.0, 1.0)
)
CONTROL = (1.0, 0.0, "gradient_ascent")
# Factors printed above the trade-off, by alpha: a heading, the column of the last step, and pairs
# of curves.
COMPARED = {
    1.0: (
        f"retain distance paid where forget distance is {GOAL:g}",
        "cost",
        {
            "NPO / GA": (ALONE["npo"], ALONE["gradient_ascent"]),
            "SimNPO / NPO": (ALONE["simnpo"], ALONE["npo"]),
            "NPO / GA, both + retain loss": (HELD["npo"], HELD["gradient_ascent"]),
        },
    ),
    0.0: (
        "last forget distance, with retain loss / retain loss alone",
        "forget_distance",
        {style.LABELS[name]: (HELD[name], CONTROL) for name in HELD},
    ),
}


def published(alpha: float, *, steps: int = STEPS, horizon: int = STEPS) -> list[Descent]:
    """Return the runs of GA, NPO and SimNPO at the paper's Table 1, and a control.

    Without a retain term they go up to `horizon`, with one for `steps`. SimNPO takes NPO's beta and
    step size, and gamma = 0. The last run is the control, the retain loss alone at NPO's step size.
    Raises `InvalidInput` for an alpha that is not in the table.
    """
    require(alpha in PUBLISHED, "alpha", alpha, f"one of {sorted(PUBLISHED)}")
    slow, fast, beta = PUBLISHED[alpha]
    corners = ((gradient_ascent(), slow), (npo(beta), fast), (simnpo(beta), fast))
    early = {
        *(round(step) for step in np.geomspace(1, steps / 5, 30)),
        *range(0, steps + 1, max(1, steps // 80)),
    }
    late = {round(step) for step in np.geomspace(steps, horizon, 20)}
    short, long = tuple(sorted(early)), tuple(sorted(early | late))
    alone = [Descent(objective=o, learning_rate=rate, recorded=long) for o, rate in corners]
    held = [
        Descent(objective=o, learning_rate=rate, retain_weight=1.0, recorded=short)
        for o, rate in corners
    ]
    settings: dict[str, Any] = {"forget_weight": 0.0, "retain_weight": 1.0, "recorded": short}
    return [*alone, *held, Descent(objective=gradient_ascent(), learning_rate=fast, **settings)]


def data(context: Context) -> pd.DataFrame:
    """Return `markov.logistic.COLUMNS` along every run, and the numbers of `summary` for each."""
    small = context.scale.quick
    instances, training, steps, horizon = (
        (3, 1000, 1000, 3000) if small else (5, 20_000, STEPS, HORIZON)
    )
    worlds = [
        LogisticWorld(alpha=alpha, seed=seed, steps=training)
        for alpha in PUBLISHED
        for seed in range(instances)
    ]
    runs = {alpha: published(alpha, steps=steps, horizon=horizon) for alpha in PUBLISHED}

    jobs, first = [], 0
    for alpha, own in runs.items():
        for world in (world for world in worlds if world.alpha == alpha):
            jobs.append((first, world, own))
            first += len(own)

    def one(job: tuple[int, LogisticWorld, list[Descent]]) -> pd.DataFrame:
        number, world, own = job
        found = run([world], own)
        return found.assign(run=found["run"] + number)

    def compute() -> pd.DataFrame:
        frame = cached_each(context, __name__, jobs, one)
        return frame.merge(summary(frame, steps), on="run")

    return cached(context, __name__, [worlds, list(runs.values()), GOAL], compute)


def summary(frame: pd.DataFrame, steps: int = STEPS) -> pd.DataFrame:
    """Return per run the `cost` and, for runs of more than `steps`, the `growth` after them.

    The cost is that of `cost`, the growth that of `logit_distance`. Growth is linear or
    logarithmic, whichever fits better, but a power where the logarithm fits only with an onset that
    has hardly passed by then; `rate` is the slope per step or per e-fold of steps, or the exponent.
    """
    rows = []
    for index, own in frame.groupby("run"):
        late = own[own["step"] >= steps]
        row: dict[str, object] = {
            "run": index,
            "cost": cost(own),
            "growth": "",
            "rate": float("nan"),
        }
        if late["step"].nunique() >= 4:
            found = growth(late["step"], late["logit_distance"])
            kind = (
                "power"
                if found.better == "logarithmic" and found.onset > steps / 2
                else found.better
            )
            fits = {
                "linear": found.linear,
                "logarithmic": found.logarithmic,
                "power": found.exponent,
            }
            row |= {"growth": kind, "rate": fits[kind].value}
        rows.append(row)
    return pd.DataFrame(rows)


def cost(own: pd.DataFrame, goal: float = GOAL) -> float:
    """Return the retain distance of a run where its forget distance first falls below the goal.

    It is interpolated in logarithms. It is nan where the run starts below the goal, or never gets
    there.
    """
    forget, retain = (np.log(own[name].to_numpy()) for name in LABELS)
    below = np.flatnonzero(forget < np.log(goal))
    if len(below) == 0 or below[0] == 0:
        return float("nan")
    last, first = below[0] - 1, below[0]
    part = (forget[last] - np.log(goal)) / (forget[last] - forget[first])
    return float(np.exp(retain[last] + part * (retain[first] - retain[last])))


def factor(last: pd.DataFrame, column: str, one: Curve, other: Curve) -> Estimate:
    """Return the geometric mean over instances of a column's ratio between two curves.

    `last` has one row per run.
    """
    wide = last.pivot(index="seed", columns=CURVE, values=column)
    return ratio_interval(np.log((wide[one] / wide[other]).to_numpy()))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(len(TITLES), 4, 14.5, 7)
    end = int(frame.loc[frame["retain_weight"] > 0, "step"].max())
    for row, (alpha, title) in zip(panels, TITLES.items(), strict=True):
        part = frame[frame["alpha"] == alpha]
        shown = part[part["step"] <= end]
        for axes, measure in zip(row, LABELS, strict=False):
            _against_step(axes, shown, measure)
            low, high = shown[measure].min(), shown[measure].max()
            axes.set(
                yscale="log",
                ylim=(low / 1.3, high * 1.3),
                xlabel="unlearning step",
                ylabel=LABELS[measure],
            )
        _tradeoff(row[2], shown)
        row[2].set_title(_factors(shown[shown["step"] == end], alpha), loc="left", fontsize=7)
        _growth(row[3], part[(part["step"] > 0) & (part["retain_weight"] == 0)], end)
        row[0].set_title(title, loc="left")
    for axis in (axis for row in panels for axes in row for axis in (axes.xaxis, axes.yaxis)):
        axis.set_minor_formatter(NullFormatter())  # labels between decades would overlap
    lines = [
        Line2D([], [], label=_label(curve), **_look(curve))
        for curve, _ in frame.groupby(CURVE, sort=False)
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


def _label(curve: Any) -> str:
    retain_weight, forget_weight, method = curve
    name = style.LABELS[method] if forget_weight > 0 else "retain loss alone"
    return f"{name} + retain loss" if retain_weight > 0 and forget_weight > 0 else name


def _look(curve: Any) -> dict[str, Any]:
    retain_weight, forget_weight, method = curve
    if forget_weight == 0:
        return {"color": "0.5", "ls": ":"}
    return {"color": style.COLORS[method], "ls": "--" if retain_weight > 0 else "-"}


def _against_step(axes: Axes, frame: pd.DataFrame, measure: str) -> None:
    for curve, own in frame.groupby(CURVE, sort=False):
        wide, look = own.pivot(index="step", columns="run", values=measure), _look(curve)
        found = [ratio_interval(np.log(values)) for values in wide.to_numpy()]
        axes.plot(wide.index, [one.value for one in found], **look)
        low, high = [one.low for one in found], [one.high for one in found]
        axes.fill_between(wide.index, low, high, color=look["color"], alpha=0.12, lw=0)


def _tradeoff(axes: Axes, frame: pd.DataFrame) -> None:
    forget, retain = LABELS
    for curve, own in frame.groupby(CURVE, sort=False):
        look = _look(curve)
        for _, one in own.groupby("run"):
            axes.plot(
                one[retain], one[forget], color=look["color"], ls=look["ls"], lw=0.4, alpha=0.4
            )
        logs = own.assign(forget=np.log(own[forget]), retain=np.log(own[retain]))
        mean = full_means(logs.groupby("step")[["forget", "retain"]])
        axes.plot(np.exp(mean["retain"]), np.exp(mean["forget"]), **look)
        start = np.exp(mean.loc[0])
        axes.plot(start["retain"], start["forget"], "o", color="black", mfc="white", ms=5, zorder=5)
    axes.set(xscale="log", yscale="log", xlabel=LABELS[retain], ylabel=LABELS[forget])


def _growth(axes: Axes, frame: pd.DataFrame, start: int) -> None:
    _against_step(axes, frame, "logit_distance")
    handles = []
    for curve, own in frame.groupby(CURVE, sort=False):
        runs = own.groupby("run")[["growth", "rate"]].first()
        kind = runs["growth"].mode()[0]
        rate = mean_interval(runs.loc[runs["growth"] == kind, "rate"].to_numpy())
        text = UNITS[kind].format(_interval(rate))
        handles.append(Line2D([], [], label=f"{_label(curve)}: {text}", **_look(curve)))
    axes.axvspan(start, frame["step"].max(), color="0.93", lw=0, zorder=-1)
    axes.legend(handles=handles, loc="upper left", fontsize=7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="unlearning step",
        ylabel="change of the forget logits, rms",
    )
    axes.set_ylim(top=40 * frame["logit_distance"].max())  # room for the legend
    axes.minorticks_off()


def _factors(last: pd.DataFrame, alpha: float) -> str:
    heading, column, pairs = COMPARED[alpha]
    lines = [f"{name}: × {_interval(factor(last, column, *pair))}" for name, pair in pairs.items()]
    return "\n".join([f"{heading}:", *lines])


def _interval(estimate: Estimate) -> str:
    if estimate.count < 2:
        return f"{estimate.value:.3g}" if estimate.count else "never reached"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
