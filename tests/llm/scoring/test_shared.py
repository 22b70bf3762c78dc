"""Responses to one prompt: scored as whole texts are, while the prompt is read once."""

from __future__ import annotations

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
from llm.scoring.inside import head
from llm.scoring.logprobs import Named, NotFinite, score_encoded
from llm.scoring.shared import allows, planned, score_responses
from llm.training.adapters import Lora, adapted
from tests.llm.models.test_generation import MODELS as COMMON
from tests.llm.scoring.test_kinds_of_models import HEADS, VOCAB, loud
from tests.llm.scoring.test_kinds_of_models import MODELS as ODD

MODELS: dict[str, Any] = {**COMMON, **{f"odd_{kind}": model for kind, model in ODD.items()}}
WINDOW = transformers.MistralConfig(sliding_window=4, num_key_value_heads=2, **HEADS)


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


@pytest.mark.parametrize("kind", ["odd_mamba", "odd_rwkv", "odd_recurrent_gemma"])
def test_a_model_that_keeps_a_summary_reads_every_text_whole(kind: str) -> None:
    assert not allows(MODELS[kind])


def test_a_model_that_keeps_a_window_reads_every_text_whole() -> None:
    assert not allows(transformers.MistralForCausalLM(WINDOW).eval())


@pytest.mark.parametrize("kind", COMMON)
def test_common_models_read_a_prompt_once(kind: str) -> None:
    assert allows(COMMON[kind])


def misplaced(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that counts places anew behind what was kept, in a model of its own."""

    def call(*args: Any, position_ids: Any = None, **options: Any) -> Any:
        if position_ids is not None:
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
    plan = planned(texts, budget)
    assert sorted(row for rows in plan for row in rows) == list(range(len(texts)))
    for rows in plan:
        first, rest, place = shared.parts([texts[row] for row in rows])
        # The last token of each row is not read.
        widths = [max(len(one.tokens) for one in part) - 1 for part in (first, rest)]
        assert len(rows) == 1 or widths[1] * len(rest) <= budget
        assert len(set(place)) == len(first) <= len(rows)
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
