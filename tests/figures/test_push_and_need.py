"""Pushes and needs: what is computed on tiny models, and what is told of numbers that are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from figures import cache
from figures.language.runs import AuthorsStudy
from figures.questions import endings, graded
from figures.questions.pushing import (
    chain_pushes,
    matching_told,
    push_and_need,
    pushes,
    weightings,
)
from figures.scale import Scale
from llm.diagnostics.matching import match
from llm.evaluation.tofu import evaluate
from llm.models.answers import responses
from llm.models.small_authors import build, sets
from llm.scoring.gram import gram
from llm.scoring.logprobs import score_encoded
from markov.experiments import Experiment, Pretraining
from markov.models import Transformer, stack_parameters
from markov.running.models import load_model, model_jobs, models_folder
from tests.figures.studies import drawn, in_place, tiny_study

FEW = ("power_0", "nnls")


class Small(Scale):
    """Two pretrained transformers of the chains that are trained in a second."""

    def experiment(self) -> Experiment:
        return replace(
            super().experiment(),
            model=Transformer(width=16, depth=1, heads=2, mlp_width=16),
            pretraining=Pretraining(epochs=1, batch=64, learning_rate=3e-3),
        )


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, AuthorsStudy]]:
    """A context, and a study whose models are there."""
    chosen = tiny_study(questions=10, percent=20)
    scale = Small(pretrained=2, trained=1, quick=True)
    context = cache.Context(scale=scale, n_jobs=1, progress=False)
    with in_place(chosen, tmp_path_factory.mktemp("cache"), graded):
        yield context, chosen


@pytest.fixture(scope="module")
def frame(known: tuple[Any, AuthorsStudy]) -> pd.DataFrame:
    """All that is drawn, of few runs."""
    context, _ = known
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weightings.wanted, "__defaults__", (FEW,))
        patch.setattr(weightings, "WIDER", (1.0, 4.0))
        patch.setattr(endings, "evaluate", partial(evaluate, max_new_tokens=4))
        patch.setattr(pushes.Way, "__init__", _fewer(pushes.Way.__init__))
        return push_and_need.data(context)


def _fewer(init: Any) -> Any:
    return lambda self, **own: init(self, **{"retained": 8, **own})


def test_it_is_drawn_and_told_of_both_kinds_of_models(frame: pd.DataFrame) -> None:
    assert isinstance(drawn(push_and_need, frame), Figure)
    followed = frame["corner"].isin(pushes.PATHS)
    assert isinstance(drawn(push_and_need, frame[~followed]), Figure)
    assert set(frame["model"]) == {"language model", "length", "memorisation"}
    assert set(frame[frame["kind"] == "match"]["epoch"]) == {0, 1, 2}
    told = push_and_need.told(frame)
    judged, every = list(told["claims"]["claim"]), [one.name for one in matching_told.CLAIMS]
    # No run has the other factors.
    assert judged == [name for name in every if name in judged]
    assert {"far", "length", "needed wins"} <= {*judged} and "kept wins" not in judged
    whole = told["matches"].query("measure == 'whole'").set_index("weighting")["value"]
    # The best weights are no worse than others, here and under every optimiser.
    every = ["model", "corner", "epoch", "optimizer", "need_of", "seed"]
    for _, own in frame[frame["kind"] == "match"].groupby(every):
        best = own.set_index("weighting")["whole"]["best"]
        assert (own["whole"] <= best + 1e-6).all()
    assert whole["npo"].between(0, 1).all()


def test_what_is_told_of_the_start_is_what_the_gram_matrix_says(
    known: tuple[Any, AuthorsStudy], frame: pd.DataFrame
) -> None:
    _, chosen = known
    models = chosen.models
    language, retrained = (
        build(models, kind, progress=False) for kind in ("original", "retrained")
    )
    encoded = responses(language, sets(models).forget)
    now, other = (
        score_encoded(one.model, encoded, progress=False).logp.double().numpy()
        for one in (language, retrained)
    )
    k = gram(language.model, encoded, progress=False).numpy()
    own = matching_told.start_of(
        frame, model="language model", seed=0, optimizer="gradient descent", need_of="total"
    ).set_index("weighting")
    # At the start the weights of NPO are 1, and those of length-normalised NPO 1 / |y|.
    length = np.array([len(one.tokens) - one.prompt for one in encoded], dtype=float)
    for name, weights in (("npo", length**0), ("length_normalized_npo", 1 / length)):
        found = match(now - other, k @ weights)
        assert own["whole"][name] == pytest.approx(found.whole, rel=1e-3, abs=1e-6)
        assert own["differences"][name] == pytest.approx(found.differences, rel=1e-2, abs=1e-4)
    assert own["whole"]["nnls"] == pytest.approx(own["whole"]["best"])
    examples = frame[(frame["kind"] == "example") & (frame["optimizer"] == "gradient descent")]
    np.testing.assert_allclose(examples["norm"], np.sqrt(np.diag(k)), rtol=1e-4)
    np.testing.assert_allclose(examples["need"], now - other, rtol=1e-5, atol=1e-4)


def test_gradients_of_chains_are_those_of_single_sequences(known: tuple[Any, Any]) -> None:
    context, _ = known
    experiment = replace(context.scale.experiment(), case=context.scale.cases()["length"])
    original = load_model(models_folder(), model_jobs(experiment)[0], progress=False)
    parameters = stack_parameters([original])
    tokens = experiment.case.sample(0).test["forget2"][:3]
    found = chain_pushes.gradients(experiment.model, parameters, tokens)
    for row, one in zip(found, tokens, strict=True):
        own = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        laws = experiment.model.logits(own, one[None, None, :-1])[0, 0].log_softmax(-1)
        logp = laws.gather(-1, one[1:, None]).sum()
        want = torch.autograd.grad(logp, [*own.values()])
        torch.testing.assert_close(
            row, torch.cat([each.flatten() for each in want]), rtol=1e-3, atol=1e-5
        )
        assert float(chain_pushes.logps(experiment.model, parameters, one[None])) == pytest.approx(
            float(logp.detach()), rel=1e-5
        )


def test_factors_have_mean_one_and_equal_ones_change_nothing(
    known: tuple[Any, AuthorsStudy], frame: pd.DataFrame
) -> None:
    context, chosen = known
    for name in weightings.NAMES:
        found = weightings.importance(context, replace(chosen), name)
        assert found.mean() == pytest.approx(1) and (found >= 0).all()
        assert (np.ptp(found) < 1e-12) == (name == "power_0")
    own = frame[frame["kind"] == "run"]
    assert len(own) == len(FEW) + 1
    assert own[own["factor"] == "power_0"]["even"].to_numpy() == pytest.approx(1)
    assert own["gap"].nunique() == len(own)


# --- what is told of numbers that are known ---


def some_runs() -> pd.DataFrame:
    """Five trainings where D falls by 1 per unit of utility that is lost, and factors beside it."""
    rows = []
    shifts = {"power_0": 0.0, "power_0.25": -0.02, "power_0.5": 0.01, "power_1": 0.05, "nnls": 0.1}
    shifts |= {"length_over_norm": -0.03, "nnls_kept": 0.0}
    for seed in range(5):
        for factor, shift in shifts.items():
            for weight in (1.0, 4.0, 16.0) if factor == "power_0" else (1.0, 4.0):
                utility = 0.7 + 0.02 * np.log2(weight) + (0.011 if factor != "power_0" else 0.0)
                noise = 0.001 * (seed - 2) if factor != "power_0" else 0.0
                level = 0.1 * seed  # trainings may differ by much more than factors do
                values = {"distance": utility + shift + noise + level, "gap": 1.0 + shift}
                known = {"seed": seed, "factor": factor, "retain_weight": weight}
                rows.append(
                    {"kind": "run", **known, **values, "utility": utility, "retain": utility}
                )
    return pd.DataFrame(rows)


def test_runs_are_compared_where_those_of_equal_weights_have_as_much_utility() -> None:
    frame = some_runs()
    keys = ["factor", "at", "trainings", "measure"]
    found = {
        tuple(row[key] for key in keys): row
        for row in matching_told.excesses(frame).to_dict("records")
    }
    for factor, shift in (("nnls", 0.1), ("power_1", 0.05), ("length_over_norm", -0.03)):
        one = found[factor, "utility", "all", "distance"]
        assert one["value"] == pytest.approx(shift) and one["count"] == 5
        assert one["high"] - one["low"] < 0.01
        assert found[factor, "retain", "judged", "distance"]["count"] == 3
        assert found[factor, "retain", "all", "gap"]["value"] == pytest.approx(shift)
    # What keeps more than all of the others is compared with the one of them that keeps most.
    some = frame["factor"] == "nnls"
    more, less = (
        matching_told.excess(frame.assign(utility=frame["utility"].where(~some, level)))
        .query("factor == 'nnls' and at == 'utility'")
        .set_index("seed")["distance"]
        for level in (2.0, 0.1)
    )
    most = frame[(frame["factor"] == "power_0") & (frame["retain_weight"] == 16)]
    theirs = frame[some].groupby("seed")["distance"].mean()
    np.testing.assert_allclose(more, theirs - most.set_index("seed")["distance"])
    assert less.isna().all()


def test_the_power_is_chosen_on_the_first_trainings_and_judged_on_the_others() -> None:
    frame = some_runs()
    late = (frame["factor"] == "power_0.25") & (frame["seed"] >= matching_told.CHOSEN_ON)
    frame.loc[late, "distance"] += 0.5
    found = matching_told.excess(frame)
    assert matching_told.chosen_power(found) == "power_0.25"
    own = {claim.name: claim for claim in matching_told.CLAIMS}["chosen n wins"].per_training(frame)
    assert sorted(own.index) == [2, 3, 4] and (own < -0.4).all()


def test_a_law_of_weights_is_found_and_its_share() -> None:
    length = np.array([4.0, 8.0, 16.0, 32.0, 64.0])
    found = pushes.power_of(length, 3 * length**-0.36)
    assert found == {"power": pytest.approx(-0.36), "explained": pytest.approx(1.0), "zero": 0.0}
    found = pushes.power_of(length, np.array([1.0, 0.0, 2.0, 2.0, 1.0]))
    assert found["explained"] == pytest.approx(0.0, abs=0.05) and found["zero"] == pytest.approx(
        0.2
    )
    assert pushes.power_of(length, np.ones(5))["power"] == 0.0


def test_what_weights_go_with_is_found_with_both_causes_apart() -> None:
    rng, frames = np.random.default_rng(0), []
    for seed in range(3):
        length, loss = np.exp(rng.normal(3, 1, 60)), np.exp(rng.normal(-3, 1, 60))
        loss *= length**0.5  # long answers are known less well
        own = pd.DataFrame({"kind": "example", "optimizer": "AdamW", "length": length})
        own = own.assign(seed=seed, logp=-loss * length, need=2 * length, norm=length**0.7 * loss)
        frames.append(own.assign(nnls=length**-0.4 * loss**-2 * (rng.random(60) > 0.1)))
    frame = pd.concat(frames)
    found = matching_told.causes(frame).set_index(["quantity", "measure"])["value"].to_dict()
    assert found["nnls", "length"] == pytest.approx(-0.4)
    assert found["nnls", "loss"] == pytest.approx(-2)
    assert found["norm", "length"] == pytest.approx(0.7)
    assert found["need", "length_alone"] == pytest.approx(1) and abs(found["need", "loss"]) < 1e-9
    assert found["nnls", "explained"] == pytest.approx(1) and found["nnls", "loss_alone"] < 1
    claim = {one.name: one for one in matching_told.CLAIMS}["known"].per_training(frame)
    assert list(claim.index) == [0, 1, 2] and (claim > 0).all()
