"""What `python -m figures` cannot draw is refused in one line before any figure is begun, and what
the cache holds of other makes is made again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from figures import __main__ as command
from figures import cache, experiments, progress
from figures.cache import Context, cached
from figures.catalogue import BY_NAME
from figures.drawn_of import COMPARED, LOGGED
from markov.errors import InvalidInput
from markov.files import storage

ORIGINAL = "authors:original"
FRAME = pd.DataFrame({"a": [1, 2]})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def refused(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """Return the line with which a call is refused, in which nothing may be drawn."""

    def draw(*_: object) -> None:
        raise AssertionError("nothing may be drawn")

    monkeypatch.setattr(command, "draw", draw)
    assert command.cli([*words.split(), "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert not (tmp_path / "out").exists()
    return lines[0]


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("before", ["", "llm_weights_length"])
def test_a_model_without_its_retrained_one_is_refused_where_they_are_compared(
    name: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    words = f"{before} {name} --model {ORIGINAL}"
    line = refused(words, tmp_path, monkeypatch, capsys)
    said = "retrained = None is not allowed: the model retrained without the forget data"
    assert f"{said}, for {name}" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tradeoff --logs a b", "logs = "),
        ("llm_bias --logs /nope /nope", "/nope"),
        ("tradeoff llm_truth_ratio --logs /dev/zero /dev/zero", "/dev/zero"),
        ("tradeoff --evidence .", "evidence = "),
        ("ledger --evidence /dev/null", "evidence = '/dev/null' is not allowed: a folder"),
        ("ledger --evidence ~/nope", "evidence = "),
        ("weights --architectures", "architectures = True is not allowed: left out, or given for"),
        ("weights --seeds 1000000000000", "seeds = 1000000000000 is not allowed: a whole number"),
        ("weights --seeds 100000000000000000000", "seeds = 100000000000000000000 is not"),
        ("weights --jobs 100000000", "jobs = 100000000 is not allowed: -1 or a whole number from"),
        ("llm_bias --runs /nope", "/nope"),
        ("llm_study --study /dev/zero", "study = '/dev/zero'"),
        (f"weights --study {'x' * 5000}", "study = 'xxx"),
        (
            f"llm_bias --model {ORIGINAL} --retrained authors:retrained --data nope.json",
            "nope.json",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_figure(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    line = refused(words, tmp_path, monkeypatch, capsys)
    assert said in line and len(line) < 900


def test_a_place_where_a_picture_cannot_go_is_refused_before_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(command, "draw", None)
    place = tmp_path / "out"
    place.mkdir()
    os.mkfifo(place / "weights.png")
    assert command.cli(["weights", "--out", str(place)]) == 2
    assert "weights.png" in capsys.readouterr().err
    assert os.listdir(place) == ["weights.png"]


def test_every_figure_that_compares_or_shows_logs_is_one():
    assert {*COMPARED, *LOGGED} <= {*BY_NAME}


@pytest.mark.parametrize(
    "content",
    [
        *("", "nonsense", "[" * 5000, "[]", "5", "null", '{"a": 5}', '{"a": {"computed": "x"}}'),
        *('{"a": {"computed": NaN}}', '{"a": {"computed": -1}}', '{"a": {"computed": true}}'),
        *('{"a": {"computed": 1e300}}', '{"a": {"redrawn": %s}}' % ("9" * 400), '{"a": {"b": 1}}'),
        *('{"a": {"code": 5}}', '{"a": {"code": "\\ud800"}}'),
    ],
)
def test_a_journal_that_is_none_is_set_aside_and_stops_nothing(
    content: str, tmp_path: Path, capsys: Any
):
    path = storage.cache_dir() / progress.JOURNAL
    path.write_text(content)
    assert progress.expected(["weights"], Context())["weights"].seconds > 0
    err = capsys.readouterr().err
    assert "is broken" in err and len(err.strip().splitlines()) == 1
    assert path.with_name(f"{path.name}.broken").read_text() == content
    with progress.timed("weights", Context()):
        pass
    assert len(json.loads(path.read_text())) == 1


def test_a_pipe_in_place_of_the_journal_does_not_wait(tmp_path: Path, capsys: Any):
    os.mkfifo(storage.cache_dir() / progress.JOURNAL)
    assert progress.expected(["weights"], Context())["weights"].seconds > 0
    assert "a pipe lies there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "numbers", ["[3]", "[-1]", "[1.5]", "5", "[" * 5000, "[true]", "{}", '["1"]']
)
def test_numbers_of_experiments_that_are_none_are_made_again(
    numbers: str, tmp_path: Path, capsys: Any
):
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "missing.json").write_text(numbers)
    assert experiments._begun(parts, [0, 2], 3) == [0, 2]
    assert "is broken" in capsys.readouterr().err
    assert experiments._begun(parts, [1], 3) == [0, 2]


@pytest.mark.parametrize("provenance", [{}, {"fingerprint": "another"}, {"fingerprint": 5}])
def test_a_cached_table_of_something_else_is_made_again(provenance: dict[str, object], capsys: Any):
    made = []

    def compute() -> pd.DataFrame:
        made.append(1)
        return FRAME

    wanted = cached(Context(), "figures.statistics", 1, compute)
    (path,) = (storage.cache_dir() / "tables").iterdir()
    storage.write_table(pd.DataFrame({"b": [0]}), path, provenance)
    assert cached(Context(), "figures.statistics", 1, compute).equals(wanted) and len(made) == 2
    assert "is broken" in capsys.readouterr().err
    assert cached(Context(), "figures.statistics", 1, compute).equals(wanted) and len(made) == 2
    assert cache.is_cached(Context(), "figures.statistics", 1)


def test_a_table_is_read_where_nobody_asks_whose_it_is(tmp_path: Path):
    storage.write_table(FRAME, tmp_path / "a.parquet", {})
    found = cache.read_fresh(Context(), tmp_path / "a.parquet")
    assert found is not None and found.equals(FRAME)
    with pytest.raises(InvalidInput):
        storage.read_table(tmp_path / "b.parquet")
