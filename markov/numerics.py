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

from markov.errors import InvalidInput, require

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


def require_all(holds: Tensor, field: str, values: Tensor, allowed: str) -> None:
    """Raise `InvalidInput` with the first value of which `holds` is false, and its index."""
    if places := (~holds).nonzero().tolist():
        where = f"{len(places)} of {values.numel()} are not, the first at index {tuple(places[0])}"
        raise InvalidInput(field, float(values[tuple(places[0])]), f"{allowed} ({where})")


def tensor_of(field: str, value: object, like: Tensor | None) -> Tensor:
    """Return numbers as a tensor of the dtype and device of another one, if one is given.

    Raises `InvalidInput` for a value that is not made of numbers.
    """
    try:
        numbers = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInput(field, value, "numbers") from error
    real = numbers.dtype != torch.bool and not numbers.is_complex()
    require(real, field, numbers.dtype, "numbers")
    if like is not None:
        return numbers.to(like)
    return (
        numbers if isinstance(value, Tensor) and numbers.is_floating_point() else numbers.double()
    )


def as_like(value: float | Tensor, like: Tensor) -> Tensor:
    """Return the value as a tensor of the dtype and device of another."""
    return value.to(like) if isinstance(value, Tensor) else like.new_tensor(value)


def away_from_zero(beta: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return beta with 1 wherever it counts as 0, and a mask of where that is.

    So not even an unused branch divides by 0.
    """
    beta = as_like(beta, like)
    zero = beta < torch.finfo(beta.dtype).tiny
    return beta.masked_fill(zero, 1.0), zero


def is_plain(value: object) -> bool:
    """Return whether the value is a number of Python or numpy, or a symbol of sympy."""
    return isinstance(value, float | int | np.number) or hasattr(value, "free_symbols")
