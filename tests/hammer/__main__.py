"""Hammer at every program with what nobody should give it, and count what becomes of it:
`python -m tests.hammer --seed 3`.

Each case runs in a process of its own, within bounds of time, memory and disk. What is counted as
ok or refused is as it should be; every other class is a defect, and listed with the words that make
it again. The exit code is 1 if there is any.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import tyro

from tests.hammer.judging import CLASSES, DEFECTS
from tests.hammer.kinds import Name, case_of, names, tried, workplace

KEPT = Path(__file__).parents[2] / "figures" / "gallery" / "hammer.csv"
RECORD = struct.Struct("<i")  # the place of a case in the list of all, as workers are told it


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is hammered at, and for how long."""

    seed: int = 0
    """Seed of the cases: the same seed makes the same ones."""
    count: int = 2000
    """Number of cases."""
    minutes: float = 20.0
    """After so many minutes no further case is begun."""
    only: (
        Literal["commands", "files", "python", "caches", "signals", "disk", "together", "kills"]
        | None
    ) = None
    """Cases of one kind only."""
    case: tuple[str, ...] = ()
    """Try these cases again, each written KIND:NUMBER, and show all that they say."""
    show: bool = False
    """Show every case, not only the defects."""
    keep: bool = False
    """Put the counts among those that the book shows, in figures/gallery/hammer.csv."""
    jobs: int = 2
    """Processes that try cases at a time."""
    place: Path | None = None
    """Folder for what is made meanwhile. Default: the system's own for such files."""


class Tried(NamedTuple):
    """A case that was tried: its name, row and words, its class and why, and its seconds."""

    name: str
    row: str
    told: str
    kind: str
    why: str
    seconds: float


def attempt(given: Path, seed: int, name: Name, place: Path, *, show: bool = False) -> Tried:
    """Try one case; what it has said is printed if `show` says so."""
    began, case = time.monotonic(), case_of(given, seed, name)
    shutil.rmtree(place, ignore_errors=True)
    result = tried(given, case, place)
    told = "\n    ".join(one for one in (case.told, result.note) if one)
    told = told.replace(str(given), "GIVEN")
    why = result.verdict.why.replace(str(given), "GIVEN")
    if show and result.ended is not None:
        print(f"{result.ended.out}\n{result.ended.err}\nexit code {result.ended.code}")
    return Tried(str(name), case.row, told, result.verdict.kind, why, time.monotonic() - began)


def line(one: Tried, seed: int) -> str:
    """What is printed of a case."""
    head = f"[--seed {seed} --case {one.name}] {one.kind}, {one.seconds:.1f} s"
    words = (one.told.encode("utf-8", "backslashreplace").decode(), one.why)
    return "\n    ".join([head, *(word for word in words if word)])


def work(given: Path, asked: Arguments, cases: Sequence[Name], queue: int, until: float) -> None:
    """Try the cases whose places come out of a pipe, and write down what became of each."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    own = given / f"worker {os.getpid()}"
    with (given / f"{own.name}.jsonl").open("w", encoding="utf-8") as file:
        while time.monotonic() < until and (record := os.read(queue, RECORD.size)):
            (number,) = RECORD.unpack(record)
            one = attempt(given, asked.seed, cases[number], own)
            print(json.dumps(one), file=file, flush=True)
            if asked.show or one.kind in DEFECTS:
                print(line(one, asked.seed), flush=True)


def hammer(given: Path, asked: Arguments, cases: Sequence[Name]) -> list[Tried]:
    """Try all cases by several processes, and return what became of them."""
    until = time.monotonic() + 60 * asked.minutes
    reading, writing = os.pipe()
    children = []
    for _ in range(max(1, asked.jobs)):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(writing)
                work(given, asked, cases, reading, until)
                code = 0
            except BaseException:
                traceback.print_exc()  # of the hammer itself
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    os.close(reading)
    try:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as pipe:
            for number in range(len(cases)):
                pipe.write(RECORD.pack(number))
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    except BaseException:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        raise
    found = [
        Tried(*json.loads(text))
        for file in given.glob("worker *.jsonl")
        for text in file.read_text("utf-8").splitlines()
    ]
    if any(codes):
        raise RuntimeError(f"a process that tries cases ended with {codes}")
    return found


def table(found: Sequence[Tried]) -> pd.DataFrame:
    """Return the table of counts: a row for each kind of case and for all, columns by class."""
    counts = Counter((one.row, one.kind) for one in found)
    rows = sorted({one.row for one in found})
    lines: list[dict[str, object]] = []
    for row in (*rows, "all"):
        own = [one for one in found if row in (one.row, "all")]
        names = [name for name in rows if row in (name, "all")]
        numbers = {kind: sum(counts[name, kind] for name in names) for kind in CLASSES}
        seconds = round(sum(one.seconds for one in own))
        lines.append({"row": row, **numbers, "cases": len(own), "seconds": seconds})
    return pd.DataFrame(lines)


def keep(counts: pd.DataFrame, seed: int) -> None:
    """Put the counts of a seed among those that the book shows, in place of earlier ones."""
    before = pd.read_csv(KEPT) if KEPT.exists() else pd.DataFrame({"seed": []}, dtype=int)
    both = [before[before["seed"] != seed], counts.assign(seed=seed)]
    found = pd.concat([one for one in both if len(one)]).sort_values("seed", kind="stable")
    found[["seed", *counts.columns]].to_csv(KEPT, index=False, lineterminator="\n")


def main(asked: Arguments) -> int:
    """Try the cases, print the table and the defects, and return the exit code."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    with workplace(asked.place) as given:
        if asked.case:
            cases = [
                Name(kind, int(number))
                for kind, _, number in (one.partition(":") for one in asked.case)
            ]
            found = [attempt(given, asked.seed, name, given / "again", show=True) for name in cases]
            for one in found:
                print(line(one, asked.seed))
        else:
            found = hammer(given, asked, names(asked.count, asked.only))
    defects = [one for one in found if one.kind in DEFECTS]
    print(table(found).set_index("row").rename_axis(None).to_string())
    for one in defects:
        print(line(one, asked.seed))
    print(f"{len(found)} cases, {len(defects)} defects, {time.monotonic() - began:.0f} s")
    if asked.keep:
        keep(table(found), asked.seed)
    return 1 if defects or not found else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m tests.hammer", description=__doc__)))
