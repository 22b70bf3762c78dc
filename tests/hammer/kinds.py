"""All kinds of cases, how often each is tried, and a workplace in which they can be."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.hammer import caches, calls, commands, files, killing, processes
from tests.hammer.cases import Case, Result
from tests.hammer.world import box, quiet, world


class Kind(NamedTuple):
    """A kind of cases: what makes one, and how many of a thousand are of it."""

    make: Callable[[Path, random.Random], Case]
    share: int


KINDS = {
    "commands": Kind(commands.case, 450),
    "files": Kind(files.case, 250),
    "python": Kind(calls.case, 150),
    "caches": Kind(caches.case, 50),
    "signals": Kind(processes.signals, 40),
    "disk": Kind(processes.disk, 30),
    "together": Kind(processes.together, 20),
    "kills": Kind(killing.case, 10),
}


class Name(NamedTuple):
    """What makes a case again: its kind and its number, written KIND:NUMBER."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


@contextmanager
def workplace(where: Path | None = None) -> Iterator[Path]:
    """A folder with all that cases of every kind read."""
    with quiet(), world(where) as given:
        yield given


def names(count: int, only: str | None = None) -> list[Name]:
    """The names of `count` cases, of each kind its share, in an order that mixes them."""
    if only is not None:
        return [Name(only, number) for number in range(count)]
    whole = sum(kind.share for kind in KINDS.values())
    found = [
        (number * whole / kind.share, Name(name, number))
        for name, kind in KINDS.items()
        for number in range(-(-count * kind.share // whole))
    ]
    return [name for _, name in sorted(found)[:count]]


def case_of(given: Path, seed: int, name: Name) -> Case:
    """The case of a name: the same one whenever the seed is the same."""
    return KINDS[name.kind].make(given, random.Random(f"{seed}/{name}"))


def tried(given: Path, case: Case, place: Path) -> Result:
    """Run a case in a box of its own at a place."""
    with box(given, place) as own:
        result, notes = case.act(own), own.logs / "done"
        note = notes.read_text("utf-8", "replace") if notes.exists() else ""
        return result._replace(note=note.strip())
