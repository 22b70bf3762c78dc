"""What does a spoiled reference do to NPO (paper, A1)?

The default model, or one of the user's own, unlearns beside a perturbed copy of itself.

The reference is the model with its weights averaged with Gaussian ones, scale times as wide as its
own; scale 0 only halves them. Such a reference knows the answers less well, so that at the start
logp - ref is not 0 but large, and NPO's factor 2 sigmoid(beta (logp - ref)), 1 beside its own
reference, is close to 2, its bound: the more so the longer the answer. There it no longer tells
answers apart, and NPO is gradient ascent with twice its weight until answers have fallen as low as
the spoiled reference puts them, wherever the retrained model has them. The factor itself AdamW
undoes, but for the balance with the retain term; what is lost is that answers are let go once they
have fallen. SimNPO has no reference, and nothing to spoil. Upper left: that factor, which is NPO's
weight, and |y| times SimNPO's. Upper right: log-probability of the forget answers less the
retrained model's; 0 is the goal, above it they are still remembered, below it they have been pushed
too far. Lines: medians over answers; bands: quartiles. Lower left: at the end, Kolmogorov-Smirnov
distance D between the truth ratios of the forget answers and the retrained model's, and its
p-value, TOFU's forget quality. Lower right: mean loss per token of answers to retain. Dotted:
before unlearning; dashed: SimNPO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language.own_model import Perturbation
from figures.language.runs import Wanted, models_runs, source_of, study, trajectories
from llm.logs.measures import forget_quality
from llm.unlearning.runs import Run
from markov.errors import require
from markov.objectives import method_name

OWN, START, NONE = "own", "before unlearning", "none"
QUANTITIES = ("factor", "beyond")


class Referenced(NamedTuple):
    """A run with the reference that it was given.

    The reference is `OWN`, `NONE` where it needs none, or the scale of the noise.
    """

    reference: str
    run: Run


def data(context: Context) -> pd.DataFrame:
    """Return NPO beside its own reference and perturbed ones, and SimNPO: see `frame_of_runs`.

    They are on the default model, or on one of the user's own, which needs a retrained one.
    """
    chosen, own = study(context.scale), context.own
    known = own is None or own.retrained is not None
    require(known, "retrained", None, "the model retrained without the forget data")
    corners = {method_name(objective): objective for objective in chosen.objectives().values()}
    wanted = {OWN: Wanted(corners["npo"])}
    wanted |= {
        f"{scale:g}": Wanted(corners["npo"], noise=Perturbation(scale)) for scale in chosen.noises
    }
    wanted[NONE] = Wanted(corners["simnpo"])
    found = models_runs(context, list(wanted.values()))
    frame = frame_of_runs([Referenced(*pair) for pair in zip(wanted, found, strict=True)])
    return frame.assign(source=source_of(replace(context, runs=())))


def frame_of_runs(found: Sequence[Referenced]) -> pd.DataFrame:
    """Return what became of the answers under each reference, from runs of one model.

    The runs know a retrained model. Columns `kind`, `reference` (`OWN`, a scale, `NONE`, or
    `START`, before unlearning), `method`, and by kind:

        example   `run`, `epoch`, `index`, `length`, `logp`, `ref`, `retrained`, `weight`, `factor`
                  (2 sigmoid(z), the weight but for its power of the length) and `beyond` = (logp -
                  retrained) / length, nats per token
        epoch     `epoch`, `quantity` (factor or beyond), its `median` over answers and quartiles
                  `low` and `high`
        end       `distance` and `p` of truth ratios to the retrained model's, exact; `retain_loss`,
                  nats per token
    """
    frame, normalize = (
        trajectories([one.run for one in found]),
        [one.run.objective.normalize for one in found],
    )
    frame["reference"] = [found[run].reference for run in frame["run"]]
    power = frame["run"].map(dict(enumerate(normalize)))
    frame["factor"] = frame["weight"] * frame["length"] ** power
    frame["beyond"] = (frame["logp"] - frame["retrained"]) / frame["length"]
    names = [
        "run",
        "reference",
        "method",
        "epoch",
        "index",
        "length",
        "logp",
        "ref",
        "retrained",
        "weight",
    ]
    frame = frame[[*names, *QUANTITIES]]
    spread: list[dict[str, Any]] = []
    for known, own in frame.groupby(["reference", "method", "epoch"], sort=False):
        for quantity in QUANTITIES:
            quartiles = np.quantile(own[quantity].to_numpy(dtype=float), [0.25, 0.5, 0.75])
            row = zip(
                ("reference", "method", "epoch", "low", "median", "high"),
                (*known, *quartiles),
                strict=True,
            )
            spread.append({"kind": "epoch", "quantity": quantity, **dict(row)})
    ends = [_end(START, found[0].run, "original", 0)]
    ends += [_end(reference, run, "unlearned", -1) for reference, run in found]
    return pd.concat(
        [frame.assign(kind="example"), pd.DataFrame([*spread, *ends])], ignore_index=True
    )


def _end(reference: str, run: Run, model: str, place: int) -> dict[str, Any]:
    logs, method = run.logs, method_name(run.objective) if place else None
    distance = p = math.nan  # of a run that diverged so far that its model cannot be scored
    if model in logs:
        found = forget_quality(logs[model], logs["retrained"])
        distance, p = found.statistic, found.p_value
    numbers = {
        "distance": distance,
        "p": p,
        "retain_loss": float(run.epochs["retain_loss"].iloc[place]),
    }
    return {"kind": "end", "reference": reference, "method": method, **numbers}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((factor, beyond), (quality, retain)) = style.grid_figure(2, 2, 9, 6.5)
    along, looks = frame[frame["kind"] == "epoch"], _looks(frame)
    for axes, quantity in ((factor, "factor"), (beyond, "beyond")):
        for reference, look in looks.items():
            own = along[(along["quantity"] == quantity) & (along["reference"] == reference)]
            axes.plot(own["epoch"], own["median"], "o-", **look)
            axes.fill_between(
                own["epoch"], own["low"], own["high"], color=look["color"], alpha=0.1, lw=0
            )
        axes.set_xlabel("epoch")
    factor.set(ylabel="2 σ(z): weight, or |y| × weight", ylim=(0, 2.05))
    factor.set_yticks([0, 0.5, 1, 1.5, 2])
    beyond.axhline(0, color="black", lw=1, ls=":")
    beyond.set_ylabel("beyond retrained, nats per token")
    ends = frame[frame["kind"] == "end"].set_index("reference")
    _at_the_end(quality, ends, "distance", looks)
    quality.set(ylabel="D to the retrained model", ylim=(0, 1))
    own = ends.drop(index=START)
    texts = [
        f"{'SimNPO' if name == NONE else name}\np = {row['p']:.1g}" for name, row in own.iterrows()
    ]
    quality.set_xticks(range(len(texts)), texts, fontsize=7)
    _at_the_end(retain, ends, "retain_loss", looks)
    retain.set_ylabel("retain loss, nats per token")
    retain.margins(y=0.15)
    retain.set_ylim(bottom=0)
    if "source" in frame:
        figure.supxlabel(str(frame["source"].iloc[0]), fontsize=8)
    handles, labels = factor.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _at_the_end(
    axes: Axes, ends: pd.DataFrame, column: str, looks: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw a point per reference of NPO, and one for SimNPO, which has none.

    SimNPO's level and that of the start are lines.
    """
    level = ends[column].astype(float).to_dict()
    axes.axhline(level[START], color="black", lw=1, ls=":")
    axes.axhline(level[NONE], lw=1.2, ls="--", color=looks[NONE]["color"])
    own = ends.drop(index=START)
    for place, reference in enumerate(own.index):
        axes.plot(place, level[reference], "o", ms=6, color=looks[str(reference)]["color"])
    axes.set(
        xlim=(-0.5, len(own) - 0.5), xlabel="NPO's reference: its own, or perturbed at this scale"
    )
    axes.set_xticks(range(len(own)), ["SimNPO" if name == NONE else name for name in own.index])


def _looks(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return colour, width and label per reference: those of the corners for runs without noise.

    As the noise grows they are ever darker and thinner.
    """
    known = {
        OWN: (style.COLORS["npo"], 1.6, "NPO"),
        NONE: (style.COLORS["simnpo"], 1.6, "SimNPO, no reference"),
    }
    references = list(dict.fromkeys(frame.loc[frame["kind"] == "epoch", "reference"]))
    noises = [reference for reference in references if reference not in known]
    shades = matplotlib.colormaps["PuRd"]
    for place, reference in enumerate(noises):
        shade = matplotlib.colors.to_hex(shades(0.5 + 0.5 * (place + 1) / len(noises)))
        # Wide ones first, so that curves at the bound can be told apart.
        known[reference] = (
            shade,
            1.2 + 1.5 * (len(noises) - 1 - place),
            f"NPO, reference perturbed, scale {reference}",
        )
    names = ("color", "lw", "label")
    return {
        reference: {**dict(zip(names, known[reference], strict=True)), "ms": 3}
        for reference in references
    }
