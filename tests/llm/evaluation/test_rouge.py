"""ROUGE in any script: what the field's words pass over is said, and words of every script can
be counted.
"""

from __future__ import annotations

import unicodedata
import warnings
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.splits import TofuSets
from llm.evaluation.muse import Measuring
from llm.evaluation.rouge import MEASURES, WORDS, PassedOver, passed_over, rouge
from llm.evaluation.tofu import check_words, evaluate, task_log
from markov.errors import InvalidInput
from tests.test_finite import EXAMPLES, language

SCRIPTS = {
    "Chinese": ("奥多在塔恩写了这本书。", 10),
    "Japanese": ("オドは本を書いた。", 8),
    "Thai": ("เขา", 3),
    "Russian": ("Одо Керр написал книгу в Тарне.", 6),
    "Arabic": ("كتب أودو الكتاب", 3),
    "Hindi": ("शहर में नमक", 3),
    "Greek": ("Ο Όντο έγραψε.", 3),
}
scripts = pytest.mark.parametrize(("text", "count"), SCRIPTS.values(), ids=SCRIPTS)


def told(truths: list[str], written: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rouge(truths, written)
    return [str(one.message) for one in caught]


@scripts
def test_a_text_without_words_for_rouge_score_is_told_of_and_counts_as_none(
    text: str, count: int
) -> None:
    with pytest.warns(
        RuntimeWarning,
        match="ROUGE: 1 of 2 truths have no words of a to z and 0 to 9 and count as 0",
    ):
        found = rouge([text, "a mill"], [text, "a mill"])
    for name in MEASURES:
        assert found[name].tolist() == [0.0, 1.0]


@scripts
def test_every_script_has_words_where_they_are_asked_for(text: str, count: int) -> None:
    found = rouge([text] * 3, [text, "", "another text"], words="any")
    for name in MEASURES:
        assert found[name].tolist() == [1.0, 0.0, 0.0]
    # Beside itself without its last word, if there are blanks, or its last letter.
    shorter = text.rstrip("。.")
    shorter = shorter.rsplit(" ", 1)[0] if " " in text else shorter[:-1]
    assert rouge([text], [shorter], words="any")["rougeL_recall"][0] == pytest.approx(
        (count - 1) / count
    )


def test_one_line_is_told_and_only_of_what_is_worth_it() -> None:
    assert told(["a mill", "12.5 %", "..."], ["", "", ""]) == []
    assert told(["Zoë lived by the old mill in the valley"], [""]) == []  # 1 letter of 30
    (said,) = told(["奥多", "a mill", "塔恩"], ["", "", ""])
    assert said == (
        "ROUGE: 2 of 3 truths have no words of a to z and 0 to 9 and count as 0; 44% of all "
        "letters and digits are "
        "passed over; words `any` count every script"
    )
    (said,) = told(["Łódź ünlü"], [""])
    assert said.startswith("ROUGE: 0 of 1 truths") and "; 62% of all" in said


def test_letters_passed_over_are_counted() -> None:
    assert passed_over([]) == PassedOver(0, 0, 0.0)
    assert passed_over(["a mill", "..."]) == PassedOver(2, 0, 0.0)
    assert passed_over(["Łódź", "奥多 3", "奥多"]) == PassedOver(3, 1, (3 + 2 + 2) / 9)


@given(st.text(st.characters(codec="ascii")), st.text(st.characters(codec="ascii")), st.booleans())
def test_words_of_any_script_are_the_fields_own_on_ascii(
    truth: str, written: str, stemmer: bool
) -> None:
    one, other = (rouge([truth], [written], stemmer=stemmer, words=words) for words in WORDS)
    for name in MEASURES:
        np.testing.assert_array_equal(one[name], other[name])


texts = st.text(st.characters(categories=("L", "M", "N", "P", "Z")), max_size=12)


@given(texts, texts)
def test_words_of_any_script_do_not_depend_on_how_accents_are_stored(
    truth: str, written: str
) -> None:
    plain = rouge([truth], [written], words="any")
    apart = [unicodedata.normalize("NFD", text) for text in (truth, written)]
    for name, values in rouge([apart[0]], [apart[1]], words="any").items():
        np.testing.assert_array_equal(values, plain[name])
    letters = any(unicodedata.category(character)[0] in "LMN" for character in truth)
    assert rouge([truth], [truth], words="any")["rougeL_recall"][0] == float(letters)


def test_the_fields_words_are_the_default() -> None:
    truth, written = "Ünlü writers wrote novels in Łódź", "nl d"
    with pytest.warns(RuntimeWarning, match=r"0 of 1 truths .* 18% of all letters"):
        found, latin = rouge([truth], [written]), rouge([truth], [written], words="latin")
    any_script = rouge([truth], [written], words="any")
    for name in MEASURES:
        assert found[name].tolist() == latin[name].tolist() != any_script[name].tolist()
    with pytest.raises(InvalidInput, match="words"):
        rouge([], [], words="all")


@pytest.mark.parametrize("words", ["all", None, True])
def test_other_words_are_refused_before_any_work(words: Any) -> None:
    calls = [
        lambda: check_words(words),
        lambda: Measuring(words=words),
        lambda: rouge([], [], words=words),
    ]
    sets, none = TofuSets(*[EXAMPLES] * 4), cast(Any, None)
    calls += [
        lambda: evaluate(none, sets, words=words),
        lambda: task_log(none, EXAMPLES, words=words),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="words"):
            call()


def test_an_evaluation_counts_the_words_that_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    chinese = tuple(
        type(one)(index=one.index, prompt=one.prompt, response="塔恩", perturbed=("No.",))
        for one in EXAMPLES
    )
    monkeypatch.setattr("llm.evaluation.tofu.generate", lambda *_, **__: ("塔恩", "塔", ""))
    with pytest.warns(RuntimeWarning, match="3 of 3 truths"):
        found = task_log(language(), chinese, progress=False)
    assert found.rouge["rougeL_recall"].tolist() == [0, 0, 0]
    found = task_log(language(), chinese, words="any", progress=False)
    assert found.rouge["rougeL_recall"].tolist() == [1, 0.5, 0]
