"""Requests in turn in one training of the default model, and what is left after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from figures.cache import Context, cache_key, discard_stale
from figures.language.runs import AuthorsStudy
from figures.questions.graded import Answered, answers
from figures.questions.partial_runs import at_paper_settings
from figures.statistics import mean_interval, smallest_distance
from llm.data.tofu import Example
from llm.logs.log import EvaluationLog, align, take
from llm.logs.measures import forget_quality
from llm.models.answers import log_of
from llm.models.small_authors import build, sets
from llm.unlearning.runs import EPOCHS
from llm.unlearning.sequential import STAGE, Sequential, by_stage, requests, sequential
from markov.files import storage
from markov.objectives import Objective, method_name

REQUESTS = 3
RETRAINED = "retrained"
LEVEL = 0.05  # of the test behind D, drawn as a line


class Job(NamedTuple):
    """All requests in turn, in one training of the default model, under one objective."""

    study: AuthorsStudy
    objective: Objective


def requests_of(forget: Sequence[Example]) -> tuple[tuple[Example, ...], ...]:
    """Return the forget set in three requests, or as many as there are authors."""
    return requests(forget, min(REQUESTS, len({example.author for example in forget})))


def in_turn(context: Context, job: Job) -> pd.DataFrame:
    """Return the frame of one corner in one training, going on where it was stopped."""
    models, settings = job.study.models, at_paper_settings(job.study, job.objective)
    key = {"models": models, "requests": REQUESTS, "unlearning": settings}
    folder = storage.cache_dir() / "unlearning" / cache_key(key, __name__)
    discard_stale(context, folder, folder / STAGE.format(1) / EPOCHS)
    forget, retain = sets(models)
    found = sequential(
        folder,
        lambda: build(models, "original", progress=False),
        requests_of(forget),
        retain,
        settings,
        progress=False,
    )
    quiet = Context(n_jobs=1, progress=False)
    (retrained,) = answers(quiet, [Answered(models=models, kind=RETRAINED)])
    known = {"method": method_name(job.objective), "training": models.seed}
    return frame_of_requests(found, retrained).assign(**known)


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
