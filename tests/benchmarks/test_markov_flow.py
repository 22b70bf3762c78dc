"""Time of the tabular flow, beside the time that its matrix products alone would take: `make
benchmark`.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from markov.banks import ExpectedLoss, best_table, sampled
from markov.cases import paper_chain
from markov.chains import Mixture
from markov.flow import frame, gradient_flow, time_to_forget
from markov.objectives import Objective, length_normalized_npo, npo, reference_free_npo, simnpo

SCORED = (2, 5, 10, 20, 40, 80)
STATES = 22


def mixtures() -> tuple[Mixture, Mixture, Mixture]:
    """Forget, retain and pretraining mixtures: components on three states each, and as many
    tokens of each length.
    """
    chains = tuple(
        paper_chain(range(3 * place, 3 * place + 3), STATES, 0.05)
        for place in range(len(SCORED) + 1)
    )
    counts = np.array([3 / 20, *(1 / np.array(SCORED))])
    lengths = (21, *(scored + 1 for scored in SCORED))
    forget = Mixture(
        weights=(1 / len(SCORED),) * len(SCORED), chains=chains[1:], lengths=lengths[1:]
    )
    retain = Mixture(weights=(1.0,), chains=chains[:1], lengths=lengths[:1])
    return (
        forget,
        retain,
        Mixture(weights=tuple(counts / counts.sum()), chains=chains, lengths=lengths),
    )


def seconds_per_product(rows: int) -> float:
    """Seconds of one thread for a product of a bank's counts with a vector."""
    counts, vector = np.random.default_rng(0).random((rows, STATES**2)), np.ones(STATES**2)
    began = time.perf_counter()
    for _ in range(200):
        np.dot(counts, vector)
    return (time.perf_counter() - began) / 200


@pytest.mark.parametrize(
    ("objective", "span"),
    [
        (npo(0.2), 1e3),
        (simnpo(2.5), 1e5),
        (length_normalized_npo(1.0), 1e3),
        (reference_free_npo(0.05), 1e3),
    ],
    ids=["npo", "simnpo", "length_normalized_npo", "reference_free_npo"],
)
def test_tabular_flow(benchmark: BenchmarkFixture, objective: Objective, span: float) -> None:
    """Six forget components of 2 to 80 scored tokens on 22 states: 100 sequences of each, four
    decades of time.
    """
    torch.set_num_threads(1)
    forget, retain, pretraining = mixtures()
    loss = ExpectedLoss(
        objective=objective, bank=sampled(forget, 100, 0), reference=best_table(pretraining)
    )
    flow = benchmark(
        lambda: gradient_flow(loss, np.array([0.0, *np.geomspace(span / 1e4, span, 60)]))
    )
    began = time.perf_counter()
    table, found = frame(flow, forget, retain), time_to_forget(flow, 0.5)
    after, rows = time.perf_counter() - began, len(loss.bank.share)
    assert len(table) == 61 * 7 and np.isfinite(found).all()
    mean = benchmark.stats["mean"] if benchmark.stats else float("nan")
    print(
        f"\n    {mean:.2f} s for {flow.evaluations} gradients over {rows} patterns, whose products "
        "alone take "
        f"{2 * flow.evaluations * seconds_per_product(rows):.2f} s; frame and times to forget "
        f"{after:.2f} s more"
    )
