"""The sweeps behind figures of language models: many methods on one model.

The model is the default one or one of the user's own.

All figures share one sweep (`llm.sweeps.sweep`) in the cache, named by what unlearns and the code
behind it, so that a run is made once whichever figure asks for it. It differs from the runs of
`figures.language.runs` in what is recorded: every model is evaluated on all four sets of TOFU, and
no gradients are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import joblib
import pandas as pd

from figures.cache import Context, cache_key, discard_stale, is_fresh
from figures.language import plane, studies
from figures.language.runs import AuthorsStudy, own_epochs, study
from figures.scale import Scale
from llm.data.splits import checked
from llm.jobs import study_settings
from llm.jobs.settings import lora_of
from llm.jobs.study_settings import Study, described
from llm.jobs.studying import studied
from llm.logs.reading import OPEN_UNLEARNING
from llm.models.small import kept_model
from llm.models.small_authors import DefaultModels, build, folder_of
from llm.models.source import ModelOptions
from llm.sweeps import sweep
from llm.sweeps.along import epochs
from llm.sweeps.parallel import several
from llm.sweeps.sweep import BASELINES, PlannedRun, Task
from llm.unlearning.methods import methods
from llm.unlearning.runs import EPOCHS, MODEL, Run, read_run
from markov.errors import require
from markov.files import folders, leftovers, storage
from markov.objectives import CORNERS

MEASURED = (1, 3)  # most change comes early, and evaluating takes its time


def corner_words(chosen: AuthorsStudy) -> tuple[str, ...]:
    """Return the four corners of the family in words, at the study's settings."""
    found = []
    for name, (_, normalize) in CORNERS.items():
        beta, weight = (chosen.beta, chosen.retain_weight)
        if normalize:
            beta, weight = (chosen.beta_per_token, chosen.retain_weight_per_token)
        found.append(f"{name}:{beta:g}@{weight:g}")
    return tuple(found)


def table_words(chosen: AuthorsStudy) -> tuple[str, ...]:
    """Return the paper's table and both ablations."""
    return ("gradient_ascent", f"grad_diff@{chosen.retain_weight:g}", *corner_words(chosen))


def measured_epochs(chosen: AuthorsStudy) -> tuple[int, ...]:
    """Return the epochs after which the corners are evaluated on their way.

    Most change comes early, and evaluating takes its time.
    """
    return tuple(epoch for epoch in MEASURED if epoch < chosen.epochs)


def task_of(context: Context) -> Task:
    """Return what unlearns what.

    It is the model of the user's own that the context names, or the default one, built if need be.
    Raises `InvalidInput` for an own model without a retrained one, which every measure of
    forgetting here needs, and for data of one's own without all four sets.
    """
    own = context.own
    if own is not None:
        require(
            own.retrained is not None,
            "retrained",
            None,
            "the model retrained without the forget data",
        )
        assert own.retrained is not None
        task = Task(
            options=own.options(),
            retrained=own.retrained,
            data=own.data,
            retain_data=own.retain_data,
        )
        checked(task.sets())  # these figures are of measures that need all of them
        return task
    models = study(context.scale).models
    absent = [kind for kind in BASELINES if kept_model(folder_of(models, kind)) is None]
    if absent:
        jobs = [joblib.delayed(build)(models, kind, progress=False) for kind in absent]
        several("models", jobs, n_jobs=context.n_jobs, progress=context.progress)
    return default_task(models)


def default_task(models: DefaultModels) -> Task:
    """Return what unlearns what where it is the default model, which need not be there yet."""
    # By their names, where they have any: these stay the same wherever the cache lies.
    names = {
        kind: f"authors:{kind}" if models == DefaultModels() else str(folder_of(models, kind))
        for kind in BASELINES
    }
    options = ModelOptions(model=names["original"])
    data = f"authors:forget{models.percent:02}"
    return Task(
        options=options,
        retrained=names["retrained"],
        data=data,
        authors=models.authors,
        save_models=False,
    )


def runs_of(context: Context, words: Sequence[str]) -> list[PlannedRun]:
    """Return the runs of methods in words.

    Their optimisation is that of the study, or of the user's own model.
    """
    chosen, own = _chosen(context), context.own
    every = chosen.optimization() if own is None else own.optimization(chosen.optimization())
    corners = corner_words(chosen)
    return [
        PlannedRun(
            method=one,
            optimization=every,
            measured=measured_epochs(chosen) if one.word in corners else (),
            lora=None if own is None else lora_of(own.lora_rank),
        )
        for one in methods(words)
    ]


def _chosen(context: Context) -> AuthorsStudy:
    """Return the study, with as many epochs as the user's own model takes."""
    chosen, own = study(context.scale), context.own
    return chosen if own is None else replace(chosen, epochs=own_epochs(context, own))


def folder_for(context: Context, task: Task) -> Path:
    """Return the folder where the sweep of a task lies."""
    every, own = _chosen(context).optimization(), context.own
    task = replace(task, save_models=False)  # what is kept changes no number
    key = {"task": task, "optimization": every if own is None else own.optimization(every)}
    if own is not None and own.lora_rank is not None:
        key["lora"] = lora_of(own.lora_rank)
    return storage.cache_dir() / "sweeps" / cache_key(key, __name__)


def swept(context: Context, words: Sequence[str], *, models: bool = False) -> pd.DataFrame:
    """Return all measures of methods in words, of the original model and of the retrained one.

    See `llm.sweeps.sweep.sweep`. With `models` those of the runs on the default model are kept, for
    whoever goes on from them (see `corner_runs`). A study has been made: of it these are the
    measures of the same methods, at the settings that it has of them.
    """
    if context.study is not None:
        return studies.measures_of(context.study, {plane.method_of(word) for word in words})
    task, runs = task_of(context), runs_of(context, words)
    folder = folder_for(context, task)
    for name in (*BASELINES, *(run.folder for run in runs)):
        discard_stale(context, folder / name, folder / name / OPEN_UNLEARNING)
    task = replace(task, save_models=models and context.own is None)
    return sweep.sweep(folder, task, runs, n_jobs=context.n_jobs, progress=context.progress)


def corner_runs(context: Context) -> list[Run] | None:
    """Return the runs of the four corners on the default model that `swept` has made.

    They end at the very models of the runs `ends` of `figures.language.runs`, and come in the order
    of these. Returns None unless all are there with their models, and none is older than what the
    user wants.
    """
    chosen = study(context.scale)
    folder = folder_for(context, default_task(chosen.models))
    places = [folder / run.folder for run in runs_of(context, corner_words(chosen))]
    there = all(
        (place / EPOCHS).exists()
        and (place / MODEL).is_dir()
        and is_fresh(context, place / OPEN_UNLEARNING)
        for place in places
    )
    if not there:
        return None
    found = {run.objective: run for run in map(read_run, places)}
    return [found[objective] for objective in chosen.objectives().values()]


def along(context: Context, words: Sequence[str], table: pd.DataFrame) -> pd.DataFrame:
    """Return what was recorded after every epoch of runs that `swept` made, with their `table`.

    See `llm.sweeps.along.epochs`. Of a study, whose runs are measured at their ends unless it was
    asked for more, it is that of the corners at the settings that it has of them.
    """
    if context.study is not None:
        return studies.along(context.study)
    return epochs(folder_for(context, task_of(context)), runs_of(context, words), table)


def with_default(context: Context) -> Context:
    """Return the context with the study of the default model; what is not there is made now.

    At quick scale, and where the user has a model, runs or a study of their own, it stays as it is.
    """
    given = context.own or context.runs or context.study or context.scale.quick
    return context if given else replace(context, study=default_place(context))


def for_logs(context: Context) -> Context:
    """Return the context by which public logs are looked for (see `figures.language.sources`).

    A user's own study leaves no place for them; that of the default model, which nobody asked for,
    does.
    """
    made = context.study is not None and context.study == default_folder(context.scale)
    return replace(context, study=None) if made else context


def asked_of_default(scale: Scale, place: Path) -> Study:
    """Return the study of the default model in words."""
    chosen = study(scale)
    task = default_task(chosen.models)
    return Study(
        model=task.options.model,
        data=task.data,
        methods=table_words(chosen),
        attacked=(),
        seeds=tuple(range(scale.trained)),
        epochs=chosen.epochs,
        batch=chosen.batch,
        unlearning_rate=chosen.learning_rate,
        measured_epochs=measured_epochs(chosen),
        despite_gate=True,  # what it finds is drawn
        draw=False,
        out=place,
    )


def default_folder(scale: Scale) -> Path:
    """Return where the cache keeps the study; its name stands for the settings and the code."""
    key = described(asked_of_default(scale, Path()))
    return storage.cache_dir() / "studies" / cache_key(key, __name__)


def default_place(context: Context) -> Path:
    """Return the folder of the finished study, of as many trainings as the scale has."""
    place = default_folder(context.scale)
    wanted = replace(asked_of_default(context.scale, place), jobs=context.n_jobs)
    known = place / studies.MEASURES
    if known.exists() and not is_fresh(context, known):
        leftovers.discard(place)
    if known.exists() and folders.claimed(place, "study"):
        found = storage.read_kept(known, storage.read_table)
        if found is not None and set(found["seed"]) == set(wanted.seeds):
            return place
    studied(study_settings.checked(wanted), progress=context.progress)
    return place
