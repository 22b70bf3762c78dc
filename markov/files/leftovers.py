"""Names for results that are being written, and the clearing of what is left of them.

A result is written under a passing name and renamed when it is whole. A process that is killed
leaves the passing name behind. The name says which result it was to become, on which machine and in
which process, so that the next run of the same job knows it again:

    .partial-RESULT-MACHINE-PROCESS-RANDOM[.suffix]
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec

PARTIAL = re.compile(
    r"\.partial-(?P<result>[0-9a-f]{8})-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}(\..*)?"
)
BROKEN = ".broken"
TRIALS = 5  # how often a file is written whose folder another process takes away
Given = ParamSpec("Given")
# Seconds without a change after which a file that a process of another machine was writing is given
# up. Every write here touches its file, or its folder, many times in a day.
GIVEN_UP = 24 * 3600.0


def partial_name(result: str) -> str:
    """Return a new passing name for what will be called `result`."""
    parts = (_digest(result), process(), secrets.token_hex(4))
    return f".partial-{'-'.join(parts)}"


def is_partial(name: str) -> bool:
    """Return whether a name is a passing one, of whatever process."""
    return PARTIAL.fullmatch(name) is not None


def machine() -> str:
    """Return a digest that two processes share if each can see whether the other is alive.

    On Linux it is that of the boot and of the process namespace: containers have their own numbers.
    """
    known = [platform.node()]
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        known += [boot, os.readlink("/proc/self/ns/pid")]
    return _digest(" ".join(known))


def process() -> str:
    """Return what names this process, and its machine."""
    return f"{machine()}-{os.getpid()}"


def alive_elsewhere(named: object) -> bool:
    """Return whether another process, named as `process` does, may be at work now."""
    where, _, number = str(named).partition("-")
    if named == process() or not re.fullmatch(r"\d{1,18}", number):
        return False
    return _running(where, int(number)) is not False


def clear(folder: Path, result: str | None = None) -> None:
    """Remove passing names that no living process writes: all of a folder, or those of one result.

    A process of this machine is alive while its number is in use. One of another machine, or from
    before a restart, cannot be asked: its file goes after a day without a change. Nothing else is
    touched, and links are removed without following them.
    """
    wanted = None if result is None else _digest(result)
    try:
        names = os.listdir(folder)
    except OSError:  # there is no such folder, or it cannot be read: then nothing was written in it
        return
    for name in names:
        found = PARTIAL.fullmatch(name)
        if found is None or wanted not in (None, found["result"]):
            continue
        if not _alive(folder / name, found["machine"], int(found["process"])):
            _remove(folder / name)


def discard(path: Path) -> None:
    """Remove a file or folder of this project's own making, in one step for whoever looks.

    It is first renamed to a passing name. So a kill in the middle leaves what the next run clears,
    and never half a folder under the name of a whole one. Of a link only the link is removed.
    """
    gone = path.with_name(partial_name(path.name))
    try:
        os.rename(path, gone)
        _remove(gone)
    except FileNotFoundError:  # it was never there, or another process was faster
        pass
    finally:
        if os.path.lexists(gone):  # interrupted in the middle
            _remove(gone)


def beside_others(write: Callable[Given, None]) -> Callable[Given, None]:
    """Return `write`, which is called again where another process takes its folder away.

    Of commands that do the same work at once, the first to finish discards what was kept for the
    time of it, while others may still be writing there. The last of five trials raises what it
    raises.
    """

    @functools.wraps(write)
    def written(*arguments: Given.args, **options: Given.kwargs) -> None:
        for left in reversed(range(TRIALS)):
            try:
                return write(*arguments, **options)
            except FileNotFoundError:
                if not left:
                    raise

    return written


def set_aside(path: Path, reason: object) -> None:
    """Rename a cached result that cannot be used to NAME.broken, and say so on standard error.

    Nothing is lost: where there is such a name already, a number follows it.
    """
    number, place = 1, path.with_name(path.name + BROKEN)
    while os.path.lexists(place):
        number, place = number + 1, path.with_name(f"{path.name}{BROKEN}{number + 1}")
    try:
        os.rename(path, place)
    except FileNotFoundError:  # another process was faster
        return
    why = " ".join(str(reason).split())
    print(
        f"note: {path} is broken ({why}): set aside as {place.name}, and made again",
        file=sys.stderr,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _alive(path: Path, where: str, number: int) -> bool:
    found = _running(where, number)
    return time.time() - _changed(path) < GIVEN_UP if found is None else found


def _running(where: str, number: int) -> bool | None:
    """Return whether a process runs; None if that cannot be told from here."""
    # On Windows the same call would end the process that it asks about.
    if where != machine() or sys.platform == "win32":
        return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def _changed(path: Path) -> float:
    """Return when a file, or anything in a folder, was last written to.

    It is the time now if that cannot be told.
    """
    try:
        times = [path.lstat().st_mtime]
        if path.is_dir() and not path.is_symlink():
            times += [inner.lstat().st_mtime for inner in path.rglob("*")]
    except OSError:
        return time.time()
    return max(times)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # which does not follow links either
    else:
        with suppress(OSError):
            path.unlink()
