"""Paths that users give, and the files there: looked at before they are opened, and read whole.

Whatever names a file or folder of the user's is read through these functions. So a pipe or a device
is refused without being opened, which could wait forever or never end; `~` means the home folder
wherever it stands, also where no shell has seen it; and a path that no file can have is bad input
and no fault.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from markov.errors import InvalidInput, require

Location = str | os.PathLike[str]
Command = TypeVar("Command")
FILE, FOLDER = "a file that can be read", "a folder that can be read"
# What may lie at a path, in words.
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
DEEPEST = 100  # levels of JSON: far more than anything here has, and far less than Python follows
WIDEST = 2**64  # whole numbers in JSON lie below it, and above its negative
UNPAIRED = re.compile(r"[\ud800-\udfff]")  # halves of a character, which no file can hold
LONG, ESCAPED = re.compile(rb"\d{19}"), re.compile(rb"\\u[dD][89a-fA-F]")


def expanded(location: object, field: str) -> Path:
    """Return a path in which a leading `~` is the user's home folder.

    Raises `InvalidInput` for what is no path, and where no home folder is known.
    """
    good = isinstance(location, str | os.PathLike)
    text = os.fspath(location) if good else None
    if not isinstance(text, str) or not text:
        raise InvalidInput(field, location, "a path")
    whole = os.path.expanduser(text)
    known = whole != "~" and not whole.startswith("~/")
    require(known, field, text, "a path without ~, for which no home folder is known")
    return Path(whole)


def expand_all(command: Command) -> Command:
    """Return a dataclass of arguments in which every path, also in tuples, is `expanded`."""
    if not dataclasses.is_dataclass(command) or isinstance(command, type):
        return command
    changed = {}
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if isinstance(value, Path):
            changed[field.name] = expanded(value, field.name)
        elif isinstance(value, tuple) and any(isinstance(one, Path) for one in value):
            changed[field.name] = tuple(
                expanded(one, field.name) if isinstance(one, Path) else one for one in value
            )
    return dataclasses.replace(command, **changed) if changed else command


def is_file(word: Location) -> bool:
    """Return whether a word, which may name something else, is the path of a regular file.

    Words that no file can have as a name are none; nothing is raised for them.
    """
    return os.path.isfile(os.path.expanduser(word))


def is_folder(word: Location) -> bool:
    """Return whether a word, which may name something else, is the path of a folder."""
    return os.path.isdir(os.path.expanduser(word))


def exists(word: Location) -> bool:
    """Return whether anything lies where a word, which may name something else, points to."""
    return os.path.exists(os.path.expanduser(word))


def kind_of(path: Path) -> str:
    """Return in words what lies at a path, which must exist."""
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "something else")


def existing_file(location: Location, field: str, allowed: str = FILE) -> Path:
    """Return the path of a regular file that can be opened.

    Raises `InvalidInput` for everything else. What is no regular file is not opened.
    """
    return _existing(location, field, allowed, stat.S_IFREG)


def existing_folder(location: Location, field: str, allowed: str = FOLDER) -> Path:
    """Return the path of a folder that can be listed; raise `InvalidInput` for everything else."""
    return _existing(location, field, allowed, stat.S_IFDIR)


def _existing(location: Location, field: str, allowed: str, wanted: int) -> Path:
    path = expanded(location, field)
    try:
        found = stat.S_IFMT(os.stat(path).st_mode)
        if found == wanted:
            if wanted == stat.S_IFDIR:
                os.scandir(path).close()
            else:
                os.close(os.open(path, os.O_RDONLY))
            return path
        reason = f"{kind_of(path)} lies there"
    except (OSError, ValueError) as error:
        reason = _said(error)
    raise InvalidInput(field, os.fspath(location), f"{allowed} ({reason})")


def read_bytes(location: Location, field: str, allowed: str = FILE) -> bytes:
    """Return what is in a regular file; raise `InvalidInput` for what cannot be read.

    No more is read than the size that the file is said to have, and a file that is larger than the
    free memory is refused.
    """
    path = existing_file(location, field, allowed)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(size, os.fspath(location), field)
            return file.read(size)
    except OSError as error:
        raise InvalidInput(field, os.fspath(location), f"{allowed} ({_said(error)})") from None


def _check_size(size: int, name: str, field: str) -> None:
    if size < 10**8:  # room for which there always is
        return
    import psutil

    free = psutil.virtual_memory().available
    allowed = f"a file that memory has room for, {free / 1e9:.1f} GB (it has {size / 1e9:.1f} GB)"
    require(size <= free, field, name, allowed)


def read_text(location: Location, field: str, allowed: str = FILE) -> str:
    """Return the text of a file in UTF-8; raise `InvalidInput` for what cannot be read.

    A byte of zero is part of UTF-8, but of no text: it stands where a disk lost what was written.
    """
    data, where = read_bytes(location, field, allowed), os.fspath(location)
    place = data.find(0)
    require(place < 0, field, where, f"{allowed} (byte {place} is zero)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(field, where, f"{allowed} ({error})") from None


def read_json(
    location: Location,
    field: str,
    allowed: str = "a JSON file that can be read",
    pairs: Callable[[list[tuple[str, Any]]], object] | None = None,
    widest: int = WIDEST,
) -> Any:
    """Return what a JSON file holds; raise `InvalidInput` for what cannot be read or used.

    See `parsed` for what is refused.
    """
    data = read_bytes(location, field, allowed)
    return parsed(data, field, os.fspath(location), allowed, pairs, widest)


def parsed(
    data: bytes,
    field: str,
    name: str,
    allowed: str = "JSON that can be read",
    pairs: Callable[[list[tuple[str, Any]]], object] | None = None,
    widest: int = WIDEST,
) -> Any:
    """Return what JSON in UTF-8 says; `name` is the value that an error names.

    Raises `InvalidInput` for other bytes, and for what JSON allows and nothing here can use: more
    than `DEEPEST` levels, whole numbers from `widest` on, and texts with half a character.
    `pairs` makes an object of its keys and values, as `object_pairs_hook` of `json.loads` does.
    """
    long = LONG.search(data)
    try:
        found = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=pairs,
            # Asked of every number only where one may be so long: it takes time.
            parse_int=partial(_whole, widest, 1 + len(str(widest))) if long else None,
        )
        _check_depth(found, texts=ESCAPED.search(data) is not None)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = f"more than {DEEPEST} levels" if isinstance(error, RecursionError) else error
        raise InvalidInput(field, name, f"{allowed} ({reason})") from None
    return found


def _whole(widest: int, longest: int, digits: str) -> int:
    if len(digits) > longest or not -widest < int(digits) < widest:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _check_depth(found: object, *, texts: bool) -> None:
    """Raise `ValueError` for JSON that is too deep and, if asked, for half characters in texts."""
    level: list[Any] = [[found]]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for one in level:
            values = one
            if isinstance(one, dict):
                values = [*one, *one.values()] if texts else one.values()
            below += [value for value in values if type(value) in (dict, list)]
            if texts and any(isinstance(value, str) and UNPAIRED.search(value) for value in values):
                raise ValueError("half a character, such as \\ud800")
        level = below
    if level:
        raise ValueError(f"more than {DEEPEST} levels")


def _said(error: Exception) -> str:
    """Return why a file cannot be used, without its name, which the message has already."""
    return str(getattr(error, "strerror", None) or error)
