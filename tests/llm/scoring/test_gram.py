"""The Gram matrix of gradients: what loops over autograd give, and what a small step does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm.scoring.encoding import Encoded
from llm.scoring.gradients import gradient_norms
from llm.scoring.gram import adam, adam_of_batches, gram, grams, plain, second_moment
from llm.scoring.logprobs import score_encoded
from markov.errors import InvalidInput
from tests.llm.training.test_llm_training import gpt2, llama, some, token_losses

EXAMPLES = some((12, 3), (20, 10), (7, 6), (15, 1), (12, 11), seed=1)
WEIGHTS = torch.tensor([1.0, 0.3, 2.0, -0.5, 0.0], dtype=torch.float64)


def slow_gradients(model: Any, encoded: list[Encoded]) -> Tensor:
    """By one backward pass per example, a row each, in float64."""
    rows = []
    for one in encoded:
        model.zero_grad()
        (-token_losses(model, one).sum()).backward()
        every = [own.grad if own.grad is not None else 0 * own for own in model.parameters()]
        rows.append(torch.cat([own.detach().double().flatten() for own in every]))
    model.zero_grad()
    return torch.stack(rows)


def slow_gram(model: Any, encoded: list[Encoded], scale: Tensor) -> Tensor:
    rows = slow_gradients(model, encoded)
    return torch.stack(
        [torch.stack([(one * scale * other).sum() for other in rows]) for one in rows]
    )


def some_scale(model: nn.Module) -> Tensor:
    size = sum(own.numel() for own in model.parameters())
    return torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_it_is_that_of_loops_over_autograd(make: Any) -> None:
    model, rtol = make(), 1e-10 if make is gpt2 else 1e-4
    found = gram(model, EXAMPLES, progress=False)
    assert found.dtype == torch.float64 and not found.requires_grad
    want = slow_gram(make(), EXAMPLES, torch.ones(()))
    torch.testing.assert_close(found, want, rtol=rtol, atol=rtol * float(want.max()))
    norms = gradient_norms(make(), EXAMPLES, progress=False).double()
    torch.testing.assert_close(found.diagonal().sqrt(), norms, rtol=1e-5, atol=0.0)
    assert all(own.grad is None for own in model.parameters())


@pytest.mark.parametrize("elements", [5 * 997, 40_000])
def test_what_is_held_at_once_does_not_matter(elements: int) -> None:
    model, scale = gpt2(), some_scale(gpt2())
    want = gram(model, EXAMPLES, preconditioner=scale, progress=False)
    found = gram(model, EXAMPLES, preconditioner=scale, elements=elements, progress=False)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(want, slow_gram(gpt2(), EXAMPLES, scale), rtol=1e-10, atol=1e-10)


def test_parameters_add_up() -> None:
    model = gpt2()
    every = list(model.parameters())
    parts = [
        gram(model, EXAMPLES, parameters=own, progress=False) for own in (every[:3], every[3:])
    ]
    torch.testing.assert_close(sum(parts), gram(model, EXAMPLES, progress=False))
    assert all(float(part.diagonal().min()) > 0 for part in parts)
    for own in every[3:]:
        own.requires_grad_(False)
    torch.testing.assert_close(gram(model, EXAMPLES, progress=False), parts[0])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_several_preconditioners_are_as_good_as_one_after_another(make: Any) -> None:
    plan = [[0, 2], [1, 3, 4], [0]]
    moment = second_moment(make().double(), EXAMPLES, WEIGHTS, plan)
    alone = [
        gram(make().double(), EXAMPLES, preconditioner=scale, progress=False)
        for scale in (None, adam(moment))
    ]
    metrics, parts = [plain, adam_of_batches(WEIGHTS, plan)], []

    def seen(rows: Tensor, part: slice) -> Tensor:
        assert rows.shape == (len(EXAMPLES), part.stop - part.start)
        parts.append(part)
        return plain(rows, part)

    together = grams(make().double(), EXAMPLES, [*metrics, seen], elements=5 * 997, progress=False)
    for found, want in zip(together, [*alone, alone[0]], strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10 * float(want.max()))
    # Parts end within parameters, and each number belongs to one.
    assert len(parts) > 3 and parts[-1].stop == len(moment)
    assert [one.start for one in parts] == [0, *(one.stop for one in parts[:-1])]


def test_nothing_is_computed_before_the_layers_of_a_part() -> None:
    model, reached = gpt2(), []
    first, last = model.transformer.h[0], model.transformer.ln_f
    first.mlp.register_full_backward_hook(lambda *_: reached.append("first"))
    last.register_full_backward_hook(lambda *_: reached.append("last"))
    gram(model, EXAMPLES, parameters=[model.transformer.h[-1].mlp.c_proj.weight], progress=False)
    assert reached == ["last"] * len(EXAMPLES)
    reached.clear()
    gram(model, EXAMPLES, elements=5 * 997, progress=False)
    assert 0 < reached.count("first") < reached.count("last")


@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_small_step_moves_every_response_by_what_it_says(preconditioned: bool) -> None:
    scale = some_scale(gpt2()) if preconditioned else None
    k = gram(gpt2(), EXAMPLES, preconditioner=scale, progress=False)
    direction = WEIGHTS @ slow_gradients(gpt2(), EXAMPLES)
    direction = direction if scale is None else scale * direction
    before, errors = score_encoded(gpt2(), EXAMPLES, progress=False).logp, []
    for rate in (2e-6, 1e-6):
        model = gpt2()
        with torch.no_grad():
            start = nn.utils.parameters_to_vector(model.parameters())
            nn.utils.vector_to_parameters(start - rate * direction, model.parameters())
        fall = before - score_encoded(model, EXAMPLES, progress=False).logp
        torch.testing.assert_close(fall / rate, k @ WEIGHTS, rtol=1e-2, atol=1e-2)
        errors.append(float((fall / rate - k @ WEIGHTS).abs().max()))
    # What is left is of second order: half the rate halves it, per rate.
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


def test_the_preconditioner_is_what_adamw_does_at_its_mean_of_squares() -> None:
    plan, rate = [[0, 2], [1, 3, 4]], 1e-7
    moment = second_moment(gpt2(), EXAMPLES, WEIGHTS, plan)
    rows = WEIGHTS[:, None] * slow_gradients(gpt2(), EXAMPLES)
    want = torch.stack([rows[own].sum(0).square() for own in plan]).mean(0)
    torch.testing.assert_close(moment, want, rtol=1e-8, atol=1e-12)

    k = gram(gpt2(), EXAMPLES, preconditioner=adam(moment, 1e-3), progress=False)
    model = gpt2()
    ways: dict[str, Any] = {"betas": (0.0, 1 - 1e-12), "eps": 1e-3, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(model.parameters(), rate, **ways)
    place, late = 0, torch.tensor(1e15)  # so late that nothing is left of the bias correction
    for own in model.parameters():
        part = moment[place : place + own.numel()].view_as(own).clone()
        place += own.numel()
        optimizer.state[own] = {"step": late, "exp_avg": 0 * part, "exp_avg_sq": part}
    before = score_encoded(model, EXAMPLES, progress=False).logp
    losses = [-token_losses(model, one).sum() for one in EXAMPLES]
    (WEIGHTS * torch.stack(losses)).sum().backward()
    optimizer.step()
    fall = before - score_encoded(model, EXAMPLES, progress=False).logp
    torch.testing.assert_close(fall / rate, k @ WEIGHTS, rtol=1e-3, atol=1e-2)


def test_it_leaves_the_model_as_it_was() -> None:
    model = gpt2(dropout=0.5).train()
    before = [own.detach().clone() for own in model.parameters()]
    torch.testing.assert_close(
        gram(model, EXAMPLES, progress=False), gram(gpt2(), EXAMPLES, progress=False)
    )
    assert model.training
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_what_cannot_be_is_refused() -> None:
    model = gpt2()
    size = sum(own.numel() for own in model.parameters())
    for bad in (torch.ones(size + 1), -torch.ones(size)):
        with pytest.raises(InvalidInput, match="preconditioner"):
            gram(model, EXAMPLES, preconditioner=bad, progress=False)
    with pytest.raises(InvalidInput, match="weights"):
        second_moment(model, EXAMPLES, torch.ones(2), [[0]])
    with pytest.raises(InvalidInput, match="plan"):
        second_moment(model, EXAMPLES, WEIGHTS, [])
    with pytest.raises(InvalidInput, match="plan"):
        adam_of_batches(WEIGHTS, [])
    model.requires_grad_(False)
    with pytest.raises(InvalidInput, match="parameters"):
        gram(model, EXAMPLES, progress=False)
