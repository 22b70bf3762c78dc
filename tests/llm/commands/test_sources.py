"""Every table of a command that loads one model keeps where that model came from."""

from __future__ import annotations

import ast
from pathlib import Path

import llm.commands

FOLDER = Path(llm.commands.__path__[0])


def writes(text: str) -> list[tuple[str, bool]]:
    """The calls of `write` in functions that have a `language`, and whether each hands it on."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = [one for one in ast.walk(function) if isinstance(one, ast.Name | ast.arg)]
        if "language" not in {getattr(one, "id", getattr(one, "arg", None)) for one in names}:
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "write":
                given = any(getattr(one, "id", "") == "language" for one in call.args)
                found.append((f"{function.name}: {ast.unparse(call)}", given))
    return found


def test_a_write_without_the_model_is_found() -> None:
    text = "def f():\n    language = load()\n    write(table, out, command)"
    assert writes(text) == [("f: write(table, out, command)", False)]
    assert writes(text.replace("command)", "command, language)"))[0][1]
    assert writes(text.replace("language", "other")) == []


def test_every_table_of_one_model_is_written_with_that_model() -> None:
    found = [
        (file.stem, call, given)
        for file in sorted(FOLDER.glob("*.py"))
        for call, given in writes(file.read_text("utf-8"))
        if file.stem != "options"  # where `write` is made
    ]
    assert {"score", "relearn", "muse", "unlearn"} <= {name for name, _, _ in found}
    assert [(name, call) for name, call, given in found if not given] == []
