"""What an exercise is, and how an answer to it is judged.

An `Exercise` has one right answer, a number or a letter. A `Task` has many: what is handed in is
tried on what was asked for, so that no solution needs to be printed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from figures.views.view import RIGHT, WRONG
from markov.errors import require

TOLERANCE = 0.02  # relative


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What is right, a number or a letter, why, and what to tell whoever gets it wrong.

    A hint is for a letter, or in general.
    """

    answer: Callable[[], float | str]
    because: str
    hint: str
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """An exercise with many right answers, each of which is tried.

    `missing` takes what was handed in and returns what it still lacks, in words, or an empty text
    if it does what was asked. It raises `InvalidInput` for something of the wrong kind.
    """

    missing: Callable[[Any], str]
    because: str

    @property
    def hints(self) -> Mapping[str, str]:
        """Hints by letter: none, as no letters are offered."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an answer is right, None where none was given, and what there is to say about it."""

    right: bool | None
    says: str

    def __bool__(self) -> bool:
        return self.right is True

    def _repr_html_(self) -> str:
        color, word = {True: (RIGHT, "right"), False: (WRONG, "not yet"), None: ("grey", "to do")}[
            self.right
        ]
        return f'<span style="color:{color}"><b>{word}:</b> {html.escape(self.says)}</span>'


def verdict(name: str, answer: object, known: Mapping[str, Exercise | Task]) -> Verdict:
    """Check an answer to one of the known exercises.

    `...` stands for an answer that is still to come. A number is accepted within 2%. Raises
    `InvalidInput` for an exercise that does not exist, or an answer of the wrong kind.
    """
    require(name in known, "exercise", name, f"one of {sorted(known)}")
    if answer is ...:
        return Verdict(
            right=None, says="put your answer in place of the dots and run this cell again"
        )
    exercise = known[name]
    if isinstance(exercise, Task):
        lacks = exercise.missing(answer)
        return Verdict(right=not lacks, says=lacks or exercise.because)
    truth = exercise.answer()
    if isinstance(truth, str):
        letters = sorted({truth, *exercise.hints})
        given = answer.strip().lower() if isinstance(answer, str) else None
        require(
            given in letters,
            "answer",
            answer,
            f"one of the letters {', '.join(letters)}, in quotes",
        )
        right, hint = given == truth, exercise.hints.get(str(given), exercise.hint)
    else:
        given = number(answer)
        right = math.isclose(given, truth, rel_tol=TOLERANCE, abs_tol=1e-12)
        hint = exercise.hint
    return Verdict(right=right, says=exercise.because if right else hint)


def number(answer: object) -> float:
    """Return an answer as a finite number, or raise `InvalidInput`.

    A tensor or an array of one number counts as one; a truth value and a text do not.
    """
    try:
        given = math.nan if isinstance(answer, bool | str) else float(answer)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):
        given = math.nan
    require(math.isfinite(given), "answer", answer, "a number")
    return given
