"""Views of answers and of evaluation logs: what is drawn is the law and the test, and a moved
control shows.
"""

from __future__ import annotations

import base64
import html
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from scipy import stats

from figures import style
from figures.cache import Context
from figures.language.runs import AuthorsStudy
from figures.language.sources import VARIABLE
from figures.views import logs
from figures.views.answers import FLOOR, LINES, AnswersView, answers_view, weights_of
from figures.views.logs import example_files, quality_view, subsampled, tofu_logs
from figures.views.view import WIDTH
from llm.data.authors.corpus import Authors
from llm.data.tofu import Example, read
from llm.logs.log import Answers, EvaluationLog, truth_ratio
from llm.logs.measures import forget_quality
from llm.models.small_authors import DefaultModels, sets
from llm.models.source import load
from markov.errors import InvalidInput
from markov.objectives import CORNERS, Objective, SequenceLogProbs

COUNT = 12


def scores(epochs: int = 1) -> pd.DataFrame:
    """Answers of 3 to 60 tokens that fall by different amounts; indices in another order than
    the rows.
    """
    rng, frames = np.random.default_rng(3), []
    length = rng.permutation(np.linspace(3, 60, COUNT).round())
    ref, retrained = (
        -0.2 * length * rng.uniform(0.5, 2, COUNT),
        -2.0 * length * rng.uniform(0.5, 2, COUNT),
    )
    for epoch in range(epochs):
        logp = ref - epoch * length * rng.uniform(0.1, 0.9, COUNT)
        columns = {
            "index": 100 - np.arange(COUNT),
            "logp": logp,
            "length": length,
            "ref": ref,
            "retrained": retrained,
        }
        frames.append(pd.DataFrame(columns).assign(epoch=epoch))
    return pd.concat(frames, ignore_index=True)


def examples(table: pd.DataFrame) -> list[Example]:
    return [
        Example(index=int(one), prompt=f"question {one}?", response=f"<answer {one}>")
        for one in table["index"]
    ]


@cache
def made() -> AnswersView:
    table = scores(3)
    return answers_view(table, examples(table), epoch=1)


def dots(view: AnswersView, panel: int) -> tuple[np.ndarray, np.ndarray]:
    line = view.picture.figure.axes[panel].lines[0]
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def by_hand(row: pd.Series, beta: float, gamma: float, reference: float, normalize: float) -> float:
    scale = row["length"] ** normalize
    z = beta * (row["logp"] - reference * row["ref"]) / scale + gamma
    return 2 / (1 + math.exp(-z)) / scale


MOVES: list[tuple[str, Any]] = [
    ("beta", 1.5),
    ("gamma", 1.0),
    ("reference", 0.3),
    ("normalize", 0.6),
    ("example", 4),
    ("epoch", 2),
]


@pytest.mark.parametrize(("name", "value"), MOVES)
def test_a_moved_control_changes_the_picture_and_moved_back_restores_it(name: str, value: Any):
    view = made()
    before, old = bytes(view.image.value), view.controls[name].value
    view.controls[name].value = value
    assert bytes(view.image.value) != before
    view.controls[name].value = old
    assert bytes(view.image.value) == before


@pytest.mark.parametrize("corner", sorted(CORNERS))
def test_the_dots_are_the_weights_of_the_law_over_their_mean(corner: str):
    table = scores(3)
    reference, normalize = CORNERS[corner]
    view = answers_view(
        table,
        examples(table),
        beta=0.2,
        gamma=0.3,
        reference=reference,
        normalize=normalize,
        epoch=2,
    )
    own = table[table["epoch"] == 2].sort_values("index")
    numbers = view.values
    weights = np.array(
        [
            by_hand(
                row, numbers["beta"], numbers["gamma"], numbers["reference"], numbers["normalize"]
            )
            for _, row in own.iterrows()
        ]
    )
    expected = np.maximum(weights / weights.mean(), FLOOR)
    for panel, x in ((0, own["length"]), (1, own["logp"] - own["retrained"])):
        drawn_x, drawn_y = dots(view, panel)
        np.testing.assert_allclose(drawn_x, x, rtol=1e-12)
        np.testing.assert_allclose(drawn_y, expected, rtol=1e-9)
    assert to_hex(view.picture.figure.axes[0].lines[0].get_color()).upper() == style.COLORS[corner]


@pytest.mark.parametrize(("shorter", "fallen"), [(0.2, 0.1), (1, 1), (1, 0.02), (40, 3)])
@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("corner", sorted(CORNERS))
def test_the_axes_fit_every_answer_of_the_run_and_stay_still_along_its_epochs(
    shorter: float, fallen: float, beta: float, corner: str
):
    table = scores(3)
    length = np.ceil(shorter * table["length"])
    logp = {
        name: fallen * table[name] / table["length"] * length
        for name in ("logp", "ref", "retrained")
    }
    table = table.assign(length=length, **logp)
    reference, normalize = CORNERS[corner]
    view = answers_view(table, examples(table), beta=beta, reference=reference, normalize=normalize)
    seen: list[tuple[tuple[float, float], ...]] = []
    drawn: list[list[np.ndarray]] = [[], [], []]
    for epoch in range(3):
        view.controls["epoch"].value = epoch
        left, right = view.picture.figure.axes
        seen.append((left.get_xlim(), right.get_xlim(), left.get_ylim(), right.get_ylim()))
        (x, y), (needed, _) = dots(view, 0), dots(view, 1)
        for values, own in zip(drawn, (x, needed, y), strict=True):
            values.append(own)
    assert set(seen) == {seen[0]} and seen[0][2] == seen[0][3]
    logs = (np.log, lambda value: value, np.log)
    for values, limits, scale in zip(drawn, seen[0], logs, strict=False):
        every, (low, high) = np.concatenate(values), limits
        assert every.min() > low and every.max() < high
        # A run whose weights are nearly equal is not blown up until they differ.
        if every.max() / every.min() > 1.5 or scale is not np.log:
            covered = np.ptp(scale(every)) / (scale(np.array(high)) - scale(np.array(low)))
            assert covered > 0.4
    left, right = view.picture.figure.axes
    for axis, (low, high) in ((left.xaxis, seen[0][0]), (left.yaxis, seen[0][2])):
        ticks = [one for one in axis.get_majorticklocs() if low <= one <= high]
        assert 2 <= len(ticks) <= 7
    assert all(one == int(one) for one in left.xaxis.get_majorticklocs())
    assert "tokens" in left.get_xlabel() and ">tokens</th>" in view.rows.value


def test_the_axes_follow_a_method_that_weighs_otherwise():
    table = scores(3)
    view = answers_view(table, examples(table), epoch=2)
    axes = view.picture.figure.axes[0]
    before = axes.get_ylim()
    view.controls["beta"].value = 2.0
    assert axes.get_ylim() != before
    view.controls["beta"].value = 0.1
    assert axes.get_ylim() == before


def test_weights_are_those_of_the_objective():
    table, objective = scores(2), Objective(0.7, 0.2, 0.4, 0.5)
    seq = SequenceLogProbs(
        *(torch.tensor(table[name].to_numpy()) for name in ("logp", "length", "ref"))
    )
    np.testing.assert_array_equal(weights_of(table, objective), objective.weight(seq).numpy())


def test_the_ring_lies_on_the_chosen_answer_and_its_row_is_marked_with_its_numbers():
    table = scores()
    view = answers_view(table, examples(table), beta=0.5, reference=0.0)
    view.controls["example"].value = 5
    own = table.sort_values("index").iloc[5]
    weight = by_hand(own, view.values["beta"], 0.0, 0.0, 0.0)
    for axes, x in zip(
        view.picture.figure.axes, (own["length"], own["logp"] - own["retrained"]), strict=True
    ):
        (ring,) = [line for line in axes.lines if line.get_markersize() > 10]
        assert list(np.asarray(ring.get_xdata())) == [pytest.approx(x)]
        position = int(np.flatnonzero(dots(view, 0)[0] == own["length"])[0])
        assert list(np.asarray(ring.get_ydata())) == [dots(view, 0)[1][position]]
    (marked,) = [line for line in view.rows.value.split("<tr") if "background" in line]
    assert f">{weight:.3g}<" in marked and f">{own['length']:.0f}<" in marked
    assert f"&lt;answer {own['index']:.0f}&gt;" in marked
    assert f"weight {weight:.3g}" in view.picture.figure.texts[0].get_text()


def clicked(view: AnswersView, source: int, **event: Any) -> int:
    """The answer that is chosen after the browser has sent a click."""
    sent = {"event": "click", "target": {"tagName": "IMG", "className": "widget-image"}} | event
    view.clicks[source]._handle_mouse_msg(None, sent, [])
    return view.controls["example"].value


@pytest.mark.parametrize("panel", [0, 1])
@pytest.mark.parametrize("place", [0, 4, COUNT - 1])
def test_a_click_on_a_dot_of_either_panel_chooses_its_answer(panel: int, place: int):
    table = scores()
    view = answers_view(table, examples(table), beta=0.5, reference=0.0)
    view.controls["example"].value = 7
    axes = view.picture.figure.axes[panel]
    x, y = axes.transData.transform(np.stack(dots(view, panel), axis=1)[place])
    row = view.canvas.get_width_height()[1] - y
    assert clicked(view, 0, dataX=round(x) + 1, dataY=round(row) - 1) == place
    assert f"{dots(view, 0)[0][place]:.0f} tokens" in view.picture.figure.texts[0].get_text()


def test_a_click_beside_all_dots_chooses_nothing_and_further_clicks_reach_hidden_dots():
    # the same answer three times; the retrained model is unknown, so that there is one panel
    table = scores().drop(columns=["retrained"]).assign(length=9.0, ref=-5.0, logp=-5.0)
    view = answers_view(table.iloc[:3], examples(table))
    axes = view.picture.figure.axes[0]
    x, y = axes.transData.transform(np.stack(dots(view, 0), axis=1)[0])
    here = {"dataX": round(x), "dataY": round(view.canvas.get_width_height()[1] - y)}
    assert [clicked(view, 0, **here) for _ in range(4)] == [1, 2, 0, 1]
    assert clicked(view, 0, dataX=here["dataX"], dataY=here["dataY"] + 60) == 1


def test_a_click_on_a_row_of_the_page_chooses_its_answer():
    table = scores()
    view = answers_view(table, examples(table))
    (row,) = [line for line in view.rows.value.split("<tr") if "<answer 95>".strip("<>") in line]
    (name,) = set(re.findall(r'class="(answer-[0-9]+)"', row))
    assert clicked(view, 1, target={"tagName": "TD", "className": name}) == 6
    assert view.rows.value.count("background") == 1
    for other in ("", "answer-", "answer-six", "simnpo-answers"):
        assert clicked(view, 1, target={"tagName": "TH", "className": other}) == 6


def test_questions_are_whole_in_the_list_and_on_the_page_and_harmless():
    table, long = scores().iloc[:2], "<b>why</b> & " + "a very long question " * 9 + "?"
    given = [Example(index=int(one), prompt=long, response=long) for one in table["index"]]
    view = answers_view(table, given)
    assert all(label.endswith(long) for label, _ in view.controls["example"].options)
    assert view.rows.value.count(html.escape(long)) == 4 and "<b>" not in view.rows.value


@pytest.mark.parametrize(
    ("order", "column", "ascending"),
    [
        ("longest first", "length", False),
        ("neediest first", "needed", False),
        ("as in the file", "index", True),
    ],
)
def test_the_page_follows_the_order(order: str, column: str, ascending: bool):
    table = scores().assign(needed=lambda frame: frame["logp"] - frame["retrained"])
    view = answers_view(table, examples(table), order=order)
    ranked = [f"question {one}?" for one in table.sort_values(column, ascending=ascending)["index"]]
    shown = [
        part.split("<")[0]
        for part in view.rows.value.split('left">')
        if part.startswith("question")
    ]
    assert len(shown) == LINES
    start = ranked.index(shown[0])
    assert shown == ranked[start : start + LINES]


def test_the_heaviest_come_first():
    table = scores(2)
    view = answers_view(table, examples(table), beta=2.0, epoch=1)
    cells = [line.split('right">')[2].split("<")[0] for line in view.rows.value.split("<tr")[1:]]
    numbers = [float(cell) for cell in cells]
    assert numbers == sorted(numbers, reverse=True)


def test_without_a_retrained_model_there_is_one_panel_and_without_logp_it_is_the_reference():
    table = scores().drop(columns=["retrained", "logp", "epoch"])
    view = answers_view(table, examples(table), beta=1.0)
    assert len(view.picture.figure.axes) == 1 and "epoch" not in view.controls
    np.testing.assert_allclose(dots(view, 0)[1], 1.0)
    assert "still needed" not in view.rows.value


def test_a_page_prints_with_picture_and_table():
    view = made()
    data, _ = view._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == view.image.value
    assert data["image/png"] in data["text/html"] and view.rows.value in data["text/html"]


def test_wrong_tables_and_examples_are_refused():
    table = scores()
    for name in ("index", "length", "ref"):
        with pytest.raises(InvalidInput, match=name):
            answers_view(table.drop(columns=name), examples(table))
    with pytest.raises(InvalidInput, match="examples"):
        answers_view(table, examples(table)[1:])
    with pytest.raises(InvalidInput, match="order"):
        answers_view(table, examples(table), order="best first")
    with pytest.raises(InvalidInput, match="epoch"):
        answers_view(table, examples(table), epoch=7)
    with pytest.raises(InvalidInput, match="row"):
        answers_view(table.iloc[:0], [])


# --- logs ---


def log(shift: float, seed: int, count: int = 60) -> EvaluationLog:
    rng = np.random.default_rng(seed)
    average = rng.uniform(0.5, 1.5, count)
    wrong = average[:, None] + shift + rng.normal(0, 0.5, (count, 3))
    gold, paraphrased, perturbed = (
        Answers(values, None, None) for values in (average, average, np.abs(wrong))
    )
    return EvaluationLog("a log", "lists", np.arange(count), gold, paraphrased, perturbed)


def test_the_quality_view_draws_the_distributions_and_says_the_test():
    own, other = log(1.0, 1), log(0.3, 2)
    view = quality_view(own, other, examples=60, variant="arithmetic")
    left, right = view.picture.figure.axes
    found = stats.ks_2samp(
        truth_ratio(own, "arithmetic"), truth_ratio(other, "arithmetic"), method="exact"
    )
    for line, one in zip(left.lines, (own, other), strict=False):
        x, y = (np.asarray(part) for part in line.get_data())
        np.testing.assert_allclose(x[1:-1], np.sort(truth_ratio(one, "arithmetic")))
        np.testing.assert_allclose(y[1:-1], np.arange(1, 61) / 60)
    (here,) = [
        line
        for line in right.lines
        if line.get_markersize() > 5 and len(np.asarray(line.get_xdata())) == 1
    ]
    assert np.asarray(here.get_xdata())[0] == 60
    assert np.asarray(here.get_ydata())[0] == pytest.approx(math.log10(found.pvalue))
    assert f"D = {found.statistic:.2f}" in view.picture.figure.texts[0].get_text()


@pytest.mark.parametrize(
    ("name", "value"), [("examples", 30), ("draw", 3), ("variant", "arithmetic")]
)
def test_moving_the_test_changes_its_picture(name: str, value: Any):
    view = quality_view(log(1.0, 1), log(0.3, 2), examples=20)
    assert view.picture.figure.get_figwidth() == made().picture.figure.get_figwidth() == WIDTH
    before = bytes(view.image.value)
    view.controls[name].value = value
    assert bytes(view.image.value) != before and view.message.value == ""


def test_subsamples_are_drawn_without_replacement_and_all_of_them_are_the_whole():
    own, other = log(1.0, 1), log(0.3, 2)
    table = subsampled(own, other, (10, 60), draws=4)
    assert table.groupby("examples").size().to_dict() == {10: 4, 60: 4}
    whole = forget_quality(own, other)
    np.testing.assert_allclose(table["statistic"][table["examples"] == 60], whole.statistic)
    assert table["statistic"][table["examples"] == 10].nunique() > 1
    assert (table.groupby("examples")["log10_p"].mean().diff().dropna() < 0).all()


def test_the_test_needs_examples_that_are_there():
    for examples_ in (2, 61):
        with pytest.raises(InvalidInput, match="examples"):
            quality_view(log(1.0, 1), log(0.3, 2), examples=examples_)


TINY = AuthorsStudy(
    models=DefaultModels(
        authors=Authors(authors=20, questions=2),
        width=16,
        depth=1,
        heads=2,
        mlp_width=16,
        vocabulary=300,
        passes=1,
        batch=32,
        precision="float32",
    )
)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(logs, "study", lambda scale: TINY)
    monkeypatch.setattr(logs, "NEW_TOKENS", 2)
    return Context(progress=False, n_jobs=1)


def test_example_files_hold_the_models_and_their_data(tiny: Context):
    files = example_files()
    assert (read(files.forget), read(files.retain)) == (
        sets(TINY.models).forget,
        sets(TINY.models).retain,
    )
    parameters = [load(folder).model.state_dict() for folder in files[:2]]
    assert any(not torch.equal(parameters[0][name], parameters[1][name]) for name in parameters[0])


def test_without_public_logs_the_default_model_writes_the_same_files(tiny: Context):
    first, again = tofu_logs(tiny), tofu_logs(tiny)
    assert first.forget is not None and again.forget is not None
    assert first.forget.answer == tuple(one.response for one in sets(TINY.models).forget)
    np.testing.assert_allclose(first.forget.gold.average, again.forget.gold.average)
    other = tofu_logs(tiny, "retrained").forget
    assert other is not None and not np.allclose(first.forget.gold.average, other.gold.average)
    with pytest.raises(InvalidInput, match="kind"):
        tofu_logs(tiny, "partial")


def test_a_folder_without_public_logs_is_refused(
    tiny: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(InvalidInput, match="locuslab/tofu"):
        tofu_logs(tiny)
