"""How much is run for the figures: at full scale the paper's settings, at quick scale a small stand-in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markov.cases import CASES, Case
from markov.errors import require
from markov.experiments import Experiment, Pretraining
from markov.models import ARCHITECTURES, Transformer


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Number of pretrained models and of batch orders for each, and how closely each run is observed."""

    pretrained: int = 3
    orders: int = 3
    search_orders: int = 1
    search_recorded: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 11, 15, 22, 30)
    recorded: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 21, 30, 40, 50)
    test_examples: int = 48
    search_examples: int = 32
    gradient_examples: int = 8
    architecture: str = "paper"
    quick: bool = False

    def __post_init__(self) -> None:
        require(self.pretrained >= 1, "seeds", self.pretrained, "a whole number of at least 1")
        require(
            self.architecture in ARCHITECTURES, "architecture", self.architecture, f"one of {sorted(ARCHITECTURES)}"
        )

    def cases(self) -> dict[str, Case]:
        """The two cases, with a tenth of the data at quick scale."""
        if not self.quick:
            return dict(CASES)
        counts = {"retain_count": 1000, "forget1_count": 500, "forget2_count": 500}
        return {name: replace(case, **counts) for name, case in CASES.items()}

    def experiment(self) -> Experiment:
        """The experiment that all grids of the figures start from."""
        base = Experiment(
            model=ARCHITECTURES[self.architecture],
            recorded=self.recorded,
            test_examples=self.test_examples,
            gradient_examples=self.gradient_examples,
        )
        if not self.quick:
            return base
        small = Transformer(width=32, depth=2, mlp_width=32)
        return replace(base, model=small, pretraining=Pretraining(batch=32, learning_rate=3e-3), learning_rate=2e-3)

    def pretrainings(self) -> list[Pretraining]:
        """One pretraining per pretrained model."""
        return [replace(self.experiment().pretraining, seed=seed) for seed in range(self.pretrained)]


def quick() -> Scale:
    """Two small pretrained models and two orders: a minute for everything, right in kind but not in numbers."""
    return Scale(
        pretrained=2,
        orders=2,
        recorded=(0, 1, 2, 4, 7, 12, 20, 30, 50),
        search_recorded=(0, 2, 4, 7, 12, 20, 30),
        test_examples=32,
        search_examples=16,
        quick=True,
    )
