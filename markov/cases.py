"""The paper's Markov study as values: its chains, its two cases and their data.

`bayes_floor` gives the score of a perfect original model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from markov.chains import MarkovChain, Mixture, row_kl
from markov.console import limits
from markov.errors import require, require_all_whole, require_number, require_whole
from markov.studies import Data

COMPONENTS = ("retain", "forget1", "forget2")


class PaperChains(NamedTuple):
    """The three chains of the paper, on disjoint sets of states."""

    retain: MarkovChain
    forget1: MarkovChain
    forget2: MarkovChain


def paper_chain(members: Sequence[int], states: int, leakage: float) -> MarkovChain:
    """Return the chain on the set S = `members` that leaks out of it with probability `leakage`.

    initial = the row of each state of S = (1 - leakage)/|S| on S, leakage/(states - |S|) elsewhere;
    the row of a state outside S is uniform, 1/states. Raises `InvalidInput` for members that are
    not distinct states or are all of them, and for a leakage outside (0, 1). Source: paper, section
    5 and appendix H.
    """
    require_whole(states, "states", *limits.STATES)
    for member in members:
        require_whole(member, "members", 0, states - 1)
    inside = sorted(set(members))
    proper = states > len(inside) == len(members) >= 1
    require(
        proper, "members", members, f"distinct states from 0 to {states - 1}, and not all of them"
    )
    _require_leakage(leakage)
    return _leaking(inside, states, leakage)


def _leaking(inside: Sequence[int], states: int, leakage: float) -> MarkovChain:
    law = torch.full((states,), leakage / (states - len(inside)), dtype=torch.float64)
    law[inside] = (1 - leakage) / len(inside)
    transition = torch.full((states, states), 1 / states, dtype=torch.float64)
    transition[inside] = law
    return MarkovChain(initial=law, transition=transition, check=False)


def paper_chains(leakage: float = 0.2, states: int = 10, set_size: int = 3) -> PaperChains:
    """Return the chains on {0..k-1}, {k..2k-1} and {2k..3k-1} with k = `set_size`.

    The remaining states belong to no chain.
    """
    # Once for all three chains, which then have nothing left to ask.
    _require_sets(states, set_size)
    _require_leakage(leakage)
    sets = (list(range(first, first + set_size)) for first in (0, set_size, 2 * set_size))
    return PaperChains(*(_leaking(inside, states, leakage) for inside in sets))


def _require_sets(states: int, set_size: int) -> None:
    require_whole(states, "states", *limits.STATES)
    require_whole(set_size, "set_size", *limits.SET_SIZE)
    require(3 * set_size <= states, "set_size", set_size, f"three sets must fit in {states} states")


def _require_leakage(leakage: float) -> None:
    require_number(leakage, "leakage", lambda number: 0 < number < 1, "strictly between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of the Markov study: the chains, the amounts drawn, and what pretraining sees.

    Lengths count tokens, so |y| = length - 1. Raises `InvalidInput` for a leakage outside (0, 1),
    sets that do not fit in the states, a length below 2, or an empty training or test set. Source:
    paper, Figure 5.
    """

    name: str
    leakage: float = 0.2
    states: int = 10
    set_size: int = 3
    retain_length: int = 20
    forget1_length: int
    forget2_length: int
    retain_count: int = 10_000
    forget1_count: int = 5_000
    forget2_count: int = 5_000
    test_fraction: float = 0.2
    pretrain_components: tuple[str, ...]

    def __post_init__(self) -> None:
        require(isinstance(self.name, str), "name", self.name, "a text")
        require_all_whole(self, states=limits.STATES, set_size=limits.SET_SIZE)
        _require_sets(self.states, self.set_size)
        _require_leakage(self.leakage)
        share = self.test_fraction
        require_number(
            share, "test_fraction", lambda number: 0 < number < 1, "strictly between 0 and 1"
        )
        for component in COMPONENTS:
            # A sequence needs a context and a next state; a component needs sequences for training
            # and for the test.
            bounds = {"length": limits.LENGTH, "count": limits.COUNT}
            named = {f"{component}_{name}": bound for name, bound in bounds.items()}
            require_all_whole(self, **named)
            count, tested = self.counts[component], self._test_count(component)
            allowed = f"sequences to train and to test on: of these {tested} would be for the test"
            require(0 < tested < count, f"{component}_count", count, allowed)
        chosen = self.pretrain_components
        known = isinstance(chosen, tuple) and all(one in COMPONENTS for one in chosen)
        known = known and len(set(chosen)) == len(chosen)
        require(
            known, "pretrain_components", chosen, f"a tuple of different names among {COMPONENTS}"
        )
        require("retain" in chosen, "pretrain_components", chosen, "must contain 'retain'")

    @property
    def lengths(self) -> dict[str, int]:
        """The number of tokens in a sequence of each component."""
        lengths = (self.retain_length, self.forget1_length, self.forget2_length)
        return dict(zip(COMPONENTS, lengths, strict=True))

    @property
    def counts(self) -> dict[str, int]:
        """The number of sequences of each component, training and test together."""
        counts = (self.retain_count, self.forget1_count, self.forget2_count)
        return dict(zip(COMPONENTS, counts, strict=True))

    @property
    def tested(self) -> dict[str, int]:
        """The number of test sequences of each component."""
        return {component: self._test_count(component) for component in COMPONENTS}

    @property
    def pretraining_tokens(self) -> int:
        """The number of scored tokens that pretraining sees in an epoch."""
        return sum(
            (self.counts[one] - self.tested[one]) * (self.lengths[one] - 1) for one in self.seen
        )

    def chains(self) -> PaperChains:
        """Return the chain of each component, in the order of `COMPONENTS`."""
        return paper_chains(leakage=self.leakage, states=self.states, set_size=self.set_size)

    @property
    def seen(self) -> tuple[str, ...]:
        """The components that pretraining sees."""
        return self.pretrain_components

    @property
    def shape(self) -> tuple[object, ...]:
        """What all members of an ensemble share."""
        return (*self.lengths.values(), *self.counts.values(), self.test_fraction, self.states)

    def original(self) -> Case:
        """Return the case with only those settings that its pretrained model depends on.

        Nothing is said of components that pretraining never sees.
        """
        return self._of(self.pretrain_components)

    def retrained(self) -> Case:
        """Return the same for a model that sees retain data only.

        Cases with the same retain settings share one retrained model.
        """
        return self._of(("retain",))

    def _of(self, components: tuple[str, ...]) -> Case:
        unseen = [component for component in COMPONENTS if component not in components]
        neutral: dict[str, Any] = {
            f"{component}_length": self.retain_length for component in unseen
        }
        neutral |= {f"{component}_count": self.retain_count for component in unseen}
        return replace(self, name="", pretrain_components=components, **neutral)

    def pretraining_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """Return the training sequences of the components that pretraining sees."""
        return [data.train[component] for component in self.pretrain_components]

    def forget_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """Return the training sequences of both forget components."""
        return [data.train[component] for component in COMPONENTS[1:]]

    def mixture(self) -> Mixture:
        """Return the law of the pretraining data.

        It mixes the components that pretraining sees, weighted by their counts of sequences.
        """
        chains, seen = self.chains(), self.pretrain_components
        total = sum(self.counts[component] for component in seen)
        return Mixture(
            weights=tuple(self.counts[component] / total for component in seen),
            chains=tuple(getattr(chains, component) for component in seen),
            lengths=tuple(self.lengths[component] for component in seen),
        )

    def sample(self, seed: int) -> Data:
        """Draw every component and split it: the last `test_fraction` of it tests, the rest trains.

        A component's tokens depend on the seed and on its own chain, length and count. So two cases
        with the same retain settings share their retain data, and hence one retrained model.
        """
        require_whole(seed, "seed")
        train, test, chains = {}, {}, self.chains()
        for index, component in enumerate(COMPONENTS):
            count, length = self.counts[component], self.lengths[component]
            tokens = chains[index].sample(count, length, component_generator(seed, index))
            train[component], test[component] = tokens.tensor_split(
                [count - self._test_count(component)]
            )
        return Data(train, test)

    def _test_count(self, component: str) -> int:
        return round(self.test_fraction * self.counts[component])


LENGTH = Case(name="length", forget1_length=20, forget2_length=5, pretrain_components=COMPONENTS)
MEMORISATION = Case(
    name="memorisation",
    forget1_length=20,
    forget2_length=20,
    pretrain_components=("retain", "forget1"),
)
CASES = {case.name: case for case in (LENGTH, MEMORISATION)}


def bayes_floor(case: Case, data: Data) -> dict[str, float]:
    """Return `kl_to_truth` of a perfect pretrained model by component (nats per token).

    It is the mean over test tokens of KL(true row || Bayes law of the next state under the
    pretraining mixture). It lies above 0 because a prefix does not tell for sure which chain it
    comes from. A component that pretraining never saw is predicted by those that it saw. Raises
    `InvalidInput` for a test sequence longer than all of those.
    """
    mixture, floor = case.mixture(), {}
    longest = max(mixture.lengths)
    for component, chain in zip(COMPONENTS, case.chains(), strict=True):
        tokens = data.test[component]
        allowed = f"at most the {longest} tokens of the longest pretraining component"
        require(tokens.shape[-1] <= longest, f"{component}_length", tokens.shape[-1], allowed)
        truth = chain.transition[tokens[:, :-1]]
        floor[component] = float(row_kl(truth, mixture.predictive(tokens)[:, :-1]).mean())
    return floor


def component_generator(seed: int, component: int) -> torch.Generator:
    """Return the generator of a component's sequences, a stream of its own for every seed."""
    # A spawn key, not a sum or a list of words: so no two (seed, component) pairs share a stream.
    state = np.random.SeedSequence(seed, spawn_key=(component,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
