"""A process that ends itself by SIGKILL just before one of its own calls to the file system.

Calls are counted by an audit hook, which sees those that Python makes: opening for writing, making,
renaming and removing. Libraries that write natively (safetensors, pyarrow, tokenizers) are not
seen while they write; the calls before and after are, and what is half-written then lies under a
passing name. A call site is what is called with which path, passing names and digests apart: of
many calls at one site the first and the last are tried, since what differs between the others is
how much has been done, not how.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from markov.files import leftovers
from markov.files.folders import CLAIM

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "shutil.rmtree",
)
DIGEST, SPLIT = re.compile(r"[0-9a-f]{32}"), re.compile(r"data/\w+\.json")
BASELINE = re.compile(r"\b(original|retrained)\b")


class Ended(NamedTuple):
    """How a process ended: its exit code, minus the signal that killed it, and the calls it made
    until then.
    """

    code: int
    calls: list[str]
    said: str


def forked() -> int:
    """A copy of this process: 0 in the copy, and its number here."""
    with warnings.catch_warnings():
        # of forking where there are threads: they are idle
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def run_and_kill(job: Callable[[], int], place: Path, log: Path, at: int | None = None) -> Ended:
    """Run a job in a process of its own, within `place`, that kills itself before its call
    number `at` (from 0).
    """
    child = forked()
    if child == 0:
        code = 70
        try:
            said = os.open(log.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            sys.stdout, sys.stderr = (
                os.fdopen(1, "w", closefd=False),
                os.fdopen(2, "w", closefd=False),
            )
            os.chdir(place)
            os.environ["SIMNPO_LAB_CACHE"] = str(place / "cache")
            sys.addaudithook(
                _counting(place, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), at)
            )
            code = job()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    said = log.with_suffix(".said").read_text("utf-8", "replace")
    return Ended(os.waitstatus_to_exitcode(status), log.read_text("utf-8").splitlines(), said)


def _counting(place: Path, log: int, at: int | None) -> Callable[[str, tuple[object, ...]], None]:
    count, root = 0, str(place)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING:
                return
            paths = [path]
        elif event in CHANGING:
            paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        else:
            return
        # Relative to an open folder while a tree is removed: only this project's folders are.
        known = [
            os.path.join(root, os.fsdecode(one))
            for one in paths
            if isinstance(one, str | bytes | os.PathLike)
        ]
        if not any(one.startswith(root + os.sep) for one in known):
            return
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        os.write(log, f"{event} {' '.join(os.path.relpath(one, root) for one in known)}\n".encode())

    return hook


def site(call: str) -> str:
    """What is called, and where, without what differs from one process to the next."""
    names = re.sub(leftovers.PARTIAL.pattern.replace(r"(\..*)?", ""), "PARTIAL", call)
    # The splits of a corpus are written by one line in turn, and so are the models that are
    # compared with.
    for pattern, word in ((DIGEST, "DIGEST"), (SPLIT, "data/SPLIT"), (BASELINE, "BASELINE")):
        names = pattern.sub(word, names)
    return names


def chosen(calls: list[str], *, passing: bool = True, last: bool = True) -> list[int]:
    """The calls to be killed at: of each site the first and the last, or the first alone.

    Without `passing` those are left out that happen under a passing name: beginning, filling or
    removing it there. What moves a result into its place, or begins to remove one, is not.
    """
    places: dict[str, list[int]] = {}
    for number, call in enumerate(calls):
        where = site(call)
        # Files are removed by name alone while a tree is, which has a passing name by then.
        apart = "PARTIAL" in where or (where.startswith("os.remove ") and "/" not in where)
        if passing or not apart or where.startswith(("os.rename ", "shutil.rmtree ")):
            places.setdefault(where, []).append(number)
    numbers = {own[0] for own in places.values()}
    return sorted(numbers | {own[-1] for own in places.values() if last})


def tree(folder: Path) -> dict[str, object]:
    """Every file below a folder by its path: its bytes, of a claim all but the process that made
    it.
    """

    def walk() -> Iterator[tuple[str, object]]:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.name == CLAIM:
                yield name, _without_process(json.loads(path.read_text("utf-8")))
            elif path.is_file():
                yield name, path.read_bytes()

    return dict(walk())


def _without_process(claims: Mapping[str, Mapping[str, object]]) -> object:
    return {
        job: {key: value for key, value in own.items() if key != "process"}
        for job, own in claims.items()
    }
