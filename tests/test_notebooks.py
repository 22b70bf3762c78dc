"""The notebooks keep their promises: narrative and sliders, nothing stored, every number
computed, all of it runs.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from markov.objectives import CORNERS
from tests import kernels

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
RECIPES = sorted((FOLDER / "recipes").glob("*.ipynb"))
PATHS = [FOLDER / folder / f"{name}.ipynb" for folder in ("", "solutions") for name in NOTEBOOKS]
PATHS += RECIPES
# Begun first, so that at the end no worker is left with one of them while the others are idle.
LONGEST = ("05_language_models", "07_your_model", "04_length_and_forgetting", "10_weighting")
PATHS.sort(key=lambda path: (path.stem not in LONGEST, path.parent.name == "solutions"))
EXECUTE = "SIMNPO_LAB_EXECUTE"
LINES = 15  # of a cell
SECONDS = 60  # of one notebook in quick mode

every_notebook = pytest.mark.parametrize(
    "path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
every_lesson = pytest.mark.parametrize("name", NOTEBOOKS)


def cells(path: Path, kind: str) -> list[str]:
    """The sources of the cells of one kind."""
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == kind]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def prose(path: Path) -> str:
    return "\n\n".join(cells(path, "markdown"))


def answers(source: str) -> list[tuple[str, Any]]:
    """Exercises that a cell checks, and the answers where they are written out; `...` is
    Ellipsis.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "check"
        ):
            name, answer = node.args
            assert isinstance(name, ast.Constant)
            found.append((name.value, answer.value if isinstance(answer, ast.Constant) else None))
    return found


def many_answers() -> set[str]:
    """The exercises with many right answers, of which no solution is printed."""
    pytest.importorskip("ipywidgets", reason="the notebooks' packages are missing")
    from figures.lessons import chains, language
    from figures.lessons.exercise import Task

    known = {**chains.EXERCISES, **language.EXERCISES}
    return {name for name, one in known.items() if isinstance(one, Task)}


def definitions(source: str) -> list[str]:
    kinds = (
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Lambda,
        ast.Global,
        ast.While,
        ast.Try,
    )
    return [type(node).__name__ for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def restated(source: str) -> list[str]:
    """Calls by which a cell would write the law down once more."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = (
        call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls
    )
    return [name for name in names if name in ("sigmoid", "expit", "softplus", "logsigmoid")]


# 0, 1 and 2 are words; so are the numbers of exercises, files, figures, years and papers.
NAMES = re.compile(
    r"\[[^\]]*\]\([^)]*\)|\*\*\d+\.\*\*|^\d+\. |\([^()]*\b(?:19|20)\d\d\b[^()]*\)|Figure "
    r"\d+|Proposition \d+"
    r"|\b0\d_\w+|forget ?\d|exercise \d",
    re.M,
)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)")


def numbers(text: str) -> set[float]:
    return {float(number) for number in NUMBER.findall(NAMES.sub(" ", text))}


def literals(source: str) -> set[float]:
    """Numbers written in code, also inside strings (the lengths that are typed) and f-strings."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            found.add(float(node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= numbers(node.value)
    return found


def test_there_are_notebooks_and_each_has_solutions_and_a_number():
    assert len(NOTEBOOKS) >= 5
    assert [name[:3] for name in NOTEBOOKS] == [f"{index:02d}_" for index in range(len(NOTEBOOKS))]
    assert sorted(path.stem for path in (FOLDER / "solutions").glob("*.ipynb")) == NOTEBOOKS


@every_notebook
def test_every_name_that_is_imported_is_there(path: Path) -> None:
    """Names move, and executing all notebooks takes minutes."""
    pytest.importorskip("ipywidgets", reason="the notebooks' packages are missing")
    froms = [
        node
        for source in cells(path, "code")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
    ]
    assert froms or path.parent.name == "recipes"
    for node in froms:
        module = importlib.import_module(node.module or "")
        for one in node.names:
            there = hasattr(module, one.name) or importlib.util.find_spec(
                f"{node.module}.{one.name}"
            )
            assert there, f"from {node.module} import {one.name}"


@every_notebook
def test_nothing_is_stored_and_the_file_is_written_one_way(path: Path):
    notebook, text = read(path), path.read_text("utf-8")
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    assert notebook["metadata"]["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None


@every_notebook
def test_cells_are_short_and_define_nothing(path: Path):
    sources = cells(path, "code")
    assert len(sources) >= 3
    for source in sources:
        assert len(source.splitlines()) <= LINES, source
        assert definitions(source) == [], source
        assert restated(source) == [], source
        assert not re.search(r"^[%!]", source, re.M), source


@every_notebook
def test_every_number_of_the_prose_stands_in_a_cell(path: Path):
    computed = {0.0, 1.0, 2.0}.union(*map(literals, cells(path, "code")))
    told = prose(path).split("## Exercises")[0]  # what an exercise supposes need not be true
    assert sorted(numbers(told) - computed) == []


@every_lesson
def test_a_lesson_asks_predicts_moves_concludes_and_exercises(name: str):
    path = FOLDER / f"{name}.ipynb"
    text, first = prose(path), cells(path, "markdown")[0]
    assert first.startswith("# ") and "**Question.**" in first
    order = [
        re.search(pattern, text, re.I)
        for pattern in (
            r"\*\*Question",
            r"\*\*Write down",
            r"## What this means for practice",
            r"## Exercises",
        )
    ]
    places = [found.start() for found in order if found]
    assert len(places) == 4 and places == sorted(places)
    assert re.search(r"something to move|choose a chain, move|scrub", text, re.I)
    code = "\n".join(cells(path, "code"))
    assert "friendly()" in cells(path, "code")[0]
    assert re.search(r"\b\w+_view\(|\bplayer\(", code) and "assert " in code
    # Not a lesson of code with remarks: half of what is read is prose.
    assert len(text) > len(code)
    degrees = [degree for degree in re.findall(r"^\*\*\d+\.\*\* \(([^)]*)\)", text, re.M)]
    rank = {"easy": 0, "a step further": 1, "harder": 2, "harder, open": 3, "open": 3}
    assert [rank[degree] for degree in degrees] == sorted(rank[degree] for degree in degrees)
    assert len(degrees) >= 3 and rank[degrees[-1]] == 3


@every_lesson
def test_the_solutions_answer_just_the_exercises_that_the_lesson_leaves_open(name: str):
    asked = [pair for source in cells(FOLDER / f"{name}.ipynb", "code") for pair in answers(source)]
    solved = [
        pair
        for source in cells(FOLDER / "solutions" / f"{name}.ipynb", "code")
        for pair in answers(source)
    ]
    assert asked and all(answer is ... for _, answer in asked)
    told = {one for one, _ in asked} - many_answers()
    assert {one for one, _ in solved} == told
    assert ... not in [answer for _, answer in solved]


def test_every_exercise_belongs_to_one_lesson():
    pytest.importorskip(
        "ipywidgets", reason="the notebooks' packages are missing: pip install -e '.[notebooks]'"
    )
    from figures.lessons import chains, language

    known = {**chains.EXERCISES, **language.EXERCISES}

    sources = (source for name in NOTEBOOKS for source in cells(FOLDER / f"{name}.ipynb", "code"))
    names = [one for source in sources for one, _ in answers(source)]
    assert sorted(names) == sorted(known)


def test_choices_are_offered_as_the_letters_that_are_checked():
    pytest.importorskip(
        "ipywidgets", reason="the notebooks' packages are missing: pip install -e '.[notebooks]'"
    )
    from figures.lessons import chains, language
    from figures.lessons.exercise import Exercise

    known = {**chains.EXERCISES, **language.EXERCISES}

    for name in NOTEBOOKS:
        text = prose(FOLDER / f"{name}.ipynb").split("## Exercises")[1]
        asked = [
            one for source in cells(FOLDER / f"{name}.ipynb", "code") for one, _ in answers(source)
        ]
        offered = [
            sorted(re.findall(r"\(([a-d])\)", part))
            for part in re.split(r"\*\*\d+\.\*\*", text)[1:]
        ]
        wanted = [
            sorted({str(one.answer()), *one.hints})
            for one in map(known.__getitem__, asked)
            if isinstance(one, Exercise) and one.hints
        ]
        assert [letters for letters in offered if letters] == wanted


def test_the_four_questions_of_the_method_are_asked_with_checked_answers():
    text = " ".join(" ".join(prose(FOLDER / f"{name}.ipynb") for name in NOTEBOOKS).split())
    for question in (
        "Why does NPO start as gradient ascent?",
        "Why do short answers survive NPO?",
        "What does SimNPO change?",
        "What does SimNPO over-correct?",
    ):
        assert text.count(question) == 1
    assert all(name.replace("_", " ").split()[0] in text.lower() for name in CORNERS)


@every_notebook
def test_links_lead_to_files(path: Path):
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        assert (path.parent / target).is_file(), target


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        (definitions, "def f(): pass", "f()"),
        (definitions, "f = lambda x: x", "f = max"),
        (definitions, "class A: pass", "A()"),
        (restated, "2 * torch.sigmoid(z)", "npo(0.2).weight(seq)"),
        (restated, "softplus(z)", "one.loss(seq)"),
    ],
)
def test_the_rules_for_cells_tell_bad_from_good(rule: Any, bad: str, good: str):
    assert rule(bad) and not rule(good)


def test_numbers_are_found_in_prose_and_in_code():
    assert numbers(
        "it weighs 0.80, that 1197 (Fan et al. 2025), see [03_x](03_x.ipynb); |y|^0.62"
    ) == {0.8, 1197, 0.62}
    assert numbers("**3.** (easy) `npo(0.2)` at $\\beta = 4$: exercise 7") == {0.2, 4}
    assert literals("a = [4, -1.0]; b = 'of 20, 80'; f'{a} 7'") == {4, 1, 20, 80, 7}


def put_small_models(notebook: Any) -> None:
    """Put models that are trained in seconds into the place of those that take minutes."""
    from figures.views.logs import example_files

    model, retrained, forget, _ = map(str, example_files())
    names = {"authors:original": model, "authors:retrained": retrained, "authors:forget10": forget}
    for cell in notebook.cells:
        for name, small in names.items():
            cell.source = cell.source.replace(f'"{name}"', repr(small))


def test_a_recipe_goes_from_one_import_to_its_pictures_in_six_cells() -> None:
    assert RECIPES
    for path in RECIPES:
        code = "\n".join(cells(path, "code"))
        assert len(read(path)["cells"]) == 6
        assert re.findall(r"^(?:import|from) .*$", code, re.M) == ["import llm"]


@pytest.mark.skipif(
    os.environ.get(EXECUTE) != "1", reason="`make notebooks` executes them all, which takes minutes"
)
@every_notebook
def test_it_runs_from_top_to_bottom(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    import nbformat
    from nbclient import NotebookClient

    kernels.import_everything()
    monkeypatch.setattr(
        "jupyter_client.provisioning.local_provisioner.launch_kernel", kernels.launch
    )
    monkeypatch.setenv("SIMNPO_LAB_QUICK", "1")
    # As a reader has them, all in one cache, and those of other workers as well.
    workers = tmp_path_factory.getbasetemp()
    shared = workers.parent if "PYTEST_XDIST_WORKER" in os.environ else workers
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(shared / "notebooks"))
    notebook = nbformat.read(path, as_version=4)
    if path in RECIPES:
        monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel shows pictures, tests do not
        put_small_models(notebook)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=5 * SECONDS, kernel_name="python3", resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if "cannot be used" in json.dumps(output)]
    if path.parent == FOLDER or path in RECIPES:
        assert any("image/png" in output.get("data", {}) for output in outputs)
