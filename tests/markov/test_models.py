"""Laws of the models: what each knob does, that no token sees the future, and that a run does
not know its company.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from markov.errors import InvalidInput
from markov.models import Tabular, Transformer, stack_parameters
from tests.helpers import check_close, doubled, perturbed, slow_logits, some_tokens

BASE = Transformer(states=5, context=6, width=8, depth=2, heads=2, mlp_width=12)
# Another value of every field: whoever adds a field has to add one here.
OTHERS: dict[str, Any] = {
    "states": 7,
    "context": 9,
    "width": 12,
    "depth": 1,
    "heads": 4,
    "mlp_width": 8,
    "norm": "post",
    "activation": "relu",
    "output_projection": False,
    "attention_bias": False,
    "token_std": 1.0,
    "position_std": 1.0,
}
RELEASED = dataclasses.replace(
    BASE,
    heads=1,
    norm="post",
    activation="relu",
    output_projection=False,
    attention_bias=False,
    token_std=1.0,
)
KINDS = {"base": BASE, "released": RELEASED} | {
    name: dataclasses.replace(BASE, **{name: value}) for name, value in OTHERS.items()
}
every_kind = pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)
points = settings(max_examples=25)


def count(parameters: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in parameters.values())


def ensemble(model: Transformer, runs: int, seed: int = 0) -> dict[str, Tensor]:
    return stack_parameters([perturbed(model, seed + run) for run in range(runs)])


# --- the models of the paper ---


def test_the_released_model_has_as_many_parameters_as_the_papers_code():
    released = Transformer.released(states=10, context=19)
    assert count(released.init(0)) == 335_754
    assert released == Transformer.released()


def test_the_released_model_differs_from_the_described_one_in_six_fields_only():
    described, released = (
        vars(Transformer(states=8, context=5)),
        vars(Transformer.released(states=8, context=5)),
    )
    assert {name: value for name, value in released.items() if value != described[name]} == {
        "heads": 1,
        "norm": "post",
        "activation": "relu",
        "output_projection": False,
        "attention_bias": False,
        "token_std": 1.0,
    }


# --- every knob is connected ---


def test_every_field_has_another_value_to_be_tested_with():
    assert [field.name for field in dataclasses.fields(Transformer)] == list(OTHERS)
    assert all(getattr(BASE, name) != value for name, value in OTHERS.items())


@pytest.mark.parametrize("field", OTHERS)
def test_every_field_changes_the_parameter_count_or_the_output(field: str):
    tokens, other = some_tokens(1, 4, 6, states=5), KINDS[field]
    ours, theirs = BASE.init(0), other.init(0)
    if count(ours) == count(theirs):
        one, two = (
            model.logits(stack_parameters([model.init(0)]), tokens) for model in (BASE, other)
        )
        assert float((one - two).abs().max()) > 1e-4
    else:
        assert {name: value.shape for name, value in ours.items()} != {
            n: value.shape for n, value in theirs.items()
        }


@pytest.mark.parametrize("field", ["heads", "norm", "activation"])
def test_the_same_parameters_mean_another_function_under_another(field: str):
    # Pre-norm has all the parameters of post-norm, so these three can be told apart at the very
    # same numbers.
    parameters, tokens = ensemble(BASE, 1), some_tokens(1, 4, 6, states=5)
    difference = BASE.logits(parameters, tokens) - KINDS[field].logits(parameters, tokens)
    assert float(difference.abs().max()) > 1e-2


def test_parameters_are_as_many_as_the_shapes_say():
    for model in KINDS.values():
        width, mlp, states = model.width, model.mlp_width, model.states
        attention = 3 * width * (width + model.attention_bias) + model.output_projection * width * (
            width + 1
        )
        block = attention + mlp * (width + 1) + width * (mlp + 1) + 4 * width
        final = (2 * width if model.norm == "pre" else 0) + states * (width + 1)
        assert (
            count(model.init(0)) == (states + model.context) * width + model.depth * block + final
        )


@every_kind
def test_products_are_the_multiplications_of_all_matrices(model: Transformer):
    matrices = (value for name, value in model.init(0).items() if name.endswith("weight"))
    assert model.products == sum(value.numel() for value in matrices if value.ndim == 2)


# --- against the slow twin ---


@every_kind
def test_the_forward_pass_is_the_one_written_with_loops(model: Transformer):
    parameters, tokens = ensemble(model, 3), some_tokens(3, 2, 6, states=model.states, seed=1)
    got = model.logits(parameters, tokens)
    assert got.shape == (3, 2, 6, model.states)
    for run in range(3):
        for row in range(2):
            own = {name: value[run] for name, value in parameters.items()}
            check_close(got[run, row], slow_logits(model, own, tokens[run, row]))


@every_kind
def test_gradients_are_those_of_the_loops(model: Transformer):
    parameters = {name: value.requires_grad_() for name, value in ensemble(model, 2).items()}
    tokens = some_tokens(2, 1, 4, states=model.states, seed=1)
    fast = torch.autograd.grad(
        model.logits(parameters, tokens).sin().sum(), list(parameters.values())
    )
    slow = [
        slow_logits(model, {name: value[run] for name, value in parameters.items()}, tokens[run, 0])
        .sin()
        .sum()
        for run in range(2)
    ]
    for got, want in zip(
        fast,
        torch.autograd.grad(sum(slow, torch.zeros(())), list(parameters.values())),
        strict=True,
    ):
        check_close(got, want, atol=1e-10)


# --- causality ---


@points
@given(
    kind=st.sampled_from(sorted(KINDS)),
    place=st.integers(0, 5),
    other=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_no_logit_sees_a_later_token(kind: str, place: int, other: int, seed: int):
    model = KINDS[kind]
    parameters, tokens = (
        ensemble(model, 2, seed % 5),
        some_tokens(2, 3, 6, states=model.states, seed=seed),
    )
    changed = tokens.clone()
    changed[:, :, place] = (tokens[:, :, place] + other) % model.states
    before, after = (model.logits(parameters, each) for each in (tokens, changed))
    check_close(after[:, :, :place], before[:, :, :place])
    # And at its own place, and at the end, it is seen by every run and sequence.
    assert bool(((after - before)[:, :, [place, -1]].abs().amax(-1) > 1e-9).all())


@points
@given(kind=st.sampled_from(sorted(KINDS)), time=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_logits_of_a_prefix_are_the_prefix_of_the_logits(kind: str, time: int, seed: int):
    model = KINDS[kind]
    parameters, tokens = (
        ensemble(model, 2, seed % 5),
        some_tokens(2, 3, 6, states=model.states, seed=seed),
    )
    check_close(
        model.logits(parameters, tokens[..., :time]), model.logits(parameters, tokens)[:, :, :time]
    )


def test_order_of_the_past_matters():
    parameters, tokens = ensemble(BASE, 1), torch.tensor([[[1, 3, 0, 2], [3, 1, 0, 2]]])
    last = BASE.logits(parameters, tokens)[0, :, -1]
    assert float((last[0] - last[1]).abs().max()) > 1e-3


# --- company ---


@every_kind
def test_logits_of_an_ensemble_are_those_of_its_runs(model: Transformer):
    parameters, tokens = ensemble(model, 4), some_tokens(4, 3, 6, states=model.states)
    together = model.logits(parameters, tokens)
    for run in range(4):
        own = {name: value[run : run + 1] for name, value in parameters.items()}
        check_close(together[run], model.logits(own, tokens[run : run + 1])[0])


def test_a_sequence_does_not_know_its_batch():
    parameters, tokens = ensemble(BASE, 2), some_tokens(2, 5, 6, states=5)
    together = BASE.logits(parameters, tokens)
    for row in range(5):
        check_close(together[:, row : row + 1], BASE.logits(parameters, tokens[:, row : row + 1]))


def test_stacking_puts_each_run_in_its_place():
    runs = [BASE.init(seed) for seed in (4, 1, 7)]
    stacked = stack_parameters(runs)
    assert list(stacked) == list(runs[0])
    assert all(
        torch.equal(stacked[name][at], run[name]) for at, run in enumerate(runs) for name in run
    )


# --- the table ---


@points
@given(states=st.integers(2, 7), seed=st.integers(0, 10**6))
def test_a_tabular_model_answers_with_the_row_of_the_present_state(states: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(2, states, states, generator=generator, dtype=torch.float64)
    tokens = some_tokens(2, 3, 5, states=states, seed=seed)
    got = Tabular(states=states).logits({"table": table}, tokens)
    for run, row, at in torch.cartesian_prod(
        torch.arange(2), torch.arange(3), torch.arange(5)
    ).tolist():
        assert torch.equal(got[run, row, at], table[run, tokens[run, row, at]])


def test_the_rows_of_a_tabular_model_are_a_transition_matrix():
    model, table = Tabular(states=4), torch.randn(1, 4, 4, dtype=torch.float64)
    matrix = model.logits({"table": table}, torch.arange(4)[None, None])[0, 0].softmax(-1)
    check_close(matrix, table[0].softmax(-1))
    check_close(matrix.sum(-1), 1.0)
    assert bool((matrix > 0).all())


def test_a_fresh_tabular_model_is_the_uniform_chain_whatever_the_seed():
    fresh = Tabular(states=4).init(3)
    assert torch.equal(fresh["table"].softmax(-1), torch.full((4, 4), 0.25))
    assert torch.equal(fresh["table"], Tabular(states=4).init(8)["table"])


# --- seeds ---


@every_kind
def test_the_seed_decides_all_that_is_random_and_nothing_else_does(model: Transformer):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = model.init(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = model.init(5), model.init(6)
    drawn = [name for name in one if "norm" not in name]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert len(drawn) > 2 and all(bool((one[name] != other[name]).any()) for name in drawn)


def test_no_two_parameters_start_with_the_same_numbers():
    drawn = torch.cat(
        [value.flatten() for name, value in BASE.init(0).items() if "norm" not in name]
    )
    assert len(drawn.unique()) > 0.99 * len(drawn)


def test_layer_norms_start_as_the_identity():
    norms = {name: value for name, value in BASE.init(0).items() if "norm" in name}
    assert len(norms) == 2 * (2 * BASE.depth + 1)
    assert all(bool((value == name.endswith("weight")).all()) for name, value in norms.items())


@pytest.mark.parametrize(
    "model", [Transformer(depth=1, mlp_width=64), Transformer.released()], ids=["paper", "released"]
)
def test_fresh_parameters_have_the_scales_the_settings_name(model: Transformer):
    parameters = model.init(0)
    for name, std in (("token", model.token_std), ("position", model.position_std)):
        assert float(parameters[name].std()) == pytest.approx(std, rel=0.1)
        assert abs(float(parameters[name].mean())) < 0.1 * std
    inputs = {"down": model.mlp_width}
    linear = [
        name for name in parameters if name.endswith(("weight", "bias")) and "norm" not in name
    ]
    for name in linear:
        bound = inputs.get(name.split(".")[-2], model.width) ** -0.5
        # The head's bias has ten numbers only, so its largest may stay well below the bound.
        assert (
            (0.5 if parameters[name].numel() < 50 else 0.9) * bound
            < float(parameters[name].abs().max())
            <= bound
        )


# --- bad input ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("states", 1),
        ("context", 0),
        ("width", 0),
        ("depth", 0),
        ("depth", -1),
        ("heads", 0),
        ("heads", 3),
        ("mlp_width", 0),
        ("norm", "x"),
        ("activation", "tanh"),
        ("token_std", 0.0),
        ("position_std", -1.0),
        ("token_std", float("nan")),
    ],
)
def test_an_impossible_shape_is_refused_by_name(field: str, value: object):
    with pytest.raises(InvalidInput) as caught:
        dataclasses.replace(BASE, **{field: value})
    assert caught.value.field == field
    assert repr(value) in str(caught.value)


def test_a_table_needs_two_states():
    with pytest.raises(InvalidInput, match="states = 1"):
        Tabular(states=1)


def test_a_sequence_longer_than_the_context_is_refused():
    parameters = stack_parameters([doubled(BASE.init(0))])
    assert BASE.logits(parameters, some_tokens(1, 2, 6, states=5)).shape == (1, 2, 6, 5)
    with pytest.raises(InvalidInput, match="context = 6") as caught:
        BASE.logits(parameters, some_tokens(1, 2, 7, states=5))
    assert (caught.value.field, caught.value.value) == ("time", 7)
