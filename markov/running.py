"""Run experiments: pretrain what is missing, unlearn in ensembles, return one table.

Values that differ (objective, beta, seed, step size, leakage) go inside one ensemble. Shapes that
differ (states, lengths, width, number of steps) go to different ensembles, which joblib spreads
over processes. On a cluster, `joblib.parallel_config` chooses another backend (dask, ray).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import pandas as pd
import torch

from markov import diagnostics
from markov.batching import Corpus
from markov.cases import Case
from markov.console.progress import bar
from markov.errors import require
from markov.experiments import Experiment, Pretraining
from markov.files import leftovers, storage
from markov.models import Parameters, Tabular, Transformer, stack_parameters
from markov.numerics import one_thread
from markov.optimizers import OPTIMIZERS
from markov.recording import Probe, Trajectory, kl_to_truth, log_laws
from markov.studies import ideal_forget_distance
from markov.sweeps import ComponentSweep
from markov.training import Member, pretrain, unlearn

Work = TypeVar("Work")
Result = TypeVar("Result")
OnStep = Callable[[int, Parameters], None]
# What a trained model depends on: how its data are made and read, and how it is trained.
TRAINED = ("markov.batching", "markov.cases", "markov.sweeps", "markov.training")
# Runs per ensemble at most: more gain little. How many there are, and which, changes no row.
MEMBERS = 8


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """What a trained model depends on, and no more.

    `case` says nothing of components that the model never sees.
    """

    case: Case | ComponentSweep
    model: Transformer | Tabular
    pretraining: Pretraining
    precision: str


def model_jobs(experiment: Experiment) -> tuple[ModelJob, ModelJob]:
    """Return the jobs of an experiment's original and retrained model.

    The original model is trained on all that pretraining sees, the retrained one on retain data
    only.
    """

    def job(case: Case | ComponentSweep) -> ModelJob:
        return ModelJob(
            case=case,
            model=experiment.model,
            pretraining=experiment.pretraining,
            precision=experiment.precision,
        )

    return job(experiment.case.original()), job(experiment.case.retrained())


def run(
    experiments: Iterable[Experiment],
    *,
    n_jobs: int = 1,
    progress: bool = True,
    cache: Path | None = None,
    parts: Path | None = None,
) -> pd.DataFrame:
    """Run all experiments and return one row per run x step x component, in the order given.

    The columns are those of `diagnostics.COLUMNS`. Models are trained where `cache` (default: the
    user's cache folder) lacks them. `n_jobs` (-1: one per core) changes the time, never a row. With
    a folder `parts`, the table of each ensemble is kept there once it is made, and found by the
    next call with the same experiments: see `parts_of`. Raises `InvalidInput` if there is no
    experiment.
    """
    experiments = list(experiments)
    require(len(experiments) > 0, "experiments", experiments, "at least one")
    folder = models_folder(cache)
    wanted = dict.fromkeys(job for experiment in experiments for job in model_jobs(experiment))
    leftovers.clear(folder)
    missing = [
        job
        for job in wanted
        if storage.read_kept(model_path(folder, job), storage.load_parameters) is None
    ]
    # The longest jobs go first, so that none is left over at the end.
    missing.sort(key=lambda job: -len(job.case.seen))
    # With one process the bar follows single steps; workers cannot draw on it, so there it counts
    # models and ensembles.
    alone = progress and n_jobs == 1
    _parallel(partial(_pretrain, folder, alone), missing, n_jobs, progress, "pretraining")
    ensembles: dict[Any, list[int]] = {}
    for index, experiment in enumerate(experiments):
        ensembles.setdefault(_shape(experiment), []).append(index)
    for one in ensembles.values():
        # Runs of one seed draw batches of the same lengths, so that all of them can be computed
        # side by side.
        one.sort(key=lambda index: experiments[index].seed)
    chunks = [
        part.tolist()
        for one in ensembles.values()
        for part in np.array_split(one, -(-len(one) // MEMBERS))
    ]
    jobs = [[experiments[index] for index in chunk] for chunk in chunks]
    work = partial(_table, folder, alone)
    tables = _parallel(
        partial(_kept_table, parts, work) if parts else work, jobs, n_jobs, progress, "unlearning"
    )
    numbered = [
        table.assign(run=table["run"].map(dict(enumerate(chunk))))
        for table, chunk in zip(tables, chunks, strict=True)
    ]
    return pd.concat(numbered).sort_values("run", kind="stable", ignore_index=True)


def parts_of(experiments: Sequence[Experiment]) -> Path:
    """Return the cache folder for the parts of these experiments' table.

    Whoever has written the whole table discards the folder.
    """
    return storage.unfinished(list(experiments), __name__)


def trajectory(
    experiments: Sequence[Experiment],
    *,
    cache: Path | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Trajectory:
    """Run experiments of one shape as one ensemble, in this process, and return its trajectory.

    Models that the cache lacks are trained first. `on_step` is as in `training.unlearn`. Raises
    `InvalidInput` where the experiments differ in more than values.
    """
    shapes = {_shape(experiment) for experiment in experiments}
    require(
        len(shapes) == 1,
        "experiments",
        f"{len(shapes)} shapes",
        "experiments that differ in values only",
    )
    with one_thread():
        members = _members(models_folder(cache), experiments, progress)
        with _steps_bar(experiments[0].steps, "unlearning", progress, on_step) as tick:
            return _unlearn(experiments, members, tick)


def models_folder(cache: Path | None = None) -> Path:
    """Return the folder where trained models are kept."""
    return storage.cache_dir() / "models" if cache is None else cache


def model_path(folder: Path, job: ModelJob) -> Path:
    """Return the file of a trained model.

    Its name depends on all settings of the model and on the code behind its data and its training.
    """
    return folder / f"{storage.fingerprint(job, *TRAINED)}.safetensors"


def load_model(
    folder: Path,
    job: ModelJob,
    on_step: Callable[[int, int, Parameters], None] | None = None,
    *,
    progress: bool = True,
) -> dict[str, torch.Tensor]:
    """Return the parameters of a model.

    It is trained now if it is not in the cache or its file is damaged. `on_step(step, steps,
    parameters)` is called after every one of the `steps` of training; what it raises ends the
    training, of which nothing is kept.
    """
    path = model_path(folder, job)
    found = storage.read_kept(path, storage.load_parameters)
    if found is None:
        _pretrain(folder, progress, job, on_step)
        found = storage.load_parameters(path)
    return found


def _pretrain(
    folder: Path,
    progress: bool,
    job: ModelJob,
    on_step: Callable[[int, int, Parameters], None] | None = None,
) -> None:
    """Train a model and keep it; `on_step` is as in `load_model`."""
    settings, data = job.pretraining, job.case.sample(job.pretraining.seed)
    corpus = Corpus.join(job.case.pretraining_data(data))
    steps = settings.epochs * math.ceil(len(corpus.tokens) / settings.batch)

    def then(step: int, parameters: Parameters) -> None:
        if on_step is not None:
            on_step(step, steps, parameters)

    with one_thread(), _steps_bar(steps, " + ".join(job.case.seen), progress, then) as tick:
        parameters = pretrain(
            job.model,
            [corpus],
            [settings.seed],
            epochs=settings.epochs,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            optimizer=OPTIMIZERS[settings.optimizer],
            dtype=getattr(torch, job.precision),
            on_step=tick,
        )
    own = {name: value[0].contiguous() for name, value in parameters.items()}
    storage.save_parameters(model_path(folder, job), own, storage.provenance(job))


def _table(folder: Path, progress: bool, experiments: Sequence[Experiment]) -> pd.DataFrame:
    with (
        one_thread(),
        _steps_bar(experiments[0].steps, f"{len(experiments)} runs", progress) as tick,
    ):
        members = _members(folder, experiments, progress)
        found = _unlearn(experiments, members, tick)
        retrained = [
            [float(kl_to_truth(probe, probe.retrained)) for probe in member.probes]
            for member in members
        ]
    ideal = [list(ideal_forget_distance(experiment.case).values()) for experiment in experiments]
    return diagnostics.table(experiments, found, retrained, ideal)


def _kept_table(
    parts: Path,
    work: Callable[[Sequence[Experiment]], pd.DataFrame],
    experiments: Sequence[Experiment],
) -> pd.DataFrame:
    """Return the table of an ensemble, from `parts` or made now and kept there.

    It is the same to the last bit in both cases.
    """
    path = parts / f"{storage.fingerprint(list(experiments))}.parquet"
    if storage.read_kept(path, storage.read_table) is None:
        storage.write_table(work(experiments), path, {})
    frame = storage.read_table(path)
    frame.attrs = {}
    return frame


def _unlearn(
    experiments: Sequence[Experiment],
    members: Sequence[Member],
    on_step: OnStep | None,
) -> Trajectory:
    first = experiments[0]
    return unlearn(
        first.model,
        members,
        steps=first.steps,
        batch=first.batch,
        optimizer=OPTIMIZERS[first.optimizer],
        recorded=range(first.steps + 1) if first.recorded is None else first.recorded,
        retain_term=first.retain_term,
        gradient_examples=first.gradient_examples,
        on_step=on_step,
    )


def _members(folder: Path, experiments: Sequence[Experiment], progress: bool) -> list[Member]:
    # Most runs of a grid share a pretrained model, whose data are drawn and scored once.
    firsts: dict[Any, Member] = {}
    members = []
    for experiment in experiments:
        key = model_jobs(experiment), experiment.case, experiment.test_examples
        if key not in firsts:
            firsts[key] = _member(folder, experiment, progress)
        members.append(
            firsts[key]._replace(
                objective=experiment.objective,
                learning_rate=experiment.learning_rate,
                retain_weight=experiment.retain_weight,
                seed=experiment.seed,
            )
        )
    return members


def _member(folder: Path, experiment: Experiment, progress: bool) -> Member:
    original, retrained = (
        load_model(folder, job, progress=progress) for job in model_jobs(experiment)
    )
    data = experiment.case.sample(experiment.pretraining.seed)
    models, probes = [stack_parameters([one]) for one in (retrained, original)], []
    for component, chain in zip(experiment.case.lengths, experiment.case.chains(), strict=True):
        tokens = data.test[component][: experiment.test_examples]
        laws = (log_laws(experiment.model, one, tokens) for one in models)
        probes.append(Probe(tokens, chain.transition, *laws, forgotten=component != "retain"))
    return Member(
        start=original,
        objective=experiment.objective,
        learning_rate=experiment.learning_rate,
        retain_weight=experiment.retain_weight,
        seed=experiment.seed,
        forget=Corpus.join(experiment.case.forget_data(data)),
        retain=Corpus.join([data.train["retain"]]),
        probes=tuple(probes),
    )


def _shape(experiment: Experiment) -> tuple[Any, ...]:
    """Return what the members of an ensemble must share: all but the values that may differ."""
    free = {"case", "objective", "pretraining", "seed", "learning_rate", "retain_weight"}
    return experiment.case.shape + tuple(
        value for name, value in vars(experiment).items() if name not in free
    )


def _parallel(
    work: Callable[[Work], Result], jobs: Sequence[Work], n_jobs: int, progress: bool, label: str
) -> list[Result]:
    results = []
    with bar(len(jobs), label, show=progress and len(jobs) > 0) as done:
        for result in joblib.Parallel(n_jobs=n_jobs, return_as="generator")(
            joblib.delayed(work)(job) for job in jobs
        ):
            results.append(result)
            done.update()
    return results


@contextmanager
def _steps_bar(
    steps: int, label: str, progress: bool, then: OnStep | None = None
) -> Iterator[OnStep]:
    """Give what is called after each step: it moves a bar, and calls `then`."""
    with bar(steps, label, unit="step", show=progress, leave=False) as done:

        def tick(step: int, parameters: Parameters) -> None:
            done.update(step - done.n)
            if then is not None:
                then(step, parameters)

        yield tick
