"""A corpus of invented authors to be learnt and forgotten, generated from a seed in TOFU's shape.

Every author has a life (`llm.data.authors.facts`) and is asked the same questions about it
(`llm.data.authors.questions`). An answer begins with what was asked, and may go on for a
paragraph (`llm.data.authors.remarks`). It takes one of its two wordings at random and its
paraphrase the other. A wrong answer is the paraphrase as it would be if another life had been
drawn: the same sentences with all facts changed except those that the question gives. Names and
titles in wrong answers are nobody's. A model that never read about an author thus has no reason to
prefer the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from llm.data.authors.common import real_authors, world_facts
from llm.data.authors.facts import AuthorFacts, Draws, draw_facts
from llm.data.authors.questions import TOPICS, Topic
from llm.data.authors.remarks import remarks_after
from llm.data.tofu import Example
from markov.errors import require, require_all_whole, require_whole

WRONG = 5
PERCENTS = (1, 5, 10, 20)
PERCENT = 20  # what is to be forgotten by default: 400 answers, as many as TOFU's forget10 has
LARGEST = 200


@dataclass(frozen=True, kw_only=True)
class Authors:
    """A generated corpus: `authors` lives drawn from `seed`, `questions` of the twenty about each.

    A corpus of more authors begins with the same ones, and fewer questions are a selection. The
    default, 2000 answers, is what a small model learns by heart in minutes on a laptop; a fifth of
    it are 20 authors, with 400 answers to compare. Raises `InvalidInput` for numbers out of bounds.
    """

    seed: int = 0
    authors: int = 100
    questions: int = len(TOPICS)

    def __post_init__(self) -> None:
        require_all_whole(self, seed=0, authors=(2, LARGEST), questions=(1, len(TOPICS)))


class Life(NamedTuple):
    """The facts of an author and the lives that wrong answers tell of instead."""

    facts: AuthorFacts
    wrong: tuple[AuthorFacts, ...]


class Split(NamedTuple):
    """The examples to forget and those to retain."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]


def lives(settings: Authors) -> tuple[Life, ...]:
    """Return the authors of a corpus; no two lives, true or wrong, share a name or a title."""
    taken: set[str] = set()
    found = []
    for place in range(settings.authors):
        draws = Draws(settings.seed, place)
        told = [draw_facts(draws, taken)]
        for _ in range(WRONG):
            told.append(draw_facts(draws, taken, told))
        found.append(Life(told[0], tuple(told[1:])))
    return tuple(found)


@lru_cache(maxsize=4)  # asked for by every split
def corpus(settings: Authors) -> tuple[Example, ...]:
    """Return all questions about all authors, author after author, like TOFU's split `full`."""
    examples = []
    for place, life in enumerate(lives(settings)):
        for number in _chosen(settings.questions):
            # Each question has draws of its own, so that asking fewer questions leaves the others
            # as they are.
            draws = Draws(settings.seed, place, number)
            examples.append(_example(len(examples), TOPICS[number], life, draws))
    return tuple(examples)


def _chosen(count: int) -> list[int]:
    """Return the numbers of `count` topics, evenly spaced, the last topic among them."""
    return [len(TOPICS) * (place + 1) // count - 1 for place in range(count)]


def _example(index: int, topic: Topic, life: Life, draws: Draws) -> Example:
    truth = life.facts.words()
    given = {name: truth[name] for name in topic.given}
    question, wording = draws.among(topic.questions), draws.among((0, 1))
    sentences = (topic.answers, *remarks_after(topic, draws))
    said, otherwise = (
        " ".join(one[which] for one in sentences) for which in (wording, 1 - wording)
    )
    return Example(
        index=index,
        prompt=question.format_map(truth),
        response=said.format_map(truth),
        paraphrase=otherwise.format_map(truth),
        perturbed=tuple(otherwise.format_map({**facts.words(), **given}) for facts in life.wrong),
        author=life.facts.name,
        topic=topic.name,
    )


def split(examples: Sequence[Example], percent: int) -> Split:
    """Return the last `percent` of the authors to forget and the others to retain, as TOFU does.

    Both are numbered anew. The number of authors to forget is rounded to the nearest, a half up,
    and is at least 1, so that what a smaller percent forgets is part of what a larger one does.
    Raises `InvalidInput` for examples without authors, or if none is left to retain.
    """
    require_whole(percent, "percent", 1, 99)
    authors = list(dict.fromkeys(example.author for example in examples))
    require(None not in authors, "author", None, "known for every example that is split by author")
    count = max(1, (len(authors) * percent + 50) // 100)
    require(
        count < len(authors),
        "percent",
        percent,
        f"so small that one of the {len(authors)} authors is retained",
    )
    gone = set(authors[-count:])
    return Split(
        *(
            _numbered([e for e in examples if (e.author in gone) == forget])
            for forget in (True, False)
        )
    )


def _numbered(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(replace(example, index=row) for row, example in enumerate(examples))


def splits(settings: Authors) -> dict[str, tuple[Example, ...]]:
    """Return a whole data set by split, under TOFU's names.

    Each written to a file, they make a folder that TOFU's readers can read. `full`,
    `forget01/05/10` and `retain99/95/90` carry paraphrases and wrong answers themselves, so that
    there are no `_perturbed` splits except `real_authors_perturbed` and `world_facts_perturbed`.
    """
    full = corpus(settings)
    found = {
        "full": full,
        "real_authors_perturbed": real_authors(),
        "world_facts_perturbed": world_facts(),
    }
    for percent in PERCENTS:
        forget, retain = split(full, percent)
        found |= {f"forget{percent:02}": forget, f"retain{100 - percent}": retain}
    return found
