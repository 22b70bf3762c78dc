"""Laws of the conversions: each gives the logit and the ratio of terms that the other code
computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from markov.conventions import (
    Setting,
    from_open_unlearning_npo,
    from_open_unlearning_simnpo,
    from_paper,
    from_released_tofu,
    from_simpo_ratio,
    from_trl_cpo,
    to_open_unlearning_simnpo,
    to_released_tofu,
)
from markov.errors import InvalidInput
from markov.objectives import Objective, SequenceLogProbs, npo, reference_free_npo, simnpo

pytestmark = pytest.mark.filterwarnings("error")
points = settings(deadline=None, max_examples=60)
betas = st.floats(0.05, 10)
margins = st.floats(-5, 5)
coefficients = st.floats(0.01, 10)

SEQ = SequenceLogProbs(
    *torch.tensor([[-12.0, -3.0], [8.0, 5.0], [-9.0, -4.0]], dtype=torch.float64)
)
RETAIN = 1.7  # any retain loss

CONVERSIONS: dict[str, tuple[Callable[..., Setting], dict[str, float]]] = {
    "paper": (from_paper, {"beta": 2.5, "gamma": 0.3, "retain_weight": 0.1}),
    "released": (
        from_released_tofu,
        {"beta": 2.5, "gamma": 0.3, "npo_coeff": 0.5, "grad_diff_coeff": 1.0},
    ),
    "ou_simnpo": (
        from_open_unlearning_simnpo,
        {"beta": 2.5, "delta": 0.3, "gamma": 0.5, "alpha": 1.0},
    ),
    "ou_npo": (from_open_unlearning_npo, {"beta": 2.5, "gamma": 0.5, "alpha": 1.0}),
    "simpo": (from_simpo_ratio, {"beta": 2.5, "gamma_beta_ratio": 0.3}),
    "trl": (from_trl_cpo, {"beta": 2.5, "simpo_gamma": 0.3, "cpo_alpha": 0.2}),
}


def softplus(z: float) -> float:
    return math.log1p(math.exp(z))


def responses() -> list[tuple[float, float, float]]:
    """(logp, length, ref) of each response, as plain numbers."""
    return [(float(a), float(b), float(c)) for a, b, c in zip(*SEQ, strict=True)]


def total(setting: Setting) -> float:
    """The published total: mean forget loss plus lambda times the retain loss."""
    return setting.objective.loss(SEQ).mean().item() + setting.retain_weight * RETAIN


@points
@given(beta=betas, margin=margins, forget=coefficients, retain=coefficients)
def test_totals_are_those_of_the_other_code_up_to_the_forget_coefficient(
    beta: float, margin: float, forget: float, retain: float
) -> None:
    # The margin is inside beta and subtracted from the mean negative log-probability, in both
    # codes.
    inside = sum(2 / beta * softplus(-beta * (-p / n - margin)) for p, n, _ in responses()) / 2
    theirs = forget * inside + retain * RETAIN
    for ours in (
        from_released_tofu(beta, margin, forget, retain),
        from_open_unlearning_simnpo(beta, delta=margin, gamma=forget, alpha=retain),
    ):
        assert forget * total(ours) == pytest.approx(theirs, rel=1e-12)
    ratio = sum(2 / beta * softplus(beta * (p - r)) for p, _, r in responses()) / 2
    theirs = forget * ratio + retain * RETAIN
    ours = from_open_unlearning_npo(beta, forget, retain)
    assert forget * total(ours) == pytest.approx(theirs, rel=1e-12)
    outside = sum(2 / beta * softplus(beta * p / n + margin) for p, n, _ in responses()) / 2
    theirs = outside + retain * RETAIN
    assert total(from_paper(beta, margin, retain)) == pytest.approx(theirs, rel=1e-12)


@points
@given(beta=betas, margin=margins, alpha=coefficients)
def test_preference_codes_lack_the_factor_two_over_beta(
    beta: float, margin: float, alpha: float
) -> None:
    ratio = sum(softplus(-beta * (-p / n - margin)) for p, n, _ in responses()) / 2
    assert total(from_simpo_ratio(beta, margin)) == pytest.approx(2 / beta * ratio, rel=1e-12)
    cpo = sum(softplus(-beta * (-p / n - margin / beta)) for p, n, _ in responses()) / 2
    theirs = cpo + alpha * RETAIN
    assert total(from_trl_cpo(beta, margin, alpha)) == pytest.approx(2 / beta * theirs, rel=1e-12)
    assert from_trl_cpo(beta, margin).retain_weight == 0


def test_one_margin_in_five_spellings() -> None:
    gamma = {
        "paper": from_paper(2.0, 3.0, 1.0),
        "released": from_released_tofu(2.0, 1.5, 1.0, 1.0),
        "open-unlearning": from_open_unlearning_simnpo(2.0, 1.5, 1.0, 1.0),
        "simpo": from_simpo_ratio(2.0, 1.5),
        "trl": from_trl_cpo(2.0, 3.0),
    }
    assert {setting.objective for setting in gamma.values()} == {simnpo(2.0, 3.0)}
    assert from_open_unlearning_npo(2.0, 1.5, 1.0).objective == npo(2.0)  # there gamma is no margin


def test_the_released_coefficients_are_not_the_published_lambda() -> None:
    forget05 = from_released_tofu(beta=2.5, gamma=0.0, npo_coeff=0.1375, grad_diff_coeff=1.0)
    forget10 = from_released_tofu(beta=4.5, gamma=0.0, npo_coeff=0.125, grad_diff_coeff=1.0)
    published = from_paper(beta=2.5, gamma=0.0, retain_weight=0.1375)
    assert forget05.objective == published.objective
    assert forget05.retain_weight == pytest.approx(7.27, abs=0.005)
    assert forget10.retain_weight == 8.0
    assert forget05.retain_weight / published.retain_weight == pytest.approx(53, abs=0.5)


@points
@given(beta=betas, gamma=margins, retain=st.floats(0, 10))
def test_a_setting_written_and_read_back_is_the_same(
    beta: float, gamma: float, retain: float
) -> None:
    setting = from_paper(beta, gamma, retain)
    for back in (
        from_released_tofu(**to_released_tofu(setting)),
        from_open_unlearning_simnpo(**to_open_unlearning_simnpo(setting)),
    ):
        assert back.retain_weight == setting.retain_weight
        assert tuple(back.objective) == pytest.approx(tuple(setting.objective), rel=1e-12)


@points
@given(beta=betas, inside=margins, forget=coefficients, retain=coefficients)
def test_reading_a_configuration_and_writing_it_back_keeps_its_ratio(
    beta: float, inside: float, forget: float, retain: float
) -> None:
    written = to_released_tofu(from_released_tofu(beta, inside, forget, retain))
    want = {"beta": beta, "gamma": inside, "npo_coeff": 1.0, "grad_diff_coeff": retain / forget}
    assert written == pytest.approx(want, rel=1e-12)
    written = to_open_unlearning_simnpo(from_open_unlearning_simnpo(beta, inside, forget, retain))
    want = {"beta": beta, "delta": inside, "gamma": 1.0, "alpha": retain / forget}
    assert written == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", None])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_number_of_every_code_must_be_finite(name: str, bad: Any) -> None:
    convert, numbers = CONVERSIONS[name]
    for field in numbers:
        with pytest.raises(InvalidInput) as caught:
            convert(**{**numbers, field: bad})
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *((name, "beta") for name in CONVERSIONS if name != "paper"),
        ("released", "npo_coeff"),
        ("ou_simnpo", "gamma"),
        ("ou_npo", "gamma"),
    ],
)
def test_what_divides_may_not_be_zero(name: str, field: str) -> None:
    convert, numbers = CONVERSIONS[name]
    for bad in (0.0, -1.0):
        with pytest.raises(InvalidInput) as caught:
            convert(**{**numbers, field: bad})
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("paper", "retain_weight"),
        ("released", "grad_diff_coeff"),
        ("ou_simnpo", "alpha"),
        ("ou_npo", "alpha"),
        ("trl", "cpo_alpha"),
    ],
)
def test_retain_coefficients_may_be_zero_but_not_negative(name: str, field: str) -> None:
    convert, numbers = CONVERSIONS[name]
    assert convert(**{**numbers, field: 0.0}).retain_weight == 0
    with pytest.raises(InvalidInput) as caught:
        convert(**{**numbers, field: -0.1})
    assert caught.value.field == field


@pytest.mark.parametrize("write", [to_released_tofu, to_open_unlearning_simnpo])
def test_only_simnpo_settings_can_be_written(write: Callable[[Setting], dict[str, float]]) -> None:
    for field, objective in (
        ("objective", npo(0.1)),
        ("objective", reference_free_npo(0.1)),
        ("objective", Objective(1.0, 0.0, 0.0, 0.5)),
        ("objective", simnpo(torch.ones(2))),
        ("beta", simnpo(0.0)),
    ):
        with pytest.raises(InvalidInput) as caught:
            write(Setting(objective, 1.0))
        assert caught.value.field == field
    with pytest.raises(InvalidInput, match="retain_weight"):
        write(Setting(simnpo(1.0), -1.0))
    single = simnpo(torch.tensor(2.0), torch.tensor(3.0))
    assert write(Setting(single, 1.0)) == write(from_paper(2.0, 3.0, 1.0))
