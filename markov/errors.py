"""Bad input, reported in one line that names the field, the value and what is allowed."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable
from numbers import Integral, Real

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows knows no quotas
WIDEST = 300  # characters of a value in a message
# The largest whole number that tables and tensors hold, and so the largest seed, count or size.
LARGEST = 2**63 - 1
# What the allocators of torch and of other libraries say.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class InvalidInput(ValueError):
    """A setting or file that cannot be used: its field, its value, and what is allowed instead."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field} = {shown(value)} is not allowed: {allowed}")

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[str, object, str]]:
        # In another process an exception is rebuilt from its arguments, not from its message.
        return (type(self), (self.field, self.value, self.allowed))


def shown(value: object) -> str:
    """Return a value as Python writes it, in one line, which is cut in the middle if it is long.

    Some values cannot be written: lists that are too deep, integers of thousands of digits. Their
    kind stands for them.
    """
    try:
        # An array or table writes only its ends, but a text or a list all of it.
        text = " ".join(repr(value).split("\n"))
    except Exception:  # whatever a value raises that is only to be named
        return f"<{type(value).__name__}>"
    left = (WIDEST - 5) // 2
    return text if len(text) <= WIDEST else f"{text[:left]} ... {text[-left:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise `InvalidInput(field, value, allowed)` unless `condition` holds."""
    if not condition:
        raise InvalidInput(field, value, allowed)


def is_number(value: object) -> bool:
    """Return whether the value is one finite real number.

    True and False are none, though Python adds them up as 1 and 0, and neither is a whole number
    that no tensor holds.
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        return False
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floating-point numbers
        return False


def require_number(value: object, field: str, holds: Callable[[float], bool], allowed: str) -> None:
    """Raise `InvalidInput(field, value, allowed)` unless `holds` is true of one finite number."""
    require(
        isinstance(value, Real) and is_number(value) and bool(holds(float(value))),
        field,
        value,
        allowed,
    )


def is_whole(value: object, least: int = 0, most: int = LARGEST) -> bool:
    """Return whether the value is a whole number from `least` to `most`.

    Integers of numpy count, since they come out of arrays of settings. True, False, 3.0 and "3" do
    not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    return least <= int(value) <= most


def require_whole(value: object, field: str, least: int = 0, most: int = LARGEST) -> None:
    """Raise `InvalidInput` unless `is_whole` is true of the value."""
    allowed = f"a whole number from {least} to {most}"
    if most == LARGEST and not (isinstance(value, Integral) and int(value) > most):
        allowed = f"a whole number of at least {least}"
    require(is_whole(value, least, most), field, value, allowed)


def require_epochs(epochs: Iterable[object], field: str, last: int) -> None:
    """Raise `InvalidInput` unless all epochs are whole numbers from 0 to the last one of a run."""
    known = all(is_whole(epoch, 0, last) for epoch in epochs)
    require(known, field, epochs, f"epochs from 0 to {last}")


def require_all_whole(settings: object, **bounds: int | tuple[int, int]) -> None:
    """Apply `require_whole` to fields of a frozen dataclass and make them Python's own integers.

    The bounds of a field are the least number, or the least and the greatest. A numpy integer among
    the settings then names the same file as the integer that it equals.
    """
    for field, bound in bounds.items():
        value = getattr(settings, field)
        require_whole(value, field, *(bound if isinstance(bound, tuple) else (bound,)))
        object.__setattr__(settings, field, int(value))


def require_jobs(jobs: object) -> None:
    """Raise `InvalidInput` unless `jobs` is a number of processes, or -1 for one per core.

    A few for each core still do something while others wait; more of them only take memory.
    """
    most = max(64, 4 * (os.cpu_count() or 1))
    allowed = f"-1 or a whole number from 1 to {most}"
    require(is_whole(jobs, -1, most) and jobs != 0, "jobs", jobs, allowed)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory was not enough, of a processor or of a GPU."""
    # By its name, because torch need not be imported to know it.
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in NO_MEMORY)
