"""Words that name models and data: what any of them must be before anybody looks what it names.

A word may be a path. A name that no file can have, links in a circle, a pipe and a device are
refused here, so that whatever looks further finds a file, a folder or nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from markov.errors import LARGEST, InvalidInput, require
from markov.files import inputs


def checked_word(word: object, field: str) -> str:
    """Return a word as text, in which a leading `~` is the user's home folder.

    Raises `InvalidInput` for what is no text or path, for an empty one, and for the path of what is
    neither a file nor a folder. Nothing is opened.
    """
    good = isinstance(word, str | os.PathLike)
    text = os.fspath(word) if good else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(field, word, "a word, or a path")
    name = str(inputs.expanded(text, field)) if text.startswith("~") else text
    try:
        kind = os.stat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return name
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(
            field, text, f"a word, or a path that can be looked at ({reason})"
        ) from None
    known = stat.S_ISREG(kind) or stat.S_ISDIR(kind)
    require(
        known, field, text, f"a word, a file or a folder ({inputs.kind_of(Path(name))} lies there)"
    )
    return name


def seed_in(digits: str, field: str, word: str, allowed: str) -> int:
    """Return the seed that a word ends with; raise `InvalidInput` for what is none."""
    good = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(LARGEST))
    require(good and int(digits) <= LARGEST, field, word, f"{allowed}, at most {LARGEST}")
    return int(digits)
