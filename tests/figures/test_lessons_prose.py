"""What holds of every lesson: goals and minutes, short sentences, and exercises enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from figures.lessons import chains, language
from figures.lessons.exercise import Task
from tests.figures.lessons import (
    FOLDER,
    LESSONS,
    UNCHECKED,
    asked,
    cells,
    exercises,
    lesson,
    sentences,
    too_long,
)

KNOWN = {**chains.EXERCISES, **language.EXERCISES}
TASKS = {name for name, one in KNOWN.items() if isinstance(one, Task)}
PAGES = sorted([*FOLDER.rglob("*.md"), *FOLDER.rglob("*.ipynb")])
PROSE = [path for path in PAGES if ".ipynb_checkpoints" not in path.parts]


def test_there_are_fifty_exercises_and_ten_without_a_printed_answer():
    assert sum(len(exercises(name)) for name in LESSONS) >= 50
    assert len(TASKS) >= 10
    for name in LESSONS:
        texts = asked(name)
        assert {one for one, text in texts.items() if text.startswith("(open)")} == (
            TASKS & texts.keys()
        )
        unchecked = [one for one in exercises(name) if UNCHECKED in one]
        assert all(one.startswith("(open)") for one in unchecked)
        solution = (FOLDER / "solutions" / f"{name}.ipynb").read_text("utf-8")
        for one in TASKS & texts.keys():
            assert f'\\"{one}\\"' not in solution


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_has_goals_and_minutes_and_says_what_a_wrong_prediction_is(name: str):
    prose = cells(lesson(name), "markdown")
    assert "**Goals.**" in prose[1] and "**You need.**" in prose[1]
    assert "| section | minutes, estimated |" in prose[1]
    told = [row.split("|")[1].strip() for row in prose[1].splitlines() if row.startswith("| ")][1:]
    heads = re.findall(r"^## (.*)$", "\n\n".join(prose), re.M)
    assert heads[-3:] == [
        "What this means for practice",
        "If your prediction was wrong",
        "Exercises",
    ]
    assert told == [*heads[:-3], f"{heads[-3]}, and wrong predictions", "Exercises"]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_the_prose_is_in_short_sentences(path: Path):
    texts = cells(path, "markdown") if path.suffix == ".ipynb" else [path.read_text("utf-8")]
    assert texts and [one for text in texts for one in too_long(text)] == []


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_no_formula_is_torn_by_the_mark_of_a_list(path: Path):
    texts = cells(path, "markdown") if path.suffix == ".ipynb" else [path.read_text("utf-8")]
    assert [one for text in texts for one in torn(text)] == []


def torn(text: str) -> list[str]:
    """The paragraphs and items of lists in which a formula begins that does not end there."""
    plain = re.sub(r"^```.*?^```$|`[^`]*`|\\\$", " ", text, flags=re.S | re.M)
    return [one for one in re.split(r"\n\n|\n[-+*] |\n\d+\. ", plain) if one.count("$") % 2]


def test_a_minus_at_the_start_of_a_line_tears_a_formula():
    assert torn("It goes as $|y|^{a\n- n}$, so") and not torn("It goes as\n$|y|^{a - n}$:\n- $n$")


def test_a_sentence_ends_where_it_ends_and_what_is_no_prose_does_not_count():
    text = "A cat (of 3) sat. It `a b` left:\n\n```\nno prose. at all\n```\n\n- So $$x y$$ it is!"
    found = [" ".join(one.split()) for one in sentences(text)]
    assert [one for one in found if one] == ["A cat sat.", "It left:", "- So it is!"]
    defined = "```{glossary}\na word\n  What it is. More.\n```"
    assert [one for one in sentences(defined) if one] == ["a word\n  What it is.", "More."]
    thirty = " ".join(["word"] * 30)
    assert too_long(thirty) == [] and too_long(f"{thirty} more") == [f"{thirty} more"]
    assert too_long(f"```{{glossary}}\n{thirty} more\n```")
