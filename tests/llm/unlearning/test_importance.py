"""The importance of examples: a factor on each loss, and nothing where it is not given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.data import sources
from llm.models.language_model import LanguageModel, load_saved
from llm.randomness import shuffled
from llm.unlearning.prepared import prepared
from llm.unlearning.runs import unlearn_into
from llm.unlearning.unlearn import unlearn
from markov.errors import InvalidInput
from markov.objectives import Objective
from tests.llm.training.test_llm_training import token_losses
from tests.llm.unlearning.test_unlearning import (
    FORGET,
    RETAIN,
    check_tables,
    first_gradients,
    gpt2,
    plain_loss,
    run,
    same,
    with_,
)

GIVEN = torch.tensor([0.0, 2.5, 0.5, 1.0, 1.0], dtype=torch.float64)


def test_it_multiplies_each_loss() -> None:
    settings = with_(batch=5, clip=None, retain_term="cross_entropy", retain_weight=0.7)
    with first_gradients() as found:
        run(gpt2(), settings, importance=GIVEN)
    twin: Any = gpt2()
    for one, factor in zip(FORGET, GIVEN, strict=True):
        losses = token_losses(twin, one)
        assert isinstance(settings.objective, Objective)
        ref = -float(losses.detach().sum())
        own = plain_loss(settings.objective, -losses.sum(), len(losses), ref)
        (float(factor) * own / 5).backward()
    # As many retain examples as there are to forget: three, of which two come twice.
    rows = shuffled(len(RETAIN), 5, settings.optimization.seed, 1, label="retain", total=5)[0]
    for row in rows:
        (0.7 * token_losses(twin, RETAIN[row]).mean() / len(rows)).backward()
    want = {tuple(own.shape): [] for own in twin.parameters()}
    for own in twin.parameters():
        want[tuple(own.shape)].append(own.grad)
    for own in found:
        assert any(torch.allclose(own, one, rtol=1e-6, atol=1e-9) for one in want[tuple(own.shape)])


def test_an_importance_of_one_is_none_and_another_one_is_not() -> None:
    models = [gpt2(), gpt2(), gpt2()]
    settings = with_(retain_term="cross_entropy")
    found = [
        run(model, settings, importance=importance)
        for model, importance in zip(models, (None, torch.ones(5), GIVEN), strict=True)
    ]
    check_tables(found[0], found[1])
    assert same(models[0], models[1]) and not same(models[0], models[2])
    # What is recorded is of the objective alone.
    start = [one.epochs["forget_loss"].iloc[0] for one in found]
    assert start[0] == start[2]


def test_a_response_of_no_importance_is_left_out_of_every_update() -> None:
    alone = torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0])
    kept = unlearn(gpt2(), FORGET, [], with_(batch=5, clip=None), importance=alone).examples
    only = unlearn(gpt2(), FORGET[4:], [], with_(batch=1, clip=None)).examples
    got = kept[kept["index"] == 4]["logp"].to_numpy()
    np.testing.assert_allclose(got, only["logp"].to_numpy(), rtol=1e-6)


def test_a_run_that_was_stopped_goes_on_with_its_own_importance_only(tmp_path: Path) -> None:
    model = gpt2()
    found = run(model, importance=GIVEN, state=tmp_path)
    again = gpt2()
    check_tables(run(again, importance=GIVEN, state=tmp_path), found)
    assert same(again, model)
    for other in (None, torch.ones(5)):
        with pytest.raises(InvalidInput):
            run(gpt2(), importance=other, state=tmp_path)


@pytest.mark.parametrize(
    "bad", [torch.ones(4), 2 * torch.ones(5), torch.tensor([-1.0, 2.0, 2.0, 1.0, 1.0]), GIVEN / 0]
)
def test_what_is_no_importance_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="importance"):
        run(gpt2(), importance=bad)


def test_the_folder_of_a_run_knows_it(place: Path, tmp_path: Path) -> None:
    language: LanguageModel = load_saved(place / "model")
    forget, retain = (sources.read(place / f"{name}.json") for name in ("forget10", "retain90"))
    settings = with_(epochs=1, batch=4)
    importance = np.arange(len(forget)) / np.arange(len(forget)).mean()
    ways = (language, forget, retain, settings, None, None, None, None)
    without, other = (prepared(*ways, one, 512, "").described for one in (None, importance))
    assert "importance" not in without
    assert {name: other[name] for name in without} == without
    folder = tmp_path / "run"
    unlearn_into(folder, language, forget, retain, settings, importance=importance, progress=False)
    language = load_saved(place / "model")
    with pytest.raises(InvalidInput, match="out"):
        unlearn_into(folder, language, forget, retain, settings, progress=False)
    found = unlearn_into(
        folder, language, forget, retain, settings, importance=importance, progress=False
    )
    assert "importance" in found.settings
