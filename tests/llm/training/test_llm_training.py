"""Training of language models: one plain loop over single examples, whatever the batch is cut
into.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm.randomness import own_randomness, shuffled
from llm.scoring.encoding import Encoded
from llm.scoring.logprobs import response_logprobs, score_encoded
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization, Term, looping
from markov.errors import InvalidInput

VOCAB = 50


def gpt2(*, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> Any:
    """A model with biases, scales and one matrix for embedding and head, all of whose arithmetic
    is in its dtype.
    """
    off: dict[str, Any] = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        bos_token_id=1,
        eos_token_id=2,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        **off,
    )
    return roughened(transformers.GPT2LMHeadModel(config)).to(dtype)


def llama() -> Any:
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return roughened(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCAB, **sizes))
    )


def roughened(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # scales start at 1, matrices at random
            start = parameter if parameter.ndim == 1 else torch.zeros(())
            parameter.copy_(start + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def some(*sizes: tuple[int, int], seed: int = 0) -> list[Encoded]:
    """Random tokens, as many as each first number says, the second's number of which are the
    prompt's.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length, _ in sizes)
    return [Encoded(tuple(tokens), prompt) for tokens, (_, prompt) in zip(draw, sizes, strict=True)]


EXAMPLES = some((12, 3), (20, 10), (7, 6), (15, 1), (2, 1), (12, 11), (9, 4))
FAST = Optimization(epochs=2, batch=3, learning_rate=0.01)


def token_losses(model: Any, one: Encoded) -> Tensor:
    """-log pi of each response token, from a forward pass over this example alone."""
    laws = model(torch.tensor([one.tokens])).logits[0].log_softmax(-1)
    return torch.stack(
        [-laws[place - 1, one.tokens[place]] for place in range(one.prompt, len(one.tokens))]
    )


def by_hand(
    model: Any, optimization: Optimization, updates: Callable[[int], list[Callable[[], None]]]
) -> None:
    """AdamW as published (Loshchilov and Hutter 2019); `updates(epoch)` are backward passes, one
    per update.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    per_epoch, step = None, 0
    for epoch in range(1, optimization.epochs + 1):
        plan = updates(epoch)
        per_epoch = per_epoch or len(plan)
        total, warmup = optimization.epochs * per_epoch, optimization.warmup_epochs * per_epoch
        for loss_of in plan:
            step += 1
            for parameter in parameters:
                parameter.grad = None
            loss_of()
            gradients: list[Any] = [parameter.grad for parameter in parameters]
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            if optimization.clip is not None and norm > optimization.clip:
                gradients = [gradient * optimization.clip / norm for gradient in gradients]
            rise = step / warmup if warmup else math.inf
            rate = optimization.learning_rate * min(
                rise, (total - step + 1) / max(1, total - warmup), 1.0
            )
            with torch.no_grad():
                for parameter, gradient, m, v in zip(
                    parameters, gradients, first, second, strict=True
                ):
                    if parameter.ndim > 1:
                        parameter *= 1 - rate * optimization.weight_decay
                    m.copy_(0.9 * m + 0.1 * gradient)
                    v.copy_(0.999 * v + 0.001 * gradient**2)
                    scale = (v / (1 - 0.999**step)).sqrt() + 1e-8
                    parameter -= rate * m / (1 - 0.9**step) / scale
    for parameter in parameters:
        parameter.grad = None


def fine_tuned_by_hand(model: Any, encoded: list[Encoded], optimization: Optimization) -> None:
    def updates(epoch: int) -> list[Any]:
        def loss_of(rows: list[int]) -> Any:
            def run() -> None:
                tokens = sum(len(encoded[row].tokens) - encoded[row].prompt for row in rows)
                for row in rows:
                    (token_losses(model, encoded[row]).sum() / tokens).backward()

            return run

        order = shuffled(len(encoded), optimization.batch, optimization.seed, epoch)
        return [loss_of(rows) for rows in order]

    by_hand(model, optimization, updates)


def check_parameters(
    model: nn.Module, other: nn.Module, rtol: float = 1e-6, atol: float = 1e-7
) -> None:
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=rtol, atol=atol)


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(one, two)
        for one, two in zip(model.parameters(), other.parameters(), strict=True)
    )


# --- the loop ---


@pytest.mark.parametrize(
    "optimization",
    [
        FAST,
        replace(FAST, clip=None, warmup_epochs=0.0),
        replace(FAST, clip=0.05, weight_decay=0.5, epochs=3, warmup_epochs=2.0, seed=3),
        replace(FAST, batch=1, epochs=1),
        replace(FAST, batch=100, epochs=1),
    ],
)
def test_fine_tuning_is_a_plain_loop_over_single_examples(optimization: Optimization) -> None:
    model, twin = gpt2(), gpt2()
    table = fine_tune(model, EXAMPLES, replace(optimization, budget=30))
    fine_tuned_by_hand(twin, EXAMPLES, optimization)
    check_parameters(model, twin)
    assert not same(model, gpt2())
    steps = math.ceil(len(EXAMPLES) / optimization.batch)
    assert table["epoch"].tolist() == list(range(1, optimization.epochs + 1))
    assert table["step"].tolist() == [epoch * steps for epoch in table["epoch"]]
    assert table["learning_rate"].iloc[-1] == optimization.rate(steps * optimization.epochs, steps)


@settings(max_examples=12)
@given(st.integers(1, 150), st.integers(1, 8))
def test_the_budget_matters_by_rounding_only(budget: int, batch: int) -> None:
    models = [gpt2(), gpt2()]
    tables = [
        fine_tune(model, EXAMPLES, replace(FAST, batch=batch, budget=own))
        for model, own in zip(models, (budget, 10_000), strict=True)
    ]
    check_parameters(*models)
    torch.testing.assert_close(*(torch.tensor(table["loss"].to_numpy()) for table in tables))


def test_a_budget_bounds_the_tokens_of_a_forward_pass() -> None:
    model, seen = gpt2(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    fine_tune(model, EXAMPLES, replace(FAST, budget=22))
    # that which tries the model out, and the updates
    assert max(seen) <= 22 and len(seen) > 1 + 2 * 3


def test_the_loss_is_the_mean_over_response_tokens() -> None:
    want = -score_encoded(gpt2(), EXAMPLES).logp.sum() / sum(
        len(one.tokens) - one.prompt for one in EXAMPLES
    )
    table = fine_tune(gpt2(), EXAMPLES, replace(FAST, learning_rate=1e-12))
    assert table["loss"].tolist() == pytest.approx([float(want)] * 2, rel=1e-8)


def test_after_each_epoch_the_model_of_that_moment_is_shown_without_dropout() -> None:
    seen: list[tuple[int, bool, Tensor]] = []
    model, one = llama(), replace(FAST, epochs=1, warmup_epochs=0)

    def look(epoch: int) -> None:
        seen.append((epoch, model.training, next(model.parameters()).detach().clone()))

    fine_tune(model, EXAMPLES, replace(FAST, epochs=3), progress=False, after=look)
    assert [(epoch, training) for epoch, training, _ in seen] == [
        (1, False),
        (2, False),
        (3, False),
    ]
    assert torch.equal(seen[-1][2], next(model.parameters())) and not torch.equal(
        seen[0][2], seen[1][2]
    )
    untouched = llama()
    fine_tune(untouched, EXAMPLES, replace(FAST, epochs=3), progress=False)
    assert same(model, untouched)
    fine_tune(model, EXAMPLES, one, progress=False)  # without it, as ever


def test_responses_are_learnt_by_heart() -> None:
    model = gpt2(dtype=torch.float32)
    fine_tune(model, EXAMPLES, replace(FAST, epochs=40, learning_rate=0.02))
    seq = score_encoded(model, EXAMPLES)
    assert float((seq.logp / seq.length).min()) > -0.2


def test_the_order_follows_from_the_seed() -> None:
    models = [gpt2(), gpt2(), gpt2()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        fine_tune(model, EXAMPLES, replace(FAST, seed=seed))
    assert same(models[0], models[1]) and not same(models[0], models[2])


CHANGES: list[dict[str, Any]] = [
    {"epochs": 3},
    {"batch": 2},
    {"learning_rate": 0.02},
    {"weight_decay": 0.5},
    {"warmup_epochs": 0.0},
    {"clip": None},
    {"precision": "bfloat16"},
    {"seed": 1},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_setting_changes_the_result(change: dict[str, Any]) -> None:
    model, other = gpt2(dtype=torch.float32), gpt2(dtype=torch.float32)
    fine_tune(model, EXAMPLES, FAST)
    fine_tune(other, EXAMPLES, replace(FAST, **change))
    assert not same(model, other)


def test_bfloat16_is_about_right() -> None:
    model, other = llama(), llama()
    tables = [
        fine_tune(model, EXAMPLES, FAST),
        fine_tune(other, EXAMPLES, replace(FAST, precision="bfloat16")),
    ]
    assert tables[1]["loss"].tolist() == pytest.approx(tables[0]["loss"].tolist(), rel=0.02)
    assert next(other.parameters()).dtype == torch.float32
    narrow = llama().to(torch.bfloat16)
    assert fine_tune(narrow, EXAMPLES, FAST)["loss"].tolist() == pytest.approx(
        tables[0]["loss"].tolist(), rel=0.05
    )
    assert next(narrow.parameters()).dtype == torch.bfloat16


def test_checkpointing_computes_layers_twice_and_changes_nothing() -> None:
    model, other, counts = gpt2(), gpt2(), [0, 0]
    for which, one in enumerate((model, other)):

        def count(*_: object, which: int = which) -> None:
            counts[which] += 1

        one.transformer.h[0].mlp.register_forward_pre_hook(count)
        fine_tune(one, EXAMPLES, replace(FAST, gradient_checkpointing=which == 1))
    check_parameters(model, other)
    assert counts[1] - 1 == 2 * (counts[0] - 1)  # but for the forward pass that tries the model out
    assert not any(getattr(module, "gradient_checkpointing", False) for module in other.modules())


# --- randomness ---


def test_dropout_follows_from_the_seed_and_leaves_the_global_generator_alone() -> None:
    models = [gpt2(dropout=0.2) for _ in range(3)]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        fine_tune(model, EXAMPLES, replace(FAST, batch=100, seed=number // 2))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(models[0], models[1])
    plain = gpt2()
    fine_tune(plain, EXAMPLES, replace(FAST, batch=100))
    assert not same(models[0], plain) and not same(models[0], models[2])


def test_no_two_updates_share_their_dropout() -> None:
    with looping(gpt2(dropout=0.2), FAST) as loop:
        term = Term(
            EXAMPLES, range(7), lambda own, batch, rows: response_logprobs(own, batch).logp, 1 / 7
        )
        found = [loop.update(step, 0.0, [term]).terms for step in (1, 2, 1)]
    assert found[0] == found[2] != found[1]


def test_no_two_purposes_share_their_randomness() -> None:
    seen = []
    for labels in (("dropout", 1), ("dropout", 2), ("adapters", 1)):
        for seed in (0, 1):
            with own_randomness(seed, *labels):
                seen.append(float(torch.rand(())))
    assert len(set(seen)) == 6


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.integers(1, 5))
def test_an_epoch_takes_every_example_once(count: int, batch: int, seed: int, epoch: int) -> None:
    found = shuffled(count, batch, seed, epoch)
    assert sorted(row for rows in found for row in rows) == list(range(count))
    assert {len(rows) for rows in found[:-1]} <= {batch} and 1 <= len(found[-1]) <= batch
    assert found == shuffled(count, batch, seed, epoch)


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 9), st.integers(0, 9))
def test_pairing_takes_every_example_about_equally_often(
    count: int, total: int, batch: int, seed: int
) -> None:
    found = shuffled(count, batch, seed, 1, label="retain", total=total)
    rows = [row for rows in found for row in rows]
    times = [rows.count(row) for row in range(count)]
    assert len(rows) == total and max(times) - min(times) <= 1
    assert [len(own) for own in found] == [len(own) for own in shuffled(total, batch, seed, 1)]


def test_orders_differ_between_seeds_epochs_and_labels() -> None:
    found = [
        shuffled(30, 30, seed, epoch, label=label)[0]
        for seed in (0, 1)
        for epoch in (1, 2)
        for label in ("forget", "retain")
    ]
    assert len({tuple(order) for order in found}) == 8


# --- rates ---


@given(st.integers(1, 6), st.integers(1, 9), st.floats(0.0, 1.0))
def test_the_rate_rises_to_its_peak_and_falls_to_one_last_step_above_zero(
    epochs: int, per_epoch: int, share: float
) -> None:
    optimization = replace(FAST, epochs=epochs, warmup_epochs=share * epochs)
    total, warmup = epochs * per_epoch, round(share * epochs * per_epoch)
    rates = [optimization.rate(step, per_epoch) / 0.01 for step in range(1, total + 1)]
    assert min(rates) > 0 and max(rates) == pytest.approx(1.0)
    assert rates[:warmup] == pytest.approx([step / warmup for step in range(1, warmup + 1)])
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
    theirs = []
    for _ in range(total):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[warmup:] == pytest.approx(theirs[warmup:])
    assert rates[: max(0, warmup - 1)] == pytest.approx(theirs[1:warmup])


# --- what is left behind ---


def test_the_model_is_in_its_own_modes_again_and_holds_no_gradients() -> None:
    model = gpt2(dropout=0.1).eval()
    model.transformer.h[1].train()
    modes = [module.training for module in model.modules()]
    fine_tune(model, EXAMPLES, FAST)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_stay() -> None:
    model, before = gpt2(), gpt2()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    fine_tune(model, EXAMPLES, FAST)
    for (name, one), two in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(one, two) != ("mlp" in name)


def test_what_is_not_finite_is_not_taken() -> None:
    model, start = gpt2(), gpt2()
    with looping(model, FAST) as loop:

        def losses(own: nn.Module, batch: Any, rows: Any) -> Tensor:
            return response_logprobs(own, batch).logp * math.inf

        done = loop.update(1, 0.1, [Term(EXAMPLES, range(3), losses, 1.0)])
    assert not done.finite and same(model, start)


def test_the_gradient_norm_is_that_before_clipping() -> None:
    found = []
    for clip in (None, 1e-3):
        with looping(gpt2(), replace(FAST, clip=clip)) as loop:
            term = Term(
                EXAMPLES,
                range(7),
                lambda own, batch, rows: response_logprobs(own, batch).logp,
                1 / 7,
            )
            found.append(loop.update(1, 0.1, [term]))
    twin = gpt2()
    (torch.stack([-token_losses(twin, one).sum() for one in EXAMPLES]).sum() / 7).backward()
    want = (
        torch.stack([parameter.grad.square().sum() for parameter in twin.parameters()]).sum().sqrt()
    )
    assert [update.gradient_norm for update in found] == pytest.approx([float(want)] * 2)


def test_evaluation_is_that_of_score_encoded() -> None:
    with looping(gpt2(dropout=0.3), replace(FAST, budget=25)) as loop:
        found = loop.evaluate(EXAMPLES, lambda own, batch, rows: response_logprobs(own, batch).logp)
    torch.testing.assert_close(found, score_encoded(gpt2(), EXAMPLES).logp)
    assert not found.requires_grad


# --- bad input ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch", 0),
        ("budget", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", "fast"),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("weight_decay", None),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", 2.5),
        ("clip", 0.0),
        ("precision", "float16"),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(FAST, **{field: value})
    assert caught.value.field == field


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InvalidInput, match="examples"):
        fine_tune(gpt2(), [], FAST)
    with pytest.raises(InvalidInput, match="tokenizer"):
        fine_tune(gpt2(), [Encoded((1, VOCAB), 1)], FAST)
    with pytest.raises(InvalidInput, match="trainable"):
        fine_tune(gpt2().requires_grad_(False), EXAMPLES, FAST)
    with pytest.raises(InvalidInput, match=r"learning_rate.*epoch 1, step 2"):
        fine_tune(gpt2(dtype=torch.float32), EXAMPLES, replace(FAST, learning_rate=1e30))


def test_a_copy_is_trained_alike() -> None:
    model = llama()
    other = copy.deepcopy(model)
    fine_tune(model, EXAMPLES, FAST)
    fine_tune(other, EXAMPLES, FAST)
    assert same(model, other)
    fine_tune(other, EXAMPLES, FAST)
    assert not same(model, other)
