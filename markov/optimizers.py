"""Update rules for an ensemble, in which every run has its own step size.

Every tensor carries the runs on its leading axis.

The optimiser is part of a setting. torch's AdamW adds eps to the bias-corrected root, sqrt(v / (1 -
b2^t)) + eps. The AdamW that transformers shipped before its version 5 adds eps before the
correction, (sqrt(v) + eps) / sqrt(1 - b2^t), which at step 1 is an effective eps 1 / sqrt(1 - b2),
about 32 times, larger. A gradient below eps is damped instead of being rescaled to the step size,
so a loss with small gradients (SimNPO carries 1/|y|) is slowed by it and NPO is not.

`Clipped` and `Matched` hold another rule: the one cuts the gradients that it is given, the other
gives its steps a length. Both go by the norm over all parameters of a run, so that no run knows its
company.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from markov.errors import require, require_number

State = dict[str, tuple[Tensor, ...]]


class Optimizer(Protocol):
    """A rule that changes parameters in place from their gradients."""

    def init(self, parameters: Mapping[str, Tensor]) -> State:
        """Return the state before the first step."""
        ...

    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: State,
        learning_rate: Float[Tensor, " runs"],
        count: int,
    ) -> None:
        """Take step number `count` (the first is 1), changing `parameters` and `state` in place."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Plain gradient descent.

    It is the only rule here under which the size of a weight reaches the parameters in full.
    """

    def init(self, parameters: Mapping[str, Tensor]) -> State:
        """Return an empty state."""
        return {name: () for name in parameters}

    @torch.no_grad()
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: State,
        learning_rate: Float[Tensor, " runs"],
        count: int,
    ) -> None:
        """Take the step theta <- theta - lr g."""
        for name, parameter in parameters.items():
            parameter.addcmul_(gradients[name], _per_run(learning_rate, parameter), value=-1)


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam without weight decay (the paper's is 0), with eps after or before the bias correction.

        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2
        theta <- theta - lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + e)

    with e = eps sqrt(1 - b2^t) where `correct_eps` (torch's rule), else e = eps (transformers' rule
    before version 5).
    """

    eps: float = 1e-8
    correct_eps: bool = True
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        # With eps = 0 a parameter without gradient, such as the embedding of an unseen token, would
        # become 0/0.
        require_number(self.eps, "eps", lambda number: number > 0, "a positive number")
        require(
            isinstance(self.correct_eps, bool), "correct_eps", self.correct_eps, "True or False"
        )
        for field in ("beta1", "beta2"):
            require_number(
                getattr(self, field), field, lambda number: 0 <= number < 1, "a number in [0, 1)"
            )

    def init(self, parameters: Mapping[str, Tensor]) -> State:
        """Return first and second moments of zero."""
        return {
            name: (torch.zeros_like(value), torch.zeros_like(value))
            for name, value in parameters.items()
        }

    @torch.no_grad()
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: State,
        learning_rate: Float[Tensor, " runs"],
        count: int,
    ) -> None:
        """Take one step by the formula of the class."""
        root = math.sqrt(1 - self.beta2**count)
        eps = self.eps * root if self.correct_eps else self.eps
        scale = root / (1 - self.beta1**count)
        for name, parameter in parameters.items():
            gradient, (first, second) = gradients[name], state[name]
            first.lerp_(gradient, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            update = first / second.sqrt().add_(eps)
            parameter.addcmul_(update, _per_run(learning_rate, parameter), value=-scale)


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """Another rule, given gradients whose global norm is at most `norm`.

    g <- g min(1, norm / |g|),  |g| over all parameters of a run
    """

    rule: Optimizer
    norm: float

    def __post_init__(self) -> None:
        require_number(self.norm, "norm", lambda number: number > 0, "a positive number")

    def init(self, parameters: Mapping[str, Tensor]) -> State:
        """Return the state of the rule."""
        return self.rule.init(parameters)

    @torch.no_grad()
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: State,
        learning_rate: Float[Tensor, " runs"],
        count: int,
    ) -> None:
        """Take the rule's step from the gradients that are cut."""
        share = (self.norm / _norms(gradients)).clamp(max=1)
        cut = {name: one * _per_run(share, one) for name, one in gradients.items()}
        self.rule.step(parameters, cut, state, learning_rate, count)


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Another rule, of whose steps only the direction is taken: each is as long as the step size.

        theta <- theta + lr d / |d|,  d the rule's step, |d| over all parameters of a run

    So all runs of a step size take steps of one length, however large their gradients are. A step
    of length 0 stays one. The rule must not look at where the parameters are, as weight decay does.
    """

    rule: Optimizer

    def init(self, parameters: Mapping[str, Tensor]) -> State:
        """Return the state of the rule."""
        return self.rule.init(parameters)

    @torch.no_grad()
    def step(
        self,
        parameters: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        state: State,
        learning_rate: Float[Tensor, " runs"],
        count: int,
    ) -> None:
        """Take a step in the rule's direction."""
        # From 0, where the step of the rule has all its digits.
        moved = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.rule.step(moved, gradients, state, torch.ones_like(learning_rate), count)
        norms = _norms(moved)
        scale = torch.where(norms == 0, norms, learning_rate / norms)
        for name, parameter in parameters.items():
            parameter.addcmul_(moved[name], _per_run(scale, parameter))


ADAMW_TRANSFORMERS = AdamW(eps=1e-6, correct_eps=False)
OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw_transformers": ADAMW_TRANSFORMERS,
    "adamw": AdamW(),
    "sgd": Sgd(),
    "adamw_transformers_matched": Matched(rule=ADAMW_TRANSFORMERS),
    "sgd_matched": Matched(rule=Sgd()),
}


def clipped(rule: Optimizer, norm: float | None) -> Optimizer:
    """Return a rule with its gradients cut to a norm, or the rule itself where that is None."""
    return rule if norm is None else Clipped(rule=rule, norm=norm)


def _per_run(values: Float[Tensor, " runs"], like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _norms(tensors: Mapping[str, Tensor]) -> Float[Tensor, " runs"]:
    """Return the norm of each run over all tensors together."""
    # One column per tensor, summed along the last axis: how a sum along the first axis is taken
    # depends on the number of runs.
    squares = [one.reshape(len(one), -1).square().sum(-1) for one in tensors.values()]
    return torch.stack(squares, dim=-1).sum(-1).sqrt()
