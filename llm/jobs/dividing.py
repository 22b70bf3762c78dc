"""How the runs of a sweep are divided: among workers, and among machines that make a part each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from markov.console.parts import asked_part
from markov.running.backends import BackendOptions, check_backend, workers

# Options that change who makes a run, and when, but nothing that is made.
SPREAD = ("jobs", "backend", "scheduler", "part", "collect")


@dataclass(frozen=True, kw_only=True)
class DividingOptions(BackendOptions):
    """What is made of a sweep, and by whom."""

    part: str | None = None
    """Make only part I of N, written I/N with I from 0, and write no table.
    It is for the array of a batch system, whose machines share the folders OUT and
    $SIMNPO_LAB_CACHE. A part is of whole runs, a method with a seed.
    """
    collect: bool = False
    """Write the tables of parts that were all made, and make none."""


def check_divided(asked: DividingOptions) -> None:
    """Raise `InvalidInput` for what is no part, and for a backend that cannot be used."""
    asked_part(asked.part, asked.collect)
    check_backend(asked)


def dealt_out(asked: DividingOptions, jobs: int, out: Path) -> AbstractContextManager[None]:
    """Let the workers that are asked for make the runs, until the block ends.

    What is collected needs none. Raises `InvalidInput` as `markov.running.backends.workers` does.
    """
    spread = BackendOptions() if asked.collect else asked
    return workers(spread, jobs, [out], "markov", "llm")
