"""A sweep in parts, or by the workers of a cluster: the same bytes, and nothing is made twice."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llm
from llm.__main__ import cli
from llm.sweeps import parts as parts_module
from llm.sweeps import sweep as sweep_module
from llm.sweeps.parts import make_part, missing
from llm.sweeps.sweep import sweep
from markov.errors import InvalidInput
from tests.deaths import killed_with_its_workers
from tests.helpers import files_in
from tests.llm.sweeps.fatal import made, planned, task_of

pytestmark = pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning")
TABLES = ("sweep.parquet", "summary.parquet", "summary.md", "summary.tex")


def need_dask() -> None:
    """Dask is an extra of its own."""
    pytest.importorskip("distributed", reason="dask is not installed")


@pytest.fixture
def words(place: Path) -> list[str]:
    """A small sweep of four runs, into a folder `out`."""
    found = ["--model", str(place / "model"), "--retrained", str(place / "retrained")]
    found += ["--data", str(place / "forget10.json")]
    found += ["--retain-data", str(place / "retain90.json"), "--epochs", "1", "--batch", "3"]
    found += ["--methods", "npo:0.1@1", "gradient_ascent", "--learning-rate", "1e-3"]
    return ["sweep", *found, "--max-new-tokens", "2", "--device", "cpu", "--out", "out"]


SEEDS, JOBS = ["--seeds", "0", "1"], ["--jobs", "1"]


def test_parts_are_collected_into_the_bytes_of_the_whole(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def written(name: str, *calls: list[str]) -> dict[str, bytes]:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        for more in calls:
            assert cli([*words, *SEEDS, *JOBS, *more]) == 0
        return {one: (tmp_path / name / "out" / one).read_bytes() for one in TABLES}

    whole = written("whole", [])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli([*words, *SEEDS, *JOBS, "--part", "2/3"]) == 0
    assert "part 2/3: 2 models; of the whole sweep 4 are missing" in capsys.readouterr().out
    # Its own runs, and no others: the models are dealt out in turn.
    there = sorted(path.parent.name for path in Path("out").glob("*/TOFU_EVAL.json"))
    assert there == ["gradient_ascent_seed1", "npo_0.1_lambda1_seed0"]
    assert cli([*words, *SEEDS, *JOBS, "--collect"]) == 2
    assert capsys.readouterr().err == (
        "error: collect = True is not allowed: left out, or given when all parts are made (4 "
        "models are missing: original, retrained, npo_0.1_lambda1_seed1, gradient_ascent_seed0)\n"
    )
    assert not any((tmp_path / "out" / name).exists() for name in TABLES)
    before = files_in(tmp_path / "out")
    for part in ("0/3", "1/3", "2/3"):
        assert cli([*words, *SEEDS, *JOBS, "--part", part]) == 0
    kept = {path: file for path, file in before.items() if path.parent != tmp_path / "out"}
    assert len(kept) > 4 and kept.items() <= files_in(tmp_path / "out").items()
    monkeypatch.setattr(sweep_module, "load_model", None)  # nothing is made any more
    assert cli([*words, *SEEDS, *JOBS, "--collect"]) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in TABLES} == whole


def test_a_seed_more_changes_no_byte_of_the_others(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli([*words, *JOBS, "--seeds", "0"]) == 0
    before, few = files_in(tmp_path / "out"), pd.read_parquet("out/sweep.parquet")
    assert cli([*words, *JOBS, "--seeds", "0", "1"]) == 0
    kept = {path: file for path, file in before.items() if path.parent != tmp_path / "out"}
    assert len(kept) > 4 and kept.items() <= files_in(tmp_path / "out").items()
    more = pd.read_parquet("out/sweep.parquet")
    assert len(more) > len(few)
    old = more[more["seed"] != 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, few, check_exact=True)


@pytest.mark.parametrize("text", ["3/3", "1", "-1/3", "0/0", ""])
def test_what_is_no_part_is_refused_before_any_work(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli([*words, "--out", str(tmp_path / "out"), f"--part={text}"]) == 2
    told = f"error: part = {text!r} is not allowed: I/N with "
    assert capsys.readouterr().err.startswith(told) and not (tmp_path / "out").exists()


def test_a_part_is_not_collected_and_has_no_tables(
    place: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli([*words, "--part", "0/3", "--collect"]) == 2
    told = "error: collect = True is not allowed: left out beside part\n"
    assert capsys.readouterr().err == told
    assert cli([*words, "--scheduler", "tcp://here:1"]) == 2
    assert capsys.readouterr().err.startswith("error: scheduler = 'tcp://here:1' is not allowed: ")
    with pytest.raises(InvalidInput, match="part = '0/3' is not allowed: left out: a part has no"):
        llm.sweep(
            ["gradient_ascent"],
            out=tmp_path / "out",
            model=place / "model",
            retrained=place / "retrained",
            data=place / "forget10.json",
            retain_data=place / "retain90.json",
            part="0/3",
        )
    with pytest.raises(InvalidInput, match="part = 3"):
        make_part(tmp_path / "out", task_of(place, tmp_path), planned(), 3, 3)
    assert not (tmp_path / "out").exists()


def test_a_part_that_measures_along_the_way_makes_the_retrained_model_it_compares_with(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(parts_module, "checked_sets", lambda *_: None)
    monkeypatch.setattr(parts_module, "several", lambda label, jobs, **_: made.extend(jobs))
    runs = planned(("gradient_ascent",), seeds=(0,))
    object.__setattr__(runs[0], "measured", (0,))
    assert make_part(tmp_path / "out", task_of(place, tmp_path), runs, 2, 3) == 1
    names = [arguments[0].name for _, arguments, _ in made]
    assert names == ["retrained", "gradient_ascent_seed0"]


@pytest.mark.slow
def test_loky_and_dask_write_the_bytes_of_one_process(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_dask()
    found = []
    for name, more in {
        "one": JOBS,
        "loky": ["--jobs", "2"],
        "dask": ["--jobs", "2", "--backend", "dask"],
    }.items():
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert cli([*words, *SEEDS, *more]) == 0
        found.append([(tmp_path / name / "out" / one).read_bytes() for one in TABLES])
    assert found[0] == found[1] == found[2]


def check_restart(
    place: Path, out: Path, victim: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there at a death is never made again, and a restart makes the others only.

    `left` says whether there are others.
    """
    task = task_of(place, out, victim)
    assert task.death is not None
    kept, there = task.death.kept(), task.death.results()
    assert len(kept) >= 2 and kept.items() <= there.items()
    gone = missing(out, task, planned())
    assert len(gone) == len(planned()) - len(there) and bool(gone) == left
    loaded: list[str] = []
    load = sweep_module.load_model
    noted = lambda *given: loaded.append(given[0].model) or load(*given)  # noqa: E731
    monkeypatch.setattr(sweep_module, "load_model", noted)
    found = sweep(out, task, planned(), n_jobs=1, progress=False)
    assert len(loaded) == len(gone) and there.items() <= task.death.results().items()
    fresh = out.with_name("fresh")
    whole = sweep(fresh, task_of(place, fresh), planned(), n_jobs=1, progress=False)
    pd.testing.assert_frame_equal(found, whole, check_exact=True)


# The same functions hand out chains: there each kind of death is tried on both backends.
@pytest.mark.slow
def test_a_worker_that_is_killed_costs_what_it_had_not_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_dask()
    made(place, tmp_path / "out", 0, "dask")
    check_restart(place, tmp_path / "out", 0, False, monkeypatch)


@pytest.mark.slow
def test_the_death_of_the_command_leaves_what_was_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ", ".join(map(repr, (str(place), str(tmp_path / "out"), "loky", "")))
    code = f"from tests.llm.sweeps.fatal import client; client({words})"
    assert killed_with_its_workers(code) == -signal.SIGKILL
    victim = int(Path(f"{tmp_path / 'out'}.client").read_text("utf-8"))
    check_restart(place, tmp_path / "out", victim, True, monkeypatch)


def test_a_retrained_model_that_cannot_be_compared_is_refused_before_anything_is_evaluated(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.models.source import ModelOptions
    from llm.sweeps import sweep as sweeps

    def evaluated(*_: object, **__: object) -> None:
        raise AssertionError("a model was evaluated")

    monkeypatch.setattr(sweeps, "baseline", evaluated)
    monkeypatch.setattr(parts_module, "run_in", evaluated)
    task = sweeps.Task(
        options=ModelOptions(model=str(place / "model"), device="cpu"),
        retrained="owner/name",
        data=str(place / "forget10.json"),
        retain_data=str(place / "retain90.json"),
    )
    with pytest.raises(InvalidInput) as caught:
        sweeps.sweep(tmp_path / "out", task, [], n_jobs=1, progress=False)
    assert caught.value.value == "owner/name" and not (tmp_path / "out").exists()
    # Nor by the part that has neither of the two models.
    with pytest.raises(InvalidInput) as caught:
        make_part(tmp_path / "out", task, planned(), 2, 3, n_jobs=1, progress=False)
    assert caught.value.value == "owner/name" and not (tmp_path / "out").exists()
