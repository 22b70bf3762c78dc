"""How a command ends: its exit code, and one line on standard error where it did not succeed.

    0    it succeeded
    1    it failed by a fault of its own, or of the machine's
    2    its input cannot be used, or the disk or the memory is full
    130  it was interrupted, by Ctrl-C
    143  it was asked to end, by SIGTERM, which batch systems and containers send

With the word `--debug` anywhere among its arguments a command also prints where an error was
raised.
"""

from __future__ import annotations

import errno
import io
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType

from markov.errors import FULL, InvalidInput, out_of_memory

DEBUG = "--debug"
SUCCESS, FAILURE, INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # of paths that no file can have
WIDEST = 300  # characters that are printed of what a library says


class Terminated(KeyboardInterrupt):
    """The process was asked to end. What is done at Ctrl-C is done then as well."""


def debugged(arguments: Sequence[str] | None) -> tuple[list[str], bool]:
    """Return the arguments (default: the process's own) without `--debug`, and whether it is there.

    Every command takes the word, and none has a setting of that name.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    return [word for word in given if word != DEBUG], DEBUG in given


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` where the process is at work when SIGTERM comes.

    Only the main thread of a process can be told so; in another one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(
    command: Callable[[], None],
    *,
    lower: str = "fewer runs or examples at a time",
    debug: bool = False,
    alone: bool = True,
) -> int:
    """Run a command and return its exit code, after one line on standard error if it is not 0.

    `lower` says what takes less memory. With `debug` the traceback comes before that line. A
    process that is not `alone`, but waits for others where Python cannot interrupt it, ends at
    SIGTERM without a word.
    """
    # A path may hold bytes that are no text, and is printed all the same.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with terminable() if alone else nullcontext():
            command()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, line = _told(error, lower)
        print(printable(line), file=sys.stderr)
        return code
    return SUCCESS


def printable(text: str) -> str:
    """Return a text in which line ends and what steers a terminal are written as escapes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _told(error: BaseException, lower: str) -> tuple[int, str]:
    """Return the exit code of what was raised, and the line about it."""
    if isinstance(error, KeyboardInterrupt):
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        return code, "stopped; nothing is half-written, and what was finished is kept"
    if isinstance(error, InvalidInput):
        return INPUT, f"error: {error}"
    said = _short(str(error)) or type(error).__name__
    if out_of_memory(error):
        return INPUT, f"error: out of memory ({said}); {lower} take less"
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "the disk"
        return INPUT, f"error: {where} has no room left ({error.strerror})"
    if isinstance(error, OSError) and error.strerror and error.filename:
        code = INPUT if error.errno in NO_NAME else FAILURE
        return code, f"error: {_short(str(error.filename))} cannot be used ({error.strerror})"
    kind = type(error).__name__
    return FAILURE, f"error: {kind}: {said} (this should not happen; {DEBUG} shows where it did)"


def _short(text: str) -> str:
    """Return the first line of a text, which is cut if it is long."""
    first = next(iter(text.strip().splitlines()), "")
    return first if len(first) <= WIDEST else f"{first[:WIDEST]}..."
