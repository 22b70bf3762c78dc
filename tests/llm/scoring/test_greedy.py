"""Tokens that a model finds likeliest, against writing itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.scoring import shared
from llm.scoring.encoding import Encoded
from llm.scoring.greedy import greedy_scores
from llm.scoring.logprobs import score_encoded
from llm.scoring.shared import score_responses
from llm.writing.continuations import continuations
from tests.llm.models.test_generation import EOS, VOCAB, Ends, model_of

MODELS: dict[str, Any] = {kind: model_of(kind) for kind in ("llama", "gpt2")}


def written(model: Any, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """So many tokens, as greedy decoding writes them behind a prompt."""
    options: dict[str, Any] = {"progress": False, "end": False}
    return tuple(continuations(model, Ends(), [prompt], max_new_tokens=count, **options)[0])


@st.composite
def texts(draw: Any, kind: str) -> Encoded:
    """A prompt with the greedy answer to it, some of whose tokens are replaced by others.

    What follows such a token is what is written behind it, so that answers go wrong anywhere.
    """
    prompt = tuple(draw(st.lists(st.integers(3, EOS - 1), min_size=1, max_size=6)))
    tokens = prompt
    for wrong in draw(st.lists(st.booleans(), min_size=1, max_size=7)):
        (following,) = written(MODELS[kind], tokens, 1)
        other = draw(st.integers(3, VOCAB - 1)) if wrong else following
        tokens = (*tokens, other)
    return Encoded(tokens, len(prompt))


def by_writing(model: Any, one: Encoded) -> tuple[int, int]:
    """Right tokens, and those of the tail, by writing behind every part of the answer."""
    answer, right, tail = one.tokens[one.prompt :], 0, 0
    for known in range(len(answer)):
        rest = written(model, one.tokens[: one.prompt + known], len(answer) - known)
        right += rest[0] == answer[known]
        if rest == answer[known:]:
            tail = max(tail, len(rest))
    return right, tail


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("least", [0, 2**20], ids=["prompts read once", "whole texts"])
@settings(max_examples=12)
@given(data=st.data(), elements=st.sampled_from([1, 3 * VOCAB, 2**25]))
def test_right_tokens_and_tails_are_what_greedy_decoding_writes(
    kind: str, least: int, data: Any, elements: int
) -> None:
    model = MODELS[kind]
    drawn = data.draw(st.lists(texts(kind), min_size=1, max_size=4))
    some = [*drawn, *(Encoded((*one.tokens, 5), one.prompt) for one in drawn)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "LEAST", least)
        found = score_responses(model, some, greedy_scores, elements=elements, progress=False)
    want = score_encoded(model, some, progress=False)
    torch.testing.assert_close(found.logp, want.logp, rtol=1e-5, atol=1e-5)
    assert found.length.tolist() == want.length.tolist()
    assert {part.dtype for part in found} == {torch.float32}
    got = list(zip(found.right.tolist(), found.tail.tolist(), strict=True))
    assert got == [by_writing(model, one) for one in some]


def test_a_tail_ends_where_the_answer_begins_and_a_wrong_last_token_leaves_none() -> None:
    model, prompt = MODELS["llama"], (5, 6, 7)
    answer = written(model, prompt, 4)
    other = tuple((token + 1) % EOS for token in answer)
    cases = {
        answer: (4, 4),
        (*answer[:3], other[3]): (3, 0),
        (other[0],): (0, 0),
        answer[:1]: (1, 1),
    }
    some = [Encoded((*prompt, *response), len(prompt)) for response in cases]
    found = score_responses(model, some, greedy_scores, progress=False)
    got = zip(found.right.tolist(), found.tail.tolist(), strict=True)
    assert list(got) == list(cases.values())
