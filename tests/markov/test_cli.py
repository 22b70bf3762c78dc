"""The command lines: what they write, and one clear line with exit code 2 for what they refuse,
before any work.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from figures.__main__ import cli as figures_cli
from markov.__main__ import Grid, Unlearn, cli, experiment, points
from markov.diagnostics import COLUMNS
from markov.errors import InvalidInput
from markov.files import storage
from markov.models import Transformer
from markov.objectives import gradient_ascent, npo, simnpo

SMALL = [
    "--retain-count",
    "40",
    "--forget-count",
    "20",
    "--epochs",
    "1",
    "--steps",
    "2",
    "--width",
    "8",
    "--depth",
    "1",
]


def call(*arguments: str, module: str = "markov") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120
    )


def test_unlearn_writes_a_table_with_its_provenance_and_prints_a_summary(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run.parquet"
    done = call(
        "unlearn",
        "--case",
        "length",
        "--objective",
        "simnpo",
        "--beta",
        "4",
        *SMALL,
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    frame = storage.read_table(out)
    assert set(COLUMNS) == set(frame.columns)
    assert sorted(set(frame["step"])) == [0, 1, 2]
    assert frame.attrs["provenance"]["settings"][0]["objective"]["beta"] == 4.0
    assert "forget2" in done.stdout and "nats" in done.stdout
    assert "%|" not in done.stderr  # no progress bar where nobody watches


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("leakage", ["--leakage", "1.5"]),
        ("leakage", ["--leakage", "0"]),
        ("set_size", ["--set-size", "4"]),
        ("forget2_length", ["--forget2-length", "1"]),
        ("retain_count", ["--retain-count", "1"]),
        ("forget1_count", ["--forget-count", "0"]),
        ("beta", ["--beta", "-0.1"]),
        ("beta", ["--objective", "gradient_ascent", "--beta", "1"]),
        ("gamma", ["--gamma", "nan"]),
        ("steps", ["--steps", "0"]),
        ("heads", ["--heads", "3"]),
        ("record_every", ["--record-every", "0"]),
        ("jobs", ["--jobs", "0"]),
        ("retain_weight", ["--retain-weight", "1"]),
        ("clip", ["--clip", "0"]),
        ("device", ["--device", "gpu"]),
        ("device", ["--device", "cuda:99"]),
        ("out", ["--out", "/dev/null/run.parquet"]),
    ],
)
def test_bad_input_is_one_line_with_field_value_and_what_is_allowed(
    field: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["unlearn", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {field} = ") and "is not allowed" in line


FEW = "--retain-count 60 --forget-count 60 --epochs 1 --steps 2 --width 8 --depth 1 --heads 1"
GRID = f"grid {FEW} --seed 0 1 2 3 4 5 6 7 8 --retain-length 6".split()


def test_the_parts_of_a_grid_are_collected_into_the_bytes_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "one"))
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    assert cli([*GRID, "--out", str(whole)]) == 0
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "other"))
    words = [*GRID, "--out", str(parts)]
    assert cli([*words, "--part", "2/3"]) == 0
    assert "part 2/3: 1 ensembles; of the whole grid 2 are missing" in capsys.readouterr().out
    assert cli([*words, "--collect"]) == 2
    assert capsys.readouterr().err.startswith("error: collect = True is not allowed: left out, or ")
    assert cli([*words, "--part", "0/3"]) == cli([*words, "--part", "1/3"]) == 0
    assert not parts.exists()
    assert cli([*words, "--collect"]) == 0
    assert parts.read_bytes() == whole.read_bytes()
    assert list((tmp_path / "other" / "unfinished").iterdir()) == []


@pytest.mark.parametrize("text", ["3/3", "1", "a/3", "-1/3", "0/0", "1/3/5", "0 / 3", ""])
def test_what_is_no_part_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli([*GRID, f"--part={text}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: part = {text!r} is not allowed: I/N with ")


def test_a_part_is_not_collected(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli([*GRID, "--part", "0/3", "--collect"]) == 2
    assert capsys.readouterr().err == (
        "error: collect = True is not allowed: left out beside part\n"
    )


def test_unknown_arguments_exit_with_two() -> None:
    with pytest.raises(SystemExit) as caught:
        cli(["unlearn", "--optimizer", "lion"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("field", "arguments"),
    [("figure", ["fig5"]), ("seeds", ["--seeds", "0"]), ("jobs", ["--jobs", "0"])],
)
def test_figures_refuse_bad_input_before_any_work(
    field: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures_cli([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {field} = ")
    assert list(tmp_path.iterdir()) == []


def test_figures_refuse_an_output_folder_that_cannot_be_written() -> None:
    done = call("tradeoff", "--quick", "--out", "/dev/null/out", module="figures")
    assert done.returncode == 2
    assert "error: out = '/dev/null/out'" in done.stderr


def test_help_teaches() -> None:
    text = call("unlearn", "--help").stdout
    words = ("--beta", "--gamma", "adamw_transformers", "Example", "default", "_matched")
    for word in (*words, "--clip", "--weighting", "magnitude", "allocation"):
        assert word in text


def test_the_command_line_says_what_an_experiment_is() -> None:
    one = experiment(
        Unlearn(
            case="memorisation", objective="npo", architecture="released", forget2_length=30, seed=3
        )
    )
    assert one.objective == npo(1.0)
    assert one.case.lengths == {"retain": 20, "forget1": 20, "forget2": 30}
    assert one.model == Transformer.released(context=29)
    assert one.seed == 3
    assert experiment(Unlearn(objective="simnpo", gamma=0.5)).objective == simnpo(4.0, 0.5)
    assert experiment(Unlearn(objective="gradient_ascent")).objective == gradient_ascent()
    assert experiment(Unlearn(steps=5, record_every=2)).recorded == (0, 2, 4, 5)
    part = experiment(Unlearn(weighting="allocation", clip=0.5, optimizer="sgd_matched"))
    assert (part.weighting, part.clip, part.optimizer) == ("allocation", 0.5, "sgd_matched")


def test_a_grid_is_the_product_of_its_axes_and_needs_values_on_each() -> None:
    command = Grid(
        case=("length", "memorisation"),
        objective=("npo", "simnpo"),
        beta=(),
        seed=(0, 1, 2),
        steps=7,
    )
    experiments = [experiment(point) for point in points(command)]
    assert len(set(experiments)) == 12
    assert {one.objective for one in experiments} == {npo(0.2), npo(1.0), simnpo(4.0)}
    assert {one.steps for one in experiments} == {7}
    with pytest.raises(InvalidInput, match="seed"):
        points(Grid(seed=()))


def test_nothing_is_written_when_a_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("markov.running.run.run", interrupted)
    assert cli(["unlearn", "--out", str(tmp_path / "run.parquet")]) == 130
    assert list(tmp_path.iterdir()) == []
