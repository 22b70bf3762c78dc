"""A run's bytes do not depend on its company: how many runs lie beside it, which, and in what
order.

Everything here is compared to the last bit. Shapes are chosen so that nothing comes out even:
widths that fill no vector, batches of every raggedness, ensembles of every size.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from markov.batching import PROCESSOR, Corpus
from markov.cases import LENGTH, MEMORISATION
from markov.experiments import Experiment, Pretraining, grid
from markov.logistic import Descent, LogisticWorld
from markov.logistic import run as run_logistic
from markov.models import Tabular, Transformer
from markov.objectives import Objective, SequenceLogProbs, gradient_ascent, npo, simnpo
from markov.optimizers import OPTIMIZERS, clipped
from markov.recording import Probe, Trajectory, example_gradient_norms, loss_and_weight
from markov.running.run import run, trajectory
from markov.sweeps import ComponentSweep
from markov.training import Member, RetainTerm, pretrain, unlearn
from markov.weighting import WEIGHTINGS
from tests.helpers import some_laws, some_tokens

STATES = 5
ODD = Transformer(states=STATES, context=9, width=6, depth=2, heads=3, mlp_width=7)
MODELS = {
    "odd": ODD,
    "post": replace(
        ODD, norm="post", heads=1, output_projection=False, attention_bias=False, activation="relu"
    ),
    "even": replace(ODD, width=32, heads=4, mlp_width=32),
    "tabular": Tabular(states=STATES),
}
OBJECTIVES = [
    npo(0.7),
    simnpo(3.0, 0.4),
    gradient_ascent(),
    gradient_ascent(1.0),
    Objective(0.7, 0.3, 0.4, 0.6),
]
SUBSETS = [[0], [7], [3, 1], [6, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0]]
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)


def mixed(counts: dict[int, int], seed: int) -> Corpus:
    parts = enumerate(counts.items())
    tokens = [
        some_tokens(count, length, states=STATES, seed=10 * seed + at)
        for at, (length, count) in parts
    ]
    return Corpus.join(tokens)


def probes(seed: int, dtype: torch.dtype) -> tuple[Probe, ...]:
    def one(place: int, count: int, length: int) -> Probe:
        own = 100 * seed + place
        laws = [some_laws(count, length - 1, STATES, seed=own + k).log().to(dtype) for k in (0, 50)]
        truth = some_laws(STATES, STATES, seed=own)
        return Probe(
            some_tokens(count, length, states=STATES, seed=own), truth, laws[0], laws[1], place > 0
        )

    return one(0, 4, 9), one(1, 3, 7), one(2, 5, 3)


def runs_of(model: Any, dtype: torch.dtype, count: int = 9) -> list[Member]:
    """Runs that differ in all that may differ; two of each seed, so that some are cut alike and
    some not.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for index in range(count):
        start = model.init(index)
        noise = {
            name: torch.randn(value.shape, generator=generator) for name, value in start.items()
        }
        long, short = 4 + index % 3, 9 - index % 3
        found.append(
            Member(
                start={
                    name: (value + 0.3 * noise[name]).to(dtype) for name, value in start.items()
                },
                objective=OBJECTIVES[index % len(OBJECTIVES)],
                learning_rate=0.03 + 0.01 * index,
                retain_weight=0.2 * index,
                seed=index // 2,
                forget=mixed({9: long, 4: short, 2: 7}, seed=index),
                retain=mixed({9: 5, 4: 6}, seed=20 + index),
                probes=probes(index, dtype),
            )
        )
    return found


def check_same_bits(some: Trajectory, all_of_them: Trajectory, subset: Sequence[int]) -> None:
    for name in ("step", "component", "length"):
        assert torch.equal(getattr(some, name), getattr(all_of_them, name))
    for name in Trajectory._fields[3:]:
        got, want = getattr(some, name), getattr(all_of_them, name)[list(subset)]
        assert torch.equal(got.nan_to_num(-7.0), want.nan_to_num(-7.0)), (name, subset)


@every_model
@every_dtype
@pytest.mark.parametrize(
    ("rule", "term", "weighting"),
    [
        ("adamw", "none", "own"),
        ("adamw_transformers", "kl", "magnitude"),
        ("sgd", "cross_entropy", "own"),
        ("adamw_transformers_matched", "none", "allocation"),
    ],
)
def test_a_run_in_any_company_and_place_is_the_run_alone(
    model: Any, dtype: torch.dtype, rule: str, term: RetainTerm, weighting: str
):
    options: dict[str, Any] = {
        "steps": 4,
        "batch": 5,
        "recorded": (0, 1, 4),
        "gradient_examples": 3,
    }
    options |= {"optimizer": clipped(OPTIMIZERS[rule], 0.2 if term == "kl" else None)}
    options |= {"retain_term": term, "weighting": WEIGHTINGS[weighting]}
    runs = runs_of(model, dtype)
    together = unlearn(model, runs, **options)
    assert not torch.equal(together.logp[:, 0], together.logp[:, -1])
    for subset in SUBSETS:
        check_same_bits(unlearn(model, [runs[at] for at in subset], **options), together, subset)


@pytest.mark.parametrize(
    "architecture", [Transformer(), Transformer.released()], ids=["paper", "released"]
)
def test_the_papers_models_know_no_company_at_any_size_of_the_ensemble(architecture: Transformer):
    case = replace(LENGTH, retain_count=40, forget1_count=40, forget2_count=40)
    base = Experiment(case=case, model=architecture, steps=2, test_examples=4, gradient_examples=4)
    base = replace(base, pretraining=Pretraining(epochs=1, batch=16))
    members = grid(base, objective=[npo(0.2), simnpo(4.0), gradient_ascent()], seed=[0, 1, 2])[
        : PROCESSOR.members
    ]
    together = trajectory(members)
    for count in range(1, PROCESSOR.members):
        check_same_bits(
            trajectory(members[-count:]),
            together,
            range(PROCESSOR.members - count, PROCESSOR.members),
        )


@every_model
@every_dtype
def test_a_model_is_pretrained_to_the_same_bits_alone_and_beside_others(
    model: Any, dtype: torch.dtype
):
    corpora = [mixed({9: 20 + seed, 4: 30 - seed, 2: 25}, seed) for seed in range(5)]

    def trained(subset: Sequence[int]) -> dict[str, torch.Tensor]:
        options: dict[str, Any] = {"epochs": 2, "batch": 40, "learning_rate": 0.01, "dtype": dtype}
        own = [corpora[at] for at in subset]
        return pretrain(model, own, list(subset), optimizer=OPTIMIZERS["adamw"], **options)

    together = trained(range(5))
    for subset in ([0], [4], [3, 1], [4, 3, 2, 1, 0]):
        for name, value in trained(subset).items():
            assert torch.equal(value, together[name][subset]), (name, subset)


@every_dtype
@settings(max_examples=30)
@given(batch=st.integers(1, 70), count=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_law_gives_every_run_the_bits_it_gives_it_alone(
    dtype: torch.dtype, batch: int, count: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    logp, ref = (-30 * torch.rand(count, batch, generator=generator, dtype=dtype) for _ in range(2))
    length = torch.randint(1, 40, (count, batch), generator=generator).to(dtype)
    fields = torch.tensor(
        [tuple(OBJECTIVES[at % len(OBJECTIVES)]) for at in range(count)], dtype=dtype
    )
    seq, objective = SequenceLogProbs(logp, length, ref), Objective(*fields.T[..., None])
    loss, weight = loss_and_weight(objective, seq)
    torch.testing.assert_close(loss, objective.loss(seq))
    torch.testing.assert_close(weight, objective.weight(seq))
    for at in range(count):
        own = Objective(*fields[at : at + 1].T[..., None])
        alone = loss_and_weight(own, SequenceLogProbs(*(field[at : at + 1] for field in seq)))
        assert torch.equal(alone[0], loss[at : at + 1]) and torch.equal(
            alone[1], weight[at : at + 1]
        )


@every_model
def test_the_gradient_of_one_sequence_knows_nothing_of_the_others(model: Any):
    parameters = {
        name: value[None] for name, value in runs_of(model, torch.float32, 1)[0].start.items()
    }
    tokens = some_tokens(11, 8, states=STATES, seed=5)
    norms = example_gradient_norms(model, parameters, tokens)
    for subset in ([0], [10], [4, 2], [9, 8, 7, 6, 5]):
        assert torch.equal(example_gradient_norms(model, parameters, tokens[subset]), norms[subset])


# --- tables ---

SMALL = {
    "retain_count": 60,
    "forget1_count": 30,
    "forget2_count": 30,
    "retain_length": 9,
    "forget1_length": 9,
}
SWEEP = ComponentSweep(
    name="small",
    scored=(2, 8, 4),
    shares=(1.0, 0.5, 0.0),
    tokens=80,
    retain_scored=5,
    retain_tokens=150,
    forget_count=10,
    test_count=6,
    set_size=1,
)
BASE = Experiment(
    case=replace(LENGTH, forget2_length=3, **SMALL),
    model=Transformer(width=12, depth=1, heads=2, mlp_width=10, context=8),
    pretraining=Pretraining(epochs=1, batch=32, learning_rate=3e-3),
    learning_rate=2e-3,
    steps=3,
    recorded=(0, 2, 3),
    test_examples=5,
    gradient_examples=2,
)
SEEDS = [replace(BASE.pretraining, seed=seed) for seed in (0, 1)]
CORNERS = [npo(0.2), simnpo(4.0), gradient_ascent()]
SWEPT = replace(BASE, case=SWEEP, model=replace(BASE.model, states=5), batch=7, optimizer="sgd")
TABLE = replace(BASE, model=Tabular(), retain_term="kl", retain_weight=0.5)
# A grid of several shapes: each becomes ensembles of its own.
GRID = [
    *grid(BASE, pretraining=SEEDS, objective=CORNERS, seed=[0, 1, 2]),
    *grid(
        replace(BASE, case=replace(MEMORISATION, forget2_length=9, **SMALL)),
        objective=CORNERS,
        seed=[0, 1],
    ),
    *grid(SWEPT, objective=CORNERS, learning_rate=[1e-2, 1e-3], seed=[0, 1]),
    *grid(TABLE, pretraining=SEEDS, objective=CORNERS),
]


@cache
def whole() -> pd.DataFrame:
    return run(GRID, progress=False)


def rows_of(table: pd.DataFrame, index: int) -> pd.DataFrame:
    return table[table["run"] == index].drop(columns="run").reset_index(drop=True)


def check_rows(subset: Sequence[int]) -> None:
    found = run([GRID[at] for at in subset], progress=False)
    for place, at in enumerate(subset):
        pd.testing.assert_frame_equal(rows_of(found, place), rows_of(whole(), at), check_exact=True)


@settings(max_examples=6)
@given(subset=st.lists(st.sampled_from(range(len(GRID))), min_size=1, max_size=20, unique=True))
def test_the_rows_of_any_part_of_a_grid_in_any_order_are_those_of_the_whole(subset: list[int]):
    check_rows(subset)


def test_one_more_seed_changes_no_row_of_the_others():
    few = [at for at, one in enumerate(GRID) if one.seed < 2]
    assert 0 < len(few) < len(GRID)
    check_rows(few)


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_the_size_of_an_ensemble_shows_in_no_row(size: int):
    for first in range(0, len(GRID), size):
        check_rows(range(len(GRID))[first : first + size])


def test_what_else_is_recorded_changes_no_row():
    often = run([replace(one, recorded=(0, 1, 2, 3)) for one in GRID], progress=False)
    kept = often[often["step"].isin(BASE.recorded or ())].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, whole(), check_exact=True)


# --- the logistic study ---

WORLD = LogisticWorld(
    dimension=4, width=10, forget_count=13, retain_count=21, test_count=17, steps=30
)
LOOKS = ((0, 1, 4), (0, 3))
DESCENTS = [
    Descent(objective=law, learning_rate=rate, retain_weight=kept, recorded=looked)
    for law in (npo(2.0), simnpo(3.0, 0.4), gradient_ascent())
    for rate, kept, looked in (
        (0.1, 0.0, LOOKS[0]),
        (0.2, 1.0, LOOKS[0]),
        (0.3, 0.0, LOOKS[0]),
        (0.1, 0.0, LOOKS[1]),
    )
]


@settings(max_examples=25)
@given(subset=st.lists(st.sampled_from(range(len(DESCENTS))), min_size=1, max_size=9, unique=True))
def test_a_run_of_the_logistic_study_is_the_same_in_every_company(subset: list[int]):
    full = run_logistic([WORLD], DESCENTS)
    found = run_logistic([WORLD, replace(WORLD, seed=1)], [DESCENTS[at] for at in subset])
    for place, at in enumerate(subset):
        pd.testing.assert_frame_equal(rows_of(found, place), rows_of(full, at), check_exact=True)


@pytest.mark.parametrize(("given", "found"), [(None, "AUTO"), ("COMPATIBLE", "COMPATIBLE")])
def test_a_program_that_imports_this_package_is_one_whose_products_keep_their_order(
    given: str | None, found: str
):
    """However it is started, unless its user has said what is to be done."""
    known = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    known |= {} if given is None else {"MKL_CBWR": given}
    for package in ("markov.objectives", "llm.ranks"):
        code = f"import os, {package}; print(os.environ['MKL_CBWR'])"
        asked = [sys.executable, "-c", code]
        done = subprocess.run(asked, env=known, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [found]
