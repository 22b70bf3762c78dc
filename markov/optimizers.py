"""Update rules for an ensemble, in which every run has its own step size.

Every tensor carries the runs on its leading axis.

The optimiser is part of a setting. torch's AdamW adds eps to the bias-corrected root, sqrt(v / (1 -
b2^t)) + eps. The AdamW that transformers shipped before its version 5 adds eps before the
correction, (sqrt(v) + eps) / sqrt(1 - b2^t), which at step 1 is an effective eps 1 / sqrt(1 - b2),
about 32 times, larger. A gradient below eps is damped instead of being rescaled to the step size,
so a loss with small gradients (SimNPO carries 1/|y|) is slowed by it and NPO is not.
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

    It is the only rule here under which the size of a weight reaches the parameters.
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


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw_transformers": AdamW(eps=1e-6, correct_eps=False),
    "adamw": AdamW(),
    "sgd": Sgd(),
}


def _per_run(values: Float[Tensor, " runs"], like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
