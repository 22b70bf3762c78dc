"""Laws of the objective: its derivative, its corners, its limit, its range; and of scoring
responses.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from markov.errors import InvalidInput
from markov.explanation import explain
from markov.objectives import (
    AT_BETA_ZERO,
    CORNERS,
    ROUNDING,
    Objective,
    SequenceLogProbs,
    check_logprobs,
    check_nonempty,
    check_plain,
    check_shapes,
    gradient_ascent,
    length_normalized_npo,
    method_name,
    npo,
    reference_free_npo,
    simnpo,
    stack,
    validate,
)

pytestmark = pytest.mark.filterwarnings("error")
points = settings(deadline=None, max_examples=60)

FAMILY = {
    "npo": npo(0.3),
    "length_normalized_npo": length_normalized_npo(2.0, 0.4),
    "reference_free_npo": reference_free_npo(0.15, 0.2),
    "simnpo": simnpo(2.5),
    "simnpo_margin": simnpo(4.0, -1.5),
    "between": Objective(0.7, 0.3, 0.4, 0.6),
    "gradient_ascent": gradient_ascent(),
    "length_weighted": gradient_ascent(1.0),
    "npo_at_zero": npo(0.0),
    "margin_at_zero": Objective(0.0, 1.2, 1.0, 0.5),
}
CURVED = {name: objective for name, objective in FAMILY.items() if objective.beta > 0}
BETAS = [0.0, 1e-30, 1e-9, 1e-4, 0.1, 1.0, 4.5, 100.0]
GAMMAS = [-50.0, -1.0, 0.0, 0.3, 50.0]

family = pytest.mark.parametrize("objective", FAMILY.values(), ids=FAMILY.keys())
curved = pytest.mark.parametrize("objective", CURVED.values(), ids=CURVED.keys())
logps = st.floats(-60.0, 0.0)
units = st.floats(0.0, 1.0)
lengths = st.integers(1, 60)


def sequence(
    logp: Any, length: Any, ref: Any = 0.0, dtype: torch.dtype = torch.float64
) -> SequenceLogProbs:
    tensors = torch.broadcast_tensors(
        *(torch.as_tensor(x, dtype=dtype) for x in (logp, length, ref))
    )
    return SequenceLogProbs(*(x.clone() for x in tensors))


def some(count: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> SequenceLogProbs:
    """A batch of responses without any two alike."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 40, count)
    logp = -length * rng.uniform(0.05, 3.0, count)
    return sequence(logp, length, logp * rng.uniform(0.3, 1.7, count), dtype)


def together(seqs: list[SequenceLogProbs]) -> SequenceLogProbs:
    return SequenceLogProbs(*map(torch.stack, zip(*seqs, strict=True)))


def slope(function: Any, seq: SequenceLogProbs) -> torch.Tensor:
    """The gradient of the summed function with respect to logp, by autograd."""
    logp = seq.logp.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(seq._replace(logp=logp)).sum(), logp)
    return gradient


def close(got: torch.Tensor, want: Any, rtol: float = 1e-12, atol: float = 0.0) -> None:
    want = torch.as_tensor(want, dtype=got.dtype).expand(got.shape)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


# The weight is the derivative of the loss.


@family
@points
@given(logp=logps, length=lengths, ref=logps)
def test_weight_is_the_slope_of_the_loss(
    objective: Objective, logp: float, length: int, ref: float
) -> None:
    seq = sequence(logp, length, ref)
    weight = objective.weight(seq)
    close(slope(objective.loss, seq), weight, rtol=1e-11)
    close(slope(objective.centered_loss, seq), weight, rtol=1e-11)
    # A step of 1e-4 in logp: truncation of order step^2, rounding of order 1e-16 * loss / step.
    step = 1e-4
    for loss in (objective.loss, objective.centered_loss):
        ahead, behind = (loss(seq._replace(logp=seq.logp + sign * step)) for sign in (1, -1))
        close((ahead - behind) / (2 * step), weight, rtol=1e-5, atol=1e-8)


def test_slopes_keep_their_last_digits_at_large_logits() -> None:
    seq, objective = sequence(torch.linspace(15, 45, 31), 1), reference_free_npo(1.0)
    for loss in (objective.loss, objective.centered_loss):
        close(slope(loss, seq), objective.weight(seq), rtol=1e-14)


@curved
def test_weight_is_the_symbolic_derivative_through_the_shipped_logit(objective: Objective) -> None:
    logp, length, ref, beta, gamma, reference, normalize = symbols = sympy.symbols(
        "logp length ref beta gamma reference normalize", real=True
    )
    law = cast(Any, Objective)(beta, gamma, reference, normalize)
    logit = law.logit(cast(Any, SequenceLogProbs)(logp, length, ref))
    loss = 2 / beta * sympy.log(1 + sympy.exp(logit))
    weight = sympy.lambdify(symbols, sympy.diff(loss, logp), "math")
    batch = some()
    want = [weight(*(float(x) for x in (*one, *objective))) for one in zip(*batch, strict=True)]
    close(objective.weight(batch), want)


@family
def test_gradients_reach_beta_and_gamma_where_the_law_is_curved(objective: Objective) -> None:
    if not objective.beta:
        close(slope(objective.weight, some()), 0.0)  # GA pushes equally hard at every probability
        return
    seq, step = some(), 1e-6
    for name in ("beta", "gamma"):
        value = torch.tensor(getattr(objective, name), dtype=torch.float64)

        def total(x: torch.Tensor, name: str = name) -> torch.Tensor:
            return objective._replace(**{name: x}).centered_loss(seq).sum()

        slow = (total(value + step) - total(value - step)) / (2 * step)
        close(grad(total)(value), slow, rtol=1e-5)


@curved
@points
@given(first=logps, second=logps, length=lengths, ref=logps)
def test_weight_grows_with_probability(
    objective: Objective, first: float, second: float, length: int, ref: float
) -> None:
    low, high = objective.weight(sequence([min(first, second), max(first, second)], length, ref))
    assert low <= high
    unsaturated = objective.logit(sequence(max(first, second), length, ref)) < 20
    if abs(first - second) > 1e-3 and unsaturated:
        assert low < high


# The corners.


@points
@given(logp=logps, length=lengths, beta=st.floats(1e-3, 1e2))
def test_npo_at_the_reference_weighs_every_response_by_one(
    logp: float, length: int, beta: float
) -> None:
    seq = sequence(logp, length, ref=logp)
    close(npo(beta).weight(seq), 1.0)
    close(npo(beta).loss(seq), 2 / beta * math.log(2))
    close(npo(beta).centered_loss(seq), 0.0)
    close(length_normalized_npo(beta).weight(seq), 1 / length)


@points
@given(
    logp=st.floats(-1e4, 0.0), length=lengths, beta=st.floats(1e-3, 1e2), gamma=st.floats(-50, 50)
)
def test_simnpo_weight_stays_under_its_bounds(
    logp: float, length: int, beta: float, gamma: float
) -> None:
    seq = sequence(logp, length)
    assert simnpo(beta).weight(seq) <= 1 / length
    assert simnpo(beta, gamma).weight(seq) <= 2 / length  # equal only where sigmoid rounds to 1
    assert simnpo(beta, min(gamma, 30.0)).weight(seq) < 2 / length


@points
@given(logp=logps, length=lengths, ref=logps, beta=st.floats(0.05, 3), gamma=st.floats(-3, 3))
def test_published_formulas_hold_where_they_do_not_overflow(
    logp: float, length: int, ref: float, beta: float, gamma: float
) -> None:
    seq = sequence(logp, length, ref)
    ratio = (math.exp(logp) / math.exp(ref)) ** beta
    close(npo(beta).loss(seq), 2 / beta * math.log1p(ratio), rtol=1e-10)
    powers = math.exp(logp) ** beta, math.exp(ref) ** beta
    close(npo(beta).weight(seq), 2 * powers[0] / sum(powers), rtol=1e-10)
    power = math.exp(gamma) * math.exp(logp) ** (beta / length)
    sigmoid = 1 / (1 + math.exp(beta / length * logp + gamma))
    close(simnpo(beta, gamma).loss(seq), -2 / beta * math.log(sigmoid), rtol=1e-10, atol=1e-13)
    close(simnpo(beta, gamma).weight(seq), 2 * power / (1 + power) / length, rtol=1e-10)


@points
@given(logp=logps, ref=logps, beta=st.floats(0.0, 5), gamma=st.floats(-3, 3), reference=units)
def test_length_one_makes_normalize_irrelevant(
    logp: float, ref: float, beta: float, gamma: float, reference: float
) -> None:
    seq, longer = sequence(logp - 1, 1, ref), sequence(logp - 1, 2, 0.0)
    plain, per_token = (Objective(beta, gamma, reference, normalize) for normalize in (0.0, 1.0))
    close(plain.loss(seq), per_token.loss(seq))
    close(plain.weight(seq), per_token.weight(seq))
    assert plain.score(longer) != per_token.score(longer)


@points
@given(
    logp=logps, length=lengths, ref=st.tuples(logps, logps), beta=st.floats(0, 5), normalize=units
)
def test_reference_zero_makes_the_reference_irrelevant(
    logp: float, length: int, ref: tuple[float, float], beta: float, normalize: float
) -> None:
    free = Objective(beta, 0.5, 0.0, normalize)
    one, other = (sequence(logp, length, value) for value in ref)
    assert free.loss(one) == free.loss(other)
    assert free.weight(one) == free.weight(other)
    if abs(ref[0] - ref[1]) > 1e-3:
        tied = free._replace(reference=1.0)
        assert tied.score(one) != tied.score(other)


def test_the_four_corners_are_the_two_by_two() -> None:
    shipped = {
        "npo": npo(1.0),
        "length_normalized_npo": length_normalized_npo(1.0),
        "reference_free_npo": reference_free_npo(1.0),
        "simnpo": simnpo(1.0),
    }
    assert {name: (o.reference, o.normalize) for name, o in shipped.items()} == CORNERS
    assert sorted(CORNERS.values()) == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]
    assert CORNERS["npo"] == (1.0, 0.0)
    assert CORNERS["simnpo"] == (0.0, 1.0)


def test_margins_are_added_outside_beta() -> None:
    seq = some()
    for corner in (length_normalized_npo, reference_free_npo, simnpo):
        close(corner(3.0, 0.7).logit(seq), corner(3.0).logit(seq) + 0.7)


# The limit beta -> 0.


@points
@given(logp=logps, length=lengths, ref=logps)
def test_beta_zero_is_gradient_ascent_exactly(logp: float, length: int, ref: float) -> None:
    seq = sequence(logp, length, ref)
    assert gradient_ascent().loss(seq) == logp
    assert gradient_ascent().weight(seq) == 1
    assert gradient_ascent(1.0).loss(seq) == logp / length
    assert gradient_ascent(1.0).weight(seq) == 1 / length
    assert npo(0.0).loss(seq) == logp - ref
    assert npo(0.0).weight(seq) == 1
    assert simnpo(0.0).loss(seq) == logp / length


@pytest.mark.parametrize(("reference", "normalize"), CORNERS.values(), ids=CORNERS.keys())
@pytest.mark.parametrize("gamma", [0.0, 0.8])
def test_beta_to_zero_is_approached_with_order_beta(
    reference: float, normalize: float, gamma: float
) -> None:
    seq, limit = some(), Objective(0.0, gamma, reference, normalize)
    betas = np.logspace(-6, -3, 7)
    near = [limit._replace(beta=beta) for beta in betas]
    losses = [
        (objective.centered_loss(seq) - limit.loss(seq)).abs().max().item() for objective in near
    ]
    weights = [(objective.weight(seq) - limit.weight(seq)).abs().max().item() for objective in near]
    for error in (losses, weights):
        order = np.polyfit(np.log(betas), np.log(error), 1)[0]
        assert order == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_centered_loss_does_not_jump_at_zero(dtype: torch.dtype, gamma: float) -> None:
    seq = some(dtype=dtype)
    at_zero = simnpo(0.0, gamma).centered_loss(seq)
    for beta in (1e-45, 1e-38, 1e-30, 1e-12):
        # Below the smallest normal number, which the factor 2/beta magnifies, digits are lost.
        eps, lost = torch.finfo(dtype).eps, min(4 * torch.finfo(dtype).tiny / beta, 1e-7)
        close(simnpo(beta, gamma).centered_loss(seq), at_zero, rtol=8 * eps + 10 * beta, atol=lost)


@points
@given(u=st.floats(-1e5, 1e5), beta=st.sampled_from(BETAS[1:]), gamma=st.floats(-50, 50))
def test_centered_loss_agrees_with_a_hundred_digits(u: float, beta: float, gamma: float) -> None:
    got = reference_free_npo(beta, gamma).centered_loss(sequence(u, 1)).item()
    b, g, x = (sympy.Float(value, 120) for value in (beta, gamma, u))
    softplus = (
        sympy.log(1 + sympy.exp(g + b * x)) - sympy.log(1 + sympy.exp(g)) if b * x < 1000 else None
    )
    want = 2 / b * (softplus if softplus is not None else g + b * x - sympy.log(1 + sympy.exp(g)))
    assert got == pytest.approx(float(want), rel=1e-12, abs=1e-12 if beta < 1 else 1e-13)


@curved
def test_centered_loss_is_the_loss_less_its_value_at_score_zero(objective: Objective) -> None:
    seq = some()
    at_zero = objective.loss(sequence(0.0, 1.0))
    close(objective.centered_loss(seq), objective.loss(seq) - at_zero, rtol=1e-11)


# The range.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("beta", BETAS)
def test_everything_is_finite_in_the_whole_range(
    dtype: torch.dtype, beta: float, gamma: float
) -> None:
    totals = torch.tensor([-1e5, -90.0, -1.0, 0.0])
    logp, ref = (column[:, None] for column in torch.cartesian_prod(totals, totals).T)
    seq = sequence(logp, torch.tensor([1.0, 7.0, 1e5]), ref, dtype)
    for reference, normalize in CORNERS.values():
        for value in (beta, torch.tensor(beta, dtype=dtype)):
            objective = Objective(value, gamma, reference, normalize)
            results = [f(seq) for f in (objective.loss, objective.centered_loss, objective.weight)]
            results += [slope(f, seq) for f in (objective.loss, objective.centered_loss)]
            assert all(result.dtype == dtype and result.isfinite().all() for result in results)
            assert (results[2] >= 0).all()
            # Coarse numbers have coarse logits: compare slopes where the logit is not lost in
            # rounding.
            if dtype != torch.bfloat16:
                for gradient in results[3:]:
                    torch.testing.assert_close(gradient, results[2], rtol=1e-4, atol=1e-30)


def test_centered_loss_survives_logits_of_a_million() -> None:
    seq = sequence([-1e6, 1e6], 1, dtype=torch.float32)
    close(
        reference_free_npo(1.0).centered_loss(seq),
        [-2 * math.log(2), 2e6 - 2 * math.log(2)],
        rtol=1e-6,
    )
    close(reference_free_npo(1.0, 50.0).centered_loss(seq), [-100.0, 2e6], rtol=1e-6)


# Stacks and batches.


def test_a_stack_under_vmap_is_the_loop() -> None:
    members = list(FAMILY.values())
    stacked = stack(members, dtype=torch.float64)
    assert all(torch.as_tensor(field).shape == (len(members),) for field in stacked)
    shared = some()
    own = together([some(seed=i) for i in range(len(members))])
    for name in ("logit", "loss", "centered_loss", "weight"):
        law = getattr(Objective, name)
        close(
            vmap(law, in_dims=(0, None))(stacked, shared),
            torch.stack([law(o, shared) for o in members]),
        )
        loop = torch.stack([law(o, some(seed=i)) for i, o in enumerate(members)])
        close(vmap(law)(stacked, own), loop)
        # Without vmap, a stack broadcasts as any tensors do.
        column = Objective(*(torch.as_tensor(field)[:, None] for field in stacked))
        close(law(column, own), loop)


def test_gradients_of_a_stack_under_vmap_are_the_weights() -> None:
    members, seq = list(FAMILY.values()), some()

    def total(logp: torch.Tensor, objective: Objective) -> torch.Tensor:
        return objective.loss(seq._replace(logp=logp)).sum()

    gradients = vmap(grad(total), in_dims=(None, 0))(seq.logp, stack(members, dtype=torch.float64))
    close(gradients, torch.stack([o.weight(seq) for o in members]), rtol=1e-11)


def test_stack_takes_the_dtype_it_is_given() -> None:
    members = [npo(0.1), simnpo(torch.tensor(2.0))]
    for dtype, want in ((None, torch.get_default_dtype()), (torch.float64, torch.float64)):
        assert {torch.as_tensor(field).dtype for field in stack(members, dtype=dtype)} == {want}


@family
def test_a_batch_is_its_examples_in_any_order_and_shape(objective: Objective) -> None:
    seq = some(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    for name in ("loss", "centered_loss", "weight"):
        law = getattr(objective, name)
        whole = law(seq)
        close(whole, torch.stack([law(SequenceLogProbs(*one)) for one in zip(*seq, strict=True)]))
        close(law(SequenceLogProbs(*(x[order] for x in seq))), whole[order])
        close(law(SequenceLogProbs(*(x.reshape(2, 3) for x in seq))), whole.reshape(2, 3))


# Scoring responses from logits.


def batch(seed: int = 0, size: int = 4, time: int = 9, vocab: int = 11) -> tuple[torch.Tensor, ...]:
    """Logits, targets and a ragged mask whose scored tokens do not start at 0."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, time, vocab, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (size, time), generator=generator)
    first, last = torch.arange(size)[:, None] % 3, time - torch.arange(size)[:, None]
    mask = (torch.arange(time) >= first) & (torch.arange(time) < last)
    return logits, targets, mask


def same(got: SequenceLogProbs, want: SequenceLogProbs) -> None:
    for one, other in zip(got, want, strict=True):
        close(one, other)


@points
@given(seed=st.integers(0, 10**6))
def test_from_logits_is_the_token_loop(seed: int) -> None:
    logits, targets, mask = batch(seed)
    seq = SequenceLogProbs.from_logits(logits, targets, mask, ref=0.0)
    for i in range(len(logits)):
        scored = [t for t in range(mask.shape[1]) if mask[i, t]]
        slow = sum(math.log(torch.softmax(logits[i, t], -1)[targets[i, t]]) for t in scored)
        assert seq.logp[i].item() == pytest.approx(slow, rel=1e-12)
        assert seq.length[i] == len(scored)


def test_probabilities_of_all_answers_sum_to_one() -> None:
    logits = batch()[0][0, :3, :4]
    answers = torch.cartesian_prod(*[torch.arange(4)] * 3)
    every = SequenceLogProbs.from_logits(logits.expand(64, 3, 4), answers, answers >= 0, ref=0.0)
    close(every.logp.exp().sum(), 1.0)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    logits, targets, mask = batch()
    shift = 1e3 * torch.arange(logits.shape[1])[:, None]
    plain = SequenceLogProbs.from_logits(logits, targets, mask, ref=0.0)
    shifted = SequenceLogProbs.from_logits(logits + shift, targets, mask, ref=0.0)
    close(shifted.logp, plain.logp, rtol=1e-11)


def test_a_scored_label_matters_and_an_unscored_one_does_not() -> None:
    logits, targets, mask = batch()
    plain = SequenceLogProbs.from_logits(logits, targets, mask, ref=0.0).logp
    for t in range(mask.shape[1]):
        changed = targets.clone()
        changed[:, t] = (changed[:, t] + 1) % logits.shape[-1]
        moved = SequenceLogProbs.from_logits(logits, changed, mask, ref=0.0).logp != plain
        assert moved.equal(mask[:, t])


@pytest.mark.parametrize("junk", [0.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("label", [0, -100, 10**6])
@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (2, 3)])
def test_padding_is_harmless_whatever_it_holds(
    junk: float, label: int, left: int, right: int
) -> None:
    logits, targets, mask = batch()
    want = SequenceLogProbs.from_logits(logits, targets, mask, ref=-1.5)
    one_hot = torch.nn.functional.one_hot(targets, logits.shape[-1])
    slopes = (one_hot - torch.softmax(logits, -1)) * mask[..., None]

    pad = torch.nn.functional.pad
    logits, targets = logits.masked_fill(~mask[..., None], junk), targets.masked_fill(~mask, label)
    logits = pad(logits, (0, 0, left, right), value=junk).requires_grad_()
    targets, mask = pad(targets, (left, right), value=label), pad(mask, (left, right), value=False)
    got = SequenceLogProbs.from_logits(logits, targets, mask, ref=-1.5)
    same(SequenceLogProbs(*(x.detach() for x in got)), want)
    (gradient,) = torch.autograd.grad(got.logp.sum(), logits)
    assert (gradient[~mask] == 0).all()
    close(gradient[:, left : left + slopes.shape[1]], slopes, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(1, 3000, 50, generator=generator)).to(dtype)
    targets = torch.randint(50, (1, 3000), generator=generator)
    mask = torch.ones_like(targets, dtype=torch.bool)
    low = SequenceLogProbs.from_logits(logits, targets, mask, ref=0.0)
    assert low.logp.dtype == low.length.dtype == low.ref.dtype == torch.float32
    assert low.length == 3000
    close(
        low.logp,
        SequenceLogProbs.from_logits(logits.double(), targets, mask, ref=0.0).logp,
        rtol=1e-6,
    )


def test_the_reference_is_broadcast_to_every_response() -> None:
    logits, targets, mask = batch()
    table = torch.arange(4.0)
    assert SequenceLogProbs.from_logits(logits, targets, mask, ref=-2.0).ref.tolist() == [-2.0] * 4
    assert (
        SequenceLogProbs.from_logits(logits, targets, mask, ref=table).ref.tolist()
        == table.tolist()
    )
    seq = SequenceLogProbs.from_logits(logits, targets, mask, ref=table)
    assert {x.dtype for x in seq} == {torch.float64}


def test_scoring_under_vmap_is_the_loop() -> None:
    members = [batch(seed) for seed in range(3)]

    def score(*parts: torch.Tensor, check: bool = False) -> SequenceLogProbs:
        return SequenceLogProbs.from_logits(*parts, ref=0.0, check=check)

    stacked = [torch.stack(parts) for parts in zip(*members, strict=True)]
    loop = together([score(*parts) for parts in members])
    same(vmap(score)(*stacked), loop)
    same(score(*stacked, check=True), loop)  # a leading axis needs no vmap
    logits, (_, targets, mask) = stacked[0], members[0]
    shared = vmap(lambda x: score(x, targets, mask, check=True))(logits)  # the mask is not mapped
    same(shared, together([score(x, targets, mask) for x in logits]))


# Bad input, and explanations.


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("logits", lambda x, y, m, r: (x.long(), y, m, r)),
        ("targets", lambda x, y, m, r: (x, y[:, 1:], m, r)),
        ("targets", lambda x, y, m, r: (x, y.masked_fill(m, -100), m, r)),
        ("targets", lambda x, y, m, r: (x, y.masked_fill(m, x.shape[-1]), m, r)),
        ("mask", lambda x, y, m, r: (x, y, m[:1], r)),
        ("mask", lambda x, y, m, r: (x, y, m.long(), r)),
        ("mask", lambda x, y, m, r: (x, y, m & (torch.arange(4) != 2)[:, None], r)),
        ("ref", lambda x, y, m, r: (x, y, m, torch.zeros(3))),
        ("ref", lambda x, y, m, r: (x, y, m, torch.zeros(1, 4))),
    ],
)
def test_responses_that_cannot_be_scored_are_named(field: str, change: Any) -> None:
    *parts, ref = change(*batch(), 0.0)
    with pytest.raises(InvalidInput) as caught:
        SequenceLogProbs.from_logits(*parts, ref=ref)
    assert caught.value.field == field


def refusal(call: Any) -> tuple[str, Any, str]:
    """The field, the value and what is allowed, as the error has them."""
    with pytest.raises(InvalidInput) as caught:
        call()
    return caught.value.field, caught.value.value, caught.value.allowed


WIDE = torch.tensor([3.0, 4.0])
LAW = npo(0.1)
# What is given, and what is told of it: field, value, and the beginning of what is allowed.
REFUSALS: dict[str, tuple[Any, tuple[str, Any, str]]] = {
    "logits in a list": (lambda x, y, m: (x.tolist(), y, m), ("logits", None, "a tensor of rows")),
    "one logit": (lambda x, y, m: (x[0, 0, 0], y, m), ("logits", None, "a tensor of rows")),
    "targets in a list": (
        lambda x, y, m: (x, y.tolist(), m),
        ("targets", batch()[1].tolist(), "a tensor of rows"),
    ),
    "a mask in a list": (
        lambda x, y, m: (x, y, m.tolist()),
        ("mask", batch()[2].tolist(), "a tensor of rows"),
    ),
    "whole logits": (lambda x, y, m: (x.long(), y, m), ("logits", torch.int64, "a floating dtype")),
    "broken targets": (
        lambda x, y, m: (x, y.float(), m),
        ("targets", torch.float32, "whole numbers"),
    ),
    "fewer targets": (
        lambda x, y, m: (x, y[:, 1:], m),
        ("targets", (4, 8), "the shape (4, 9) of the logits"),
    ),
    "a shorter mask": (
        lambda x, y, m: (x, y, m[:3]),
        ("mask", (3, 9), "the shape (4, 9) of the logits"),
    ),
    "a mask of numbers": (
        lambda x, y, m: (x, y, m.long()),
        ("mask", torch.int64, "boolean, True on scored tokens"),
    ),
    "targets of another vocabulary": (
        lambda x, y, m: (x, y.masked_fill(m, 11), m),
        ("targets", [11], "0 to 10 on scored tokens"),
    ),
    "targets below 0": (
        lambda x, y, m: (x, y.masked_fill(m, -1), m),
        ("targets", [-1], "0 to 10 on scored tokens"),
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_scored_is_told_with_what_can(case: str) -> None:
    change, (field, value, allowed) = REFUSALS[case]
    found = refusal(lambda: SequenceLogProbs.from_logits(*change(*batch()), ref=0.0))
    assert (found[0], found[2]) == (field, allowed)
    assert found[1] == value or (value is None and found[1] is not None)


def test_a_reference_that_does_not_fit_is_told_with_the_shape_that_does() -> None:
    wrong: tuple[Any, ...] = (torch.zeros(3), "none")
    for ref in wrong:
        found = refusal(lambda ref=ref: SequenceLogProbs.from_logits(*batch(), ref=ref))
        assert found[0] == "ref" and found[1] is ref
        assert found[2] == "a number, or a tensor that fits (4,)"


def test_an_empty_response_is_located_on_all_axes_of_the_batch() -> None:
    logits, targets, mask = (torch.stack([x, x]) for x in batch())
    mask[1, 2] = False
    field, value, allowed = refusal(
        lambda: SequenceLogProbs.from_logits(logits, targets, mask, ref=0.0)
    )
    assert (field, value) == ("mask", "0 scored tokens at index (1, 2)")
    assert allowed == "at least 1 per example (1 of 8 have none)"


def test_one_response_needs_no_batch_and_one_word_no_choice() -> None:
    logits, targets, mask = (x[0] for x in batch())
    whole = SequenceLogProbs.from_logits(*batch(), ref=0.0)
    close(SequenceLogProbs.from_logits(logits, targets, mask, ref=0.0).logp, whole.logp[0])
    single = SequenceLogProbs.from_logits(
        torch.full((1, 2, 1), 3.0), torch.zeros(1, 2).long(), torch.tensor([[True, False]]), ref=0.0
    )
    assert [x.tolist() for x in single] == [[0.0], [1.0], [0.0]]


def test_what_is_no_response_is_told_with_what_is() -> None:
    good = sequence([-1.0, -2.0], [2.0, 3.0], [-1.5, -1.0])
    floating = "a tensor of floating dtype"
    for name, value in good._asdict().items():
        for bad, told in ((value.long(), torch.int64), (-1.0, -1.0)):
            found = refusal(lambda name=name, bad=bad: check_logprobs(good._replace(**{name: bad})))
            assert found == (name, told, floating)
        spoiled = good._replace(**{name: torch.tensor([math.inf, -1.0]).double()})
        field, value, allowed = refusal(lambda spoiled=spoiled: check_logprobs(spoiled))
        assert (field, value) == (name, math.inf) and allowed.startswith("finite numbers (1 of 2")
    halved = good._replace(length=torch.tensor([2.0, 2.5]).double())
    field, value, allowed = refusal(lambda: check_logprobs(halved))
    assert (field, value) == ("length", 2.5)
    assert allowed.startswith("at least 1 scored token, a whole number of them (1 of 2")
    assert refusal(lambda: check_logprobs(tuple(good))) == (  # pyright: ignore[reportArgumentType]
        "seq",
        tuple(good),
        "a SequenceLogProbs",
    )


def test_rounding_is_allowed_per_token() -> None:
    for length in (1, 8):
        for name in ("logp", "ref"):
            least = {"logp": [-1.0], "ref": [-1.0], "length": [length]}
            edge = SequenceLogProbs.of(**{**least, name: [ROUNDING * length]})
            assert getattr(edge, name).item() == ROUNDING * length
            with pytest.raises(InvalidInput, match="at most 0"):
                SequenceLogProbs.of(**{**least, name: [1.01 * ROUNDING * length]})


def test_shapes_that_differ_are_told_with_the_first() -> None:
    four = SequenceLogProbs(-torch.ones(4), torch.ones(4), -torch.ones(4))
    for change, told in (
        ({"length": torch.ones(4, 1)}, ("length", (4, 1), "the shape of logp, (4,)")),
        ({"ref": torch.ones(3)}, ("ref", (3,), "the shape of logp, (4,)")),
        ({"logp": -1.0, "ref": torch.ones(3)}, ("ref", (3,), "the shape of length, (4,)")),
        ({"ref": [0.0]}, ("ref", [0.0], "a tensor or one finite number")),
    ):
        assert refusal(lambda change=change: check_shapes(four._replace(**change))) == told
    assert check_shapes(four._replace(length=3.0, ref=sympy.Symbol("ref"))) is None


@pytest.mark.parametrize("name", ["loss", "centered_loss", "weight"])
def test_a_law_with_a_curve_needs_tensors_that_can_be_broken(name: str) -> None:
    law = getattr(LAW, name)
    whole = torch.tensor([-1, -2])
    for logp, length in ((-1.0, 2.0), (whole, torch.tensor([2, 3]))):
        seq = cast(Any, SequenceLogProbs)(logp, length, logp)
        field, value, allowed = refusal(lambda seq=seq: law(seq))
        assert field == "logp" and value is logp and allowed == "a tensor of floating dtype"


def test_what_is_no_member_of_the_family_is_told_with_what_is() -> None:
    assert refusal(lambda: validate(cast(Any, 3))) == (
        "objective",
        3,
        "an Objective, such as npo(0.1)",
    )
    for value in (torch.tensor(True), np.array(False), sympy.Symbol("beta"), "0.1", None):
        field, told, allowed = refusal(lambda value=value: validate(Objective(cast(Any, value))))
        assert field == "beta" and told is value and allowed == "a finite number >= 0"
    ends = {
        "beta": (-0.1, "a finite number >= 0"),
        "gamma": (math.inf, "a finite number"),
        "reference": (1.1, "a number in [0, 1]"),
        "normalize": (-0.1, "a number in [0, 1]"),
    }
    for field, (value, allowed) in ends.items():
        for one in (value, torch.tensor([0.5, value], dtype=torch.float64), np.array([value])):
            objective = Objective(0.5)._replace(**{field: cast(Any, one)})
            found = refusal(lambda objective=objective: validate(objective))
            assert found[0] == field and found[1] is one and found[2] == allowed
    for edge in (Objective(0.0, -9.0, 0.0, 0.0), Objective(9.0, 9.0, 1.0, 1.0)):
        assert validate(edge) is edge


def test_a_number_is_looked_at_and_a_tensor_is_not() -> None:
    bounds = (0.0, 1.0, "a share")
    numbers: tuple[Any, ...] = (0, 1, 0.0, 1.0, np.float32(0.5), np.array([7.0]), np.array([7]))
    for fine in (*numbers, torch.tensor(7.0), torch.tensor(True), sympy.Symbol("x")):
        assert check_plain("share", fine, bounds) is None
    for bad in (-0.1, 1.1, math.nan, True, "0.5", None, [0.5], np.array(["a"]), np.array([True])):
        field, value, allowed = refusal(lambda bad=bad: check_plain("share", bad, bounds))
        assert field == "share" and value is bad and allowed == "a share"


def test_a_stack_is_of_at_least_one_and_lies_where_it_is_asked_to() -> None:
    one = stack([npo(0.5)], dtype=torch.float64)
    assert [torch.as_tensor(field).tolist() for field in one] == [[0.5], [0.0], [1.0], [0.0]]
    for bad in ([], "npo", None):
        found = refusal(lambda bad=bad: stack(cast(Any, bad)))
        assert found == ("objectives", bad, "a list of at least one")
    double = npo(WIDE)
    found = refusal(lambda: stack([LAW, double]))
    assert found[0] == "objectives" and found[1] is double
    assert found[2] == "members of four numbers each"
    elsewhere = stack([LAW], device=torch.device("meta"))
    assert {torch.as_tensor(field).device.type for field in elsewhere} == {"meta"}


def test_an_objective_is_named_by_the_corner_that_it_stands_on() -> None:
    for name, corner in CORNERS.items():
        assert method_name(Objective(0.5, 0.3, *corner)) == name
        assert method_name(Objective(torch.tensor(1.0), 0.3, *map(torch.tensor, corner))) == name
    for name, normalize in AT_BETA_ZERO.items():
        assert method_name(Objective(0.0, 0.3, 1.0, normalize)) == name
    assert method_name(Objective(0.0, 0.0, 0.0, 0.5)) == "gradient_ascent"
    assert method_name(FAMILY["between"]) == "between"
    assert refusal(lambda: method_name(cast(Any, "npo"))) == ("objective", "npo", "an Objective")
    found = refusal(lambda: method_name(Objective(0.5, WIDE)))
    assert found[0] == "gamma" and found[1] is WIDE and found[2] == "one number, not a stack"


def test_empty_responses_are_counted_and_located() -> None:
    with pytest.raises(
        InvalidInput, match=re.escape("length = '0 scored tokens at index (1, 0)'")
    ) as caught:
        check_nonempty(torch.tensor([[3, 1], [0, 0]]))
    assert "2 of 4" in caught.value.allowed
    assert check_nonempty(torch.tensor([1.0, 2.0])) is None


@pytest.mark.parametrize(
    "bad", [-1e-9, float("nan"), float("inf"), "0.1", None, torch.tensor([0.1, -0.1])]
)
@pytest.mark.parametrize("field", Objective._fields)
def test_numbers_outside_the_family_are_named(field: str, bad: Any) -> None:
    objective = simnpo(1.0, 0.2)._replace(**{field: bad})
    if field == "gamma" and (isinstance(bad, torch.Tensor) or bad == -1e-9):
        assert validate(objective) is objective  # a margin may be negative
        return
    for refuse in (validate, lambda o: stack([npo(1.0), o])):
        with pytest.raises(InvalidInput) as caught:
            refuse(objective)
        assert caught.value.field == field


def test_every_constructor_validates() -> None:
    for make in (npo, length_normalized_npo, reference_free_npo, simnpo):
        with pytest.raises(InvalidInput, match="beta"):
            make(-1.0)
    for make in (length_normalized_npo, reference_free_npo, simnpo):
        with pytest.raises(InvalidInput, match="gamma"):
            make(1.0, math.inf)
    for field in ("reference", "normalize"):
        with pytest.raises(InvalidInput, match=field):
            validate(Objective(1.0)._replace(**{field: 1.5}))
    with pytest.raises(InvalidInput, match="normalize"):
        gradient_ascent(2.0)


def test_a_stack_needs_members_of_single_numbers() -> None:
    for members in ([], [npo(torch.ones(2))]):
        with pytest.raises(InvalidInput, match="objectives"):
            stack(members)


@family
@pytest.mark.parametrize("index", [0, 3, -1])
def test_explanations_end_in_the_numbers_of_the_law(objective: Objective, index: int) -> None:
    seq = some()
    lines = dict(line.split(":", 1) for line in explain(objective, seq, index).splitlines())
    for name in ("score", "logit", "loss", "weight"):
        shown = float(lines[name].split("=")[-1])
        assert shown == pytest.approx(getattr(objective, name)(seq)[index].item(), rel=1e-5)
    assert float(lines["per token"].split("=")[-1].removesuffix("nats")) == pytest.approx(
        (seq.logp / seq.length)[index].item(), rel=1e-5
    )
    # The formula with numbers filled in evaluates to the number it claims.
    score = lines["score"].split("=")
    assert eval(score[-2]) == pytest.approx(float(score[-1]), rel=1e-4)


def test_explanations_name_the_corner_by_its_numbers() -> None:
    seq = some()
    for name, (reference, normalize) in CORNERS.items():
        assert explain(Objective(0.5, 0.3, reference, normalize), seq).split()[1] == name
    for name, normalize in AT_BETA_ZERO.items():
        for reference in (0.0, 1.0):
            assert explain(Objective(0.0, 0.0, reference, normalize), seq).split()[1] == name
    assert "none" in explain(FAMILY["between"], seq).splitlines()[0]


def test_explanations_take_any_shape_but_one_example_and_one_objective() -> None:
    seq = some(6)
    square = SequenceLogProbs(*(x.reshape(2, 3) for x in seq))
    tensors = Objective(*(torch.tensor(value, dtype=torch.float64) for value in simnpo(2.5)))
    assert explain(tensors, square, 4) == explain(simnpo(2.5), seq, 4)
    assert explain(simnpo(2.5), sequence(-3.0, 2.0)) == explain(simnpo(2.5), sequence([-3.0], 2.0))
    with pytest.raises(InvalidInput, match="index"):
        explain(npo(1.0), seq, 6)
    with pytest.raises(InvalidInput, match="beta"):
        explain(npo(torch.ones(2)), seq)
