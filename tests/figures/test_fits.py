"""Fits: exact laws recovered exactly, intervals that cover as often as they say, and the scalar
law's own exponents.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from figures.fits import Growth, exponent_over_runs, growth, power_law, straight_line
from figures.statistics import mean_interval
from llm.intervals import Estimate
from markov.errors import InvalidInput
from markov.objectives import (
    CORNERS,
    Objective,
    gradient_ascent,
    length_normalized_npo,
    npo,
    reference_free_npo,
    simnpo,
)
from markov.theory import divergence, theta, time_to_forget

LENGTHS = np.array([2.0, 5.0, 10.0, 20.0, 40.0, 80.0])
TIMES = np.linspace(0, 100, 40)
REPEATS = 400


def check_coverage(covered: int, repeats: int = REPEATS) -> None:
    """Nominal 95%, within four standard deviations of the binomial."""
    assert abs(covered / repeats - 0.95) < 4 * np.sqrt(0.95 * 0.05 / repeats)


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def slow_line(x: np.ndarray, y: np.ndarray) -> tuple[Estimate, Estimate]:
    """Slope and intercept by the normal equations, spelled out."""
    count, middle = len(x), x.mean()
    spread = sum((one - middle) ** 2 for one in x)
    slope = sum((one - middle) * other for one, other in zip(x, y, strict=True)) / spread
    intercept = y.mean() - slope * middle
    variance = sum(
        (other - intercept - slope * one) ** 2 for one, other in zip(x, y, strict=True)
    ) / (count - 2)
    factor = stats.t(count - 2).ppf(0.975)
    half = factor * np.sqrt(variance / spread)
    other = factor * np.sqrt(variance * (1 / count + middle**2 / spread))
    return (
        Estimate(slope, slope - half, slope + half, count),
        Estimate(intercept, intercept - other, intercept + other, count),
    )


@given(st.floats(-3, 3), st.floats(-5, 5))
def test_a_power_law_is_recovered_with_its_prefactor_and_no_width(
    exponent: float, log_prefactor: float
) -> None:
    found = power_law(LENGTHS, np.exp(log_prefactor) * LENGTHS**exponent)
    assert found.exponent == pytest.approx((exponent,) * 3 + (6,), abs=1e-12)
    assert found.log_prefactor == pytest.approx((log_prefactor,) * 3 + (6,), abs=1e-12)
    assert found.missing == 0


@given(st.integers(0, 1000))
def test_the_intervals_are_those_of_the_normal_equations(seed: int) -> None:
    y = np.exp(np.random.default_rng(seed).normal(0.3 * np.log(LENGTHS), 0.2))
    slope, intercept = slow_line(np.log(LENGTHS), np.log(y))
    found = power_law(LENGTHS, y)
    assert found.exponent == pytest.approx(slope, rel=1e-9, abs=1e-9)
    assert found.log_prefactor == pytest.approx(intercept, rel=1e-9, abs=1e-9)


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_a_straight_line_is_recovered_and_a_constant_has_a_slope_of_zero_with_no_width(
    slope: float, start: float
) -> None:
    found = straight_line(LENGTHS, slope * LENGTHS + start)
    assert found.slope == pytest.approx((slope,) * 3 + (6,), abs=1e-12)
    assert found.intercept == pytest.approx((start,) * 3 + (6,), abs=1e-11)
    assert straight_line(LENGTHS, np.full(6, start)).slope == pytest.approx((0, 0, 0, 6), abs=1e-15)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.integers(0, 100))
def test_units_change_no_exponent(of_x: float, of_y: float, seed: int) -> None:
    y = np.exp(np.random.default_rng(seed).normal(-np.log(LENGTHS), 0.3))
    plain, scaled = power_law(LENGTHS, y), power_law(of_x * LENGTHS, of_y * y)
    assert scaled.exponent == pytest.approx(plain.exponent, rel=1e-6, abs=1e-6)
    moved = plain.log_prefactor.value + np.log(of_y) - plain.exponent.value * np.log(of_x)
    assert scaled.log_prefactor.value == pytest.approx(moved, abs=1e-6)


def test_the_interval_of_an_exponent_covers_it_as_often_as_it_says() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, size=(REPEATS, len(LENGTHS)))
    check_coverage(
        sum(covers(power_law(LENGTHS, np.exp(one) / LENGTHS).exponent, -1.0) for one in noise)
    )


@pytest.mark.parametrize("unknown", [np.inf, np.nan, 0.0])
def test_points_without_a_logarithm_are_left_out_and_counted(unknown: float) -> None:
    y = 3 / LENGTHS
    y[[1, 4]] = unknown
    found = power_law(LENGTHS, y)
    assert found.exponent == pytest.approx((-1, -1, -1, 4), abs=1e-6)
    assert found.missing == 2


def test_too_few_points_or_one_length_alone_give_no_exponent() -> None:
    for x, y in (
        ([1, 2], [1, 2]),
        ([1, 2, 3], [1, np.inf, 2]),
        ([5, 5, 5, 5], [1, 2, 3, 4]),
        ([], []),
    ):
        found = power_law(x, y)
        assert np.isnan([*found.exponent[:3], *found.log_prefactor[:3]]).all()
        assert found.exponent.count + found.missing == len(x)


def runs(exponents: list[float], noise: float = 0.0) -> pd.DataFrame:
    generator = np.random.default_rng(len(exponents))
    rows = [
        {
            "run": run,
            "length": length,
            "steps": np.exp(0.1 * run + generator.normal(0, noise)) * length**exponent,
        }
        for run, exponent in enumerate(exponents)
        for length in LENGTHS
    ]
    return pd.DataFrame(rows)


def test_the_exponent_over_runs_is_the_mean_of_theirs_with_their_spread() -> None:
    exponents = [-1.2, -1.0, -0.9, -0.7]
    found = exponent_over_runs(runs(exponents), "length", "steps")
    assert found.exponent == pytest.approx(mean_interval(np.array(exponents)), rel=1e-9)
    assert (found.runs, found.points, found.missing) == (4, 24, 0)


def test_points_within_a_run_are_no_replicates() -> None:
    frame = runs([-1.2, -1.0, -0.7], noise=0.1)
    once = exponent_over_runs(frame, "length", "steps")
    twice = exponent_over_runs(pd.concat([frame, frame], ignore_index=True), "length", "steps")
    assert twice.exponent == pytest.approx(once.exponent, rel=1e-9)
    pooled = power_law(frame["length"], frame["steps"]).exponent
    assert pooled.count > once.exponent.count


def test_what_was_never_reached_is_counted_per_point_and_per_run() -> None:
    frame = runs([-1.0, -1.0, -1.0]).rename(columns={"run": "member"})
    frame.loc[(frame["member"] == 0) & (frame["length"] > 40), "steps"] = np.inf
    frame.loc[(frame["member"] == 1) & (frame["length"] > 5), "steps"] = np.nan
    found = exponent_over_runs(frame, "length", "steps", run="member")
    assert found.exponent.value == pytest.approx(-1.0)
    assert (found.exponent.count, found.runs, found.points, found.missing) == (2, 3, 18, 5)


def test_the_interval_over_runs_covers_the_mean_exponent_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(1), 0
    for _ in range(300):
        frame = runs(list(generator.normal(-1, 0.2, size=4)))
        covered += covers(exponent_over_runs(frame, "length", "steps").exponent, -1.0)
    check_coverage(covered, 300)


@given(st.floats(0.01, 100), st.floats(-10, 10))
def test_a_straight_line_is_linear_with_its_rate_and_has_no_logarithm(
    rate: float, start: float
) -> None:
    found = growth(TIMES, rate * TIMES + start)
    assert found.better == "linear"
    assert found.linear == pytest.approx((rate,) * 3 + (40,), rel=1e-6, abs=1e-6)
    assert np.isnan(found.logarithmic[:3]).all() and found.onset == np.inf and found.p_linear == 1
    assert found.linear_residual < found.logarithmic_residual


@given(st.floats(0.1, 10), st.floats(0.1, 100), st.floats(-10, 10))
def test_a_logarithm_is_recovered_with_its_constant_and_its_onset(
    constant: float, onset: float, start: float
) -> None:
    found = growth(TIMES, constant * np.log1p(TIMES / onset) + start)
    assert found.better == "logarithmic"
    assert found.logarithmic == pytest.approx((constant,) * 3 + (40,), rel=1e-4)
    assert found.onset == pytest.approx(onset, rel=1e-4)
    assert found.logarithmic_residual < 1e-3 * found.linear_residual


def test_late_times_of_a_pure_logarithm_are_enough() -> None:
    times = np.geomspace(10, 1e4, 30)
    found = growth(times, 0.7 * np.log(times) + 2)
    assert found.better == "logarithmic"
    assert found.logarithmic.value == pytest.approx(0.7, rel=1e-3)


def test_both_models_and_their_intervals_are_those_of_scipys_nonlinear_fit() -> None:
    times = np.linspace(0, 100, 12)  # few, so that the degrees of freedom tell
    y = 2 * np.log1p(times / 5) + 1 + np.random.default_rng(3).normal(0, 0.1, 12)
    found = growth(times, y)

    def model(t: np.ndarray, constant: float, onset: float, start: float) -> np.ndarray:
        return constant * np.log1p(t / onset) + start

    best, covariance = optimize.curve_fit(model, times, y, p0=(1, 1, 0), xtol=1e-12, ftol=1e-12)
    half = stats.t(9).ppf(0.975) * np.sqrt(covariance[0, 0])
    assert found.logarithmic == pytest.approx(
        (best[0], best[0] - half, best[0] + half, 12), rel=1e-4
    )
    assert found.onset == pytest.approx(best[1], rel=1e-4)
    residual = np.sqrt(((model(times, *best) - y) ** 2).sum() / 9)
    assert found.logarithmic_residual == pytest.approx(residual, rel=1e-6)
    slope, _ = slow_line(times, y)
    assert found.linear == pytest.approx(slope, rel=1e-9)
    straight = np.polyval(np.polyfit(times, y, 1), times)
    assert found.linear_residual == pytest.approx(
        np.sqrt(((straight - y) ** 2).sum() / 10), rel=1e-9
    )
    ratio = 10 * found.linear_residual**2 / found.logarithmic_residual**2 - 9
    assert found.p_linear == pytest.approx(float(stats.f(1, 9).sf(ratio)), rel=1e-3)


def test_the_intervals_of_both_rates_cover_them_and_noise_is_seldom_taken_for_a_bend() -> None:
    generator, covered, bent, straight = np.random.default_rng(2), 0, 0, 0
    for _ in range(REPEATS):
        noise = generator.normal(0, 1, 40)
        covered += covers(growth(TIMES, 2 * np.log1p(TIMES / 5) + 0.05 * noise).logarithmic, 2.0)
        found = growth(TIMES, 0.3 * TIMES + noise)
        straight += covers(found.linear, 0.3)
        bent += found.better == "logarithmic"
    check_coverage(covered)
    check_coverage(straight)
    # Curves that bend up are not offered, so of the 5% of the F test half remains.
    assert abs(bent / REPEATS - 0.025) < 4 * np.sqrt(0.025 * 0.975 / REPEATS)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 50))
def test_units_of_time_and_of_distance_change_the_rates_only_as_units_do(
    of_t: float, of_y: float, seed: int
) -> None:
    y = 2 + np.log1p(TIMES / 5) + np.random.default_rng(seed).normal(0, 0.01, 40)
    plain, scaled = growth(TIMES, y), growth(of_t * TIMES, of_y * y)
    assert scaled.better == plain.better
    assert scaled.exponent == pytest.approx(plain.exponent, rel=1e-6)
    assert scaled.linear.value == pytest.approx(plain.linear.value * of_y / of_t, rel=1e-6)
    assert scaled.logarithmic.value == pytest.approx(plain.logarithmic.value * of_y, rel=1e-4)
    assert scaled.onset == pytest.approx(plain.onset * of_t, rel=1e-4)


def test_a_curve_that_bends_up_is_no_logarithm_and_its_exponent_says_so() -> None:
    found = growth(TIMES, TIMES**2)
    assert found.better == "linear" and np.isnan(found.logarithmic.value)
    assert found.exponent.value == pytest.approx(2.0)
    still = growth(TIMES, np.zeros(40))
    assert still.better == "linear" and still.linear.value == 0 and np.isnan(still.exponent.value)
    sinking = growth(TIMES, 1 - TIMES)
    assert sinking.linear.value == pytest.approx(-1) and np.isnan(sinking.exponent.value)


def test_missing_values_are_left_out_of_both_models() -> None:
    y = np.log1p(TIMES)
    y[[5, 9]] = np.nan, np.inf
    found = growth(TIMES, y)
    assert found.linear.count == found.logarithmic.count == 38 and found.exponent.count == 37
    assert found.logarithmic.value == pytest.approx(1.0, rel=1e-4)


def fall(objective: Objective, length: int, last: float) -> Growth:
    """The exact scalar law, at 60 even times up to `last` in units of 1/k."""
    k = 2 * (objective.beta or 1.0) * length ** (2 - 2 * objective.normalize)
    times = np.linspace(0, last / k, 60)
    return growth(times, -1.0 - theta(objective, length, times))


@pytest.mark.parametrize("name", CORNERS)
def test_the_scalar_law_falls_linearly_at_beta_zero_and_logarithmically_at_any_other(
    name: str,
) -> None:
    for length in (4, 20):
        objective = Objective(0.1 if CORNERS[name][1] == 0 else 2.5, 0.0, *CORNERS[name])
        curved = fall(objective, length, 1e4)
        assert curved.better == "logarithmic"
        assert curved.logarithmic.value == pytest.approx(
            float(divergence(objective, length).logarithmic), rel=0.04
        )
        assert curved.exponent.high < 0.35
        ascent = objective._replace(beta=0.0)
        straight = fall(ascent, length, 1e4)
        assert straight.better == "linear"
        assert straight.linear.value == pytest.approx(
            float(divergence(ascent, length).linear), rel=1e-9
        )
        assert straight.exponent.value == pytest.approx(1.0, abs=1e-9)


def test_from_a_weight_of_one_the_fitted_constant_comes_down_to_the_true_one_slowly() -> None:
    objective = npo(0.2)
    truth = float(divergence(objective, 10).logarithmic)
    excess = [fall(objective, 10, last).logarithmic.value / truth - 1 for last in (10, 100, 1000)]
    assert excess == pytest.approx([0.33, 0.11, 0.03], abs=0.005)
    # Where the weight is small from the start the model is the solution, and its onset is e^-z0 /
    # k.
    small = simnpo(8.0)
    found = fall(small, 10, 1e5)
    assert found.logarithmic.value == pytest.approx(1 / 8, rel=1e-3)
    assert found.onset == pytest.approx(np.exp(8.0) / 16, rel=5e-3)


def test_times_to_forget_go_as_one_over_the_length_for_npo_and_ignore_it_where_normalised() -> None:
    for objective in (npo(1e-6), reference_free_npo(1e-6), gradient_ascent()):
        assert power_law(
            LENGTHS, time_to_forget(objective, LENGTHS, 1.0)
        ).exponent.value == pytest.approx(-1, abs=1e-3)
    for objective in (
        simnpo(2.5),
        simnpo(4.0, 0.5),
        length_normalized_npo(4.0),
        gradient_ascent(1.0),
    ):
        found = power_law(LENGTHS, time_to_forget(objective, LENGTHS, 1.0))
        assert found.exponent == pytest.approx((0, 0, 0, 6), abs=1e-12)


@given(st.floats(0.05, 1.0), st.floats(0.1, 2.0))
def test_npos_time_to_forget_is_least_at_beta_length_fall_of_two_and_grows_with_length_beyond(
    beta: float, fallen: float
) -> None:
    # t = (e^x - 1 + x) / (2 beta |y|^2), x = beta |y| d: d log t / d log |y| = (x - 2)(e^x - 1) /
    # (e^x - 1 + x).
    for x in (0.5, 1.9, 2.0, 2.1, 6.0):
        lengths = x / (beta * fallen) * np.array([1 - 1e-4, 1.0, 1 + 1e-4]) * 1e3
        found = power_law(lengths, time_to_forget(npo(beta / 1e3), lengths, fallen)).exponent
        assert found.value == pytest.approx((x - 2) * np.expm1(x) / (np.expm1(x) + x), abs=1e-6)
    turned = power_law(LENGTHS, time_to_forget(npo(0.5), LENGTHS, 2.0)).exponent
    assert turned.low > 0


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: straight_line([0, 1, np.inf], [1, 2, 3]), "x"),
        (lambda: straight_line([0, 1, 2], [1, np.nan, 3]), "y"),
        (lambda: power_law([0.0, 1, 2], [1, 2, 3]), "x"),
        (lambda: power_law([np.inf, 1, 2], [1, 2, 3]), "x"),
        (lambda: power_law([1, 2, 3], [1, -2, 3]), "y"),
        (lambda: power_law([1, 2, 3], [1, 2]), "y"),
        (lambda: power_law([[1, 2, 3]], [[1, 2, 3]]), "x"),
        (lambda: growth([-1, 0, 1, 2], [0, 1, 2, 3]), "t"),
        (lambda: growth([0, np.nan, 1, 2, 3], [0, 1, 2, 3, 4]), "t"),
        (lambda: growth([0, 1, 2, 2], [0, 1, 2, 3]), "t"),
        (lambda: growth([0, 1, 2, 3], [0, 1, 2, np.inf]), "t"),
        (lambda: exponent_over_runs(runs([1.0]), "size", "steps"), "x"),
        (lambda: exponent_over_runs(runs([1.0]), "length", "size"), "y"),
        (lambda: exponent_over_runs(runs([1.0]), "length", "steps", "size"), "run"),
    ],
)
def test_what_cannot_be_fitted_is_refused_by_name(call: object, field: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field
