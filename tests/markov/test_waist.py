"""What settings and responses refuse: every field of every constructor, by name, with a table of
bad values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

from figures.statistics import full_means
from figures.views.answers import weights_of
from figures.views.law import sequences
from llm.diagnostics.allocation import allocation, bias, length_correlation
from llm.diagnostics.weights import weights_table
from markov.banks import sampled
from markov.cases import LENGTH
from markov.chains import MarkovChain, Mixture
from markov.conventions import from_released_tofu
from markov.diagnostics import shares
from markov.errors import InvalidInput, is_number, is_whole, require_number, require_whole
from markov.experiments import Experiment, Pretraining
from markov.explanation import explain
from markov.files import storage
from markov.logistic import Descent, LogisticWorld
from markov.models import Tabular, Transformer
from markov.objectives import (
    Objective,
    SequenceLogProbs,
    check_logprobs,
    gradient_ascent,
    npo,
    simnpo,
    stack,
    validate,
)
from markov.optimizers import AdamW
from markov.preferences import PairLogProbs, Preference, dpo, paired, validate_pair
from markov.sweeps import LENGTHS
from markov.theory import divergence, theta, time_to_forget

NAN, INF = math.nan, math.inf
NO_NUMBERS = (None, True, NAN, INF, -INF, "1", [1.0], np.array([0.3, 0.3]))
NO_COUNTS = (*NO_NUMBERS, 2.5, 3.0, -1, np.float64(3.0), np.bool_(True))
NO_TEXTS = (None, True, 3, ["length"])
NO_FLAGS = (None, 1, 0.0, "yes")
NO_NAMES = (None, True, 3, "another", ["sgd"], NAN)
NO_PARTS = (None, True, 3, "npo", {})


def counts(*names: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names, NO_COUNTS)


def numbers(*names: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names, NO_NUMBERS)


# Every field of every dataclass of settings, with what it must not be.
SETTINGS: dict[Any, dict[str, tuple[Any, ...]]] = {
    Tabular(): counts("states"),
    Transformer(): {
        **counts("states", "context", "width", "depth", "heads", "mlp_width"),
        **numbers("token_std", "position_std"),
        **dict.fromkeys(("norm", "activation"), NO_NAMES),
        **dict.fromkeys(("output_projection", "attention_bias"), NO_FLAGS),
    },
    AdamW(): {**numbers("eps", "beta1", "beta2"), "correct_eps": NO_FLAGS},
    LENGTH: {
        "name": NO_TEXTS,
        **numbers("leakage", "test_fraction"),
        **counts("states", "set_size"),
        **counts(
            *(
                f"{part}_{what}"
                for part in ("retain", "forget1", "forget2")
                for what in ("length", "count")
            )
        ),
        "pretrain_components": (
            None,
            "retain",
            ["retain"],
            ("retain", "other"),
            (["retain"],),
            ("forget1",),
            (),
        ),
    },
    LENGTHS: {
        "name": NO_TEXTS,
        "scored": (None, 3, [2, 5], (), (2, 2.5), (2, True), (2, NAN), ("2",), (0,)),
        "shares": (
            None,
            1.0,
            (1.0,),
            (1.0,) * 5 + (NAN,),
            (1.0,) * 5 + (True,),
            (1.0,) * 5 + ("1",),
            (None,) * 6,
        ),
        **counts(
            "tokens", "retain_scored", "retain_tokens", "forget_count", "test_count", "set_size"
        ),
        **numbers("leakage"),
        "alone": (True, 3, "forget7", NAN, ["forget1"]),
    },
    Pretraining(): {
        **counts("epochs", "batch", "seed"),
        **numbers("learning_rate"),
        "optimizer": NO_NAMES,
    },
    Experiment(): {
        **dict.fromkeys(("case", "objective", "model", "pretraining"), NO_PARTS),
        **counts("seed", "steps", "batch", "gradient_examples"),
        "test_examples": NO_COUNTS[1:],  # None is all
        **numbers("learning_rate"),
        **dict.fromkeys(("optimizer", "retain_term", "precision", "weighting"), NO_NAMES),
        "retain_weight": NO_NUMBERS,
        "clip": (*NO_NUMBERS[1:], 0.0, -1.0),  # None is any norm
        "device": (*NO_NAMES, "gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "cpu\n"),
        "recorded": (
            [0, 1],
            3,
            (0, 2.5),
            (0, True),
            (0, NAN),
            ("0",),
            (None,),
            (-1,),
            (51,),
            np.array([0, 1]),
        ),
    },
    LogisticWorld(): {
        **counts(
            "seed", "dimension", "width", "forget_count", "retain_count", "test_count", "steps"
        ),
        **numbers("alpha", "shift", "learning_rate"),
    },
    Descent(objective=npo(1.0), learning_rate=1.0): {
        "objective": NO_PARTS,
        **numbers("learning_rate", "forget_weight", "retain_weight"),
        "recorded": (None, [0], (), (0, 2.5), (0, True), (0, NAN), (3, 1), (-1,)),
    },
}
REFUSED = [
    pytest.param(good, field, bad, id=f"{type(good).__name__}-{field}-{bad!r}")
    for good, table in SETTINGS.items()
    for field, values in table.items()
    for bad in values
]


@pytest.mark.parametrize(("good", "field", "bad"), REFUSED)
def test_settings_refuse_what_they_cannot_be_by_the_name_of_the_field(
    good: Any, field: str, bad: Any
) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(good, **{field: bad})
    assert caught.value.field == field
    assert "\n" not in caught.value.allowed


@pytest.mark.parametrize("good", SETTINGS, ids=lambda good: type(good).__name__)
def test_no_field_of_a_setting_is_left_out(good: Any) -> None:
    assert {field.name for field in fields(good)} == SETTINGS[good].keys()


@pytest.mark.parametrize(
    ("good", "field"),
    [
        (good, field)
        for good, table in SETTINGS.items()
        for field, bad in table.items()
        if bad is NO_COUNTS
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_integer_of_numpy_is_the_integer_that_it_equals(good: Any, field: str) -> None:
    if isinstance(good, LogisticWorld):
        assert replace(good, **{field: np.int64(getattr(good, field))}) == good
        return
    same = replace(good, **{field: np.int64(getattr(good, field))})
    assert same == good and type(getattr(same, field)) is int
    assert storage.fingerprint(same) == storage.fingerprint(good)


@given(value=st.integers(-3, 9) | st.floats() | st.booleans() | st.text(max_size=2) | st.none())
def test_whole_numbers_are_integers_and_nothing_else(value: Any) -> None:
    assert is_whole(value, 2, 5) == (type(value) is int and 2 <= value <= 5)
    assert is_number(value) == (type(value) in (int, float) and math.isfinite(value))
    if is_whole(value, 2):
        require_whole(value, "field", 2)
        assert is_whole(np.int32(value), 2)
    else:
        with pytest.raises(
            InvalidInput, match=r"^field = .* is not allowed: a whole number of at least 2$"
        ):
            require_whole(value, "field", 2)


def test_a_number_too_large_for_floating_point_is_none() -> None:
    assert not is_number(10**400)
    with pytest.raises(InvalidInput, match="rate"):
        require_number(10**400, "rate", lambda number: True, "a number")


# --- chains ---


CHAIN = MarkovChain(
    initial=torch.full((2,), 0.5).double(), transition=torch.full((2, 2), 0.5).double()
)
MIXTURE = Mixture(weights=(0.5, 0.5), chains=(CHAIN, CHAIN), lengths=(2, 3))
CHAINS: list[tuple[Any, str, Any]] = [
    *(
        (CHAIN, "initial", bad)
        for bad in (None, True, 1.0, "law", [0.5, 0.5], np.array([0.5, 0.5]))
    ),
    *(
        (CHAIN, "initial", torch.tensor(row).double())
        for row in ([NAN, 1.0], [INF, 0.0], [1.5, -0.5], [1.0], 1.0)
    ),
    (CHAIN, "initial", torch.tensor([0.5, 0.5])),
    *(
        (CHAIN, "transition", bad)
        for bad in (None, True, "law", torch.ones(2).double(), torch.ones(2, 3).double())
    ),
    (CHAIN, "transition", torch.full((2, 2), NAN).double()),
    *(
        (MIXTURE, "weights", bad)
        for bad in (None, 1.0, "ab", (1.0,), (NAN, 0.5), (INF, 0.5), (True, 0.5), ("1", "0"))
    ),
    *((MIXTURE, "weights", bad) for bad in ((None, 1.0), (0.5, 0.6), (1.0, 0.0))),
    *(
        (MIXTURE, "lengths", bad)
        for bad in (None, 2, "23", (2,), (2, 2.5), (2, 3.0), (True, 2), (NAN, 2), (1, 2))
    ),
    *((MIXTURE, "chains", bad) for bad in (None, CHAIN, (), (CHAIN, None), "ab")),
]


@pytest.mark.parametrize(("good", "field", "bad"), CHAINS)
def test_chains_refuse_what_they_cannot_be_by_the_name_of_the_field(
    good: Any, field: str, bad: Any
) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(good, **{field: bad})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "length",
    [
        torch.tensor(2),
        torch.tensor([2]),
        torch.tensor([[2], [2]]),
        torch.tensor([2.0, 2.0]),
        2,
        None,
        [2, 2],
    ],
    ids=repr,
)
def test_a_mixture_wants_one_length_for_each_sequence(length: Any) -> None:
    tokens = torch.tensor([[0, 1, 0], [1, 0, 1]])
    assert MIXTURE.log_prob(tokens, torch.tensor([2, 3])).shape == (2,)
    with pytest.raises(InvalidInput) as caught:
        MIXTURE.log_prob(tokens, length)
    assert caught.value.field == "length"


@pytest.mark.parametrize("bad", [None, 2.5, True, "2", NAN, 0])
def test_numbers_of_sequences_and_tokens_are_whole(bad: Any) -> None:
    own: Callable[[], torch.Generator] = torch.Generator
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("count", lambda: CHAIN.sample(bad, 3, own())),
        ("length", lambda: CHAIN.sample(3, bad, own())),
        ("count", lambda: MIXTURE.sample(bad, own())),
        ("length", lambda: CHAIN.marginals(bad)),
        ("length", lambda: CHAIN.expected_row_entropy(bad)),
        ("count", lambda: sampled(MIXTURE, bad, 0)),
    ]
    calls += (
        []
        if bad == 0
        else [("seed", lambda: LENGTH.sample(bad)), ("seed", lambda: sampled(MIXTURE, 1, bad))]
    )
    for field, call in calls:
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field


# --- the law ---


def seq(logp: Any, length: Any, ref: Any = 0.0) -> SequenceLogProbs:
    return SequenceLogProbs(*(torch.as_tensor(x, dtype=torch.float64) for x in (logp, length, ref)))


LAWS = {
    name: getattr(Objective, name) for name in ("score", "logit", "loss", "centered_loss", "weight")
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("field", SequenceLogProbs._fields)
def test_responses_of_unequal_shapes_are_never_broadcast(law: Any, field: str) -> None:
    four = SequenceLogProbs(-torch.ones(4), torch.ones(4), -torch.ones(4))
    for shape in ((4, 1), (1,), (1, 4), ()):
        with pytest.raises(InvalidInput) as caught:
            law(npo(0.1), four._replace(**{field: torch.ones(shape)}))
        assert caught.value.field == ("length" if field == "logp" else field)
    assert law(npo(0.1), four).shape == (4,)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("field", Objective._fields)
@pytest.mark.parametrize("bad", [NAN, INF, -INF, True, None, "0.1", np.float64("nan")], ids=repr)
def test_no_law_takes_numbers_outside_the_family(law: Any, field: str, bad: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        law(Objective(1.0)._replace(**{field: bad}), seq([-1.0], [2.0], [-1.0]))
    assert caught.value.field == field
    with pytest.raises(InvalidInput, match=field):
        validate(Objective(1.0)._replace(**{field: bad}))


def test_no_law_takes_a_negative_beta_or_a_corner_outside_the_square() -> None:
    for objective in (
        Objective(-1),
        Objective(-1e-9),
        Objective(1, 0, 1.5),
        Objective(1, 0, 0, -0.5),
    ):
        for law in LAWS.values():
            with pytest.raises(InvalidInput):
                law(objective, seq([-1.0], [2.0], [-1.0]))


@pytest.mark.parametrize("objective", [None, True, 0.1, "npo", (0.1, 0, 1, 0), dpo(0.1)], ids=repr)
def test_what_is_no_objective_is_none(objective: Any) -> None:
    with pytest.raises(InvalidInput, match="objective"):
        validate(objective)
    if not isinstance(objective, Preference):
        for call in (validate_pair, paired):
            with pytest.raises(InvalidInput, match="objective"):
                call(objective)


def test_symbols_and_mapped_tensors_pass_every_check_of_the_law() -> None:
    symbols: Any = sympy.symbols("beta gamma reference normalize logp length ref", real=True)
    law, one = Objective(*symbols[:4]), SequenceLogProbs(*symbols[4:])
    assert sympy.sympify(law.logit(one)).free_symbols == set(symbols)
    members = [npo(0.3), simnpo(2.0), gradient_ascent()]
    many = seq([-1.0, -9.0], [1.0, 3.0], [-2.0, -4.0])
    mapped = vmap(Objective.weight, in_dims=(0, None))(stack(members, dtype=torch.float64), many)
    torch.testing.assert_close(mapped, torch.stack([one.weight(many) for one in members]))


def test_two_responses_of_a_pair_are_never_broadcast() -> None:
    four = SequenceLogProbs(-torch.ones(4), torch.ones(4), -torch.ones(4))
    column = SequenceLogProbs(*(x[:, None] for x in four))
    for call in (
        dpo(0.1).score,
        dpo(0.1).logit,
        dpo(0.1).loss,
        dpo(0.1).centered_loss,
        dpo(0.1).weight,
    ):
        with pytest.raises(InvalidInput, match="forgotten and preferred"):
            call(PairLogProbs(four, column))
    for field in ("forget", "prefer"):
        for bad in (-1.0, NAN, INF, True, None, "1"):
            with pytest.raises(InvalidInput) as caught:
                dpo(0.1)._replace(**{field: bad}).weight(PairLogProbs(four, four))
            assert caught.value.field == field


# --- responses of a user's own ---


def test_numbers_lists_arrays_and_tensors_make_the_same_responses() -> None:
    want = seq([-3.0, -5.0], [2.0, 4.0], [-1.0, -1.0])
    for logp in (
        [-3.0, -5.0],
        (-3, -5),
        np.array([-3.0, -5.0]),
        np.array([-3, -5]),
        torch.tensor([-3, -5]),
    ):
        for length in ([2, 4], np.array([2, 4]), torch.tensor([2.0, 4.0])):
            got = SequenceLogProbs.of(logp, length, -1.0)
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other)
    single = SequenceLogProbs.of(torch.tensor([-3.0, -5.0]), 2)
    assert [x.tolist() for x in single] == [[-3.0, -5.0], [2.0, 2.0], [0.0, 0.0]]
    assert {x.dtype for x in single} == {torch.float32}
    assert SequenceLogProbs.of(-3.0, 2).logp.shape == ()


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        *(("logp", ([-1.0, bad], 2.0)) for bad in (NAN, INF, -INF, 0.5)),
        *(("ref", (-1.0, 2.0, bad)) for bad in (NAN, INF, -INF, 0.5, "0", None, True)),
        *(("length", (-1.0, bad)) for bad in (NAN, INF, 0, -3, 2.5, "2", None, True, 2 + 1j)),
        *(
            ("logp", (bad, 2.0))
            for bad in (None, "x", True, [True], [None], [[-1.0], [-1.0, -2.0]], 1j)
        ),
        ("length", (torch.full((4,), -1.0), torch.ones(4, 1))),
        ("ref", (torch.full((4,), -1.0), torch.ones(4), torch.zeros(4, 1))),
        ("length", (torch.full((4, 1), -1.0), torch.ones(4))),
    ],
)
def test_numbers_that_are_no_responses_are_refused_by_name(
    field: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        SequenceLogProbs.of(*arguments)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_bad_response_is_located_and_counted() -> None:
    with pytest.raises(
        InvalidInput, match=r"logp = nan .*\(2 of 4 are not, the first at index \(1, 0\)\)"
    ):
        SequenceLogProbs.of([[-1.0, -1.0], [NAN, NAN]], 1.0)
    with pytest.raises(
        InvalidInput, match=r"length = -3.0 .*1 of 2 are not, the first at index \(1,\)"
    ):
        SequenceLogProbs.of([-1.0, -1.0], [2, -3])


def test_rounding_above_zero_is_no_positive_log_probability() -> None:
    assert SequenceLogProbs.of([1e-5, -1.0], [3, 3]).logp[0] > 0
    with pytest.raises(InvalidInput, match="at most 0"):
        SequenceLogProbs.of([1e-2], [3])


@pytest.mark.parametrize("field", SequenceLogProbs._fields)
def test_what_is_no_floating_tensor_is_no_response(field: str) -> None:
    good = seq([-1.0], [2.0], [-1.0])
    for bad in (torch.tensor([1]), [-1.0], np.array([-1.0]), None):
        with pytest.raises(InvalidInput) as caught:
            check_logprobs(good._replace(**{field: bad}))
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("logp", NAN),
        ("logp", 3.0),
        ("length", -3.0),
        ("length", 0.0),
        ("length", 2.5),
        ("ref", INF),
        ("ref", 3.0),
    ],
)
def test_entry_points_look_at_the_numbers_that_they_are_given(field: str, bad: float) -> None:
    good = seq([-1.0, -2.0, -3.0], [2.0, 3.0, 4.0], [-1.5, -1.0, -2.0])
    spoiled = good._replace(
        **{field: torch.tensor([-1.0 if field != "length" else 2.0, bad, -1.0]).double()}
    )
    table = pd.DataFrame({name: values.numpy() for name, values in spoiled._asdict().items()})
    calls: list[Callable[[], Any]] = [
        lambda: weights_table(spoiled, {"npo": npo(0.1)}),
        lambda: explain(npo(0.1), spoiled, 1),
        lambda: weights_of(table, npo(0.1)),
    ]
    for call in calls:
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.field == field


def test_an_explanation_does_not_mix_responses_of_unequal_shapes() -> None:
    with pytest.raises(InvalidInput, match="length"):
        explain(npo(0.1), SequenceLogProbs(-torch.ones(4), torch.ones(2, 2), -torch.ones(4)))
    with pytest.raises(InvalidInput, match="beta"):
        explain(Objective(-1.0), seq([-1.0], [2.0], [-1.0]))


def test_sliders_take_responses_only() -> None:
    assert sequences([4, 19.5], -1.0, 0.5).logp.shape == (2,)
    for name, arguments in (
        ("lengths", (0.5, -1.0, 0.5)),
        ("start", (4, 1.0, 0.5)),
        ("fall", (4, -1.0, NAN)),
    ):
        with pytest.raises(InvalidInput, match=name):
            sequences(*arguments)


def test_the_scalar_law_takes_objectives_and_responses_only() -> None:
    calls: list[Callable[[Objective, Any], Any]] = [
        lambda law, length: theta(law, length, 1.0),
        lambda law, length: time_to_forget(law, length, 1.0),
        divergence,
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="beta"):
            call(Objective(-1.0), 4)
        for bad in (0, -3, NAN, INF):
            with pytest.raises(InvalidInput, match="length"):
                call(npo(0.1), bad)
    for bad in (NAN, INF, 1.0):
        with pytest.raises(InvalidInput, match="start"):
            theta(npo(0.1), 4, 1.0, bad)


def test_numbers_of_other_codes_are_numbers() -> None:
    good: dict[str, Any] = {"beta": 2.5, "gamma": 0.0, "npo_coeff": 0.1, "grad_diff_coeff": 1.0}
    for field in good:
        for bad in (None, True, NAN, INF, "1"):
            with pytest.raises(InvalidInput, match=field):
                from_released_tofu(**{**good, field: bad})


# --- means ---


def test_a_mean_of_groups_is_nan_where_one_of_them_is() -> None:
    frame = pd.DataFrame(
        {"step": [0, 0, 1, 1], "kl": [1.0, 3.0, NAN, 3.0], "weight": [1.0, 1.0, 2.0, 4.0]}
    )
    assert frame.groupby("step")["kl"].mean().tolist() == [2.0, 3.0]  # what pandas does
    found = full_means(frame.groupby("step")[["kl", "weight"]])
    np.testing.assert_array_equal(found.to_numpy(), [[2.0, 1.0], [NAN, 3.0]])
    np.testing.assert_array_equal(full_means(frame.groupby("step")["kl"]).to_numpy(), [2.0, NAN])


def test_a_component_that_diverged_leaves_no_share_to_the_other() -> None:
    forgotten = np.array([False, True, True])
    found = shares(np.array([[1.0, 1.0, 3.0], [1.0, NAN, 3.0], [NAN, 0.0, 0.0]]), forgotten)
    np.testing.assert_array_equal(found, [[NAN, 0.25, 0.75], [NAN, NAN, NAN], [NAN, NAN, NAN]])


def test_a_nan_is_no_constant_weight_and_no_need() -> None:
    good = weights_table(SequenceLogProbs.of([-1.0, -2.0, -4.0], [1, 2, 3]), {"npo": npo(0.5)})
    good = good.assign(needed=[1.0, 2.0, 3.0], needed_per_token=[1.0, 1.0, 1.0])
    assert len(bias(good)) == 4 and len(length_correlation(good)) == 1
    for column, calls in {
        "needed": (bias, allocation),
        "weight_npo": (bias, allocation, length_correlation),
        "length": (bias, length_correlation),
    }.items():
        for bad in (NAN, INF):
            spoiled = good.assign(**{column: [1.0, bad, 3.0]})
            for call in calls:
                with pytest.raises(InvalidInput) as caught:
                    call(spoiled)
                assert caught.value.field == column
