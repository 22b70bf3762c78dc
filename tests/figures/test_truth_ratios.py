"""Truth ratios over trainings: what is run, what D is between, and how the claims are judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from figures import catalogue, drawn_of
from figures.cache import Context
from figures.language import runs as llm_runs
from figures.language import sources, sweeps
from figures.language.truth_ratio import frame_of_models
from figures.questions import graded, partial_runs
from figures.questions import truth_ratios as figure
from figures.scale import quick_scale
from figures.statistics import mean_interval
from llm.logs.log import Answers, EvaluationLog, log_truth_ratio, take
from llm.logs.measures import forget_quality
from llm.models.answers import answer_log, scores
from llm.models.small_authors import build, readings, sets
from llm.unlearning.runs import unlearn_in_memory
from markov.objectives import CORNERS
from tests.figures.studies import drawn, in_place, tiny_study

TINY = replace(tiny_study(questions=4, percent=50, learning_rate=3e-3), epochs=1)
READ = {index: "read" if index < 10 else "never" for index in range(20)}
HALVES = {"read": list(range(10)), "never": list(range(10, 20))}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """The tiny study in place of the figures', with a cache of its own."""
    with in_place(TINY, tmp_path_factory.mktemp("ratios"), llm_runs, sweeps, graded):
        yield Context(scale=quick_scale(), progress=False, n_jobs=1)


# --- what is run ---


def test_a_run_is_that_of_the_corner_at_the_papers_setting_in_the_order_of_its_training(
    context: Context,
) -> None:
    jobs = partial_runs.planned(context)
    assert [(job.models.seed, job.unlearning.optimization.seed) for job in jobs] == (
        [(0, 0)] * 4 + [(1, 1)] * 4
    )
    laws = [*TINY.objectives().values()]
    assert [job.unlearning.objective for job in jobs] == laws * 2
    assert {job.unlearning.retain_weight for job in jobs} == {
        TINY.retain_weight,
        TINY.retain_weight_per_token,
    }
    job = jobs[5]
    found = partial_runs.unlearnt(job)
    forget, retain = sets(job.models)
    language = build(job.models, "partial", progress=False)
    unlearn_in_memory(language, forget, retain, job.unlearning, progress=False)
    wanted = scores(language, forget, progress=False)
    gold = found[found["answer"] == "gold"].set_index("index")["logp"]
    assert gold.to_numpy() == pytest.approx(wanted.set_index("index")["logp"].loc[gold.index])
    assert set(found["method"]) == {"reference_free_npo"} and set(found["training"]) == {1}


def test_a_run_that_left_nothing_to_score_is_left_out(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = partial_runs.planned(context)[0]
    gone = SimpleNamespace(logs={}, objective=job.unlearning.objective)
    monkeypatch.setattr(partial_runs, "unlearn_in_memory", lambda *_, **__: gone)
    table = partial_runs.unlearnt(job)
    assert table.empty and {"training", "method", "logp"} <= set(table)


def test_what_was_read_is_what_the_partial_model_read() -> None:
    found = partial_runs.read_halves(TINY.models)
    times = dict(
        zip((one.index for one in sets(TINY.models).forget), readings(TINY.models), strict=True)
    )
    assert {index: count > 0 for index, count in times.items()} == {
        index: half == "read" for index, half in found.items()
    }
    assert set(found.values()) == {"read", "never"}


def test_the_default_model_is_drawn_over_trainings_and_once(context: Context) -> None:
    frame = figure.data(context)
    assert [*dict.fromkeys(frame["source"])] == [figure.PARTIAL, llm_runs.DEFAULT]
    single = frame[frame["kind"] == "training"]
    assert set(single["seed"]) == {0, 1} and set(single["source"]) == {figure.PARTIAL}
    row: Any = single[(single["seed"] == 1) & (single["model"] == "npo")].iloc[0]
    log = partial_runs.logs_of_trainings(context, "again")[1]
    read = partial_runs.read_halves(TINY.models)
    at = np.flatnonzero([read[index] == row["half"] for index in log.original.index])
    test = forget_quality(take(log.unlearned["npo"], at), take(log.retrained, at))
    assert row["distance"] == pytest.approx(test.statistic)
    models = replace(TINY.models, seed=1)
    own = answer_log(
        build(models, "retrained", progress=False), sets(models).forget, progress=False
    )
    assert log_truth_ratio(log.retrained) == pytest.approx(log_truth_ratio(own), abs=1e-5)
    assert {"parts", "moved", "claims"} == set(figure.told(frame))
    assert len(drawn(figure, frame).axes) == 9


def test_a_study_or_a_model_of_the_users_own_is_drawn_as_it_is(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Context]()
    monkeypatch.setattr(figure.truth_ratio, "data", lambda one: asked.append(one) or "theirs")
    given: list[dict[str, Any]] = [{"study": Path("mine")}, {"runs": (Path("run"),)}]
    assert [figure.data(replace(context, **one)) for one in given] == ["theirs"] * 2
    assert len(asked) == 2
    entry = catalogue.BY_NAME["llm_truth_ratio"]
    assert entry.study == "ratios" and "llm_truth_ratio" not in drawn_of.NOT_OF_RUNS


# --- what is told ---


LENGTH = np.random.default_rng(0).integers(3, 40, 20).astype(float)


def some_log(seed: int) -> EvaluationLog:
    gold, right, wrong = np.random.default_rng(seed).uniform(0.5, 2, (3, 20))
    one, other = (Answers(own, own * LENGTH, LENGTH) for own in (gold, right))
    several = Answers(wrong[:, None], (wrong * LENGTH)[:, None], LENGTH[:, None])
    return EvaluationLog("a log", "made", np.arange(20), one, other, several)


def some_trainings(count: int = 3) -> dict[int, sources.Models]:
    return {
        seed: sources.models(
            "made",
            some_log(10 * seed),
            some_log(10 * seed + 1),
            {name: some_log(10 * seed + 2 + at) for at, name in enumerate(CORNERS)},
        )
        for seed in range(count)
    }


def test_d_is_the_mean_over_trainings_and_the_floor_is_between_their_retrained_models() -> None:
    found = some_trainings()
    frame = figure.frame_of_trainings(found, READ)
    parts: Any = figure.parts(frame).set_index(["half", "model"])
    for half, at in HALVES.items():
        slow = [
            _slow(found[one].retrained, found[other].retrained, at)
            for one, other in ((0, 1), (0, 2), (1, 2))
        ]
        floor = frame[(frame["kind"] == "floor") & (frame["half"] == half)]
        assert floor["distance"].tolist() == pytest.approx(slow)
        for model in CORNERS:
            values = [_slow(one.unlearned[model], one.retrained, at) for one in found.values()]
            row = parts.loc[(half, model)]
            names = ["distance", "distance_low", "distance_high"]
            assert row[names].tolist() == pytest.approx(mean_interval(np.array(values))[:3])
            ends = row[["floor_low", "floor_high"]].tolist()
            assert ends == pytest.approx([min(slow), max(slow)])
            assert row["count"] == 10
    first = frame_of_models(found[0], read=READ)
    kept = frame[frame["kind"] == "density"]["density"]
    assert kept.tolist() == first[first["kind"] == "density"]["density"].tolist()


def _slow(one: EvaluationLog, other: EvaluationLog, at: list[int]) -> float:
    mine, theirs = (log_truth_ratio(log)[at] for log in (one, other))
    return stats.ks_2samp(mine, theirs, method="asymp").statistic  # pyright: ignore[reportAttributeAccessIssue]


def test_all_that_was_read_alike_is_split_by_memorisation_and_length() -> None:
    frame = figure.frame_of_trainings(some_trainings())
    assert set(frame["split"].dropna()) == {"memorised_half", "length_half"}
    assert set(figure.told(frame)) == {"parts"}
    floors = frame[frame["kind"] == "floor"]
    assert floors.groupby(["split", "half"]).size().tolist() == [3] * 4
    figure_of_it = drawn(figure, frame)
    assert len(figure_of_it.axes) == 6


def planted(distances: dict[tuple[str, str], float], seeds: int = 5) -> pd.DataFrame:
    """D of trainings that differ by a little, of one of which every number is known."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for (half, model), value in distances.items():
            noise = rng.normal(0, 0.01)
            rows.append((seed, half, model, value + noise, "training", "read_half", "made"))
    names = ["seed", "half", "model", "distance", "kind", "split", "source"]
    return pd.DataFrame(rows, columns=names)


def distances(**never: float) -> dict[tuple[str, str], float]:
    found = {("never", "original"): 0.1} | {("never", name): value for name, value in never.items()}
    return found | {("read", name): 0.5 for name in ("original", *CORNERS)}


def judged(frame: pd.DataFrame) -> dict[str, str]:
    statistic = (
        frame.drop(columns="seed")
        .drop_duplicates(["half", "model"])
        .assign(kind="statistic", count=10, median=1.0, p=0.5)
    )
    told = figure.told(pd.concat([frame, statistic], ignore_index=True))
    claims = told["claims"]
    return dict(zip(claims["claim"], claims["verdict"], strict=True))


def test_claims_of_what_was_never_read_hold_or_are_contradicted_as_they_were_planted() -> None:
    as_claimed = distances(npo=0.7, reference_free_npo=0.6, length_normalized_npo=0.6, simnpo=0.2)
    said = judged(planted(as_claimed))
    assert said.pop("read") == "inconclusive" and set(said.values()) == {"holds"}
    other_way = distances(
        npo=0.05, reference_free_npo=0.2, length_normalized_npo=0.2, simnpo=0.4
    ) | {("read", "simnpo"): 0.8}
    said = judged(planted(other_way))
    assert said.pop("away, SimNPO") == "holds"
    assert set(said.values()) == {"contradicted"}
    equal = distances(**dict.fromkeys(CORNERS, 0.1))
    assert set(judged(planted(equal, seeds=4)).values()) == {"inconclusive"}
    assert set(judged(planted(as_claimed, seeds=1)).values()) == {"inconclusive"}


def test_a_corner_that_diverged_in_every_training_leaves_its_claims_open() -> None:
    found = distances(npo=0.7, reference_free_npo=0.6, length_normalized_npo=0.6)
    del found["read", "simnpo"]
    said = judged(planted(found))
    assert said["away"] == "holds" and said["spared"] == said["read"] == "inconclusive"


def test_what_moved_is_how_much_d_grew_in_each_training() -> None:
    frame = planted(
        distances(npo=0.7, reference_free_npo=0.6, length_normalized_npo=0.6, simnpo=0.2)
    )
    table = frame.pivot(index="seed", columns=["half", "model"], values="distance")
    found: Any = figure.moved(table).set_index(["half", "model"])
    grown = (table["never", "npo"] - table["never", "original"]).to_numpy()
    assert found.loc[("never", "npo"), ["value", "low", "high"]].tolist() == pytest.approx(
        mean_interval(grown)[:3]
    )
    assert len(found) == 2 * len(CORNERS)
