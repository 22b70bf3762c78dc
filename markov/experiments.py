"""Experiments as values: describe one, or make a grid of them; `markov.running` runs them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from markov.cases import LENGTH, Case
from markov.errors import require
from markov.models import Tabular, Transformer
from markov.objectives import Objective, npo, validate
from markov.optimizers import OPTIMIZERS
from markov.sweeps import Sweep
from markov.training import RETAIN_LOSSES, RetainTerm

# The betas that the paper chose by grid search, by case (appendix H).
PAPER_BETAS = {"length": {"npo": 0.2, "simnpo": 4.0}, "memorisation": {"npo": 1.0, "simnpo": 4.0}}
OptimizerName = Literal["adamw_transformers", "adamw", "sgd"]


def _require_whole(settings: object, least: dict[str, int]) -> None:
    for name, bound in least.items():
        value = getattr(settings, name)
        require(isinstance(value, int) and value >= bound, name, value, f"a whole number of at least {bound}")


def _require_rule(settings: Any) -> None:
    rate = settings.learning_rate
    require(0 < rate < float("inf"), "learning_rate", rate, "a positive number")
    require(settings.optimizer in OPTIMIZERS, "optimizer", settings.optimizer, f"one of {sorted(OPTIMIZERS)}")


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the original and the retrained model are trained; the defaults are the paper's (appendix H)."""

    epochs: int = 5
    batch: int = 128
    learning_rate: float = 5e-4
    optimizer: OptimizerName = "adamw_transformers"
    seed: int = 0

    def __post_init__(self) -> None:
        _require_whole(self, {"epochs": 1, "batch": 1, "seed": 0})
        _require_rule(self)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One unlearning run: a case, a model and its pretraining, an objective, and how it is minimised and observed.

    `seed` orders the batches; `pretraining.seed` draws the data and the start. `recorded` are the steps at which the
    run is evaluated (default: all), on the first `test_examples` test sequences of each component (default: all).
    """

    case: Case | Sweep = LENGTH
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
    recorded: tuple[int, ...] | None = None
    test_examples: int | None = None
    gradient_examples: int = 0
    precision: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        validate(self.objective)
        _require_whole(self, {"seed": 0, "steps": 1, "batch": 1, "gradient_examples": 0})
        _require_rule(self)
        terms = ("none", *RETAIN_LOSSES)
        require(self.retain_term in terms, "retain_term", self.retain_term, f"one of {terms}")
        require(self.retain_weight >= 0, "retain_weight", self.retain_weight, "a number of at least 0")
        require(
            (self.retain_weight > 0) == (self.retain_term != "none"),
            "retain_weight",
            self.retain_weight,
            f"positive exactly where there is a retain term (retain_term is {self.retain_term!r})",
        )
        for step in self.recorded or ():
            require(0 <= step <= self.steps, "recorded", step, f"steps from 0 to steps = {self.steps}")
        if self.test_examples is not None:
            _require_whole(self, {"test_examples": 1})
        require(self.precision in ("float32", "float64"), "precision", self.precision, "'float32' or 'float64'")
        require(
            self.model.states == self.case.states,
            "model.states",
            self.model.states,
            f"case.states = {self.case.states}",
        )
        # What is not unlearned may still have been seen: both models have to take it in.
        longest = max(*self.case.lengths.values(), *self.case.original().lengths.values()) - 1
        if isinstance(self.model, Transformer):
            require(self.model.context >= longest, "model.context", self.model.context, f"at least {longest}")


def grid(base: Experiment, **axes: Sequence[Any]) -> list[Experiment]:
    """Every combination of the given values on top of `base`; the last axis runs fastest.

    Raises `InvalidInput` for a name that is no field of `Experiment`, or an axis without values.
    """
    names = [field.name for field in fields(base)]
    for name, values in axes.items():
        require(name in names, "grid axis", name, f"one of {names}")
        require(len(values) > 0, f"grid axis {name}", values, "at least one value")
    return [replace(base, **dict(zip(axes, point, strict=True))) for point in itertools.product(*axes.values())]
