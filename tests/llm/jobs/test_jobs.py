"""The jobs of `import llm`: words and values give the same, and nothing that is given changes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import llm
from llm.__main__ import cli
from llm.data.authors.corpus import Authors, splits
from llm.data.muse import news_data
from llm.data.news.corpus import News
from llm.data.splits import TofuSets
from llm.models import small_news
from llm.models.language_model import LanguageModel
from markov.console.progress import Count
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import npo, simnpo

RUN: dict[str, Any] = {"epochs": 2, "batch": 3, "learning_rate": 1e-3, "progress": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def language(place: Path) -> LanguageModel:
    return llm.load(place / "model")


def test_words_and_values_are_scored_alike(place: Path, language: LanguageModel) -> None:
    word = llm.score(place / "model", place / "forget10.json", progress=False)
    value = llm.score(language, llm.read(place / "forget10.json"), progress=False)
    pd.testing.assert_frame_equal(word, value)
    assert list(word) == ["index", "logp", "length"] and (word["logp"] < 0).all()
    noisy = llm.score(language, place / "forget10.json", noise=1.0, progress=False)
    assert not np.allclose(noisy["logp"], word["logp"])
    again = llm.score(language, place / "forget10.json", progress=False)
    pd.testing.assert_frame_equal(again, word)  # the noise was another model's


def test_a_table_of_weights_is_the_commands_and_its_allocation_prints_itself(place: Path) -> None:
    data = place / "forget10.json"
    own, goal = (llm.score(place / name, data, progress=False) for name in ("model", "retrained"))
    objectives = ["npo:0.1", simnpo(4.5)]
    table = llm.weights(own, retrained=goal, objectives=objectives)
    for name, frame in (("own", own), ("goal", goal)):
        storage.write_table(frame, Path(f"{name}.parquet"), {})
    files = ["--scores", "own.parquet", "--reference", "own.parquet", "--retrained", "goal.parquet"]
    assert cli(["weights", *files, "--objectives", "npo:0.1", "simnpo:4.5"]) == 0
    written = storage.read_table(Path("out/weights.parquet"))
    pd.testing.assert_frame_equal(table, written, check_flags=False)
    pd.testing.assert_frame_equal(
        table, llm.weights("own.parquet", "own.parquet", retrained=goal, objectives=objectives)
    )
    assert (table["weight_npo_b0.1"] == 1).all()  # before the first update
    found = llm.allocation(table)
    assert set(found.curves["objective"]) == set(found.statistics.index)
    assert {"npo_b0.1", "simnpo_b4.5"} == set(found.statistics.index)
    assert "simnpo_b4.5" in repr(found) and "misplaced" in found._repr_html_()
    pushes = llm.allocation(table, effort="push", need="per_token").statistics
    assert not pushes.equals(found.statistics)
    with pytest.raises(InvalidInput, match="objectives"):
        llm.weights(own, objectives=[])
    with pytest.raises(InvalidInput, match="effort"):
        llm.allocation(table, effort="time")


def test_a_run_in_memory_is_that_in_a_folder_and_changes_no_model_that_is_given(
    place: Path, language: LanguageModel
) -> None:
    forget, retain = (llm.read(place / f"{name}.json") for name in ("forget10", "retain90"))
    before = {name: value.clone() for name, value in language.model.state_dict().items()}
    options = {**RUN, "method": "npo:0.1@0.5", "retrained": place / "retrained"}
    kept = llm.unlearn(language, forget, retain=retain, **options)
    written = llm.unlearn(
        place / "model",
        place / "forget10.json",
        retain=place / "retain90.json",
        out="run",
        **options,
    )
    for mine, theirs in zip(kept[:3], written[:3], strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_flags=False)
    assert {"retrained", "needed"} <= set(kept.examples)
    for name, value in language.model.state_dict().items():
        assert torch.equal(value, before[name])
    one, other = kept.model.model.state_dict(), written.model.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], before[name]) for name in one)
    assert "forget_loss" in repr(kept) and "in memory" in repr(kept) and "run" in repr(written)
    assert llm.read_run("run").epochs.equals(written.epochs)
    assert float(kept.objective.beta) == float(npo(0.1).beta) and set(kept.logs) == {
        "original",
        "retrained",
        "unlearned",
    }
    with pytest.raises(InvalidInput, match="in memory"):
        kept.folder  # noqa: B018
    fell = llm.score(kept.model, forget, progress=False)["logp"].sum()
    assert fell == pytest.approx(kept.examples.query("epoch == 2")["logp"].sum(), rel=1e-4)


def test_what_is_retained_follows_from_a_word_and_is_asked_for_beside_values(
    place: Path, language: LanguageModel
) -> None:
    short = {**RUN, "epochs": 1}
    follows = llm.unlearn(place / "model", place / "forget10", **short)
    given = llm.unlearn(place / "model", place / "forget10", retain=place / "retain90", **short)
    pd.testing.assert_frame_equal(follows.epochs, given.epochs)
    forget = llm.read(place / "forget10.json")
    with pytest.raises(InvalidInput, match="retain"):
        llm.unlearn(language, forget, **short)
    alone = llm.unlearn(language, forget, method=llm.method("gradient_ascent"), **short)
    assert alone.epochs["forget_loss"].is_monotonic_decreasing or len(alone.epochs) == 2
    for bad in ({"method": "sinmpo:1"}, {"refusals": ["No."]}, {"retain_weight": 2.0}):
        with pytest.raises(InvalidInput):
            llm.unlearn(language, forget, retain=forget, **{**short, **bad})


def test_models_and_logs_are_evaluated(place: Path, language: LanguageModel) -> None:
    found = splits(Authors(authors=10, questions=4))
    names = ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed")
    sets = TofuSets(*(found[name][:4] for name in names))
    options: dict[str, Any] = {"max_new_tokens": 4, "progress": False}
    measured = llm.evaluate(language, sets, retrained=place / "retrained", **options)
    values = measured.measures.set_index(["task", "measure"])["value"]
    assert {"forget_quality", "model_utility"} <= set(measured.measures["measure"])
    assert 0 <= values["all", "model_utility"] <= 1
    assert "model_utility" in repr(measured) and "forget_quality" in repr(measured)
    again = llm.evaluate(logs=measured.logs, retrained_logs=measured.retrained)
    pd.testing.assert_frame_equal(again.measures, measured.measures)
    for bad in ({}, {"model": language, "logs": measured.logs}):
        with pytest.raises(InvalidInput, match="either a model or logs"):
            llm.evaluate(**bad)
    with pytest.raises(InvalidInput, match="data"):
        llm.evaluate(logs=measured.logs, data="tofu:forget10")


def test_an_attack_is_the_commands_and_leaves_the_model_as_it_was(
    place: Path, language: LanguageModel
) -> None:
    data, attack = place / "forget10.json", {"repeats": 2, "epochs": 1, "learning_rate": 1e-3}
    before = llm.score(language, data, progress=False)
    found = llm.relearn(language, data, retrained=place / "retrained", which=["random"], **attack)
    words = ["--repeats", "2", "--epochs", "1", "--learning-rate", "1e-3", "--which", "random"]
    names = ["--model", str(place / "model"), "--data", str(data)]
    assert cli(["relearn", *names, "--retrained", str(place / "retrained"), *words]) == 0
    written = storage.read_table(Path("out/relearning.parquet"))
    pd.testing.assert_frame_equal(found.examples, written, check_flags=False)
    assert found.returns is not None and "others" in repr(found)
    pd.testing.assert_frame_equal(llm.score(language, data, progress=False), before)
    with pytest.raises(InvalidInput, match="repeats"):
        llm.relearn(language, data, repeats=0)


def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of all bars that are shown, collected in a list."""
    labels: list[str] = []
    enter = Count.__enter__
    monkeypatch.setattr(Count, "__enter__", lambda one: labels.append(one.label) or enter(one))
    return labels


def test_jobs_say_how_far_they_are_unless_they_are_asked_not_to(
    place: Path, language: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, data, other = told(monkeypatch), place / "forget10", {"retrained": place / "retrained"}
    short: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3}
    swept: list[bool] = []
    monkeypatch.setattr(
        "llm.jobs.sweeping.swept", lambda asked, *, progress: swept.append(progress)
    )
    jobs: list[tuple[Any, set[str]]] = [
        (partial(llm.score, language, data, gradients=True), {"score", "gradient norms"}),
        (partial(llm.unlearn, place / "model", data, **short, **other), {"score", "unlearn"}),
        (
            partial(llm.relearn, language, data, **short, **other, repeats=1),
            {"attacks", "relearn", "score"},
        ),
    ]
    for job, shown in jobs:
        job(progress=False)
        assert labels == []
        job()
        assert set(labels) == shown
        labels.clear()
    words: dict[str, Any] = {"out": "out/sweep", "methods": ["npo:0.1"]}
    llm.sweep(**words)
    llm.sweep(**words, progress=False)
    assert swept == [True, False]


def test_models_that_are_made_on_first_use_are_counted_unless_that_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def build(*_: object, progress: bool, **__: object) -> None:
        asked.append(progress)
        raise InvalidInput("model", "none", "one")

    monkeypatch.setattr("llm.models.small_authors.build", build)
    jobs = (llm.load, llm.score, llm.unlearn, llm.evaluate, llm.relearn)
    for job in jobs:
        for progress in (True, False):
            with pytest.raises(InvalidInput, match="one"):
                job("authors:original", progress=progress)
    assert asked == [True, False] * len(jobs)


def test_texts_are_measured_and_forgotten_by_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = small_news.NewsModels(
        news=News(forget=3, holdout=3, retain=4, questions=2),
        width=16,
        depth=1,
        heads=2,
        mlp_width=16,
        vocabulary=300,
        piece=64,
        passes=2,
        precision="float32",
    )
    language = small_news.build(tiny, "original", progress=False)
    texts, labels = news_data(tiny.news), told(monkeypatch)
    found = llm.muse(language, texts, max_length=256)
    again = llm.muse(language, texts, retrained=language, max_length=256)
    assert set(found.table["measure"]) == {"verbmem", "knowmem", "auc"}
    assert again.of("privleak", "forget").value == 0  # beside itself
    assert set(labels) == {"score", "write"}
    labels.clear()
    run: dict[str, Any] = {"method": "npo:0.1", "epochs": 1, "piece": 64, "max_length": 256}
    less = llm.muse(language, texts, retrained=language, **run, progress=False)
    assert labels == []
    assert not less.items["value"].equals(found.items["value"])
    pd.testing.assert_frame_equal(llm.muse(language, texts, max_length=256).items, found.items)
    assert "verbmem" in repr(found)
    with pytest.raises(InvalidInput, match="data"):
        llm.muse(language)
