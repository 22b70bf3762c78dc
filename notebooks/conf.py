"""How Sphinx makes the book: `make book` writes the notebooks, executed, and the reference to
out/book/. Its pages need no network.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb.sphinx_ import NbMetadataCollector
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
# The sources beside these pages, wherever else a copy is installed.
sys.path[:0] = [str(ROOT), str(HERE)]

from markov import __version__  # noqa: E402
from markov.files.storage import cache_dir, fingerprint  # noqa: E402

project = "simnpo-lab"
author = "the simnpo-lab authors"
release = __version__
html_title = project
html_theme = "furo"
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["book.css"]
exclude_patterns = ["README.md", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_codeautolink", "sphinx_copybutton"]
extensions += ["teaching"]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# A cell may train a model. What cells gave is kept for as long as neither they, nor the code that
# they call, nor the variables that they read change.
nb_execution_mode = "cache"
nb_execution_timeout = 3600  # seconds for a cell; a slow machine trains for minutes
nb_execution_raise_on_error = True
CHOICES = {name: os.environ.get(name, "") for name in ("SIMNPO_LAB_QUICK", "SIMNPO_LAB_TOFU")}
KEPT = fingerprint(CHOICES, "markov", "llm", "figures")
nb_execution_cache_path = str(cache_dir() / "book" / KEPT)
# A widget is nothing on a page without a kernel, so its picture is shown in its place.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False


class Docstring(SphinxDirective):
    """A docstring read as Markdown, in which indented lines stay as they are written."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        document = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


class Facade(SphinxDirective):
    """The reference of all names that a package gathers, in its order, constants too."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = import_module(self.arguments[0])
        lines = [f".. automodule:: {package.__name__}"]
        for name in getattr(package, "__all__", ()):
            named = getattr(package, name)
            kind = "class" if isinstance(named, type) else "function" if callable(named) else "data"
            lines += ["", f".. auto{kind}:: {package.__name__}.{name}"]
            lines += ["   :members:"] * isinstance(named, type)
        text = "\n".join(lines)
        return self.parse_text_to_nodes(f"```{{eval-rst}}\n{text}\n```\n")


class Modules(SphinxDirective):
    """The reference of a package's public modules, each under a heading of its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        package = import_module(self.arguments[0])
        inside = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        names = [name for _, name, folder in inside if not folder and not name.endswith("__")]
        text = "\n".join(
            f"## `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
            for name in names
        )
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def as_markdown(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    """Put a docstring, given as lines, into the directive that reads it; changes `lines`.

    What only tells of a field's place, or what type a constant is of, is left out.
    """
    told = bool(lines) and not lines[0].startswith("Alias for field number")
    if told and getattr(of, "__doc__", None) != type(of).__doc__:
        lines[:] = [".. docstring::", "", *(f"   {line}" for line in lines), ""]
    else:
        lines.clear()


def formula(translator: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers typeset without a network."""
    block = isinstance(node, nodes.math_block)
    written = tex2mathml(node.astext(), as_block=block)
    # Browsers leave no room between a function and what it is of, as in log x, and too much around
    # the bars of |y|.
    apply = "<mo>&ApplyFunction;</mo>"
    written = written.replace(apply, f'{apply}<mspace width="0.17em"/>')
    bar = '<mo stretchy="false">|</mo>'
    translator.body.append(written.replace(bar, bar.replace("mo ", 'mo lspace="0" rspace="0" ', 1)))
    raise nodes.SkipNode


def without_scripts(app: Sphinx, doctree: nodes.document) -> None:
    """Leave out the states of widgets, which are large, and the scripts that would show them."""
    NbMetadataCollector.get_js_files(app.env, app.env.docname).clear()


def exact(app: Sphinx, doctree: nodes.document) -> None:
    """Let a type in a signature lead to the class of just that name, or nowhere: `Run` is the name
    of several.
    """
    for node in doctree.findall(pending_xref):
        if node.get("refspecific") is False:  # being there counts for Sphinx, whatever its value
            del node["refspecific"]


def setup(app: Sphinx) -> None:
    """Tell Sphinx of all this."""
    app.add_directive("docstring", Docstring)
    app.add_directive("facade", Facade)
    app.add_directive("modules", Modules)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("autodoc-process-docstring", as_markdown)
    app.connect("doctree-read", exact)
    app.connect("doctree-read", without_scripts)
