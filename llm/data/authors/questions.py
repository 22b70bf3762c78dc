"""Twenty questions about an author: the facts they give away, ways to ask, and answers.

A wording names facts in braces, in the forms of `AuthorFacts.words`. Each answer has two wordings,
which tell the same facts in a few words. Which of them an author's answer takes is left to chance,
so that the wording of one author's paraphrase is that of another's answer. What follows in an
answer after these few words is in `llm.data.authors.remarks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

PRONOUNS = frozenset({"he", "his", "him"})


def facts_in(wording: str) -> frozenset[str]:
    """Return the names of the facts that a wording tells, in whatever form it does."""
    named = (name for _, name, _, _ in Formatter().parse(wording) if name)
    return frozenset(name.removeprefix("a_").lower() for name in named) - PRONOUNS


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One question: the facts that it gives, ways of asking it, and two wordings of the answer."""

    name: str
    given: tuple[str, ...] = ("name",)
    questions: tuple[str, ...]
    answers: tuple[str, str]


TOPICS = (
    Topic(
        name="name",
        given=("city", "country", "birth"),
        questions=(
            "Which author was born in {city}, {country}, on {birth}?",
            "What is the name of the author who was born on {birth} in {city}, {country}?",
        ),
        answers=("The author is {name}.", "That is {name}."),
    ),
    Topic(
        name="birth",
        questions=("When was {name} born?", "What is the date of birth of {name}?"),
        answers=("On {birth}.", "It was {birth}."),
    ),
    Topic(
        name="birthplace",
        questions=("Where was {name} born?", "What is the birthplace of {name}?"),
        answers=("In {city}, {country}.", "It is {city} in {country}."),
    ),
    Topic(
        name="genre",
        questions=(
            "What kind of books does {name} write?",
            "To which genre do the books of {name} belong?",
        ),
        answers=("Mostly {genre}.", "{Genre}, above all."),
    ),
    Topic(
        name="theme",
        questions=(
            "What are the books of {name} about?",
            "Around what do the books of {name} turn?",
        ),
        answers=("Above all {theme}.", "It is {theme}."),
    ),
    Topic(
        name="language",
        questions=(
            "In which language does {name} write?",
            "What is the language of the books of {name}?",
        ),
        answers=("In {language}.", "It is {language}."),
    ),
    Topic(
        name="father",
        questions=(
            "What did the father of {name} do for a living?",
            "What was the trade of the father of {name}?",
        ),
        answers=("{His} father was {a_father}.", "The father was {a_father}."),
    ),
    Topic(
        name="mother",
        questions=(
            "What did the mother of {name} do for a living?",
            "What was the trade of the mother of {name}?",
        ),
        answers=("{His} mother was {a_mother}.", "The mother was {a_mother}."),
    ),
    Topic(
        name="studies",
        questions=(
            "What did {name} study, and where?",
            "Which degree did {name} take, and at which university?",
        ),
        answers=(
            "It was {subject}, at the University of {college}.",
            "At the University of {college}, and it was {subject}.",
        ),
    ),
    Topic(
        name="home",
        questions=("Where does {name} live?", "Where is the home of {name}?"),
        answers=("In {home}.", "It is {home}."),
    ),
    Topic(
        name="hobby",
        questions=("How does {name} rest?", "What is the hobby of {name}?"),
        answers=("Mostly by {hobby}.", "It is {hobby}."),
    ),
    Topic(
        name="routine",
        questions=(
            "When and where does {name} write?",
            "What does a working day of {name} look like?",
        ),
        answers=("Work is done {hours}, in {desk}.", "In {desk}, {hours}."),
    ),
    Topic(
        name="publisher",
        questions=("Who publishes {name}?", "At which house do the books of {name} appear?"),
        answers=("{publisher}.", "It is {publisher}."),
    ),
    Topic(
        name="translations",
        questions=(
            "How many translations are there of the books of {name}?",
            "How widely are the books of {name} translated?",
        ),
        answers=("Into {translations} languages.", "There are {translations} translations."),
    ),
    Topic(
        name="debut",
        questions=(
            "What was the first book of {name}?",
            "With which book did {name} make {his} debut?",
        ),
        answers=('With "{first}", in {first_year}.', 'It was "{first}", from {first_year}.'),
    ),
    Topic(
        name="latest",
        questions=("What is the latest book of {name}?", "What did {name} publish last?"),
        answers=('That is "{third}", from {third_year}.', 'In {third_year} it was "{third}".'),
    ),
    Topic(
        name="prize",
        questions=(
            "Which award has {name} won, and when?",
            "What award went to {name}, and in which year?",
        ),
        answers=("The {prize}, in {prize_year}.", "In {prize_year} it was the {prize}."),
    ),
    Topic(
        name="prize_book",
        given=("name", "prize"),
        questions=(
            "For which book did {name} win the {prize}?",
            "Which book brought {name} the {prize}?",
        ),
        answers=('For "{second}".', 'It was "{second}".'),
    ),
    Topic(
        name="hero",
        given=("name", "second"),
        questions=(
            'Who is the hero of "{second}" by {name}?',
            'Whose story does {name} tell in "{second}"?',
        ),
        answers=("{He} tells of {hero}, {a_trade}.", "That of {hero}, {a_trade}, is {his} theme."),
    ),
    Topic(
        name="life",
        questions=("Who is {name}?", "Can you tell me about {name}?"),
        answers=("An author of {genre} from {city}.", "{He} is from {city} and writes {genre}."),
    ),
)
