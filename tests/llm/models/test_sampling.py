"""Answers that are drawn at random: from the law they should have, and each by itself."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats

from llm.data.tofu import Example
from llm.models.answers import responses
from llm.models.generation import WARMTH, Sampling, generate, sample
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import end_tokens
from llm.scoring.templates import PLAIN
from markov.errors import InvalidInput
from tests.llm.models.test_generation import TOKENIZER, model_of

LOGITS = torch.tensor([2.0, 0.5, 0.4, -1.0, -3.0])
EXAMPLES = [
    Example(index=index, prompt=prompt, response="it is so")
    for index, prompt in ((3, "who wrote it?"), (5, "and where was that, after all?"), (9, "why?"))
]


def language_of(kind: str = "llama") -> LanguageModel:
    return LanguageModel(model_of(kind), TOKENIZER, PLAIN, "a model")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_law_of_the_model(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=1)
    drawn = [int(sampling.scores(number, number % 7, LOGITS).argmax()) for number in range(4000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=len(LOGITS)).numpy()
    law = (LOGITS.double() / temperature).softmax(-1).numpy()
    found: Any = stats.chisquare(counts, 4000 * law)
    assert found.pvalue > 0.001


def test_scores_stay_finite_at_every_temperature_and_whatever_numbers_name_an_example() -> None:
    for temperature in WARMTH:
        scores = Sampling(temperature=temperature).scores((np.int64(3), 0), 1, LOGITS)
        assert scores.isfinite().all()
    language, options = language_of(), {"max_new_tokens": 3, "progress": False}
    one = EXAMPLES[:1]
    other = [replace(one[0], index=cast(Any, np.int64(one[0].index)))]
    assert sample(language, one, 2, Sampling(), **options) == sample(
        language, other, 2, Sampling(), **options
    )


def slow_answers(
    language: Any, example: Example, samples: int, sampling: Sampling, new: int
) -> Any:
    """Each answer alone, a token at a time, from a pass over all before it."""
    (encoded,) = responses(language, [example])
    own = language.model.generation_config.eos_token_id
    ends = {
        *end_tokens(language.tokenizer, language.template),
        language.tokenizer.eos_token_id,
        own,
    }
    found = []
    for number in range(samples):
        tokens = list(encoded.tokens[: encoded.prompt])
        for place in range(new):
            with torch.no_grad():
                logits = language.model(torch.tensor([tokens])).logits[0, -1]
            token = int(sampling.scores((example.index, number), place, logits).argmax())
            if token in ends:
                break
            tokens.append(token)
        text = language.tokenizer.decode(tokens[encoded.prompt :], skip_special_tokens=True)
        found.append(text.strip())
    return tuple(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_an_answer_depends_on_nothing_that_is_written_beside_it(kind: str, budget: int) -> None:
    language, sampling = language_of(kind), Sampling(temperature=0.7, seed=2)
    options: dict[str, Any] = {"max_new_tokens": 12, "progress": False}
    found = sample(language, EXAMPLES, 4, sampling, budget=budget, **options)
    assert found == [slow_answers(language, one, 4, sampling, 12) for one in EXAMPLES]
    fewer = sample(language, EXAMPLES[1:2], 2, sampling, **options)
    assert fewer == [found[1][:2]]
    other = sample(language, EXAMPLES, 4, replace(sampling, seed=3), **options)
    assert all(mine != theirs for mine, theirs in zip(found, other, strict=True))
    assert max(Counter(text for own in found for text in own).values()) == 1


def test_without_heat_answers_are_greedy() -> None:
    language, cold = language_of(), Sampling(temperature=1e-6)
    options: dict[str, Any] = {"max_new_tokens": 10, "progress": False}
    greedy = generate(language, EXAMPLES, **options)
    assert sample(language, EXAMPLES, 2, cold, **options) == [(one, one) for one in greedy]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Sampling(temperature=0.0), "temperature"),
        (lambda: Sampling(temperature=math.inf), "temperature"),
        (lambda: Sampling(temperature=1e300), "temperature"),
        (lambda: Sampling(seed=-1), "seed"),
        (lambda: sample(language_of(), EXAMPLES, 0, Sampling()), "samples"),
        (lambda: sample(language_of(), EXAMPLES, 10**6, Sampling()), "samples"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field
