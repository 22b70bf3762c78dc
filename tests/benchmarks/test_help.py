"""Processor time of every --help, beside its bound of a second: `make benchmark`."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.test_architecture import ROOT
from tests.test_help import COMMANDS

BOUND = 1.0  # seconds


@pytest.mark.parametrize(
    "words",
    [[module, *words] for module, calls in COMMANDS.items() for words in calls],
    ids=" ".join,
)
def test_help(benchmark: BenchmarkFixture, words: list[str]) -> None:
    command = [sys.executable, "-m", *words, "--help"]

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = min(benchmark.pedantic(seconds, rounds=1), seconds(), seconds())
    print(f"\n    {' '.join(words)} --help: {taken:.2f} s of processor time, bound {BOUND:.0f} s")
    assert taken < BOUND
