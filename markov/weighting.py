"""What of its weights an objective keeps: all of them, their size, their comparison, or nothing.

An objective reaches the parameters only through its weights w = d loss / d logp, one for each
response of a batch. A weighting f puts others in their place, taken as constants, so that the
gradient of a batch is

    mean_i f(w)_i grad logp_i

    own          f(w)_i = w_i                the objective itself
    magnitude    f(w)_i = mean_j w_j         how large the weights are, batch by batch
    allocation   f(w)_i = w_i / mean_j w_j   how the weights within a batch compare
    none         f(w)_i = 1                  gradient ascent, whatever the objective

A batch of few responses says by its mean weight which responses it holds: of SimNPO's 1/|y| the
magnitude is large where they are short. So magnitude still compares batches, and an optimiser that
adds up steps adds up what they compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Float[Tensor, "*runs batch"]
Weighting = Callable[[Weights], Weights]


def own(weights: Weights) -> Weights:
    """Return the weights as they are."""
    return weights


def magnitude(weights: Weights) -> Weights:
    """Return the mean weight of each batch for every response of it."""
    return _mean(weights).expand_as(weights)


def allocation(weights: Weights) -> Weights:
    """Return the weights over the mean of their batch; nan where all of them are 0."""
    return weights / _mean(weights)


def none(weights: Weights) -> Weights:
    """Return 1 for every response."""
    return torch.ones_like(weights)


WEIGHTINGS: Mapping[str, Weighting] = {
    "own": own,
    "magnitude": magnitude,
    "allocation": allocation,
    "none": none,
}


def reweighted(
    loss: Weights, logp: Weights, weights: Weights, used: Weights
) -> Float[Tensor, "*runs batch"]:
    """Return a loss per response whose d loss / d logp is `used` where that of `loss` is `weights`.

    It is loss + (used - weights) logp. Where the two are equal, the gradient is that of `loss` to
    the last bit. No gradient flows through `weights` and `used`.
    """
    return loss + (used - weights).detach() * logp


def _mean(weights: Weights) -> Float[Tensor, "*runs 1"]:
    # One after the other: how torch sums up a row depends on the number of rows.
    return (reduce(torch.add, weights.unbind(-1)) / weights.shape[-1])[..., None]
