"""Results are written whole or not at all, say how they were made, and are rebuilt when anything
in that changes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from markov.errors import InvalidInput
from markov.files import seals, storage


class Numbers(NamedTuple):
    beta: float | torch.Tensor
    gamma: float


NUMBERS = Numbers(0.1, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    numbers: Numbers = NUMBERS
    seeds: tuple[int, ...] = (0, 1)
    name: str = "plan"
    rate: float | None = None
    extra: dict[str, object] = dataclasses.field(default_factory=dict)


FRAME = pd.DataFrame(
    {"step": [0, 1, 2], "weight": [1.0, np.nan, 0.5], "component": ["retain", "forget1", "forget2"]}
)
SOURCE = {"made": "by hand", "seeds": [0, 1]}


def assert_only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# Writing


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
):
    target = tmp_path / "run.parquet"
    target.write_text("old")
    with pytest.raises(failure), storage.atomic_path(target) as partial:
        partial.write_text("half")
        raise failure
    assert target.read_text() == "old"
    assert_only(tmp_path, "run.parquet")


def test_the_target_is_untouched_until_the_block_ends(tmp_path: Path):
    target = tmp_path / "new" / "run.parquet"
    with storage.atomic_path(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
        assert (partial.parent, partial.suffix) == (target.parent, target.suffix)
    assert target.read_text() == "whole"
    assert_only(target.parent, "run.parquet")


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), storage.atomic_path(tmp_path / "run.parquet"):
        pass
    assert_only(tmp_path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: storage.write_table(FRAME, path, SOURCE),
        lambda path: storage.save_parameters(path, {"w": torch.ones(2)}, SOURCE),
    ],
)
def test_files_have_the_permissions_that_the_umask_asks_for(
    tmp_path: Path, write: Callable[[Path], None]
):
    before = os.umask(0o027)
    try:
        write(tmp_path / "result")
    finally:
        os.umask(before)
    assert (tmp_path / "result").stat().st_mode & 0o777 == 0o640


def test_a_link_keeps_pointing_at_the_file_that_was_written(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with storage.atomic_path(tmp_path / "link") as partial:
        partial.write_text("whole")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "whole"


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", tmp_path):
        with (
            pytest.raises(InvalidInput, match="a file that can be written"),
            storage.atomic_path(target),
        ):
            raise AssertionError("the block must not be entered")


# Refusing


def test_places_that_cannot_be_written_are_named_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("kept")
    blocked = tmp_path / "file" / "sub" / "out"
    for path, folder in [
        (blocked, False),
        (blocked, True),
        (tmp_path, False),
        (tmp_path / "file", True),
        (tmp_path / ("n" * 300), False),
        (tmp_path / "a\0b", False),
    ]:
        with pytest.raises(InvalidInput) as caught:
            storage.check_writable(path, "out", folder=folder)
        assert (caught.value.field, caught.value.value) == ("out", str(path))
        assert ("a folder that" if folder else "a file that") in str(caught.value)
    assert_only(tmp_path, "file")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("folder", [False, True])
def test_trying_a_place_leaves_nothing_behind(tmp_path: Path, folder: bool):
    assert (
        storage.check_writable(tmp_path / "a" / "b" / "out", "out", folder=folder)
        == tmp_path / "a" / "b" / "out"
    )
    assert_only(tmp_path)
    (tmp_path / "kept").write_text("kept")
    storage.check_writable(tmp_path / "kept", "out")
    assert (tmp_path / "kept").read_text() == "kept"
    assert_only(tmp_path, "kept")


def test_a_folder_that_another_process_takes_away_during_the_trial_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, asked = os.open, []

    def racing(path: Path, *rest: int) -> int:
        asked.append(path)
        if len(asked) <= lost:
            Path(path).parent.rmdir()
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", racing)
    for lost in (0, 1, 2):
        asked.clear()
        assert (
            storage.check_writable(tmp_path / "a" / "out", "out", folder=True)
            == tmp_path / "a" / "out"
        )
        assert len(asked) == lost + 1
        assert_only(tmp_path)
    asked.clear()
    lost = 3
    with pytest.raises(InvalidInput, match="out = "):
        storage.check_writable(tmp_path / "a" / "out", "out", folder=True)


def test_the_cache_lies_where_the_user_says_else_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "mine"))
    assert storage.cache_dir() == tmp_path / "mine"
    assert_only(tmp_path / "mine")
    monkeypatch.setenv("SIMNPO_LAB_CACHE", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert storage.cache_dir() == tmp_path / "xdg" / "simnpo-lab"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert storage.cache_dir() == tmp_path / "home" / ".cache" / "simnpo-lab"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert storage.cache_dir() == tmp_path / "home" / "Library" / "Caches" / "simnpo-lab"
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InvalidInput, match="SIMNPO_LAB_CACHE"):
        storage.cache_dir()


# Tables and parameters


def test_a_table_and_its_provenance_come_back(tmp_path: Path):
    path = tmp_path / "run.parquet"
    storage.write_table(FRAME, path, SOURCE)
    frame = storage.read_table(path)
    pd.testing.assert_frame_equal(frame, FRAME)
    assert frame.attrs["provenance"] == storage.read_provenance(path) == SOURCE
    storage.write_table(frame, path, {"made": "again"})
    assert frame.attrs["provenance"] == SOURCE


def test_equal_frames_give_equal_bytes_however_they_were_put_together(tmp_path: Path):
    # Long enough for several pages in the file, whose borders would follow those of the pieces.
    long = pd.DataFrame(
        {"name": [f"an example with a long and unrepeated name, {i}" for i in range(60_000)]}
    )
    pieces = pd.concat(
        [long.iloc[start : start + 113] for start in range(0, len(long), 113)], ignore_index=True
    )
    storage.write_table(long, tmp_path / "0", SOURCE)
    storage.write_table(pieces, tmp_path / "1", dict(reversed(SOURCE.items())))
    storage.write_table(storage.read_table(tmp_path / "0"), tmp_path / "2", SOURCE)
    storage.write_table(
        FRAME.set_index("step").reset_index()[list(FRAME)].iloc[:2], tmp_path / "3", SOURCE
    )
    storage.write_table(FRAME.iloc[:2].copy(), tmp_path / "4", SOURCE)
    content = [(tmp_path / str(i)).read_bytes() for i in range(5)]
    assert content[0] == content[1] == content[2] != content[3] == content[4]
    storage.write_table(long, tmp_path / "5", {**SOURCE, "seeds": [0, 2]})
    assert (tmp_path / "5").read_bytes() != content[0]


def test_parameters_and_their_metadata_come_back_and_equal_ones_give_equal_bytes(tmp_path: Path):
    members = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    own = {
        "a": members[0].requires_grad_(),
        "b": members[1],
        "turned": members.T,
        "tied": members[1],
    }
    for name in ("0.safetensors", "1.safetensors"):
        storage.save_parameters(tmp_path / name, own, SOURCE)
    loaded = storage.load_parameters(tmp_path / "0.safetensors")
    assert own.keys() == loaded.keys()
    assert all(
        torch.equal(own[name], loaded[name]) and loaded[name].dtype == torch.float64 for name in own
    )
    assert storage.read_provenance(tmp_path / "0.safetensors") == SOURCE
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


@pytest.mark.parametrize(
    "read", [storage.read_table, storage.read_provenance, storage.load_parameters]
)
@pytest.mark.parametrize(
    "name", ["missing", "text", "folder", "missing.safetensors", "text.safetensors"]
)
def test_a_file_that_is_missing_or_of_another_kind_is_named(
    tmp_path: Path, name: str, read: Callable[[Path], object]
):
    (tmp_path / "folder").mkdir()
    for text in ("text", "text.safetensors"):
        (tmp_path / text).write_text("neither parquet nor safetensors")
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / name)
    assert caught.value.value == str(tmp_path / name)


def written(kind: str, folder: Path) -> tuple[Path, Callable[[Path], object]]:
    """A small file of one kind, and how it is read."""
    path = folder / f"file.{kind}"
    if kind == "parquet":
        storage.write_table(FRAME, path, SOURCE)
        return path, lambda path: storage.read_table(path).to_csv()
    tensors = {"a": torch.arange(6.0), "b": torch.arange(3)}
    storage.save_parameters(path, tensors, SOURCE)
    return path, lambda path: {
        name: one.tolist() for name, one in storage.load_parameters(path).items()
    }


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_a_byte_that_was_changed_anywhere_is_noticed(kind: str, tmp_path: Path):
    path, read = written(kind, tmp_path)
    content, sound = path.read_bytes(), read(path)
    mark = content.index(seals.MARK)
    for place in {*range(0, len(content), 13), *range(mark - 2, mark + len(seals.BLANK) + 2)}:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        if seals.MARK in changed:
            with pytest.raises(InvalidInput):
                read(path)
        else:  # then there is no seal, and all else is as it was
            with suppress(InvalidInput):
                assert read(path) == sound


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_what_was_changed_is_told_and_set_aside_in_a_cache(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, read = written(kind, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if kind == "parquet" else -1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="as it was written"):
        read(path)
    assert storage.read_kept(path, read) is None
    assert "as it was written" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_a_file_without_a_seal_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sound = written(kind, tmp_path)
    want = sound[1](sound[0])
    monkeypatch.setattr(seals, "sealed", lambda content: content)
    monkeypatch.setattr(seals, "BLANK", "")
    path, read = written(kind, tmp_path)
    assert read(path) == want and storage.read_provenance(path) == SOURCE


def test_a_table_from_elsewhere_has_no_provenance_to_read(tmp_path: Path):
    FRAME.to_parquet(tmp_path / "foreign.parquet")
    assert pq.read_table(tmp_path / "foreign.parquet").num_rows == len(FRAME)
    with pytest.raises(InvalidInput, match="carries its provenance"):
        storage.read_table(tmp_path / "foreign.parquet")


# Describing

CHANGES = {
    "numbers": [
        Numbers(0.2, 0.0),
        Numbers(0.1, 1e-300),
        Numbers(torch.tensor([0.1, 0.2]), 0.0),
        Numbers(torch.tensor([0.1, 0.3]), 0.0),
        Numbers(float("inf"), 0.0),
        (0.1, 0.0),
    ],
    "seeds": [(1, 0), (0,), (), (0, 1, 2)],
    "name": ["plans", ""],
    "rate": [0.0, 1e-4, float("nan"), "None"],
    "extra": [{"a": 1}, {"a": 2}, {"b": 1}, {"a": {"b": 1}}, {"a": (1,)}, {"a": True}],
}


def test_the_fingerprint_changes_with_every_setting():
    plans = [
        Plan(),
        *(Plan(**{name: value}) for name, values in CHANGES.items() for value in values),
    ]
    assert CHANGES.keys() == {field.name for field in dataclasses.fields(Plan)}
    assert len({storage.fingerprint(plan) for plan in plans}) == len(plans)
    assert all(len(storage.fingerprint(plan)) >= 16 for plan in plans)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_settings_are_strict_json_and_equal_ones_have_one_fingerprint(value: object):
    rendered = storage.settings_of(value)
    assert json.loads(json.dumps(rendered, allow_nan=False)) == rendered
    assert storage.fingerprint(rendered) == storage.fingerprint(json.loads(json.dumps(rendered)))
    assert storage.fingerprint({"a": 1, "b": value}) == storage.fingerprint({"b": value, "a": 1})


def test_settings_keep_the_names_of_classes_and_fields():
    assert storage.settings_of(Plan(seeds=(3,))) == {
        "class": "Plan", "numbers": {"class": "Numbers", "beta": 0.1, "gamma": 0.0},
        "seeds": [3], "name": "plan", "rate": None, "extra": {},
    }  # fmt: skip


@pytest.mark.parametrize("value", [object(), {1: 2}, len, Plan, {1, 2}, b"bytes"])
def test_what_has_no_plain_form_is_refused(value: object):
    with pytest.raises(InvalidInput, match="settings"):
        storage.settings_of(value)


def test_the_fingerprint_does_not_depend_on_the_process():
    value = {"beta": (0.1, None), "names": {"retain": True, "forget1": False}}
    code = (
        f"from markov.files import storage; print(storage.fingerprint({value!r}, 'markov.errors'))"
    )
    root = Path(__file__).parents[3]
    environments = [
        {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)} for seed in ("0", "1")
    ]
    printed = [
        subprocess.check_output([sys.executable, "-c", code], env=each, text=True)
        for each in environments
    ]
    assert {line.strip() for line in printed} == {storage.fingerprint(value, "markov.errors")}


def test_the_code_version_changes_with_every_module_and_only_with_those_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "made_up" / "inner"
    package.mkdir(parents=True)
    for name in ("inner/one.py", "inner/__init__.py", "two.py", "__init__.py"):
        (package.parent / name).write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sources = [
        ("made_up",),
        ("made_up.inner",),
        ("made_up.inner.one",),
        ("made_up.two",),
        ("made_up.two", "made_up"),
    ]

    def versions() -> list[str]:
        return [storage.fingerprint(Plan(), *names) for names in sources]

    before = versions()
    # what is asked for twice is there once
    assert len(set(before)) == len(sources) - 1 and before[-1] == before[0]
    (package / "one.py").write_text("VALUE = 2\n")
    changed = [old != new for old, new in zip(before, versions(), strict=True)]
    assert changed == [True, True, True, False, True]
    whole = [storage.code_version("made_up")]
    (package / "one.py").rename(package / "three.py")
    whole.append(storage.code_version("made_up"))
    (package / "three.py").rename(package.parent / "three.py")
    assert len({*whole, storage.code_version("made_up")}) == 3
    assert storage.code_version("made_up", "markov") == storage.code_version("markov", "made_up")


@pytest.mark.parametrize(
    "name", ["markov.no_such_module", "no_such_package", "", "sys", "made.up.name"]
)
def test_unknown_sources_are_refused(name: str):
    with pytest.raises(InvalidInput, match="source"):
        storage.code_version(name)


def test_the_provenance_says_how_to_make_the_result_again():
    made = storage.provenance(Plan(), "markov.errors", seeds=np.arange(2))
    assert made["settings"] == storage.settings_of(Plan())
    assert made["seeds"] == [0, 1]
    assert made["fingerprint"] == storage.fingerprint(Plan(), "markov.errors")
    # A build for a GPU calls itself 2.13.0+cu130, and its package only 2.13.0.
    own = [version.partition("+")[0] for version in (made["torch"], torch.__version__)]
    assert own[0] == own[1] and made["numpy"] == np.__version__
    assert (
        made
        == json.loads(json.dumps(made))
        == storage.provenance(Plan(), "markov.errors", seeds=(0, 1))
    )
    assert storage.provenance(Plan())["code"] == storage.code_version("markov")


def commit_of_a_copy(folder: Path) -> Callable[[], str | None]:
    """`git_commit` of a copy of the module that lies in another folder."""
    folder.mkdir(parents=True)
    return runpy.run_path(str(shutil.copy(storage.__file__, folder)))["git_commit"]


def test_the_commit_is_that_of_the_projects_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
        return subprocess.check_output(
            ["git", *identity, *arguments], cwd=tmp_path, text=True
        ).strip()

    own, installed = (
        commit_of_a_copy(tmp_path / folder / "markov" / "files") for folder in ("", "site-packages")
    )
    assert own() is None
    git("init", "-q")
    assert own() is None
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert own() == git("rev-parse", "HEAD")
    assert installed() is None
    monkeypatch.setenv("PATH", "")
    assert own() is None
