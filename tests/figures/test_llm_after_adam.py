"""What survives Adam on a language model: one scale for what is kept, and planted differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures.cache import Context
from figures.chains.attribution import EFFECTS
from figures.language.runs import AuthorsStudy
from figures.questions import graded, llm_after_adam
from figures.questions.after_adam import INTERACTION, PARTS
from figures.questions.graded import ASCENT
from figures.questions.llm_after_adam import (
    CELLS,
    CLAIMS,
    DISTANCE,
    NEVER,
    PAID,
    PRIMARY,
    READ,
    UNITS,
)
from figures.questions.over_forgetting import PARTS as ANSWERS
from figures.questions.reference_or_length import HALVES
from figures.questions.weighting_runs import KEPT, METHODS, NOTHING
from figures.scale import TRAINED, Scale
from markov.objectives import CORNERS, Objective
from tests.figures.studies import drawn, in_place, tiny_study

STUDY, MEDIAN, LEVEL = AuthorsStudy(), 37.0, 16.0


# --- the scale of what is kept ---


@pytest.mark.parametrize("method", CORNERS)
def test_a_size_of_its_own_keeps_a_corners_scale_and_a_mean_of_1_that_of_all(method: str) -> None:
    own = graded.matched(STUDY, method, LEVEL, MEDIAN)
    unit = MEDIAN ** CORNERS[method][1]
    assert own.retain_weight == LEVEL * STUDY.retain_weight / unit
    for kept in ("own", "magnitude"):
        found = graded.matched(STUDY, method, LEVEL, MEDIAN, kept)
        assert found == replace(own, weighting=kept)
    summed = graded.matched(STUDY, "npo", LEVEL, MEDIAN)
    for kept in ("allocation", "none"):
        found = graded.matched(STUDY, method, LEVEL, MEDIAN, kept)
        assert found == replace(summed, objective=own.objective, weighting=kept)


def test_without_weights_there_is_one_run_and_it_is_gradient_ascent() -> None:
    alone = [method for method, kept in CELLS if kept == NOTHING]
    assert alone == [ASCENT] and len(CELLS) == len(set(CELLS)) == len(METHODS) * len(KEPT) + 1
    found = graded.matched(STUDY, ASCENT, LEVEL, MEDIAN, NOTHING)
    assert found.objective == Objective(0.0)
    summed = graded.matched(STUDY, "npo", LEVEL, MEDIAN)
    assert found == replace(summed, objective=Objective(0.0), weighting=NOTHING)


# --- what is told of planted numbers ---


OVER = {
    ("npo", "own"): 3.0,
    ("simnpo", "own"): 1.0,
    ("npo", "allocation"): 2.5,
    ("simnpo", "allocation"): 1.0,
    ("npo", "magnitude"): 2.0,
    ("simnpo", "magnitude"): 1.75,
    (ASCENT, NOTHING): 4.0,
}


def planted(
    over: dict[tuple[str, str], float], *, noise: float = 0.01, level: float = PRIMARY
) -> pd.DataFrame:
    """Runs whose answers that were never read end at `over`, and read ones at twice that."""
    rng, rows = np.random.default_rng(0), []
    for ((method, weighting), value), training in itertools.product(over.items(), range(TRAINED)):
        known = {"level": level, "method": method, "weighting": weighting, "training": training}
        shift = noise * rng.normal() + training  # trainings differ by far more than methods
        for part in ANSWERS:
            times = 2 if part in HALVES[READ] else 1
            ends = {"over_forgetting": times * value + shift, "retain_paid": value / 10}
            rows.append({**known, "kind": "part", "part": part, "start": 0.0, **ends})
        for half in HALVES:
            rows.append({**known, "kind": "distance", "half": half, "distance": value / 5})
    floor = {"kind": "distance", "method": "retrained", "weighting": "", "level": np.nan}
    rows += [{**floor, "training": 0, "half": NEVER, "distance": one} for one in (0.05, 0.1)]
    return pd.DataFrame(rows)


def test_differences_are_those_that_were_planted() -> None:
    found = llm_after_adam.parts(planted(OVER, noise=0.0)).set_index(["outcome", "part"])
    want = dict(zip(PARTS, (2.0, 1.5, 0.25, 0.25), strict=True))
    for outcome, times in ((NEVER, 1), (READ, 2), (PAID, 0.1), (DISTANCE, 0.2)):
        for part, wanted in want.items():
            value, share, *counts = found.loc[
                (outcome, part), ["value", "share", "count", "missing"]
            ]
            assert value == pytest.approx(times * wanted)
            assert share == pytest.approx(wanted / want["own"])
            assert counts == [TRAINED, 0]
    assert PARTS[-1] == INTERACTION


def verdicts(**changes: float) -> dict[str, str]:
    """The verdicts where SimNPO ends elsewhere with a part of its weights."""
    over = OVER | {("simnpo", part): value for part, value in changes.items()}
    found = llm_after_adam.claims(planted(over))
    assert (
        found["primary"].all() and dict(zip(found["part"], found["claim"], strict=True)) == CLAIMS
    )
    return dict(zip(found["part"], found["verdict"], strict=True))


def test_the_comparison_holds_with_half_and_the_size_with_any() -> None:
    assert verdicts() == {"allocation": "holds", "magnitude": "holds"}
    assert verdicts(allocation=1.8)["allocation"] == "holds weakly"
    assert verdicts(allocation=2.5, magnitude=2.0) == dict.fromkeys(CLAIMS, "inconclusive")
    assert verdicts(allocation=3.0, magnitude=2.3) == dict.fromkeys(CLAIMS, "contradicted")


def test_a_retain_weight_is_judged_by_itself_and_one_is_quoted() -> None:
    one, other = planted(OVER), planted(OVER, noise=2.0, level=PRIMARY / 4)
    both = llm_after_adam.claims(pd.concat([other, one], ignore_index=True))
    alone = llm_after_adam.claims(one)
    pd.testing.assert_frame_equal(both[both["primary"]].reset_index(drop=True), alone)
    assert both["primary"].tolist() == [True, True, False, False]


def test_a_training_without_a_number_is_left_out_and_counted() -> None:
    frame = planted(OVER)
    lost = (frame["method"] == "simnpo") & (frame["training"] == 0)
    frame.loc[lost & (frame["weighting"] == "own"), "over_forgetting"] = np.nan
    found = llm_after_adam.parts(frame).set_index(["outcome", "part"])
    assert tuple(found.loc[(NEVER, "own"), ["count", "missing"]]) == (TRAINED - 1, 1)
    assert tuple(found.loc[(NEVER, "allocation"), ["count", "missing"]]) == (TRAINED, 0)


def test_every_run_and_every_difference_is_drawn_at_its_place() -> None:
    frame = pd.concat([planted(OVER), planted(OVER, level=PRIMARY / 4)], ignore_index=True)
    figure = drawn(llm_after_adam, frame)
    panels, known = figure.axes[:4], llm_after_adam.outcomes(frame)
    for axes, outcome in zip(panels, UNITS, strict=True):
        own = known[(known["outcome"] == outcome) & (known["level"] == PRIMARY)]
        dots = [line for line in axes.lines if line.get_marker() == "."]
        shown = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in dots])
        assert sorted(shown) == pytest.approx(sorted(own["value"]))
    summary = llm_after_adam.parts(frame)
    for axes, outcome in zip(figure.axes[4:], (NEVER, DISTANCE), strict=True):
        marks = [line for line in axes.lines if line.get_marker() in ("o", "s", "^", "D")]
        shown = np.concatenate([np.asarray(line.get_xdata(), dtype=float) for line in marks])
        values = summary.loc[summary["outcome"] == outcome, "value"]
        assert sorted(shown) == pytest.approx(sorted(values))
    band = panels[3].patches[0].get_extents().transformed(panels[3].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((0.05, 0.1))


# --- runs ---


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    # Of models that know nothing SimNPO has no weights to speak of, but for a small beta.
    chosen = tiny_study(questions=4, percent=34, learning_rate=3e-3, beta=0.005)
    with in_place(chosen, tmp_path_factory.mktemp("adam"), graded):
        yield Context(scale=Scale(trained=1), progress=False, n_jobs=1)


def test_the_figure_draws_and_tells_what_its_runs_end_at(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_after_adam, "LEVELS", (PRIMARY,))
    frame = llm_after_adam.data(context)
    ran = frame[frame["method"].isin([*METHODS, ASCENT])]
    counts = ran.groupby(["method", "weighting", "training"])["kind"].value_counts()
    assert len(counts) == 2 * len(CELLS)  # kinds
    assert set(counts.xs("part", level="kind")) == {len(ANSWERS)}
    assert frame.drop(ran.index)["method"].tolist() == ["start"] * len(HALVES)
    tables = llm_after_adam.told(frame)
    assert set(tables) == {"claims", "parts", "values"}
    own = llm_after_adam.outcomes(frame)
    assert set(own["outcome"]) == set(UNITS) and own["value"].notna().all()
    values = own[own["outcome"] == NEVER].pivot(
        index="training", columns=["method", "weighting"], values="value"
    )
    assert values.nunique(axis=1).eq(len(CELLS)).all()
    assert all(axes.has_data() for axes in drawn(llm_after_adam, frame).axes)


GALLERY = Path(llm_after_adam.__file__).parents[1] / "gallery"


def test_what_is_kept_is_of_all_trainings_and_agrees_with_question_eight() -> None:
    kept = {
        name: pd.read_csv(GALLERY / "llm_after_adam" / f"{name}.csv")
        for name in ("claims", "parts", "values")
    }
    primary = kept["claims"][kept["claims"]["primary"]]
    assert primary["part"].tolist() == list(CLAIMS) and primary["count"].eq(TRAINED).all()
    parts = kept["parts"].set_index(["level", "outcome", "part"])["value"]
    for row in kept["claims"].to_dict("records"):
        assert row["value"] == parts[row["level"], NEVER, row["part"]]
    effects = pd.read_csv(GALLERY / "reference_or_length" / "effects.csv")
    *_, both = EFFECTS
    theirs = effects[(effects["rung"] == "language model") & (effects["of"] == NEVER)]
    theirs = theirs[theirs["effect"] == both].set_index("level")["value"]
    for level in kept["parts"]["level"].unique():
        assert parts[level, NEVER, "own"] == pytest.approx(-theirs[level], abs=1e-4)
        apart = parts[level, NEVER][["allocation", "magnitude", INTERACTION]].sum()
        assert apart == pytest.approx(parts[level, NEVER, "own"], abs=1e-4)
