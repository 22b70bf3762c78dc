"""Independent streams of random numbers: each follows from a seed and from what it is used for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, *labels: object) -> int:
    """Return the seed of one purpose, which the labels name.

    `markov.batching.derived_seed` gives other numbers, for a purpose in one word. Neither follows
    the other, because every trained model and every run follows from the numbers of its own.
    """
    return int.from_bytes(hashlib.sha256(repr((seed, *labels)).encode()).digest()[:7], "big")


@contextmanager
def own_randomness(
    seed: int, *labels: object, device: torch.device | None = None
) -> Iterator[None]:
    """Make randomness inside the block follow from the seed and the labels of its purpose.

    The caller's generators are afterwards as they were before.
    """
    own, on_cuda = derived_seed(seed, *labels), device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else [], device_type="cuda"):
        torch.default_generator.manual_seed(own)
        if on_cuda:
            torch.cuda.manual_seed(own)
        yield


def shuffled(
    count: int,
    batch: int,
    seed: int,
    epoch: int,
    *,
    label: str = "examples",
    total: int | None = None,
) -> list[list[int]]:
    """Return the rows of each update of an epoch, `batch` of them (the last may have fewer).

    They follow from (seed, epoch, label). Without `total` each of 0 to count-1 comes once; with it,
    that many rows are taken from one shuffled order after another.
    """
    total = count if total is None else total
    own = torch.Generator().manual_seed(derived_seed(seed, label, epoch))
    order = torch.cat(
        [torch.randperm(count, generator=own) for _ in range(math.ceil(total / count))]
    )
    return [rows.tolist() for rows in order[:total].split(batch)]
