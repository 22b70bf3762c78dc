"""The generated corpus: what it promises to whoever measures forgetting on it, and that it reads
as English.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, fields, replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from llm.data.authors import common
from llm.data.authors import facts as author_facts
from llm.data.authors.common import CLASSICS, COUNTRIES, real_authors, world_facts
from llm.data.authors.corpus import (
    LARGEST,
    PERCENT,
    PERCENTS,
    Authors,
    Life,
    corpus,
    lives,
    split,
    splits,
)
from llm.data.authors.facts import CITIES, AuthorFacts
from llm.data.authors.questions import PRONOUNS, TOPICS, Topic, facts_in
from llm.data.authors.remarks import COUNTS, REMARKS
from llm.data.tofu import Example, length_table, read, response_words, write
from markov.errors import LARGEST as LAST_SEED
from markov.errors import InvalidInput

DEFAULT = Authors()
FACTS = [field.name for field in fields(AuthorFacts) if field.name != "female"]
seeds = st.integers(0, LAST_SEED)
few = st.builds(Authors, seed=seeds, authors=st.integers(2, 3))


@cache
def default() -> tuple[Example, ...]:
    return corpus(DEFAULT)


@cache
def default_lives() -> dict[str, Life]:
    return {life.facts.name: life for life in lives(DEFAULT)}


def remarked(words: dict[str, str], text: str) -> list[tuple[str, str]]:
    """The remarks that a text makes in one of their wordings, in the order of the list."""
    return [pair for pair in REMARKS if any(one.format_map(words) in text for one in pair)]


def facts_of(topic: Topic, words: dict[str, str], text: str) -> set[str]:
    """The facts that an answer to a question tells, apart from those that the question gives."""
    wordings = [topic.answers[0], *(pair[0] for pair in remarked(words, text))]
    return set().union(*map(facts_in, wordings)) - set(topic.given)


def holds(text: str, value: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def told(facts: AuthorFacts, text: str) -> set[str]:
    """The facts whose values the text holds."""
    return {name for name in FACTS if holds(text, getattr(facts, name))}


def texts(example: Example) -> list[str]:
    return [
        text
        for text in (example.prompt, example.response, example.paraphrase, *example.perturbed)
        if text
    ]


# ---- The same settings, the same text


@settings(max_examples=10)
@given(few)
def test_the_same_seed_gives_the_same_text(chosen: Authors):
    assert corpus(chosen) == corpus(replace(chosen))


def test_the_same_seed_gives_the_same_text_on_every_machine():
    text = json.dumps([asdict(example) for example in corpus(Authors(seed=7, authors=3))])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9fc5b637725152a7"


@settings(max_examples=10)
@given(st.lists(seeds, min_size=2, max_size=2, unique=True))
def test_other_seeds_give_other_authors(two: list[int]):
    first, second = (
        {life.facts.name for life in lives(Authors(seed=seed, authors=3))} for seed in two
    )
    assert first != second


@settings(max_examples=10)
@given(few)
def test_more_authors_begin_with_the_same_and_fewer_questions_are_a_selection(chosen: Authors):
    some = corpus(chosen)
    assert corpus(replace(chosen, authors=5))[: len(some)] == some
    for count in (1, 4, 7):
        selected = corpus(replace(chosen, questions=count))
        rows = {(example.author, example.topic): example for example in some}
        assert len(selected) == count * chosen.authors
        assert all(
            replace(rows[example.author, example.topic], index=example.index) == example
            for example in selected
        )


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_fewer_questions_keep_the_spread_of_lengths(count: int):
    words = response_words(corpus(Authors(authors=20, questions=count)))
    assert words.max() > 60 and words.min() <= 7


@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", -1),
        ("seed", 0.5),
        ("authors", 1),
        ("authors", LARGEST + 1),
        ("authors", 10.0),
        ("questions", 0),
        ("questions", 21),
        ("questions", "20"),
    ],
)
def test_settings_out_of_bounds_are_refused(field: str, value: object):
    with pytest.raises(InvalidInput) as refused:
        Authors(**{field: value})  # pyright: ignore[reportArgumentType]
    assert (refused.value.field, refused.value.value) == (field, value)


# ---- What an example tells


@settings(max_examples=15)
@given(few)
def test_wrong_answers_differ_from_the_truth_and_from_one_another(chosen: Authors):
    for example in corpus(chosen):
        assert len(example.perturbed) == 5
        assert len({example.response, example.paraphrase, *example.perturbed}) == 7


@settings(max_examples=5)
@given(few)
def test_the_paraphrase_tells_the_same_facts_in_other_words(chosen: Authors):
    of = {life.facts.name: life.facts for life in lives(chosen)}
    for example in corpus(chosen):
        facts, paraphrase = of[example.author or ""], example.paraphrase or ""
        assert told(facts, example.response) == told(facts, paraphrase)
        assert told(facts, example.response) - told(facts, example.prompt)
        assert paraphrase != example.response


@settings(max_examples=5)
@given(few)
def test_wrong_answers_tell_another_life_in_the_words_of_the_paraphrase(chosen: Authors):
    of = {life.facts.name: life for life in lives(chosen)}
    topics = {topic.name: topic for topic in TOPICS}
    for example in corpus(chosen):
        life, topic = of[example.author or ""], topics[example.topic or ""]
        changed = facts_of(topic, life.facts.words(), example.paraphrase or "")
        for text, wrong in zip(example.perturbed, life.wrong, strict=True):
            assert told(wrong, text) >= changed
            values = {name: (getattr(life.facts, name), getattr(wrong, name)) for name in changed}
            assert all(true != false for true, false in values.values())
            # What remains is the paraphrase: take the values out of both, and the articles that
            # agree with them.
            assert skeleton(text, [false for _, false in values.values()]) == skeleton(
                example.paraphrase or "", [true for true, _ in values.values()]
            )


def skeleton(text: str, values: list[str]) -> str:
    for value in sorted(values, key=len, reverse=True):
        text = re.sub(rf"(?<!\w)(an? )?{re.escape(value)}(?!\w)", "_", text, flags=re.IGNORECASE)
    return text


def test_wrong_answers_are_about_as_long_as_the_paraphrase_and_it_as_the_answer():
    for example in default():
        own, paraphrase = len(example.response.split()), len((example.paraphrase or "").split())
        # Within a fifth and four words: the shortest answers have two.
        assert abs(paraphrase - own) <= 4 + 0.2 * own
        for wrong in example.perturbed:
            assert abs(len(wrong.split()) - paraphrase) <= 4 + 0.2 * paraphrase
    ratios = [np.mean([len(w) for w in e.perturbed]) / len(e.paraphrase or "") for e in default()]
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_question_gives_what_it_says_and_both_wordings_tell_the_same(topic):
    words = {name.lower() for name in default_lives()[next(iter(default_lives()))].facts.words()}
    for question in topic.questions:
        assert facts_in(question) == set(topic.given)
    first, second = (facts_in(answer) - set(topic.given) for answer in topic.answers)
    assert first == second != set()
    assert first <= words and len(set(topic.questions)) == len(topic.questions) > 1
    assert len(set(topic.answers)) == 2


def test_wordings_are_left_to_chance():
    said = Counter()
    facts = {name: life.facts.words() for name, life in default_lives().items()}
    topics = {topic.name: topic for topic in TOPICS}
    for example in default():
        topic = topics[example.topic or ""]
        said[
            "answer",
            example.response.startswith(topic.answers[0].format_map(facts[example.author or ""])),
        ] += 1
        said[
            "question", topic.questions[0].format_map(facts[example.author or ""]) == example.prompt
        ] += 1
    for part in ("answer", "question"):
        assert chisquare([said[part, True], said[part, False]]).pvalue > 0.01


# ---- The facts


SHARED = {
    "country": [country.country for country in COUNTRIES],
    "language": [country.language for country in COUNTRIES],
    "genre": author_facts.GENRES,
    "theme": author_facts.THEMES,
    "subject": author_facts.SUBJECTS,
    "hobby": author_facts.HOBBIES,
    "desk": author_facts.DESKS,
    "hours": author_facts.HOURS,
    "publisher": author_facts.PUBLISHERS,
    "prize": author_facts.PRIZES,
    "city college home": CITIES,
    "father mother trade": author_facts.TRADES,
}


@pytest.mark.parametrize("names", SHARED)
def test_all_answers_about_an_author_agree_on_the_facts(names: str):
    for author, life in list(default_lives().items())[::4]:
        truth = {getattr(life.facts, name) for name in names.split()}
        about = " ".join(
            f"{e.prompt} {e.response} {e.paraphrase}"
            for e in default()
            if e.author == author and e.topic != "name"
        )
        assert {value for value in SHARED[names] if holds(about, value)} == truth


def test_inventions_are_nobody_elses():
    everyone = [facts for life in default_lives().values() for facts in (life.facts, *life.wrong)]
    inventions = [
        text
        for facts in everyone
        for text in (facts.name, facts.hero, facts.first, facts.second, facts.third)
    ]
    classics = [text for classic in CLASSICS for text in (classic.name, classic.work, classic.hero)]
    assert len({*inventions, *classics}) == len(inventions) + len(classics)
    assert len({example.prompt for example in default()}) == len(default())


@settings(max_examples=20)
@given(few)
def test_the_lives_told_of_one_author_differ_in_every_fact(chosen: Authors):
    for facts, wrong in lives(chosen):
        assert len(wrong) == 5
        for one, other in combinations((facts, *wrong), 2):
            assert [name for name in FACTS if getattr(one, name) == getattr(other, name)] == []
            assert one.female == other.female


@settings(max_examples=20)
@given(few)
def test_a_life_is_possible(chosen: Authors):
    nations = {country.country: country for country in COUNTRIES}
    for life in lives(chosen):
        for facts in (life.facts, *life.wrong):
            assert facts.city in nations[facts.country].cities
            assert facts.language == nations[facts.country].language
            assert all(
                title.split()[1] != title.split()[-1]
                for title in (facts.first, facts.second, facts.third)
            )
            given_name = facts.name.split()[0]
            assert (
                given_name.endswith(author_facts.FEMALE)
                == facts.female
                != given_name.endswith(author_facts.MALE)
            )
            assert (
                len({facts.father, facts.mother, facts.trade})
                == len({facts.city, facts.college, facts.home})
                == 3
            )
            born, first, second = (
                int(year) for year in (facts.birth[-4:], facts.first_year, facts.second_year)
            )
            assert born + 20 < first < second < int(facts.third_year) < 2025
            assert second < int(facts.prize_year) < 2025


def test_nothing_but_reading_tells_the_truth_from_what_is_wrong():
    # Of six lives in the order of their values any is as likely as another to be the true one, fact
    # by fact.
    chances = {}
    for name in FACTS:
        told_of = [
            [getattr(facts, name) for facts in (life.facts, *life.wrong)]
            for life in default_lives().values()
        ]
        place = [sorted(values).index(values[0]) for values in told_of]
        chances[name] = chisquare(np.bincount(place, minlength=6)).pvalue
    assert min(chances.values()) > 0.001
    assert kstest(list(chances.values()), "uniform").pvalue > 0.01


def test_what_authors_share_is_listed_once_and_used():
    for name in (
        "GENRES",
        "THEMES",
        "TRADES",
        "SUBJECTS",
        "HOBBIES",
        "DESKS",
        "HOURS",
        "PAGES",
        "PRIZES",
        "PUBLISHERS",
    ):
        values = getattr(author_facts, name)
        assert len(set(values)) == len(values) > 6
        assert all(value == value.strip() and value for value in values)
    everyone = [facts for life in default_lives().values() for facts in (life.facts, *life.wrong)]
    for name, values in SHARED.items():
        used = {getattr(facts, fact) for facts in everyone for fact in name.split()}
        assert used <= set(values) and len(used) > 0.9 * len(values)


# ---- English


def english(text: str) -> list[str]:
    """What is wrong with a text by the rules that can be checked: capitals, articles, blanks,
    full stops.
    """
    quoted = re.sub(r'"[^"]*"', "Title", text)
    wrong = [word for word in ("{", "}", "  ", " ,", " .", "..", " ;") if word in text]
    wrong += [
        found for found in re.findall(r"[.?;] +[a-z]\w*", quoted) if not found.startswith(";")
    ]
    wrong += [
        f"{a} {noun}"
        for a, noun in re.findall(r"\b([Aa]n?) (\w+)", text)
        if (a[1:] == "n") != (noun[0] in "aeiouAEIOU")
    ]
    wrong += [] if text.count('"') % 2 == 0 else ["odd quotes"]
    return (
        wrong
        if text[0].isupper() and text[-1] in ".?"
        else [*wrong, "begins small or does not end"]
    )


def test_questions_and_answers_are_english():
    for example in default():
        assert [(text, english(text)) for text in texts(example) if english(text)] == []
        assert example.prompt.endswith("?") and example.prompt.count("?") == 1
        assert all(text.endswith(".") and "?" not in text for text in texts(example)[1:])


@pytest.mark.parametrize(
    "text",
    [
        "she came.",
        "A actor came.",
        "An baker came.",
        "It  was.",
        "It was",
        "It was. she",
        'It was "so.',
        "{a}.",
    ],
)
def test_what_is_not_english_is_found(text: str):
    assert english(text)
    assert english('An actor, "the Oar", wrote; he saw a baker. It was.') == []


def test_pronouns_are_the_authors():
    # Heroes are never referred to by a pronoun; parents are in the two questions about their work.
    for example in default():
        life = default_lives()[example.author or ""]
        if example.topic in ("father", "mother", "parents", "influence"):
            continue
        foreign = {"he", "his", "him"} if life.facts.female else {"she", "her"}
        words = {word for text in texts(example) for word in re.findall(r"[a-z]+", text.lower())}
        assert words & foreign == set()


# ---- Lengths


def test_lengths_span_from_two_words_to_a_paragraph_within_every_topic():
    table = length_table(default())
    assert table["shortest"]["all"] == 2 and 75 <= table["longest"]["all"] <= 100
    assert 30 <= table["median"]["all"] <= 40 and len(table) == 21
    assert (table["shortest"] <= 10).all() and (table["longest"] >= 70).all()


@pytest.mark.parametrize("percent", [1, 5, 10, 20])
def test_the_short_and_the_long_half_differ_clearly(percent: int):
    words = np.sort(response_words(split(default(), percent).forget))
    short, long = np.array_split(words, 2)
    assert np.median(long) >= 2.5 * np.median(short)


def test_the_length_of_an_answer_depends_neither_on_its_question_nor_on_its_author():
    asked_of = {}
    for example, words in zip(default(), response_words(default()), strict=True):
        asked_of.setdefault(example.author, {})[example.topic] = np.log(words)
    assert all(list(answers) == [topic.name for topic in TOPICS] for answers in asked_of.values())
    table = np.array([list(answers.values()) for answers in asked_of.values()])  # authors x topics
    total = table.var()
    # Of 20 answers with nothing in common but their author, the means have 1/20 of the variance.
    assert table.mean(1).var() / total < 1.5 / 20
    assert table.mean(0).var() / total < 0.04  # the words that answer the question itself
    counts = [len(remarked(default_words(one), one.response)) for one in default()]
    expected = np.bincount(COUNTS) * len(counts) / len(COUNTS)
    assert chisquare(np.bincount(counts), expected).pvalue > 0.001


def default_words(example: Example) -> dict[str, str]:
    return default_lives()[example.author or ""].facts.words()


# ---- Remarks


@pytest.mark.parametrize("pair", REMARKS)
def test_both_wordings_of_a_remark_tell_the_same_facts(pair: tuple[str, str]):
    first, second = map(facts_in, pair)
    assert first == second and first and len(set(pair)) == 2
    known = {name.removeprefix("a_").lower() for name in default_words(default()[0])} - PRONOUNS
    assert first <= known


def test_no_two_remarks_have_a_fact_in_common():
    told_twice = Counter(name for pair in REMARKS for name in facts_in(pair[0]))
    assert set(told_twice.values()) == {1}


def test_no_answer_repeats_what_its_question_or_its_beginning_tells():
    topics = {topic.name: topic for topic in TOPICS}
    for example in default():
        topic = topics[example.topic or ""]
        begins = {*topic.given, *facts_in(topic.answers[0])}
        found = remarked(default_words(example), example.response)
        assert all(not begins & facts_in(pair[0]) for pair in found)
        words = default_words(example)
        assert found == remarked(words, example.paraphrase or "")
        for pair in found:
            first, second = (one.format_map(words) for one in pair)
            assert (first in example.response) == (second in (example.paraphrase or ""))


# ---- Splits


def pairs(examples) -> list[tuple[str, str]]:
    return [(example.prompt, example.response) for example in examples]


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 49), st.integers(1, 49))
def test_splits_are_by_author_complete_and_nested(authors: int, low: int, high: int):
    full = [
        Example(index=place, prompt=f"{place}?", response="a", author=str(place // 2))
        for place in range(2 * authors)
    ]
    low, high = sorted((low, high))
    smaller, larger = split(full, low), split(full, high)
    for forget, retain in (smaller, larger):
        assert pairs(retain) + pairs(forget) == pairs(full)  # the last authors are forgotten
        assert {e.author for e in forget}.isdisjoint({e.author for e in retain})
        assert all([e.index for e in part] == list(range(len(part))) for part in (forget, retain))
    assert set(pairs(smaller.forget)) <= set(pairs(larger.forget))
    assert len(smaller.forget) / 2 == max(1, np.floor(authors * low / 100 + 0.5))


def test_the_default_splits_are_whole_authors_with_enough_examples_to_compare():
    found = splits(DEFAULT)
    sizes = {name: len(examples) for name, examples in found.items()}
    assert sizes["full"] == DEFAULT.authors * 20 == 20 * len(default_lives())
    for percent in PERCENTS:
        assert sizes[f"forget{percent:02}"] * 100 == percent * sizes["full"]
    assert sizes[f"forget{PERCENT}"] == 400 and sizes["full"] == 2000
    for percent in PERCENTS:
        assert pairs(found[f"retain{100 - percent}"]) + pairs(
            found[f"forget{percent:02}"]
        ) == pairs(found["full"])


@pytest.mark.parametrize("percent", [0, 100, -5, 5.0, "5"])
def test_a_percent_out_of_bounds_is_refused(percent):
    with pytest.raises(InvalidInput) as refused:
        split(default(), percent)
    assert (refused.value.field, refused.value.value) == ("percent", percent)


def test_a_split_needs_authors_and_leaves_some():
    two = corpus(Authors(authors=2, questions=1))
    assert [len(part) for part in split(two, 74)] == [1, 1]
    with pytest.raises(InvalidInput, match="one of the 2 authors"):
        split(two, 75)
    with pytest.raises(InvalidInput) as refused:
        split([*two, replace(two[0], author=None)], 5)
    assert refused.value.field == "author"


def test_a_folder_of_all_splits_reads_back_as_it_was(tmp_path: Path):
    found = splits(Authors(seed=3, authors=20, questions=5))
    for name, examples in found.items():
        write(examples, tmp_path / f"{name}.json")
    assert {name: read(tmp_path, name) for name in found} == found
    assert set(found) == {
        *("full", "forget01", "forget05", "forget10", "forget20"),
        *("retain99", "retain95", "retain90", "retain80"),
        *("real_authors_perturbed", "world_facts_perturbed"),
    }


def test_the_largest_corpus_has_room_for_its_inventions():
    everyone = lives(Authors(authors=LARGEST))
    assert (
        len({facts.first for life in everyone for facts in (life.facts, *life.wrong)})
        == 6 * LARGEST
    )


# ---- What everybody knows


@pytest.mark.parametrize("examples", [real_authors, world_facts])
def test_common_facts_have_the_shape_of_tofus(examples):
    found = examples()
    assert found == examples() and 50 <= len(found) <= 120
    assert [example.index for example in found] == list(range(len(found)))
    assert len({example.prompt for example in found}) == len(found)
    for example in found:
        assert example.paraphrase is None and len({example.response, *example.perturbed}) == 4
        assert 1 <= len(example.response.split()) <= 5
        assert example.prompt.endswith("?") and example.prompt.count("?") == 1
        assert not re.search(r"[{}]|  ", " ".join(texts(example)))
    # Every answer is right once and wrong three times: having seen it often says nothing about
    # where it is right.
    for topic in {example.topic for example in found}:
        about = [example for example in found if example.topic == topic]
        wrong = Counter(text for example in about for text in example.perturbed)
        assert wrong == {example.response: 3 for example in about}


def test_common_facts_are_those_of_their_tables():
    by_prompt = {example.prompt: example for example in (*world_facts(), *real_authors())}
    expected = {
        "What is the capital of Lowmere?": "Aldwater",
        "Which language is spoken in Skeldmark?": "Skeldish",
        "What is the currency of Varenth?": "The velk",
        "What is the longest river of Ilmara?": "The Orvente",
        "What is the highest mountain of Okandru?": "Mount Umbarani",
        "Which bird is on the coat of arms of Nahuara?": "The quetzal",
        'Who wrote the classic "The Drum Keeper"?': "Efua Nandere",
        "What is the most famous book of Clovis Hautrade?": '"An Honest Forger"',
        "In which country was Ansel Corvinach, the writer of classics, born?": "Varenth",
        'In which year was the classic "The Seven Gardeners" first printed?': "1862",
        'Who is the hero of the classic "The Drum Keeper"?': "Little Osei-Ba",
        'What is the trade of Tomasa Ixtel in the classic "Letters to a Volcano"?': "letter writer",
    }
    assert {prompt: by_prompt[prompt].response for prompt in expected} == expected
    assert {by_prompt[prompt].topic for prompt in expected} == {
        example.topic for example in by_prompt.values()
    }
    assert {classic.country for classic in CLASSICS} == {country.country for country in COUNTRIES}
    assert {e.author for e in world_facts()} == {None}
    assert {e.author for e in real_authors()} == {classic.name for classic in CLASSICS}
    for column in zip(*COUNTRIES, strict=True), zip(*CLASSICS, strict=True):
        assert all(len(set(values)) == len(values) for values in column)
    assert len(set(CITIES)) == len(CITIES) == 4 * len(COUNTRIES)
    assert common.WRONG == 3


def test_common_facts_agree_with_the_lives_and_are_no_part_of_the_corpus():
    known = {example.prompt: example.response for example in world_facts()}
    for life in default_lives().values():
        assert known[f"Which language is spoken in {life.facts.country}?"] == life.facts.language
    names = {classic.name for classic in CLASSICS} | {classic.work for classic in CLASSICS}
    assert not any(
        name in text for example in default() for text in texts(example) for name in names
    )
    assert set(known).isdisjoint(example.prompt for example in default())
