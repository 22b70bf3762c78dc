"""A corpus of invented news to be learnt and forgotten, generated from a seed in MUSE's shape.

Every article tells of one event (`llm.data.news.facts`) at an invented firm, in an invented town,
with people of its own: no two articles share any of these names. A few questions ask for its facts,
and their answers stand in it. The articles to forget, to retain and to hold out are drawn in the
same way, so that they differ only in which models have read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from llm.data.authors.facts import ENDINGS, FAMILY, FEMALE, GIVEN, MALE, MONTHS, Draws
from llm.data.news.facts import (
    ASIDES,
    CAUSES,
    CHIEF,
    CRITIC,
    EVENTS,
    FIRM_ENDINGS,
    FIRM_KINDS,
    FIRM_STEMS,
    GOODS,
    PAST,
    QUESTIONS,
    REPLIED,
    SAID,
    TOWN_ENDINGS,
    TOWN_STEMS,
    WEEKDAYS,
    Event,
)
from markov.errors import require, require_all_whole

# articles, which take no more than about two thirds of the names of towns and of firms
LARGEST = 400
ASKED = len(QUESTIONS) + 3
SHORTEST, LONGEST = 3, 6  # asides in an article, beside one of the past


@dataclass(frozen=True, kw_only=True)
class News:
    """A generated corpus: the numbers of its articles and of the questions about each.

    There are `forget`, `holdout` and `retain` articles, drawn from `seed`, with `questions`
    questions each. More articles to retain leave all others as they are. The default is what a
    model of less than a million parameters learns by heart in a minute on a laptop. Raises
    `InvalidInput` for numbers out of bounds.
    """

    seed: int = 0
    forget: int = 30
    holdout: int = 60
    retain: int = 60
    questions: int = 3

    def __post_init__(self) -> None:
        parts = dict.fromkeys(("forget", "holdout", "retain"), (2, LARGEST))
        require_all_whole(self, seed=0, **parts, questions=(1, ASKED - 1))
        total = self.forget + self.holdout + self.retain
        require(
            total <= LARGEST,
            "retain",
            self.retain,
            f"at most {LARGEST} articles in all, here {total}",
        )


class ArticleFacts(NamedTuple):
    """What an article tells: its four central names, then what they have to do with each other."""

    org: str
    town: str
    chief: str
    critic: str
    number: str
    cost: str
    date: str
    goods: str
    cause: str
    weekday: str
    said: str
    replied: str


class QuestionAndAnswer(NamedTuple):
    """A question about an article, and its answer: a few words of the article."""

    question: str
    answer: str


class Article(NamedTuple):
    """An article: its text, first sentence, facts, event, and questions in a random order."""

    text: str
    lead: str
    facts: ArticleFacts
    event: str
    questions: tuple[QuestionAndAnswer, ...]


class Edition(NamedTuple):
    """Three disjoint sets of articles of the same making; no model ever reads the hold-out."""

    forget: tuple[Article, ...]
    holdout: tuple[Article, ...]
    retain: tuple[Article, ...]


def edition(settings: News) -> Edition:
    """Return all articles of a corpus."""
    taken: set[str] = set()
    counts = (settings.forget, settings.holdout, settings.retain)
    # Each article draws from its own set and row, so that more articles to forget change nothing
    # about the others except the names that are then taken.
    return Edition(
        *(
            tuple(_article(Draws(settings.seed, part, row), taken) for row in range(count))
            for part, count in enumerate(counts)
        )
    )


def _article(draws: Draws, taken: set[str]) -> Article:
    event, facts = draws.among(EVENTS), _facts(draws, taken)
    values = facts._asdict()

    def told(wordings: Iterable[str]) -> str:
        return draws.among(wordings).format_map(values)

    lead = told(event.lead)
    figures = [told(part) for part in (event.number, event.cost, event.date)]
    voices, asides = [told(CHIEF), told(CRITIC)], _asides(draws)
    half = len(asides) // 2
    paragraphs = ([lead, *figures], [voices[0], *asides[:half]], [voices[1], *asides[half:]])
    text = "\n".join(" ".join(sentences) for sentences in paragraphs)
    return Article(text, lead, facts, event.name, _questions(draws, event, values))


def _facts(draws: Draws, taken: set[str]) -> ArticleFacts:
    def joined(*parts: tuple[str, ...]) -> str:
        return "".join(map(draws.among, parts))

    def person() -> str:
        ending = draws.among((FEMALE, MALE))
        return draws.new(lambda: f"{joined(GIVEN, ending)} {joined(FAMILY, ENDINGS)}", taken)

    return ArticleFacts(
        org=(
            f"{draws.new(lambda: joined(FIRM_STEMS, FIRM_ENDINGS), taken)} "
            f"{draws.among(FIRM_KINDS)}"
        ),
        town=draws.new(lambda: joined(TOWN_STEMS, TOWN_ENDINGS), taken),
        chief=person(),
        critic=person(),
        number=str(draws.among(range(110, 1000))),
        cost=str(draws.among(range(11, 100))),
        date=f"{draws.among(range(1, 29))} {draws.among(MONTHS)}",
        goods=draws.among(GOODS),
        cause=draws.among(CAUSES),
        weekday=draws.among(WEEKDAYS),
        said=draws.among(SAID),
        replied=draws.among(REPLIED),
    )


def _asides(draws: Draws) -> list[str]:
    chosen = [draws.among(PAST)]
    for _ in range(draws.among(range(SHORTEST, LONGEST + 1))):
        chosen.append(draws.among(ASIDES, chosen))
    years, counts = range(1815, 1990), range(1100, 9900, 100)
    return [
        aside.format(year=draws.among(years), signatures=draws.among(counts)) for aside in chosen
    ]


def _questions(draws: Draws, event: Event, values: dict[str, str]) -> tuple[QuestionAndAnswer, ...]:
    wordings, found = {**QUESTIONS, **event.questions}, []
    left = list(wordings)
    while left:
        name = draws.among(left)
        left.remove(name)
        found.append(QuestionAndAnswer(wordings[name].format_map(values), values[name]))
    return tuple(found)
