"""What a case is: what it does in words, and how it is run and judged in a box."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.hammer.children import USUAL, Ended, Job, Limits, run
from tests.hammer.judging import Verdict, judged, passing, tree
from tests.hammer.world import Box

Check = Callable[[Box], str]


class Result(NamedTuple):
    """The verdict on a case, what its last process said, and what was done before it."""

    verdict: Verdict
    ended: Ended | None = None
    note: str = ""


class Case(NamedTuple):
    """A case: the row of the table that it counts in, what it does in words, and how."""

    row: str
    told: str
    act: Callable[[Box], Result]


def quoted(words: Sequence[str]) -> str:
    """A command line as one would type it; long words are cut, and odd characters escaped."""
    short = [
        word if len(word) <= 60 else f"{word[:20]}...({len(word)} characters)" for word in words
    ]
    return shlex.join(word.encode("unicode_escape").decode("ascii") for word in short)


def once(
    box: Box,
    job: Job,
    *,
    must_refuse: bool = False,
    check: Check = lambda box: "",
    limits: Limits = USUAL,
) -> Result:
    """Run a job once in a box, and judge how it ended, what it changed and what it wrote."""
    before = tree(box.work, box.home, box.odd)
    ended = run(job, box.work, box.logs, environment=box.environment, limits=limits)
    after = tree(box.work, box.home, box.odd)
    left = passing(box.work, box.home, box.odd, box.cache)
    wrong = check(box) if ended.code == 0 and not ended.killed else ""
    verdict = judged(ended, before, after, left, must_refuse=must_refuse, wrong=wrong)
    return Result(verdict, ended)


def noted(box: Box, line: str) -> None:
    """Note what was done to a file, for whoever looks at the case."""
    box.logs.mkdir(exist_ok=True)
    with (box.logs / "done").open("a", encoding="utf-8", errors="backslashreplace") as file:
        print(line, file=file)


def at(box: Box, path: str) -> Path:
    """Where a path lies that a command in the box was given."""
    if path == "~" or path.startswith("~/"):
        return box.home / path[2:]
    # As the system finds it once every folder in it has been made, also one that is left again.
    return Path(os.path.normpath(box.work / path))
