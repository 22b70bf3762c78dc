"""Figures of relearning and of requests in turn: what is attacked and how, what is kept, and
what is drawn.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from scipy import stats

from figures import style
from figures.cache import Context
from figures.language import relearning, sweeps
from figures.language import runs as llm_runs
from figures.language.relearning import QUANTITIES, RETRAINED, frame_of_attacks
from figures.language.runs import default_log, runs
from figures.questions import graded, sequential
from figures.questions.sequential_runs import frame_of_requests, requests_of
from figures.scale import quick_scale
from figures.statistics import mean_interval, smallest_distance
from llm.diagnostics.weights import corners
from llm.evaluation.relearning import Relearning, relearn, returns
from llm.logs.log import Answers, EvaluationLog, truth_ratio
from llm.models.answers import answer_log, log_table
from llm.models.small_authors import AUTHORS_BUDGET, build, sets
from llm.models.source import load
from llm.training.checkpointing import parameters_digest
from llm.training.loop import Optimization
from llm.unlearning.runs import MODEL, read_run, unlearn_into
from llm.unlearning.sequential import STAGE, Sequential
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import npo
from tests.figures.studies import drawn, in_place, tiny_study, without_models
from tests.helpers import files_in

TINY = tiny_study(questions=5, percent=50, learning_rate=3e-3)
METHODS = ["npo", "reference_free_npo", "length_normalized_npo", "simnpo"]
FORGET = sets(TINY.models).forget


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """The tiny study in place of the figures', with a cache of its own."""
    with in_place(TINY, tmp_path_factory.mktemp("attacks"), llm_runs, sweeps, graded):
        yield Context(scale=quick_scale(), progress=False, n_jobs=1)


def curves(axes: Axes) -> dict[str, list[float]]:
    """Heights by colour of the lines with markers."""
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    return {
        matplotlib.colors.to_hex(line.get_color()).upper(): np.asarray(line.get_ydata()).tolist()
        for line in lines
    }


def color(model: str) -> str:
    return matplotlib.colors.to_hex(style.COLORS.get(model, "0.5")).upper()


def per_token(log: EvaluationLog) -> pd.Series:
    return pd.Series(-log.gold.average, log.index)


# --- relearning ---


@pytest.fixture(scope="module")
def relearned(context: Context) -> pd.DataFrame:
    return relearning.data(context)


def test_every_corner_and_the_retrained_model_are_taught_both_shares_again(
    relearned: pd.DataFrame,
) -> None:
    attacks = relearned[relearned["kind"] == "attack"]
    asked = attacks[["which", "model", "repeat", "epoch"]].apply(tuple, axis=1).tolist()
    expected = [
        (which, model, repeat, epoch)
        for model in [RETRAINED, *METHODS]
        for which in ("shortest", "random")
        for repeat in range(2)
        for epoch in range(4)
    ]
    assert sorted(asked) == sorted(expected)
    assert set(attacks["share"]) == {0.2} and set(relearned["source"]) == {llm_runs.DEFAULT}
    assert attacks.loc[attacks["model"] != RETRAINED, "method"].tolist() == [
        model for model in attacks["model"] if model != RETRAINED
    ]
    assert attacks.loc[attacks["model"] == RETRAINED, "method"].isna().all()


@pytest.mark.parametrize(
    ("model", "which", "repeat"), [("simnpo", "random", 1), (RETRAINED, "shortest", 0)]
)
def test_an_attack_is_relearning_at_the_rate_of_the_run_on_eight_answers_at_a_time(
    context: Context, relearned: pd.DataFrame, model: str, which: str, repeat: int
) -> None:
    run = dict(zip(METHODS, runs(context, ends=True), strict=True))["simnpo"]
    language = (
        build(TINY.models, RETRAINED, progress=False)
        if model == RETRAINED
        else load(run.folder / MODEL)
    )
    every = Optimization(
        epochs=3,
        batch=8,
        learning_rate=TINY.learning_rate,
        warmup_epochs=0,
        budget=AUTHORS_BUDGET,
    )
    wanted = Relearning(which=which, share=0.2, seed=repeat, optimization=every)  # pyright: ignore[reportArgumentType]
    table = relearn(language, FORGET, wanted, progress=False)
    expected = returns(table, default_log(context, RETRAINED))
    attacks = relearned[relearned["kind"] == "attack"]
    own = attacks[
        (attacks["model"] == model) & (attacks["which"] == which) & (attacks["repeat"] == repeat)
    ]
    for name in expected:
        np.testing.assert_allclose(
            own[name].to_numpy(dtype=float), expected[name], rtol=1e-6, err_msg=name
        )
    taught = table.loc[table["relearned"], "index"]
    before = per_token(default_log(context, "original"))
    np.testing.assert_allclose(
        own["original_logp"].to_numpy(dtype=float), before.drop(taught.unique()).mean()
    )


def test_the_curve_of_the_retrained_model_starts_at_itself(
    relearned: pd.DataFrame, context: Context
) -> None:
    attacks = relearned[relearned["kind"] == "attack"]
    start = attacks[(attacks["model"] == RETRAINED) & (attacks["epoch"] == 0)]
    # scored in other batches, two may change places
    assert (start["ks_statistic"] <= 1 / len(FORGET) + 1e-9).all()
    both = 0.2 * start["relearned_logp"] + 0.8 * start["other_logp"]
    np.testing.assert_allclose(
        both.to_numpy(dtype=float), per_token(default_log(context, RETRAINED)).mean(), rtol=1e-5
    )


def test_attacks_are_kept(context: Context, relearned: pd.DataFrame) -> None:
    before = files_in(storage.cache_dir())
    pd.testing.assert_frame_equal(relearning.data(context), relearned, check_dtype=False)
    assert files_in(storage.cache_dir()) == before


def test_attacks_made_anew_that_were_stopped_go_on_where_they_were(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables() -> list[Path]:
        return list((storage.cache_dir() / "tables").glob("relearning-*"))

    few = replace(context, runs=tuple(run.folder for run in runs(context, ends=True)[:1]))
    whole = relearning.data(few)
    few, calls, real = replace(few, since=time.time()), [], relearning.relearn

    def stopped(*arguments: object, **options: object) -> pd.DataFrame:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(relearning, "relearn", stopped)
    with pytest.raises(KeyboardInterrupt):
        relearning.data(few)
    pd.testing.assert_frame_equal(relearning.data(few), whole)
    made = [path for path in tables() if path.stat().st_mtime >= few.since]
    attacks = len(made) - 1  # a table for each, and one for all
    # the one that was stopped is made over, no other
    assert attacks > 2 and len(calls) == attacks + 1


def test_runs_of_the_users_own_are_attacked(context: Context, relearned: pd.DataFrame) -> None:
    folders = tuple(run.folder for run in runs(context, ends=True)[2:])
    frame = relearning.data(replace(context, runs=folders))
    assert list(dict.fromkeys(frame["model"].dropna())) == [RETRAINED, *METHODS[2:]]
    twice = relearning.data(replace(context, runs=(folders[0], folders[0])))
    assert set(twice["model"].dropna()) == {RETRAINED, f"{METHODS[2]} ({folders[0].name})"}
    ours = relearned[(relearned["model"] == "simnpo") & (relearned["kind"] == "attack")]
    theirs = frame[(frame["model"] == "simnpo") & (frame["kind"] == "attack")]
    np.testing.assert_array_equal(ours["other_logp"], theirs["other_logp"])
    figure = drawn(relearning, frame)
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:3] == [
        "length-normalised NPO",
        "SimNPO",
    ]


def test_runs_that_cannot_be_attacked_are_refused(context: Context, tmp_path: Path) -> None:
    language, (forget, retain) = build(TINY.models, "original", progress=False), sets(TINY.models)
    alone = unlearn_into(
        tmp_path / "alone", language, forget, retain, TINY.unlearning(npo(0.1)), progress=False
    )
    language = build(TINY.models, "original", progress=False)
    log = default_log(context, RETRAINED)
    order = np.argsort(log.index)[:4]
    part = llm_runs.log_of(log_table(answer_log(language, forget[:4], progress=False)), "part")
    assert len(order) == len(part.index)
    other = unlearn_into(
        tmp_path / "other",
        language,
        forget[:4],
        retain,
        TINY.unlearning(npo(0.1)),
        retrained=part,
        progress=False,
    )
    whole = tmp_path / "whole"
    shutil.copytree(runs(context, ends=True)[0].folder, whole)
    shutil.rmtree(whole / MODEL)
    tables = storage.cache_dir() / "tables"
    before = files_in(tables)
    for folder, said in (
        (alone.folder, "--retrained"),
        (other.folder, "forget set"),
        (whole, "kept its model"),
    ):
        with pytest.raises(InvalidInput, match=said):
            relearning.data(replace(context, runs=(folder,)))
    assert files_in(tables) == before  # an attack would have left one


@settings(max_examples=30)
@given(examples=st.integers(2, 120), p=st.floats(1e-6, 1))
def test_the_smallest_distance_is_the_first_whose_exact_p_value_is_small_enough(
    examples: int, p: float
) -> None:
    ranks = np.arange(examples)
    with warnings.catch_warnings():
        # scipy says where it is not exact; that is within 1e-9 here
        warnings.simplefilter("ignore", RuntimeWarning)
        values = [
            stats.ks_2samp(ranks, ranks + count - 0.5, method="exact").pvalue
            for count in range(examples + 1)
        ]  # pyright: ignore[reportAttributeAccessIssue]
    first = next((count for count, value in enumerate(values) if value <= p), None)
    found = smallest_distance(p, examples)
    assert np.isnan(found) if first is None else found == first / examples


def test_of_forty_answers_a_third_must_differ() -> None:
    assert smallest_distance(1.0, 40) == 0 and smallest_distance(0.05, 40) == 13 / 40
    assert np.isnan(smallest_distance(1e-30, 40))


def some_attacks(repeats: int = 4) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for model in [RETRAINED, *METHODS]:
        for which in ("shortest", "random"):
            for repeat in range(repeats):
                for epoch in range(4):
                    known = {
                        "which": which,
                        "share": 0.2,
                        "model": model,
                        "repeat": repeat,
                        "epoch": epoch,
                    }
                    known["method"] = None if model == RETRAINED else model
                    numbers = {
                        "ks_statistic": rng.uniform(),
                        "relearned_logp": -rng.uniform(0.2, 3),
                    }
                    numbers |= {
                        "other_logp": -rng.uniform(0.2, 3),
                        "original_logp": -rng.uniform(0.05, 0.15),
                    }
                    rows.append({**known, **numbers})
    return pd.DataFrame(rows)


def test_estimates_are_means_over_repeats_with_their_intervals() -> None:
    attacks = some_attacks()
    found = frame_of_attacks(attacks, 40)
    estimates = found[found["kind"] == "estimate"]
    assert len(estimates) == 5 * 2 * 4 * 4
    for row in estimates.to_dict("records"):
        own = attacks[(attacks["model"] == row["model"]) & (attacks["which"] == row["which"])]
        values = own.loc[own["epoch"] == row["epoch"], row["quantity"]].to_numpy()
        assert (row["value"], row["low"], row["high"], row["count"]) == mean_interval(values)
    readings = found[found["kind"] == "reading"].set_index("p")["distance"]
    assert readings[1.0] == 0 and readings[0.05] == smallest_distance(0.05, 40)
    # 40 examples never say that
    assert set(readings.index) <= set(relearning.READINGS) and 1e-24 not in readings


def test_relearning_is_drawn_as_it_was_found() -> None:
    frame = frame_of_attacks(some_attacks(), 120)
    figure = drawn(relearning, frame)
    panels, beside = figure.axes[:6], figure.axes[6:]
    estimates = frame[frame["kind"] == "estimate"]
    for row, which in enumerate(("shortest", "random")):
        own = estimates[estimates["which"] == which]
        assert which in panels[3 * row].get_title("left")
        for axes, quantity in zip(panels[3 * row : 3 * row + 3], QUANTITIES, strict=True):
            part = own[own["quantity"] == quantity]
            expected = {
                color(str(model)): rows["value"].tolist() for model, rows in part.groupby("model")
            }
            assert curves(axes) == expected and len(axes.collections) == 5
            low, high = axes.get_ylim()
            assert low < part["value"].min() and part["value"].max() < high
        (level,) = [line for line in panels[3 * row + 2].lines if line.get_marker() != "o"]
        before = own.loc[own["quantity"] == "original_logp", "value"].mean()
        assert np.asarray(level.get_ydata()).tolist() == [before] * 2
        ticks = dict(
            zip(
                beside[row].get_yticks(),
                (text.get_text() for text in beside[row].get_yticklabels()),
                strict=True,
            )
        )
        assert beside[row].get_ylim() == panels[3 * row].get_ylim() == (0, 1)
        assert (
            ticks[0.0] == "1"
            and ticks[smallest_distance(0.05, 120)] == "0.05"
            and "1e-24" in ticks.values()
        )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "retrained, taught the same",
        *(style.LABELS[name] for name in METHODS),
        "before unlearning",
    ]


# --- requests in turn ---


@pytest.fixture(scope="module")
def once(context: Context) -> Context:
    return replace(context, scale=replace(context.scale, trained=1))


@pytest.fixture(scope="module")
def requested(once: Context) -> pd.DataFrame:
    return sequential.data(once)


def test_three_requests_under_every_corner_with_what_each_stage_left(
    requested: pd.DataFrame, context: Context
) -> None:
    rows = requested[requested["kind"] == "request"]
    assert [*dict.fromkeys(rows["method"])] == METHODS
    for _, own in rows.groupby("method"):
        assert own[["stage", "request"]].to_numpy().tolist() == [
            [s, r] for s in range(4) for r in range(1, 4)
        ]
        assert own["requested"].tolist() == [r <= s for s in range(4) for r in range(1, 4)]
        assert (own["examples"] == 5).all()
        for kind, column, stage in (("original", "logp", 0), (RETRAINED, "retrained_logp", 3)):
            values = per_token(default_log(context, kind)).sort_index().to_numpy().reshape(3, 5)
            found = own.loc[own["stage"] == stage, column].to_numpy(dtype=float)
            np.testing.assert_allclose(found, values.mean(axis=1), rtol=1e-5)
    ends = rows[rows["stage"] == 3].groupby("method")["logp"].mean()
    assert ends.nunique() == 4


def test_every_stage_says_which_parameters_it_began_with(requested: pd.DataFrame) -> None:
    folders = sorted((storage.cache_dir() / "unlearning").glob(f"*/{STAGE.format(1)}"))
    assert len(folders) == len(METHODS)
    for place in (folder.parent for folder in folders):
        runs = [read_run(place / STAGE.format(stage)) for stage in (1, 2, 3)]
        began = [run.settings["parameters"] for run in runs]
        ended = [parameters_digest(load(run.folder / MODEL).model) for run in runs]
        assert began[1:] == ended[:-1] and len({*began, *ended}) == 4


def test_requests_are_kept_go_on_where_they_were_and_are_made_anew_when_asked_for(
    once: Context, requested: pd.DataFrame
) -> None:
    before = files_in(storage.cache_dir())
    with without_models():
        pd.testing.assert_frame_equal(sequential.data(once), requested, check_dtype=False)
    assert files_in(storage.cache_dir()) == before
    stages = files_in(storage.cache_dir() / "unlearning")
    for path in (storage.cache_dir() / "tables").glob("sequential_runs-*"):
        path.unlink()
    again = sequential.data(once)  # from the folders of the stages
    pd.testing.assert_frame_equal(again, requested, check_dtype=False)
    assert files_in(storage.cache_dir() / "unlearning") == stages
    with without_models(), pytest.raises(InvalidInput, match="SIMNPO_LAB_CACHE"):
        sequential.data(replace(once, since=time.time()))


def test_the_quick_study_has_two_requests_for_two_authors() -> None:
    assert [len(part) for part in requests_of(FORGET)] == [5, 5, 5]
    assert [len(part) for part in requests_of(FORGET[:10])] == [5, 5]


LENGTH = np.random.default_rng(5).integers(2, 60, 36).astype(float)


def some_log(seed: int, first: int = 0, count: int = 36) -> EvaluationLog:
    """A log of `count` of the 36 examples, of which two wrong answers are known."""
    length, average = (
        LENGTH[first : first + count],
        np.random.default_rng(seed).uniform(0.1, 3, (4, count)),
    )
    gold, right = (Answers(average[row], average[row] * length, length) for row in (0, 1))
    wrong = Answers(average[2:].T, average[2:].T * length[:, None], np.tile(length[:, None], 2))
    return EvaluationLog("a log", "made", np.arange(first, first + count), gold, right, wrong)


def some_requests() -> tuple[Sequential, EvaluationLog, dict[tuple[int, int], EvaluationLog]]:
    logs = {(s, r): some_log(10 * s + r, 12 * r, 12) for s in range(4) for r in range(3)}
    tables = [log_table(log).assign(stage=s, request=r) for (s, r), log in logs.items()]
    rng = np.random.default_rng(7)
    stages = pd.DataFrame(
        {"stage": range(4), "forget_loss": 1.0, "retain_loss": rng.uniform(0.1, 1, 4)}
    )
    return (
        Sequential(pd.concat(tables, ignore_index=True), stages.assign(status="ok")),
        some_log(99),
        logs,
    )


def test_requests_are_held_against_the_retrained_model_one_by_one_and_together() -> None:
    found, retrained, logs = some_requests()
    frame = frame_of_requests(found, retrained)
    theirs = truth_ratio(retrained).reshape(3, 12)
    row: Any
    for row in frame[frame["kind"] == "request"].to_dict("records"):
        request = int(row["request"]) - 1
        log = logs[int(row["stage"]), request]
        test = stats.ks_2samp(truth_ratio(log), theirs[request], method="exact")
        assert (row["ks_statistic"], row["forget_quality"]) == pytest.approx(
            (test.statistic, test.pvalue)
        )  # pyright: ignore[reportAttributeAccessIssue]
        assert (row["logp"], row["low"], row["high"]) == pytest.approx(
            mean_interval(-log.gold.average)[:3]
        )
        assert row["retrained_logp"] == pytest.approx(
            -retrained.gold.average[12 * request : 12 * request + 12].mean()
        )
        assert row["critical"] == smallest_distance(0.05, 12)
    so_far = frame[frame["kind"] == "so_far"].set_index("stage")
    assert so_far["retain_loss"].tolist() == found.stages["retain_loss"].tolist()
    assert so_far["examples"].isna().tolist() == [True, False, False, False]
    for stage in range(1, 4):
        ratios = np.concatenate([truth_ratio(logs[stage, request]) for request in range(stage)])
        test = stats.ks_2samp(ratios, theirs[:stage].ravel(), method="exact")
        row = so_far.loc[stage]
        assert (row["ks_statistic"], row["forget_quality"]) == pytest.approx(
            (test.statistic, test.pvalue)
        )  # pyright: ignore[reportAttributeAccessIssue]
        assert (row["examples"], row["critical"]) == (
            12 * stage,
            smallest_distance(0.05, 12 * stage),
        )


def test_requests_are_drawn_as_they_were_found() -> None:
    parts = []
    for place, method in enumerate(METHODS):
        found, retrained, _ = some_requests()
        answers = found.answers.assign(logp=found.answers["logp"] * (1 + place / 10))
        parts.append(
            frame_of_requests(found._replace(answers=answers), retrained).assign(method=method)
        )
    frame = pd.concat(parts, ignore_index=True).assign(training=0)
    figure = drawn(sequential, frame)
    assert len(figure.axes) == 8
    rows, so_far = frame[frame["kind"] == "request"], frame[frame["kind"] == "so_far"]
    panels: list[tuple[pd.DataFrame, str]] = [
        (rows[rows["request"] == number], "logp") for number in (1, 2, 3)
    ]
    panels += [(so_far, "retain_loss")]
    panels += [(rows[rows["request"] == number], "ks_statistic") for number in (1, 2, 3)]
    panels += [(so_far.dropna(subset="ks_statistic"), "ks_statistic")]
    for axes, (own, column) in zip(figure.axes, panels, strict=True):
        assert curves(axes) == {
            color(str(m)): part[column].tolist() for m, part in own.groupby("method")
        }
        others = [
            np.asarray(line.get_ydata()).tolist() for line in axes.lines if line.get_marker() != "o"
        ]
        levels = {"logp": "retrained_logp", "ks_statistic": "critical"}
        known = sorted(set(own[levels[column]])) if column in levels else []
        assert [sorted(set(one)) for one in others] == ([known] if known else [])
    assert [axes.get_title("left") for axes in figure.axes[:4]] == [
        *(f"request {n}" for n in (1, 2, 3)),
        "what is to stay",
    ]
    limits = {axes.get_ylim() for axes in figure.axes[:3]}
    assert len(limits) == 1
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*(style.LABELS[name] for name in METHODS), "retrained model", "D of p = 0.05"]


def in_trainings(shift: dict[str, float], seeds: int = 5) -> pd.DataFrame:
    """Requests in several trainings: retain losses that a method shifts, and D that it halves."""
    rng, frames = np.random.default_rng(3), []
    found, retrained, _ = some_requests()
    base = frame_of_requests(found, retrained)
    for seed in range(seeds):
        for method in METHODS:
            noise = rng.normal(0, 0.01, 2)
            own = base.assign(method=method, training=seed)
            own["retain_loss"] += 1 + noise[0] + shift.get(method, 0)
            own["ks_statistic"] = own["ks_statistic"] / (2 if method == "npo" else 1) + noise[1]
            own.loc[own["stage"] == 3, "logp"] += 0.5 * (method == "simnpo")
            frames.append(own)
    logs = [some_log(99 + seed) for seed in range(3)]
    parts = requests_of([replace(one, index=place) for place, one in enumerate(FORGET)])
    frames.append(sequential.floors(logs, parts))
    return pd.concat(frames, ignore_index=True)


def test_what_is_left_after_all_requests_is_judged_within_trainings() -> None:
    shift = {"simnpo": -0.3, "reference_free_npo": 0.3}
    frame = in_trainings(shift)
    told = sequential.told(frame)
    claims: Any = told["claims"].set_index("claim")
    assert claims["verdict"].to_dict() == {
        "kept": "holds",
        "nearer": "contradicted",
        "kept, reference": "contradicted",
        "kept, length": "inconclusive",
    }
    last = frame[(frame["kind"] == "so_far") & (frame["stage"] == 3)].set_index("training")
    loss = {name: own["retain_loss"] for name, own in last.groupby("method")}
    assert claims.loc["kept", ["value", "low", "high"]].tolist() == pytest.approx(
        mean_interval((loss["npo"] - loss["simnpo"]).to_numpy())[:3]
    )
    so_far: Any = told["so_far"].set_index(["quantity", "method", "stage"])
    assert so_far.loc[("retain_loss", "npo", 3), ["value", "low", "high"]].tolist() == (
        pytest.approx(mean_interval(loss["npo"].to_numpy())[:3])
    )
    back = told["came_back"].set_index("method")["value"]
    assert back["simnpo"] - back["npo"] == pytest.approx(0.5)
    assert set(claims["count"]) == set(told["came_back"]["count"]) == {5}
    one = sequential.told(in_trainings(shift, seeds=1))
    assert set(one["claims"]["verdict"]) == {"inconclusive"}


def test_the_floor_is_d_between_any_two_retrained_models_on_the_answers_asked_about() -> None:
    logs = [some_log(seed) for seed in range(3)]
    parts = requests_of([replace(one, index=place) for place, one in enumerate(FORGET)])
    frame, slow = sequential.floors(logs, parts), []
    for asked in ([0], [1], [2], [0], [0, 1], [0, 1, 2]):
        at = [example.index for place in asked for example in parts[place]]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            mine, theirs = (truth_ratio(logs[seed])[at] for seed in (one, other))
            slow.append(stats.ks_2samp(mine, theirs, method="asymp").statistic)  # pyright: ignore[reportAttributeAccessIssue]
    assert frame["ks_statistic"].tolist() == pytest.approx(slow)
    assert frame["request"].dropna().tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert frame["stage"].dropna().tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert sequential.floors(logs[:1], parts).empty


def test_requests_of_several_trainings_are_drawn_as_means_with_their_intervals() -> None:
    frame = in_trainings({})
    figure = drawn(sequential, frame)
    so_far = frame[frame["kind"] == "so_far"]
    loss = so_far.groupby(["method", "stage"])["retain_loss"].mean()
    found = curves(figure.axes[3])
    for method in METHODS:
        assert found[color(method)] == pytest.approx(loss[method].tolist())
    assert len(figure.axes[3].collections) == len(METHODS)
    assert figure.legends[0].get_texts()[-1].get_text() == "two retrained models"


def test_the_band_of_two_retrained_models_is_drawn_with_what_comes_back() -> None:
    floor = pd.DataFrame({"kind": "floor", "value": [0.1, 0.2]})
    frame = pd.concat([frame_of_attacks(some_attacks(), 120), floor], ignore_index=True)
    axes = drawn(relearning, frame).axes[:6]
    noted = [any("two retrained" in text.get_text() for text in one.texts) for one in axes]
    assert noted == [True, False, False, True, False, False]


def test_frames_survive_the_disk(tmp_path: Path) -> None:
    found, retrained, _ = some_requests()
    for frame in (frame_of_attacks(some_attacks(), 40), frame_of_requests(found, retrained)):
        storage.write_table(frame, tmp_path / "frame.parquet", {})
        pd.testing.assert_frame_equal(
            storage.read_table(tmp_path / "frame.parquet"), frame, check_dtype=False
        )


def test_the_corners_are_those_of_the_study() -> None:
    assert list(corners(0.1, 4.5)) == list(TINY.objectives())
    assert {model: len(style.LABELS[model]) > 0 for model in METHODS} == dict.fromkeys(
        METHODS, True
    )
