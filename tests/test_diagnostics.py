"""Tables are functions of a trajectory: weights, shares and crossings against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from markov.diagnostics import COLUMNS, architecture_name, crossings, method_name, table, weights
from markov.experiments import Experiment
from markov.models import Tabular, Transformer
from markov.objectives import CORNERS, Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from markov.recording import Trajectory


@pytest.fixture
def trajectory() -> Trajectory:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return Trajectory(
        step=torch.tensor([0, 2]),
        component=torch.tensor([0, 0, 1, 1, 1, 2, 2]),
        length=torch.tensor([19.0, 19, 19, 19, 19, 4, 4], dtype=torch.float64),
        logp=-40 * draw(2, 2, 7),
        kl_to_truth=draw(2, 2, 3),
        kl_to_retrained=draw(2, 2, 3),
        kl_to_reference=draw(2, 2, 3),
        gradient_norm=draw(2, 2, 3),
        batch_weight=draw(2, 2, 4),
        batch_component=torch.zeros(2, 2, 4, dtype=torch.int64),
    )


EXPERIMENTS = [Experiment(objective=npo(0.2), steps=2), Experiment(objective=simnpo(4.0), seed=1, steps=2)]
GOALS = [[0.0, 0.42, 0.44]] * 2


def test_weights_are_the_law_applied_to_every_recorded_example(trajectory: Trajectory) -> None:
    for objective in (npo(0.3), simnpo(2.5, 0.5), gradient_ascent(1.0)):
        found = weights(objective, trajectory, 1)
        for step in range(2):
            for example in range(7):
                values = (trajectory.logp[1, step], trajectory.length, trajectory.logp[1, 0])
                seq = SequenceLogProbs(*(value[example] for value in values))
                assert found[step, example] == objective.weight(seq)


def test_reference_weights_of_npo_are_one_at_step_zero(trajectory: Trajectory) -> None:
    frame = table(EXPERIMENTS, trajectory, GOALS, GOALS)
    start = frame[(frame["run"] == 0) & (frame["step"] == 0)]
    assert (start["weight"] == 1).all()
    assert (start["weight_std"] == 0).all()


def test_a_table_holds_means_over_the_examples_of_a_component(trajectory: Trajectory) -> None:
    frame = table(EXPERIMENTS, trajectory, GOALS, GOALS)
    row = frame[(frame["run"] == 1) & (frame["step"] == 2) & (frame["component"] == "forget1")].iloc[0]
    own = weights(EXPERIMENTS[1].objective, trajectory, 1)[1, 2:5].numpy()
    assert row["logp"] == pytest.approx(trajectory.logp[1, 1, 2:5].numpy().mean())
    assert row["logp_per_token"] == pytest.approx(row["logp"] / 19)
    assert row["weight"] == pytest.approx(own.mean())
    assert row["weight_std"] == pytest.approx(own.std())
    assert row["kl_to_truth"] == trajectory.kl_to_truth[1, 1, 1].item()
    assert row["gradient_norm"] == trajectory.gradient_norm[1, 1, 1].item()
    assert row["retrained"] == 0.42
    assert list(frame.columns) == list(COLUMNS)


def test_shares_of_the_forget_components_sum_to_one_and_follow_their_counts(trajectory: Trajectory) -> None:
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
    assert two["weight_share"] / one["weight_share"] == pytest.approx(3 * two["weight"] / one["weight"])


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
    for component, values, goal in (("retain", retain, 0.0), ("forget1", forget1, 0.4), ("forget2", forget2, 0.5)):
        for step, value in zip((0, 2, 6), values, strict=True):
            rows.append({"run": 0, "step": step, "component": component, "kl_to_truth": value, "retrained": goal})
    settings = ["case", "method", "beta", "gamma", "architecture", "optimizer", "pretrain_seed", "seed"]
    return pd.DataFrame(rows).assign(**dict.fromkeys(settings, 0))


def test_a_crossing_is_interpolated_between_recorded_steps() -> None:
    one, two = crossings(path([0.0, 0.1, 0.3], [0.0, 0.2, 0.6], [0.1, 0.7, 0.9])).to_dict("records")
    assert (one["component"], two["component"]) == ("forget1", "forget2")
    assert (one["step"], one["retain_distance"]) == (pytest.approx(4.0), pytest.approx(0.2))
    assert one["other_gap"] == pytest.approx(0.8 - 0.5)
    assert two["step"] == pytest.approx(2 * 0.4 / 0.6)
    assert one["reached"] and two["reached"]


def test_the_first_crossing_counts_even_if_the_curve_turns_back() -> None:
    one, _ = crossings(path([0.0, 0.1, 0.3], [0.0, 0.8, 0.1], [0.1, 0.2, 0.9])).to_dict("records")
    assert one["step"] == pytest.approx(1.0)


def test_a_run_that_never_arrives_has_no_cost_and_one_that_starts_there_pays_its_start() -> None:
    one, two = crossings(path([0.03, 0.1, 0.3], [0.0, 0.1, 0.2], [0.5, 0.7, 0.9])).to_dict("records")
    assert (one["reached"], two["reached"]) == (False, True)
    assert all(np.isnan(one[name]) for name in ("step", "retain_distance", "other_gap"))
    assert (two["step"], two["retain_distance"]) == (0.0, 0.03)
