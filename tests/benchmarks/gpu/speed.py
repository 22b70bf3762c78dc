"""Tokens per second of scoring and of unlearning, and their share of the card's product rate."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from llm.scoring.encoding import Encoded, batches
from llm.scoring.logprobs import score_encoded
from llm.training.settings import Optimization
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.objectives import npo
from tests.benchmarks.gpu.bench import DTYPES, Bench, Subject, guarded
from tests.benchmarks.gpu.card import finish, head_share, operations, seconds, sizes
from tests.benchmarks.gpu.rows import Bound, Row
from tests.benchmarks.gpu.subjects import made_answers, tokens_of

EPOCHS = 3  # of unlearning: the first one warms up
PROBE = 16  # retain answers that are measured after an epoch
ROUNDS = 2


def products(bench: Bench) -> Iterator[Row]:
    """Yield the card's rate of matrix products, to which all others are compared."""
    for word, dtype in DTYPES.items():
        size = bench.scale.product
        yield Row(
            what=f"products of matrices of {size} rows, {word}",
            value=bench.rate(dtype) / 1e12,
            unit="TFLOP/s",
        )


def small_speed(bench: Bench) -> Iterator[Row]:
    """Yield how fast the pretrained model is scored and unlearned."""
    yield from scoring(bench, bench.small(), bench.scale.budgets)
    yield from unlearning(bench, bench.small(), bench.scale.batches)


def large_speed(bench: Bench) -> Iterator[Row]:
    """Yield how fast a random model of a billion parameters is scored and unlearned."""
    yield from scoring(bench, bench.one(), bench.scale.budgets[:2])
    yield from unlearning(bench, bench.one(), bench.scale.batches[:1])


def scoring(bench: Bench, subject: Subject, budgets: tuple[int, ...]) -> Iterator[Row]:
    """Yield the speed of scoring in both dtypes, with so many tokens at a time."""
    for word, dtype in DTYPES.items():
        what = f"scoring, {subject.name}, {word}"
        yield from guarded(what, lambda dtype=dtype: _scoring(bench, subject, dtype, budgets))


def _scoring(
    bench: Bench, subject: Subject, dtype: torch.dtype, budgets: tuple[int, ...]
) -> Iterator[Row]:
    scale, model = bench.scale, subject.make(dtype)
    word, size = str(dtype).removeprefix("torch."), sizes(model)
    vocab = model.config.vocab_size
    encoded = made_answers(scale.scored, vocab, scale.shortest, scale.longest, seed=0)

    def timed(what: str, budget: int) -> Iterator[Row]:
        largest = [encoded[row] for row in batches(encoded, budget)[0]]

        def score(rows: list[Encoded] = encoded) -> None:
            score_encoded(model, rows, budget=budget, progress=False)

        score(largest)  # kernels are chosen at the first pass of a shape
        taken = min(seconds(score, bench.device) for _ in range(ROUNDS))
        tokens, scored = tokens_of(encoded)
        done = operations(size, tokens, scored)
        yield from rates(bench, what, dtype, tokens, done, taken, head_share(size, tokens, scored))

    for budget in budgets:
        what = f"scoring, {subject.name}, {word}, {budget} tokens at a time"
        yield from guarded(what, lambda what=what, budget=budget: timed(what, budget))


def unlearning(bench: Bench, subject: Subject, sizes: tuple[int, ...]) -> Iterator[Row]:
    """Yield the speed of unlearning in both precisions, with so many answers per update.

    The tokens are those of the updates. The time is that of whole epochs, with the look at the
    forget answers and at some of the others that ends each; its work counts in the share.
    """
    for word in DTYPES:
        for batch in sizes:
            what = f"unlearning, {subject.name}, products in {word}, batches of {batch}"

            def call(what: str = what, word: Any = word, batch: int = batch) -> Iterator[Row]:
                return _unlearning(bench, subject, what, word, batch)

            yield from guarded(what, call)


def _unlearning(bench: Bench, subject: Subject, what: str, word: Any, batch: int) -> Iterator[Row]:
    scale, model, stamps = bench.scale, subject.make(torch.float32), []
    size, vocab = sizes(model), model.config.vocab_size
    forget, retain = (
        made_answers(scale.updated, vocab, scale.shortest, scale.longest, seed) for seed in (1, 2)
    )
    every = Optimization(
        epochs=EPOCHS,
        batch=batch,
        learning_rate=1e-5,
        budget=scale.budgets[1],
        precision=word,
    )
    settings = Unlearning(
        objective=npo(0.1), optimization=every, retain_term="cross_entropy", retain_probe=PROBE
    )

    def stamp(*_: object) -> dict[str, float]:
        finish(bench.device)
        stamps.append(time.perf_counter())
        return {}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random answers are neither known nor forgotten
        unlearn(model, forget, retain, settings, measure=Measure("time", stamp), progress=False)
    taken = (stamps[EPOCHS] - stamps[1]) / (EPOCHS - 1)
    tokens, scored = tokens_of([*forget, *retain])
    probe = made_answers(PROBE, vocab, scale.shortest, scale.longest, seed=2)
    looked, of_them = tokens_of([*forget, *probe[: len(retain)]])  # after an epoch, about so many
    done = operations(size, tokens, scored, trained=True) + operations(size, looked, of_them)
    share = head_share(size, tokens, scored)
    yield from rates(bench, what, DTYPES[word], tokens, done, taken, share)


def rates(
    bench: Bench,
    what: str,
    dtype: torch.dtype,
    tokens: int,
    done: float,
    taken: float,
    head: float,
) -> Iterator[Row]:
    """Yield the tokens per second of some work, and the share of the products that it reaches."""
    yield Row(what=what, value=tokens / taken, unit="tokens/s")
    yield Row(
        what=f"{what}: share of the product rate",
        value=100 * done / taken / bench.rate(dtype),
        unit="%",
        bound=Bound(note=f"{100 * head:.0f}% of the work is the head's"),
    )
