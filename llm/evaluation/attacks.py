"""Which relearning attacks are made, in numbers that are checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from llm.training.settings import Optimization
from markov.errors import require, require_whole

if TYPE_CHECKING:
    from llm.training.adapters import Lora

Which = Literal["shortest", "random"]


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """Which share of the forget set is taught again, and how.

    `seed` draws the random examples and orders the batches. The share is rounded to the nearest
    number of examples, at least 1. With `lora` adapters are taught in place of the model itself.
    Raises `InvalidInput` for values that are not allowed.
    """

    which: Which = "shortest"
    share: float = 0.2
    seed: int = 0
    optimization: Optimization = Optimization(
        epochs=3, batch=32, learning_rate=1e-5, warmup_epochs=0
    )
    lora: Lora | None = None

    def __post_init__(self) -> None:
        require(
            self.which in get_args(Which),
            "which",
            self.which,
            f"one of {', '.join(get_args(Which))}",
        )
        require(0 < self.share < 1, "share", self.share, "a number between 0 and 1")

    def chosen(self, length: Sequence[int]) -> list[int]:
        """Return the rows to teach again, ascending, of examples with so many response tokens.

        Of examples of equal length the first are taken. Raises `InvalidInput` for fewer than 2
        examples.
        """
        import numpy as np
        import torch

        from llm.randomness import derived_seed

        count = min(max(1, math.floor(self.share * len(length) + 0.5)), len(length) - 1)
        require(
            len(length) > 1,
            "forget",
            f"{len(length)} example",
            "at least 2: some to teach, some to watch",
        )
        if self.which == "shortest":
            return sorted(np.argsort(length, kind="stable")[:count].tolist())
        own = torch.Generator().manual_seed(derived_seed(self.seed, "relearning"))
        return sorted(torch.randperm(len(length), generator=own)[:count].tolist())


def attacks(
    which: Sequence[Which],
    share: float,
    repeats: int,
    optimization: Optimization,
    lora: Lora | None = None,
) -> list[Relearning]:
    """Return the settings of all attacks; raises `InvalidInput` for numbers not allowed."""
    require_whole(repeats, "repeats", 1)
    require(len(which) > 0, "which", which, "shortest, random or both")
    return [
        Relearning(which=one, share=share, seed=seed, optimization=optimization, lora=lora)
        for one in dict.fromkeys(which)
        for seed in range(repeats)
    ]
