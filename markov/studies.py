"""What running needs of a study: its chains, its data, and what each kind of model sees of them.

`markov.cases.Case` is the paper's study, and `markov.sweeps.ComponentSweep` is a mixture of many
components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jaxtyping import Int64
from torch import Tensor

from markov.chains import MarkovChain
from markov.errors import require


class Data(NamedTuple):
    """Sequences of each component by its name.

    Those of one component have one length, so that they need no padding.
    """

    train: dict[str, Int64[Tensor, "count length"]]
    test: dict[str, Int64[Tensor, "count length"]]


class Study(Protocol):
    """What running needs of the chains and data of an experiment.

    The first component is "retain". `lengths` count tokens, so |y| = length - 1; `counts` are in
    proportion to how often unlearning draws a component; studies of one `shape` can be run in one
    ensemble.
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
        """Return the chain of each component."""
        ...

    def sample(self, seed: int) -> Data:
        """Return sequences of each component."""
        ...

    def pretraining_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """Return the sequences that pretraining sees."""
        ...

    def forget_data(self, data: Data) -> list[Int64[Tensor, "count length"]]:
        """Return the sequences that unlearning pushes on."""
        ...

    def original(self) -> Study:
        """Return this study with only those settings that its pretrained model depends on.

        Studies for which this is equal share a model.
        """
        ...

    def retrained(self) -> Study:
        """Return the same where pretraining sees the retain data only."""
        ...


def ideal_forget_distance(case: Study) -> dict[str, float]:
    """Return `kl_to_truth` of a model that knows only the retain chain, by component.

    The unit is nats per token. The closed form is sum_t E KL(true row || retain row) / (length -
    1); it is 0 on retain. The retrained model of the paper's Figure 5 should land on it, and a
    forget distance past it is over-forgetting.
    """
    known = not isinstance(case, type) and hasattr(case, "chains") and hasattr(case, "lengths")
    require(known, "case", case, "a study, such as markov.LENGTH")
    chains = case.chains()
    return {
        component: float(chain.expected_row_kl(chains[0].transition, length))
        for (component, length), chain in zip(case.lengths.items(), chains, strict=True)
    }
