"""What a fresh clone relies on: pins for everything that is declared, and targets that build
what they need.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

import markov

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [
    *PROJECT["dependencies"],
    *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
]
PINS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]
TARGETS = [
    "benchmark",
    "book",
    "browser",
    "cheat-sheet",
    "check",
    "claims",
    "clean",
    "constraints",
    "figures",
    "figures-all",
    "format",
    "gallery",
    "gate",
    "gpu",
    "gpu-markov",
    "gpu-real",
    "hammer",
    "help",
    "lab",
    "mutants",
    "notebooks",
    "oldest",
    "real",
    "speed",
    "test",
    "test-elsewhere",
]
WITH_NOTEBOOKS = (
    "benchmark",
    "book",
    "browser",
    "check",
    "lab",
    "notebooks",
    "test",
    "test-elsewhere",
)
# The last three take the machine's own packages.
WITHOUT_INSTALLING = ("help", "clean", "gpu", "gpu-markov", "gpu-real")


def normalized(requirement: str) -> str:
    return re.split(r"[\[<>=!~;\s]", requirement)[0].lower().replace("_", "-")


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Without what an outer make, which may be running this test, tells an inner one.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True
    )


def test_every_declared_dependency_is_pinned_once():
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", pin) for pin in PINS), (
        "plain pins only"
    )
    pinned = [normalized(pin) for pin in PINS]
    assert {normalized(requirement) for requirement in DECLARED} <= set(pinned)
    assert len(pinned) == len(set(pinned))
    assert "torch==2.13.0" in PINS


def test_the_pins_satisfy_the_declared_lower_bounds():
    def release(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    pins = dict(pin.split("==") for pin in PINS)
    for requirement in DECLARED:
        assert release(pins[normalized(requirement)]) >= release(requirement.split(">=")[1]), (
            requirement
        )


def test_the_installed_distribution_is_described_as_declared():
    assert (PROJECT["name"], PROJECT["requires-python"]) == ("simnpo-lab", ">=3.11")
    extras = {"llm", "notebooks", "browser", "cluster", "dev", "mutants"}
    assert extras == PROJECT["optional-dependencies"].keys()
    assert re.fullmatch(r"\d+\.\d+\.\d+", markov.__version__)
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_of_the_build_names_an_address_to_install_from():
    for name in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|file:/|--(extra-)?index|--find-links|--hash|@ ", text), (
            name
        )


@pytest.mark.parametrize("target", TARGETS)
def test_make_builds_the_environment_a_target_needs(target: str, tmp_path: Path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    plan = run(tmp_path, "make", "--dry-run", target)
    assert plan.returncode == 0, plan.stderr
    assert ("pip install" in plan.stdout) == (target not in WITHOUT_INSTALLING)
    assert ("[notebooks]" in plan.stdout) == (target in WITH_NOTEBOOKS)


def test_help_is_the_default_and_lists_every_target():
    assert sorted(re.findall(r"^  make ([\w-]+) ", run(ROOT, "make").stdout, re.M)) == TARGETS


def test_arguments_reach_the_figures():
    plan = run(ROOT, "make", "--dry-run", "figures", "ARGS=tradeoff --quick")
    assert plan.stdout.splitlines()[-1].endswith("python -m figures tradeoff --quick")


def test_an_old_python_is_refused_in_one_line_before_anything_is_made(tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    refused = run(tmp_path, "make", "--silent", "test", f"PYTHON={python}")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[0].startswith(
        f"PYTHON = {python} is not allowed: Python 3.11 or newer"
    )
    assert not (tmp_path / ".venv").exists()


STEPS = ["test", "test-elsewhere", "notebooks", "-j 2 check browser"]


@pytest.mark.parametrize("failing", ["", *STEPS])
def test_the_acceptance_script_runs_its_steps_in_order_and_fails_with_any(
    tmp_path: Path, failing: str
):
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    fake = tmp_path / "make"
    fake.write_text(f'#!/bin/sh\necho "$PWD $*"\n[ "$*" != "{failing}" ]\n')
    fake.chmod(0o755)
    for name in ("chromium", "chromedriver"):  # there, so that nothing is installed
        (tmp_path / name).symlink_to(fake)
    outcome = run(tmp_path, "bash", str(script), PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    expected = STEPS[: STEPS.index(failing) + 1] if failing else STEPS
    assert outcome.stdout.splitlines() == [f"{ROOT} {target}" for target in expected]
    assert (outcome.returncode == 0) == (failing == "")
