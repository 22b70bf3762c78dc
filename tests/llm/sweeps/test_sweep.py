"""Methods in words, task vectors, and sweeps: what is asked for is what is run, evaluated, kept
and tabulated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llm.__main__ import cli, parse
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.splits import TofuSets, tofu_sets
from llm.evaluation.folders import COLUMNS, evaluate_into, tofu_measure
from llm.evaluation.tofu import evaluate
from llm.jobs.sweeping import TABLE, Sweep, runs_of
from llm.logs.log import truth_ratio
from llm.logs.measures import model_utility
from llm.logs.summaries import best, over_seeds, summary
from llm.models.answers import responses
from llm.models.language_model import LanguageModel
from llm.models.small_authors import DefaultModels, build, folder_of, sets
from llm.models.source import ModelOptions, load
from llm.sweeps import sweep as sweep_module
from llm.sweeps.along import epochs
from llm.sweeps.sweep import PlannedRun, Task, baseline, sweep
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from llm.unlearning.methods import METHODS, Method, method, method_of, methods, objective
from llm.unlearning.runs import EPOCHS, MODEL, read_run, unlearn_into
from llm.unlearning.task_vectors import negate_task_vector
from llm.unlearning.unlearn import Unlearning
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import CORNERS, Objective, simnpo
from markov.preferences import Preference, dpo, idk, simpo
from tests.helpers import files_in

SMALL = DefaultModels(
    authors=Authors(authors=20, questions=4),
    percent=10,
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    vocabulary=300,
    passes=2,
    batch=32,
    precision="float32",
)
FORGET, RETAIN = sets(SMALL)
EVERY = Optimization(epochs=2, batch=4, learning_rate=3e-3)
WORDS = ("npo:0.1@1", "idk@1", "gradient_ascent")
# Models of random weights do no better than guessing, and write nothing.
pytestmark = pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("small")))
        # A few questions of each set: what is asked here is what becomes of them.
        few = lambda word, **options: TofuSets(*(part[:6] for part in tofu_sets(word, **options)))  # noqa: E731
        patch.setattr(sweep_module, "tofu_sets", few)
        yield


@pytest.fixture(scope="module")
def task(own_cache: None) -> Task:
    for kind in ("original", "retrained"):
        build(SMALL, kind, progress=False)
    return Task(
        options=ModelOptions(model=str(folder_of(SMALL, "original")), device="cpu"),
        retrained=str(folder_of(SMALL, "retrained")),
        data="authors:forget10",
        authors=SMALL.authors,
        max_new_tokens=6,
        save_models=True,
    )


def wanted(words: tuple[str, ...] = WORDS, **changes: Any) -> list[PlannedRun]:
    return [PlannedRun(method=one, optimization=EVERY, **changes) for one in methods(words)]


@pytest.fixture(scope="module")
def swept(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("sweep")
    runs = [*wanted(measured=(0, 2)), PlannedRun(method=None, scale=0.5, optimization=EVERY)]
    return folder, sweep(folder, task, runs, n_jobs=1, progress=False)


# --- words ----------------------------------------------------------------------------------------


numbers = st.sampled_from([0.05, 0.1, 1.0, 2.5, 4.5])


@st.composite
def some_methods(draw: st.DrawFn) -> Method:
    name = draw(st.sampled_from(sorted(METHODS)))
    form = METHODS[name]
    margin = draw(st.sampled_from([0.0, 1.0]))
    law = form.objective._replace(
        **({"beta": draw(numbers), "gamma": margin} if form.takes else {})
    )
    weight = draw(numbers) if form.retain_term != "none" else 1.0
    return Method(name, law, form.retain_term, weight, form.average)


@given(one=some_methods())
def test_a_method_is_its_word_and_its_settings(one: Method) -> None:
    assert method(one.word) == one
    settings = one.unlearning(EVERY)
    assert settings == Unlearning(
        objective=one.objective,
        optimization=EVERY,
        retain_term=one.retain_term,
        retain_weight=one.retain_weight,
        average=one.average,
    )
    assert method_of(settings) == one
    assert one.prefers == (one.name in ("idk", "dpo", "simpo"))
    assert one.label.startswith(METHODS[one.name].title)
    for sign, value in (("β", one.objective.beta), ("λ", one.retain_weight)):
        takes = one.retain_term != "none" if sign == "λ" else "beta" in METHODS[one.name].takes
        assert (f"{sign} = {value:g}" in one.label) == takes


def test_the_table_of_methods_holds_the_laws_that_their_names_stand_for() -> None:
    for name, (reference, normalize) in CORNERS.items():
        assert method(f"{name}:2").objective == Objective(2.0, 0.0, reference, normalize)
    for name in (
        "gradient_ascent",
        "mean_gradient_ascent",
        "grad_diff",
        "summed_grad_diff",
        "ga_kl",
        "summed_ga_kl",
    ):
        assert method(name).objective == Objective(0.0)
    released = {name for name, form in METHODS.items() if form.average == "tokens"}
    assert released == {"mean_gradient_ascent", "grad_diff", "ga_kl"}
    assert method("weighted_grad_diff").objective == Objective(0.0, normalize=1.0)
    assert (method("gradient_ascent").retain_term, method("grad_diff").retain_term) == (
        "none",
        "cross_entropy",
    )
    assert {name for name, form in METHODS.items() if form.retain_term == "kl"} == {
        "ga_kl",
        "summed_ga_kl",
        "npo_kl",
        "simnpo_kl",
    }
    assert method("idk").objective == idk() and method("dpo:0.1").objective == dpo(0.1)
    assert method("simpo:2:0.5").objective == simpo(2.0, 0.5) and method(
        "simnpo_kl:3:1"
    ).objective == simnpo(3.0, 1.0)
    titles = [form.title for form in METHODS.values()]
    assert len(set(titles)) == len(titles)


def test_a_method_that_lies_between_the_named_ones_has_no_name() -> None:
    for settings in (
        Unlearning(objective=Objective(1.0, reference=0.5), retain_term="cross_entropy"),
        Unlearning(objective=Objective(0.1, reference=1.0), retain_term="none"),
    ):
        with pytest.raises(InvalidInput, match="objective"):
            method_of(settings)
    silent = Unlearning(objective=Objective(0.0), retain_term="cross_entropy", retain_weight=0.0)
    assert method_of(silent).name == "gradient_ascent"


def test_what_words_leave_open_takes_every_value_in_turn() -> None:
    found = methods(
        ["npo", "simnpo:4.5", "gradient_ascent", "idk@2"],
        beta=(0.1, 0.2),
        gamma=(0, 1),
        retain_weight=(1, 3),
    )
    npo = [f"npo:{beta}@{weight}" for beta, weight in itertools.product((0.1, 0.2), (1, 3))]
    margins = ["simnpo:4.5@1", "simnpo:4.5@3", "simnpo:4.5:1@1", "simnpo:4.5:1@3"]
    assert [one.word for one in found] == [*npo, *margins, "gradient_ascent", "idk@2"]


@pytest.mark.parametrize(
    "word",
    [
        "mpo:1",
        "npo:x",
        "npo:1:2:3",
        "npo:-1",
        "npo:inf",
        "gradient_ascent:1",
        "gradient_ascent@1",
        "npo:1@-1",
        "npo:1@x",
        "idk:1",
        "npo:1@",
        "npo:nan",
        "npo",
        "@1",
    ],
)
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(InvalidInput, match="is not allowed"):
        method(word)


def test_what_is_no_word_is_refused() -> None:
    with pytest.raises(InvalidInput, match="method = 5 is not allowed"):
        method(5)  # pyright: ignore[reportArgumentType]


def test_a_method_comes_once() -> None:
    with pytest.raises(InvalidInput, match="each method once"):
        methods(["npo:0.1", "npo"], beta=(0.1,))
    with pytest.raises(InvalidInput, match="at least one"):
        methods([])


def test_one_word_is_one_law_to_every_command() -> None:
    assert method("idk").objective == idk() and method("dpo:0.1").objective == dpo(0.1)
    for word in (
        "simnpo:2.5:0.5",
        "npo:0.1:0.5@2",
        "npo:0.1@0.125",
        "gradient_ascent",
        "grad_diff",
        "weighted_grad_diff@3",
    ):
        assert objective(word) == method(word).objective
        assert [one.objective for one in methods([word])] == [objective(word)]
    assert objective("npo:0.1:0.5@2") == Objective(0.1, 0.5, 1.0, 0.0)
    for word in (
        "idk:1",
        "dpo",
        "dpo:x",
        "dpo:-1",
        "npo",
        "gradient_ascent@1",
        "npo:1:2:3",
        "mpo:1",
    ):
        for read in (method, objective):
            with pytest.raises(InvalidInput):
                read(word)
    with pytest.raises(
        InvalidInput, match=r"objective = 'dpo:0.1' is not allowed: a method of single responses"
    ):
        objective("dpo:0.1")


# --- task vectors ---------------------------------------------------------------------------------


def test_a_task_vector_is_what_fine_tuning_adds_and_is_taken_away_to_scale(task: Task) -> None:
    language = build(SMALL, "original", progress=False)
    before = {name: value.clone() for name, value in language.model.state_dict().items()}
    encoded = responses(language, FORGET)
    again = build(SMALL, "original", progress=False).model
    fine_tune(again, encoded, EVERY, progress=False)
    for scale in (0.0, 1.0, 2.0):
        found = negate_task_vector(language, encoded, EVERY, scale=scale, progress=False).model
        theirs = dict(again.named_parameters())
        for name, value in found.named_parameters():
            torch.testing.assert_close(value, (1 + scale) * before[name] - scale * theirs[name])
    assert all(
        torch.equal(value, before[name]) for name, value in language.model.state_dict().items()
    )
    for scale in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InvalidInput, match="scale"):
            negate_task_vector(language, encoded, EVERY, scale=scale, progress=False)


# --- evaluations in folders -----------------------------------------------------------------------


def test_an_evaluation_in_a_folder_is_that_of_the_model_and_is_read_the_second_time(
    task: Task, tmp_path: Path
) -> None:
    def start() -> LanguageModel:
        return build(SMALL, "original", progress=False)

    def refuse() -> LanguageModel:
        raise AssertionError("loaded again")

    own, options = task.sets(), {"max_new_tokens": 6, "progress": False}
    truth = evaluate(start(), own, max_new_tokens=6, progress=False)
    for load_it in (start, refuse):
        found = evaluate_into(tmp_path, load_it, own, {"model": "a"}, **options)
        for log, other in zip(found, truth, strict=True):
            assert log is not None and other is not None
            np.testing.assert_allclose(log.gold.average, other.gold.average, rtol=1e-12)
            assert log.generation == other.generation
    for changed in ({"settings": {"model": "b"}}, {"max_new_tokens": 5}, {"variant": "arithmetic"}):
        with pytest.raises(InvalidInput, match="out = "):
            evaluate_into(
                tmp_path, refuse, own, **{"settings": {"model": "a"}, **options, **changed}
            )
    with pytest.raises(InvalidInput, match="out = "):
        evaluate_into(
            tmp_path, refuse, own._replace(retain=own.retain[:-1]), {"model": "a"}, **options
        )


def test_what_is_measured_along_a_run_is_what_is_measured_of_the_model_then(
    task: Task, swept: tuple[Path, pd.DataFrame]
) -> None:
    folder, table = swept
    runs = wanted(measured=(0, 2))
    found = epochs(folder, runs, table)
    assert list(found["epoch"]) == [0, 1, 2] * len(WORDS) and list(found["model"].unique()) == list(
        WORDS
    )
    assert found.loc[found["epoch"] == 1, list(COLUMNS)].isna().all(axis=None)
    value = table.set_index(["model", "measure", "task"])["value"]
    for measure, name in (
        ("model_utility", "all"),
        ("ks_statistic", "forget"),
        ("forget_quality", "forget"),
    ):
        for run in runs:
            recorded = storage.read_table(folder / run.folder / EPOCHS)
            joined = found[found["model"] == run.word]
            for epoch, model in ((0, "original"), (2, run.word)):
                truth = value[model, measure, name]
                np.testing.assert_allclose(
                    recorded.loc[recorded["epoch"] == epoch, measure], truth, rtol=1e-5
                )
                assert joined.loc[joined["epoch"] == epoch, measure].item() == truth


def test_a_measure_needs_wrong_answers_and_is_named_by_all_that_it_depends_on(task: Task) -> None:
    own, retrained = task.sets(), None
    names = {
        tofu_measure(own, retrained, (0,)).name,
        tofu_measure(own, retrained, (0, 1)).name,
        tofu_measure(own, retrained, (0,), variant="arithmetic").name,
        tofu_measure(own, retrained, (0,), max_new_tokens=3).name,
        tofu_measure(own._replace(forget=own.forget[1:]), retrained, (0,)).name,
    }
    assert len(names) == 5
    call = tofu_measure(own, None, (0,), max_new_tokens=2).call
    found = call(0, build(SMALL, "original", progress=False))
    assert np.isnan(found["ks_statistic"]) and 0 <= found["model_utility"] <= 1
    bare = own._replace(retain=tuple(replace(one, perturbed=()) for one in own.retain))
    with pytest.raises(InvalidInput, match="perturbed"):
        tofu_measure(bare, None, (0,))


# --- sweeps ---------------------------------------------------------------------------------------


def test_a_sweep_has_each_run_in_a_folder_and_all_their_measures_in_one_table(
    task: Task, swept: tuple[Path, pd.DataFrame]
) -> None:
    folder, table = swept
    assert list(table["model"].unique()) == ["original", "retrained", *WORDS, "task_vector:0.5"]
    assert list(table["title"].unique()) == [
        "original",
        "retrained",
        "NPO",
        "IDK",
        "GA",
        "task vector",
    ]
    retrained = baseline(folder / "retrained", task, "retrained").of("forget")
    for run in wanted(measured=(0, 2)):
        logs = evaluate(
            load(folder / run.folder / MODEL), task.sets(), max_new_tokens=6, progress=False
        )
        own = table[table["model"] == run.word].set_index(["measure", "task"])
        assert own.loc[("model_utility", "all"), "value"] == pytest.approx(
            model_utility(logs), rel=1e-5
        )
        found = stats.ks_2samp(truth_ratio(logs.of("forget")), truth_ratio(retrained))
        statistic = found.statistic  # pyright: ignore[reportAttributeAccessIssue]
        assert own.loc[("ks_statistic", "forget"), "value"] == pytest.approx(statistic)
        assert run.method is not None
        assert read_run(folder / run.folder).forgetting == run.method.objective
    assert table.loc[
        table["title"] == "NPO", ["beta", "retain_weight", "seed"]
    ].drop_duplicates().values.tolist() == [[0.1, 1.0, 0.0]]
    assert table.loc[table["title"] == "GA", ["beta", "retain_weight"]].isna().all(axis=None)
    assert (
        table.loc[(table["model"] == "retrained") & (table["measure"] == "ks_statistic"), "value"]
        == 0
    ).all()


def test_runs_of_pairs_prefer_refusals_and_others_are_given_none(
    swept: tuple[Path, pd.DataFrame],
) -> None:
    folder, _ = swept
    by_word = {run.word: read_run(folder / run.folder) for run in wanted()}
    assert (
        "preferred_logp" in by_word["idk@1"].examples
        and "preferred_logp" not in by_word["npo:0.1@1"].examples
    )
    taught = by_word["idk@1"].examples.groupby("epoch")["preferred_logp"].mean()
    assert taught.iloc[-1] > taught.iloc[0]
    with pytest.raises(InvalidInput, match="single responses"):
        _ = by_word["idk@1"].objective
    assert isinstance(by_word["idk@1"].forgetting, Preference)
    assert by_word["npo:0.1@1"].objective == Objective(0.1, 0.0, 1.0, 0.0)


def test_a_second_sweep_loads_nothing_and_gives_the_same_table(
    task: Task, swept: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder, table = swept
    before = files_in(folder)
    runs = [*wanted(measured=(0, 2)), PlannedRun(method=None, scale=0.5, optimization=EVERY)]
    models = [Path(word) for word in (task.options.model, task.retrained) if word]
    assert len(models) == 2
    aside = [model.rename(tmp_path / model.name) for model in models]
    try:
        again = sweep(folder, task, runs, n_jobs=1, progress=False)
    finally:
        for model, place in zip(models, aside, strict=True):
            place.rename(model)
    pd.testing.assert_frame_equal(again, table)
    assert files_in(folder) == before
    with pytest.raises(InvalidInput, match="out = "):
        sweep(folder, replace(task, max_new_tokens=5), runs, n_jobs=1, progress=False)
    with pytest.raises(InvalidInput, match="out = "):
        sweep(folder, task, wanted(retain_probe=3), n_jobs=1, progress=False)
    with pytest.raises(InvalidInput, match="each method and seed once"):
        sweep(folder, task, [*runs, runs[0]], n_jobs=1, progress=False)


def test_a_retrained_model_of_other_tokens_is_refused(task: Task, tmp_path: Path) -> None:
    other = replace(SMALL, vocabulary=290)
    build(other, "retrained", progress=False)
    with pytest.raises(InvalidInput, match="a model with the vocabulary of the one"):
        sweep(
            tmp_path,
            replace(task, retrained=str(folder_of(other, "retrained"))),
            wanted(),
            n_jobs=1,
            progress=False,
        )


class Stopped(Exception):
    """Raised where a sweep is to be stopped."""


def test_a_sweep_that_was_stopped_goes_on_to_the_same_table(
    task: Task, swept: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, table = swept
    thrifty, calls = replace(task, save_models=False), []

    def stop(*args: Any, **options: Any) -> Any:
        calls.append(args)
        # both baselines and a run are evaluated: now a model has been unlearned, not more
        if len(calls) == 3:
            raise Stopped
        return evaluate_into(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(
            sweep_module, "evaluate_into", lambda *args, **options: stop(*args, **options)
        )
        with pytest.raises(Stopped):
            sweep(tmp_path, thrifty, wanted(measured=(0, 2)), n_jobs=1, progress=False)
    assert (tmp_path / "original").exists() and not (
        tmp_path / wanted()[0].folder / "TOFU_EVAL.json"
    ).exists()
    found = sweep(tmp_path, thrifty, wanted(measured=(0, 2)), n_jobs=1, progress=False)
    other = table[table["title"] != "task vector"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, other, rtol=1e-5)
    assert not list(tmp_path.glob(f"*/{MODEL}"))  # none is kept that was not wanted
    assert all((tmp_path / run.folder / EPOCHS).exists() for run in wanted())


def rows(values: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A table of (D, utility) by title and word, a row per seed."""
    found = []
    for title, own in values.items():
        for word, pairs in own.items():
            for seed, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
                for measure, value in zip(("ks_statistic", "model_utility"), pair, strict=True):
                    found.append(
                        {
                            "title": title,
                            "model": word,
                            "seed": seed,
                            "measure": measure,
                            "task": "all" if measure == "model_utility" else "forget",
                            "value": value,
                        }
                    )
    return pd.DataFrame(found)


def test_the_best_settings_are_the_closest_of_those_that_keep_utility_else_the_most_useful() -> (
    None
):
    table = rows(
        {
            "original": {"original": (0.9, 0.60)},
            "NPO": {
                "npo:1": (0.3, 0.56),
                "npo:2": (0.2, 0.58),
                "npo:3": (0.1, 0.571),
                "npo:4": (0.0, 0.569),
            },
            "GA": {"ga:1": (0.1, 0.2), "ga:2": (0.5, 0.3)},
        }
    )
    found = best(table).set_index("title")
    assert (
        found.loc["NPO", "model"] == "npo:3"
        and found.loc["NPO", "within"]
        and found.loc["NPO", "runs"] == 4
    )
    assert found.loc["GA", "model"] == "ga:2" and not found.loc["GA", "within"]
    assert best(table, 0.5).set_index("title").loc["GA", "model"] == "ga:2"
    assert best(table, 0.9).set_index("title").loc["GA", "model"] == "ga:1"
    for tolerance in (-0.1, 1.0):
        with pytest.raises(InvalidInput, match="tolerance"):
            best(table, tolerance)


def test_the_best_settings_are_so_in_the_mean_over_seeds() -> None:
    values: Any = {
        "original": {"original": (0.9, 0.60)},
        "NPO": {"npo:1": [(0.0, 0.60), (0.4, 0.60)], "npo:2": [(0.15, 0.6), (0.1, 0.6)]},
    }
    table = rows(values)
    assert best(table).set_index("title").loc["NPO", "model"] == "npo:2"
    # Extraction strength of the forget set stands beside D, and chooses nothing.
    utility = table[table["measure"] == "model_utility"]
    more = [
        utility.assign(measure="extraction_strength", task=task, value=value)
        for task, value in (("retain", 0.9), ("forget", [0.8, 0.1, 0.3, 0.4, 0.6]))
    ]
    found = best(pd.concat([table, *more])).set_index("title")
    assert found.loc["NPO", "model"] == "npo:2"
    assert found.loc["NPO", "extraction_strength"] == pytest.approx(0.5)
    short = pd.concat([table, more[0], more[1].iloc[:-1]])  # of one seed it is not known
    assert best(short).set_index("title")["extraction_strength"].isna()["NPO"]


def test_a_measure_that_some_runs_of_a_model_lack_is_left_out_of_its_row() -> None:
    frame = pd.DataFrame(
        [
            ("m", "ks_statistic", 0.2),
            ("m", "ks_statistic", 0.4),
            ("m", "extraction_strength", 0.5),
            ("other", "extraction_strength", 0.7),
        ],
        columns=["model", "measure", "value"],
    ).assign(task="forget", low=0.0, high=1.0)
    found = over_seeds(frame)
    assert found[["model", "measure", "seeds"]].to_numpy().tolist() == [
        ["m x2", "ks_statistic", 2],
        ["other", "extraction_strength", 1],
    ]


@given(values=st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
def test_several_seeds_become_a_mean_with_an_interval_and_p_values_a_median(
    values: list[float],
) -> None:
    frame = pd.DataFrame(
        [
            {
                "model": "m",
                "measure": measure,
                "task": "forget",
                "value": value,
                "low": 0.0,
                "high": 1.0,
                "seed": seed,
            }
            for seed, value in enumerate(values)
            for measure in ("ks_statistic", "forget_quality")
        ]
    )
    found = over_seeds(frame).set_index("measure")
    assert found["model"].tolist() == [f"m x{len(values)}"] * 2
    assert list(found["seeds"]) == [len(values)] * 2
    row = found.loc["ks_statistic"]
    assert pytest.approx(np.mean(values)) == row["value"]
    if np.ptp(values) > 1e-3:
        interval = stats.ttest_1samp(values, 0).confidence_interval()  # pyright: ignore[reportAttributeAccessIssue]
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    row = found.loc["forget_quality"]
    assert (row["low"], row["value"], row["high"]) == pytest.approx(
        (min(values), np.median(values), max(values))
    )


# --- the command ----------------------------------------------------------------------------------


def test_the_default_sweep_is_the_table_of_the_paper_with_both_ablations() -> None:
    runs = runs_of(Sweep())
    assert [run.word for run in runs] == list(TABLE)
    assert {*CORNERS, "gradient_ascent", "grad_diff"} == {
        run.method.name for run in runs if run.method
    }
    assert {run.optimization.epochs for run in runs} == {10} and {
        run.optimization.batch for run in runs
    } == {16}
    large = runs_of(Sweep(model="somebody/llama", learning_rate=2e-5))[0].optimization
    assert (large.batch, large.learning_rate) == (32, 2e-5)
    grid = runs_of(
        Sweep(methods=("simnpo",), beta=(1, 2), gamma=(0, 1), seeds=(3, 4), task_vectors=(0.5,))
    )
    assert [(run.word, run.optimization.seed) for run in grid] == [
        *(
            (word, seed)
            for word in ("simnpo:1@1", "simnpo:1:1@1", "simnpo:2@1", "simnpo:2:1@1")
            for seed in (3, 4)
        ),
        ("task_vector:0.5", 3),
        ("task_vector:0.5", 4),
    ]
    assert len({run.folder for run in grid}) == len(grid)


def test_the_command_writes_tables_that_say_what_was_measured(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import llm.jobs.sweeping as command_module

    made = command_module.task_of
    monkeypatch.setattr(
        command_module, "task_of", lambda command: replace(made(command), authors=SMALL.authors)
    )
    words = [
        "--methods",
        "npo",
        "grad_diff",
        "--beta",
        "0.1",
        "--seeds",
        "0",
        "1",
        "--epochs",
        "1",
        "--jobs",
        "1",
    ]
    models = [
        "--model",
        task.options.model,
        "--retrained",
        task.retrained,
        "--max-new-tokens",
        "4",
        "--device",
        "cpu",
    ]
    command = [
        "sweep",
        *words,
        *models,
        "--learning-rate",
        "1e-3",
        "--batch",
        "4",
        "--out",
        str(tmp_path),
    ]
    assert cli(command) == 0
    out = capsys.readouterr().out
    found = pd.read_parquet(tmp_path / "sweep.parquet")
    assert set(found["model"]) == {"original", "retrained", "npo:0.1@1", "grad_diff@1"}
    table = summary(over_seeds(found))
    assert list(table.index) == ["original", "retrained", "npo:0.1@1 x2", "grad_diff@1 x2"]
    text = (tmp_path / "summary.md").read_text("utf-8")
    assert (
        text in out
        and "npo:0.1@1 x2" in text
        and "\\begin{tabular}" in (tmp_path / "summary.tex").read_text("utf-8")
    )
    kept = pd.read_parquet(tmp_path / "summary.parquet")
    np.testing.assert_allclose(kept.to_numpy(dtype=float), table.to_numpy(dtype=float))
    assert list(pd.read_parquet(tmp_path / "best.parquet")["title"]) == [
        "original",
        "retrained",
        "NPO",
        "GradDiff",
    ]
    assert not list(tmp_path.glob(f"*/{MODEL}"))
    manifest = json.loads(
        (tmp_path / "npo_0.1_lambda1_seed1" / "TOFU_EVAL.json").read_text("utf-8")
    )["manifest"]
    assert manifest["settings"]["of"]["run"]["optimization"]["seed"] == 1


def test_a_sweep_over_a_folder_of_files_ends_as_over_the_corpus_itself(
    task: Task, swept: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    parts = splits(SMALL.authors)
    for name in ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed"):
        tofu.write(parts[name], tmp_path / "data" / f"{name}.json")
    folder = replace(task, data=str(tmp_path / "data" / "forget10"), authors=None)
    found = sweep(
        tmp_path / "out", folder, wanted(("idk@1",), measured=(0, 2)), n_jobs=1, progress=False
    )
    whole = swept[1][swept[1]["model"].isin(found["model"].unique())]
    columns = ["model", "task", "measure", "value"]
    pd.testing.assert_frame_equal(
        found[columns].reset_index(drop=True), whole[columns].reset_index(drop=True)
    )


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--methods", "npo"], "methods"),
        (["--methods", "mpo:1"], "method"),
        (["--methods", "npo:0.1@1", "npo:0.1@1"], "methods"),
        (["--data", "authors:retain90"], "data"),
        (["--model", "somebody/llama"], "retrained"),
        (["--tolerance", "1"], "tolerance"),
        (["--jobs", "0"], "jobs"),
        (["--refusals", "nowhere.txt"], "refusals"),
        (["--epochs", "0"], "epochs"),
        (["--task-vectors", "-1", "--methods", "idk"], "scale"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    words: list[str],
    field: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With a file in the way of the cache, work would end at the first model to be made.
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    assert cli(["sweep", *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "SIMNPO_LAB_CACHE" not in error
    assert (
        field in error and len(error.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
    )


def test_unlearn_takes_refusals_and_measures_along_the_way(tmp_path: Path, task: Task) -> None:
    words = tmp_path / "refusals.txt"
    words.write_text("No.\nNever heard of it.\n", "utf-8")
    command = [
        "unlearn",
        "--model",
        task.options.model,
        "--retrained",
        task.retrained,
        "--device",
        "cpu",
    ]
    command += [
        "--objective",
        "dpo:0.1",
        "--refusals",
        str(words),
        "--epochs",
        "1",
        "--measured",
        "0",
        "1",
    ]
    command += [
        "--data",
        "authors:forget01",
        "--retain-data",
        "authors:forget05",
        "--out",
        str(tmp_path / "run"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.data.sources.Authors", lambda: SMALL.authors)
        assert cli(command) == 0
        assert cli([*command[:-1], str(tmp_path / "other"), "--measured", "7"]) == 2
    run = read_run(tmp_path / "run")
    assert run.forgetting == dpo(0.1) and {"preferred_logp", "ref"} <= set(run.examples)
    assert run.epochs[list(COLUMNS)].notna().all(axis=None)


def test_a_finished_run_is_refused_to_other_refusals_and_measures(
    task: Task, tmp_path: Path
) -> None:
    settings = Unlearning(
        objective=idk(), optimization=replace(EVERY, epochs=1), retain_term="cross_entropy"
    )
    answers = tuple(replace(one, response="No.") for one in FORGET)

    def run(**options: Any) -> Any:
        language = build(SMALL, "original", progress=False)
        return unlearn_into(
            tmp_path, language, FORGET, RETAIN[:4], settings, progress=False, **options
        )

    run(preferred=answers)
    assert run(preferred=answers).forgetting == idk()
    for options in (
        {"preferred": tuple(replace(one, response="Never.") for one in FORGET)},
        {
            "preferred": answers,
            "measure": tofu_measure(tofu_sets("authors:forget10", authors=SMALL.authors), None, ()),
        },
    ):
        with pytest.raises(InvalidInput, match="out = "):
            run(**options)


def test_a_sweep_in_words_parses() -> None:
    command = parse(
        ["sweep", "--methods", "simnpo", "idk", "--beta", "2.5", "4.5", "--retain-weight", "0.125"]
    )
    assert isinstance(command, Sweep) and [run.word for run in runs_of(command)] == [
        "simnpo:2.5@0.125",
        "simnpo:4.5@0.125",
        "idk@0.125",
    ]
