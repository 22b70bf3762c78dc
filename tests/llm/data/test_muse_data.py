"""MUSE's data: read from the hub, from a folder and generated, and refused in one line where a
record is of no use.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.muse import (
    FILES,
    HUB,
    OPTIONAL,
    SHOTS,
    MuseData,
    Passage,
    news_data,
    read_muse,
    write_muse,
)
from llm.data.news.corpus import News, QuestionAndAnswer, edition
from markov.errors import InvalidInput

SMALL = News(seed=1, forget=4, holdout=3, retain=5, questions=2)


def records(data: MuseData, name: str) -> list[dict[str, str]]:
    """The records of a field, as its file has them."""
    keys = FILES[name][2]
    return [
        dict(zip(keys, (value,) if isinstance(value, str) else value, strict=True))
        for value in getattr(data, name)
    ]


class Hub:
    """Stands for the package `datasets`: holds the splits, or fails."""

    def __init__(self, data: MuseData | Exception) -> None:
        self.data, self.asked, self.revisions = data, [], set()

    def load_dataset(self, *args: Any, split: str, revision: str) -> list[dict[str, str]]:
        self.asked.append((*args, split))
        self.revisions.add(revision)
        if isinstance(self.data, Exception):
            raise self.data
        name = next(
            name for name, (config, own, _) in FILES.items() if (config, own) == (args[1], split)
        )
        return records(self.data, name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_muse(news_data(SMALL), tmp_path / "data")
    return tmp_path / "data"


def refusal(source: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as refused:
        read_muse(source)
    assert "\n" not in str(refused.value)
    return refused.value


# --- generated ---


@settings(max_examples=15)
@given(
    st.builds(
        News,
        seed=st.integers(0, 99),
        forget=st.integers(2, 6),
        holdout=st.integers(2, 6),
        retain=st.integers(2, 7),
        questions=st.integers(1, 5),
    )
)
def test_the_generated_news_have_the_shape_of_muse(chosen: News):
    data, articles = news_data(chosen), edition(chosen)
    assert (
        data.raw_forget
        == data.privleak_forget
        == tuple(article.text for article in articles.forget)
    )
    assert data.privleak_holdout == tuple(article.text for article in articles.holdout)
    assert set(data.raw_retain1) | set(data.raw_retain2) == set(data.privleak_retain)
    assert len(data.raw_retain1) + len(data.raw_retain2) == chosen.retain
    assert 0 <= len(data.raw_retain1) - len(data.raw_retain2) <= 1
    assert len(data.forget_qa) == chosen.forget * chosen.questions
    assert len(data.retain_qa) == chosen.retain * chosen.questions
    assert len(data.forget_qa_icl) == min(SHOTS, chosen.forget)


def test_no_set_shares_a_text_with_another_and_no_question_is_shown_and_asked():
    data = news_data(SMALL)
    sets = (data.privleak_forget, data.privleak_retain, data.privleak_holdout)
    assert len(set().union(*sets)) == sum(map(len, sets))
    for asked, shown in (
        (data.forget_qa, data.forget_qa_icl),
        (data.retain_qa, data.retain_qa_icl),
    ):
        assert set(asked).isdisjoint(shown) and len(set(asked)) == len(asked)
    assert set(data.forget_qa).isdisjoint(data.retain_qa)


def test_a_passage_is_an_article_cut_behind_its_first_sentence():
    data = news_data(SMALL)
    for passage, article, text in zip(
        data.verbmem, edition(SMALL).forget, data.raw_forget, strict=True
    ):
        assert (
            passage.prompt + passage.gt == text
            and passage.prompt == article.lead
            and passage.gt[0] == " "
        )


def test_the_word_news_takes_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert read_muse("news") == read_muse("news:0") == news_data(News())
    assert read_muse("news:3") == news_data(News(seed=3))
    for word in ("news:", "news:x", "news:-1", "news:²"):
        assert refusal(word).field == "source"


# --- folders ---


def test_what_is_written_is_read_again(folder: Path):
    assert read_muse(folder) == news_data(SMALL)
    assert len(list(folder.rglob("*.json"))) == len(FILES)


def test_a_folder_may_be_called_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_muse(news_data(SMALL), "news")
    assert read_muse("news") == news_data(SMALL)


def test_a_file_may_be_one_list_or_have_another_ending(folder: Path):
    data = news_data(SMALL)
    (folder / "raw" / "forget.json").write_text(json.dumps(records(data, "raw_forget"), indent=1))
    (folder / "verbmem" / "forget.json").rename(folder / "verbmem" / "forget.jsonl")
    assert read_muse(folder) == data


def test_a_second_set_to_retain_may_be_missing_and_nothing_else(folder: Path):
    (folder / "raw" / "retain2.json").unlink()
    assert read_muse(folder) == replace(news_data(SMALL), raw_retain2=())
    for name, (config, split, _) in FILES.items():
        path = folder / config / f"{split}.json"
        if name not in OPTIONAL:
            text = path.read_text()
            path.unlink()
            found = refusal(folder)
            assert found.field == "source" and f"{config}/{split}.json" in found.allowed
            path.write_text("")
            assert refusal(folder).field == str(path)
            path.write_text(text)


@pytest.mark.parametrize(
    "line, field, allowed",
    [
        ('{"question": "Who?"}', ", record 2, answer", "the record has question"),
        ('{"question": "Who?", "answer": " "}', ", record 2, answer", "not blank"),
        ('{"question": 3, "answer": "a"}', ", record 2, question", "not blank"),
        ("3", ", record 2", "an object with the fields question, answer"),
        ("{", ", record 2", "one JSON object"),
    ],
)
def test_a_bad_record_is_named_with_its_field(folder: Path, line: str, field: str, allowed: str):
    path = folder / "knowmem" / "retain_qa.json"
    first = path.read_text().split("\n")[0]
    path.write_text(f"{first}\n{line}\n")
    found = refusal(folder)
    assert found.field == f"{path}{field}" and allowed in found.allowed


def test_long_values_are_cut_in_messages(folder: Path):
    (folder / "raw" / "forget.json").write_text("[" + "x" * 500)
    assert len(str(refusal(folder))) < 400


def test_a_file_that_is_no_text_is_refused(folder: Path):
    path = folder / "raw" / "forget.json"
    path.write_bytes(b"\xff\xfe\xfa")
    found = refusal(folder)
    assert (found.field, found.value) == ("source", str(path)) and "not UTF-8" in found.allowed


@pytest.mark.parametrize("word", ["muse:Songs", "nowhere", "muse-bench/MUSE-News"])
def test_an_unknown_source_is_refused_with_those_that_are_known(word: str):
    found = refusal(word)
    assert found.value == word and "muse:Books" in found.allowed


# --- the hub ---


@pytest.mark.parametrize("word", list(HUB))
def test_all_configurations_are_fetched_from_the_hub(monkeypatch: pytest.MonkeyPatch, word: str):
    hub = Hub(news_data(SMALL))
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert read_muse(word) == news_data(SMALL)
    assert hub.revisions == {HUB[word].commit}
    assert hub.asked == [
        (f"muse-bench/MUSE-{word[5:]}", config, split) for config, split, _ in FILES.values()
    ]


def test_a_malformed_record_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch):
    data = replace(news_data(SMALL), verbmem=(Passage("It began", " so"), Passage("It began", "")))
    monkeypatch.setitem(sys.modules, "datasets", Hub(data))
    assert refusal("muse:News").field == "muse:News, verbmem/forget, record 2, gt"


@pytest.mark.parametrize(
    "failure",
    [ConnectionError("no\nroute"), ValueError("no cache"), OSError(), TimeoutError("slow")],
)
def test_without_the_hub_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
):
    monkeypatch.setitem(sys.modules, "datasets", Hub(failure))
    found = refusal("muse:Books")
    assert found.value == "muse:Books" and "offline, give a folder" in found.allowed


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install simnpo-lab[llm]" in refusal("muse:News").allowed


def test_the_hub_is_not_asked_for_what_is_no_data_set_of_muse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    assert refusal("muse:").field == "source"


def test_data_without_any_record_of_a_kind_is_refused():
    with pytest.raises(InvalidInput) as refused:
        replace(news_data(SMALL), forget_qa=())
    assert refused.value.field == "forget_qa"
    pair = (QuestionAndAnswer("Who?", "A"),)
    assert replace(news_data(SMALL), forget_qa=pair, raw_retain2=()).forget_qa == pair
