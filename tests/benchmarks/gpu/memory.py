"""The plan of memory beside the peaks that are measured, and a large model with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from llm.scoring.encoding import Encoded
from llm.scoring.logprobs import score_encoded
from llm.training.adapters import Lora, adapted
from llm.training.fine_tuning import fine_tune
from llm.training.plan import Work
from llm.training.rehearsal import Way
from llm.training.settings import Optimization
from tests.benchmarks.gpu.bench import Bench, guarded
from tests.benchmarks.gpu.card import peak, seconds
from tests.benchmarks.gpu.rows import Bound, Row
from tests.benchmarks.gpu.subjects import config_of, planner_of, random_llama

GIGABYTE = 1e9
WITHIN = 0.1  # of the plan
LARGEST = 22e9  # bytes that a model of seven billion parameters may take with adapters
ROWS, UPDATES = 4, 3
# Batches of an update: the second one finds gradients of the first, which the plan reckons with.
PARTS = 2
LORA = Lora(rank=8)
# What is planned and done, on the model of a billion parameters.
WAYS = {
    "scoring, float32": None,
    "training, products in bfloat16": Way(bfloat16=True),
    "training of adapters, products in bfloat16": Way(bfloat16=True, lora=LORA),
}
SEVEN = Way(bfloat16=True, gradient_checkpointing=True, lora=LORA)


def full_rows(count: int, length: int, vocab: int) -> list[Encoded]:
    """Return random answers that are all as long as is allowed, of which one token is a prompt."""
    generator = torch.Generator().manual_seed(0)
    draw = (torch.randint(3, vocab, (length,), generator=generator) for _ in range(count))
    return [Encoded(tuple(tokens.tolist()), 1) for tokens in draw]


def work(bench: Bench, model: Any, way: Way | None, updates: int = UPDATES) -> None:
    """Score or train a model on batches of the largest shape."""
    length = bench.scale.length
    encoded = full_rows(ROWS * PARTS * updates, length, model.config.vocab_size)
    if way is None:
        score_encoded(model, encoded, budget=ROWS * length, progress=False)
        return
    settings = Optimization(
        epochs=1,
        batch=ROWS * PARTS,
        learning_rate=1e-5,
        budget=ROWS * length,
        precision="bfloat16" if way.bfloat16 else "float32",
        gradient_checkpointing=way.gradient_checkpointing,
    )
    fine_tune(model, encoded, settings, progress=False)


def weights(model: Any) -> int:
    """Return the bytes of a model that was made.

    How it was made is not counted: a tied head is made beside the table that takes its place.
    """
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def beside(planned: float) -> Bound:
    """Return the bound of a peak that was planned."""
    return Bound(
        least=planned * (1 - WITHIN) / GIGABYTE,
        most=planned * (1 + WITHIN) / GIGABYTE,
        note=f"planned {planned / GIGABYTE:.4g}",
    )


def plans(bench: Bench) -> Iterator[Row]:
    """Yield the peaks of scoring, training and training of adapters, beside their plans."""
    config, name = config_of(bench.scale.one), bench.scale.names[1]
    planner = planner_of(config)

    def one(what: str, way: Way | None) -> Iterator[Row]:
        length = bench.scale.length
        planned = planner.plan(Work(way=way, budget=ROWS * length, max_length=length)).total
        model = random_llama(config, torch.float32, bench.device)
        held = weights(model)
        with peak(bench.device) as found, adapted(model, way and way.lora, 0) as trained:
            work(bench, trained, way)
            del trained
        del model
        held += found.bytes
        yield Row(what=what, value=held / GIGABYTE, unit="GB", bound=beside(planned))

    for word, way in WAYS.items():
        what = f"peak of {word}, {name}"
        yield from guarded(what, lambda what=what, way=way: one(what, way))


def seven(bench: Bench) -> Iterator[Row]:
    """Yield the peak and the speed of a few updates of a large model with adapters."""
    config, length = config_of(bench.scale.seven), bench.scale.length
    what = f"adapters on {bench.scale.names[2]} in bfloat16, {ROWS * length} tokens at a time"
    planned = (
        planner_of(config)
        .plan(Work(dtype="bfloat16", way=SEVEN, budget=ROWS * length, max_length=length))
        .total
    )
    model = random_llama(config, torch.bfloat16, bench.device)
    own = weights(model)
    with peak(bench.device) as found, adapted(model, LORA, 0) as trained:
        work(bench, trained, SEVEN, 1)  # kernels are chosen at the first pass of a shape
        taken = seconds(lambda: work(bench, trained, SEVEN), bench.device)
        del trained
    del model
    held = (own + found.bytes) / GIGABYTE
    yield Row(what=f"peak of {what}", value=held, unit="GB", bound=Bound(most=LARGEST / GIGABYTE))
    yield Row(what="the same peak, beside its plan", value=held, unit="GB", bound=beside(planned))
    tokens = UPDATES * PARTS * ROWS * length
    yield Row(what=f"training of {what}", value=tokens / taken, unit="tokens/s")
