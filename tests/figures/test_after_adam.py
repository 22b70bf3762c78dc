"""Laws of the figure on what survives Adam: what is run, how steps are made comparable, and how
differences are told of planted numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures import cache, style
from figures.questions import after_adam, weighting_runs
from figures.questions.after_adam import INTERACTION, OUTCOMES, beside, levels, parts
from figures.questions.weighting_runs import (
    ALONE,
    ASCENT,
    KEPT,
    METHODS,
    NOTHING,
    PRIMARY,
    SETTINGS,
    Cell,
    cells,
    first_step,
)
from markov.experiments import PAPER_BETAS, Experiment
from markov.objectives import method_name
from tests.figures.studies import Tiny

MODELS = 4


FEW, MORE = (PRIMARY, "both"), (PRIMARY, "both", "balanced", "sgd")


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Two settings only, so that drawing is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighting_runs, "SETTINGS", {name: SETTINGS[name] for name in FEW})
        yield


@pytest.fixture(scope="module")
def context() -> cache.Context:
    scale = Tiny(pretrained=2, orders=1, recorded=(0, 1, 4), test_examples=6)
    return cache.Context(scale=scale, n_jobs=1, progress=False)


@pytest.fixture(scope="module")
def wanted(context: cache.Context) -> dict[Experiment, tuple[str, Cell]]:
    """The runs of more settings, which differ in all that settings differ in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighting_runs, "SETTINGS", {name: SETTINGS[name] for name in MORE})
        return weighting_runs.experiments(context)


def planted(
    costs: dict[tuple[str, str], float], *, noise: float = 0.02, setting: str = PRIMARY
) -> pd.DataFrame:
    """Runs of four models and two orders, whose costs and gaps are these numbers, all but for what
    differs between models.
    """
    rows = []
    for (method, weighting), cost in costs.items():
        for model in range(MODELS):
            shift = noise * np.random.default_rng([model, len(rows)]).standard_normal()
            for seed in range(2):
                for case in PAPER_BETAS:
                    for component in ("forget1", "forget2"):
                        rows.append(
                            {
                                "case": case,
                                "method": method,
                                "weighting": weighting,
                                "setting": setting,
                                "pretrain_seed": model,
                                "seed": seed,
                                "component": component,
                                "reached": True,
                                "step": 3.0,
                                "retain_distance": cost * np.exp(shift),
                                "other_gap": cost + shift,
                                "learning_rate": 0.1,
                                "retain_weight": 0.0,
                            }
                        )
    return pd.DataFrame(rows)


# NPO costs 8 times what SimNPO does, of which allocation leaves 4 times and magnitude 1.25 times.
COSTS = {
    ("npo", "own"): 8.0,
    ("simnpo", "own"): 1.0,
    ("npo", "allocation"): 8.0,
    ("simnpo", "allocation"): 2.0,
    ("npo", "magnitude"): 10.0,
    ("simnpo", "magnitude"): 8.0,
    (ASCENT, NOTHING): 16.0,
}


# --- what is run ---


def test_the_figure_draws_the_frame_it_computes(context: cache.Context) -> None:
    frame = after_adam.data(context)
    before = frame.copy(deep=True)
    with style.look():
        figure = after_adam.plot(frame)
    assert isinstance(figure, Figure)
    assert all(axes.has_data() for axes in figure.axes)
    pd.testing.assert_frame_equal(frame, before)
    told = after_adam.told(frame)
    assert set(told) == {"parts", "levels", "beside", "rates"}
    assert len(told["rates"]) == 0  # neither setting measures any
    assert set(told["parts"]["setting"]) == set(FEW)


def test_every_run_is_what_its_setting_and_its_cell_say(
    context: cache.Context, wanted: dict[Experiment, tuple[str, Cell]]
) -> None:
    counts = {PRIMARY: 13, "both": 8, "balanced": 7, "sgd": 7}
    assert len(wanted) == len(PAPER_BETAS) * sum(counts.values()) * context.scale.pretrained
    for one, (name, cell) in wanted.items():
        setting = SETTINGS[name]
        assert one.case.name == cell.case
        assert cell.method in (method_name(one.objective), ALONE)
        assert (one.optimizer, one.clip, one.weighting) == (
            setting.optimizer,
            setting.clip,
            cell.weighting,
        )
        assert one.retain_weight == setting.retain or (
            setting.retain is None and name == "balanced"
        )
        assert one.steps == setting.longer * context.scale.experiment().steps
        assert (one.weighting == NOTHING) == (cell.method == ASCENT)
        betas = PAPER_BETAS[cell.case]
        assert cell.method not in betas or one.objective.beta == betas[cell.method]


def test_first_steps_under_descent_are_as_long_as_a_share_of_gradient_ascents(
    context: cache.Context, wanted: dict[Experiment, tuple[str, Cell]]
) -> None:
    base, ascent = context.scale.experiment(), Cell("length", ASCENT, NOTHING)
    want = first_step(context, ascent, base.optimizer, base.learning_rate) / 6
    found = {cell: one for one, (name, cell) in wanted.items() if name == "sgd"}
    for cell in (Cell("length", "npo", "own"), Cell("length", "simnpo", "magnitude"), ascent):
        got = first_step(context, cell, "sgd", found[cell].learning_rate)
        assert got == pytest.approx(want, rel=0.01)
    rates = [one.learning_rate for cell, one in found.items() if cell.case == "length"]
    assert max(rates) > 20 * min(rates)


def test_balanced_retain_gradients_start_as_long_as_those_of_the_objective(
    context: cache.Context, wanted: dict[Experiment, tuple[str, Cell]]
) -> None:
    found = {cell: one for one, (name, cell) in wanted.items() if name == "balanced"}
    alone, rates = Cell("length", ALONE, "own"), []
    for cell in (Cell("length", "npo", "own"), Cell("length", "simnpo", "own")):
        rates.append(found[cell].retain_weight)
        term = first_step(context, alone, "sgd", 1.0, rates[-1])
        assert term == pytest.approx(first_step(context, cell, "sgd", 1.0), rel=0.02)
    assert rates[0] > 20 * rates[1] > 0


def test_a_silent_objective_leaves_the_retain_term_alone(context: cache.Context) -> None:
    alone = Cell("length", ALONE, "own")
    assert first_step(context, alone, "sgd", 1.0) < 1e-6
    one, ten = (first_step(context, alone, "sgd", 1.0, weight) for weight in (1.0, 10.0))
    assert ten == pytest.approx(10 * one, rel=1e-3) and one > 1e-3


def test_no_weights_are_one_cell_and_two_corners_stand_beside_at_the_primary_setting_only() -> None:
    for name in weighting_runs.SETTINGS:
        own = cells("length", name)
        assert sum(cell.weighting == NOTHING for cell in own) == 1
        alone = sum(cell.method == ALONE for cell in own)
        assert alone == (name in ("retain", "both"))
        assert len(own) == len(set(own)) == (13 if name == PRIMARY else 7) + alone


# --- what is told ---


def by_part(frame: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    return {(row["outcome"], row["part"]): row for _, row in parts(frame).iterrows()}


def test_factors_and_nats_are_those_that_were_planted() -> None:
    found = by_part(planted(COSTS, noise=0.0))
    for outcome in ("short chain", "long chain", "memorised chain"):
        got = [found[outcome, part]["value"] for part in (*KEPT, INTERACTION)]
        assert got == pytest.approx([8, 4, 1.25, 8 / (4 * 1.25)])
        assert found[outcome, "allocation"]["share"] == pytest.approx(2 / 3)
    got = [found["gap", part]["value"] for part in (*KEPT, INTERACTION)]
    assert got == pytest.approx([7, 6, 2, 7 - 6 - 2])
    assert set(parts(planted(COSTS))["part"]) == {*KEPT, INTERACTION}


def test_a_part_holds_that_leaves_half_and_weakly_if_it_leaves_some() -> None:
    found = by_part(planted(COSTS))
    verdicts = [found["short chain", part]["verdict"] for part in (*KEPT, INTERACTION)]
    assert verdicts == ["holds", "holds", "holds weakly", "holds"]
    turned = COSTS | {("simnpo", "magnitude"): 20.0, ("simnpo", "allocation"): 8.0}
    found = by_part(planted(turned))
    assert found["short chain", "magnitude"]["verdict"] == "contradicted"
    assert found["short chain", "allocation"]["verdict"] == "inconclusive"


def test_a_setting_is_judged_by_itself() -> None:
    one, other = planted(COSTS), planted(COSTS, noise=2.0, setting="sgd")
    both = parts(pd.concat([one, other], ignore_index=True))
    alone = parts(one)
    pd.testing.assert_frame_equal(both[both["setting"] == PRIMARY], alone)


def test_only_models_in_which_both_methods_get_there_are_compared() -> None:
    frame = planted(COSTS)
    lost = (frame["method"] == "simnpo") & (frame["pretrain_seed"] == 0)
    frame.loc[lost, ["retain_distance", "other_gap"]] = np.nan
    row = by_part(frame)["short chain", "own"]
    assert (row["count"], row["models"], row["runs"]) == (MODELS - 1, MODELS, 2 * (MODELS - 1))
    assert row["value"] == pytest.approx(8, rel=0.1)


def test_levels_and_what_gradient_ascent_costs_beyond_them_are_those_that_were_planted() -> None:
    frame = planted(COSTS, noise=0.0)
    found = levels(frame).set_index(["outcome", "method", "weighting"])
    more = beside(frame).set_index(["outcome", "method", "weighting"])
    assert set(more["than"]) == {ASCENT}
    for (method, weighting), cost in COSTS.items():
        assert found.loc[("short chain", method, weighting), "value"] == pytest.approx(cost)
        if method != ASCENT:
            key = ("short chain", method, weighting)
            assert more.loc[key, "value"] == pytest.approx(16 / cost)
            assert more.loc[("gap", *key[1:]), "value"] == pytest.approx(16 - cost)
    assert set(more.index.get_level_values("method")) == set(METHODS)
    assert set(found.index.get_level_values("outcome")) == set(OUTCOMES)


def test_what_the_retain_term_does_alone_is_compared_with_where_it_was_run() -> None:
    frame = planted(COSTS | {(ALONE, "own"): 4.0}, noise=0.0)
    found = beside(frame).set_index(["outcome", "than", "method", "weighting"])
    assert found.loc[("short chain", ALONE, "simnpo", "own"), "value"] == pytest.approx(4)
    assert found.loc[("gap", ALONE, "npo", "own"), "value"] == pytest.approx(4 - 8)
    assert found.loc[("short chain", ASCENT, "simnpo", "own"), "value"] == pytest.approx(16)
    pd.testing.assert_frame_equal(parts(frame), parts(planted(COSTS, noise=0.0)))
