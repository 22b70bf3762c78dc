"""Jobs that are killed just before one of their calls to the file system, at random.

They and the calls are those of `tests.test_kills`, which tries all that differ.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from markov.files import leftovers
from tests.hammer.cases import Case, Result
from tests.hammer.children import Ended
from tests.hammer.judging import OK, Verdict
from tests.hammer.world import Box
from tests.kills import chosen, run_and_kill
from tests.test_kills import LONG, NAMES, WHOLE, commands, settled, start

# The others take longer than all other cases together.
TRIED = tuple(name for name in NAMES if name not in LONG or name == "unlearn")


def sites(name: str, job: Callable[[], int], given: Path, place: Path) -> tuple[list[int], Path]:
    """Return the calls of a job to be killed at, and the folder in which it ran undisturbed."""
    whole = start(given, place, name)
    undisturbed = run_and_kill(job, whole, place.parent / f"{place.name}.log")
    if undisturbed.code:
        raise RuntimeError(f"{name} ended with {undisturbed.code}: {undisturbed.said}")
    return chosen(undisturbed.calls, passing=name in WHOLE, last=name not in LONG), whole


def case(given: Path, rng: random.Random) -> Case:
    """A job that is killed before one of its calls, and then given again."""
    name, where = rng.choice(TRIED), rng.random()

    def act(box: Box) -> Result:
        with pytest.MonkeyPatch.context() as patch:
            job = commands(given, patch)[name]
            shutil.rmtree(box.place)
            box.place.mkdir()
            numbers, whole = sites(name, job, given, box.place / "whole")
            at = numbers[int(where * len(numbers))]
            place = start(given, box.place / "killed", name)
            first = run_and_kill(job, place, box.place / "log", at)
            again = run_and_kill(job, place, box.place / "log")
        return Result(_verdict(first.code, again.code, again.said, place, whole), _as_ended(again))

    return Case("kills", f"SIGKILL at {where:.3f} of the calls of {name}", act)


def _as_ended(found: object) -> Ended:
    code, said = getattr(found, "code", 0), getattr(found, "said", "")
    return Ended(code, "returned", "", "", said, 0.0)


def _verdict(first: int, second: int, said: str, place: Path, whole: Path) -> Verdict:
    if first != -9:
        return Verdict("died", f"it ended with {first} before it was killed")
    if second:
        return Verdict("traceback", f"given again it ends with {second}: {said[-300:]}")
    left = [path for path in place.rglob("*") if leftovers.is_partial(path.name)]
    if left:
        return Verdict("partial", f"left behind: {left[0]}")
    found, expected = settled(place), settled(whole)
    other = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    return Verdict("success", f"given again: another {other[0]}") if other else Verdict(OK)
