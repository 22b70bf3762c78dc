"""Questions about one author are drawn together: intervals are then as wide as they have to be."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import tofu
from llm.data.by_author import PER_AUTHOR, per_author
from llm.data.splits import TofuSets, tofu_sets
from llm.data.tofu import TOFU_ROWS, Example
from llm.intervals import FEWEST_AUTHORS, resample_groups
from llm.jobs.evaluating import Evaluation, evaluate, report
from llm.logs.comparing import differences
from llm.logs.log import Answers
from llm.logs.measures import (
    AUTHORS,
    EXAMPLES,
    TofuLogs,
    authors_of,
    means,
    measures,
    statistics_of,
)
from markov.errors import InvalidInput
from tests.llm.logs.test_measures import random_log

QUESTIONS = 5


def logs_of(seed: int, count: int) -> TofuLogs:
    return TofuLogs(*(random_log(10 * seed + task, count) for task in range(4)))


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 99))
def test_whole_groups_are_drawn_as_many_as_there_are(groups: list[int], seed: int) -> None:
    found = resample_groups(np.array(groups), 100, np.random.default_rng(seed))
    assert found.shape == (100, len(groups))
    names = sorted(set(groups))
    first = [groups.index(name) for name in names]
    assert (found[:, first].sum(axis=1) == len(names)).all()
    for place, name in enumerate(groups):
        assert (found[:, place] == found[:, groups.index(name)]).all()


def test_the_mean_and_d_of_a_resample_are_those_of_its_examples_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([0, 0, 0, 1, 2, 2, 3])  # of unequal sizes
    values, other = rng.normal(size=(2, len(groups)))
    times = resample_groups(groups, 100, np.random.default_rng(1))
    found = means(len(groups), groups, np.random.default_rng(1))(values)
    twin = statistics_of(values, other, times[:100], times[:100][::-1])
    for place, (one, two) in enumerate(zip(times, times[::-1], strict=True)):
        mine, theirs = np.repeat(values, one), np.repeat(other, two)
        # Of 1000 resamples the first hundred are not those of a hundred: the mean is asked below.
        grid = np.concatenate([mine, theirs])
        apart = [abs((mine <= at).mean() - (theirs <= at).mean()) for at in grid]
        assert twin[place] == pytest.approx(max(apart))
    every = resample_groups(groups, 1000, np.random.default_rng(1))
    for place, one in itertools.islice(enumerate(every), 50):
        assert found[place] == pytest.approx(np.repeat(values, one).mean())


def test_where_authors_differ_only_their_interval_holds_the_truth_often_enough() -> None:
    """Half of the variance lies between authors, so that single questions tell too little."""
    rng, held, tried = np.random.default_rng(3), {"authors": 0, "examples": 0}, 120
    groups = np.repeat(np.arange(40), QUESTIONS)
    for _ in range(tried):
        values = rng.normal(size=40)[groups] + rng.normal(size=len(groups))
        for name, own in (("authors", groups), ("examples", None)):
            low, high = np.quantile(means(len(groups), own, rng)(values), (0.025, 0.975))
            held[name] += bool(low < 0 < high)
    assert held["authors"] > 0.88 * tried
    assert held["examples"] < 0.85 * tried


def test_authors_that_are_alike_change_little() -> None:
    logs, retrained = logs_of(1, 200), random_log(99, 200)
    plain = measures(logs, retrained)
    grouped = measures(logs, retrained, per_author=QUESTIONS)
    assert list(plain["value"].dropna()) == list(grouped["value"].dropna())
    width, other = (own["high"] - own["low"] for own in (plain, grouped))
    known = plain["low"].notna()
    assert ((other / width)[known]).between(0.6, 1.6).all()
    # Each question as an author of its own is the bootstrap over questions.
    alone = measures(logs, retrained, per_author=1)
    np.testing.assert_allclose(alone["low"][known], plain["low"][known], atol=0.02)
    again = measures(logs, retrained, per_author=QUESTIONS)
    pd.testing.assert_frame_equal(again, grouped)


def test_what_is_drawn_is_said() -> None:
    logs, retrained = logs_of(2, 200), random_log(98, 200)
    assert set(measures(logs, retrained)["drawn"]) == {EXAMPLES}
    drawn = measures(logs, retrained, per_author=QUESTIONS).set_index(["measure", "task"])["drawn"]
    assert drawn["probability", "forget"] == drawn["rouge", "retain"] == AUTHORS
    assert drawn["ks_statistic", "forget"] == drawn["model_utility", "all"] == AUTHORS
    assert drawn["probability", "world_facts"] == drawn["rouge", "real_authors"] == EXAMPLES
    few = 200 // (FEWEST_AUTHORS - 1) + 1
    assert set(measures(logs, retrained, per_author=few)["drawn"]) == {EXAMPLES}
    frame = measures(logs, retrained, per_author=QUESTIONS)
    text = report(frame, logs, retrained, "geometric")
    assert "over authors and examples" in text
    assert "over examples" in report(frame.drop(columns="drawn"), logs, retrained, "geometric")


def test_a_model_that_is_better_by_author_is_told_with_less_certainty() -> None:
    """A difference that all questions of an author share is one draw, not one for each question."""
    rng, count = np.random.default_rng(5), 200
    logs = logs_of(3, count)
    kept = logs.of("retain")
    shift = 0.3 * rng.normal(size=count // QUESTIONS)[np.arange(count) // QUESTIONS]
    moved = kept._replace(gold=Answers(kept.gold.average + shift, None, None))
    models = {"a": logs, "b": logs._replace(retain=moved)}
    rows: list[Any] = [
        differences(models, per_author=each).set_index("measure").loc["retain_probability"]
        for each in (None, QUESTIONS)
    ]
    plain, grouped = rows
    assert grouped["value"] == pytest.approx(plain["value"])
    assert grouped["high"] - grouped["low"] > 1.3 * (plain["high"] - plain["low"])
    assert differences({"a": logs, "b": logs}, per_author=QUESTIONS)["value"].eq(0).all()


def questions(count: int, wrong: bool = True) -> list[Example]:
    return [
        Example(
            index=row,
            prompt=f"question {row}?",
            response=f"answer {row}",
            perturbed=("other",) if wrong else (),
            paraphrase=f"so {row}" if wrong else None,
        )
        for row in range(count)
    ]


def test_whole_data_are_told_from_parts(tmp_path: Path) -> None:
    made = tofu_sets("authors:forget05")
    assert per_author("authors:forget05", made) == PER_AUTHOR
    assert per_author("authors:forget05", made, retain="mine.json") is None
    authors = [example.author for example in made.forget]
    asked = {(one.author, one.index // PER_AUTHOR) for one in made.forget}
    assert len(asked) == len({*authors})
    rest = {(one.author, one.index // PER_AUTHOR) for one in made.retain}
    assert len(rest) == len({one.author for one in made.retain})
    for forget, retain, found in ((40, 400, PER_AUTHOR), (60, 400, None), (40, 40, None)):
        assert TOFU_ROWS["forget01"] == 40
        folder = tmp_path / f"{forget}_{retain}"
        folder.mkdir()
        names = ("forget01", "forget01_perturbed", "retain_perturbed")
        for name, count in zip(names, (forget, forget, retain), strict=True):
            tofu.write(questions(count), folder / f"{name}.json")
        word = str(folder / "forget01")
        sets = TofuSets(tuple(questions(forget)), tuple(questions(retain)))
        assert per_author(word, sets) == found
    own = tmp_path / "mine.json"
    tofu.write(questions(40), own)
    assert per_author(str(own), TofuSets(tuple(questions(40)))) is None


def test_it_is_asked_for_in_python_and_refused() -> None:
    found = evaluate(logs=logs_of(4, 60), per_author=QUESTIONS, progress=False)
    assert isinstance(found, Evaluation) and AUTHORS in set(found.measures["drawn"])
    assert authors_of(logs_of(4, 60).of("world_facts"), "world_facts", QUESTIONS) is None
    with pytest.raises(InvalidInput, match="per_author"):
        measures(logs_of(4, 30), per_author=0)
    with pytest.raises(InvalidInput, match="per_author"):
        differences({"a": logs_of(4, 30), "b": logs_of(5, 30)}, per_author=0)
