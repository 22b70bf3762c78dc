"""Trained models of experiments: what each depends on, where it is kept, and how it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from markov.batching import Corpus
from markov.cases import Case
from markov.console.progress import bar
from markov.errors import require
from markov.experiments import Experiment, Pretraining
from markov.files import inputs, storage
from markov.files.turns import turn
from markov.models import Parameters, Tabular, Transformer
from markov.numerics import one_thread
from markov.optimizers import OPTIMIZERS
from markov.sweeps import ComponentSweep
from markov.training import ONE_THREAD, Threads, pretrain

OnStep = Callable[[int, Parameters], None]
# What a trained model depends on: how its data are made and read, and how it is trained.
TRAINED = ("markov.batching", "markov.cases", "markov.sweeps", "markov.training")


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """What a trained model depends on, and no more.

    `case` says nothing of components that the model never sees.
    """

    case: Case | ComponentSweep
    model: Transformer | Tabular
    pretraining: Pretraining
    precision: str
    device: str

    @property
    def cost(self) -> float:
        """Multiplications of its training, roughly: forward and backward passes."""
        tokens = self.pretraining.epochs * self.case.pretraining_tokens
        return 3.0 * tokens * max(1, self.model.products)


def model_jobs(experiment: Experiment) -> tuple[ModelJob, ModelJob]:
    """Return the jobs of an experiment's original and retrained model.

    The original model is trained on all that pretraining sees, the retrained one on retain data
    only.
    """
    settings = experiment.pretraining, experiment.precision, experiment.device
    return _jobs(experiment.case, experiment.model, *settings)


@lru_cache(maxsize=4096)
def _jobs(
    case: Case | ComponentSweep,
    model: Transformer | Tabular,
    pretraining: Pretraining,
    precision: str,
    device: str,
) -> tuple[ModelJob, ModelJob]:
    def job(case: Case | ComponentSweep) -> ModelJob:
        return ModelJob(
            case=case, model=model, pretraining=pretraining, precision=precision, device=device
        )

    return job(case.original()), job(case.retrained())


def check_devices(experiments: Sequence[Experiment]) -> None:
    """Raise `InvalidInput` for an experiment on a device that this machine does not have."""
    for device in dict.fromkeys(experiment.device for experiment in experiments):
        kind, number = torch.device(device).type, torch.device(device).index or 0
        there = kind == "cpu" or (torch.cuda.is_available() and number < torch.cuda.device_count())
        require(there, "device", device, "cpu, or a GPU that torch finds on this machine")


def models_folder(cache: Path | None = None) -> Path:
    """Return the folder where trained models are kept."""
    return storage.cache_dir() / "models" if cache is None else inputs.expanded(cache, "cache")


def model_path(folder: Path, job: ModelJob) -> Path:
    """Return the file of a trained model.

    Its name depends on all settings of the model and on the code behind its data and its training.
    """
    return folder / f"{_name(job)}.safetensors"


@lru_cache(maxsize=4096)
def _name(job: ModelJob) -> str:
    return storage.fingerprint(job, *TRAINED)


def is_trained(folder: Path, job: ModelJob) -> bool:
    """Return whether a model is in the cache, whole; a damaged file is set aside."""
    return storage.read_kept(model_path(folder, job), storage.load_parameters) is not None


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
        train(folder, job, on_step, progress=progress)
        found = storage.load_parameters(path)
    return found


def train(
    folder: Path,
    job: ModelJob,
    on_step: Callable[[int, int, Parameters], None] | None = None,
    *,
    progress: bool = True,
    threads: Threads = ONE_THREAD,
) -> None:
    """Train a model and keep it; `on_step` is as in `load_model`, `threads` as in `pretrain`.

    Where another process of this machine trains it now, wait for that.
    """
    with turn(model_path(folder, job)):
        if not is_trained(folder, job):
            _train(folder, job, on_step, progress, threads)


def _train(
    folder: Path,
    job: ModelJob,
    on_step: Callable[[int, int, Parameters], None] | None,
    progress: bool,
    threads: Threads,
) -> None:
    settings, data = job.pretraining, job.case.sample(job.pretraining.seed)
    corpus = Corpus.join(job.case.pretraining_data(data))
    steps = settings.epochs * math.ceil(len(corpus.tokens) / settings.batch)

    def then(step: int, parameters: Parameters) -> None:
        if on_step is not None:
            on_step(step, steps, parameters)

    with one_thread(), steps_bar(steps, " + ".join(job.case.seen), progress, then) as tick:
        parameters = pretrain(
            job.model,
            [corpus],
            [settings.seed],
            epochs=settings.epochs,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            optimizer=OPTIMIZERS[settings.optimizer],
            dtype=getattr(torch, job.precision),
            device=job.device,
            threads=threads,
            on_step=tick,
        )
    own = {name: value[0].contiguous() for name, value in parameters.items()}
    storage.save_parameters(model_path(folder, job), own, storage.provenance(job))


def needed(experiments: Sequence[Experiment]) -> list[ModelJob]:
    """Return the models of experiments in the order in which they are best trained.

    Those that most experiments wait for come first, and of these the longest, so that no process
    is left with a long one at the end.
    """
    waiting: dict[ModelJob, int] = {}
    for experiment in experiments:
        for job in dict.fromkeys(model_jobs(experiment)):
            waiting[job] = waiting.get(job, 0) + 1
    return sorted(waiting, key=lambda job: (-waiting[job], -job.cost))


def threads_of(jobs: Sequence[ModelJob], cores: int) -> list[Threads]:
    """Return how many threads train each model, where so many cores train them at once.

    More threads than cores take each other's cache: with two for each of two models on two cores
    the training took a tenth more of their time. So the cores are divided, and where every model
    has one, the longest takes all of them once the others are there.
    """
    each = max(1, cores // max(1, len(jobs)))
    costs = sorted((job.cost for job in jobs), reverse=True)
    others = sum(costs[1:2])
    if each > 1 or len(jobs) > cores:
        return [Threads(each)] * len(jobs)
    return [
        Threads(cores, others / job.cost) if job.cost == costs[0] > others else ONE_THREAD
        for job in jobs
    ]


@contextmanager
def steps_bar(
    steps: int, label: str, progress: bool, then: OnStep | None = None
) -> Iterator[OnStep]:
    """Give what is called after each step: it moves a bar, and calls `then`."""
    with bar(steps, label, unit="step", show=progress, leave=False) as done:

        def tick(step: int, parameters: Parameters) -> None:
            done.update(step - done.n)
            if then is not None:
                then(step, parameters)

        yield tick
