"""The phase diagram: its cells, its law and its view, on a few small runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from figures import style
from figures.cache import Context
from figures.scale import Scale, quick_scale
from figures.theory import phase
from figures.theory.phase_runs import BESIDE, SWEPT, blocks, experiments, phase_runs
from figures.theory.sweeps import MIDDLE
from figures.views.phase import phase_view
from markov.diagnostics import at_last_goal
from markov.errors import InvalidInput
from markov.objectives import CORNERS
from markov.running.run import run
from markov.theory import beyond_last_goal

pytestmark = pytest.mark.slow
FEW = replace(quick_scale(), sweep_pretrained=2)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return phase_runs(Context(scale=FEW, n_jobs=1, progress=False))


def test_the_full_diagram_has_thousands_of_runs_of_its_own_each():
    whole = blocks(Context(scale=Scale()))
    every = [one for block in whole for one in experiments(*block)]
    assert len(every) == len(set(every)) == 4 * 7 * 6 * 3 * 4 * 2 >= 4000


def test_another_seed_makes_blocks_of_its_own_and_leaves_the_others():
    few, more = (
        blocks(Context(scale=replace(Scale(), sweep_pretrained=count))) for count in (2, 3)
    )
    assert set(few) < set(more)
    assert {base.pretraining.seed for base, _, _ in set(more) - set(few)} == {2}


def test_every_row_is_its_run_at_the_last_goal(frame: pd.DataFrame):
    """Beside the runs themselves, made anew in another company."""
    base, levels, _ = blocks(Context(scale=FEW))[0]
    made = experiments(base, levels, 1)[:5]
    table = run(made, n_jobs=1, progress=False)
    goals = at_last_goal(table)
    own = frame[(frame["length"] == base.case.lengths[SWEPT] - 1) & (frame["share"] == 0.1)]
    own = own[(own["pretrain_seed"] == 0) & (own["seed"] == 0)].reset_index(drop=True)
    for number, one in enumerate(made):
        row = own.iloc[number]
        of = goals[goals["run"] == number].set_index("component")
        assert row["beta"] == one.objective.beta
        np.testing.assert_equal(row["retain_distance"], of["retain_distance"][SWEPT])
        apart = of["beyond"][SWEPT] - of["beyond"][BESIDE]
        np.testing.assert_equal(row["over_forgetting"], apart)
        first = table[(table["run"] == number) & (table["step"] == 0)].set_index("component")
        first = first.loc[[SWEPT, BESIDE]]
        law = beyond_last_goal(
            one.objective,
            first["length"].to_numpy(),
            (first["retrained"] - first["kl_to_truth"]).clip(lower=0).to_numpy(),
            first["logp_per_token"].to_numpy(),
        )
        assert row["predicted"] == pytest.approx(law[0] - law[1])


def test_at_equal_lengths_of_20_normalising_changes_nothing(frame: pd.DataFrame):
    own = frame[frame["length"] == MIDDLE].sort_values(["level", "share", "pretrain_seed"])
    for summed, averaged in (
        ("npo", "length_normalized_npo"),
        ("reference_free_npo", "simnpo"),
    ):
        for name in ("retain_distance", "over_forgetting", "predicted"):
            one, other = (own.loc[own["method"] == method, name] for method in (summed, averaged))
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_npo_leaves_short_responses_behind_and_simnpo_does_less_so(frame: pd.DataFrame):
    """At small betas, as the scalar law says; 20 tokens are over-forgotten until 2 get there."""
    known = phase.cells(frame).query("share == 1 and length == 2 and level == 0.1")
    found, law = (known.set_index("method")[name] for name in ("over_forgetting", "predicted"))
    assert found["npo"] < -1 and law["npo"] < -1
    assert abs(found["simnpo"]) < abs(found["npo"]) and abs(law["simnpo"]) < 0.2


def test_a_cell_that_a_run_did_not_reach_is_empty(frame: pd.DataFrame):
    known = phase.cells(frame).set_index(phase.KEYS)
    reached = frame.groupby(phase.KEYS)["reached"].all()
    np.testing.assert_array_equal(known["over_forgetting"].notna(), reached)
    assert not reached.all()  # NPO at its largest beta stops before 80 tokens are forgotten


def test_agreement_is_one_where_ranks_are_and_over_models(frame: pd.DataFrame):
    same = frame.assign(predicted=frame["over_forgetting"] * 3)
    found = phase.agreement(same).set_index(["of", "method"])
    assert found["value"]["law"].gt(0.99).all() and (found["count"] == 2).all()
    turned = phase.agreement(frame.assign(predicted=-frame["over_forgetting"]))
    assert (turned.loc[turned["of"] == "law", "value"] < -0.99).all()
    inside = phase.agreement(frame)
    assert inside[["value", "low", "high"]].abs().le(1).all(axis=None)


def test_a_price_is_a_geometric_mean_over_lengths_and_lacks_where_a_run_does(frame: pd.DataFrame):
    found = phase.prices(frame).set_index(["method", "level"])
    own = frame.query("method == 'simnpo' and level == 0.1 and share == 1")
    value = np.exp(np.log(own["retain_distance"]).mean())
    assert found["value"]["simnpo"][0.1] == pytest.approx(value)
    lacking = frame.query("share == 1").groupby(["method", "level"])["reached"]
    expected = lacking.size() - lacking.sum()
    pd.testing.assert_series_equal(
        found["missing"].sort_index(), expected.sort_index(), check_names=False, check_dtype=False
    )
    assert found["value"].isna().equals(found["missing"] > 0) and (found["missing"] > 0).any()


def test_prices_are_compared_run_by_run(frame: pd.DataFrame):
    dearer = frame["retain_distance"].where(frame["method"] != "npo")
    simnpo = frame[frame["method"] == "simnpo"].copy()
    three = simnpo.assign(method="npo", retain_distance=3 * simnpo["retain_distance"])
    found = phase.price_ratios(pd.concat([frame[dearer.notna()], three], ignore_index=True))
    reached = frame.query("method == 'simnpo' and share == 1").groupby("level")["reached"].all()
    np.testing.assert_array_equal(found["value"].notna(), reached)
    np.testing.assert_allclose(found["value"].dropna(), 3.0)
    assert phase.price_ratios(frame)["value"].notna().any()


def test_the_figure_draws_every_cell(frame: pd.DataFrame):
    before = frame.copy(deep=True)
    with style.look():
        figure = phase.plot(frame)
    pd.testing.assert_frame_equal(frame, before)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 5 * len(CORNERS)
    shown = sum(np.ma.asarray(image.get_array()).count() for image in images[: len(CORNERS)])
    known = phase.cells(frame)
    assert shown == known.loc[known["share"] == 1, "retain_distance"].notna().sum()


def test_the_view_shows_the_cells_that_its_controls_name(frame: pd.DataFrame):
    view = phase_view(frame, method="simnpo", measure="retain_distance", share=0.1, level=0.4)
    known = phase.cells(frame)
    seen = [view.image.value]
    for name, value in (
        ("method", "npo"),
        ("measure", "over_forgetting"),
        ("share", 1.0),
        ("level", 0.1),
    ):
        view.controls[name].value = value
        seen.append(view.image.value)
    assert len(set(seen)) == len(seen) and view.message.value == ""
    image = next(axes.images[0] for axes in view.picture.figure.axes if axes.images)
    own = known[(known["method"] == "npo") & (known["share"] == 1.0)]
    table = own.pivot(index="length", columns="level", values="over_forgetting").to_numpy()
    np.testing.assert_array_equal(np.ma.filled(np.ma.asarray(image.get_array()), np.nan), table)


@pytest.mark.parametrize(
    ("name", "value"), [("method", "dpo"), ("measure", "step"), ("share", 0.5), ("level", 7.0)]
)
def test_the_view_refuses_what_its_table_lacks(frame: pd.DataFrame, name: str, value: object):
    with pytest.raises(InvalidInput, match=name):
        phase_view(frame, **{name: value})  # pyright: ignore[reportArgumentType]
