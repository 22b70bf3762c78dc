"""Laws of what is recorded: each number is the loop that defines it, however the work is cut up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from markov.chains import row_kl
from markov.models import Model, Tabular, Transformer, stack_parameters
from markov.objectives import Objective, gradient_ascent, npo, simnpo, stack
from markov.recording import (
    CHUNK,
    Probe,
    Record,
    example_gradient_norms,
    gradient_norms,
    log_laws,
    mean_kl,
    record,
    score,
    together,
)
from tests.helpers import (
    check_close,
    member,
    own_logits,
    perturbed,
    slow_kl,
    slow_logp,
    slow_loss,
    some_laws,
    some_tokens,
)

STATES = 5
MODEL = Transformer(states=STATES, context=6, width=8, depth=1, heads=2, mlp_width=8)
TABLE = Tabular(states=STATES)
PARAMETERS = stack_parameters([perturbed(MODEL, seed) for seed in range(3)])
LAWS: list[tuple[str, float]] = [("npo", 0.7), ("simnpo", 3.0), ("gradient_ascent", 0.0)]
OBJECTIVES = [npo(0.7), simnpo(3.0), gradient_ascent()]
DISTANCES = ("kl_to_truth", "kl_to_retrained", "kl_to_reference")
models = pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (MODEL, PARAMETERS),
        (dataclasses.replace(MODEL, norm="post"), PARAMETERS),
        (TABLE, {"table": some_laws(3, STATES, STATES).log() - 1}),
    ],
    ids=["pre", "post", "table"],
)


def probe(count: int, length: int, seed: int = 0, forgotten: bool = True) -> Probe:
    return Probe(
        some_tokens(count, length, states=STATES, seed=seed),
        some_laws(STATES, STATES, seed=seed),
        some_laws(count, length - 1, STATES, seed=seed + 1).log(),
        some_laws(count, length - 1, STATES, seed=seed + 2).log(),
        forgotten,
    )


# For each run a retained component and two forgotten ones, each run with sequences of its own.
PROBES = [
    (probe(4, 7, 10 * run, False), probe(3, 6, 10 * run + 3), probe(5, 3, 10 * run + 6))
    for run in range(3)
]


def columns(objectives: list[Objective]) -> Objective:
    """The objectives of an ensemble as `record` wants them, in float64 and of shape (runs, 1)."""
    stacked = stack(objectives, dtype=torch.float64)
    return Objective(*(torch.as_tensor(field)[:, None] for field in stacked))


def trainable(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


def recorded(
    model: Model = MODEL, parameters: Mapping[str, Tensor] = PARAMETERS, **changes: Any
) -> Record:
    options: dict[str, Any] = {"probes": PROBES, "objective": columns(OBJECTIVES)} | changes
    options["probes"] = together(options["probes"], next(iter(parameters.values())).dtype)
    return record(model, trainable(parameters), **options)


def everything(tokens: Tensor) -> Tensor:
    return torch.ones_like(tokens[:, 1:], dtype=torch.bool)


# --- laws ---


@models
@pytest.mark.parametrize("count", [1, 7, CHUNK, 2 * CHUNK + 1])
def test_laws_are_the_softmax_of_the_logits_however_many_there_are(
    model: Model, parameters: dict[str, Tensor], count: int
):
    tokens = some_tokens(count, 6, states=STATES)
    for run in range(3):
        laws = log_laws(model, parameters, tokens, run)
        assert laws.shape == (count, 5, STATES)
        check_close(laws.exp().sum(-1), 1.0)
        check_close(
            laws, own_logits(model, member(parameters, run), tokens[:, :-1]).softmax(-1).log()
        )


def test_without_a_run_the_laws_are_the_first_ones_and_carry_no_graph():
    tokens = some_tokens(7, 6, states=STATES)
    laws = log_laws(MODEL, trainable(PARAMETERS), tokens)
    assert torch.equal(laws, log_laws(MODEL, PARAMETERS, tokens, 0))
    assert not torch.equal(laws, log_laws(MODEL, PARAMETERS, tokens, 1))
    assert not laws.requires_grad


def test_the_probabilities_of_all_continuations_sum_to_one():
    # All sequences of four tokens that begin with 2: exp(sum of the log laws of the scored tokens)
    # sums to 1.
    rest = torch.cartesian_prod(*[torch.arange(STATES)] * 3)
    tokens = torch.cat([torch.full((len(rest), 1), 2), rest], dim=1)
    laws = log_laws(MODEL, PARAMETERS, tokens)
    check_close(laws.gather(-1, tokens[:, 1:, None]).squeeze(-1).sum(-1).exp().sum(), 1.0)


# --- distances ---


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
    time=st.integers(1, 5),
    states=st.integers(2, 6),
)
def test_mean_kl_is_the_mean_of_a_loop_and_never_negative(
    seed: int, count: int, time: int, states: int
):
    p, q = some_laws(count, time, states, seed=seed), some_laws(count, time, states, seed=seed + 1)
    each = [slow_kl(p[row, at], q[row, at]) for row in range(count) for at in range(time)]
    got = float(mean_kl(p.log(), q.log()))
    assert got == pytest.approx(sum(each) / len(each), rel=1e-10)
    assert got > 0
    check_close(mean_kl(p.log(), q.log()), row_kl(p, q).mean(), rtol=1e-10)
    assert abs(float(mean_kl(p.log(), p.log()))) < 1e-15


def test_mean_kl_has_a_direction():
    p, q = (
        torch.tensor([0.9, 0.1], dtype=torch.float64),
        torch.tensor([0.5, 0.5], dtype=torch.float64),
    )
    assert float(mean_kl(p.log(), q.log())) == pytest.approx(slow_kl(p, q))
    assert float(mean_kl(q.log(), p.log())) == pytest.approx(slow_kl(q, p))
    assert slow_kl(p, q) != pytest.approx(slow_kl(q, p), rel=0.1)


# --- a record ---


@models
def test_a_record_is_its_loops_over_runs_sequences_and_tokens(
    model: Model, parameters: dict[str, Tensor]
):
    got = recorded(model, parameters)
    assert got.logp.shape == (3, 12) and got.kl_to_truth.shape == got.kl_to_retrained.shape == (
        3,
        3,
    )
    for run, own in enumerate(PROBES):
        alone = member(parameters, run)
        check_close(
            got.logp[run],
            torch.cat([slow_logp(model, alone, p.tokens, everything(p.tokens)) for p in own]),
        )
        for component, p in enumerate(own):
            truth, retrained = [], []
            for row, sequence in enumerate(p.tokens):
                laws = own_logits(model, alone, sequence[None, :-1])[0].softmax(-1)
                for at in range(len(sequence) - 1):
                    truth.append(slow_kl(p.truth[sequence[at]], laws[at]))
                    retrained.append(slow_kl(p.retrained[row, at].exp(), laws[at]))
            assert float(got.kl_to_truth[run, component]) == pytest.approx(
                sum(truth) / len(truth), rel=1e-10
            )
            assert float(got.kl_to_retrained[run, component]) == pytest.approx(
                sum(retrained) / len(retrained), rel=1e-10
            )


def test_a_record_of_many_sequences_is_that_of_their_parts():
    many = 2 * CHUNK + 1
    whole = [(probe(many, 7, 10 * run, False),) for run in range(3)]
    found, logps, distances = recorded(probes=whole), [], []
    for rows in torch.arange(many).split(5):
        parts = [
            (
                one._replace(
                    tokens=one.tokens[rows],
                    retrained=one.retrained[rows],
                    reference=one.reference[rows],
                ),
            )
            for (one,) in whole
        ]
        part = recorded(probes=parts)
        logps.append(part.logp)
        distances.append(torch.stack([getattr(part, name) for name in DISTANCES]) * len(rows))
    check_close(found.logp, torch.cat(logps, dim=1))
    for name, total in zip(DISTANCES, torch.stack(distances).sum(0), strict=True):
        check_close(getattr(found, name), total / many)


def test_a_run_is_recorded_as_if_it_were_alone():
    together = recorded(gradient_examples=2)
    for run in range(3):
        alone = {name: value[run : run + 1] for name, value in PARAMETERS.items()}
        own = recorded(
            parameters=alone,
            probes=PROBES[run : run + 1],
            objective=columns(OBJECTIVES[run : run + 1]),
            gradient_examples=2,
        )
        for got, want in zip(together, own, strict=True):
            check_close(got[run], want[0])


def test_a_model_is_at_no_distance_from_itself():
    def same(run: int, p: Probe) -> Probe:
        return p._replace(retrained=log_laws(MODEL, PARAMETERS, p.tokens, run))

    got = recorded(probes=[tuple(same(run, p) for p in own) for run, own in enumerate(PROBES)])
    check_close(got.kl_to_retrained, 0.0, rtol=0, atol=1e-14)
    assert float(got.kl_to_truth.min()) > 0.01
    truth = some_laws(STATES, STATES, seed=4)
    alone = recorded(
        TABLE,
        {"table": truth.log()[None]},
        probes=[[probe(4, 6)._replace(truth=truth)]],
        objective=columns([npo(1.0)]),
    )
    check_close(alone.kl_to_truth, 0.0, rtol=0, atol=1e-14)


def test_a_record_has_the_precision_of_the_model_and_no_graph():
    single = {name: value.float() for name, value in PARAMETERS.items()}
    # The truth stays in float64, as the chains have it; the laws of the retrained model come from a
    # model.
    own = [
        tuple(
            p._replace(retrained=p.retrained.float(), reference=p.reference.float()) for p in probes
        )
        for probes in PROBES
    ]
    got, want = recorded(parameters=single, probes=own), recorded()
    for values, exact in zip(got, want, strict=True):
        assert values.dtype == torch.float32 and not values.requires_grad
        check_close(values.double(), exact, rtol=1e-4, atol=1e-5)


# --- scores and weights ---


@settings(max_examples=20)
@given(data=st.data())
def test_a_score_is_the_token_loop_over_what_the_mask_keeps(data: st.DataObject):
    tokens = some_tokens(3, 2, 6, states=STATES, seed=data.draw(st.integers(0, 1000)))
    bits = data.draw(st.lists(st.booleans(), min_size=30, max_size=30))
    mask = torch.tensor(bits).view(3, 2, 5)
    seq = score(MODEL, PARAMETERS, tokens, mask, torch.tensor([[1.0], [2.0], [3.0]]).double())
    for run in range(3):
        check_close(
            seq.logp[run], slow_logp(MODEL, member(PARAMETERS, run), tokens[run], mask[run])
        )
        assert seq.length[run].tolist() == mask[run].sum(-1).tolist()
        check_close(seq.ref[run], run + 1.0)


def test_a_score_without_a_reference_has_reference_zero():
    tokens = some_tokens(3, 2, 6, states=STATES)
    assert (
        score(MODEL, PARAMETERS, tokens, torch.ones(3, 2, 5, dtype=torch.bool)).ref.tolist()
        == [[0.0] * 2] * 3
    )


@pytest.mark.parametrize("beta", [0.0, 0.2, 10.0])
def test_at_the_reference_every_npo_weight_is_one(beta: float):
    for model in (MODEL, dataclasses.replace(MODEL, norm="post")):
        for length in (2, 4, 7):
            tokens = some_tokens(3, 2, length, states=STATES)
            mask = torch.ones(3, 2, length - 1, dtype=torch.bool)
            seq = score(model, PARAMETERS, tokens, mask)
            weight = columns([npo(beta)] * 3).weight(seq._replace(ref=seq.logp))
            check_close(weight, 1.0, rtol=0, atol=0)


# --- gradient norms ---


def slow_norm(run: int, component: int, examples: int, reference: Tensor | None = None) -> float:
    """The norm of the gradient of a run's mean loss on some probe sequences, written out."""
    parameters, tokens = (
        trainable(member(PARAMETERS, run)),
        PROBES[run][component].tokens[:examples],
    )
    logp = slow_logp(MODEL, parameters, tokens, everything(tokens))
    ref = logp.detach() if reference is None else reference
    slow_loss(
        *LAWS[run], logp, ref, torch.full((len(tokens),), tokens.shape[1] - 1.0)
    ).mean().backward()
    return (
        sum(
            float(value.grad.square().sum())
            for value in parameters.values()
            if value.grad is not None
        )
        ** 0.5
    )


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_gradient_norms_are_those_of_the_written_out_mean_loss(examples: int):
    norms = recorded(gradient_examples=examples).gradient_norm
    for run in range(3):
        assert bool(norms[run, 0].isnan())
        for component in (1, 2):
            assert float(norms[run, component]) == pytest.approx(
                slow_norm(run, component, examples), rel=1e-10
            )


def test_gradient_norms_look_at_the_reference_of_their_own_sequences():
    reference = -10 * torch.rand(
        3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    norms = recorded(gradient_examples=2, reference=reference).gradient_norm
    first = {1: 4, 2: 7}  # where a component begins among the twelve examples
    for run in range(3):
        for component, at in first.items():
            want = slow_norm(run, component, 2, reference[run, at : at + 2])
            assert float(norms[run, component]) == pytest.approx(want, rel=1e-10)
    # NPO looks at it, SimNPO and gradient ascent do not.
    without = recorded(gradient_examples=2).gradient_norm
    assert float((norms[0, 1:] / without[0, 1:] - 1).abs().min()) > 0.01
    check_close(norms[1:], without[1:])


def test_no_component_that_is_kept_has_a_gradient_norm():
    probes = [tuple(p._replace(forgotten=at == 2) for at, p in enumerate(own)) for own in PROBES]
    norms = recorded(probes=probes, gradient_examples=2).gradient_norm
    assert norms.isnan().tolist() == [[True, True, False]] * 3
    check_close(norms[:, 2], recorded(gradient_examples=2).gradient_norm[:, 2])


def test_gradient_norms_are_nan_unless_asked_for():
    assert bool(recorded().gradient_norm.isnan().all())


def test_more_examples_than_there_are_means_all_of_them():
    parameters, objective = trainable(PARAMETERS), columns(OBJECTIVES)
    reference, probes = recorded().logp, together(PROBES, torch.float64)
    many, all_five = (
        gradient_norms(MODEL, parameters, probes, objective, count, reference) for count in (50, 5)
    )
    check_close(many, all_five)


def test_gradient_ascent_of_a_table_has_the_norm_known_in_closed_form():
    # d/d table[i] of log softmax(table[i])_j = e_j - p: at the uniform table, one transition gives
    # 1 - 1/states.
    tokens = torch.tensor([[0, 3]])
    laws = some_laws(1, 1, STATES).log()
    own = Probe(tokens, some_laws(STATES, STATES), laws, laws)
    found = recorded(
        TABLE,
        {"table": torch.zeros(1, STATES, STATES, dtype=torch.float64)},
        probes=[[own]],
        objective=columns([gradient_ascent()]),
        gradient_examples=1,
    )
    assert float(found.gradient_norm) == pytest.approx((1 - 1 / STATES) ** 0.5)
    assert float(found.logp) == pytest.approx(
        float(functional.log_softmax(torch.zeros(STATES), 0)[3])
    )


# --- the distance to the reference ---


@models
def test_the_distance_to_the_reference_is_the_loop_over_runs_sequences_and_tokens(
    model: Model, parameters: dict[str, Tensor]
):
    got = recorded(model, parameters).kl_to_reference
    assert got.shape == (3, 3)
    for run, own in enumerate(PROBES):
        for component, p in enumerate(own):
            each = []
            for row, sequence in enumerate(p.tokens):
                laws = own_logits(model, member(parameters, run), sequence[None, :-1])[0].softmax(
                    -1
                )
                each += [
                    slow_kl(p.reference[row, at].exp(), laws[at]) for at in range(len(sequence) - 1)
                ]
            assert float(got[run, component]) == pytest.approx(sum(each) / len(each), rel=1e-10)


@models
def test_the_distance_to_the_reference_is_zero_where_the_reference_is_the_model_and_nowhere_else(
    model: Model, parameters: dict[str, Tensor]
):
    def near(run: int, p: Probe, of: int) -> Probe:
        return p._replace(reference=log_laws(model, parameters, p.tokens, of))

    for of in range(3):
        own = [tuple(near(run, p, of) for p in probes) for run, probes in enumerate(PROBES)]
        got = recorded(model, parameters, probes=own)
        check_close(got.kl_to_reference[of], 0.0, rtol=0, atol=1e-14)
        others = [run for run in range(3) if run != of]
        assert float(got.kl_to_reference[others].min()) > 1e-3
        # Only the distance to the reference looks at it.
        for name in ("logp", "kl_to_truth", "kl_to_retrained"):
            assert torch.equal(getattr(got, name), getattr(recorded(model, parameters), name))


# --- gradient norms of single sequences ---


def slow_example_norms(model: Model, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """One backward pass through the token loop for each sequence."""
    norms = []
    for row in range(len(tokens)):
        own = trainable(parameters)
        slow_logp(
            model, own, tokens[row : row + 1], everything(tokens[row : row + 1])
        ).sum().backward()
        norms.append(
            sum(
                float(value.grad.square().sum()) for value in own.values() if value.grad is not None
            )
            ** 0.5
        )
    return torch.tensor(norms, dtype=torch.float64)


@models
@pytest.mark.parametrize(("count", "length"), [(1, 6), (7, 2), (7, 6), (CHUNK + 3, 2)])
def test_the_gradient_norm_of_each_sequence_is_that_of_its_own_backward_pass(
    model: Model, parameters: dict[str, Tensor], count: int, length: int
):
    parameters = {name: parameters[name] for name in model.init(0)}
    tokens = some_tokens(count, length, states=STATES, seed=length)
    for run in range(3):
        norms = example_gradient_norms(model, parameters, tokens, run)
        assert norms.shape == (count,) and norms.dtype == torch.float64
        assert not norms.requires_grad
        check_close(norms, slow_example_norms(model, member(parameters, run), tokens), rtol=1e-10)
        assert count == 1 or len(set(norms.tolist())) > 1


def test_the_gradient_norms_of_sequences_are_those_of_the_first_run_and_leave_it_alone():
    tokens, parameters = some_tokens(5, 4, states=STATES), trainable(PARAMETERS)
    norms = example_gradient_norms(MODEL, parameters, tokens)
    assert torch.equal(norms, example_gradient_norms(MODEL, PARAMETERS, tokens, 0))
    assert not torch.equal(norms, example_gradient_norms(MODEL, PARAMETERS, tokens, 1))
    assert all(value.grad is None for value in parameters.values())
    assert all(torch.equal(value, PARAMETERS[name]) for name, value in parameters.items())


def test_the_gradient_norm_of_a_single_sequence_is_that_of_gradient_ascent_on_it():
    ascent = Objective(*(torch.zeros(3, 1, dtype=torch.float64) for _ in range(4)))
    found = recorded(objective=ascent, gradient_examples=1).gradient_norm
    for run, own in enumerate(PROBES):
        for component in (1, 2):
            single = example_gradient_norms(MODEL, PARAMETERS, own[component].tokens[:1], run)
            assert float(single) == pytest.approx(float(found[run, component]), rel=1e-10)


@pytest.mark.parametrize("states", [2, 3, 8])
def test_at_the_uniform_table_norms_of_sequences_without_repeats_grow_as_the_root_of_length(
    states: int,
):
    # One transition contributes 1 - 1/states to the squared norm, in a row of the table of its own.
    tokens = torch.arange(states)[None]
    found = example_gradient_norms(
        Tabular(states=states), {"table": torch.zeros(1, states, states).double()}, tokens
    )
    assert float(found) == pytest.approx(((states - 1) * (1 - 1 / states)) ** 0.5)


def test_no_more_sequences_than_a_chunk_have_their_gradients_at_one_time():
    # Each has a copy of all parameters, so that memory is what a chunk bounds.
    held: list[int] = []

    class Watched(Tabular):
        def logits(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
            held.append(len(parameters["table"]))
            return super().logits(parameters, tokens)

    many = 2 * CHUNK + 1
    table, tokens = {"table": torch.zeros(2, STATES, STATES)}, some_tokens(many, 4, states=STATES)
    assert example_gradient_norms(Watched(states=STATES), table, tokens, 1).shape == (many,)
    assert held == [CHUNK, CHUNK, 1]
