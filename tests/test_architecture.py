"""The shape of the project, read off its sources: who may import whom, and what no file may
contain.

A rule maps a file's module name and text to the places that break it. Every rule is shown an
example that breaks it.
"""

from __future__ import annotations

import ast
import io
import re
import socket
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("markov", "llm", "figures")
LINES = 400

DRAWING = ("matplotlib", "seaborn", "ipywidgets")
SERIALISED_CODE = ("pickle", "dill", "cloudpickle", "shelve", "marshal")
NEVER = {
    "markov": ("llm", "figures", "notebooks", "tests", *DRAWING),
    "llm": ("figures", "notebooks", "tests", *DRAWING),
    "figures": ("notebooks", "tests"),
    "tests": (),
}  # fmt: skip
NOT_FOR_THE_LAW = ("pandas", "scipy", "matplotlib", "transformers", "sympy")

Rule = Callable[[str, str], list[str]]


def within(name: str, ancestors: tuple[str, ...]) -> bool:
    return any(name == ancestor or name.startswith(f"{ancestor}.") for ancestor in ancestors)


def imported(module: str, tree: ast.AST, *, for_types: bool = True) -> Iterator[str]:
    """Every word that is imported, at the top or in functions: `from a import b` means a.b, a
    module or a name in one. Imports for types alone are left out unless they are asked for.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            yield from (
                arg.value
                for arg in node.args
                if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            )
        yield from imported(module, node, for_types=for_types)


def called(node: ast.Call) -> str:
    """The dotted name of what is called, as far as it has one."""
    parts, function = [], node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    return ".".join(reversed([*parts, function.id if isinstance(function, ast.Name) else "?"]))


def imports(module: str, text: str) -> list[str]:
    names = sorted(set(imported(module, ast.parse(text))))
    forbidden = (*NEVER[module.split(".")[0]], *SERIALISED_CODE, "yaml")
    return [f"imports {name}" for name in names if within(name, forbidden)]


def length(module: str, text: str) -> list[str]:
    # Tests are lists of laws, which have no reason to be cut at a number of lines.
    count = len(text.splitlines())
    return [f"has {count} lines"] if count > LINES and within(module, PACKAGES) else []


def unpickling(module: str, text: str) -> list[str]:
    """Reading or writing a format that runs code: results are parquet and safetensors."""
    found = []
    for node in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        truths = {
            word.arg
            for word in node.keywords
            if isinstance(word.value, ast.Constant) and word.value.value is True
        }
        name = called(node)
        unsafe = name.endswith(("read_pickle", "to_pickle")) or name in (
            "torch.save",
            "joblib.dump",
            "joblib.load",
        )
        if (
            unsafe
            or (name == "torch.load" and "weights_only" not in truths)
            or "allow_pickle" in truths
        ):
            found.append(f"line {node.lineno} calls {name}")
    return found


def globals_assigned(module: str, text: str) -> list[str]:
    return [
        f"line {node.lineno} has global"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Global)
    ]


BLANKET = re.compile(
    r"#\s*(type:\s*ignore(?!\[)|pyright:\s*(ignore(?!\[)|basic)|(ruff:\s*)?noqa(?!:\s*[A-Z]+[0-9]))",
    re.I,
)


def blanket_silencing(module: str, text: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = (token for token in tokens if token.type == tokenize.COMMENT)
    return [
        f"line {token.start[0]}: {token.string}"
        for token in comments
        if BLANKET.search(token.string)
    ]


def undocumented(module: str, text: str) -> list[str]:
    if not within(module, PACKAGES):
        return []
    tree = ast.parse(text)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    found = [f"{node.name} has no docstring" for node in public if not ast.get_docstring(node)]
    return found if ast.get_docstring(tree) else ["has no docstring", *found]


def unasserting(module: str, text: str) -> list[str]:
    """Tests, and the helpers they rely on, in which nothing can fail."""
    if not within(module, ("tests",)):
        return []
    tree = ast.parse(text)
    # A function of the project that is called check_something is what is tested, not what tests.
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if within(getattr(node, "module", None) or alias.name, PACKAGES)
    }

    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    asserting: set[str] = set()

    def asserts(node: ast.AST) -> bool:
        if isinstance(node, ast.Assert):
            return not isinstance(node.test, ast.Constant | ast.Tuple)
        if not isinstance(node, ast.Call):
            return False
        path = called(node).split(".")
        if path[0] in ours:
            return False
        named = path[-1].startswith(("assert_", "check_")) and path[-1] not in {
            function.name for function in functions
        }
        return named or path in (RAISES, WARNS) or (len(path) == 1 and path[0] in asserting)

    # Helpers of the same file are followed, however deep; those from elsewhere are known by their
    # names.
    for _ in functions:
        asserting |= {
            function.name for function in functions if any(map(asserts, ast.walk(function)))
        }
    checking = (
        function.name
        for function in functions
        if function.name.startswith(("test_", "assert_", "check_"))
    )
    return [f"{name} asserts nothing" for name in checking if name not in asserting]


RAISES, WARNS = ["pytest", "raises"], ["pytest", "warns"]

# Rule, module, a text that breaks it, and one close to it that does not.
EXAMPLES: list[tuple[Rule, str, str, str]] = [
    (imports, "markov.training", "import llm.scoring", "import markov.models"),
    (
        imports,
        "markov.training",
        "def f():\n    from figures import style",
        "from markov import figures_of_merit",
    ),
    (imports, "markov.training", "import matplotlib.pyplot as plt", "import scipy"),
    (
        imports,
        "markov.training",
        "import importlib\nimportlib.import_module('seaborn')",
        "import importlib",
    ),
    (imports, "markov.training", "from ..llm import models", "from . import models"),
    (imports, "llm.models.saving", "from figures import style", "from markov import objectives"),
    (imports, "llm.models.saving", "import ipywidgets", "from . import models, theory"),
    (
        imports,
        "figures.style",
        "from notebooks import tour",
        "import markov.training, llm.scoring, matplotlib",
    ),
    (
        imports,
        "tests.markov.test_chains",
        "import pickle",
        "import notebooks, figures, llm, markov",
    ),
    (imports, "llm.data.tofu", "from yaml import safe_load", "from json import loads"),
    (length, "markov.long", "x = 1\n" * (LINES + 1), "x = 1\n" * LINES),
    (
        unpickling,
        "llm.models.saving",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=True)",
    ),
    (unpickling, "llm.models.saving", "torch.load(path)", "json.load(path)"),
    (unpickling, "figures.cache", "frame.to_pickle(path)", "frame.to_parquet(path)"),
    (
        unpickling,
        "figures.cache",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=False)",
    ),
    (
        globals_assigned,
        "markov.training",
        "def f():\n    global x\n    x = 1",
        "def f():\n    x = 1",
    ),
    (blanket_silencing, "markov.a", "x = 1  # type: ignore", "x = 1  # type: ignore[assignment]"),
    (blanket_silencing, "markov.a", "x = 1  # noqa", "x = 1  # noqa: E741"),
    (blanket_silencing, "markov.a", "# ruff: noqa", "x = '# ruff: noqa'"),
    (
        blanket_silencing,
        "markov.a",
        "x = 1  # pyright: ignore",
        "x = 1  # pyright: ignore[reportCallIssue]",
    ),
    (
        undocumented,
        "markov.a",
        '"""A."""\ndef f():\n    return 1',
        '"""A."""\ndef _f():\n    return 1',
    ),
    (undocumented, "figures.a", '"""A."""\nclass F:\n    pass', '"""A."""\nclass F:\n    """F."""'),
    (undocumented, "llm.a", "x = 1", '"""A."""\nx = 1'),
    (unasserting, "tests.test_a", "def test_a():\n    f()", "def test_a():\n    assert f()"),
    (
        unasserting,
        "tests.test_a",
        "def test_a():\n    assert True",
        "def test_a():\n    check_law(f)",
    ),
    (unasserting, "tests.test_a", "def test_a():\n    assert (f(), 'always')", "def a():\n    f()"),
    (
        unasserting,
        "tests.helpers",
        "def check_a(f):\n    f()",
        "def check_a(f):\n    np.testing.assert_allclose(f, 1)",
    ),
    (
        unasserting,
        "tests.test_a",
        "def close(a):\n    print(a)\ndef test_a():\n    close(1)",
        "def test_a():\n    near(1)\ndef near(a):\n    close(a)\ndef close(a):\n    assert a",
    ),
    (
        unasserting,
        "tests.test_a",
        "from markov.files import storage\ndef test_a():\n    storage.check_writable('a', 'out')",
        "def test_a():\n    with pytest.raises(ValueError):\n        storage.check_writable('a', "
        "'out')",
    ),
    (
        unasserting,
        "tests.test_a",
        "from markov.files.storage import check_writable as check_w\ndef test_a():\n    "
        "check_w('a', 'out')",
        "from tests.helpers import check_law\ndef test_a():\n    check_law('a')",
    ),
]
RULES = sorted({rule for rule, *_ in EXAMPLES}, key=lambda rule: rule.__name__)


def sources() -> dict[str, str]:
    files = [
        file for folder in (*PACKAGES, "tests") for file in sorted((ROOT / folder).rglob("*.py"))
    ]
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text("utf-8")
        for file in files
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_source_breaks_the_rule(rule: Rule):
    texts = sources()
    assert {"markov.objectives", "llm.__init__", "tests.test_architecture"} <= texts.keys()
    assert [
        f"{module} {found}" for module, text in texts.items() for found in rule(module, text)
    ] == []


@pytest.mark.parametrize(("rule", "module", "bad", "good"), EXAMPLES)
def test_the_rule_tells_bad_from_good(rule: Rule, module: str, bad: str, good: str):
    assert rule(module, bad)
    assert rule(module, good) == []


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


def test_the_law_imports_nothing_heavy():
    loaded = loaded_by("import markov.objectives")
    assert {"markov.objectives", "torch"} <= loaded
    assert loaded.isdisjoint(NOT_FOR_THE_LAW)
    assert not loaded_by("import pandas").isdisjoint(NOT_FOR_THE_LAW)


def test_tests_reach_no_other_machine():
    # A datagram socket sends nothing when it connects, so even without the guard nothing would
    # leave this machine.
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
        pytest.raises(RuntimeError, match="network"),
    ):
        outside.connect(("192.0.2.1", 9))


def test_only_the_p_value_of_tofu_is_called_forget_quality():
    """The chains' measure is the forget distance. The caption of the paper's figure names both."""
    theirs = re.compile(r"forget[\s_-]+quality", re.IGNORECASE)
    assert theirs.search("the forget\nquality") and theirs.search("ideal_forget_quality")
    folders = ("markov", "figures/chains", "figures/theory")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py*"))]
    found = {path.name: theirs.findall(path.read_text()) for path in files if path.suffix != ".pyc"}
    assert {name: len(words) for name, words in found.items() if words} == {"tradeoff.py": 1}
