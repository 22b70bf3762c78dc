"""What a model still writes of a chain, against all sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from markov.cases import paper_chains
from markov.chains import MarkovChain
from markov.errors import InvalidInput
from markov.measures.extraction import exact_memorization, extraction_strength


def some_rows(states: int, seed: int, *runs: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*runs, states, states, generator=generator, dtype=torch.float64).softmax(-1)


def some_chain(states: int, seed: int) -> MarkovChain:
    rows = some_rows(states + 1, seed)[:, :states]
    rows = rows / rows.sum(-1, keepdim=True)
    return MarkovChain(initial=rows[-1], transition=rows[:-1])


def slow(chain: MarkovChain, model: Tensor, length: int) -> tuple[float, float]:
    """Both measures by their words: over all sequences, state by state."""
    memorised = strength = 0.0
    for sequence in itertools.product(range(chain.states), repeat=length):
        share = math.exp(float(chain.log_prob(torch.tensor(sequence))))
        right = [int(model[now].argmax()) == after for now, after in itertools.pairwise(sequence)]
        tail = next((place for place, own in enumerate(reversed(right)) if not own), len(right))
        memorised += share * sum(right) / len(right)
        strength += share * tail / len(right)
    return memorised, strength


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(2, 6), st.integers(0, 10_000))
def test_both_measures_are_means_over_all_sequences(states: int, length: int, seed: int) -> None:
    chain, model = some_chain(states, seed), some_rows(states, seed + 1)
    want = slow(chain, model, length)
    assert float(exact_memorization(chain, model, length)) == pytest.approx(want[0])
    assert float(extraction_strength(chain, model, length)) == pytest.approx(want[1])


@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 10_000))
def test_many_runs_are_measured_as_each_alone(states: int, length: int, seed: int) -> None:
    chain, models = some_chain(states, seed), some_rows(states, seed + 1, 2, 3)
    for measure in (exact_memorization, extraction_strength):
        found = measure(chain, models, length)
        alone = [measure(chain, one, length) for one in models.reshape(-1, states, states)]
        torch.testing.assert_close(found, torch.stack(alone).reshape(2, 3))


@given(st.integers(2, 6), st.integers(2, 20), st.integers(0, 10_000))
def test_nobody_is_right_more_often_than_who_knows_the_chain(
    states: int, length: int, seed: int
) -> None:
    chain, model = some_chain(states, seed), some_rows(states, seed + 1)
    best = float(exact_memorization(chain, chain.transition, length))
    assert float(exact_memorization(chain, model, length)) <= best + 1e-12
    # A tail is a part of what is right.
    assert extraction_strength(chain, model, length) <= exact_memorization(chain, model, length)


def test_a_chain_that_is_certain_is_all_there_or_not_at_all() -> None:
    turn = torch.eye(4, dtype=torch.float64).roll(1, 1)
    chain = MarkovChain(initial=torch.full((4,), 0.25, dtype=torch.float64), transition=turn)
    for measure in (exact_memorization, extraction_strength):
        assert float(measure(chain, turn, 9)) == 1 and float(measure(chain, turn.T, 9)) == 0


def test_the_papers_chain_by_hand() -> None:
    chain = paper_chains().forget1  # of three states of its own, among which it goes by 0.8 / 3
    best = float(exact_memorization(chain, chain.transition, 2))
    # The first state is one of them by 0.8; from any other the next one is right by 1/10.
    assert best == pytest.approx(0.8 * 0.8 / 3 + 0.2 * 0.1)
    assert float(extraction_strength(chain, chain.transition, 2)) == pytest.approx(best)
    other = paper_chains().retain
    assert float(exact_memorization(chain, other.transition, 2)) == pytest.approx(
        0.8 * 0.2 / 7 + 0.2 * 0.1
    )


def test_what_cannot_be_measured_is_refused() -> None:
    chain, model = some_chain(3, 0), some_rows(3, 1)
    for rows, length, field in (
        (model[:2], 5, "model"),
        (some_rows(4, 1), 5, "model"),
        (2 * model, 5, "model"),
        ([[1.0]], 5, "model"),
        (model, 1, "length"),
        (model, 2.0, "length"),
    ):
        for measure in (exact_memorization, extraction_strength):
            with pytest.raises(InvalidInput, match="chain"):
                measure("x", model, 5)  # pyright: ignore[reportArgumentType]
            with pytest.raises(InvalidInput) as caught:
                measure(chain, rows, length)  # pyright: ignore[reportArgumentType]
            assert caught.value.field == field
