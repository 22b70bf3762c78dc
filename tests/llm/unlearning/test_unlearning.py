"""Unlearning of language models: the law in a plain loop; resumed, adapted, diverged or spread
out alike.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from llm.randomness import shuffled
from llm.ranks import joined, place
from llm.scoring.encoding import Batch, Encoded, batches
from llm.scoring.gradients import gradient_norms
from llm.scoring.logprobs import ELEMENTS, logits_budget, score_encoded
from llm.training.adapters import Lora
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Loop, Optimization
from llm.unlearning import retaining
from llm.unlearning import unlearn as unlearning
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import Unlearned, Unlearning, unlearn, weights_by_epoch
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
from tests.helpers import files_in
from tests.llm.in_two import in_two
from tests.llm.training import test_llm_training as training
from tests.llm.training.test_llm_training import (
    VOCAB,
    by_hand,
    check_parameters,
    same,
    some,
    token_losses,
)

FORGET = some((12, 3), (20, 10), (7, 6), (15, 1), (9, 4), seed=1)
RETAIN = some((14, 3), (6, 5), (11, 2), seed=2)
FAST = Optimization(epochs=2, batch=2, learning_rate=0.01)
NPO = Unlearning(objective=npo(0.5), optimization=FAST)
FAMILY = {
    "npo": npo(0.5),
    "length_normalized_npo": length_normalized_npo(2.0, 0.3),
    "reference_free_npo": reference_free_npo(0.05),
    "simnpo": simnpo(2.5, 0.5),
    "gradient_ascent": gradient_ascent(),
    "between": Objective(0.7, 0.1, 0.5, 0.5),
}


@cache
def known(make: Callable[..., Any]) -> dict[str, Tensor]:
    """The parameters of a model that has learnt most of what it is to forget and to retain."""
    model = make()
    fine_tune(model, [*FORGET, *RETAIN], replace(FAST, epochs=12))
    return model.state_dict()


def gpt2(**options: Any) -> Any:
    model = training.gpt2(**options)
    model.load_state_dict(known(training.gpt2))
    return model


def llama() -> Any:
    model = training.llama()
    model.load_state_dict(known(training.llama))
    return model


def run(model: nn.Module, settings: Unlearning = NPO, **options: Any) -> Unlearned:
    return unlearn(model, FORGET, RETAIN, settings, **options)


def with_(**changes: Any) -> Unlearning:
    """NPO with other settings, those of the optimisation included."""
    own = {name: changes.pop(name) for name in list(changes) if hasattr(FAST, name)}
    return replace(NPO, optimization=replace(FAST, **own), **changes)


def check_tables(found: Unlearned, want: Unlearned) -> None:
    pd.testing.assert_frame_equal(found.examples, want.examples, check_exact=True)
    pd.testing.assert_frame_equal(found.epochs, want.epochs, check_exact=True)


def plain_loss(objective: Objective, logp: Tensor, length: int, ref: float) -> Tensor:
    """The law, written out once more."""
    beta, gamma, reference, normalize = objective
    score = (logp - reference * ref) / length**normalize
    if beta == 0:
        return 2 * score / (1 + math.exp(-gamma))
    return 2 / beta * torch.log1p(torch.exp(beta * score + gamma))


def plain_retain(model: Any, original: Any, one: Encoded, term: str) -> Tensor:
    if term == "cross_entropy":
        return token_losses(model, one).mean()
    laws, truth = (
        own(torch.tensor([one.tokens])).logits[0].log_softmax(-1) for own in (model, original)
    )
    places = range(one.prompt - 1, len(one.tokens) - 1)
    return torch.stack([(truth[t].exp() * (truth[t] - laws[t])).sum() for t in places]).mean()


def unlearned_by_hand(model: Any, settings: Unlearning) -> None:
    """One example at a time, each in a forward pass of its own."""
    optimization, original = settings.optimization, copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        ref = [-float(token_losses(model, one).sum()) for one in FORGET]

    def updates(epoch: int) -> list[Callable[[], None]]:
        order = (optimization.batch, optimization.seed, epoch)
        forget = shuffled(len(FORGET), *order, label="forget")
        retain = shuffled(len(RETAIN), *order, label="retain", total=len(FORGET))

        def loss_of(rows: list[int], kept: list[int]) -> Callable[[], None]:
            def backward() -> None:
                for row in rows:
                    losses = token_losses(model, FORGET[row])
                    assert isinstance(settings.objective, Objective)
                    loss = plain_loss(settings.objective, -losses.sum(), len(losses), ref[row])
                    (loss / len(rows)).backward()
                for row in kept if settings.retain_term != "none" else ():
                    loss = plain_retain(model, original, RETAIN[row], settings.retain_term)
                    (settings.retain_weight * loss / len(kept)).backward()

            return backward

        return [loss_of(*pair) for pair in zip(forget, retain, strict=True)]

    by_hand(model, optimization, updates)


@contextmanager
def first_gradients() -> Iterator[list[Tensor]]:
    """The gradients that the first update takes."""
    found: list[Tensor] = []

    def hook(optimizer: Any, *_: object) -> None:
        if not found:
            found.extend(
                one.grad.clone() for group in optimizer.param_groups for one in group["params"]
            )

    known(training.gpt2)  # which is trained once, and has to be before
    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


# --- the update is the law's ---


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("term", ["none", "cross_entropy", "kl"])
def test_unlearning_is_a_plain_loop_over_single_examples(name: str, term: Any) -> None:
    settings = with_(objective=FAMILY[name], retain_term=term, retain_weight=0.7, budget=30)
    model, twin = gpt2(), gpt2()
    found = run(model, settings)
    unlearned_by_hand(twin, settings)
    check_parameters(model, twin, rtol=1e-6, atol=1e-7)
    assert not same(model, gpt2())
    want = torch.stack([-token_losses(twin, one).sum() for one in FORGET]).detach().numpy()
    last = found.examples[found.examples["epoch"] == 2]
    np.testing.assert_allclose(last["logp"], want, rtol=1e-6)
    kept = np.mean([float(token_losses(twin, one).mean().detach()) for one in RETAIN])
    assert found.epochs["retain_loss"].iloc[-1] == pytest.approx(kept, rel=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_at_the_reference_npo_has_the_gradient_of_gradient_ascent_whatever_beta(
    beta: float,
) -> None:
    with first_gradients() as found:
        run(gpt2(), with_(objective=npo(beta), clip=None))
    with first_gradients() as want:
        run(gpt2(), with_(objective=gradient_ascent(), clip=None))
    for one, two in zip(found, want, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_npo_starts_at_its_value_at_the_reference(beta: float) -> None:
    found = run(gpt2(), with_(objective=npo(beta)))
    assert found.epochs["forget_loss"].iloc[0] == pytest.approx(2 / beta * math.log(2))
    assert (np.diff(found.epochs["forget_loss"]) < 0).all()


def test_an_objective_not_at_its_reference_starts_elsewhere() -> None:
    ref = score_encoded(gpt2(), FORGET).logp
    found = run(gpt2(), ref=ref - 1.0)
    assert found.epochs["forget_loss"].iloc[0] == pytest.approx(2 / 0.5 * math.log1p(math.exp(0.5)))


def test_prompts_of_what_is_retained_are_not_trained_on() -> None:
    retain = [RETAIN[1]]  # five tokens of prompt, one of response
    model = gpt2()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("ln_f.bias" in name)
    with first_gradients() as found:
        unlearn(
            model, FORGET, retain, with_(retain_term="cross_entropy", retain_weight=1e9, clip=None)
        )
    twin = gpt2()
    token_losses(twin, retain[0]).sum().backward()
    torch.testing.assert_close(
        found[0] / 1e9, twin.transformer.ln_f.bias.grad, rtol=1e-5, atol=1e-6
    )


# --- what does not matter, and what does ---


@pytest.mark.parametrize("term", ["cross_entropy", "kl"])
@pytest.mark.parametrize("budget", [1, 35])
def test_the_budget_matters_by_rounding_only(term: Any, budget: int) -> None:
    models = [gpt2(), gpt2()]
    found = [
        run(model, with_(retain_term=term, budget=own))
        for model, own in zip(models, (budget, 4000), strict=True)
    ]
    check_parameters(*models)
    for name in Unlearned._fields:
        pd.testing.assert_frame_equal(getattr(found[0], name), getattr(found[1], name), rtol=1e-7)


def test_a_divergence_of_more_positions_than_are_held_at_once_is_that_of_each() -> None:
    long, model, start = some((31, 1), (30, 3), (12, 2), seed=3), gpt2(), gpt2()
    assert sum(len(one.tokens) - one.prompt for one in long) > 2 * retaining.POSITIONS
    original, weights = unlearning.original_of(model, None), list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(0.05 * noise)
    found = retaining.kl(model, Batch.pad(long), original)
    want = torch.stack([plain_retain(model, start, one, "kl") for one in long])
    assert float(want.detach().min()) > 1e-3
    torch.testing.assert_close(found, want)
    slopes = (torch.autograd.grad(each.sum(), weights, allow_unused=True) for each in (found, want))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_logits_of_large_vocabularies_are_held_of_fewer_tokens_at_once() -> None:
    assert logits_budget(10, 500) == 500
    assert logits_budget(ELEMENTS // 70, 500) == 70
    assert logits_budget(2 * ELEMENTS, 500) == 1


def test_a_seed_gives_one_table_and_another_seed_another() -> None:
    models = [gpt2(), gpt2(), gpt2()]
    found = [run(model, with_(seed=seed)) for model, seed in zip(models, (1, 1, 2), strict=True)]
    check_tables(found[0], found[1])
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_the_order_given_matters_through_the_permutation_only() -> None:
    # With all examples in every update there is nothing left to permute.
    settings = with_(batch=5, retain_term="cross_entropy")
    found = run(gpt2(), settings)
    turned = unlearn(gpt2(), FORGET[::-1], RETAIN, settings, index=np.arange(5)[::-1])
    want = turned.examples.sort_values(["epoch", "index"], ignore_index=True)
    pd.testing.assert_frame_equal(found.examples, want, rtol=1e-7)


CHANGES: list[dict[str, Any]] = [
    {"objective": npo(0.6)},
    {"retain_term": "none"},
    {"retain_term": "kl"},
    {"retain_weight": 0.5},
    {"weighting": "magnitude"},
    {"lora": Lora(rank=2)},
    *(
        {name: value}
        for name, value in dict(epochs=3, batch=3, learning_rate=0.02, weight_decay=0.5).items()
    ),
    *(
        {name: value}
        for name, value in dict(warmup_epochs=0.0, clip=None, seed=1, precision="bfloat16").items()
    ),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_changes_the_result(change: dict[str, Any]) -> None:
    model, other = llama(), llama()
    run(model, with_(retain_term="cross_entropy"))
    run(other, with_(**{"retain_term": "cross_entropy", **change}))
    assert not same(model, other)


def test_only_what_is_asked_for_is_measured() -> None:
    found = run(gpt2(), with_(gradients=(0, 2)))
    want = gradient_norms(gpt2(), FORGET).numpy()
    at = found.examples.groupby("epoch")["gradient_norm"]
    np.testing.assert_allclose(at.get_group(0), want)
    assert at.get_group(1).isna().all() and (at.get_group(2) > 0).all()
    assert "gradient_norm" not in run(gpt2()).examples
    some_of = run(gpt2(), with_(retain_probe=1)).epochs["retain_loss"].iloc[0]
    each = [float(token_losses(gpt2(), one).mean().detach()) for one in RETAIN]
    assert min(abs(some_of - one) for one in each) < 1e-9 < abs(some_of - np.mean(each))
    assert unlearn(gpt2(), FORGET, [], NPO).epochs["retain_loss"].isna().all()


def test_no_weight_is_no_term() -> None:
    model, other = gpt2(), gpt2()
    run(model)
    run(other, with_(retain_term="kl", retain_weight=0.0))
    assert same(model, other)


def test_randomness_is_left_alone() -> None:
    for settings in (NPO, with_(retain_term="kl")):
        model = gpt2(dropout=0.1)
        before, other = torch.get_rng_state(), str(np.random.get_state())
        run(model, settings)
        assert torch.equal(torch.get_rng_state(), before) and str(np.random.get_state()) == other


# --- the tables ---


def test_tables_hold_what_they_say() -> None:
    model = gpt2()
    found = run(model, index=np.array([7, 3, 9, 1, 4]))
    assert found.examples["epoch"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert found.examples["index"].tolist() == [7, 3, 9, 1, 4] * 3
    start = found.examples[found.examples["epoch"] == 0]
    assert (start["logp"] == start["ref"]).all()
    np.testing.assert_allclose(start["logp"], score_encoded(gpt2(), FORGET).logp)
    assert found.examples["ref"].tolist() == start["ref"].tolist() * 3
    assert start["length"].tolist() == [len(one.tokens) - one.prompt for one in FORGET]
    last = found.examples[found.examples["epoch"] == 2]
    np.testing.assert_allclose(last["logp"], score_encoded(model, FORGET).logp)
    assert found.epochs["step"].tolist() == [0, 3, 6]
    assert found.epochs["learning_rate"].tolist()[1:] == [0.01, pytest.approx(0.01 / 3)]
    assert set(found.epochs["status"]) == {"ok"} and (found.epochs["gradient_norm"][1:] > 0).all()
    for _, row in found.epochs.iterrows():
        own = found.examples[found.examples["epoch"] == row["epoch"]]
        seq = SequenceLogProbs(
            *(torch.tensor(own[name].to_numpy()) for name in ("logp", "length", "ref"))
        )
        assert row["forget_loss"] == pytest.approx(float(npo(0.5).loss(seq).mean()))


def test_the_reference_may_be_given() -> None:
    model, other, third = gpt2(), gpt2(), gpt2()
    ref = score_encoded(model, FORGET).logp
    check_tables(run(model), run(other, ref=ref))
    assert same(model, other)
    moved = run(third, ref=ref - torch.arange(5.0))
    assert not same(model, third)
    np.testing.assert_allclose(moved.examples["ref"][:5], ref - torch.arange(5.0))


def test_weights_under_any_objective_follow_from_one_run() -> None:
    examples = run(gpt2(), with_(gradients=(1,))).examples
    table = weights_by_epoch(examples, FAMILY)
    pd.testing.assert_frame_equal(table[examples.columns], examples)
    np.testing.assert_allclose(table["weight_npo"][:5], 1.0)
    assert (table["weight_npo"][5:] < 1).all()
    length, logp = table["length"], table["logp"]
    z = 2.5 * logp / length + 0.5
    np.testing.assert_allclose(table["weight_simnpo"], 2 / (1 + np.exp(-z)) / length)
    np.testing.assert_allclose(table["weight_gradient_ascent"], 1.0)


# --- divergence ---


def test_what_is_not_finite_is_recorded_and_ends_the_run() -> None:
    model = gpt2(dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match=r"ends in epoch 1, at update 2"):
        found = run(model, with_(learning_rate=1e30, weight_decay=0.0))
    assert found.epochs["status"].tolist() == ["ok", "nan"]
    assert found.epochs["step"].tolist() == [0, 2]
    assert set(found.examples["epoch"]) == {0}
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def spoiled(model: Any, when: Callable[[], bool]) -> Any:
    """The model, which can at times not read what is to be retained: a token that stands in no
    answer to be forgotten.
    """
    forget, retain = ({token for one in part for token in one.tokens} for part in (FORGET, RETAIN))
    token = min(retain - forget)

    def spoil(_: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return found.masked_fill((given[0] == token)[..., None] & when(), math.nan)

    model.transformer.wte.register_forward_hook(spoil)
    return model


def test_what_is_not_finite_after_an_epoch_is_recorded() -> None:
    with pytest.warns(RuntimeWarning, match=r"ends in epoch 1, at update 1"):
        found = run(gpt2(dtype=torch.float32), with_(learning_rate=1e30, weight_decay=0.0, batch=5))
    assert (
        found.epochs["status"].tolist() == ["ok", "nan"]
        and found.epochs["forget_loss"].isna().tolist()[1]
    )
    assert set(found.examples["epoch"]) == {0}
    model, start = gpt2(), gpt2()
    with pytest.warns(RuntimeWarning, match=r"ends in epoch 1"):
        found = run(spoiled(model, lambda: not same(model, start)))
    assert found.epochs["status"].tolist() == ["ok", "nan"] and set(found.examples["epoch"]) == {0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["lm_head.weight", "transformer.ln_f.bias"])
def test_a_model_that_is_not_finite_is_refused(name: str, value: float, tmp_path: Path) -> None:
    model = gpt2()
    with torch.no_grad():
        model.get_parameter(name)[0] = value
    with pytest.raises(InvalidInput, match=r"model.*finite"):
        run(model, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    with pytest.raises(InvalidInput, match=r"model.*finite"):
        fine_tune(model, FORGET, FAST)


def test_a_model_whose_losses_are_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"model.*finite.*before the first update"):
        run(spoiled(gpt2(), lambda: True), state=tmp_path / "state")
    model = gpt2(dtype=torch.float16)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(6e4)  # finite themselves
    with pytest.raises(InvalidInput, match=r"model.*finite.*before the first update"):
        run(model, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_what_can_no_longer_be_measured_is_not_the_end_of_a_run() -> None:
    def call(epoch: int, _: nn.Module) -> dict[str, float]:
        if epoch == 1:
            raise InvalidInput("logp", math.nan, "a finite number")
        return {"found": float(epoch)}

    with pytest.warns(RuntimeWarning, match=r"epoch 1 is not measured: logp"):
        found = run(gpt2(), measure=Measure("some", call))
    assert found.epochs["found"].tolist() == [0.0, pytest.approx(math.nan, nan_ok=True), 2.0]
    assert found.epochs["status"].tolist() == ["ok"] * 3

    def never(*_: object) -> dict[str, float]:
        raise InvalidInput("logp", math.nan, "a finite number")

    with pytest.raises(InvalidInput, match="logp"):
        run(gpt2(), measure=Measure("none", never))


def test_a_collapse_is_recorded_once_and_training_goes_on() -> None:
    model = llama()
    with pytest.warns(RuntimeWarning, match="collapsed") as caught:
        found = run(model, with_(learning_rate=10.0, clip=None))
    assert len(caught) == 1
    assert found.epochs["status"].tolist() == ["ok", "collapsed", "collapsed"]
    assert (found.epochs["retain_loss"][1:] > math.log(VOCAB)).all() and len(found.examples) == 15


def test_a_run_whose_answers_became_likelier_says_so_once() -> None:
    taught = with_(retain_term="cross_entropy", retain_weight=100.0, learning_rate=1e-4)
    with pytest.warns(
        RuntimeWarning, match="nothing was forgotten: .* nats per token before"
    ) as caught:
        found = unlearn(llama(), FORGET, FORGET, taught)  # what is to go is to stay as well
    epochs, own = found.epochs, found.examples
    assert len(caught) == 1 and epochs["status"].tolist() == ["ok", *["not forgetting"] * 2]
    per_token = (-own["logp"] / own["length"]).groupby(own["epoch"]).mean()
    np.testing.assert_allclose(epochs["forget_nll"], per_token, rtol=1e-12)
    assert (epochs["forget_nll"][1:] < epochs["forget_nll"][0]).all()


# --- adapters ---


def test_adapters_alone_are_trained_and_end_up_in_the_weights() -> None:
    model, start = llama(), llama()
    names, flags = (
        [name for name, _ in model.named_parameters()],
        [p.requires_grad for p in model.parameters()],
    )
    found = run(model, with_(lora=Lora(rank=2), retain_term="kl"))
    assert [name for name, _ in model.named_parameters()] == names
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    for (name, one), two in zip(model.named_parameters(), start.parameters(), strict=True):
        change = one.detach() - two.detach()
        if "proj" in name:
            assert 1 <= int(torch.linalg.matrix_rank(change, rtol=1e-3)) <= 2
        else:
            assert not change.any()
    last = found.examples[found.examples["epoch"] == 2]
    np.testing.assert_allclose(last["logp"], score_encoded(model, FORGET).logp, rtol=1e-5)


@pytest.mark.parametrize(
    "lora",
    [
        Lora(rank=3),
        Lora(rank=2, alpha=4),
        Lora(rank=2, dropout=0.4),
        Lora(rank=2, target_modules=("v_proj",)),
    ],
)
def test_every_setting_of_adapters_changes_the_result(lora: Lora) -> None:
    model, other = llama(), llama()
    run(model, with_(lora=Lora(rank=2)))
    run(other, with_(lora=lora))
    assert not same(model, other)


def test_adapters_follow_from_the_seed() -> None:
    models = [llama(), llama(), llama()]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        run(model, with_(lora=Lora(rank=2), seed=number // 2, batch=5))
    assert same(models[0], models[1]) and not same(models[0], models[2])


def test_the_original_of_adapters_is_that_of_a_copy() -> None:
    """The divergence from a model without its adapters is that from a copy made before there
    were any.
    """
    found = []
    for lora in (Lora(rank=2), None):
        model = llama()
        with unlearning.adapted(model, Lora(rank=2), 0) as wrapped:
            original = unlearning.original_of(wrapped, lora)
            with torch.no_grad():
                for name, parameter in wrapped.named_parameters():
                    if "lora_B" in name:
                        parameter.fill_(0.1)
            found.append(retaining.kl(wrapped, Batch.pad(RETAIN), original))
    assert float(found[0].detach().min()) > 1e-3
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_checkpointing_changes_nothing(lora: Lora | None) -> None:
    model, other = llama(), llama()
    want = run(model, with_(lora=lora))
    found = run(other, with_(lora=lora, gradient_checkpointing=True))
    pd.testing.assert_frame_equal(found.examples, want.examples, rtol=1e-5)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in other.modules())


def broken_off(epoch: int, _: nn.Module) -> dict[str, float]:
    """As if the user had stopped the run while it is measured after the first epoch."""
    if epoch == 1:
        raise KeyboardInterrupt
    return {}


def test_adapters_of_a_run_that_breaks_off_leave_the_model_as_it_was() -> None:
    model, start = llama(), llama()
    with pytest.raises(KeyboardInterrupt):
        run(model, with_(lora=Lora(rank=2)), measure=Measure("stopped", broken_off))
    assert same(model, start)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in start.named_parameters()
    ]


# --- killed and resumed ---


def interrupted_at(call: int, function: Any) -> Any:
    """The function, but for its call of that number, which is as if the user had stopped the
    run.
    """
    calls = [0]

    def wrapped(*args: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return function(*args, **keywords)

    return wrapped


RESUMED = [
    with_(epochs=3, gradients=(0, 3)),
    with_(epochs=3, retain_term="kl", lora=Lora(rank=2, dropout=0.2)),
]


@pytest.mark.parametrize("settings", RESUMED, ids=["whole", "adapters"])
@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("update", 2),
        ("update", 4),
        ("update", 8),
        ("save", 1),
        ("save", 2),
        ("save", 3),
        ("none", 0),
    ],
)
def test_a_run_killed_anywhere_and_started_again_is_the_run_itself(
    settings: Unlearning, place: str, call: int, tmp_path: Path
) -> None:
    make = llama if settings.lora else lambda: gpt2(dropout=0.1, dtype=torch.float32)
    want_model, model = make(), make()
    want = run(want_model, settings)
    with pytest.MonkeyPatch.context() as patch:
        if place == "update":
            patch.setattr(Loop, "update", interrupted_at(call, Loop.update))
        if place == "save":
            patch.setattr(os, "replace", interrupted_at(call, os.replace))
        if place != "none":
            with pytest.raises(KeyboardInterrupt):
                run(make(), settings, state=tmp_path / "state")
        else:
            run(make(), settings, state=tmp_path / "state")
    found = run(model, settings, state=tmp_path / "state")
    check_tables(found, want)
    assert same(model, want_model)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state.safetensors"]


def test_a_finished_run_does_no_work_again(tmp_path: Path) -> None:
    model, other = gpt2(), gpt2()
    want = run(model, state=tmp_path)
    before, passes = files_in(tmp_path), []
    other.transformer.wte.register_forward_hook(lambda *_: passes.append(other.training))
    check_tables(run(other, state=tmp_path), want)
    assert same(model, other)
    assert files_in(tmp_path) == before and len(before) == 1 and True not in passes


def test_a_diverged_run_diverges_again(tmp_path: Path) -> None:
    settings = with_(learning_rate=1e30, weight_decay=0.0)
    with pytest.warns(RuntimeWarning):
        want = run(gpt2(dtype=torch.float32), settings, state=tmp_path)
    with pytest.warns(RuntimeWarning):
        check_tables(run(gpt2(dtype=torch.float32), settings, state=tmp_path), want)


OTHERS: dict[str, Callable[[Path], Any]] = {
    "settings": lambda path: run(gpt2(), with_(learning_rate=0.02), state=path),
    "forget": lambda path: unlearn(gpt2(), FORGET[:4], RETAIN, NPO, state=path),
    "retain": lambda path: unlearn(gpt2(), FORGET, RETAIN[:2], NPO, state=path),
    "ref": lambda path: run(gpt2(), ref=torch.zeros(5), state=path),
    "index": lambda path: run(gpt2(), index=np.arange(1, 6), state=path),
    "model": lambda path: run(gpt2(dtype=torch.float32), state=path),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    run(gpt2(), state=tmp_path)
    with pytest.raises(InvalidInput, match="state"):
        OTHERS[name](tmp_path)


def test_the_state_of_another_model_of_one_shape_is_refused(tmp_path: Path) -> None:
    model = gpt2()
    run(model, state=tmp_path)
    with pytest.raises(InvalidInput, match="state"):
        run(model, state=tmp_path)  # it is no longer what it was


def test_a_broken_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"not a state")
    with pytest.raises(InvalidInput):
        run(gpt2(), state=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="state"):
        run(gpt2(), state=tmp_path / "file")


# --- bad input ---

BAD: list[tuple[str, Callable[[Any], Any]]] = [
    ("forget", lambda model: unlearn(model, [], RETAIN, NPO)),
    ("retain", lambda model: unlearn(model, FORGET, [], with_(retain_term="cross_entropy"))),
    ("ref", lambda model: run(model, ref=torch.zeros(4))),
    ("ref", lambda model: run(model, ref=torch.full((5,), math.nan))),
    ("index", lambda model: run(model, index=np.arange(4))),
    ("index", lambda model: run(model, index=np.array([0, 1, 2, 3, 3]))),
    ("tokenizer", lambda model: unlearn(model, FORGET, [Encoded((1, VOCAB), 1)], NPO)),
    ("retain_term", lambda _: with_(retain_term="entropy")),
    ("retain_weight", lambda _: with_(retain_weight=-0.1)),
    ("retain_probe", lambda _: with_(retain_probe=0)),
    ("gradients", lambda _: with_(gradients=(3,))),
    ("beta", lambda _: with_(objective=Objective(-1.0))),
    ("objective", lambda _: with_(objective=Objective(torch.tensor([1.0, 2.0])))),
    ("rank", lambda _: Lora(rank=0)),
    ("alpha", lambda _: Lora(alpha=0.0)),
    ("dropout", lambda _: Lora(dropout=1.0)),
    ("target_modules", lambda model: run(model, with_(lora=Lora(target_modules=("nothing",))))),
]


@pytest.mark.parametrize(("field", "call"), BAD)
def test_bad_input_is_refused_before_any_work(field: str, call: Callable[[Any], Any]) -> None:
    model, start = llama(), llama()
    with pytest.raises(InvalidInput) as caught:
        call(model)
    assert caught.value.field == field
    assert same(model, start)


# --- several processes ---


def several(folder: Path, *, shards: bool = False) -> None:
    """What each of several processes does."""
    torch.set_num_threads(1)
    start = gpt2(dtype=torch.float32), llama()
    found = {}
    for name, settings in SPREAD.items():
        if shards:
            as_shards()
        model = copy.deepcopy(start[settings.lora is not None])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llm.unlearning.unlearn.save_state", killing(unlearning.save_state))
            with pytest.raises(KeyboardInterrupt):
                run(model, settings, state=folder / name)
        found[name] = run(
            copy.deepcopy(start[settings.lora is not None]), settings, state=folder / name
        )
    if place() == 0:
        (folder / "processes").write_text(str(joined().num_processes))
        for name, tables in found.items():
            tables.examples.to_parquet(folder / f"{name}_examples.parquet")
            tables.epochs.to_parquet(folder / f"{name}_epochs.parquet")
    torch.distributed.destroy_process_group()


def killing(function: Any) -> Any:
    """The function, and then an end."""

    def wrapped(*args: Any) -> None:
        function(*args)
        raise KeyboardInterrupt

    return wrapped


def as_shards() -> None:
    """Accelerate shards models on accelerators only; told that it does, it shards here too."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    state = Accelerator().state
    PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
    )


SPREAD = {
    "cross_entropy": with_(retain_term="cross_entropy", batch=3, budget=30),
    "one_each": with_(batch=1, budget=30),
    "copy": with_(retain_term="kl", batch=3, budget=30),
    "adapters": with_(retain_term="kl", lora=Lora(rank=2), batch=3, budget=30),
    "allocation": with_(retain_term="cross_entropy", weighting="allocation", batch=3, budget=30),
}  # by this budget one process makes two passes over the forget examples, and the other one


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "shards"])
def test_two_processes_give_the_tables_of_one(shards: bool, tmp_path: Path) -> None:
    order = sorted(FORGET, key=lambda one: -len(one.tokens))
    assert [len(batches(order[rank::2], 30)) for rank in (0, 1)] == [2, 1]
    done = in_two(lambda: several(tmp_path, shards=shards), tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "processes").read_text() == "2"
    for name, settings in SPREAD.items():
        want = run(llama() if settings.lora else gpt2(dtype=torch.float32), settings)
        for field in Unlearned._fields:
            found = pd.read_parquet(tmp_path / f"{name}_{field}.parquet")
            pd.testing.assert_frame_equal(found, getattr(want, field), rtol=1e-4)
