"""Relearning attacks and requests in turn: who is taught, what is recorded, and that what was
told comes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm.__main__ import cli
from llm.data.authors.corpus import Authors
from llm.data.tofu import Example, write
from llm.evaluation.relearning import Relearning, relearn, returns
from llm.logs.log import EvaluationLog, truth_ratio
from llm.models.answers import answer_log, responses
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.small_authors import DefaultModels, build, sets
from llm.training.loop import Optimization
from llm.unlearning.sequential import REQUESTS, by_stage, requests, sequential
from llm.unlearning.unlearn import Unlearning
from markov.errors import InvalidInput
from markov.objectives import gradient_ascent, npo

SMALL = DefaultModels(
    authors=Authors(authors=8, questions=5),
    percent=50,
    width=32,
    depth=1,
    heads=2,
    mlp_width=32,
    vocabulary=300,
    passes=6,
    batch=16,
    precision="float32",
)
FORGET, RETAIN = sets(SMALL)
TEACH = Optimization(epochs=2, batch=2, learning_rate=3e-3, warmup_epochs=0)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("small")))
        yield


@pytest.fixture(scope="module")
def retrained(own_cache: None) -> EvaluationLog:
    return answer_log(build(SMALL, "retrained", progress=False), FORGET, progress=False)


def original() -> LanguageModel:
    return build(SMALL, "original", progress=False)


lengths = st.lists(st.integers(1, 9), min_size=2, max_size=30)


@given(length=lengths, share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_the_share_of_examples_is_taught_the_shortest_or_any(
    length: list[int], share: float, seed: int
) -> None:
    for which in ("shortest", "random"):
        rows = Relearning(which=which, share=share, seed=seed).chosen(length)
        count = min(max(1, math.floor(share * len(length) + 0.5)), len(length) - 1)
        assert (
            len(set(rows)) == count == len(rows)
            and rows == sorted(rows)
            and set(rows) <= set(range(len(length)))
        )
        if which == "shortest":
            assert max(length[row] for row in rows) <= min(
                length[row] for row in set(range(len(length))) - set(rows)
            )


def test_random_examples_follow_from_the_seed_and_take_their_turns() -> None:
    drawn = [Relearning(which="random", seed=seed).chosen([1] * 50) for seed in range(200)]
    assert drawn[3] == Relearning(which="random", seed=3).chosen([1] * 50)
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    # 200 draws of 10 in 50: 40 each, with a standard deviation of sqrt(200 * 0.2 * 0.8) = 5.7.
    assert np.abs(counts - 40).max() < 4 * 5.7 and len({tuple(rows) for rows in drawn}) > 190


@pytest.fixture(scope="module")
def attacked(own_cache: None) -> tuple[LanguageModel, pd.DataFrame]:
    language = build(SMALL, "retrained", progress=False)
    return language, relearn(language, FORGET, Relearning(optimization=TEACH), progress=False)


def test_what_is_taught_comes_back_and_the_model_stays_as_it_was(
    attacked: tuple[LanguageModel, pd.DataFrame],
) -> None:
    language, table = attacked
    assert table["epoch"].unique().tolist() == [0, 1, 2]
    gold = table[table["answer"] == "gold"]
    each = (gold["logp"] / gold["length"]).groupby([gold["relearned"], gold["epoch"]]).mean()
    assert each[True, 2] > each[True, 1] > each[True, 0]
    untouched = build(SMALL, "retrained", progress=False)
    for one, two in zip(language.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(one, two)
    again = relearn(language, FORGET, Relearning(optimization=TEACH), progress=False)
    pd.testing.assert_frame_equal(again, table)
    other = relearn(language, FORGET, Relearning(optimization=TEACH, seed=1), progress=False)
    assert not np.allclose(other["logp"], table["logp"])  # the order of the batches


def test_before_the_first_update_the_table_is_the_models_own_log(
    attacked: tuple[LanguageModel, pd.DataFrame], retrained: EvaluationLog
) -> None:
    _, table = attacked
    first = table[(table["epoch"] == 0) & (table["answer"] == "gold")].sort_values("index")
    np.testing.assert_allclose(first["logp"], -np.asarray(retrained.gold.total), rtol=1e-6)
    encoded = responses(original(), FORGET)
    length = [len(one.tokens) - one.prompt for one in encoded]
    taught = {FORGET[row].index for row in Relearning().chosen(length)}
    assert set(first["index"][first["relearned"]]) == taught and len(taught) == 4


def test_returns_are_as_counted_by_hand(
    attacked: tuple[LanguageModel, pd.DataFrame], retrained: EvaluationLog
) -> None:
    _, table = attacked
    found = returns(table, retrained)
    assert found["epoch"].tolist() == [0, 1, 2]
    # the retrained model itself
    assert found["ks_statistic"][0] == 0 and found["forget_quality"][0] == 1
    last = (
        table[table["epoch"] == 2]
        .pivot(index="index", columns="answer", values=["logp", "length"])
        .sort_index()
    )
    per: Any = last["logp"] / last["length"]
    wrong = per[[name for name in per if str(name).startswith("perturbed")]].mean(axis=1)
    ratio = np.exp(wrong - per["paraphrased"]).to_numpy()
    taught = np.isin(per.index, table["index"][table["relearned"]])
    theirs = truth_ratio(retrained)
    row = found.iloc[2]
    assert row["ks_statistic"] == pytest.approx(stats.ks_2samp(ratio, theirs).statistic)
    assert row["other_statistic"] == pytest.approx(
        stats.ks_2samp(ratio[~taught], theirs[~taught]).statistic
    )
    assert row["relearned_logp"] == pytest.approx(per["gold"][taught].mean())
    assert row["other_logp"] == pytest.approx(per["gold"][~taught].mean())
    before = -np.asarray(retrained.gold.average)
    assert row["other_returned"] == pytest.approx((per["gold"].to_numpy() > before)[~taught].mean())


@pytest.mark.parametrize(("field", "value"), [("which", "longest"), ("share", 0.0), ("share", 1.0)])
def test_shares_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Relearning(**{field: value})
    assert caught.value.field == field


def test_one_example_leaves_none_to_watch() -> None:
    with pytest.raises(InvalidInput, match="at least 2"):
        Relearning().chosen([4])


def some_examples(authors: list[str | None]) -> list[Example]:
    return [
        Example(index=row, prompt="a", response="b", author=name)
        for row, name in enumerate(authors)
    ]


@settings(max_examples=40)
@given(authors=st.lists(st.integers(1, 4), min_size=1, max_size=8), share=st.floats(0, 1))
def test_requests_are_whole_authors_in_order_and_all_of_them(
    authors: list[int], share: float
) -> None:
    names = [f"author {place}" for place, count in enumerate(authors) for _ in range(count)]
    examples = some_examples(list(names))
    count = 1 + int(share * (len(authors) - 1))
    parts = requests(examples, count)
    assert [one for part in parts for one in part] == examples and len(parts) == count
    own = [{one.author for one in part} for part in parts]
    assert all(own) and sum(map(len, own)) == len(authors)
    assert max(map(len, own)) - min(map(len, own)) <= 1


def test_examples_without_authors_are_requested_one_by_one_and_too_many_requests_are_refused() -> (
    None
):
    assert [len(part) for part in requests(some_examples([None] * 5), 2)] == [3, 2]
    with pytest.raises(InvalidInput, match="requests"):
        requests(some_examples(["x", "x"]), 2)


SETTINGS = Unlearning(
    objective=npo(0.1),
    optimization=Optimization(epochs=2, batch=4, learning_rate=3e-3, warmup_epochs=0),
    retain_term="cross_entropy",
)


def test_each_request_is_forgotten_from_what_the_one_before_left(
    tmp_path: Path, retrained: EvaluationLog
) -> None:
    wanted = requests(FORGET, 2)
    found = sequential(tmp_path, original, wanted, RETAIN, SETTINGS, progress=False)
    table = by_stage(found, retrained)
    assert table[["stage", "request"]].to_numpy().tolist() == [
        [s, r] for s in range(3) for r in range(2)
    ]
    assert table["requested"].tolist() == [False, False, True, False, True, True]
    logp = table.set_index(["stage", "request"])["logp"]
    assert logp[1, 0] < logp[0, 0] and logp[2, 1] < logp[1, 1]
    assert np.isfinite(table["retain_loss"]).all() and table["examples"].eq(len(FORGET) // 2).all()
    # Stage 0 is the original model, and the second request starts where the first one ended.
    first = answer_log(original(), wanted[1], progress=False)
    assert logp[0, 1] == pytest.approx(-first.gold.average.mean(), rel=1e-6)
    start = pd.read_parquet(tmp_path / "request_2" / "examples.parquet").query("epoch == 0")
    assert logp[1, 1] == pytest.approx((start["logp"] / start["length"]).mean(), rel=1e-5)
    theirs = truth_ratio(retrained)[np.isin(retrained.index, [one.index for one in wanted[1]])]
    expected = stats.ks_2samp(truth_ratio(first), theirs)
    row = table[(table["stage"] == 0) & (table["request"] == 1)].iloc[0]
    assert row["ks_statistic"] == pytest.approx(expected.statistic)


@pytest.mark.slow
def test_requests_that_were_stopped_go_on_and_say_the_same(tmp_path: Path) -> None:
    wanted = requests(FORGET, 2)
    whole = sequential(tmp_path / "whole", original, wanted, RETAIN, SETTINGS, progress=False)
    sequential(tmp_path / "cut", original, wanted[:1], RETAIN, SETTINGS, progress=False)
    for path in (tmp_path / "cut").rglob(REQUESTS):
        path.unlink()
    cut = sequential(tmp_path / "cut", original, wanted, RETAIN, SETTINGS, progress=False)
    pd.testing.assert_frame_equal(cut.answers, whole.answers)
    pd.testing.assert_frame_equal(cut.stages, whole.stages)
    read = sequential(tmp_path / "whole", original, wanted, RETAIN, SETTINGS, progress=False)
    pd.testing.assert_frame_equal(read.answers, whole.answers)


def test_other_requests_in_the_same_folder_and_an_example_asked_for_twice_are_refused(
    tmp_path: Path,
) -> None:
    wanted = requests(FORGET, 2)
    sequential(tmp_path, original, wanted[:1], RETAIN, SETTINGS, progress=False)
    with pytest.raises(InvalidInput, match="out"):
        sequential(tmp_path, original, wanted, RETAIN, SETTINGS, progress=False)
    with pytest.raises(InvalidInput, match="out"):
        sequential(
            tmp_path,
            original,
            wanted[:1],
            RETAIN,
            replace(SETTINGS, objective=gradient_ascent()),
            progress=False,
        )
    with pytest.raises(InvalidInput, match="requests"):
        sequential(
            tmp_path / "b", original, [wanted[0], wanted[0]], RETAIN, SETTINGS, progress=False
        )


def test_attacks_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {}
    for kind in ("original", "retrained"):
        folders[kind] = tmp_path / kind
        save(build(SMALL, kind, progress=False), folders[kind], {})
    data = tmp_path / "forget.json"
    write(FORGET, data)
    out = tmp_path / "attack.parquet"
    words: list[Any] = [
        "relearn",
        "--model",
        folders["retrained"],
        "--data",
        data,
        "--out",
        out,
        "--repeats",
        2,
    ]
    words += [
        "--epochs",
        1,
        "--batch",
        2,
        "--learning-rate",
        3e-3,
        "--retrained",
        folders["retrained"],
    ]
    assert cli([str(word) for word in words]) == 0
    table, back = pd.read_parquet(out), pd.read_parquet(tmp_path / "attack_returns.parquet")
    assert back[["which", "repeat", "epoch"]].to_numpy().tolist() == [
        [which, repeat, epoch]
        for which in ("shortest", "random")
        for repeat in range(2)
        for epoch in range(2)
    ]
    assert set(table["epoch"]) == {0, 1} and "relearned" in capsys.readouterr().out
    for wrong, said in (
        (["--repeats", "0"], "repeats"),
        (["--share", "2"], "share"),
        (["--data", "no"], "no"),
    ):
        assert cli([str(word) for word in [*words[:7], *wrong]]) == 2
        assert said in capsys.readouterr().err
