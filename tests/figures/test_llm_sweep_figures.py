"""Figures of sweeps: which methods they ask for, that runs are shared and kept, and what is
drawn of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.catalogue import CATALOGUE
from figures.language import beside, best, beta_gamma, graddiff, plane, relearning, runs, sweeps
from figures.language import epochs as llm_epochs
from figures.language import tradeoff as llm_tradeoff
from figures.language.own_model import OwnModel
from figures.language.runs import AuthorsStudy
from llm.data.authors.corpus import Authors
from llm.data.splits import TofuSets, tofu_sets
from llm.models.small_authors import DefaultModels, folder_of
from llm.sweeps import sweep
from llm.sweeps.sweep import Task
from llm.training.checkpointing import parameters_digest
from llm.unlearning.methods import METHODS, method
from llm.unlearning.runs import Run, unlearn_into
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import CORNERS
from tests.helpers import files_in

TINY = AuthorsStudy(
    models=DefaultModels(
        authors=Authors(authors=20, questions=4),
        width=16,
        depth=1,
        heads=2,
        mlp_width=16,
        vocabulary=300,
        passes=1,
        batch=32,
        precision="float32",
    ),
    epochs=2,
    own_epochs=2,
    batch=4,
    learning_rate=3e-3,
)
ALL = (llm_tradeoff, llm_epochs, graddiff, beta_gamma, best)
# Models of random weights do no better than guessing.
pytestmark = pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("study")))
        for module in (
            runs,
            sweeps,
            llm_tradeoff,
            llm_epochs,
            beside,
            graddiff,
            beta_gamma,
        ):
            patch.setattr(module, "study", lambda scale: TINY)
        few = lambda word, **options: TofuSets(*(part[:5] for part in tofu_sets(word, **options)))  # noqa: E731
        patch.setattr(sweep, "tofu_sets", few)
        # What has learnt nothing would write as many tokens as it may.
        patch.setattr(sweeps, "Task", partial(Task, max_new_tokens=4))
        patch.setattr(beta_gamma, "BETAS", (1.0, 4.5))
        patch.setattr(beta_gamma, "GAMMAS", (0.0, 1.0))
        patch.setattr(graddiff, "PLAIN", (1.0,))
        patch.setattr(graddiff, "WEIGHTED", (0.125,))
        patch.setattr(best, "SUMMED", ((0.1, 0.2), (1.0,)))
        patch.setattr(best, "PER_TOKEN", ((4.5,), (0.125,)))
        yield Context(progress=False, n_jobs=1)


@pytest.fixture(scope="module")
def tradeoff(context: Context) -> pd.DataFrame:
    return llm_tradeoff.data(context)


def drawn(module: ModuleType, frame: pd.DataFrame) -> Figure:
    with style.look():
        figure = module.plot(frame)
        figure.canvas.draw()
    return figure


def colors(figure: Figure) -> set[str]:
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {matplotlib.colors.to_hex(line.get_color()).upper() for line in lines}


def test_the_corners_are_asked_for_at_the_settings_of_the_study() -> None:
    chosen = AuthorsStudy()
    found = {one.name: one for one in map(method, sweeps.corner_words(chosen))}
    assert list(found) == list(CORNERS)
    for name, objective in chosen.objectives().items():
        one = next(own for own in found.values() if own.objective == objective)
        assert one.retain_weight == chosen.unlearning(objective).retain_weight, name
    table = [method(word).name for word in sweeps.table_words(chosen)]
    assert {*CORNERS, "gradient_ascent", "grad_diff"} == set(table)
    assert set(sweeps.corner_words(chosen)) <= {*graddiff.words_of(chosen)}
    assert (
        f"simnpo:{chosen.beta_per_token}@{chosen.retain_weight_per_token}"
        in beta_gamma.words_of(chosen)
    )
    assert {method(word).name for word in best.words_of()} == set(CORNERS)


@pytest.mark.parametrize(("last", "found"), [(10, (1, 3)), (5, (1, 3)), (3, (1,)), (1, ())])
def test_epochs_that_are_measured_on_the_way_are_the_first_ones(
    last: int, found: tuple[int, ...]
) -> None:
    assert sweeps.measured_epochs(replace(AuthorsStudy(), epochs=last)) == found


def test_every_method_that_is_drawn_has_a_colour_and_a_name_of_its_own() -> None:
    words = {*sweeps.table_words(AuthorsStudy()), *graddiff.words_of(AuthorsStudy())}
    names = {plane.method_of(word) for word in words}
    assert names <= METHODS.keys() and names <= style.COLORS.keys() and names <= style.LABELS.keys()
    assert (
        len({style.COLORS[name] for name in names})
        == len(names)
        == len({style.LABELS[name] for name in names})
    )


def test_the_tradeoff_has_all_methods_with_intervals_and_the_way_of_the_corners(
    tradeoff: pd.DataFrame,
) -> None:
    measures = tradeoff[tradeoff["kind"] == "measure"]
    words = sweeps.table_words(TINY)
    assert list(measures["model"].unique()) == ["original", "retrained", *words]
    points = plane.points(measures).set_index("model")
    for model, row in points.iterrows():
        own = measures[measures["model"] == model].set_index(["measure", "task"])
        assert row["ks_statistic"] == own.loc[("ks_statistic", "forget"), "value"]
        assert row["model_utility_low"] == own.loc[("model_utility", "all"), "low"]
        assert row["forget_quality"] == own.loc[("forget_quality", "forget"), "value"]
    path = tradeoff[tradeoff["kind"] == "epoch"]
    assert set(path["method"]) == set(CORNERS) and set(path["epoch"]) == {0, 1, 2}
    starts, ends = path[path["epoch"] == 0], path[path["epoch"] == 2].set_index("model")
    assert (starts["ks_statistic"] == points.loc["original", "ks_statistic"]).all()
    for word in sweeps.corner_words(TINY):
        assert ends.loc[word, "ks_statistic"] == pytest.approx(points.loc[word, "ks_statistic"])
    figure = drawn(llm_tradeoff, tradeoff)
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert names == {
        *plane.BASELINES.values(),
        *(style.LABELS[plane.method_of(word)] for word in words),
    }
    assert {style.COLORS[name] for name in CORNERS} <= colors(figure)
    bottom, top = figure.axes[1].get_ylim()
    assert bottom > top  # the smaller D, the better forgotten, the higher


def test_three_models_stand_beside_each_other(
    context: Context, tradeoff: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tradeoff.assign(study="another model", seeds=1)
    kept.loc[kept["measure"] == "model_utility", "value"] += 0.01
    kept.to_csv(tmp_path / "kept.csv", index=False)
    monkeypatch.setattr(beside, "REAL", tmp_path / "kept.csv")
    frame = beside.data(context)
    models = [*plane.BASELINES, "gradient_ascent", "grad_diff", "npo", "simnpo"]
    for _, own in frame.groupby("panel"):
        assert set(own["method"]) == set(models) and len(own) == 2 * len(models)
    rows = zip(frame["panel"], frame["method"], frame["measure"], frame["value"], strict=True)
    at = {(panel, method, measure): value for panel, method, measure, value in rows}
    known = tradeoff[tradeoff["measure"] == "forget_quality"].set_index("method")["value"]
    for name, (quality, utility) in beside.PAPER.items():
        assert at["paper", name, "forget_quality"] == quality
        assert at["paper", name, "model_utility"] == utility
        moved = at["real", name, "model_utility"] - at["default", name, "model_utility"]
        assert moved == pytest.approx(0.01)
        for panel in ("default", "real"):
            assert at[panel, name, "forget_quality"] == known[name]
    figure = drawn(beside, frame)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].endswith("of 200 answers") and titles[2].startswith("another model")
    for name, place in {"npo": (0.57, 0.79), "simnpo": (0.58, 0.99)}.items():
        (line,) = [
            one for one in figure.axes[0].get_lines() if one.get_label() == style.LABELS[name]
        ]
        drawn_at = (np.asarray(line.get_xdata())[0], np.asarray(line.get_ydata())[0])
        assert drawn_at == place


def test_epochs_are_drawn_between_the_levels_of_original_and_retrained(context: Context) -> None:
    frame = llm_epochs.data(context)
    figure = drawn(llm_epochs, frame)
    path = frame[frame["kind"] == "epoch"]
    for axes, measure in zip(figure.axes, llm_epochs.PANELS, strict=True):
        for name in CORNERS:
            own = path[path["method"] == name]
            (line,) = [one for one in axes.get_lines() if one.get_label() == style.LABELS[name]]
            np.testing.assert_allclose(np.asarray(line.get_ydata()), own[measure])
            assert list(np.asarray(line.get_xdata())) == [0, 1, 2]
        levels = frame[(frame["kind"] == "level") & (frame["measure"] == measure)].set_index(
            "model"
        )["value"]
        for model, label in plane.BASELINES.items():
            (line,) = [one for one in axes.get_lines() if one.get_label() == label]
            assert set(np.asarray(line.get_ydata())) == {levels[model]}


def test_the_grid_is_drawn_number_by_number(context: Context) -> None:
    frame = beta_gamma.data(context)
    found = plane.points(frame).dropna(subset=["beta", "gamma"])  # not those before unlearning
    points = found.set_index(["beta", "gamma"]).to_dict("index")
    figure = drawn(beta_gamma, frame)
    for axes, measure in zip(figure.axes, beta_gamma.PANELS, strict=True):
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(texts) == 4
        for row, beta in enumerate((1.0, 4.5)):
            for column, gamma in enumerate((0.0, 1.0)):
                value = points[beta, gamma][measure]
                assert float(texts[column, row]) == pytest.approx(value, abs=0.0051)


def test_graddiff_is_drawn_along_its_retain_weights(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = graddiff.data(context)
    assert set(frame["method"]) == {
        *CORNERS,
        "grad_diff",
        "weighted_grad_diff",
        "idk",
        "dpo",
        *plane.BASELINES,
    }
    second = frame[frame["method"] == "grad_diff"].assign(model="grad_diff@2", retain_weight=2.0)
    figure = drawn(graddiff, pd.concat([frame, second], ignore_index=True))
    assert {text.get_text() for text in figure.axes[0].texts} == {"λ = 1", "λ = 2"}


def test_the_best_of_each_corner_is_marked_by_the_stated_rule(context: Context) -> None:
    frame = best.data(context)
    points = plane.points(frame).set_index("model")
    keep = 0.95 * float(points.loc["original", "model_utility"])  # pyright: ignore[reportArgumentType]
    for name in CORNERS:
        own = points[points["method"] == name]
        (chosen,) = frame.loc[(frame["method"] == name) & frame["best"], "model"].unique()
        within = own[own["model_utility"] >= keep]
        truth = within["ks_statistic"].min() if len(within) else math.nan
        found = points.loc[chosen]
        if len(within):
            assert float(found["ks_statistic"]) == truth
        else:
            assert float(found["model_utility"]) == own["model_utility"].max()
    figure = drawn(best, frame)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(CORNERS) + 2 and any(
        label.startswith("SimNPO, β = 4.5, λ = 0.125") for label in labels
    )


def test_relearning_attacks_the_corners_of_the_tradeoff_and_trains_none_again(
    context: Context, tradeoff: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Path] = []

    def counted(folder: Path, *arguments: Any, **options: Any) -> Run:
        trained.append(folder)
        return unlearn_into(folder, *arguments, **options)

    monkeypatch.setattr(runs, "unlearn_into", counted)
    monkeypatch.setattr(relearning, "REPEATS", 2)
    frame = relearning.data(context)
    assert not trained and set(frame["method"].dropna()) == set(CORNERS)
    # Where the figure is drawn by itself it makes the same models.
    alone = runs.runs(context, ends=True)
    assert len(trained) == len(CORNERS)
    kept = sweeps.corner_runs(context)
    assert kept is not None
    for one, other in zip(kept, alone, strict=True):
        assert parameters_digest(one.model.model) == parameters_digest(other.model.model)
    monkeypatch.setattr(sweeps, "corner_runs", lambda context: None)
    before = files_in(storage.cache_dir() / "tables")
    pd.testing.assert_frame_equal(relearning.data(context), frame)
    assert files_in(storage.cache_dir() / "tables") == before  # every attack was known


def test_a_second_drawing_makes_no_run_and_figures_share_theirs(
    context: Context, tradeoff: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("loaded")

    before = files_in(storage.cache_dir() / "sweeps")
    monkeypatch.setattr(sweep, "load_model", refuse)
    pd.testing.assert_frame_equal(llm_tradeoff.data(context), tradeoff)
    assert set(llm_epochs.data(context)["method"]) == {*CORNERS, *plane.BASELINES}
    assert files_in(storage.cache_dir() / "sweeps") == before
    with pytest.raises(AssertionError, match="loaded"):
        llm_tradeoff.data(replace(context, since=math.inf))


def test_a_model_of_the_users_own_needs_its_retrained_one_and_brings_its_own_rates(
    context: Context,
) -> None:
    folders = {kind: str(folder_of(TINY.models, kind)) for kind in plane.BASELINES}
    own = OwnModel(
        model=folders["original"],
        retrained=folders["retrained"],
        data="authors:forget05",
        retain_data="authors:retain95",
        learning_rate=1e-3,
        batch=7,
    )
    task = sweeps.task_of(replace(context, own=own))
    assert (task.options.model, task.retrained) == (folders["original"], folders["retrained"])
    assert (task.data, task.retain_data) == ("authors:forget05", "authors:retain95")
    (run,) = sweeps.runs_of(replace(context, own=own), ("npo:0.1@1",))
    assert (run.optimization.learning_rate, run.optimization.batch, run.optimization.epochs) == (
        1e-3,
        7,
        2,
    )
    assert sweeps.folder_for(context, task) != sweeps.folder_for(context, sweeps.task_of(context))
    with pytest.raises(InvalidInput, match="retrained"):
        sweeps.task_of(replace(context, own=replace(own, retrained=None)))


@pytest.mark.parametrize("module", ALL)
def test_figures_of_sweeps_are_registered_and_say_what_is_seen(module: ModuleType) -> None:
    assert module.__name__ in {entry.module for entry in CATALOGUE}
    assert "utility" in (module.__doc__ or "")
