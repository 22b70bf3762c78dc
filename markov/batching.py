"""Sequences and the batches that an ensemble draws from them: each run its own, in an order of
its own.
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
    """Sequences padded with 0 to one length, the tokens to score (never the first), and a label
    per sequence.
    """

    tokens: Int64[Tensor, "count time"]
    mask: Bool[Tensor, "count time-1"]
    component: Int64[Tensor, " count"]

    @classmethod
    def join(cls, parts: Sequence[Int64[Tensor, "count length"]]) -> Corpus:
        """One corpus out of components of possibly different lengths; `component` is the
        position in `parts`.
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
        """Some rows of some runs."""
        return Batches(*(field[:, rows][runs] for field in self))


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose (start, order of batches, ...), so that streams never
    overlap.
    """
    return int(
        np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0] >> 1
    )


def common_count(model: Model, corpora: Sequence[Corpus], field: str) -> int:
    """Number of sequences, the same in every corpus of an ensemble; all tokens are states of the
    model.
    """
    shapes = sorted({tuple(corpus.tokens.shape) for corpus in corpora})
    require(len(shapes) == 1, field, shapes, "one common shape")
    # The tables of an ensemble lie behind one another: a token out of range would read another
    # run's.
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
    """A generator of its own for each seed and purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose))


def take(corpora: Sequence[Corpus], rows: Int64[Tensor, "runs rows"]) -> Batches:
    """The sequences at `rows` of each run's own corpus."""
    taken = [
        [field[own.to(field.device)] for field in corpus]
        for corpus, own in zip(corpora, rows, strict=True)
    ]
    return Batches(*(torch.stack(fields) for fields in zip(*taken, strict=True)))


def draw(corpora: Sequence[Corpus], generators: Sequence[torch.Generator], rows: int) -> Batches:
    """As many rows as asked for, epoch after epoch, each epoch in a new order."""
    count = len(corpora[0].tokens)
    epochs = max(1, -(-rows // count))
    orders = [
        torch.cat([torch.randperm(count, generator=own) for _ in range(epochs)])
        for own in generators
    ]
    return take(corpora, torch.stack(orders)[:, :rows])


def longest_first(batches: Batches, size: int) -> Batches:
    """The same batches of `size` rows, each in order of length; equal lengths keep their order."""
    length = batches.mask.sum(-1)
    runs, rows = length.shape
    order = length.view(runs, rows // size, size).argsort(dim=2, descending=True, stable=True)
    order = (order + size * torch.arange(rows // size, device=order.device)[:, None]).view(
        runs, rows
    )
    tokens, mask = (field.take_along_dim(order[..., None], dim=1) for field in batches[:2])
    return Batches(tokens, mask, batches.component.take_along_dim(order, dim=1))


def cuts(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where rows of descending length are cut, as (first row, its length): where they have
    become half as long.
    """
    found: list[tuple[int, int]] = []
    for row, length in enumerate(lengths):
        if not found or 2 * length <= found[-1][1]:
            found.append((row, length))
    return tuple(found)


def alike(patterns: Iterable[Hashable]) -> list[list[int]]:
    """The runs of an ensemble grouped by the pattern in which each cuts its own rows.

    Only runs of one pattern can be computed side by side, each padded as it is alone.
    """
    groups: dict[Hashable, list[int]] = {}
    for run, pattern in enumerate(patterns):
        groups.setdefault(pattern, []).append(run)
    return list(groups.values())


def pieces(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and masks of rows sorted by length, in pieces as `cuts` has it: less padding."""
    tokens, mask = batches.tokens, batches.mask
    found = cuts(mask.sum(-1).amax(0).tolist())
    for (first, time), (last, _) in itertools.pairwise([*found, (mask.shape[1], 0)]):
        yield tokens[:, first:last, : time + 1], mask[:, first:last, :time]


def parts(batches: Batches) -> Iterator[Batches]:
    """A batch in parts that fit the cache, sorted by length, each as long as its longest
    sequence: less padding.
    """
    tokens, mask, component = longest_first(batches, batches.mask.shape[1])
    for rows in torch.arange(mask.shape[1]).split(PART):
        time = int(mask[:, rows].sum(-1).max())
        yield Batches(tokens[:, rows, : time + 1], mask[:, rows, :time], component[:, rows])


def part_lengths(batches: Batches) -> list[tuple[int, ...]]:
    """How long the `parts` of each run's own rows are."""
    lengths = batches.mask.sum(-1).sort(dim=1, descending=True)[0]
    return [tuple(own) for own in lengths[:, ::PART].tolist()]
