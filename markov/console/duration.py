"""How long work takes at least on this machine, and how long any may take.

The work of a training is known before it is begun: its multiplications. Divided by how many of
them this machine makes a second, in a product of matrices that does nothing else, they give a time
that no training can beat. What would take more than a month even so is refused, with the number
that would fit: nobody waits for it, and the machine would be busy all the while.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from markov.errors import InvalidInput

DAY = 86400.0  # seconds
LONGEST = 30 * DAY
REPEATS = 3
WIDTHS = {"cpu": 512, "cuda": 4096}  # of the matrices whose product is timed
# Multiplications that never take long enough to look how fast this machine is: seconds of one core.
LITTLE = 1e12


class Part(NamedTuple):
    """A part of some work: multiplications or seconds, in proportion to the number of a setting."""

    number: int
    work: float


def check_ends(parts: Mapping[str, Part], *, device: str = "cpu", cores: int | None = None) -> None:
    """Raise `InvalidInput` for work that takes more than `LONGEST`, however well it is done.

    `parts` has each part by the setting that it is in proportion to; the message names the one of
    the largest part, and the largest number of it that would fit. `cores` share the work, all of
    this machine if it is None.
    """
    if sum(part.work for part in parts.values()) <= LITTLE:
        return
    many = (cores or os.cpu_count() or 1) if device == "cpu" else 1
    rate = many * products_a_second(device)
    seconds = {name: part._replace(work=part.work / rate) for name, part in parts.items()}
    check_seconds(seconds, "at least")


def check_seconds(parts: Mapping[str, Part], surely: str = "about") -> None:
    """Raise `InvalidInput` for parts that take more seconds than `LONGEST` together.

    The message is as that of `check_ends`; `surely` says how sure the seconds are.
    """
    needed = sum(part.work for part in parts.values())
    if needed <= LONGEST:
        return
    name, largest = max(parts.items(), key=lambda one: one[1].work)
    most = int(largest.number * (LONGEST - needed + largest.work) / largest.work)
    fits = f"at most {most}" if most > 0 else "1, and less of other settings too"
    told = f"{surely} {needed / DAY:.0f} days are needed on this machine"
    allowed = f"{fits}, since {told}, and {LONGEST / DAY:.0f} are allowed"
    raise InvalidInput(name, largest.number, allowed)


@cache
def products_a_second(device: str = "cpu") -> float:
    """Return how many multiplications a core, or a GPU, makes in a second at best, measured now.

    Each goes with an addition, in a product of two square matrices: of float32 numbers on a core,
    of bfloat16 ones on a GPU.
    """
    import torch

    kind = torch.device(device).type
    width = WIDTHS.get(kind, WIDTHS["cpu"])
    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    threads, one = torch.get_num_threads(), torch.ones(width, width, dtype=dtype, device=device)
    best = float("inf")
    torch.set_num_threads(1)
    try:
        for _ in range(1 + REPEATS):  # the first of them starts what later ones find
            begun = time.perf_counter()
            (one @ one)[0, 0].item()
            best = min(best, time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return width**3 / best
