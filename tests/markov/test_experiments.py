"""Experiments are values: what they refuse, and what a grid of them contains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from markov.cases import LENGTH, MEMORISATION
from markov.errors import InvalidInput
from markov.experiments import Experiment, Pretraining, grid
from markov.models import Tabular, Transformer
from markov.objectives import Objective, npo, simnpo


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("beta", {"objective": Objective(-1.0)}),
        ("gamma", {"objective": Objective(1.0, float("nan"))}),
        ("seed", {"seed": -1}),
        ("steps", {"steps": 0}),
        ("batch", {"batch": 0}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("optimizer", {"optimizer": "adam"}),
        ("retain_term", {"retain_term": "l2"}),
        ("retain_weight", {"retain_weight": 1.0}),
        ("retain_weight", {"retain_term": "kl"}),
        ("retain_weight", {"retain_term": "kl", "retain_weight": -1.0}),
        ("recorded", {"recorded": (0, 51)}),
        ("test_examples", {"test_examples": 0}),
        ("gradient_examples", {"gradient_examples": -1}),
        ("precision", {"precision": "float16"}),
        ("model.states", {"model": Tabular(states=9)}),
        ("model.context", {"model": Transformer(context=18)}),
    ],
)
def test_bad_settings_are_refused_by_the_name_of_their_field(
    field: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Experiment(**settings)
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["epochs", "batch", "seed", "learning_rate", "optimizer"])
def test_bad_pretraining_is_refused_by_the_name_of_its_field(field: str) -> None:
    bad: dict[str, Any] = {
        "epochs": 0,
        "batch": 0.5,
        "seed": -1,
        "learning_rate": float("inf"),
        "optimizer": "lion",
    }
    with pytest.raises(InvalidInput) as caught:
        replace(Pretraining(), **{field: bad[field]})
    assert caught.value.field == field


def test_the_defaults_are_the_papers_settings() -> None:
    experiment = Experiment()
    assert (experiment.steps, experiment.batch, experiment.learning_rate) == (50, 4, 5e-4)
    assert (experiment.pretraining.epochs, experiment.pretraining.batch) == (5, 128)
    assert experiment.optimizer == experiment.pretraining.optimizer == "adamw_transformers"
    assert (experiment.case.leakage, experiment.case.states) == (0.2, 10)
    assert experiment.model == Transformer(width=128, depth=4, heads=4, mlp_width=128, norm="pre")


def test_a_grid_is_every_combination_with_the_last_axis_fastest() -> None:
    experiments = grid(
        Experiment(), case=[LENGTH, MEMORISATION], objective=[npo(0.1), simnpo(4.0)], seed=[0, 1, 2]
    )
    assert len(experiments) == len(set(experiments)) == 12
    assert [one.seed for one in experiments[:4]] == [0, 1, 2, 0]
    assert {one.case for one in experiments[:6]} == {LENGTH}


def test_a_grid_refuses_unknown_and_empty_axes() -> None:
    with pytest.raises(InvalidInput, match="grid axis"):
        grid(Experiment(), temperature=[1.0])
    with pytest.raises(InvalidInput, match="at least one"):
        grid(Experiment(), seed=[])
