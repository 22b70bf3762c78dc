"""Commands that are interrupted, killed, run several at once, or that find no room on the disk.

Whatever happens to a command, given again it ends with the same files as if nothing had been.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from markov.files import leftovers
from markov.files.folders import CLAIM
from tests.hammer.bases import bases
from tests.hammer.cases import Case, Result
from tests.hammer.children import Ended, Limits, begin, end, run
from tests.hammer.commands import words_of
from tests.hammer.judging import (
    DEFECTS,
    OK,
    REFUSED,
    Verdict,
    changed,
    ended,
    last_line,
    passing,
    tree,
)
from tests.hammer.world import Box, make, once_made, program

# Commands that write something, and take no longer than a second or two.
TRIED = (
    *("markov unlearn", "markov grid", "llm score", "llm weights", "llm unlearn", "llm finetune"),
    *("llm evaluate", "llm relearn", "llm diagnose", "llm sweep", "llm muse"),
)
SOON = 1.2  # seconds within which a signal comes
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
Files = dict[str, Any]


def outputs(work: Path) -> Files:
    """What a command has written: its tables as frames, other files as bytes, claims left out."""
    found: Files = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if path.is_file() and path.name != CLAIM and not leftovers.is_partial(path.name):
            found[name] = pd.read_parquet(path) if path.suffix == ".parquet" else path.read_bytes()
    return found


def other(found: Files, wanted: Files) -> str:
    """Say how files differ from those of an undisturbed run; "" if they do not.

    Of files that say when and how they were made only the numbers are compared.
    """
    if found.keys() != wanted.keys():
        return f"other files: {', '.join(sorted(found.keys() ^ wanted.keys())[:4])}"
    for name, one in wanted.items():
        same = found[name].equals(one) if isinstance(one, pd.DataFrame) else found[name] == one
        if not same:
            return f"another {name}"
    return ""


def command_of(given: Path, name: str) -> list[str]:
    """The command line of a small command."""
    base = bases(given)[name]
    return words_of(base.command, base.options)


def again(box: Box, given: Path, name: str, first: Result) -> Result:
    """Give a command again after what happened to it, and compare with an undisturbed run."""
    if first.verdict.kind in DEFECTS:
        return first
    job = program(command_of(given, name))
    second = run(job, box.work, box.logs, environment=box.environment)
    verdict = ended(second)
    if verdict.kind != OK:
        kind = verdict.kind if verdict.kind in DEFECTS else "success"
        return Result(Verdict(kind, f"given again: {verdict.why}"), second)
    left = passing(box.work, box.cache)
    if left:
        return Result(Verdict("partial", f"left behind after all: {left[0]}"), second)
    difference = other(outputs(box.work), undisturbed(given, name))
    if difference:
        return Result(Verdict("success", f"given again: {difference}"), second)
    return Result(first.verdict, second)


def undisturbed(given: Path, name: str) -> Files:
    """What a command writes if nothing happens to it."""
    words = command_of(given, name)
    return outputs(once_made(given / "whole" / name, partial(make, given, words)))


def signals(given: Path, rng: random.Random) -> Case:
    """SIGINT, SIGTERM or SIGKILL while a command is at work, and then the command again."""
    name = rng.choice(TRIED)
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL))
    after = rng.uniform(0.02, SOON)

    def act(box: Box) -> Result:
        job = program(command_of(given, name))
        one = begin(job, box.work, box.logs, environment=box.environment)
        (found,) = end([one], signals=[(0, after, number)])
        return again(box, given, name, Result(_stopped(found, number, box), found))

    return Case("signals", f"{signal.Signals(number).name} after {after:.2f} s: {name}", act)


def _stopped(found: Ended, number: int, box: Box) -> Verdict:
    if found.killed:
        return Verdict(found.killed)
    if found.code == 0:
        return Verdict(OK)
    if number == signal.SIGKILL:
        return Verdict(OK) if found.code == -9 else ended(found)
    # Before the command has begun, and after it has ended, a process ends as Python does.
    early = "KeyboardInterrupt" in found.err and "exit_code" not in found.err
    if early or (found.how == "" and found.code == -number):
        return Verdict(OK)
    if "Traceback" in found.err or found.how == "raised":
        return Verdict("traceback", last_line(found.err))
    if found.code != CODES[signal.Signals(number)]:
        return Verdict("died", f"exit code {found.code}: {last_line(found.err)}")
    left = passing(box.work, box.cache)
    return Verdict("partial", f"left behind: {left[0]}") if left else Verdict(OK)


def together(given: Path, rng: random.Random) -> Case:
    """Two or four processes of one command at once, with one cache and one output."""
    name, count = rng.choice(TRIED), rng.choice((2, 2, 4))
    empty = rng.random() < 0.3

    def act(box: Box) -> Result:
        if empty:
            shutil.rmtree(box.cache / "models")
        job = program(command_of(given, name))
        running = [
            begin(job, box.work, box.logs / str(number), environment=box.environment)
            for number in range(count)
        ]
        found = end(running, Limits(seconds=20.0))
        for one in found:
            verdict = ended(one)
            if verdict.kind == REFUSED:  # what another process did stopped this one
                return Result(Verdict("died", f"refused: {verdict.why}"), one)
            if verdict.kind in DEFECTS:
                return Result(verdict, one)
        return again(box, given, name, Result(Verdict(OK), found[0]))

    return Case("together", f"{count} at once: {name}", act)


def disk(given: Path, rng: random.Random) -> Case:
    """A disk that is full or fails, of some bytes, or a folder that cannot be written."""
    name = rng.choice(TRIED)
    way = rng.choice(("small", "small", "full", "failing", "read-only", "read-only cache"))
    kilobytes, number = rng.choice((16, 32, 64, 128, 256)), rng.randrange(40)

    def act(box: Box) -> Result:
        job = program(command_of(given, name))
        if way in ("full", "failing"):
            code = errno.ENOSPC if way == "full" else errno.EIO
            job = partial(_failing, job, code, number)
            return _on_disk(box, given, name, job)
        if way == "small":
            return _within(box, given, name, box.work, f"size={kilobytes}k")
        place = box.work if way == "read-only" else box.cache
        return _within(box, given, name, place, "ro")

    told = {"small": f"{kilobytes} KB", "full": f"full at call {number}"}.get(way, way)
    return Case("disk", f"{told}: {name}", act)


def _failing(job: Callable[[], int], code: int, number: int) -> int:
    """Do a job in which renaming and opening to write fail, from the call of this number on."""
    calls = 0

    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise OSError(code, os.strerror(code), str(arguments[0]))
            return function(*arguments, **named)

        return called

    os.replace, os.rename, os.mkdir = map(broken, (os.replace, os.rename, os.mkdir))
    return job()


def _within(box: Box, given: Path, name: str, place: Path, way: str) -> Result:
    """Run a command where a folder is a file system of its own, small or read-only."""
    aside = box.place / "aside"
    if way == "ro":
        mounted = _mount("--bind", str(place), str(place)) and _mount(
            "-o", "remount,bind,ro", str(place)
        )
    else:
        mounted = _mount("-t", "tmpfs", "-o", way, "none", str(place))
    if not mounted:  # only root may
        with suppress(OSError):
            _unmount(place)
        return _on_disk(
            box, given, name, partial(_failing, program(command_of(given, name)), 28, 3)
        )
    try:
        before = tree(box.work)
        found = run(
            program(command_of(given, name)), box.work, box.logs, environment=box.environment
        )
        verdict = _full(found, before, box)
        if way != "ro":
            shutil.copytree(place, aside)
    finally:
        _unmount(place)
    if aside.exists():
        shutil.rmtree(place)
        aside.rename(place)
    return again(box, given, name, Result(verdict, found))


def _on_disk(box: Box, given: Path, name: str, job: Callable[[], int]) -> Result:
    before = tree(box.work)
    found = run(job, box.work, box.logs, environment=box.environment)
    return again(box, given, name, Result(_full(found, before, box), found))


def _full(found: Ended, before: dict[str, str], box: Box) -> Verdict:
    """The class of a command whose disk failed: what it leaves is whole, or the claim's own."""
    verdict = ended(found, disk=True)
    if verdict.kind in DEFECTS or found.code == 0:
        return verdict
    left = passing(box.work, box.cache)
    if left:
        return Verdict("partial", f"left behind: {left[0]}")
    whole = [path for path in changed(before, tree(box.work)) if not path.endswith(".parquet")]
    return Verdict("partial", f"changed: {', '.join(whole[:3])}") if whole else verdict


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], capture_output=True)
