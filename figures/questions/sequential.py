"""What if the forget set arrives as three requests, one after another? (Paper, Figure A5.)

Each request is a third of the twenty authors that the default model is to forget, unlearned from
what the one before left; the reference is the model at its arrival. Columns 1 to 3, a request each,
shaded while it is unlearned: to its left it has not been asked for, to its right it should stay
forgotten. Above, mean log-probability per token of its answers, beside that of the retrained model
(dashed), which is the goal: a curve that rises again has come back, one that falls below is
forgotten more than never having been read. Below, Kolmogorov-Smirnov distance D between truth
ratios of these answers and the retrained model's; under the dotted line the two cannot be told
apart (p > 0.05), which with fewer answers says less. Grey: D between the retrained models of any
two trainings. Right: what all of it costs the answers to retain, and D of all requests done by
then. Lines are means over trainings of the model, bands 95% intervals over them (Student's t); with
a single training bands are over answers. The paper's settings, so that corners differ in how much
they forget: what is kept is to be read beside D.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import style
from figures.cache import Context, cached_each, is_cached
from figures.language.runs import DEFAULT
from figures.questions import sequential_runs
from figures.questions.claim_table import Claimed, claim_table
from figures.questions.graded import Answered, answers, trainings
from figures.questions.sequential_runs import LEVEL, RETRAINED, Job, in_turn, requests_of
from figures.statistics import mean_interval
from llm.data.tofu import Example
from llm.logs.log import EvaluationLog, take
from llm.logs.measures import forget_quality
from llm.models.small_authors import folder_of, sets

FLOOR = "0.85"
TOLD = ("retain_loss", "ks_statistic")  # of all requests together


def data(context: Context) -> pd.DataFrame:
    """Return the four corners in every training, always of the default model.

    The columns are those of `frame_of_requests`, and `source`, which is what unlearns, `method`,
    and `training`. Rows of kind floor have no method: see `floors`.
    """
    every = trainings(context.scale)
    jobs = [Job(one, law) for one in every for law in one.objectives().values()]
    kinds = [Answered(models=one.models, kind=RETRAINED) for one in every]
    logs = answers(context, [*kinds, *_to_make(context, jobs)])[: len(kinds)]
    quiet = replace(context, progress=False)
    frame = cached_each(context, sequential_runs.__name__, jobs, partial(in_turn, quiet))
    parts = requests_of(sets(every[0].models).forget)
    return pd.concat([frame, floors(logs, parts)], ignore_index=True).assign(source=DEFAULT)


def _to_make(context: Context, jobs: Sequence[Job]) -> list[Answered]:
    """Return the original models that are to be made, which each is in one process."""
    left = [job for job in jobs if not is_cached(context, sequential_runs.__name__, job)]
    models = dict.fromkeys(job.study.models for job in left)
    kind = "original"
    return [Answered(models=one, kind=kind) for one in models if not folder_of(one, kind).exists()]


def floors(logs: Sequence[EvaluationLog], parts: Sequence[Sequence[Example]]) -> pd.DataFrame:
    """Return D between any two retrained models, on each request and on the first few together.

    The rows are of kind floor: `ks_statistic` of a pair, with the `request`, from 1, or with the
    `stage` by which as many requests are done.
    """
    indices = [[example.index for example in part] for part in parts]
    asked: list[tuple[dict[str, int], list[int]]] = [
        ({"request": place}, own) for place, own in enumerate(indices, start=1)
    ]
    for stage in range(1, len(parts) + 1):
        asked.append(({"stage": stage}, list(itertools.chain(*indices[:stage]))))
    rows = [
        {"kind": "floor", **where, "ks_statistic": _distance(one, other, own)}
        for where, own in asked
        for one, other in itertools.combinations(logs, 2)
    ]
    return pd.DataFrame(rows, columns=["kind", "request", "stage", "ks_statistic"])


def _distance(one: EvaluationLog, other: EvaluationLog, indices: Sequence[int]) -> float:
    parts = [take(log, np.flatnonzero(np.isin(log.index, indices))) for log in (one, other)]
    return forget_quality(*parts).statistic


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what all requests together come to, with intervals over trainings, and the claims.

    `so_far` has a row per method and stage with the mean, `low` and `high` of each quantity; `came
    back` by how much the first request's log-probability per token rose after it was forgotten;
    `floor` D between two retrained models on all requests.
    """
    so_far = frame[frame["kind"] == "so_far"]
    means = [
        {"quantity": name, "method": method, "stage": int(stage), **estimate}
        for name in TOLD
        for (method, stage), estimate in _means(so_far, name)
    ]
    own = frame[(frame["kind"] == "floor") & (frame["stage"] == frame["stage"].max())]
    pairs = own["ks_statistic"]
    band = {"value": pairs.mean(), "least": pairs.min(), "largest": pairs.max()}
    return {
        "so_far": pd.DataFrame(means),
        "came_back": came_back(frame),
        "floor": pd.DataFrame([{**band, "pairs": len(pairs)}]),
        "claims": claim_table(claims(frame)),
    }


def _means(rows: pd.DataFrame, column: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield mean and interval over trainings of a column, by method and stage."""
    known = rows.dropna(subset=column)
    for place, own in known.groupby(["method", "stage"], sort=False):
        yield place, mean_interval(own[column].to_numpy(dtype=float))._asdict()


def came_back(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how much of the first request's log-probability came back, by method, over trainings.

    It is the rise from the stage at which it was forgotten to the last, in nats per token.
    """
    own = frame[(frame["kind"] == "request") & (frame["request"] == 1)]
    wide = own.pivot(index=["method", "training"], columns="stage", values="logp")
    rise = wide[wide.columns.max()] - wide[1]
    rows = [
        {"method": method, **mean_interval(rise.loc[method].to_numpy())._asdict()}
        for method in dict.fromkeys(own["method"])
    ]
    return pd.DataFrame(rows)


def claims(frame: pd.DataFrame) -> list[Claimed]:
    """Return what is claimed of the model after all requests, with the numbers of each training."""
    so_far = frame[frame["kind"] == "so_far"]
    last = so_far[so_far["stage"] == so_far["stage"].max()]
    loss, distance = (
        last.pivot(index="training", columns="method", values=name).sort_index() for name in TOLD
    )

    def lower(table: pd.DataFrame, method: str) -> np.ndarray:
        return (table["npo"] - table[method]).to_numpy()

    kept, nearer = "nats per token", "D"
    return [
        Claimed(
            "kept",
            "A5",
            "after all requests SimNPO's loss on the answers to retain lies below NPO's",
            kept,
            lower(loss, "simnpo"),
        ),
        Claimed(
            "nearer",
            "A5",
            "after all requests SimNPO is nearer to the retrained model than NPO",
            nearer,
            lower(distance, "simnpo"),
        ),
        Claimed(
            "kept, reference",
            "",
            "dropping the reference alone lowers NPO's loss on the answers to retain",
            kept,
            lower(loss, "reference_free_npo"),
        ),
        Claimed(
            "kept, length",
            "",
            "dividing by the length alone lowers NPO's loss on the answers to retain",
            kept,
            lower(loss, "length_normalized_npo"),
        ),
    ]


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    own, so_far = frame[frame["kind"] == "request"], frame[frame["kind"] == "so_far"]
    floor = frame[frame["kind"] == "floor"]
    count = int(own["request"].max())
    figure, panels = style.grid_figure(2, count + 1, 3 * (count + 1), 5.6)
    for line in panels:
        for axes in line[1:count]:
            axes.sharey(line[0])
    for number in range(1, count + 1):
        rows, (upper, lower) = own[own["request"] == number], (line[number - 1] for line in panels)
        _curves(upper, rows, "logp")
        upper.axhline(rows["retrained_logp"].mean(), color="0.5", lw=1, ls="--")
        upper.set_title(f"request {number}", loc="left", fontweight="bold")
        _curves(lower, rows, "ks_statistic")
        lower.axhline(rows["critical"].iloc[0], color="0.5", lw=1, ls=":")
        band = floor.loc[floor["request"] == number, "ks_statistic"]
        if len(band):
            lower.axhspan(band.min(), band.max(), color=FLOOR, lw=1, zorder=0.5)
        for axes in (upper, lower):
            axes.axvspan(number - 1, number, color="0.95", lw=0, zorder=0)
    _curves(panels[0][count], so_far, "retain_loss")
    panels[0][count].set_title("what is to stay", loc="left", fontweight="bold")
    panels[0][count].set_ylabel("retain loss, nats per token")
    # Of few trainings intervals are so wide that they would leave no room for the lines.
    logp = own[["logp", "retrained_logp"]].to_numpy(dtype=float)
    room = 0.15 * float(np.ptp(logp))
    panels[0][0].set_ylim(logp.min() - room, logp.max() + room)
    panels[0][count].set_ylim(0, 1.3 * float(so_far["retain_loss"].max()))
    _curves(panels[1][count], so_far.dropna(subset="ks_statistic"), "ks_statistic")
    sizes = so_far.dropna(subset="critical").drop_duplicates("stage")
    panels[1][count].plot(sizes["stage"], sizes["critical"], color="0.5", lw=1, ls=":")
    if len(floor):
        ends = floor.groupby("stage")["ks_statistic"].agg(["min", "max"])
        panels[1][count].fill_between(
            ends.index, ends["min"], ends["max"], color=FLOOR, lw=1, zorder=0.5
        )
    panels[1][count].set_title("all requests so far", loc="left", fontweight="bold")
    for axes in panels[1]:
        axes.set(ylim=(0, 1), xlabel="requests done")
    panels[0][0].set_ylabel("log π / |y|, nats per token")
    panels[1][0].set_ylabel("D to the retrained model")
    for line in panels:
        for axes in line:
            axes.set(xlim=(-0.1, count + 0.1), xticks=range(count + 1))
    handles, labels = panels[0][0].get_legend_handles_labels()
    others = {"retrained model": "--", f"D of p = {LEVEL:g}": ":"}
    handles += [Line2D([], [], color="0.5", lw=1, ls=ls) for ls in others.values()]
    labels += [*others]
    if len(floor):
        handles.append(Patch(color=FLOOR, lw=0))
        labels.append("two retrained models")
    figure.legend(handles, labels, loc="outside upper center", ncols=7)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draw a line per method, the mean over trainings, with intervals over them as a band.

    Of a single training, the band is over answers where the rows have one.
    """
    single = rows["training"].nunique() == 1
    for method in dict.fromkeys(rows["method"]):
        own = rows[rows["method"] == method]
        color = style.COLORS[str(method)]
        if single:
            ends = own[["low", "high"]] if column == "logp" else np.nan
            estimates = own.assign(value=own[column])
            estimates[["low", "high"]] = ends
            x = own["stage"].to_numpy()
            found = estimates[["value", "low", "high"]].to_numpy(dtype=float)
        else:
            known = [(stage, one) for (_, stage), one in _means(own, column)]
            x = np.array([stage for stage, _ in known])
            found = np.array([[one["value"], one["low"], one["high"]] for _, one in known])
        label = style.LABELS[str(method)]
        style.band(axes, x, found.T, color, "o-", ms=3, label=label)
