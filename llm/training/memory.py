"""How much memory a device has for what is yet to come, and how sizes are written."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from markov.console.memory import free_beside as free_beside
from markov.console.memory import gigabytes as gigabytes
from markov.errors import InvalidInput

if TYPE_CHECKING:
    import torch

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {f"{unit}I": 2 ** (10 * place) for place, unit in enumerate("KMGT", start=1)}
# Parameters of glibc's `mallopt`, from which size pieces are apart where they are given back, and
# up to which size they are kept: glibc allows no more than 32 MiB for pieces.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, PIECE = -1, -3, 10**6
KEPT_PIECE, KEPT = 2**25, 2**30


def size_of(text: str, field: str = "memory") -> int:
    """Return the bytes that a text such as 24GB, 500 MB or 16GiB says.

    GB is 10^9 bytes and GiB 2^30; a number alone is in bytes. Raises `InvalidInput` for another
    text.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found[2] not in UNITS or not float(found[1]) > 0:
        raise InvalidInput(field, text, "a size above 0, such as 24GB or 16GiB")
    return round(float(found[1]) * UNITS[found[2]])


def free_memory(device: torch.device, processes: int = 1) -> int | None:
    """Return the bytes that this process may still take on a device, or None where nobody knows.

    On a CPU it is what the machine has left, or what the limits of the control groups leave, if
    that is less. It is shared by `processes` on this machine, but each of them has a GPU of its
    own.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return free_beside(processes) if device.type == "cpu" else None


def give_back_at_once() -> None:
    """Let the C library give pieces of a megabyte or more back to the system when they are freed.

    Otherwise it keeps them for itself, with small pieces in between, so that a process can take
    much more than it holds. It costs some time. Processes that are started from here do the same.
    Nothing is done where there is no such setting.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(PIECE))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, PIECE)


def keep_what_is_freed() -> None:
    """Let the C library keep up to a gigabyte of freed memory, for the next arrays to lie in.

    It is meant for small models: their arrays of a megabyte come and go thousands of times a
    second, and what is given back to the system comes again in pages that have to be emptied first.
    No number changes. Processes that are started from here do the same. Nothing is done where there
    is no such setting.
    """
    wanted = {
        "MALLOC_MMAP_THRESHOLD_": (M_MMAP_THRESHOLD, KEPT_PIECE),
        "MALLOC_TRIM_THRESHOLD_": (M_TRIM_THRESHOLD, KEPT),
    }
    if wanted.keys() & os.environ.keys():  # somebody, or `give_back_at_once`, knows better
        return
    for variable, (parameter, value) in wanted.items():
        os.environ[variable] = str(value)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(parameter, value)
