"""Scores of language models: transformers' own loss, whatever the batch, the padding, the head
or the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm.scoring import logprobs
from llm.scoring.encoding import Batch, Encoded, encode_examples
from llm.scoring.finite import Named, NotFinite
from llm.scoring.inside import CAUSAL
from llm.scoring.logprobs import (
    ELEMENTS,
    check_model,
    logits_budget,
    response_logprobs,
    score,
    score_encoded,
    scored_in,
    scored_logits,
    token_logprobs,
)
from llm.scoring.shared import kept_of
from llm.scoring.templates import PLAIN
from markov.console import progress
from markov.errors import InvalidInput
from markov.objectives import npo
from tests.helpers import Bar
from tests.llm.scoring.test_encoding import Pair, by_bytes, by_pieces

VOCAB = 97
SIZES: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40
)
COMMON: dict[str, Any] = dict(vocab_size=VOCAB, max_position_embeddings=64, **SIZES)
GROUPED: dict[str, Any] = dict(num_key_value_heads=2, **COMMON)
GPT2: dict[str, Any] = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)

# Tied and untied heads, biases, grouped heads, a head with a bias, and heads behind which something
# follows.
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(tie_word_embeddings=True, **GROUPED)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=8, **GROUPED)),
    "phi": lambda: transformers.PhiForCausalLM(transformers.PhiConfig(**COMMON)),
    "cohere": lambda: transformers.CohereForCausalLM(
        transformers.CohereConfig(logit_scale=0.3, **GROUPED)
    ),
    "granite": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(logits_scaling=3.0, **GROUPED)
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(head_dim=8, final_logit_softcapping=2.0, **GROUPED)
    ),
}
EVERYTHING, SOME, ONE = 2**25, 3 * VOCAB, 1  # logits held at once


def tiny(name: str) -> Any:
    """A model that attends to what it reads: of large random weights, the same at every call, in
    evaluation mode.
    """
    model = FAMILIES[name]()
    return roughen(model).eval()


def roughen(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # norms start at 1, matrices at random
            start = parameter if parameter.ndim == 1 else torch.zeros(())
            parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def some_examples(*sizes: tuple[int, int], seed: int = 0) -> list[Encoded]:
    """Random tokens: as many as each first number says, the second's number of which are the
    prompt's.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length, _ in sizes)
    return [Encoded(tuple(tokens), prompt) for tokens, (_, prompt) in zip(draw, sizes, strict=True)]


EXAMPLES = some_examples((12, 3), (20, 10), (7, 6), (15, 1), (2, 1), (12, 11))
RARE = EXAMPLES[2].tokens[-1]
MODELS = {name: tiny(name) for name in FAMILIES}


def own_loss(model: Any, one: Encoded) -> Tensor:
    """transformers' mean loss over the response, times its tokens."""
    labels = torch.tensor([[-100] * one.prompt + list(one.tokens[one.prompt :])])
    return model(torch.tensor([one.tokens]), labels=labels).loss * (len(one.tokens) - one.prompt)


def own_logp(model: Any, encoded: list[Encoded]) -> Tensor:
    with torch.no_grad():
        return torch.stack([-own_loss(model, one) for one in encoded])


def slow_logp(model: Any, one: Encoded) -> float:
    """Token after token, each from a forward pass that has seen nothing but what comes before
    it.
    """
    total = 0.0
    for place in range(one.prompt, len(one.tokens)):
        with torch.no_grad():
            logits = model(torch.tensor([one.tokens[:place]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[one.tokens[place]])
    return total


def check_logp(got: Tensor, want: Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=1e-4)


# --- what a score is ---


@pytest.mark.parametrize("elements", [EVERYTHING, SOME, ONE])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_minus_transformers_own_loss_times_the_scored_tokens(
    name: str, elements: int
) -> None:
    found = score_encoded(MODELS[name], EXAMPLES, elements=elements, budget=64)
    check_logp(found.logp, own_logp(MODELS[name], EXAMPLES))
    assert found.length.tolist() == [len(one.tokens) - one.prompt for one in EXAMPLES]
    assert found.ref.tolist() == [0.0] * len(EXAMPLES)
    assert {field.dtype for field in found} == {torch.float32}
    assert not found.logp.requires_grad


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_is_the_sum_over_the_response_token_after_token(name: str) -> None:
    found = score_encoded(MODELS[name], EXAMPLES[:3])
    check_logp(found.logp, torch.tensor([slow_logp(MODELS[name], one) for one in EXAMPLES[:3]]))


@settings(max_examples=12)
@given(
    st.sampled_from(["llama", "gpt2", "qwen2"]),
    st.lists(st.tuples(st.integers(2, 20), st.integers(1, 19)), min_size=1, max_size=6),
    st.integers(1, 80),
    st.sampled_from([EVERYTHING, SOME, ONE]),
    st.integers(0, 5),
)
def test_neither_company_nor_budget_nor_order_matter(
    name: str, sizes: list[tuple[int, int]], budget: int, elements: int, seed: int
) -> None:
    encoded = some_examples(
        *((length, min(prompt, length - 1)) for length, prompt in sizes), seed=seed
    )
    found = score_encoded(MODELS[name], encoded, budget=budget, elements=elements)
    check_logp(found.logp, torch.cat([score_encoded(MODELS[name], [one]).logp for one in encoded]))
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = score_encoded(
        MODELS[name], [encoded[row] for row in order], budget=budget, elements=elements
    )
    check_logp(shuffled.logp, found.logp[order])


@pytest.mark.parametrize("elements", [EVERYTHING, ONE])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_stands_in_the_padding_changes_nothing(name: str, elements: int) -> None:
    batch = Batch.pad(EXAMPLES)
    noise = some_examples(*[(batch.tokens.shape[1], 1)] * len(EXAMPLES), seed=9)
    other = batch._replace(
        tokens=torch.where(batch.present, batch.tokens, torch.tensor([one.tokens for one in noise]))
    )
    longer = batch._replace(tokens=nn.functional.pad(batch.tokens, (0, 5), value=3))
    assert not torch.equal(other.tokens, batch.tokens)
    with torch.no_grad():
        want, *rest = (
            response_logprobs(MODELS[name], each, elements=elements).logp
            for each in (batch, other, longer)
        )
    for got in rest:
        check_logp(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_padding_on_the_left_gives_the_same(name: str) -> None:
    model, longest = MODELS[name], max(len(one.tokens) for one in EXAMPLES)
    tokens = torch.tensor(
        [[0] * (longest - len(one.tokens)) + list(one.tokens) for one in EXAMPLES]
    )
    mask = torch.tensor(
        [[0] * (longest - len(one.tokens)) + [1] * len(one.tokens) for one in EXAMPLES]
    )
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        laws = model(tokens, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
    each = laws[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    scored = [one.prompt - len(one.tokens) for one in EXAMPLES]
    want = torch.stack([row[first:].sum() for row, first in zip(each, scored, strict=True)])
    check_logp(score_encoded(model, EXAMPLES).logp, want)


@given(st.sampled_from(["llama", "gpt2"]), st.integers(2, 20), st.integers(0, 9))
@settings(max_examples=8)
def test_moving_a_token_into_the_prompt_takes_away_its_own_share_and_no_other(
    name: str, length: int, seed: int
) -> None:
    whole = some_examples((length, 1), seed=seed)[0]
    parts = token_logprobs(MODELS[name], Batch.pad([whole])).detach()
    found = score_encoded(
        MODELS[name], [whole._replace(prompt=prompt) for prompt in range(1, length)]
    )
    check_logp(found.logp, torch.stack([parts[prompt:].sum() for prompt in range(length - 1)]))


def test_examples_are_written_tokenised_and_scored_in_their_order() -> None:
    texts = [
        ("Who wrote it?", "Mira Oduya."),
        ("Where?", "In Lisbon, in 1987, as she was born there."),
        ("Q?", "No."),
    ]
    examples = [Pair(prompt, response) for prompt, response in texts]
    for tokenizer in (by_bytes(words=True), by_pieces()):
        model = roughen(
            transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**{**GROUPED, "vocab_size": 600})
            )
        )
        encoded = encode_examples(tokenizer, PLAIN, examples)
        found = score(model, tokenizer, examples, budget=1)
        check_logp(found.logp, own_logp(model, encoded))
        assert found.length.tolist() == [len(one.tokens) - one.prompt for one in encoded]
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
        assert torch.equal(score(model, tokenizer, examples, budget=1).logp, found.logp)
        with pytest.raises(InvalidInput, match="max_length"):
            score(model, tokenizer, examples, max_length=20)


# --- references and gradients ---


def test_the_reference_is_passed_on_and_npo_weighs_each_response_1_at_it() -> None:
    model, ref = MODELS["llama"], score_encoded(MODELS["llama"], EXAMPLES).logp
    seq = score_encoded(model, EXAMPLES, ref=ref)
    assert torch.equal(seq.ref, ref)
    torch.testing.assert_close(npo(0.5).weight(seq), torch.ones(len(EXAMPLES)))
    batch = response_logprobs(model, Batch.pad(EXAMPLES[1:3]), ref[1:3])
    assert torch.equal(batch.ref, ref[1:3])
    assert score_encoded(model, EXAMPLES, ref=-3.5).ref.tolist() == [-3.5] * len(EXAMPLES)
    for call in (
        lambda: score_encoded(model, EXAMPLES, ref=ref[:2]),
        lambda: response_logprobs(model, batch_of(2), ref),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == "ref"


def test_a_reference_takes_the_dtype_of_the_scores() -> None:
    model, double = MODELS["llama"], torch.full((len(EXAMPLES),), -2.0, dtype=torch.float64)
    for ref in (double, -2.0):
        for found in (
            score_encoded(model, EXAMPLES, ref=ref),
            response_logprobs(model, Batch.pad(EXAMPLES), ref),
        ):
            assert found.ref.dtype == torch.float32 and found.ref.tolist() == double.tolist()


def test_what_is_no_reference_is_told_with_what_is() -> None:
    model, count = MODELS["llama"], len(EXAMPLES)
    few = torch.zeros(2)
    for call in (
        lambda: score_encoded(model, EXAMPLES, ref=few),
        lambda: response_logprobs(model, Batch.pad(EXAMPLES), few),
    ):
        assert refusal(call) == ("ref", (2,), f"a number, or {count} of them")
    ref = torch.zeros(count)
    ref[1], ref[4] = -torch.inf, torch.inf
    assert refusal(lambda: score_encoded(model, EXAMPLES, ref=ref)) == (
        "ref",
        [-float("inf")],
        f"finite numbers of nats (2 of {count} are not)",
    )


def refusal(call: Callable[[], object]) -> tuple[str, object, str]:
    """The field, the value and what is allowed, as the error has them."""
    with pytest.raises(InvalidInput) as caught:
        call()
    return caught.value.field, caught.value.value, caught.value.allowed


def test_scores_of_a_plan_are_those_of_its_calls_in_the_order_of_the_examples() -> None:
    model, plan = MODELS["llama"], [[4, 1], [0], [5, 3, 2]]

    def own(rows: Any) -> Any:
        batch = Batch.pad([EXAMPLES[row] for row in rows])
        return response_logprobs(model, batch, ref=-torch.tensor(rows).float())

    found = scored_in(model, EXAMPLES, plan, own)
    check_logp(found.logp, score_encoded(model, EXAMPLES).logp)
    assert found.length.tolist() == [len(one.tokens) - one.prompt for one in EXAMPLES]
    assert found.ref.tolist() == [-row for row in range(len(EXAMPLES))]


@pytest.mark.parametrize(
    ("vocab", "budget", "tokens"),
    [
        (VOCAB, 100, 100),
        (2**20, 10_000, 32),
        (2**20 + 1, 10_000, 31),
        (ELEMENTS, 10_000, 1),
        (2 * ELEMENTS, 10_000, 1),
        (VOCAB, 1, 1),
    ],
)
def test_a_pass_that_keeps_all_logits_has_as_many_tokens_as_may_be_held(
    vocab: int, budget: int, tokens: int
) -> None:
    assert logits_budget(vocab, budget) == tokens and type(tokens) is int


def test_what_stands_behind_a_head_is_done_to_its_logits() -> None:
    some = torch.linspace(-3, 3, 7)
    for settings_, want in (
        ({}, some),
        ({"logit_scale": 2.0}, 2 * some),
        ({"logits_scaling": 2}, some / 2),
        ({"logit_scale": 3.0, "logits_scaling": 4.0}, some * 3 / 4),
        ({"final_logit_softcapping": 2.0}, 2 * torch.tanh(some / 2)),
        ({"logit_scale": 3.0, "final_logit_softcapping": 2.0}, 2 * torch.tanh(some * 3 / 2)),
        ({"logit_scale": 0.0, "logits_scaling": None, "final_logit_softcapping": 0}, some),
    ):
        found = logprobs._finish(SimpleNamespace(**settings_))(some)
        torch.testing.assert_close(found, want, rtol=1e-6, atol=0)


def batch_of(count: int) -> Batch:
    return Batch.pad(EXAMPLES[:count])


@pytest.mark.parametrize("elements", [EVERYTHING, SOME, ONE])
@pytest.mark.parametrize("name", FAMILIES)
def test_its_gradient_is_that_of_transformers_own_loss(name: str, elements: int) -> None:
    model = MODELS[name]
    weights = torch.linspace(0.5, 2, len(EXAMPLES))
    want = own_gradient(model, weights)
    logp = response_logprobs(model, Batch.pad(EXAMPLES), elements=elements).logp
    got = torch.autograd.grad((logp * weights).sum(), list(model.parameters()))
    for (name_, parameter), one, other in zip(model.named_parameters(), got, want, strict=True):
        scale = float(other.abs().max()) + 1e-3
        torch.testing.assert_close(
            one, other, rtol=0, atol=1e-4 * scale, msg=lambda text, of=name_: f"{of}: {text}"
        )
        assert parameter.grad is None


def own_gradient(model: Any, weights: Tensor) -> tuple[Tensor, ...]:
    loss = sum(weight * own_loss(model, one) for weight, one in zip(weights, EXAMPLES, strict=True))
    return torch.autograd.grad(-torch.as_tensor(loss), list(model.parameters()))


def test_scored_logits_are_the_models_own_where_it_predicts_the_response() -> None:
    for model in MODELS.values():
        with torch.no_grad():
            got = scored_logits(model, Batch.pad(EXAMPLES)).split(
                [len(one.tokens) - one.prompt for one in EXAMPLES]
            )
            want = [
                model(torch.tensor([one.tokens])).logits[0, one.prompt - 1 : -1] for one in EXAMPLES
            ]
        for mine, own in zip(got, want, strict=True):
            torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-4)


# --- how much is computed ---


@contextmanager
def watching(model: Any) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """The number of positions that the head is given each time, and what the model is called
    with.
    """
    positions, calls, head = [], [], model.get_output_embeddings()
    forward = head.forward

    def counting(hidden: Tensor) -> Tensor:
        positions.append(hidden.shape[:-1].numel())
        return forward(hidden)

    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    head.forward = counting
    try:
        yield positions, calls
    finally:
        del head.forward
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_sees_the_scored_positions_only_and_few_at_a_time(name: str) -> None:
    model, scored = MODELS[name], int(Batch.pad(EXAMPLES).scored.sum())
    for elements, most in (
        (EVERYTHING, scored),
        (scored * VOCAB, scored),
        (SOME, 3),
        (VOCAB, 1),
        (ONE, 1),
    ):
        with watching(model) as (positions, calls), torch.no_grad():
            token_logprobs(model, Batch.pad(EXAMPLES), elements=elements)
        # In parts, one position more goes through the head twice: to see what the model does behind
        # it.
        assert max(positions) == most
        assert sum(positions) == scored + (0 if most == scored else 2)
        assert [call["use_cache"] for call in calls] == [False]
    with watching(model) as (positions, _):
        score_encoded(model, EXAMPLES, elements=SOME)
    # The first is the trial of whether the model is causal.
    assert max(positions[1:]) == 3 and sum(positions[1:]) == scored + 2


def test_logits_are_not_kept_for_the_backward_pass() -> None:
    model, batch = MODELS["llama"], Batch.pad(EXAMPLES)

    def kept(elements: int) -> int:
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one: shapes.append(one.shape) or one, lambda one: one
        ):
            token_logprobs(model, batch, elements=elements).sum().backward()
        model.zero_grad()
        # The head's weight, turned over, ends on the vocabulary too.
        return sum(
            shape.numel() for shape in shapes if shape[-1:] == (VOCAB,) and shape != (32, VOCAB)
        )

    assert kept(EVERYTHING) >= int(batch.scored.sum()) * VOCAB
    assert kept(SOME) == 0


class Cubed(transformers.LlamaForCausalLM):
    """Does to its logits what nobody knows of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found: Any = super().forward(*args, **kwargs)
        found.logits = found.logits**3 / 10
        return found


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_a_model_that_does_something_unknown_behind_its_head_does_it_itself(elements: int) -> None:
    model = roughen(Cubed(transformers.LlamaConfig(**GROUPED))).eval()
    with torch.no_grad():
        laws = [model(torch.tensor([one.tokens])).logits[0].log_softmax(-1) for one in EXAMPLES]
    want = [
        law[torch.arange(one.prompt - 1, len(one.tokens) - 1), list(one.tokens[one.prompt :])].sum()
        for law, one in zip(laws, EXAMPLES, strict=True)
    ]
    check_logp(score_encoded(model, EXAMPLES, elements=elements).logp, torch.stack(want))


# --- modes, dtypes, adapters, wrappers ---


class Nearly(transformers.LlamaForCausalLM):
    """Does to its logits what shows in none but the last digits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found: Any = super().forward(*args, **kwargs)
        found.logits = found.logits * (1 + 1e-9)
        return found


def test_what_a_model_does_behind_its_head_is_seen_to_the_last_digits() -> None:
    model = roughen(Nearly(transformers.LlamaConfig(**GROUPED))).eval().double()
    with torch.no_grad():
        want = token_logprobs(model, Batch.pad(EXAMPLES))
        found = token_logprobs(model, Batch.pad(EXAMPLES), elements=SOME)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


class Tupled(transformers.LlamaForCausalLM):
    """Answers without names unless it is asked for them, as older models do."""

    def forward(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        found: Any = super().forward(*args, **kwargs)
        return found if return_dict else (found.logits,)


def test_a_model_that_answers_in_tuples_is_asked_for_names() -> None:
    model = roughen(Tupled(transformers.LlamaConfig(**GROUPED))).eval()
    want = score_encoded(MODELS["llama"], EXAMPLES).logp
    check_logp(score_encoded(model, EXAMPLES).logp, want)


@pytest.mark.parametrize("elements", [EVERYTHING, SOME, ONE])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cubed"])
def test_what_goes_on_from_a_prompt_that_was_kept_scores_as_the_whole(
    name: str, elements: int
) -> None:
    model = MODELS.get(name) or roughen(Cubed(transformers.LlamaConfig(**GROUPED))).eval()
    # Prompts of different lengths, the first of them of two texts.
    texts = [(0, EXAMPLES[0].tokens), (1, EXAMPLES[3].tokens), (0, EXAMPLES[1].tokens[6:])]
    prompts = [list(EXAMPLES[4].tokens + EXAMPLES[2].tokens[:3]), list(EXAMPLES[5].tokens[:9])]
    whole = [Encoded((*prompts[row], *rest), len(prompts[row]) + 1) for row, rest in texts]
    with torch.no_grad():
        kept = kept_of(model, prompts, [row for row, _ in texts])
        rest = Batch.pad([Encoded(tokens, 1) for _, tokens in texts])
        found = response_logprobs(model, rest, elements=elements, before=kept)
    check_logp(found.logp, score_encoded(model, whole).logp)
    assert found.ref.tolist() == [0.0] * 3


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_dropout_is_off_and_every_module_is_in_its_own_mode_afterwards(elements: int) -> None:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(resid_pdrop=0.5, embd_pdrop=0.5, **GPT2)
    )
    roughen(model).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    found = score_encoded(model, EXAMPLES, elements=elements)
    assert [module.training for module in model.modules()] == modes
    dropped = response_logprobs(model, Batch.pad(EXAMPLES), elements=elements).logp.detach()
    assert not torch.allclose(dropped, found.logp, rtol=1e-2)
    check_logp(found.logp, own_logp(model.eval(), EXAMPLES))


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_a_narrow_model_is_normalised_in_float32(elements: int) -> None:
    model = tiny("llama").to(torch.bfloat16)
    found = score_encoded(model, EXAMPLES, elements=elements)
    assert found.logp.dtype == torch.float32
    with torch.no_grad():
        logits = scored_logits(model, Batch.pad(EXAMPLES))
    assert logits.dtype == torch.bfloat16
    counts = [len(one.tokens) - one.prompt for one in EXAMPLES]
    targets = torch.cat([torch.tensor(one.tokens[one.prompt :]) for one in EXAMPLES])
    each = logits.double().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    want = torch.stack([part.sum() for part in each.split(counts)])
    torch.testing.assert_close(found.logp.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_under_autocast_too(elements: int) -> None:
    model = MODELS["llama"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score_encoded(model, EXAMPLES, elements=elements)
        logits = scored_logits(model, Batch.pad(EXAMPLES))
    assert logits.dtype == torch.bfloat16 and found.logp.dtype == torch.float32
    check_logp(found.logp, own_logp(model, EXAMPLES), rtol=0.1)


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_a_wide_model_keeps_its_digits(elements: int) -> None:
    model = tiny("gpt2").double()
    found = score_encoded(model, EXAMPLES, elements=elements)
    assert found.logp.dtype == torch.float64
    want = torch.tensor([slow_logp(model, one) for one in EXAMPLES], dtype=torch.float64)
    torch.testing.assert_close(found.logp, want, rtol=1e-12, atol=1e-12)


# peft asks transformers for a property under a name that it no longer likes.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["v_proj", "lm_head"]])
def test_adapters_are_scored_and_switched_off_they_are_the_reference(
    targets: list[str], elements: int
) -> None:
    model = peft.get_peft_model(
        tiny("llama"), peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    )
    model.eval()
    found = score_encoded(model, EXAMPLES, elements=elements)
    check_logp(found.logp, own_logp(model, EXAMPLES))
    base = own_logp(MODELS["llama"], EXAMPLES)
    assert not torch.allclose(found.logp, base, rtol=1e-3)
    with model.disable_adapter():
        check_logp(score_encoded(model, EXAMPLES, elements=elements).logp, base)
    response_logprobs(model, Batch.pad(EXAMPLES), elements=elements).logp.sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora" in name}


class Wrapper(nn.Module):
    """As those for several devices: the model inside, and a forward pass that must not be passed
    by.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_a_wrapped_model_is_called_through_its_wrapper() -> None:
    wrapper = Wrapper(MODELS["llama"])
    found = score_encoded(wrapper, EXAMPLES, elements=SOME, budget=64)
    assert wrapper.calls > 2
    check_logp(found.logp, own_logp(MODELS["llama"], EXAMPLES))


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_a_model_that_has_diverged_is_refused_where_it_is_scored_and_not_where_it_is_trained(
    elements: int,
) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 4] = torch.nan
    assert response_logprobs(model, Batch.pad(EXAMPLES), elements=elements).logp.isnan().all()
    with pytest.raises(
        NotFinite,
        match=r"^logp = nan is not allowed: .* example 0 under LlamaForCausalLM \(float32\)$",
    ):
        score_encoded(model, EXAMPLES, elements=elements)


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        (lambda model: model.lm_head.weight[3, 4].fill_(torch.nan), "nan"),
        (lambda model: model.model.embed_tokens.weight.fill_(torch.inf), "nan"),
        (lambda model: model.lm_head.bias[RARE].fill_(-torch.inf), "-inf"),
    ],
    ids=["a nan among the logits", "infinite weights", "a token of probability 0"],
)
def test_a_score_that_is_not_finite_names_its_example_and_its_model(spoil: Any, value: str) -> None:
    model = tiny("llama")
    model.lm_head.bias = nn.Parameter(torch.zeros(model.lm_head.out_features))
    named = Named([f"number {row}" for row in range(len(EXAMPLES))], "the model")
    assert score_encoded(model, EXAMPLES, named=named).logp.isfinite().all()
    with torch.no_grad():
        spoil(model)
    with pytest.raises(NotFinite) as caught:
        score_encoded(model, EXAMPLES, named=named)
    # The token of probability 0 spoils the examples whose response has it, and no others.
    with_it = [row for row, one in enumerate(EXAMPLES) if RARE in one.tokens[one.prompt :]]
    first = min(with_it) if value == "-inf" else 0
    assert (caught.value.field, str(caught.value.value)) == ("logp", value)
    assert (
        caught.value.allowed
        == f"a finite number for example number {first} under the model (float32)"
    )


def test_numbers_beyond_float16_are_told_from_a_broken_model() -> None:
    model = tiny("llama").to(torch.float16)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3e3)
        model.model.layers[0].mlp.up_proj.weight.mul_(3e3)
    with pytest.raises(
        NotFinite, match="float16; numbers above 65504 overflow float16: another --dtype may help"
    ):
        score_encoded(model, EXAMPLES)
    assert score_encoded(model.float(), EXAMPLES).logp.isfinite().all()


# --- what cannot be scored ---


class Loud(nn.Linear):
    """A head that fails."""

    def forward(self, input: Tensor) -> Tensor:
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("elements", [EVERYTHING, SOME])
def test_nothing_is_left_behind_by_a_failure(elements: int) -> None:
    model = tiny("llama").train()
    model.lm_head = Loud(32, VOCAB)
    with pytest.raises(RuntimeError, match="out of memory"):
        score_encoded(model, EXAMPLES)
    with pytest.raises(RuntimeError, match="out of memory"):
        token_logprobs(model, Batch.pad(EXAMPLES), elements=elements)
    assert not model.lm_head._forward_pre_hooks and model.training


class Headless(transformers.LlamaForCausalLM):
    """Passes its head by."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        hidden = self.model(input_ids, attention_mask=kwargs["attention_mask"]).last_hidden_state
        return SimpleNamespace(logits=hidden @ self.lm_head.weight.T)


class Flattening(transformers.LlamaForCausalLM):
    """Does not keep its sequences apart."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        hidden = self.model(input_ids, attention_mask=kwargs["attention_mask"]).last_hidden_state
        return SimpleNamespace(logits=self.lm_head(hidden.flatten(0, 1)).view(*input_ids.shape, -1))


def encoder_decoder() -> Any:
    sizes: dict[str, Any] = dict(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCAB, **sizes))


UNSUITABLE: dict[str, Callable[[], Any]] = {
    "no head": lambda: transformers.LlamaModel(transformers.LlamaConfig(**GROUPED)),
    "classifier": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**GROUPED)
    ),
    "masked": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**COMMON)),
    "encoder and decoder": encoder_decoder,
    "not of transformers": lambda: nn.Linear(3, 3),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_model_that_is_no_causal_language_model_is_refused(name: str) -> None:
    for call in (check_model, lambda model: score_encoded(model, EXAMPLES)):
        with pytest.raises(InvalidInput, match="causal language model") as caught:
            call(UNSUITABLE[name]())
        assert caught.value.field == "model" and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_causal_models_of_every_kind_pass(name: str) -> None:
    assert check_model(MODELS[name]) is None
    assert check_model(tiny(name).to(torch.bfloat16)) is None


@pytest.mark.parametrize("kind", [Headless, Flattening])
def test_a_model_whose_head_cannot_be_told_what_to_see_is_refused(kind: type[Any]) -> None:
    model = kind(transformers.LlamaConfig(**GROUPED))
    told = ("model", kind.__name__, f"{CAUSAL} whose head sees all hidden states once")
    assert refusal(lambda: score_encoded(model, EXAMPLES)) == told


@pytest.mark.parametrize(
    ("field", "encoded"),
    [
        ("examples", []),
        ("tokenizer", [Encoded((1, 2, VOCAB), 1)]),
        ("examples", some_examples((65, 3))),
    ],
)
def test_what_the_model_has_no_place_for_is_refused(field: str, encoded: list[Encoded]) -> None:
    with pytest.raises(InvalidInput) as caught:
        score_encoded(MODELS["llama"], encoded)
    assert caught.value.field == field and "\n" not in str(caught.value)
    assert score_encoded(MODELS["llama"], some_examples((64, 3))).logp.isfinite().all()


class Flat(transformers.LlamaForCausalLM):
    """Gives its logits without keeping its sequences apart."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found: Any = super().forward(*args, **kwargs)
        return SimpleNamespace(logits=found.logits.flatten(0, 1))


@pytest.mark.parametrize(
    ("make", "name", "allowed"),
    [
        (UNSUITABLE["no head"], "LlamaModel", f"{CAUSAL}: this one has no head"),
        (
            UNSUITABLE["masked"],
            "BertForMaskedLM",
            f"{CAUSAL}: this one looks at what comes later",
        ),
        (encoder_decoder, "T5ForConditionalGeneration", CAUSAL),
        (UNSUITABLE["not of transformers"], "Linear", CAUSAL),
        (lambda: Flat(transformers.LlamaConfig(**GROUPED)), "Flat", CAUSAL),
    ],
)
def test_what_is_no_causal_language_model_is_told_by_its_class(
    make: Callable[[], Any], name: str, allowed: str
) -> None:
    assert refusal(lambda: check_model(make())) == ("model", name, allowed)


@pytest.mark.parametrize("vocab", [3, 4, 7, VOCAB])
def test_a_model_is_tried_on_rows_that_tell_what_it_looks_at(vocab: int) -> None:
    sizes: dict[str, Any] = {**GROUPED, "vocab_size": vocab}
    config = transformers.LlamaConfig(**sizes)
    model, calls = transformers.LlamaForCausalLM(config), []
    model.register_forward_pre_hook(
        lambda _, args, more: calls.append((args[0], more)), with_kwargs=True
    )
    check_model(model)
    ((tokens, options),) = calls
    whole, other, shorter = tokens.tolist()
    assert whole[:4] == other[:4] and whole[4] != other[4]
    assert shorter[:3] == whole[:3] and shorter[3:] == [0, 0]
    assert {*whole, *other} <= set(range(1, vocab)) and len({*whole}) == min(5, vocab - 1)
    mask = options["attention_mask"]
    assert mask.tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0]] and mask.dtype == torch.int64
    assert options["use_cache"] is False and options["return_dict"] is True


def test_what_has_no_place_in_a_model_is_told_with_what_has() -> None:
    model = MODELS["llama"]
    for encoded, told in (
        ([], ("examples", [], "at least one")),
        (
            [Encoded((1, 2, VOCAB), 1)],
            ("tokenizer", "token 97", "one for this model, which knows tokens 0 to 96"),
        ),
        (some_examples((65, 3)), ("examples", "65 tokens", "at most 64, as the model takes")),
    ):
        assert refusal(lambda encoded=encoded: score_encoded(model, encoded)) == told
    assert score_encoded(model, [Encoded((0, VOCAB - 1), 1)]).length.tolist() == [1]


def test_everything_lies_where_the_model_lies_whatever_device_is_the_default() -> None:
    model, batch = MODELS["gpt2"], Batch.pad(EXAMPLES)
    with torch.no_grad():
        want = token_logprobs(model, batch)
        with torch.device("meta"):
            check_model(model)
            found = [token_logprobs(model, batch, elements=size) for size in (EVERYTHING, SOME)]
    for one in found:
        check_logp(one, want)


def test_nothing_is_printed_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    score_encoded(MODELS["llama"], EXAMPLES)
    assert capfd.readouterr() == ("", "")


def test_the_bar_counts_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []
    monkeypatch.setattr(progress, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    monkeypatch.setattr(progress, "terminal", lambda stream: True)
    score_encoded(MODELS["llama"], EXAMPLES, budget=40)
    score_encoded(MODELS["llama"], EXAMPLES, progress=False)
    total = sum(len(one.tokens) for one in EXAMPLES)
    assert [(bar.total, bar.count, bar.disable) for bar in bars] == [
        (total, total, False),
        (total, total, True),
    ]
    assert {bar.label for bar in bars} == {"score"}
    bars.clear()
    scored_in(
        MODELS["llama"],
        EXAMPLES[:1],
        [[0]],
        lambda rows: response_logprobs(MODELS["llama"], batch_of(1)),
    )
    assert [bar.disable for bar in bars] == [False]


def test_texts_are_scored_as_they_are_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []
    monkeypatch.setattr(progress, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1])
    monkeypatch.setattr(progress, "terminal", lambda stream: True)
    tokenizer = by_bytes(words=True)
    sizes: dict[str, Any] = {**GROUPED, "vocab_size": 600}
    config = transformers.LlamaConfig(**sizes)
    model, examples = transformers.LlamaForCausalLM(config), [Pair("Q?", "No."), Pair("Q?", "Yes")]
    with watching(model) as (_, calls):
        plain = score(model, tokenizer, examples)
        together = len(calls)
        alone = score(model, tokenizer, examples, ref=-2.5, budget=1, progress=False)
    assert plain.ref.tolist() == [0.0, 0.0] and alone.ref.tolist() == [-2.5, -2.5]
    assert (together, len(calls) - together) == (2, 3)  # one more is the trial of the model
    assert [bar.disable for bar in bars] == [False, True]
