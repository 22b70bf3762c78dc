"""Which code a result depends on: the modules that its own module imports, however indirectly.

Imports are found as Python reads them. The modules of this project are followed, those of libraries
are not. Modules are compared by what their text means: a changed constant two imports away makes
another result, a changed comment, docstring or line break does not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType

from markov.errors import InvalidInput

# The packages whose modules are followed when they are imported, beside those that are asked for.
PROJECT = ("markov", "llm", "figures")
# These read, write, refuse and say how far the work is, and change no number: they are not
# followed.
APART = (
    "markov.errors",
    *("markov.console.duration", "markov.console.progress"),
    *(
        f"markov.files.{name}"
        for name in ("closure", "folders", "inputs", "leftovers", "seals", "storage")
    ),
)
# The parts of compiled code that decide what it does.
CODE = (
    "co_code",
    "co_exceptiontable",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_flags",
)
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # where statements hold statements


def digests(*sources: str, without: Collection[str] = ()) -> dict[str, str]:
    """Return the digest of every module that `sources` depend on, by name, themselves included.

    A source is a module ("markov.training") or a package ("markov": every module in it). Imports of
    `APART` and of what `without` names are not followed: the latter change what is drawn, say, but
    not what is computed. Raises `InvalidInput` for a source that is no Python module.
    """
    found: dict[str, str] = {}
    waiting = [name for source in sources for name in _modules(source)]
    followed = {*PROJECT, *(name.split(".")[0] for name in waiting)}
    # Looked up once per call and not once per process, in which code may be edited.
    root, file_of = cache(_root), cache(lambda name: _file(name, root(name.split(".")[0])))
    while waiting:
        name = waiting.pop()
        file = file_of(name)
        if name in found or file is None:
            continue
        # Relative imports start from the package.
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        found[name], imported = _parsed(file.read_text("utf-8"), package)
        words = [word for word in imported if word.split(".")[0] in followed]
        # A word is a module, or a name within one. The packages above it are not taken for its
        # sake: facades list names and compute nothing.
        modules = {word if file_of(word) else word.rpartition(".")[0] for word in words}
        waiting += sorted(modules - {"", *APART, *without})
    return found


def _modules(source: str) -> list[str]:
    """Return the modules that a source names."""
    file = _file(source, _root(source.split(".")[0]))
    if file is None:
        raise InvalidInput("source", source, "the name of a module or package written in Python")
    if file.name != "__init__.py":
        return [source]
    paths = (
        path.relative_to(file.parent).with_suffix("") for path in sorted(file.parent.rglob("*.py"))
    )
    return [".".join((source, *path.parts)).removesuffix(".__init__") for path in paths]


def _root(top: str) -> Path | None:
    """Return the file of a package or module at the top, without importing it."""
    try:
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
    except (ImportError, ValueError):
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _file(name: str, root: Path | None) -> Path | None:
    """Return the file of a module or, for a package, its `__init__.py`."""
    _, *rest = name.split(".")
    if root is None or not rest:
        return root
    if root.name != "__init__.py":
        return None
    # As texts: this is asked for every imported word, and paths take ten times as long.
    path = os.path.join(root.parent, *rest)
    files = (os.path.join(path, "__init__.py"), f"{path}.py")
    return next((Path(file) for file in files if os.path.isfile(file)), None)


@cache
def _parsed(text: str, package: str) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(text)
    code = compile(tree, "", "exec", dont_inherit=True, optimize=2)  # 2: without docstrings
    return hashlib.sha256(repr(_plain(code)).encode()).hexdigest(), tuple(
        sorted(set(_imported(tree.body, package)))
    )


def _plain(value: object) -> object:
    """Return compiled code without the line numbers."""
    if isinstance(value, CodeType):
        parts = (getattr(value, name) for name in CODE)
        return (*parts, *(_plain(one) for one in value.co_consts))
    # The order of a set differs from one process to the next.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


def _imported(statements: Iterable[ast.AST], package: str) -> Iterator[str]:
    """Yield every word that is imported when the code runs, at the top or in functions."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            never = (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
            )
            for name in BLOCKS[1:] if never else BLOCKS:
                yield from _imported(getattr(node, name, ()), package)
