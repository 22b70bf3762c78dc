"""Does a push match a need? What weights move, to first order, beside what has to move.

With K of `llm.scoring.gram`, a small step on losses with weights w lowers the log-probabilities by
rate * K w. The need is the same of the model retrained without the examples,

    need_i = logp_i(now) - logp_i(retrained),    nats, positive where a response has to fall.

The rate is free, so that a push matches as far as it has the direction of the need. Two questions
are asked of it. How much of the need is met, the fall that all responses share included, which any
push that makes all of them fall gets right? And how much of the differences of needs, for which
responses have to fall by unequal amounts?
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize

from llm.diagnostics.allocation import pearson
from markov.errors import require

TRIES = 50  # of the solver, per column


class Match(NamedTuple):
    """How well a movement matches a need.

        scale         s >= 0, the step at which they match best: it minimises |need - s movement|^2
        whole         1 - |need - s movement|^2 / |need|^2, about 0: the square of their cosine
        differences   the square of their correlation, about the means: what a straight line of the
                      movement, with an offset, explains of the need; 0 where it falls

    Both are 0 for a movement that points the other way, or nowhere.
    """

    scale: float
    whole: float
    differences: float


def match(need: Float[np.ndarray, " n"], movement: Float[np.ndarray, " n"]) -> Match:
    """Return how well a movement matches a need, at its best scale.

    Raises `InvalidInput` for other shapes, for a need of 0, and for numbers that are not finite.
    """
    shapes = (need.shape, movement.shape)
    require(need.ndim == 1 and shapes[0] == shapes[1], "movement", shapes, "as many as needs")
    finite = bool(np.isfinite(need).all() and np.isfinite(movement).all())
    require(finite and bool(need.any()), "need", finite, "finite numbers that are not all 0")
    length = float(movement @ movement)
    scale = max(0.0, float(need @ movement) / length) if length > 0 else 0.0
    rest = need - scale * movement
    whole = 1 - float(rest @ rest) / float(need @ need)
    correlation = float(pearson(need, movement))
    return Match(scale, whole, correlation**2 if correlation > 0 else 0.0)


def best_weights(
    pushes: Float[np.ndarray, "rows columns"], need: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " columns"]:
    """Return the weights w >= 0 that minimise |need - pushes w|^2 (Lawson and Hanson's NNLS).

    A column of `pushes` is the movement under weight 1 of one term: a column of K for an example to
    forget, or that of a retain loss (see `retaining`). Of n responses with as many weights nearly
    all of any need can be met, unless weights would have to be negative: what is found says what is
    possible, not what a rule of fewer numbers would reach. Raises `InvalidInput` for other shapes.
    """
    fits = pushes.ndim == 2 and need.shape == pushes.shape[:1]
    require(fits, "need", need.shape, f"a number per row of {pushes.shape}")
    # Scaled, because the solver's tolerance knows no units.
    size = float(np.abs(pushes).max())
    require(0 < size < np.inf, "pushes", size, "finite numbers that are not all 0")
    found, _ = optimize.nnls(pushes / size, need, maxiter=TRIES * pushes.shape[1])
    return found / size


class Kept(NamedTuple):
    """A problem of forgetting and keeping: rows of both, and a last column for the retain loss.

    The rows of what is kept count for as much as those to forget together do, whatever their
    numbers. Their need is 0.
    """

    pushes: Float[np.ndarray, "rows columns"]
    need: Float[np.ndarray, " rows"]


def retaining(
    gram: Float[np.ndarray, "n n"],
    need: Float[np.ndarray, " forget"],
    length: Float[np.ndarray, " n"],
    trained: int,
) -> Kept:
    """Return the problem whose weights lower what is to be forgotten and keep everything else.

    The rows of `gram` are first the examples to forget, then `trained` retain examples, of whose
    mean loss per token the last column is the push, then retain examples that must not move, which
    are others, since a loss moves most what it is taken of. Raises `InvalidInput` where there are
    none.
    """
    count, every = len(need), len(gram)
    others = every - count - trained
    allowed = f"fewer than the {every - count} retain examples, and at least 1"
    require(trained > 0 and others > 0, "trained", trained, allowed)
    used = slice(count, count + trained)
    column = -(gram[:, used] / length[used]).mean(axis=1)
    pushes = np.column_stack([gram[:, :count], column])
    share = np.sqrt(count / others)
    rows = np.concatenate([pushes[:count], share * pushes[count + trained :]])
    return Kept(rows, np.concatenate([need, np.zeros(others)]))
