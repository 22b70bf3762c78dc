"""Sequences, and the batches that the runs of an ensemble draw, each from its own sequences.

Each run draws its batches in an order of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional

from markov.errors import require
from markov.models import Model

# Where rows that are sorted by length are cut: the first row and the length of each piece.
Cuts = tuple[tuple[int, int], ...]
Runs = slice | list[int]  # all runs of an ensemble, or some
ALL = slice(None)


class Cutting(NamedTuple):
    """How the runs of an ensemble and their batches are cut up on a device.

    `members` is the number of runs of an ensemble at most, `rows` that of a run's sequences per
    pass of pretraining. In unlearning a batch of unequal lengths is cut where that saves more than
    `overhead` tokens of padding, which is what a further pass costs. `alike` says that only runs
    that are cut alike are computed side by side: then a run's numbers are to the last bit those
    that it has alone.
    """

    members: int
    rows: int
    overhead: int
    alike: bool


# By the type of a device. A processor's cache holds the activations of few sequences; on a GPU a
# call costs as much as thousands of tokens.
PROCESSOR = Cutting(members=8, rows=32, overhead=64, alike=True)
CUTTINGS = {"cpu": PROCESSOR, "cuda": Cutting(1000, 1024, 10**9, alike=False)}


def cutting_of(device: str) -> Cutting:
    """Return how ensembles and batches are cut up on a device."""
    return CUTTINGS.get(torch.device(device).type, PROCESSOR)


class Corpus(NamedTuple):
    """Sequences padded with 0 to one length, with a mask of scored tokens and a label for each.

    The first token of a sequence is never scored.
    """

    tokens: Int64[Tensor, "count time"]
    mask: Bool[Tensor, "count time-1"]
    component: Int64[Tensor, " count"]

    def to(self, device: str) -> Corpus:
        """Return the corpus on a device."""
        return Corpus(*(field.to(device) for field in self))

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

    def of(self, runs: Runs, rows: slice = ALL) -> Batches:
        """Return the chosen rows of the chosen runs."""
        return Batches(*(field[:, rows][runs] for field in self))

    def to(self, device: str) -> Batches:
        """Return the batches on a device."""
        return Batches(*(field.to(device) for field in self))


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


def lengths_of(corpora: Sequence[Corpus]) -> Int64[Tensor, "runs count"]:
    """Return the number of scored tokens of every sequence."""
    return torch.stack([corpus.mask.sum(-1) for corpus in corpora])


def take(corpora: Sequence[Corpus], rows: Int64[Tensor, "runs rows"]) -> Batches:
    """Return the sequences at `rows` of each run's own corpus."""
    taken = [
        [field[own.to(field.device)] for field in corpus]
        for corpus, own in zip(corpora, rows, strict=True)
    ]
    return Batches(*(torch.stack(fields) for fields in zip(*taken, strict=True)))


def draw(
    count: int, generators: Sequence[torch.Generator], rows: int
) -> Int64[Tensor, "runs rows"]:
    """Draw `rows` of `count` rows for each run, epoch after epoch, each epoch in a new order."""
    epochs = max(1, -(-rows // count))
    orders = [
        torch.cat([torch.randperm(count, generator=own) for _ in range(epochs)])
        for own in generators
    ]
    return torch.stack(orders)[:, :rows]


def longest_first(
    rows: Int64[Tensor, "runs rows"], lengths: Int64[Tensor, "runs count"], size: int
) -> Int64[Tensor, "runs rows"]:
    """Return the same batches of `size` rows, each sorted by length with the longest first.

    `lengths` are those of all sequences of a run. Rows of equal length keep their order.
    """
    batches = rows.view(len(rows), -1, size)
    order = lengths.gather(1, rows).view_as(batches).argsort(dim=2, descending=True, stable=True)
    return batches.gather(2, order).view_as(rows)


@lru_cache(maxsize=4096)
def cuts(lengths: tuple[int, ...], longest: int, overhead: int) -> Cuts:
    """Return where rows of descending length are cut, so that as little as possible is computed.

    A piece costs its rows times its length, padding included, and `overhead` tokens more. The first
    one is as long as the `longest` sequence that there is, so that more batches are cut alike.
    """
    # Only where the length falls is there anything to gain.
    firsts = [row for row in range(len(lengths)) if row == 0 or lengths[row] != lengths[row - 1]]
    ends = [*firsts[1:], len(lengths)]
    times = [longest, *(lengths[row] for row in firsts[1:])]
    # least[at]: what the rows from firsts[at] on cost at least, and the next place that is cut.
    least = [(0, 0)] * (len(firsts) + 1)
    for at in reversed(range(len(firsts))):
        least[at] = min(
            (least[to + 1][0] + times[at] * (ends[to] - firsts[at]) + overhead, to + 1)
            for to in range(at, len(firsts))
        )
    found, at = [], 0
    while at < len(firsts):
        found.append((firsts[at], times[at]))
        at = least[at][1]
    return tuple(found)


def even_cuts(lengths: tuple[int, ...], rows: int) -> Cuts:
    """Return the cuts into pieces of `rows` rows, each as long as its longest sequence."""
    return tuple((row, lengths[row]) for row in range(0, len(lengths), rows))


def grouped(
    lengths: Int64[Tensor, "runs rows"], cut: Callable[[tuple[int, ...]], Cuts], alike: bool
) -> list[tuple[Runs, Cuts]]:
    """Group the runs of an ensemble by where each cuts its own rows; `cut` says where that is.

    Only runs that are cut alike can be computed side by side with each padded as it would be alone.
    Unless they must be `alike`, all runs are cut as the longest rows among them ask for.
    """
    if not alike:
        return [(ALL, cut(tuple(lengths.amax(0).tolist())))]
    groups: dict[Cuts, list[int]] = {}
    for run, own in enumerate(lengths.tolist()):
        groups.setdefault(cut(tuple(own)), []).append(run)
    if len(groups) == 1:
        return [(ALL, next(iter(groups)))]
    return [(runs, found) for found, runs in groups.items()]


def pieces(batches: Batches, found: Cuts) -> Iterator[Batches]:
    """Yield rows sorted by length in pieces, which need less padding than the whole."""
    last = batches.mask.shape[1]
    for (first, time), (end, _) in itertools.pairwise([*found, (last, 0)]):
        rows = slice(first, end)
        yield Batches(
            batches.tokens[:, rows, : time + 1],
            batches.mask[:, rows, :time],
            batches.component[:, rows],
        )


def drawn(
    corpora: Sequence[Corpus], seeds: Sequence[int], purpose: str, steps: int, batch: int
) -> tuple[Batches, Int64[Tensor, "runs rows"], Int64[Tensor, "runs rows"]]:
    """Draw the batches of all steps; return them, their rows in the corpora, and their lengths.

    They lie on the processor, where they are the same for every device. Each batch is sorted by
    length, with the longest first.
    """
    lengths = lengths_of(corpora)
    generators = [generator(seed, purpose) for seed in seeds]
    order = draw(lengths.shape[1], generators, steps * batch)
    order = longest_first(order, lengths, batch)
    return take(corpora, order), order, lengths.gather(1, order)
