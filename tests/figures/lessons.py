"""How the notebooks are read and their exercises solved in tests: texts, and solutions of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[2] / "notebooks"
LESSONS = sorted(path.stem for path in FOLDER.glob("[01]*_*.ipynb"))
UNCHECKED = "This exercise is not checked."  # what an exercise says of itself that nobody checks
LONGEST = 30  # words of a sentence


class Solved(NamedTuple):
    """What of the text is used, what follows from it, and what those answer who misread it."""

    words: tuple[str, ...]
    answer: Callable[[], Any]
    near: Callable[[], tuple[Any, ...]]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def letter(right: str, words: str, offered: str = "abc") -> Solved:
    return Solved((words,), lambda: right, lambda: tuple(sorted({*offered} - {right})))


def cells(path: Path, kind: str) -> list[str]:
    """The sources of the cells of one kind."""
    notebook = json.loads(path.read_text("utf-8"))
    return ["".join(one["source"]) for one in notebook["cells"] if one["cell_type"] == kind]


def lesson(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def exercises(name: str) -> list[str]:
    """The texts of a lesson's exercises, each on one line."""
    text = "\n\n".join(cells(lesson(name), "markdown")).split("## Exercises")[1]
    texts = re.split(r"^\*\*\d+\.\*\* ", text, flags=re.M)[1:]
    texts[-1] = re.split(r"^Next: |^The answers are in", texts[-1], flags=re.M)[0]
    return [" ".join(one.split()) for one in texts]


def asked(name: str) -> dict[str, str]:
    """The text of each checked exercise of a lesson by the name under which it is checked."""
    names = re.findall(r'^check\("(\w+)"', "\n".join(cells(lesson(name), "code")), re.M)
    return dict(zip(names, (one for one in exercises(name) if UNCHECKED not in one), strict=True))


def sentences(text: str) -> list[str]:
    """The sentences of prose, without formulas, tables, code and what stands in brackets.

    A fence of a glossary is taken off; other fences hold no prose, and are left out.
    """
    text = re.sub(r"^```\{glossary\}\n(.*?)^```$", r"\1", text, flags=re.S | re.M)
    text = re.sub(r"^```.*?^```$", " ", text, flags=re.S | re.M)
    plain = re.sub(r"\$\$.*?\$\$|\|.*?\|$|`[^`]*`|\([^()]*\)", " ", text, flags=re.S | re.M)
    return re.split(r"(?<=[.?!:;*])\s+|\n\n|\n- ", plain)


def too_long(text: str) -> list[str]:
    return [one for one in sentences(text) if len(one.split()) > LONGEST]
