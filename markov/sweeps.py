"""Forget mixtures of many components that differ in one thing: response length, or memorisation.

Each component lives on a set of states of its own, all sets of one size, so that by symmetry
nothing but the swept quantity tells two components apart. Lengths are compared at equal
memorisation: pretraining sees as many *tokens* of a component of short responses as of one of long
responses, hence more of its sequences. In unlearning every component has as many *sequences* as
every other, since the law weighs responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Int64
from torch import Tensor

from markov.cases import component_generator, paper_chain
from markov.chains import MarkovChain, Mixture
from markov.console import limits
from markov.errors import is_number, is_whole, require, require_all_whole, require_whole
from markov.studies import Data


@dataclass(frozen=True, kw_only=True)
class ComponentSweep:
    """Components forget1, forget2, ... with `scored[i]` scored tokens in a sequence.

    Pretraining sees the share `shares[i]` of the `tokens` scored training tokens of component i,
    and unlearning pushes on `forget_count` training sequences of each component, or only of the
    component `alone` where one is named. The chains are those of the paper's appendix H, with less
    leakage. Raises `InvalidInput` for numbers that do not fit together.
    """

    name: str
    scored: tuple[int, ...]
    shares: tuple[float, ...]
    tokens: int = 12_000
    retain_scored: int = 20
    retain_tokens: int = 36_000
    forget_count: int = 150
    test_count: int = 48
    leakage: float = 0.05
    set_size: int = 3
    alone: str | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.name, str), "name", self.name, "a text")
        tokens = dict.fromkeys(("tokens", "retain_tokens"), limits.TOKENS)
        counts = dict.fromkeys(("forget_count", "test_count"), (1, limits.COUNT[1]))
        sizes = {"retain_scored": limits.SCORED, "set_size": limits.SET_SIZE}
        require_all_whole(self, **tokens, **counts, **sizes)
        # Tuples, since a sweep is a value: models and results are looked up by it.
        least, most = limits.SCORED
        whole = isinstance(self.scored, tuple) and all(
            is_whole(count, least, most) for count in self.scored
        )
        require(
            whole and len(self.scored) >= 1,
            "scored",
            self.scored,
            f"a tuple of whole numbers from {least} to {most}",
        )
        object.__setattr__(self, "scored", tuple(map(int, self.scored)))
        paired = isinstance(self.shares, tuple) and len(self.shares) == len(self.scored)
        require(paired, "shares", self.shares, f"a tuple, one for each of {len(self.scored)}")
        proper = all(is_number(share) and 0 <= share <= 1 for share in self.shares)
        require(proper, "shares", self.shares, "numbers from 0 to 1")
        most = self.tokens // max(self.scored)
        require(
            self.forget_count <= most,
            "forget_count",
            self.forget_count,
            f"at most tokens / max(scored) = {most}",
        )
        names = tuple(self._forget)
        require(
            self.alone is None or self.alone in names,
            "alone",
            self.alone,
            f"None or one of {names}",
        )
        require(
            self.retain_tokens >= self.retain_scored,
            "retain_tokens",
            self.retain_tokens,
            "at least retain_scored",
        )
        self.chains()  # the chains check the leakage

    @property
    def _forget(self) -> Mapping[str, int]:
        return {f"forget{index}": scored for index, scored in enumerate(self.scored, start=1)}

    @property
    def states(self) -> int:
        """The number of states.

        There is a set for each component and the retain data, and one state that is nobody's.
        """
        return self.set_size * (len(self.scored) + 1) + 1

    @property
    def lengths(self) -> dict[str, int]:
        """The tokens in a sequence of the retain data and of each component that is unlearned."""
        chosen = {
            name: scored + 1 for name, scored in self._forget.items() if self.alone in (None, name)
        }
        return {"retain": self.retain_scored + 1, **chosen}

    @property
    def counts(self) -> dict[str, int]:
        """The number of sequences of each component in unlearning."""
        return dict.fromkeys(self.lengths, self.forget_count)

    @property
    def seen(self) -> tuple[str, ...]:
        """The components of which pretraining sees anything."""
        return (
            "retain",
            *(name for name, count in zip(self._forget, self._shown(), strict=True) if count > 0),
        )

    @property
    def shape(self) -> tuple[object, ...]:
        """What all members of an ensemble share."""
        return (
            *self.lengths.values(),
            self.retain_tokens,
            self.forget_count,
            self.test_count,
            self.states,
        )

    @property
    def tested(self) -> dict[str, int]:
        """The number of test sequences of each component."""
        return dict.fromkeys(self.lengths, self.test_count)

    @property
    def pretraining_tokens(self) -> int:
        """The number of scored tokens that pretraining sees in an epoch."""
        shown = (count * one for count, one in zip(self._shown(), self.scored, strict=True))
        return self.retain_tokens // self.retain_scored * self.retain_scored + sum(shown)

    def chains(self) -> tuple[MarkovChain, ...]:
        """Return the chain of each component of `lengths`."""
        places = {"retain": 0, **{name: place for place, name in enumerate(self._forget, start=1)}}
        return tuple(self._chain(places[name]) for name in self.lengths)

    def mixture(self) -> Mixture:
        """Return the law of the pretraining data.

        It mixes the components that pretraining sees, weighted by their counts of sequences.
        """
        counts = [self.retain_tokens // self.retain_scored, *self._shown()]
        lengths = [self.retain_scored + 1, *(scored + 1 for scored in self.scored)]
        seen = [place for place, count in enumerate(counts) if count > 0]
        return Mixture(
            weights=tuple(counts[place] / sum(counts) for place in seen),
            chains=tuple(self._chain(place) for place in seen),
            lengths=tuple(lengths[place] for place in seen),
        )

    def sample(self, seed: int) -> Data:
        """Draw every component.

        Its tokens depend on the seed, its chain, its length and its own count only. Raises
        `InvalidInput` for a seed that is not a whole number of at least 0.
        """
        require_whole(seed, "seed")
        train, test = {}, {}
        for place, (name, scored) in enumerate(
            {"retain": self.retain_scored, **self._forget}.items()
        ):
            count = (self.tokens if place else self.retain_tokens) // scored
            tokens = self._chain(place).sample(
                count + self.test_count, scored + 1, component_generator(seed, place)
            )
            train[name], test[name] = tokens.tensor_split([count])
        return Data(train, test)

    def pretraining_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """Return the retain sequences, and of each component the share that pretraining sees."""
        shown = zip(self._forget, self._shown(), strict=True)
        return [
            data.train["retain"],
            *(data.train[name][:count] for name, count in shown if count > 0),
        ]

    def forget_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """Return `forget_count` training sequences of each component that unlearning pushes on."""
        return [data.train[name][: self.forget_count] for name in self.lengths if name != "retain"]

    def original(self) -> ComponentSweep:
        """Return the sweep with only those settings that its pretrained model depends on."""
        return replace(self, name="", alone=None, forget_count=1)

    def retrained(self) -> ComponentSweep:
        """Return the same where pretraining sees the retain data only.

        Sweeps with the same number of components share it.
        """
        nothing = len(self.scored)
        return replace(self.original(), scored=(1,) * nothing, shares=(0.0,) * nothing, tokens=1)

    def _chain(self, place: int) -> MarkovChain:
        members = range(self.set_size * place, self.set_size * (place + 1))
        return paper_chain(members, self.states, self.leakage)

    def _shown(self) -> list[int]:
        counts = (self.tokens // scored for scored in self.scored)
        return [round(share * count) for share, count in zip(self.shares, counts, strict=True)]


LENGTHS = ComponentSweep(name="lengths", scored=(2, 5, 10, 20, 40, 80), shares=(1.0,) * 6)
SHARES = ComponentSweep(name="shares", scored=(20,) * 6, shares=(0.0, 0.1, 0.25, 0.5, 0.75, 1.0))
