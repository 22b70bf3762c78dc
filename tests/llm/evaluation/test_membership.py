"""Scores of having read a text: each as written down by hand, token by token, and PrivLeak with
its orientation.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.evaluation.membership import (
    SMALLEST_VARIANCE,
    Membership,
    _standardised,
    auc,
    auc_interval,
    leakage,
    membership,
    min_k,
    privleak,
    text_scores,
)
from llm.models.language_model import LanguageModel
from llm.scoring.documents import whole
from llm.scoring.finite import NotFinite
from llm.scoring.templates import PLAIN
from markov.console import progress as shown
from markov.errors import InvalidInput
from tests.helpers import Bar
from tests.llm.models.test_generation import model_of
from tests.llm.scoring.test_encoding import by_bytes

TEXTS = [
    "The River ran past the old Mill.",
    "A short one",
    "Prices rose by a third, then fell; nobody knew WHY. Rain.",
]


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return LanguageModel(model_of("llama"), by_bytes(words=True), PLAIN, "a random one")


def laws_of(language: LanguageModel, text: str) -> tuple[np.ndarray, list[int]]:
    """The distribution before each token but the first, by hand and in double precision, and
    which token came.
    """
    tokens = list(whole(language.tokenizer, [text])[0].tokens)
    with torch.no_grad():
        logits = language.model(torch.tensor([tokens])).logits[0, :-1].double()
    return logits.log_softmax(-1).numpy(), tokens[1:]


# --- Min-K% ---


def test_min_k_by_hand():
    values = np.array([-1.0, -5.0, -2.0, -0.5, -4.0])
    assert min_k(values, 0.4) == (5 + 4) / 2  # two of five
    assert min_k(values, 0.59) == (5 + 4) / 2  # 2.95, rounded down
    assert min_k(values, 0.6) == (5 + 4 + 2) / 3
    assert min_k(values, 1.0) == 12.5 / 5
    assert min_k(values) == (5 + 4) / 2  # MUSE's 40 %


def test_min_k_of_few_tokens_takes_the_least_likely_one():
    assert min_k(np.array([-3.0, -7.0]), 0.4) == 7 and min_k(np.array([-3.0]), 0.01) == 3


@given(count=st.integers(1, 300), percent=st.integers(1, 100))
def test_the_number_of_tokens_is_that_of_whole_numbers(count: int, percent: int):
    """Of 0, -1, -2, ... the m smallest have the mean -(2 count - m - 1) / 2, which tells m."""
    chosen = max(1, percent * count // 100)
    assert min_k(-np.arange(count, dtype=float), percent / 100) == pytest.approx(
        (2 * count - chosen - 1) / 2
    )


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_min_k_knows_no_order_and_falls_as_the_share_grows(values: list[float], random: Any):
    mixed = list(values)
    random.shuffle(mixed)
    shares = [0.1, 0.4, 0.7, 1.0]
    found = [min_k(np.array(values), share) for share in shares]
    assert found == pytest.approx([min_k(np.array(mixed), share) for share in shares])
    assert all(one >= other - 1e-12 for one, other in itertools.pairwise(found))
    assert found[-1] == pytest.approx(-np.mean(values))


# --- scores of texts ---


def test_scores_of_texts_are_those_written_down_token_by_token(language: LanguageModel):
    table = text_scores(
        language, TEXTS, k=0.3, standardised=True, lowered=True, budget=40, progress=False
    )
    assert table["index"].tolist() == [0, 1, 2]
    for text, row in zip(TEXTS, table.to_dict("records"), strict=True):
        laws, came = laws_of(language, text)
        own = np.array([law[token] for law, token in zip(laws, came, strict=True)])
        means = (np.exp(laws) * laws).sum(-1)
        deviations = np.sqrt((np.exp(laws) * (laws - means[:, None]) ** 2).sum(-1))
        few = max(1, int(0.3 * len(own)))
        low_laws, low_came = laws_of(language, text.lower())
        low = -np.mean([law[token] for law, token in zip(low_laws, low_came, strict=True)])
        assert row["length"] == len(came)
        expected = {
            "loss": -own.mean(),
            "min_k": -np.sort(own)[:few].mean(),
            "min_k_plus_plus": -np.sort((own - means) / deviations)[:few].mean(),
            "zlib": -own.mean() / len(zlib.compress(text.encode())),
            "lower": -own.mean() / low,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4), name


def test_costly_scores_are_left_out_unless_asked_for(language: LanguageModel):
    table = text_scores(language, TEXTS, progress=False)
    assert list(table) == ["index", "length", "loss", "min_k", "zlib"]


def test_a_cut_text_scores_as_its_beginning(language: LanguageModel):
    cut = text_scores(language, TEXTS, max_length=5, progress=False)
    assert cut["length"].tolist() == [4, 4, 4]
    laws, came = laws_of(language, TEXTS[0])
    assert cut["loss"][0] == pytest.approx(-np.mean([laws[t][came[t]] for t in range(4)]), rel=1e-5)


def test_membership_keeps_the_two_sets_apart(language: LanguageModel):
    both = membership(language, TEXTS[:1], TEXTS[1:], k=0.5, progress=False)
    scores = text_scores(language, TEXTS, k=0.5, progress=False)["min_k"].to_numpy()
    np.testing.assert_allclose(both.forget, scores[:1])
    np.testing.assert_allclose(both.holdout, scores[1:])


def test_a_share_outside_its_bounds_is_refused_before_the_model_runs():
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(InvalidInput) as refused:
            text_scores(None, TEXTS, k=share)  # pyright: ignore[reportArgumentType]
        assert refused.value.field == "k"
    with pytest.raises(InvalidInput) as refused:
        min_k(np.array([]))
    assert refused.value.field == "logprobs"


def test_what_has_no_score_is_told_with_what_has_one():
    share = "a share > 0, at most 1"
    for k in (0.0, 1.01, math.inf):
        assert refusal(lambda k=k: min_k(np.array([-1.0]), k)) == ("k", k, share)
    assert refusal(lambda: text_scores(None, [], k=2)) == ("k", 2, share)  # pyright: ignore[reportArgumentType]
    field, value, allowed = refusal(lambda: min_k(np.array([])))
    assert (field, len(value), allowed) == ("logprobs", 0, "at least one")
    assert refusal(lambda: min_k(np.array([-1.0, math.inf, math.nan]))) == (
        "logprobs",
        [math.inf],
        "finite numbers (2 of 3 are not)",
    )


def refusal(call: Any) -> tuple[str, Any, str]:
    """The field, the value and what is allowed, as the error has them."""
    with pytest.raises(InvalidInput) as caught:
        call()
    return caught.value.field, caught.value.value, caught.value.allowed


def test_a_score_is_standardised_by_the_law_before_its_token():
    laws = np.array([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4]])
    with np.errstate(divide="ignore"):
        logits = torch.tensor(np.log(laws) + 3.0, dtype=torch.float32)
    came = torch.tensor(np.log([0.25, 0.4]))
    means = np.array([-1.5 * math.log(2), sum(p * math.log(p) for p in laws[1])])
    squares = [0.5 * math.log(2) ** 2 + 0.5 * math.log(4) ** 2]
    squares += [sum(p * math.log(p) ** 2 for p in laws[1])]
    want = (came.numpy() - means) / np.sqrt(squares - means**2)
    np.testing.assert_allclose(_standardised(logits, came), want, rtol=1e-5)
    # In the dtype of what is standardised, to its last digits.
    wide = _standardised(logits[1:].double(), came[1:])
    torch.testing.assert_close(_standardised(logits[1:], came[1:]), wide, rtol=1e-12, atol=0)


def test_a_law_that_is_nearly_certain_has_a_smallest_deviation():
    logits = torch.tensor([[0.0, -20.0]], dtype=torch.float64)
    rare = math.exp(-20) / (1 + math.exp(-20))
    assert rare * 20**2 < SMALLEST_VARIANCE == 1e-6
    found = _standardised(logits, logits.log_softmax(-1)[:, 1])
    assert found.item() == pytest.approx(-20 * (1 - rare) / 1e-3, rel=1e-9)


def test_a_cut_text_is_cut_in_lower_case_too(language: LanguageModel):
    table = text_scores(language, TEXTS[:1], max_length=5, lowered=True, progress=False)
    means = []
    for text in (TEXTS[0], TEXTS[0].lower()):
        laws, came = laws_of(language, text)
        means.append(np.mean([laws[t][came[t]] for t in range(4)]))
    assert table["lower"].item() == pytest.approx(means[0] / means[1], rel=1e-5)


def test_texts_are_read_in_batches_of_the_budget_and_without_dropout(
    language: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    bars: list[Bar] = []
    monkeypatch.setattr(shown, "tqdm", lambda **told: bars.append(Bar(**told)) or bars[-1])
    monkeypatch.setattr(shown, "terminal", lambda stream: True)
    model, rows, training = copy.deepcopy(language.model).train(), [], []
    model.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0])) or training.append(module.training)
    )
    own = language._replace(model=model)
    for budget, counts in ((1, [1, 1, 1]), (10_000, [3])):
        rows.clear()
        text_scores(own, TEXTS, budget=budget)
        assert rows == [3, *counts]  # the first is the trial of whether the model is causal
    assert not any(training) and model.training
    text_scores(own, TEXTS, lowered=True, progress=False)
    rows.clear()
    text_scores(own, TEXTS, lowered=True, standardised=True)
    assert rows == [3, 3, 3, 3, 3]  # a second pass is for the scores that need one
    tokens = sum(len(one.tokens) for one in whole(language.tokenizer, TEXTS))
    assert [bar.disable for bar in bars] == [False] * 2 + [True] * 2 + [False] * 2
    assert {bar.label for bar in bars} == {"score"}
    assert bars[0].total == bars[0].count == tokens


def test_a_text_without_a_finite_score_is_named_by_its_place_and_the_model(
    language: LanguageModel,
):
    model = copy.deepcopy(language.model)
    encoded = whole(language.tokenizer, TEXTS)
    (only, *_) = set(encoded[2].tokens[:-1]) - {*encoded[0].tokens, *encoded[1].tokens}
    with torch.no_grad():
        table: Any = model.get_input_embeddings().weight
        table[only] = math.nan
    broken = LanguageModel(model, language.tokenizer, PLAIN, "a broken one")
    for asked in ({}, {"standardised": True}):
        with pytest.raises(NotFinite, match="for example 2 under a broken one") as caught:
            text_scores(broken, TEXTS, progress=False, **asked)
        assert caught.value.field == "logp" and math.isnan(caught.value.value)  # pyright: ignore[reportArgumentType]


def test_texts_that_a_model_has_no_place_for_are_refused(language: LanguageModel):
    places = language.model.config.max_position_embeddings
    assert refusal(lambda: text_scores(language, ["a b " * places], progress=False))[0] == (
        "examples"
    )
    bare = LanguageModel(language.model.model, language.tokenizer, PLAIN, "without a head")
    assert refusal(lambda: text_scores(bare, TEXTS, progress=False))[0] == "model"


# --- AUC and PrivLeak ---

some_scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=9)


@given(forget=some_scores, holdout=some_scores)
def test_the_auc_counts_all_pairs(forget: list[float], holdout: list[float]):
    pairs = [(one > other) + (one == other) / 2 for one in forget for other in holdout]
    assert float(auc(np.array(forget), np.array(holdout))) == pytest.approx(np.mean(pairs))


def test_texts_known_by_heart_have_an_auc_of_zero_and_a_privleak_of_minus_hundred():
    known = Membership(np.array([0.1, 0.2]), np.array([3.0, 4.0, 5.0]))
    assert float(auc(*known)) == 0 and privleak(0.0, 0.5) == -100
    # what looks less known than what nobody read
    assert float(auc(known.holdout, known.forget)) == 1


def test_privleak_by_hand():
    assert privleak(0.5, 0.5) == 0
    assert privleak(0.75, 0.5) == 50 and privleak(0.25, 0.5) == -50
    # its bound where the retrained AUC is that
    assert privleak(1.0, 0.4772) == pytest.approx(109.5557, abs=1e-4)


@given(st.floats(0.06, 1), st.floats(0, 1), st.floats(0, 1))
def test_privleak_rises_with_the_auc_within_its_bounds(base: float, one: float, other: float):
    low, high = sorted((one, other))
    assert -100 <= privleak(low, base) <= privleak(high, base) <= 100 * (1 / base - 1) + 1e-9


def test_a_retrained_auc_near_zero_is_warned_of_and_zero_refused():
    with pytest.warns(RuntimeWarning, match="0.02, not an AUC"):
        assert privleak(0.5, 0.02) == pytest.approx(2400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        privleak(0.5, 0.05)
    for field, own, base in (
        ("auc_retrained", 0.5, 0.0),
        ("auc", -0.1, 0.5),
        ("auc", 1.1, 0.5),
        ("auc", math.nan, 1),
    ):
        with pytest.raises(InvalidInput) as refused:
            privleak(own, base)
        assert refused.value.field == field


def test_a_model_beside_itself_leaks_nothing_in_any_resample():
    rng = np.random.default_rng(3)
    own = Membership(rng.normal(size=20), rng.normal(0.3, size=30))
    found = leakage(own, own)
    assert found.privleak == (0, 0, 0, 50) and found.auc == found.auc_retrained
    assert found.auc.low < found.auc.value == float(auc(*own)) < found.auc.high
    assert auc_interval(own) == found.auc


def test_the_interval_of_the_auc_has_the_width_that_theory_gives():
    """Of two equal normal sets of n, the AUC has the standard deviation sqrt((2n + 1) / 12) / n."""
    rng, count = np.random.default_rng(1), 200
    found = auc_interval(Membership(rng.normal(size=count), rng.normal(size=count)), resamples=2000)
    expected = 2 * 1.96 * math.sqrt((2 * count + 1) / 12) / count
    assert (found.high - found.low) == pytest.approx(expected, rel=0.1)


def test_intervals_follow_from_the_seed_and_widen_with_the_level():
    rng = np.random.default_rng(2)
    own = Membership(rng.normal(size=15), rng.normal(0.5, size=15))
    assert auc_interval(own, seed=1) == auc_interval(own, seed=1) != auc_interval(own, seed=2)
    narrow, wide = auc_interval(own, level=0.5), auc_interval(own, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_resamples_draw_the_same_texts_for_both_models():
    """So the interval is that of a difference: scores that are those of the retrained model,
    doubled, leave none.
    """
    rng = np.random.default_rng(4)
    base = Membership(rng.normal(size=25), rng.normal(size=25))
    doubled = Membership(2 * base.forget, 2 * base.holdout)
    assert leakage(doubled, base).privleak == (0, 0, 0, 50)


def slow_interval(values: list[float], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_intervals_are_those_of_resamples_drawn_one_by_one(level: float):
    own = Membership(np.array([0.4, 1.5, 0.9]), np.array([1.0, 2.0]))
    # Of some resamples the retrained AUC is 0: they have no PrivLeak.
    base = Membership(np.array([0.0, 1.0, 0.2]), np.array([0.5, 0.7]))
    rng = np.random.default_rng(5)
    draws = rng.integers(3, size=(200, 3)), rng.integers(2, size=(200, 2))
    aucs, bases, quotients = [], [], []
    for first, second in zip(*draws, strict=True):
        one, other = (float(auc(each[0][first], each[1][second])) for each in (own, base))
        aucs.append(one)
        bases.append(other)
        quotients += [100 * (one / other - 1)] if other > 0 else []
    assert 0 < len(quotients) < 200
    found = leakage(own, base, resamples=200, seed=5, level=level)
    values = float(auc(*own)), float(auc(*base))
    leak = privleak(*values)
    for got, value, drawn in zip(found, (*values, leak), (aucs, bases, quotients), strict=True):
        assert got == pytest.approx((value, *slow_interval(drawn, level), 5))
    assert auc_interval(own, resamples=200, seed=5, level=level) == found.auc


def test_unless_asked_otherwise_a_thousand_resamples_of_seed_0_give_95_percent():
    rng = np.random.default_rng(6)
    own, base = (Membership(rng.normal(size=90), rng.normal(size=70)) for _ in range(2))
    asked: dict[str, Any] = {"resamples": 1000, "seed": 0, "level": 0.95}
    assert auc_interval(own) == auc_interval(own, **asked)
    assert leakage(own, base) == leakage(own, base, **asked)
    for other in ({"resamples": 1001}, {"seed": 1}, {"level": 0.9}):
        assert auc_interval(own) != auc_interval(own, **asked | other)
        assert leakage(own, base) != leakage(own, base, **asked | other)


def test_what_cannot_be_compared_is_told_with_what_can():
    own, other = Membership(np.zeros(3), np.zeros(2)), Membership(np.zeros(2), np.zeros(3))
    assert refusal(lambda: leakage(own, other)) == (
        "retrained",
        [2, 3],
        "scores of the same texts, [3, 2] of them",
    )
    both = "at least one text in each set"
    assert refusal(lambda: auc(np.zeros((5, 0)), np.zeros((5, 2)))) == ("scores", (0, 2), both)
    assert refusal(lambda: auc(np.zeros(2), np.zeros(0))) == ("scores", (2, 0), both)
    field, value, allowed = refusal(lambda: auc(np.full(2, math.nan), np.zeros(2)))
    assert (field, allowed) == ("scores", "numbers for all texts (2 are none)")
    assert math.isnan(value)
    for value in (-0.1, 1.1):
        told = ("auc", value, "a number from 0 to 1")
        assert refusal(lambda value=value: privleak(value, 0.5)) == told
        field, found, allowed = refusal(lambda value=value: privleak(0.5, value))
        assert (field, found) == ("auc_retrained", value)
        assert allowed.startswith("an AUC of the retrained model above 0, near 1/2")
    assert privleak(0.0, 1.0) == -100 and privleak(1.0, 1.0) == 0
    assert float(auc(np.array([2.0]), np.array([1.0]))) == 1


def test_a_doubtful_divisor_is_warned_of_by_its_value():
    with pytest.warns(RuntimeWarning, match=r"^PrivLeak divides by 0\.0499, not an AUC of the"):
        privleak(0.5, 0.0499)


def test_scores_that_do_not_belong_together_are_refused():
    own, other = Membership(np.zeros(3), np.zeros(2)), Membership(np.zeros(2), np.zeros(3))
    cases: list[tuple[str, Any]] = [
        ("retrained", lambda: leakage(own, other)),
        ("resamples", lambda: auc_interval(own, resamples=10)),
        ("level", lambda: auc_interval(own, level=1.0)),
        ("scores", lambda: auc(np.array([]), np.zeros(2))),
        ("scores", lambda: auc(np.array([math.nan]), np.zeros(2))),
    ]
    for field, call in cases:
        with pytest.raises(InvalidInput) as refused:
            call()
        assert refused.value.field == field


@settings(max_examples=20)
@given(st.integers(0, 99))
def test_the_auc_of_many_resamples_at_once_is_that_of_each(seed: int):
    rng = np.random.default_rng(seed)
    forget, holdout = (
        rng.integers(0, 5, (4, 6)).astype(float),
        rng.integers(0, 5, (4, 3)).astype(float),
    )
    together = auc(forget, holdout)
    np.testing.assert_allclose(
        together, [auc(one, other) for one, other in zip(forget, holdout, strict=True)]
    )
