"""The one bootstrap: scipy's numbers, examples drawn together, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.evaluation.membership import Membership, auc, auc_interval
from llm.intervals import Estimate, bootstrap, percentile_interval, resample
from markov.errors import InvalidInput

MEAN = partial(np.mean, axis=-1)


def slope(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Least squares, along an axis."""
    dx, dy = (values - values.mean(axis, keepdims=True) for values in (x, y))
    return (dx * dy).sum(axis) / (dx**2).sum(axis)


def theirs(samples: tuple[np.ndarray, ...], statistic: Any, seed: int, **options: Any) -> Any:
    return stats.bootstrap(
        samples,
        statistic,
        n_resamples=200,
        confidence_level=0.9,
        method="percentile",
        random_state=np.random.default_rng(seed),
        **options,
    ).confidence_interval


@settings(max_examples=20)
@given(st.integers(5, 30), st.integers(0, 99))
def test_the_interval_is_scipys_with_the_same_draws(count: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, count))
    mean = bootstrap(MEAN, x, resamples=200, seed=seed, level=0.9)
    assert mean[1:3] == pytest.approx(theirs((x,), np.mean, seed), rel=1e-12)
    assert mean.value == x.mean() and mean.count == count
    pairs = bootstrap(slope, x, y, resamples=200, seed=seed, level=0.9)
    assert pairs[1:3] == pytest.approx(theirs((x, y), slope, seed, paired=True), rel=1e-12)
    apart = auc_interval(Membership(x, y[2:]), resamples=200, seed=seed, level=0.9)
    expected = theirs((x, y[2:]), lambda a, b, axis: auc(a, b), seed, vectorized=True)
    assert apart[1:3] == pytest.approx(expected, rel=1e-12)
    assert apart.count == 2 * count - 2


def test_examples_are_drawn_whole() -> None:
    """Numbers of one example stay side by side in every resample: a slope of 2 has no interval."""
    x = np.random.default_rng(1).normal(size=20)
    found = bootstrap(slope, x, 2 * x)
    assert found[:3] == pytest.approx((2, 2, 2), rel=1e-12)
    assert bootstrap(MEAN, x).low < x.mean() < bootstrap(MEAN, x).high


def test_resamples_without_a_value_are_left_out_and_examples_without_one_have_no_interval() -> None:
    x = np.array([0.0, 1.0, 1.0, 1.0])

    def inverse(values: np.ndarray) -> np.ndarray:
        total = values.sum(-1)
        return np.where(total > 0, 1 / np.where(total > 0, total, 1), np.nan)

    found = bootstrap(inverse, x, resamples=2000)
    # One resample in 256 is all zeros; of the others the totals run from 1 to 4.
    assert np.isfinite(found[:3]).all() and 0.25 <= found.low < found.value < found.high <= 1
    none = bootstrap(inverse, 0 * x)
    assert np.isnan(none[:3]).all() and none.count == 4


def test_a_level_says_how_many_replicates_lie_inside() -> None:
    replicates = np.arange(1001.0)
    assert percentile_interval(7, replicates, 3, 0.5) == Estimate(7.0, 250.0, 750.0, 3)
    low, high = percentile_interval(7, replicates, 3)[1:3]
    assert (low, high) == pytest.approx((25, 975))


def test_resamples_follow_from_the_generator_and_hold_every_example_as_often() -> None:
    found = resample(5, 4000, np.random.default_rng(3))
    assert found.shape == (4000, 5) and set(found.ravel()) == set(range(5))
    assert np.bincount(found.ravel()) == pytest.approx(np.full(5, 4000), rel=0.05)
    np.testing.assert_array_equal(found, resample(5, 4000, np.random.default_rng(3)))


@pytest.mark.parametrize(
    ("field", "samples", "options"),
    [
        ("examples", (np.arange(4.0), np.arange(5.0)), {}),
        ("examples", (np.arange(2.0), np.arange(2.0)), {}),
        *(("resamples", (np.arange(4.0),) * 2, {"resamples": bad}) for bad in (99, 200.0, True)),
        *(("level", (np.arange(4.0),) * 2, {"level": bad}) for bad in (0, 1, 95)),
        ("level", (np.arange(4.0), np.ones(4)), {"level": 1}),
    ],
)
def test_what_cannot_be_is_refused(
    field: str, samples: tuple[np.ndarray, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        bootstrap(slope, *samples, **options)
    assert refused.value.field == field
