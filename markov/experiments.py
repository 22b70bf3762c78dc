"""Experiments as values: describe one, or make a grid of them; `markov.running` runs them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from markov.cases import LENGTH, Case
from markov.console import limits
from markov.console.choices import OptimizerName, RetainTerm, WeightingName
from markov.errors import is_whole, require, require_all_whole, require_number
from markov.models import Tabular, Transformer
from markov.objectives import Objective, npo, validate
from markov.optimizers import OPTIMIZERS
from markov.sweeps import ComponentSweep
from markov.training import RETAIN_LOSSES
from markov.weighting import WEIGHTINGS

# The betas that the paper chose by grid search, by case (appendix H).
PAPER_BETAS = {"length": {"npo": 0.2, "simnpo": 4.0}, "memorisation": {"npo": 1.0, "simnpo": 4.0}}

DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def _require_rule(settings: Any) -> None:
    require_number(
        settings.learning_rate, "learning_rate", lambda number: number > 0, "a positive number"
    )
    _require_one_of("optimizer", settings.optimizer, tuple(sorted(OPTIMIZERS)))


def _require_one_of(field: str, value: object, names: tuple[str, ...]) -> None:
    require(isinstance(value, str) and value in names, field, value, f"one of {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the original and the retrained model are trained; the paper's defaults (appendix H)."""

    epochs: int = 5
    batch: int = 128
    learning_rate: float = 5e-4
    optimizer: OptimizerName = "adamw_transformers"
    seed: int = 0

    def __post_init__(self) -> None:
        require_all_whole(self, epochs=limits.EPOCHS, batch=limits.BATCH, seed=0)
        _require_rule(self)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One unlearning run as a value.

    It has a case, a model and its pretraining, an objective, and how that is minimised and
    observed. `weighting` is what is kept of the objective's weights (see `markov.weighting`), and
    `clip` the largest global norm of a gradient (default: any). `seed` orders the batches;
    `pretraining.seed` draws the data and the start. `recorded` are the steps at which the run is
    evaluated (default: all), on the first `test_examples` test sequences of each component
    (default: all).
    """

    case: Case | ComponentSweep = LENGTH
    objective: Objective = npo(0.2)
    model: Transformer | Tabular = Transformer()
    pretraining: Pretraining = Pretraining()
    seed: int = 0
    steps: int = 50
    batch: int = 4
    learning_rate: float = 5e-4
    optimizer: OptimizerName = "adamw_transformers"
    retain_term: RetainTerm = "none"
    retain_weight: float = 0.0
    weighting: WeightingName = "own"
    clip: float | None = None
    recorded: tuple[int, ...] | None = None
    test_examples: int | None = None
    gradient_examples: int = 0
    precision: Literal["float32", "float64"] = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        # Each part has checked its own numbers when it was made.
        require(
            isinstance(self.case, Case | ComponentSweep),
            "case",
            self.case,
            "a Case or a ComponentSweep",
        )
        require(
            isinstance(self.model, Transformer | Tabular),
            "model",
            self.model,
            "a Transformer or a Tabular",
        )
        require(
            isinstance(self.pretraining, Pretraining),
            "pretraining",
            self.pretraining,
            "a Pretraining",
        )
        for name, value in validate(self.objective)._asdict().items():
            require(
                getattr(value, "ndim", 0) == 0,
                f"objective.{name}",
                value,
                "one number, not a stack",
            )
        require_all_whole(
            self,
            seed=0,
            steps=limits.STEPS,
            batch=limits.BATCH,
            gradient_examples=limits.EXAMPLES,
        )
        _require_rule(self)
        _require_one_of("retain_term", self.retain_term, ("none", *RETAIN_LOSSES))
        require_number(
            self.retain_weight, "retain_weight", lambda number: number >= 0, "a finite number >= 0"
        )
        require(
            (self.retain_weight > 0) == (self.retain_term != "none"),
            "retain_weight",
            self.retain_weight,
            f"positive exactly where there is a retain term (retain_term is {self.retain_term!r})",
        )
        _require_one_of("weighting", self.weighting, tuple(WEIGHTINGS))
        if self.clip is not None:
            require_number(
                self.clip, "clip", lambda number: number > 0, "None or a positive number"
            )
        if self.recorded is not None:
            allowed = f"None or a tuple of steps from 0 to steps = {self.steps}"
            whole = isinstance(self.recorded, tuple) and all(
                is_whole(step, 0, self.steps) for step in self.recorded
            )
            require(whole, "recorded", self.recorded, allowed)
            if any(type(step) is not int for step in self.recorded):  # a long one is shared
                object.__setattr__(self, "recorded", tuple(map(int, self.recorded)))
        if self.test_examples is not None:
            require_all_whole(self, test_examples=(1, limits.EXAMPLES[1]))
        _require_one_of("precision", self.precision, ("float32", "float64"))
        known = isinstance(self.device, str) and DEVICE.fullmatch(self.device) is not None
        require(known, "device", self.device, "cpu, cuda or cuda:N")
        require(
            self.model.states == self.case.states,
            "model.states",
            self.model.states,
            f"case.states = {self.case.states}",
        )
        # Components that are not unlearned may still have been seen: both models must take them in.
        longest = max(*self.case.lengths.values(), *self.case.original().lengths.values()) - 1
        if isinstance(self.model, Transformer):
            require(
                self.model.context >= longest,
                "model.context",
                self.model.context,
                f"at least {longest}",
            )

    @property
    def steps_recorded(self) -> tuple[int, ...]:
        """The steps at which the run is evaluated, in order: step 0 is always one of them."""
        recorded = range(self.steps + 1) if self.recorded is None else self.recorded
        return tuple(sorted({0, *recorded}))


def grid(base: Experiment, **axes: Sequence[Any]) -> list[Experiment]:
    """Return every combination of the given values on top of `base`; the last axis runs fastest.

    Raises `InvalidInput` for a name that is no field of `Experiment`, or an axis without values.
    """
    names = [field.name for field in fields(base)]
    for name, values in axes.items():
        require(name in names, "grid axis", name, f"one of {names}")
        require(len(values) > 0, f"grid axis {name}", values, "at least one value")
    return [
        replace(base, **dict(zip(axes, point, strict=True)))
        for point in itertools.product(*axes.values())
    ]
