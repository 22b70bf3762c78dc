"""The README says only what is true: its tour runs, its commands and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from figures.catalogue import ALL
from llm.__main__ import parse
from llm.commands.diagnose import Diagnose
from llm.commands.score import Score
from llm.commands.unlearn import Unlearn
from llm.commands.weights import Weights
from llm.unlearning.methods import objective
from markov.__main__ import Grid, experiment, points
from markov.experiments import Experiment
from markov.objectives import Objective

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")


def test_the_tour_runs_and_shows_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    (tour,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = [
        line for line in tour.splitlines() if line and not line.startswith(("from ", "import "))
    ]
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

    from markov.__main__ import Unlearn as UnlearnChains

    kinds = {"unlearn": UnlearnChains, "grid": Grid}
    commands = re.findall(r"^python -m markov (\w+) (.*)$", TEXT, flags=re.MULTILINE)
    assert {name for name, _ in commands} == set(kinds)
    for name, rest in commands:
        command = tyro.cli(kinds[name], args=shlex.split(rest))
        single = points(command) if isinstance(command, Grid) else [command]
        assert all(isinstance(experiment(point), Experiment) for point in single)


def test_the_commands_of_the_language_models_parse() -> None:
    commands = re.findall(r"^python -m llm (\w+ .*)$", TEXT, flags=re.MULTILINE)
    asked = [parse(shlex.split(command)) for command in commands]
    assert {Score, Weights, Unlearn, Diagnose} <= {type(one) for one in asked}
    words = [word for one in asked for word in getattr(one, "objectives", ())]
    words += [one.objective for one in asked if isinstance(one, Unlearn)]
    assert all(isinstance(objective(word), Objective) for word in words)


def test_every_figure_that_is_named_exists() -> None:
    drawn = re.findall(r"make figures ARGS=\"([^\"]*)\"`", TEXT)
    names = [
        word
        for arguments in drawn
        for word in shlex.split(arguments)
        if re.fullmatch(r"[a-z_]+[a-z_0-9]*", word)
    ]
    assert "tradeoff" in names and "llm_bias" in names
    assert set(names) <= set(ALL)
