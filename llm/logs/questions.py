"""Match the examples of two models: by index if their sets are equal, by question if they overlap.

Two things may be known of an example. Its `question` is bare, as in the data. Its `prompt` is what
the model was given: the question in a template, as its tokens read. Logs of other codes store the
prompt alone. A prompt asks a bare question if it contains it.

Texts are compared without their blanks, since decoders add and drop blanks around a template's
marks, and in one of the forms that Unicode has for the same letters (NFC). A date that stands in
every prompt of a log is not compared either: the templates of some chat models write the day on
which they are used.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from markov.errors import InvalidInput, require

DATE = re.compile(r"\d{1,2} [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2}, \d{4}|\d{4}-\d{2}-\d{2}")
BEFORE, AFTER = 20, 40  # characters that are shown around the first difference of two templates


class Asked(NamedTuple):
    """What was asked in each example of the log `file`; None for what is not known."""

    file: str
    index: Int[np.ndarray, "examples"]
    question: tuple[str, ...] | None = None
    prompt: tuple[str, ...] | None = None

    @property
    def field(self) -> str:
        """The name of the texts by which the examples are known: `question` or `prompt`."""
        return "prompt" if self.question is None and self.prompt is not None else "question"

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts by which the examples are known: bare questions, else prompts, else none."""
        return self.question or self.prompt or ()


def matched(
    index: Int[np.ndarray, "examples"], other: Int[np.ndarray, "others"]
) -> tuple[list[int], list[int]]:
    """Return where each shared index stands in the other, and the indices that the other lacks."""
    stands = {int(own): place for place, own in enumerate(other)}
    found = [stands[int(own)] for own in index if int(own) in stands]
    return found, [int(own) for own in index if int(own) not in stands]


def places(one: Asked, other: Asked) -> list[int]:
    """Return where each example of the first stands in the other, matched by index.

    Raises `InvalidInput` for unequal counts, for another set of indices, and if something else was
    asked at an index, as far as both logs know what was asked: another question or, if both know
    prompts alone, another template. Warns if the questions are the same and the prompts are not,
    since the models were then asked in different templates.
    """
    both = f"{one.file} and {other.file}"
    count, others = len(one.index), len(other.index)
    require(
        count == others,
        "examples",
        f"{count} and {others}",
        f"equal counts in {both}{_hint(one, other)}",
    )
    found, lacking = matched(one.index, other.index)
    require(
        not lacking,
        "index",
        lacking[:1],
        f"the same indices in {both} ({len(lacking)} of {count} differ)",
    )
    if one.texts and other.texts:
        same = _same(one, other)
        odd = [(row, place) for row, place in enumerate(found) if not same(row, place)]
        shown = [
            (int(one.index[row]), one.texts[row], other.texts[place]) for row, place in odd[:1]
        ]
        template = " and template" if one.field == other.field == "prompt" else ""
        allowed = (
            f"the same question{template} in {both} ({len(odd)} of {count} "
            f"differ){_hint(one, other)}"
        )
        require(not odd, "question", shown[0] if shown else None, allowed)
        _warn_of_templates(one, other, found)
    return found


def shared_places(one: Asked, other: Asked) -> tuple[list[int], list[int]]:
    """Return where the examples that both have stand in each, in the order of the first.

    Raises `InvalidInput` if nothing is known of what was asked, for a question that comes twice,
    and if no example is shared.
    """
    for each in (one, other):
        require(
            bool(each.texts),
            "question",
            None,
            f"prompts in {each.file}, by which examples are known",
        )
        first: dict[str, int] = {}
        for row, key in enumerate(_keys(each)):
            if first.setdefault(key, row) != row:
                repeated = len(each.texts) - len(set(_keys(each)))
                allowed = f"each question once in {each.file} ({repeated} repeated;"
                allowed += f" example {each.index[first[key]]} has this one too)"
                raise InvalidInput(
                    f"{each.field} of example {each.index[row]}", each.texts[row], allowed
                )
    found = _shared(one, other)
    require(
        bool(found),
        "question",
        "0 shared",
        f"at least one question in both {one.file} and {other.file}",
    )
    mine, theirs = zip(*found, strict=True)
    return list(mine), list(theirs)


def _shared(one: Asked, other: Asked) -> list[tuple[int, int]]:
    """Return the examples that both have, as pairs of their places, in the order of the first."""
    mine, theirs = _keys(one), _keys(other)
    if one.field == other.field:
        at = {key: place for place, key in enumerate(theirs)}
        return [(row, at[key]) for row, key in enumerate(mine) if key in at]
    if one.field == "prompt":
        return sorted((row, place) for place, row in _shared(other, one))
    # A question may be part of another one. What is around it in its own prompt, however, is the
    # template that all prompts share.
    inside = [
        (row, place)
        for place, prompt in enumerate(theirs)
        for row, bare in enumerate(mine)
        if bare in prompt
    ]
    around = [theirs[place].replace(mine[row], "\0", 1) for row, place in inside]
    template = Counter(around).most_common(1)
    pairs = zip(inside, around, strict=True)
    return sorted({row: place for (row, place), text in pairs if text == template[0][0]}.items())


def _same(one: Asked, other: Asked) -> Callable[[int, int], bool]:
    """Return a function that says whether two places, one in each log, hold the same example."""
    mine, theirs = _keys(one), _keys(other)
    if one.field == other.field:
        return lambda row, place: mine[row] == theirs[place]
    if one.field == "question":
        return lambda row, place: mine[row] in theirs[place]
    return lambda row, place: theirs[place] in mine[row]


def _keys(asked: Asked) -> list[str]:
    return _compared(asked.texts, dated=asked.field == "prompt")


def _compared(texts: tuple[str, ...], *, dated: bool) -> list[str]:
    """Return the texts in the form to compare; `dated` ones lose a date that all of them have."""
    plain = [" ".join(unicodedata.normalize("NFC", text).split()) for text in texts]
    if dated and plain:
        for date in set.intersection(*(set(DATE.findall(text)) for text in plain)):
            plain = [text.replace(date, "") for text in plain]
    return [text.replace(" ", "") for text in plain]


def _hint(one: Asked, other: Asked) -> str:
    if not (one.texts and other.texts):
        return ""
    common = len(_shared(one, other))
    return f"; {common} questions occur in both" + (
        ", and `shared` keeps those" if common else ": other splits"
    )


def _warn_of_templates(one: Asked, other: Asked, found: list[int]) -> None:
    """Warn of prompts that differ although their questions do not."""
    if one.prompt is None or other.prompt is None:
        return
    mine, theirs = _compared(one.prompt, dated=True), _compared(other.prompt, dated=True)
    for row, place in enumerate(found):
        a, b = mine[row], theirs[place]
        if a != b:
            at = next(
                (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            parts = " beside ".join(repr(text[max(0, at - BEFORE) : at + AFTER]) for text in (a, b))
            warnings.warn(
                f"{one.file} and {other.file} ask the same in different templates: {parts}",
                stacklevel=4,
            )
            return
