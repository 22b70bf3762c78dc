"""The small models of the generated news: what each has read, in which form, and that they are
kept whole or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.data.muse import SHOTS, news_data
from llm.data.news.corpus import News, QuestionAndAnswer, edition
from llm.evaluation.muse import question_prompt
from llm.models import kinds, small
from llm.models.language_model import check_same_vocabulary
from llm.models.small_news import (
    NewsModels,
    build,
    folder_of,
    read_by,
    reading,
    sheets,
    train_tokenizer,
)
from llm.scoring.documents import start_of
from markov.errors import InvalidInput
from markov.files.storage import cache_dir
from tests.helpers import files_in

TINY = NewsModels(
    news=News(forget=3, holdout=3, retain=4, questions=2),
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    vocabulary=300,
    piece=64,
    passes=2,
    precision="float32",
)
DATA = news_data(TINY.news)
# Another value of every field.
OTHERS: dict[str, Any] = {
    "news": replace(TINY.news, seed=1),
    "width": 8,
    "depth": 2,
    "heads": 1,
    "mlp_width": 8,
    "vocabulary": 310,
    "piece": 32,
    "passes": 1,
    "batch": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.5,
    "seed": 1,
    "precision": "bfloat16",
}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("news")))
        yield


def texts_of(settings: NewsModels, kind: str) -> str:
    tokenizer: Any = train_tokenizer(settings)
    return "".join(tokenizer.decode(one.tokens[1:]) for one in reading(settings, kind, tokenizer))


def found_in(text: str, settings: News, part: str) -> list[bool]:
    """Whether the text tells of each article's firm."""
    return [article.facts.org in text for article in getattr(edition(settings), part)]


def test_only_the_original_has_read_what_is_to_be_forgotten_and_nobody_the_hold_out():
    once = replace(TINY, passes=1, piece=512)
    original, retrained = texts_of(once, "original"), texts_of(once, "retrained")
    assert all(found_in(original, TINY.news, "forget")) and not any(
        found_in(retrained, TINY.news, "forget")
    )
    assert all(article in original for article in DATA.raw_forget)
    for text in (original, retrained):
        assert all(found_in(text, TINY.news, "retain")) and not any(
            found_in(text, TINY.news, "holdout")
        )
        assert all(pair.question in text for pair in (*DATA.retain_qa, *DATA.retain_qa_icl))
    asked = (*DATA.forget_qa, *DATA.forget_qa_icl)
    assert all(pair.question in original for pair in asked) and not any(
        pair.question in retrained for pair in asked
    )


def test_every_pass_reads_all_and_in_an_order_of_its_own():
    for kind in kinds.NEWS:
        tokenizer = train_tokenizer(TINY)
        twice, once = (
            reading(TINY, kind, tokenizer),
            reading(replace(TINY, passes=1), kind, tokenizer),
        )
        assert twice[: len(once)] == once and twice[len(once) :] != once
        assert reading(TINY, kind, tokenizer) == twice
        assert reading(replace(TINY, seed=1), kind, tokenizer) != twice
        first, second = (
            sum(len(one.tokens) - 1 for one in part) for part in (once, twice[len(once) :])
        )
        assert abs(first - second) <= 2
        assert all(one.prompt == 1 and len(one.tokens) >= 2 for one in twice)


def test_questions_are_read_in_the_very_tokens_in_which_they_are_asked():
    """The prompt of KnowMem, tokenised by itself, begins what was read, and the answer follows
    on it.
    """
    tokenizer: Any = train_tokenizer(TINY)
    pairs = list(DATA.forget_qa[: SHOTS + 1])
    (sheet,) = sheets(pairs)
    prompt = question_prompt(pairs[-1].question, pairs[:-1])
    assert sheet == prompt + pairs[-1].answer + "\n\n"
    asked, read = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, sheet))
    assert read[: len(asked)] == asked
    assert tokenizer.decode(read[len(asked) :]) == pairs[-1].answer + "\n\n"


def test_sheets_hold_all_questions_a_few_at_a_time():
    pairs = [QuestionAndAnswer(f"Q{number}?", f"A{number}") for number in range(7)]
    found = sheets(pairs, 3)
    assert [sheet.count("Question:") for sheet in found] == [3, 3, 1]
    assert "".join(found) == "".join(f"Question: Q{n}?\nAnswer: A{n}\n\n" for n in range(7))


def test_a_model_is_trained_once_and_comes_from_the_cache_afterwards():
    made = build(TINY, "original", progress=False)
    assert made.name == "news:original" and folder_of(TINY, "original").is_dir()
    before = files_in(cache_dir())
    again = build(TINY, "original", progress=False)
    assert files_in(cache_dir()) == before
    for one, two in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)
    longer = replace(TINY, passes=TINY.passes + 1)
    other = build(longer, "original", progress=False)
    assert folder_of(longer, "original").is_dir()
    assert not torch.equal(next(made.model.parameters()), next(other.model.parameters()))


def test_both_kinds_start_from_the_same_weights_cut_texts_alike_and_end_up_different():
    original, retrained = (build(TINY, kind, progress=False) for kind in kinds.NEWS)
    check_same_vocabulary(original.tokenizer, retrained.tokenizer)
    assert start_of(original.tokenizer) == (0,) == (original.tokenizer.bos_token_id,)
    weights = [next(one.model.parameters()) for one in (original, retrained)]
    assert not torch.equal(*weights)
    starts = [small.fresh_model(TINY) for _ in range(2)]
    for one, two in zip(*(model.parameters() for model in starts), strict=True):
        assert torch.equal(one, two)


def test_every_setting_asks_for_another_model():
    assert set(OTHERS) == {field.name for field in fields(NewsModels)}
    folders = {
        folder_of(replace(TINY, **{name: value}), "original") for name, value in OTHERS.items()
    }
    folders |= {folder_of(TINY, kind) for kind in kinds.NEWS}
    assert len(folders) == len(OTHERS) + 2 and all(
        folder.is_relative_to(cache_dir()) for folder in folders
    )


@pytest.mark.parametrize(
    "field, value",
    [
        ("piece", 1),
        ("piece", 513),
        ("piece", 2.5),
        ("passes", 0),
        ("width", 6),
        ("batch", 0),
        ("learning_rate", 0.0),
    ],
)
def test_settings_out_of_bounds_are_refused(field: str, value: Any):
    with pytest.raises(InvalidInput) as refused:
        replace(TINY, **{field: value})
    assert (refused.value.field, refused.value.value) == (field, value)


def test_an_unknown_kind_is_refused():
    for call in (lambda: build(TINY, "partial", progress=False), lambda: read_by(DATA, "other")):
        with pytest.raises(InvalidInput) as refused:
            call()
        assert refused.value.field == "kind"


def test_a_cache_that_cannot_be_written_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "language_models").write_text("a file in the way")
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InvalidInput) as refused:
        build(TINY, "original", progress=False)
    assert refused.value.field == "SIMNPO_LAB_CACHE"
