"""Parameters of 16 bits: updates smaller than their spacing add up, and what is recorded is what
would be saved.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from llm.scoring.encoding import Batch
from llm.scoring.logprobs import response_logprobs, score_encoded
from llm.training import masters
from llm.training.adapters import Lora, original_of
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization, Term, looping
from llm.training.masters import Masters, rounded, widened
from llm.unlearning.epoch import Measure
from llm.unlearning.retaining import kl
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.errors import InvalidInput
from tests.llm.training.test_llm_training import EXAMPLES, FAST, same
from tests.llm.unlearning.test_unlearning import (
    FORGET,
    NPO,
    RETAIN,
    broken_off,
    interrupted_at,
    llama,
    with_,
)

# As small beside a parameter as the paper's is beside a large model's: 1e-5 where parameters are
# about 0.02.
SLOW = Optimization(epochs=3, batch=2, learning_rate=1e-4, warmup_epochs=0, weight_decay=0.0)
NARROW = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"]
)


def narrow(dtype: torch.dtype = torch.bfloat16) -> Any:
    return llama().to(dtype)


def slowly(**changes: Any) -> Unlearning:
    return replace(NPO, optimization=replace(SLOW, **changes))


def moved(model: nn.Module, start: nn.Module) -> float:
    """The share of parameters that are not what they were."""
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return float(torch.cat([(one != two).flatten() for one, two in pairs]).double().mean())


# --- rounding ---


def spacing(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Between the neighbours of a number, of those with all digits."""
    digits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    return torch.exp2(values.abs().log2().floor() - digits + 1)


@NARROW
@pytest.mark.parametrize("shape", [(100_003,), (64, 4096), (4096, 64), (3, 5, 7)], ids=str)
def test_rounding_goes_to_a_neighbour_and_keeps_the_mean(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    start = (
        (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype).float()
    )
    assert torch.equal(rounded(start, dtype).float(), start)
    step = spacing(start, dtype)
    full = start.abs() > 1e-4  # of float16 numbers those with all digits
    for share in (-0.7, -0.1, 0.03, 0.3, 0.5):
        moved = start + share * step
        found = rounded(moved, dtype).float()
        assert bool(((found - moved).abs() <= step)[full].all())
        mean = ((found - start) / step)[full].double().mean()
        assert float(mean) == pytest.approx(share, abs=0.06 if start.numel() < 1000 else 0.004)
    higher = rounded(start + 0.6 * step, dtype) >= rounded(start + 0.2 * step, dtype)
    assert bool(higher.all())


@NARROW
def test_rounding_leaves_what_is_no_number_and_what_is_too_large(dtype: torch.dtype) -> None:
    values = torch.tensor(
        [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, torch.finfo(dtype).max, 3e38]
    )
    torch.testing.assert_close(
        rounded(values, dtype)[:6], values[:6].to(dtype), rtol=0, atol=0, equal_nan=True
    )
    assert rounded(torch.zeros(0, 3), dtype).shape == (0, 3)
    assert torch.equal(
        rounded(values[3:6].reshape(3, 1).T, dtype), values[3:6].reshape(1, 3).to(dtype)
    )


def test_rounding_is_the_same_however_many_are_rounded_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    want = rounded(values, torch.bfloat16)
    monkeypatch.setattr(masters, "CHUNK", 7)
    assert torch.equal(rounded(values, torch.bfloat16), want)


# --- what a master is for ---


@NARROW
def test_updates_below_the_spacing_of_a_parameter_add_up(dtype: torch.dtype) -> None:
    """The same fall as in float32 from the same weights, where updating the parameters
    themselves loses most of it.
    """
    start = narrow(dtype)
    wide, model = copy.deepcopy(start).float(), copy.deepcopy(start)
    falls = []
    for one in (wide, model):
        found = unlearn(one, FORGET, RETAIN, slowly(epochs=10), progress=False).epochs[
            "forget_loss"
        ]
        falls.append(found.iloc[0] - found.iloc[-1])
    assert falls[1] == pytest.approx(falls[0], rel=0.2) and falls[0] > 0
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_updates_of_narrow_parameters_themselves_are_lost() -> None:
    start = narrow()
    model, lossy = copy.deepcopy(start), copy.deepcopy(start)
    unlearn(model, FORGET, RETAIN, slowly(epochs=10), progress=False)
    unlearn(lossy, FORGET, RETAIN, slowly(epochs=10, narrow_updates=True), progress=False)
    assert moved(lossy, start) < 0.3 < 0.5 < moved(model, start)


def test_a_training_ends_at_its_masters_rounded_once() -> None:
    """A run of many small steps is one of float32 from the same weights, up to half a spacing
    and autocast.
    """
    start = narrow()
    wide, model = copy.deepcopy(start).float(), copy.deepcopy(start)
    fine_tune(wide, EXAMPLES, replace(SLOW, precision="bfloat16"), progress=False)
    fine_tune(model, EXAMPLES, SLOW, progress=False)
    for one, two in zip(model.parameters(), wide.parameters(), strict=True):
        assert torch.equal(one, rounded(two.detach(), torch.bfloat16))


def test_adamw_on_narrow_parameters_is_refused_unless_asked_for_by_name() -> None:
    with (
        pytest.raises(InvalidInput, match="narrow_updates = False") as caught,
        looping(narrow(), FAST),
    ):
        pass
    assert "lost" in str(caught.value)
    with looping(narrow(), replace(FAST, narrow_updates=True)) as loop:
        assert loop.masters == Masters()
    with pytest.raises(InvalidInput, match=r"narrow_updates = True.*float16"):
        fine_tune(
            narrow(torch.float16), EXAMPLES, replace(FAST, narrow_updates=True), progress=False
        )
    with widened(llama()) as own:
        assert own == Masters()


@NARROW
def test_products_of_a_training_are_those_of_its_dtype(dtype: torch.dtype) -> None:
    """bfloat16 under autocast, float16 in float32: its gradients would vanish without a scaled
    loss.
    """
    seen = []
    model = narrow(dtype)
    model.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, _, out: seen.append((module.training, out.dtype))
    )
    fine_tune(model, EXAMPLES, FAST, progress=False)
    assert {found for training, found in seen if training} == {
        torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    }


def test_gradients_that_float16_cannot_hold_are_kept() -> None:
    """However small the loss, its gradient is that of the same weights in float32."""
    norms, start = [], narrow(torch.float16)

    def losses(own: nn.Module, batch: Batch, _: object) -> torch.Tensor:
        return response_logprobs(own, batch).logp

    for model in (start, copy.deepcopy(start).float()):
        with widened(model) as own, looping(model, replace(FAST, clip=None), own) as loop:
            norms.append(
                loop.update(1, 0.01, [Term(EXAMPLES, [0, 1], losses, 1e-15)]).gradient_norm
            )
    assert 0 < norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] < torch.finfo(torch.float16).smallest_normal


# --- what is recorded ---


@NARROW
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["whole", "adapters"])
def test_what_is_recorded_is_of_the_model_that_would_be_saved(
    dtype: torch.dtype, lora: Lora | None
) -> None:
    kept: dict[int, Any] = {}

    def look(epoch: int, model: nn.Module) -> dict[str, float]:
        kept[epoch] = {name: one.detach().clone() for name, one in model.named_parameters()}
        return {"logp_sum": float(score_encoded(model, FORGET, progress=False).logp.double().sum())}

    model, start = narrow(dtype), narrow(dtype)
    settings = with_(lora=lora, gradients=(0, 2))
    found = unlearn(model, FORGET, RETAIN, settings, measure=Measure("look", look), progress=False)
    recorded = found.examples.groupby("epoch")["logp"].sum()
    np.testing.assert_allclose(recorded, found.epochs["logp_sum"], rtol=1e-5)
    want = score_encoded(start, FORGET, progress=False).logp.double().sum()
    assert recorded[0] == pytest.approx(float(want), rel=1e-5)
    assert {one.dtype for name, one in kept[2].items() if "lora" not in name} == {dtype}
    assert (found.examples[found.examples["epoch"] == 2]["gradient_norm"] > 0).all()
    if lora is None:
        for name, one in model.named_parameters():
            assert torch.equal(one, kept[2][name])
        last = score_encoded(model, FORGET, progress=False).logp.double().sum()
        assert recorded[2] == pytest.approx(float(last), rel=1e-5)


def test_a_look_at_the_model_leaves_its_masters_and_its_ties_alone() -> None:
    from tests.llm.unlearning.test_unlearning import gpt2

    model = gpt2(dtype=torch.float32).bfloat16()
    with widened(model) as own:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-4
        before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
        with own.rounded(model):
            assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
            assert model.lm_head.weight is model.transformer.wte.weight
        for parameter, (own, value) in zip(model.parameters(), before, strict=True):
            assert parameter is own and torch.equal(parameter, value)
    for parameter, (_, value) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, rounded(value, torch.bfloat16))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_after_each_epoch_a_narrow_model_is_shown_narrow() -> None:
    seen = []
    model = narrow()
    fine_tune(
        model,
        EXAMPLES,
        FAST,
        progress=False,
        after=lambda _: seen.append(next(model.parameters()).clone()),
    )
    assert {one.dtype for one in seen} == {torch.bfloat16} and torch.equal(
        seen[-1], next(model.parameters())
    )


def test_the_divergence_from_what_a_narrow_model_was_starts_at_0() -> None:
    model = narrow()
    with widened(model) as own, looping(model, FAST, own) as loop, loop._precision(training=True):
        divergences = kl(loop.model, Batch.pad(RETAIN), original_of(model, None))
    assert float(divergences.detach().abs().max()) == pytest.approx(0.0, abs=1e-6)


# --- killed, broken off ---


@NARROW
@pytest.mark.parametrize("call", [1, 2])
def test_a_narrow_run_killed_and_started_again_is_the_run_itself(
    dtype: torch.dtype, call: int, tmp_path: Path
) -> None:
    want_model, model = narrow(dtype), narrow(dtype)
    settings = with_(epochs=3, retain_term="cross_entropy", learning_rate=1e-3)
    want = unlearn(want_model, FORGET, RETAIN, settings, progress=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted_at(call + 1, os.replace))
        unlearn(narrow(dtype), FORGET, RETAIN, settings, state=tmp_path, progress=False)
    found = unlearn(model, FORGET, RETAIN, settings, state=tmp_path, progress=False)
    pd.testing.assert_frame_equal(found.examples, want.examples, check_exact=True)
    pd.testing.assert_frame_equal(found.epochs, want.epochs, check_exact=True)
    assert same(model, want_model)


def test_a_narrow_run_that_breaks_off_leaves_a_narrow_model() -> None:
    model, stopped = narrow(), Measure("stopped", broken_off)
    with pytest.raises(KeyboardInterrupt):
        unlearn(model, FORGET, RETAIN, NPO, measure=stopped, progress=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
