"""How a language model is optimised, in numbers that are checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llm.scoring.limits import BUDGET
from markov.errors import require, require_all_whole

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a model is optimised: AdamW, with `batch` examples per update, for `epochs` passes.

    The `batch` examples are those of all processes together. The learning rate of update k of T, W
    of which lie in the first `warmup_epochs`, is

        learning_rate * k/W              up to update W
        learning_rate * (T-k+1)/(T-W)    from there

    The first update has 1/W of the learning rate and the last one 1/(T-W), so that no update is
    idle (transformers' linear schedule counts its warm-up from 0, and its first update does
    nothing). Gradients whose norm exceeds `clip` are cut to that norm. `weight_decay` acts on
    matrices, not on biases and scales.

    `budget` is the number of tokens of a forward pass, padding included: it limits memory and
    changes results by rounding only. With `precision` "bfloat16" products are computed in that
    precision (autocast), from parameters that keep their own.

    A model of bfloat16 or float16 parameters is trained as float32 masters, whatever the precision.
    It is rounded to its own dtype whenever it is measured and at the end, so that the mean of many
    updates is kept (see `llm.training.masters`). With `narrow_updates` the bfloat16 parameters
    themselves are changed: that takes 8 bytes per parameter in place of 16, for the parameter, its
    gradient and two moments, and loses every update of less than half the distance between two
    neighbouring numbers, 1/512 to 1/256 of a parameter's size; at learning rates such as 1e-5 that
    is most of them.

    Raises `InvalidInput` for values that are not allowed.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    clip: float | None = 1.0
    budget: int = BUDGET
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    narrow_updates: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_all_whole(self, epochs=1, batch=1, budget=1)
        for field, least in (
            ("learning_rate", ">"),
            ("weight_decay", ">="),
            ("warmup_epochs", ">="),
        ):
            value = getattr(self, field)
            known = isinstance(value, (int, float)) and (
                0 < value < math.inf or (least == ">=" and value == 0)
            )
            require(known, field, value, f"a finite number {least} 0")
        require(
            self.warmup_epochs <= self.epochs,
            "warmup_epochs",
            self.warmup_epochs,
            f"0 to {self.epochs} epochs",
        )
        require(self.clip is None or self.clip > 0, "clip", self.clip, "a number > 0, or None")
        require(
            self.precision in PRECISIONS,
            "precision",
            self.precision,
            f"one of {', '.join(PRECISIONS)}",
        )

    def updates(self, examples: int) -> int:
        """Return the number of updates in an epoch over so many examples."""
        return math.ceil(examples / self.batch)

    def rate(self, step: int, per_epoch: int) -> float:
        """Return the learning rate of update `step`, counted from 1, under warm-up and decay.

        An epoch has `per_epoch` updates.
        """
        total, warmup = self.epochs * per_epoch, round(self.warmup_epochs * per_epoch)
        share = step / warmup if step <= warmup else (total - step + 1) / (total - warmup)
        return self.learning_rate * share
