"""Methods by name: GradDiff is the released code's loss, its summed form is another one, and
lambda has one meaning.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.data.splits import TofuSets
from llm.data.tofu import Example
from llm.logs.reading import OPEN_UNLEARNING
from llm.logs.writing import MANIFEST
from llm.models.source import ModelOptions
from llm.randomness import shuffled
from llm.scoring.encoding import Encoded
from llm.sweeps.sweep import PlannedRun, Task, run_in
from llm.training.loop import Loop, Optimization
from llm.unlearning.methods import METHODS, Method, method
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.conventions import from_mean_forget, from_summed_retain
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import Objective, simnpo
from markov.preferences import idk
from tests.llm.training.test_llm_training import gpt2, llama, same, some, token_losses
from tests.llm.unlearning.test_unlearning import first_gradients

FORGET = some((12, 3), (20, 10), (7, 6), (15, 1), (9, 4), seed=1)
RETAIN = some((14, 3), (6, 5), (11, 2), seed=2)
EVEN = some((9, 3), (8, 2), (10, 4), seed=3)  # six response tokens each
# Models of random weights guess no better than chance.
pytestmark = pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning")
ONCE = Optimization(epochs=1, batch=3, learning_rate=0.01, clip=None)


def released_loss(model: Any, encoded: list[Encoded]) -> Tensor:
    """The loss that transformers computes: padded on the right, labels of -100 on prompts and
    padding.
    """
    longest = max(len(one.tokens) for one in encoded)
    rest = [longest - len(one.tokens) for one in encoded]
    tokens = [[*one.tokens, *[0] * pad] for one, pad in zip(encoded, rest, strict=True)]
    labels = [
        [*[-100] * one.prompt, *one.tokens[one.prompt :], *[-100] * pad]
        for one, pad in zip(encoded, rest, strict=True)
    ]
    mask = [[1] * len(one.tokens) + [0] * pad for one, pad in zip(encoded, rest, strict=True)]
    return model(
        torch.tensor(tokens), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)
    ).loss


def first_update(
    model: Any, one: Method, retain: list[Encoded], **changes: Any
) -> tuple[tuple[float, ...], list[Tensor]]:
    """What the first update of a method minimises, term by term, and its gradient."""
    terms: list[tuple[float, ...]] = []
    made = Loop.update

    def seen(self: Loop, *given: Any) -> Any:
        found = made(self, *given)
        terms.append(found.terms)
        return found

    with pytest.MonkeyPatch.context() as patch, first_gradients() as gradients:
        patch.setattr(Loop, "update", seen)
        unlearn(model, FORGET, retain, one.unlearning(replace(ONCE, **changes)), progress=False)
    return terms[0], gradients


def first_rows(retain: list[Encoded]) -> tuple[list[Encoded], list[Encoded]]:
    """The examples of the first update."""
    forget = shuffled(len(FORGET), 3, 0, 1, label="forget")[0]
    kept = shuffled(len(retain), 3, 0, 1, label="retain", total=len(FORGET))[0]
    return [FORGET[row] for row in forget], [retain[row] for row in kept]


def gradients_of(model: Any, loss: Tensor) -> list[Tensor]:
    """In the order of the optimiser: matrices first."""
    loss.backward()
    every = list(model.parameters())
    return [
        one.grad for one in (*(x for x in every if x.ndim > 1), *(x for x in every if x.ndim < 2))
    ]


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("budget", [30, 4000])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_grad_diff_is_the_released_loss_on_a_padded_batch(
    make: Any, budget: int, weight: float
) -> None:
    terms, found = first_update(make(), method(f"grad_diff@{weight}"), RETAIN, budget=budget)
    twin, (forget, retain) = make(), first_rows(RETAIN)
    assert len({len(one.tokens) - one.prompt for one in forget}) > 1
    lost, kept = released_loss(twin, forget), released_loss(twin, retain)
    assert terms == pytest.approx((-lost.item(), weight * kept.item()), rel=1e-5)
    for one, two in zip(found, gradients_of(twin, -lost + weight * kept), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_mean_gradient_ascent_is_the_released_loss_turned_round() -> None:
    terms, found = first_update(gpt2(), method("mean_gradient_ascent"), RETAIN)
    twin = gpt2()
    loss = -released_loss(twin, first_rows(RETAIN)[0])
    assert terms == pytest.approx((loss.item(),), rel=1e-6)
    for one, two in zip(found, gradients_of(twin, loss), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_the_released_loss_of_a_divergence_is_a_mean_over_tokens() -> None:
    model = gpt2()
    terms, _ = first_update(model, method("ga_kl@1"), RETAIN)
    assert terms[1] == pytest.approx(0.0, abs=1e-9)
    assert terms[0] == pytest.approx(-released_loss(gpt2(), first_rows(RETAIN)[0]).item(), rel=1e-6)


def test_the_summed_form_is_a_mean_over_examples_as_in_the_law() -> None:
    terms, _ = first_update(gpt2(), method("summed_grad_diff@0.5"), RETAIN)
    twin, (forget, retain) = gpt2(), first_rows(RETAIN)
    with torch.no_grad():
        lost = torch.stack([-token_losses(twin, one).sum() for one in forget]).mean()
        kept = torch.stack([token_losses(twin, one).mean() for one in retain]).mean()
    assert terms == pytest.approx((lost.item(), 0.5 * kept.item()), rel=1e-6)


def test_the_lambda_of_one_form_is_that_of_the_other_times_the_length_of_what_is_forgotten() -> (
    None
):
    forget, _ = first_rows(EVEN)
    length = sum(len(one.tokens) - one.prompt for one in forget) / len(forget)
    weight = from_mean_forget(0.7, length)
    assert weight == pytest.approx(0.7 * length)
    _, found = first_update(gpt2(), method("grad_diff@0.7"), EVEN)
    _, summed = first_update(
        gpt2(), method("summed_grad_diff@1")._replace(retain_weight=weight), EVEN
    )
    for one, two in zip(found, summed, strict=True):
        torch.testing.assert_close(one * length, two, rtol=1e-6, atol=1e-8)


def test_a_summed_retain_loss_asks_for_a_lambda_that_is_length_times_as_small() -> None:
    twin, (_, retain) = gpt2(), first_rows(EVEN)
    with torch.no_grad():
        printed = 0.2 * torch.stack([token_losses(twin, one).sum() for one in retain]).mean()
    terms, _ = first_update(
        gpt2(), method("simnpo:2")._replace(retain_weight=from_summed_retain(0.2, 6)), EVEN
    )
    assert terms[1] == pytest.approx(printed.item(), rel=1e-6)


def test_two_ways_to_take_the_mean_differ_in_more_than_scale() -> None:
    # Updates of other token counts, or of gradients that are cut or not, have other sizes relative
    # to each other.
    models = [gpt2(), gpt2()]
    for model, name in zip(models, ("gradient_ascent", "mean_gradient_ascent"), strict=True):
        unlearn(model, FORGET, [], method(name).unlearning(replace(ONCE, batch=2)), progress=False)
    assert not same(*models)
    # Of one update they are the same but for scale.
    (_, summed), (_, mean) = (
        first_update(gpt2(), method(name), RETAIN)
        for name in ("gradient_ascent", "mean_gradient_ascent")
    )
    forget, _ = first_rows(RETAIN)
    for one, two in zip(summed, mean, strict=True):
        length = sum(len(each.tokens) - each.prompt for each in forget) / len(forget)
        torch.testing.assert_close(one, two * length, rtol=1e-6, atol=1e-8)


def test_tables_say_the_same_of_both_since_the_law_of_each_example_is_the_same() -> None:
    found = [
        unlearn(gpt2(), FORGET, RETAIN, method(name).unlearning(ONCE), progress=False)
        for name in ("grad_diff", "summed_grad_diff")
    ]
    start = [one.epochs.iloc[0] for one in found]
    assert (
        start[0]["forget_loss"]
        == start[1]["forget_loss"]
        == pytest.approx(found[0].examples["logp"][:5].mean())
    )


@pytest.mark.parametrize("objective", [simnpo(2.5), idk(), Objective(0.0, normalize=1.0)])
def test_what_is_per_token_already_is_not_averaged_over_tokens(objective: Any) -> None:
    with pytest.raises(InvalidInput, match="average = 'tokens' is not allowed"):
        Unlearning(objective=objective, average="tokens")
    with pytest.raises(
        InvalidInput, match="average = 'words' is not allowed: one of examples, tokens"
    ):
        Unlearning(objective=Objective(0.0), average="words")  # pyright: ignore[reportArgumentType]


SETS = TofuSets(
    *((Example(index=0, prompt="Who?", response="Me.", perturbed=("You.",)),) for _ in range(4))
)


@pytest.mark.parametrize("older", [True, False])
def test_a_run_of_the_other_objective_is_not_taken_for_grad_diff(
    older: bool, tmp_path: Path
) -> None:
    """Neither one made under this name when it meant the summed form, nor one of that form put
    into its place.
    """
    run = PlannedRun(method=method("grad_diff@1"), optimization=ONCE)
    task = Task(
        options=ModelOptions(model=str(tmp_path / "absent")), retrained="", data="authors:forget10"
    )
    other = replace(run, method=method("summed_grad_diff@1")._replace(name="grad_diff"))
    options = {"max_new_tokens": task.max_new_tokens, "max_length": task.options.max_length}
    of = {"model": task.options.model, "run": other}
    asked = storage.settings_of(
        {"of": of, "sets": storage.fingerprint(SETS), **options, "variant": task.variant}
    )
    if older:
        del asked["of"]["run"]["method"]["average"]
    folder = tmp_path / run.folder
    folder.mkdir()
    (folder / OPEN_UNLEARNING).write_text(json.dumps({MANIFEST: {"settings": asked}}), "utf-8")
    with pytest.raises(
        InvalidInput, match=r"out = .* is not allowed: (one of these settings|a new folder)"
    ):
        run_in(folder, task, run, SETS)
    keys = [
        storage.fingerprint(method(name).unlearning(ONCE))
        for name, form in METHODS.items()
        if not form.takes
    ]
    assert len(set(keys)) == len(keys)
