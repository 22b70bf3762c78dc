"""What the book adds for those who learn and teach: minutes, folded answers, and the cheat sheet.

Sphinx loads this module as an extension (`conf.py`).
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from figures.lessons import cheat_sheet

HERE = Path(__file__).parent
SOLUTIONS, FOLD = "solutions", "fold"

# An exercise, and what answers it, begins with its number in bold.
NUMBERED = re.compile(r"(\d+)\.")
WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
NUMBERS = {word: number for number, word in enumerate(WORDS.split())}
NUMBERS |= {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}


class Lessons(SphinxDirective):
    """A table of the notebooks: title, minutes, and where the exercises are solved.

    The minutes are the sum of those that a notebook gives its sections.
    """

    def run(self) -> list[nodes.Node]:
        rows = ["| notebook | minutes, estimated | exercises |", "|---|---:|---|"]
        for path in sorted(HERE.glob("[0-9]*.ipynb")):
            self.env.note_dependency(str(path))
            prose = prose_of(path)
            minutes, title = minutes_of(prose), prose.splitlines()[0].removeprefix("# ")
            solved = f"[solved]({SOLUTIONS}/{path.name})"
            rows.append(f"| [{path.stem[:2]} {title}]({path.name}) | {minutes} | {solved} |")
        return self.parse_text_to_nodes("\n".join(rows) + "\n")


def prose_of(path: Path) -> str:
    """Return the Markdown of a notebook."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(one["source"]) for one in cells if one["cell_type"] == "markdown")


def minutes_of(prose: str) -> int:
    """Return the sum of the minutes that a table in the prose gives to sections.

    A cell of the table begins with a number in words or figures, and what follows is not read.
    Raises `ExtensionError` for a cell that begins with anything else, and without a table.
    """
    found = re.search(r"^\| section \| minutes.*\n\|.*\n((?:\|.*\n?)+)", prose, re.M)
    if not found:
        raise ExtensionError(f"no table of sections and minutes in {prose.splitlines()[0]!r}")
    total = 0
    for row in found[1].splitlines():
        first = re.split(r"[\s,;]", row.split("|")[2].strip(), maxsplit=1)[0]
        try:
            total += int(first) if first.isdigit() else sum(NUMBERS[x] for x in first.split("-"))
        except KeyError:
            raise ExtensionError(f"no number of minutes in {row!r}") from None
    return total


def number_of(node: nodes.Node) -> int | None:
    """Return the number in bold with which a paragraph begins, or None."""
    inside = node.children if isinstance(node, nodes.paragraph) else ()
    first = next((child for child in inside if child.astext()), None)  # what is before is empty
    found = NUMBERED.fullmatch(first.astext()) if isinstance(first, nodes.strong) else None
    return int(found[1]) if found else None


def one_each(paragraph: nodes.Node) -> list[nodes.Element]:
    """Return a paragraph that answers several exercises as one paragraph for each of them."""
    parts: list[nodes.Element] = []
    for child in paragraph.children:
        if isinstance(child, nodes.strong) and NUMBERED.fullmatch(child.astext()):
            parts.append(nodes.paragraph())
        if parts:
            parts[-1] += child
    return parts


def folds_of(told: list[nodes.Node]) -> list[nodes.Element]:
    """Return one fold for each answer: it goes from the number of the answer to the next one.

    A fold is what a reader opens, with no script. It is named a hint where the answer gives one,
    and else a solution.
    """
    folds: list[nodes.Element] = []
    for node in told:
        for part in one_each(node) if number_of(node) is not None else [node]:
            if (number := number_of(part)) is not None:
                folds.append(nodes.container(classes=[FOLD], exercise=number))
            folds[-1] += part
    for fold in folds:
        name = "Hint" if re.search(r"\bhint:", fold.astext(), re.I) else "Solution"
        opened = f"<details><summary>{name} for exercise {fold['exercise']}</summary>"
        fold.insert(0, nodes.raw("", opened, format="html"))
        fold += nodes.raw("", "</details>", format="html")
    return folds


def fold_solutions(app: Sphinx, doctree: nodes.document) -> None:
    """Fold the answers on a page of solutions; note that a lesson depends on its solutions."""
    folder, _, name = app.env.docname.rpartition("/")
    if folder != SOLUTIONS:
        solved = Path(app.srcdir, SOLUTIONS, f"{name}.ipynb")
        if solved.is_file():
            app.env.note_dependency(str(solved))
        return
    section = next(doctree.findall(nodes.section))
    at = next((i for i, node in enumerate(section.children) if number_of(node) is not None), None)
    if at is not None:
        told = section.children[at:]
        section[at:] = []
        section += folds_of(told)


class Answers(SphinxPostTransform):
    """Put each answer, folded, under its exercise in the lesson.

    The answers are those of the page of solutions, with what their cells gave. Runs before all
    that turns outputs, links and pictures into what is written.
    """

    default_priority = 1

    def run(self, **options: Any) -> None:
        lesson = self.env.docname
        asked = [one for one in self.document.findall(nodes.section) if "exercises" in one["ids"]]
        if not asked or f"{SOLUTIONS}/{lesson}" not in self.env.found_docs:
            return
        solved = self.env.get_doctree(f"{SOLUTIONS}/{lesson}")
        folds = {one["exercise"]: one for one in solved.findall(is_fold)}
        section, placed = asked[0], []
        waiting: nodes.Element | None = None
        for node in section.children:
            number = number_of(node)
            ends = number is not None or not isinstance(node, nodes.TextElement | nodes.Sequential)
            if waiting is not None and ends:
                placed.append(waiting)
                waiting = None
            placed.append(node)
            if number in folds:
                waiting = self.moved(folds[number])
        section[:] = [*placed, waiting] if waiting is not None else placed

    def moved(self, fold: nodes.Element) -> nodes.Element:
        """Return a copy of a fold whose links lead on from the page of the lesson."""
        copy = fold.deepcopy()
        for node in copy.findall(nodes.Element):
            node["ids"] = []  # they name places on the page of solutions
            if isinstance(node, pending_xref):
                node["refdoc"] = self.env.docname
        return copy


class CheatSheet(SphinxDirective):
    """The cheat sheet as a picture, and a link to it as a PDF."""

    def run(self) -> list[nodes.Node]:
        pdf, png = (f"{cheat_sheet.NAME}.{ending}" for ending in ("pdf", "png"))
        link = f'<p><a class="reference download" href="{pdf}" download>Download as PDF</a></p>'
        told = "The cheat sheet. Its symbols are those of the glossary."
        return [nodes.raw("", f'{link}<p><img src="{png}" alt="{told}"></p>', format="html")]


def write_cheat_sheet(app: Sphinx, error: Exception | None) -> None:
    """Write the cheat sheet beside the page that links it, once all pages are written."""
    if error is None and cheat_sheet.NAME in app.env.found_docs:
        logging.getLogger("fontTools").setLevel(logging.WARNING)  # else a line for each table
        cheat_sheet.write(Path(app.outdir))


def is_fold(node: nodes.Node) -> bool:
    """Return whether a node is an answer that `folds_of` has made."""
    return isinstance(node, nodes.container) and FOLD in node["classes"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx of all this."""
    app.add_directive("lessons", Lessons)
    app.add_directive("cheatsheet", CheatSheet)
    app.connect("doctree-read", fold_solutions)
    app.add_post_transform(Answers)
    app.connect("build-finished", write_cheat_sheet)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
