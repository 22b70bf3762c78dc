"""The notebooks as pages to read: `python -m figures.lessons.book` runs them and writes HTML to
out/book/.

Views appear as the picture that they show at first. Formulas are MathML, which browsers typeset
without a network.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import tyro
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from tqdm.auto import tqdm
from traitlets.config import Config

from markov.errors import exit_code, require
from markov.files.storage import atomic_path, check_writable

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# A widget is nothing on a page without a kernel, so its picture comes first.
LATEX = "text/latex"
SHOWN = ("text/html", "image/png", "text/markdown", "text/plain")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>simnpo-lab</title>
<style>
body {{ max-width: 46em; margin: 3em auto; padding: 0 1em; font-family: sans-serif;
  line-height: 1.5 }}
</style>
</head><body><h1>Negative preference optimisation, to read</h1>
{entries}
</body></html>
"""


@dataclass(frozen=True)
class Book:
    """Run the notebooks and write them as HTML pages with an index."""

    out: Path = Path("out/book")
    execute: bool = True
    timeout: int = 600  # seconds for one cell


class _Formulas(IPythonRenderer):
    """Markdown whose TeX becomes MathML."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")


class _Pages(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return MarkdownWithMath(renderer=_Formulas(escape=False)).render(source)


def page(notebook: Any) -> str:
    """A notebook as an HTML page whose links lead to other pages; outputs in TeX become MathML
    in `notebook` itself.
    """
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        data = output.get("data", {})
        if LATEX in data and "text/html" not in data:
            data["text/html"] = convert(data[LATEX].strip().strip("$"), display="block")
    exporter = _Pages(config=Config({"NbConvertBase": {"display_data_priority": list(SHOWN)}}))
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(
        r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", "", body, flags=re.S
    )
    return re.sub(r'(href="[^"#:]+)\.ipynb(["#])', r"\1.html\2", body)


def opening(notebook: Any) -> tuple[str, str]:
    """Title and question of a notebook, from its first cell."""
    first = notebook.cells[0].source
    title = first.splitlines()[0].lstrip("# ")
    question = re.search(r"\*\*Question\.\*\* (.*?)(?:\n\n|$)", first, re.S)
    return title, " ".join(question[1].split()) if question else ""


def index(entries: Sequence[tuple[str, str, str]]) -> str:
    """The page that leads to the others: file, title and question of each."""
    parts = [
        f'<p><a href="{html.escape(file)}"><b>{html.escape(title)}</b></a><br>'
        f"{html.escape(question)}</p>"
        for file, title, question in entries
    ]
    return PAGE.format(entries="\n".join(parts))


def write(book: Book) -> None:
    """Write all pages, solutions in a folder of their own; raises `InvalidInput` where nothing
    can be written.
    """
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    require(
        len(paths) > 0,
        "notebooks",
        str(NOTEBOOKS),
        "a folder of notebooks, as in a clone of the project",
    )
    check_writable(book.out, "out", folder=True)
    entries = []
    for path in tqdm(
        [*paths, *sorted((NOTEBOOKS / "solutions").glob("*.ipynb"))], desc="pages", disable=None
    ):
        notebook = nbformat.read(path, as_version=4)
        if book.execute:
            resources = {"metadata": {"path": str(path.parent)}}
            NotebookClient(
                notebook, timeout=book.timeout, kernel_name="python3", resources=resources
            ).execute()
        file = path.relative_to(NOTEBOOKS).with_suffix(".html")
        _write(book.out / file, page(notebook))
        if path.parent == NOTEBOOKS:
            entries.append((str(file), *opening(notebook)))
    _write(book.out / "index.html", index(entries))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, "utf-8")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: write(tyro.cli(Book))))
