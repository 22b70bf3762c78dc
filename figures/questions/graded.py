"""Runs on models that have read the answers to forget 12, 6, 3, 2, 1 times or never.

These are the models `partial` of `llm.models.small_authors`. Both halves are unlearnt, and the
reference has something to say of which is which. Corners are compared at one scale, so that they
differ in form only: with m the median length of the answers, those that divide by the length have
beta * m, retain_weight / m and clip / m. On an answer of m tokens such a loss is then 1/m of the
summed one, as are its retain term and its clipping, and AdamW takes no notice of a factor.

A run may keep a part of its weights only (`markov.weighting`). Where that part has a mean of 1,
whatever the corner, the retain term and the clipping are those of the summed loss: so the two
gradients are weighed against each other as they are for weights of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from figures.cache import Context, cached_each
from figures.language.runs import AuthorsStudy, study
from figures.scale import Scale
from llm.logs.log import EvaluationLog, log_truth_ratio
from llm.models.answers import answer_log, log_of, log_table
from llm.models.small_authors import DefaultModels, build, readings, sets
from llm.unlearning.runs import unlearn_in_memory
from llm.unlearning.unlearn import Unlearning
from markov.console.choices import WeightingName
from markov.objectives import AT_BETA_ZERO, CORNERS, Objective
from markov.weighting import WEIGHTINGS

Kept = tuple[str, WeightingName]  # a corner or gradient ascent, and what it keeps of its weights
START, GOAL = "partial", "retrained"
ASCENT = "gradient_ascent"
FORMS = {**CORNERS, ASCENT: (0.0, AT_BETA_ZERO[ASCENT])}  # reference and normalize
OWN: tuple[Kept, ...] = tuple((method, "own") for method in CORNERS)
PROBE = 200  # retain examples whose loss is recorded


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A model of a kind, whose answers are scored."""

    models: DefaultModels
    kind: str


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A run: the models that it starts from and is compared with, a corner, and a retain weight.

    `level` is the retain weight on the scale of summed log-probabilities.
    """

    models: DefaultModels
    method: str
    level: float
    unlearning: Unlearning


def trainings(scale: Scale) -> list[AuthorsStudy]:
    """Return the study of a scale, once for each training of the models."""
    base = study(scale)
    seeds = range(scale.trained)
    return [replace(base, models=replace(base.models, seed=seed)) for seed in seeds]


def matched(
    chosen: AuthorsStudy,
    method: str,
    level: float,
    median: float,
    weighting: WeightingName = "own",
) -> Unlearning:
    """Return how a corner, or gradient ascent, unlearns at the scale that all share.

    `median` is the length m of an answer, in tokens, on which corners coincide where their
    references do.
    """
    reference, normalize = FORMS[method]
    unit = median**normalize
    beta = chosen.beta * unit if method in CORNERS else 0.0
    # A weighting that keeps the size of weights keeps a factor on them, and one that does not makes
    # it 1.
    unit = float(WEIGHTINGS[weighting](torch.tensor([unit], dtype=torch.float64)))
    optimization = replace(chosen.optimization(), seed=chosen.models.seed)
    clip = optimization.clip
    return Unlearning(
        objective=Objective(beta, 0.0, reference, normalize),
        optimization=replace(optimization, clip=None if clip is None else clip / unit),
        retain_term="cross_entropy",
        retain_weight=level * chosen.retain_weight / unit,
        retain_probe=PROBE,
        weighting=weighting,
    )


def graded_runs(
    context: Context, levels: Sequence[float], kept: Sequence[Kept] = OWN
) -> pd.DataFrame:
    """Return a row per run, epoch and answer to forget.

    Columns `method`, `weighting`, `level`, `training`, `epoch`, `index`, `read` (how often the
    start model read the answer), `length`, `logp`, `ref`, `retrained` (nats, summed), `retain_loss`
    (nats per token), and after the last epoch `log_ratio`, the logarithm of the truth ratio. What
    is `kept` says which methods run, and with what of their weights. `levels` are
    those of the retain weight. Every run is kept as soon as it is there.
    """
    jobs = planned(context, levels, kept)
    return cached_each(context, __name__, jobs, _unlearnt)


def planned(context: Context, levels: Sequence[float], kept: Sequence[Kept] = OWN) -> list[Graded]:
    """Return the runs to make, training by training; the models are made now if need be."""
    found = list[Graded]()
    for chosen in trainings(context.scale):
        (log,) = answers(context, [Answered(models=chosen.models, kind=GOAL)])
        median = float(np.median(np.asarray(log.gold.length)))
        found += [
            Graded(
                models=chosen.models,
                method=method,
                level=level,
                unlearning=matched(chosen, method, level, median, weighting),
            )
            for method, weighting in kept
            for level in levels
        ]
    return found


def answers(context: Context, jobs: Sequence[Answered]) -> list[EvaluationLog]:
    """Return the answers of each model on the forget data, as an evaluation log."""
    tables = cached_each(context, __name__, jobs, _answered).groupby(["training", "kind"])
    found = [tables.get_group((job.models.seed, job.kind)) for job in jobs]
    return [
        log_of(table.drop(columns=["kind", "training"]), job.kind)
        for job, table in zip(jobs, found, strict=True)
    ]


def _answered(job: Answered) -> pd.DataFrame:
    language = build(job.models, job.kind, progress=False)
    table = log_table(answer_log(language, sets(job.models).forget, progress=False))
    return table.assign(kind=job.kind, training=job.models.seed)


def _unlearnt(job: Graded) -> pd.DataFrame:
    """Unlearn once, and return what `graded_runs` says of it."""
    quiet = Context(n_jobs=1, progress=False)
    kinds = [Answered(models=job.models, kind=kind) for kind in (START, GOAL)]
    start, goal = answers(quiet, kinds)
    forget, retain = sets(job.models)
    run = unlearn_in_memory(
        build(job.models, START, progress=False),
        forget,
        retain,
        job.unlearning,
        original=start,
        retrained=goal,
        progress=False,
    )
    read = dict(zip((one.index for one in forget), readings(job.models), strict=True))
    names = ["epoch", "index", "length", "logp", "ref", "retrained"]
    frame = run.examples[names].merge(run.epochs[["epoch", "retain_loss"]], on="epoch")
    last, log = run.epochs["epoch"].max(), run.logs.get("unlearned")
    if log is not None:
        ratio = dict(zip(log.index.tolist(), log_truth_ratio(log), strict=True))
        frame["log_ratio"] = frame["index"].map(ratio).where(frame["epoch"] == last)
    return frame.assign(
        method=job.method,
        weighting=job.unlearning.weighting,
        level=job.level,
        training=job.models.seed,
        read=frame["index"].map(read),
    )
