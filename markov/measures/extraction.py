"""How much of a chain a model of order one still writes by itself, in expectation, exactly.

These are twins of two measures of language models (`llm.scoring.greedy`). Let T be the transition
matrix of the chain, m_t the law of its state x_t, a(i) the likeliest next state of the model in
state i, and R what the model gets right: R_ij = T_ij where j = a(i), and 0 elsewhere. Of the n =
length - 1 states after the first,

    exact_memorization    (1/n) sum_{t=0}^{n-1} m_t R 1
    extraction_strength   (1/n) sum_{k=1}^{n} m_{n-k} R^k 1

The k-th term of the second is the probability that the last k states are all right, and the sum of
such probabilities is the mean length of the tail. Of several next states that are equally likely
the first one is taken. No model is right more often than one that knows the chain: its exact
memorisation is the mean over contexts of max_j T_ij.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from markov.chains import MarkovChain, require_laws
from markov.console import limits
from markov.errors import require, require_whole

Rows = Float[Tensor, "*runs states states"]


def exact_memorization(chain: MarkovChain, model: Rows, length: int) -> Float[Tensor, "*runs"]:
    """Return the expected share of states that are the model's likeliest ones, in [0, 1].

    `model` has a row of next-state probabilities per state, of one run or of many, and sequences
    have `length` states. Raises `InvalidInput` for rows that are no laws of the chain's states (to
    1e-5), and for a length below 2.
    """
    right = right_transitions(chain, model)
    require_whole(length, "length", *limits.LENGTH)
    return right.sum(-1) @ chain.marginals(length - 1).mean(0)


def extraction_strength(chain: MarkovChain, model: Rows, length: int) -> Float[Tensor, "*runs"]:
    """Return the expected share of states, at the end, that need not be given to the model.

    Given all states before them, greedy decoding writes them. Takes and raises what
    `exact_memorization` does.
    """
    right = right_transitions(chain, model)
    require_whole(length, "length", *limits.LENGTH)
    laws, total = chain.marginals(length - 1), torch.zeros(right.shape[:-2], dtype=right.dtype)
    rest = torch.ones(right.shape[:-1], dtype=right.dtype)
    for first in laws.flip(0):  # the tail grows towards the beginning
        rest = (right @ rest[..., None]).squeeze(-1)
        total = total + rest @ first
    return total / (length - 1)


def check_rows(field: str, rows: object, shape: tuple[int, ...]) -> None:
    """Raise `InvalidInput` unless the last axes have this shape and every row is a law, to 1e-5."""
    proper = isinstance(rows, Tensor) and rows.is_floating_point() and rows.numel() > 0
    found = tuple(rows.shape) if isinstance(rows, Tensor) else rows
    proper = proper and isinstance(found, tuple) and found[-len(shape) :] == shape
    require(proper, field, found, f"a tensor of probabilities, of shape {shape}")
    assert isinstance(rows, Tensor)
    require_laws(field, rows, tolerance=1e-5)


def right_transitions(chain: MarkovChain, model: Rows) -> Rows:
    """Return the chain's transition matrix where it goes to the model's likeliest state, else 0."""
    require(isinstance(chain, MarkovChain), "chain", chain, "a MarkovChain")
    states = chain.states
    check_rows("model", model, (states, states))
    likeliest = torch.nn.functional.one_hot(model.argmax(-1), states)
    return chain.transition * likeliest
