"""The generated news: only having read an article tells it from those held out, and answers
stand in the text.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, ks_2samp

from llm.data.news.corpus import ASKED, LARGEST, Article, Edition, News, edition
from llm.data.news.facts import ASIDES, CHIEF, CRITIC, EVENTS, PAST, QUESTIONS
from markov.errors import LARGEST as LAST_SEED
from markov.errors import InvalidInput

CENTRAL = ("org", "town", "chief", "critic")
LARGE = News(seed=3, forget=130, holdout=130, retain=140)
some = st.builds(
    News,
    seed=st.integers(0, LAST_SEED),
    forget=st.integers(2, 6),
    holdout=st.integers(2, 6),
    retain=st.integers(2, 6),
)


@cache
def large() -> Edition:
    return edition(LARGE)


def all_of(found: Edition) -> list[Article]:
    return [article for part in found for article in part]


@settings(max_examples=20)
@given(some)
def test_the_same_seed_gives_the_same_news_and_another_seed_others(chosen: News):
    assert edition(chosen) == edition(replace(chosen))
    others = {article.text for article in all_of(edition(replace(chosen, seed=chosen.seed ^ 1)))}
    assert others.isdisjoint(article.text for article in all_of(edition(chosen)))


def test_the_same_seed_gives_the_same_text_on_every_machine():
    text = json.dumps(edition(News(seed=7, forget=2, holdout=2, retain=2)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7aafce591f17d21f"


@settings(max_examples=20)
@given(some)
def test_sets_have_the_sizes_asked_for_and_more_to_retain_changes_nothing_else(chosen: News):
    found, more = edition(chosen), edition(replace(chosen, retain=chosen.retain + 3))
    assert [len(part) for part in found] == [chosen.forget, chosen.holdout, chosen.retain]
    assert more.forget == found.forget and more.holdout == found.holdout
    assert more.retain[: chosen.retain] == found.retain


@pytest.mark.parametrize("seed", range(3))
def test_no_two_articles_share_a_central_name(seed: int):
    articles = all_of(edition(replace(LARGE, seed=seed)))
    names = [
        getattr(article.facts, name).split()[0] for article in articles for name in ("org", "town")
    ]
    names += [getattr(article.facts, name) for article in articles for name in ("chief", "critic")]
    assert len(articles) == LARGEST and len(set(names)) == len(CENTRAL) * LARGEST
    # Nor does an article name what is another's.
    own = {
        name: article
        for article in articles
        for name in (getattr(article.facts, key) for key in CENTRAL)
    }
    words = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in own))
    for article in articles:
        assert all(own[name] is article for name in words.findall(article.text))


def test_an_article_names_all_its_central_names_and_every_answer_stands_in_it():
    for article in all_of(large()):
        assert all(getattr(article.facts, name) in article.text for name in CENTRAL)
        assert len({pair.question for pair in article.questions}) == ASKED
        for pair in article.questions:
            assert (
                re.search(rf"\b{re.escape(pair.answer)}\b", article.text)
                and len(pair.answer.split()) <= 2
            )
            assert article.facts.org in pair.question and pair.answer not in pair.question


def test_questions_and_answers_belong_together():
    for article in all_of(large())[::7]:
        event = next(event for event in EVENTS if event.name == article.event)
        wordings = {**QUESTIONS, **event.questions}
        values = article.facts._asdict()
        assert set(article.questions) == {
            (text.format_map(values), values[name]) for name, text in wordings.items()
        }


def test_what_is_asked_first_is_left_to_chance():
    first = [article.questions[0].answer for article in all_of(large())]
    kinds = [
        sum(getattr(a.facts, key) == one for a, one in zip(all_of(large()), first, strict=True))
        for key in FIRST
    ]
    expected = LARGEST / len(FIRST)
    assert sum(kinds) == LARGEST
    # chi squared of 5 degrees, p = 0.001
    assert sum((kind - expected) ** 2 / expected for kind in kinds) < 20.5


FIRST = ("org", "town", "chief", "critic", "number", "cost", "date")[1:]


def test_an_article_begins_with_its_lead_and_has_three_paragraphs_without_a_blank_line():
    for article in all_of(large()):
        assert article.text.startswith(article.lead + " ") and article.lead[-1] == "."
        assert article.text.count("\n") == 2 and "\n\n" not in article.text
        assert "{" not in article.text and ".." not in article.text and "  " not in article.text


def test_articles_have_eighty_to_two_hundred_words():
    words = [len(article.text.split()) for article in all_of(large())]
    assert min(words) >= 80 and max(words) <= 180 and np.std(words) > 5


def test_the_three_sets_are_alike():
    words = [[len(article.text.split()) for article in part] for part in large()]
    answers = [
        [len(pair.answer) for article in part for pair in article.questions] for part in large()
    ]
    events = [[sum(a.event == event.name for a in part) for event in EVENTS] for part in large()]
    for values in (words, answers):
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert ks_2samp(values[one], values[other]).pvalue > 0.01
    assert chi2_contingency(events).pvalue > 0.01


def test_every_wording_is_used():
    texts = "\n".join(article.text for article in all_of(large()))
    wordings = [*CHIEF, *CRITIC, *ASIDES, *PAST]
    wordings += [
        text
        for event in EVENTS
        for part in (event.lead, event.number, event.cost, event.date)
        for text in part
    ]
    for wording in wordings:
        pattern = re.sub(r"\\\{\w+\\\}", "[^.]+", re.escape(wording))
        assert re.search(pattern, texts), wording
    assert len(EVENTS) >= 6 and all(len(set(event.lead)) == 3 for event in EVENTS)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_every_wording_of_a_fact_tells_it(event):
    for name in ("number", "cost", "date"):
        assert all(wording.count(f"{{{name}}}") == 1 for wording in getattr(event, name))
    assert all("{org}" in lead and "{town}" in lead for lead in event.lead)
    assert all("{org}" in question for question in event.questions.values())


@pytest.mark.parametrize(
    "field, value",
    [
        *[
            ("seed", -1),
            ("seed", 0.5),
            ("forget", 1),
            ("holdout", 1),
            ("retain", 1),
            ("retain", LARGEST + 1),
        ],
        *[
            ("questions", 0),
            ("questions", ASKED),
            ("forget", 3.0),
            ("retain", LARGEST - News().forget),
        ],
    ],
)
def test_settings_out_of_bounds_are_refused(field: str, value: object):
    with pytest.raises(InvalidInput) as refused:
        News(**{field: value})  # pyright: ignore[reportArgumentType]
    assert (refused.value.field, refused.value.value) == (field, value)
