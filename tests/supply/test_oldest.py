"""The oldest packages that are allowed: one requirement for each bound, torch at its pin."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.supply.audit import CONSTRAINTS
from tests.supply.oldest import PROJECT, main, oldest

TEXT = """
[project]
dependencies = ["torch>=2.6", "tool>=1.2"]
[project.optional-dependencies]
more = ["other[fast,big]>=3"]
"""


def written(tmp_path: Path, text: str = TEXT) -> list[Path]:
    (tmp_path / "pyproject.toml").write_text(text)
    (tmp_path / "pins.txt").write_text("torch==2.9.1\ntool==1.9\nother==4\n")
    return [tmp_path / "pyproject.toml", tmp_path / "pins.txt"]


def test_a_bound_becomes_the_version_itself_and_torch_its_pin(tmp_path: Path) -> None:
    assert oldest(*written(tmp_path)) == ["torch==2.9.1", "tool==1.2", "other[big,fast]==3"]


@pytest.mark.parametrize("bound", ["tool", "tool>1", "tool==1.2", "tool>=1.2,<2", "tool>=1,>=2"])
def test_what_has_no_single_lower_bound_is_named(bound: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=bound.replace(".", r"\.")):
        oldest(*written(tmp_path, TEXT.replace("tool>=1.2", bound)))


def test_the_list_of_this_project_has_every_declared_package_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(PROJECT), str(CONSTRAINTS)]) == 0
    names = [Requirement(line).name for line in capsys.readouterr().out.splitlines()]
    declared = tomllib.loads(PROJECT.read_text())["project"]
    extras = [one for extra in declared["optional-dependencies"].values() for one in extra]
    assert sorted(names) == sorted(
        Requirement(one).name for one in declared["dependencies"] + extras
    )
    assert len(names) == len(set(names)) > 40
