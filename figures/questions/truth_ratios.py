"""How well does a model tell the right answer from wrong ones?

Drawn are truth ratios of a forget set, as in Figures 1b and 2.

The truth ratio R of an answer divides the probability per token of wrong answers by that of the
right one in other words: below 1 (dotted) the model prefers the right one. A model has forgotten
well where its ratios are distributed as those of the model retrained without the answers (grey).
The default model is drawn twice. On top it never read half of the answers that it unlearns, and the
other half up to twelve times: one panel each. Below it has read all of them equally often, and so
has any other model: there the answers are split in halves by how strongly they were memorised, that
is by how much more likely, per token, the model before unlearning finds them than the retrained
one; and in halves by length. Densities are kernel estimates in log R, where a ratio and its inverse
are equally far from 1; of R itself they would be skewed and spill below 0. Legend: the
Kolmogorov-Smirnov distance D to the retrained model on the same half, and its p-value, TOFU's
forget quality; neither depends on the scale. A model whose D is larger in one half than in the
other has forgotten unevenly. Ratios more than a factor of 100 beyond those of retrained and
original, as after a collapse, are off the axis and counted in the legend. The paper shows forget05,
and does not say how it splits by memorisation.

Of the default model densities are those of the first training, and D is the mean over trainings.
Right: that D with 95% intervals over trainings (Student's t); dots are trainings, filled those of
the left half and open those of the right one. Grey: D between the retrained models of any two
trainings, on either half; nearer no method can be told to come.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context
from figures.language import runs, studies, sweeps, truth_ratio
from figures.language.sources import Models
from figures.language.truth_ratio import EVERY, READ, frame_of_models, known_splits, over_trainings
from figures.questions import partial_runs
from figures.questions.claim_table import Claimed, claim_table
from figures.questions.graded import trainings
from figures.statistics import mean_interval
from llm.logs.log import log_truth_ratio
from llm.logs.measures import ranks_test, tied_ranks
from markov.objectives import CORNERS

PARTIAL = f"{runs.DEFAULT}, half of it never read"
BEFORE = "original"
PART = ["source", "split", "half"]


def data(context: Context) -> pd.DataFrame:
    """Return the frame of the default model, or of the user's own runs, and that of logs.

    The columns are those of `figures.language.truth_ratio.frame_of_models`, and of the default
    model the further kinds of `frame_of_trainings`. It unlearns twice: having read all that it is
    to forget, and having never read half of it.
    """
    place, plain = context.study, sweeps.for_logs(context)
    if context.runs or context.own or plain.study is not None:
        return truth_ratio.data(context)
    given = truth_ratio.of_logs(plain)  # first, since they may be missing
    partial = partial_runs.logs_of_trainings(context, PARTIAL)
    read = partial_runs.read_halves(trainings(context.scale)[0].models)
    frames = [frame_of_trainings(partial, read)]
    if place is None:
        own = runs.models_of(runs.runs(context), runs.DEFAULT)
        frames.append(frame_of_models(own))
    else:
        found = studies.logs_of(place, runs.DEFAULT)
        frames.append(frame_of_trainings(dict(enumerate(found))))
    return pd.concat([*frames, *given], ignore_index=True)


def frame_of_trainings(
    found: Mapping[int, Models], read: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """Return the rows of one source with means over trainings, given its logs by training.

    All that is no mean is that of the first training. Further kinds of rows:

        training   `split`, `half`, `model`, `seed`, `distance`: D of each training
        floor      `split`, `half`, `distance`: D between the retrained models of two trainings, on
                   the half of the first of the two
    """
    every = {seed: frame_of_models(one, read=read) for seed, one in found.items()}
    known = ["source", "split", "half", "model", "distance"]
    parts = [over_trainings([*every.values()])]
    for seed, frame in every.items():
        own = frame.loc[frame["kind"] == "statistic", known]
        parts.append(own.assign(kind="training", seed=seed))
    parts.append(_floors(found, every))
    return pd.concat(parts, ignore_index=True)


def _floors(found: Mapping[int, Models], every: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    ratios = {
        seed: pd.Series(log_truth_ratio(one.retrained), index=one.retrained.index)
        for seed, one in found.items()
    }
    rows = []
    for one, other in itertools.combinations(found, 2):
        frame = every[one]
        answers = frame[(frame["kind"] == "example") & (frame["model"] == "retrained")]
        for split in known_splits(answers):
            for half, own in answers.groupby(split):
                pair = [ratios[seed].loc[own["index"]].to_numpy() for seed in (one, other)]
                distance = ranks_test(*tied_ranks(*pair)).statistic
                rows.append((found[one].source, split, half, distance))
    return pd.DataFrame(rows, columns=[*PART, "distance"]).assign(kind="floor")


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that README and findings tell.

    `parts` has D of every half and model with its interval, and the least and the largest D of two
    retrained models on it. Of the model that never read half of the answers, `moved` has by how
    much D grew while it unlearned, and `claims` what is claimed of it.
    """
    found = {"parts": parts(frame)}
    own = frame[(frame["kind"] == "training") & (frame["split"] == "read_half")]
    if own.empty:
        return found
    table = own.pivot(index="seed", columns=["half", "model"], values="distance").sort_index()
    # Of a corner whose runs have all diverged nothing is known.
    every = itertools.product(READ["read_half"], (BEFORE, *CORNERS))
    table = table.reindex(columns=pd.MultiIndex.from_tuples(every, names=table.columns.names))
    return {**found, "moved": moved(table), "claims": claim_table(claims(table))}


def parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return D of every half and model: its mean, with the interval where there is one."""
    kept = frame[frame["kind"] == "statistic"]
    names = [*PART, "model", "count", "median", "distance", "distance_low", "distance_high", "p"]
    kept = kept[[name for name in names if name in kept]]
    floor = frame[frame["kind"] == "floor"].groupby(PART)["distance"].agg(["min", "max"])
    floor = floor.rename(columns={"min": "floor_low", "max": "floor_high"}).reset_index()
    return kept.merge(floor, on=PART, how="left")


def moved(table: pd.DataFrame) -> pd.DataFrame:
    """Return by how much D grew, by half and method, from D of each training."""
    rows = []
    for half, model in table.columns:
        if model != BEFORE:
            grown = table[half, model] - table[half, BEFORE]
            rows.append({"half": half, "model": model, **mean_interval(grown.to_numpy())._asdict()})
    return pd.DataFrame(rows)


def claims(table: pd.DataFrame) -> list[Claimed]:
    """Return what is claimed of the half that was never read, and of the other one.

    `table` has D of each training in a row, by half and model.
    """

    def above(one: str, other: str, half: str = "never") -> np.ndarray:
        return (table[half, one] - table[half, other]).to_numpy()

    free, normalised = (
        above("npo", f"{name}_npo") for name in ("reference_free", "length_normalized")
    )
    both = above("npo", "simnpo")
    texts = {
        "away": ("1b", "NPO drives the half that was never read away", above("npo", BEFORE)),
        "spared": ("1b", "SimNPO leaves the half that was never read nearer than NPO", both),
        "read": (
            "1b",
            "SimNPO brings the half that was read nearer than NPO",
            above("npo", "simnpo", "read"),
        ),
        "away, SimNPO": (
            "",
            "SimNPO drives the half that was never read away",
            above("simnpo", BEFORE),
        ),
        "reference": ("", "dropping the reference alone leaves the half never read nearer", free),
        "length": (
            "",
            "dividing by the length alone leaves the half never read nearer",
            normalised,
        ),
        "interaction": (
            "",
            "both together leave the half never read nearer than the two apart do",
            both - free - normalised,
        ),
    }
    return [Claimed(name, *own[:2], "D", own[2]) for name, own in texts.items()]


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    if not (frame["kind"] == "training").any():
        return truth_ratio.plot(frame)
    figure, rows = truth_ratio.drawn(frame, more=1)
    for own, split, (*_, axes) in rows:
        own = own[own["split"] == split]
        if (own["kind"] == "training").any():
            _distances(axes, own, EVERY[split])
        else:
            axes.set_visible(False)
    return figure


def _distances(axes: Axes, own: pd.DataFrame, halves: Mapping[str, str]) -> None:
    """Draw D of both halves of a split, in a line for each model."""
    floor = own.loc[own["kind"] == "floor", "distance"]
    if len(floor):
        axes.axvspan(floor.min(), floor.max(), color="0.85", lw=0, zorder=0)
    means, single = (own[own["kind"] == kind] for kind in ("statistic", "training"))
    known = dict.fromkeys([BEFORE, *CORNERS, *means["model"]])
    models = [model for model in known if model in set(means["model"]) - {"retrained"}]
    for half, shift in zip(halves, (0.16, -0.16), strict=True):
        for place, model in enumerate(models):
            color = style.COLORS.get(str(model), "black")
            face = color if half == next(iter(halves)) else "white"
            at = shift - place
            dots = single[(single["half"] == half) & (single["model"] == model)]["distance"]
            axes.plot(dots, [at - 0.11] * len(dots), ".", color=color, ms=3, alpha=0.6)
            row = means[(means["half"] == half) & (means["model"] == model)].iloc[0]
            ends = [[row["distance"] - row.get("distance_low", np.nan)]]
            ends.append([row.get("distance_high", np.nan) - row["distance"]])
            look: Any = {"color": color, "mfc": face, "ms": 5, "lw": 1, "capsize": 2}
            axes.errorbar(row["distance"], at, xerr=np.nan_to_num(ends), fmt="o", **look)
    labels = ["before" if one == BEFORE else style.LABELS.get(str(one), str(one)) for one in models]
    axes.set_yticks([-place for place in range(len(models))], labels)
    axes.set_title(f"{single['seed'].nunique()} trainings", loc="left")
    axes.set(xlim=(-0.02, 1.02), ylim=(-len(models) + 0.45, 1.3), xlabel="D to the retrained model")
    handles = [
        Line2D([], [], marker="o", ls="", color="black", mfc=face, ms=5)
        for face in ("black", "white")
    ]
    handles.append(Line2D([], [], color="0.85", lw=6))
    axes.legend(handles, [*halves, "two retrained models"], loc="upper center", ncols=3, fontsize=7)
