"""Calls in Python that cannot mean anything: one kind of error, with the field and what is allowed,
whatever is given and wherever. And what can be computed is, to the ends of a dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy
import torch

import markov
from markov import (
    LENGTH,
    MarkovChain,
    Mixture,
    Objective,
    SequenceLogProbs,
    Tabular,
    Transformer,
    gradient_ascent,
    npo,
    simnpo,
)
from markov.errors import InvalidInput, shown
from markov.objectives import method_name, stack
from markov.running.run import run_part

SEQ = SequenceLogProbs.of([-3.0, -8.0], [3, 4], [-2.0, -9.0])
CHAIN = LENGTH.chains().retain
STACK = stack([npo(0.1), simnpo(0.2)])
NOTHING: dict[str, Any] = {
    "None": None,
    "text": "text",
    "number as text": "0.1",
    "bytes": b"0.1",
    "true": True,
    "complex": 1j,
    "object": object(),
    "type": float,
    "function": len,
    "dict": {},
    "empty list": [],
    "list of texts": ["a"],
    "generator": (number for number in (1.0, 2.0)),
    "NaT": pd.NaT,
    "NA": pd.NA,
    "frame": pd.DataFrame(),
    "nan": float("nan"),
    "huge": 10**400,
    "large": 10**20,
    "bool array": np.array([True]),
    "text array": np.array(["a"]),
    "objects": np.array([None]),
}
# By name: what takes a value that none of the above is.
CALLS: dict[str, Callable[[Any], object]] = {
    "npo": npo,
    "simnpo": lambda value: simnpo(0.1, value),
    "gradient_ascent": gradient_ascent,
    "length_normalized_npo": markov.length_normalized_npo,
    "reference_free_npo": lambda value: markov.reference_free_npo(0.1, value),
    "beta": lambda value: Objective(value).loss(SEQ),
    "gamma": lambda value: Objective(0.1, value).weight(SEQ),
    "reference": lambda value: Objective(0.1, 0.0, value).score(SEQ),
    "normalize": lambda value: Objective(0.1, 0.0, 0.0, value).logit(SEQ),
    "score": npo(0.1).score,
    "logit": npo(0.1).logit,
    "loss": npo(0.1).loss,
    "centered_loss": npo(0.1).centered_loss,
    "weight": npo(0.1).weight,
    "logp": lambda value: npo(0.1).loss(SEQ._replace(logp=value)),
    "length": lambda value: simnpo(0.1).weight(SEQ._replace(length=value)),
    "ref": lambda value: npo(0.1).centered_loss(SEQ._replace(ref=value)),
    "of": lambda value: SequenceLogProbs.of(value, 3),
    "of, length": lambda value: SequenceLogProbs.of([-3.0], value),
    "of, ref": lambda value: SequenceLogProbs.of([-3.0], 3, value),
    "from_logits": lambda value: SequenceLogProbs.from_logits(value, *TARGETS, ref=0.0),
    "from_logits, mask": lambda value: SequenceLogProbs.from_logits(
        torch.zeros(1, 2, 3), TARGETS[0], value, ref=0.0
    ),
    "explain": lambda value: markov.explain(value, SEQ),
    "explain, seq": lambda value: markov.explain(npo(0.1), value),
    "explain, index": lambda value: markov.explain(npo(0.1), SEQ, value),
    "stack": stack,
    "method_name": method_name,
    "theta": lambda value: markov.theta(value, 3, 1.0),
    "theta, length": lambda value: markov.theta(npo(0.1), value, 1.0),
    "theta, time": lambda value: markov.theta(npo(0.1), 3, value),
    "time_to_forget, start": lambda value: markov.time_to_forget(npo(0.1), 3.0, 1.0, start=value),
    "time_to_forget, fall": lambda value: markov.time_to_forget(npo(0.1), 3.0, value),
    "ideal_forget_distance": markov.ideal_forget_distance,
    "crossings": markov.crossings,
    "run": markov.run,
    "run, in a list": lambda value: markov.run([value]),
    "run, n_jobs": lambda value: markov.run([markov.Experiment()], n_jobs=value),
    "run_part": lambda value: run_part(value, 0, 1, parts=value),
    "trajectory": markov.trajectory,
    "grid": markov.grid,
    "grid, seed": lambda value: markov.grid(markov.Experiment(), seed=value),
    "Tabular": lambda value: Tabular(states=value),
    "Transformer": lambda value: Transformer(width=value),
    "init": lambda value: Transformer(width=4, depth=1).init(value),
    "sample": lambda value: CHAIN.sample(value, 3, torch.Generator()),
    "sample, length": lambda value: CHAIN.sample(3, value, torch.Generator()),
    "sample, generator": lambda value: CHAIN.sample(3, 3, value),
    "log_prob": CHAIN.log_prob,
    "marginals": CHAIN.marginals,
    "expected_row_kl": lambda value: CHAIN.expected_row_kl(value, 3),
    "MarkovChain": lambda value: MarkovChain(initial=value, transition=CHAIN.transition),
    "Mixture": lambda value: Mixture(weights=value, chains=(CHAIN,), lengths=(3,)),
    "Case": lambda value: markov.Case(
        name="a", forget1_length=value, forget2_length=3, pretrain_components=("retain",)
    ),
    "components": lambda value: markov.Case(
        name="a", forget1_length=3, forget2_length=3, pretrain_components=value
    ),
    "LENGTH.sample": LENGTH.sample,
    **{
        f"Experiment, {field}": lambda value, field=field: markov.Experiment(**{field: value})
        for field in ("case", "objective", "model", "pretraining", "seed", "steps", "optimizer")
    },
    **{
        f"Pretraining, {field}": lambda value, field=field: markov.Pretraining(**{field: value})
        for field in ("epochs", "learning_rate", "optimizer", "seed")
    },
}
TARGETS = torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool)
# Of no responses there is nothing to say, and a time may be long.
OF_NUMBERS = ("of", *(call for call in CALLS if call.startswith("t") and ", " in call))
FINE = {(call, name) for call in OF_NUMBERS for name in ("empty list", "frame", "large")}
FINE |= {("length", "large"), ("ref", "large")}  # one number for all responses


@pytest.mark.parametrize("call", CALLS)
def test_a_call_without_a_meaning_is_bad_input(call: str):
    for name, value in NOTHING.items():
        if (call, name) not in FINE:
            with pytest.raises(InvalidInput) as caught:
                CALLS[call](value)
            message = str(caught.value)
            assert caught.value.field and "\n" not in message and len(message) < 900, name


def test_stacked_objectives_are_refused_where_there_is_one():
    for use in (
        lambda: markov.explain(STACK, SEQ),
        lambda: markov.Experiment(objective=STACK),
        lambda: stack([STACK]),
        lambda: method_name(STACK),
    ):
        with pytest.raises(InvalidInput, match=r"one number, not a stack|members of four"):
            use()
    with pytest.raises(InvalidInput, match="in a list of Experiments"):
        markov.run(markov.Experiment())  # pyright: ignore[reportArgumentType]


def test_shapes_that_do_not_go_together_are_refused():
    with pytest.raises(InvalidInput, match=r"length and time and start = .* shapes that go"):
        markov.theta(npo(0.1), [3, 4, 5], [1.0, 2.0])


def test_values_are_named_in_one_line_whatever_they_are():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "<list>" and shown(10**5000) == "<int>"
    assert "\n" not in shown(torch.zeros(9, 9)) and len(shown("x" * 10**6)) <= 300
    while deep:  # a list of so many levels is taken apart by hand, since freeing it recurses
        deep = deep[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_loss_that_can_be_held_is_found(dtype: torch.dtype):
    seq = SequenceLogProbs(*torch.tensor([[-100.0], [20.0], [-30000.0]], dtype=dtype))
    wide = SequenceLogProbs(*(field.double() for field in seq))
    for objective in (npo(10.0), npo(0.1), gradient_ascent(), npo(torch.tensor(10.0, dtype=dtype))):
        for method in ("loss", "centered_loss", "weight"):
            found = getattr(objective, method)(seq)
            exact = getattr(objective, method)(wide)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), exact, rtol=2e-2, atol=1e-2)


def test_a_narrow_response_may_have_one_length_and_one_reference_for_all():
    logp = torch.tensor([-100.0, -3.0], dtype=torch.float16)
    numbers = SequenceLogProbs(logp, 20.0, -50.0)  # pyright: ignore[reportArgumentType]
    tensors = SequenceLogProbs(logp, *(torch.full_like(logp, one) for one in (20.0, -50.0)))
    for objective in (npo(10.0), simnpo(2.0, 0.5), gradient_ascent()):
        for method in ("loss", "centered_loss", "weight"):
            found, expected = (getattr(objective, method)(seq) for seq in (numbers, tensors))
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)


def test_the_slope_of_such_a_loss_is_its_weight():
    numbers = torch.tensor([[-100.0, -3.0], [20.0, 4.0], [-30000.0, -2.0]], dtype=torch.float16)
    logp = numbers[0].clone().requires_grad_()
    npo(10.0).loss(SequenceLogProbs(logp, *numbers[1:])).sum().backward()
    assert logp.grad is not None
    expected = npo(10.0).weight(SequenceLogProbs(*numbers))
    torch.testing.assert_close(logp.grad, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("normalize", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_gradient_ascent_weighs_what_is_impossible_too(normalize: float, gamma: float):
    seq = SequenceLogProbs(*torch.tensor([[-torch.inf, -1.0], [4.0, 4.0], [-1.0, -1.0]]))
    one = Objective(0.0, gamma, 0.0, normalize)
    stacked = Objective(*(torch.as_tensor(field)[:, None] for field in stack([one])))
    for objective in (one, stacked):
        weight = objective.weight(seq)
        assert torch.equal(weight[..., 0], weight[..., 1])
        expected = 2 * torch.tensor(gamma).sigmoid() / 4**normalize
        torch.testing.assert_close(weight[..., 0].reshape(()), expected)


def test_symbols_and_numbers_of_numpy_are_numbers():
    beta = sympy.Symbol("beta", positive=True)
    numbers: tuple[Any, ...] = (sympy.Symbol("l"), sympy.Symbol("n"), sympy.Symbol("r"))
    z = Objective(*(beta, 0, 1, 0)).logit(SequenceLogProbs(*numbers))  # pyright: ignore[reportArgumentType]
    assert z == beta * (numbers[0] - numbers[2])
    for one in (np.float32(0.5), np.float64(0.5), np.int64(1), 1, torch.tensor(0.5), np.array(0.5)):
        assert torch.isfinite(npo(one).loss(SEQ)).all()  # pyright: ignore[reportArgumentType]


def test_objectives_pass_through_vmap():
    both = torch.func.vmap(lambda one, seq: one.weight(seq) + one.loss(seq), in_dims=(0, None))
    found = both(STACK, SequenceLogProbs(*(x.float() for x in SEQ)))
    assert found.shape == (2, 2) and torch.isfinite(found).all()
