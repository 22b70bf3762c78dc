"""The scalar law: closed forms against numerical integration of the shipped weight, limits and
rates.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from markov.errors import InvalidInput
from markov.objectives import CORNERS, Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from markov.theory import beyond_last_goal, divergence, fallen_beside, theta, time_to_forget

objectives = st.builds(
    lambda corner, beta, gamma: Objective(beta, gamma, *corner),
    st.sampled_from(list(CORNERS.values())),
    st.sampled_from([0.0, 0.05, 0.5, 2.5]),
    st.floats(-1, 1),
)


def integrated(objective: Objective, length: int, time: float, start: float) -> float:
    """d theta/dt = -|y| weight with the weight of the shipped law, by scipy."""

    def slope(_: float, now: np.ndarray) -> np.ndarray:
        logp, ref = (torch.tensor(length * value, dtype=torch.float64) for value in (now[0], start))
        seq = SequenceLogProbs(logp, torch.tensor(float(length), dtype=torch.float64), ref)
        return np.array([-length * float(objective.weight(seq))])

    found = solve_ivp(slope, (0, time), [start], method="LSODA", rtol=1e-10, atol=1e-12)
    assert found.success
    return float(found.y[0, -1])


@settings(max_examples=40)
@given(objectives, st.integers(1, 20), st.floats(0.01, 3.0), st.floats(-3.0, -0.1))
def test_the_closed_form_solves_the_flow_of_the_shipped_weight(
    o: Objective, length: int, time: float, start: float
) -> None:
    assert float(theta(o, length, time, start)) == pytest.approx(
        integrated(o, length, time, start), rel=1e-6, abs=1e-8
    )


@settings(max_examples=100)
@given(objectives, st.integers(1, 50), st.floats(0.0, 3.0), st.floats(-3.0, -0.1))
def test_time_to_forget_inverts_the_flow(
    o: Objective, length: int, fall: float, start: float
) -> None:
    time = time_to_forget(o, length, fall, start)
    assert float(theta(o, length, time, start)) == pytest.approx(start - fall, rel=1e-6, abs=1e-6)


@settings(max_examples=30)
@given(objectives, st.floats(0.0, 2.0), st.floats(-3.0, -0.1))
def test_what_one_response_has_fallen_when_another_one_has(
    o: Objective, fall: float, start: float
) -> None:
    lengths, there = np.array([4, 20, 80]), time_to_forget(o, 20, fall, start)
    found = fallen_beside(o, lengths, 20, fall, start)
    np.testing.assert_allclose(found, start - theta(o, lengths, there, start), rtol=1e-12)
    assert found[1] == pytest.approx(fall, rel=1e-6, abs=1e-6)


@given(st.integers(1, 100), st.floats(0.1, 5.0))
def test_under_simnpo_the_length_does_not_matter_and_under_small_beta_npo_time_is_one_over_it(
    length: int, fall: float
) -> None:
    for o in (simnpo(2.5), simnpo(4.0, 0.5), gradient_ascent(1.0)):
        assert float(time_to_forget(o, length, fall)) == pytest.approx(
            float(time_to_forget(o, 1, fall)), rel=1e-12
        )
    small = npo(1e-6)
    assert float(time_to_forget(small, length, fall)) == pytest.approx(fall / length, rel=1e-3)
    assert float(time_to_forget(gradient_ascent(), length, fall)) == pytest.approx(
        fall / length, rel=1e-12
    )


def test_npo_is_as_fast_as_one_over_the_length_only_while_beta_length_fall_is_small() -> None:
    # The exponent of the length, fitted: -1 at first, as the paper argues, but positive once the
    # weight has died out.
    lengths = np.array([2.0, 5.0, 10.0, 20.0, 40.0, 80.0])
    early, late = (
        np.polyfit(np.log(lengths), np.log(time_to_forget(npo(0.2), lengths, f)), 1)[0]
        for f in (1e-3, 2.0)
    )
    assert early == pytest.approx(-1.0, abs=0.01)
    assert late > 0


def test_the_papers_approximation_is_the_tail_of_the_exact_solution() -> None:
    times, beta, length = np.array([1e3, 1e5, 1e7]), 0.1, 20
    paper = -np.log1p(2 * beta * length**2 * times) / (beta * length)
    gap = np.abs(theta(npo(beta), length, times, 0.0) - paper)
    assert gap[0] > gap[1] > gap[2] and gap[2] < 1e-3


@pytest.mark.parametrize("name", CORNERS)
def test_late_falls_are_logarithmic_with_the_stated_constant_and_linear_at_beta_zero(
    name: str,
) -> None:
    times, length = np.geomspace(1e6, 1e9, 20), 10
    o = Objective(0.5, 0.3, *CORNERS[name])
    slope = np.polyfit(np.log(times), -theta(o, length, times), 1)[0]
    assert slope == pytest.approx(float(divergence(o, length).logarithmic), rel=1e-3)
    assert float(divergence(o, length).linear) == 0
    ascent = o._replace(beta=0.0)
    slope = np.polyfit(times, -theta(ascent, length, times), 1)[0]
    assert slope == pytest.approx(float(divergence(ascent, length).linear), rel=1e-9)
    assert float(divergence(ascent, length).logarithmic) == 0


@settings(max_examples=30)
@given(st.sampled_from(list(CORNERS.values())), st.integers(1, 30), st.floats(0.1, 2.0))
def test_small_beta_joins_gradient_ascent(
    corner: tuple[float, float], length: int, fall: float
) -> None:
    near, limit = (
        float(time_to_forget(Objective(beta, 0.0, *corner), length, fall)) for beta in (1e-9, 0.0)
    )
    assert near == pytest.approx(limit, rel=1e-6)


def test_everything_broadcasts_over_lengths_betas_and_times() -> None:
    lengths, betas = np.arange(1.0, 101)[:, None], np.geomspace(0.01, 10, 30)
    found = time_to_forget(Objective(betas, 0.0, 1.0, 0.0), lengths, 1.0)  # pyright: ignore[reportArgumentType]
    assert found.shape == (100, 30)
    assert found[41, 7] == time_to_forget(npo(float(betas[7])), 42, 1.0)


def test_what_cannot_be_computed_is_refused_or_infinite() -> None:
    for call, field in (
        (lambda: theta(npo(1), 0, 1), "length"),
        (lambda: theta(npo(1), 1, -1), "time"),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field
    for fall in (-1, (), [[]], np.ones(0)):
        with pytest.raises(InvalidInput, match="fall"):
            time_to_forget(npo(1), 1, fall)
    # What is named is what is wrong, not its neighbour.
    for call, wrong in (
        (lambda: theta(npo(1), [1, np.inf], 1), "length = inf "),
        (lambda: theta(npo(1), [1, np.nan], 1), "length = nan "),
        (lambda: theta(npo(1), 1, [1, np.nan]), "time = nan "),
        (lambda: theta(npo(1), 1, 1, [-1, -np.inf]), "start = -inf "),
        (lambda: theta(npo(1), 1, 1, [-1, np.nan]), "start = nan "),
        (lambda: theta(npo(1), 1, 1, [-1, 0.5]), "start = 0.5 "),
        (lambda: fallen_beside(npo(1), 1, [1, 0], 1), "other = 0.0 "),
        (lambda: fallen_beside(npo(1), [1, 0], 1, 1), "length = 0.0 "),
        (lambda: theta("npo", 0, -1), "objective = "),  # pyright: ignore[reportArgumentType]
        (lambda: time_to_forget("npo", 0, -1), "objective = "),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(InvalidInput, match=wrong):
            call()
    assert time_to_forget(npo(10.0), 1000, 1.0) == np.inf
    assert np.isnan(fallen_beside(npo(10.0), 1, 1000, 1.0))
    assert time_to_forget(npo(10.0), 1000, 0.0) == 0
    assert np.isfinite(theta(npo(10.0), 1000, 1e300))


@settings(max_examples=100)
@given(
    objectives,
    st.lists(
        st.tuples(st.integers(1, 50), st.floats(0.0, 2.0), st.floats(-3.0, -0.1)),
        min_size=1,
        max_size=4,
    ),
)
def test_at_the_last_goal_one_is_there_and_the_others_are_beyond(
    o: Objective, responses: list[tuple[int, float, float]]
) -> None:
    length, fall, start = np.array(responses, dtype=float).T
    times, found = time_to_forget(o, length, fall, start), beyond_last_goal(o, length, fall, start)
    assert found[times.argmax()] == 0 and (found >= 0).all()
    expected = start - fall - theta(o, length, times.max(), start)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_at_the_last_goal_gradient_ascent_has_taken_long_responses_too_far_by_their_length() -> (
    None
):
    found = beyond_last_goal(gradient_ascent(), np.array([4.0, 20.0]), 0.5)
    np.testing.assert_allclose(found, [0.0, 0.5 * 20 / 4 - 0.5])
    np.testing.assert_allclose(beyond_last_goal(simnpo(1.0), np.array([4.0, 20.0]), 0.5), 0.0)
    assert np.isnan(beyond_last_goal(npo(10.0), np.array([4.0, 200.0]), 3.0)).all()
