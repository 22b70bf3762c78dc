"""What `import markov` and `import llm` give: names for each job, loaded when they are used."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys

import pytest

from tests.test_architecture import ROOT


def names_of(package: str) -> dict[str, tuple[str, str]]:
    """The names of a package's stub, and the module and name that each is loaded from."""
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text("utf-8"))
    return {
        str(alias.asname): (f"{package}.{one.module}", alias.name)
        for one in stub.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    }


PACKAGES = ("markov", "llm")
NAMES = [(package, name) for package in PACKAGES for name in sorted(names_of(package))]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_the_names_of_its_stub_and_no_more_than_thirty(package: str) -> None:
    module = importlib.import_module(package)
    names = set(names_of(package))
    assert set(module.__all__) == names and 10 <= len(names) <= 30
    assert names <= set(dir(module))


def test_every_job_with_language_models_has_a_name() -> None:
    jobs = "load read score weights diagnose allocation unlearn evaluate relearn sweep muse"
    assert {*jobs.split(), "read_run", "method"} <= set(names_of("llm"))


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_each_name_is_what_its_module_defines_and_is_documented(package: str, name: str) -> None:
    module, own = names_of(package)[name]
    found = getattr(importlib.import_module(package), name)
    assert found is getattr(sys.modules[module], own) and own == name
    assert name.isupper() or (inspect.getdoc(found) or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_there_is_not_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="sinmpo"):
        importlib.import_module(package).sinmpo  # noqa: B018


@pytest.mark.parametrize(
    ("package", "name", "module"),
    [("markov", "npo", "markov.objectives"), ("llm", "method", "llm.unlearning.methods")],
)
def test_importing_a_package_loads_no_library_until_a_name_is_used(
    package: str, name: str, module: str
) -> None:
    code = (
        f"import sys, json, {package}; print(json.dumps([sorted(sys.modules), "
        f"[{package}.{name}.__name__, *sys.modules]]))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    before, after = json.loads(printed)
    assert {"torch", "transformers", "pandas", "numpy", "scipy"}.isdisjoint(before)
    assert module not in before
    assert after[0] == name and {"torch", module} <= set(after)
