"""Compare the pins with the advisories that are kept beside this module.

    python -m tests.supply.audit [CONSTRAINTS [ADVISORIES]]

It prints a line for each pin that an advisory affects and ends with 1, or says how many advisories
it knows and how old they are and ends with 0. A list that cannot be read is one line, and 2.

`advisories.csv` begins with a comment that has the date of the last look, and has a row per
advisory and range of versions:

    package, affected      a name of the index, and versions as a specifier (PEP 440)
    identifiers            CVE, GHSA and PYSEC numbers of the same fault, with blanks between
    fixed                  the first version without it, or nothing
    summary, source        what it is, in a line, and whose record it was taken from
    accepted               why a pin stays although it is affected; nothing otherwise

A reason that no pin needs any longer is a fault as well, so that it cannot hide a later one.
"""

from __future__ import annotations

import csv
import datetime
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[2]
CONSTRAINTS, ADVISORIES = ROOT / "constraints.txt", Path(__file__).with_name("advisories.csv")
COLUMNS = ("package", "affected", "identifiers", "fixed", "summary", "source", "accepted")
DATE = re.compile(r"#.*\b(\d{4}-\d{2}-\d{2})\b")
IDENTIFIER = re.compile(r"CVE-\d{4}-\d{4,}|GHSA(-[0-9a-z]{4}){3}|PYSEC-\d{4}-\d+")
OLD = 90  # days after which somebody should look again


class Malformed(Exception):
    """A list that cannot be read: its message names the file, the line and what is wrong."""


class Advisory(NamedTuple):
    """A published fault of a package, as `advisories.csv` has it."""

    package: str
    affected: SpecifierSet
    identifiers: tuple[str, ...]
    fixed: Version | None
    summary: str
    source: str
    accepted: str

    def affects(self, version: Version) -> bool:
        """Return whether a version has the fault."""
        return self.affected.contains(version, prereleases=True)

    def told(self, version: Version) -> str:
        """Return the line that says that a pin is affected, and what to do."""
        todo = f"fixed in {self.fixed}" if self.fixed else "not fixed yet"
        return f"{self.package}=={version}: {' '.join(self.identifiers)}, {self.summary} ({todo})"


class Known(NamedTuple):
    """The advisories, and the day when somebody last looked for more."""

    day: datetime.date
    advisories: tuple[Advisory, ...]


def read_advisories(path: Path = ADVISORIES) -> Known:
    """Return the advisories of a file; raises `Malformed` for one that cannot be read."""
    lines = _lines(path)
    dated = DATE.match(lines[0]) if lines else None
    if dated is None:
        raise Malformed(f"{path}, line 1: a comment with the date of the last look (# 2026-01-31)")
    try:
        day = datetime.date.fromisoformat(dated[1])
    except ValueError:
        raise Malformed(f"{path}, line 1: {dated[1]} is no date") from None
    # Blank fields are told apart from fields that are missing or too many.
    rows = csv.reader(lines[1:], strict=True)
    found: list[Advisory] = []
    try:
        header = next(rows, [])
        if tuple(header) != COLUMNS:
            raise Malformed(f"{path}, line 2: the columns have to be {','.join(COLUMNS)}")
        for row in rows:
            found.append(_advisory(row, f"{path}, line {rows.line_num + 1}"))
    except csv.Error as error:
        raise Malformed(f"{path}, line {rows.line_num + 1}: {error}") from None
    return Known(day, tuple(found))


def _advisory(row: Sequence[str], where: str) -> Advisory:
    if len(row) != len(COLUMNS):
        raise Malformed(f"{where}: {len(row)} fields, and there are {len(COLUMNS)} columns")
    package, affected, identifiers, fixed, summary, source, accepted = map(str.strip, row)
    try:
        versions = SpecifierSet(affected)
        first = Version(fixed) if fixed else None
    except (InvalidSpecifier, InvalidVersion) as error:
        raise Malformed(f"{where}: {error}") from None
    if package != canonicalize_name(package) or not package:
        raise Malformed(f"{where}: {package!r} is not written as the index writes names")
    names = tuple(identifiers.split())
    odd = [name for name in names if not IDENTIFIER.fullmatch(name)]
    if odd or not names:
        raise Malformed(f"{where}: {(odd or [''])[0]!r} is no CVE, GHSA or PYSEC identifier")
    if not affected or not summary or not source:
        raise Malformed(f"{where}: affected, summary and source have to be there")
    if first is not None and versions.contains(first, prereleases=True):
        raise Malformed(f"{where}: {first} is said to be fixed, and lies in {affected}")
    return Advisory(package, versions, names, first, summary, source, accepted)


def read_pins(path: Path = CONSTRAINTS) -> dict[str, Version]:
    """Return the pinned version of each package; raises `Malformed` for a line that is no pin."""
    pins: dict[str, Version] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        try:
            read = Requirement(line)
            (one,) = read.specifier
            version = Version(one.version)
        except (InvalidRequirement, InvalidVersion, ValueError):
            raise Malformed(f"{where}: {line.strip()!r} is no pin, as name==1.2.3 is") from None
        if one.operator != "==":
            raise Malformed(f"{where}: {line.strip()!r} is no pin, as name==1.2.3 is")
        pins[canonicalize_name(read.name)] = version
    return pins


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise Malformed(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def faults(pins: dict[str, Version], advisories: Iterable[Advisory]) -> list[str]:
    """Return a line for each pin that is affected, and for each reason that no pin needs."""
    found = []
    for one in advisories:
        version = pins.get(one.package)
        if version is not None and one.affects(version):
            found += [] if one.accepted else [one.told(version)]
        elif one.accepted:
            names = " ".join(one.identifiers)
            found.append(f"{one.package}: {names} is accepted, and no pin is affected: drop it")
    return found


def main(words: Sequence[str], today: datetime.date | None = None) -> int:
    """Print what is affected and how old the list is; return the exit code."""
    places = [Path(word) for word in words]
    try:
        pins = read_pins(*places[:1])
        known = read_advisories(*places[1:2])
    except Malformed as error:
        print(error, file=sys.stderr)
        return 2
    found = faults(pins, known.advisories)
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    for one in known.advisories:
        if one.accepted and one.package in pins and one.affects(pins[one.package]):
            print(f"accepted: {one.told(pins[one.package])}: {one.accepted}")
    age = ((today or datetime.date.today()) - known.day).days
    told = f"{len(pins)} pins, {len(known.advisories)} advisories known {age} days ago, {known.day}"
    print(told + (": time to look for more" if age > OLD else ""))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
