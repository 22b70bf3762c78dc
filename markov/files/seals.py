"""A digest inside a file, of the file itself, by which a byte that was changed is noticed.

Formats find a file that is cut short, but not a digit that is another one. Whoever writes puts
`BLANK` among the file's metadata, where it stands as it is: at the beginning of a safetensors file,
at the end of a parquet file. `sealed` puts the digest of the bytes in its place, and `broken` says
whether a file, with `BLANK` back in its place, still has it.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import struct
from pathlib import Path

MARK, DIGITS = b"sealed by sha256 ", 64
BLANK = (MARK + DIGITS * b"0").decode()
KEY = "seal"  # of the metadata
SEAL = re.compile(MARK + rb"(.{%d})" % DIGITS, re.DOTALL)
PARQUET = b"PAR1"


def sealed(content: bytes) -> bytes:
    """Return the bytes of a file with their digest in place of `BLANK`."""
    place = _place(content)
    if place is None:
        raise AssertionError("no place for a seal")
    return b"".join((content[:place], _digest(content, place), content[place + DIGITS :]))


def broken(path: Path) -> bool:
    """Return whether a file has a seal, but not the digest that it says.

    What was written without a seal has none that could be broken. Raises `OSError` or `ValueError`
    for what is no file, or an empty one.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = _place(content)
        return place is not None and _digest(content, place) != content[place : place + DIGITS]


def _place(content: bytes | mmap.mmap) -> int | None:
    """Return where the digits of a seal begin among the metadata, or None where there is none."""
    size, first, last = len(content), 0, len(content)
    if content[:4] == PARQUET:  # ends with its metadata, their length, and the same four bytes
        first = size - 8 - int.from_bytes(content[-8:-4], "little")
    elif size >= 8:  # begins with the length of its metadata
        last = 8 + struct.unpack("<Q", content[:8])[0]
    found = SEAL.search(content, max(0, first), min(size, last))
    return None if found is None else found.start(1)


def _digest(content: bytes | mmap.mmap, place: int) -> bytes:
    """Return the digest of the bytes with zeros where it stands itself."""
    digest = hashlib.sha256()
    with memoryview(content) as view:
        for part in (view[:place], DIGITS * b"0", view[place + DIGITS :]):
            digest.update(part)
    return digest.hexdigest().encode()
