"""Long texts in pieces: every token once, lengths that the law counts on, and log-probabilities,
not logits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm.scoring.documents import pieces, start_of, whole
from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import response_logprobs, score_encoded
from markov.errors import InvalidInput
from markov.objectives import Objective, SequenceLogProbs, npo, simnpo
from tests.llm.models.test_generation import model_of
from tests.llm.scoring.test_encoding import by_bytes

PLAIN = by_bytes(words=True)


def with_start() -> Any:
    """The same tokenizer, which puts its first token before every text."""
    from tokenizers import processors

    found = by_bytes(words=True)
    token = found.convert_ids_to_tokens(0)
    found.add_special_tokens({"bos_token": token})
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, 0)]
    )
    return found


STARTING = with_start()
TOKENIZERS = {"without start": PLAIN, "with start": STARTING}
words = st.lists(
    st.text("abc é\n", min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=5
)
tokenizers = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def inner(tokenizer: Any, encoded: Encoded) -> list[int]:
    return list(encoded.tokens[len(start_of(tokenizer)) :])


@tokenizers
@settings(max_examples=60)
@given(texts=words, length=st.integers(2, 12), separator=st.sampled_from(["\n\n", " ", "\n"]))
def test_every_token_of_the_text_is_in_exactly_one_piece(
    tokenizer, texts: list[str], length: int, separator: str
):
    text = separator.join(texts)
    tokens, start = tokens_of(tokenizer, text), start_of(tokenizer)
    if len(tokens) < 2:
        return
    found = pieces(tokenizer, texts, length=length, separator=separator)
    joined = [token for one in found for token in inner(tokenizer, one)]
    lonely = not start and len(tokens) % length == 1
    assert joined == (tokens[:-1] if lonely else tokens)
    assert lonely or tokenizer.decode(joined) == text
    assert all(
        one.tokens[: len(start)] == start and one.prompt == 1 and one.cut == 0 for one in found
    )
    assert (
        all(len(one.tokens) == length for one in found[:-1])
        and 2 <= len(found[-1].tokens) <= length
    )


@settings(max_examples=60)
@given(texts=words, length=st.integers(2, 12))
def test_lengths_count_every_token_that_something_stands_before(texts: list[str], length: int):
    for tokenizer in TOKENIZERS.values():
        count = len(tokens_of(tokenizer, "\n\n".join(texts)))
        if count < 2:
            continue
        found = pieces(tokenizer, texts, length=length)
        scored = sum(len(one.tokens) - one.prompt for one in found)
        # Without a first token the first of each piece has nothing before it; a last one of a
        # single token goes.
        assert scored == (count if start_of(tokenizer) else count - -(-count // length))
        assert Batch.pad(found).scored.sum() == scored


def test_the_pieces_of_a_text_by_hand():
    text = "zqxjkvw"
    tokens = tokens_of(PLAIN, text)
    assert len(tokens) == 7 and start_of(PLAIN) == ()
    # The first token of each piece has nothing before it, and the seventh nothing at all: it goes.
    found = pieces(PLAIN, [text], length=3)
    assert found == [Encoded(tuple(tokens[:3]), 1), Encoded(tuple(tokens[3:6]), 1)]
    assert pieces(PLAIN, ["zqxj", "vw"], length=8, separator="k") == [Encoded(tuple(tokens), 1)]
    start, *own = STARTING(text).input_ids
    assert pieces(STARTING, [text], length=4) == [
        Encoded((start, *own[:3]), 1),
        Encoded((start, *own[3:6]), 1),
        Encoded((start, own[6]), 1),
    ]


def test_a_last_piece_of_one_token_is_kept_behind_the_first_token():
    count = len(tokens_of(STARTING, "a b"))
    found = pieces(STARTING, ["a b"], length=count)
    assert [len(one.tokens) for one in found] == [count, 2] and start_of(STARTING) == (0,)


def test_the_last_piece_is_not_filled_with_the_first():
    text = "a b c d e f g h i"
    found = pieces(STARTING, [text], length=4)
    assert len(found[-1].tokens) == 1 + (len(tokens_of(STARTING, text)) % 3 or 3)
    assert [token for one in found for token in one.tokens[1:]] == tokens_of(STARTING, text)


def test_separators_are_a_blank_line_unless_said_otherwise():
    decoded = [PLAIN.decode(list(one.tokens)) for one in pieces(PLAIN, ["ab", "cd"], length=100)]
    assert decoded == ["ab\n\ncd"]


@tokenizers
def test_a_whole_text_is_itself_and_is_cut_only_where_asked(tokenizer):
    texts = ["abc def", "a b c d e f"]
    for text, one in zip(texts, whole(tokenizer, texts), strict=True):
        assert inner(tokenizer, one) == tokens_of(tokenizer, text) and (one.prompt, one.cut) == (
            1,
            0,
        )
    cut = whole(tokenizer, texts, max_length=3)
    assert [len(one.tokens) for one in cut] == [3, 3]
    assert [one.cut + 3 for one in cut] == [len(one.tokens) for one in whole(tokenizer, texts)]


@pytest.mark.parametrize(
    "field, call",
    [
        ("texts", lambda: pieces(PLAIN, [])),
        ("texts[1]", lambda: pieces(PLAIN, ["a b", " \n"])),
        ("length", lambda: pieces(PLAIN, ["a b"], length=1)),
        ("texts", lambda: pieces(PLAIN, ["a"], length=9)),
        ("texts", lambda: whole(PLAIN, [])),
        ("texts[0]", lambda: whole(PLAIN, [""])),
        ("texts[1]", lambda: whole(PLAIN, ["a b", "a"])),
        ("max_length", lambda: whole(PLAIN, ["a b"], max_length=1)),
    ],
)
def test_texts_that_leave_nothing_to_score_are_refused(field: str, call: Any):
    with pytest.raises(InvalidInput) as refused:
        call()
    assert refused.value.field == field


# --- what the law sees of a piece: log-probabilities, not logits ---


class Shifted(nn.Module):
    """A model whose logits are all larger by a constant."""

    def __init__(self, head: nn.Module, constant: float) -> None:
        super().__init__()
        self.head, self.constant = head, constant
        self.weight = head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden) + self.constant


TEXTS = ["a bc d e fg", "hi j k"]


@pytest.mark.parametrize("objective", [npo(0.1), simnpo(0.7)], ids=["npo", "simnpo"])
def test_a_constant_on_all_logits_changes_no_loss_and_other_tokens_do(objective):
    model, moved = model_of("llama"), model_of("llama")
    moved.set_output_embeddings(Shifted(moved.get_output_embeddings(), 5.0))
    encoded = pieces(STARTING, TEXTS, length=6)
    ref = torch.linspace(-30, -20, len(encoded))
    before, after = (score_encoded(one, encoded, ref=ref, progress=False) for one in (model, moved))
    torch.testing.assert_close(objective.loss(after), objective.loss(before))
    last = encoded[0].tokens[-1]
    other = encoded[0]._replace(tokens=(*encoded[0].tokens[:-1], last + 1))
    changed = score_encoded(model, [other, *encoded[1:]], ref=ref, progress=False)
    assert (objective.loss(changed)[0] - objective.loss(before)[0]).abs() > 1e-3
    torch.testing.assert_close(objective.loss(changed)[1:], objective.loss(before)[1:])


def test_the_length_of_a_piece_is_what_simnpo_divides_by():
    encoded = pieces(STARTING, TEXTS, length=6)
    seq = response_logprobs(model_of("llama"), Batch.pad(encoded))
    assert seq.length.tolist() == [len(one.tokens) - 1 for one in encoded]
    weight = simnpo(0.0).weight(seq)
    torch.testing.assert_close(weight, 1 / seq.length)


@given(
    beta=st.floats(0.01, 2),
    reference=st.sampled_from([0.0, 1.0]),
    length=st.integers(1, 300),
    values=st.lists(st.tuples(st.floats(-900, 0), st.floats(-900, 0)), min_size=1, max_size=5),
)
def test_on_pieces_of_one_length_dividing_by_it_is_another_beta_and_another_factor(
    beta: float, reference: float, length: int, values: list[tuple[float, float]]
):
    """loss(beta, not normalised) = length * loss(beta * length, normalised): the retain weight
    is all that changes.
    """
    logp, ref = torch.tensor(values, dtype=torch.float64).T
    seq = SequenceLogProbs(logp, torch.full_like(logp, length), ref)
    summed, divided = (
        Objective(beta, 0.0, reference, 0.0),
        Objective(beta * length, 0.0, reference, 1.0),
    )
    torch.testing.assert_close(summed.loss(seq), length * divided.loss(seq))
    torch.testing.assert_close(summed.weight(seq), length * divided.weight(seq))
