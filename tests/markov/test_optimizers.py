"""Laws of the update rules: both AdamW formulas on one number, torch's rules, and what eps does
to small gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from markov.errors import InvalidInput
from markov.optimizers import OPTIMIZERS, AdamW, Clipped, Matched, Optimizer, Sgd, clipped
from tests.helpers import check_close, slow_adam

SHAPES = {"matrix": (4, 3), "vector": (5,), "number": ()}
RULES = {
    **OPTIMIZERS,
    "no_eps": AdamW(eps=1e-300),
    "other_betas": AdamW(eps=1e-3, beta1=0.5, beta2=0.9),
    "clipped": Clipped(rule=AdamW(), norm=0.1),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
points = settings(max_examples=50)


def draws(runs: int, steps: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Gradients of an ensemble at each step, of all sizes from 1e-8 to 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        size = torch.rand((runs, *shape), generator=generator, dtype=torch.float64)
        return torch.randn((runs, *shape), generator=generator, dtype=torch.float64) * 10 ** (
            -8 * size
        )

    return [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(steps)]


def path(
    rule: Optimizer, gradients: list[dict[str, Tensor]], rates: list[float]
) -> list[dict[str, Tensor]]:
    """Where an ensemble that starts at 0 stands after each step."""
    parameters = {name: torch.zeros_like(value) for name, value in gradients[0].items()}
    state, places = rule.init(parameters), []
    for count, gradient in enumerate(gradients, start=1):
        rule.step(parameters, gradient, state, torch.tensor(rates, dtype=torch.float64), count)
        places.append({name: value.clone() for name, value in parameters.items()})
    return places


def number(rule: Optimizer, gradients: list[float], rate: float = 1.0) -> list[float]:
    """The same for a single run of a single number."""
    steps = [{"x": torch.tensor([gradient], dtype=torch.float64)} for gradient in gradients]
    return [float(place["x"]) for place in path(rule, steps, [rate])]


# --- the two formulas ---


def test_the_rule_of_transformers_by_hand():
    # Two steps with gradients 3e-6 and -1e-6, of the order of eps, and numbers in place of the
    # class's names.
    m1, v1 = 0.1 * 3e-6, 0.001 * 9e-12
    first = -0.5 * math.sqrt(0.001) / 0.1 * m1 / (math.sqrt(v1) + 1e-6)
    m2, v2 = 0.9 * m1 - 0.1 * 1e-6, 0.999 * v1 + 0.001 * 1e-12
    second = first - 0.5 * math.sqrt(1 - 0.999**2) / (1 - 0.81) * m2 / (math.sqrt(v2) + 1e-6)
    rule = OPTIMIZERS["adamw_transformers"]
    assert number(rule, [3e-6, -1e-6], 0.5) == pytest.approx([first, second], rel=1e-12)
    # At step 1 the factors cancel to g / (g + eps / sqrt(1 - b2)): 3 / (3 + 31.62) of the step
    # size.
    assert first == pytest.approx(-0.5 * 3 / (3 + 31.6228), rel=1e-5)


def test_the_rule_of_torch_by_hand():
    m1, v1 = 0.1 * 3e-8, 0.001 * 9e-16
    first = -0.5 * (m1 / 0.1) / (math.sqrt(v1 / 0.001) + 1e-8)
    m2, v2 = 0.9 * m1 - 0.1 * 1e-8, 0.999 * v1 + 0.001 * 1e-16
    second = first - 0.5 * (m2 / (1 - 0.81)) / (math.sqrt(v2 / (1 - 0.999**2)) + 1e-8)
    assert number(OPTIMIZERS["adamw"], [3e-8, -1e-8], 0.5) == pytest.approx(
        [first, second], rel=1e-12
    )
    assert first == pytest.approx(-0.5 * 3 / (3 + 1), rel=1e-12)


@points
@given(
    gradients=st.lists(st.floats(-10, 10), min_size=1, max_size=6),
    size=st.sampled_from([1e-9, 1e-6, 1.0, 1e3]),
    rule=st.builds(
        AdamW,
        eps=st.sampled_from([1e-8, 1e-6, 0.1]),
        correct_eps=st.booleans(),
        beta1=st.floats(0, 0.95),
        beta2=st.floats(0.05, 0.9995),
    ),
)
def test_adamw_is_its_textbook_form(gradients: list[float], size: float, rule: AdamW):
    scaled = [size * gradient for gradient in gradients]
    want = slow_adam(
        scaled,
        learning_rate=0.1,
        eps=rule.eps,
        beta1=rule.beta1,
        beta2=rule.beta2,
        corrected=rule.correct_eps,
    )
    assert number(rule, scaled, 0.1) == pytest.approx(want, rel=1e-9, abs=1e-12)


# --- torch's rules ---


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (OPTIMIZERS["adamw"], lambda x: torch.optim.AdamW(x, lr=0.01, weight_decay=0)),
        (OPTIMIZERS["adamw"], lambda x: torch.optim.Adam(x, lr=0.01)),
        (
            RULES["other_betas"],
            lambda x: torch.optim.AdamW(x, lr=0.01, weight_decay=0, eps=1e-3, betas=(0.5, 0.9)),
        ),
        (OPTIMIZERS["sgd"], lambda x: torch.optim.SGD(x, lr=0.01)),
    ],
    ids=["adamw", "adam", "other_betas", "sgd"],
)
def test_twenty_steps_are_torchs(
    rule: Optimizer, theirs: Callable[[list[Tensor]], torch.optim.Optimizer]
):
    gradients = draws(2, 20)
    ours, parameters = (
        path(rule, gradients, [0.01, 0.01]),
        {n: torch.zeros_like(g) for n, g in gradients[0].items()},
    )
    reference = theirs(list(parameters.values()))
    for gradient, place in zip(gradients, ours, strict=True):
        for name, value in parameters.items():
            value.grad = gradient[name]
        reference.step()
        for name, value in parameters.items():
            check_close(place[name], value)
    assert float(ours[-1]["matrix"].abs().min()) > 0


def test_the_named_rules_are_the_ones_they_are_named_after():
    assert dict(OPTIMIZERS) == {
        "adamw_transformers": AdamW(eps=1e-6, correct_eps=False, beta1=0.9, beta2=0.999),
        "adamw": AdamW(eps=1e-8, correct_eps=True, beta1=0.9, beta2=0.999),
        "sgd": Sgd(),
        "adamw_transformers_matched": Matched(rule=AdamW(eps=1e-6, correct_eps=False)),
        "sgd_matched": Matched(rule=Sgd()),
    }


# --- company ---


@every_rule
def test_a_run_with_its_own_step_size_does_not_know_its_company(rule: Optimizer):
    gradients, rates = draws(3, 6), [0.1, 0.003, 0.02]
    together = path(rule, gradients, rates)
    for run, rate in enumerate(rates):
        own = [
            {name: value[run : run + 1] for name, value in gradient.items()}
            for gradient in gradients
        ]
        for ours, alone in zip(together, path(rule, own, [rate]), strict=True):
            for name in SHAPES:
                check_close(ours[name][run], alone[name][0])


@every_rule
def test_the_displacement_is_proportional_to_the_step_size(rule: Optimizer):
    gradients = draws(1, 5)
    for one, ten in zip(path(rule, gradients, [0.01]), path(rule, gradients, [0.1]), strict=True):
        for name in SHAPES:
            check_close(ten[name], 10 * one[name])


@every_rule
def test_a_step_changes_neither_the_gradients_nor_the_start(rule: Optimizer):
    gradients = draws(2, 3)
    kept = [{name: value.clone() for name, value in gradient.items()} for gradient in gradients]
    places = path(rule, gradients, [0.1, 0.1])
    assert all(
        torch.equal(kept[at][name], gradients[at][name]) for at in range(3) for name in SHAPES
    )
    # downhill
    assert all(bool((places[0][name] * gradients[0][name] < 0).all()) for name in SHAPES)


# --- what eps does ---


@points
@given(exponent=st.floats(-12, 3), sign=st.sampled_from([-1, 1]))
def test_the_first_step_of_each_rule_is_a_share_of_the_step_size(exponent: float, sign: int):
    size = 10**exponent
    gradient = sign * size
    effective = 1e-6 / math.sqrt(1 - 0.999)
    assert effective == pytest.approx(31.6228e-6, rel=1e-5)
    want = {
        "adamw_transformers": size / (size + effective),
        "adamw": size / (size + 1e-8),
        "sgd": size,
    }
    for name, share in want.items():
        assert number(OPTIMIZERS[name], [gradient]) == pytest.approx([-sign * share], rel=1e-9)


def test_a_gradient_far_below_eps_is_damped_by_transformers_rule_and_rescaled_by_torchs():
    # The same eps in both, so that only the place where it is added differs.
    tiny, eps = 1e-7, 1e-6
    before, after = (
        -number(AdamW(eps=eps, correct_eps=corrected), [tiny])[0] for corrected in (False, True)
    )
    assert after == pytest.approx(0.1 / 1.1, rel=1e-9)
    assert before == pytest.approx(0.1 / (0.1 + 31.6228), rel=1e-5)
    # And with the defaults that each was shipped with: 0.3 % of the step size against 91 %.
    shipped = {
        name: -number(OPTIMIZERS[name], [tiny])[0] for name in ("adamw_transformers", "adamw")
    }
    assert shipped["adamw_transformers"] < 0.004 < 0.9 < shipped["adamw"]
    # A gradient far above eps is rescaled to the step size by both.
    assert [-number(rule, [1.0])[0] for rule in OPTIMIZERS.values()] == pytest.approx(
        [1] * len(OPTIMIZERS), rel=1e-4
    )


def test_the_effective_eps_of_transformers_rule_falls_with_the_step():
    # Under a constant gradient g, m = (1 - b1^t) g and v = (1 - b2^t) g^2, so step t is g / (g +
    # eps / sqrt(1 - b2^t)).
    gradient, places = 1e-6, number(OPTIMIZERS["adamw_transformers"], [1e-6] * 60)
    steps = [before - after for before, after in zip([0.0, *places], places, strict=False)]
    for count in (1, 2, 10, 50, 60):
        want = gradient / (gradient + 1e-6 / math.sqrt(1 - 0.999**count))
        assert steps[count - 1] == pytest.approx(want, rel=1e-9)
    assert steps == sorted(steps)


@points
@given(scale=st.floats(-5, 5).map(lambda exponent: 10**exponent), corrected=st.booleans())
def test_without_eps_the_scale_of_the_gradients_does_not_reach_the_parameters(
    scale: float, corrected: bool
):
    rule, gradients = AdamW(eps=1e-300, correct_eps=corrected), draws(1, 5)
    scaled = [{name: scale * value for name, value in gradient.items()} for gradient in gradients]
    for one, other in zip(path(rule, gradients, [0.1]), path(rule, scaled, [0.1]), strict=True):
        for name in SHAPES:
            check_close(other[name], one[name], rtol=1e-9)


@points
@given(scale=st.floats(-5, 5).map(lambda exponent: 10**exponent))
def test_under_gradient_descent_it_reaches_them_in_full(scale: float):
    gradients = draws(1, 5)
    scaled = [{name: scale * value for name, value in gradient.items()} for gradient in gradients]
    for one, other in zip(path(Sgd(), gradients, [0.1]), path(Sgd(), scaled, [0.1]), strict=True):
        for name in SHAPES:
            check_close(other[name], scale * one[name], atol=0)


# --- cut gradients, and steps of one length ---


def norm(tensors: dict[str, Tensor], run: int) -> float:
    """The norm over all numbers of a run, one after the other."""
    return math.sqrt(sum(float(x) ** 2 for one in tensors.values() for x in one[run].flatten()))


@pytest.mark.parametrize("most", [1e-3, 0.5, 1e9])
def test_cut_gradients_are_torchs(most: float):
    gradients = draws(1, 8)
    ours = path(Clipped(rule=OPTIMIZERS["adamw"], norm=most), gradients, [0.01])
    parameters = {name: torch.zeros_like(value) for name, value in gradients[0].items()}
    theirs = torch.optim.AdamW(list(parameters.values()), lr=0.01, weight_decay=0)
    for gradient, place in zip(gradients, ours, strict=True):
        for name, value in parameters.items():
            value.grad = gradient[name].clone()
        # torch divides by the norm + 1e-6.
        torch.nn.utils.clip_grad_norm_(parameters.values(), most)
        theirs.step()
        for name, value in parameters.items():
            check_close(place[name], value, rtol=1e-5, atol=1e-6)


def test_each_run_is_cut_by_its_own_norm():
    gradients = draws(3, 1)
    gradients[0] = {
        name: value * torch.tensor([1.0, 10.0, 1e-3]).view(-1, *[1] * (value.ndim - 1))
        for name, value in gradients[0].items()
    }
    (place,) = path(Clipped(rule=Sgd(), norm=1e-3), gradients, [1.0] * 3)
    whole = [norm(gradients[0], run) for run in range(3)]
    assert whole[2] < 1e-3 < whole[0] < whole[1]
    got = [norm(place, run) for run in range(3)]
    assert got == pytest.approx([1e-3, 1e-3, whole[2]], rel=1e-12)
    # Below the bound not a bit changes.
    assert all(torch.equal(-place[name][2], gradients[0][name][2]) for name in SHAPES)


def test_no_bound_is_the_rule_itself():
    rule = AdamW()
    assert clipped(rule, None) is rule and clipped(rule, 2.0) == Clipped(rule=rule, norm=2.0)


@pytest.mark.parametrize("rule", [Sgd(), AdamW(), AdamW(eps=1e-6, correct_eps=False)])
def test_matched_steps_have_one_length_and_the_direction_of_the_rule(rule: Optimizer):
    gradients, rates = draws(2, 6), [0.3, 0.02]
    free, held = (path(one, gradients, rates) for one in (rule, Matched(rule=rule)))
    start = {name: torch.zeros_like(value) for name, value in gradients[0].items()}
    for before, after, own, other in zip([start, *held], held, [start, *free], free, strict=False):
        step = {name: after[name] - before[name] for name in SHAPES}
        want = {name: other[name] - own[name] for name in SHAPES}
        for run, rate in enumerate(rates):
            assert norm(step, run) == pytest.approx(rate, rel=1e-9)
            for name in SHAPES:
                check_close(
                    step[name][run], want[name][run] * rate / norm(want, run), rtol=1e-6, atol=1e-12
                )


def test_under_matched_descent_the_scale_of_the_gradients_is_lost():
    gradients = draws(1, 5)
    scaled = [{name: 1e-3 * value for name, value in one.items()} for one in gradients]
    rule = OPTIMIZERS["sgd_matched"]
    for one, other in zip(path(rule, gradients, [0.1]), path(rule, scaled, [0.1]), strict=True):
        for name in SHAPES:
            check_close(other[name], one[name])


def test_matched_steps_stay_where_there_is_no_gradient():
    assert number(OPTIMIZERS["sgd_matched"], [0.0, 2.0, 0.0], 0.1) == [0.0, -0.1, -0.1]
    assert number(OPTIMIZERS["adamw_transformers_matched"], [0.0]) == [0.0]


# --- bad input ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("eps", -1e-9),
        ("eps", math.nan),
        ("beta1", 1.0),
        ("beta1", -0.1),
        ("beta2", 1.0),
        ("beta2", 1.5),
        ("beta2", math.nan),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: float):
    with pytest.raises(InvalidInput) as caught:
        AdamW(**{field: value})  # pyright: ignore[reportArgumentType]
    assert caught.value.field == field


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_bound_is_refused_by_name(value: float):
    with pytest.raises(InvalidInput) as caught:
        Clipped(rule=Sgd(), norm=value)
    assert caught.value.field == "norm"
