"""Runs of the corners over one grid of settings, on some authors and on others, computed.

The grid is laid on the scale of summed log-probabilities: with m tokens, about the median length of
an answer, a corner that divides by the length has beta * m, retain_weight / m and clip / m (see
`figures.questions.graded`). So all corners have the same settings, and as many.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pandas as pd

from figures.cache import Context
from figures.language.runs import AuthorsStudy, study
from figures.questions import graded
from figures.questions.endings import ending
from figures.scale import Scale
from llm.logs.log import EvaluationLog
from llm.models.answers import responses
from llm.models.small_authors import DefaultModels, build, sets
from llm.unlearning.unlearn import unlearn
from markov.objectives import CORNERS

MEDIAN = 40.0  # tokens of an answer
BETAS = (0.025, 0.05, 0.1, 0.2)
LEVELS = (1.0, 4.0, 16.0, 64.0)  # retain weights
# Settings are chosen on these trainings, each of authors of its own.
CHOSEN_ON = (5,)
KINDS = ("original", "retrained")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """A run: a training, a corner, its beta and its retain weight, both on the summed scale."""

    study: AuthorsStudy
    method: str
    beta: float
    level: float


@dataclass(frozen=True, kw_only=True)
class Start:
    """A model that nothing was done to."""

    models: DefaultModels
    kind: str


def chosen_on(scale: Scale) -> list[AuthorsStudy]:
    """Return the trainings on which settings are chosen; none shares its authors with another."""
    base = study(scale)
    found = []
    for seed in CHOSEN_ON:
        authors = replace(base.models.authors, seed=seed)
        found.append(replace(base, models=replace(base.models, authors=authors, seed=seed)))
    return found


def settings() -> list[tuple[float, float]]:
    """Return the settings of every corner: beta and retain weight."""
    return list(itertools.product(BETAS, LEVELS))


def tried(studies: list[AuthorsStudy]) -> list[Tuned]:
    """Return the runs of a grid, training after training."""
    return [
        Tuned(study=own, method=method, beta=beta, level=level)
        for own in studies
        for method in CORNERS
        for beta, level in settings()
    ]


def starts(studies: list[AuthorsStudy]) -> list[Start]:
    """Return the models before unlearning and the retrained ones."""
    return [Start(models=own.models, kind=kind) for own in studies for kind in KINDS]


def started(job: Start) -> pd.DataFrame:
    """Return one row of measures of a model that nothing was done to, with `method` its kind."""
    found = ending(build(job.models, job.kind, progress=False), job.models, _goal(job.models))
    return pd.DataFrame([{"seed": job.models.seed, "method": job.kind, **found}])


def unlearned(job: Tuned) -> pd.DataFrame:
    """Return one row of measures of the model that a run leaves.

    Columns `seed`, `method`, `beta`, `level`, `status`, and those of
    `figures.questions.endings.ending`.
    """
    models = job.study.models
    language = build(models, "original", progress=False)
    own = [responses(language, part) for part in sets(models)]
    chosen = replace(job.study, beta=job.beta, retain_weight=1.0)
    how = graded.matched(chosen, job.method, job.level, MEDIAN)
    found = unlearn(language.model, own[0], own[1], how, progress=False)
    row = {
        "seed": models.seed,
        "method": job.method,
        "beta": job.beta,
        "level": job.level,
        "status": found.epochs["status"].iloc[-1],
    }
    return pd.DataFrame([row | ending(language, models, _goal(models))])


def _goal(models: DefaultModels) -> EvaluationLog:
    quiet = Context(n_jobs=1, progress=False)
    (log,) = graded.answers(quiet, [graded.Answered(models=models, kind=graded.GOAL)])
    return log
