"""Weights from log-probabilities alone, and whether they go where they are needed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.diagnostics.allocation import (
    allocation,
    allocation_area,
    allocation_curve,
    bias,
    length_correlation,
    misplaced,
    pearson,
    spearman,
)
from llm.diagnostics.weights import (
    COLUMNS,
    corners,
    diagnose,
    named,
    upper_half,
    weights_table,
    with_halves,
    with_needed,
)
from llm.intervals import bootstrap
from llm.logs.log import Answers, EvaluationLog, shared, take
from llm.logs.reading import read_log
from markov.errors import InvalidInput
from markov.objectives import (
    Objective,
    SequenceLogProbs,
    gradient_ascent,
    length_normalized_npo,
    npo,
    reference_free_npo,
    simnpo,
)

REAL = (
    Path(os.environ.get("SIMNPO_LAB_TOFU", Path(__file__).parents[4] / "shared" / "tofu")) / "logs"
)
needs_real_logs = pytest.mark.skipif(
    not (REAL / "llama2-7b_full").is_dir(),
    reason="no TOFU logs: SIMNPO_LAB_TOFU names the folder that holds them",
)
SOME = named(
    [
        npo(0.1),
        length_normalized_npo(2.5),
        reference_free_npo(0.1),
        simnpo(2.5, 0.5),
        gradient_ascent(1.0),
    ]
)


def some_sequences(count: int = 20, seed: int = 0) -> SequenceLogProbs:
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 60, count).astype(float)
    logp, ref = -length * rng.uniform(0.1, 3, count), -length * rng.uniform(0.001, 0.2, count)
    return SequenceLogProbs(*(torch.from_numpy(x) for x in (logp, length, ref)))


def some_log(loss: np.ndarray, length: np.ndarray, file: str = "log.json") -> EvaluationLog:
    return EvaluationLog(file, "lists", np.arange(len(loss)), Answers(loss / length, loss, length))


def some_pair(count: int = 20, seed: int = 0) -> tuple[EvaluationLog, EvaluationLog]:
    """The logs of an original and of a retrained model, which is the less sure of nearly every
    answer.
    """
    rng = np.random.default_rng(seed)
    length = rng.integers(2, 60, count).astype(float)
    original, retrained = (
        length * rng.uniform(0.001, 0.2, count),
        length * rng.uniform(0.1, 3, count),
    )
    return some_log(original, length, "original.json"), some_log(
        retrained, length, "retrained.json"
    )


def floats(frame: pd.DataFrame, column: str) -> np.ndarray:
    return frame[column].to_numpy(dtype=float)


def pick(frame: pd.DataFrame, **keys: str) -> dict[str, float]:
    """The one row with these keys."""
    (row,) = frame[
        np.logical_and.reduce([frame[name] == key for name, key in keys.items()])
    ].to_dict("records")
    return {str(name): value for name, value in row.items()}


# --- weights ---


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 999))
def test_weights_are_those_of_the_law_one_example_at_a_time(count: int, seed: int):
    seq = some_sequences(count, seed)
    table = weights_table(seq, SOME, index=np.arange(count) * 3)
    assert list(table.columns) == [
        "index",
        "logp",
        "length",
        "ref",
        *(f"weight_{name}" for name in SOME),
    ]
    for place in range(count):
        logp, length, ref = (float(part[place]) for part in seq)
        row = table.iloc[place]
        assert (row["index"], row["logp"], row["length"], row["ref"]) == (
            3 * place,
            logp,
            length,
            ref,
        )
        for name, (beta, gamma, reference, normalize) in SOME.items():
            z = beta * (logp - reference * ref) / length**normalize + gamma
            assert row[f"weight_{name}"] == pytest.approx(
                2 / (1 + np.exp(-z)) / length**normalize, rel=1e-12
            )


@settings(max_examples=20)
@given(st.permutations(range(8)))
def test_permuting_examples_permutes_rows_and_nothing_else(order: list[int]):
    seq, at = some_sequences(8), list(order)
    permuted = SequenceLogProbs(*(part[at] for part in seq))
    got, want = (
        weights_table(permuted, SOME, np.array(at)),
        weights_table(seq, SOME).iloc[at].reset_index(drop=True),
    )
    pd.testing.assert_frame_equal(got, want)


def test_float32_and_gradients_are_taken_as_they_come_and_computed_in_float64():
    seq = some_sequences()
    single = SequenceLogProbs(*(part.float().requires_grad_() for part in seq))
    table, want = weights_table(single, SOME), weights_table(seq, SOME)
    assert set(table.dtypes[1:]) == {np.dtype(float)}
    np.testing.assert_allclose(table.to_numpy(dtype=float), want.to_numpy(dtype=float), rtol=1e-4)


def test_names_of_columns_say_corner_beta_and_margin():
    objectives = [
        npo(0.1),
        simnpo(2.5),
        simnpo(2.5, 0.5),
        length_normalized_npo(4.5),
        reference_free_npo(0.05),
        gradient_ascent(),
        gradient_ascent(1.0),
        gradient_ascent(0.5),
        Objective(1.0, -0.5, 0.5, 1.0),
    ]
    assert list(named(objectives)) == [
        "npo_b0.1",
        "simnpo_b2.5",
        "simnpo_b2.5_g0.5",
        "length_normalized_npo_b4.5",
        "reference_free_npo_b0.05",
        "gradient_ascent",
        "length_weighted_gradient_ascent",
        "gradient_ascent_n0.5",
        "between_r0.5_n1_b1_g-0.5",
    ]
    assert list(named(objectives).values()) == objectives
    assert corners(0.2, 4.5, 0.5) == named(
        [npo(0.2), reference_free_npo(0.2), length_normalized_npo(4.5), simnpo(4.5, 0.5)]
    )


def bad(part: str, value: float) -> SequenceLogProbs:
    values = getattr(some_sequences(), part).clone()
    values[4] = value
    return some_sequences()._replace(**{part: values})


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: weights_table(bad("length", 0.0), SOME), "length"),
        (lambda: weights_table(bad("logp", float("nan")), SOME), "logp"),
        (lambda: weights_table(bad("ref", -float("inf")), SOME), "ref"),
        (lambda: weights_table(some_sequences()._replace(ref=torch.zeros(3)), SOME), "ref"),
        (lambda: weights_table(some_sequences(), SOME, np.arange(3)), "index"),
        (lambda: weights_table(some_sequences(), {"bad": Objective(-1.0)}), "beta"),
        (
            lambda: weights_table(some_sequences(), {"stack": Objective(torch.ones(20))}),
            "objectives",
        ),
        (lambda: named([npo(0.1), npo(0.1)]), "objectives"),
        (lambda: named([Objective(torch.ones(2))]), "objectives"),
        (lambda: named([Objective(1.0, normalize=2.0)]), "normalize"),
        (lambda: with_needed(weights_table(some_sequences(), SOME), np.zeros(3)), "retrained"),
        (
            lambda: with_needed(weights_table(some_sequences(), SOME), np.full(20, np.nan)),
            "retrained",
        ),
        (lambda: bias(weights_table(some_sequences(), SOME)), "table"),
        (
            lambda: bias(with_needed(weights_table(some_sequences(), {}), np.full(20, -99.0))),
            "table",
        ),
        (lambda: bias(with_needed(weights_table(some_sequences(), SOME), np.zeros(20))), "needed"),
        (lambda: length_correlation(weights_table(some_sequences(), {})), "table"),
        (lambda: length_correlation(weights_table(some_sequences(2), SOME)), "examples"),
        (lambda: allocation(diagnose(*some_pair(), SOME), "effort"), "effort"),
        (lambda: allocation(diagnose(*some_pair(), SOME), "push", "tokens"), "need"),
        (lambda: bootstrap(pearson, np.arange(5.0), np.arange(4.0)), "examples"),
        (lambda: bootstrap(pearson, np.arange(5.0), np.arange(5.0), resamples=10), "resamples"),
        (lambda: bootstrap(pearson, np.arange(5.0), np.arange(5.0), level=95), "level"),
        (lambda: upper_half(np.zeros(1), np.zeros(1)), "examples"),
    ],
)
def test_bad_input_is_refused_by_name(call, field: str):
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field


# --- what is needed ---


def test_a_diagnosis_has_the_promised_columns_and_starts_at_the_reference():
    original, retrained = some_pair()
    table = diagnose(original, retrained, corners())
    promised = ["index", "length", "ref", "retrained", "needed", "needed_per_token"]
    assert list(table.columns) == [*promised, *(f"weight_{name}" for name in corners())]
    assert set(promised) <= set(COLUMNS)
    assert (
        original.gold.total is not None
        and retrained.gold.total is not None
        and original.gold.length is not None
    )
    needed = retrained.gold.total - original.gold.total  # losses: the signs turn
    np.testing.assert_allclose(table["needed"], needed, rtol=1e-12)
    np.testing.assert_allclose(table["needed_per_token"], needed / original.gold.length, rtol=1e-12)
    np.testing.assert_array_equal(table["ref"], -original.gold.total)
    np.testing.assert_array_equal(table["retrained"], -retrained.gold.total)


@settings(max_examples=20)
@given(st.integers(3, 15), st.integers(0, 999), st.floats(0.01, 10))
def test_at_the_reference_the_reference_says_nothing(count: int, seed: int, beta: float):
    # NPO weighs all examples alike whatever they are, and per token it weighs them by one over
    # their length.
    table = diagnose(*some_pair(count, seed), named([npo(beta), length_normalized_npo(beta)]))
    assert (floats(table, f"weight_npo_b{beta:g}") == 1).all()
    per_token = floats(table, f"weight_length_normalized_npo_b{beta:g}")
    np.testing.assert_allclose(per_token, 1 / table["length"], rtol=1e-15)


def test_examples_are_matched_by_index_and_warned_of_when_nothing_differs():
    original, retrained = some_pair(6)
    want = diagnose(original, retrained, SOME)
    got = diagnose(take(original, [3, 1, 5, 0, 2, 4]), take(retrained, [5, 4, 3, 2, 1, 0]), SOME)
    pd.testing.assert_frame_equal(got.sort_values("index", ignore_index=True), want)
    with pytest.warns(UserWarning, match="same losses"):
        same = diagnose(original, original, SOME)
    assert (same["needed"] == 0).all()
    with pytest.raises(InvalidInput, match=r"'6 and 4'.*original.json and retrained.json"):
        diagnose(original, take(retrained, [0, 1, 2, 3]), SOME)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=15), st.randoms(use_true_random=False))
def test_halves_split_by_value_and_go_with_the_example(values: list[int], random):
    found = upper_half(np.array(values, dtype=float), np.arange(len(values)))
    assert found.sum() == len(values) // 2
    assert max(v for v, up in zip(values, found, strict=True) if not up) <= min(
        v for v, up in zip(values, found, strict=True) if up
    )
    order = random.sample(range(len(values)), len(values))
    np.testing.assert_array_equal(
        upper_half(np.array(values, dtype=float)[order], np.array(order)), found[order]
    )


def test_halves_of_a_table_are_by_length_and_by_what_only_the_original_knows():
    halves = with_halves(diagnose(*some_pair(21), SOME))
    long, strong = halves["length_half"] == "long", halves["memorised_half"] == "strong"
    assert (long.sum(), strong.sum()) == (10, 10)
    assert halves.loc[long, "length"].min() >= halves.loc[~long, "length"].max()
    assert (
        halves.loc[strong, "needed_per_token"].min() > halves.loc[~strong, "needed_per_token"].max()
    )


# --- correlations and their intervals ---


@settings(max_examples=20)
@given(st.integers(3, 30), st.integers(0, 999))
def test_correlations_are_scipys_row_by_row(count: int, seed: int):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(4, count)), rng.integers(0, 4, size=(4, count)).astype(float)
    y[:, 0] = 9.0  # not constant
    for mine, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        want = [theirs(a, b).statistic for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(mine(x, y), want, rtol=1e-10, atol=1e-12)


def test_a_constant_has_no_correlation_and_no_interval_even_if_constant_only_up_to_rounding():
    assert np.isnan(pearson(np.ones(5), np.arange(5.0))) and np.isnan(
        spearman(np.arange(5.0), np.ones(5))
    )
    assert np.isnan(bootstrap(spearman, np.arange(5.0), np.ones(5))[:3]).all()
    # Weight times length is 1 under length-normalised NPO at the reference, but not to the last
    # digit.
    table = diagnose(*some_pair(200), corners())
    push = table["weight_length_normalized_npo_b2.5"] * table["length"]
    assert push.nunique() > 1
    found = bias(table, resamples=100)
    constant = found["spearman"].isna()
    assert set(zip(found[constant]["objective"], found[constant]["effort"], strict=True)) == {
        ("npo_b0.1", "weight"),
        ("length_normalized_npo_b2.5", "push"),
    }
    even = pick(length_correlation(table, resamples=100), objective="npo_b0.1")
    assert all(np.isnan(even[name]) for name in even.keys() - {"objective", "count"})


def test_what_differs_by_rounding_alone_does_not_vary():
    x, rng = np.arange(20.0), np.random.default_rng(0)
    noisy = 0.3 + 1e-14 * rng.normal(size=20)
    assert np.ptp(noisy) > 0
    for statistic in (pearson, spearman):
        assert np.isnan(statistic(x, noisy)) and np.isnan(statistic(noisy, x))
        assert np.isfinite(statistic(x, 0.3 + 1e-6 * x)) and np.isfinite(statistic(x, -1e-30 * x))
        found = bootstrap(statistic, x, noisy)
        assert np.isnan(found[:3]).all()


def test_a_need_that_is_rounding_is_none_and_nothing_else_changes_with_it():
    rng, seq = np.random.default_rng(1), some_sequences()
    table = weights_table(seq, SOME)
    ref, last = table["ref"].to_numpy(), np.arange(len(table)) >= 15
    noise = ref * 1e-14 * np.where(np.arange(len(table)) % 2, 1.0, -1.0)
    fall = rng.uniform(1, 9, len(table))
    equal, rounded = (with_needed(table, ref - np.where(last, off, fall)) for off in (0.0, noise))
    assert 0 < (rounded["needed"][15:] > 0).sum() < 5
    pd.testing.assert_frame_equal(
        bias(rounded, resamples=100), bias(equal, resamples=100), check_exact=True
    )
    pd.testing.assert_frame_equal(allocation(rounded), allocation(equal), check_exact=True)
    even = pick(bias(rounded, resamples=100), objective="npo_b0.1", effort="weight", need="total")
    weight = table["weight_npo_b0.1"].to_numpy()
    assert even["unneeded"] == pytest.approx(weight[15:].sum() / weight.sum())
    with pytest.raises(InvalidInput, match=r"0 of 20 positive"):
        bias(with_needed(table, ref + np.abs(noise)))
    with pytest.raises(InvalidInput, match=r"0 of 20 positive"):
        bias(with_needed(table, ref - np.abs(noise)))


def test_a_bootstrap_interval_covers_as_often_as_it_says_and_narrows_as_the_root_of_the_count():
    correlation, runs = 0.6, 300
    truth, widths = 6 / np.pi * np.arcsin(correlation / 2), []
    for count in (50, 200):
        covered, width = 0, 0.0
        for seed in range(runs if count == 50 else 40):
            pairs = np.random.default_rng(seed).multivariate_normal(
                [0, 0], [[1, correlation], [correlation, 1]], count
            )
            found = bootstrap(
                spearman, pairs[:, 0], pairs[:, 1], resamples=200, seed=seed, level=0.9
            )
            assert found.low < found.value < found.high
            covered += found.low < truth < found.high
            width += found.high - found.low
        widths.append(width / (runs if count == 50 else 40))
        if count == 50:
            # 300 draws at 0.9: a standard error of 0.017, and percentile intervals cover a little
            # less than they say.
            assert 0.84 < covered / runs < 0.95
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    x, y = np.random.default_rng(0).normal(size=(2, 40))
    assert (
        bootstrap(pearson, x, y, seed=3)
        == bootstrap(pearson, x, y, seed=3)
        != bootstrap(pearson, x, y, seed=4)
    )
    narrow, wide = (bootstrap(pearson, x, y, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


# --- allocation ---


def slow_area(needed: list[float], effort: list[float]) -> float:
    """Trapezoids under the curve, the neediest example first, in plain loops."""
    pairs = sorted(zip(needed, effort, strict=True), key=lambda pair: (-pair[0], pair[1]))
    whole, spent = sum(max(need, 0) for need, _ in pairs), sum(push for _, push in pairs)
    area = height = 0.0
    for need, push in pairs:
        area += max(need, 0) / whole * (height + push / spent / 2)
        height += push / spent
    return area


amounts = st.lists(
    st.tuples(st.integers(-3, 9), st.integers(0, 9)), min_size=2, max_size=12
).filter(lambda pairs: any(need > 0 for need, _ in pairs) and any(push > 0 for _, push in pairs))


@settings(max_examples=60)
@given(amounts, st.randoms(use_true_random=False), st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_area_is_its_definition_and_knows_neither_order_nor_units(
    pairs, random, in_need: float, in_effort: float
):
    needed, effort = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    area = float(allocation_area(needed, effort))
    assert area == pytest.approx(slow_area(needed.tolist(), effort.tolist()), rel=1e-12, abs=1e-12)
    order = random.sample(range(len(pairs)), len(pairs))
    for other in (
        allocation_area(needed[order], effort[order]),
        allocation_area(needed * in_need, effort * in_effort),
    ):
        assert float(other) == pytest.approx(area, rel=1e-9, abs=1e-9)
    rows = allocation_area(np.stack([needed, needed[order]]), np.stack([effort, effort[order]]))
    np.testing.assert_allclose(rows, area, rtol=1e-12, atol=1e-12)
    assert 0 <= float(misplaced(needed, effort)) <= 1 + 1e-12


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 50), min_size=3, max_size=20).filter(lambda needs: max(needs) > 0.1))
def test_an_effort_in_proportion_to_need_lies_on_the_diagonal(needs: list[float]):
    needed = np.array(needs)
    proportional = 3 * np.maximum(needed, 0)
    curve = allocation_curve(needed, proportional)
    np.testing.assert_allclose(curve.effort, curve.needed, atol=1e-12)
    assert float(allocation_area(needed, proportional)) == pytest.approx(0.5)
    assert float(misplaced(needed, proportional)) == pytest.approx(0, abs=1e-12)


def test_extreme_allocations_have_extreme_areas_and_the_order_of_need_decides():
    needed = np.linspace(1, 2, 1000)
    first, last = np.zeros(1000), np.zeros(1000)
    first[-1] = last[0] = 1.0  # the neediest and the least needy
    assert float(allocation_area(needed, first)) == pytest.approx(1, abs=2e-3)
    assert float(allocation_area(needed, last)) == pytest.approx(0, abs=2e-3)
    assert float(misplaced(needed, first)) == pytest.approx(1, abs=2e-3)
    areas = [float(allocation_area(needed, needed**power)) for power in (-2, 0, 1, 3)]
    assert areas[0] < areas[1] < areas[2] == pytest.approx(0.5) and areas[3] > 0.5


def test_an_even_effort_over_evenly_spread_needs_has_area_one_third_and_a_quarter_misplaced():
    # needed uniform on (0, 1): the neediest share q of examples has 2q - q^2 of the need, and area
    # = int q d(2q - q^2). |1 - 2x| / 2 integrates to 1/4.
    needed = (np.arange(4000) + 0.5) / 4000
    assert float(allocation_area(needed, np.ones(4000))) == pytest.approx(1 / 3, abs=1e-6)
    assert float(misplaced(needed, np.ones(4000))) == pytest.approx(1 / 4, abs=1e-6)


def test_what_needs_nothing_has_no_share_and_what_is_spent_on_it_is_lost():
    needed, effort = np.array([2.0, -1.0, 2.0, -50.0]), np.array([1.0, 3.0, 1.0, 5.0])
    curve = allocation_curve(needed, effort)
    np.testing.assert_allclose(curve.needed, [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(curve.effort, [0, 0.1, 0.2, 0.5, 1])
    # half of the 0.2 that goes where it is needed
    assert float(allocation_area(needed, effort)) == pytest.approx(0.1)
    assert float(misplaced(needed, effort)) == pytest.approx(0.8)
    assert np.isnan(allocation_area(-(needed**2), effort)) and np.isnan(
        misplaced(needed, 0 * effort)
    )
    # How little they need does not matter: not by how much the retrained model is the surer one.
    assert float(allocation_area(np.array([2.0, -9.0, 2.0, -9.5]), effort)) == pytest.approx(0.1)


def test_a_table_of_bias_has_every_objective_effort_and_need_by_the_stated_law():
    table = diagnose(*some_pair(30), SOME)
    found = bias(table, resamples=200)
    assert len(found) == len(SOME) * 4 and (found["count"] == 30).all()
    for row in found.to_dict("records"):
        effort = floats(table, f"weight_{row['objective']}") * (
            table["length"] if row["effort"] == "push" else 1
        )
        needed = floats(
            table, {"total": "needed", "per_token": "needed_per_token"}[str(row["need"])]
        )
        assert row["area"] == pytest.approx(slow_area(needed.tolist(), list(effort)), rel=1e-9)
        assert row["misplaced"] == pytest.approx(
            float(misplaced(needed, np.asarray(effort))), rel=1e-9
        )
        if not np.isnan(row["spearman"]):
            want = stats.spearmanr(needed, np.round(effort / effort.max(), 12)).statistic
            assert row["spearman"] == pytest.approx(want, rel=1e-9)
            assert row["spearman_low"] <= row["spearman"] <= row["spearman_high"]
        assert row["area_low"] <= row["area"] <= row["area_high"]
        assert row["unneeded"] == pytest.approx(effort[needed <= 0].sum() / effort.sum())
    pd.testing.assert_frame_equal(found, bias(table, resamples=200))
    assert not found.equals(bias(table, resamples=200, seed=1))


def test_unneeded_effort_is_counted():
    original, retrained = some_pair(30)
    assert original.gold.total is not None and retrained.gold.total is not None
    # needs nothing, or less than nothing
    kept = original.gold.total * np.where(retrained.index % 6 == 0, 1.0, 0.5)
    surer = np.where(retrained.index % 3 == 0, kept, retrained.gold.total)
    table = diagnose(
        original, retrained._replace(gold=retrained.gold._replace(total=surer)), named([npo(0.1)])
    )
    found = bias(table, resamples=100)
    assert found[found["effort"] == "weight"]["unneeded"].tolist() == pytest.approx([1 / 3, 1 / 3])


def test_allocation_curves_of_a_table_run_from_corner_to_corner_and_hold_the_areas():
    table = diagnose(*some_pair(30), SOME)
    found = bias(table, resamples=100)
    for effort in ("weight", "push"):
        for need in ("total", "per_token"):
            curves = allocation(table, effort, need)
            assert list(curves.columns) == ["objective", "needed_share", "effort_share"]
            for name, curve in curves.groupby("objective"):
                x, y = floats(curve, "needed_share"), floats(curve, "effort_share")
                assert (
                    (len(x), x[0], y[0]) == (31, 0, 0)
                    and (np.diff(x) >= 0).all()
                    and (np.diff(y) >= 0).all()
                )
                assert (x[-1], y[-1]) == pytest.approx((1, 1))
                area = pick(found, objective=str(name), effort=effort, need=need)["area"]
                assert np.trapezoid(y, x) == pytest.approx(area, rel=1e-9)


def test_weights_of_one_over_the_length_fall_with_length_and_push_of_an_even_weight_rises():
    table = diagnose(*some_pair(60), SOME)
    found = length_correlation(table, resamples=200).set_index("objective")
    assert list(found.columns) == [
        "count",
        *(f"{s}{e}" for s in ("pearson", "spearman") for e in ("", "_low", "_high")),
    ]
    assert found.loc["length_weighted_gradient_ascent", "spearman"] == pytest.approx(-1)
    assert found.loc["length_weighted_gradient_ascent", "pearson"] == pytest.approx(
        stats.pearsonr(1 / table["length"], table["length"]).statistic
    )
    row = pick(bias(table, resamples=100), objective="npo_b0.1", effort="push", need="total")
    assert row["spearman"] == pytest.approx(
        stats.spearmanr(table["length"], table["needed"]).statistic
    )


# --- the law on real logs ---


def real(model: str) -> EvaluationLog:
    return read_log(REAL / f"llama2-7b_{model}")


@needs_real_logs
def test_on_llama_nobody_pushes_where_it_is_needed_and_length_normalisation_least():
    table = diagnose(real("full"), real("retain90"), corners(0.1, 4.5))
    assert (
        len(table) == 300 and (table["weight_npo_b0.1"] == 1).all() and (table["needed"] > 0).all()
    )
    assert table["needed"].mean() == pytest.approx(101.74, abs=0.005)
    assert table["length"].mean() == pytest.approx(43.44, abs=1e-9)
    # The original knows every answer by heart, so what is needed is what the retrained model lacks:
    # it grows as length.
    assert float(spearman(floats(table, "length"), floats(table, "needed"))) == pytest.approx(
        0.847, abs=5e-4
    )
    found = bias(table, resamples=300)
    for name, correlation, area in [
        ("npo_b0.1", np.nan, 0.346),
        ("reference_free_npo_b0.1", -0.484, 0.344),
        ("length_normalized_npo_b4.5", -0.847, 0.255),
        ("simnpo_b4.5", -0.848, 0.255),
    ]:
        row = pick(found, objective=name, effort="weight", need="total")
        assert row["spearman"] == pytest.approx(correlation, abs=5e-4, nan_ok=True)
        assert row["area"] == pytest.approx(area, abs=5e-4) and row["area_high"] < 0.5
    even, shortest = (
        pick(found, objective=name, effort="weight", need="total")
        for name in ("npo_b0.1", "simnpo_b4.5")
    )
    assert even["area_low"] > shortest["area_high"]


@needs_real_logs
def test_on_llama_the_two_retrained_models_agree_on_what_the_questions_they_share_need():
    first, second = shared(real("full"), real("retain95"))
    ninety_five = diagnose(first, second, corners())
    ninety = diagnose(first, take(real("retain90"), first.index), corners())
    assert len(ninety_five) == 100
    assert float(spearman(floats(ninety, "needed"), floats(ninety_five, "needed"))) > 0.95
