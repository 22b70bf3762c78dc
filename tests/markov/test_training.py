"""Laws of training: an ensemble is a loop, a step is the gradient of the written-out loss, and
trained models land.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from markov.batching import (
    ALL,
    CUTTINGS,
    PROCESSOR,
    Batches,
    Corpus,
    Cuts,
    cuts,
    derived_seed,
    draw,
    even_cuts,
    grouped,
    longest_first,
    pieces,
)
from markov.cases import COMPONENTS, Case, bayes_floor
from markov.chains import MarkovChain
from markov.errors import InvalidInput
from markov.models import Tabular, Transformer
from markov.objectives import Objective, gradient_ascent, npo, simnpo
from markov.optimizers import OPTIMIZERS, Sgd
from markov.recording import CHUNK, Probe, Trajectory, log_laws, mean_kl
from markov.studies import Data, ideal_forget_distance
from markov.training import RETAIN_LOSSES, Member, RetainTerm, Threads, pretrain, unlearn
from tests.helpers import (
    check_close,
    check_same_parameters,
    doubled,
    member,
    perturbed,
    slow_logp,
    slow_loss,
    slow_order,
    slow_pretrain,
    slow_unlearn,
    some_laws,
    some_tokens,
)

STATES = 5
MODEL = Transformer(states=STATES, context=6, width=8, depth=1, heads=2, mlp_width=8)
POST = dataclasses.replace(MODEL, norm="post", heads=1, output_projection=False)
OBJECTIVES = {
    "npo": npo(0.7),
    "simnpo": simnpo(3.0),
    "gradient_ascent": gradient_ascent(),
    "length_weighted_gradient_ascent": gradient_ascent(1.0),
}
TERMS: tuple[RetainTerm, ...] = ("none", "cross_entropy", "kl")
every_rule = pytest.mark.parametrize("rule", OPTIMIZERS)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_term = pytest.mark.parametrize("term", TERMS)


def mixed(counts: Mapping[int, int], seed: int = 0) -> Corpus:
    """Sequences of several lengths: `counts` maps the length in tokens to the number of
    sequences.
    """
    parts = enumerate(counts.items())
    return Corpus.join(
        [
            some_tokens(count, length, states=STATES, seed=10 * seed + at)
            for at, (length, count) in parts
        ]
    )


def probes(seed: int = 0) -> tuple[Probe, ...]:
    """A retained component, which nothing pushes on, and two forgotten ones of different lengths
    and counts.
    """
    sizes = ((4, 7, False), (3, 6, True), (5, 3, True))
    return tuple(
        Probe(
            some_tokens(count, length, states=STATES, seed=100 * seed + at),
            some_laws(STATES, STATES, seed=100 * seed + at),
            some_laws(count, length - 1, STATES, seed=100 * seed + at).log(),
            some_laws(count, length - 1, STATES, seed=100 * seed + at + 50).log(),
            forgotten,
        )
        for at, (count, length, forgotten) in enumerate(sizes)
    )


RUN = Member(
    start=perturbed(MODEL, 0),
    objective=npo(0.7),
    learning_rate=0.05,
    retain_weight=0.8,
    seed=3,
    forget=mixed({6: 7, 3: 6}),
    retain=mixed({7: 5, 4: 4}, seed=4),
    probes=probes(),
)
# Runs that differ in all that may differ.
RUNS = [
    RUN,
    RUN._replace(objective=simnpo(3.0, 0.4), learning_rate=0.2, seed=4, start=perturbed(MODEL, 1)),
    RUN._replace(
        objective=gradient_ascent(),
        learning_rate=0.01,
        retain_weight=0.1,
        forget=mixed({6: 4, 4: 9}, seed=1),
    ),
    RUN._replace(objective=simnpo(0.0), retain=mixed({7: 3, 5: 6}, seed=2), probes=probes(1)),
    RUN._replace(objective=Objective(0.7, 0.3, 0.4, 0.6), seed=9, retain_weight=0.0),
]


def forgotten(runs: Sequence[Member], rule: str = "sgd", **changes: Any) -> Trajectory:
    options: dict[str, Any] = {"steps": 6, "batch": 4, "optimizer": OPTIMIZERS[rule]} | changes
    return unlearn(MODEL, runs, **options)


def path(runs: Sequence[Member], rule: str = "sgd", **changes: Any) -> list[dict[str, Tensor]]:
    """Stacked parameters before every step and at the end."""
    places: list[dict[str, Tensor]] = []

    def keep(step: int, parameters: Mapping[str, Tensor]) -> None:
        places.append({name: value.detach().clone() for name, value in parameters.items()})

    forgotten(runs, rule, on_step=keep, **changes)
    return places


def moved(run: Member, **changes: Any) -> dict[str, Tensor]:
    """The displacement of a single run in its first step."""
    places = path([run], steps=1, **changes)
    return {name: value[0] - places[0][name][0] for name, value in places[1].items()}


def size(parameters: Mapping[str, Tensor]) -> float:
    return max(float(value.abs().max()) for value in parameters.values())


def check_same_trajectory(
    got: Trajectory, want: Trajectory, run: int, *, atol: float = 1e-10
) -> None:
    """Run number `run` of one trajectory is the single run of the other, field by field."""
    for name in ("step", "component", "length"):
        assert torch.equal(getattr(got, name), getattr(want, name))
    assert torch.equal(got.batch_component[run], want.batch_component[0])
    for name in ("logp", "kl_to_truth", "kl_to_retrained", "gradient_norm", "batch_weight"):
        check_close(getattr(got, name)[run], getattr(want, name)[0], rtol=0, atol=atol)


# --- a corpus ---


@settings(max_examples=25)
@given(sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(2, 7)), min_size=1, max_size=4))
def test_joining_pads_scores_and_labels_every_sequence(sizes: list[tuple[int, int]]):
    parts = [
        some_tokens(count, length, states=STATES, seed=at)
        for at, (count, length) in enumerate(sizes)
    ]
    corpus, longest = Corpus.join(parts), max(length for _, length in sizes)
    sequences = [
        (label, sequence) for label, part in enumerate(parts) for sequence in part.tolist()
    ]
    assert len(corpus.tokens) == len(corpus.mask) == len(corpus.component) == len(sequences)
    for row, (label, sequence) in enumerate(sequences):
        padding = longest - len(sequence)
        assert corpus.tokens[row].tolist() == sequence + [0] * padding
        assert corpus.mask[row].tolist() == [True] * (len(sequence) - 1) + [False] * padding
        assert int(corpus.component[row]) == label
    assert (corpus.tokens.dtype, corpus.mask.dtype) == (torch.int64, torch.bool)


# --- seeds ---


def test_every_seed_and_purpose_has_a_stream_of_its_own():
    purposes = ["start", "pretraining batches", "forget", "retain", "", "a", "b", "ab", "ba"]
    pairs = list(itertools.product(range(50), purposes))
    found = {derived_seed(seed, purpose) for seed, purpose in pairs}
    assert len(found) == len(pairs)
    assert all(0 <= seed < 2**63 for seed in found)


def test_derived_seeds_stay_what_they_are():
    # They decide every result: a change here is a change of all published numbers.
    assert [derived_seed(0, "start"), derived_seed(1, "forget")] == [
        6429517617306438275,
        5639447177428382906,
    ]


# --- pretraining ---

pretrained = partial(pretrain, epochs=2, batch=8, learning_rate=0.01, dtype=torch.float64)
CORPORA = [mixed({7: 12, 4: 10}), mixed({7: 5, 6: 8, 3: 9}, seed=1), mixed({7: 22}, seed=2)]


@every_rule
def test_an_ensemble_of_pretrainings_is_a_loop_over_them(rule: str):
    together = pretrained(MODEL, CORPORA, [0, 1, 5], optimizer=OPTIMIZERS[rule])
    for run, (corpus, seed) in enumerate(zip(CORPORA, [0, 1, 5], strict=True)):
        alone = pretrained(MODEL, [corpus], [seed], optimizer=OPTIMIZERS[rule])
        check_same_parameters(member(together, run), member(alone, 0), atol=1e-10)


@pytest.mark.parametrize("model", [MODEL, POST], ids=["pre", "post"])
@pytest.mark.parametrize("batch", [8, 22, 50])
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_pretraining_is_plain_descent_on_whole_padded_batches(
    model: Transformer, batch: int, rule: str
):
    # More sequences than fit one part, of several lengths: sorting, cutting and trimming must not
    # show.
    corpus = mixed({7: 25, 4: 30, 2: 25})
    theirs = {
        "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0),
        "sgd": partial(torch.optim.SGD, lr=0.01),
    }[rule]
    fast = pretrained(model, [corpus], [3], optimizer=OPTIMIZERS[rule], batch=batch)
    slow = slow_pretrain(model, corpus, 3, epochs=2, batch=batch, optimizer=theirs)
    check_same_parameters(member(fast, 0), slow, atol=1e-10)
    assert (
        size(
            {
                name: slow[name] - value
                for name, value in model.init(derived_seed(3, "start")).items()
            }
        )
        > 1e-3
    )


@pytest.mark.parametrize("threads", [Threads(2), Threads(3, 0.5), Threads(8, 0.7)])
def test_threads_change_no_bit_of_a_pretraining(threads: Threads):
    corpora = [mixed({7: 60, 4: 50, 2: 40}), mixed({7: 30, 3: 120}, seed=1)]
    ways = {"optimizer": OPTIMIZERS["adamw"], "batch": 128, "dtype": torch.float32}
    before = torch.get_num_threads()
    alone = pretrained(MODEL, corpora, [0, 3], **ways)
    check_same_parameters(
        pretrained(MODEL, corpora, [0, 3], **ways, threads=threads), alone, atol=0
    )
    assert torch.get_num_threads() == before


def test_threads_compute_as_the_caller_does_and_pass_on_what_is_raised():
    seen: list[tuple[str, int]] = []

    class Watched(Tabular):
        def logits(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
            seen.append((threading.current_thread().name, torch.get_num_threads()))
            if len(seen) == 5:
                raise KeyError("stop")
            return super().logits(parameters, tokens)

    corpus = mixed({5: 40, 3: 50})
    with pytest.raises(KeyError, match="stop"):
        pretrained(
            Watched(states=STATES), [corpus], [0], optimizer=Sgd(), batch=90, threads=Threads(2)
        )
    assert {threads for _, threads in seen} == {torch.get_num_threads()}
    assert threading.current_thread().name not in {name for name, _ in seen}


@pytest.mark.parametrize(("start", "alone"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_threads_help_from_their_share_of_the_steps_on(start: float, alone: int):
    by: list[str] = []

    class Watched(Tabular):
        def logits(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
            by.append(threading.current_thread().name)
            return super().logits(parameters, tokens)

    ways = {"optimizer": Sgd(), "epochs": 3, "batch": 11}  # two steps an epoch, of one piece each
    pretrained(Watched(states=STATES), CORPORA[:1], [0], **ways, threads=Threads(2, start))
    own = threading.current_thread().name
    assert [name == own for name in by] == [True] * alone + [False] * (6 - alone)


def test_what_pretraining_returns_is_final_and_frozen():
    seen: list[int] = []
    last: dict[str, Tensor] = {}

    def keep(step: int, parameters: Mapping[str, Tensor]) -> None:
        seen.append(step)
        last.update({name: value.detach().clone() for name, value in parameters.items()})

    final = pretrained(MODEL, CORPORA[:1], [0], optimizer=Sgd(), on_step=keep)
    assert seen == [1, 2, 3, 4, 5, 6]  # two epochs of 22 sequences, 8 at a time
    check_same_parameters(final, last, atol=0)
    assert not any(value.requires_grad for value in final.values())


def test_pretraining_is_repeated_by_its_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = pretrained(MODEL, CORPORA[:1], [4], optimizer=Sgd())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    check_same_parameters(pretrained(MODEL, CORPORA[:1], [4], optimizer=Sgd()), one, atol=0)
    other = pretrained(MODEL, CORPORA[:1], [5], optimizer=Sgd())
    assert size({name: other[name] - value for name, value in one.items()}) > 1e-2


def test_a_seed_gives_the_same_start_to_every_corpus():
    for run in range(3):
        still = pretrained(MODEL, CORPORA, [7, 7, 7], optimizer=Sgd(), learning_rate=0.0)
        check_same_parameters(
            member(still, run), doubled(MODEL.init(derived_seed(7, "start"))), atol=0
        )


def test_corpora_of_different_shapes_are_refused():
    with pytest.raises(InvalidInput) as caught:
        pretrained(MODEL, [CORPORA[0], mixed({7: 21})], [0, 0], optimizer=Sgd())
    assert caught.value.field == "corpora"
    assert "(21, 7)" in str(caught.value) and "(22, 7)" in str(caught.value)


def test_a_tabular_model_learns_the_transition_matrix_of_its_chain():
    chain = MarkovChain(initial=some_laws(3, seed=1), transition=some_laws(3, 3, seed=2))
    tokens = chain.sample(1000, 10, torch.Generator().manual_seed(0))
    rule = OPTIMIZERS["adamw"]
    learned = pretrain(
        Tabular(states=3),
        [Corpus.join([tokens])],
        [0],
        epochs=150,
        batch=1000,
        learning_rate=0.2,
        optimizer=rule,
    )
    visits = torch.zeros(3, 3, dtype=torch.float64)
    visits.index_put_(
        (tokens[:, :-1].flatten(), tokens[:, 1:].flatten()),
        torch.ones(()).double(),
        accumulate=True,
    )
    matrix = learned["table"][0].softmax(-1).double()
    # It converges on the counted frequencies, and those lie within sampling noise of the chain:
    # 1/sqrt(3000) = 0.018.
    check_close(matrix, visits / visits.sum(-1, keepdim=True), rtol=0, atol=0.005)
    check_close(matrix, chain.transition, rtol=0, atol=0.05)


# --- unlearning: an ensemble is a loop ---


@every_rule
@every_term
def test_an_ensemble_of_runs_is_a_loop_over_them(rule: str, term: RetainTerm):
    options: dict[str, Any] = {"retain_term": term, "recorded": range(7), "gradient_examples": 2}
    together = forgotten(RUNS, rule, **options)
    assert together.logp.shape == (5, 7, 12) and together.batch_weight.shape == (5, 6, 4)
    for run, alone in enumerate(RUNS):
        check_same_trajectory(together, forgotten([alone], rule, **options), run)


def test_the_order_of_the_runs_does_not_matter():
    order = [3, 0, 4, 2, 1]
    straight, turned = (
        forgotten(runs, recorded=[6]) for runs in (RUNS, [RUNS[run] for run in order])
    )
    for at, run in enumerate(order):
        check_close(turned.logp[at], straight.logp[run], rtol=0, atol=1e-10)
        check_close(turned.batch_weight[at], straight.batch_weight[run], rtol=0, atol=1e-10)
        assert torch.equal(turned.batch_component[at], straight.batch_component[run])


@every_rule
def test_a_seed_repeats_a_run_exactly_and_another_draws_other_batches(rule: str):
    options: dict[str, Any] = {"retain_term": "kl", "recorded": range(7), "gradient_examples": 2}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = forgotten(RUNS[:2], rule, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = forgotten(RUNS[:2], rule, **options)
    for name, value in one._asdict().items():
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0, equal_nan=True)
    other = forgotten([run._replace(seed=run.seed + 100) for run in RUNS[:2]], rule, **options)
    assert torch.equal(other.logp[:, 0], one.logp[:, 0])
    assert not torch.equal(other.batch_component, one.batch_component)
    assert float((other.logp[:, -1] - one.logp[:, -1]).abs().max()) > 1e-6


def test_unlearning_leaves_the_start_as_it_was():
    start = {name: value.clone() for name, value in RUN.start.items()}
    forgotten([RUN], retain_term="kl")
    check_same_parameters(RUN.start, start, atol=0)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("forget", {"forget": mixed({6: 9, 3: 6})}),
        ("retain", {"retain": mixed({7: 6, 4: 4})}),
        ("probes", {"probes": probes()[:2]}),
        ("forget", {"forget": RUN.forget._replace(tokens=RUN.forget.tokens + STATES - 1)}),
        ("retain", {"retain": RUN.retain._replace(tokens=RUN.retain.tokens - 1)}),
    ],
)
def test_runs_whose_data_do_not_fit_together_or_the_model_are_refused(
    field: str, changes: dict[str, Any]
):
    with pytest.raises(InvalidInput) as caught:
        forgotten([RUN, RUN._replace(**changes)])
    assert caught.value.field == field


def test_no_step_is_no_run():
    with pytest.raises(InvalidInput, match="steps"):
        forgotten([RUN], steps=0)


# --- unlearning: what a step is ---


@every_objective
@every_term
def test_unlearning_is_plain_descent_on_the_written_out_loss(name: str, term: RetainTerm):
    run, beta = RUN._replace(objective=OBJECTIVES[name]), float(OBJECTIVES[name].beta)
    slow = slow_unlearn(
        MODEL,
        run.start,
        (name, beta),
        run.forget,
        run.retain,
        seed=run.seed,
        steps=5,
        batch=4,
        learning_rate=run.learning_rate,
        retain_term=term,
        retain_weight=run.retain_weight,
    )
    places = path([run], steps=5, retain_term=term)
    for fast, want in zip(places, slow, strict=True):
        check_same_parameters(member(fast, 0), want, atol=1e-10)
    assert size({key: value[0] - run.start[key] for key, value in places[-1].items()}) > 1e-3


def test_the_reference_is_the_start_where_more_is_drawn_than_is_scored_at_once():
    steps, batch, run = 6, 13, RUN._replace(forget=mixed({6: 30, 3: 20}))
    assert CHUNK < 50 < steps * batch  # a second part of the data, and a second epoch
    slow = slow_unlearn(
        MODEL,
        run.start,
        ("npo", 0.7),
        run.forget,
        run.retain,
        seed=run.seed,
        steps=steps,
        batch=batch,
        learning_rate=run.learning_rate,
    )
    for fast, want in zip(path([run], steps=steps, batch=batch), slow, strict=True):
        check_same_parameters(member(fast, 0), want, atol=1e-10)


class Counting(Transformer):
    """The model, which counts the tokens that it is given without gradients."""

    seen: ClassVar[list[int]] = []

    def logits(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            self.seen.append(tokens.numel())
        return super().logits(parameters, tokens)


def test_a_sequence_is_scored_once_under_the_reference_however_often_and_for_whom_it_is_drawn():
    model = Counting(**vars(MODEL))
    run, lengths = RUN, RUN.forget.mask.sum(-1)
    others = [run._replace(learning_rate=0.1), run._replace(objective=npo(2.0))]
    unlearn_it = partial(unlearn, model, steps=40, batch=4, optimizer=Sgd())
    Counting.seen.clear()
    unlearn_it([run, *others])
    recorded = 3 * sum(probe.tokens[:, :-1].numel() for probe in run.probes)
    # All lengths lie in one part, which is padded to the longest.
    assert sum(Counting.seen) == recorded + len(lengths) * int(lengths.max())
    Counting.seen.clear()
    unlearn_it([one._replace(objective=simnpo(2.0)) for one in others])
    assert sum(Counting.seen) == 2 * recorded // 3  # nothing but the records


def test_npo_starts_with_weight_one_whatever_the_length():
    runs = [RUN._replace(objective=npo(beta)) for beta in (0.0, 0.2, 5.0)]
    weight = forgotten(runs, batch=13).batch_weight
    check_close(weight[:, 0], 1.0, rtol=0, atol=1e-14)
    assert float((weight[1:, 1] - 1).abs().min()) > 1e-6
    check_close(weight[0], 1.0, rtol=0, atol=0)


def test_simnpo_starts_with_less_weight_than_one_over_the_length():
    weight, batch = (
        getattr(forgotten([RUN._replace(objective=simnpo(3.0))]), n)
        for n in ("batch_weight", "batch_component")
    )
    length = torch.tensor([5.0, 2.0])[batch[0, 0]]
    assert bool((weight[0, 0] * length < 1).all()) and len(length.unique()) == 2


def test_batch_weights_are_those_of_the_sequences_in_the_batch():
    run = RUN._replace(objective=simnpo(3.0), learning_rate=0.0)
    found = forgotten([run], steps=3)
    order = slow_order(run.seed, "forget", 13, 12)
    laws = log_laws(
        MODEL, {name: value[None] for name, value in run.start.items()}, run.forget.tokens
    )
    each = laws.gather(-1, run.forget.tokens[:, 1:, None]).squeeze(-1)
    mean = (each * run.forget.mask).sum(-1) / run.forget.mask.sum(-1)
    length = run.forget.mask.sum(-1)
    # Batches of four, the longest first.
    order = [
        row
        for at in range(0, 12, 4)
        for row in sorted(order[at : at + 4], key=lambda row: -int(length[row]))
    ]
    check_close(found.batch_weight[0].flatten(), (2 * (3.0 * mean).sigmoid() / length)[order])
    assert found.batch_component[0].flatten().tolist() == run.forget.component[order].tolist()


def test_padding_does_not_contribute():
    # Tokens behind the end of a sequence, and forget data of one length padded further, change
    # nothing.
    mask = torch.cat([torch.ones(13, 1, dtype=torch.bool), RUN.forget.mask], dim=1)
    other = (RUN.forget.tokens + 1 + torch.arange(6)) % STATES
    run = RUN._replace(forget=RUN.forget._replace(tokens=RUN.forget.tokens.where(mask, other)))
    assert not torch.equal(run.forget.tokens, RUN.forget.tokens)
    check_same_trajectory(forgotten([run], recorded=[6]), forgotten([RUN], recorded=[6]), 0)
    long = Corpus.join([some_tokens(1, 7, states=STATES), some_tokens(5, 3, states=STATES)])
    short = long._replace(
        tokens=long.tokens[1:, :3], mask=long.mask[1:, :2], component=long.component[1:]
    )
    long = long._replace(tokens=long.tokens[1:], mask=long.mask[1:], component=long.component[1:])
    one, two = (forgotten([RUN._replace(forget=forget)], recorded=[6]) for forget in (long, short))
    check_same_trajectory(one, two, 0)


# --- unlearning: the retain term ---


def test_the_kl_term_has_no_slope_at_the_start_and_then_pulls_back():
    without, kl = path([RUN], steps=4), path([RUN], steps=4, retain_term="kl")
    check_same_parameters(kl[1], without[1], atol=1e-14)
    assert size({name: value - without[2][name] for name, value in kl[2].items()}) > 1e-6
    start = {name: value[None] for name, value in RUN.start.items()}
    before = log_laws(MODEL, start, RUN.retain.tokens)
    distance = [
        float(mean_kl(before, log_laws(MODEL, places[-1], RUN.retain.tokens)))
        for places in (without, kl)
    ]
    assert distance[1] < distance[0]


@settings(max_examples=10)
@given(weight=st.floats(0.01, 50.0))
def test_the_retain_term_adds_to_the_first_step_in_proportion_to_its_weight(weight: float):
    none = moved(RUN)
    unit = moved(RUN._replace(retain_weight=1.0), retain_term="cross_entropy")
    mine = moved(RUN._replace(retain_weight=weight), retain_term="cross_entropy")
    added = {name: value - none[name] for name, value in unit.items()}
    assert size(added) > 1e-3
    check_same_parameters(
        {name: value - none[name] for name, value in mine.items()},
        {name: weight * value for name, value in added.items()},
        atol=1e-12 * (1 + weight),
    )


def test_a_retain_weight_of_zero_or_no_term_leaves_the_forget_loss_alone():
    want = path([RUN._replace(retain_weight=0.0)])[-1]
    check_same_parameters(path([RUN])[-1], want, atol=0)
    for term in RETAIN_LOSSES:
        check_same_parameters(
            path([RUN._replace(retain_weight=0.0)], retain_term=term)[-1], want, atol=1e-14
        )


def test_the_retain_term_is_a_mean_over_tokens_not_a_sum_over_sequences():
    once = RUN.retain
    twice = Corpus(*(torch.cat([field, field]) for field in once))
    added = []
    for retain in (once, twice):
        run, batch = RUN._replace(retain=retain), len(retain.tokens)
        with_term, none = (
            moved(run, batch=batch, retain_term="cross_entropy"),
            moved(run, batch=batch),
        )
        added.append({name: with_term[name] - value for name, value in none.items()})
    assert size(added[0]) > 1e-3
    check_same_parameters(*added)


# --- unlearning: bookkeeping ---


@settings(max_examples=15)
@given(count=st.integers(1, 7), batch=st.integers(1, 9), seed=st.integers(0, 1000))
def test_every_epoch_is_a_new_shuffle_of_all_forget_sequences(count: int, batch: int, seed: int):
    # One sequence per component, so that the label is the sequence's name.
    forget = Corpus.join([some_tokens(1, 3, states=STATES, seed=name) for name in range(count)])
    seen = (
        forgotten([RUN._replace(forget=forget, seed=seed)], steps=5, batch=batch)
        .batch_component.flatten()
        .tolist()
    )
    epochs = [seen[first : first + count] for first in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs[:-1])
    assert len(set(epochs[-1])) == len(epochs[-1]) and len(seen) == 5 * batch


def test_epochs_are_shuffled_differently():
    forget = Corpus.join([some_tokens(1, 3, states=STATES, seed=name) for name in range(6)])
    seen = forgotten([RUN._replace(forget=forget)], steps=10, batch=6).batch_component[0].tolist()
    assert len({tuple(epoch) for epoch in seen}) == 10


def test_forget_and_retain_batches_come_in_unrelated_orders():
    assert slow_order(3, "forget", 20, 20) != slow_order(3, "retain", 20, 20)
    same = RUN._replace(
        forget=mixed({6: 13}), retain=mixed({6: 13}), objective=gradient_ascent(), retain_weight=1.0
    )
    # Ascent on the forget data and descent on the very same: in one order, and with means alike,
    # they would cancel.
    same = same._replace(objective=gradient_ascent(1.0))
    assert size(moved(same, retain_term="cross_entropy")) > 1e-3
    assert size(moved(same, batch=13, retain_term="cross_entropy")) < 1e-14


def test_on_step_sees_every_step_before_it_is_taken_and_the_end():
    calls: list[tuple[int, dict[str, Tensor]]] = []
    forgotten(
        RUNS,
        steps=3,
        on_step=lambda step, now: calls.append(
            (step, {n: v.detach().clone() for n, v in now.items()})
        ),
    )
    assert [step for step, _ in calls] == [0, 1, 2, 3]
    for run, one in enumerate(RUNS):
        check_same_parameters(member(calls[0][1], run), one.start, atol=0)
        for (_, before), (_, after) in itertools.pairwise(calls):
            assert not torch.equal(before["token"][run], after["token"][run])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("last", [0, 2, 6])
def test_what_on_step_raises_ends_the_run(last: int):
    calls: list[int] = []

    def stop(step: int, parameters: Mapping[str, Tensor]) -> None:
        calls.append(step)
        if step == last:
            raise Stopped

    with pytest.raises(Stopped):
        forgotten([RUN], on_step=stop)
    assert calls == list(range(last + 1))


def test_recording_less_often_records_the_same():
    full = forgotten(RUNS, recorded=range(7), gradient_examples=2)
    some = forgotten(RUNS, recorded=[5, 2, 2, 6, 60], gradient_examples=2)
    assert full.step.tolist() == list(range(7)) and some.step.tolist() == [2, 5, 6]
    for name in ("logp", "kl_to_truth", "kl_to_retrained", "gradient_norm"):
        check_close(getattr(some, name), getattr(full, name)[:, some.step], rtol=0, atol=0)
    for name in ("batch_weight", "batch_component"):
        assert torch.equal(getattr(some, name), getattr(full, name))


def test_records_are_of_the_parameters_then_and_of_the_reference_at_the_start():
    run, steps = own_reference(RUN._replace(objective=npo(0.7), learning_rate=0.3)), 4
    found, places = (
        forgotten([run], steps=steps, recorded=range(5), gradient_examples=2),
        path([run], steps=steps),
    )
    assert len(places) == found.logp.shape[1] == steps + 1
    for step, place in enumerate(places):
        logps = []
        for component, probe in enumerate(run.probes):
            now, mask = member(place, 0), torch.ones_like(probe.tokens[:, 1:], dtype=torch.bool)
            logps.append(slow_logp(MODEL, now, probe.tokens, mask))
            if probe.forgotten:
                parameters = {name: value.requires_grad_() for name, value in now.items()}
                logp, ref = (
                    slow_logp(MODEL, at, probe.tokens[:2], mask[:2])
                    for at in (parameters, run.start)
                )
                loss = slow_loss("npo", 0.7, logp, ref, mask[:2].sum(-1)).mean()
                slopes = torch.autograd.grad(loss, list(parameters.values()))
                want = float(torch.cat([slope.flatten() for slope in slopes]).norm())
                assert float(found.gradient_norm[0, step, component]) == pytest.approx(
                    want, rel=1e-9
                )
        check_close(found.logp[0, step], torch.cat(logps), atol=1e-10)
    assert float((found.logp[0, -1] - found.logp[0, 0]).abs().max()) > 0.1


def test_a_trajectory_says_which_example_is_which():
    found = forgotten(RUNS)
    assert found.component.tolist() == [0] * 4 + [1] * 3 + [2] * 5
    assert found.length.tolist() == [6.0] * 4 + [5.0] * 3 + [2.0] * 5
    assert found.step.tolist() == [0] and found.logp.shape == (5, 1, 12)
    assert (
        found.kl_to_truth.shape
        == found.kl_to_retrained.shape
        == found.gradient_norm.shape
        == (5, 1, 3)
    )
    assert bool(found.gradient_norm.isnan().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_keeps_the_precision_of_its_start(dtype: torch.dtype):
    run = RUN._replace(start={name: value.to(dtype) for name, value in RUN.start.items()})
    found = forgotten([run], retain_term="kl")
    assert (
        found.logp.dtype
        == found.batch_weight.dtype
        == found.kl_to_truth.dtype
        == found.length.dtype
        == dtype
    )
    assert path([run])[-1]["token"].dtype == dtype


# --- trained models land where theory says ---

CASE = Case(
    name="small",
    leakage=0.3,
    states=4,
    set_size=1,
    retain_length=8,
    forget1_length=8,
    forget2_length=4,
    retain_count=2400,
    forget1_count=1200,
    forget2_count=1200,
    pretrain_components=COMPONENTS,
)
SMALL = Transformer(states=4, context=7, width=16, depth=1, heads=2, mlp_width=16)
SEEDS = range(4)


@cache
def drawn(seed: int) -> Data:
    return CASE.sample(seed)


def distances(
    model: Transformer | Tabular, components: Sequence[str], learning_rate: float
) -> Tensor:
    """KL(true row || model) on held-out sequences after training on the named components:
    (seeds, components).
    """
    corpora = [
        Corpus.join([drawn(seed).train[component] for component in components]) for seed in SEEDS
    ]
    rule = OPTIMIZERS["adamw"]
    trained = pretrain(
        model, corpora, SEEDS, epochs=8, batch=32, learning_rate=learning_rate, optimizer=rule
    )
    rows = []
    for run, seed in enumerate(SEEDS):
        row = []
        for component, chain in zip(COMPONENTS, CASE.chains(), strict=True):
            tokens = drawn(seed).test[component]
            laws = log_laws(model, trained, tokens, run)
            row.append(mean_kl(chain.transition.to(laws).log()[tokens[:, :-1]], laws))
        rows.append(torch.stack(row))
    return torch.stack(rows).double()


# The tolerances come from three groups of four seeds (0 to 11) with these settings; the test uses
# the first group.


def test_a_pretrained_transformer_reaches_the_bayes_floor_and_a_table_cannot():
    # Mean over four seeds of the distance above the floor. Measured per component: 0.002 to 0.024;
    # over the three components: 0.0115, 0.0100, 0.0119. A table, which cannot infer the chain from
    # the prefix, misses it by 0.057.
    floor = torch.tensor(
        [list(bayes_floor(CASE, drawn(seed)).values()) for seed in SEEDS], dtype=torch.float64
    )
    excess = (distances(SMALL, COMPONENTS, 3e-3) - floor).mean(0)
    assert bool((excess > -0.005).all()) and bool((excess < 0.04).all())
    assert float(excess.mean()) < 0.02
    assert float((distances(Tabular(states=4), COMPONENTS, 1e-2) - floor).mean()) > 0.04


def test_a_retrained_transformer_lands_on_the_ideal_forget_distance():
    # Mean over four seeds. Measured: at most 0.004 on retain, and 0.021 from the ideals 0.300 and
    # 0.322 on forget.
    ideal = torch.tensor(list(ideal_forget_distance(CASE).values()), dtype=torch.float64)
    found = distances(SMALL, ["retain"], 3e-3).mean(0)
    check_close(found[:1], ideal[:1], rtol=0, atol=0.01)
    check_close(found[1:], ideal[1:], rtol=0, atol=0.04)
    assert float(ideal[1:].min()) > 0.29


# --- ragged batches ---


def ragged(lengths: Sequence[Sequence[int]], seed: int = 0) -> Batches:
    """Rows of `lengths[run][row]` scored tokens, padded with tokens that nobody may score; each
    row has a name.
    """
    length = torch.tensor(lengths)
    tokens = some_tokens(*length.shape, int(length.max()) + 1, states=STATES, seed=seed)
    mask = torch.arange(int(length.max())) < length[..., None]
    return Batches(tokens, mask, torch.arange(length.shape[1]).expand_as(length))


def rows_of(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    runs, size, count = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    row = st.lists(st.integers(1, 12), min_size=size * count, max_size=size * count)
    return [draw(row) for _ in range(runs)], size


some_batches = st.composite(rows_of)()


@settings(max_examples=40)
@given(drawn=some_batches, seed=st.integers(0, 1000))
def test_sorting_permutes_each_batch_by_itself_and_keeps_the_order_of_equal_lengths(
    drawn: tuple[list[list[int]], int], seed: int
):
    lengths, size = drawn
    count = len(lengths[0])
    generators = [torch.Generator().manual_seed(seed + run) for run in range(len(lengths))]
    before = draw(count, generators, count)
    after = longest_first(before, torch.tensor(lengths), size)
    for run, own in enumerate(lengths):
        rows = before[run].tolist()
        assert sorted(rows) == list(range(count))
        firsts = range(0, count, size)
        order = [
            row for at in firsts for row in sorted(rows[at : at + size], key=lambda row: -own[row])
        ]
        assert after[run].tolist() == order


some_lengths = st.lists(st.integers(1, 100), min_size=1, max_size=30).map(
    lambda lengths: tuple(sorted(lengths, reverse=True))
)
overheads = st.sampled_from([0, 1, 10, 64, 1000])


@settings(max_examples=60)
@given(lengths=some_lengths, overhead=overheads, spare=st.integers(0, 9))
def test_pieces_hold_every_row_once_and_every_scored_token(
    lengths: tuple[int, ...], overhead: int, spare: int
):
    batches = ragged([list(lengths)])
    wide = Batches(
        functional.pad(batches.tokens, (0, spare)),
        functional.pad(batches.mask, (0, spare)),
        batches[2],
    )
    found, at = cuts(lengths, lengths[0] + spare, overhead), 0
    assert found[0] == (0, lengths[0] + spare)
    for tokens, mask, component in pieces(wide, found):
        count, time = mask.shape[1:]
        assert count > 0 and tokens.shape == (1, count, time + 1)
        assert torch.equal(tokens, wide.tokens[:, at : at + count, : time + 1])
        assert torch.equal(mask, wide.mask[:, at : at + count, :time])
        assert component.tolist() == [list(range(at, at + count))]
        assert not bool(wide.mask[:, at : at + count, time:].any())
        at += count
    assert at == len(lengths)


def cost_of(found: Cuts, rows: int, overhead: int) -> int:
    ends = [first for first, _ in found[1:]] + [rows]
    each = zip(found, ends, strict=True)
    return sum((end - first) * time + overhead for (first, time), end in each)


@settings(max_examples=60)
@given(lengths=some_lengths.filter(lambda own: len(own) <= 8), overhead=overheads)
def test_no_other_cuts_cost_less(lengths: tuple[int, ...], overhead: int):
    rows = len(lengths)
    every = (
        tuple((first, lengths[first]) for first in (0, *inner))
        for size in range(rows)
        for inner in itertools.combinations(range(1, rows), size)
    )
    best = min(cost_of(one, rows, overhead) for one in every)
    assert cost_of(cuts(lengths, lengths[0], overhead), rows, overhead) == best


@pytest.mark.parametrize(
    ("lengths", "overhead", "found"),
    [
        ((8, 8, 5, 4, 4, 1), 0, ((0, 8), (2, 5), (3, 4), (5, 1))),
        ((80, 40, 20, 10, 5, 2), 64, ((0, 80), (2, 20))),
        ((19, 4, 4, 4), 64, ((0, 19),)),
        ((4, 4), 64, ((0, 19),)),
    ],
    ids=str,
)
def test_a_batch_is_cut_where_that_saves_more_than_it_costs(
    lengths: tuple[int, ...], overhead: int, found: Cuts
):
    longest = 19 if overhead and lengths[0] < 80 else lengths[0]
    assert cuts(lengths, longest, overhead) == found


def test_runs_that_are_cut_alike_form_a_group_and_on_a_gpu_all_runs_do():
    lengths = torch.tensor([[8, 4, 2], [8, 8, 2], [8, 4, 2]])
    cut = partial(cuts, longest=8, overhead=0)
    one, two = ((0, 8), (1, 4), (2, 2)), ((0, 8), (2, 2))
    assert grouped(lengths, cut, alike=True) == [([0, 2], one), ([1], two)]
    assert grouped(lengths[::2], cut, alike=True) == [(ALL, one)]
    assert grouped(lengths, cut, alike=False) == [(ALL, two)]


@settings(max_examples=30)
@given(lengths=some_lengths, rows=st.integers(1, 8))
def test_even_pieces_have_as_many_rows_and_are_as_long_as_their_first(
    lengths: tuple[int, ...], rows: int
):
    sizes = [
        tuple(mask.shape[1:])
        for _, mask, _ in pieces(ragged([list(lengths)]), even_cuts(lengths, rows))
    ]
    want = [lengths[first : first + rows] for first in range(0, len(lengths), rows)]
    assert sizes == [(len(own), own[0]) for own in want]


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut batches wherever that saves a token, however small they are."""
    monkeypatch.setitem(CUTTINGS, "cpu", PROCESSOR._replace(overhead=0, rows=3))


RAGGED = mixed({7: 5, 4: 4, 2: 6})


@pytest.mark.usefixtures("many_pieces")
@every_objective
@pytest.mark.parametrize("term", ["none", "kl"])
def test_unlearning_ragged_batches_in_pieces_is_plain_descent_on_the_whole(
    name: str, term: RetainTerm
):
    run, beta = (
        RUN._replace(objective=OBJECTIVES[name], forget=RAGGED),
        float(OBJECTIVES[name].beta),
    )
    scored = RAGGED.mask.sum(-1)[slow_order(run.seed, "forget", 15, 50)].view(5, 10)
    assert all(
        len(cuts(tuple(row.sort(descending=True)[0].tolist()), 6, overhead=0)) == 3
        for row in scored
    )
    slow = slow_unlearn(
        MODEL,
        run.start,
        (name, beta),
        run.forget,
        run.retain,
        seed=run.seed,
        steps=5,
        batch=10,
        learning_rate=run.learning_rate,
        retain_term=term,
        retain_weight=run.retain_weight,
    )
    places = path([run], steps=5, batch=10, retain_term=term)
    for fast, want in zip(places, slow, strict=True):
        check_same_parameters(member(fast, 0), want, atol=1e-12)
    assert size({key: value[0] - run.start[key] for key, value in places[-1].items()}) > 1e-4


@pytest.mark.usefixtures("many_pieces")
@every_rule
def test_an_ensemble_on_ragged_data_is_a_loop_over_its_runs(rule: str):
    # Runs whose batches are ragged in different places: the ensemble is cut where no run by itself
    # would be.
    corpora = [
        RAGGED,
        mixed({7: 3, 4: 6, 2: 6}, seed=1),
        mixed({7: 9, 2: 6}, seed=2),
        mixed({7: 1, 3: 14}, seed=3),
    ]
    runs = [run._replace(forget=forget) for run, forget in zip(RUNS, corpora, strict=False)]
    together = forgotten(runs, rule, batch=7, recorded=range(7))
    for run, alone in enumerate(runs):
        check_same_trajectory(together, forgotten([alone], rule, batch=7, recorded=range(7)), run)
    lengths = [[int(n) for n in forget.mask.sum(-1)] for forget in corpora]
    assert len({tuple(sorted(own)) for own in lengths}) == 4


def test_the_weights_of_a_ragged_batch_stand_in_the_order_of_its_sequences():
    # Length-weighted ascent has weight 1/|y|, so that the weights tell the lengths.
    found = forgotten([RUN._replace(objective=gradient_ascent(1.0), forget=RAGGED)], batch=10)
    length = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)[found.batch_component]
    check_close(found.batch_weight, 1 / length, rtol=0, atol=1e-14)
    assert bool((length.diff(dim=-1) <= 0).all()) and set(length[0, 0].tolist()) == {6.0, 3.0, 1.0}


# --- how far a run has gone ---


def own_reference(run: Member) -> Member:
    """The same run, whose probes know the laws of its start."""
    start = {name: value[None] for name, value in run.start.items()}
    known = (probe._replace(reference=log_laws(MODEL, start, probe.tokens)) for probe in run.probes)
    return run._replace(probes=tuple(known))


@pytest.mark.parametrize("normalize", [0.0, 1.0])
def test_gradient_ascent_leaves_its_reference_at_once_and_further_at_every_step(normalize: float):
    runs = [
        run._replace(objective=gradient_ascent(normalize), learning_rate=0.02) for run in RUNS[:2]
    ]
    found = forgotten([own_reference(run) for run in runs], recorded=range(7)).kl_to_reference
    assert found.shape == (2, 7, 3)
    check_close(found[:, 0], 0.0, rtol=0, atol=1e-14)
    assert float(found[:, 1].min()) > 0
    assert bool((found.diff(dim=1) > 0).all())


@every_term
def test_every_run_is_at_its_own_reference_at_the_start_and_the_ensemble_is_a_loop(
    term: RetainTerm,
):
    runs = [own_reference(run) for run in RUNS]
    options: dict[str, Any] = {"retain_term": term, "recorded": [0, 1, 4, 6]}
    together = forgotten(runs, "sgd", **options).kl_to_reference
    check_close(together[:, 0], 0.0, rtol=0, atol=1e-14)
    assert float(together[:, 1:].min()) > 1e-8
    for run, alone in enumerate(runs):
        check_close(
            together[run],
            forgotten([alone], "sgd", **options).kl_to_reference[0],
            rtol=0,
            atol=1e-10,
        )
    full = forgotten(runs, "sgd", retain_term=term, recorded=range(7)).kl_to_reference
    check_close(together, full[:, [0, 1, 4, 6]], rtol=0, atol=0)


def test_the_distance_to_the_reference_is_that_of_the_parameters_of_the_step():
    run = own_reference(RUN)
    found, places = forgotten([run], recorded=range(7)).kl_to_reference[0], path([run])
    for step, place in enumerate(places):
        for component, probe in enumerate(run.probes):
            want = mean_kl(probe.reference, log_laws(MODEL, place, probe.tokens))
            assert float(found[step, component]) == pytest.approx(float(want), rel=1e-10, abs=1e-14)


def test_at_a_step_size_of_zero_no_run_leaves_its_reference():
    still = forgotten(
        [own_reference(RUN._replace(learning_rate=0.0))], recorded=range(7)
    ).kl_to_reference
    check_close(still, 0.0, rtol=0, atol=1e-14)
    other = forgotten([RUN._replace(learning_rate=0.0)], recorded=range(7)).kl_to_reference
    assert float(other.min()) > 1e-3
