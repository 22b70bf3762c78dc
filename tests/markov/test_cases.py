"""Laws of `markov.cases`: the paper's chains, its two cases, and the numbers that ideal models
score.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from markov.cases import (
    CASES,
    COMPONENTS,
    LENGTH,
    MEMORISATION,
    Case,
    bayes_floor,
    component_generator,
    paper_chain,
    paper_chains,
)
from markov.chains import MarkovChain, row_entropy, row_kl
from markov.errors import InvalidInput
from markov.studies import ideal_forget_distance

SMALL = dataclasses.replace(LENGTH, retain_count=100, forget1_count=60, forget2_count=40)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# --- the paper's chains ---


def test_the_papers_chains_leak_as_published():
    for index, chain in enumerate(paper_chains()):
        mine = torch.arange(3 * index, 3 * index + 3)
        assert chain.initial[mine].sum().item() == pytest.approx(0.8)
        assert chain.stationary()[mine].sum().item() == pytest.approx(0.6)
        entropy, outside = row_entropy(chain.transition), torch.ones(10, dtype=torch.bool)
        outside[mine] = False
        assert entropy[mine].tolist() == pytest.approx([1.7685] * 3, abs=5e-5)
        assert entropy[outside].tolist() == pytest.approx([math.log(10)] * 7)
        rate = 0.6 * entropy[mine[0]].item() + 0.4 * math.log(10)
        assert chain.entropy_rate().item() == pytest.approx(rate)
        torch.testing.assert_close(chain.transition[mine], chain.initial.expand(3, 10))


@settings(max_examples=25, deadline=None)
@given(leakage=st.floats(0.01, 0.99), states=st.integers(3, 14), data=st.data())
def test_each_component_has_its_own_set_and_all_are_alike(leakage, states, data):
    size = data.draw(st.integers(1, states // 3))
    chains = paper_chains(leakage, states, size)
    for index, chain in enumerate(chains):
        # Relabelling a component's states as the retain chain's gives the retain chain.
        first = size * index
        assert chain.initial[first : first + size].sum().item() == pytest.approx(1 - leakage)
        order = torch.arange(states).roll(-first)
        torch.testing.assert_close(chain.initial[order], chains.retain.initial)
        torch.testing.assert_close(chain.transition[order][:, order], chains.retain.transition)
        # They are made without a look at their rows, which this one takes.
        MarkovChain(initial=chain.initial, transition=chain.transition)


def test_a_chain_may_live_on_any_states_in_any_order():
    chain = paper_chain([5, 1], 6, 0.4)
    assert chain.initial.tolist() == pytest.approx([0.1, 0.3, 0.1, 0.1, 0.1, 0.3])
    torch.testing.assert_close(paper_chain([1, 5], 6, 0.4).transition, chain.transition)
    assert chain.transition[0].tolist() == pytest.approx([1 / 6] * 6)


# --- what ideal models score ---


def by_hand(leakage: float, states: int, size: int, length: int) -> float:
    """Ideal forget distance from two occupation numbers: f on the forget set and r on the retain
    set.
    """
    here, away = (1 - leakage) / size, leakage / (states - size)
    kl_forget = (
        math.log(states) + size * here * math.log(here) + (states - size) * away * math.log(away)
    )
    kl_retain = (
        -math.log(states) - (size * math.log(here) + (states - size) * math.log(away)) / states
    )
    f, r, total = 1 - leakage, size * away, 0.0
    for _ in range(length - 1):
        total += f * kl_forget + r * kl_retain
        f, r = (
            f * (1 - leakage) + (1 - f) * size / states,
            f * size * away + (1 - f) * size / states,
        )
    return total / (length - 1)


@every_case
def test_ideal_forget_distance_is_the_formula_by_hand_and_near_the_papers_star(case):
    distance = ideal_forget_distance(case)
    assert list(distance) == list(COMPONENTS) and distance["retain"] == 0
    for component in ("forget1", "forget2"):
        expected = by_hand(0.2, 10, 3, case.lengths[component])
        assert distance[component] == pytest.approx(expected, abs=1e-12)
        assert 0.42 < distance[component] < 0.45


@settings(max_examples=15, deadline=None)
@given(leakage=st.floats(0.05, 0.95), states=st.integers(3, 12), length=st.integers(2, 30))
def test_ideal_forget_distance_is_the_formula_at_every_leakage_size_and_length(
    leakage, states, length
):
    size = states // 3
    case = dataclasses.replace(
        LENGTH, leakage=leakage, states=states, set_size=size, forget2_length=length
    )
    expected = by_hand(leakage, states, size, length)
    assert ideal_forget_distance(case)["forget2"] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_case
def test_ideal_forget_distance_is_what_the_retain_chain_scores_on_samples(case):
    chains, data = case.chains(), case.sample(3)
    for component, distance in ideal_forget_distance(case).items():
        contexts = data.train[component][:, :-1]
        truth = getattr(chains, component).transition
        scores = row_kl(truth, chains.retain.transition)[contexts].mean(-1)
        assert abs(scores.mean().item() - distance) <= 4 * scores.std().item() / math.sqrt(
            len(scores)
        )


@every_case
def test_the_bayes_floor_is_low_where_pretraining_saw_the_component_and_high_where_not(case):
    floor, ideal = bayes_floor(case, case.sample(0)), ideal_forget_distance(case)
    assert 0.01 < floor["retain"] < 0.02
    for component in ("forget1", "forget2"):
        if component in case.pretrain_components:
            assert floor["retain"] < floor[component] < 0.2 * ideal[component]
        else:
            assert 0.9 * ideal[component] < floor[component]


@every_case
def test_the_bayes_floor_is_the_mean_over_tokens_of_a_loop_over_prefixes(case):
    small = dataclasses.replace(case, retain_count=10, forget1_count=10, forget2_count=10)
    data, chains = small.sample(2), small.chains()
    for component, floor in bayes_floor(small, data).items():
        scores = []
        for row in data.test[component]:
            for t in range(len(row) - 1):
                law, total = torch.zeros(10, dtype=torch.float64), 0.0
                for seen in small.pretrain_components:  # equal counts, hence equal weights
                    if t + 1 < small.lengths[seen]:
                        chain = getattr(chains, seen)
                        belief = chain.log_prob(row[: t + 1]).exp()
                        law, total = law + belief * chain.transition[row[t]], total + belief
                truth = getattr(chains, component).transition[row[t]]
                scores.append(float((truth * (truth * total / law).log()).sum()))
        assert len(scores) == 2 * (small.lengths[component] - 1)
        assert floor == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_no_other_law_beats_the_bayes_floor_on_the_data_pretraining_draws():
    case = dataclasses.replace(MEMORISATION, retain_count=4_000, forget1_count=4_000)
    data, chains, mixture = case.sample(1), case.chains(), case.mixture()
    tokens = torch.cat([data.test["retain"], data.test["forget1"]])
    targets = tokens[:, 1:, None]

    def cross_entropy(laws: torch.Tensor) -> float:
        return -laws.gather(-1, targets).log().mean().item()

    bayes = mixture.predictive(tokens)[:, :-1]
    blind = (chains.retain.transition + chains.forget1.transition)[tokens[:, :-1]] / 2
    assert cross_entropy(bayes) < cross_entropy(0.8 * bayes + 0.2 * blind) < cross_entropy(blind)


def test_a_mixture_of_retain_alone_has_no_floor_on_retain():
    alone = dataclasses.replace(SMALL, pretrain_components=("retain",))
    floor, ideal = bayes_floor(alone, alone.sample(0)), ideal_forget_distance(alone)
    assert abs(floor["retain"]) < 1e-14
    assert floor["forget1"] == pytest.approx(ideal["forget1"], rel=0.3)


def test_no_law_is_made_up_past_the_longest_pretraining_sequence():
    long = dataclasses.replace(SMALL, forget2_length=21, pretrain_components=COMPONENTS[:2])
    with pytest.raises(InvalidInput, match="forget2_length = 21"):
        bayes_floor(long, long.sample(0))


# --- the data ---


def test_the_cases_are_the_papers():
    assert CASES == {"length": LENGTH, "memorisation": MEMORISATION}
    assert (LENGTH.name, MEMORISATION.name) == ("length", "memorisation")
    assert LENGTH.lengths == {"retain": 20, "forget1": 20, "forget2": 5}
    assert MEMORISATION.lengths == dict.fromkeys(COMPONENTS, 20)
    assert (
        LENGTH.pretrain_components == COMPONENTS
        and MEMORISATION.pretrain_components == COMPONENTS[:2]
    )
    for case in CASES.values():
        assert case.counts == {"retain": 10_000, "forget1": 5_000, "forget2": 5_000}
        assert (case.leakage, case.states, case.set_size, case.test_fraction) == (0.2, 10, 3, 0.2)


@every_case
def test_data_have_the_sizes_of_the_case_and_training_comes_first(case):
    data = case.sample(0)
    for component in COMPONENTS:
        count, length = case.counts[component], case.lengths[component]
        assert data.train[component].shape == (0.8 * count, length)
        assert data.test[component].shape == (0.2 * count, length)
    other = dataclasses.replace(case, test_fraction=0.5).sample(0)
    for component in COMPONENTS:
        whole, again = (torch.cat([d.train[component], d.test[component]]) for d in (data, other))
        assert torch.equal(whole, again)


@every_case
def test_data_come_from_the_chain_of_their_component(case):
    data = case.sample(0)
    for component, chain in zip(COMPONENTS, case.chains(), strict=True):
        tokens = data.train[component]
        first = torch.bincount(tokens[:, 0], minlength=10) / len(tokens)
        last = torch.bincount(tokens[:, -1], minlength=10) / len(tokens)
        laws = chain.marginals(case.lengths[component])
        for seen, law in ((first, laws[0]), (last, laws[-1])):
            assert ((seen - law).abs() < 4 * (law * (1 - law) / len(tokens)).sqrt()).all()


def test_the_retain_data_of_both_cases_are_the_same_so_one_retrained_model_serves_both():
    one, two = LENGTH.sample(5), MEMORISATION.sample(5)
    assert torch.equal(one.train["retain"], two.train["retain"])
    assert torch.equal(one.test["retain"], two.test["retain"])
    assert torch.equal(one.train["forget1"], two.train["forget1"])


@pytest.mark.parametrize(
    "change", [{"forget1_count": 30, "forget2_count": 20}, {"forget1_length": 7}]
)
def test_a_component_does_not_know_its_company(change):
    base, changed = SMALL.sample(0), dataclasses.replace(SMALL, **change).sample(0)
    assert torch.equal(base.train["retain"], changed.train["retain"])
    assert base.train["forget1"].shape != changed.train["forget1"].shape


def test_a_seed_decides_the_data_and_components_share_no_stream():
    before = torch.get_rng_state(), repr(np.random.get_state())
    one, same, other = SMALL.sample(0), SMALL.sample(0), SMALL.sample(1)
    assert (
        torch.equal(torch.get_rng_state(), before[0]) and repr(np.random.get_state()) == before[1]
    )
    for component in COMPONENTS:
        assert torch.equal(one.train[component], same.train[component])
        assert not torch.equal(one.train[component], other.train[component])
    # 2**32 + 1 and its like are where a list of 32-bit words would mistake a seed for a component.
    pairs = [(seed, component) for seed in (0, 1, 2, 2**32, 2**32 + 1) for component in range(3)]
    assert len({component_generator(*pair).initial_seed() for pair in pairs}) == len(pairs)


def test_the_mixture_weighs_components_by_their_counts():
    assert LENGTH.mixture().weights == (0.5, 0.25, 0.25) and LENGTH.mixture().lengths == (20, 20, 5)
    assert MEMORISATION.mixture().weights == pytest.approx((2 / 3, 1 / 3))
    second, forget1 = MEMORISATION.mixture().chains[1], MEMORISATION.chains().forget1
    assert torch.equal(second.initial, forget1.initial)
    swapped = dataclasses.replace(SMALL, pretrain_components=("forget2", "retain")).mixture()
    assert swapped.lengths == (5, 20) and swapped.weights == pytest.approx((40 / 140, 100 / 140))


# --- arguments ---


def fingerprint(case: Case) -> str:
    data = case.sample(0)
    shapes = [(split[name].shape, int(split[name].sum())) for split in data for name in COMPONENTS]
    return repr((case.name, shapes, case.mixture().weights, ideal_forget_distance(case)))


CHANGES = {
    "name": "other",
    "leakage": 0.3,
    "states": 11,
    "set_size": 2,
    "retain_length": 19,
    "forget1_length": 19,
    "forget2_length": 6,
    "retain_count": 90,
    "forget1_count": 70,
    "forget2_count": 50,
    "test_fraction": 0.3,
    "pretrain_components": ("retain", "forget1"),
}


@pytest.mark.parametrize("change", CHANGES.items(), ids=CHANGES)
def test_every_setting_of_a_case_changes_something_and_cases_are_values(change):
    changed = dataclasses.replace(SMALL, **dict([change]))
    assert fingerprint(changed) != fingerprint(SMALL)
    assert changed != SMALL and {SMALL: 1}[dataclasses.replace(SMALL)] == 1
    assert len({changed, SMALL}) == 2


def test_every_field_of_a_case_is_in_the_test_above():
    assert list(CHANGES) == [field.name for field in dataclasses.fields(Case)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("leakage", 0.0),
        ("leakage", 1.0),
        ("leakage", math.nan),
        ("states", 10.0),
        ("set_size", 0),
        ("set_size", 4),
        ("set_size", 1.5),
        ("retain_length", 1),
        ("forget1_length", 1),
        ("forget2_length", 4.5),
        ("retain_count", 0),
        ("forget1_count", 1),
        ("forget2_count", 2),
        ("retain_count", 10.5),
        ("test_fraction", 0.0),
        ("test_fraction", 1.0),
        ("pretrain_components", ("forget1",)),
        ("pretrain_components", ("retain", "forget3")),
        ("pretrain_components", ("retain", "retain")),
        ("pretrain_components", ["retain"]),
    ],
)
def test_a_case_refuses_what_cannot_be_drawn(field, value):
    with pytest.raises(InvalidInput) as caught:
        dataclasses.replace(LENGTH, **{field: value})
    assert caught.value.field == field


def test_bad_input_names_the_field():
    for field, call in (
        ("seed", lambda: SMALL.sample(-1)),
        ("members", lambda: paper_chain([], 4, 0.2)),
        ("members", lambda: paper_chain([0, 0], 4, 0.2)),
        ("members", lambda: paper_chain([-1], 4, 0.2)),
        ("members", lambda: paper_chain([4], 4, 0.2)),
        ("members", lambda: paper_chain(range(4), 4, 0.2)),
        ("leakage", lambda: paper_chain([0], 4, 1.0)),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field


def test_states_need_not_be_three_sets():
    assert dataclasses.replace(SMALL, states=9).chains().forget2.states == 9
    assert dataclasses.replace(SMALL, states=11).chains().forget2.states == 11
