"""Unlearning with given weights, on the default language model, computed.

All runs minimise NPO's loss with a factor on each example's (`importance`), of mean 1, so that they
differ in this factor and in lambda alone. The factor stays as it is along a run, and NPO's own
weight multiplies it. It is |y|^-n, or one of the weights that match the need best at the start.
Those know the retrained model, as nobody who unlearns does: they say what could be reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from figures.cache import Context, cached
from figures.language.runs import AuthorsStudy
from figures.questions.endings import ending
from figures.questions.pushing import pushes
from llm.models.answers import answer_log, responses
from llm.models.small_authors import build, sets
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.objectives import npo

LAMBDAS = (4.0,)
# Of the one that others are compared with: wider, so that their utility lies between its own.
WIDER = (1.0, 4.0, 16.0)
FIRST = "power_0"  # the same weight for all: NPO itself
OF_POWER = {f"power_{power:g}": power for power in pushes.POWERS}
# What is known of a retrained model where the factor is made of it.
ORACLES = ("nnls", "nnls_kept")
PRACTICAL = ("length_over_norm",)
NAMES = (*OF_POWER, *ORACLES, *PRACTICAL)


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A run: a training, a factor by its name, and lambda."""

    study: AuthorsStudy
    factor: str
    retain_weight: float


def wanted(studies: list[AuthorsStudy], names: tuple[str, ...] = NAMES) -> list[Weighted]:
    """Return the runs, training after training, those of one lambda before those of the next."""
    return [
        Weighted(study=study, factor=name, retain_weight=weight)
        for study in studies
        for weight in WIDER
        for name in names
        if weight in LAMBDAS or name == FIRST
    ]


def importance(context: Context, study: AuthorsStudy, name: str) -> np.ndarray:
    """Return the factors of the forget examples, of mean 1."""
    start = at_start(context, pushes.Way(study=study))
    own = start[(start["kind"] == "example") & (start["optimizer"] == "AdamW")]
    weights = (
        own["length"].to_numpy() ** -OF_POWER[name] if name in OF_POWER else own[name].to_numpy()
    )
    return weights / weights.mean()


def at_start(context: Context, way: pushes.Way) -> pd.DataFrame:
    """Return what is pushed and needed along a way, from the cache or computed now."""
    compute: Callable[[], pd.DataFrame] = lambda: pushes.compared(way)  # noqa: E731
    return cached(context, pushes.__name__, way, compute)


def unlearned(context: Context, job: Weighted) -> pd.DataFrame:
    """Return one row of measures of the model that a run leaves.

    Columns `seed`, `factor`, `retain_weight`, `status`, those of
    `figures.questions.endings.ending`, and `even`, 1 / mean of the squared factors.
    """
    models = job.study.models
    language, retrained = (
        build(models, kind, progress=False) for kind in ("original", "retrained")
    )
    forget, retain = sets(models)
    factor = importance(context, job.study, job.factor)
    settings = Unlearning(
        objective=npo(job.study.beta),
        optimization=job.study.optimization(),
        retain_term="cross_entropy",
        retain_weight=job.retain_weight,
        retain_probe=50,
    )
    own = responses(language, forget), responses(language, retain)
    weighed = torch.tensor(factor)
    found = unlearn(language.model, *own, settings, importance=weighed, progress=False)
    theirs = answer_log(retrained, forget, progress=False)
    row = {
        "seed": models.seed,
        "factor": job.factor,
        "retain_weight": job.retain_weight,
        "status": found.epochs["status"].iloc[-1],
        **ending(language, models, theirs),
        "even": 1 / np.square(factor).mean(),
    }
    return pd.DataFrame([row])
