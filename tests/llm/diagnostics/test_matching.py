"""Matching of push and need: at its best scale, by the best weights, and with what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize

from llm.diagnostics.matching import best_weights, match, retaining
from markov.errors import InvalidInput

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, count: int = 8) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """A Gram matrix, a need, and what else is to be drawn."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, count + 2))
    return rows @ rows.T, rng.normal(2.0, 1.0, size=count), rng


@settings(max_examples=40)
@given(SEEDS, st.floats(0.01, 100.0))
@example(7825, 1.0)  # whose best scale is 0
def test_the_scale_is_the_best_and_the_rate_is_free(seed: int, rate: float) -> None:
    k, need, rng = drawn(seed)
    movement = k @ rng.random(len(need))
    found = match(need, movement)
    best = optimize.minimize_scalar(
        lambda s: ((need - s * movement) ** 2).sum(),
        bounds=(0, 100),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found.whole == pytest.approx(1 - best.fun / (need**2).sum(), abs=1e-6)
    other = match(need, rate * movement)
    assert other[1:] == pytest.approx(found[1:]) and other.scale * rate == pytest.approx(
        found.scale
    )
    # A fall that all share is no difference between them.
    assert match(need, movement + 7).differences == pytest.approx(found.differences)
    line = np.polyval(np.polyfit(movement, need, 1), movement)
    explained = 1 - ((need - line) ** 2).sum() / ((need - need.mean()) ** 2).sum()
    rises = np.polyfit(movement, need, 1)[0] > 0
    assert found.differences == pytest.approx(explained if rises else 0.0, abs=1e-9)


def test_what_points_the_other_way_or_nowhere_matches_nothing() -> None:
    need = np.array([1.0, 2.0, 3.0])
    assert match(need, 2 * need) == (0.5, 1.0, pytest.approx(1.0))
    assert match(need, -need) == (0.0, 0.0, 0.0)
    assert match(need, 0 * need) == (0.0, 0.0, 0.0)
    assert match(need, np.ones(3)).whole == pytest.approx(12 / 14)
    assert match(need, np.ones(3)).differences == 0


@settings(max_examples=30)
@given(SEEDS)
def test_the_best_weights_meet_the_conditions_of_a_minimum_and_no_others_do_better(
    seed: int,
) -> None:
    k, need, rng = drawn(seed)
    weights = best_weights(k, need)
    slope = k.T @ (k @ weights - need)
    size = np.abs(k).max() * np.abs(need).max() * len(need)
    assert (weights >= 0).all() and (slope > -1e-8 * size).all()
    assert np.abs(slope[weights > 0]).max(initial=0.0) < 1e-8 * size
    if weights.any():
        other = match(need, k @ rng.random(len(need)))
        assert match(need, k @ weights).whole >= other.whole - 1e-9
        assert match(need, k @ weights).scale == pytest.approx(1.0)


def test_a_need_that_weights_make_is_met_by_these() -> None:
    k, _, rng = drawn(3)
    weights = rng.random(len(k))
    np.testing.assert_allclose(best_weights(1e9 * k, k @ weights), weights / 1e9, rtol=1e-6)


def test_what_is_kept_counts_for_as_much_as_what_is_forgotten_and_the_loss_holds_it() -> None:
    k, _, rng = drawn(4, count=12)
    need, length = np.array([3.0, 1.0, 2.0, 4.0]), rng.integers(2, 9, size=12).astype(float)
    pushes, target = retaining(k, need, length, 3)
    assert pushes.shape == (4 + 5, 4 + 1)
    np.testing.assert_array_equal(target, [*need, 0, 0, 0, 0, 0])
    weights = rng.random(5)
    # The loss is the mean of -logp per token, so that its weight on logp is negative.
    signed = np.concatenate([weights[:4], -weights[4] / 3 / length[4:7], np.zeros(5)])
    moved = k @ signed
    np.testing.assert_allclose(pushes @ weights, [*moved[:4], *(np.sqrt(4 / 5) * moved[7:])])
    # Keeping can only be better served with the loss than without it.
    alone = match(target, pushes[:, :4] @ best_weights(pushes[:, :4], target)).whole
    assert match(target, pushes @ best_weights(pushes, target)).whole >= alone - 1e-12


def test_other_shapes_and_nothing_to_do_are_refused() -> None:
    for need, movement in (
        ([1.0, 2.0], [1.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, np.nan], [1.0, 2.0]),
    ):
        with pytest.raises(InvalidInput):
            match(np.array(need), np.array(movement))
    with pytest.raises(InvalidInput, match="need"):
        best_weights(np.eye(3), np.ones(2))
    with pytest.raises(InvalidInput, match="pushes"):
        best_weights(np.zeros((2, 2)), np.ones(2))
    for trained in (0, 2):
        with pytest.raises(InvalidInput, match="trained"):
            retaining(np.eye(4), np.ones(2), np.ones(4), trained)
