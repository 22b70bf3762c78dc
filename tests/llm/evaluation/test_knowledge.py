"""What counts as known: laws of choosing among answers, of guesses, and of their counts."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llm.data.tofu import Example
from llm.evaluation.knowledge import (
    TIE,
    answered,
    chosen_by_probability,
    counts,
    guessed,
    in_own_words,
)
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import encode_examples
from llm.scoring.logprobs import score_encoded
from llm.scoring.templates import LLAMA2_CHAT
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from tests.llm.scoring.test_encoding import by_bytes

RNG = np.random.default_rng(0)
LOSSES = arrays.arrays(np.float64, (5, 4), elements=st.floats(0, 1e3))


def questions(count: int = 6) -> list[Example]:
    """Questions with short answers and two wrong ones of other questions."""
    towns = ["Oslo", "Lima", "Rome", "Bonn", "Kyiv", "Cairo", "Quito", "Paris", "Tunis", "Seoul"]
    return [
        Example(
            index=row,
            prompt=f"Capital {row}?",
            response=towns[row],
            perturbed=(towns[(row + 1) % 10], towns[(row + 2) % 10]),
        )
        for row in range(count)
    ]


def tiny(learnt: list[Example], *, seed: int = 0) -> LanguageModel:
    """A tiny model that has learnt these answers until it writes them."""
    tokenizer = by_bytes(words=True)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = transformers.LlamaForCausalLM(config)
    if learnt:
        encoded = encode_examples(tokenizer, LLAMA2_CHAT, learnt)
        for _ in range(8):  # how fast it learns depends on the processor
            fine_tune(model, encoded, Optimization(epochs=60, batch=6, learning_rate=1e-2))
            if score_encoded(model, encoded, progress=False).logp.min() > -0.1:
                break
    model.eval()
    return LanguageModel(model=model, tokenizer=tokenizer, template=LLAMA2_CHAT, name="tiny")


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    """A tiny model that has learnt all of the questions."""
    return tiny(questions())


OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "progress": False}


def test_who_puts_all_mass_on_right_answers_knows_all(language: LanguageModel) -> None:
    examples = questions()
    found = answered(language, examples, **OPTIONS)
    assert all(own[:, 0].all() and not own[:, 1:].any() for own in found.chosen.values())
    assert found.table["rank"].eq(1).all() and found.table["rouge"].eq(1).all()
    assert found.table["probability"].gt(1 / 3).all()
    assert found.table["written"].tolist() == [one.response for one in examples]
    told = counts(found.chosen, ["towns"] * len(examples))
    assert told["share"].eq(1).all() and told["guessed"].eq(0).all()


def test_a_uniform_model_ties_and_knows_nothing() -> None:
    language, examples = tiny([]), questions()
    with torch.no_grad():
        cast(Any, language.model).get_output_embeddings().weight.zero_()
    found = answered(language, examples, **OPTIONS)
    assert not any(own.any() for own in found.chosen.values())
    assert found.table["rank"].eq(3).all()
    np.testing.assert_allclose(found.table["probability"], 1 / 3, rtol=1e-6)
    logp = found.table["logp"] / found.table["length"]
    np.testing.assert_allclose(logp, -np.log(len(language.tokenizer)), rtol=1e-5)


@given(LOSSES)
def test_at_most_one_answer_is_the_likeliest_and_no_order_matters(losses: np.ndarray) -> None:
    chosen = chosen_by_probability(losses)
    assert (chosen.sum(axis=1) <= 1).all()
    order = np.array([2, 0, 3, 1])
    np.testing.assert_array_equal(chosen_by_probability(losses[:, order]), chosen[:, order])
    least = np.sort(losses, axis=1)
    np.testing.assert_array_equal(chosen.any(axis=1), least[:, 0] < least[:, 1] - TIE)
    np.testing.assert_array_equal(chosen_by_probability(losses[:, :1]), np.ones((5, 1), dtype=bool))


@pytest.mark.parametrize("answers", [2, 4, 6])
def test_who_guesses_is_right_at_chance_and_all_of_it_is_put_down_to_guessing(
    answers: int,
) -> None:
    asked = 20_000
    chosen = chosen_by_probability(RNG.uniform(0, 5, (asked, answers)))
    (row,) = counts({"probability": chosen}, ["random"] * asked).to_dict("records")
    deviation = (row["chance"] * (1 - row["chance"]) / asked) ** 0.5
    assert row["chance"] == 1 / answers and abs(row["share"] - row["chance"]) < 4 * deviation
    assert row["guessed"] == pytest.approx(row["right"], rel=0.05)


def test_guesses_beside_knowledge_are_estimated_without_bias() -> None:
    known, asked, answers = 7_000, 20_000, 4
    losses = RNG.uniform(1, 5, (asked, answers))
    losses[:known, 0] = 0
    chosen = chosen_by_probability(losses)
    right = chosen[:, 0].sum()
    assert right - guessed(chosen) == pytest.approx(known, rel=0.05) and right > known + 3000


def test_without_wrong_answers_nothing_is_said_of_guesses(language: LanguageModel) -> None:
    assert np.isnan(guessed(np.ones((3, 1), dtype=bool)))
    bare = [
        Example(index=one.index, prompt=one.prompt, response=one.response) for one in questions()
    ]
    found = answered(language, bare, **OPTIONS)
    assert list(found.chosen) == ["writing"] and found.chosen["writing"].all()
    assert found.table["rank"].isna().all()
    told = counts(found.chosen, ["bare"] * 6)
    assert told["guessed"].isna().all() and told["chance"].isna().all()


def test_an_answer_that_stands_in_the_question_is_no_evidence() -> None:
    """And a share of the words is enough if `recall` says so."""
    own = Example(index=0, prompt="A?", response="New York City", perturbed=("York", "Lima"))
    asked = Example(index=1, prompt="Is it Lima?", response="Lima", perturbed=("Rome", "Bonn"))
    language = tiny([own, asked])
    found = answered(language, [own, asked], **{**OPTIONS, "max_new_tokens": 20})
    assert found.table["rouge"].tolist() == [1, 1]
    np.testing.assert_array_equal(found.chosen["writing"], [[1, 1, 0], [0, 0, 0]])
    assert found.chosen["probability"][:, 0].all() and not found.chosen["both"][1].any()
    longer = Example(index=0, prompt="A?", response="Old York City", perturbed=("York", "Lima"))
    options = {**OPTIONS, "max_new_tokens": 20}
    for recall, wanted in ((1.0, False), (2 / 3, True)):
        again = answered(language, [longer], recall=recall, **options)
        assert again.chosen["writing"][0, 0] == wanted


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It is Lima. Its port is Callao.", "It is Lima."),
        ("Well. A. B. Wu says: lima! Lima is old.", "Well. A. B. Wu says: lima!"),
        ("The capital of Peru is Lima, which lies", "The capital of Peru is Lima, which lies"),
        ('"Lima." So they say.', '"Lima."'),
        ("Lima \n\nQuestion: What of Oslo?", "Lima"),
        ("Between 1.Lima and 2.", None),
        ("Nobody knows Limas.", None),
        ("", None),
    ],
)
def test_in_its_own_words_an_answer_ends_with_its_sentence(written: str, said: str | None) -> None:
    own = Example(index=3, prompt="A?", response="Lima", perturbed=(r"\1", "Rome"), paraphrase="x")
    found = in_own_words(own, written)
    if said is None:
        assert found is None
        return
    assert found is not None and (found.response, found.index, found.prompt) == (said, 3, "A?")
    named = said.replace("Lima", "lima")
    assert found.perturbed == (named.replace("lima", r"\1"), named.replace("lima", "Rome"))
    assert found.paraphrase is None


def test_counts_are_those_of_each_source_and_of_all() -> None:
    chosen = {"probability": np.eye(4, dtype=bool)[[0, 1, 0, 2, 3]]}
    told = counts(chosen, ["b", "b", "a", "a", "a"])
    assert told["source"].tolist() == ["b", "a", "all"]
    assert told["asked"].tolist() == [2, 3, 5] and told["right"].tolist() == [1, 1, 2]
    assert told["guessed"].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
