"""Laws of `markov.banks`: enumeration against every sequence written out, samples against
enumeration, best tables.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from markov.banks import (
    Bank,
    ExpectedLoss,
    best_table,
    centered,
    check_mixture,
    enumerated,
    expected_counts,
    from_sequences,
    mean_counts,
    sampled,
    shares,
    transition_law,
)
from markov.cases import paper_chain
from markov.chains import MarkovChain, Mixture, row_kl
from markov.errors import InvalidInput
from markov.models import Tabular
from markov.objectives import CORNERS, Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from tests.helpers import some_laws

few = settings(max_examples=10)
seeds = st.integers(0, 10_000)


def random_mixture(seed: int, states: int = 3, *, zeros: bool = False) -> Mixture:
    """Three components of lengths 4, 2 and 5 on a few states; with `zeros`, transitions that
    never happen.
    """
    laws = some_laws(3, states + 1, states, seed=seed)
    if zeros:  # the largest entry of a row stays
        laws = laws.masked_fill(laws < 0.5 / states, 0)
        laws = laws / laws.sum(-1, keepdim=True)
    chains = tuple(MarkovChain(initial=own[0], transition=own[1:]) for own in laws)
    return Mixture(weights=(0.5, 0.2, 0.3), chains=chains, lengths=(4, 2, 5))


def written_out(mixture: Mixture) -> list[tuple[int, tuple[int, ...], float]]:
    """Component, tokens and probability of every sequence."""
    found = []
    for index, (weight, chain, length) in enumerate(
        zip(mixture.weights, mixture.chains, mixture.lengths, strict=True)
    ):
        for tokens in product(range(chain.states), repeat=length):
            prob = weight * float(chain.initial[tokens[0]])
            for here, there in pairwise(tokens):
                prob *= float(chain.transition[here, there])
            if prob > 0:
                found.append((index, tokens, prob))
    return found


def pattern(tokens: tuple[int, ...], states: int) -> tuple[tuple[int, ...], ...]:
    counts = [[0] * states for _ in range(states)]
    for here, there in pairwise(tokens):
        counts[here][there] += 1
    return tuple(map(tuple, counts))


def as_dict(bank: Bank) -> dict[tuple[int, tuple[tuple[int, ...], ...]], float]:
    rows = zip(bank.component.tolist(), bank.counts.tolist(), bank.share.tolist(), strict=True)
    return {
        (component, tuple(tuple(map(int, row)) for row in counts)): share
        for component, counts, share in rows
    }


# --- enumeration ---


@few
@given(seed=seeds, states=st.integers(2, 3), zeros=st.booleans())
def test_enumeration_is_the_list_of_all_sequences_with_equal_counts_merged(
    seed: int, states: int, zeros: bool
) -> None:
    mixture, slow = random_mixture(seed, states, zeros=zeros), defaultdict[object, float](float)
    for component, tokens, prob in written_out(mixture):
        slow[component, pattern(tokens, states)] += prob
    bank = enumerated(mixture)
    fast = as_dict(bank)
    assert len(bank.share) == len(fast) and fast.keys() == slow.keys()
    assert all(fast[key] == pytest.approx(slow[key], rel=1e-12, abs=1e-15) for key in fast)
    assert bank.share.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(
        np.bincount(bank.component, weights=bank.share), mixture.weights, atol=1e-12
    )
    assert bank.length.tolist() == [mixture.lengths[component] - 1 for component in bank.component]
    np.testing.assert_array_equal(bank.counts.sum((1, 2)), bank.length)


@few
@given(seed=seeds, zeros=st.booleans())
def test_means_of_an_enumeration_are_the_expectations_from_the_marginals(
    seed: int, zeros: bool
) -> None:
    mixture = random_mixture(seed, zeros=zeros)
    np.testing.assert_allclose(
        mean_counts(enumerated(mixture)), expected_counts(mixture), atol=1e-12
    )
    law = np.zeros((3, 3))
    for _, tokens, prob in written_out(mixture):
        law += prob * np.array(pattern(tokens, 3))
    np.testing.assert_allclose(transition_law(mixture), law / law.sum(), atol=1e-12)


def test_long_sequences_can_be_enumerated_where_patterns_are_few() -> None:
    chain = MarkovChain(initial=some_laws(2, seed=1), transition=some_laws(2, 2, seed=2))
    bank = enumerated(Mixture(weights=(1.0,), chains=(chain,), lengths=(61,)))
    # of 2^61 sequences
    assert len(bank.share) < 61**2 and bank.share.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(
        bank.share @ bank.counts.sum(2), chain.marginals(60).sum(0).numpy(), atol=1e-10
    )


def test_too_many_patterns_are_refused_with_the_way_out() -> None:
    chain = random_mixture(0).chains[0]
    pairs = Mixture(weights=(1.0,), chains=(chain,), lengths=(2,))
    assert len(enumerated(pairs, limit=9).share) == 9
    with pytest.raises(
        InvalidInput, match=r"9 patterns after 1 of 1 tokens.*limit = 8, or a sampled bank"
    ) as caught:
        enumerated(pairs, limit=8)
    assert caught.value.field == "mixture"


# --- samples and given forget sets ---


@few
@given(seed=seeds)
def test_a_given_forget_set_is_counted_sequence_by_sequence(seed: int) -> None:
    mixture, slow = random_mixture(seed), defaultdict[object, float](float)
    generator = torch.Generator().manual_seed(seed)
    sequences = [
        chain.sample(count, length, generator)
        for count, chain, length in zip((7, 30, 4), mixture.chains, mixture.lengths, strict=True)
    ]
    for component, tokens in enumerate(sequences):
        for row in tokens.tolist():
            slow[component, pattern(tuple(row), 3)] += mixture.weights[component] / len(tokens)
    bank = from_sequences(sequences, mixture.weights, 3)
    fast = as_dict(bank)
    assert len(bank.share) == len(fast) and fast.keys() == slow.keys()
    assert all(fast[key] == pytest.approx(slow[key], rel=1e-12) for key in fast)


def test_a_sampled_bank_depends_on_its_seed_and_a_component_not_on_its_company() -> None:
    mixture = random_mixture(3)
    once, again, other = (as_dict(sampled(mixture, 20, seed)) for seed in (5, 5, 6))
    assert once == again and once.keys() != other.keys()
    alone = Mixture(weights=(1.0,), chains=mixture.chains[:1], lengths=mixture.lengths[:1])
    own = {key: share for key, share in once.items() if key[0] == 0}
    assert as_dict(sampled(alone, 20, 5)) == pytest.approx(
        {key: share / 0.5 for key, share in own.items()}
    )
    twins = Mixture(weights=(0.5, 0.5), chains=mixture.chains[:1] * 2, lengths=(4, 4))
    drawn = as_dict(sampled(twins, 20, 5))
    assert {key[1] for key in drawn if key[0] == 0} != {key[1] for key in drawn if key[0] == 1}


def fitted(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of log y against log x, and half its 95% interval."""
    line = stats.linregress(np.log(x), np.log(y))
    return float(line.slope), float(line.stderr * stats.t.ppf(0.975, len(x) - 2))


def gradient_error(objective: Objective, count: int, *, corrected: bool) -> float:
    """Root mean square, over seeds, of what a sampled bank gets wrong of the gradient of the
    enumeration.
    """
    mixture, reference = random_mixture(1), some_laws(3, 3, seed=9).log().numpy()
    now = reference + 0.3 * some_laws(3, 3, seed=10).log().numpy()
    exact = ExpectedLoss(objective=objective, bank=enumerated(mixture), reference=reference)
    squares = []
    for seed in range(30):
        bank = sampled(mixture, count, seed)
        found = replace(exact, bank=centered(bank, mixture) if corrected else bank)
        squares.append(((found.gradient(now) - exact.gradient(now)) ** 2).sum())
    return float(np.mean(squares) ** 0.5)


@pytest.mark.parametrize(
    ("objective", "corrected"), [(simnpo(4.0), False), (npo(0.5), False), (npo(0.5), True)]
)
def test_samples_converge_to_the_enumeration_as_one_over_the_root_of_their_number(
    objective: Objective, corrected: bool
) -> None:
    sizes = np.array([16, 48, 144, 432])
    errors = np.array([gradient_error(objective, int(size), corrected=corrected) for size in sizes])
    slope, half = fitted(sizes, errors)
    assert slope == pytest.approx(-0.5, abs=0.06) and half < 0.15


def test_centering_leaves_an_error_in_proportion_to_beta() -> None:
    betas = np.array([0.01, 0.03, 0.1, 0.3])
    left = np.array([gradient_error(npo(float(beta)), 64, corrected=True) for beta in betas])
    slope, half = fitted(betas, left)
    assert slope == pytest.approx(1, abs=0.05) and half < 0.05
    assert left[2] < 0.03 * gradient_error(npo(0.1), 64, corrected=False)


@few
@given(seed=seeds, normalize=st.sampled_from([0.0, 1.0]))
def test_a_centered_bank_of_any_size_is_exact_at_beta_zero(seed: int, normalize: float) -> None:
    mixture, reference = random_mixture(seed), some_laws(3, 3, seed=seed).log().numpy()
    bank = centered(sampled(mixture, 2, seed), mixture)
    np.testing.assert_allclose(mean_counts(bank), expected_counts(mixture), atol=1e-12)
    np.testing.assert_allclose(bank.counts.sum((1, 2)), bank.length, atol=1e-12)
    losses = (
        ExpectedLoss(objective=gradient_ascent(normalize), bank=own, reference=reference)
        for own in (bank, enumerated(mixture))
    )
    now = some_laws(3, 3, seed=seed + 1).log().numpy()
    found, exact = (loss.gradient(now) for loss in losses)
    np.testing.assert_allclose(found, exact, atol=1e-12)


@few
@given(seed=seeds)
def test_shares_are_the_laws_of_patterns_within_components(seed: int) -> None:
    bank = enumerated(random_mixture(seed))
    for component, inside in enumerate(shares(bank)):
        own = bank.component == component
        np.testing.assert_allclose(
            inside, np.where(own, bank.share, 0) / bank.share[own].sum(), atol=1e-15
        )


# --- best tables ---


def cross_entropy(mixture: Mixture, table: np.ndarray) -> float:
    """Mean over the scored tokens of all sequences, written out."""
    logs, total, tokens_in = torch.from_numpy(table).log_softmax(-1), 0.0, 0.0
    for _, tokens, prob in written_out(mixture):
        total -= prob * sum(float(logs[here, there]) for here, there in pairwise(tokens))
        tokens_in += prob * (len(tokens) - 1)
    return total / tokens_in


@few
@given(seed=seeds)
def test_no_table_has_a_lower_cross_entropy_than_the_best_one(seed: int) -> None:
    mixture = random_mixture(seed)
    best = best_table(mixture)
    least, law = cross_entropy(mixture, best), transition_law(mixture)
    for noise in (1e-3, 0.3):
        other = best + noise * some_laws(3, 3, seed=seed + 1).numpy()
        assert cross_entropy(mixture, other) > least
        excess = (
            law.sum(1)
            @ row_kl(*(torch.from_numpy(table).softmax(-1) for table in (best, other))).numpy()
        )
        assert cross_entropy(mixture, other) - least == pytest.approx(excess, rel=1e-6, abs=1e-12)
    assert least == pytest.approx(-(law * best).sum(), abs=1e-12)


@few
@given(seed=seeds)
def test_the_best_table_of_one_chain_is_that_chain_whatever_the_length(seed: int) -> None:
    chain = random_mixture(seed).chains[0]
    for length in (2, 7):
        best = best_table(Mixture(weights=(1.0,), chains=(chain,), lengths=(length,)))
        np.testing.assert_allclose(np.exp(best), chain.transition.numpy(), atol=1e-12)


def test_a_row_that_chains_share_is_their_mean_by_visits() -> None:
    one, two = paper_chain([0], 3, 0.2), paper_chain([1], 3, 0.2)
    best = best_table(Mixture(weights=(0.9, 0.1), chains=(one, two), lengths=(2, 2)))
    first, second = 0.9 * one.initial[0], 0.1 * two.initial[0]
    mean = (first * one.transition[0] + second * two.transition[0]) / (first + second)
    np.testing.assert_allclose(np.exp(best[0]), mean.numpy(), atol=1e-12)
    longer = best_table(Mixture(weights=(0.9, 0.1), chains=(one, two), lengths=(2, 40)))
    assert (
        abs(np.exp(longer[0]) - two.transition[0].numpy()).max()
        < abs(np.exp(best[0]) - two.transition[0].numpy()).max()
    )


def test_an_unvisited_state_gets_a_uniform_row_and_an_impossible_transition_is_refused() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    chain = MarkovChain(initial=rows[0], transition=rows)
    with pytest.raises(InvalidInput, match=r"no transition \[\[0, 2\]\]"):
        best_table(Mixture(weights=(1.0,), chains=(chain,), lengths=(4,)))
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]], dtype=torch.float64)
    chain = MarkovChain(initial=torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64), transition=rows)
    best = best_table(Mixture(weights=(1.0,), chains=(chain,), lengths=(2,)))
    np.testing.assert_allclose(np.exp(best), np.vstack([rows[:2], np.full(3, 1 / 3)]), atol=1e-12)


# --- the loss ---


def autograd(
    objective: Objective,
    mixture: Mixture,
    reference: np.ndarray,
    now: np.ndarray,
    retain: Mixture,
    retain_weight: float,
) -> tuple[float, np.ndarray]:
    """Loss and gradient on every sequence written out, through the tabular model and the law's
    own loss.
    """
    model, table = Tabular(states=len(now)), torch.from_numpy(now).clone().requires_grad_()

    def logp(parameter: torch.Tensor, tokens: tuple[int, ...]) -> torch.Tensor:
        logits = model.logits({"table": parameter[None]}, torch.tensor([[tokens[:-1]]]))[0, 0]
        return logits.log_softmax(-1)[range(len(tokens) - 1), tokens[1:]].sum()

    total = torch.zeros((), dtype=torch.float64)
    for _, tokens, prob in written_out(mixture):
        length = torch.tensor(len(tokens) - 1.0, dtype=torch.float64)
        seq = SequenceLogProbs(
            logp(table, tokens), length, logp(torch.from_numpy(reference), tokens)
        )
        total = total + prob * objective.loss(seq)
    kept = [(prob, len(tokens) - 1, logp(table, tokens)) for _, tokens, prob in written_out(retain)]
    entropy = -sum(prob * value for prob, _, value in kept) / sum(
        prob * scored for prob, scored, _ in kept
    )
    total = total + retain_weight * entropy
    (gradient,) = torch.autograd.grad(total, [table])
    return float(total.detach()), gradient.numpy()


@settings(max_examples=12)
@given(
    corner=st.sampled_from(list(CORNERS.values())),
    beta=st.sampled_from([0.0, 0.3, 4.0]),
    gamma=st.floats(-1, 1),
    retain_weight=st.sampled_from([0.0, 0.7]),
    seed=seeds,
)
def test_loss_and_gradient_are_autograds_on_every_sequence(
    corner: tuple[float, float], beta: float, gamma: float, retain_weight: float, seed: int
) -> None:
    objective, mixture = Objective(beta, gamma, *corner), random_mixture(seed, states=2)
    retain = random_mixture(seed + 1, states=2)
    reference, now = (some_laws(2, 2, seed=seed + more).log().numpy() for more in (2, 3))
    loss = ExpectedLoss(
        objective=objective,
        bank=enumerated(mixture),
        reference=reference,
        retain=transition_law(retain),
        retain_weight=retain_weight,
    )
    value, gradient = autograd(objective, mixture, reference, now, retain, retain_weight)
    assert float(loss.value(now)) == pytest.approx(value, rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(loss.gradient(now), gradient, rtol=1e-11, atol=1e-13)


def test_stacked_tables_are_scored_one_by_one() -> None:
    tables = some_laws(4, 3, 3, seed=1).log().numpy()
    loss = ExpectedLoss(objective=npo(0.5), bank=enumerated(random_mixture(2)), reference=tables[0])
    for method in (loss.logp, loss.weight, loss.value):
        np.testing.assert_allclose(
            method(tables), np.stack([method(table) for table in tables]), atol=1e-13
        )
    np.testing.assert_allclose(loss.weight(tables[0]), 1, atol=1e-14)


def test_logits_are_only_defined_up_to_a_constant_per_row() -> None:
    reference, shift = some_laws(3, 3, seed=1).log().numpy(), np.array([[5.0], [-3.0], [0.1]])
    loss = ExpectedLoss(
        objective=simnpo(2.0), bank=enumerated(random_mixture(2)), reference=reference
    )
    np.testing.assert_allclose(
        loss.gradient(reference + shift), loss.gradient(reference), atol=1e-13
    )


# --- bad input ---

MIXTURE = random_mixture(0)
GOOD = ExpectedLoss(objective=npo(1.0), bank=enumerated(MIXTURE), reference=np.zeros((3, 3)))
ONE = Mixture(weights=(1.0,), chains=MIXTURE.chains[:1], lengths=(4,))
LAW, TOKENS = transition_law(MIXTURE), torch.zeros((3, 2), dtype=torch.int64)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("seed", lambda: sampled(MIXTURE, 3, -1)),
        ("count", lambda: sampled(MIXTURE, 0, 1)),
        ("sequences", lambda: from_sequences([TOKENS[:0]], [1.0], 3)),
        ("sequences", lambda: from_sequences([TOKENS[:, :1]], [1.0], 3)),
        ("sequences", lambda: from_sequences([TOKENS + 3], [1.0], 3)),
        ("sequences", lambda: from_sequences([TOKENS - 1], [1.0], 3)),
        ("weights", lambda: from_sequences([TOKENS], [0.5, 0.5], 3)),
        ("weights", lambda: from_sequences([TOKENS], [0.5], 3)),
        ("weights", lambda: from_sequences([TOKENS, TOKENS], [1.5, -0.5], 3)),
        ("mixture", lambda: centered(GOOD.bank, ONE)),
        ("forget", lambda: check_mixture(GOOD.bank, replace(MIXTURE, lengths=(4, 3, 5)), "forget")),
        ("beta", lambda: replace(GOOD, objective=Objective(-1.0))),
        ("beta", lambda: replace(GOOD, objective=Objective(torch.ones(2)))),
        ("bank", lambda: replace(GOOD, bank=GOOD.bank._replace(share=GOOD.bank.share / 2))),
        ("bank", lambda: replace(GOOD, bank=GOOD.bank._replace(share=np.ones(1)))),
        ("reference", lambda: replace(GOOD, reference=np.zeros((2, 2)))),
        ("reference", lambda: replace(GOOD, reference=np.full((3, 3), np.nan))),
        ("retain", lambda: replace(GOOD, retain=LAW[:2])),
        ("retain", lambda: replace(GOOD, retain=2 * LAW)),
        ("retain_weight", lambda: replace(GOOD, retain_weight=1.0)),
        ("retain_weight", lambda: replace(GOOD, retain=LAW, retain_weight=-1.0)),
        ("retain_weight", lambda: replace(GOOD, retain=LAW, retain_weight=math.nan)),
        ("retain_weight", lambda: replace(GOOD, retain=LAW, retain_weight=math.inf)),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, call: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert caught.value.field == field
