"""Tables are functions of a trajectory: weights, shares and crossings against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from markov.diagnostics import (
    COLUMNS,
    SETTINGS,
    architecture_name,
    at_last_goal,
    crossings,
    steps_to_forget,
    table,
    weights,
)
from markov.errors import InvalidInput
from markov.experiments import Experiment
from markov.models import Tabular, Transformer
from markov.objectives import (
    CORNERS,
    Objective,
    SequenceLogProbs,
    gradient_ascent,
    method_name,
    npo,
    simnpo,
)
from markov.recording import Trajectory
from markov.sweeps import ComponentSweep


@pytest.fixture
def trajectory() -> Trajectory:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return Trajectory(
        step=torch.tensor([0, 2]),
        component=torch.tensor([0, 0, 1, 1, 1, 2, 2]),
        length=torch.tensor([19.0, 19, 19, 19, 19, 4, 4], dtype=torch.float64),
        reference=(reference := -40 * draw(2, 7)),
        logp=torch.stack([reference, -40 * draw(2, 7)], dim=1),
        kl_to_truth=draw(2, 2, 3),
        kl_to_retrained=draw(2, 2, 3),
        kl_to_reference=draw(2, 2, 3),
        gradient_norm=draw(2, 2, 3),
        batch_weight=draw(2, 2, 4),
        batch_component=torch.zeros(2, 2, 4, dtype=torch.int64),
    )


EXPERIMENTS = [
    Experiment(objective=npo(0.2), steps=2),
    Experiment(objective=simnpo(4.0), seed=1, steps=2),
]
GOALS = [[0.0, 0.42, 0.44]] * 2


def test_weights_are_the_law_applied_to_every_recorded_example(trajectory: Trajectory) -> None:
    for objective in (npo(0.3), simnpo(2.5, 0.5), gradient_ascent(1.0)):
        found = weights(objective, trajectory, 1)
        for step in range(2):
            for example in range(7):
                values = (trajectory.logp[1, step], trajectory.length, trajectory.logp[1, 0])
                seq = SequenceLogProbs(*(value[example] for value in values))
                # One number by itself is computed by other code than a row of them.
                assert float(found[step, example]) == pytest.approx(
                    float(objective.weight(seq)), rel=1e-6
                )


def test_reference_weights_of_npo_are_one_at_step_zero(trajectory: Trajectory) -> None:
    frame = table(EXPERIMENTS, trajectory, GOALS, GOALS)
    start = frame[(frame["run"] == 0) & (frame["step"] == 0)]
    assert (start["weight"] == 1).all()
    assert (start["weight_std"] == 0).all()


def test_a_table_holds_means_over_the_examples_of_a_component(trajectory: Trajectory) -> None:
    frame = table(EXPERIMENTS, trajectory, GOALS, GOALS)
    row = frame[
        (frame["run"] == 1) & (frame["step"] == 2) & (frame["component"] == "forget1")
    ].iloc[0]
    own = weights(EXPERIMENTS[1].objective, trajectory, 1)[1, 2:5].numpy()
    assert row["logp"] == pytest.approx(trajectory.logp[1, 1, 2:5].numpy().mean())
    assert row["logp_per_token"] == pytest.approx(row["logp"] / 19)
    assert row["weight"] == pytest.approx(own.mean())
    assert row["weight_std"] == pytest.approx(own.std())
    assert row["kl_to_truth"] == trajectory.kl_to_truth[1, 1, 1].item()
    assert row["gradient_norm"] == trajectory.gradient_norm[1, 1, 1].item()
    assert row["retrained"] == 0.42
    assert list(frame.columns) == list(COLUMNS)


def test_shares_of_the_forget_components_sum_to_one_and_follow_their_counts(
    trajectory: Trajectory,
) -> None:
    uneven = [replace(one, case=replace(one.case, forget2_count=15_000)) for one in EXPERIMENTS]
    frame = table(uneven, trajectory, GOALS, GOALS)
    forget = frame[frame["component"] != "retain"]
    for share in ("weight_share", "gradient_share"):
        np.testing.assert_allclose(forget.groupby(["run", "step"])[share].sum(), 1)
        assert frame.loc[frame["component"] == "retain", share].isna().all()
    one, two = (
        frame[(frame["run"] == 1) & (frame["step"] == 2) & (frame["component"] == c)].iloc[0]
        for c in ("forget1", "forget2")
    )
    assert two["weight_share"] / one["weight_share"] == pytest.approx(
        3 * two["weight"] / one["weight"]
    )


def test_every_corner_and_limit_has_its_name() -> None:
    for name, corner in CORNERS.items():
        assert method_name(Objective(1.0, 0.0, *corner)) == name
    assert method_name(gradient_ascent()) == method_name(npo(0.0)) == "gradient_ascent"
    assert method_name(gradient_ascent(1.0)) == "length_weighted_gradient_ascent"
    assert method_name(Objective(1.0, 0.0, 0.5, 1.0)) == "between"


def test_architectures_are_named_where_they_have_a_name() -> None:
    assert architecture_name(Transformer()) == architecture_name(Transformer(context=30)) == "paper"
    assert architecture_name(Transformer.released()) == "released"
    assert "width=64" in architecture_name(Transformer(width=64))
    assert "Tabular" in architecture_name(Tabular())


def path(retain: list[float], forget1: list[float], forget2: list[float]) -> pd.DataFrame:
    rows = []
    for component, values, goal in (
        ("retain", retain, 0.0),
        ("forget1", forget1, 0.4),
        ("forget2", forget2, 0.5),
    ):
        for step, value in zip((0, 2, 6), values, strict=True):
            rows.append(
                {
                    "run": 0,
                    "step": step,
                    "component": component,
                    "kl_to_truth": value,
                    "retrained": goal,
                }
            )
    settings = [
        "case",
        "method",
        "beta",
        "gamma",
        "architecture",
        "optimizer",
        "pretrain_seed",
        "seed",
    ]
    return pd.DataFrame(rows).assign(**dict.fromkeys(settings, 0))


def test_a_crossing_is_interpolated_between_recorded_steps() -> None:
    one, two = crossings(path([0.0, 0.1, 0.3], [0.0, 0.2, 0.6], [0.1, 0.7, 0.9])).to_dict("records")
    assert (one["component"], two["component"]) == ("forget1", "forget2")
    assert (one["step"], one["retain_distance"]) == (pytest.approx(4.0), pytest.approx(0.2))
    assert one["other_gap"] == pytest.approx(0.8 - 0.5)
    assert one["retain_paid"] == pytest.approx(0.2)
    assert two["step"] == pytest.approx(2 * 0.4 / 0.6)
    assert one["reached"] and two["reached"]


def test_the_first_crossing_counts_even_if_the_curve_turns_back() -> None:
    one, _ = crossings(path([0.0, 0.1, 0.3], [0.0, 0.8, 0.1], [0.1, 0.2, 0.9])).to_dict("records")
    assert one["step"] == pytest.approx(1.0)


def test_a_run_that_never_arrives_has_no_cost_and_one_that_starts_there_pays_its_start() -> None:
    one, two = crossings(path([0.03, 0.1, 0.3], [0.0, 0.1, 0.2], [0.5, 0.7, 0.9])).to_dict(
        "records"
    )
    assert (one["reached"], two["reached"]) == (False, True)
    assert all(np.isnan(one[name]) for name in ("step", "retain_distance", "other_gap"))
    assert (two["step"], two["retain_distance"], two["retain_paid"]) == (0.0, 0.03, 0.0)


def test_what_is_paid_is_counted_from_the_start_if_that_is_recorded() -> None:
    frame = path([0.03, 0.1, 0.3], [0.0, 0.2, 0.6], [0.1, 0.7, 0.9])
    one, _ = crossings(frame).to_dict("records")
    assert one["retain_paid"] == pytest.approx(one["retain_distance"] - 0.03)
    later, _ = crossings(frame[frame["step"] > 0]).to_dict("records")
    assert np.isnan(later["retain_paid"]) and np.isfinite(later["retain_distance"])


@given(*(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3) for _ in range(3)))
def test_at_the_last_goal_all_is_read_where_the_later_crossing_is(
    retain: list[float], forget1: list[float], forget2: list[float]
) -> None:
    frame = path(retain, forget1, forget2).assign(normalize=1.0, length=4)
    two, found = crossings(frame), at_last_goal(frame)
    assert found["component"].tolist() == ["forget1", "forget2"]
    if not two["reached"].all():
        assert not found["reached"].any()
        assert found[["step", "retain_distance", "beyond"]].isna().all(axis=None)
        return
    place = int(two["step"].to_numpy().argmax())
    last, other = two.iloc[place], found.iloc[1 - place]
    np.testing.assert_allclose(found["step"], last["step"])
    np.testing.assert_allclose(found["retain_distance"], last["retain_distance"])
    assert other["beyond"] == pytest.approx(last["other_gap"])
    # A goal that lies beyond the last digit of a number in single precision counts as reached.
    assert found.iloc[place]["beyond"] >= -1e-4


def test_the_last_goal_does_not_depend_on_the_order_of_the_rows() -> None:
    frame = path([0.0, 0.1, 0.3], [0.0, 0.2, 0.6], [0.1, 0.7, 0.9]).assign(normalize=1.0, length=4)
    one, two = at_last_goal(frame).to_dict("records")
    assert one["beyond"] == pytest.approx(0.0) and two["beyond"] == pytest.approx(0.3)
    mixed = at_last_goal(frame.sample(frac=1, random_state=0)).set_index("component")
    assert mixed.loc["forget2", "beyond"] == pytest.approx(0.3)


# --- a table of other studies ---


def test_each_distance_of_a_table_is_its_own_column(trajectory: Trajectory) -> None:
    frame = table(EXPERIMENTS, trajectory, GOALS, GOALS).set_index(["run", "component", "step"])
    for name in ("kl_to_truth", "kl_to_retrained", "kl_to_reference"):
        for run in range(2):
            for position, component in enumerate(("retain", "forget1", "forget2")):
                for at, step in enumerate((0, 2)):
                    assert (
                        frame.loc[(run, component, step), name]
                        == getattr(trajectory, name)[run, at, position]
                    )


def swept(alone: str | None) -> Experiment:
    case = ComponentSweep(
        name="s", scored=(19, 4), shares=(1.0, 1.0), retain_scored=19, set_size=3, alone=alone
    )
    return Experiment(case=case, steps=2, model=Transformer(states=10))


def test_a_component_that_is_forgotten_alone_has_all_of_the_weight(trajectory: Trajectory) -> None:
    both = table([swept(None)] * 2, trajectory, GOALS, GOALS)
    kept = trajectory.component != 1
    one = trajectory._replace(
        component=trajectory.component[kept] // 2,
        length=trajectory.length[kept],
        reference=trajectory.reference[..., kept],
        logp=trajectory.logp[..., kept],
        **{
            name: getattr(trajectory, name)[..., [0, 2]]
            for name in ("kl_to_truth", "kl_to_retrained", "kl_to_reference", "gradient_norm")
        },
    )
    alone = table([swept("forget2")] * 2, one, [[0.0, 0.44]] * 2, [[0.0, 0.44]] * 2)
    assert set(alone["component"]) == {"retain", "forget2"} and set(alone["length"]) == {19, 4}
    mine = alone[alone["component"] == "forget2"]
    assert (mine[["weight_share", "gradient_share"]] == 1).all(axis=None)
    assert (
        alone.loc[alone["component"] == "retain", ["weight_share", "gradient_share"]]
        .isna()
        .all(axis=None)
    )
    same = [name for name in COLUMNS if not name.endswith("_share")]
    want = both[both["component"] != "forget1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone[same], want[same])
    # Gradient norms that were not asked for have no shares, and weights have them all the same.
    blind = table(
        [swept("forget2")] * 2,
        one._replace(gradient_norm=one.gradient_norm * torch.nan),
        [[0.0, 0.44]] * 2,
        [[0.0, 0.44]] * 2,
    )
    assert blind["gradient_share"].isna().all() and (blind["weight_share"].dropna() == 1).all()


# --- steps to forget ---

FIXED = dict.fromkeys(SETTINGS, 0)


def falling(paths: dict[tuple[int, str], list[float]], steps: list[int]) -> pd.DataFrame:
    """A table of the log-probability per token of each run and component at some steps."""
    rows: list[dict[str, Any]] = []
    for at, ((run, component), values) in enumerate(paths.items()):
        known = FIXED | {
            "method": f"m{run}",
            "seed": run,
            "length": 5 + at,
            "learning_rate": 0.5 * (run + 1),
        }
        for step, value in zip(steps, values, strict=True):
            rows.append(
                {"run": run, **known, "component": component, "step": step, "logp_per_token": value}
            )
    return pd.DataFrame(rows)


def slow_steps(values: list[float], steps: list[int], fall: float) -> float:
    """Walk along every straight piece until it lies `fall` below the first value."""
    for at in range(1, len(steps)):
        if values[0] - values[at] >= fall:
            drop = values[at - 1] - values[at]
            return steps[at - 1] + (fall - (values[0] - values[at - 1])) / drop * (
                steps[at] - steps[at - 1]
            )
    return float("inf")


@settings(max_examples=60)
@given(rate=st.floats(0.01, 3), start=st.floats(-9, 0), fall=st.floats(0.01, 9), data=st.data())
def test_a_straight_path_is_forgotten_after_the_fall_over_the_rate(
    rate: float, start: float, fall: float, data: st.DataObject
) -> None:
    steps = [0, *sorted(data.draw(st.sets(st.integers(1, 50), min_size=1, max_size=6)))]
    frame = falling({(0, "forget1"): [start - rate * step for step in steps]}, steps)
    found = steps_to_forget(frame, fall)["step"].item()
    if fall < rate * steps[-1] * (1 - 1e-9):
        assert found == pytest.approx(fall / rate, rel=1e-6)
    elif fall > rate * steps[-1] * (1 + 1e-9):
        assert found == np.inf


@settings(max_examples=60)
@given(fall=st.floats(0.01, 3), data=st.data())
def test_steps_to_forget_are_read_off_every_path_as_a_walk_along_it_would(
    fall: float, data: st.DataObject
) -> None:
    steps = [0, *sorted(data.draw(st.sets(st.integers(1, 30), min_size=1, max_size=6)))]
    path = st.lists(st.floats(-5, 0), min_size=len(steps), max_size=len(steps))
    paths = {(run, f"forget{at}"): data.draw(path) for run in (0, 1) for at in (1, 2)}
    found = steps_to_forget(falling(paths, steps), fall)
    assert list(zip(found["run"], found["component"], strict=True)) == list(paths)
    for got, values in zip(found["step"], paths.values(), strict=True):
        assert got == pytest.approx(slow_steps(values, steps, fall), rel=1e-9)


def test_steps_to_forget_are_interpolated_from_the_first_record_to_the_first_arrival() -> None:
    paths = {
        (0, "forget1"): [-1.0, -1.2, -1.8, -1.8],  # passes -1.5 half way between 2 and 6
        (0, "forget2"): [-2.0, -2.5, -2.1, -3.0],  # arrives exactly at 2, and goes on
        (0, "forget3"): [-3.0, -2.0, -3.1, -3.4],  # rises first: the fall counts from step 0
        (0, "forget4"): [-1.0, -1.1, -1.2, -1.4],
    }
    found = steps_to_forget(falling(paths, [0, 2, 6, 16]), 0.5).set_index("component")["step"]
    assert found.tolist() == [pytest.approx(4.0), pytest.approx(2.0), np.inf, np.inf]
    less = steps_to_forget(falling(paths, [0, 2, 6, 16]), 0.3).set_index("component")["step"]
    assert less["forget3"] == pytest.approx(6 + 10 * (0.2 / 0.3))
    assert less["forget4"] == pytest.approx(6 + 10 * (0.1 / 0.2))


def test_steps_to_forget_are_in_the_order_of_runs_and_components_and_never_of_retain() -> None:
    names = ["retain", "forget1", "forget2", "forget10"]
    paths = {(run, name): [-1.0, -3.0] for run in (0, 2, 10) for name in names}
    found = steps_to_forget(falling(paths, [0, 4]), 1.0)
    assert list(zip(found["run"], found["component"], strict=True)) == [
        key for key in paths if key[1] != "retain"
    ]
    assert (found["step"] == 2).all() and len(found) == 9
    first = falling(paths, [0, 4]).groupby(["run", "component"]).first()
    for row in found.to_dict("records"):
        for name in [*SETTINGS, "length", "learning_rate"]:
            assert row[name] == first.loc[(row["run"], row["component"]), name]
    assert list(found.columns) == ["run", *SETTINGS, "length", "learning_rate", "component", "step"]


def test_steps_to_forget_do_not_depend_on_the_order_of_the_rows() -> None:
    paths = {
        (run, f"forget{at}"): [-1.0, -1.0 - 0.1 * at, -2.0 - run, -1.0]
        for run in (1, 0)
        for at in (1, 2, 3)
    }
    frame = falling(paths, [0, 3, 7, 8])
    want = steps_to_forget(frame, 0.7)
    assert want["run"].tolist() == [0] * 3 + [1] * 3 and np.isfinite(want["step"]).all()
    mixed = steps_to_forget(frame.sample(frac=1, random_state=0), 0.7).sort_values(
        ["run", "component"]
    )
    pd.testing.assert_frame_equal(mixed.reset_index(drop=True), want)


@pytest.mark.parametrize("fall", [0.0, -0.5, float("nan")])
def test_to_forget_is_to_fall(fall: float) -> None:
    with pytest.raises(InvalidInput) as caught:
        steps_to_forget(falling({(0, "forget1"): [-1.0, -2.0]}, [0, 1]), fall)
    assert caught.value.field == "fall"
