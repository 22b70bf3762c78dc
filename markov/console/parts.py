"""The words that say which part of a command's work is to be made: --part I/N, and --collect."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markov.errors import require

NAMED = 5  # of what is missing, by name


def part_of(text: str) -> tuple[int, int]:
    """Return I and N of a part that is written I/N; raise `InvalidInput` for another text."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part, count = map(int, found.groups()) if found else (0, 0)
    require(part < count, "part", text, "I/N with whole numbers I from 0 to N - 1, such as 0/3")
    return part, count


def asked_part(part: str | None, collect: bool) -> tuple[int, int] | None:
    """Return I and N of the part that is asked for, or None.

    Raises `InvalidInput` for a text that is no part, and for a part that is collected as well.
    """
    require(part is None or not collect, "collect", collect, "left out beside part")
    return None if part is None else part_of(part)


def check_collected(missing: int, what: str, names: Sequence[str] = ()) -> None:
    """Raise `InvalidInput` if some of what is to be collected are missing.

    `what` says what they are, and `names` which, if they have names.
    """
    named = ", ".join(names[:NAMED]) + (" and others" if len(names) > NAMED else "")
    told = f"{missing} {what} are missing{': ' if named else ''}{named}"
    require(missing == 0, "collect", True, f"left out, or given when all parts are made ({told})")
