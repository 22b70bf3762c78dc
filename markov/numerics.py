"""Rounding must decide nothing: comparisons by a margin, and sums that are the same in any company.

Two processors, or two libraries, add the same numbers in another order: the last digits differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Values = TypeVar("Values", float, np.ndarray, Tensor)

# Relative: sums of thousands of float64 numbers are off by some 1e-13 of the largest of them, of
# float32 numbers by some 1e-6. A difference that says something is far larger than either margin.
MARGIN = 1e-9
SINGLE_MARGIN = 1e-5
# Elements: the widest vector that torch computes with at a time holds 32. What is left of an array
# behind its last whole vector is computed one by one, by code that may round otherwise. So a
# number's last digit would depend on how many runs lie beside its own. Where every run fills whole
# vectors nothing is left.
VECTOR = 64
# Elements: as many float32 numbers as fill 64 bytes. Matrices that begin at multiples of that are
# multiplied in one and the same way.
ALIGNED = 16


def exceeds(value: Values, other: Values, margin: float = MARGIN) -> Any:
    """Return whether value - other > margin |other|: larger by more than rounding."""
    return value - other > margin * abs(other)


def reaches(value: Values, goal: float, margin: float = MARGIN) -> Any:
    """Return whether value >= goal - margin |goal|: at the goal or above it, but for rounding."""
    return value >= goal - margin * abs(goal)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, because several divide a long sum.

    Each number of threads divides it elsewhere. Small matrices lose time on several threads, too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
