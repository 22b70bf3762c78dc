"""From a model that knows some answers to files of what it is to forget, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import llm
from llm.__main__ import cli
from llm.data import tofu
from llm.evaluation.knowledge import COUNTS
from llm.jobs.knowing import COLUMNS, NAMES, SHARE, Split, parts, report, weights_of
from llm.jobs.settings import DEFAULTS
from llm.jobs.weighing import spread
from llm.models.saving import save
from markov.errors import InvalidInput
from markov.files import storage
from markov.files.folders import CLAIM
from tests.helpers import files_in
from tests.llm.evaluation.test_knowledge import questions, tiny
from tests.llm.in_two import in_two

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "progress": False}
FEW = ["--device", "cpu", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has learnt the first eight of ten towns."""
    folder = tmp_path_factory.mktemp("learnt")
    save(tiny(questions(8)), folder / "model", {"seed": 0})
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two files of questions: six and one not learnt, two and one not learnt."""
    towns = questions(10)
    # Nobody learnt these answers, and in another order no wrong one is learnt either.
    strange = [
        replace(one, prompt=f"Unheard of {one.index}?", response=f"Xyz{one.index}", perturbed=wrong)
        for one, wrong in zip(towns[8:], (("Qpr", "Wvu"), ("Jkl", "Fgh")), strict=True)
    ]
    tofu.write([*towns[:6], strange[0]], tmp_path / "authors.json")
    tofu.write([*towns[6:8], strange[1]], tmp_path / "facts.json")
    bare = [replace(one, perturbed=()) for one in towns[:6]]
    tofu.write(bare, tmp_path / "bare.json")
    monkeypatch.chdir(tmp_path)
    yield


def asked(learnt: Path, *more: str) -> list[str]:
    words = ["known", "--model", str(learnt / "model"), *FEW]
    return [*words, "--data", "authors.json", "--retain-data", "facts.json", *more]


@given(st.lists(st.booleans(), min_size=3, max_size=40), st.integers(0, 9), st.floats(0.01, 0.99))
def test_a_split_is_disjoint_and_exhaustive_and_follows_from_the_seed_alone(
    right: list[bool], seed: int, share: float
) -> None:
    known = np.array([True, True, *right])
    mine = np.ones(len(known), dtype=bool)
    part = parts(known, mine, Split(share=share, seed=seed))
    assert (np.isin(part, ["forget", "retain"]) == known).all() and (
        part[~known] == "unknown"
    ).all()
    forget = (part == "forget").sum()
    assert 1 <= forget < known.sum() and abs(forget - share * known.sum()) <= 1
    again = parts(known, mine, Split(way="probability", share=share, seed=seed))
    np.testing.assert_array_equal(part, again)
    # which of the known ones are to be forgotten does not depend on what is not known
    alone = parts(known[known], mine[known], Split(share=share, seed=seed))
    np.testing.assert_array_equal(part[known], alone)
    # and what is retained in any case is not to be forgotten
    others = np.append(mine, [False, False])
    part = parts(np.append(known, [True, False]), others, Split(share=1.0, seed=seed))
    assert part[-2:].tolist() == ["retain", "unknown"]
    assert ((part[:-2] == "forget") == known).all()


def test_seeds_differ() -> None:
    known = np.ones(30, dtype=bool)
    found = {tuple(parts(known, known, Split(seed=seed))) for seed in range(5)}
    assert len(found) == 5


@pytest.mark.parametrize(
    ("right", "forgettable", "share"),
    [([1, 0, 0], [1, 1, 1], 0.5), ([0, 1, 1], [1, 0, 0], 0.5), ([1, 1, 0], [1, 1, 0], 1.0)],
)
def test_too_few_to_split_are_refused(
    right: list[int], forgettable: list[int], share: float
) -> None:
    with pytest.raises(InvalidInput, match="answered right"):
        parts(np.array(right, bool), np.array(forgettable, bool), Split(share=share))


def test_the_command_writes_what_the_job_returns(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(asked(learnt, "--out", "out")) == 0
    said = capsys.readouterr().out
    found = llm.known(
        llm.load(learnt / "model", device="cpu"), ["authors.json"], retain="facts.json", **OPTIONS
    )
    assert report(found) in said and repr(found) == report(found)
    table = storage.read_table(tmp_path / "out" / "known.parquet")
    pd.testing.assert_frame_equal(table, found.table, check_flags=False, check_dtype=False)
    assert tuple(table) == COLUMNS and tuple(found.counts) == COUNTS
    assert {path.name for path in files_in(tmp_path / "out")} == {*NAMES, CLAIM}
    assert table["source"].tolist() == ["authors.json"] * 7 + ["facts.json"] * 3
    assert table["index"].tolist() == [*range(6), 8, 6, 7, 9]
    assert table["right"].tolist() == [True] * 6 + [False] + [True] * 2 + [False]
    assert (table["part"] == "forget").sum() == round(SHARE * 6)
    assert table.loc[7:, "part"].tolist() == ["retain", "retain", "unknown"]
    for name, examples in (("forget", found.given.forget), ("retain", found.given.retain)):
        assert llm.read(tmp_path / "out" / f"{name}.jsonl") == examples
        own = table[table["part"] == name]
        assert [one.prompt for one in examples] == own["question"].tolist()
        assert [one.index for one in examples] == list(range(len(own)))
        assert all(len(one.perturbed) == 2 for one in examples)
    told = found.counts.set_index(["source", "way"])["right"]
    assert told["all", "writing"] == 8 and told["authors.json", "both"] == 6


def test_it_is_done_once_and_the_same_seed_makes_the_same_bytes(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for out in ("one", "two"):
        assert cli(asked(learnt, "--out", out)) == 0
    for name in ("forget.jsonl", "retain.jsonl"):
        first, second = ((tmp_path / out / name).read_bytes() for out in ("one", "two"))
        assert first == second
    before = files_in(tmp_path / "one")
    capsys.readouterr()
    monkeypatch.setattr("llm.evaluation.knowledge.answered", pytest.fail)
    assert cli(asked(learnt, "--out", "one")) == 0
    assert (
        "answered right, by writing: 8 of 10, 3 to forget and 5 to retain"
        in capsys.readouterr().out
    )
    assert files_in(tmp_path / "one") == before
    assert cli(asked(learnt, "--out", "one", "--seed", "1")) == 2
    assert "seed" in capsys.readouterr().err and files_in(tmp_path / "one") == before


def test_what_a_killed_command_left_is_finished_by_the_next(
    learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    language = llm.load(learnt / "model", device="cpu")
    whole = llm.known(language, "authors.json", out="whole", **OPTIONS)
    writes = [(tofu, "write")] * 4 + [(storage, "write_table")] * 4
    for count, (module, name) in enumerate(writes):
        calls, real = iter(range(count if module is tofu else count - 4)), getattr(module, name)

        def stopped(*given: Any, own: Any = real, left: Any = calls) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            own(*given)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                llm.known(language, "authors.json", out=f"cut{count}", **OPTIONS)
        assert not (tmp_path / f"cut{count}" / "known.parquet").exists()
        found = llm.known(language, "authors.json", out=f"cut{count}", **OPTIONS)
        assert found.given[:2] == whole.given[:2] and found.own[:2] == whole.own[:2]
    before = files_in(tmp_path / "whole")
    for name in ("retain.jsonl", "forget_own.jsonl", "retain_own.jsonl"):
        (tmp_path / "whole" / name).unlink()
        again = llm.known(language, "authors.json", out="whole", **OPTIONS)
        assert again.given[:2] == whole.given[:2] and again.own[:2] == whole.own[:2]
        assert files_in(tmp_path / "whole").keys() >= before.keys()


@pytest.mark.slow
def test_two_processes_find_what_one_does(learnt: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.json") for name in ("authors", "facts")]
    words = ["known", "--model", str(learnt / "model"), *FEW, "--budget", "64"]
    words += ["--data", files[0], "--retain-data", files[1], "--out"]
    assert cli([*words, str(tmp_path / "one")]) == 0
    done = in_two(lambda: cli([*words, str(tmp_path / "two")]), tmp_path)
    assert done.returncode == 0 and done.stdout.count("rows:") == 1, done.stderr
    one, two = (storage.read_table(tmp_path / out / "known.parquet") for out in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5, check_flags=False)
    for name in ("forget.jsonl", "retain.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_weights_are_those_of_the_commands_score_and_weights(learnt: Path) -> None:
    found = llm.known(learnt / "model", "authors.json", out="out", **OPTIONS)
    scores = llm.score(learnt / "model", "out/forget.jsonl", progress=False)
    pd.testing.assert_frame_equal(
        found.given.weights, llm.weights(scores, objectives=DEFAULTS), rtol=1e-5, check_flags=False
    )
    assert found.given.weights["weight_npo_b0.1"].eq(1).all()
    own = llm.score(learnt / "model", "out/forget_own.jsonl", progress=False)
    pd.testing.assert_frame_equal(
        found.own.weights, llm.weights(own, objectives=DEFAULTS), rtol=1e-5, check_flags=False
    )
    again = storage.read_table("out/weights.parquet")
    pd.testing.assert_frame_equal(found.given.weights, again, check_flags=False)


def test_the_spread_of_weights_tells_whom_a_corner_pushes() -> None:
    logp, length = np.array([-2.0, -9.0, -4.0, -30.0]), np.array([2, 3, 4, 5])
    table = pd.DataFrame({"logp": logp, "length": length})
    found: Any = spread(weights_of(table))
    assert found.loc["npo_b0.1", ["least", "mean", "greatest"]].eq(1).all()
    assert found.loc["npo_b0.1", ["length", "nats_per_token"]].isna().all()
    own = 2 / (1 + np.exp(-2.5 * logp / length)) / length
    np.testing.assert_allclose(found.loc["simnpo_b2.5", "mean"], own.mean())
    nats = stats.spearmanr(own, -logp / length).statistic
    assert found.loc["simnpo_b2.5", "nats_per_token"] == pytest.approx(nats) and nats < 0
    # at the start a longer answer weighs less by length-normalised NPO, however well it is known
    assert found.loc["length_normalized_npo_b2.5", "length"] == -1
    assert found.loc["reference_free_npo_b0.1", "greatest"] < 1
    one = spread(weights_of(table.iloc[:1]))
    assert one["length"].isna().all() and one["mean"].notna().all()


def test_what_is_known_is_forgotten_and_the_rest_of_it_kept(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From known through unlearn, evaluate and sweep to known again, without a retrained model."""
    assert cli(asked(learnt, "--out", "out")) == 0
    own = ["--data", "out/forget_own.jsonl", "--retain-data", "out/retain_own.jsonl"]
    model, device = ["--model", str(learnt / "model")], ["--device", "cpu"]
    few = ["--epochs", "6", "--batch", "3", "--learning-rate", "1e-2"]
    run = ["unlearn", *model, *device, *own, *few, "--objective", "simnpo:2.5@1"]
    assert cli([*run, "--out", "run"]) == 0
    capsys.readouterr()
    written = ["--max-new-tokens", "8", *device]
    assert cli(["evaluate", "--model", "run/model", *own, *written, "--out", "after"]) == 0
    said = capsys.readouterr().out
    assert "no forget_quality" in said and "no model_utility: no logs of real_authors" in said
    measures = storage.read_table(tmp_path / "after" / "measures.parquet")
    at = measures.set_index(["measure", "task"])["value"]
    assert at["rouge", "forget"] < 0.5 < at["rouge", "retain"] and ("truth_ratio", "forget") in at

    ask = ["known", "--model", "run/model", *FEW, "--share", "None", "--out", "again"]
    assert cli([*ask, "--data", "out/forget.jsonl", "out/retain.jsonl"]) == 0
    counts = storage.read_table(tmp_path / "again" / "counts.parquet")
    left = counts.set_index(["source", "way"])["share"]
    assert left["out/forget.jsonl", "writing"] < 0.5 < left["out/retain.jsonl", "writing"]
    assert not (tmp_path / "again" / "forget.jsonl").exists()
    table = storage.read_table(tmp_path / "again" / "known.parquet")
    assert set(table["part"]) == {"known", "unknown"}

    sweep = ["sweep", *model, *device, *own, *few, "--methods", "npo:0.1@1", "--jobs", "1"]
    sweep += ["--max-new-tokens", "8", "--out", "table"]
    capsys.readouterr()
    assert cli(sweep) == 0
    said = capsys.readouterr().out
    assert "FQ, D, MU\n" in said and "beside no retrained model" in said
    swept = storage.read_table(tmp_path / "table" / "sweep.parquet")
    assert set(swept["model"]) == {"original", "npo:0.1@1"}
    rows = set(zip(swept["measure"], swept["task"], strict=True))
    assert ("truth_ratio", "forget") in rows and ("forget_quality", "forget") not in rows
    before = files_in(tmp_path / "table" / "original")
    assert cli(sweep) == 0 and capsys.readouterr().out == said
    assert files_in(tmp_path / "table" / "original") == before


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--share", "0"], "share"),
        (["--share", "1.5"], "share"),
        (["--share", "nan"], "share"),
        (["--data", "authors.json", "--retain-data", "--share", "1"], "share"),
        (["--share", "None"], "retain_data"),
        (["--seed", "-1"], "seed"),
        (["--recall", "0"], "recall"),
        (["--recall", "1.1"], "recall"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--data"], "data"),
        (["--data", "nowhere.json"], "nowhere.json"),
        (["--data", "authors.json", "authors.json"], "authors.json, index 0 has it too"),
        (["--retain-data", "authors.json"], "authors.json, index 0 has it too"),
        (["--data", "bare.json", "--retain-data", "facts.json"], "perturbed"),
        (["--data", "bare.json", "--retain-data", "--way", "both"], "perturbed"),
        (["--out", "authors.json"], "out"),
        (["--out", "."], "out"),
    ],
)
def test_what_is_refused_is_one_line_before_any_weights_are_read(
    words: list[str],
    field: str,
    learnt: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("llm.models.source.load", pytest.fail)
    before = files_in(tmp_path)
    assert cli(asked(learnt, *words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and field in err
    assert files_in(tmp_path) == before


def test_who_knows_too_little_is_told_so_and_nothing_is_left(
    learnt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_in(tmp_path)
    tofu.write(llm.read("authors.json")[-1:], tmp_path / "one.json")
    words = ["--data", "one.json", "--out", "out"]
    assert cli(asked(learnt, *words)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--share None" in err and "answered right" in err
    assert not (tmp_path / "out").exists() and before.items() <= files_in(tmp_path).items()
    with pytest.raises(InvalidInput, match="way"):
        llm.known(learnt / "model", "authors.json", way="luck")


def test_questions_without_wrong_answers_can_be_asked_in_writing(learnt: Path) -> None:
    found = llm.known(learnt / "model", "bare.json", out="out", **OPTIONS)
    assert found.table["right"].all() and found.table["rank"].isna().all()
    assert len(found.given.forget) == len(found.given.retain) == 3
    assert "-" in report(found) and llm.read("out/forget.jsonl") == found.given.forget
