"""What became of each mutant: killed by a test, explained, or survived."""

from __future__ import annotations

import ast
import csv
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import NamedTuple

KILLED, EXPLAINED, SURVIVED = "killed", "explained", "survived"
# How mutmut says that a test failed, that pytest did, or that time ran out.
NOTICED = (1, 3, 24, -24, 36, 152, 255, -9)
NAME = re.compile(r"x(?:_|ǁ(?P<owner>\w+)ǁ)(?P<function>\w+?)__mutmut_(?P<number>orig|\d+)")


class Change(NamedTuple):
    """A function of a module, and which of its lines are changed into what."""

    module: str
    function: str
    was: str
    becomes: str


class Mutant(NamedTuple):
    """A change, what became of it, and why it is let live if it is."""

    change: Change
    verdict: str
    why: str = ""


class Wording(ast.NodeTransformer):
    """Takes what is written for readers, texts of several words, out of a function."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """Make all such texts one."""
        return ast.Constant("") if isinstance(node.value, str) and " " in node.value else node


class Strictness(ast.NodeTransformer):
    """Takes `strict` out of calls: what is zipped is of equal lengths by its making."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Leave the argument out."""
        node.keywords = [word for word in node.keywords if word.arg != "strict"]
        return self.generic_visit(node)


RULES: dict[str, Callable[[], ast.NodeTransformer]] = {
    "the words of a message": Wording,
    "zip is strict only to find mistakes of programmers": Strictness,
}


def functions(generated: str) -> dict[str, dict[str, ast.FunctionDef]]:
    """Return by name, as in "Objective.loss", what mutmut made of each function, by number.

    Under "orig" stands the function as it was.
    """
    found: dict[str, dict[str, ast.FunctionDef]] = {}
    for node in ast.walk(ast.parse(generated)):
        if isinstance(node, ast.FunctionDef) and (match := NAME.fullmatch(node.name)):
            node.name = match["function"]
            name = ".".join(part for part in (match["owner"], match["function"]) if part)
            found.setdefault(name, {})[match["number"]] = node
    return found


def changed(module: str, function: str, was: ast.AST, becomes: ast.AST) -> Change:
    """Return the lines in which two functions differ."""
    before, after = (ast.unparse(one).splitlines() for one in (was, becomes))
    told = list(difflib.ndiff(before, after))
    one, other = ("\n".join(line[2:].strip() for line in told if line[0] == sign) for sign in "-+")
    return Change(module, function, one, other)


def rule(was: ast.AST, becomes: ast.AST) -> str:
    """Return the rule by which two functions are equal, or nothing."""
    for why, kind in RULES.items():
        one, other = (ast.dump(kind().visit(deepcopy(node))) for node in (was, becomes))
        if one == other:
            return why
    return ""


def judge(
    module: str, generated: str, codes: dict[str, int | None], reasons: dict[Change, str]
) -> list[Mutant]:
    """Return what became of each mutant of a module.

    `generated` is what mutmut made of it, `codes` are the exit codes of its tests by mutant.
    """
    known, found = functions(generated), []
    for key, code in codes.items():
        match = NAME.fullmatch(key.rpartition(".")[2])
        assert match is not None, key
        name = ".".join(part for part in (match["owner"], match["function"]) if part)
        was, becomes = known[name]["orig"], known[name][match["number"]]
        change = changed(module, name, was, becomes)
        if code in NOTICED:
            found.append(Mutant(change, KILLED))
            continue
        why = reasons.get(change) or rule(was, becomes)
        found.append(Mutant(change, EXPLAINED if why else SURVIVED, why))
    return found


def read_reasons(file: Path) -> dict[Change, str]:
    """Return the reasons of a table of changes that no test can or should notice."""
    with file.open(newline="", encoding="utf-8") as lines:
        return {
            Change(*(row[field] for field in Change._fields)): row["why"]
            for row in csv.DictReader(lines)
        }


def score(mutants: Sequence[Mutant]) -> float:
    """Return the share of the mutants, but for those that are explained, that tests kill."""
    counted = [one for one in mutants if one.verdict != EXPLAINED]
    return sum(one.verdict == KILLED for one in counted) / max(1, len(counted))


def table(by_module: dict[str, list[Mutant]]) -> str:
    """Return the table of counts, a row per module."""
    rows: list[tuple[str, ...]] = [("module", "mutants", KILLED, EXPLAINED, SURVIVED, "score")]
    for module, mutants in (*by_module.items(), ("all", [*chain(*by_module.values())])):
        counts = [sum(one.verdict == kind for one in mutants) for kind in rows[0][2:5]]
        rows.append((module, str(len(mutants)), *map(str, counts), f"{100 * score(mutants):.1f} %"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def told(mutants: Iterable[Mutant]) -> str:
    """Return the mutants that survived, as rows of a table of reasons that lack their reason."""
    return "\n".join(
        f"{one.change.module} {one.change.function}\n  - {one.change.was}\n  + {one.change.becomes}"
        for one in mutants
        if one.verdict == SURVIVED
    )


def idle(by_module: dict[str, list[Mutant]], reasons: dict[Change, str]) -> list[Change]:
    """Return the changes with a reason that are none any more, or that a test kills."""
    used = {
        one.change for mutants in by_module.values() for one in mutants if one.verdict == EXPLAINED
    }
    return [one for one in reasons if one.module in by_module and one not in used]
