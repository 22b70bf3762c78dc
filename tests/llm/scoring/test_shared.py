"""Responses to one prompt: scored as whole texts are, while the prompt is read once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.scoring import shared
from llm.scoring.encoding import Encoded
from llm.scoring.finite import Named, NotFinite
from llm.scoring.inside import head
from llm.scoring.logprobs import score_encoded
from llm.scoring.shared import Parts, allows, plan_of, planned, score_responses
from llm.training.adapters import Lora, adapted
from markov.errors import InvalidInput
from tests.llm.models.test_generation import MODELS as COMMON
from tests.llm.scoring.test_kinds_of_models import HEADS, VOCAB, loud
from tests.llm.scoring.test_kinds_of_models import MODELS as ODD

KINDS = {
    "window": transformers.MistralForCausalLM(
        transformers.MistralConfig(sliding_window=4, num_key_value_heads=2, **HEADS)
    ),
    "bloom": transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    ),
    "gpt_neo": transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            max_position_embeddings=64,
        )
    ),
    "openai_gpt": transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4)
    ),
}
MODELS: dict[str, Any] = {
    **COMMON,
    **{kind: model.eval() for kind, model in KINDS.items()},
    **{f"odd_{kind}": model for kind, model in ODD.items()},
}


@pytest.fixture(autouse=True, scope="module")
def little_is_enough() -> Iterator[None]:
    """Prompts are read once even where that saves little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "LEAST", 0)
        yield


@st.composite
def asked(draw: Any) -> list[Encoded]:
    """Texts of some prompts, in any order; a prompt may have one token, and one response."""
    token = st.integers(3, VOCAB - 1)
    prompts = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=4))
    texts = []
    for prompt in prompts:
        responses = draw(st.lists(st.lists(token, min_size=1, max_size=8), min_size=1, max_size=4))
        texts += [Encoded((*prompt, *response), len(prompt)) for response in responses]
    return draw(st.permutations(texts))


@contextmanager
def passes(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """The rows and columns of what a model reads."""
    found: list[tuple[int, ...]] = []

    def hook(_: Any, args: Any, options: Any) -> None:
        found.append(tuple((args[0] if args else options["input_ids"]).shape))

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def score(model: Any, texts: list[Encoded], **more: Any) -> Any:
    return score_responses(model, texts, progress=False, **more)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=12)
@given(texts=asked(), budget=st.sampled_from([1, 20, 2048]), elements=st.sampled_from([200, 2**20]))
def test_responses_score_as_whole_texts_do(
    kind: str, texts: list[Encoded], budget: int, elements: int
) -> None:
    model = MODELS[kind]
    got = score(model, texts, budget=budget, elements=elements)
    want = score_encoded(model, texts, progress=False)
    torch.testing.assert_close(got.logp, want.logp, rtol=1e-5, atol=1e-5)
    assert got.length.tolist() == want.length.tolist() and got.ref.eq(0).all()


def test_with_adapters_too() -> None:
    lora = Lora(rank=4)
    texts = [Encoded((5, 6, 7, *rest), 3) for rest in ((8, 9), (10,), (11, 12, 13))]
    with adapted(loud("llama"), lora, 0) as model:
        for name, part in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(part, std=0.2)
        want = score_encoded(model, texts, progress=False)
        assert allows(model)
        torch.testing.assert_close(score(model, texts).logp, want.logp, rtol=1e-5, atol=1e-5)


def test_a_prompt_is_read_once_for_all_its_responses() -> None:
    model = MODELS["llama"]
    first, second = tuple(range(3, 23)), tuple(range(30, 40))
    texts = [Encoded((*prompt, *range(50, 56)), len(prompt)) for prompt in (first, second, first)]
    texts = [*texts, Encoded((*first, 60, 61), 20)]
    with passes(model) as trial:
        assert allows(model)
    with passes(model) as found:
        score(model, texts)
    # The last token of a text predicts nothing, and that of a prompt is read with the responses.
    assert found[len(trial) :] == [(2, 19), (4, 6)]
    assert Parts.of(texts).passes == (2 * 19, 4 * 6)


def test_a_model_is_not_tried_where_little_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"]
    texts = [Encoded((*range(3, 20), *response), 17) for response in ((20, 21), (22, 23))]
    assert plan_of(model, texts)  # 2 times 18 tokens are 36; read once, they are 16 and 2 times 2
    monkeypatch.setattr(shared, "LEAST", 16)
    assert plan_of(model, texts)
    monkeypatch.setattr(shared, "LEAST", 17)
    with passes(model) as found:
        assert not plan_of(model, texts)
    assert found == []


def test_prompts_that_come_once_or_have_one_token_are_read_with_their_responses() -> None:
    model = MODELS["llama"]
    once = [Encoded((5, 6, 7), 2), Encoded((6, 6, 7), 2)]
    short = [Encoded((5, 6, 7), 1), Encoded((5, 8), 1)]
    for texts in (once, short):
        with passes(model) as want:
            score_encoded(model, texts, progress=False)
        with passes(model) as found:
            score(model, texts)
        assert found == want


@pytest.mark.parametrize(
    "kind", ["odd_mamba", "odd_rwkv", "odd_recurrent_gemma", "window", "openai_gpt"]
)
def test_a_model_that_keeps_a_summary_a_window_or_nothing_reads_every_text_whole(kind: str) -> None:
    assert not allows(MODELS[kind])


@pytest.mark.parametrize("kind", [*COMMON, "bloom", "gpt_neo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_common_models_read_a_prompt_once(kind: str, dtype: torch.dtype) -> None:
    assert allows(copy.deepcopy(MODELS[kind]).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_that_are_counted_with_the_padding_are_noticed_in_any_precision(
    dtype: torch.dtype,
) -> None:
    assert not allows(loud("bart").to(dtype))


def test_a_batch_has_no_more_places_than_the_model() -> None:
    model = MODELS["gpt_neo"]  # whose mask is cut out of one for so many places
    limit = model.config.max_position_embeddings
    long = [Encoded((*[5] * (limit - 6), *response), limit - 6) for response in ((7, 8), (9,))]
    short = [Encoded((6, 6, *[response] * 40), 2) for response in (7, 8, 9)]
    want = score_encoded(model, [*long, *short], progress=False)
    assert plan_of(model, [*long, *short], 10_000)
    assert len(planned(model, [*long, *short], 10_000)) == 2
    got = score(model, [*long, *short], budget=10_000)
    torch.testing.assert_close(got.logp, want.logp, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("budget", [0, 2.5])
def test_a_budget_that_is_not_allowed_is_refused(budget: Any) -> None:
    texts = [Encoded((5, 6, 7), 2), Encoded((5, 6, 8), 2)]
    with pytest.raises(InvalidInput, match="budget"):
        score(COMMON["llama"], texts, budget=budget)


def misplaced(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that counts places anew behind what was kept, in a model of its own."""

    def call(*args: Any, position_ids: Any = None, **options: Any) -> Any:
        if options.get("past_key_values") is not None:
            position_ids = position_ids - position_ids[:, :1]
        return forward(*args, position_ids=position_ids, **options)

    return call


def test_a_model_that_gives_other_numbers_that_way_reads_every_text_whole() -> None:
    model = loud("llama", seed=4)
    assert allows(model)
    model.forward = misplaced(model.forward)
    assert not allows(model)
    texts = [Encoded((5, 6, 7, *rest), 3) for rest in ((8, 9), (10,))]
    want = score_encoded(loud("llama", seed=4), texts, progress=False)
    assert score(model, texts).logp.equal(want.logp)


@given(texts=asked(), budget=st.integers(1, 60))
def test_batches_keep_to_the_budget_and_have_every_text_once(
    texts: list[Encoded], budget: int
) -> None:
    texts = [Encoded((9, *one.tokens), one.prompt + 1) for one in texts]
    plan = planned(MODELS["llama"], texts, budget)
    assert sorted(row for rows in plan for row in rows) == list(range(len(texts)))
    for rows in plan:
        own = [texts[row] for row in rows]
        parts = Parts.of(own)
        for place, one, rest in zip(parts.rows, own, parts.rest, strict=True):
            assert (*parts.prompts[place], *rest.tokens) == one.tokens
        kept = max(one.prompt - 1 for one in own) + max(len(one.tokens) for one in parts.rest) - 1
        assert len(rows) == 1 or max(parts.passes) <= budget
        assert len(rows) == 1 or kept * len(rows) <= 2 * budget
        assert len(set(parts.rows)) == len(parts.prompts) <= len(rows)
    apart = [{texts[row].tokens[: texts[row].prompt] for row in rows} for rows in plan]
    # A prompt comes in two batches only where these follow each other.
    for prompt in set().union(*apart):
        where = [place for place, own in enumerate(apart) if prompt in own]
        assert where == list(range(where[0], where[-1] + 1))


def test_a_score_that_is_not_finite_is_refused_by_its_name() -> None:
    model = loud("llama", seed=5)
    texts = [Encoded((5, 6, 7, *rest), 3) for rest in ((8, 9), (10,))]

    def spoilt(_: Any, args: Any, found: torch.Tensor) -> torch.Tensor:
        return found.index_fill(-1, torch.tensor([10]), -torch.inf)

    assert allows(model)
    handle = head(model).register_forward_hook(spoilt)
    try:
        with pytest.raises(NotFinite, match="example second under mine"):
            score(model, texts, named=Named(["first", "second"], "mine"))
    finally:
        handle.remove()
