"""What is kept of an objective's weights in an update of a language model, and that it is all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from llm.commands.unlearn import Unlearn, resolved, unlearning
from llm.randomness import shuffled
from llm.training.loop import Loop
from llm.unlearning.methods import described, method, method_of
from llm.unlearning.unlearn import Unlearning, as_kept
from markov.console.choices import WeightingName
from markov.errors import InvalidInput
from markov.files.storage import settings_of
from markov.objectives import Objective, gradient_ascent, npo, simnpo
from markov.preferences import dpo
from tests.llm.training.test_llm_training import token_losses
from tests.llm.unlearning.test_unlearning import (
    FORGET,
    RETAIN,
    check_tables,
    first_gradients,
    gpt2,
    interrupted_at,
    run,
    same,
    with_,
)

OTHERS = tuple(name for name in get_args(WeightingName) if name != "own")
FAMILY = {
    "npo": npo(0.5),
    "simnpo": simnpo(2.5, 0.5),
    "between": Objective(0.7, 0.1, 0.5, 0.5),
}
AWAY = torch.tensor([-9.0, -30.0, -4.0, -50.0, -12.0])  # a reference that is not the model


def kept(name: str, weights: list[float]) -> list[float]:
    """The weightings, written out once more."""
    mean = sum(weights) / len(weights)
    ways = {
        "own": weights,
        "magnitude": [mean for _ in weights],
        "allocation": [one / mean for one in weights],
        "none": [1.0 for _ in weights],
    }
    return ways[name]


def exact() -> Any:
    return gpt2().double()


def gradients(settings: Unlearning, **options: Any) -> list[Tensor]:
    with first_gradients() as found:
        run(exact(), settings, **options)
    return found


@pytest.mark.parametrize("name", get_args(WeightingName))
@pytest.mark.parametrize("objective", FAMILY)
def test_an_update_is_the_mean_of_gradients_times_what_is_kept_of_their_weights(
    objective: str, name: str
) -> None:
    law = FAMILY[objective]
    settings = with_(objective=law, weighting=name, batch=3, clip=None)
    settings = replace(settings, retain_term="cross_entropy", retain_weight=0.7)
    # Of an update of three of the five answers, in two micro-batches.
    settings = replace(settings, optimization=replace(settings.optimization, budget=30))
    found = gradients(settings, ref=AWAY)
    model: Any = exact()
    rows = shuffled(5, 3, settings.optimization.seed, 1, label="forget")[0]
    weights = []
    for row in rows:
        losses = token_losses(model, FORGET[row]).detach()
        length = len(losses)
        score = (-float(losses.sum()) - law.reference * float(AWAY[row])) / length**law.normalize
        logit = torch.tensor(law.beta * score + law.gamma, dtype=torch.float64)
        weights.append(2 * float(logit.sigmoid()) / length**law.normalize)
    for row, weight in zip(rows, kept(name, weights), strict=True):
        (-weight * token_losses(model, FORGET[row]).sum() / len(rows)).backward()
    order = (3, settings.optimization.seed, 1)
    for row in shuffled(len(RETAIN), *order, label="retain", total=5)[0]:
        (0.7 * token_losses(model, RETAIN[row]).mean() / len(rows)).backward()
    want = {tuple(own.shape): [] for own in model.parameters()}
    for own in model.parameters():
        want[tuple(own.shape)].append(own.grad)
    assert len(found) > 0
    for own in found:
        near = [torch.allclose(own, one, rtol=1e-6, atol=1e-12) for one in want[tuple(own.shape)]]
        assert any(near)


@pytest.mark.parametrize("name", OTHERS)
def test_how_a_batch_is_cut_does_not_matter(name: str) -> None:
    settings = with_(objective=simnpo(2.5), weighting=name, batch=4)
    logps = []
    for budget in (10, 30, 1000):
        cut = replace(settings, optimization=replace(settings.optimization, budget=budget))
        logps.append(run(exact(), cut).examples["logp"].to_numpy())
    np.testing.assert_allclose(logps[0], logps[2], rtol=1e-9)
    np.testing.assert_allclose(logps[1], logps[2], rtol=1e-9)


def test_own_weights_take_no_pass_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    model = gpt2()
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = run(model, with_(retain_term="cross_entropy", weighting="own"))
    counted, twin = len(passes), gpt2()
    twin.register_forward_pre_hook(lambda *_: passes.append(1))
    monkeypatch.setattr("llm.unlearning.epoch.Unlearner.weights", lambda *_: None)
    check_tables(run(twin, with_(retain_term="cross_entropy")), found)
    assert same(model, twin) and len(passes) == 2 * counted


@pytest.mark.parametrize("objective", FAMILY)
def test_no_weights_are_gradient_ascent(objective: str) -> None:
    settings = with_(objective=FAMILY[objective], weighting="none", retain_term="cross_entropy")
    found = run(exact(), settings).examples
    ascent = run(exact(), replace(settings, objective=gradient_ascent(), weighting="own")).examples
    np.testing.assert_allclose(found["logp"], ascent["logp"], rtol=1e-8)


def test_no_weights_averaged_over_tokens_are_mean_gradient_ascent() -> None:
    settings = with_(average="tokens", batch=5, clip=None)
    found = gradients(replace(settings, weighting="none"))
    ascent = gradients(replace(settings, objective=gradient_ascent()))
    for one, other in zip(found, ascent, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_are_all_1_are_kept_by_all(name: str) -> None:
    settings = with_(objective=gradient_ascent(), batch=2)
    found = run(exact(), replace(settings, weighting=name)).examples
    np.testing.assert_allclose(found["logp"], run(exact(), settings).examples["logp"], rtol=1e-9)


def test_each_weighting_of_uneven_weights_is_another_run() -> None:
    ends = [
        run(gpt2(), with_(objective=simnpo(2.5), weighting=name, clip=None)).examples["logp"]
        for name in get_args(WeightingName)
    ]
    for place, one in enumerate(ends):
        assert all(abs(one - other).max() > 1e-3 for other in ends[:place])


def test_what_is_recorded_is_of_the_objective_alone() -> None:
    own, other = (
        run(gpt2(), with_(objective=simnpo(2.5), weighting=name)).epochs["forget_loss"]
        for name in ("own", "allocation")
    )
    assert own[0] == other[0] and own[1] != other[1]


def test_a_run_that_was_stopped_goes_on_and_only_with_its_weighting(tmp_path: Path) -> None:
    settings, model, again = with_(weighting="allocation", retain_term="kl"), gpt2(), gpt2()
    found = run(model, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "update", interrupted_at(5, Loop.update))
        with pytest.raises(KeyboardInterrupt):
            run(again, settings, state=tmp_path)
    with pytest.raises(InvalidInput):
        run(gpt2(), replace(settings, weighting="magnitude"), state=tmp_path)
    again = gpt2()
    check_tables(run(again, settings, state=tmp_path), found)
    assert same(again, model)


@pytest.mark.parametrize("bad", [None, True, "another", ["own"], 1.0])
def test_another_weighting_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^weighting = .*own, magnitude, allocation, none$"):
        with_(weighting=bad)


def test_what_does_not_go_with_a_weighting_is_refused_in_one_line() -> None:
    with pytest.raises(InvalidInput, match="weighting") as pair:
        with_(objective=dpo(0.1), weighting="allocation")
    with pytest.raises(InvalidInput, match="importance") as two:
        run(gpt2(), with_(weighting="none"), importance=torch.ones(5))
    assert all("\n" not in str(one.value) for one in (pair, two))


def test_runs_from_before_there_were_weightings_are_known() -> None:
    settings = with_()
    before = settings_of(settings)
    assert before.pop("weighting") == "own"
    assert as_kept(settings) == before
    assert as_kept(replace(settings, weighting="none"))["weighting"] == "none"


def test_a_command_and_its_words_say_what_is_kept() -> None:
    command = Unlearn(model="authors:original", weighting="magnitude", epochs=1)
    settings = unlearning(resolved(command))
    assert settings.weighting == "magnitude" and unlearning(resolved(Unlearn())).weighting == "own"
    assert "magnitude" in described("simnpo:4.5", settings)
    with pytest.raises(InvalidInput, match="own weights"):
        method_of(settings)
    assert method_of(replace(settings, weighting="own")) == method("simnpo:4.5@0.125")
