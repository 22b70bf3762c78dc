"""What was finished when a command was stopped is found again and not done twice, and is gone
once all is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from figures import cache
from figures.experiments import table
from figures.scale import Scale
from llm.__main__ import cli
from llm.data import tofu
from llm.models.saving import save
from llm.models.small_authors import build
from markov.__main__ import cli as markov_cli
from markov.__main__ import experiment, points
from markov.files import storage
from markov.running import run as running
from tests.test_damage import FORGET, GRID, TINY

RATES = tuple(number * 1e-4 for number in range(1, 12))  # of two ensembles


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


class Counted:
    """Calls a function, but for the call of one number, which is interrupted."""

    def __init__(self, call: Callable[..., Any], stopped: int | None = None) -> None:
        self.call, self.stopped, self.calls = call, stopped, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.stopped:
            raise KeyboardInterrupt
        return self.call(*args, **options)


def stopped_and_given_again(
    monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[..., Any], command: Callable[[], int]
) -> int:
    """How often work is done by a command that is given again, after one that was stopped in its
    second call.
    """
    with monkeypatch.context() as patch:
        patch.setattr(name, Counted(work, 2))
        assert command() == 130
    counted = Counted(work)
    with monkeypatch.context() as patch:
        patch.setattr(name, counted)
        assert command() == 0
    return counted.calls


def test_a_grid_that_was_stopped_runs_what_is_left_and_writes_the_same(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "grid",
        "--objective",
        "npo",
        "--epochs",
        "1",
        "--width",
        "8",
        "--depth",
        "1",
        "--heads",
        "1",
    ]
    words += [
        "--steps",
        "2",
        "--retain-count",
        "60",
        "--forget-count",
        "60",
        "--learning-rate",
        *map(str, RATES),
    ]

    def grid(out: str) -> int:
        return markov_cli([*words, "--out", out])

    assert grid("whole.parquet") == 0
    table = running._table
    assert (
        stopped_and_given_again(
            monkeypatch, "markov.running.run._table", table, lambda: grid("parts.parquet")
        )
        == 1
    )
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert list((own / "unfinished").iterdir()) == []


def test_a_table_of_figures_that_was_stopped_runs_what_is_left(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [experiment(point) for point in points(replace(GRID, learning_rate=RATES))]
    context = cache.Context(scale=Scale(), n_jobs=1, progress=False)

    def drawn() -> int:
        try:
            table(context, wanted)
        except KeyboardInterrupt:
            return 130
        return 0

    name = "markov.running.run._table"
    assert stopped_and_given_again(monkeypatch, name, running._table, drawn) == 1
    found = {path.name: path.read_bytes() for path in (own / "tables").iterdir()}
    assert len(found) == len(RATES) and list((own / "unfinished").iterdir()) == []
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "other"))
    assert drawn() == 0
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "other" / "tables").iterdir()
    } == found


def test_parts_of_a_table_are_found_again() -> None:
    context = cache.Context(scale=Scale(), n_jobs=1, progress=False)

    def part(job: int) -> pd.DataFrame:
        return pd.DataFrame({"x": [job]})

    counted = Counted(part, 2)
    with pytest.raises(KeyboardInterrupt):
        cache.cached_each(context, "figures.theory.optimizer", [1, 2, 3], counted)
    counted = Counted(part)
    assert cache.cached_each(context, "figures.theory.optimizer", [1, 2, 3], counted)[
        "x"
    ].tolist() == [1, 2, 3]
    assert counted.calls == 2


def test_attacks_that_were_finished_are_not_made_again(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.evaluation.relearning import relearn

    save(build(TINY, "original", progress=False), tmp_path / "model", {})
    tofu.write(FORGET, tmp_path / "forget.json")
    words = [
        "relearn",
        "--model",
        "model",
        "--device",
        "cpu",
        "--data",
        "forget.json",
        "--epochs",
        "1",
        "--batch",
        "2",
    ]

    def attacked(out: str) -> int:
        return cli([*words, "--repeats", "1", "--out", out])

    assert attacked("whole.parquet") == 0
    assert (
        stopped_and_given_again(
            monkeypatch,
            "llm.evaluation.relearning.relearn",
            relearn,
            lambda: attacked("parts.parquet"),
        )
        == 1
    )
    whole, parts = (storage.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts, check_exact=True, check_flags=False)
    assert list((own / "unfinished").iterdir()) == []


def test_sets_that_were_scored_or_written_are_not_made_again(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.evaluation.tofu import generate
    from llm.models.answers import answer_log

    save(build(TINY, "original", progress=False), tmp_path / "model", {})
    # Not by ascending index, and with other answers than numbers of them would sort.
    tofu.write(FORGET[::-1], tmp_path / "forget.json")
    tofu.write(FORGET[:2], tmp_path / "retain.json")
    words = "evaluate --model model --device cpu --data forget.json --retain-data retain.json"

    def evaluated(out: str) -> int:
        return cli([*words.split(), "--max-new-tokens", "4", "--out", out])

    assert evaluated("whole") == 0
    scored = Counted(answer_log)
    with monkeypatch.context() as patch:
        patch.setattr("llm.evaluation.tofu.answer_log", scored)
        written = stopped_and_given_again(
            patch, "llm.evaluation.tofu.generate", generate, lambda: evaluated("parts")
        )
    assert (scored.calls, written) == (2, 1)
    names = ("TOFU_EVAL.json", "TOFU_SUMMARY.json", "measures.parquet")
    whole, parts = (
        {name: (tmp_path / place / name).read_bytes() for name in names}
        for place in ("whole", "parts")
    )
    logs = [json.loads(one["TOFU_EVAL.json"]) for one in (whole, parts)]
    for log in logs:
        assert log.pop("manifest")  # which names the folder
    assert logs[0] == logs[1]
    assert whole["TOFU_SUMMARY.json"] == parts["TOFU_SUMMARY.json"]
    one, other = (storage.read_table(tmp_path / place / names[2]) for place in ("whole", "parts"))
    pd.testing.assert_frame_equal(one, other, check_exact=True, check_flags=False)
    assert sorted(one.name for one in (tmp_path / "parts").iterdir()) == sorted(
        [".simnpo-lab.json", *names]
    )


def test_an_evaluation_that_is_refused_late_leaves_its_folder_free(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.models.answers import answer_log

    scored = Counted(answer_log)
    monkeypatch.setattr("llm.evaluation.tofu.answer_log", scored)
    save(build(TINY, "original", progress=False), tmp_path / "model", {})
    tofu.write(FORGET, tmp_path / "forget.json")
    words = "evaluate --model model --device cpu --data forget.json --retain-data forget.json"

    def evaluated(tokens: int) -> int:
        return cli([*words.split(), "--max-new-tokens", str(tokens), "--out", "found"])

    assert evaluated(59999) == 2  # more than the model has places: known when answers are written
    assert "max_new_tokens = 59999" in capsys.readouterr().err and scored.calls == 1
    assert not (tmp_path / "found").exists()
    assert evaluated(2) == 0


def test_a_build_copies_what_is_not_there_and_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.models.small_authors.DefaultModels", lambda **_: TINY)

    def built() -> int:
        return cli(
            ["build", "--kinds", "original", "retrained", "--device", "cpu", "--out", "found"]
        )

    from llm.models.small_authors import build as make

    assert stopped_and_given_again(monkeypatch, "llm.models.small_authors.build", make, built) == 2
    edited = tmp_path / "found" / "data" / "forget10.json"
    edited.write_text("edited")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "found").rglob("*")}
    assert built() == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "found").rglob("*")} == before
    assert edited.read_text() == "edited"
