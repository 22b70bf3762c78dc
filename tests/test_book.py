"""The book: a page for every notebook, every public name in the reference, links that lead
somewhere, and nothing that a page would have to fetch from a network.
"""

from __future__ import annotations

import ast
import html
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "notebooks"
PACKAGES = ("markov", "llm", "figures")
# A picture of one pixel, as PNG.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADh"
    "gGAWjR9awAAAABJRU5ErkJggg=="
)
for needed in ("myst_nb", "furo", "sphinx_codeautolink", "sphinx_copybutton"):
    pytest.importorskip(
        needed, reason="the notebooks' packages are missing: pip install -e '.[notebooks]'"
    )


def built(sources: Path, out: Path) -> Path:
    """The folder of pages, without running a notebook; any warning of Sphinx fails."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-c", str(SOURCES), "-D", "nb_execution_mode=off"]
    command += ["-D", "toc_object_entries=0"]  # a quarter less time; the contents of a page only
    done = subprocess.run(
        [*command, "-d", str(out.parent / "doctrees"), str(sources), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(SOURCES, tmp_path_factory.mktemp("book") / "html")


def pages(book: Path) -> dict[str, str]:
    """The text of every page by its place."""
    return {
        path.relative_to(book).as_posix(): path.read_text("utf-8")
        for path in sorted(book.rglob("*.html"))
    }


def identities(text: str) -> set[str]:
    return {html.unescape(found) for found in re.findall(r'\bid="([^"]+)"', text)}


def broken(found: dict[str, str], book: Path) -> Iterator[str]:
    """Links of pages to files or places in them that are not there."""
    places = {name: identities(text) for name, text in found.items()}
    for name, text in found.items():
        for link in set(re.findall(r'<a\b[^>]*\bhref="([^"]*)"', text)):
            target, _, place = html.unescape(link).partition("#")
            if re.match(r"\w+:", target):
                continue
            file = (book / name).parent.joinpath(target) if target else book / name
            known = places.get(file.resolve().relative_to(book.resolve()).as_posix())
            if not file.is_file() or (place and known is not None and place not in known):
                yield f"{name}: {link}"


def fetched(text: str) -> list[str]:
    """Addresses that a browser would load with a page: a link that is only offered is none."""
    loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']([^\"']+)", text)
    loads += re.findall(r"<link\b[^>]*\bhref=[\"']([^\"']+)", text)
    loads += re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", text)
    return [address for address in loads if re.match(r"(?:\w+:)?//", address)]


def public(file: Path) -> list[str]:
    """The public functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    body = ast.parse(file.read_text("utf-8")).body
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]


@pytest.mark.slow
def test_every_notebook_and_every_solution_is_a_chapter(book: Path):
    first = (book / "index.html").read_text("utf-8")
    notebooks = [path for path in SOURCES.rglob("[0-9]*.ipynb") if path.parent.name[0] != "."]
    assert len(notebooks) >= 10
    for path in notebooks:
        title = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"]).splitlines()[0]
        place = path.relative_to(SOURCES).with_suffix(".html")
        chapter = (book / place).read_text("utf-8")
        assert f"<h1>{html.escape(title.removeprefix('# '), quote=False)}<" in chapter
        assert f'href="{place.as_posix()}"' in first


@pytest.mark.slow
@pytest.mark.parametrize("package", ["markov", "llm"])
def test_every_name_of_a_facade_is_on_its_page(book: Path, package: str):
    known = identities((book / "reference" / f"{package}.html").read_text("utf-8"))
    names = getattr(importlib.import_module(package), "__all__", ())
    assert {f"{package}.{name}" for name in names} <= known
    assert f"module-{package}" in known


@pytest.mark.slow
def test_every_public_function_and_class_is_in_the_reference_and_nothing_private(book: Path):
    known = set().union(*(identities(text) for text in pages(book / "reference").values()))
    missing = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if not file.name.startswith("__"):
                module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                missing += [f"{module}.{name}" for name in public(file)]
    assert len(missing) > 500
    assert sorted(set(missing) - known) == []
    assert [name for name in known if re.match(r"(markov|llm|figures)\..*\._", name)] == []


@pytest.mark.slow
def test_every_link_leads_somewhere_and_every_name_in_prose_is_one(book: Path):
    found = pages(book)
    assert list(broken(found, book)) == []
    for page in ("index.html", "glossary.html"):
        linked = re.sub(r"<a\b.*?</a>", "", found[page], flags=re.S)
        assert re.findall(r'<code class="xref[^>]*><span class="pre">[^<]*<', linked) == []


@pytest.mark.slow
def test_no_page_needs_a_network(book: Path):
    texts = [*pages(book).values(), *(path.read_text("utf-8") for path in book.rglob("*.css"))]
    assert [address for text in texts for address in fetched(text)] == []


@pytest.mark.slow
def test_formulas_of_docstrings_keep_their_lines(book: Path):
    text = (book / "reference" / "modules" / "markov.html").read_text("utf-8")
    literal = [re.sub(r"<[^>]+>", "", block) for block in re.findall(r"<pre>.*?</pre>", text, re.S)]
    formula = "logit    z = beta * u + gamma\nloss       = (2 / beta) * softplus(z)"
    assert any(formula in html.unescape(block) for block in literal)


def test_a_page_shows_formulas_and_the_picture_of_a_view_without_a_kernel(tmp_path: Path):
    from nbformat import write
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    prose = "# A\n\nfor $\\beta |y| \\le 2$ and `$HOME`:\n\n$$ \\frac{a}{b} $$"
    view = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "none"},
        "image/png": PIXEL,
        "text/plain": "V",
    }
    derived = {"text/latex": "$\\displaystyle \\sigma(z)$", "text/plain": "sigma(z)"}
    outputs = [new_output("display_data", data=data) for data in (view, derived)]
    state = {"state": {"none": {"model_name": "VBoxModel"}}}
    page = new_notebook(
        cells=[
            new_markdown_cell(prose, id="a"),
            new_code_cell("view", outputs=outputs, id="b"),
        ],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "widgets": {"application/vnd.jupyter.widget-state+json": state},
        },
    )
    (tmp_path / "in").mkdir()
    write(page, tmp_path / "in" / "index.ipynb")
    text = (built(tmp_path / "in", tmp_path / "out") / "index.html").read_text("utf-8")
    assert len(re.findall(r'<img[^>]* src="_images/\w+\.png"', text)) == 1
    assert "model_id" not in text and "VBoxModel" not in text
    assert "<mi>β</mi>" in text and "<mi>σ</mi>" in text and "<mfrac>" in text
    assert text.count("<math") == 3 and text.count('display="block"') == 2
    assert text.count('lspace="0"') == 2  # the bars of |y|
    assert "\\frac" not in text and "$HOME" in text and fetched(text) == []


SUMMARY = re.compile(r"<details><summary>(Hint|Solution) for exercise (\d+)</summary>")


def text_of(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())


def test_answers_are_folded_under_their_exercises_with_what_their_cells_gave(tmp_path: Path):
    from nbformat import write
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    known = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    asked = "**1.** (easy) A?\n\n- list\n\n**2.** (easy) B?\n\n**3.** (open) C?"
    lesson = [new_markdown_cell("# A\n\n**1.** no exercise\n\n## Exercises\n\nDo.\n\n" + asked)]
    lesson += [new_code_cell("check(1, ...)"), new_markdown_cell("Next.")]
    told = "# Solved\n\nFirst.\n\n**1.** one, [on](01_b.ipynb). **2.** two"
    given = [new_output("stream", text="it gave 7")]
    given.append(new_output("display_data", data={"image/png": PIXEL, "text/plain": "P"}))
    solved = [new_markdown_cell(told), new_code_cell("check(1, 2)", outputs=given)]
    solved.append(new_markdown_cell("which is right.\n\n**3.** No number. A hint: think."))
    sources = tmp_path / "in"
    (sources / "solutions").mkdir(parents=True)
    (sources / "index.md").write_text("# I\n\n```{toctree}\n:glob:\n0*\nsolutions/*\n```\n")
    other = [new_markdown_cell("# B")]
    for name, cells in {"00_a": lesson, "solutions/00_a": solved, "solutions/01_b": other}.items():
        for place, cell in enumerate(cells):
            cell["id"] = f"c{place}"
        write(new_notebook(cells=cells, metadata=known), sources / f"{name}.ipynb")
    pages = built(sources, tmp_path / "out")
    lesson, solved = (
        (pages / f"{place}00_a.html").read_text("utf-8") for place in ("", "solutions/")
    )
    folds = [("Solution", "1"), ("Solution", "2"), ("Hint", "3")]
    assert SUMMARY.findall(lesson) == SUMMARY.findall(solved) == folds
    assert lesson.count("</details>") == 3 and "<details open" not in lesson
    order = [r"no exercise", r"Do\.", r"A\?", "list", "for exercise 1", "one,", r"B\?"]
    order += ["for exercise 2", "two", "it gave 7", "which is right", r"C\?", "for exercise 3"]
    order += ["A hint: think", r"check\(1, \.\.\. ?\)", r"Next\."]
    article = text_of(lesson[lesson.index("<article") :])
    assert re.search(".*".join(order), article), article
    for place, text in ((pages, lesson), (pages / "solutions", solved)):
        pictures = re.findall(r'<img[^>]* src="([^"]*\w+\.png)"', text)
        assert len(pictures) == 1 and (place / pictures[0]).is_file()
    assert 'href="solutions/01_b.html"' in lesson and 'href="01_b.html"' in solved
    assert fetched(lesson) == []


@pytest.mark.slow
def test_every_exercise_of_the_book_has_its_answer_folded_under_it(book: Path):
    count, degree = 0, r"\((?:easy|a step further|harder|open|harder, open)\)"
    for path in SOURCES.glob("[0-9]*.ipynb"):
        page = (book / f"{path.stem}.html").read_text("utf-8")
        page = page[page.index('id="exercises"') :]
        asked = re.findall(rf"<p><strong>(\d+)\.</strong> {degree}", page)
        parts = re.split(rf"<p><strong>\d+\.</strong> {degree}", page)[1:]
        assert len(asked) >= 3 and [SUMMARY.findall(part)[0][1] for part in parts] == asked, path
        assert all(len(SUMMARY.findall(part)) == 1 for part in parts)
        count += len(asked)
    assert count >= 50


@pytest.mark.slow
def test_the_index_has_minutes_and_formulas_and_every_chapter_leads_on_and_back(book: Path):
    first = (book / "index.html").read_text("utf-8")
    minutes = re.findall(r'href="(0\d_\w+)\.html".*?<td[^>]*>(?:<p>)?(\d+)', first, re.S)[:10]
    assert [int(name[:2]) for name, _ in minutes] == list(range(10))
    assert all(10 <= int(told) <= 120 for _, told in minutes)
    assert "<math" in first and "<mi>β</mi>" in first
    order = [name for name, _ in minutes]
    for before, name, after in zip(order, order[1:], order[2:], strict=False):
        page = (book / f"{name}.html").read_text("utf-8")
        assert f'class="next-page" href="{after}.html"' in page
        assert f'class="prev-page" href="{before}.html"' in page


@pytest.mark.slow
def test_the_book_offers_the_cheat_sheet_as_one_page(book: Path):
    page = (book / "cheat_sheet.html").read_text("utf-8")
    link = re.search(r'href="(\w+\.pdf)" download', page)
    assert link
    assert len(re.findall(rb"/Type\s*/Page\b", (book / link[1]).read_bytes())) == 1
    assert (book / "cheat_sheet.png").stat().st_size > 10_000


def test_the_checks_of_pages_tell_bad_from_good(tmp_path: Path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="#x">, <a href="b.html">, <a href="#y">')
    assert sorted(broken(pages(tmp_path), tmp_path)) == ["a.html: #y", "a.html: b.html"]
    assert fetched('<script src="https://x.y/z.js">') == ["https://x.y/z.js"]
    assert fetched("a { background: url(//x.y/z) }") == ["//x.y/z"]
    assert fetched('<a href="https://x.y">, <img src="_images/a.png">') == []
