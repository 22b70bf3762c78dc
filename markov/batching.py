"""Sequences, and the batches that the runs of an ensemble draw, each from its own sequences.

Each run draws its batches in an order of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from markov.errors import require
from markov.models import Model

PART = 32  # sequences per forward and backward pass in pretraining


class Corpus(NamedTuple):
    """Sequences padded with 0 to one length, with a mask of scored tokens and a label for each.

    The first token of a sequence is never scored.
    """

    tokens: Int64[Tensor, "count time"]
    mask: Bool[Tensor, "count time-1"]
    component: Int64[Tensor, " count"]

    @classmethod
    def join(cls, parts: Sequence[Int64[Tensor, "count length"]]) -> Corpus:
        """Return one corpus of all components, whose lengths may differ.

        `component` is the position in `parts`.
        """
        time = max(part.shape[-1] for part in parts)
        tokens = torch.cat([functional.pad(part, (0, time - part.shape[-1])) for part in parts])
        length = torch.cat([torch.full((len(part),), part.shape[-1]) for part in parts])
        component = torch.cat([torch.full((len(part),), index) for index, part in enumerate(parts)])
        return cls(tokens, torch.arange(1, time) < length[:, None], component)


class Batches(NamedTuple):
    """All the batches of an ensemble, one behind the other along the second axis."""

    tokens: Int64[Tensor, "runs rows time"]
    mask: Bool[Tensor, "runs rows time-1"]
    component: Int64[Tensor, "runs rows"]

    def of(self, runs: slice | list[int], rows: slice) -> Batches:
        """Return the chosen rows of the chosen runs."""
        return Batches(*(field[:, rows][runs] for field in self))


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for each purpose, so that random streams never overlap.

    A purpose is, for example, the start of a model or the order of its batches. Language models
    have another function of this name, with other numbers: every trained model and every run
    follows from the numbers of its own, so that neither can take the other's.
    """
    return int(
        np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0] >> 1
    )


def common_count(model: Model, corpora: Sequence[Corpus], field: str) -> int:
    """Return the number of sequences, which is the same in every corpus of an ensemble.

    Raises `InvalidInput` for corpora of different shapes and for tokens that are no states of the
    model.
    """
    shapes = sorted({tuple(corpus.tokens.shape) for corpus in corpora})
    require(len(shapes) == 1, field, shapes, "one common shape")
    # The tables of an ensemble lie one behind the other: a token out of range would read a row of
    # another run.
    lowest, highest = (
        min(int(c.tokens.min()) for c in corpora),
        max(int(c.tokens.max()) for c in corpora),
    )
    require(
        lowest >= 0 and highest < model.states,
        field,
        (lowest, highest),
        f"tokens from 0 to {model.states - 1}",
    )
    return shapes[0][0]


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a generator of its own for each seed and purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def take(corpora: Sequence[Corpus], rows: Int64[Tensor, "runs rows"]) -> Batches:
    """Return the sequences at `rows` of each run's own corpus."""
    taken = [
        [field[own.to(field.device)] for field in corpus]
        for corpus, own in zip(corpora, rows, strict=True)
    ]
    return Batches(*(torch.stack(fields) for fields in zip(*taken, strict=True)))


def draw(corpora: Sequence[Corpus], generators: Sequence[torch.Generator], rows: int) -> Batches:
    """Draw `rows` rows for each run, epoch after epoch, each epoch in a new order."""
    count = len(corpora[0].tokens)
    epochs = max(1, -(-rows // count))
    orders = [
        torch.cat([torch.randperm(count, generator=own) for _ in range(epochs)])
        for own in generators
    ]
    return take(corpora, torch.stack(orders)[:, :rows])


def longest_first(batches: Batches, size: int) -> Batches:
    """Return the same batches of `size` rows, each sorted by length with the longest first.

    Rows of equal length keep their order.
    """
    length = batches.mask.sum(-1)
    runs, rows = length.shape
    order = length.view(runs, rows // size, size).argsort(dim=2, descending=True, stable=True)
    order = (order + size * torch.arange(rows // size, device=order.device)[:, None]).view(
        runs, rows
    )
    tokens, mask = (field.take_along_dim(order[..., None], dim=1) for field in batches[:2])
    return Batches(tokens, mask, batches.component.take_along_dim(order, dim=1))


def cuts(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return where rows of descending length are cut: wherever they have become half as long.

    Each cut is (first row of the piece, length of that row).
    """
    found: list[tuple[int, int]] = []
    for row, length in enumerate(lengths):
        if not found or 2 * length <= found[-1][1]:
            found.append((row, length))
    return tuple(found)


def alike(patterns: Iterable[Hashable]) -> list[list[int]]:
    """Group the runs of an ensemble by the pattern in which each cuts its own rows.

    Only runs of one pattern can be computed side by side, each padded as it would be alone.
    """
    groups: dict[Hashable, list[int]] = {}
    for run, pattern in enumerate(patterns):
        groups.setdefault(pattern, []).append(run)
    return list(groups.values())


def pieces(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield tokens and masks of rows sorted by length, in the pieces that `cuts` gives.

    They need less padding than the whole.
    """
    tokens, mask = batches.tokens, batches.mask
    found = cuts(mask.sum(-1).amax(0).tolist())
    for (first, time), (last, _) in itertools.pairwise([*found, (mask.shape[1], 0)]):
        yield tokens[:, first:last, : time + 1], mask[:, first:last, :time]


def parts(batches: Batches) -> Iterator[Batches]:
    """Yield a batch in parts that fit the processor's cache.

    The rows are sorted by length, and each part is as long as its longest sequence: less padding.
    """
    tokens, mask, component = longest_first(batches, batches.mask.shape[1])
    for rows in torch.arange(mask.shape[1]).split(PART):
        time = int(mask[:, rows].sum(-1).max())
        yield Batches(tokens[:, rows, : time + 1], mask[:, rows, :time], component[:, rows])


def part_lengths(batches: Batches) -> list[tuple[int, ...]]:
    """Return the lengths of the `parts` of each run's own rows."""
    lengths = batches.mask.sum(-1).sort(dim=1, descending=True)[0]
    return [tuple(own) for own in lengths[:, ::PART].tolist()]
