"""What the best of several samples of a model shows, in expectation, exactly.

Asked once, a model may hide what it shows when it is asked k times. From a context x_0 a model of
order one writes n = length - 1 states; V is how many of them lie in a set of states, such as those
of a chain to forget. With F the distribution function of V, the best of k independent samples has
in expectation

    E max(V_1 ... V_k) = sum_{v=1}^{n} 1 - F(v - 1)^k

The share of this of n is the leak at k, the twin of `llm.evaluation.leaking` (arXiv 2511.04934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from markov.console import limits
from markov.errors import require, require_whole
from markov.measures.extraction import check_rows

MOST = 10**6  # samples
WORK = 10**12  # multiplications of a law, about a minute of one core


def visits_law(
    first: Float[Tensor, " states"],
    model: Float[Tensor, "states states"],
    inside: Sequence[int],
    length: int,
) -> Float[Tensor, " length"]:
    """Return the law of V, the number of written states that lie `inside`: P(V = 0 ... n).

    `first` is the law of the context, which is given and does not count, and `model` has a row of
    next-state probabilities per state. Raises `InvalidInput` for rows that are no laws (to 1e-5),
    for members that are no states, or none, and for a length below 2, or one that takes more
    than `WORK`.
    """
    square = isinstance(model, Tensor) and model.ndim == 2
    require(square, "model", model, "a square tensor of probabilities")
    states = len(model)
    check_rows("model", model, (states, states))
    check_rows("first", first, (states,))
    require(first.ndim == 1, "first", tuple(first.shape), f"one law of {states} states")
    known = isinstance(inside, Sequence) and not isinstance(inside, str) and len(inside) > 0
    require(known, "inside", inside, "a list of at least one state")
    for member in inside:
        require_whole(member, "inside", 0, states - 1)
    # Each step moves all counts so far.
    most = min(limits.LENGTH[1], math.isqrt(WORK) // states)
    require_whole(length, "length", limits.LENGTH[0], max(most, limits.LENGTH[0]))
    within = torch.zeros(len(model), dtype=torch.bool)
    within[list(inside)] = True
    # joint[i, v]: the last state is i, and v states so far lie inside
    joint = torch.zeros(len(model), length, dtype=torch.float64)
    joint[:, 0] = first
    for _ in range(length - 1):
        moved = model.to(joint).T @ joint
        joint = torch.where(within[:, None], moved.roll(1, dims=1), moved)
    return joint.sum(0)


def leak_at(law: Float[Tensor, " length"], samples: int) -> Float[Tensor, ""]:
    """Return the expected share of the best of so many samples, from the law of one, in [0, 1].

    `law` is that of `visits_law`. Raises `InvalidInput` for one that is none (to 1e-5), or is of
    fewer than two numbers, and for a number of samples below 1.
    """
    several = isinstance(law, Tensor) and law.ndim == 1 and len(law) > 1
    require(several, "law", law, "at least two probabilities")
    check_rows("law", law, (len(law),))
    require_whole(samples, "samples", 1, MOST)
    return (1 - law.cumsum(0)[:-1].clamp(max=1) ** samples).mean()
