"""Laws of `markov.flow`: gradient descent in the limit of small steps, and where the scalar law
holds and fails.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import log_softmax, softmax

from markov import diagnostics, theory
from markov.banks import (
    Bank,
    ExpectedLoss,
    best_table,
    centered,
    enumerated,
    expected_counts,
    from_sequences,
    mean_counts,
    sampled,
    shares,
    transition_law,
)
from markov.batching import Corpus
from markov.cases import paper_chain
from markov.chains import MarkovChain, Mixture
from markov.errors import InvalidInput
from markov.flow import (
    OWN_COLUMNS,
    Flow,
    SolverFailure,
    frame,
    gradient_flow,
    gradient_norm,
    kl_to_table,
    kl_to_truth,
    logp_per_token,
    push,
    time_to_forget,
)
from markov.models import Tabular
from markov.objectives import (
    CORNERS,
    Objective,
    SequenceLogProbs,
    gradient_ascent,
    length_normalized_npo,
    npo,
    simnpo,
)
from markov.optimizers import Sgd
from markov.recording import Probe
from markov.training import Member, unlearn
from tests.helpers import slow_kl, some_laws

LENGTHS = np.array([2, 5, 10, 20, 40])
corners = st.sampled_from(list(CORNERS.values()))
seeds = st.integers(0, 10_000)


# --- worlds ---


def small(seed: int = 0, states: int = 3) -> Mixture:
    """Two unlike chains of different lengths."""
    laws = some_laws(2, states + 1, states, seed=seed)
    chains = tuple(MarkovChain(initial=own[0], transition=own[1:]) for own in laws)
    return Mixture(weights=(0.6, 0.4), chains=chains, lengths=(5, 3))


def small_loss(objective: Objective, seed: int = 0, retain_weight: float = 0.0) -> ExpectedLoss:
    """Its loss, from a reference that is not the best table."""
    reference = 1.5 * some_laws(3, 3, seed=seed + 1).log().numpy()
    retain = transition_law(small(seed + 2))
    bank = enumerated(small(seed))
    return ExpectedLoss(
        objective=objective,
        bank=bank,
        reference=reference,
        retain=retain,
        retain_weight=retain_weight,
    )


def apart() -> Mixture:
    """A stationary chain on two states for each length, on states of its own: the components
    share no row.
    """
    count = len(LENGTHS)
    own = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64)
    chains = []
    for index in range(count):
        transition = torch.full((2 * count, 2 * count), 1 / (2 * count), dtype=torch.float64)
        initial, here = torch.zeros(2 * count, dtype=torch.float64), slice(2 * index, 2 * index + 2)
        transition[here], initial[here] = 0, torch.tensor([4 / 7, 3 / 7], dtype=torch.float64)
        transition[here, here] = own
        chains.append(MarkovChain(initial=initial, transition=transition))
    return Mixture(
        weights=(1 / count,) * count, chains=tuple(chains), lengths=tuple(map(int, LENGTHS + 1))
    )


@cache
def apart_loss() -> ExpectedLoss:
    """Every sequence of it, from a reference that has learnt nine tenths: the same of each
    component.
    """
    mixture = apart()
    law = np.zeros((2 * len(LENGTHS), 2 * len(LENGTHS)))
    for index, chain in enumerate(mixture.chains):
        law[2 * index : 2 * index + 2] = chain.transition[2 * index : 2 * index + 2].numpy()
    reference = np.log(0.9 * law + 0.1 / len(law))
    return ExpectedLoss(objective=gradient_ascent(), bank=enumerated(mixture), reference=reference)


def leaking(leakage: float = 0.05) -> tuple[Mixture, Mixture, Mixture]:
    """Forget, retain and pretraining mixtures on sets of states; pretraining sees as many tokens
    of each length.
    """
    scored = [*LENGTHS.tolist(), 80]
    chains = [
        paper_chain(range(3 * at, 3 * at + 3), 3 * len(scored) + 4, leakage)
        for at in range(len(scored) + 1)
    ]
    counts = np.array([3 / 20, *(1 / np.array(scored))])
    lengths = (21, *(length + 1 for length in scored))
    forget = Mixture(
        weights=(1 / len(scored),) * len(scored), chains=tuple(chains[1:]), lengths=lengths[1:]
    )
    retain = Mixture(weights=(1.0,), chains=tuple(chains[:1]), lengths=lengths[:1])
    pretraining = Mixture(
        weights=tuple(counts / counts.sum()), chains=tuple(chains), lengths=lengths
    )
    return forget, retain, pretraining


def alone(length: int) -> ExpectedLoss:
    """Memorised: sequences of one stationary two-state chain, and the table that is its law."""
    chain = apart().chains[0]
    own = MarkovChain(initial=chain.initial[:2], transition=chain.transition[:2, :2])
    mixture = Mixture(weights=(1.0,), chains=(own,), lengths=(length + 1,))
    return ExpectedLoss(objective=npo(1.0), bank=enumerated(mixture), reference=best_table(mixture))


def fitted(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of y against x, and half its 95% interval."""
    line = stats.linregress(x, y)
    return float(line.slope), float(line.stderr * stats.t.ppf(0.975, len(x) - 2))


# --- the flow is gradient descent in the limit of small steps ---


def corpus() -> tuple[Corpus, Corpus]:
    """Eight forget sequences, and four retain sequences: a batch of eight sees each forget once,
    each retain twice.
    """
    generator, mixture = torch.Generator().manual_seed(0), small()
    chains = zip(mixture.chains, mixture.lengths, strict=True)
    forget = Corpus.join([chain.sample(4, length, generator) for chain, length in chains])
    return forget, Corpus.join([mixture.chains[1].sample(4, 6, generator)])


def descended(
    objective: Objective, steps: int, time: float, retain_weight: float, start: np.ndarray
) -> np.ndarray:
    """Full-batch gradient descent by `markov.training` on the tabular model, to learning rate x
    steps = time.
    """
    (forget, retain), last = corpus(), {}
    probe = Probe(
        forget.tokens[:1], some_laws(3, 3), some_laws(1, 4, 3).log(), some_laws(1, 4, 3).log()
    )
    run = Member(
        start={"table": torch.from_numpy(start)},
        objective=objective,
        learning_rate=time / steps,
        retain_weight=retain_weight,
        seed=0,
        forget=forget,
        retain=retain,
        probes=(probe,),
    )
    keep = lambda _, parameters: last.update(table=parameters["table"][0].detach().clone())  # noqa: E731
    unlearn(
        Tabular(states=3),
        [run],
        steps=steps,
        batch=8,
        optimizer=Sgd(),
        retain_term="cross_entropy",
        on_step=keep,
    )
    return last["table"].numpy()


@pytest.mark.parametrize(
    ("objective", "retain_weight"),
    [(npo(1.5), 0.0), (simnpo(4.0, 1.0), 0.0), (npo(1.5), 0.8), (gradient_ascent(), 0.5)],
)
def test_small_steps_of_gradient_descent_approach_the_flow_at_first_order(
    objective: Objective, retain_weight: float
) -> None:
    forget, retain = corpus()
    parts = [forget.tokens[:4], forget.tokens[4:, :3]]
    start, time = 1.5 * some_laws(3, 3, seed=3).log().numpy(), 2.0
    law = mean_counts(from_sequences([retain.tokens], [1.0], 3))[0]
    loss = ExpectedLoss(
        objective=objective,
        bank=from_sequences(parts, [0.5, 0.5], 3),
        reference=start,
        retain=law / law.sum(),
        retain_weight=retain_weight,
    )
    exact = gradient_flow(loss, np.array([time])).tables[0]
    steps = np.array([20, 40, 80, 160])
    errors = [
        np.abs(descended(objective, int(count), time, retain_weight, start) - exact).max()
        for count in steps
    ]
    order, half = fitted(np.log(time / steps), np.log(errors))
    assert order == pytest.approx(1, abs=0.05) and half < 0.05
    assert errors[-1] < 0.02 < np.abs(exact - start).max()


@settings(max_examples=6)
@given(
    corner=corners,
    beta=st.sampled_from([0.0, 0.5, 4.0]),
    retain_weight=st.sampled_from([0.0, 0.6]),
    seed=seeds,
)
def test_row_sums_of_the_logits_are_conserved(
    corner: tuple[float, float], beta: float, retain_weight: float, seed: int
) -> None:
    flow = gradient_flow(
        small_loss(Objective(beta, 0.2, *corner), seed, retain_weight), np.array([0.1, 1.0, 20.0])
    )
    assert np.abs(flow.tables - flow.loss.reference).max() > 1e-3
    np.testing.assert_allclose(
        flow.tables.sum(-1), np.tile(flow.loss.reference.sum(-1), (3, 1)), atol=1e-11
    )


@settings(max_examples=6)
@given(
    corner=corners,
    beta=st.sampled_from([0.0, 0.5, 4.0]),
    retain_weight=st.sampled_from([0.0, 0.6]),
    seed=seeds,
)
def test_the_loss_falls_all_the_way_by_the_squared_norm_of_its_gradient(
    corner: tuple[float, float], beta: float, retain_weight: float, seed: int
) -> None:
    loss = small_loss(Objective(beta, 0.2, *corner), seed, retain_weight)
    times = np.linspace(0, 4, 201)
    flow = gradient_flow(loss, times)
    values = loss.value(flow.tables)
    assert (np.diff(values) < 0).all()
    squares = [(loss.gradient(table) ** 2).sum() for table in flow.tables]
    assert values[0] - values[-1] == pytest.approx(integrate.simpson(squares, x=times), rel=1e-6)


@pytest.mark.parametrize("objective", [npo(0.2), simnpo(1.0), gradient_ascent()])
def test_halving_the_tolerance_moves_no_number_by_more_than_a_millionth(
    objective: Objective,
) -> None:
    forget, retain, pretraining = leaking()
    loss = ExpectedLoss(
        objective=objective, bank=sampled(forget, 50, 0), reference=best_table(pretraining)
    )
    times = np.array([0.0, 1.0, 10.0, 30.0, 100.0])
    once, twice = (gradient_flow(loss, times, tolerance=tolerance) for tolerance in (1e-10, 5e-11))
    assert twice.evaluations > once.evaluations
    numbers = [
        frame(flow, forget, retain).select_dtypes("number").to_numpy() for flow in (once, twice)
    ]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6)
    np.testing.assert_allclose(*(time_to_forget(flow, 0.5) for flow in (once, twice)), rtol=1e-6)


def test_recorded_times_are_points_of_the_path_and_nothing_lies_beyond_its_end() -> None:
    times = np.array([0.0, 0.3, 2.0])
    flow = gradient_flow(small_loss(npo(0.5)), times)
    np.testing.assert_array_equal(flow.tables, flow.at(times))
    np.testing.assert_allclose(flow.tables[0], flow.loss.reference, atol=1e-14)
    np.testing.assert_allclose(
        flow.at(np.array([1.0]))[0], gradient_flow(flow.loss, np.array([1.0])).tables[0], atol=1e-9
    )
    assert flow.at(np.array(0.3)).shape == (3, 3)
    for outside in (-0.1, 2.1, math.nan):
        with pytest.raises(InvalidInput, match="times"):
            flow.at(np.array([outside]))


@settings(max_examples=6)
@given(corner=corners, seed=seeds)
def test_beta_zero_is_the_limit_of_small_beta_in_every_corner(
    corner: tuple[float, float], seed: int
) -> None:
    near, limit = (
        gradient_flow(small_loss(Objective(beta, 0.0, *corner), seed), np.array([3.0])).tables
        for beta in (1e-8, 0.0)
    )
    np.testing.assert_allclose(near, limit, atol=1e-6)
    far = gradient_flow(small_loss(Objective(1.0, 0.0, *corner), seed), np.array([3.0])).tables
    assert np.abs(far - limit).max() > 1e-3


def test_components_that_differ_by_a_relabelling_of_states_stay_alike() -> None:
    chains = tuple(paper_chain(members, 5, 0.3) for members in ([0, 1], [2, 3]))
    mixture = Mixture(weights=(0.5, 0.5), chains=chains, lengths=(5, 5))
    for objective in (npo(0.5), simnpo(3.0)):
        loss = ExpectedLoss(
            objective=objective, bank=enumerated(mixture), reference=best_table(mixture)
        )
        flow = gradient_flow(loss, np.array([0.0, 1.0, 10.0]))
        one, two = (loss.weight(flow.tables) @ shares(loss.bank).T).T
        np.testing.assert_allclose(one, two, rtol=1e-9)
    uneven = replace(mixture, weights=(0.7, 0.3))
    loss = ExpectedLoss(
        objective=simnpo(3.0), bank=enumerated(uneven), reference=best_table(mixture)
    )
    one, two = (loss.weight(gradient_flow(loss, np.array([10.0])).tables) @ shares(loss.bank).T).T
    assert abs(one / two - 1) > 1e-3


# --- against the scalar law ---


def one_transition(objective: Objective, length: int, states: int, start: float) -> ExpectedLoss:
    """|y| times from state 0 to state 1, whose per-token logp starts at `start`; all other
    logits of row 0 equal.
    """
    counts, reference = np.zeros((1, states, states)), np.zeros((states, states))
    counts[0, 0, 1] = length
    reference[0, 1] = start - math.log(math.expm1(-start) * math.exp(start) / (states - 1))
    bank = Bank(counts, np.ones(1), np.zeros(1, dtype=int), np.array([float(length)]))
    return ExpectedLoss(objective=objective, bank=bank, reference=reference)


@settings(max_examples=8)
@given(
    corner=corners,
    beta=st.sampled_from([0.0, 0.1, 2.0]),
    length=st.integers(1, 9),
    states=st.integers(2, 6),
)
def test_one_transition_obeys_the_scalar_law_up_to_a_factor_of_theta_alone(
    corner: tuple[float, float], beta: float, length: int, states: int
) -> None:
    objective, start, fall = Objective(beta, 0.3, *corner), -1.0, 1.5
    loss = one_transition(objective, length, states, start)
    assert loss.logp(loss.reference)[0] == pytest.approx(length * start, rel=1e-12)

    def slowness(theta: float) -> float:
        logp, scored = torch.tensor(length * theta).double(), torch.tensor(float(length)).double()
        weight = float(objective.weight(SequenceLogProbs(logp, scored, scored * start)))
        return 1 / (length * weight * states / (states - 1) * (1 - math.exp(theta)) ** 2)

    expected = integrate.quad(slowness, start - fall, start, epsabs=0, epsrel=1e-8)[0]
    flow = gradient_flow(loss, np.array([1.1 * expected]))
    assert time_to_forget(flow, fall)[0] == pytest.approx(expected, rel=1e-6)


def test_late_it_is_the_scalar_law_on_a_clock_that_runs_faster() -> None:
    for objective in (npo(0.1), simnpo(1.0), gradient_ascent()):
        for length, states in ((3, 2), (10, 5)):
            scalar = theory.time_to_forget(objective, length, np.array([9.0, 10.0]), -2.0)
            flow = gradient_flow(
                one_transition(objective, length, states, -2.0), np.array([1.5 * scalar[1]])
            )
            later = np.diff([time_to_forget(flow, fall)[0] for fall in (9.0, 10.0)])
            assert later == pytest.approx(np.diff(scalar) * (states - 1) / states, rel=1e-4)


@pytest.mark.parametrize(
    ("objective", "expected", "within"),
    [
        (gradient_ascent(), -1, 1e-6),
        (gradient_ascent(1.0), 0, 1e-6),
        (npo(1e-3), -1, 0.01),
        (simnpo(1e-3), 0, 0.01),
        (length_normalized_npo(0.2), 0, 0.02),
    ],
)
def test_components_on_rows_of_their_own_are_forgotten_in_one_over_the_length_without_normalisation(
    objective: Objective, expected: float, within: float
) -> None:
    flow = gradient_flow(
        replace(apart_loss(), objective=objective), np.array([120.0]), tolerance=1e-9
    )
    times = time_to_forget(flow, 1.0)
    exponent, half = fitted(np.log(LENGTHS), np.log(times))
    assert exponent == pytest.approx(expected, abs=within) and half < within


def test_the_exponent_of_npo_turns_positive_once_beta_length_fall_is_large() -> None:
    flow = gradient_flow(
        replace(apart_loss(), objective=npo(0.2)), np.array([1000.0]), tolerance=1e-9
    )
    early, late = (time_to_forget(flow, fall) for fall in (0.02, 3.0))
    assert fitted(np.log(LENGTHS), np.log(early))[0] == pytest.approx(-0.98, abs=0.03)
    assert late[3] > late[2] > late[1] < late[0] and late[4] == math.inf


@pytest.mark.parametrize(
    ("exact", "of_npo", "of_simnpo"),
    [(True, (-0.84, 0.30), (0.06, 0.012)), (False, (-0.62, 0.07), (0.135, 0.07))],
)
def test_shared_rows_and_the_accidents_of_a_forget_set_move_both_exponents(
    exact: bool, of_npo: tuple[float, float], of_simnpo: tuple[float, float]
) -> None:
    # The expected loss, and that of 150 sequences of each component: what the latter got wrong
    # starts the fall.
    forget, _, pretraining = leaking()
    bank, reference = sampled(forget, 150, 0), best_table(pretraining)
    bank = centered(bank, forget) if exact else bank
    for objective, time, (expected, interval) in (
        (npo(0.01), 150.0, of_npo),
        (simnpo(0.01), 700.0, of_simnpo),
    ):
        loss = ExpectedLoss(objective=objective, bank=bank, reference=reference)
        times = time_to_forget(gradient_flow(loss, np.array([time]), tolerance=1e-9), 0.5)
        exponent, half = fitted(np.log([*LENGTHS, 80]), np.log(times))
        assert exponent == pytest.approx(expected, abs=0.03) and half == pytest.approx(
            interval, abs=0.03
        )


def test_rounding_breaks_an_exact_symmetry_after_36_over_the_rate_of_growth() -> None:
    forget, _, pretraining = leaking()
    bank = centered(sampled(forget, 10, 0), forget)
    loss = ExpectedLoss(objective=gradient_ascent(), bank=bank, reference=best_table(pretraining))
    flow = gradient_flow(loss, np.array([150.0]))

    def asymmetry(time: float) -> float:
        """How far the three states of the component of 20 tokens, alike by symmetry, differ in
        their logits.
        """
        own = flow.at(np.array(time))[12:15, 12:15]
        return float(np.abs(own - np.roll(own, 1, axis=(0, 1))).max())

    times = np.linspace(20, 60, 9)
    rate, half = fitted(times, np.log([asymmetry(time) for time in times]))
    assert rate == pytest.approx(0.35, abs=0.03) and half < 0.03
    assert asymmetry(0.7 * 36 / rate) < 1e-3 and asymmetry(1.3 * 36 / rate) > 1


# --- where the scalar law fails: memorised sequences ---


@pytest.mark.parametrize("normalize", [0.0, 1.0])
def test_memorised_sequences_push_with_the_root_of_their_length_and_forgotten_with_it(
    normalize: float,
) -> None:
    early, late, mean = [], [], []
    for length in LENGTHS.tolist():
        memorised = replace(alone(length), objective=gradient_ascent(normalize))
        forgotten = replace(
            memorised, reference=memorised.reference - np.array([[8.0, 0.0], [8.0, 0.0]])
        )
        flows = (gradient_flow(loss, np.array([0.0, 1e-6])) for loss in (memorised, forgotten))
        first, other = (push(flow)[0] for flow in flows)
        early.append((memorised.bank.share @ first**2) ** 0.5)
        late.append(memorised.bank.share @ other)
        mean.append(np.abs(memorised.gradient(memorised.reference)).max())
    exponent, half = fitted(np.log(LENGTHS), np.log(early))
    assert exponent == pytest.approx(0.5 - normalize, abs=1e-9) and half < 1e-9
    exponent, half = fitted(np.log(LENGTHS), np.log(late))
    assert exponent == pytest.approx(1 - normalize, abs=0.1) and half < 0.06
    assert max(mean) < 1e-14


@pytest.mark.parametrize(
    "objective",
    [gradient_ascent(), gradient_ascent(1.0), npo(0.5), npo(3.0), length_normalized_npo(1.5)],
)
def test_a_deviation_from_memorised_sequences_grows_at_the_stated_rate(
    objective: Objective,
) -> None:
    rates, expected = [], []
    for length in LENGTHS.tolist():
        memorised = alone(length)
        # E[R_0] = 4/7 |y| visits, and the law (0.7, 0.3) has the eigenvalue 2 x 0.7 x 0.3.
        scale = length**objective.normalize
        expected.append(4 / 7 * length * 0.42 / scale * (1 - objective.beta / scale / 2))
        disturbed = memorised.reference + 1e-7 * np.array([[1.0, -1.0], [0.0, 0.0]])
        loss = replace(memorised, objective=objective, reference=disturbed)
        times = np.linspace(0, 3 / abs(expected[-1]), 20)
        sizes = [
            np.linalg.norm(loss.gradient(table))
            for table in gradient_flow(loss, times, tolerance=1e-13).tables
        ]
        rates.append(fitted(times, np.log(sizes))[0])
    np.testing.assert_allclose(rates, expected, rtol=1e-3)
    if objective.normalize == 0:
        exponent, half = fitted(np.log(LENGTHS), np.log(np.abs(rates)))
        assert exponent == pytest.approx(1, abs=1e-3) and half < 1e-3


def test_npo_with_a_beta_above_two_holds_on_to_what_is_memorised() -> None:
    memorised, falls = alone(10), []
    for beta in (0.0, 1.0, 3.0):
        disturbed = memorised.reference + 0.02 * np.array([[1.0, -1.0], [0.0, 0.0]])
        loss = replace(memorised, objective=Objective(beta, 0.0, 1.0, 0.0), reference=disturbed)
        tables = gradient_flow(loss, np.array([0.0, 10.0])).tables
        falls.append(-float(np.diff(logp_per_token(loss.bank, tables)[:, 0])[0]))
    assert falls[0] > 1 and falls[1] > 0.1 and abs(falls[2]) < 0.01


# --- what is read off a flow ---


@settings(max_examples=6)
@given(seed=seeds)
def test_kl_to_truth_is_that_of_the_chains_and_kl_to_a_table_that_of_its_rows(seed: int) -> None:
    mixture, tables = small(seed), 3 * some_laws(4, 3, 3, seed=seed).log().numpy()
    origin = some_laws(3, 3, seed=seed + 1)
    truth, distance = (
        kl_to_truth(tables, mixture),
        kl_to_table(tables, origin.log().numpy(), mixture),
    )
    for component, (chain, length) in enumerate(zip(mixture.chains, mixture.lengths, strict=True)):
        visits = chain.marginals(length - 1).mean(0)
        for time, table in enumerate(tables):
            model = torch.from_numpy(softmax(table, axis=-1))
            expected = float(chain.expected_row_kl(model, length))
            assert truth[time, component] == pytest.approx(expected, rel=1e-10, abs=1e-12)
            rows = [slow_kl(origin[state], model[state]) for state in range(3)]
            expected = sum(float(visit) * row for visit, row in zip(visits, rows, strict=True))
            assert distance[time, component] == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_distances_stay_finite_where_probabilities_underflow() -> None:
    table = np.array([[[0.0, 3000.0, 0.0]] * 3])
    assert 500 < kl_to_truth(table, small())[0, 0] < 3000
    assert softmax(table, axis=-1).min() == 0


@settings(max_examples=8)
@given(corner=corners, beta=st.sampled_from([0.0, 0.5]), seed=seeds)
def test_pushes_and_gradient_norms_are_those_of_autograd(
    corner: tuple[float, float], beta: float, seed: int
) -> None:
    objective = Objective(beta, 0.1, *corner)
    flow = gradient_flow(small_loss(objective, seed), np.array([0.0, 2.0]))
    pushes, norms, bank = push(flow), gradient_norm(flow), flow.loss.bank
    counts, length, ref = map(
        torch.from_numpy, (bank.counts, bank.length, flow.loss.logp(flow.loss.reference))
    )
    for time, now in enumerate(flow.tables):
        table = torch.from_numpy(now).requires_grad_()
        logp = (counts * table.log_softmax(-1)).sum((1, 2))
        losses = objective.loss(SequenceLogProbs(logp, length, ref))
        for row in range(0, len(losses), 7):
            (own,) = torch.autograd.grad(losses[row], table, retain_graph=True)
            assert pushes[time, row] == pytest.approx(float(own.norm()), rel=1e-10)
        for component, inside in enumerate(shares(bank)):
            (own,) = torch.autograd.grad(
                losses @ torch.from_numpy(inside), table, retain_graph=True
            )
            assert norms[time, component] == pytest.approx(float(own.norm()), rel=1e-8, abs=1e-12)


@settings(max_examples=8)
@given(corner=corners, beta=st.sampled_from([0.0, 0.5]), fall=st.floats(0.01, 0.4), seed=seeds)
def test_at_the_time_to_forget_a_component_has_fallen_by_so_much_and_never_before(
    corner: tuple[float, float], beta: float, fall: float, seed: int
) -> None:
    flow = gradient_flow(small_loss(Objective(beta, 0.0, *corner), seed), np.array([40.0]))
    bank, start = flow.loss.bank, logp_per_token(flow.loss.bank, flow.loss.reference[None])
    for component, time in enumerate(time_to_forget(flow, fall)):
        before = np.linspace(0, min(time, 40.0), 50)[:-1]
        falls = (start - logp_per_token(bank, flow.at(before)))[:, component]
        assert (falls < fall + 1e-12).all()
        if np.isfinite(time):
            again = gradient_flow(flow.loss, np.array([time])).tables
            assert (start - logp_per_token(bank, again))[0, component] == pytest.approx(
                fall, abs=1e-8
            )


def test_the_first_of_several_falls_counts_and_a_fall_that_never_comes_is_infinite() -> None:
    loss = one_transition(gradient_ascent(), 1, 2, -1.0)
    # A path made up for the purpose: the logit swings around its start.
    start, swing = loss.reference.ravel(), np.array([0.0, -2.0, 0.0, 0.0])
    made = integrate.solve_ivp(
        lambda time, _: swing * np.cos(time),
        (0, 10),
        start,
        rtol=1e-10,
        atol=1e-12,
        dense_output=True,
    )
    assert made.sol is not None
    flow = Flow(
        loss=loss, times=np.zeros(1), tables=loss.reference[None], path=made.sol, evaluations=0
    )
    half, whole = (
        -1.0 - log_softmax((start + part * swing).reshape(2, 2), axis=-1)[0, 1]
        for part in (0.5, 1.0)
    )
    assert time_to_forget(flow, half)[0] == pytest.approx(math.pi / 6, rel=1e-8)
    assert time_to_forget(flow, whole + 1e-3)[0] == math.inf


def test_a_frame_says_what_the_functions_say_once_per_time_and_component() -> None:
    forget, retain = small(), Mixture(weights=(1.0,), chains=(small(7).chains[0],), lengths=(6,))
    loss = small_loss(simnpo(2.0, 0.3))
    flow = gradient_flow(loss, np.array([0.0, 0.5, 3.0]))
    table = frame(flow, forget, retain)
    assert set(table.columns) <= {*diagnostics.COLUMNS, *OWN_COLUMNS} and set(OWN_COLUMNS) == {
        "time",
        "push",
    }
    assert list(table["component"][:3]) == ["retain", "forget1", "forget2"] and len(table) == 9
    run = table[["method", "beta", "gamma", "reference", "normalize"]].drop_duplicates()
    assert run.to_numpy().tolist() == [["simnpo", 2.0, 0.3, 0.0, 1.0]]
    kept, retrained = table[table["component"] == "retain"], best_table(retain)
    weighed = ["weight", "weight_std", "weight_share", "push", "gradient_norm", "gradient_share"]
    assert kept[weighed].isna().all(axis=None) and table.drop(columns=weighed).notna().all(
        axis=None
    )
    near = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    near(kept["kl_to_truth"], kl_to_truth(flow.tables, retain)[:, 0])
    near(kept["kl_to_retrained"], kept["kl_to_truth"])  # the best table of one chain is the chain
    near(kept["retrained"], 0)
    expected = np.einsum("tij,ij->t", log_softmax(flow.tables, axis=-1), expected_counts(retain)[0])
    near(kept["logp"], expected)
    near(kept["logp_per_token"], expected / 5)
    total = {"weight": np.zeros(3), "gradient": np.zeros(3)}
    for component, (name, share) in enumerate(
        zip(("forget1", "forget2"), forget.weights, strict=True)
    ):
        own, inside = table[table["component"] == name], loss.bank.component == component
        weight, logp = loss.weight(flow.tables)[:, inside], loss.logp(flow.tables)[:, inside]
        law, scored = loss.bank.share[inside] / share, forget.lengths[component] - 1
        assert (own["length"] == scored).all()
        near(own["time"], flow.times)
        near(own["logp"], logp @ law)
        near(own["logp_per_token"], logp @ law / scored)
        near(own["weight"], weight @ law)
        near(own["weight_std"] ** 2, weight**2 @ law - (weight @ law) ** 2)
        near(own["push"], push(flow)[:, inside] @ law)
        near(own["gradient_norm"], gradient_norm(flow)[:, component])
        near(own["kl_to_truth"], kl_to_truth(flow.tables, forget)[:, component])
        near(own["kl_to_reference"], kl_to_table(flow.tables, loss.reference, forget)[:, component])
        near(own["kl_to_retrained"], kl_to_table(flow.tables, retrained, forget)[:, component])
        near(own["retrained"], kl_to_truth(retrained[None], forget)[0, component])
        total["weight"] += share * own["weight"].to_numpy()
        total["gradient"] += share * own["gradient_norm"].to_numpy()
    first = table[table["component"] == "forget1"]
    near(first["weight_share"], 0.6 * first["weight"] / total["weight"])
    near(first["gradient_share"], 0.6 * first["gradient_norm"] / total["gradient"])
    assert abs(first["kl_to_reference"].iloc[0]) < 1e-14 < first["kl_to_reference"].iloc[1]
    # Unlearning draws by the bank, whatever the weights of the mixture that its chains are taken
    # from.
    pd.testing.assert_frame_equal(frame(flow, replace(forget, weights=(0.5, 0.5)), retain), table)


# --- failure and bad input ---


def test_a_flow_that_cannot_be_solved_to_the_end_says_where_it_stopped() -> None:
    with pytest.raises(SolverFailure, match="the limit of 30 evaluations") as caught:
        gradient_flow(small_loss(npo(0.5)), np.array([1000.0]), evaluations=30)
    assert 0 < caught.value.time < 1000
    chains = (paper_chain([0, 1], 4, 0.2), paper_chain([2], 4, 0.2))
    mixture = Mixture(weights=(0.5, 0.5), chains=chains, lengths=(3, 5))
    endless = ExpectedLoss(
        objective=gradient_ascent(), bank=enumerated(mixture), reference=best_table(mixture)
    )
    with pytest.raises(
        SolverFailure, match=r"stopped at time \S+e\+1\d\d, with logits from -.*step size"
    ) as caught:
        gradient_flow(endless, np.array([1e300]))
    assert (
        caught.value.low < -1e100
        and caught.value.high > 1e100
        and isinstance(caught.value, ArithmeticError)
    )
    again = copy.copy(caught.value)
    assert str(again) == str(caught.value) and again.time == caught.value.time
    loss = one_transition(gradient_ascent(), 1, 2, -1.0)
    huge = replace(loss, bank=loss.bank._replace(counts=np.full((1, 2, 2), 1.5e308)))
    with pytest.raises(SolverFailure, match=r"stopped at time 0, .*not finite"):
        gradient_flow(huge, np.array([1.0]))


@cache
def solved() -> Flow:
    return gradient_flow(small_loss(npo(1.0)), np.array([1.0]))


@pytest.mark.parametrize(
    "times", [[], [0.0], [1.0, 1.0], [2.0, 1.0], [-1.0, 1.0], [math.nan], [math.inf], [[1.0]]]
)
def test_times_are_finite_and_ascend_from_zero(times: list[float]) -> None:
    with pytest.raises(InvalidInput, match=r"^times"):
        gradient_flow(small_loss(npo(1.0)), np.array(times))


@pytest.mark.parametrize(
    ("field", "call"),
    [
        (
            "tolerance",
            lambda: gradient_flow(small_loss(npo(1.0)), np.array([1.0]), tolerance=1e-14),
        ),
        ("tolerance", lambda: gradient_flow(small_loss(npo(1.0)), np.array([1.0]), tolerance=1.0)),
        ("fall", lambda: time_to_forget(solved(), 0.0)),
        ("forget", lambda: frame(solved(), leaking()[0], leaking()[1])),
        ("forget", lambda: frame(solved(), replace(small(), lengths=(3, 5)), leaking()[1])),
        ("retain", lambda: frame(solved(), small(), small())),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field
