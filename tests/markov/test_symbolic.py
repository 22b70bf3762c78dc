"""Theorems about the shipped law hold, and false ones do not."""

from __future__ import annotations

import pytest
import sympy as sp
import torch

from markov import symbolic
from markov.objectives import CORNERS, Objective, SequenceLogProbs
from markov.symbolic import BETA, GAMMA, LENGTH, LOGP, REF, Theorem

PER_CORNER = (
    symbolic.weight_is_slope,
    symbolic.weight_grows,
    symbolic.small_beta_loss,
    symbolic.small_beta_weight,
    symbolic.bound,
    symbolic.tight_bound,
)
SINGLE = (
    symbolic.npo_published,
    symbolic.simnpo_published,
    symbolic.npo_starts_as_gradient_ascent,
    symbolic.simnpo_starts_weighted,
    symbolic.simnpo_bound,
    symbolic.released_margin,
)
THEOREMS = [
    pytest.param(f(name), id=f"{f.__name__}-{name}") for f in PER_CORNER for name in CORNERS
]
THEOREMS += [pytest.param(f(), id=f.__name__) for f in SINGLE]


@pytest.mark.parametrize("theorem", THEOREMS)
def test_every_theorem_is_proved(theorem: Theorem) -> None:
    assert theorem.holds
    assert theorem.meaning and theorem.source


@pytest.mark.parametrize("theorem", THEOREMS)
def test_no_theorem_survives_a_wrong_right_hand_side(theorem: Theorem) -> None:
    for wrong in (2 * theorem.right, theorem.right + BETA, theorem.right * (1 + theorem.right)):
        assert not theorem._replace(right=sp.sympify(wrong)).holds


@pytest.mark.parametrize("theorem", THEOREMS)
def test_theorems_agree_at_numbers(theorem: Theorem) -> None:
    point = {
        LOGP: -7.3,
        REF: -5.1,
        LENGTH: 4,
        BETA: 0.8,
        GAMMA: 0.6,
        sp.Symbol(r"\gamma_{\mathrm{code}}", real=True): 0.3,
    }
    left, right = (float(side.subs(point)) for side in (theorem.left, theorem.right))
    assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("name", CORNERS)
def test_symbols_and_tensors_give_the_same_loss_and_weight(name: str) -> None:
    numbers = {LOGP: -7.3, REF: -5.1, LENGTH: 4.0, BETA: 0.8, GAMMA: 0.6}
    seq = SequenceLogProbs(
        *(torch.tensor(numbers[s], dtype=torch.float64) for s in (LOGP, LENGTH, REF))
    )
    objective = Objective(0.8, 0.6, *CORNERS[name])
    symbols = symbolic.corner(name, GAMMA)
    for own, shipped in (
        (symbolic.loss, objective.loss),
        (symbolic.weight, objective.weight),
        (symbolic.centered_loss, objective.centered_loss),
    ):
        assert float(own(symbols).subs(numbers)) == pytest.approx(float(shipped(seq)), rel=1e-12)


@pytest.mark.parametrize("name", CORNERS)
def test_the_derivative_that_stands_for_the_limit_is_the_limit(name: str) -> None:
    limit = symbolic.small_beta_loss(name).left
    point = {LOGP: sp.Rational(-7), REF: sp.Rational(-5), LENGTH: 4, GAMMA: sp.Rational(1, 2)}
    centered = symbolic.centered_loss(symbolic.corner(name, GAMMA)).subs(point)
    near = float(sp.N(centered.subs(BETA, sp.Rational(1, 10**12)), 40))
    assert near == pytest.approx(float(limit.subs(point)), rel=1e-9)


@pytest.mark.parametrize("name", CORNERS)
def test_the_weight_lies_between_zero_and_its_limit(name: str) -> None:
    own = symbolic.weight(symbolic.corner(name, GAMMA))
    top = 2 / LENGTH ** int(CORNERS[name][1])
    assert sp.limit(own.subs({LENGTH: 3, REF: -2, BETA: 1, GAMMA: 0}), LOGP, sp.oo) == top.subs(
        LENGTH, 3
    )
    assert sp.limit(own.subs({LENGTH: 3, REF: -2, BETA: 1, GAMMA: 0}), LOGP, -sp.oo) == 0
    assert sp.simplify(symbolic.bound(name).left - top) == 0
    tight = symbolic.tight_bound(name).right
    assert sp.simplify(tight.subs(GAMMA, 0) - top / 2) == 0
    for fall in (0.0, 0.3, 5.0):  # nats below the reference, or below certainty
        point = {LOGP: CORNERS[name][0] * -2 - fall, REF: -2, LENGTH: 3, BETA: 1, GAMMA: 0.4}
        assert float(own.subs(point)) <= float(tight.subs(point)) + 1e-15


def test_the_printed_bound_of_simnpo_is_loose_by_a_factor_of_two_without_margin() -> None:
    bound = symbolic.simnpo_bound().right
    assert sp.simplify(bound.subs(GAMMA, 0) - 1 / LENGTH) == 0
    assert sp.limit(bound, GAMMA, sp.oo) == 2 / LENGTH


def test_theorems_render_as_latex() -> None:
    theorem = symbolic.npo_published()
    assert theorem._repr_latex_().startswith("$\\displaystyle") and "\\beta" in theorem.latex()
    assert theorem.latex().count("=") == 1
