"""Runs at the paper's settings on models that never read half of what they are to forget.

The models are those that are called `partial` in `llm.models.small_authors`. All answers are
unlearnt, those that were never read among them, by each corner in each training of the model. The
figure `reference_or_length` has such runs with the scales of the corners matched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from figures.cache import Context, cached_each
from figures.language.runs import AuthorsStudy
from figures.language.sources import Models, models
from figures.questions.graded import GOAL, START, Answered, answers, trainings
from llm.models.answers import log_of, log_table
from llm.models.small_authors import DefaultModels, build, readings, sets
from llm.unlearning.runs import unlearn_in_memory
from llm.unlearning.unlearn import Unlearning
from markov.objectives import Objective, method_name


class Job(NamedTuple):
    """A run: the training that it starts from, and how it unlearns."""

    models: DefaultModels
    unlearning: Unlearning


def at_paper_settings(chosen: AuthorsStudy, objective: Objective) -> Unlearning:
    """Return how a corner unlearns in a training, in an order of batches that is the training's."""
    settings = chosen.unlearning(objective, ends=True)
    order = replace(settings.optimization, seed=chosen.models.seed)
    return replace(settings, optimization=order)


def planned(context: Context) -> list[Job]:
    """Return the runs to make: every corner in every training."""
    return [
        Job(one.models, at_paper_settings(one, objective))
        for one in trainings(context.scale)
        for objective in one.objectives().values()
    ]


def logs_of_trainings(context: Context, source: str) -> dict[int, Models]:
    """Return the logs of the forget data by training: of its two models, and of what corners leave.

    A run that diverged so far that its model cannot be scored is left out. Every run is kept as
    soon as it is there.
    """
    jobs = planned(context)
    every = {job.models.seed: job.models for job in jobs}
    kinds = [Answered(models=one, kind=kind) for one in every.values() for kind in (START, GOAL)]
    known = answers(context, kinds)
    tables = cached_each(context, __name__, jobs, unlearnt)
    found = {}
    for place, seed in enumerate(every):
        own = tables[tables["training"] == seed]
        unlearned = {
            str(method): log_of(table.drop(columns=["training", "method"]), str(method))
            for method, table in own.groupby("method", sort=False)
        }
        start, goal = known[2 * place : 2 * place + 2]
        found[seed] = models(source, start, goal, unlearned)
    return found


def unlearnt(job: Job) -> pd.DataFrame:
    """Unlearn once, and return how the model then scores the forget data (see `log_table`).

    There are no rows of a run that diverged so far that its model cannot be scored.
    """
    quiet = Context(n_jobs=1, progress=False)
    (start,) = answers(quiet, [Answered(models=job.models, kind=START)])
    forget, retain = sets(job.models)
    language = build(job.models, START, progress=False)
    run = unlearn_in_memory(
        language, forget, retain, job.unlearning, original=start, progress=False
    )
    log = run.logs.get("unlearned")
    table = log_table(start).iloc[:0] if log is None else log_table(log)
    return table.assign(training=job.models.seed, method=method_name(run.objective))


def read_halves(settings: DefaultModels) -> Mapping[int, str]:
    """Return of each answer to forget, by its index, whether it was read or never."""
    forget = sets(settings).forget
    return {
        one.index: "read" if times else "never"
        for one, times in zip(forget, readings(settings), strict=True)
    }
