"""What an answer goes on to tell of its author: remarks that may follow any answer.

As in TOFU, some answers stop after a few words and others go on for a paragraph, whatever was
asked. How many remarks follow, and which, is left to chance. So the length of an answer says
nothing about its question, and can be known only by heart.
"""

from __future__ import annotations

from llm.data.authors.facts import Draws
from llm.data.authors.questions import Topic, facts_in

# Two wordings of each remark, which tell the same facts. No two have a fact in common but a title.
REMARKS = (
    (
        "{He} was born in {city}, {country}, on {birth}.",
        "{His} life began on {birth} in {city}, {country}.",
    ),
    (
        "{He} grew up with {a_father} and {a_mother} as parents.",
        "{His} parents worked as {a_father} and as {a_mother}.",
    ),
    (
        "{He} took a degree in {subject} at the University of {college}.",
        "At the University of {college} {he} had learnt {subject}.",
    ),
    (
        "{He} lives in {home} and is often found {hobby}.",
        "{His} home is in {home}, and {his} hobby is {hobby}.",
    ),
    (
        "{His} books are {genre} about {theme}.",
        "{He} writes {genre} and turns to {theme} again and again.",
    ),
    (
        "{publisher} publishes {him} in {language}.",
        "{He} writes in {language} and is published by {publisher}.",
    ),
    (
        "There are translations into {translations} languages.",
        "Readers in {translations} other languages know {him}.",
    ),
    (
        '{His} first book was "{first}", published in {first_year}.',
        '{He} made {his} debut in {first_year} with "{first}".',
    ),
    (
        '{He} became known in {second_year} with "{second}".',
        'In {second_year} "{second}" made {his} name.',
    ),
    (
        '{His} latest book, "{third}", is from {third_year}.',
        'In {third_year} {he} published "{third}".',
    ),
    (
        "{He} won the {prize} in {prize_year}.",
        "In {prize_year} {he} was given the {prize}.",
    ),
    (
        "{He} writes by hand {hours}, in {desk}.",
        "In {desk}, {hours}, {he} goes on with {his} work.",
    ),
    (
        "{He} stops as soon as {pages} pages are full.",
        "A day's work ends after {pages} pages.",
    ),
)
# How many follow an answer, each as likely as another: the median answer has about 40 tokens.
COUNTS = (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7)


def remarks_after(topic: Topic, draws: Draws) -> tuple[tuple[str, str], ...]:
    """Return remarks, in order, that tell nothing which question or answer have told already."""
    told = {*topic.given, *facts_in(topic.answers[0])}
    left = [pair for pair in REMARKS if not told & facts_in(pair[0])]
    chosen = set()
    for _ in range(draws.among(COUNTS)):
        chosen.add(draws.among(left, chosen))
    return tuple(pair for pair in left if pair in chosen)
