"""What an experiment is run on, as far as running needs to know: chains, data, and what each kind
of model sees of it.

`markov.cases.Case` is the paper's study, `markov.sweeps.Sweep` a mixture of many components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Int64
from torch import Tensor

from markov.chains import MarkovChain


class Data(NamedTuple):
    """Sequences of each component by its name; those of one component have one length: no
    padding.
    """

    train: dict[str, Int64[Tensor, "count length"]]
    test: dict[str, Int64[Tensor, "count length"]]


class Study(Protocol):
    """What running needs of the chains and data of an experiment; its components begin with
    "retain".

    `lengths` count tokens, so |y| = length - 1; `counts` are in proportion to how often unlearning
    draws a component; studies of one `shape` can be run in one ensemble.
    """

    @property
    def name(self) -> str: ...
    @property
    def states(self) -> int: ...
    @property
    def lengths(self) -> dict[str, int]: ...
    @property
    def counts(self) -> dict[str, int]: ...
    @property
    def seen(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[object, ...]: ...

    def chains(self) -> Sequence[MarkovChain]:
        """The chain of each component."""
        ...

    def sample(self, seed: int) -> Data:
        """Sequences of each component."""
        ...

    def pretraining_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """The sequences that pretraining sees."""
        ...

    def forget_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """The sequences that unlearning pushes on."""
        ...

    def original(self) -> Study:
        """This study without what its pretrained model does not depend on: equal values share a
        model.
        """
        ...

    def retrained(self) -> Study:
        """The same where pretraining sees the retain data only."""
        ...


def ideal_forget_quality(case: Study) -> dict[str, float]:
    """`kl_to_truth` of a model that knows the retain chain and nothing else, by component (nats per
    token).

    The closed form sum_t E KL(true row || retain row) / (length - 1); 0 on retain. The retrained
    model of the paper's Figure 5 should land on it, and a forget quality past it is
    over-forgetting.
    """
    chains = case.chains()
    return {
        component: float(chain.expected_row_kl(chains[0].transition, length))
        for (component, length), chain in zip(case.lengths.items(), chains, strict=True)
    }
