"""Who may import whom: packages in layers, checked along every chain of imports, and no circle.

Imports for types alone run nothing and are left out.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

import pytest

from tests.test_architecture import DRAWING, PACKAGES, ROOT, imported

Graph = Mapping[str, frozenset[str]]
Rule = Callable[[Graph], list[str]]
# Each part imports only from itself and from those before it; parts of one layer never import each
# other.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "llm": (
        ("randomness", "intervals", "schemas", "ranks", "arguments"),
        ("data", "logs"),
        ("diagnostics",),
        ("scoring",),
        ("writing",),
        ("training",),
        ("models",),
        ("unlearning",),
        ("evaluation",),
        ("sweeps",),
        ("jobs",),
        ("commands",),
        ("__main__",),
    ),
    "figures": (
        ("style", "statistics", "fits", "scale"),
        ("cache",),
        ("experiments",),
        ("chains", "theory", "language"),
        ("questions",),
        ("views",),
        ("lessons",),
        ("catalogue",),
        ("drawing", "progress", "drawn_of"),
        ("checks",),
        ("__main__",),
    ),
}
BELOW = {"markov": ("llm", "figures"), "llm": ("figures",), "figures": ()}
# Of the theory and its simulations language models take the law alone, and what is no theory.
LAW = (
    *("markov.objectives", "markov.preferences", "markov.weighting", "markov.errors"),
    *("markov.files", "markov.console", "markov.numerics", "markov.running.backends"),
)
MODULES = 25  # that a folder may have


def graph_of(texts: Mapping[str, str]) -> Graph:
    """Which of these modules each imports, and which libraries, by their first name."""
    found = {}
    for module, text in texts.items():
        tree = ast.parse(text)
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert all(node.level == 0 for node in froms), "imports are absolute"
        words = set(imported(module, tree, for_types=False))
        known = {
            next((one for one in (word, word.rpartition(".")[0]) if one in texts), word)
            for word in words
        }
        found[module] = frozenset(one if one in texts else one.split(".")[0] for one in known) - {
            module
        }
    return found


def reached(graph: Graph, module: str) -> set[str]:
    """All that a module imports, however indirectly."""
    found, todo = set(), [module]
    while todo:
        new = graph.get(todo.pop(), frozenset()) - found
        found |= new
        todo += new
    return found


def upwards(graph: Graph) -> list[str]:
    """Chains that lead from a part to one above it or beside it, or from a package to one that
    stands on it.
    """
    found = []
    for module in graph:
        package, *rest = module.split(".")
        for other in sorted(reached(graph, module)):
            top, *under = other.split(".")
            if top in BELOW.get(package, ()) or (package in ("markov", "llm") and top in DRAWING):
                found.append(f"{module} reaches {other}")
            elif top == package and package in LAYERS and rest and under:
                own, its = (_layer(package, name[0]) for name in (rest, under))
                if its > own or (
                    its == own and package == "figures" and rest[0] != under[0] and len(rest) > 1
                ):
                    found.append(f"{module} reaches {other}")
    return found


def _layer(package: str, part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS[package]) if part in parts)


def beyond_the_law(graph: Graph) -> list[str]:
    """Modules of language models that reach a simulation."""
    mine = (module for module in graph if module.startswith("llm"))
    reach = ((module, other) for module in mine for other in sorted(reached(graph, module)))
    return [
        f"{a} reaches {b}" for a, b in reach if b.startswith("markov.") and not b.startswith(LAW)
    ]


def circles(graph: Graph) -> list[str]:
    """Modules that reach themselves."""
    return [module for module in graph if module in reached(graph, module)]


def facades(graph: Graph) -> list[str]:
    """Modules that import a package for its names, their own or another of this project."""
    found = ((module, other) for module, others in graph.items() for other in sorted(others))
    return [f"{a} imports {b}" for a, b in found if b in PACKAGES and b != "markov"]


RULES = (upwards, beyond_the_law, circles, facades)


def chain(*modules: str, by: str = "import {}") -> dict[str, str]:
    """Modules of which each imports the next."""
    return {
        one: by.format(other) for one, other in zip(modules, (*modules[1:], "math"), strict=True)
    }


LAZILY, FOR_TYPES = (
    "def f():\n    import {}",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {}",
)
# Modules that break a rule, and some close to them that do not.
EXAMPLES: list[tuple[Rule, dict[str, str], dict[str, str]]] = [
    (
        upwards,
        chain("llm.data.a", "llm.logs.b", "llm.scoring.c"),
        chain("llm.scoring.c", "llm.logs.b", "llm.data.a"),
    ),
    (
        upwards,
        chain("llm.models.a", "llm.sweeps.b", by=LAZILY),
        chain("llm.sweeps.b", "llm.models.a", by=LAZILY),
    ),
    (
        upwards,
        chain("figures.theory.a", "figures.chains.b"),
        chain("figures.views.a", "figures.chains.b"),
    ),
    (
        upwards,
        chain("figures.cache", "figures.chains.b"),
        chain("figures.cache", "figures.chains.b", by=FOR_TYPES),
    ),
    (upwards, chain("markov.a", "markov.b", "llm.c"), chain("llm.c", "markov.b", "markov.a")),
    (upwards, chain("llm.models.a", "seaborn"), chain("figures.style", "seaborn")),
    (
        beyond_the_law,
        chain("llm.logs.a", "markov.objectives", "markov.chains"),
        chain("llm.logs.a", "markov.objectives"),
    ),
    (
        circles,
        {"llm.a": "import llm.b", "llm.b": "def f():\n    import llm.a"},
        chain("llm.a", "llm.b"),
    ),
    (
        facades,
        {"llm.models.a": "from llm import load", "llm": ""},
        {"llm.models.a": "from llm import b", "llm.b": ""},
    ),
]


def texts() -> dict[str, str]:
    files = [file for folder in PACKAGES for file in sorted((ROOT / folder).rglob("*.py"))]
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    return {
        name.removesuffix(".__init__"): file.read_text("utf-8")
        for name, file in zip(names, files, strict=True)
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module_breaks_the_rule(rule: Rule) -> None:
    graph = graph_of(texts())
    assert "torch" in graph["markov.objectives"] and "markov.objectives" in reached(
        graph, "figures.__main__"
    )
    assert rule(graph) == []


@pytest.mark.parametrize(("rule", "bad", "good"), EXAMPLES)
def test_the_rule_tells_bad_from_good(
    rule: Rule, bad: dict[str, str], good: dict[str, str]
) -> None:
    assert rule(graph_of(bad))
    assert rule(graph_of(good)) == []


def test_every_part_has_a_place_and_no_folder_has_too_many_modules() -> None:
    for package, layers in LAYERS.items():
        names = {name for layer in layers for name in layer}
        parts = {
            path.stem
            for path in (ROOT / package).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert parts - {"__init__"} == names
    folders = {file.parent for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    crowded = {str(one.relative_to(ROOT)): len(list(one.glob("*.py"))) for one in folders}
    assert {name: count for name, count in crowded.items() if count > MODULES} == {}
    assert ROOT / "llm" / "data" / "authors" in folders
