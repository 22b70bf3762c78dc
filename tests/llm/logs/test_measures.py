"""TOFU's measures: equal to what is computed by hand, free of what does not matter, and golden
on real logs.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.__main__ import cli
from llm.data import tofu
from llm.data.authors.corpus import Authors
from llm.data.splits import checked, retain_word, split_of, tofu_sets
from llm.data.tofu import Example
from llm.evaluation.rouge import rouge
from llm.evaluation.tofu import empty_generations, evaluate, task_log
from llm.jobs.evaluating import read_tofu_logs
from llm.logs.log import MEMORISED, Answers, EvaluationLog, take, truth_ratio
from llm.logs.measures import (
    MEASURES,
    REPLICATES,
    TIE,
    UTILITY_TASKS,
    VARIANTS,
    TofuLogs,
    authors_of,
    check_variant,
    exact_log10_p,
    example_values,
    forget_quality,
    harmonic_mean,
    measures,
    model_utility,
    ranks_test,
    resampled_statistics,
    tied_ranks,
)
from llm.logs.reading import TASKS, read_log
from llm.logs.summaries import latex, long_table, markdown, summary
from llm.logs.writing import SUMMARY, write_legacy, write_tofu_eval
from llm.models.generation import generate
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.small_authors import DefaultModels, build
from llm.scoring.templates import CHAT
from markov.errors import InvalidInput
from tests.llm.scoring.test_encoding import by_bytes
from tests.llm.scoring.test_scoring import roughen

REAL = os.environ.get("SIMNPO_LAB_TOFU")
LN2 = float(np.log(2))


def answers(average: Any) -> Answers:
    values = np.asarray(average, dtype=float)
    length = np.full(values.shape, 5.0)
    return Answers(values, values * length, length)


def log_of(
    gold: Any, paraphrased: Any, perturbed: Any, rouge_l: Any = None, file: str = "made"
) -> EvaluationLog:
    count = len(gold)
    found = (
        {}
        if rouge_l is None
        else {"rouge1_recall": np.asarray(rouge_l), "rougeL_recall": np.asarray(rouge_l)}
    )
    return EvaluationLog(
        file=file,
        layout="made",
        index=np.arange(count),
        gold=answers(gold),
        paraphrased=None if paraphrased is None else answers(paraphrased),
        perturbed=None if perturbed is None else answers(perturbed),
        rouge=found,
        question=tuple(f"question {row}?" for row in range(count)),
        generation=tuple(f"generation {row}" for row in range(count)),
        answer=tuple(f"answer {row}" for row in range(count)),
    )


def random_log(seed: int, count: int = 30, wrong: int = 5) -> EvaluationLog:
    rng = np.random.default_rng(seed)
    return log_of(
        rng.uniform(0.1, 3, count),
        rng.uniform(0.1, 3, count),
        rng.uniform(0.1, 3, (count, wrong)),
        rng.uniform(0, 1, count),
        f"log {seed}",
    )._replace(memorised={kind: rng.uniform(0, 1, count) for kind in MEMORISED})


def all_logs(seed: int = 0) -> TofuLogs:
    facts = [random_log(seed + place, 20, 3)._replace(paraphrased=None) for place in (3, 4)]
    return TofuLogs(random_log(seed + 1), random_log(seed + 2, 40), *facts)


def by_ratio(ratios: Any) -> EvaluationLog:
    """A log with these truth ratios, at least 1: R = exp(paraphrase - wrong), wrong answers
    being certain.
    """
    loss = np.log(np.asarray(ratios, dtype=float))
    return log_of(np.ones(len(loss)), loss, np.zeros((len(loss), 2)))


# Right answers of probability 1/2 and 1/4 per token, a paraphrase of 1/2, wrong answers of 1/8 and
# 1/2.
HAND = log_of([LN2, 2 * LN2], [LN2, LN2], [[3 * LN2, LN2], [3 * LN2, LN2]], [0.5, 1.0])


def test_a_set_made_by_hand_measures_as_computed_by_hand() -> None:
    # Probability: 1/2 and 1/4. Beside wrong answers of 1/8 and 1/2: 4/9, and (1/4)/(1/4 + 5/8) =
    # 2/7.
    assert example_values(HAND, "retain", "probability").tolist() == pytest.approx([1 / 2, 1 / 4])
    assert example_values(HAND, "forget", "probability").tolist() == pytest.approx([1 / 2, 1 / 4])
    assert example_values(HAND, "real_authors", "probability").tolist() == pytest.approx(
        [4 / 9, 2 / 7]
    )
    # The geometric mean of the wrong is 1/4 and R = 1/2; the arithmetic one is 5/16 and R = 5/8.
    assert example_values(HAND, "retain", "truth_ratio").tolist() == pytest.approx([0.5, 0.5])
    assert example_values(HAND, "retain", "truth_ratio", "arithmetic").tolist() == pytest.approx(
        [3 / 8, 3 / 8]
    )
    assert example_values(HAND, "forget", "truth_ratio", "arithmetic").tolist() == pytest.approx(
        [5 / 8, 5 / 8]
    )
    # Without a paraphrase the answer itself: R = (1/4)/(1/2) and (1/4)/(1/4), a utility of 1/2 and
    # 0.
    bare = HAND._replace(paraphrased=None)
    assert example_values(bare, "world_facts", "truth_ratio").tolist() == pytest.approx([0.5, 0])
    assert example_values(HAND, "retain", "rouge").tolist() == [0.5, 1.0]
    # R = 4 (wrong answers likelier): utility 0, forget 1/4.
    odd = log_of([LN2], [2 * LN2], [[0.0, 0.0]])
    assert example_values(odd, "retain", "truth_ratio").tolist() == [0]
    assert example_values(odd, "forget", "truth_ratio").tolist() == pytest.approx([1 / 4])


def test_model_utility_is_the_harmonic_mean_of_the_nine_and_zero_if_one_is() -> None:
    logs = TofuLogs(None, HAND, HAND, HAND._replace(paraphrased=None))
    # retain 3/8, 3/4, 1/2; real authors 23/63, 3/4, 1/2; world facts 23/63, 3/4, 1/4.
    nine = [3 / 8, 3 / 4, 1 / 2, 23 / 63, 3 / 4, 1 / 2, 23 / 63, 3 / 4, 1 / 4]
    assert model_utility(logs) == pytest.approx(9 / sum(1 / value for value in nine))
    table = measures(logs).set_index(["measure", "task"])["value"]
    assert table["model_utility", "all"] == pytest.approx(model_utility(logs))
    silent = HAND._replace(rouge={"rougeL_recall": np.zeros(2)})
    assert model_utility(logs._replace(retain=silent)) == 0
    assert harmonic_mean(np.array([[1.0, 0.0], [0.5, 0.25]])).tolist() == pytest.approx([0, 1 / 3])
    with pytest.raises(InvalidInput, match="world_facts"):
        model_utility(logs._replace(world_facts=None))


def test_forget_quality_is_the_largest_distance_of_two_distribution_functions() -> None:
    # Behind 3 all of the first and one of four of the second have passed: D = 1 - 1/4. Equal
    # counts: 2 of 4 and 0 of 4.
    same = forget_quality(by_ratio([1, 2, 3, 9]), by_ratio([4, 5, 6, 7]))
    assert same.statistic == pytest.approx(0.75) and (same.examples, same.retrained_examples) == (
        4,
        4,
    )
    # Of the 70 ways to choose 4 of 8 ranks, those with D >= 3/4: 16 (a lattice path that leaves |i
    # - j| < 3).
    assert (
        same.p_value == pytest.approx(16 / 70)
        and same.method == "exact"
        and same.variant == "geometric"
    )


@pytest.mark.parametrize(
    ("steps", "p"), [(4, 0.99), (7, 0.579), (10, 0.165), (14, 0.0143), (17, 0.00127)]
)
def test_forty_examples_have_the_p_values_that_published_tables_repeat(
    steps: int, p: float
) -> None:
    ranks = np.arange(1.0, 41)
    found = forget_quality(
        by_ratio(ranks), by_ratio(np.concatenate([ranks[steps:], 41 + np.arange(steps)]))
    )
    assert found.statistic == pytest.approx(steps / 40)
    assert found.p_value == pytest.approx(p, rel=0.01)


seeds = st.integers(0, 10**6)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, variant=st.sampled_from(VARIANTS))
def test_a_log_with_itself_has_quality_one_and_order_does_not_matter(
    seed: int, variant: str
) -> None:
    one, other = random_log(seed), random_log(seed + 1)
    assert forget_quality(one, one, variant=variant)[:3] == (1.0, 0.0, 0.0)
    found = forget_quality(one, other, variant=variant)
    shuffled = take(other, np.random.default_rng(seed).permutation(30))
    assert forget_quality(one, shuffled, variant=variant) == found
    own, theirs = (truth_ratio(log, variant) for log in (one, other))
    assert found.statistic == pytest.approx(stats.ks_2samp(own, theirs).statistic)
    assert found.log10_p == pytest.approx(np.log10(found.p_value))


@given(seed=seeds)
def test_turning_the_ratio_over_changes_nothing_about_the_test(seed: int) -> None:
    one, other = random_log(seed, wrong=1), random_log(seed + 1, wrong=1)
    over = [
        log._replace(
            paraphrased=answers(log.perturbed.average[:, 0]),
            perturbed=answers(log.paraphrased.average[:, None]),
        )
        for log in (one, other)
        if log.perturbed is not None and log.paraphrased is not None
    ]
    assert forget_quality(*over).statistic == pytest.approx(forget_quality(one, other).statistic)
    before, after = (example_values(log, "forget", "truth_ratio") for log in (one, over[0]))
    np.testing.assert_allclose(before, after)


def test_a_p_value_below_the_smallest_number_still_has_an_exact_logarithm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [by_ratio(np.linspace(start, start + 1, 3000)) for start in (1, 3)]
    found = forget_quality(*logs)
    assert found.statistic == 1 and found.p_value < 1e-300 and found.method == "exact"
    # Of the C(6000, 3000) orders two have one model's values before all of the other's.
    assert found.log10_p == pytest.approx(
        math.log10(2) - math.log10(math.comb(6000, 3000)), rel=1e-12
    )
    assert found.log10_p == pytest.approx(-1803.8918, abs=1e-4)
    for name, log in zip(("a", "b"), logs, strict=True):
        write_tofu_eval(TofuLogs(forget=log), tmp_path / name, {})
    out, _ = printed(capsys, "--logs", tmp_path / "a", "--retrained-logs", tmp_path / "b")
    assert "1e-1804" in out


@pytest.mark.parametrize("count", range(1, 7))
def test_the_exact_logarithm_counts_the_orders_that_are_at_least_as_far_apart(count: int) -> None:
    farthest = Counter()
    for ranks in itertools.combinations(range(2 * count), count):
        steps = np.cumsum(np.where(np.isin(np.arange(2 * count), ranks), 1, -1))
        farthest[int(np.abs(steps).max())] += 1
    for steps in range(1, count + 1):
        share = Fraction(
            sum(many for far, many in farthest.items() if far >= steps), math.comb(2 * count, count)
        )
        assert exact_log10_p(count, steps) == pytest.approx(math.log10(share), abs=1e-12)
    for beyond in (0, count + 1):
        with pytest.raises(InvalidInput, match="steps"):
            exact_log10_p(count, beyond)


@pytest.mark.parametrize(("count", "steps"), [(40, 17), (300, 114), (300, 299), (800, 400)])
def test_the_exact_logarithm_is_that_of_scipys_p_where_floats_hold_it(
    count: int, steps: int
) -> None:
    found = stats.ks_2samp(np.arange(count), np.arange(count) + steps - 0.5, method="exact")
    assert exact_log10_p(count, steps) == pytest.approx(math.log10(found.pvalue), rel=1e-10)  # pyright: ignore[reportAttributeAccessIssue]


def test_models_that_have_collapsed_are_told_apart() -> None:
    """Mean losses of 800 and 900: both ratios are infinite, their logarithms are not."""
    logs = [
        log_of(np.ones(30), np.full(30, loss) + np.arange(30), np.zeros((30, 5)))
        for loss in (800.0, 900.0)
    ]
    found = forget_quality(*logs)
    assert found.statistic == 1 and found.p_value == pytest.approx(2 / math.comb(60, 30))
    table = measures(TofuLogs(forget=logs[0]), logs[1])
    assert table.query("measure == 'ks_statistic'")[
        ["value", "low", "high"]
    ].to_numpy().tolist() == [[1, 1, 1]]
    for log in logs:
        assert set(example_values(log, "retain", "truth_ratio")) == {0.0}
        assert (example_values(log, "forget", "truth_ratio") < 1e-300).all()
    over = log_of(np.ones(30), np.zeros(30), np.full((30, 5), 900.0))
    assert set(example_values(over, "retain", "truth_ratio")) == {1.0}


@given(seed=seeds, variant=st.sampled_from(VARIANTS))
@settings(max_examples=15)
def test_what_only_rounding_tells_apart_is_a_tie(seed: int, variant: str) -> None:
    one = random_log(seed, wrong=5)
    assert one.perturbed is not None and one.paraphrased is not None
    turned = one.perturbed.average[:, np.random.default_rng(seed).permutation(5)]
    shift = 0.1 * (seed % 7)
    moved = one._replace(
        paraphrased=answers(one.paraphrased.average + shift), perturbed=answers(turned + shift)
    )  # the same ratios but for the rounding of sums
    assert forget_quality(one, moved, variant=variant)[:3] == (1.0, 0.0, 0.0)
    apart = one._replace(paraphrased=answers(one.paraphrased.average + 1e-6))
    assert forget_quality(one, apart, variant=variant).statistic > 0


def test_what_is_written_of_a_collapsed_model_is_json(tmp_path: Path) -> None:
    far = log_of(np.ones(3), [800.0, 900.0, 0.0], [[0.0] * 5, [0.0] * 5, [900.0] * 5], [0, 1, 0])
    path = write_tofu_eval(TofuLogs(forget=far), tmp_path / "new", {})
    write_legacy(TofuLogs(forget=far), tmp_path / "old")
    for file in (path, tmp_path / "old" / TASKS["forget"]):
        content = json.loads(
            file.read_text("utf-8"), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
        )
        assert content
    assert forget_quality(read_log(path), far).statistic == 0


def test_identical_logs_are_warned_of_unless_allowed_and_other_examples_refused() -> None:
    one = random_log(1)
    with pytest.warns(UserWarning, match="same losses"):
        forget_quality(one, one, allow_identical=False)
    with pytest.raises(InvalidInput, match="equal counts"):
        forget_quality(one, take(one, range(20)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="question"):
        forget_quality(one, one._replace(question=tuple("abcdefghijklmnopqrstuvwxyzABCD")))
    with pytest.raises(InvalidInput, match="perturbed"):
        forget_quality(one, one._replace(perturbed=None))
    with pytest.raises(InvalidInput, match="variant"):
        forget_quality(one, one, variant="prob_mean")


def test_resampled_statistics_are_those_of_resampled_examples() -> None:
    rng = np.random.default_rng(5)
    # with ties
    one, other = rng.integers(0, 9, 25).astype(float), rng.integers(2, 12, 17).astype(float)
    got = resampled_statistics(one, other, np.random.default_rng(7))
    again = np.random.default_rng(7)
    first, second = (again.multinomial(n, np.full(n, 1 / n), size=REPLICATES) for n in (25, 17))
    for row in range(20):
        pair = (np.repeat(one, first[row]), np.repeat(other, second[row]))
        assert got[row] == pytest.approx(stats.ks_2samp(*pair, method="asymp").statistic)


Drawn = Callable[[np.ndarray], np.ndarray]


def slow_draw(log: EvaluationLog, task: str, rng: np.random.Generator, per: int | None) -> Drawn:
    """What gives the mean of each resample, one after the other; the same resamples every time."""
    count = len(log.index)
    if per is None or task not in ("forget", "retain"):
        rows = rng.integers(count, size=(REPLICATES, count))
        return lambda values: np.array([values[own].mean() for own in rows])
    authors = log.index // per
    names = sorted(set(authors))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=REPLICATES)
    lists = [np.repeat(names, own) for own in drawn]
    rows = [np.concatenate([np.flatnonzero(authors == name) for name in own]) for own in lists]
    return lambda values: np.array([values[own].mean() for own in rows])


def slow_counts(log: EvaluationLog, rng: np.random.Generator, per: int | None) -> np.ndarray:
    """How often each example is drawn in each resample."""
    count = len(log.index)
    if per is None:
        return rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES)
    names, place = np.unique(log.index // per, return_inverse=True)
    each = np.full(len(names), 1 / len(names))
    return rng.multinomial(len(names), each, size=REPLICATES)[:, place]


def slow_row(drawn: np.ndarray) -> list[float]:
    return [float(np.quantile(drawn, share)) for share in (0.025, 0.975)]


def slow_measures(
    logs: TofuLogs, retrained: EvaluationLog, variant: str, per: int | None, seed: int
) -> pd.DataFrame:
    rng, rows, nine = np.random.default_rng(seed), [], []
    units = "examples" if per is None else "authors"
    for task, log in logs._asdict().items():
        draw = slow_draw(log, task, rng, per)
        own_kinds = ("paraphrased_probability",) if task in ("forget", "retain") else ()
        for kind in (*MEASURES, *own_kinds, "exact_memorization", "extraction_strength"):
            values = example_values(log, task, kind, variant)
            drawn = draw(values)
            known = units if task in ("forget", "retain") else "examples"
            rows.append([kind, task, values.mean(), *slow_row(drawn), len(values), known])
            if task != "forget" and kind in MEASURES:
                nine.append((values.mean(), drawn))
    value = 9 / sum(1 / mean for mean, _ in nine)
    with np.errstate(divide="ignore"):  # of some resamples no value is above 0
        utility = 9 / np.sum([1 / drawn for _, drawn in nine], axis=0)
    count = sum(len(log.index) for task, log in logs._asdict().items() if task != "forget")
    rows.append(["model_utility", "all", value, *slow_row(utility), count, units])
    forget = logs.of("forget")
    own, other = (truth_ratio(log, variant) for log in (forget, retrained))
    found: Any = stats.ks_2samp(own, other, method="exact")
    nothing = [math.nan, math.nan]
    rows.append(["forget_quality", "forget", found.pvalue, *nothing, len(forget.index), "examples"])
    draws = [slow_counts(log, rng, per) for log in (forget, retrained)]
    every = []
    for pair in zip(*draws, strict=True):
        one, two = (
            np.repeat(values, times) for values, times in zip((own, other), pair, strict=True)
        )
        grid = np.concatenate([one, two])
        passed = ((values[:, None] <= grid).mean(0) for values in (one, two))
        every.append(np.abs(np.subtract(*passed)).max())
    distance = ["ks_statistic", "forget", found.statistic, *slow_row(np.array(every))]
    rows.append([*distance, len(forget.index), units])
    names = ["measure", "task", "value", "low", "high", "examples", "drawn"]
    return pd.DataFrame(rows, columns=names).assign(variant=variant)


@pytest.mark.parametrize(("variant", "per"), [("geometric", None), ("arithmetic", 3)])
def test_every_row_of_the_table_is_that_of_resamples_taken_one_by_one(
    variant: str, per: int | None
) -> None:
    # The retrained model's log is in another order, in which other places are of one author.
    logs, retrained = all_logs(), take(random_log(9), np.random.default_rng(2).permutation(30))
    found = measures(logs, retrained, variant=variant, per_author=per, seed=4)
    expected = slow_measures(logs, retrained, variant, per, seed=4)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)
    if per is None:
        plain = slow_measures(logs, retrained, "geometric", None, seed=0)
        pd.testing.assert_frame_equal(measures(logs, retrained), plain, rtol=1e-9)


def refusal(call: Callable[[], object]) -> tuple[str, object, str]:
    """The field, the value and what is allowed, as the error has them."""
    with pytest.raises(InvalidInput) as caught:
        call()
    return caught.value.field, caught.value.value, caught.value.allowed


def test_what_is_missing_is_told_with_where_it_is_looked_for() -> None:
    logs = TofuLogs(retain=HAND, world_facts=HAND)
    needed = "logs of forget too, which this measure needs"
    assert refusal(lambda: logs.of("forget")) == ("logs", "retain, world_facts", needed)
    assert refusal(lambda: TofuLogs().of("forget")) == ("logs", "none", needed)
    assert refusal(lambda: check_variant("mean")) == (
        "variant",
        "mean",
        "one of geometric, arithmetic",
    )
    silent = HAND._replace(rouge={"rouge1_recall": np.zeros(2)}, perturbed=None)
    assert refusal(lambda: example_values(silent, "retain", "rouge")) == (
        "rougeL_recall",
        None,
        "generated answers in made",
    )
    for task, kind in (("retain", "truth_ratio"), ("real_authors", "probability")):
        told = ("perturbed", None, f"losses of perturbed answers of {task} in made")
        assert refusal(lambda task=task, kind=kind: example_values(silent, task, kind)) == told
    assert refusal(lambda: exact_log10_p(3, 4)) == ("steps", 4, "a whole number from 1 to 3")
    for call in (
        lambda: measures(logs, per_author=0),
        lambda: measures(TofuLogs(), per_author=0),
    ):
        assert refusal(call) == ("per_author", 0, "a whole number of at least 1")
    for call in (
        lambda: measures(TofuLogs(), variant="mean"),
        lambda: model_utility(TofuLogs(), "mean"),
        lambda: forget_quality(HAND, HAND, variant="mean"),
    ):
        assert refusal(call)[:2] == ("variant", "mean")
    assert refusal(lambda: measures(logs, HAND))[:2] == ("logs", "retain, world_facts")


def test_a_model_beside_its_own_log_is_warned_of_in_the_table_too() -> None:
    logs = all_logs()
    with pytest.warns(UserWarning, match="same losses"):
        measures(logs, logs.forget, allow_identical=False)
    found = measures(logs, logs.forget).set_index("measure")["value"]
    assert (found["forget_quality"], found["ks_statistic"]) == (1, 0)


def test_values_closer_than_a_billionth_of_the_largest_share_a_rank() -> None:
    own, other = tied_ranks(np.array([5.0, -1.0, 2.0]), np.array([2.0, 3.0, 3.0, 9.0]))
    assert own.tolist() == [4, 1, 2] and other.tolist() == [2, 3, 3, 5]
    for largest, scale in ((0.5, 1.0), (300.0, 300.0), (-300.0, 300.0)):
        for factor, ranks in ((0.9, 1), (1.1, 2)):
            pair = np.array([0.25, 0.25 + factor * TIE * scale])
            found = set(tied_ranks(pair, np.array([largest]))[0].tolist())
            assert len(found) == ranks


def test_authors_are_numbered_by_the_index_where_there_are_enough_of_them() -> None:
    log = random_log(1)._replace(index=np.arange(30)[::-1])
    found = authors_of(log, "retain", 3)  # ten authors, no fewer than are asked for
    assert found is not None and found.tolist() == [row // 3 for row in range(29, -1, -1)]
    assert authors_of(log, "forget", 4) is None  # eight
    assert authors_of(log, "world_facts", 3) is None and authors_of(log, "retain", None) is None


def test_of_very_many_examples_the_test_is_that_of_kolmogorovs_limit() -> None:
    counts = 50_000, 49_999  # more pairs than scipy counts
    own, other = (np.arange(count, dtype=float) for count in counts)
    found = ranks_test(own, other + 500.25, "arithmetic")
    want: Any = stats.ks_2samp(own, other + 500.25, method="asymp")
    assert (found.p_value, found.statistic) == (want.pvalue, want.statistic)
    assert found.log10_p == pytest.approx(math.log10(want.pvalue))
    assert found[3:] == (*counts, "arithmetic", "asymp")
    # All apart: below the smallest float the first term of the series is all there is.
    apart = ranks_test(own, other + 10**6)
    effective = counts[0] * counts[1] / sum(counts)
    assert (apart.p_value, apart.statistic, apart.method) == (0, 1, "asymp")
    assert apart.log10_p == pytest.approx((math.log(2) - 2 * effective) / math.log(10))
    assert apart.variant == "geometric"
    # D = 1 - 5000 / 49999: of the second sample so many lie within the first.
    most = ranks_test(own, other + 45_000)
    assert most.p_value == 0 and most.statistic == pytest.approx(0.9, abs=1e-4)
    exponent = -2 * effective * most.statistic**2
    assert most.log10_p == pytest.approx((math.log(2) + exponent) / math.log(10), rel=1e-9)


def test_of_unequal_counts_a_p_too_small_for_floats_is_that_of_the_limit() -> None:
    found = ranks_test(np.arange(2000.0), np.arange(1999.0) + 5000)
    assert (found.statistic, found.method) == (1, "asymp")
    effective = 2000 * 1999 / 3999
    assert found.log10_p == pytest.approx((math.log(2) - 2 * effective) / math.log(10))


def test_intervals_of_means_are_as_wide_as_their_standard_errors_say() -> None:
    logs = TofuLogs(retain=random_log(3, 400))
    rows: dict[str, Any] = {row["measure"]: row for row in measures(logs).to_dict("records")}
    for kind in MEASURES:
        values, row = example_values(logs.of("retain"), "retain", kind), rows[kind]
        error = values.std() / 20
        assert row["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
        assert row["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    pd.testing.assert_frame_equal(measures(logs), measures(logs))
    assert not measures(logs, seed=1).equals(measures(logs))


def test_a_variant_is_that_of_every_measure_that_has_one() -> None:
    logs = all_logs()
    found = [
        example_values(logs.of(task), task, kind, "arithmetic").mean()
        for task in UTILITY_TASKS
        for kind in MEASURES
    ]
    utility = model_utility(logs, "arithmetic")
    assert utility == pytest.approx(9 / sum(1 / value for value in found))
    assert utility != pytest.approx(model_utility(logs))
    own = forget_quality(logs.of("forget"), random_log(9), variant="arithmetic")
    assert own.variant == "arithmetic"
    one, other = (truth_ratio(log, "arithmetic") for log in (logs.of("forget"), random_log(9)))
    assert own.statistic == pytest.approx(stats.ks_2samp(one, other).statistic)


def test_a_measure_that_a_log_does_not_allow_hides_no_other() -> None:
    log = random_log(1)
    whole = [*MEASURES, "paraphrased_probability", *MEMORISED]
    for task in ("forget", "retain"):
        for change, lacking in (
            ({}, ()),
            ({"rouge": {}}, ("rouge",)),
            ({"perturbed": None}, ("truth_ratio",)),
            ({"rouge": {}, "perturbed": None}, ("rouge", "truth_ratio")),
            ({"paraphrased": None, "perturbed": None}, ("truth_ratio", "paraphrased_probability")),
            # where no example has a paraphrase the truth stands in its place
            ({"paraphrased": log.gold}, ("paraphrased_probability",)),
            ({"memorised": {}}, MEMORISED),
            ({"memorised": {MEMORISED[0]: log.memorised[MEMORISED[0]]}}, MEMORISED[1:]),
        ):
            changed = log._replace(**change)
            found = measures(TofuLogs(**{task: changed}))
            assert found["measure"].tolist() == [kind for kind in whole if kind not in lacking]
            assert set(found["task"]) == {task}
            for kind in set(lacking) & {"paraphrased_probability", *MEMORISED}:
                if kind in MEMORISED or changed.paraphrased is None:
                    field, _, told = refusal(partial(example_values, changed, task, kind))
                    assert field == ("paraphrased" if kind == "paraphrased_probability" else kind)
                    assert told.endswith("in log 1")
    facts = measures(TofuLogs(world_facts=log._replace(perturbed=None)))
    assert facts["measure"].tolist() == ["rouge", *MEMORISED]


def test_measures_are_those_that_the_logs_allow() -> None:
    logs = all_logs()
    whole = measures(logs, random_log(9))
    assert len(whole) == 25 and set(whole["variant"]) == {"geometric"}
    utility = whole[whole["measure"] == "model_utility"]
    low, value, high = (utility[name].item() for name in ("low", "value", "high"))
    assert low < value < high
    silent = logs.of("forget")._replace(rouge={}, perturbed=None, paraphrased=None, memorised={})
    assert measures(TofuLogs(silent))["measure"].tolist() == ["probability"]
    bare = logs._replace(world_facts=logs.of("world_facts")._replace(perturbed=None))
    assert "model_utility" not in set(measures(bare)["measure"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_read_back(tmp_path: Path, variant: str) -> None:
    logs = all_logs()
    path = write_tofu_eval(
        logs, tmp_path / "new", {"model": "m"}, variant=variant, aggregates={"model_utility": 0.5}
    )
    write_legacy(logs, tmp_path / "old")
    for folder in ("new", "old"):
        for task, log in logs._asdict().items():
            got = read_log(tmp_path / folder, task)
            for kind in ("gold", "paraphrased", "perturbed"):
                one, two = getattr(log, kind), getattr(got, kind)
                if kind == "paraphrased" and one is None:
                    continue
                for mine, theirs in zip(one, two, strict=True):
                    np.testing.assert_allclose(mine, theirs, rtol=1e-12)
            assert (
                got.question == log.question
                and got.generation == log.generation
                and got.answer == log.answer
            )
            np.testing.assert_allclose(got.rouge["rougeL_recall"], log.rouge["rougeL_recall"])
            assert {kind: values.tolist() for kind, values in got.memorised.items()} == {
                kind: values.tolist() for kind, values in log.memorised.items()
            }
            assert got.prompt == (log.prompt or log.question)
        assert model_utility(read_tofu_logs(tmp_path / folder), variant) == pytest.approx(
            model_utility(logs, variant)
        )
    content, means = json.loads(path.read_text()), json.loads((path.parent / SUMMARY).read_text())
    assert (
        content["manifest"].items() >= {"model": "m", "truth_ratio": variant}.items()
        and means["model_utility"] == 0.5
    )
    for kind in MEMORISED:  # as open-unlearning calls those of the forget set
        values = logs.of("forget").memorised[kind]
        assert content[kind]["value_by_index"]["3"] == {"score": values[3]}
        assert means[kind] == pytest.approx(values.mean()) and f"ra_{kind}" in means
    score = content["forget_truth_ratio"]["value_by_index"]["3"]["score"]
    assert score == pytest.approx(truth_ratio(logs.of("forget"), variant)[3])
    assert means["retain_Truth_Ratio"] == pytest.approx(
        example_values(logs.of("retain"), "retain", "truth_ratio", variant).mean()
    )
    merged = json.loads((tmp_path / "old" / "eval_log_aggregated.json").read_text())
    assert set(merged) == set(TASKS.values())


def test_the_summary_has_the_papers_columns_and_survives_markdown_and_latex() -> None:
    models = {"SimNPO": all_logs(), "retrained_50%": all_logs(20)}
    frame = summary(long_table(models, models["retrained_50%"].forget, variant="geometric"))
    assert list(frame.index) == list(models) and frame.shape == (2, 17)
    for model, logs in models.items():
        want = logs.of("forget").memorised["extraction_strength"].mean()
        assert frame.loc[model, ("", "ES")] == pytest.approx(want)
    assert frame.loc["SimNPO", ("Retain", "Prob.")] == pytest.approx(
        example_values(models["SimNPO"].of("retain"), "retain", "probability").mean()
    )
    assert frame.loc["retrained_50%", ("", "FQ")] == 1 and frame.loc["SimNPO", ("", "n")] == 30
    rows = markdown(frame).splitlines()
    assert len(rows) == 4 and all(row.count("|") == 19 for row in rows)
    text = latex(frame)
    assert (
        r"retrained\_50\%" in text
        and text.count(r"\\") == 4
        and r"\multicolumn{3}{c}{Real authors}" in text
    )
    unmemorised = TofuLogs(random_log(1)._replace(memorised={}))
    partial = summary(long_table({"a": unmemorised}, None, variant="geometric"))
    assert np.isnan(partial.loc["a", ("", "ES")])  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert "-" in markdown(partial).splitlines()[-1] and np.isnan(partial.loc["a", ("", "MU")])  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize(
    ("word", "source", "name", "retain"),
    [
        ("tofu:forget05", "tofu", "forget05", "tofu:retain95"),
        ("authors:forget01", "authors", "forget01", "authors:retain99"),
        ("some/where/forget10_perturbed.json", "some/where", "forget10", "some/where/retain90"),
        ("authors:forget05:3", "authors", "forget05", "authors:retain95:3"),
        ("forget10", ".", "forget10", "retain90"),
    ],
)
def test_a_forget_split_says_what_to_measure_by(
    word: str, source: str, name: str, retain: str
) -> None:
    assert split_of(word)[:2] == (source, name) and retain_word(word) == retain


@pytest.mark.parametrize("word", ["tofu:retain90", "authors:forget", "some.json", "forget00"])
def test_what_is_no_forget_split_is_refused(word: str) -> None:
    with pytest.raises(InvalidInput, match="data"):
        split_of(word)


FEW = Authors(authors=4, questions=2)


def test_the_generated_sets_are_measured_by_themselves() -> None:
    sets = tofu_sets("authors:forget10", authors=FEW)
    assert [len(one) for one in sets] == [2, 2, 60, 60]
    assert sets == tofu_sets("authors:forget10", authors=FEW)
    bare = sets._replace(
        retain=tuple(one.__class__(index=7, prompt="a", response="b") for one in sets.retain)
    )
    with pytest.raises(InvalidInput, match="perturbed"):
        checked(bare)


def test_a_model_is_measured_by_what_it_scores_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path))
    tiny = DefaultModels(
        authors=FEW, percent=50, width=8, depth=1, heads=2, mlp_width=8, vocabulary=300, passes=1
    )
    language = build(tiny, "original", progress=False)
    sets = tofu_sets("authors:forget10", authors=FEW)
    sets = sets._replace(real_authors=sets.real_authors[:5], world_facts=sets.world_facts[:4])
    logs = evaluate(language, sets, max_new_tokens=6, progress=False)
    written = generate(language, sets.forget, max_new_tokens=6, progress=False)
    assert logs.of("forget").generation == written
    expected = rouge([one.response for one in sets.forget], written)["rougeL_recall"]
    assert logs.of("forget").rouge["rougeL_recall"].tolist() == expected.tolist()
    assert 0 <= model_utility(logs) < 1 and [
        len(logs.of(task).index) for task in UTILITY_TASKS
    ] == [2, 5, 4]
    assert set(empty_generations(logs)) == set(TofuLogs._fields)
    muted = logs._replace(retain=logs.of("retain")._replace(generation=(" ", "a")))
    assert empty_generations(muted)["retain"] == 1


@pytest.fixture(scope="module")
def sayers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny chat model in a folder, and its log as other codes write it: prompts, means, and no
    counts.
    """
    import transformers

    folder = tmp_path_factory.mktemp("sayers")
    tokenizer = by_bytes(words=True)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
    )
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, **sizes
    )
    model = roughen(transformers.LlamaForCausalLM(config)).eval()
    language = LanguageModel(model=model, tokenizer=tokenizer, template=CHAT, name="sayer")
    save(language, folder / "model", {})
    rows = [
        Example(
            index=row,
            prompt=f"Who  is Ünal {row}?",
            response=f"I say that it is the keeper of ferry {row}.",
        )
        for row in range(4)
    ]
    rows = [
        replace(one, paraphrase=f"It is {one.response}", perturbed=("Nobody.", "Not he."))
        for one in rows
    ]
    for name in (
        "forget10_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ):
        tofu.write(rows, folder / "data" / f"{name}.json")
    log = task_log(language, rows, max_new_tokens=2, progress=False)
    content = json.loads(
        write_tofu_eval(TofuLogs(forget=log), folder / "own", {}).read_text("utf-8")
    )
    for metric in content.values():
        for entry in metric.get("value_by_index", {}).values() if isinstance(metric, dict) else ():
            for key in ("loss", "num_token", "question"):
                entry.pop(key, None)
            if "input" in entry:
                entry["input"] = unicodedata.normalize("NFD", " ".join(entry["input"].split()))
    (folder / "published.json").write_text(json.dumps(content), "utf-8-sig")
    return folder, folder / "published.json"


def test_a_model_stands_beside_a_published_log_of_the_same_questions(
    sayers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, published = sayers
    log = read_log(published)
    assert log.question is None and log.prompt is not None and "[user] Who is" in log.prompt[0]
    asked = ["--model", folder / "model", "--data", folder / "data" / "forget10", "--device", "cpu"]
    asked += ["--max-new-tokens", 2, "--json"]
    for more in (["--out", tmp_path / "out"], ["--out", tmp_path / "shared", "--shared"]):
        out, err = printed(capsys, *asked, "--retrained-logs", published, *more)
        found = json.loads(out)
        assert (found["ks_statistic"], found["forget_quality"]) == (0, 1) and "templates" not in err
    own = read_log(tmp_path / "out", "forget")
    assert (
        own.question is not None and own.question[0] == "Who is Ünal 0?" and own.prompt is not None
    )
    assert own.question[0] in own.prompt[0] != own.question[0]
    # The log that was just written beside the one that others wrote.
    out, _ = printed(
        capsys,
        "--logs",
        tmp_path / "out",
        "--retrained-logs",
        published,
        "--json",
        "--allow-identical",
    )
    assert json.loads(out)["ks_statistic"] == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_log_that_cannot_stand_beside_the_model_is_refused_before_any_is_loaded(
    sayers: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: bool
) -> None:
    folder, published = sayers
    content = json.loads(published.read_text("utf-8-sig"))
    lacking = {name: part for name, part in content.items() if "PERT" not in name}
    for place, entry in enumerate(content["forget_Q_A_ROUGE"]["value_by_index"].values()):
        entry["input"] = f"[user] Where is Tarn {place}? [assistant]"
    # A model that would be refused for its configuration if it were loaded.
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "broken" / name).write_text("{")
    cases = {"0 shared" if shared else "the same question": content, "perturbed = None": lacking}
    for said, changed in cases.items():
        (tmp_path / "other.json").write_text(json.dumps(changed), "utf-8")
        asked = [
            "--model",
            tmp_path / "broken",
            "--data",
            folder / "data" / "forget10",
            "--out",
            tmp_path / "out",
        ]
        more = ["--shared"] if shared else []
        out, err = printed(
            capsys, *asked, "--retrained-logs", tmp_path / "other.json", *more, code=2
        )
        assert out == "" and said in err and err.count("\n") == 1


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, seed in (("own", 0), ("retrained", 30)):
        write_tofu_eval(all_logs(seed), tmp_path / name, {})
    return tmp_path / "own", tmp_path / "retrained"


def printed(
    capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0
) -> tuple[str, str]:
    assert cli(["evaluate", *map(str, arguments)]) == code
    return capsys.readouterr()


def test_logs_are_measured_from_the_command_line(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    own, retrained = folders
    out, _ = printed(capsys, "--logs", own, "--retrained-logs", retrained, "--json")
    found = json.loads(out)
    assert found["model_utility"] == pytest.approx(model_utility(all_logs()))
    expected = forget_quality(all_logs().of("forget"), all_logs(30).of("forget"))
    assert (found["forget_quality"], found["ks_statistic"]) == pytest.approx(
        (expected.p_value, expected.statistic)
    )
    assert found["variant"] == "geometric" and found["examples"]["real_authors"] == 20
    assert {f"{task}_{kind}" for task in UTILITY_TASKS for kind in MEASURES} < found[
        "components"
    ].keys()
    out, _ = printed(capsys, "--logs", own, "--variant", "arithmetic")
    assert "arithmetic" in out and "no forget_quality" in out and "model_utility" in out
    _, err = printed(capsys, "--logs", own, "--retrained-logs", own)
    assert "warning" in err and "same losses" in err
    _, err = printed(capsys, "--logs", own, "--retrained-logs", own, "--allow-identical")
    assert err == ""


def test_what_cannot_be_measured_is_one_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, _ = folders
    write_tofu_eval(
        TofuLogs(take(all_logs().of("forget"), list(range(20)))), tmp_path / "fewer", {}
    )
    (tmp_path / "empty").mkdir()
    bare = all_logs().of("forget")._replace(perturbed=None)
    write_tofu_eval(TofuLogs(bare), tmp_path / "bare", {})
    cases = [
        (["--logs", own, "--retrained-logs", tmp_path / "nowhere"], "nowhere"),
        (["--logs", own, "--retrained-logs", tmp_path / "fewer"], "equal counts"),
        (["--logs", tmp_path / "empty"], "TOFU_EVAL.json"),
        (["--logs", tmp_path / "bare", "--retrained-logs", own], "perturbed"),
        (["--logs", own, "--retrained", "authors:retrained"], "left out"),
        (["--model", "authors:original", "--data", "authors:retain90"], "forgetNN"),
    ]
    for arguments, said in cases:
        out, err = printed(capsys, *arguments, code=2)
        assert out == "" and said in err and err.count("\n") == 1, arguments
    out, _ = printed(capsys, "--logs", own, "--retrained-logs", tmp_path / "fewer", "--shared")
    assert "20 examples" in out


# Of the logs of the paper's own code and of TOFU's: recomputed from the public files when they were
# surveyed.
GOLDEN = {"full": 0.6227, "retain90": 0.6203, "retain95": 0.6176}
NINE = {
    "retain": (0.9898, 0.9822, 0.4719),
    "real_authors": (0.4445, 0.918, 0.5868),
    "world_facts": (0.4187, 0.9088, 0.5468),
}


@pytest.mark.skipif(
    REAL is None, reason="SIMNPO_LAB_TOFU names no folder with the logs of Llama-2-7B"
)
def test_real_logs_have_the_published_measures() -> None:
    logs = {name: read_tofu_logs(Path(str(REAL)) / f"logs/llama2-7b_{name}") for name in GOLDEN}
    for name, value in GOLDEN.items():
        assert model_utility(logs[name]) == pytest.approx(value, abs=5e-5)
        assert round(model_utility(logs[name]), 2) == 0.62
    assert model_utility(logs["retain90"], "arithmetic") == pytest.approx(0.5822, abs=5e-5)
    for task, values in {**NINE, "forget": (0.1436, 0.3984, 0.6694)}.items():
        found = [example_values(logs["retain90"].of(task), task, kind).mean() for kind in MEASURES]
        assert found == pytest.approx(values, abs=5e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quality = forget_quality(logs["full"].of("forget"), logs["retain90"].of("forget"))
    assert quality.statistic == pytest.approx(0.38) and quality.log10_p == pytest.approx(
        -18.96, abs=0.01
    )
    assert forget_quality(logs["retain90"].of("forget"), logs["retain90"].of("forget")).p_value == 1
