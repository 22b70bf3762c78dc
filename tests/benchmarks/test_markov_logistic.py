"""Time of the logistic study, each beside the bound that the machine sets: `make benchmark`."""

from __future__ import annotations

import time

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from figures.theory.logistic import published
from markov.logistic import LogisticWorld, descend, draw, pretrain, run


def reading_rate(megabytes: float, seconds: float = 0.5) -> float:
    """Bytes per second at which one thread multiplies a float64 matrix of this size with a
    vector.
    """
    matrix = np.ones((int(megabytes * 1e6 / 8 / 128), 128))
    vector, out, count, began = np.ones(128), np.ones(len(matrix)), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        np.matmul(matrix, vector, out=out)
        count += 1
    return count * matrix.nbytes / (time.perf_counter() - began)


def mean_seconds(benchmark: BenchmarkFixture) -> float:
    """Mean time of a round; nan where benchmarks are switched off."""
    return benchmark.stats["mean"] if benchmark.stats else float("nan")


def test_pretraining_a_reference(benchmark: BenchmarkFixture) -> None:
    """20,000 steps on 1,200 examples; a step reads the features twice."""
    torch.set_num_threads(1)
    world = LogisticWorld()
    data = draw(world)
    found = benchmark.pedantic(lambda: pretrain(world, data.forget, data.retain), rounds=3)
    assert found.shape == (128,)
    read = 2 * world.steps * 1200 * 128 * 8
    bound = read / reading_rate(1200 * 128 * 8 / 1e6)
    print(
        f"\n    {mean_seconds(benchmark):.1f} s; its {read / 1e9:.0f} GB of features alone take "
        f"{bound:.1f} s to read"
    )


def test_unlearning_side_by_side(benchmark: BenchmarkFixture) -> None:
    """2,000 steps of GA, NPO and SimNPO at once, without a retain term."""
    torch.set_num_threads(1)
    world = LogisticWorld(steps=1)
    data, runs = draw(world), published(1.0)[:3]
    path = benchmark.pedantic(
        lambda: descend(data, torch.zeros(128, dtype=torch.float64), runs), rounds=3
    )
    assert path.shape == (len(runs[0].recorded), 3, 128)
    print(f"\n    {1e6 * mean_seconds(benchmark) / 2000:.0f} microseconds per step of three runs")


def test_one_instance_of_the_figure(benchmark: BenchmarkFixture) -> None:
    """Both models, seven runs, 10,000 steps where there is no retain term; the figure has ten of
    these.
    """
    torch.set_num_threads(1)
    frame = benchmark.pedantic(
        lambda: run([LogisticWorld()], published(1.0, horizon=10_000)), rounds=1
    )
    assert frame["run"].nunique() == 7
    print(
        f"\n    {mean_seconds(benchmark):.1f} s, so {10 * mean_seconds(benchmark):.0f} s for the "
        "figure on one core"
    )
