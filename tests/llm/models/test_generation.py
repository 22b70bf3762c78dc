"""Greedy answers: a batch writes what each prompt alone would have written, and ROUGE counts
words as by hand.
"""

from __future__ import annotations

import functools
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.tofu import Example
from llm.evaluation.rouge import rouge
from llm.models.generation import generate
from llm.models.language_model import LanguageModel
from llm.scoring.shared import keeps_apart
from llm.scoring.templates import PLAIN
from llm.training.adapters import Lora, adapted
from llm.writing import continuations as writing
from llm.writing.continuations import STRETCH, continuations
from markov.errors import InvalidInput
from tests.llm.scoring.test_encoding import by_bytes

VOCAB, EOS = 700, 699
TOKENIZER: Any = by_bytes(words=True)


class Ends:
    """As much of a tokenizer as writing needs."""

    def __init__(self, eos: int | None = EOS) -> None:
        self.eos_token_id = eos


def model_of(kind: str, **more: Any) -> Any:
    sizes: dict[str, dict[str, Any]] = {
        "llama": dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=96,
            initializer_range=0.3,
        ),
        "gpt2": dict(n_embd=32, n_layer=2, n_head=2, n_positions=96, initializer_range=0.3),
    }
    built = {
        "llama": lambda **all_: transformers.LlamaForCausalLM(transformers.LlamaConfig(**all_)),
        "gpt2": lambda **all_: transformers.GPT2LMHeadModel(transformers.GPT2Config(**all_)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return built[kind](**{"vocab_size": VOCAB, **sizes[kind], **more}).eval()


MODELS = {kind: model_of(kind) for kind in ("llama", "gpt2")}


def slow_continuation(
    model: Any, prompt: list[int], count: int, ends: tuple[int, ...]
) -> list[int]:
    """Token by token, each from a forward pass over all before it, without padding or anything
    kept.
    """
    tokens, written = list(prompt), []
    with torch.no_grad():
        while len(written) < count:
            token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
            if token in ends:
                break
            tokens.append(token)
            written.append(token)
    return written


def ends_of(model: Any) -> tuple[int, ...]:
    """What ends a text: the tokenizer's own token, and the one that Llama's settings name."""
    own = model.generation_config.eos_token_id
    return (EOS, own) if own is not None else (EOS,)


prompts_ = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20), min_size=1, max_size=7
)


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=15, deadline=None)
@given(prompts=prompts_, count=st.integers(1, 24), budget=st.sampled_from([1, 60, 100_000]))
@hypothesis.example(  # Llama writes token 2 here, with which its own settings end a text
    prompts=[[165, 59, 96, 0, 331, 511, 682, 185, 550, 220, 642, 192]], count=13, budget=1
)
def test_a_batch_writes_token_for_token_what_each_prompt_alone_would(
    kind: str, prompts: list[list[int]], count: int, budget: int
) -> None:
    model = MODELS[kind]
    got = continuations(model, Ends(), prompts, max_new_tokens=count, budget=budget, progress=False)
    assert got == [slow_continuation(model, prompt, count, ends_of(model)) for prompt in prompts]


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_stops_before_any_token_that_ends_one_and_goes_past_it_if_told(kind: str) -> None:
    model, prompt = MODELS[kind], [5, 6, 7]
    free = continuations(
        model, Ends(None), [prompt, [9]], max_new_tokens=12, progress=False, end=False
    )
    assert len(free[0]) == 12
    end = free[0][5]
    at = free[0].index(end)
    stopped = continuations(model, Ends(end), [prompt, [9]], max_new_tokens=12, progress=False)
    assert stopped[0] == free[0][:at]
    assert (
        continuations(model, Ends(end), [prompt], max_new_tokens=12, progress=False, end=False)[0]
        == free[0]
    )
    other = model_of(kind)
    other.generation_config.eos_token_id = [end, 3]
    assert (
        continuations(other, Ends(), [prompt], max_new_tokens=12, progress=False)[0] == free[0][:at]
    )


def test_a_models_own_settings_for_sampling_play_no_part_and_stay_as_they_were() -> None:
    plain, odd = model_of("llama"), model_of("llama")
    odd.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, max_new_tokens=2, top_k=3
    )
    before, state = odd.generation_config.to_dict(), torch.random.get_rng_state()
    odd.train()
    got = continuations(odd, Ends(), [[1, 2], [3]], max_new_tokens=15, progress=False)
    assert got == continuations(plain, Ends(), [[1, 2], [3]], max_new_tokens=15, progress=False)
    assert odd.generation_config.to_dict() == before and odd.training
    assert torch.equal(torch.random.get_rng_state(), state)


def example(index: int, prompt: str) -> Example:
    return Example(index=index, prompt=prompt, response="yes")


def test_answers_are_to_the_prompts_that_are_scored_without_marks_and_blanks() -> None:
    model = model_of("llama", max_position_embeddings=400, vocab_size=len(TOKENIZER))
    language = LanguageModel(model, TOKENIZER, PLAIN, "fresh")
    asked = [example(0, "Who wrote it?"), example(1, "When, and where was that?")]
    got = generate(language, asked, max_new_tokens=10, progress=False)
    ids = TOKENIZER(
        [PLAIN.prompt.format(prompt=one.prompt) for one in asked], add_special_tokens=False
    ).input_ids
    start = (
        [TOKENIZER.bos_token_id] if TOKENIZER("a").input_ids[0] == TOKENIZER.bos_token_id else []
    )
    ends = (TOKENIZER.eos_token_id, model.generation_config.eos_token_id)
    slow = [slow_continuation(model, [*start, *one], 10, ends) for one in ids]
    assert got == tuple(TOKENIZER.decode(one, skip_special_tokens=True).strip() for one in slow)
    assert got == generate(language, asked[::-1], max_new_tokens=10, progress=False)[::-1]


@pytest.mark.parametrize(
    ("prompts", "more", "field"),
    [
        ([], {}, "prompts"),
        ([[1], []], {}, "prompts"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[1] * 50], {"max_new_tokens": 47}, "max_new_tokens"),
        ([[1]], {"budget": 0}, "budget"),
    ],
)
def test_what_cannot_be_written_is_refused(
    prompts: list[list[int]], more: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        continuations(
            MODELS["llama"], Ends(), prompts, **{"max_new_tokens": 5, "progress": False, **more}
        )
    assert caught.value.field == field


def test_as_many_tokens_as_the_model_has_positions_for_are_written() -> None:
    prompt = [[1] * 50]
    free = continuations(
        MODELS["gpt2"], Ends(), prompt, max_new_tokens=46, progress=False, end=False
    )
    assert len(free[0]) == 46


def test_rouge_counts_words_as_by_hand() -> None:
    truths = ["The cat sat on the mat.", "She wrote novels", "one two three four"]
    written = ["On the mat the cat sat", "she writes novel after novel", ""]
    got = rouge(truths, written)
    # 1: all six words occur; the longest common subsequence is "the cat sat" or "on the mat", 3 of
    # 6 and 3 of 6. 2: stemmed, she/wrote/novel against she/write/novel/after/novel: she, novel: 2
    # of 3 and 2 of 5.
    assert got["rouge1_recall"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert got["rougeL_recall"].tolist() == pytest.approx([0.5, 2 / 3, 0])
    assert got["rougeL_f1"].tolist() == pytest.approx(
        [0.5, 2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5), 0]
    )
    plain = rouge(truths, written, stemmer=False)
    assert plain["rougeL_recall"].tolist() == pytest.approx([0.5, 1 / 3, 0])


words_ = st.lists(st.sampled_from(["red", "sea", "isle", "of", "9"]), min_size=1, max_size=8)


def slow_common(one: list[str], other: list[str]) -> int:
    """The longest common subsequence, by trying every first word."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + slow_common(one[1:], other[1:])
    return max(slow_common(one[1:], other), slow_common(one, other[1:]))


@settings(max_examples=40, deadline=None)
@given(truth=words_, written=words_)
def test_rouge_l_is_the_longest_common_subsequence_of_words(
    truth: list[str], written: list[str]
) -> None:
    got = rouge([" ".join(truth)], [", ".join(written)], stemmer=False)
    common = slow_common(truth, written)
    recall, precision = common / len(truth), common / len(written)
    assert got["rougeL_recall"][0] == pytest.approx(recall)
    assert got["rougeL_f1"][0] == pytest.approx(
        2 * recall * precision / (recall + precision) if common else 0
    )


def test_rouge_refuses_unequal_counts_and_takes_none() -> None:
    with pytest.raises(InvalidInput, match="generations"):
        rouge(["a"], [])
    assert all(
        values.shape == (0,) and values.dtype == np.float64 for values in rouge([], []).values()
    )


# --- texts that have ended are dropped ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dropping_texts_that_have_ended_changes_no_answer_and_saves_passes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, count = MODELS[kind], 40
    prompts = [[3 + row, *range(10, 11 + row % 5)] for row in range(12)]
    options: dict[str, Any] = dict(max_new_tokens=count, progress=False)
    free = continuations(model, Ends(None), prompts, **options, end=False)
    # Tokens after which most texts end early and some never do.
    ends = sorted({own[3 * row] for row, own in enumerate(free[:9])})
    steps, found = {}, {}
    for stretch in (1, 3, STRETCH, count):
        rows: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "STRETCH", stretch)
            patch.setattr(model, "forward", counting(model.forward, rows))
            found[stretch] = continuations(model, Ends(None), prompts, **options, ends=ends)
        steps[stretch] = sum(rows)
    assert len({len(own) for own in found[count]}) > 3
    assert all(own == found[count] for own in found.values())
    assert steps[1] < steps[3] < steps[STRETCH] < steps[count]


def counting(forward: Any, rows: list[int]) -> Any:
    """The forward pass, which notes the number of texts."""

    @functools.wraps(forward)
    def wrapped(input_ids: Any = None, **options: Any) -> Any:
        rows.append(len(input_ids))
        return forward(input_ids, **options)

    return wrapped


def test_nothing_is_dropped_from_what_is_kept_in_another_way() -> None:
    window = transformers.MistralConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=32, sliding_window=4,
    )  # fmt: skip
    assert not keeps_apart(transformers.MistralForCausalLM(window))
    assert not keeps_apart(torch.nn.Linear(1, 1))
    assert all(keeps_apart(model) for model in MODELS.values())


def test_writing_with_adapters_leaves_the_models_own_settings_as_they_were() -> None:
    model: Any = model_of("llama")
    before = model.generation_config.to_dict()
    with adapted(model, Lora(rank=2), 0) as wrapped:
        continuations(wrapped, Ends(), [[5, 6]], max_new_tokens=3, progress=False)
    assert model.generation_config.to_dict() == before
