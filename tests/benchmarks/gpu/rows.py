"""The table of what was measured: its rows, their verdicts, and the files, written row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from markov.files.storage import atomic_path, write_table

HOLDS, FAILS, SEEN, NOT_MEASURED = "holds", "does not hold", "measured", "not measured"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Between which numbers a value has to lie, its ends included; None is no end."""

    least: float | None = None
    most: float | None = None
    note: str = ""

    def verdict(self, value: float | None) -> str:
        """Return whether a value lies within; without both ends it was only measured."""
        if value is None:
            return NOT_MEASURED
        if self.least is None and self.most is None:
            return SEEN
        # Written so that nan does not hold.
        above = self.least is None or value >= self.least
        below = self.most is None or value <= self.most
        return HOLDS if above and below else FAILS

    def __str__(self) -> str:
        ends = {"at least": self.least, "at most": self.most}
        found = " and ".join(f"{word} {end:.4g}" for word, end in ends.items() if end is not None)
        return "; ".join(part for part in (found, self.note) if part)


ANY = Bound()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A number that was measured, or the reason why it was not."""

    what: str
    value: float | None = None
    unit: str = ""
    bound: Bound = ANY
    reason: str = ""

    @property
    def verdict(self) -> str:
        """What the bound says of the value."""
        found = self.bound.verdict(self.value)
        return f"{found}: {self.reason}" if self.reason else found

    def record(self, seconds: float) -> dict[str, Any]:
        """Return the row of the table, which took so many seconds."""
        return {
            "what": self.what,
            "value": math.nan if self.value is None else float(self.value),
            "unit": self.unit,
            "bound": str(self.bound),
            "verdict": self.verdict,
            "seconds": round(seconds, 1),
        }


COLUMNS = tuple(Row(what="").record(0))


@dataclass
class Table:
    """The rows so far, written to gpu.md, gpu.json and gpu.parquet of a folder as they come.

    `about` says on which card and with which versions they were measured.
    """

    folder: Path
    about: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Row, seconds: float) -> None:
        """Add a row, print it and write all."""
        self.rows.append(row.record(seconds))
        print(line(self.rows[-1]), flush=True)
        self.write()

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS))

    def write(self) -> None:
        """Write the three files, each whole or not at all."""
        known = {"rows": self.rows, **self.about}
        with atomic_path(self.folder / "gpu.md") as path:
            path.write_text(self.markdown(), "utf-8")
        with atomic_path(self.folder / "gpu.json") as path:
            # Without numbers that JSON does not have.
            text = json.dumps(known, indent=1, default=str).replace(": NaN", ": null")
            path.write_text(text + "\n", "utf-8")
        write_table(self.frame, self.folder / "gpu.parquet", dict(self.about))

    def markdown(self) -> str:
        """Return the table for a page, below what it was measured with."""
        about = "\n".join(f"- {name}: {word}" for name, word in self.about.items())
        head = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
        body = [" | ".join(cells(row)) for row in self.rows]
        return "\n".join([about, "", head, *(f"| {one} |" for one in body), ""])


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the words of a row; a bar would end a cell of the page."""
    value = "" if math.isnan(row["value"]) else number(row["value"])
    return [(value if name == "value" else str(row[name])).replace("|", "/") for name in COLUMNS]


def number(value: float) -> str:
    """Return a number with four digits, and whole from 1000 up."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def line(row: Mapping[str, Any]) -> str:
    """Return a row for the terminal."""
    what, value, unit, bound, verdict, seconds = cells(row)
    return f"{what:<88} {value:>9} {unit:<10} {verdict} {f'({bound}) ' if bound else ''}{seconds} s"
