"""Time of unlearning a language model: an epoch under each corner, and an update beside bare
passes.

Times are of the processor, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import LlamaForCausalLM

from llm.diagnostics.weights import corners
from llm.models.small_authors import DefaultModels
from llm.scoring.encoding import BUDGET, Batch, Encoded, batches
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from llm.unlearning.unlearn import Unlearning, unlearn
from tests.benchmarks.test_llm_scoring import (
    answers,
    fastest,
    llama,
    report,
    seconds,
    smollm2,
)

VOCAB = DefaultModels().vocabulary


def run(objective: Any, forget: list[Encoded], retain: list[Encoded], epochs: int) -> float:
    """Processor time of unlearning, the reference's scoring included."""
    model, every = (
        llama(VOCAB),
        Optimization(epochs=epochs, batch=16, learning_rate=1e-5, budget=384),
    )
    settings = Unlearning(
        objective=objective, optimization=every, retain_term="cross_entropy", retain_probe=16
    )
    began = time.process_time()
    unlearn(model, forget, retain, settings, progress=False)
    return time.process_time() - began


@pytest.mark.filterwarnings("ignore:the model has collapsed")  # it only guesses from the start
def test_an_epoch_of_npo_beside_one_of_simnpo(benchmark: BenchmarkFixture) -> None:
    """Half of what three epochs take beyond one: the scoring of the reference, before the first,
    does not count.
    """
    objectives, forget, retain = list(corners().values()), answers(48, VOCAB), answers(48, VOCAB)

    def rounds() -> list[list[tuple[float, float]]]:
        # In turn, so that whatever else the machine does hits all of them.
        return [
            [(run(one, forget, retain, 3), run(one, forget, retain, 1)) for one in objectives]
            for _ in range(3)
        ]

    found = benchmark.pedantic(rounds, rounds=1)
    fastest_of = [
        [min(times) for times in zip(*own, strict=True)] for own in zip(*found, strict=True)
    ]
    taken = [(three - one) / 2 for three, one in fastest_of]
    named = ", ".join(
        f"{name} {1e3 * each:.0f} ms" for name, each in zip(corners(), taken, strict=True)
    )
    report(
        f"{named}: NPO {taken[0] / taken[-1]:.3f} of SimNPO, of 48 answers with as many to retain"
    )
    assert min(taken) > 0


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize(
    ("made", "count", "budget"),
    [(lambda: llama(VOCAB), 96, 384), (smollm2, 16, BUDGET)],
    ids=["small", "SmolLM2"],
)
def test_fine_tuning_beside_bare_passes(
    benchmark: BenchmarkFixture, made: Callable[[], LlamaForCausalLM], count: int, budget: int
) -> None:
    """An epoch of fine-tuning beside forward and backward passes of transformers' own loss on
    the same batches.
    """
    model = made()
    encoded = answers(count, model.config.vocab_size)
    settings = Optimization(epochs=1, batch=count, learning_rate=1e-5, budget=budget)

    def passes() -> None:
        for rows in batches(encoded, settings.budget):
            batch = Batch.pad([encoded[row] for row in rows])
            labels = batch.tokens.where(batch.present, -100)
            model(batch.tokens, labels=labels).loss.backward()
        model.zero_grad()

    alone = seconds(passes)
    benchmark.pedantic(
        lambda: fine_tune(model, encoded, settings, progress=False), rounds=3, warmup_rounds=1
    )
    tokens = sum(len(one.tokens) for one in encoded)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    report(
        f"{tokens / fastest(benchmark):.0f} tokens per second, {alone / fastest(benchmark):.2f} of "
        "bare forward and "
        f"backward passes ({tokens / alone:.0f}), on {torch.get_num_threads()} thread"
    )
