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
        "image/png": (
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        ),
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


def test_the_checks_of_pages_tell_bad_from_good(tmp_path: Path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="#x">, <a href="b.html">, <a href="#y">')
    assert sorted(broken(pages(tmp_path), tmp_path)) == ["a.html: #y", "a.html: b.html"]
    assert fetched('<script src="https://x.y/z.js">') == ["https://x.y/z.js"]
    assert fetched("a { background: url(//x.y/z) }") == ["//x.y/z"]
    assert fetched('<a href="https://x.y">, <img src="_images/a.png">') == []
