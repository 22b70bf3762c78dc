"""Chat templates: what is scored is what the template itself writes after the prompt, to the
turn's end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm.data.tofu import Example
from llm.models.answers import scores
from llm.models.generation import generate
from llm.models.language_model import LanguageModel, template_of
from llm.models.source import ModelOptions, load, load_model
from llm.scoring.documents import pieces, start_of, whole
from llm.scoring.encoding import Encoded, around, encode, end_tokens, fitted
from llm.scoring.logprobs import score
from llm.scoring.templates import CHAT, LLAMA2_CHAT, PLAIN, Template
from markov.errors import InvalidInput
from tests.llm.models.test_generation import slow_continuation

TEXTS = [
    "user\nWho wrote The Glass Ferry?\nmodel\nOdo Kerr wrote it in 1994, in Tarn.",
    "system assistant [INST]",
] * 3
EACH = "{% for m in messages %}"
ASKED = "{% if add_generation_prompt %}"


class Shape(NamedTuple):
    """A chat template, the special tokens with it, and what it writes around an answer."""

    template: str
    special: tuple[str, ...]
    end: str
    lead: str = ""
    eos: str = "<eos>"
    tail: str = ""


# Turns that end with another token than a text, blanks before and behind an answer, more behind the
# end.
SHAPES = {
    "gemma": Shape(
        "{{ bos_token }}" + EACH + "<turn>{{ {'assistant': 'model'}.get(m.role, m.role) }}\n{{ "
                                   "m.content | trim }}"
        "<end>\n{% endfor %}" + ASKED + "<turn>model\n{% endif %}",
        ("<turn>", "<end>"),
        "<end>",
    ),
    "phi": Shape(
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<end>\n{% endfor %}"
        + ASKED + "<|assistant|>\n{% else %}<eos>{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<end>"),
        "<end>",
    ),
    "llama3": Shape(
        "<bos>" + EACH + "<head>{{ m.role }}</head>\n\n{{ m.content | trim }}<eot>{% endfor %}"
        + ASKED + "<head>assistant</head>\n\n{% endif %}",
        ("<head>", "</head>", "<eot>"),
        "<eot>",
    ),
    "mistral": Shape(
        "<bos>" + EACH + "{% if m.role == 'assistant' %} {{ m.content }}<eos>"
        "{% else %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
        (),
        "<eos>",
        lead=" ",
    ),
    "llama2": Shape(
        EACH + "{% if m.role == 'assistant' %} {{ m.content | trim }} <eos>"
        "{% else %}<bos>[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
        (),
        "<eos>",
        lead=" ",
        tail=" ",
    ),
    "chatml": Shape(
        EACH + ("<im>{{ m.role }}\n{{ m.content }}<im_end>\n{% endfor "
               "%}") + ASKED + "<im>assistant\n{% endif %}",
        ("<im>", "<im_end>"),
        "<im_end>",
        eos="<im_end>",
    ),
    # Empty thoughts before every answer, and before one to come only where none are wanted.
    "thinking": Shape(
        EACH + "<im>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<im_end>\n{% endfor %}" + ASKED + "<im>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% "
        "endif %}{% endif %}",
        ("<im>", "<im_end>", "<think>", "</think>"),
        "<im_end>",
    ),
    # Nothing ends the turn: the end-of-sequence token does.
    "without end": Shape(
        EACH + ("{{ m.role }}: {{ m.content }}\n{% endfor "
               "%}") + ASKED + "assistant: {% endif %}", (), "<eos>"
    ),
}  # fmt: skip


def tokenizer_of(
    *special: str,
    eos: str = "<eos>",
    chat: str | None = None,
    start: tuple[str, ...] = (),
    stop: tuple[str, ...] = (),
) -> Any:
    """Byte-level BPE; `start` and `stop` are what it puts around a text by itself."""
    tokens = list(dict.fromkeys(["<pad>", "<bos>", "<eos>", *special, *start, *stop]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if start or stop:
        pairs = [(word, tokenizer.token_to_id(word)) for word in {*start, *stop}]
        single = " ".join([*start, "$A", *stop])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=pairs
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos, pad_token="<pad>"
    )
    found.chat_template = chat
    return found


def chat_tokenizer(name: str) -> Any:
    shape = SHAPES[name]
    return tokenizer_of(*shape.special, eos=shape.eos, chat=shape.template)


TOKENIZERS = {name: chat_tokenizer(name) for name in SHAPES}
shapes = pytest.mark.parametrize("name", SHAPES)


def llama(vocab: int, seed: int = 0) -> Any:
    """Weights so large that every prediction depends on what was read, in float64."""
    sizes: dict[str, Any] = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=vocab, max_position_embeddings=512, initializer_range=0.25, **sizes
        )
        return transformers.LlamaForCausalLM(config).double().eval()


def rendered(tokenizer: Any, template: Template, prompt: str, response: str) -> tuple[str, str]:
    """transformers' own text of the prompt, and of the whole conversation."""
    turns = [{"role": "system", "content": template.system}] if template.system else []
    turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    more: dict[str, Any] = dict(tokenize=False, enable_thinking=False, date_string=template.date)
    asked = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, **more)
    return asked, tokenizer.apply_chat_template(turns, **more)


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def own_logp(model: Any, tokens: list[int], prompt: int) -> float:
    """One text, unpadded, token after token."""
    with torch.no_grad():
        law = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return float(sum(law[place - 1, tokens[place]] for place in range(prompt, len(tokens))))


def own_turn(name: str, template: Template, prompt: str, response: str) -> tuple[list[int], int]:
    """transformers' own tokens of the conversation, up to the last turn's end, and how many are
    the prompt's.
    """
    tokenizer, shape = TOKENIZERS[name], SHAPES[name]
    asked, text = rendered(tokenizer, template, prompt, response)
    before, tokens = tokens_of(tokenizer, asked), tokens_of(tokenizer, text)
    assert tokens[: len(before)] == before
    end = tokenizer.convert_tokens_to_ids(shape.end)
    if end not in tokens[len(before) :]:
        return [*tokens_of(tokenizer, text.rstrip()), end], len(before)
    return tokens[: tokens.index(end, len(before)) + 1], len(before)


PAIRS = [
    ("Who wrote it?", "Odo Kerr wrote it."),
    ("When, and where?", "In 1994, in Tarn; ünlü."),
    ("Is it?", "No"),
]


# --- what is scored ---


@shapes
def test_a_response_is_what_the_template_writes_after_the_prompt_up_to_the_end_of_the_turn(
    name: str,
) -> None:
    tokenizer, shape = TOKENIZERS[name], SHAPES[name]
    for pair in PAIRS:
        for template in (CHAT, replace(CHAT, system="")):
            found = (
                encode(tokenizer, template, *pair)
                if name != "mistral"
                else encode(tokenizer, CHAT, *pair)
            )
            used = CHAT if name == "mistral" else template
            assert (list(found.tokens), found.prompt) == own_turn(name, used, *pair)
            written = tokenizer.decode(found.tokens[found.prompt :])
            assert written == f"{shape.lead}{pair[1]}{shape.tail}{shape.end}"


@shapes
def test_its_log_probability_is_transformers_own_whatever_the_batch(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    model = llama(len(tokenizer))
    examples = [
        Example(index=row, prompt=prompt, response=response)
        for row, (prompt, response) in enumerate(PAIRS)
    ]
    found = score(model, tokenizer, examples, template=CHAT, progress=False)
    own = [own_turn(name, CHAT, *pair) for pair in PAIRS]
    want = torch.tensor(
        [own_logp(model, tokens, prompt) for tokens, prompt in own], dtype=torch.float64
    )
    torch.testing.assert_close(found.logp, want, rtol=1e-10, atol=0)
    assert found.length.tolist() == [len(tokens) - prompt for tokens, prompt in own]


@pytest.mark.parametrize("name", ["gemma", "mistral", "thinking"])
def test_a_model_that_has_learnt_its_template_is_sure_of_all_that_is_scored(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    model, (tokens, prompt) = llama(len(tokenizer)).train(), own_turn(name, CHAT, *PAIRS[0])
    ids = torch.tensor([tokens])
    labels = torch.tensor([[-100] * prompt + tokens[prompt:]])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    language = LanguageModel(model.eval(), tokenizer, CHAT, "taught")
    asked = [Example(index=0, prompt=PAIRS[0][0], response=PAIRS[0][1])]
    assert float(scores(language, asked, progress=False)["logp"].iloc[0]) > -0.5
    assert generate(language, asked, max_new_tokens=40, progress=False) == (PAIRS[0][1],)


texts = st.text(alphabet='Shewas bor1987"(]).,é\n', min_size=1, max_size=20).filter(
    lambda text: text.strip()
)


@settings(max_examples=80)
@given(st.sampled_from(sorted(SHAPES)), texts, texts)
def test_of_any_texts_prompt_and_response_decode_to_what_the_template_writes(
    name: str, prompt: str, response: str
):
    tokenizer, shape = TOKENIZERS[name], SHAPES[name]
    found = encode(tokenizer, CHAT, prompt, response)
    asked, text = rendered(tokenizer, CHAT, prompt, response)
    assert list(found.tokens[: found.prompt]) == tokens_of(tokenizer, asked)
    beyond = text[len(asked) :]
    want = beyond[: beyond.index(shape.end) + len(shape.end)] if shape.end in beyond else None
    got = tokenizer.decode(found.tokens[found.prompt :])
    assert got == (
        want or f"{beyond[: beyond.index(response.strip()) + len(response.strip())]}{shape.end}"
    )


def test_blanks_around_an_answer_are_scored_as_far_as_the_template_keeps_them() -> None:
    for name, want in (("gemma", "No<end>"), ("chatml", " No <im_end>"), ("mistral", "  No <eos>")):
        found = encode(TOKENIZERS[name], CHAT, "Is it?", " No ")
        assert TOKENIZERS[name].decode(found.tokens[found.prompt :]) == want


@shapes
def test_without_its_end_a_response_lacks_the_last_token_alone(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    found = encode(tokenizer, replace(CHAT, end=False), *PAIRS[0])
    assert found.tokens == encode(tokenizer, CHAT, *PAIRS[0]).tokens[:-1]


def test_of_tokens_that_begin_alike_the_longest_ends_the_turn() -> None:
    chat = (
        EACH
        + "<s>{{ m.role }}\n{{ m.content }}<end>x{% endfor %}"
        + ASKED
        + "<s>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of("<s>", "<end", "<end>", "<end>x", chat=chat)
    found = encode(tokenizer, CHAT, *PAIRS[0])
    assert tokenizer.convert_ids_to_tokens(found.tokens[-1]) == "<end>x"


# --- what no template may do unsaid ---


HEAD = EACH + "<im>{{ m.role }}\n"
ODD = {
    "rewrites": (HEAD + "{{ m.content | upper }}<im_end>\n{% endfor %}", "in another way"),
    "shortens": (HEAD + "{{ m.content[:4] }}<im_end>\n{% endfor %}", "in another way"),
    "thinks": (
        HEAD + ("{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content "
               "}}<im_end>\n{% endfor %}"),
        "'<think>",
    ),
    "thinks when asked": (
        HEAD + ("{{ m.content }}<im_end>\n{% endfor "
               "%}") + ASKED + "<im>assistant\n<think>\n{% endif %}",
        "its own prompt",
    ),
    "has no head": (HEAD + "{{ m.content }}<im_end>\n{% endfor %}", "'<im>assistant'"),
    "ends with words": (HEAD + "{{ m.content }}\nEND\n{% endfor %}", "'END'"),
    "ends with words, then a token": (HEAD + ("{{ m.content }} over<im_end>\n{% endfor "
                                             "%}"), "' over'|'over'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_a_template_whose_answer_cannot_be_read_off_is_refused_in_one_line_that_says_why(
    kind: str,
) -> None:
    chat, reason = ODD[kind]
    if ASKED not in chat and kind != "has no head":
        chat += ASKED + "<im>assistant\n{% endif %}"
    tokenizer = tokenizer_of("<im>", "<im_end>", "<think>", "</think>", chat=chat)
    with pytest.raises(InvalidInput, match=reason) as caught:
        encode(tokenizer, CHAT, "Who?", "She was")
    assert caught.value.field == "template" and "\n" not in str(caught.value)


def test_a_template_without_an_end_asks_the_tokenizer_for_one() -> None:
    tokenizer = chat_tokenizer("without end")
    tokenizer.eos_token = None
    with pytest.raises(InvalidInput, match="end-of-sequence"):
        encode(tokenizer, CHAT, "Who?", "She was")


# --- the day ---


def test_no_score_depends_on_the_day() -> None:
    chat = (
        "{{ strftime_now('%d %B') }}|{{ strftime_now(\"%Y-%m-%d\") }}|{{ date_string }}|"
        + SHAPES["chatml"].template
    )
    tokenizer = tokenizer_of("<im>", "<im_end>", chat=chat)

    def prompt(date: str) -> str:
        found = encode(tokenizer, replace(CHAT, date=date), "Who?", "She")
        return tokenizer.decode(found.tokens[: found.prompt]).split("<im>")[0]

    assert prompt("10 Apr 2025") == "10 April|2025-04-10|10 Apr 2025|"
    assert prompt("some day's noon") == "some day's noon|some day's noon|some day's noon|"
    assert tokenizer.chat_template == chat


# --- the system's turn ---


REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% "
    "endif %}" + SHAPES["gemma"].template
)
# Written into the question as long as that comes last, so that no prompt is the beginning of its
# conversation.
FORGETS = (
    EACH
    + "{% if m.role == 'assistant' %} {{ m.content }}<eos>{% elif m.role == 'user' %}[INST] "
    + (
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }} {% endif "
        "%}{{ "
        "m.content }} [/INST]"
    )
    + "{% endif %}{% endfor %}"
)
WITHOUT_PLACE = {"refuses": REFUSES, "forgets": FORGETS}


@pytest.mark.parametrize("kind", WITHOUT_PLACE)
def test_a_template_without_place_for_a_system_turn_is_written_without_one(kind: str) -> None:
    tokenizer = tokenizer_of("<turn>", "<end>", chat=WITHOUT_PLACE[kind])
    with pytest.raises(InvalidInput, match="template"):
        encode(tokenizer, CHAT, *PAIRS[0])
    found = fitted(tokenizer, CHAT)
    assert found == replace(CHAT, system="") and fitted(tokenizer, found) == found
    one = encode(tokenizer, found, *PAIRS[0])
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": PAIRS[0][0]}], tokenize=False, add_generation_prompt=True
    )
    assert list(one.tokens[: one.prompt]) == tokens_of(tokenizer, asked)


@shapes
def test_a_system_turn_that_has_a_place_stays(name: str) -> None:
    assert fitted(TOKENIZERS[name], CHAT) == CHAT
    assert all(fitted(TOKENIZERS[name], one) == one for one in (PLAIN, LLAMA2_CHAT))


def test_what_stands_in_the_way_otherwise_is_left_to_be_said() -> None:
    tokenizer = tokenizer_of("<im>", "<im_end>", chat=ODD["rewrites"][0])
    assert fitted(tokenizer, CHAT) == CHAT and fitted(tokenizer_of(), CHAT) == CHAT


def put(tokenizer: Any, folder: Path) -> str:
    llama(len(tokenizer)).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_that_is_loaded_says_in_one_line_that_it_has_no_system_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = put(tokenizer_of("<turn>", "<end>", chat=REFUSES), tmp_path / "refusing")
    accepting = put(chat_tokenizer("chatml"), tmp_path / "accepting")
    without = replace(CHAT, system="")
    capsys.readouterr()
    for template in (None, CHAT):
        assert load(refusing, template=template).template == without
        assert capsys.readouterr().err.count("\n") == 1
    assert load(refusing, system="").template == load(accepting, system="").template == without
    assert load(accepting, template=PLAIN, system="").template == PLAIN
    assert (
        load(accepting).template == CHAT
        and load(accepting, system="Be brief.").template.system == "Be brief."
    )
    assert (
        load_model(ModelOptions(model=accepting, system="Be brief.")).template.system == "Be brief."
    )
    assert capsys.readouterr().err == ""
    asked = load(refusing, system="Be brief.")
    with pytest.raises(InvalidInput, match="System role not supported"):
        encode(asked.tokenizer, asked.template, *PAIRS[0])
    with pytest.raises(InvalidInput, match="system turn") as caught:
        load(accepting, template=PLAIN, system="Be brief.")
    assert caught.value.field == "system"


# --- writing stops where scoring does ---


@shapes
def test_an_answer_ends_at_the_turns_end_as_at_the_end_of_the_text(name: str) -> None:
    tokenizer, shape = TOKENIZERS[name], SHAPES[name]
    assert template_of(tokenizer) == CHAT
    ends = end_tokens(tokenizer, CHAT)
    assert ends == tuple(dict.fromkeys(tokenizer.convert_tokens_to_ids([shape.end, shape.eos])))
    asked = [
        Example(index=row, prompt=prompt, response=response)
        for row, (prompt, response) in enumerate(PAIRS)
    ]
    prompts = [encode(tokenizer, CHAT, *pair) for pair in PAIRS]
    tokens = [list(one.tokens[: one.prompt]) for one in prompts]
    for end in (*ends, 7):
        model = llama(len(tokenizer))
        free = slow_continuation(model, tokens[0], 8, ())
        # Wherever the model would say this token it now says the end.
        with torch.no_grad():
            model.lm_head.weight[end] = 1.01 * model.lm_head.weight[free[3]]
        model.generation_config.eos_token_id = [7]
        want = [slow_continuation(model, prompt, 8, (*ends, 7)) for prompt in tokens]
        assert len(want[0]) < 8
        got = generate(
            LanguageModel(model, tokenizer, CHAT, "fresh"), asked, max_new_tokens=8, progress=False
        )
        assert got == tuple(tokenizer.decode(one, skip_special_tokens=True).strip() for one in want)


# --- what a tokenizer puts around a text ---


AROUND = {
    "nothing": ((), ()),
    "its beginning token": (("<bos>",), ()),
    "its end token before": (("<eos>",), ()),
    "several before": (("<mask>", "<sop>"), ()),
    "its end token behind": ((), ("<eos>",)),
    "both": (("<bos>",), ("<eos>",)),
    "another end": (("<cls>",), ("<sep>",)),
    "several behind": (("<cls>",), ("<sep>", "<eos>")),
}
arounds = pytest.mark.parametrize("kind", AROUND)


def wrapping(kind: str) -> Any:
    return tokenizer_of(start=AROUND[kind][0], stop=AROUND[kind][1])


@arounds
@pytest.mark.parametrize("template", [PLAIN, LLAMA2_CHAT])
def test_a_text_is_framed_as_the_tokenizer_frames_it_and_ends_once(
    kind: str, template: Template
) -> None:
    tokenizer = wrapping(kind)
    start, stop = AROUND[kind]
    assert around(tokenizer) == tuple(
        tuple(tokenizer.convert_tokens_to_ids(list(part))) for part in (start, stop)
    )
    model = llama(len(tokenizer))
    for prompt, response in PAIRS:
        before = template.prompt.format(prompt=prompt)
        full = tokenizer(before + template.response.format(response=response)).input_ids
        full += [] if stop else [tokenizer.eos_token_id]
        count = len(tokenizer(before).input_ids) - len(stop)
        found = encode(tokenizer, template, prompt, response)
        assert found == Encoded(tuple(full), count)
        example = [Example(index=0, prompt=prompt, response=response)]
        logp = float(score(model, tokenizer, example, template=template, progress=False).logp)
        assert logp == pytest.approx(own_logp(model, full, count), rel=1e-10)
    last = encode(tokenizer, template, *PAIRS[0]).tokens
    assert end_tokens(tokenizer, template)[0] == last[len(last) - max(1, len(stop))]
    assert end_tokens(tokenizer, template)[-1] == tokenizer.eos_token_id


@arounds
def test_every_piece_of_a_text_starts_as_the_tokenizer_starts_a_text(kind: str) -> None:
    tokenizer, text = wrapping(kind), "Odo Kerr wrote it in 1994, in Tarn."
    start, own = start_of(tokenizer), tokens_of(tokenizer, text)
    assert [*start, *own] == tokenizer(text).input_ids[: len(start) + len(own)]
    first = max(1, len(start))
    assert whole(tokenizer, [text]) == [Encoded((*start, *own), first)]
    found = pieces(tokenizer, [text], length=len(start) + 3)
    lonely = not start and len(own) % 3 == 1  # a last piece of one token that nothing stands before
    kept = own[:-1] if lonely else own
    assert [token for one in found for token in one.tokens[len(start) :]] == kept
    assert all(one.tokens[: len(start)] == start and one.prompt == first for one in found)
    assert sum(len(one.tokens) - one.prompt for one in found) == len(kept) - (
        0 if start else len(found)
    )


REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("length", lambda: pieces(wrapping("several before"), ["in Tarn"], length=2)),
    ("max_length", lambda: whole(wrapping("several before"), ["in Tarn"], max_length=2)),
]


@pytest.mark.parametrize(("field", "call"), REFUSED)
def test_a_length_that_the_start_alone_fills_is_refused(
    field: str, call: Callable[[], object]
) -> None:
    with pytest.raises(InvalidInput, match="at least 3") as caught:
        call()
    assert caught.value.field == field


class Rewriting:
    """A tokenizer that cuts a text otherwise as soon as it puts something around it."""

    eos_token_id = 2

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> Any:
        ids = [[1, 8, 2] if add_special_tokens else [9] for _ in texts]
        return transformers.BatchEncoding({"input_ids": ids})


def test_a_tokenizer_whose_frame_cannot_be_told_from_the_text_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="Rewriting") as caught:
        encode(Rewriting(), PLAIN, "Who?", "She")  # pyright: ignore[reportArgumentType]
    assert caught.value.field == "tokenizer"
