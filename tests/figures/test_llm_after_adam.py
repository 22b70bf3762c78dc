"""What survives Adam on a language model: one scale for what is kept, and planted differences."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from figures.cache import Context
from figures.chains.attribution import EFFECTS
from figures.language.runs import AuthorsStudy
from figures.questions import first_epoch, graded, llm_after_adam
from figures.questions.after_adam import INTERACTION, PARTS
from figures.questions.graded import ASCENT
from figures.questions.llm_after_adam import (
    CELLS,
    CLAIMS,
    END_DISTANCE,
    END_NEVER,
    END_READ,
    GOAL,
    NEVER,
    PAID,
    PRIMARY,
    SEEN,
    UNITS,
    WHEN,
)
from figures.questions.over_forgetting import PARTS as ANSWERS
from figures.questions.reference_or_length import HALVES
from figures.questions.weighting_runs import KEPT, METHODS, NOTHING
from figures.scale import TRAINED, Scale
from llm.unlearning.unlearn import Unlearned, unlearn
from markov.objectives import CORNERS, Objective
from tests.figures.studies import drawn, in_place, tiny_study

STUDY, MEDIAN, LEVEL = AuthorsStudy(), 37.0, 16.0
EPOCHS = 4  # of planted runs


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
    over: dict[tuple[str, str], float],
    *,
    noise: float = 0.01,
    level: float = PRIMARY,
    trainings: int = TRAINED,
) -> pd.DataFrame:
    """Runs of four epochs in which a part that was read rises from -3 by 1 in each, but for SimNPO
    with its own weights, which takes all of them for the first of these.

    What was never read rises to `over` in the first, and by 10 in each of the others.
    """
    rng, rows = np.random.default_rng(0), []
    for ((method, weighting), value), training in itertools.product(over.items(), range(trainings)):
        known = {"level": level, "method": method, "weighting": weighting, "training": training}
        goal = (method, weighting) == GOAL
        shift = noise * rng.normal() + training  # trainings differ by far more than methods
        for part, epoch in itertools.product(ANSWERS, range(EPOCHS + 1)):
            done = epoch / EPOCHS if goal else epoch
            never = (value + shift) * min(done, 1) + 10 * max(done - 1, 0)
            ends = done - 3 if part in HALVES["read"] else never
            own = {"over_forgetting": ends, "retain_loss": 0.5 + value / 10 * done}
            rows.append({**known, "kind": "path", "part": part, "epoch": epoch, **own})
        for half in HALVES:
            rows.append({**known, "kind": "distance", "half": half, "distance": value / 5})
    floor = {"kind": "distance", "method": "retrained", "weighting": "", "level": np.nan}
    floor |= {"training": 0, "half": "never read"}
    rows += [{**floor, "distance": one} for one in (0.05, 0.1)]
    return pd.DataFrame(rows)


def test_differences_are_those_that_were_planted() -> None:
    found: Any = llm_after_adam.parts(planted(OVER, noise=0.0)).set_index(["outcome", "part"])
    want = dict(zip(PARTS, (2.0, 1.5, 0.25, 0.25), strict=True))
    for outcome, times in ((NEVER, 1), (PAID, 0.1), (END_DISTANCE, 0.2)):
        for part, wanted in want.items():
            value, share, *counts = found.loc[
                (outcome, part), ["value", "share", "count", "missing"]
            ]
            assert value == pytest.approx(times * wanted)
            assert share == pytest.approx(wanted / want["own"])
            assert counts == [TRAINED, 0]
    assert PARTS[-1] == INTERACTION
    # Those that do not stop end where the others do not: NPO and all parts after three epochs more.
    beyond = found.loc[END_NEVER]["value"]
    assert beyond["allocation"] == pytest.approx(want["allocation"])
    assert beyond["own"] == pytest.approx(want["own"] + 10 * (EPOCHS - 1))


def test_runs_are_compared_when_as_much_is_forgotten_as_by_the_goals_end() -> None:
    frame = planted(OVER, noise=0.0)
    half = (frame["method"] == "simnpo") & (frame["weighting"] == "magnitude")
    read = frame["part"].isin(HALVES["read"])
    frame.loc[half & read, "over_forgetting"] = -3 + 0.4 * frame.loc[half & read, "epoch"]
    names = ["outcome", "method", "weighting"]
    known: Any = llm_after_adam.outcomes(frame).set_index(names).sort_index()
    assert known.loc[(WHEN, *GOAL), "value"].eq(EPOCHS).all()
    assert known.loc[(WHEN, "npo", "own"), "value"].to_numpy() == pytest.approx(1.0)
    # Halfway between its second epoch and its third.
    assert known.loc[(WHEN, "simnpo", "magnitude"), "value"].to_numpy() == pytest.approx(2.5)
    first = known.loc[(NEVER, "simnpo", "magnitude")].set_index("training")["value"]
    assert first[0] == pytest.approx(OVER["simnpo", "magnitude"] + 1.5 * 10)


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


def test_the_training_that_was_seen_is_left_out_of_a_second_verdict() -> None:
    frame = planted(OVER)
    tables = llm_after_adam.told(frame)
    assert tables["claims"]["count"].eq(TRAINED).all()
    assert tables["unseen"]["count"].eq(TRAINED - 1).all()
    spoiled = frame["over_forgetting"].where(frame["training"] != SEEN, -1.0)
    other = llm_after_adam.told(frame.assign(over_forgetting=spoiled))["unseen"]
    pd.testing.assert_frame_equal(other, tables["unseen"])


@pytest.mark.parametrize(("run", "lost"), [(GOAL, {*KEPT, "none"}), (("npo", "own"), {"own"})])
def test_a_run_that_stopped_is_compared_as_far_as_it_came(
    run: tuple[str, str], lost: set[str]
) -> None:
    """Without the end of the goal's run there is no goal; another one's end is missing alone."""
    frame = planted(OVER)
    own = (frame["method"] == run[0]) & (frame["weighting"] == run[1]) & (frame["training"] == 1)
    frame = frame[~(own & ((frame["epoch"] > 1) | (frame["kind"] == "distance")))]
    found = llm_after_adam.outcomes(frame)
    gone = found[found["value"].isna()]
    assert set(gone["training"]) == {1}
    for outcome in (END_READ, END_DISTANCE):
        assert set(gone.loc[gone["outcome"] == outcome, "weighting"]) == {run[1]}
    equal = set(gone.loc[gone["outcome"] == NEVER, "weighting"])
    assert equal == (lost if run == GOAL else set())
    assert llm_after_adam.parts(frame)["missing"].max() == 1


def test_every_run_and_every_difference_is_drawn_at_its_place() -> None:
    frame = pd.concat([planted(OVER), planted(OVER, level=PRIMARY / 4)], ignore_index=True)
    figure = drawn(llm_after_adam, frame)
    never, paid, forest, *lower = figure.axes
    known = llm_after_adam.outcomes(frame)
    shown = {never: NEVER, paid: PAID}
    shown |= dict(zip(lower, (END_NEVER, END_READ, END_DISTANCE), strict=True))
    for axes, outcome in shown.items():
        own = known[(known["outcome"] == outcome) & (known["level"] == PRIMARY)]
        assert marks(axes, ".", "y") == pytest.approx(sorted(own["value"]))
    summary = llm_after_adam.parts(frame)
    values = summary.loc[summary["outcome"] == NEVER, "value"]
    assert marks(forest, "os^D", "x") == pytest.approx(sorted(values))
    band: Any = lower[-1].patches[0].get_extents().transformed(lower[-1].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((0.05, 0.1))


def marks(axes: Axes, kinds: str, along: str) -> list[float]:
    """The places of marks of these kinds along an axis."""
    lines = [line for line in axes.lines if str(line.get_marker()) in tuple(kinds)]
    found = [line.get_ydata() if along == "y" else line.get_xdata() for line in lines]
    return sorted(float(value) for one in found for value in np.asarray(one, dtype=float))


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
    often = partial(first_epoch.first_epochs, every=1)
    monkeypatch.setattr(llm_after_adam, "first_epochs", often)
    frame = llm_after_adam.data(context)
    ran = frame[frame["method"].isin([*METHODS, ASCENT])]
    counts = ran.groupby(["method", "weighting", "training"])["kind"].value_counts()
    assert len(counts) == 2 * len(CELLS)  # kinds
    epochs = [0.0, 0.5, *range(1, int(ran["epoch"].max()) + 1)]  # of two updates each
    assert sorted(set(ran["epoch"].dropna())) == epochs
    assert set(counts.xs("path", level="kind")) == {len(ANSWERS) * len(epochs)}
    assert frame.drop(ran.index)["method"].tolist() == ["start"] * len(HALVES)
    tables = llm_after_adam.told(frame)
    assert set(tables) == {"claims", "unseen", "parts", "values"}
    own = llm_after_adam.outcomes(frame)
    assert set(own["outcome"]) == set(UNITS)
    ends = own[own["outcome"] == END_NEVER]
    assert ends["value"].nunique() == len(ends) == len(CELLS)
    assert all(axes.has_data() for axes in drawn(llm_after_adam, frame).axes)


def test_a_first_epoch_that_is_watched_is_that_of_the_run(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = tuple(cell for cell in CELLS if cell[1] == "allocation")
    table = graded.graded_runs(context, (PRIMARY,), cells)
    made = list[Unlearned]()

    def noted(*given: Any, **options: Any) -> Unlearned:
        made.append(unlearn(*given, **options))
        return made[-1]

    monkeypatch.setattr(first_epoch, "unlearn", noted)
    for run in graded.planned(context, (PRIMARY,), cells):
        own = table[table["method"] == run.method].set_index("index")
        fresh = replace(context, since=time.time())  # what is kept would not be made now
        assert len(first_epoch.first_epochs(fresh, [run], every=99)) == 0
        seen = first_epoch.first_epochs(fresh, [run], every=1).set_index("index")
        for one in made[-2:]:
            for epoch in (0, 1):
                found = one.examples[one.examples["epoch"] == epoch]["logp"]
                assert found.tolist() == own[own["epoch"] == epoch]["logp"].tolist()
        start, end = (own[own["epoch"] == epoch] for epoch in (0, 1))
        for name in ("length", "read", "retrained"):
            np.testing.assert_allclose(seen[name], start[name], rtol=1e-6)
        assert seen["epoch"].eq(0.5).all()
        for other in (start, end):
            assert (seen["logp"] - other["logp"]).abs().max() > 1e-3


GALLERY = Path(llm_after_adam.__file__).parents[1] / "gallery"


def test_what_is_kept_is_of_all_trainings_and_ends_where_question_eight_does() -> None:
    kept = {
        name: pd.read_csv(GALLERY / "llm_after_adam" / f"{name}.csv")
        for name in ("claims", "unseen", "parts", "values")
    }
    assert kept["claims"]["part"].tolist() == list(CLAIMS) and kept["claims"]["primary"].all()
    trainings = int(kept["claims"]["count"].max())
    assert 3 <= trainings <= TRAINED and kept["claims"]["count"].eq(trainings).all()
    assert kept["unseen"]["count"].eq(trainings - 1).all()
    parts = kept["parts"].set_index(["outcome", "part"])["value"]
    for row in kept["claims"].to_dict("records"):
        assert row["value"] == parts[NEVER, row["part"]]
    apart = parts[NEVER][["allocation", "magnitude", INTERACTION]].sum()
    assert apart == pytest.approx(parts[NEVER, "own"], abs=1e-4)
    # With all weights, the ends are the corners' of the other figure.
    effects = pd.read_csv(GALLERY / "reference_or_length" / "effects.csv")
    *_, both = EFFECTS
    theirs = effects[(effects["rung"] == "language model") & (effects["level"] == PRIMARY)]
    theirs = theirs[(theirs["of"] == "never read") & (theirs["effect"] == both)]["value"].item()
    few = trainings < TRAINED  # of as many trainings they are the same numbers
    assert parts[END_NEVER, "own"] == pytest.approx(-theirs, abs=0.2 if few else 1e-4)
