"""Gradient norms: what one backward pass per example gives, for every family of layers, tied or
not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from llm.scoring import gradients
from llm.scoring.encoding import Encoded
from llm.scoring.gradients import NotCovered, Outer, gradient_norms, one_by_one, together
from markov.errors import InvalidInput
from tests.llm.scoring.test_scoring import (
    COMMON,
    FAMILIES,
    GPT2,
    GROUPED,
    VOCAB,
    own_loss,
    roughen,
    some_examples,
    tiny,
)

EXAMPLES = some_examples((12, 3), (20, 10), (7, 6), (15, 1), (2, 1), (12, 11))
MIXTURE: dict[str, Any] = dict(num_local_experts=2, num_experts_per_tok=1, **GROUPED)


def mixture() -> Any:
    return roughen(transformers.MixtralForCausalLM(transformers.MixtralConfig(**MIXTURE))).eval()


def own_norms(model: Any, encoded: list[Encoded]) -> Tensor:
    """By transformers' own loss, one backward pass per example, over all gradients that it
    leaves.
    """
    norms = []
    for one in encoded:
        model.zero_grad()
        own_loss(model, one).backward()
        found = [
            parameter.grad.double()
            for parameter in model.parameters()
            if parameter.grad is not None
        ]
        norms.append(torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt())
    model.zero_grad()
    return torch.stack(norms)


def check_norms(got: Tensor, want: Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=1e-12)


# --- against one backward pass per example ---


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_those_of_transformers_own_gradients(name: str) -> None:
    model = tiny(name)
    found = gradient_norms(model, EXAMPLES, budget=40)
    check_norms(found, own_norms(model, EXAMPLES))
    assert found.dtype == torch.float32 and not found.requires_grad
    check_norms(one_by_one(model, EXAMPLES), found)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "qwen3", "phi", "cohere", "granite"])
def test_the_known_families_take_one_backward_pass_for_all(name: str) -> None:
    model = tiny(name)
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))


def test_it_is_exact_in_float64() -> None:
    for name in ("gpt2", "phi"):
        model = tiny(name).double()
        check_norms(together(model, EXAMPLES), one_by_one(model, EXAMPLES), rtol=1e-10)
        assert gradient_norms(model, EXAMPLES).dtype == torch.float64


# Which parameters stay trainable: what belongs to a tied matrix, or to one kind of layer, has to be
# right by itself.
PARTS = [
    "lm_head",
    "wte",
    "wpe",
    "embed_tokens",
    "norm",
    "ln_",
    "bias",
    "q_proj",
    "c_attn.weight",
    "mlp",
    "layers.1",
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_frozen_parameters_do_not_contribute(name: str, part: str) -> None:
    model = tiny(name)
    for own, parameter in model.named_parameters():
        parameter.requires_grad_(part in own)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        with pytest.raises(InvalidInput, match="trainable"):
            gradient_norms(model, EXAMPLES)
        return
    found = together(model, EXAMPLES)
    # After a single token there is nothing to attend to but itself, and the gradient of a query is
    # 0.
    torch.testing.assert_close(found.double(), own_norms(model, EXAMPLES), rtol=1e-4, atol=1e-5)
    assert (found < gradient_norms(tiny(name), EXAMPLES)).all()


@settings(max_examples=12)
@given(
    st.sampled_from(["llama", "gpt2", "qwen2"]),
    st.lists(st.tuples(st.integers(2, 15), st.integers(1, 14)), min_size=1, max_size=6),
    st.integers(1, 80),
    st.integers(0, 5),
)
def test_neither_company_nor_budget_nor_order_matter(
    name: str, sizes: list[tuple[int, int]], budget: int, seed: int
) -> None:
    encoded = some_examples(
        *((length, min(prompt, length - 1)) for length, prompt in sizes), seed=seed
    )
    found = gradient_norms(tiny(name), encoded, budget=budget)
    check_norms(found, own_norms(tiny(name), encoded))
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
    check_norms(gradient_norms(tiny(name), [encoded[row] for row in order]), found[order])


def test_a_padding_token_gets_no_gradient_where_it_is_looked_up() -> None:
    model = roughen(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(pad_token_id=7, **GROUPED))
    ).eval()
    tokens = tuple(7 if place % 3 == 0 else place for place in range(1, 15))
    encoded = [Encoded(tokens, 4), *EXAMPLES]
    for own, parameter in model.named_parameters():
        parameter.requires_grad_("embed_tokens" in own)
    check_norms(together(model, encoded), own_norms(model, encoded))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["v_proj", "lm_head"]])
def test_of_adapters_only_what_they_add_counts(targets: list[str]) -> None:
    model = peft.get_peft_model(
        tiny("llama"), peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    )
    model.eval()
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))


def test_a_layer_in_several_places_has_one_gradient() -> None:
    model = tiny("llama")
    first, second = model.model.layers
    first.input_layernorm = second.input_layernorm
    first.mlp.up_proj = second.mlp.up_proj
    first.self_attn.k_proj.weight = second.self_attn.v_proj.weight
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is second.input_layernorm.weight)
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))


def test_parameters_beside_a_layer_inside_count() -> None:
    model = tiny("gpt2")
    model.transformer.h[0].mlp = Scaled(model.transformer.h[0].mlp, 32)
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))


def test_dropout_is_off_and_gradients_that_the_model_holds_stay() -> None:
    model = roughen(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(resid_pdrop=0.5, embd_pdrop=0.5, **GPT2)
        )
    )
    want = own_norms(model.eval(), EXAMPLES)
    model.train()
    held = {name: torch.full_like(parameter, 2.0) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = held[name].clone()
    with torch.no_grad():
        check_norms(gradient_norms(model, EXAMPLES), want)
    assert model.training and all(module.training for module in model.modules())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, held[name])


def test_a_narrow_model_has_about_the_norms_of_a_wide_one() -> None:
    found = gradient_norms(tiny("qwen2").to(torch.bfloat16), EXAMPLES)
    assert found.dtype == torch.float32
    check_norms(found, own_norms(tiny("qwen2"), EXAMPLES), rtol=0.2)


# --- the algebra ---


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_inner_products_of_tokens_give_the_norm_of_their_sum(
    pieces: list[tuple[int, bool]], rows: int, columns: int, count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    terms, want = [], torch.zeros(count, rows, columns, dtype=torch.float64)
    for time, one_hot in pieces:
        right = torch.randn(count, time, columns, **draw)
        if one_hot:
            left = torch.randint(rows, (count, time), generator=generator)
            terms.append(Outer(left, right))
            left = nn.functional.one_hot(left, rows).double()
        else:
            left = torch.randn(count, time, rows, **draw)
            terms.append(Outer(left, right))
        for example in range(count):
            for token in range(time):
                want[example] += torch.outer(left[example, token], right[example, token])
    got = gradients._squared_norms(terms, torch.Size((rows, columns)))
    torch.testing.assert_close(got, want.flatten(1).square().sum(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("time", "formed"), [(2, False), (40, True)])
def test_gradients_are_formed_only_where_they_are_cheaper_than_products_of_tokens(
    time: int, formed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Outer] = []
    product = gradients._product
    monkeypatch.setattr(
        gradients, "_product", lambda one, other: calls.append(one) or product(one, other)
    )
    draw = torch.Generator().manual_seed(0)
    one = Outer(torch.randn(5, time, 6, generator=draw), torch.randn(5, time, 7, generator=draw))
    want = (one.left.mT @ one.right).flatten(1).square().sum(-1)
    for elements, at_once in ((1, 1), (100, 2), (2**25, 5)):
        monkeypatch.setattr(gradients, "ELEMENTS", elements)
        with Products() as products:
            torch.testing.assert_close(gradients._squared_norms([one], torch.Size((6, 7))), want)
        if formed:
            assert max(shape[0] for shape in products.shapes) == at_once
    assert bool(calls) != formed


class Products(TorchDispatchMode):
    """Takes down the shapes of all batched matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            self.shapes.append(found.shape)
        return found


# --- what takes one backward pass per example ---


class Bypassing(transformers.LlamaForCausalLM):
    """Uses a weight where no layer reports it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.pop("labels", None)
        found: Any = super().forward(*args, **kwargs)
        found.logits = found.logits + linear(
            found.logits, self.lm_head.weight @ self.lm_head.weight.T
        )
        if labels is not None:
            found.loss = self.loss_function(found.logits, labels, vocab_size=VOCAB)
        return found


class Mixing(nn.Linear):
    """Gives more than its product."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


class Large(nn.Linear):
    """Another kind of layer, and not small."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


class Constant(nn.Module):
    """Adds what does not depend on the tokens, and so lies on no way back to them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.shift = head, nn.Linear(32, 32)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.head(hidden + self.shift(torch.ones_like(hidden)))


class Scaled(nn.Module):
    """Has a parameter of its own beside a layer inside."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.linspace(0.5, 2.0, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) * self.scale


def constant() -> Any:
    model = tiny("llama")
    model.model.norm = Constant(model.model.norm)
    return model


def with_head(kind: type[nn.Linear]) -> Any:
    model = tiny("llama")
    model.lm_head = roughen(kind(32, VOCAB, bias=False))
    return model


def bypassing() -> Any:
    return roughen(Bypassing(transformers.LlamaConfig(**GROUPED))).eval()


def opt() -> Any:
    sizes: dict[str, Any] = dict(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=40,
        word_embed_proj_dim=32,
    )
    config = transformers.OPTConfig(vocab_size=VOCAB, max_position_embeddings=64, **sizes)
    return roughen(transformers.OPTForCausalLM(config)).eval()


NOT_TOGETHER: dict[str, Callable[[], Any]] = {
    "mixture of experts": mixture,
    "gemma2": lambda: tiny("gemma2"),
    "opt": opt,
    "a constant": constant,
}


@pytest.mark.parametrize("name", NOT_TOGETHER)
def test_what_is_not_covered_says_so_and_gets_a_backward_pass_per_example(name: str) -> None:
    model = NOT_TOGETHER[name]()
    with pytest.raises(NotCovered):
        together(model, EXAMPLES)
    assert_no_hooks(model)
    check_norms(gradient_norms(model, EXAMPLES), own_norms(model, EXAMPLES))


def test_a_weight_used_where_nothing_reports_it_is_noticed() -> None:
    model = bypassing()
    want = own_norms(model, EXAMPLES)
    assert not torch.allclose(together(model, EXAMPLES), want.float(), rtol=0.01)
    check_norms(gradient_norms(model, EXAMPLES), want)


def test_a_layer_of_another_kind_is_not_taken_for_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_head(Mixing)
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))
    monkeypatch.setattr(gradients, "SMALL_LAYER", 32 * VOCAB - 1)
    with pytest.raises(NotCovered, match="Mixing"):
        together(model, EXAMPLES)
    check_norms(gradient_norms(model, EXAMPLES), own_norms(model, EXAMPLES))


class WithoutGradient(nn.Module):
    """A layer that the model runs under `no_grad`: its parameters are trainable, and get no
    gradient.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.attention_type = getattr(layer, "attention_type", "full_attention")

    def forward(self, *args: Any, **more: Any) -> Any:
        with torch.no_grad():
            return self.layer(*args, **more)


def without_gradient(name: str, *parts: str) -> Any:
    model = tiny(name)
    for part in parts:
        inside, _, last = part.rpartition(".")
        module = model.get_submodule(inside)
        setattr(module, last, WithoutGradient(model.get_submodule(part)))
    return model


STOPPED = [
    ("llama", ["model.layers.0"]),
    ("llama", ["model.layers.1"]),
    ("llama", ["model.layers.0", "model.layers.1"]),
    ("llama", ["model.layers.1.mlp"]),
    ("llama", ["model.layers.0.self_attn", "model.norm"]),
    ("llama", ["model.layers.1.input_layernorm", "model.layers.0.mlp.up_proj"]),
    ("qwen2", ["model.layers.0"]),
    ("gpt2", ["transformer.h.0"]),
    ("gpt2", ["transformer.h.1.attn.c_attn", "transformer.ln_f"]),
]


@pytest.mark.parametrize(("name", "parts"), STOPPED)
def test_layers_that_autograd_gives_no_gradient_count_as_zero(name: str, parts: list[str]) -> None:
    model = without_gradient(name, *parts)
    want = own_norms(model, EXAMPLES)
    # A single token after a norm without gradient may get none but from the head.
    torch.testing.assert_close(
        gradient_norms(model, EXAMPLES, budget=40).double(), want, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(want, own_norms(tiny(name), EXAMPLES), rtol=0.01)
    assert_no_hooks(model)


@pytest.mark.parametrize("part", ["wte", "wpe"])
def test_nor_does_an_embedding_that_is_looked_up_without_gradient(part: str) -> None:
    model = tiny("gpt2")
    embedding = getattr(model.transformer, part)
    look_up = embedding.forward
    embedding.forward = torch.no_grad()(look_up)
    check_norms(gradient_norms(model, EXAMPLES, budget=40), own_norms(model, EXAMPLES))


def test_one_backward_pass_for_all_does_for_layers_without_gradient_above_the_embeddings() -> None:
    model = without_gradient(
        "llama", "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"
    )
    check_norms(together(model, EXAMPLES), own_norms(model, EXAMPLES))


def test_a_model_that_passes_a_gradient_to_nothing_is_refused_by_name() -> None:
    model = tiny("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" in name)
    model.model.layers[0] = WithoutGradient(model.model.layers[0])
    with pytest.raises(InvalidInput, match="passes a gradient") as caught:
        gradient_norms(model, EXAMPLES)
    assert caught.value.field == "model"


def assert_no_hooks(model: nn.Module) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_hook_stays_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name).train()
    gradient_norms(model, EXAMPLES)
    assert_no_hooks(model)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gradients, "_squared_norms", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        gradient_norms(model, EXAMPLES)
    monkeypatch.setattr(model.get_output_embeddings(), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        together(model, EXAMPLES)
    assert_no_hooks(model)
    assert model.training


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
        gradient_norms(tiny("llama"), encoded)
    assert caught.value.field == field


def test_a_model_that_is_not_causal_is_refused() -> None:
    with pytest.raises(InvalidInput, match="causal language model"):
        gradient_norms(transformers.BertForMaskedLM(transformers.BertConfig(**COMMON)), EXAMPLES)
