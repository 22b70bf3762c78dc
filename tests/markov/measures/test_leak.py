"""The best of several samples, against all samples."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from markov.errors import InvalidInput
from markov.measures.sampling import MOST, leak_at, visits_law
from tests.markov.measures.test_extraction import some_rows


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 3), st.integers(2, 6), st.integers(0, 10_000), st.data())
def test_the_law_of_visits_is_that_over_all_sequences(
    states: int, length: int, seed: int, data: st.DataObject
) -> None:
    inside = data.draw(st.sets(st.integers(0, states - 1), min_size=1))
    first, model = some_rows(states, seed)[0], some_rows(states, seed + 1)
    want = torch.zeros(length, dtype=torch.float64)
    for sequence in itertools.product(range(states), repeat=length):
        share = float(first[sequence[0]])
        for now, after in itertools.pairwise(sequence):
            share *= float(model[now, after])
        want[sum(state in inside for state in sequence[1:])] += share
    torch.testing.assert_close(visits_law(first, model, sorted(inside), length), want)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_the_best_of_k_is_the_mean_over_all_k_samples(values: int, samples: int, seed: int) -> None:
    law = some_rows(values, seed)[0]
    want = sum(
        max(drawn) * float(law[list(drawn)].prod())
        for drawn in itertools.product(range(values), repeat=samples)
    )
    assert float(leak_at(law, samples)) == pytest.approx(want / (values - 1))


def test_whoever_never_gets_there_leaks_nothing_and_whoever_does_leaks_all_in_time() -> None:
    first, model = (
        torch.tensor([1.0, 0.0]).double(),
        torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double(),
    )
    law = visits_law(first, model, [1], 6)
    found = [float(leak_at(law, samples)) for samples in (1, 2, 128, MOST)]
    assert found == sorted(found) and found[-1] > 0.999
    hidden = visits_law(first, torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double(), [1], 6)
    assert float(leak_at(hidden, 128)) == 0
    assert float(leak_at(visits_law(first, model, [0, 1], 6), 1)) == pytest.approx(1)


def test_what_has_no_law_is_refused() -> None:
    first, model = some_rows(3, 0)[0], some_rows(3, 1)
    for call, field in (
        (lambda: visits_law(first, model[:2], [0], 4), "model"),
        (lambda: visits_law(first[:2], model, [0], 4), "first"),
        (lambda: visits_law(2 * first, model, [0], 4), "first"),
        (lambda: visits_law(first, 2 * model, [0], 4), "model"),
        (lambda: visits_law(first, torch.zeros(0, 0), [0], 4), "model"),
        (lambda: visits_law(model, model, [0], 4), "first"),
        (lambda: visits_law(first, model, 5, 4), "inside"),  # pyright: ignore[reportArgumentType]
        (lambda: visits_law(first, model, "ab", 4), "inside"),  # pyright: ignore[reportArgumentType]
        (lambda: visits_law(some_rows(200, 0)[0], some_rows(200, 1), [0], 50_000), "length"),
        (lambda: leak_at(torch.tensor([1, 0]), 3), "law"),
        (lambda: visits_law(first, model, [], 4), "inside"),
        (lambda: visits_law(first, model, [3], 4), "inside"),
        (lambda: visits_law(first, model, [0], 1), "length"),
        (lambda: leak_at(first[:1], 3), "law"),
        (lambda: leak_at(2 * first, 3), "law"),
        (lambda: leak_at(first, 0), "samples"),
        (lambda: leak_at(first, MOST + 1), "samples"),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field
