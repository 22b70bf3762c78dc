"""The data sets of the hub that have a word: each is taken at one commit, which tables keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm.data.published import MUSE, TOFU, commits, published
from llm.jobs.settings import provenance_of


@pytest.mark.parametrize(
    "word, expected",
    [
        ("tofu:forget05", TOFU),
        ("tofu", TOFU),
        ("muse:News", MUSE["muse:News"]),
        ("muse:Books", MUSE["muse:Books"]),
        ("muse:Songs", None),
        ("authors:forget20", None),
        ("rows.jsonl", None),
        ("", None),
    ],
)
def test_a_word_of_the_hub_means_one_commit(word: str, expected: object) -> None:
    assert published(word) == expected


def test_a_folder_called_tofu_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tofu").mkdir()
    assert published("tofu") is None and published("tofu:full") == TOFU


def test_every_commit_is_whole() -> None:
    for one in (TOFU, *MUSE.values()):
        assert re.fullmatch("[0-9a-f]{40}", one.commit)
    assert len({one.commit for one in (TOFU, *MUSE.values())}) == 3


@dataclass
class Settings:
    data: object = "tofu:forget05"
    steps: int = 3


def test_a_table_keeps_the_commits_of_the_data_that_it_was_made_of() -> None:
    assert provenance_of(Settings())["data"] == {TOFU.name: TOFU.commit}
    assert provenance_of(Settings(Path("tofu:full")))["data"] == {TOFU.name: TOFU.commit}
    assert "data" not in provenance_of(Settings("authors:forget20"))
    assert "data" not in provenance_of(Settings(), without=["data"])
    assert commits([None, 3, "muse:News", b"tofu"]) == {
        MUSE["muse:News"].name: MUSE["muse:News"].commit
    }
