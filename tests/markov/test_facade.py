"""What `import markov` gives: the names of a study, each loaded when it is first used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

import markov
from tests.test_architecture import ROOT

STUB = ast.parse((ROOT / "markov" / "__init__.pyi").read_text("utf-8"))
NAMES = {
    alias.asname: (one.module, alias.name)
    for one in STUB.body
    if isinstance(one, ast.ImportFrom)
    for alias in one.names
}


def test_the_package_lists_the_names_of_its_stub_and_about_twenty() -> None:
    assert set(markov.__all__) == set(NAMES) and 15 <= len(NAMES) <= 25
    assert set(NAMES) <= set(dir(markov))


@pytest.mark.parametrize("name", sorted(str(name) for name in NAMES))
def test_each_name_is_what_its_module_defines_and_is_documented(name: str) -> None:
    module, own = NAMES[name]
    found = getattr(markov, name)
    assert found is getattr(sys.modules[f"markov.{module}"], own) and own == name
    assert name.isupper() or (found.__doc__ or "").split()


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="sinmpo"):
        markov.sinmpo  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_loads_neither_torch_nor_pandas_until_a_name_is_used() -> None:
    code = (
        "import sys, json, markov; print(json.dumps([sorted(sys.modules), [markov.npo.__name__, "
        "*sys.modules]]))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    before, after = json.loads(printed)
    assert {"torch", "pandas", "numpy", "scipy"}.isdisjoint(
        before
    ) and "markov.objectives" not in before
    assert after[0] == "npo" and {"torch", "markov.objectives"} <= set(after)
