"""The README says only what is true: its tour runs, its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from markov.__main__ import Grid, experiment, points
from markov.experiments import Experiment

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_the_tour_runs_and_shows_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    (tour,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = [line for line in tour.splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 10
    names: dict[str, pd.DataFrame] = {}
    exec(compile(tour, "README.md", "exec"), names)
    start = names["table"].query("step == 0 and method == 'npo'")
    assert (start["weight"] == 1).all() and (start["weight_std"] == 0).all()
    assert "retain_distance" in capsys.readouterr().out


def test_every_path_of_the_layout_exists() -> None:
    layout = TEXT.split("## Layout")[1].split("```")[1]
    named = re.findall(r"([a-z_]+/(?:[a-z_]+/)?(?:[a-z_]+\.py)?)", layout)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
    for line in layout.splitlines():
        # The second column names modules of the package of the first.
        for module in re.findall(r"  ([a-z]+\.py)", line):
            assert (ROOT / line.split("/")[0] / module).exists(), line


def test_every_picture_exists() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert len(pictures) >= 1
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"(?:`|^)make ([a-z]+)", TEXT, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {"figures", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_the_shell_commands_parse() -> None:
    import tyro

    from markov.__main__ import Unlearn

    kinds = {"unlearn": Unlearn, "grid": Grid}
    commands = re.findall(r"^python -m markov (\w+) (.*)$", TEXT, flags=re.MULTILINE)
    assert {name for name, _ in commands} == set(kinds)
    for name, rest in commands:
        command = tyro.cli(kinds[name], args=shlex.split(rest))
        single = points(command) if isinstance(command, Grid) else [command]
        assert all(isinstance(experiment(point), Experiment) for point in single)
