"""The figure `weights`: what its caption claims, on the frame that it draws."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.fits import power_law, straight_line
from figures.scale import BETAS
from figures.theory import weights
from llm.intervals import Estimate
from markov.objectives import CORNERS

SUMMED, PER_TOKEN = ("npo", "reference_free_npo"), ("length_normalized_npo", "simnpo")
WITH_REFERENCE = ("npo", "length_normalized_npo")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return weights.data(Context())


def at(frame: pd.DataFrame, corner: str, beta: float, fall: float) -> pd.DataFrame:
    chosen = (frame["corner"] == corner) & (frame["beta"] == beta) & (frame["fall"] == fall)
    return frame[chosen & (frame["view"] == "length")]


def against_fall(frame: pd.DataFrame, corner: str) -> pd.DataFrame:
    """Weights at the one beta shown: a row per fall, a column per length."""
    chosen = (frame["view"] == "fall") & (frame["corner"] == corner) & (frame["beta"] > 0)
    return frame[chosen].pivot(index="fall", columns="length", values="weight")


def rate_in_length(own: pd.DataFrame) -> Estimate:
    """Slope of log(w / (2 - w)) in |y|: minus the rate exactly, as that of log w is where w is
    small.
    """
    return straight_line(own["length"], np.log(own["weight"] / (2 - own["weight"]))).slope


def test_every_weight_is_the_formula_of_its_panel(frame: pd.DataFrame) -> None:
    shown = {
        "npo": lambda beta, d, y: 2 / (1 + math.exp(beta * d * y)),
        "length_normalized_npo": lambda beta, d, y: 2 / (1 + math.exp(beta * d)) / y,
        "reference_free_npo": lambda beta, d, y: 2 / (1 + math.exp(beta * (1 + d) * y)),
        "simnpo": lambda beta, d, y: 2 / (1 + math.exp(beta * (1 + d))) / y,
    }
    for row in frame.itertuples():
        expected = shown[str(row.corner)](row.beta, row.fall, row.length)
        assert row.weight == pytest.approx(expected, rel=1e-12)
    assert (frame["logp"] == frame["length"] * (-1 - frame["fall"])).all()
    assert (frame["ref"] == -frame["length"]).all() and (frame["gamma"] == 0).all()


def test_all_corners_are_shown_at_every_beta_of_their_grid_and_in_the_limit(
    frame: pd.DataFrame,
) -> None:
    assert list(dict.fromkeys(frame["corner"])) == list(CORNERS)
    for corner, (_, normalize) in CORNERS.items():
        own = frame[frame["corner"] == corner]
        assert set(own["beta"]) == {0.0, *BETAS[corner]}
        limit = "length_weighted_gradient_ascent" if normalize else "gradient_ascent"
        assert set(own.loc[own["beta"] == 0, "method"]) == {limit}
        assert set(own.loc[own["beta"] > 0, "method"]) == {corner}
        assert set(own.loc[own["view"] == "length", "fall"]) == {0.0, 0.5}  # as the caption says
        lengths = own.loc[own["view"] == "length", "length"]
        assert (lengths.min(), lengths.max()) == pytest.approx((1, 100))
        assert set(own.loc[own["view"] == "fall", "length"]) == {4, 19, 80}
        assert set(own.loc[(own["view"] == "fall") & (own["beta"] > 0), "beta"]) == {
            weights.SHOWN[corner]
        }


def test_before_the_first_step_beta_lowers_weights_only_without_a_reference(
    frame: pd.DataFrame,
) -> None:
    for corner in CORNERS:
        limit = at(frame, corner, 0.0, 0.0)["weight"].to_numpy()
        previous = limit
        for beta in BETAS[corner]:
            now = at(frame, corner, beta, 0.0)["weight"].to_numpy()
            if corner in WITH_REFERENCE:
                np.testing.assert_array_equal(now, limit)
            else:
                assert (now < previous).all()
            previous = now
    assert (at(frame, "npo", 0.2, 0.0)["weight"] == 1).all()


def test_gradient_ascent_does_not_see_what_has_fallen(frame: pd.DataFrame) -> None:
    for corner, (_, normalize) in CORNERS.items():
        own = frame[(frame["corner"] == corner) & (frame["beta"] == 0)]
        assert own["weight"].to_numpy() == pytest.approx(
            own["length"].to_numpy() ** -normalize, rel=1e-14
        )


@pytest.mark.parametrize("fall", weights.FALLS)
@pytest.mark.parametrize("corner", PER_TOKEN)
def test_where_the_length_is_normalised_the_weight_goes_as_one_over_it(
    frame: pd.DataFrame, corner: str, fall: float
) -> None:
    for beta in BETAS[corner]:
        own = at(frame, corner, beta, fall)
        found = power_law(own["length"], own["weight"]).exponent
        assert found[:3] == pytest.approx((-1, -1, -1), abs=1e-12)


@pytest.mark.parametrize("fall", weights.FALLS)
@pytest.mark.parametrize("corner", SUMMED)
def test_where_the_log_probability_is_summed_the_weight_dies_out_exponentially_at_the_stated_rate(
    frame: pd.DataFrame, corner: str, fall: float
) -> None:
    for beta in BETAS[corner]:
        rate = beta * (fall + (corner == "reference_free_npo"))
        found = rate_in_length(at(frame, corner, beta, fall))
        assert found[:3] == pytest.approx((-rate,) * 3, rel=1e-9, abs=1e-12)
        if rate >= 0.5:
            # Where the weight is small the same rate is that of the weight itself.
            tail = at(frame, corner, beta, fall).query("length > 30")
            assert straight_line(
                tail["length"], np.log(tail["weight"])
            ).slope.value == pytest.approx(-rate, rel=1e-4)


@pytest.mark.parametrize("corner", PER_TOKEN)
def test_lengths_keep_their_proportions_where_the_length_is_normalised(
    frame: pd.DataFrame, corner: str
) -> None:
    wide = against_fall(frame, corner)
    assert (wide[4.0] / wide[80.0]).to_numpy() == pytest.approx(20, rel=1e-12)
    assert (wide[4.0] / wide[19.0]).to_numpy() == pytest.approx(19 / 4, rel=1e-12)


def test_npo_lets_long_responses_go_first_by_the_numbers_of_the_caption(
    frame: pd.DataFrame,
) -> None:
    wide = against_fall(frame, "npo")
    assert (wide.iloc[0] == 1).all()
    later = wide.iloc[1:]
    assert (later[4.0] > later[19.0]).all() and (later[19.0] > later[80.0]).all()
    for ratio in (wide[4.0] / wide[80.0], wide[4.0] / wide[19.0]):
        assert (np.diff(ratio) > 0).all()
    half = wide.loc[0.5]
    numbers = (half[4.0] / half[80.0], 20)
    caption = " ".join((weights.__doc__ or "").split())
    assert (
        f"the short response weighs {numbers[0]:.0f} times as much as the long one under NPO, and "
        "20 times" in caption
    )
    free = against_fall(frame, "reference_free_npo")
    assert (free[80.0] < weights.LOWEST).all() and (free[4.0] > 0.2).all()


def test_no_weight_exceeds_its_bound_and_the_printed_one_of_simnpo_is_loose_by_two(
    frame: pd.DataFrame,
) -> None:
    exponents = frame["corner"].map(
        {corner: normalize for corner, (_, normalize) in CORNERS.items()}
    )
    assert frame["bound"].to_numpy() == pytest.approx(
        2 / frame["length"].to_numpy() ** exponents, rel=1e-14
    )
    # The start is no more likely than the reference, and a fall only makes it less so: half the
    # bound is never passed.
    assert (frame["weight"] <= frame["bound"] / 2 * (1 + 1e-15)).all()
    tight = frame[(frame["beta"] == 0) & frame["corner"].isin(PER_TOKEN)]
    assert (tight["bound"] / tight["weight"]).to_numpy() == pytest.approx(2, rel=1e-14)


def test_the_figure_draws_the_frame_and_leaves_it_alone(frame: pd.DataFrame) -> None:
    before = frame.copy(deep=True)
    with style.look():
        figure = weights.plot(frame)
    assert isinstance(figure, Figure)
    pd.testing.assert_frame_equal(frame, before)
    grid = np.array(figure.axes).reshape(3, len(CORNERS))
    for column, corner in enumerate(CORNERS):
        assert grid[0, column].get_title() == style.LABELS[corner]
        for row, fall in enumerate(weights.FALLS):
            drawn = [line.get_ydata() for line in grid[row, column].lines]
            for beta in (0.0, *BETAS[corner]):
                expected = at(frame, corner, beta, fall)["weight"].to_numpy()
                assert any(np.array_equal(expected, line) for line in drawn)
            limit = at(frame, corner, 0.0, fall)["bound"].to_numpy()
            assert (
                any(np.array_equal(limit, line) for line in drawn)
                and len(drawn) == len(BETAS[corner]) + 2
            )
        below = [line.get_ydata() for line in grid[2, column].lines]
        for length, weight in against_fall(frame, corner).items():
            assert any(np.array_equal(weight.to_numpy(), line) for line in below), length
        assert len(below) == 2 * len(weights.LOOK)


def test_a_line_of_each_beta_has_a_shade_of_its_own_and_the_limits_their_colours(
    frame: pd.DataFrame,
) -> None:
    with style.look():
        figure = weights.plot(frame)
    for axes, (_, normalize) in zip(figure.axes[: len(CORNERS)], CORNERS.values(), strict=True):
        limit = "length_weighted_gradient_ascent" if normalize else "gradient_ascent"
        colors = {line.get_label(): line.get_color() for line in axes.lines}
        assert colors["β = 0"] == style.COLORS[limit]
        assert len(set(colors.values())) >= len(colors) - 1  # GA and the bound may both be black


def test_no_scale_changes_the_weights(frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(weights.data(Context(n_jobs=1, progress=False)), frame)
