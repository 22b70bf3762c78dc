"""Change modules in many small ways and count what no test notices: `python -m tests.mutants`.

The exit code is 1 if tests kill less than `ENOUGH` of the changes of some module, but for those
that are explained. What survived is listed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.mutants.judging import Mutant, idle, judge, read_reasons, score, table, told

ROOT = Path(__file__).parents[2]
REASONS = Path(__file__).with_name("explained.csv")
ENOUGH = 0.9
SOURCES = ("markov", "llm", "figures")
# Each module that is changed, and the tests that have to notice.
MODULES = {
    "markov/objectives.py": (
        "tests/markov/test_objectives.py",
        "tests/markov/test_waist.py",
        "tests/markov/test_calls.py",
    ),
    "markov/chains.py": ("tests/markov/test_chains.py",),
    "llm/logs/measures.py": ("tests/llm/logs/test_measures.py", "tests/llm/logs/test_by_author.py"),
    "llm/evaluation/membership.py": ("tests/llm/evaluation/test_membership.py",),
    "llm/scoring/logprobs.py": (
        "tests/llm/scoring/test_scoring.py",
        "tests/llm/scoring/test_kinds_of_models.py",
    ),
    "llm/scoring/finite.py": ("tests/llm/scoring/test_scoring.py",),
    "llm/scoring/greedy.py": ("tests/llm/scoring/test_greedy.py",),
}
# One seed of examples and few of them, and one thread for each process.
SURROUNDINGS = {"HYPOTHESIS_PROFILE": "few", "OMP_NUM_THREADS": "1"}
# mutmut run as a module would start itself a second time, and says so.
MUTMUT = (sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is changed, and by how many processes."""

    only: tuple[str, ...] = ()
    """Modules, such as markov/chains.py. Default: all."""
    jobs: int = os.cpu_count() or 1
    """Processes that try mutants at a time."""
    again: bool = False
    """Judge what the last run found, by the reasons of now, without trying anything."""
    place: Path = ROOT / "build" / "mutants"
    """Folder for copies of the sources, their mutants, and what mutmut says."""


def settings(module: str) -> str:
    """What tells mutmut to change one module, and which tests judge it."""
    return "\n".join(
        [
            "\n[tool.mutmut]",
            f"source_paths = {json.dumps(SOURCES)}",
            f"only_mutate = {json.dumps([module])}",
            f"pytest_add_cli_args_test_selection = {json.dumps(MODULES[module])}",
            'pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "tests.mutants.fastest"]',
            "track_dependencies = false",
            "use_git_change_detection = false\n",
        ]
    )


def folder(module: str, place: Path) -> Path:
    """The folder for the sources with a module's mutants."""
    return place / module.removesuffix(".py").replace("/", "-")


def run(module: str, place: Path, jobs: int) -> None:
    """Let mutmut try all mutants of a module in a copy of the sources."""
    own = folder(module, place)
    shutil.rmtree(own, ignore_errors=True)
    for name in (*SOURCES, "tests"):
        shutil.copytree(ROOT / name, own / name, ignore=shutil.ignore_patterns("__pycache__"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (own / "pyproject.toml").write_text(project + settings(module), "utf-8")
    with (own / "log").open("wb") as log:
        command = [*MUTMUT, "--max-children", str(jobs)]
        surroundings = os.environ | SURROUNDINGS
        subprocess.run(command, cwd=own, env=surroundings, stdout=log, stderr=log, check=False)


def outcome(module: str, place: Path) -> tuple[str, dict[str, int | None]]:
    """Return a module with its mutants as mutmut has written it, and the exit code of each."""
    own = folder(module, place)
    meta, log = own / "mutants" / f"{module}.meta", own / "log"
    codes = json.loads(meta.read_text("utf-8"))["exit_code_by_key"] if meta.is_file() else {}
    if not codes or None in codes.values():
        end = log.read_text("utf-8", "replace")[-2000:] if log.is_file() else "nothing"
        raise RuntimeError(f"mutmut did not try all mutants of {module}: {log} ends in\n{end}")
    return (own / "mutants" / module).read_text("utf-8"), codes


def main(asked: Arguments) -> int:
    """Try all mutants, print the table and what survived, and return the exit code."""
    reasons, found = read_reasons(REASONS), dict[str, list[Mutant]]()
    for module in asked.only or MODULES:
        began = time.monotonic()
        if not asked.again:
            run(module, asked.place, asked.jobs)
        found[module] = judge(module, *outcome(module, asked.place), reasons)
        taken = time.monotonic() - began
        print(f"{module}: {len(found[module])} mutants, {taken:.0f} s", flush=True)
    for mutants in found.values():
        if text := told(mutants):
            print(text)
    for change in idle(found, reasons):
        print(f"explained, but not there or killed: {change}")
    print(table(found))
    return 0 if all(score(mutants) >= ENOUGH for mutants in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, prog="python -m tests.mutants", description=__doc__)))
