"""Experiments in which a process is killed, and tasks that cannot be done.

They stand in a module that other processes find by the same name.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from markov.cases import LENGTH
from markov.errors import InvalidInput
from markov.experiments import Experiment, Pretraining
from markov.models import Parameters, Tabular
from markov.running import run as running
from markov.running.backends import BackendOptions, workers
from markov.running.run import run_part
from tests.deaths import Death


@dataclass(frozen=True)
class Fatal(Tabular):
    """A table of transitions that kills while it is trained."""

    death: Death | None = None

    def logits(self, parameters: Parameters, tokens: torch.Tensor) -> torch.Tensor:
        if self.death is not None:
            self.death.look()
        return super().logits(parameters, tokens)


BASE = Experiment(
    case=replace(LENGTH, retain_count=60, forget1_count=60, forget2_count=60, retain_length=6),
    model=Tabular(),
    pretraining=Pretraining(epochs=1),
)


def fatal(place: Path, victim: int = 0) -> tuple[list[Experiment], Death]:
    """Eight ensembles of a run each, in which a process is killed when two are there."""
    death = Death(folder=str(place / "parts"), pattern="[!.]*.parquet", count=2, victim=victim)
    base = replace(BASE, model=Fatal(death=death))
    return [replace(base, steps=steps) for steps in range(2, 10)], death


def made(place: Path, victim: int, backend: str, scheduler: str | None = None) -> None:
    """Make all parts in a folder, by two workers."""
    experiments, _ = fatal(place, victim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "LITTLE", 0.0)
        patch.setenv("SIMNPO_LAB_CACHE", str(place / "cache"))
        asked = BackendOptions(backend=backend, scheduler=scheduler)  # pyright: ignore[reportArgumentType]
        with workers(asked, 2, [], "markov"):
            run_part(experiments, 0, 1, parts=place / "parts", n_jobs=2, progress=False)


def client(place: str, backend: str, scheduler: str) -> None:
    """What is run by the process that is killed."""
    Path(place, "client").write_text(str(os.getpid()), "utf-8")
    made(Path(place), os.getpid(), backend, scheduler or None)


class Fails:
    """A task that cannot be done."""

    def __call__(self) -> None:
        raise InvalidInput("task", self.__class__.__name__, "another one")


class Dies:
    """A task that always takes its process along."""

    def __call__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
