"""What if the forget set arrives as three requests, one after another? (Paper, Figure A5.)

Each request is a third of the twenty authors that the default model is to forget, unlearned from
what the one before left; the reference is the model at its arrival. Columns 1 to 3, a request each,
shaded while it is unlearned: to its left it has not been asked for, to its right it should stay
forgotten. Above, mean log-probability per token of its answers with a 95% interval over them,
beside that of the retrained model (dashed), which is the goal: a curve that rises again has come
back, one that falls below is forgotten more than never having been read. Below, Kolmogorov-Smirnov
distance D between truth ratios of these answers and the retrained model's; under the dotted line
the two cannot be told apart (p > 0.05), which with fewer answers says less. Right: what all of it
costs the answers to retain, and D of all requests done by then. One run per corner, no interval
over runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context, cache_key, cached, discard_stale
from figures.language import runs
from figures.language.runs import DEFAULT, default_log
from figures.statistics import mean_interval, smallest_distance
from llm.data.tofu import Example
from llm.logs.log import EvaluationLog, align, take
from llm.logs.measures import forget_quality
from llm.models.answers import log_of
from llm.models.small_authors import build, folder_of, sets
from llm.sweeps.parallel import several
from llm.unlearning.runs import EPOCHS
from llm.unlearning.sequential import STAGE, Sequential, by_stage, requests, sequential
from llm.unlearning.unlearn import Unlearning
from markov.files import storage
from markov.objectives import Objective, method_name

REQUESTS = 3
RETRAINED = "retrained"
LEVEL = 0.05  # of the test behind D, drawn as a line


def data(context: Context) -> pd.DataFrame:
    """Return the four corners, always on the default model: see `frame_of_requests`.

    `source` is what unlearns.
    """
    chosen = runs.study(context.scale)
    wanted = list(chosen.objectives().values())

    def compute() -> pd.DataFrame:
        quiet, kept = replace(context, progress=False), replace(context, progress=False, since=0.0)
        kinds = [
            kind for kind in (RETRAINED, "original") if not folder_of(chosen.models, kind).exists()
        ]
        works = {
            "models": [joblib.delayed(default_log)(quiet, kind) for kind in kinds],
            "requests": [joblib.delayed(_in_turn)(quiet, one) for one in wanted],
        }
        for label, jobs in works.items():
            several(label, jobs, n_jobs=context.n_jobs, progress=context.progress)
        return pd.concat([_in_turn(kept, one) for one in wanted], ignore_index=True)

    key = {
        "models": chosen.models,
        "requests": REQUESTS,
        "unlearning": [_settings(context, one) for one in wanted],
    }
    return cached(context, __name__, key, compute).assign(source=DEFAULT)


def _requests(forget: Sequence[Example]) -> tuple[tuple[Example, ...], ...]:
    """Return the forget set in three requests, or as many as there are authors."""
    return requests(forget, min(REQUESTS, len({example.author for example in forget})))


def _settings(context: Context, objective: Objective) -> Unlearning:
    """Return the settings of sweeps on the whole forget set."""
    return runs.study(context.scale).unlearning(objective, ends=True)


def _in_turn(context: Context, objective: Objective) -> pd.DataFrame:
    """Return one corner's frame, from the cache or made now, going on where it was stopped."""
    chosen, settings = runs.study(context.scale), _settings(context, objective)
    key = {"models": chosen.models, "requests": REQUESTS, "unlearning": settings}

    def compute() -> pd.DataFrame:
        folder = storage.cache_dir() / "unlearning" / cache_key(key, __name__)
        discard_stale(context, folder, folder / STAGE.format(1) / EPOCHS)
        forget, retain = sets(chosen.models)
        found = sequential(
            folder,
            lambda: build(chosen.models, "original", progress=context.progress),
            _requests(forget),
            retain,
            settings,
            progress=context.progress,
        )
        return frame_of_requests(found, default_log(context, RETRAINED))

    return cached(context, __name__, key, compute).assign(method=method_name(objective))


def frame_of_requests(found: Sequential, retrained: EvaluationLog) -> pd.DataFrame:
    """Return what became of each request after each stage, the number of requests done by then.

    Columns `kind`, `stage`, and by kind:

        request   `request` (from 1), `requested` (whether it was among those done), `logp`, the
                  mean of logp/length of its answers (nats per token) with a 95% interval over them,
                  `low` and `high`, and that under the retrained model, `retrained_logp`;
                  `ks_statistic`, D of their truth ratios to the retrained model's, its p-value
                  `forget_quality`, `examples`, and `critical`, the smallest D whose p is at most
                  0.05
        so_far    the last four of all requests done by then; `retain_loss`, nats per token, and
                  `status` of the run

    Raises `InvalidInput` as `llm.unlearning.sequential.by_stage` does.
    """
    table = by_stage(found, retrained)
    gold = found.answers[found.answers["answer"] == "gold"]
    gold = gold.assign(each=gold["logp"] / gold["length"])
    rows = []
    for row in table.to_dict("records"):
        own = gold[(gold["stage"] == row["stage"]) & (gold["request"] == row["request"])]
        interval = mean_interval(own["each"].to_numpy())
        theirs = -take(
            retrained, np.flatnonzero(np.isin(retrained.index, own["index"]))
        ).gold.average
        names = ("stage", "requested", "logp", "ks_statistic", "forget_quality", "examples")
        kept = {name: row[name] for name in names}
        numbers = {"low": interval.low, "high": interval.high, "retrained_logp": theirs.mean()}
        rows.append({"kind": "request", "request": row["request"] + 1, **kept, **numbers})
    for row in found.stages.to_dict("records"):
        done = {"kind": "so_far", "stage": row["stage"], "requested": row["stage"] > 0}
        done |= {"retain_loss": row["retain_loss"], "status": row["status"]}
        rows.append(done | _so_far(found.answers, int(row["stage"]), retrained))
    frame = pd.DataFrame(rows)
    sizes = {
        size: smallest_distance(LEVEL, int(size)) for size in frame["examples"].dropna().unique()
    }
    return frame.assign(critical=frame["examples"].map(sizes))


def _so_far(answers: pd.DataFrame, stage: int, retrained: EvaluationLog) -> dict[str, float]:
    """Return the test over all requests done by a stage."""
    own = answers[(answers["stage"] == stage) & (answers["request"] < stage)]
    if own.empty:
        return {}
    log = log_of(own.drop(columns=["stage", "request"]), f"the model of stage {stage}")
    theirs = take(retrained, np.flatnonzero(np.isin(retrained.index, log.index)))
    quality = forget_quality(log, align(log, theirs))
    return {
        "ks_statistic": quality.statistic,
        "forget_quality": quality.p_value,
        "examples": quality.examples,
    }


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that README and findings tell: what all requests together come to."""
    kept = frame[frame["kind"] == "so_far"]
    return {"so_far": kept.dropna(axis=1, how="all")}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    own, so_far = frame[frame["kind"] == "request"], frame[frame["kind"] == "so_far"]
    count = int(own["request"].max())
    figure, panels = style.grid_figure(2, count + 1, 3 * (count + 1), 5.6)
    for line in panels:
        for axes in line[1:count]:
            axes.sharey(line[0])
    for number in range(1, count + 1):
        rows, (upper, lower) = own[own["request"] == number], (line[number - 1] for line in panels)
        _curves(upper, rows, "logp", band=True)
        upper.axhline(rows["retrained_logp"].iloc[0], color="0.5", lw=1, ls="--")
        upper.set_title(f"request {number}", loc="left", fontweight="bold")
        _curves(lower, rows, "ks_statistic")
        lower.axhline(rows["critical"].iloc[0], color="0.5", lw=1, ls=":")
        for axes in (upper, lower):
            axes.axvspan(number - 1, number, color="0.93", lw=0, zorder=0)
    _curves(panels[0][count], so_far, "retain_loss")
    panels[0][count].set_title("what is to stay", loc="left", fontweight="bold")
    panels[0][count].set_ylabel("retain loss, nats per token")
    panels[0][count].set_ylim(bottom=0)
    _curves(panels[1][count], so_far.dropna(subset="ks_statistic"), "ks_statistic")
    sizes = so_far.dropna(subset="critical").drop_duplicates("stage")
    panels[1][count].plot(sizes["stage"], sizes["critical"], color="0.5", lw=1, ls=":")
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
    figure.legend(handles, [*labels, *others], loc="outside upper center", ncols=6)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame, column: str, *, band: bool = False) -> None:
    for method, own in rows.groupby("method", sort=False):
        color = style.COLORS[str(method)]
        axes.plot(
            own["stage"], own[column], "o-", ms=3, color=color, label=style.LABELS[str(method)]
        )
        if band:
            axes.fill_between(own["stage"], own["low"], own["high"], color=color, alpha=0.12, lw=0)
