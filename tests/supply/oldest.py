"""Write the oldest versions that `pyproject.toml` allows, one requirement per line.

    python -m tests.supply.oldest [PYPROJECT [CONSTRAINTS]] > oldest.txt

Each bound `name>=version` of the dependencies and of all extras becomes `name==version`, so that an
environment of them shows whether the bounds are true. torch stays at its pin: its older builds
bring gigabytes of libraries for a GPU along, and one bound is not worth those. What the packages
need themselves is left open, and taken as new as they allow.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from tests.supply.audit import CONSTRAINTS, ROOT, read_pins

PROJECT = ROOT / "pyproject.toml"
PINNED = ("torch",)


def oldest(project: Path = PROJECT, constraints: Path = CONSTRAINTS) -> list[str]:
    """Return the oldest allowed requirement of each package that is declared.

    Raises `ValueError` for a package that has no lower bound, or more than that.
    """
    declared = tomllib.loads(project.read_text("utf-8"))["project"]
    pins, found = read_pins(constraints), []
    extras = declared["optional-dependencies"].values()
    for text in [*declared["dependencies"], *(one for extra in extras for one in extra)]:
        wanted = Requirement(text)
        bounds = [one for one in wanted.specifier if one.operator == ">="]
        if len(bounds) != 1 or len(wanted.specifier) != 1:
            raise ValueError(f"{text}: one lower bound, as in name>=1.2, and nothing else")
        version = pins[wanted.name] if wanted.name in PINNED else bounds[0].version
        named = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
        found.append(f"{wanted.name}{named}=={version}")
    return found


def main(words: Sequence[str]) -> int:
    """Print the requirements; return the exit code."""
    print(*oldest(*[Path(word) for word in words]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
