"""What became of mutants is read, explained and counted; mutmut itself is not run here."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.mutants import __main__ as program
from tests.mutants.__main__ import ENOUGH, MODULES, REASONS, ROOT, Arguments, main, settings
from tests.mutants.judging import (
    EXPLAINED,
    KILLED,
    SURVIVED,
    Change,
    Mutant,
    functions,
    idle,
    judge,
    read_reasons,
    score,
    table,
    told,
)

# As mutmut writes them: each function as it was, and once for each mutant.
GENERATED = '''
def x_half__mutmut_orig(value):
    """Return half of it."""
    require(value > 0, "value", "a number above 0")
    return value / 2

def x_half__mutmut_1(value):
    """Return half of it."""
    require(value >= 0, "value", "a number above 0")
    return value / 2

def x_half__mutmut_2(value):
    """Return half of it."""
    require(value > 0, "value", "XXa number above 0XX")
    return value / 2

def x_half__mutmut_3(value):
    """Return half of it."""
    require(value > 0, "VALUE", "a number above 0")
    return value / 2

class Pair:
    def xǁPairǁ_both__mutmut_orig(self):
        return list(zip(self.one, self.other, strict=True))

    def xǁPairǁ_both__mutmut_1(self):
        return list(zip(self.one, self.other, strict=False))

    def xǁPairǁ_both__mutmut_2(self):
        return list(zip(self.one, self.one, strict=True))
'''
HALF, BOTH = "llm.some.x_half__mutmut_", "llm.some.xǁPairǁ_both__mutmut_"
CODES: dict[str, int | None] = {
    f"{HALF}1": 1,
    f"{HALF}2": 0,
    f"{HALF}3": 0,
    f"{BOTH}1": 33,
    f"{BOTH}2": -24,
}
FIELD = Change(
    "llm/some.py",
    "half",
    "require(value > 0, 'value', 'a number above 0')",
    "require(value > 0, 'VALUE', 'a number above 0')",
)


def found(reasons: dict[Change, str] | None = None) -> list[Mutant]:
    return judge("llm/some.py", GENERATED, CODES, reasons or {})


def test_each_function_is_found_with_its_mutants() -> None:
    assert {name: list(own) for name, own in functions(GENERATED).items()} == {
        "half": ["orig", "1", "2", "3"],
        "Pair._both": ["orig", "1", "2"],
    }


def test_failing_tests_and_endless_ones_kill_and_nothing_else_does() -> None:
    verdicts = [(one.change.function, one.verdict) for one in found()]
    assert verdicts == [
        ("half", KILLED),
        ("half", EXPLAINED),
        ("half", SURVIVED),
        ("Pair._both", EXPLAINED),
        ("Pair._both", KILLED),
    ]


def test_words_and_strictness_are_explained_by_a_rule_and_fields_are_not() -> None:
    _, words, field, strict, _ = found()
    assert "message" in words.why and "strict" in strict.why
    assert (field.change, field.why) == (FIELD, "")
    assert told(found()) == f"llm/some.py half\n  - {FIELD.was}\n  + {FIELD.becomes}"


def test_a_reason_explains_its_change_until_a_test_kills_it() -> None:
    killed = found()[0].change
    reasons = {FIELD: "nobody reads it", killed: "no longer true"}
    field = found(reasons)[2]
    assert (field.verdict, field.why) == (EXPLAINED, "nobody reads it")
    assert idle({"llm/some.py": found(reasons)}, reasons) == [killed]
    assert idle({"another.py": []}, reasons) == []  # what was not tried is not judged


def test_the_score_leaves_out_what_is_explained() -> None:
    assert score(found()) == pytest.approx(2 / 3)
    assert score(found({FIELD: "nobody reads it"})) == 1
    assert score([]) == 0
    rows = [line.split() for line in table({"llm/some.py": found(), "b.py": found()}).splitlines()]
    assert rows == [
        ["module", "mutants", "killed", "explained", "survived", "score"],
        ["llm/some.py", "5", "2", "2", "1", "66.7", "%"],
        ["b.py", "5", "2", "2", "1", "66.7", "%"],
        ["all", "10", "4", "4", "2", "66.7", "%"],
    ]


@pytest.mark.parametrize(("killed", "code"), [(9, 0), (8, 1)])
def test_too_few_kills_end_in_a_fault(
    killed: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change = Change("a.py", "f", "x", "y")
    mutants = [Mutant(change, KILLED)] * killed + [Mutant(change, SURVIVED)] * (10 - killed)
    tried = []
    monkeypatch.setattr(program, "run", lambda module, *_: tried.append(module))
    monkeypatch.setattr(program, "outcome", lambda *_: ("", {}))
    monkeypatch.setattr(program, "judge", lambda *_: mutants)
    assert main(Arguments(only=("a.py",), again=True)) == code and tried == []
    capsys.readouterr()
    assert main(Arguments(only=("a.py",))) == code and tried == ["a.py"]
    out = capsys.readouterr().out
    assert ENOUGH == 0.9 and f"{killed}0.0 %" in out and out.count("- x") == 10 - killed


def test_a_run_that_ends_early_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MUTMUT", ("sh", "-c", "echo no tests at all"))
    monkeypatch.setattr(program, "SOURCES", ("markov",))
    with pytest.raises(RuntimeError, match=r"all mutants of markov/chains.py: .* ends in\nnothing"):
        program.outcome("markov/chains.py", tmp_path)
    program.run("markov/chains.py", tmp_path, 1)
    with pytest.raises(RuntimeError, match="ends in\nno tests at all"):
        program.outcome("markov/chains.py", tmp_path)
    copied = tmp_path / "markov-chains"
    assert (copied / "markov" / "chains.py").is_file() and (copied / "tests").is_dir()
    assert settings("markov/chains.py") in (copied / "pyproject.toml").read_text("utf-8")


def test_modules_and_the_tests_that_judge_them_are_there() -> None:
    for module, tests in MODULES.items():
        assert (ROOT / module).is_file() and all((ROOT / test).is_file() for test in tests)
        assert json.dumps(list(tests)) in settings(module)


def written(module: str, function: str) -> list[str]:
    """The lines of a function as `ast` writes them."""
    scope: ast.AST = ast.parse((ROOT / module).read_text("utf-8"))
    for name in function.split("."):
        (scope,) = (
            node for node in ast.iter_child_nodes(scope) if getattr(node, "name", "") == name
        )
    assert isinstance(scope, ast.FunctionDef)
    scope.decorator_list = []
    return [line.strip() for line in ast.unparse(scope).splitlines()]


def test_every_reason_is_of_lines_that_are_still_there() -> None:
    reasons = read_reasons(REASONS)
    assert reasons
    for change, why in reasons.items():
        lines = written(change.module, change.function)
        assert {*change.was.splitlines()} <= {*lines}, change
        assert len(why.split()) > 3
