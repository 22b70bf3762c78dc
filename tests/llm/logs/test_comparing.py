"""Two models on the same questions: what is drawn together, and what an interval is worth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from llm.intervals import resample
from llm.logs.comparing import COLUMNS, differences, distance_difference, utility_difference
from llm.logs.log import Answers, EvaluationLog, log_truth_ratio, take
from llm.logs.measures import (
    MEASURES,
    REPLICATES,
    TofuLogs,
    draws_of,
    example_values,
    forget_quality,
    model_utility,
)
from markov.errors import InvalidInput
from tests.llm.logs.test_measures import random_log


def of(ratio: np.ndarray) -> EvaluationLog:
    """A log whose log truth ratios are these."""
    count = len(ratio)
    kinds = (np.ones(count), ratio + 5.0, np.full((count, 1), 5.0))
    gold, paraphrased, wrong = (Answers(losses, None, None) for losses in kinds)
    return EvaluationLog("model", "scored", np.arange(count), gold, paraphrased, wrong)


def logs_of(seed: int) -> TofuLogs:
    return TofuLogs(*(random_log(10 * seed + task, 30) for task in range(4)))


def test_differences_are_those_of_two_models_and_turn_with_them():
    models = {name: logs_of(seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    retrained = random_log(77, 30)
    table = differences(models, retrained)
    assert tuple(table.columns) == COLUMNS and len(table) == 12
    assert not table.duplicated(["model", "other", "measure"]).any()
    for (name, other), own in table.groupby(["model", "other"]):
        pair = models[str(name)], models[str(other)]
        value = own.set_index("measure")["value"]
        statistic = [forget_quality(one.of("forget"), retrained).statistic for one in pair]
        kept = [example_values(one.of("retain"), "retain", "probability").mean() for one in pair]
        for measure, both in (
            ("ks_statistic", statistic),
            ("model_utility", [model_utility(one) for one in pair]),
            ("retain_probability", kept),
            (
                "extraction_strength",
                [one.of("forget").memorised["extraction_strength"].mean() for one in pair],
            ),
        ):
            assert value[measure] == pytest.approx(both[0] - both[1])
    turned = differences({name: models[name] for name in "ba"}, retrained).set_index("measure")
    first = table[(table["model"] == "a") & (table["other"] == "b")].set_index("measure")
    for column, back in (("value", "value"), ("low", "high"), ("high", "low")):
        assert (-turned[column]).to_numpy() == pytest.approx(first[back].to_numpy())
    same = differences({"a": models["a"], "b": models["a"]}, retrained)
    assert (same[["value", "low", "high"]] == 0).all(axis=None)


def test_what_the_logs_do_not_tell_is_left_out():
    whole = logs_of(1)
    few = TofuLogs(forget=whole.forget, retain=whole.retain)
    bare = few._replace(forget=random_log(1, 30)._replace(perturbed=None))
    told = ["ks_statistic", "extraction_strength", "retain_probability"]
    unmemorised = few._replace(forget=few.of("forget")._replace(memorised={}))
    for pair in ((few, unmemorised), (unmemorised, few)):
        found = differences(dict(zip("ab", pair, strict=True)), whole.of("forget"))
        assert found["measure"].tolist() == [told[0], told[2]]
    assert differences({"a": few, "b": few}, whole.of("forget"))["measure"].tolist() == told
    assert differences({"a": few, "b": few})["measure"].tolist() == told[1:]
    assert differences({"a": bare, "b": bare}, whole.of("forget"))["measure"].tolist() == told[1:]
    assert tuple(differences({"a": whole}).columns) == COLUMNS and differences({"a": whole}).empty
    other = whole._replace(retain=take(whole.of("retain"), range(20)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput):
        differences({"a": whole, "b": other})


def test_the_answers_of_all_three_models_are_drawn_together():
    one, other, retrained = (random_log(seed, 25) for seed in (1, 2, 3))
    found = distance_difference(one, other, retrained, seed=4)
    draws = draws_of(25, np.random.default_rng(4))
    assert draws.shape == (REPLICATES, 25) and (draws.sum(axis=1) == 25).all()
    ratios = [log_truth_ratio(log) for log in (one, other, retrained)]
    replicates = []
    for row in draws:
        own, theirs, base = (np.repeat(ratio, row) for ratio in ratios)
        each = (stats.ks_2samp(values, base, method="asymp").statistic for values in (own, theirs))
        replicates.append(next(each) - next(each))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])))
    order = np.random.default_rng(0).permutation(25)
    shuffled = distance_difference(one, take(other, order), take(retrained, order), seed=4)
    assert shuffled == found


def test_utilities_are_compared_question_by_question():
    pair = logs_of(1), logs_of(2)
    value, low, high, count = utility_difference(*pair, seed=5)
    rng, tasks = np.random.default_rng(5), ("retain", "real_authors", "world_facts")
    draws = {task: resample(30, REPLICATES, rng) for task in tasks}
    means = [
        [
            example_values(logs.of(task), task, kind)[draws[task]].mean(axis=1)
            for task in tasks
            for kind in MEASURES
        ]
        for logs in pair
    ]
    apart = stats.hmean(means[0], axis=0) - stats.hmean(means[1], axis=0)
    assert (low, high) == pytest.approx(tuple(np.quantile(apart, [0.025, 0.975])))
    assert low <= value <= high and count == 90


def test_of_models_equally_far_the_difference_of_d_seldom_leaves_out_nothing():
    """Two models whose truth ratios lie as far from the retrained one's: both, one, or none of them
    answer by answer.
    """
    rng, rejected = np.random.default_rng(0), []
    for far, *shared in itertools.product((0.3, 0.7), (0.0, 0.9), (0.0, 0.9)):
        for _ in range(15):
            common = rng.normal(size=60)
            first, second = (
                of(far + np.sqrt(one) * common + np.sqrt(1 - one) * rng.normal(size=60))
                for one in shared
            )
            found = distance_difference(first, second, of(common))
            rejected.append(not found.low <= 0 <= found.high)
    assert np.mean(rejected) <= 0.07


def test_a_difference_of_d_is_found_where_two_intervals_overlap():
    rng = np.random.default_rng(1)
    common, told = rng.normal(size=60), 0
    for _ in range(10):
        noise = [common + 0.3 * rng.normal(size=60) for _ in range(3)]
        found = distance_difference(
            *(of(mean + one) for mean, one in zip((0.8, 0.3, 0), noise, strict=True))
        )
        told += found.low > 0
    assert told >= 8
