"""Laws of `markov.chains`; the slow twins enumerate every sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from markov.chains import MarkovChain, Mixture, row_entropy, row_kl
from markov.console import limits
from markov.errors import InvalidInput

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_chain(states: int, seed: int, zeros: bool = False) -> MarkovChain:
    draw = torch.rand((states + 1, states), generator=seeded(seed), dtype=torch.float64) + 0.01
    if zeros:  # about a third of the entries, and never a whole row
        keep = torch.rand(draw.shape, generator=seeded(seed + 1), dtype=torch.float64) > 0.35
        keep[torch.arange(states + 1), torch.arange(states + 1) % states] = True
        draw = draw * keep
    laws = draw / draw.sum(-1, keepdim=True)
    return MarkovChain(initial=laws[0], transition=laws[1:])


def all_sequences(states: int, length: int) -> Tensor:
    return torch.tensor(list(product(range(states), repeat=length)))


def slow_prob(chain: MarkovChain, sequence: list[int]) -> float:
    prob = float(chain.initial[sequence[0]])
    for here, there in pairwise(sequence):
        prob *= float(chain.transition[here, there])
    return prob


def slow_kl(p: Tensor, q: Tensor) -> float:
    terms = zip(p.tolist(), q.tolist(), strict=True)
    return sum((math.inf if b == 0 else a * math.log(a / b)) for a, b in terms if a > 0)


def two_lengths(seed: int, weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Mixture:
    chains = tuple(random_chain(3, seed + index, zeros=index == 1) for index in range(3))
    return Mixture(weights=weights, chains=chains, lengths=(4, 2, 3))


def slow_total(mixture: Mixture, start: list[int]) -> list[float]:
    """Per component, the probability of it and of a whole sequence that begins with `start`."""
    totals = []
    for weight, chain, length in zip(mixture.weights, mixture.chains, mixture.lengths, strict=True):
        rest = length - len(start)
        ends = product(range(chain.states), repeat=rest) if rest >= 0 else ()
        totals.append(weight * sum(slow_prob(chain, [*start, *end]) for end in ends))
    return totals


# --- one chain ---


@few
@given(seed=seeds, states=sizes, length=st.integers(1, 5), zeros=st.booleans())
def test_log_prob_is_the_product_of_the_steps_and_sums_to_one(seed, states, length, zeros):
    chain, tokens = random_chain(states, seed, zeros), all_sequences(states, length)
    probs = chain.log_prob(tokens).exp()
    slow = torch.tensor([slow_prob(chain, row) for row in tokens.tolist()], dtype=torch.float64)
    torch.testing.assert_close(probs, slow, rtol=1e-12, atol=1e-14)
    assert probs.sum().item() == pytest.approx(1, abs=1e-12)


@few
@given(seed=seeds, states=sizes, length=st.integers(2, 5))
def test_conditional_log_prob_leaves_out_the_initial_term(seed, states, length):
    chain, tokens = random_chain(states, seed), all_sequences(states, length)
    total = chain.log_prob(tokens) - chain.initial.log()[tokens[:, 0]]
    torch.testing.assert_close(chain.conditional_log_prob(tokens), total, rtol=0, atol=1e-12)
    assert chain.conditional_log_prob(tokens[:, :1]).abs().max() == 0


def test_batch_axes_do_not_matter():
    chain, tokens = random_chain(3, 0), all_sequences(3, 4)[:24]
    for method in (chain.log_prob, chain.conditional_log_prob):
        torch.testing.assert_close(method(tokens.view(2, 3, 4, 4)).flatten(), method(tokens))
        torch.testing.assert_close(method(tokens[5]), method(tokens)[5])


@few
@given(seed=seeds, states=sizes, length=st.integers(1, 4), zeros=st.booleans())
def test_marginals_are_those_of_the_enumerated_sequences(seed, states, length, zeros):
    chain, tokens = random_chain(states, seed, zeros), all_sequences(states, length)
    probs = chain.log_prob(tokens).exp()
    slow = torch.stack(
        [torch.bincount(column, weights=probs, minlength=states) for column in tokens.T]
    )
    torch.testing.assert_close(chain.marginals(length), slow, rtol=0, atol=1e-12)


@few
@given(seed=seeds, states=sizes)
def test_the_stationary_law_is_a_law_that_the_chain_keeps(seed, states):
    chain = random_chain(states, seed)
    law = chain.stationary()
    torch.testing.assert_close(law @ chain.transition, law, rtol=0, atol=1e-12)
    assert law.min() >= 0 and law.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(chain.marginals(400)[-1], law, rtol=0, atol=1e-9)
    rate = sum(float(law[i]) * float(row_entropy(chain.transition[i])) for i in range(states))
    assert chain.entropy_rate().item() == pytest.approx(rate, abs=1e-12)


def test_a_periodic_chain_has_a_stationary_law_and_a_transient_state_has_none_of_it():
    swap = torch.tensor([[0, 1, 0], [1, 0, 0], [0.5, 0, 0.5]], dtype=torch.float64)
    law = MarkovChain(initial=swap[0], transition=swap).stationary()
    torch.testing.assert_close(
        law, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), rtol=0, atol=1e-12
    )
    with pytest.raises(InvalidInput, match="transition"):
        MarkovChain(initial=swap[0], transition=torch.eye(3, dtype=torch.float64)).stationary()


def test_rounding_gives_transient_states_no_negative_mass():
    for seed in range(300):  # an unclamped solution is negative for a few in a hundred
        weights = torch.rand((5, 5), generator=seeded(seed), dtype=torch.float64)
        weights[:3, 3:] = 0
        transition = weights / weights.sum(1, keepdim=True)
        law = MarkovChain(initial=transition[0], transition=transition).stationary()
        assert law.min() >= 0 and law[3:].max() < 1e-14


@few
@given(seed=seeds, states=sizes, length=st.integers(2, 4), zeros=st.booleans())
def test_expected_row_kl_and_entropy_are_the_means_over_all_sequences(seed, states, length, zeros):
    chain, other = random_chain(states, seed, zeros), random_chain(states, seed + 7)
    kl = entropy = 0.0
    for row in all_sequences(states, length).tolist():
        prob = slow_prob(chain, row)
        for here in row[:-1]:
            kl += prob * slow_kl(chain.transition[here], other.transition[here]) / (length - 1)
            entropy += prob * slow_kl(chain.transition[here], torch.ones(states)) / (1 - length)
    assert chain.expected_row_kl(other.transition, length).item() == pytest.approx(kl, abs=1e-12)
    assert chain.expected_row_entropy(length).item() == pytest.approx(entropy, abs=1e-12)


@few
@given(seed=seeds, states=sizes, length=st.integers(2, 30))
def test_expected_row_kl_is_zero_on_the_chain_itself_and_positive_on_another(seed, states, length):
    chain = random_chain(states, seed, zeros=True)
    assert abs(chain.expected_row_kl(chain.transition, length).item()) < 1e-14
    assert chain.expected_row_kl(random_chain(states, seed + 7).transition, length).item() > 0


def test_a_missed_state_costs_infinity_only_where_the_chain_goes():
    certain = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    at_zero, anywhere = (MarkovChain(initial=row, transition=certain) for row in certain)
    # float32; off by ln 2 at state 0, hopeless at state 1
    model = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert at_zero.expected_row_kl(model, 9).item() == pytest.approx(math.log(2))
    assert anywhere.expected_row_kl(model, 9).item() == math.inf


def test_row_kl_and_entropy_count_zero_log_zero_as_zero():
    laws = torch.tensor(
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64
    )
    expected = torch.tensor([0, math.log(2), math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(row_entropy(laws), expected)
    torch.testing.assert_close(row_kl(laws, laws[2:]), math.log(3) - expected)
    assert row_kl(laws[2], laws[1]).item() == math.inf


# --- samples ---


def test_sampled_frequencies_are_the_probabilities():
    chain, count = random_chain(3, 5, zeros=True), 40_000
    tokens, every = chain.sample(count, 4, seeded(0)), all_sequences(3, 4)
    probs = chain.log_prob(every).exp()
    seen = torch.bincount((tokens * 3 ** torch.arange(3, -1, -1)).sum(-1), minlength=len(every))
    assert seen[probs == 0].sum() == 0 and (probs == 0).any()
    sigma = (count * probs * (1 - probs)).sqrt()
    assert ((seen - count * probs).abs() <= 4 * sigma + 1).all()


@few
@given(seed=seeds, states=st.integers(2, 12))
def test_states_of_probability_zero_are_never_drawn(seed, states):
    chain = random_chain(states, seed, zeros=True)
    tokens = chain.sample(200, 10, seeded(seed))
    assert tokens.shape == (200, 10) and tokens.dtype == torch.int64
    assert chain.log_prob(tokens).isfinite().all()


def test_the_largest_uniform_draws_the_last_state_that_has_probability():
    # Ten times 0.1 adds up to just below 1, which is the largest uniform there is.
    law = torch.tensor([0.0] + [0.1] * 10 + [0.0], dtype=torch.float64)
    chain = MarkovChain(initial=law, transition=law.expand(12, 12))
    assert law.cumsum(0)[-1] <= 1 - 2**-53
    assert (chain._walk(torch.full((1, 5), 1 - 2**-53, dtype=torch.float64)) == 10).all()
    assert (chain._walk(torch.zeros((1, 5), dtype=torch.float64)) == 1).all()


def test_a_seed_decides_the_sample_and_the_global_generator_is_left_alone():
    chain, mixture = random_chain(4, 1), two_lengths(3)
    before = torch.get_rng_state()
    draws = [chain.sample(50, 6, seeded(seed)) for seed in (1, 1, 2)]
    mixed = [mixture.sample(50, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert all(map(torch.equal, mixed[0], mixed[1])) and not torch.equal(
        mixed[0].tokens, mixed[2].tokens
    )


def test_mixture_samples_are_padded_and_as_frequent_as_their_probability():
    mixture, count = two_lengths(11), 30_000
    sample = mixture.sample(count, seeded(0))
    assert torch.equal(sample.length, torch.tensor(mixture.lengths)[sample.component])
    assert sample.tokens.shape == (count, 4)
    assert (sample.tokens[torch.arange(4) >= sample.length[:, None]] == 0).all()
    for component, weight in enumerate(mixture.weights):
        share = (sample.component == component).double().mean().item()
        assert abs(share - weight) < 4 * math.sqrt(weight * (1 - weight) / count)
    for length in mixture.lengths:
        every = all_sequences(3, length)
        probs = mixture.log_prob(every, torch.full((len(every),), length)).exp()
        mine = sample.tokens[sample.length == length, :length]
        seen = torch.bincount(
            (mine * 3 ** torch.arange(length - 1, -1, -1)).sum(-1), minlength=len(every)
        )
        assert ((seen - count * probs).abs() <= 4 * (count * probs * (1 - probs)).sqrt() + 1).all()


# --- mixtures ---


@few
@given(seed=seeds)
def test_mixture_log_prob_is_the_weighted_sum_and_its_total_is_one(seed):
    mixture, total = two_lengths(seed), 0.0
    for length in (1, 2, 3, 4):
        tokens = torch.nn.functional.pad(all_sequences(3, length), (0, 4 - length), value=1)
        probs = mixture.log_prob(tokens, torch.full((len(tokens),), length)).exp()
        parts = zip(mixture.weights, mixture.chains, mixture.lengths, strict=True)
        same = [(weight, chain) for weight, chain, own in parts if own == length]
        slow = [
            sum(w * slow_prob(chain, row[:length]) for w, chain in same) for row in tokens.tolist()
        ]
        torch.testing.assert_close(
            probs, torch.tensor(slow, dtype=torch.float64), rtol=1e-12, atol=1e-14
        )
        total += probs.sum().item()
    assert total == pytest.approx(1, abs=1e-12)


def test_mixture_log_prob_takes_each_sequence_with_its_own_length():
    mixture = two_lengths(2)
    tokens, length, _ = mixture.sample(40, seeded(0))
    whole = mixture.log_prob(tokens, length)
    one_by_one = [mixture.log_prob(row, own) for row, own in zip(tokens, length, strict=True)]
    torch.testing.assert_close(whole, torch.stack(one_by_one))
    torch.testing.assert_close(
        mixture.log_prob(tokens.view(5, 8, -1), length.view(5, 8)).flatten(), whole
    )


@few
@given(seed=seeds)
def test_predictive_and_posterior_are_ratios_of_prefix_probabilities(seed):
    mixture = two_lengths(seed)
    every = all_sequences(3, 4)
    predictive, posterior = mixture.predictive(every), mixture.posterior(every)
    for row, laws, beliefs in zip(every.tolist(), predictive, posterior, strict=True):
        for t in range(3):
            # slow_total of a prefix one state longer leaves out the components that have ended.
            totals = [slow_total(mixture, [*row[: t + 1], state]) for state in range(3)]
            ahead = torch.tensor(totals, dtype=torch.float64)
            if ahead.sum() > 0:
                torch.testing.assert_close(laws[t], ahead.sum(1) / ahead.sum(), rtol=0, atol=1e-12)
                torch.testing.assert_close(
                    beliefs[t], ahead.sum(0) / ahead.sum(), rtol=0, atol=1e-12
                )
                assert laws[t].sum().item() == pytest.approx(1, abs=1e-12)
            else:
                assert laws[t].isnan().all() and beliefs[t].isnan().all()
    assert predictive[:, 3].isnan().all() and posterior[:, 3].isnan().all()


def test_predictive_knows_the_prefix_only():
    mixture = two_lengths(4)
    tokens = all_sequences(3, 4)
    changed = tokens.clone()
    changed[:, 2:] = (changed[:, 2:] + 1) % 3
    whole = mixture.predictive(tokens)[:, :2]
    torch.testing.assert_close(
        mixture.predictive(changed)[:, :2], whole, rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(
        mixture.predictive(tokens[:, :2]), whole, rtol=0, atol=0, equal_nan=True
    )


def test_a_mixture_of_one_chain_predicts_its_rows():
    chain = random_chain(4, 8)
    tokens = chain.sample(20, 6, seeded(0))
    alone = Mixture(weights=(1.0,), chains=(chain,), lengths=(6,)).predictive(tokens)
    torch.testing.assert_close(alone[:, :-1], chain.transition[tokens[:, :-1]])


def test_the_posterior_sharpens_on_the_component_that_drew_the_tokens():
    chains = (random_chain(4, 1), random_chain(4, 2))
    mixture = Mixture(weights=(0.5, 0.5), chains=chains, lengths=(200, 200))
    sample = mixture.sample(300, seeded(0))
    truth = mixture.posterior(sample.tokens)[torch.arange(300), :-1, sample.component].mean(0)
    assert 0.5 < truth[0] < truth[5] < truth[40] < truth[-1] and truth[-1] > 0.99


def test_long_prefixes_do_not_underflow():
    chains = (random_chain(4, 1), random_chain(4, 2))
    tokens = chains[0].sample(2, 3000, seeded(0))
    assert chains[0].log_prob(tokens).max() < -2000
    mixture = Mixture(weights=(0.5, 0.5), chains=chains, lengths=(3000, 3000))
    laws = mixture.predictive(tokens)[:, :-1]
    torch.testing.assert_close(laws.sum(-1), torch.ones(2, 2999, dtype=torch.float64))


# --- arguments ---


def test_every_argument_of_a_chain_and_of_a_mixture_changes_the_answer():
    one, two, tokens = random_chain(3, 1), random_chain(3, 2), all_sequences(3, 4)
    for changed in (
        MarkovChain(initial=two.initial, transition=one.transition),
        MarkovChain(initial=one.initial, transition=two.transition),
    ):
        assert not torch.allclose(changed.log_prob(tokens), one.log_prob(tokens))
    base = {"weights": (0.5, 0.5), "chains": (one, two), "lengths": (4, 4)}
    expected = Mixture(**base).predictive(tokens)[:, :-1]
    for change in (
        {"weights": (0.9, 0.1)},
        {"chains": (one, random_chain(3, 9))},
        {"lengths": (4, 3)},
    ):
        assert not torch.allclose(
            Mixture(**{**base, **change}).predictive(tokens)[:, :-1], expected
        )


fair = torch.full((3,), 1 / 3, dtype=torch.float64)
rows = fair.expand(3, 3)
negative = torch.tensor([0.5, -0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("field", "initial", "transition"),
    [
        ("initial", fair.float(), rows),
        ("transition", fair, rows.float()),
        ("transition", fair, fair),
        ("transition", fair, rows[:2]),
        ("transition", torch.ones(1, dtype=torch.float64), torch.ones((1, 1), dtype=torch.float64)),
        ("initial", fair[:2], rows),
        ("initial", negative, rows),
        ("initial", 2 * fair, rows),
        ("initial", fair * math.nan, rows),
        ("transition", fair, torch.stack([fair, fair, negative])),
    ],
)
def test_a_chain_refuses_what_is_no_law(field, initial, transition):
    with pytest.raises(InvalidInput) as caught:
        MarkovChain(initial=initial, transition=transition)
    assert caught.value.field == field


def test_the_first_bad_row_and_its_sum_are_named():
    with pytest.raises(InvalidInput, match=r"transition = 'row 1 with sum 0\.75 "):
        MarkovChain(initial=fair, transition=torch.stack([fair, 0.75 * fair, 0.5 * fair]))


def test_bad_input_to_a_chain_names_the_field():
    chain = MarkovChain(initial=fair, transition=rows)
    good = torch.tensor([0, 1, 2])
    for field, call in (
        ("count", lambda: chain.sample(0, 3, seeded(0))),
        ("length", lambda: chain.sample(3, 0, seeded(0))),
        ("length", lambda: chain.marginals(0)),
        ("length", lambda: chain.expected_row_entropy(1)),
        ("length", lambda: chain.expected_row_kl(rows, 1)),
        ("model", lambda: chain.expected_row_kl(rows[:2], 3)),
        ("model", lambda: chain.expected_row_kl(rows * 2, 3)),
        ("tokens", lambda: chain.log_prob(good - 1)),
        ("tokens", lambda: chain.log_prob(good + 1)),
        ("tokens", lambda: chain.conditional_log_prob(good + 1)),
        ("tokens", lambda: chain.log_prob(good.double())),
        ("tokens", lambda: chain.log_prob(good[:0])),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field


def test_bad_input_to_a_mixture_names_the_field():
    chain, other = MarkovChain(initial=fair, transition=rows), random_chain(2, 0)
    base = {"weights": (0.5, 0.5), "chains": (chain, chain), "lengths": (3, 3)}
    for field, change in (
        ("chains", {"chains": (), "weights": (), "lengths": ()}),
        ("chains", {"chains": (chain, other)}),
        ("weights", {"weights": (1.0,)}),
        ("weights", {"weights": (0.5, 0.6)}),
        ("weights", {"weights": (0.0, 1.0)}),
        ("weights", {"weights": (-0.5, 1.5)}),
        ("lengths", {"lengths": (3,)}),
        ("lengths", {"lengths": (3, 1)}),
    ):
        with pytest.raises(InvalidInput) as caught:
            Mixture(**{**base, **change})
        assert caught.value.field == field
    mixture, tokens = Mixture(**base), torch.tensor([[0, 1, 2]])
    for field, call in (
        ("count", lambda: mixture.sample(0, seeded(0))),
        ("length", lambda: mixture.log_prob(tokens, torch.tensor([4]))),
        ("length", lambda: mixture.log_prob(tokens, torch.tensor([0]))),
        ("tokens", lambda: mixture.predictive(tokens + 1)),
        ("tokens", lambda: mixture.posterior(tokens - 1)),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field


ONE = MarkovChain(initial=fair, transition=rows)
TWO = Mixture(weights=(0.5, 0.5), chains=(ONE, ONE), lengths=(3, 2))
GOOD = torch.tensor([[0, 1, 2]])
LONGEST = limits.LENGTH[1]
SQUARE = "must be square, on at least 2 states"
LAW = "rows must be non-negative with sum 1"
# What is done, and the field, value and allowed values that are told.
TOLD: dict[str, tuple[Callable[[], object], tuple[str, Any, str]]] = {
    "single precision": (
        lambda: replace(ONE, initial=fair.float()),
        ("initial", torch.float32, "must be a tensor of torch.float64"),
    ),
    "a list of rows": (
        lambda: replace(ONE, transition=rows.tolist()),
        ("transition", rows.tolist(), "must be a tensor of torch.float64"),
    ),
    "rows of numpy": (
        lambda: replace(ONE, transition=rows.numpy()),
        ("transition", np.dtype("float64"), "must be a tensor of torch.float64"),
    ),
    "a row": (lambda: replace(ONE, transition=fair), ("transition", (3,), SQUARE)),
    "two rows of three": (
        lambda: replace(ONE, transition=rows[:2]),
        ("transition", (2, 3), SQUARE),
    ),
    "a cube": (
        lambda: replace(ONE, transition=rows.expand(3, 3, 3)),
        ("transition", (3, 3, 3), SQUARE),
    ),
    "one state": (
        lambda: MarkovChain(initial=rows[0, :1] * 3, transition=rows[:1, :1] * 3),
        ("transition", (1, 1), SQUARE),
    ),
    "fewer states": (
        lambda: replace(ONE, initial=fair[:2]),
        ("initial", (2,), "must be (3,), a law on the same states"),
    ),
    "no sum of 1": (
        lambda: replace(ONE, initial=fair * 1.5),
        ("initial", "row 0 with sum 1.5 and least entry 0.5", LAW),
    ),
    "a negative entry": (
        lambda: replace(ONE, transition=torch.stack([fair, fair, negative])),
        ("transition", "row 2 with sum 1 and least entry -0.5", LAW),
    ),
    "two closed classes": (
        lambda: replace(ONE, transition=torch.eye(3).double()).stationary(),
        (
            "transition",
            "several closed classes",
            "stationary() needs a single stationary law",
        ),
    ),
    "a model in a list": (
        lambda: ONE.expected_row_kl(rows.tolist(), 3),  # pyright: ignore[reportArgumentType]
        ("model", rows.tolist(), "a tensor with one row for each state"),
    ),
    "a smaller model": (
        lambda: ONE.expected_row_kl(rows[:2], 3),
        ("model", (2, 3), "a tensor with one row for each state"),
    ),
    "no model's law": (
        lambda: ONE.expected_row_kl(rows * 2, 3),
        ("model", "row 0 with sum 2 and least entry 0.667", LAW),
    ),
    "no state": (
        lambda: ONE.marginals(0),
        ("length", 0, f"a whole number from 1 to {LONGEST}"),
    ),
    "too many states": (
        lambda: ONE.marginals(LONGEST + 1),
        ("length", LONGEST + 1, f"a whole number from 1 to {LONGEST}"),
    ),
    "no context": (
        lambda: ONE.expected_row_entropy(1),
        ("length", 1, f"a whole number from 2 to {LONGEST}"),
    ),
    "no sequence": (
        lambda: ONE.sample(0, 3, seeded(0)),
        ("count", 0, f"a whole number from 1 to {limits.COUNT[1]}"),
    ),
    "too many sequences": (
        lambda: ONE.sample(limits.COUNT[1] + 1, 3, seeded(0)),
        ("count", limits.COUNT[1] + 1, f"a whole number from 1 to {limits.COUNT[1]}"),
    ),
    "sequences without a state": (
        lambda: ONE.sample(3, 0, seeded(0)),
        ("length", 0, f"a whole number from 1 to {LONGEST + 1}"),
    ),
    "sequences too long": (
        lambda: ONE.sample(3, LONGEST + 2, seeded(0)),
        ("length", LONGEST + 2, f"a whole number from 1 to {LONGEST + 1}"),
    ),
    "a seed for a generator": (
        lambda: ONE.sample(3, 3, 7),  # pyright: ignore[reportArgumentType]
        ("generator", 7, "a torch.Generator"),
    ),
    "broken tokens": (
        lambda: ONE.log_prob(GOOD.double()),
        ("tokens", (torch.float64, (1, 3)), "a tensor of torch.int64, at least one state"),
    ),
    "a token alone": (
        lambda: ONE.log_prob(torch.tensor(1)),
        ("tokens", (torch.int64, ()), "a tensor of torch.int64, at least one state"),
    ),
    "no tokens": (
        lambda: ONE.conditional_log_prob(GOOD[:, :0]),
        ("tokens", (torch.int64, (1, 0)), "a tensor of torch.int64, at least one state"),
    ),
    "tokens in a list": (
        lambda: TWO.predictive([0, 1]),  # pyright: ignore[reportArgumentType]
        ("tokens", [0, 1], "a tensor of torch.int64, at least one state"),
    ),
    "tokens in an array": (
        lambda: TWO.posterior(np.array(0)),  # pyright: ignore[reportArgumentType]
        ("tokens", np.array(0), "a tensor of torch.int64, at least one state"),
    ),
    "tokens below 0": (
        lambda: ONE.log_prob(GOOD - 1),
        ("tokens", (-1, 1), "states from 0 to 2"),
    ),
    "tokens beyond the states": (
        lambda: ONE.log_prob(GOOD + 1),
        ("tokens", (1, 3), "states from 0 to 2"),
    ),
    "no chains": (
        lambda: Mixture(weights=(), chains=(), lengths=()),
        ("chains", (), "a tuple of at least one MarkovChain"),
    ),
    "chains of something else": (
        lambda: replace(TWO, chains=(3, 4)),
        ("chains", (3, 4), "a tuple of at least one MarkovChain"),
    ),
    "one weight of two": (
        lambda: replace(TWO, weights=(1.0,)),
        ("weights", (1.0,), "a tuple, one for each of 2 chains"),
    ),
    "one length of two": (
        lambda: replace(TWO, lengths=(3,)),
        ("lengths", (3,), "a tuple, one for each of 2 chains"),
    ),
    "weights that are too much": (
        lambda: replace(TWO, weights=(0.5, 0.6)),
        ("weights", (0.5, 0.6), "must be positive with sum 1"),
    ),
    "a weight of 0": (
        lambda: replace(TWO, weights=(0.0, 1.0)),
        ("weights", (0.0, 1.0), "must be positive with sum 1"),
    ),
    "a length of 1": (
        lambda: replace(TWO, lengths=(3, 1)),
        ("lengths", (3, 1), "whole numbers of at least 2: a context and a next state"),
    ),
    "chains on other states": (
        lambda: replace(TWO, chains=(ONE, random_chain(2, 0))),
        ("chains", [3, 2], "must have the same number of states"),
    ),
    "a length alone": (
        lambda: TWO.log_prob(GOOD, 3),  # pyright: ignore[reportArgumentType]
        ("length", 3, "a tensor of torch.int64 and of shape (1,)"),
    ),
    "broken lengths": (
        lambda: TWO.log_prob(GOOD, torch.tensor([3.0])),
        ("length", (torch.float32, (1,)), "a tensor of torch.int64 and of shape (1,)"),
    ),
    "more lengths than sequences": (
        lambda: TWO.log_prob(GOOD, torch.tensor([3, 2])),
        ("length", (torch.int64, (2,)), "a tensor of torch.int64 and of shape (1,)"),
    ),
    "lengths of a batch of batches": (
        lambda: TWO.log_prob(GOOD.expand(4, 2, 3), torch.tensor([3, 2])),
        ("length", (torch.int64, (2,)), "a tensor of torch.int64 and of shape (4, 2)"),
    ),
    "more tokens than there are": (
        lambda: TWO.log_prob(GOOD, torch.tensor([4])),
        ("length", [4], "1 to the 3 tokens given"),
    ),
    "a length of 0 tokens": (
        lambda: TWO.log_prob(GOOD, torch.tensor([0])),
        ("length", [0], "1 to the 3 tokens given"),
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_what_is_refused_is_told_with_what_is_allowed(case: str):
    call, told = TOLD[case]
    with pytest.raises(InvalidInput) as caught:
        call()
    assert (caught.value.field, caught.value.value, caught.value.allowed) == told


def slow_draw(law: Tensor, uniform: float) -> int:
    """The state at which the distribution function first exceeds a uniform number."""
    total = 0.0
    for state, share in enumerate(law.tolist()):
        total += share
        if uniform < total:
            return state
    return int(law.nonzero()[-1])


def slow_walk(chain: MarkovChain, uniforms: list[float]) -> list[int]:
    states = [slow_draw(chain.initial, uniforms[0])]
    for uniform in uniforms[1:]:
        states.append(slow_draw(chain.transition[states[-1]], uniform))
    return states


def test_a_sample_inverts_the_distribution_function_at_the_generators_numbers():
    mixture, count = two_lengths(6), 30
    chain = mixture.chains[0]
    uniforms = torch.rand((count, 5), generator=seeded(1), dtype=torch.float64).tolist()
    assert chain.sample(count, 5, seeded(1)).tolist() == [slow_walk(chain, row) for row in uniforms]
    # One number chooses the component, each of the others a state.
    mixed = mixture.sample(count, seeded(1))
    for row, tokens, length, component in zip(uniforms, *mixed, strict=True):
        assert component == slow_draw(torch.tensor(mixture.weights), row[0])
        assert length == mixture.lengths[component]
        walk = slow_walk(mixture.chains[component], row[1 : 1 + length])
        assert tokens.tolist() == walk + [0] * (4 - len(walk))


def test_a_mixture_of_one_is_its_chain():
    alone, tokens = Mixture(weights=(1.0,), chains=(ONE,), lengths=(3,)), GOOD
    close = torch.testing.assert_close
    close(alone.log_prob(tokens, torch.tensor([3])), ONE.log_prob(tokens))
    uniforms = torch.rand((9, 4), generator=seeded(0), dtype=torch.float64)
    assert torch.equal(alone.sample(9, seeded(0)).tokens, ONE._walk(uniforms[:, 1:]))
    assert ONE.log_prob(torch.tensor([1])).item() == pytest.approx(-math.log(3))  # a single state
    assert ONE.conditional_log_prob(torch.tensor([1])).item() == 0


def test_beliefs_have_the_axes_of_the_tokens():
    mixture, tokens = two_lengths(5), all_sequences(3, 4)[:24]
    for method, last in ((mixture.posterior, 3), (mixture.predictive, 3)):
        whole = method(tokens)
        assert whole.shape == (24, 4, last)
        for shape in ((2, 12), (2, 3, 4)):
            found = method(tokens.view(*shape, 4))
            torch.testing.assert_close(found, whole.view(*shape, 4, last), equal_nan=True)
        torch.testing.assert_close(method(tokens[5]), whole[5], equal_nan=True)


def test_everything_lies_where_the_chain_lies_whatever_device_is_the_default():
    mixture, tokens = two_lengths(5), all_sequences(3, 4)
    length = torch.full((len(tokens),), 4)
    with torch.device("meta"):
        found = [
            *mixture.sample(5, seeded(0)),
            mixture.log_prob(tokens, length),
            mixture.posterior(tokens),
            mixture.predictive(tokens),
            mixture.chains[0].sample(5, 3, seeded(0)),
            mixture.chains[0].stationary(),
            mixture.chains[0].expected_row_entropy(3),
        ]
    assert {one.device.type for one in found} == {"cpu"}


def test_sums_of_a_narrow_model_are_taken_in_double_precision():
    thirds = rows.bfloat16()
    assert thirds[0].sum() == 1  # rounded; their values add up to 1.002
    with pytest.raises(InvalidInput, match="model"):
        ONE.expected_row_kl(thirds, 3)


def test_what_lies_at_the_bounds_is_taken():
    assert ONE.marginals(1).shape == (1, 3)
    assert ONE.sample(1, 1, seeded(0)).shape == (1, 1)
    assert ONE.expected_row_entropy(2).item() == pytest.approx(math.log(3))
    assert replace(TWO, lengths=(2, 2)).sample(3, seeded(0)).tokens.shape == (3, 2)
    assert MarkovChain(initial=fair[:2] * 1.5, transition=rows[:2, :2] * 1.5).states == 2
    assert replace(TWO, weights=[0.5, 0.5], chains=[ONE, ONE], lengths=[3, 2]).chains == [ONE, ONE]
    assert TWO.log_prob(GOOD, torch.tensor([3])).exp().item() == pytest.approx(0.5 / 27)
    assert TWO.log_prob(GOOD, torch.tensor([1])).item() == -math.inf


@pytest.mark.parametrize("sign", [-1, 1])
def test_laws_may_be_off_by_rounding_and_no_more(sign: int):
    def off(by: float) -> Tensor:
        return fair + torch.tensor([sign * by, 0.0, 0.0], dtype=torch.float64)

    assert MarkovChain(initial=off(0.9e-8), transition=off(0.9e-8).expand(3, 3)).states == 3
    for field, value in (("initial", off(1.1e-8)), ("transition", off(1.1e-8).expand(3, 3))):
        with pytest.raises(InvalidInput, match=field):
            replace(ONE, **{field: value})
    assert abs(ONE.expected_row_kl(off(0.9e-5).expand(3, 3), 3).item()) < 1e-5
    with pytest.raises(InvalidInput, match="model"):
        ONE.expected_row_kl(off(1.1e-5).expand(3, 3), 3)
    assert replace(TWO, weights=(0.5, 0.5 + sign * 0.9e-8)).weights[0] == 0.5
    with pytest.raises(InvalidInput, match="weights"):
        replace(TWO, weights=(0.5, 0.5 + sign * 1.1e-8))
