"""The law for pairs: its weights are its derivatives, and with nothing preferred it is the law
of one response.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llm.data.refusals import REFUSALS, read_refusals, with_refusals
from llm.data.tofu import Example
from llm.scoring.encoding import Encoded
from llm.training.loop import Optimization
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.errors import InvalidInput
from markov.objectives import CORNERS, Objective, SequenceLogProbs
from markov.preferences import PairLogProbs, Preference, dpo, idk, paired, simpo, validate_pair

VOCAB = 60
# Models of random weights do no better than guessing.
pytestmark = pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning")


def pairs(seed: int, count: int = 6, scale: float = 1.0) -> PairLogProbs:
    rng = np.random.default_rng(seed)

    def one() -> SequenceLogProbs:
        length = rng.integers(1, 30, count).astype(float)
        logp, ref = (-scale * rng.uniform(0, 3, count) * length for _ in range(2))
        return SequenceLogProbs(
            *(torch.tensor(values, dtype=torch.float64) for values in (logp, length, ref))
        )

    return PairLogProbs(one(), one())


unit = st.sampled_from([0.0, 0.3, 1.0])
betas = st.sampled_from([0.0, 1e-3, 0.1, 2.5])
some = st.builds(
    Preference,
    betas,
    st.sampled_from([-1.0, 0.0, 0.7]),
    unit,
    unit,
    unit,
    st.sampled_from([0.5, 1.0]),
)
seeds = st.integers(0, 10**6)


def written_out(law: Preference, pair: PairLogProbs) -> Tensor:
    """The loss as published: (2/beta) log(1 + exp z), and its limit."""
    score = sum(
        sign * factor * (one.logp - law.reference * one.ref) / one.length**law.normalize
        for sign, factor, one in ((1, law.forget, pair.forgotten), (-1, law.prefer, pair.preferred))
    )
    if law.beta == 0:
        return 2 / (1 + math.exp(-law.gamma)) * torch.as_tensor(score)
    return (
        2
        / law.beta
        * torch.logaddexp(torch.zeros(()).double(), law.beta * torch.as_tensor(score) + law.gamma)
    )


@given(law=some, seed=seeds)
def test_the_loss_is_as_written_and_the_weights_are_its_derivatives(
    law: Preference, seed: int
) -> None:
    pair = pairs(seed)
    torch.testing.assert_close(law.loss(pair), written_out(law, pair), rtol=1e-10, atol=1e-10)
    leaves = [one.logp.clone().requires_grad_() for one in pair]
    moved = PairLogProbs(*(one._replace(logp=leaf) for one, leaf in zip(pair, leaves, strict=True)))
    law.loss(moved).sum().backward()
    for leaf, weight in zip(leaves, law.weight(pair), strict=True):
        torch.testing.assert_close(leaf.grad, weight, rtol=1e-9, atol=1e-12)
    assert (law.weight(pair).forgotten >= 0).all() and (law.weight(pair).preferred <= 0).all()


@given(law=some, seed=seeds)
def test_the_weights_are_finite_differences(law: Preference, seed: int) -> None:
    pair, step = pairs(seed), 1e-5
    for place, weight in enumerate(law.weight(pair)):
        ends = []
        for sign in (1, -1):
            sides = list(pair)
            sides[place] = sides[place]._replace(logp=sides[place].logp + sign * step)
            ends.append(law.centered_loss(PairLogProbs(*sides)))
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), weight, rtol=1e-4, atol=1e-6)


@given(
    corner=st.sampled_from(sorted(CORNERS)),
    beta=betas,
    gamma=st.sampled_from([0.0, 0.5]),
    seed=seeds,
)
def test_with_nothing_preferred_it_is_the_law_of_one_response(
    corner: str, beta: float, gamma: float, seed: int
) -> None:
    objective, pair = Objective(beta, gamma, *CORNERS[corner]), pairs(seed)
    law = paired(objective)
    torch.testing.assert_close(
        law.loss(pair), objective.loss(pair.forgotten), rtol=1e-12, atol=1e-12
    )
    weights = law.weight(pair)
    torch.testing.assert_close(
        weights.forgotten, objective.weight(pair.forgotten), rtol=1e-12, atol=1e-15
    )
    assert (weights.preferred == 0).all()


def test_dpo_starts_from_log_two_and_pushes_both_by_one() -> None:
    pair = pairs(0)
    still = PairLogProbs(*(one._replace(ref=one.logp) for one in pair))
    law = dpo(0.3)
    torch.testing.assert_close(law.loss(still), torch.full((6,), 2 / 0.3 * math.log(2)).double())
    weights = law.weight(still)
    assert weights.forgotten.tolist() == pytest.approx([1.0] * 6)
    assert weights.preferred.tolist() == pytest.approx([-1.0] * 6)
    # As published: -log sigmoid(beta * (preferred - forgotten)), here times 2/beta.
    gap = (pair.preferred.logp - pair.preferred.ref) - (pair.forgotten.logp - pair.forgotten.ref)
    torch.testing.assert_close(
        law.loss(pair), -(2 / 0.3) * torch.nn.functional.logsigmoid(0.3 * gap)
    )


def test_idk_is_the_cross_entropy_of_the_refusal_per_token_and_simpo_needs_no_reference() -> None:
    pair = pairs(1)
    torch.testing.assert_close(idk().loss(pair), -pair.preferred.logp / pair.preferred.length)
    assert (idk().weight(pair).forgotten == 0).all()
    other = PairLogProbs(*(one._replace(ref=one.ref - 5) for one in pair))
    assert torch.equal(simpo(2.0, 0.5).loss(pair), simpo(2.0, 0.5).loss(other))
    assert not torch.allclose(dpo(2.0).loss(pair), dpo(2.0).loss(PairLogProbs(pair[0], other[1])))


@given(seed=seeds, beta=st.sampled_from([0.0, 0.1, 3.0]))
def test_extreme_pairs_have_finite_losses_and_weights(seed: int, beta: float) -> None:
    pair = pairs(seed, scale=1e4)
    for law in (Preference(beta, 0.0, 1.0, 0.0), Preference(beta, 0.0, 0.0, 1.0)):
        assert law.loss(pair).isfinite().all() and all(
            one.isfinite().all() for one in law.weight(pair)
        )


@pytest.mark.parametrize(
    ("law", "field"),
    [
        (Preference(-1.0), "beta"),
        (Preference(1.0, forget=-1.0), "forget"),
        (Preference(1.0, prefer=math.inf), "prefer"),
        (Preference(1.0, forget=0.0, prefer=0.0), "prefer"),
        (Preference(1.0, normalize=2.0), "normalize"),
    ],
)
def test_what_cannot_be_an_objective_is_refused(law: Preference, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        validate_pair(law)
    assert caught.value.field == field


def example(index: int) -> Example:
    return Example(
        index=index, prompt="Who?", response="She.", paraphrase="Her.", perturbed=("He.",)
    )


def test_a_refusal_follows_from_seed_and_index_alone(tmp_path: Path) -> None:
    examples = [example(row) for row in range(300)]
    found = with_refusals(examples)
    assert (
        with_refusals(examples[::-1])[::-1] == found and with_refusals(examples[5:6]) == found[5:6]
    )
    assert [one.prompt for one in found] == ["Who?"] * 300 and all(
        one.paraphrase is None for one in found
    )
    assert len({one.response for one in found}) > 80 and {one.response for one in found} <= set(
        REFUSALS
    )
    assert [one.response for one in with_refusals(examples, 1)] != [one.response for one in found]
    assert len(set(REFUSALS)) == 100 and all(3 <= len(text.split()) <= 15 for text in REFUSALS)
    (tmp_path / "own.txt").write_text("No.\n\n  Not me. \n")
    assert read_refusals(tmp_path / "own.txt") == ("No.", "Not me.")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "zeros.txt").write_bytes(b"No.\n" + bytes(4))
    for name in ("blank.txt", "nowhere.txt", "zeros.txt"):
        with pytest.raises(InvalidInput, match="refusals"):
            read_refusals(tmp_path / name)


def llama() -> Any:
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=VOCAB, initializer_range=0.3, **sizes)
        return transformers.LlamaForCausalLM(config)


def drawn(seed: int, count: int = 5) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [
        Encoded(tuple(rng.integers(1, VOCAB, rng.integers(5, 12)).tolist()), 3)
        for _ in range(count)
    ]


FORGET, REFUSED, RETAIN = drawn(0), drawn(1), drawn(2, 7)
EVERY = Optimization(epochs=2, batch=2, learning_rate=3e-3)


def run(objective: Any, **more: Any) -> tuple[pd.DataFrame, pd.DataFrame, Any]:
    model, budget = llama(), more.pop("budget", 2048)
    optimization = Optimization(**{**vars(EVERY), "budget": budget})
    settings = Unlearning(
        objective=objective, optimization=optimization, retain_term="cross_entropy"
    )
    found = unlearn(model, FORGET, RETAIN, settings, progress=False, **more)
    return found.examples, found.epochs, model


def test_a_run_that_prefers_nothing_is_that_of_the_objective_to_the_bit() -> None:
    one = Objective(0.1, 0.0, 1.0, 0.0)
    plain, preferring = run(one), run(paired(one))
    pd.testing.assert_frame_equal(plain[0], preferring[0])
    beside = run(one, preferred=REFUSED)[0]
    np.testing.assert_array_equal(beside["logp"], plain[0]["logp"])


def per_token(table: pd.DataFrame, name: str) -> list[float]:
    return (
        (table[name] / table[name.replace("logp", "length")])
        .groupby(table["epoch"])
        .mean()
        .tolist()
    )


def test_idk_raises_refusals_and_dpo_also_lowers_what_is_forgotten() -> None:
    taught = run(idk(), preferred=REFUSED)[0]
    assert per_token(taught, "preferred_logp")[-1] > per_token(taught, "preferred_logp")[0] + 0.1
    both = run(dpo(0.5), preferred=REFUSED)[0]
    assert per_token(both, "preferred_logp")[-1] > per_token(both, "preferred_logp")[0] + 0.05
    assert per_token(both, "logp")[-1] < per_token(both, "logp")[0] - 0.05
    last = both[both["epoch"] == 2]
    first = both[both["epoch"] == 0]
    np.testing.assert_array_equal(last["preferred_ref"], first["preferred_logp"])


@pytest.mark.parametrize("budget", [1, 30])
def test_pairs_are_scored_alike_however_they_are_cut_into_passes(budget: int) -> None:
    whole, cut = (
        run(dpo(0.5), preferred=REFUSED)[0],
        run(dpo(0.5), preferred=REFUSED, budget=budget)[0],
    )
    np.testing.assert_allclose(whole["logp"], cut["logp"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole["preferred_logp"], cut["preferred_logp"], rtol=1e-4, atol=1e-4)


def test_a_preference_without_preferred_responses_is_refused() -> None:
    with pytest.raises(InvalidInput, match="preferred"):
        run(dpo(0.5))
    with pytest.raises(InvalidInput, match="preferred"):
        run(dpo(0.5), preferred=REFUSED[:2])


def test_what_is_measured_along_a_run_is_in_its_table_and_changes_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def call(epoch: int, model: Any) -> dict[str, float]:
        seen.append((epoch, model.training, torch.is_grad_enabled()))
        torch.rand(3)
        return {"weight_sum": float(model.lm_head.weight.detach().sum())}

    objective, before = Objective(0.1, 0.0, 1.0, 0.0), torch.random.get_rng_state()
    plain, measured = run(objective), run(objective, measure=Measure("sum", call), state=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert seen == [(epoch, False, False) for epoch in range(3)]
    pd.testing.assert_frame_equal(plain[0], measured[0])
    pd.testing.assert_frame_equal(plain[1], measured[1].drop(columns="weight_sum"))
    assert measured[1]["weight_sum"].iloc[-1] == pytest.approx(
        float(measured[2].lm_head.weight.detach().sum())
    )
    again = run(objective, measure=Measure("sum", call), state=tmp_path)
    assert len(seen) == 3  # a run that is finished is not measured again
    pd.testing.assert_frame_equal(again[1], measured[1])
    with pytest.raises(InvalidInput, match="measure"):
        run(objective, measure=Measure("odd", lambda epoch, model: {"forget_loss": 1.0}))
