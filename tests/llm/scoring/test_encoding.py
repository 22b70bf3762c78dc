"""Encoding: every token belongs to the prompt or to the response, and the response's decode to
the response.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from llm.scoring.encoding import Batch, Encoded, batches, encode, encode_examples
from llm.scoring.templates import CHAT, LLAMA2_CHAT, PLAIN, TEMPLATES, Template
from markov.errors import InvalidInput

TEXTS = [
    "Question: Who wrote The Silent Harbour?\nAnswer: Mira Oduya wrote it in 1987, in Lisbon.",
    "[INST] Where was she born? [/INST]She was born in Lisbon, the Oduyas' town.",
    '[/INST]"Harbour" [/INST]"1987" [/INST](no) [/INST]"She" Answer: "She"',
] * 3
CHAT_TEXT = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'system' %}({{ date_string }}){% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **options
    )


def by_bytes(*, words: bool) -> PreTrainedTokenizerFast:
    """As GPT-2's, which never merges across the edge of a word; without `words`, merging across
    anything.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return wrapped(tokenizer)


def by_pieces() -> PreTrainedTokenizerFast:
    """As Llama-2's: a space is put before every text, a beginning-of-sequence token before that."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    # The bytes are ordinary words; the trainer takes them for special ones.
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = parts["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrapped(tokenizer)


class Pair(NamedTuple):
    """An example."""

    prompt: str
    response: str


TOKENIZERS: dict[str, Any] = {
    "words": by_bytes(words=True),
    "merging": by_bytes(words=False),
    "pieces": by_pieces(),
}
BOTH = [PLAIN, LLAMA2_CHAT]
texts = st.text(alphabet='Shewas bor1987"(]).,é\n', min_size=1, max_size=20).filter(
    lambda text: text.strip()
)
tokenizers = st.sampled_from(sorted(TOKENIZERS))


def written(template: Template, prompt: str, response: str) -> tuple[str, str]:
    return template.prompt.format(prompt=prompt), template.response.format(response=response)


def texts_of(tokenizer: Any, encoded: Encoded) -> tuple[str, str]:
    """The prompt's text and what the response's tokens add to it."""
    prompt = tokenizer.decode(encoded.tokens[: encoded.prompt], skip_special_tokens=True)
    return prompt, tokenizer.decode(encoded.tokens, skip_special_tokens=True)[len(prompt) :]


def own_prompt(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text).input_ids)


# --- where the response begins ---


@settings(max_examples=150)
@given(tokenizers, st.sampled_from(BOTH), texts, texts)
def test_the_scored_tokens_are_those_of_the_response_and_one_end(
    name: str, template: Template, prompt: str, response: str
) -> None:
    tokenizer = TOKENIZERS[name]
    found = encode(tokenizer, template, prompt, response)
    assert texts_of(tokenizer, found) == written(template, prompt, response)
    assert found.tokens[-1] == tokenizer.eos_token_id
    assert found.tokens.count(tokenizer.eos_token_id) == 1 and found.cut == 0
    assert (
        encode(tokenizer, Template(**{**vars(template), "end": False}), prompt, response).tokens
        == found.tokens[:-1]
    )


@settings(max_examples=150)
@given(tokenizers, st.sampled_from(BOTH), texts, texts)
def test_the_prompts_tokens_are_those_it_has_when_a_model_is_to_answer_it(
    name: str, template: Template, prompt: str, response: str
) -> None:
    tokenizer = TOKENIZERS[name]
    found = encode(tokenizer, template, prompt, response)
    assert found.tokens[: found.prompt] == own_prompt(
        tokenizer, written(template, prompt, response)[0]
    )


@settings(max_examples=150)
@given(tokenizers, st.sampled_from(BOTH), texts, texts)
def test_where_nothing_merges_across_the_boundary_the_tokens_are_those_of_the_whole_text(
    name: str, template: Template, prompt: str, response: str
) -> None:
    tokenizer = TOKENIZERS[name]
    before, after = written(template, prompt, response)
    whole = own_prompt(tokenizer, before + after)
    if whole[: len(own_prompt(tokenizer, before))] == own_prompt(tokenizer, before):
        assert encode(tokenizer, template, prompt, response).tokens == (
            *whole,
            tokenizer.eos_token_id,
        )


def test_what_a_tokenizer_does_after_the_prompt_is_kept() -> None:
    # A space is put before what follows a special token, as it was in training; not so before what
    # follows a word.
    tokenizer, template = TOKENIZERS["pieces"], Template(prompt="{prompt}<s>")
    examples = [Pair("Who?", "She was"), Pair("Where?", "Lisbon")]
    for one, found in zip(examples, encode_examples(tokenizer, template, examples), strict=True):
        whole = own_prompt(tokenizer, "".join(written(template, *one)))
        assert found.tokens == (*whole, tokenizer.eos_token_id)
        assert tokenizer.convert_ids_to_tokens(list(found.tokens))[found.prompt].startswith("▁")


@pytest.mark.parametrize("name", ["words", "pieces"])
def test_where_they_merge_counting_the_prompts_tokens_off_the_whole_text_is_wrong(
    name: str,
) -> None:
    tokenizer, response = TOKENIZERS[name], '"She" was'
    before, after = written(LLAMA2_CHAT, "Who?", response)
    whole, count = own_prompt(tokenizer, before + after), len(own_prompt(tokenizer, before))
    assert tokenizer.decode(whole[count:]).strip() != response
    found = encode(tokenizer, LLAMA2_CHAT, "Who?", response)
    assert texts_of(tokenizer, found) == (before, response)
    assert found.tokens[: found.prompt] == own_prompt(tokenizer, before)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_named_template_scores_its_own_words(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    first = {
        template: texts_of(tokenizer, encode(tokenizer, template, "Who?", "She was"))[1]
        for template in BOTH
    }
    assert first == {PLAIN: " She was", LLAMA2_CHAT: "She was"}


@pytest.mark.parametrize(
    ("name", "starts"), [("words", False), ("merging", False), ("pieces", True)]
)
def test_a_sequence_starts_with_the_beginning_token_if_the_tokenizer_says_so(
    name: str, starts: bool
) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = encode(tokenizer, PLAIN, "Who?", "She was").tokens
    assert (tokens[0] == tokenizer.bos_token_id) == starts
    assert tokens.count(tokenizer.bos_token_id or 0) == int(starts)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_many_at_once_are_each_alone(pairs: list[tuple[str, str]]) -> None:
    tokenizer = TOKENIZERS["merging"]
    examples = [Pair(prompt, response) for prompt, response in pairs]
    assert encode_examples(tokenizer, PLAIN, examples) == [
        encode(tokenizer, PLAIN, *pair) for pair in pairs
    ]


# --- chat templates ---


def test_the_tokenizers_own_chat_template_writes_the_prompt() -> None:
    tokenizer = by_pieces()
    tokenizer.chat_template = CHAT_TEXT
    found = encode(tokenizer, CHAT, "Who?", "She was")
    prompt = "<s> <system>You are a helpful assistant.(10 Apr 2025)\n<user>Who?\n<assistant>"
    assert tokenizer.decode(list(found.tokens)) == f"{prompt}She was</s>"
    assert texts_of(tokenizer, found)[1] == "She was"
    assert found.tokens.count(tokenizer.bos_token_id or 0) == 1
    bare = encode(tokenizer, Template(prompt="{prompt}", chat=True), "Who?", "She was")
    assert texts_of(tokenizer, bare)[0] == "<user>Who?\n<assistant>"


@pytest.mark.parametrize("text", [None, "{{ raise_exception('no system\n turn') }}"])
def test_a_chat_template_that_is_missing_or_refuses_is_named_in_one_line(text: str | None) -> None:
    tokenizer = by_bytes(words=True)
    tokenizer.chat_template = text
    with pytest.raises(InvalidInput, match="chat template") as caught:
        encode(tokenizer, CHAT, "Who?", "She was")
    assert caught.value.field == "template" and "\n" not in str(caught.value)


# --- the maximum length ---


@given(texts, texts, st.integers(1, 60))
def test_what_is_cut_is_counted_and_nothing_is_cut_unasked(
    prompt: str, response: str, max_length: int
) -> None:
    tokenizer = TOKENIZERS["words"]
    whole = encode(tokenizer, PLAIN, prompt, response)

    def call(truncate: bool) -> Encoded:
        return encode(tokenizer, PLAIN, prompt, response, max_length=max_length, truncate=truncate)

    if len(whole.tokens) <= max_length:
        assert call(False) == call(True) == whole
        return
    with pytest.raises(InvalidInput, match=r"examples\[0\]") as caught:
        call(False)
    assert caught.value.field == "max_length" and str(len(whole.tokens)) in caught.value.allowed
    if max_length > whole.prompt:
        assert call(True) == (
            whole.tokens[:max_length],
            whole.prompt,
            len(whole.tokens) - max_length,
        )
    else:
        with pytest.raises(InvalidInput, match=f"at least {whole.prompt + 1}"):
            call(True)


# --- batches ---


encodings = st.lists(
    st.tuples(st.integers(2, 12), st.integers(1, 11)).map(
        lambda sizes: Encoded(tuple(range(1, sizes[0] + 1)), min(sizes[1], sizes[0] - 1))
    ),
    min_size=1,
    max_size=12,
)


@given(encodings)
def test_a_batch_holds_every_token_and_scores_the_responses_alone(encoded: list[Encoded]) -> None:
    batch = Batch.pad(encoded)
    for row, one in enumerate(encoded):
        assert batch.tokens[row][batch.present[row]].tolist() == list(one.tokens)
        assert batch.tokens[row, 1:][batch.scored[row]].tolist() == list(one.tokens[one.prompt :])
        assert batch.present[row, : len(one.tokens)].all()
    assert batch.tokens.shape[1] == max(len(one.tokens) for one in encoded)
    assert batch.tokens[~batch.present].eq(0).all()


@given(encodings, st.integers(1, 50))
def test_batches_hold_every_example_once_within_the_budget_and_could_not_be_fewer_one_by_one(
    encoded: list[Encoded], budget: int
) -> None:
    plan = batches(encoded, budget)
    lengths = [[len(encoded[row].tokens) for row in rows] for rows in plan]
    assert sorted(row for rows in plan for row in rows) == list(range(len(encoded)))
    flat = [length for rows in lengths for length in rows]
    assert flat == sorted(flat, reverse=True)
    assert all(len(rows) == 1 or max(rows) * len(rows) <= budget for rows in lengths)
    assert all(rows[0] * (len(rows) + 1) > budget for rows in lengths[:-1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_a_pad_token_nor_its_side_is_needed(side: str) -> None:
    plain, other = by_bytes(words=True), by_bytes(words=True)
    assert plain.pad_token is None
    other.pad_token, other.padding_side = "</s>", side
    examples = [Pair("Who?", text) for text in ("She was", "born", "in Lisbon, 1987")]
    one, two = (
        Batch.pad(encode_examples(tokenizer, PLAIN, examples)) for tokenizer in (plain, other)
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, two, strict=True))


# --- what cannot be encoded ---


def without_end() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=by_bytes(words=True)._tokenizer)


def only_one_letter() -> PreTrainedTokenizerFast:
    """What is no "a" is passed over."""
    return wrapped(Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2}, merges=[])))


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("examples", lambda: encode_examples(TOKENIZERS["words"], PLAIN, [])),
        ("examples[0].response", lambda: encode(TOKENIZERS["words"], PLAIN, "Who?", "")),
        ("examples[0].response", lambda: encode(TOKENIZERS["words"], PLAIN, "Who?", " \n")),
        ("examples[0].prompt", lambda: encode(TOKENIZERS["words"], PLAIN, "", "She")),
        (
            "examples[0].response",
            lambda: encode(only_one_letter(), Template(prompt="a {prompt}"), "a", "b"),
        ),
        (
            "examples[0].prompt",
            lambda: encode(only_one_letter(), Template(prompt="{prompt}"), "b", "a"),
        ),
        ("tokenizer", lambda: encode(without_end(), PLAIN, "Who?", "She")),
        ("prompt", lambda: Template(prompt="Question:")),
        ("prompt", lambda: Template(prompt="{prompt}{prompt}")),
        ("response", lambda: Template(prompt="{prompt}", response="")),
        ("budget", lambda: batches([Encoded((1, 2), 1)], 0)),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name(field: str, call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field and "\n" not in str(caught.value)


def test_the_example_at_fault_is_named() -> None:
    examples = [Pair("Who?", text) for text in ("She", "", "born")]
    with pytest.raises(InvalidInput, match=r"examples\[1\].response"):
        encode_examples(TOKENIZERS["words"], PLAIN, examples)
    examples[1] = Pair("Who?", "in Lisbon " * 20)
    with pytest.raises(InvalidInput, match=r"examples\[1\]"):
        encode_examples(TOKENIZERS["words"], PLAIN, examples, max_length=40)


def test_templates_are_as_published() -> None:
    assert TEMPLATES == {"llama2_chat": LLAMA2_CHAT, "plain": PLAIN, "chat": CHAT}
    assert "".join(written(LLAMA2_CHAT, "Q", "A")) == "[INST] Q [/INST]A"
    assert "".join(written(PLAIN, "Q", "A")) == "Question: Q\nAnswer: A"
