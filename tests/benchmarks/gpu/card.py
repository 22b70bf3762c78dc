"""What a card can do: its matrix products, its clock, and the most memory that work took on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from llm.training.rehearsal import Live

LEAST = 0.3  # seconds that products are timed for
TRAINED = 3  # passes forward that a pass forward and back counts as


def about(device: torch.device) -> dict[str, str]:
    """Return the names of a card and of what drives it."""
    card, size = "the processor", ""
    if device.type == "cuda":
        known = torch.cuda.get_device_properties(device)
        card, size = known.name, f", {known.total_memory / 1e9:.1f} GB"
    return {
        "card": card + size,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "CUDA": str(torch.version.cuda),
        "work": (
            f"2 x parameters x tokens for a pass, {TRAINED} times that with the way back; those of "
            "the head for scored tokens alone, none for products of queries and keys"
        ),
        "float32 products": f"torch's default, {torch.get_float32_matmul_precision()}",
    }


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes until the device has done all of it."""
    finish(device)
    began = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - began


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the operations per second of products of two square matrices of `size` rows.

    The numbers in them are random: on zeros cards are faster.
    """
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def several(count: int) -> float:
        return seconds(lambda: [one @ other for _ in range(count)], device)

    several(3)
    count, taken = 4, several(4)
    while taken < LEAST:
        count = int(count * min(16, 1 + LEAST / max(taken, 1e-6)))
        taken = several(count)
    return 2 * size**3 * count / taken


@dataclass(frozen=True)
class Sizes:
    """The parameters that products are made of: those of the layers, and those of the head.

    A tied head counts as a head. The table of embeddings is looked up and makes no product.
    """

    layers: int
    head: int


def sizes(model: Any) -> Sizes:
    """Return the sizes of a model."""
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    outside = {id(head): head.numel(), id(embeddings): embeddings.numel()}
    every = sum(one.numel() for one in model.parameters())
    return Sizes(every - sum(outside.values()), head.numel())


def operations(size: Sizes, tokens: int, scored: int, *, trained: bool = False) -> float:
    """Return the operations of a pass over `tokens`, of which the head sees those that are scored.

        2 * parameters of the layers * tokens  +  2 * parameters of the head * scored

    A pass forward and back counts three times that. Products of queries and keys are left out, and
    so is all that is computed twice to save memory.
    """
    forward = 2.0 * size.layers * tokens + 2.0 * size.head * scored
    return forward * (TRAINED if trained else 1)


def head_share(size: Sizes, tokens: int, scored: int) -> float:
    """Return the share of the head in the operations of a pass."""
    return 2.0 * size.head * scored / operations(size, tokens, scored)


@dataclass
class Peak:
    """The most bytes that were held inside a block, beyond those at its beginning."""

    bytes: int = 0


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Count the most bytes that tensors hold inside the block.

    On a GPU the allocator counts. On a processor every tensor is counted while it lives, which
    makes small models slow and would make large ones slower.
    """
    found = Peak()
    if device.type == "cuda":
        finish(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        finish(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with Live() as live:
        yield found
    found.bytes = live.peak
