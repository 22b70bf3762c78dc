"""A folder is written to only if it is new, empty or claimed by the same job, and nothing else
is ever removed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from markov.errors import InvalidInput
from markov.files import folders, leftovers, storage
from markov.files.folders import CLAIM
from tests.helpers import files_in

NAMES = ("table.parquet", "model", "state")
SETTINGS = {"model": "a", "unlearning": {"beta": 0.1, "seed": 0}}


def begin(folder: Path, job: str = "unlearn", made: Any = SETTINGS, **options: Any) -> None:
    folders.claim(folder, job, made, **{"names": NAMES, "passing": ("state",), **options})


def dead_process() -> str:
    """What names a process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{leftovers.machine()}-{ended.pid}"


def passing(result: str, process: str) -> str:
    """A passing name as another process has made it."""
    own = leftovers.partial_name(result)
    return own.replace(leftovers.process(), process)


# --- claims ---


def test_a_new_or_an_empty_folder_may_be_claimed_and_the_same_job_goes_on(tmp_path: Path) -> None:
    for folder in (tmp_path / "new" / "run", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        begin(folder)
        (folder / "model").mkdir()
        before = (folder / CLAIM).read_bytes()
        begin(folder)
        assert (folder / CLAIM).read_bytes() == before and folders.claimed(folder, "unlearn")
        assert not folders.claimed(folder, "evaluate")


@pytest.mark.parametrize(
    "held", ["notes.txt", "model", ".hidden", "epochs.parquet", "model.broken"]
)
def test_a_folder_that_holds_anything_else_is_refused_and_stays_as_it_is(
    tmp_path: Path, held: str
) -> None:
    (tmp_path / "out" / held).mkdir(parents=True)
    (tmp_path / "out" / held / "mine").write_text("mine")
    for refuse in (lambda: begin(tmp_path / "out"), lambda: folders.check_place(tmp_path / "out")):
        with pytest.raises(InvalidInput, match="out = ") as caught:
            refuse()
        assert held in caught.value.allowed and "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [held]
    assert (tmp_path / "out" / held / "mine").read_text() == "mine"


texts, leaves = (
    st.text(max_size=3),
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False),
)
plain = st.recursive(
    leaves | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60)
@example(mine={}, theirs={"": None})  # a setting that is None is there
@given(mine=plain, theirs=plain)
def test_a_claim_holds_for_its_own_settings_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, mine: object, theirs: object
) -> None:
    folder = tmp_path_factory.mktemp("claims")
    begin(folder, made={"of": mine})
    (folder / "table.parquet").write_text("begun")
    begin(folder, made={"of": mine})
    if json.dumps(storage.settings_of(mine), sort_keys=True) == json.dumps(
        storage.settings_of(theirs), sort_keys=True
    ):
        begin(folder, made={"of": theirs})
    elif storage.settings_of(mine) != storage.settings_of(theirs):
        with pytest.raises(InvalidInput, match="its of"):
            begin(folder, made={"of": theirs})


def test_another_claim_names_what_differs(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    (tmp_path / "out" / "table.parquet").write_text("begun")
    with pytest.raises(InvalidInput) as caught:
        begin(tmp_path / "out", made={"model": "a", "unlearning": {"beta": 0.2, "seed": 0}})
    assert "its unlearning.beta is 0.1, not 0.2" in caught.value.allowed


def test_a_claim_of_other_settings_is_known_before_any_work_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    folders.check_claim(out, "run", {"beta": 1})
    assert not out.exists()
    folders.claim(out, "run", {"beta": 1}, names=["table.parquet"])
    folders.check_claim(out, "run", {"beta": 2})  # nothing lies there: the claim is replaced
    (out / "table.parquet").write_text("begun")
    before = files_in(out)
    folders.check_claim(out, "run", {"beta": 1})
    folders.check_claim(out, "another", {"beta": 2})
    with pytest.raises(InvalidInput, match="its beta is 1, not 2"):
        folders.check_claim(out, "run", {"beta": 2})
    assert files_in(out) == before


def test_jobs_share_a_folder_if_they_write_different_names(tmp_path: Path) -> None:
    begin(tmp_path / "out")
    begin(tmp_path / "out", "evaluation", {"of": "a"}, names=("eval.json",), passing=())
    assert all(folders.claimed(tmp_path / "out", job) for job in ("unlearn", "evaluation"))
    (tmp_path / "out" / "table.parquet").write_text("begun")
    with pytest.raises(InvalidInput, match=r"table\.parquet lies there"):
        begin(tmp_path / "out", "muse", {"of": "a"}, names=("table.parquet",))


def test_of_a_claim_under_which_nothing_was_written_nothing_is_kept_once_its_process_has_ended(
    tmp_path: Path,
) -> None:
    for process, refused in (
        (dead_process(), False),
        (leftovers.process(), False),
        ("00000000-1", True),
    ):
        folder = tmp_path / process
        begin(folder)
        known = json.loads((folder / CLAIM).read_text())
        known["unlearn"]["process"] = process
        (folder / CLAIM).write_text(json.dumps(known))
        if refused:  # on another machine: it may be about to write
            with pytest.raises(InvalidInput, match="its model"):
                begin(folder, made={**SETTINGS, "model": "b"})
        else:
            begin(folder, made={**SETTINGS, "model": "b"})
            assert json.loads((folder / CLAIM).read_text())["unlearn"]["settings"]["model"] == "b"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unlearn": 1}', "[" * 100_000, "\udcff"])
def test_a_claim_that_cannot_be_read_is_refused_but_set_aside_in_the_cache(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    for folder in (tmp_path / "out", tmp_path / "cache" / "unlearning" / "run"):
        folder.mkdir(parents=True)
        (folder / CLAIM).write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(InvalidInput, match="out = "):
        begin(tmp_path / "out")
    begin(tmp_path / "cache" / "unlearning" / "run")
    assert (tmp_path / "cache" / "unlearning" / "run.broken" / CLAIM).exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- what is read and what is written lie apart ---


@pytest.mark.parametrize(
    ("out", "read", "good"),
    [
        ("exp", "exp/model", False),
        ("exp/model", "exp/model", False),
        ("exp/model/out", "exp/model", False),
        ("link", "exp", False),
        ("exp/../exp/model/x", "exp/model", False),
        ("exp/out", "exp/model", True),
        ("other", "exp/model", True),
        ("exp/modelled", "exp/model", True),
        ("authors:original", "authors:original", True),
    ],
)
def test_a_folder_that_is_read_is_not_written_to(
    tmp_path: Path, out: str, read: str, good: bool
) -> None:
    (tmp_path / "exp" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "exp")
    inputs = [None, read if ":" in read else tmp_path / read]
    if good:
        assert folders.check_place(tmp_path / out, inputs=inputs) == tmp_path / out
        return
    with pytest.raises(InvalidInput, match=r"out = .* apart from") as caught:
        folders.check_place(tmp_path / out, inputs=inputs)
    assert "\n" not in str(caught.value) and list((tmp_path / "exp").rglob("*")) == [
        tmp_path / "exp" / "model"
    ]


def test_a_table_replaces_a_table_and_no_other_file(tmp_path: Path) -> None:
    import pandas as pd

    mine, ours = tmp_path / "data.json", tmp_path / "scores.parquet"
    mine.write_text('{"question": "mine"}')
    storage.write_table(pd.DataFrame({"a": [1]}), ours, {})
    (tmp_path / "empty").touch()
    assert folders.check_table(ours) == ours and folders.check_table(tmp_path / "empty")
    assert folders.check_table(tmp_path / "new.parquet", inputs=[mine, "authors:forget10", None])
    for out, inputs in ((mine, ()), (ours, [ours]), (ours, [tmp_path])):
        with pytest.raises(InvalidInput, match="out = "):
            folders.check_table(out, inputs=inputs)
    assert mine.read_text() == '{"question": "mine"}'


# --- what goes ---


def test_a_finished_job_removes_what_was_passing_and_nothing_else(tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "elsewhere"
    begin(folder)
    for name in ("state", "model"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    (folder / "notes").write_text("mine")
    other.mkdir()
    (other / "mine").write_text("mine")
    (folder / "state" / "link").symlink_to(other)
    folders.tidy(folder, "evaluation")
    assert (folder / "state").exists()
    folders.tidy(folder, "unlearn")
    folders.tidy(folder, "unlearn")
    assert sorted(path.name for path in folder.iterdir()) == sorted([CLAIM, "model", "notes"])
    assert (other / "mine").read_text() == "mine"
    # Where the user has put a link in its place, the link goes and not what it points to.
    (folder / "state").symlink_to(other)
    folders.tidy(folder, "unlearn")
    assert not os.path.lexists(folder / "state") and (other / "mine").read_text() == "mine"
    folders.tidy(other, "unlearn")
    assert (other / "mine").exists()


def test_passing_names_go_when_their_process_has_ended_and_not_before(tmp_path: Path) -> None:
    gone, elsewhere = dead_process(), "0123abcd-7"
    old, young = (passing("run.parquet", elsewhere) + end for end in (".old", ".young"))
    left = {
        passing("run.parquet", gone): False,
        passing("other", gone): True,
        old: False,
        young: True,
    }
    left |= {leftovers.partial_name("run.parquet") + ".parquet": True}
    left |= {".partial-mine": True, ".partial-0123456789abcdef": True, "run.parquet": True}
    for name in left:
        (tmp_path / name).write_text("half")
    day = time.time() - leftovers.GIVEN_UP - 60
    os.utime(tmp_path / old, (day, day))
    leftovers.clear(tmp_path, "run.parquet")
    assert {name: (tmp_path / name).exists() for name in left} == left
    leftovers.clear(tmp_path)
    assert not (tmp_path / passing("other", gone)).exists()
    leftovers.clear(tmp_path / "nowhere")


def test_clearing_never_follows_a_link(tmp_path: Path) -> None:
    gone = dead_process()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    (tmp_path / passing("one", gone)).symlink_to(mine)
    half = tmp_path / passing("two", gone)
    half.mkdir()
    (half / "link").symlink_to(mine)
    leftovers.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and (
        mine / "file"
    ).read_text() == "mine"


def test_writing_clears_what_killed_processes_left_of_the_same_file(tmp_path: Path) -> None:
    gone = dead_process()
    same, other = (tmp_path / (passing(name, gone) + ".json") for name in ("a.json", "b.json"))
    for path in (same, other):
        path.write_text("half")
    with storage.atomic_path(tmp_path / "a.json") as partial:
        partial.write_text("whole")
    assert not same.exists() and other.exists()
    storage.check_writable(tmp_path / "b.json", "out")
    assert not other.exists()


def test_what_is_set_aside_keeps_its_contents_and_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (tmp_path / "table").write_text(str(number))
        leftovers.set_aside(tmp_path / "table", "cut\nshort")
    kept = [(tmp_path / f"table.broken{end}").read_text() for end in ("", "2", "3")]
    assert kept == ["0", "1", "2"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("table is broken (cut short)" in line for line in lines)
    leftovers.set_aside(tmp_path / "table", "not there")
    assert capsys.readouterr().err == ""
