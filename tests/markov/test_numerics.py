"""Rounding decides nothing: what is equal but for the last digits counts as equal, on every
processor.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from figures.fits import growth, straight_line
from figures.theory.divergence import exponents
from markov.banks import ExpectedLoss, best_table, from_sequences
from markov.cases import paper_chain
from markov.chains import Mixture
from markov.diagnostics import first_crossing, read_at
from markov.flow import gradient_flow, logp_per_token, time_to_forget
from markov.logistic import Descent, LogisticWorld, Pair, draw, measure
from markov.numerics import MARGIN, exceeds, one_thread, reaches
from markov.objectives import npo

noises = st.floats(-1e-12, 1e-12)


@given(value=st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-6), noise=noises)
def test_what_differs_by_rounding_is_neither_larger_nor_short_of_a_goal(
    value: float, noise: float
) -> None:
    moved = value * (1 + noise)
    assert not exceeds(moved, value) and not exceeds(value, moved)
    assert reaches(moved, value) and reaches(value, moved)
    larger = value + 3 * MARGIN * abs(value)
    assert exceeds(larger, value) and not reaches(value, larger)


def test_comparisons_take_arrays_and_tensors() -> None:
    values = [1.0, 1.0 + 1e-14, 1.1, -1.0, -1.0 + 1e-14]
    other = [1.0, 1.0, 1.0, -1.0, -1.0]
    assert exceeds(np.array(values), np.array(other)).tolist() == [False, False, True, False, False]
    assert exceeds(torch.tensor(values).double(), torch.tensor(other).double()).tolist()[:2] == [
        False,
        False,
    ]
    assert exceeds(0.0, 0.0) is False and bool(reaches(np.zeros(1), 0.0)[0])


@pytest.mark.parametrize("noise", [1e-15, 1e-13])
def test_nothing_has_risen_where_before_and_after_are_equal_but_for_rounding(noise: float) -> None:
    world = LogisticWorld(
        dimension=4, width=8, forget_count=40, retain_count=20, test_count=10, steps=5
    )
    data, run = draw(world), Descent(objective=npo(2.0), learning_rate=0.1, recorded=(0,))
    start = torch.linspace(-1, 2, 8, dtype=torch.float64)
    signs = torch.tensor([1, -1] * 4, dtype=torch.float64)
    for moved in (start * (1 + noise * signs), start * (1 - noise * signs)):
        found = measure(data, Pair(start, start), [run], moved[None, None])
        assert float(found["risen"]) == 0
    far = measure(data, Pair(start, start), [run], (start * (1 + 1e-3 * signs))[None, None])
    assert float(far["risen"]) > 0


@pytest.mark.parametrize("below", [0.0, 1e-16, 1e-8])
def test_a_curve_that_starts_at_its_goal_but_for_rounding_is_there_at_once(below: float) -> None:
    goal = 0.3
    assert first_crossing(np.array([goal - below, 0.2, 0.1]), goal) == 0
    late = first_crossing(np.array([0.1, goal - below, 0.2]), goal)
    assert late == pytest.approx(1, abs=1e-6) and late <= 1
    assert read_at(np.array([5.0, 7.0, 9.0]), late) == pytest.approx(7, abs=1e-5)
    assert np.isnan(first_crossing(np.array([0.1, goal - 1e-3, 0.2]), goal))


def test_points_at_one_place_but_for_rounding_have_no_slope() -> None:
    places = 3.0 * (1 + 1e-15 * np.array([0, 1, -1, 2]))
    assert len(np.unique(places)) > 1
    assert np.isnan(straight_line(places, [1.0, 2.0, 3.0, 4.0]).slope.value)


@given(level=st.floats(0.1, 1e6), seed=st.integers(0, 1000))
def test_a_curve_that_moves_by_rounding_only_is_straight(level: float, seed: int) -> None:
    times = np.arange(0.0, 40.0)
    values = level * (1 + 2e-16 * np.random.default_rng(seed).integers(-1, 2, 40))
    found = growth(times, values)
    assert found.better == "linear" and found.onset == np.inf and np.isnan(found.logarithmic.value)


def small_flow():
    chain = paper_chain(range(3), 4, 0.2)
    mixture = Mixture(weights=(1.0,), chains=(chain,), lengths=(6,))
    bank = from_sequences([chain.sample(30, 6, torch.Generator().manual_seed(0))], (1.0,), 4)
    loss = ExpectedLoss(objective=npo(0.5), bank=bank, reference=best_table(mixture))
    return gradient_flow(loss, np.geomspace(0.1, 30, 20), tolerance=1e-8)


def test_a_flow_answers_at_its_last_time_however_that_is_rounded() -> None:
    flow = small_flow()
    last = flow.times[-1]
    np.testing.assert_array_equal(
        flow.at(np.array([last * (1 + 1e-15)])), flow.at(np.array([last]))
    )
    with pytest.raises(ValueError, match="times"):
        flow.at(np.array([last * 1.001]))


def test_a_fall_that_ends_on_a_step_of_the_solver_is_found() -> None:
    flow, steps = small_flow(), small_flow().path.ts
    start = logp_per_token(flow.loss.bank, flow.loss.reference[None])[0]
    grid = np.interp(np.arange(4 * len(steps) - 3) / 4, np.arange(len(steps)), steps)
    for time in grid[1:]:
        (fall,) = start - logp_per_token(flow.loss.bank, flow.at(np.array([time])))[0]
        for rounded in (fall, np.nextafter(fall, 0), np.nextafter(fall, 9)):
            if rounded > 1e-9:
                assert (
                    time_to_forget(flow, float(rounded))[0] == pytest.approx(time, rel=1e-6)
                    or time == grid[-1]
                )


def test_the_last_decade_of_a_path_starts_where_it_starts_however_times_are_rounded() -> None:
    def frame(scale: float) -> pd.DataFrame:
        times = scale * np.array([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
        values = np.array([1.0, 9.0, 9.0, 10.0, 20.0, 50.0, 100.0])
        known = {"rung": "scalar", "method": "npo", "pretrain_seed": 0}
        return pd.DataFrame({"time": times, "kl_to_reference": values}).assign(**known)

    rounded = frame(1.0)
    rounded.loc[3, "time"] = np.nextafter(10.0, 0)
    assert exponents(rounded)["value"].iloc[0] == pytest.approx(
        exponents(frame(1.0))["value"].iloc[0]
    )
    assert exponents(frame(0.1))["value"].iloc[0] == pytest.approx(
        exponents(frame(1.0))["value"].iloc[0]
    )


def test_the_threads_of_the_caller_come_back_after_an_error_too() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
