"""Laws of every study that can be run, and of sweeps: components that differ in one thing, on
equal terms otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from markov.cases import LENGTH, MEMORISATION, Case, component_generator, paper_chain
from markov.diagnostics import crossings
from markov.errors import InvalidInput
from markov.experiments import Experiment
from markov.models import Transformer
from markov.studies import Data, Study, ideal_forget_distance
from markov.sweeps import LENGTHS, SHARES, ComponentSweep
from tests.helpers import check_close

FEW = {"retain_count": 40, "forget1_count": 30, "forget2_count": 20, "retain_length": 9}
CASE = replace(LENGTH, **FEW)
SWEEP = ComponentSweep(
    name="small",
    scored=(2, 6, 3),
    shares=(1.0, 0.3, 0.0),
    tokens=60,
    retain_scored=4,
    retain_tokens=80,
    forget_count=7,
    test_count=5,
    leakage=0.1,
    set_size=2,
)
STUDIES: dict[str, Case | ComponentSweep] = {
    "length": CASE,
    "memorisation": replace(MEMORISATION, **FEW),
    "in another order": replace(CASE, pretrain_components=("forget2", "retain")),
    "retain only": replace(CASE, pretrain_components=("retain",)),
    "sweep": SWEEP,
    "alone": replace(SWEEP, alone="forget2"),
    "alone and never seen": replace(SWEEP, alone="forget3"),
    "all seen": replace(SWEEP, shares=(1.0,) * 3),
    "none seen": replace(SWEEP, shares=(0.0,) * 3),
    "next to none seen": replace(SWEEP, shares=(1e-3, 0.2, 0.04)),
    "one": ComponentSweep(
        name="one",
        scored=(3,),
        shares=(0.5,),
        tokens=30,
        retain_tokens=40,
        forget_count=2,
        test_count=1,
    ),
}
every_study = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)


def the_same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


def pretraining(study: Study, seed: int) -> list[Tensor]:
    return study.pretraining_data(study.sample(seed))


@st.composite
def sweeps(draw: st.DrawFn) -> ComponentSweep:
    """Sweeps of up to four components; in some of them one is forgotten alone."""
    count = draw(st.integers(1, 4))
    scored = tuple(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
    shares = tuple(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    tokens, retain = draw(st.integers(max(scored), 60)), draw(st.integers(1, 9))
    return ComponentSweep(
        name="some",
        scored=scored,
        shares=shares,
        tokens=tokens,
        retain_scored=retain,
        retain_tokens=draw(st.integers(retain, 60)),
        forget_count=draw(st.integers(1, tokens // max(scored))),
        test_count=draw(st.integers(1, 4)),
        leakage=draw(st.floats(0.01, 0.4)),
        set_size=draw(st.integers(1, 3)),
        alone=draw(st.sampled_from([None, *(f"forget{place}" for place in range(1, count + 1))])),
    )


# --- every study ---


@every_study
def test_a_study_names_its_components_once_and_has_a_chain_and_data_of_the_right_length_for_each(
    study: Study,
):
    names, data = list(study.lengths), study.sample(0)
    assert (
        names[0] == "retain" and list(study.counts) == names and len(study.chains()) == len(names)
    )
    for name, chain in zip(names, study.chains(), strict=True):
        assert chain.states == study.states
        for tokens in (data.train[name], data.test[name]):
            assert len(tokens) > 0 and tokens.shape[1] == study.lengths[name]
            assert int(tokens.min()) >= 0 and int(tokens.max()) < study.states


@every_study
def test_the_chain_of_a_component_is_the_one_that_its_data_are_likeliest_under(study: Study):
    data = study.sample(1)
    scores = [
        [float(chain.log_prob(data.train[name]).mean()) for chain in study.chains()]
        for name in list(study.lengths)
    ]
    assert [row.index(max(row)) for row in scores] == list(range(len(study.lengths)))


@every_study
def test_pretraining_sees_the_first_training_sequences_of_the_components_it_says_it_sees(
    study: Study,
):
    data = study.sample(2)
    shown = study.pretraining_data(data)
    assert len(set(study.seen)) == len(study.seen) == len(shown) and "retain" in study.seen
    for name, part in zip(study.seen, shown, strict=True):
        assert len(part) > 0 and torch.equal(part, data.train[name][: len(part)])
        if name == "retain":
            assert len(part) == len(data.train[name])


@every_study
def test_unlearning_pushes_on_each_forget_component_in_proportion_to_its_count(
    study: Study,
):
    data, names = study.sample(2), list(study.lengths)[1:]
    parts = study.forget_data(data)
    assert len(parts) == len(names) >= 1
    for name, part in zip(names, parts, strict=True):
        assert torch.equal(part, data.train[name][: len(part)])
        assert len(part) * study.counts[names[0]] == len(parts[0]) * study.counts[name]


@every_study
@pytest.mark.parametrize("seed", [0, 5])
def test_the_original_says_all_of_pretraining_and_the_retrained_all_of_retain_data(
    study: Study, seed: int
):
    original, retrained = study.original(), study.retrained()
    assert the_same(pretraining(original, seed), pretraining(study, seed))
    assert the_same(pretraining(retrained, seed), [study.sample(seed).train["retain"]])
    assert original.states == retrained.states == study.states
    assert (original.seen, retrained.seen) == (study.seen, ("retain",))


@every_study
def test_to_ask_again_changes_nothing(study: Study):
    original, retrained = study.original(), study.retrained()
    assert (
        original.original() == original
        and retrained.retrained() == retrained.original() == retrained
    )
    assert original.retrained() == retrained
    # Equal values find one another in a dictionary.
    assert {original: 1, retrained: 2}[study.original().retrained()] == 2


@every_study
def test_the_mixture_is_the_law_of_the_pretraining_data(study: Case | ComponentSweep):
    shown, mixture = pretraining(study, 3), study.mixture()
    total = sum(map(len, shown))
    assert mixture.weights == tuple(len(part) / total for part in shown)
    assert mixture.lengths == tuple(part.shape[1] for part in shown)
    for place, part in enumerate(shown):
        scores = [float(chain.log_prob(part).mean()) for chain in mixture.chains]
        assert scores.index(max(scores)) == place


def sizes(data: Data, study: Study) -> list[tuple[int, ...]]:
    """The shapes of all that an ensemble stacks: forget and retain sequences, and test sequences
    by component.
    """
    tested = [data.test[name] for name in study.lengths]
    return [tuple(part.shape) for part in [*study.forget_data(data), data.train["retain"], *tested]]


@settings(max_examples=15)
@given(one=sweeps(), data=st.data())
def test_sweeps_of_one_shape_stack(one: ComponentSweep, data: st.DataObject):
    # One sweep, and another that differs in a few fields: many such pairs share their shape.
    field = data.draw(st.sampled_from([field.name for field in dataclasses.fields(ComponentSweep)]))
    try:
        two = replace(one, **{field: getattr(data.draw(sweeps()), field)})
    except InvalidInput:
        assume(False)
        raise
    stack = sizes(one.sample(0), one) == sizes(two.sample(0), two) and one.states == two.states
    assert stack or one.shape != two.shape


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"name": "other"}, True),
        ({"shares": (0.0, 0.5, 1.0)}, True),
        ({"tokens": 66}, True),
        ({"leakage": 0.3}, True),
        ({"scored": (2, 5, 3)}, False),
        ({"retain_scored": 5}, False),
        ({"retain_tokens": 90}, False),
        ({"forget_count": 8}, False),
        ({"test_count": 6}, False),
        ({"set_size": 3}, False),
        ({"alone": "forget1"}, False),
    ],
    ids=str,
)
def test_sweeps_that_differ_in_values_only_have_one_shape(change: dict[str, Any], alike: bool):
    other = replace(SWEEP, **change)
    assert (other.shape == SWEEP.shape) == alike
    assert (sizes(other.sample(0), other) == sizes(SWEEP.sample(0), SWEEP)) == (
        alike or "set_size" in change
    )


# --- the chains of a sweep ---


@settings(max_examples=15)
@given(sweep=sweeps())
def test_components_live_on_disjoint_sets_of_one_size_and_one_state_is_nobodys(
    sweep: ComponentSweep,
):
    whole = replace(sweep, alone=None)
    chains = whole.chains()
    assert whole.states == sweep.states == sweep.set_size * (len(sweep.scored) + 1) + 1
    # A component's own states are those that it begins in more often than if all were alike.
    own = torch.stack([chain.initial > 1 / whole.states for chain in chains])
    assert own.sum(1).tolist() == [sweep.set_size] * (len(sweep.scored) + 1)
    assert own.sum(0).tolist() == [1] * (whole.states - 1) + [0]
    for chain, mine in zip(chains, own, strict=True):
        assert float(chain.initial[mine].sum()) == pytest.approx(1 - sweep.leakage)


@settings(max_examples=15)
@given(sweep=sweeps(), data=st.data())
def test_any_two_components_are_one_chain_under_other_names(
    sweep: ComponentSweep, data: st.DataObject
):
    whole = replace(sweep, alone=None)
    chains = whole.chains()
    one, two = (data.draw(st.integers(0, len(chains) - 1)) for _ in range(2))
    # Exchange the two sets of states, the first of one with the first of the other, and so on.
    order, size = torch.arange(whole.states), whole.set_size
    first, second = (torch.arange(size * place, size * (place + 1)) for place in (one, two))
    order[first], order[second] = second, first
    check_close(chains[two].initial[order], chains[one].initial)
    check_close(chains[two].transition[order][:, order], chains[one].transition)


@settings(max_examples=20)
@given(sweep=sweeps())
def test_ideal_forget_distance_depends_on_a_components_length_only(sweep: ComponentSweep):
    whole = ideal_forget_distance(replace(sweep, alone=None))
    assert whole["retain"] == 0
    by_length = dict(zip(sweep.scored, list(whole.values())[1:], strict=True))
    for name, distance in ideal_forget_distance(sweep).items():
        assert distance == whole[name]
        if name != "retain":
            assert (
                distance == pytest.approx(by_length[sweep.lengths[name] - 1], rel=1e-10)
                and distance > 0
            )


# --- the data of a sweep ---


@settings(max_examples=15)
@given(sweep=sweeps(), seed=st.integers(0, 2**40))
def test_each_component_is_one_draw_of_its_own_chain_cut_into_train_and_test(
    sweep: ComponentSweep, seed: int
):
    data = sweep.sample(seed)
    scored = {
        "retain": sweep.retain_scored,
        **{f"forget{at}": n for at, n in enumerate(sweep.scored, start=1)},
    }
    assert list(data.train) == list(data.test) == list(scored)
    for place, (name, length) in enumerate(scored.items()):
        states = range(sweep.set_size * place, sweep.set_size * (place + 1))
        tokens = sweep.retain_tokens if name == "retain" else sweep.tokens
        count = tokens // length + sweep.test_count
        own = paper_chain(states, sweep.states, sweep.leakage)
        drawn = own.sample(count, length + 1, component_generator(seed, place))
        assert torch.equal(torch.cat([data.train[name], data.test[name]]), drawn)
        assert len(data.test[name]) == sweep.test_count


def test_no_test_sequence_was_trained_on():
    data = LENGTHS.sample(0)
    # 20 to 80 tokens: no two are equal by chance
    for name in ("retain", "forget4", "forget5", "forget6"):
        trained = {tuple(row) for row in data.train[name].tolist()}
        assert trained.isdisjoint(tuple(row) for row in data.test[name].tolist())
        assert len(trained) == len(data.train[name])


@settings(max_examples=15)
@given(sweep=sweeps())
def test_at_one_share_pretraining_sees_as_many_tokens_of_each_component_up_to_a_sequence(
    sweep: ComponentSweep,
):
    retain, *shown = pretraining(replace(sweep, shares=(1.0,) * len(sweep.scored)), 0)
    assert retain.shape[1] - 1 == sweep.retain_scored
    assert 0 <= sweep.retain_tokens - len(retain) * sweep.retain_scored < sweep.retain_scored
    assert [part.shape[1] - 1 for part in shown] == list(sweep.scored)
    for part, scored in zip(shown, sweep.scored, strict=True):
        assert 0 <= sweep.tokens - len(part) * scored < scored


@settings(max_examples=30)
@given(sweep=sweeps())
def test_a_share_is_the_part_of_the_training_sequences_that_pretraining_sees(sweep: ComponentSweep):
    data = sweep.sample(0)
    shown = dict(zip(sweep.seen, sweep.pretraining_data(data), strict=True))
    for at, share in enumerate(sweep.shares, start=1):
        there, all_of_it = shown.get(f"forget{at}", torch.empty(0)), data.train[f"forget{at}"]
        assert abs(len(there) - share * len(all_of_it)) <= 0.5
    assert torch.equal(shown["retain"], data.train["retain"])


@settings(max_examples=15)
@given(sweep=sweeps())
def test_unlearning_sees_equally_many_sequences_of_each_component(sweep: ComponentSweep):
    data = sweep.sample(0)
    whole = replace(sweep, alone=None).forget_data(data)
    assert [part.shape for part in whole] == [
        (sweep.forget_count, scored + 1) for scored in sweep.scored
    ]
    assert set(sweep.counts.values()) == {sweep.forget_count}


@settings(max_examples=15)
@given(sweep=sweeps(), seed=st.integers(0, 5))
def test_alone_means_the_same_chains_and_data_of_one_component_only(
    sweep: ComponentSweep, seed: int
):
    whole = replace(sweep, alone=None)
    everything, forgotten = whole.sample(seed), whole.forget_data(whole.sample(seed))
    for place, name in enumerate(list(whole.lengths)[1:], start=1):
        one = replace(sweep, alone=name)
        assert list(one.lengths.items()) == [
            ("retain", whole.lengths["retain"]),
            (name, whole.lengths[name]),
        ]
        for chain, like in zip(
            one.chains(), (whole.chains()[0], whole.chains()[place]), strict=True
        ):
            assert torch.equal(chain.initial, like.initial) and torch.equal(
                chain.transition, like.transition
            )
        drawn = one.sample(seed)
        for got, want in zip(drawn, everything, strict=True):
            assert list(got) == list(want) and the_same(list(got.values()), list(want.values()))
        assert the_same(one.forget_data(drawn), [forgotten[place - 1]])
        assert (one.original(), one.retrained()) == (whole.original(), whole.retrained())
        assert one.states == whole.states and one.seen == whole.seen


def test_a_seed_decides_the_data_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, same, other = SWEEP.sample(0), SWEEP.sample(0), SWEEP.sample(1)
    assert torch.equal(torch.get_rng_state(), before)
    for name in one.train:
        assert torch.equal(one.train[name], same.train[name]) and torch.equal(
            one.test[name], same.test[name]
        )
        assert not torch.equal(one.train[name], other.train[name])
        assert not torch.equal(one.test[name], other.test[name])


# --- what depends on what ---

FORGET = {"forget1", "forget2", "forget3"}
# Of each field another value, the components whose data change with it, and whether the pretrained
# models do.
CHANGES: dict[str, tuple[Any, set[str], bool, bool]] = {
    "name": ("other", set(), False, False),
    "scored": ((2, 5, 3), {"forget2"}, True, False),
    "shares": ((0.9, 0.3, 0.1), set(), True, False),
    "tokens": (66, FORGET, True, False),
    "retain_scored": (5, {"retain"}, True, True),
    "retain_tokens": (90, {"retain"}, True, True),
    "forget_count": (8, set(), False, False),
    "test_count": (6, {"retain", *FORGET}, True, True),
    "leakage": (0.3, {"retain", *FORGET}, True, True),
    "set_size": (3, {"retain", *FORGET}, True, True),
    "alone": ("forget2", set(), False, False),
}


@pytest.mark.parametrize("field", CHANGES)
def test_data_and_models_depend_on_what_they_must_and_on_nothing_else(field: str):
    value, components, original, retrained = CHANGES[field]
    other = replace(SWEEP, **{field: value})
    assert other != SWEEP
    one, two = SWEEP.sample(0), other.sample(0)
    different = {
        name
        for name in one.train
        if not (
            torch.equal(one.train[name], two.train[name])
            and torch.equal(one.test[name], two.test[name])
        )
    }
    assert different == components
    assert (other.original() != SWEEP.original(), other.retrained() != SWEEP.retrained()) == (
        original,
        retrained,
    )


def test_every_field_of_a_sweep_is_in_the_test_above():
    assert list(CHANGES) == [field.name for field in dataclasses.fields(ComponentSweep)]


@settings(max_examples=15)
@given(one=sweeps(), data=st.data())
def test_sweeps_of_one_original_or_one_retrained_model_pretrain_it_on_the_same_data(
    one: ComponentSweep, data: st.DataObject
):
    field = data.draw(st.sampled_from(list(CHANGES)))
    try:
        two = replace(one, **{field: getattr(data.draw(sweeps()), field)})
    except InvalidInput:
        assume(False)
        raise
    assert one.original() != two.original() or the_same(pretraining(one, 0), pretraining(two, 0))
    retain = [sweep.sample(0).train["retain"] for sweep in (one, two)]
    assert one.retrained() != two.retrained() or torch.equal(*retain)


def test_sweeps_of_other_sizes_have_other_retrained_models():
    # With more components there are more states, hence another retain chain.
    fewer = replace(SWEEP, scored=(2, 6), shares=(1.0, 0.3))
    assert fewer.retrained() != SWEEP.retrained()
    assert not torch.equal(fewer.chains()[0].initial[:4], SWEEP.chains()[0].initial[:4])


@pytest.mark.parametrize(
    ("field", "value", "original"),
    [
        ("name", "other", False),
        ("forget2_length", 7, True),
        ("forget2_count", 35, True),
        ("forget1_length", 7, True),
        ("retain_count", 45, True),
        ("leakage", 0.3, True),
        ("pretrain_components", ("retain",), True),
    ],
)
def test_the_models_of_a_case_say_nothing_of_components_that_they_never_see(
    field: str, value: Any, original: bool
):
    other = replace(CASE, **{field: value})
    shared = field in ("retain_count", "leakage")
    assert (other.original() != CASE.original(), other.retrained() != CASE.retrained()) == (
        original,
        shared,
    )
    unseen, blind = (
        replace(case, pretrain_components=("retain", "forget1")) for case in (other, CASE)
    )
    same = unseen.original() == blind.original()
    assert same == (field in ("name", "forget2_length", "forget2_count", "pretrain_components"))
    assert same == the_same(pretraining(unseen, 0), pretraining(blind, 0))


# --- the two sweeps ---


def test_the_sweeps_over_lengths_and_shares_sweep_lengths_and_shares():
    assert LENGTHS.lengths == {
        "retain": 21,
        **{f"forget{at}": n + 1 for at, n in enumerate(LENGTHS.scored, start=1)},
    }
    assert (LENGTHS.scored, set(LENGTHS.shares)) == ((2, 5, 10, 20, 40, 80), {1.0})
    assert (set(SHARES.scored), SHARES.shares) == ({20}, (0.0, 0.1, 0.25, 0.5, 0.75, 1.0))
    assert LENGTHS.states == SHARES.states == 22
    assert [
        len(part) * scored
        for part, scored in zip(pretraining(LENGTHS, 0)[1:], LENGTHS.scored, strict=True)
    ] == [LENGTHS.tokens] * 6
    assert [len(part) for part in pretraining(SHARES, 0)] == [1800, 60, 150, 300, 450, 600]
    assert [sum(map(len, sweep.forget_data(sweep.sample(0)))) for sweep in (LENGTHS, SHARES)] == [
        900,
        900,
    ]


@pytest.mark.parametrize("seed", [0, 3])
def test_the_sweeps_over_lengths_and_shares_share_their_retrained_model_and_its_data(seed: int):
    assert LENGTHS.retrained() == SHARES.retrained() and LENGTHS.original() != SHARES.original()
    retain = [sweep.sample(seed).train["retain"] for sweep in (LENGTHS, SHARES)]
    assert torch.equal(*retain)
    assert the_same(pretraining(LENGTHS.retrained(), seed), retain[:1])
    tested = [sweep.sample(seed).test["retain"] for sweep in (LENGTHS, SHARES)]
    assert torch.equal(*tested) and tested[0].shape == (48, 21)


# --- arguments ---

COUNTS = ("tokens", "retain_scored", "retain_tokens", "forget_count", "test_count", "set_size")
no_counts = st.one_of(
    st.integers(max_value=0), st.booleans(), st.floats(), st.none(), st.text(max_size=2)
)
no_shares = st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=1 + 1e-9), st.just(math.nan))


def refused(field: str, value: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        replace(SWEEP, **{field: value})
    assert caught.value.field == field and caught.value.value is value
    assert field in str(caught.value) and caught.value.allowed
    return caught.value


@settings(max_examples=60)
@given(field=st.sampled_from(COUNTS), value=no_counts)
def test_a_sweep_refuses_what_is_no_number_of_things(field: str, value: Any):
    assert "whole number from 1 to" in refused(field, value).allowed


@settings(max_examples=30)
@given(value=no_counts, place=st.integers(0, 2))
def test_a_sweep_refuses_lengths_that_are_no_numbers_of_tokens(value: Any, place: int):
    scored: list[Any] = list(SWEEP.scored)
    scored[place] = value
    assert "whole numbers from 1 to" in refused("scored", tuple(scored)).allowed


@settings(max_examples=30)
@given(value=no_shares, place=st.integers(0, 2))
def test_a_sweep_refuses_shares_outside_zero_to_one(value: float, place: int):
    shares = list(SWEEP.shares)
    shares[place] = value
    assert "0 to 1" in refused("shares", tuple(shares)).allowed


@settings(max_examples=30)
@given(leakage=st.one_of(st.floats(max_value=0), st.floats(min_value=1), st.just(math.nan)))
def test_a_sweep_refuses_a_leakage_that_is_no_probability_strictly_inside(leakage: float):
    assert "between 0 and 1" in refused("leakage", leakage).allowed


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scored", ()),
        ("scored", [2, 6, 3]),  # a list has no hash, and models are looked up by their sweep
        ("shares", ()),
        ("shares", (1.0, 0.3)),
        ("shares", (1.0, 0.3, 0.0, 1.0)),
        ("shares", [1.0, 0.3, 0.0]),
        ("forget_count", 11),
        ("retain_tokens", 3),
        *(("alone", name) for name in ("retain", "forget0", "forget4", "", 1)),
    ],
)
def test_a_sweep_refuses_numbers_that_do_not_fit_together(field: str, value: Any):
    assert refused(field, value)


@settings(max_examples=15)
@given(sweep=sweeps())
def test_the_largest_forget_count_is_that_of_the_longest_component(sweep: ComponentSweep):
    most = min(len(sweep.sample(0).train[f"forget{at}"]) for at in range(1, len(sweep.scored) + 1))
    full = replace(sweep, alone=None, forget_count=most)
    assert {len(part) for part in full.forget_data(full.sample(0))} == {most}
    with pytest.raises(InvalidInput) as caught:
        replace(sweep, forget_count=most + 1)
    assert caught.value.field == "forget_count" and str(most) in caught.value.allowed
    least = replace(sweep, retain_tokens=sweep.retain_scored)
    assert len(least.sample(0).train["retain"]) == 1


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_a_seed_is_a_whole_number(seed: Any):
    with pytest.raises(InvalidInput) as caught:
        SWEEP.sample(seed)
    assert caught.value.field == "seed"


def test_a_sweep_is_a_value():
    again = ComponentSweep(
        **{field.name: getattr(SWEEP, field.name) for field in dataclasses.fields(ComponentSweep)}
    )
    assert again == SWEEP and hash(again) == hash(SWEEP) and {SWEEP: 1}[again] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        SWEEP.tokens = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_model_must_take_in_what_pretraining_sees_even_where_it_is_not_unlearned():
    few = {"tokens": 16, "forget_count": 2, "retain_scored": 2}
    sweep = ComponentSweep(name="", scored=(2, 8), shares=(1.0, 1.0), alone="forget1", **few)
    model = Transformer(states=sweep.states, context=4, width=8, depth=1, heads=2, mlp_width=8)
    with pytest.raises(InvalidInput, match=r"model\.context = 4"):
        Experiment(case=sweep, model=model)
    Experiment(case=sweep, model=dataclasses.replace(model, context=8))


def test_costs_of_two_components_are_not_asked_of_a_sweep_of_many():
    frame = pd.DataFrame(
        {"run": 0, "step": 0, "component": ["retain", "forget1", "forget2", "forget3"]}
    )
    with pytest.raises(InvalidInput, match="component"):
        crossings(frame)
