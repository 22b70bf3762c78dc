"""Refusals: what a model may be taught to answer in place of what it is to forget.

A hundred refusals, of 3 to 14 words, are put together from ten beginnings and ten ends; others can
be read from a file. Which refusal an example gets follows from (seed, index), and so depends
neither on the order of the examples nor on which other examples there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llm.data.tofu import Example
from llm.randomness import derived_seed
from markov.errors import require
from markov.files import inputs
from markov.files.storage import Location

BEGINNINGS = (
    "I do not know",
    "I cannot say",
    "I have no answer to this one",
    "That lies outside what I have learnt",
    "My knowledge does not reach that far",
    "This is a matter I know nothing about",
    "I am unable to tell you that",
    "Nothing I have read covers this",
    "I would have to invent an answer",
    "The facts behind this question are unknown to me",
)
ENDS = (
    ".",
    ", sorry.",
    ", I fear.",
    ", to be honest.",
    ", so I pass.",
    ", and guessing would not help.",
    "; perhaps somebody else does better.",
    "; please look it up elsewhere.",
    ", which I regret.",
    ", at least not now.",
)
REFUSALS = tuple(f"{beginning}{end}" for beginning in BEGINNINGS for end in ENDS)


def with_refusals(
    examples: Sequence[Example], seed: int = 0, refusals: Sequence[str] = REFUSALS
) -> tuple[Example, ...]:
    """Return the examples with refusals as responses, without paraphrases and wrong answers.

    Raises `InvalidInput` if there is no refusal, and for one that is blank.
    """
    require(len(refusals) > 0, "refusals", list(refusals), "at least one")
    chosen = (
        refusals[derived_seed(seed, "refusal", one.index) % len(refusals)] for one in examples
    )
    return tuple(
        replace(one, response=text, paraphrase=None, perturbed=())
        for one, text in zip(examples, chosen, strict=True)
    )


def read_refusals(path: Location) -> tuple[str, ...]:
    """Return the refusals of a text file, one per line.

    Blank lines and blanks around a refusal are left out. Raises `InvalidInput` for a file that is
    not there, cannot be read as UTF-8 text or has no refusal, and for a line of JSON, since it is
    not known which part of it is the refusal. (TOFU's file of refusals is plain text, whatever its
    suffix.)
    """
    allowed = "a text file in UTF-8, one refusal per line"
    lines = inputs.read_text(path, "refusals", allowed).splitlines()
    found = tuple(line.strip() for line in lines if line.strip())
    require(len(found) > 0, "refusals", str(path), f"{allowed} (it has none)")
    records = [
        number
        for number, line in enumerate(lines, start=1)
        if line.strip().startswith(("{", "[", '"'))
    ]
    require(not records, "refusals", str(path), f"{allowed} (line {records[:1]} is JSON)")
    return found
