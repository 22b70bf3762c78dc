"""Laws of the weightings: numbers by hand, what the gradient of a batch becomes, and whole runs
against a loop over single responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from markov.batching import Corpus
from markov.errors import InvalidInput
from markov.experiments import Experiment
from markov.models import Transformer
from markov.objectives import Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from markov.optimizers import OPTIMIZERS, Clipped
from markov.recording import Probe, loss_and_weight
from markov.running.dividing import shape_of
from markov.training import Member, unlearn
from markov.weighting import WEIGHTINGS, reweighted
from tests.helpers import (
    check_close,
    member,
    perturbed,
    slow_logp,
    slow_loss,
    slow_order,
    some_laws,
    some_tokens,
)

STATES = 5
MODEL = Transformer(states=STATES, context=6, width=8, depth=1, heads=2, mlp_width=8)
LAWS = {"npo": npo(0.7), "simnpo": simnpo(3.0)}
every_weighting = pytest.mark.parametrize("name", WEIGHTINGS)
every_law = pytest.mark.parametrize("law", LAWS)
objectives = st.builds(
    Objective,
    st.floats(0, 8),
    st.floats(-2, 2),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)


def run_of(law: Objective) -> Member:
    tokens = [some_tokens(count, length, states=STATES) for count, length in ((7, 6), (6, 3))]
    laws = some_laws(2, 3, STATES).log()
    return Member(
        start=perturbed(MODEL, 0),
        objective=law,
        learning_rate=0.05,
        retain_weight=0.0,
        seed=3,
        forget=Corpus.join(tokens),
        retain=Corpus.join(tokens),
        probes=(
            Probe(some_tokens(2, 4, states=STATES), some_laws(STATES, STATES), laws, laws, True),
        ),
    )


def responses(count: int, seed: int, spread: float = 3.0) -> SequenceLogProbs:
    """Random responses in float32, in which one is all but forgotten."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 20, (2, count), generator=generator).float()
    logp = -spread * length * torch.rand((2, count), generator=generator)
    logp[:, -1] = -500 * length[:, -1]
    ref = -spread * length * torch.rand((2, count), generator=generator)
    return SequenceLogProbs(logp.requires_grad_(), length, ref)


# --- numbers ---


def test_four_weightings_by_hand():
    weights = torch.tensor([[1.0, 0.5, 0.25, 0.25], [3.0, 3.0, 3.0, 3.0]])
    want = {
        "own": [[1.0, 0.5, 0.25, 0.25], [3.0, 3.0, 3.0, 3.0]],
        "magnitude": [[0.5, 0.5, 0.5, 0.5], [3.0, 3.0, 3.0, 3.0]],
        "allocation": [[2.0, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]],
        "none": [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]],
    }
    assert {name: f(weights).tolist() for name, f in WEIGHTINGS.items()} == want


@given(seed=st.integers(0, 1000), count=st.integers(1, 9), factor=st.floats(1e-3, 1e3))
def test_weights_are_their_magnitude_times_their_allocation(seed: int, count: int, factor: float):
    weights = torch.rand((3, count), generator=torch.Generator().manual_seed(seed)).double() + 1e-3
    found = {name: f(weights) for name, f in WEIGHTINGS.items()}
    check_close(found["magnitude"] * found["allocation"], weights)
    check_close(found["allocation"].mean(-1), torch.ones(3).double())
    check_close(found["magnitude"], weights.mean(-1, keepdim=True).expand_as(weights))
    # A factor on all weights is magnitude, and nothing else.
    check_close(WEIGHTINGS["magnitude"](factor * weights), factor * found["magnitude"])
    check_close(WEIGHTINGS["allocation"](factor * weights), found["allocation"])


@every_weighting
def test_a_batch_does_not_know_the_batches_of_other_runs(name: str):
    weights = torch.rand((9, 7), generator=torch.Generator().manual_seed(0))
    together = WEIGHTINGS[name](weights)
    for row in range(9):
        assert torch.equal(WEIGHTINGS[name](weights[row : row + 1]), together[row : row + 1])


# --- the gradient of a batch ---


@settings(max_examples=60)
@given(objective=objectives, seed=st.integers(0, 1000), count=st.integers(2, 9))
def test_own_weights_give_the_gradient_of_the_loss_itself_to_the_last_bit(
    objective: Objective, seed: int, count: int
):
    seq = responses(count, seed)
    loss, weight = loss_and_weight(objective, seq)
    (want,) = torch.autograd.grad(loss.mean(-1).sum(), seq.logp, retain_graph=True)
    same = reweighted(loss, seq.logp, weight, WEIGHTINGS["own"](weight))
    (found,) = torch.autograd.grad(same.mean(-1).sum(), seq.logp)
    assert torch.equal(found, want) and bool(want.isfinite().all()) and bool((want > 0).any())


@every_weighting
@settings(max_examples=40)
@given(objective=objectives, seed=st.integers(0, 1000), count=st.integers(2, 9))
def test_every_response_is_pushed_by_its_new_weight(
    name: str, objective: Objective, seed: int, count: int
):
    seq = responses(count, seed)
    seq = SequenceLogProbs(*(field.detach().double() for field in seq))
    seq.logp.requires_grad_()
    loss, weight = loss_and_weight(objective, seq)
    used = WEIGHTINGS[name](weight)
    total = reweighted(loss, seq.logp, weight, used).sum()
    check_close(torch.autograd.grad(total, seq.logp)[0], used.detach(), atol=1e-12)


# --- runs ---


def slow_path(run: Member, law: tuple[str, float], name: str, steps: int) -> Iterator[Any]:
    """The parameters of a run after every step of descent, response by response, and its weights.

    The weight of a response is the slope of its written-out loss, and what is made of the weights
    of a batch is written out in numbers.
    """
    now = {key: value.detach().clone().requires_grad_() for key, value in run.start.items()}
    order = slow_order(run.seed, "forget", len(run.forget.tokens), 4 * steps)
    for step in range(steps):
        pushes, slopes = [], list[float]()
        for row in order[4 * step : 4 * step + 4]:
            one, mask = run.forget.tokens[row : row + 1], run.forget.mask[row : row + 1]
            logp = slow_logp(MODEL, now, one, mask)
            pushes.append(torch.autograd.grad(logp.sum(), [*now.values()], retain_graph=True))
            ref = slow_logp(MODEL, run.start, one, mask).detach()
            free = logp.detach().requires_grad_()
            loss = slow_loss(*law, free, ref, mask.sum(-1)).sum()
            slopes.append(float(torch.autograd.grad(loss, free)[0]))
        mean = sum(slopes) / 4
        used = {
            "own": slopes,
            "magnitude": [mean] * 4,
            "allocation": [one / mean for one in slopes],
            "none": [1.0] * 4,
        }[name]
        now = {
            key: (
                value
                - run.learning_rate
                * sum(weight * push[at] for weight, push in zip(used, pushes, strict=True))
                / 4
            )
            .detach()
            .requires_grad_()
            for at, (key, value) in enumerate(now.items())
        }
        yield now, sorted(used)


@every_weighting
@every_law
def test_a_run_is_descent_on_responses_with_their_new_weights(name: str, law: str):
    run, places = run_of(LAWS[law]), list[dict[str, Tensor]]()

    def keep(step: int, parameters: Any) -> None:
        places.append({key: value.detach().clone() for key, value in parameters.items()})

    options: dict[str, Any] = {"steps": 4, "batch": 4, "optimizer": OPTIMIZERS["sgd"]}
    found = unlearn(MODEL, [run], weighting=WEIGHTINGS[name], on_step=keep, **options)
    slow = slow_path(run, (law, float(LAWS[law].beta)), name, 4)
    for step, (want, used) in enumerate(slow):
        for key, value in member(places[step + 1], 0).items():
            check_close(value, want[key].detach(), atol=1e-10)
        check_close(
            found.batch_weight[0, step].sort().values,
            torch.tensor(used, dtype=torch.float64),
            atol=1e-10,
        )


def logp_after(law: Objective, name: str, **changes: Any) -> Tensor:
    options: dict[str, Any] = {"steps": 5, "batch": 4, "optimizer": OPTIMIZERS["sgd"]} | changes
    return unlearn(MODEL, [run_of(law)], weighting=WEIGHTINGS[name], recorded=(5,), **options).logp


def test_own_weights_are_the_run_that_says_nothing_of_weightings():
    plain = unlearn(
        MODEL, [run_of(npo(0.7))], steps=5, batch=4, optimizer=OPTIMIZERS["sgd"], recorded=(5,)
    )
    assert torch.equal(plain.logp, logp_after(npo(0.7), "own"))


@every_law
def test_without_weights_every_objective_is_gradient_ascent(law: str):
    ascent = logp_after(gradient_ascent(), "own")
    check_close(logp_after(LAWS[law], "none"), ascent)
    for name in ("own", "magnitude", "allocation"):
        assert float((logp_after(LAWS[law], name) - ascent).abs().max()) > 1e-4, name


@every_law
def test_a_batch_of_one_has_nothing_to_allocate(law: str):
    alone = {name: logp_after(LAWS[law], name, batch=1) for name in WEIGHTINGS}
    check_close(alone["magnitude"], alone["own"])
    check_close(alone["allocation"], alone["none"])


def test_an_experiment_says_its_weighting_and_its_clip_and_neither_shares_an_ensemble():
    plain = Experiment()
    assert (plain.weighting, plain.clip) == ("own", None)
    others = [replace(plain, weighting="allocation"), replace(plain, clip=1.0)]
    assert len({shape_of(one) for one in (plain, *others)}) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [("weighting", "all"), ("weighting", None), ("clip", 0.0), ("clip", -1.0), ("clip", "1")],
)
def test_another_word_or_bound_is_refused_by_name(field: str, value: Any):
    with pytest.raises(InvalidInput) as caught:
        Experiment(**{field: value})
    assert caught.value.field == field


def test_a_bound_that_no_gradient_reaches_changes_nothing_and_a_low_one_does():
    free = logp_after(npo(0.7), "own")
    high, low = (
        logp_after(npo(0.7), "own", optimizer=Clipped(rule=OPTIMIZERS["sgd"], norm=norm))
        for norm in (1e6, 1e-2)
    )
    assert torch.equal(high, free)
    assert float((low - free).abs().max()) > 1e-4
