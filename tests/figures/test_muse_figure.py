"""The figure of MUSE's measures: what is run, what the frame says of it, and what is drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language.muse import muse_runs, muse_tradeoff
from figures.language.muse.muse_runs import GRADDIFF, NewsStudy, measures
from figures.language.muse.muse_tradeoff import KEEP, LOOKS, PANELS, plot
from figures.scale import Scale, quick_scale
from llm.data.muse import news_data
from llm.data.news.corpus import News
from llm.evaluation.membership import Membership, membership
from llm.evaluation.muse import Measuring, evaluate_muse, unlearn_texts
from llm.models.kinds import NEWS
from llm.models.language_model import LanguageModel
from llm.models.small_news import NewsModels, build
from markov.files import storage
from markov.objectives import CORNERS, Objective
from tests.helpers import files_in

TINY = NewsStudy(
    models=NewsModels(
        news=News(forget=3, holdout=4, retain=3, questions=1),
        width=16,
        depth=1,
        heads=2,
        mlp_width=16,
        vocabulary=450,
        piece=64,
        passes=1,
        precision="float32",
    ),
    epochs=2,
    measured=(2,),
    batch=4,
    learning_rate=1e-3,
    measuring=Measuring(verbmem_tokens=8, knowmem_tokens=4, resamples=100),
)
METHODS = [*NEWS, "gradient_ascent", GRADDIFF, *CORNERS]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """The tiny study in place of the figure's, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("study")))
        patch.setattr(muse_runs, "study", lambda scale: TINY)
        yield Context(progress=False, n_jobs=1)


@pytest.fixture(scope="module")
def frame(context: Context) -> pd.DataFrame:
    return muse_tradeoff.data(context)


def drawn(frame: pd.DataFrame) -> Figure:
    with style.look():
        figure = plot(frame)
        figure.canvas.draw()
    return figure


def number(frame: pd.DataFrame, method: str, measure: str, column: str = "value") -> float:
    own = frame[frame["method"].eq(method) & frame["measure"].eq(measure)]
    return float(own[column].iloc[-1])


def test_all_four_corners_are_run_beside_gradient_ascent_with_and_without_a_retain_term():
    found = NewsStudy().runs()
    assert list(found) == METHODS[2:]
    assert [one.retain_term for one in found.values()] == ["none", *["cross_entropy"] * 5]
    for name, (reference, normalize) in CORNERS.items():
        beta = NewsStudy().beta_per_token if normalize else NewsStudy().beta
        weight = NewsStudy().retain_weight_per_token if normalize else NewsStudy().retain_weight
        assert found[name].objective == Objective(beta, 0.0, reference, normalize)
        assert found[name].retain_weight == weight
    assert found["gradient_ascent"].objective == found[GRADDIFF].objective == Objective(0.0)
    for scale in (Scale(), quick_scale()):
        chosen = muse_runs.study(scale)
        assert (
            set(chosen.measured) <= set(range(1, chosen.epochs + 1))
            and chosen.epochs in chosen.measured
        )


def test_the_frame_has_every_measure_of_every_method(frame: pd.DataFrame):
    assert list(dict.fromkeys(frame["method"])) == METHODS
    counts = frame.groupby("method")["measure"].agg(["nunique", "size"])
    assert (counts == 6).all(axis=None)
    assert (frame["epoch"] == frame["method"].isin(NEWS).map({True: 0, False: 2})).all()
    known = frame.dropna(subset="value")
    assert (known["low"] <= known["value"] + 1e-9).all() and (
        known["value"] <= known["high"] + 1e-9
    ).all()


def test_the_frame_is_what_a_run_by_hand_measures(context: Context, frame: pd.DataFrame):
    data, piece = news_data(TINY.models.news), TINY.models.piece
    language, retrained = (build(TINY.models, kind, progress=False) for kind in NEWS)
    base = membership(retrained, data.privleak_forget, data.privleak_holdout, progress=False)
    options: dict[str, Any] = {"retrained": base, "settings": TINY.measuring, "progress": False}
    before = evaluate_muse(language, data, **options)
    unlearn_texts(language, data, TINY.runs()["simnpo"], length=piece, progress=False)
    for method, found in (
        ("original", before),
        ("simnpo", evaluate_muse(language, data, **options)),
    ):
        for measure, split in (
            ("privleak", "forget"),
            ("knowmem", "retain"),
            ("verbmem", "forget"),
        ):
            expected = found.of(measure, split)
            for column in ("value", "low", "high"):
                drawn_number = number(frame, method, f"{measure}_{split}", column)
                assert drawn_number == pytest.approx(getattr(expected, column))
    assert number(frame, "retrained", "privleak_forget") == 0


def test_a_second_time_nothing_is_run(context: Context, frame: pd.DataFrame):
    before = files_in(storage.cache_dir())
    pd.testing.assert_frame_equal(measures(context), frame)
    assert files_in(storage.cache_dir()) == before
    (old,) = (
        path
        for path in before
        if path.suffix == ".parquet"
        and storage.read_table(path).get("method", pd.Series()).eq("original").any()
    )
    os.utime(old, (1, 1))
    pd.testing.assert_frame_equal(measures(replace(context, since=2.0)), frame)
    after = files_in(storage.cache_dir())
    assert {path for path in after if after[path] != before[path]} == {old}
    assert after[old][0] > 2e9


def test_the_retrained_model_is_scored_for_all_runs_once(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scored: list[str] = []

    def counted(language: LanguageModel, *texts: Any, **options: Any) -> Membership:
        scored.append(language.name)
        return membership(language, *texts, **options)

    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(muse_runs, "study", lambda scale: TINY)
    monkeypatch.setattr(muse_runs, "membership", counted)
    found = measures(Context(progress=False, n_jobs=1))
    assert scored == ["news:retrained"]
    pd.testing.assert_frame_equal(found, frame)


def test_another_beta_is_run_for_the_corners_that_have_it_and_for_no_other(
    monkeypatch: pytest.MonkeyPatch,
):
    asked: list[str] = []
    settings: dict[float, list[Any]] = {}

    def remember(
        context: Context, name: str, own: Any, compute: Any, *sources: str
    ) -> pd.DataFrame:
        settings[asked_beta].append(own)
        asked.append(name)
        return pd.DataFrame()

    monkeypatch.setattr(muse_runs, "cached", remember)
    for asked_beta in (0.1, 0.2):
        settings[asked_beta] = []
        monkeypatch.setattr(
            muse_runs, "study", lambda scale, beta=asked_beta: replace(TINY, beta=beta)
        )
        for name in METHODS:
            muse_runs._measured(Context(), name)
    changed = [
        name for name, one, two in zip(METHODS, *settings.values(), strict=True) if one != two
    ]
    assert changed == ["npo", "reference_free_npo"] and set(asked) == {
        "figures.language.muse.muse_runs"
    }


# --- the drawing ---


def made_up() -> pd.DataFrame:
    """A frame with a value of its own for every method, measure and epoch."""
    rng, rows = np.random.default_rng(0), []
    for method in METHODS:
        for epoch in (0,) if method in NEWS else (1, 2, 3):
            for measure in (*PANELS, KEEP, "auc_forget", "auc_retrained_forget"):
                value = {"auc_retrained_forget": 0.5}.get(measure, float(rng.uniform(5, 95)))
                row = {"method": method, "epoch": epoch, "measure": measure, "value": value}
                rows.append(
                    {
                        **row,
                        "low": value * 0.9,
                        "high": value * 1.2,
                        "retain_loss": 0.1,
                        "status": "ok",
                    }
                )
    return pd.DataFrame(rows)


def paths(axes: Axes, color: str, style_: str) -> list[np.ndarray]:
    """The lines of more than one point in this colour and style."""
    lines = [
        line
        for line in axes.lines
        if len(np.asarray(line.get_xdata())) > 2 and line.get_linestyle() == style_
    ]
    same = [
        line for line in lines if matplotlib.colors.to_hex(str(line.get_color())) == color.lower()
    ]
    return [np.asarray(line.get_xydata(), dtype=float) for line in same]


def test_each_path_leads_from_the_original_model_through_its_epochs():
    frame = made_up()
    figure = drawn(frame)
    for axes, measure in zip(figure.axes, PANELS, strict=True):
        for method in METHODS[2:]:
            color = style.COLORS[method] if method in CORNERS else style.COLORS["gradient_ascent"]
            (path,) = paths(axes, color, ":" if method == "gradient_ascent" else "-")
            for column, name in enumerate((measure, KEEP)):
                values = [
                    frame.loc[frame["method"].eq(own) & frame["measure"].eq(name), "value"]
                    for own in ("original", method)
                ]
                np.testing.assert_allclose(path[:, column], pd.concat(values))


def test_where_a_run_ends_both_intervals_are_drawn():
    frame = made_up()
    figure = drawn(frame)
    for axes, measure in zip(figure.axes, PANELS, strict=True):
        segments = [
            collection.get_segments()  # pyright: ignore[reportAttributeAccessIssue]
            for collection in axes.collections
            if hasattr(collection, "get_segments")
        ]
        found = {tuple(np.round(segment.ravel(), 6)) for part in segments for segment in part}
        for method in METHODS:
            x, y = number(frame, method, measure), number(frame, method, KEEP)
            assert tuple(np.round((0.9 * x, y, 1.2 * x, y), 6)) in found
            assert tuple(np.round((x, 0.9 * y, x, 1.2 * y), 6)) in found


def test_the_band_is_what_the_retrained_auc_is_uncertain_by_and_ideals_are_lines():
    frame = made_up()
    first, *others = drawn(frame).axes
    (band,) = first.patches
    assert band.get_path().get_extents(band.get_patch_transform()).intervalx == pytest.approx(
        [-10, 20]
    )
    places = {
        float(np.asarray(line.get_xdata())[0])
        for line in first.lines
        if len(np.asarray(line.get_xdata())) == 2
    }
    assert 0.0 in places
    for axes, measure in zip(others, list(PANELS)[1:], strict=True):
        lines = [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines]
        ideal = number(frame, "retrained", measure)
        assert any(len(own) == 2 and own[0] == own[1] == pytest.approx(ideal) for own in lines)


def test_a_run_that_ended_early_is_drawn_as_far_as_it_went():
    frame = made_up()
    gone = frame["method"].eq("gradient_ascent") & frame["epoch"].gt(1)
    frame.loc[gone, ["value", "low", "high"]] = np.nan
    for axes in drawn(frame).axes:
        assert all(len(path) == 2 for path in paths_of_two(axes))


def paths_of_two(axes: Axes) -> list[np.ndarray]:
    """The dotted path of gradient ascent."""
    lines = [
        np.asarray(line.get_xydata(), dtype=float)
        for line in axes.lines
        if line.get_linestyle() == ":"
    ]
    assert lines
    return lines


def test_the_legend_names_every_method_and_the_axes_say_what_is_ideal():
    figure = drawn(made_up())
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        LOOKS[name]["label"] if name in LOOKS else style.LABELS[name] for name in METHODS
    ]
    assert "0 is ideal" in figure.axes[0].get_xlabel() and "retain" in figure.axes[0].get_ylabel()


def test_drawing_changes_nothing_and_a_real_frame_can_be_drawn(frame: pd.DataFrame):
    before = frame.copy(deep=True)
    figure = drawn(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert len(figure.axes) == len(PANELS) and all(axes.has_data() for axes in figure.axes)
