"""Banks of sequences, for models that are transition tables and see only a sequence's counts.

A table gives log pi(y | x) = sum_ij N_ij log p_ij, where N_ij is the number of scored transitions i
-> j. Sequences of equal counts are therefore one row of a bank, which holds the sum of their
probabilities. A bank lists every sequence where that is possible (`enumerated`), draws some of them
(`sampled`), or holds a given forget set (`from_sequences`).

A sampled bank is a forget set of its own: it stands for the chains with an error that falls as one
over the root of its size. `centered` removes the part of that error that lies in the mean counts;
what is left of it is proportional to beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from scipy.special import log_softmax, softmax
from torch import Tensor

from markov.batching import generator
from markov.chains import MarkovChain, Mixture
from markov.errors import require, require_number, require_whole
from markov.objectives import Objective, SequenceLogProbs, validate

Table = Float[np.ndarray, "states states"]
Tables = Float[np.ndarray, "times states states"]


class Bank(NamedTuple):
    """Patterns of transitions, each with the probability that unlearning draws it (sum 1).

    `counts[s, i, j]` is the number of scored transitions i -> j in pattern s. `length` is the sum
    |y| of these counts, the same for all patterns of a component. `component` is the position in
    the mixture.
    """

    counts: Float[np.ndarray, "rows states states"]
    share: Float[np.ndarray, " rows"]
    component: Int[np.ndarray, " rows"]
    length: Float[np.ndarray, " rows"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpectedLoss:
    """The expected unlearning loss of a mixture, as functions of a transition table.

    The loss is E[loss of a forget sequence] + retain_weight x mean cross-entropy of a retain token.
    `reference` holds the logits of the reference model; `retain` is the law of a retain transition
    (`transition_law`). Raises `InvalidInput` for an objective that is not four numbers, and for
    shapes or values that do not fit.
    """

    objective: Objective
    bank: Bank
    reference: Table
    retain: Table | None = None
    retain_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, number in validate(self.objective)._asdict().items():
            require(np.ndim(number) == 0, name, number, "one number, not a stack")
        _require_law("bank", self.bank.share, self.bank.length.shape)
        shape, finite = self.bank.counts.shape[1:], bool(np.isfinite(self.reference).all())
        require(
            finite and self.reference.shape == shape,
            "reference",
            self.reference,
            f"finite logits, {shape}",
        )
        if self.retain is not None:
            _require_law("retain", self.retain, shape)
        allowed = "a finite number >= 0, and 0 without retain data"
        require_number(self.retain_weight, "retain_weight", lambda number: number >= 0, allowed)
        proper = self.retain is not None or self.retain_weight == 0
        require(proper, "retain_weight", self.retain_weight, allowed)

    def logp(self, tables: Tables) -> Float[np.ndarray, "*times rows"]:
        """Return log pi of every pattern of the bank under each table (nats)."""
        logs = log_softmax(tables, axis=-1)
        return logs.reshape(*logs.shape[:-2], -1) @ self._flat.T

    def sequences(self, tables: Tables) -> SequenceLogProbs:
        """Return what the law needs to know of every pattern under each table.

        The fields are float64 tensors of shape (*times, rows).
        """
        logp = torch.from_numpy(self.logp(tables))
        return SequenceLogProbs(
            logp, *(torch.from_numpy(x).expand_as(logp) for x in (self.bank.length, self._ref))
        )

    def weight(self, tables: Tables) -> Float[np.ndarray, "*times rows"]:
        """Return d loss / d logp of every pattern, computed by the shipped law."""
        return self.objective.weight(self.sequences(tables)).numpy()

    def value(self, tables: Tables) -> Float[np.ndarray, "*times"]:
        """Return the loss under each table (nats)."""
        forget = self.objective.loss(self.sequences(tables)).numpy() @ self.bank.share
        return forget - (self._kept * log_softmax(tables, axis=-1)).sum((-1, -2))

    def gradient(self, table: Table) -> Table:
        """Return d loss / d table = sum_s share_s w_s (N_s - R_s p) - retain_weight (C - c p).

        The symbols are those of `markov.flow`.
        """
        push = ((self.bank.share * self.weight(table)) @ self._flat).reshape(
            table.shape
        ) - self._kept
        return push - push.sum(1, keepdims=True) * softmax(table, axis=-1)

    @cached_property
    def _flat(self) -> Float[np.ndarray, "rows transitions"]:
        return self.bank.counts.reshape(len(self.bank.counts), -1)

    @cached_property
    def _ref(self) -> Float[np.ndarray, " rows"]:
        return self.logp(self.reference)

    @cached_property
    def _kept(self) -> Table:
        return (
            np.zeros_like(self.reference)
            if self.retain is None
            else self.retain_weight * self.retain
        )


def enumerated(mixture: Mixture, *, limit: int = 100_000) -> Bank:
    """Return the bank of every pattern of every component with its exact probability.

    The first state is drawn too. Patterns are grown token by token, and those with equal counts
    that end in one state are merged on the way. Raises `InvalidInput` where a component has more
    than `limit` such patterns.
    """
    parts = [_patterns(*each, limit) for each in zip(mixture.chains, mixture.lengths, strict=True)]
    return _join(parts, mixture.weights)


def sampled(mixture: Mixture, count: int, seed: int) -> Bank:
    """Return the bank of `count` sequences of each component, drawn from a seed.

    What is drawn of a component depends on the seed, its position, its chain and its length only.
    Raises `InvalidInput` for a count below 1 and for a seed that is not a whole number of at least
    0.
    """
    require_whole(seed, "seed")
    generators = (generator(seed, f"bank {index}") for index in range(len(mixture.chains)))
    components = zip(mixture.chains, mixture.lengths, generators, strict=True)
    drawn = [chain.sample(count, length, own) for chain, length, own in components]
    return from_sequences(drawn, mixture.weights, mixture.chains[0].states)


def from_sequences(
    sequences: Sequence[Int64[Tensor, "count time"]], weights: Sequence[float], states: int
) -> Bank:
    """Return the bank of a given forget set, in which component c has the share `weights[c]`.

    Within a component every sequence of `sequences[c]` is drawn equally often. Raises
    `InvalidInput` for a component without sequences or without scored tokens, and for tokens that
    are no states.
    """
    parts = []
    for tokens in sequences:
        proper = tokens.ndim == 2 and tokens.shape[0] >= 1 and tokens.shape[1] >= 2
        require(
            proper, "sequences", tuple(tokens.shape), "at least one sequence of at least two tokens"
        )
        inside = bool(((tokens >= 0) & (tokens < states)).all())
        require(
            inside,
            "sequences",
            (int(tokens.min()), int(tokens.max())),
            f"states from 0 to {states - 1}",
        )
        counts = np.zeros((len(tokens), states**2), dtype=np.int32)
        np.add.at(
            counts,
            (np.arange(len(tokens))[:, None], (tokens[:, :-1] * states + tokens[:, 1:]).numpy()),
            1,
        )
        parts.append(_merge(counts, np.full(len(tokens), 1 / len(tokens))))
    return _join(parts, weights)


def centered(bank: Bank, mixture: Mixture) -> Bank:
    """Return the bank with each component's mean counts shifted to their exact expectation.

    The expectation is that under the mixture. log pi is linear in the counts, so a shifted bank is
    a loss of the same form, and its gradient is exact but for the covariance of weights and counts.
    A pattern is then no longer a sequence: its counts need be neither whole nor positive.
    """
    check_mixture(bank, mixture, "mixture")
    return bank._replace(
        counts=bank.counts + (expected_counts(mixture) - mean_counts(bank))[bank.component]
    )


def check_mixture(bank: Bank, mixture: Mixture, field: str) -> None:
    """Raise `InvalidInput` unless the lengths of bank and mixture are the same, in order."""
    found, allowed = (
        (shares(bank) @ bank.length).tolist(),
        [length - 1 for length in mixture.lengths],
    )
    same = len(found) == len(allowed) and np.allclose(found, allowed)
    require(
        bool(same), field, mixture.lengths, f"components of {found} scored tokens, as in the bank"
    )


def shares(bank: Bank) -> Float[np.ndarray, "components rows"]:
    """Return the probability of each pattern within each component."""
    inside = (bank.component == np.arange(bank.component.max() + 1)[:, None]) * bank.share
    return inside / inside.sum(1, keepdims=True)


def mean_counts(bank: Bank) -> Float[np.ndarray, "components states states"]:
    """Return the mean transition counts of a sequence of each component of a bank."""
    return np.tensordot(shares(bank), bank.counts, 1)


def expected_counts(mixture: Mixture) -> Float[np.ndarray, "components states states"]:
    """Return the exact E N_ij of a sequence of each component of a mixture.

    It is sum_t P(x_t = i) transition_ij over the |y| contexts of a sequence.
    """
    visits = [
        chain.marginals(length - 1).sum(0)
        for chain, length in zip(mixture.chains, mixture.lengths, strict=True)
    ]
    return np.stack(
        [
            (own[:, None] * chain.transition).numpy()
            for own, chain in zip(visits, mixture.chains, strict=True)
        ]
    )


def transition_law(mixture: Mixture) -> Table:
    """Return the probability that a scored token of the mixture is a transition i -> j.

    Components of long sequences hold more tokens and count accordingly.
    """
    law = np.tensordot(mixture.weights, expected_counts(mixture), 1)
    return law / law.sum()


def best_table(mixture: Mixture) -> Table:
    """Return the logits log P(j | i) of the best table for a mixture.

    It has the least expected cross-entropy per token. It averages the chains' rows by how often
    each chain visits them: unlike a transformer, a table cannot know which chain a prefix came
    from. A state that is never visited gets the uniform row. Raises `InvalidInput` where a
    transition from a visited state never happens, as the best logit would be -inf.
    """
    law = transition_law(mixture)
    visits = law.sum(1, keepdims=True)
    law = np.where(visits > 0, law / np.where(visits > 0, visits, 1), 1 / len(law))
    missing = np.argwhere(law == 0).tolist()
    require(
        not missing,
        "mixture",
        f"no transition {missing[:1]}",
        "every transition from a visited state",
    )
    return np.log(law)


def _patterns(chain: MarkovChain, length: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the patterns of one chain and their probabilities."""
    states, transition = chain.states, chain.transition.numpy()
    last, prob = np.arange(states), chain.initial.numpy()
    counts = np.zeros((states, states**2), dtype=np.int32)
    for done in range(1, length):
        row, following = np.nonzero((transition[last] > 0) & (prob > 0)[:, None])
        allowed = f"at most limit = {limit}, or a sampled bank"
        require(
            len(row) <= limit,
            "mixture",
            f"{len(row)} patterns after {done} of {length - 1} tokens",
            allowed,
        )
        grown, prob = counts[row], prob[row] * transition[last[row], following]
        grown[np.arange(len(row)), last[row] * states + following] += 1
        merged, prob = _merge(np.column_stack([grown, following]), prob)
        counts, last = merged[:, :-1], merged[:, -1]
    return _merge(counts, prob)


def _merge(keys: np.ndarray, prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge equal rows into one and add up their probabilities."""
    # Rows are compared as bytes: several times faster than column by column.
    keys = np.ascontiguousarray(keys)
    whole = keys.view(np.dtype((np.void, keys.itemsize * keys.shape[1]))).ravel()
    _, first, place = np.unique(whole, return_index=True, return_inverse=True)
    return keys[first], np.bincount(place, weights=prob)


def _join(parts: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float]) -> Bank:
    _require_law("weights", np.asarray(weights, dtype=float), (len(parts),))
    counts = np.concatenate([counts for counts, _ in parts]).astype(float)
    component = np.concatenate([np.full(len(prob), index) for index, (_, prob) in enumerate(parts)])
    share = np.concatenate(
        [weight * prob for (_, prob), weight in zip(parts, weights, strict=True)]
    )
    states = round(counts.shape[1] ** 0.5)
    return Bank(counts.reshape(-1, states, states), share, component, counts.sum(1))


def _require_law(field: str, law: np.ndarray, shape: tuple[int, ...]) -> None:
    proper = law.shape == shape and bool((law >= 0).all()) and abs(law.sum() - 1) <= 1e-8
    require(proper, field, law, f"probabilities of shape {shape} with sum 1")
