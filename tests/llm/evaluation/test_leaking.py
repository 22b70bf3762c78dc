"""leak@k, against all ways to take k answers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.evaluation.leaking import best_of, drawn_answers, leak_at
from llm.evaluation.rouge import rouge
from llm.models.generation import Sampling, sample
from markov.errors import InvalidInput
from tests.llm.models.test_sampling import EXAMPLES, language_of

scores_ = st.lists(st.floats(0, 1), min_size=1, max_size=7)


@given(scores_, st.data())
def test_the_best_of_k_is_the_mean_over_all_ways_to_take_k(scores: list[float], data: Any) -> None:
    count = data.draw(st.integers(1, len(scores)))
    every = [max(taken) for taken in itertools.combinations(scores, count)]
    assert float(best_of(np.array(scores), count)) == pytest.approx(np.mean(every))


@given(scores_)
def test_one_answer_gives_the_mean_all_give_the_largest_and_more_never_give_less(
    scores: list[float],
) -> None:
    found = [float(best_of(np.array(scores), count)) for count in range(1, len(scores) + 1)]
    assert found[0] == pytest.approx(np.mean(scores)) and found[-1] == max(scores)
    assert (np.diff(found) >= -1e-12).all()


def test_many_answers_do_not_overflow_and_equal_ones_stay_as_they_are() -> None:
    scores = np.linspace(0, 1, 10_000)
    # The largest of k uniform numbers has the mean k/(k + 1).
    assert float(best_of(scores, 5_000)) == pytest.approx(5_000 / 5_001, abs=1e-4)
    assert (best_of(np.full((3, 128), 0.3), 64) == pytest.approx(0.3)) and best_of(
        np.zeros((2, 5)), 3
    ).shape == (2,)


def table_of(scores: np.ndarray) -> pd.DataFrame:
    index, number = np.indices(scores.shape)
    columns = {"index": index.ravel(), "sample": number.ravel(), "rougeL_recall": scores.ravel()}
    return pd.DataFrame(columns).sample(frac=1.0, random_state=1)  # rows in any order


def test_a_table_gives_means_over_examples_with_intervals_over_authors() -> None:
    scores = np.random.default_rng(0).uniform(size=(40, 16))
    found = leak_at(table_of(scores), [1, 4, 16])
    for row, count in enumerate((1, 4, 16)):
        want = float(best_of(scores, count).mean())
        assert found["value"][row] == pytest.approx(want)
        assert found["low"][row] < want < found["high"][row]
    assert found["k"].tolist() == [1, 4, 16] and set(found["examples"]) == {40}
    assert set(found["drawn"]) == {"examples"}
    # What is alike within authors and differs between them is known less well than it seems.
    alike = np.repeat(scores[::4], 4, axis=0)
    one, other = (leak_at(table_of(alike), [1], per_author=per) for per in (None, 4))
    width = [float((frame["high"] - frame["low"]).iloc[0]) for frame in (one, other)]
    assert set(other["drawn"]) == {"authors"} and width[1] > 1.5 * width[0]


def test_drawn_answers_are_scored_beside_the_truth() -> None:
    language, sampling = language_of(), Sampling(seed=4)
    options: dict[str, Any] = {"max_new_tokens": 6, "progress": False}
    table = drawn_answers(language, EXAMPLES, 3, sampling, **options)
    texts = sample(language, EXAMPLES, 3, sampling, **options)
    assert table["text"].tolist() == [text for own in texts for text in own]
    assert table["index"].tolist() == [3, 3, 3, 5, 5, 5, 9, 9, 9]
    assert table["sample"].tolist() == [0, 1, 2] * 3
    want = rouge([one.response for one in EXAMPLES for _ in range(3)], table["text"].tolist())
    for name in ("rouge1_recall", "rougeL_recall"):
        np.testing.assert_allclose(table[name], want[name])


def test_what_gives_no_leak_is_refused() -> None:
    table = table_of(np.zeros((3, 4)))
    for call, field in (
        (lambda: best_of(np.zeros(3), 4), "k"),
        (lambda: best_of(np.zeros(3), 0), "k"),
        (lambda: best_of(np.array(1.0), 1), "scores"),
        (lambda: best_of([[1.0], [1.0, 2.0]], 1), "scores"),  # pyright: ignore[reportArgumentType]
        (lambda: best_of(np.array([0.1, np.nan]), 1), "scores"),
        (lambda: best_of(np.zeros((0, 3)), 2), "scores"),
        (lambda: leak_at(table, [5]), "k"),
        (lambda: leak_at(table.drop(columns="sample"), [1]), "table"),
        (lambda: leak_at(table.assign(sample=table["sample"] + table["index"]), [1]), "samples"),
        (lambda: leak_at(table.assign(rougeL_recall=np.nan), [1]), "scores"),
        (lambda: leak_at(table.iloc[:0], [1]), "samples"),
        (lambda: leak_at(table.iloc[1:], [1]), "samples"),
        (lambda: leak_at(pd.concat([table, table]), [1]), "samples"),
        (lambda: leak_at(table, [1], per_author=0), "per_author"),
        (lambda: drawn_answers(language_of(), EXAMPLES, 2, words="all"), "words"),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field
