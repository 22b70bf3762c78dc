"""How much is run for the figures.

At full scale these are the paper's settings, at quick scale a small stand-in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from markov.cases import CASES, Case
from markov.errors import require, require_whole
from markov.experiments import Experiment, Pretraining
from markov.models import ARCHITECTURES, Transformer
from markov.sweeps import LENGTHS

# The grid of beta for each corner: the summed log-ratio asks for a smaller beta than the mean over
# tokens.
SUMMED, PER_TOKEN = (0.05, 0.2, 0.5, 1.0), (1.0, 2.5, 4.0, 8.0)
BETAS = {
    "npo": SUMMED,
    "reference_free_npo": SUMMED,
    "length_normalized_npo": PER_TOKEN,
    "simnpo": PER_TOKEN,
}


# Where the best beta of each corner is sought: wide enough that it lies inside.
SUMMED_RANGE = (0.01, *SUMMED, 2.0, 4.0)
PER_TOKEN_RANGE = (0.1, 0.4, *PER_TOKEN, 16.0, 32.0)
SEARCHED = {
    method: SUMMED_RANGE if betas == SUMMED else PER_TOKEN_RANGE for method, betas in BETAS.items()
}
# Pretrained models that a claim is judged by. With three an interval over models is three times as
# wide at one and the same spread, and what Holm leaves of it holds hardly any claim.
EVIDENCE = 8
TRAINED = 5  # the same of trainings of the default language model


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many pretrained models and batch orders for each, and how closely runs are observed."""

    pretrained: int = 3
    trained: int = 2  # trainings of the default language model
    orders: int = 3
    search_orders: int = 1
    search_recorded: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 11, 15, 22, 30)
    recorded: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 21, 30, 40, 50)
    test_examples: int = 48
    search_examples: int = 32
    gradient_examples: int = 8
    architecture: str = "paper"
    quick: bool = False
    sweep_pretrained: int = 4
    sweep_orders: int = 2
    sweep_steps: int = 120
    sweep_adam_steps: int = 60
    sweep_records: int = 20
    whole: bool = False  # the sweeps' transformer at the paper's width and depth, not half of each

    def __post_init__(self) -> None:
        for count in (self.pretrained, self.sweep_pretrained, self.trained):
            require_whole(count, "seeds", 1)
        require(
            self.architecture in ARCHITECTURES,
            "architecture",
            self.architecture,
            f"one of {sorted(ARCHITECTURES)}",
        )

    def cases(self) -> dict[str, Case]:
        """Return the two cases, with a tenth of the data at quick scale."""
        if not self.quick:
            return dict(CASES)
        counts = {"retain_count": 1000, "forget1_count": 500, "forget2_count": 500}
        return {name: replace(case, **counts) for name, case in CASES.items()}

    def experiment(self) -> Experiment:
        """Return the experiment that all grids of the figures start from."""
        base = Experiment(
            model=ARCHITECTURES[self.architecture],
            recorded=self.recorded,
            test_examples=self.test_examples,
            gradient_examples=self.gradient_examples,
        )
        if not self.quick:
            return base
        small = Transformer(width=32, depth=2, mlp_width=32)
        return replace(
            base,
            model=small,
            pretraining=Pretraining(batch=32, learning_rate=3e-3),
            learning_rate=2e-3,
        )

    def sweep(self) -> Experiment:
        """Return the experiment that the sweeps over length and memorisation start from."""
        width, depth = (32, 1) if self.quick else (128, 4) if self.whole else (64, 2)
        few = (
            {"tokens": 4000, "retain_tokens": 8000, "forget_count": 50, "test_count": 16}
            if self.quick
            else {}
        )
        case = replace(LENGTHS, **few)
        steps = np.geomspace(1, self.sweep_steps, self.sweep_records)
        return Experiment(
            case=case,
            model=Transformer(
                states=case.states, context=80, width=width, depth=depth, mlp_width=width
            ),
            pretraining=Pretraining(epochs=3, learning_rate=2e-3),
            steps=self.sweep_steps,
            batch=12,
            recorded=tuple(sorted({0, *(round(step) for step in steps)})),
            test_examples=16,
        )

    def pretrainings(self) -> list[Pretraining]:
        """Return one pretraining per pretrained model."""
        return [
            replace(self.experiment().pretraining, seed=seed) for seed in range(self.pretrained)
        ]


def quick_scale() -> Scale:
    """Return the quick scale: two small pretrained models and two orders.

    It takes a minute for everything and is right in kind but not in numbers.
    """
    return Scale(
        pretrained=2,
        orders=2,
        recorded=(0, 1, 2, 4, 7, 12, 20, 30, 50),
        search_recorded=(0, 2, 4, 7, 12, 20, 30),
        test_examples=32,
        search_examples=16,
        quick=True,
        sweep_pretrained=2,
        sweep_orders=1,
        sweep_steps=60,
        sweep_adam_steps=30,
        sweep_records=10,
    )
