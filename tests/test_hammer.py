"""The fuzzer knows every way in which a program can go wrong, and finds none of them here.

A small part of what `make hammer` tries is tried, always the same; programs that are made to
misbehave show that each class would be seen.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm.__main__ import ACTIONS
from markov.files import leftovers
from markov.files.folders import CLAIM
from tests.hammer.__main__ import KEPT, Tried, attempt, keep, line, table
from tests.hammer.bases import bases
from tests.hammer.cases import once
from tests.hammer.children import Job, Limits, begin, end
from tests.hammer.commands import words_of
from tests.hammer.judging import CLASSES, DEFECTS, OK, REFUSED
from tests.hammer.kinds import KINDS, Name, case_of, names, workplace
from tests.hammer.mutating import changed_json, json_text
from tests.hammer.options import COMMANDS, options_of, values_of
from tests.hammer.world import Box, box
from tests.test_readme import ROOT, rows

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied by fork")
FEW = Limits(seconds=1.5, idle=0.5, memory=200 << 20, file=1 << 20)
SEED, TRIED = 7, 60
PAGE = (ROOT / "notebooks" / "hard_to_break.md").read_text("utf-8")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Box]:
    """A box with an empty cache."""
    (tmp_path / "cache").mkdir()
    with box(tmp_path, tmp_path / "box") as found:
        yield found


def told(line: str, code: int, *, write: str | None = None) -> int:
    """End with a line on standard error, after something was written."""
    if write is not None:
        Path(write).parent.mkdir(exist_ok=True)
        Path(write).write_text("x")
    print(line, file=sys.stderr)
    return code


def raises() -> int:
    raise ValueError("no number")


def waits() -> int:
    time.sleep(60)
    return 0


def works() -> int:
    while True:
        pass


def waits_for_a_pipe() -> int:
    return len(Path("../odd/fifo").read_bytes())


def eats() -> int:
    held = [b"x" * (50 << 20) for _ in range(20) if not time.sleep(0.05)]
    return len(held)


def dies() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def overwrites() -> int:
    Path("../odd/kept/mine").write_text("mine now")
    return told("error: it was too late", 2)


def writes_in_its_claim() -> int:
    Path("run").mkdir()
    Path("run", CLAIM).write_text("{}")
    return told("error: x = 3 is not allowed: 2", 2, write="run/state")


MISBEHAVING: dict[str, list[Job]] = {
    "traceback": [
        raises,
        lambda: told("error: ValueError: no (this should not happen)", 1),
        lambda: told("Traceback (most recent call last):\n  x\nerror: x", 2),
        lambda: len(print("\ud800") or ""),
    ],
    "hang": [waits, works, waits_for_a_pipe],
    "memory": [eats, lambda: told("error: out of memory (x); y take less", 2)],
    "partial": [
        lambda: told("error: too late", 2, write="out.parquet"),
        lambda: told("", 0, write=f"out/{leftovers.partial_name('x')}"),
        overwrites,
    ],
    "died": [dies, lambda: 5],
    "untidy": [
        lambda: told("error: one\nerror: two", 2),
        lambda: told("what a library says\nerror: one", 2),
        lambda: 2,
    ],
    OK: [lambda: 0, lambda: told("", 0, write="out.parquet")],
    REFUSED: [
        lambda: told("note: x\nwarning: y\nerror: x = 3 is not allowed: 2", 2),
        lambda: sys.exit(2),
        writes_in_its_claim,
    ],
}


@pytest.mark.parametrize(
    ("kind", "job"), [(kind, job) for kind, jobs in MISBEHAVING.items() for job in jobs]
)
def test_every_way_to_misbehave_is_seen(kind: str, job: Job, own: Box) -> None:
    result = once(own, job, limits=FEW)
    assert result.verdict.kind == kind, result
    assert kind in CLASSES


def test_what_accepts_nonsense_is_seen_and_so_is_what_is_wrong_with_an_output(own: Box) -> None:
    refusing: Job = lambda: told("error: x = 3 is not allowed: 2", 2)  # noqa: E731
    assert once(own, lambda: 0, must_refuse=True).verdict.kind == "success"
    assert once(own, refusing, must_refuse=True).verdict.kind == REFUSED
    wrong = once(own, lambda: 0, check=lambda box: "nothing there")
    assert wrong.verdict == ("success", "nothing there")


def test_a_signal_comes_when_it_should_and_children_end_with_their_parent(own: Box) -> None:
    def work() -> int:
        if (child := os.fork()) == 0:
            time.sleep(60)
        Path("child").write_text(str(child))
        return waits()

    one = begin(work, own.work, own.logs, environment=own.environment)
    (found,) = end([one], signals=[(0, 0.3, signal.SIGTERM)])
    assert found.code == -signal.SIGTERM and found.seconds < 3
    child = int((own.work / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        raise AssertionError("its child lives on")


def test_every_option_of_every_command_can_be_given_something(tmp_path: Path) -> None:
    known = bases(tmp_path)
    assert {base.command for base in known.values()} == set(COMMANDS)
    assert len(ACTIONS) == sum(name.startswith("llm ") for name in COMMANDS)
    for base in known.values():
        options = options_of(COMMANDS[base.command])
        assert base.options.keys() <= options.keys()
        for option in options.values():
            values = values_of(option, folder=base.folder)
            assert (len(values) > 1) == (option.kind != "flag"), option


def test_a_seed_makes_the_same_cases_again_and_another_one_others(tmp_path: Path) -> None:
    chosen = [name for name in names(200) if name.kind != "kills"]
    first, again = ([case_of(tmp_path, 3, name).told for name in chosen] for _ in range(2))
    assert first == again
    assert first != [case_of(tmp_path, 4, name).told for name in chosen]
    shares = {name.kind for name in names(200)}
    assert shares == set(KINDS) and len(set(names(2000))) == 2000
    assert names(3, "files") == [Name("files", number) for number in range(3)]


def test_words_are_as_a_shell_would_give_them() -> None:
    assert words_of("llm score", {"model": ("m",), "noise": ("-0.5",), "gradients": ()}) == [
        *("llm", "score", "--model", "m", "--noise=-0.5", "--gradients")
    ]
    assert words_of("figures", {"quick": (), "names": ("weights",)}) == [
        *("figures", "weights", "--quick")
    ]


def test_changed_json_is_valid_or_holds_one_thing_that_is_not() -> None:
    content = {"a": [1, {"b": "x"}], "c": None}
    texts = [json_text(changed_json(content, random.Random(n))) for n in range(300)]
    assert len(set(texts)) > 60 and content == {"a": [1, {"b": "x"}], "c": None}
    assert any("1e400" in text for text in texts) and not any("@RAW" in text for text in texts)


def test_the_table_counts_by_row_and_class() -> None:
    found = [
        Tried("files:0", "files", "a", OK, "", 1.0),
        Tried("files:1", "files", "b", "hang", "why", 2.0),
        Tried("python:0", "python", "c", REFUSED, "", 0.5),
    ]
    counts = table(found)
    assert counts.columns.tolist() == ["row", *CLASSES, "cases", "seconds"]
    expected = {"files": [1, 0, 2, 3], "python": [0, 1, 1, 0], "all": [1, 1, 3, 4]}
    for row, numbers in expected.items():
        (own,) = counts[counts["row"] == row].to_dict("records")
        assert [own[name] for name in ("ok", "refused", "cases", "seconds")] == numbers
        assert own["hang"] == (row != "python")
        assert sum(own[name] for name in CLASSES) == own["cases"]
    assert "--seed 5 --case files:1" in line(found[1], 5)


def test_the_counts_of_a_seed_take_the_place_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hammer.__main__.KEPT", tmp_path / "hammer.csv")
    one = [Tried("files:0", "files", "a", OK, "", 1.0)]
    for seed, found in ((2, one), (1, one * 2), (2, one * 3)):
        keep(table(found), seed)
    kept = pd.read_csv(tmp_path / "hammer.csv")
    assert kept.columns[:3].tolist() == ["seed", "row", "ok"]
    assert kept["seed"].tolist() == [1, 1, 2, 2] and kept["ok"].tolist() == [2, 2, 3, 3]


def test_the_book_shows_the_counts_that_were_kept() -> None:
    counts: Any = pd.read_csv(KEPT)
    assert counts["seed"].nunique() >= 3
    both: Any = counts.drop(columns="seed").groupby("row").sum()
    assert both.loc["all", "cases"] >= 2000 * counts["seed"].nunique()
    shown = rows(PAGE, "What was tried")
    assert [row[0] for row in shown] == [*both.index.drop("all"), "all"]
    for row, *cells in shown:
        own = both.loc[row]
        assert cells == [f"{own[name]:,}" for name in ("cases", OK, REFUSED, *DEFECTS)]
    seeds = ", ".join(map(str, counts["seed"].unique()[:-1]))
    assert f"seeds {seeds} and {counts['seed'].iloc[-1]}" in " ".join(PAGE.split())


def cut() -> list[Name]:
    """What is tried here: of each kind that takes little time its share, and several at once."""
    quick = [name for name in names(2000) if name.kind in ("commands", "files", "python", "caches")]
    return [*quick[: TRIED - 2], *(Name("together", number) for number in range(2))]


@pytest.mark.slow
def test_a_small_part_of_what_is_hammered_has_no_defect(tmp_path: Path) -> None:
    with workplace(tmp_path) as given:
        found = [attempt(given, SEED, name, given / "worker") for name in cut()]
    wrong = [line(one, SEED) for one in found if one.kind in DEFECTS]
    assert wrong == [], "\n".join(wrong)
    assert len(found) == TRIED and {one.kind for one in found} == {OK, REFUSED}
