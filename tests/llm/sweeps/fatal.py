"""Sweeps in which a process is killed, in a module that other processes find by the same name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.data.tofu import Example
from llm.models.source import ModelOptions
from llm.sweeps.sweep import PlannedRun, Task, sweep
from llm.training.loop import Optimization
from llm.unlearning.methods import methods
from markov.running.backends import BackendOptions, workers
from tests.deaths import Death

EVERY = Optimization(epochs=1, batch=3, learning_rate=1e-3)
WORDS = ("npo:0.1@1", "gradient_ascent", "simnpo:4.5@0.125")


@dataclass(frozen=True, kw_only=True)
class Fatal(Task):
    """A task that kills when its data are read by a run."""

    death: Death | None = None

    def examples(self) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        if self.death is not None:
            self.death.look()
        return super().examples()


def planned(words: Sequence[str] = WORDS, seeds: Sequence[int] = (0, 1)) -> list[PlannedRun]:
    """Runs of one epoch."""
    every = [Optimization(**{**vars(EVERY), "seed": seed}) for seed in seeds]
    return [PlannedRun(method=one, optimization=own) for one in methods(words) for own in every]


def task_of(place: Path, out: Path, victim: int | None = None) -> Fatal:
    """A task on the models of a folder; with a victim, that is killed when two runs are there."""
    pattern = "*_seed?/TOFU_EVAL.json"
    dies = victim is not None
    death = Death(folder=str(out), pattern=pattern, count=2, victim=victim or 0) if dies else None
    return Fatal(
        options=ModelOptions(model=str(place / "model"), device="cpu"),
        retrained=str(place / "retrained"),
        data=str(place / "forget10.json"),
        retain_data=str(place / "retain90.json"),
        max_new_tokens=2,
        death=death,
    )


def made(place: Path, out: Path, victim: int, backend: str, scheduler: str | None = None) -> None:
    """Make a sweep by two workers."""
    asked = BackendOptions(backend=backend, scheduler=scheduler)  # pyright: ignore[reportArgumentType]
    with workers(asked, 2, [out], "markov", "llm"):
        sweep(out, task_of(place, out, victim), planned(), n_jobs=2, progress=False)


def client(place: str, out: str, backend: str, scheduler: str) -> None:
    """What is run by the process that is killed."""
    Path(f"{out}.client").write_text(str(os.getpid()), "utf-8")
    made(Path(place), Path(out), os.getpid(), backend, scheduler or None)
