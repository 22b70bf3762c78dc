"""Bad input, reported in one line that names the field, the value and what is allowed."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quotas


class InvalidInput(ValueError):
    """A setting or a file that cannot be used: the field, its value, and what is allowed instead."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field} = {value!r} is not allowed: {allowed}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, object, str]]:
        # An exception raised in a worker process is rebuilt from its arguments, not from its message.
        return (type(self), (self.field, self.value, self.allowed))


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `InvalidInput(field, value, allowed)` unless `condition` holds."""
    if not condition:
        raise InvalidInput(field, value, allowed)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command; 0, or one line on standard error and 2 for input that cannot be used or a disk that is full.

    An interruption gives 130.
    """
    try:
        command()
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"error: {error.filename or 'the disk'} has no room left ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing is half-written, and what was finished is kept", file=sys.stderr)
        return 130
    return 0
