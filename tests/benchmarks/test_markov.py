"""Time and memory of the Markov lab, each beside the bound that the machine sets: `make
benchmark`.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from figures.scale import Scale
from figures.theory.sweeps import middle
from markov.cases import CASES, LENGTH
from markov.experiments import Experiment, Pretraining, grid
from markov.models import Tabular, Transformer
from markov.objectives import Objective, npo, simnpo
from markov.running.models import load_model, model_jobs, models_folder
from markov.running.run import run
from markov.theory import theta

PAPER = {"length": (npo(0.2), simnpo(4.0)), "memorisation": (npo(1.0), simnpo(4.0))}


def matmul_rate(seconds: float = 1.0) -> float:
    """FLOP per second of one thread on a product of float32 matrices that fit its cache."""
    torch.set_num_threads(1)
    one, two = torch.randn(384, 384), torch.randn(384, 384)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        torch.mm(one, two)
        count += 1
    return count * 2 * 384**3 / (time.perf_counter() - began)


def figure_5() -> list[Experiment]:
    """The runs of the paper's Figure 5 of one seed, on the released architecture."""
    base = Experiment(model=Transformer.released())
    return [
        one
        for name, case in CASES.items()
        for one in grid(replace(base, case=case), objective=PAPER[name])
    ]


def trivial(models: int = 1) -> list[Experiment]:
    """A thousand runs of two steps of a table of transitions."""
    case = replace(LENGTH, retain_count=200, forget1_count=100, forget2_count=100)
    seeds = [Pretraining(epochs=1, seed=seed) for seed in range(models)]
    base = Experiment(case=case, model=Tabular(), steps=2, test_examples=8)
    return grid(base, seed=range(1000 // models), pretraining=seeds)


def report(text: str) -> None:
    print(f"\n    {text}")


def mean_seconds(benchmark: BenchmarkFixture) -> float:
    """Mean time of a round; nan where benchmarks are switched off."""
    return benchmark.stats["mean"] if benchmark.stats else float("nan")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path))
    return tmp_path


def test_figure_5_from_nothing(benchmark: BenchmarkFixture, cache: Path) -> None:
    """Released architecture, both cases and methods, 50 steps, 51 evaluations on the full test
    sets, one seed.
    """
    model, workers, experiments = Transformer.released(), 2, figure_5()
    frame = benchmark.pedantic(lambda: run(experiments, n_jobs=workers, progress=False), rounds=1)
    trained = [(case, part) for case in CASES.values() for part in case.pretrain_components] + [
        (LENGTH, "retain")
    ]
    tested = [(case, part) for case in CASES.values() for part in case.lengths]
    train, test = (
        sum((c.lengths[p] - 1) * c.counts[p] for c, p in pairs) for pairs in (trained, tested)
    )
    work = 2 * model.products * (3 * 5 * 0.8 * train + 2 * 51 * 0.2 * test)
    bound = work / sum(
        rate for rate in joblib.Parallel(workers)([joblib.delayed(matmul_rate)()] * workers) if rate
    )
    memory = [
        resource.getrusage(who).ru_maxrss / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    report(
        f"{mean_seconds(benchmark):.0f} s; {work / 1e12:.1f} TFLOP of matrix products alone would "
        f"take {bound:.0f} s; "
        f"peak memory {memory[0]:.2f} GiB in this process, {memory[1]:.2f} GiB in the largest of "
        f"{workers} workers"
    )
    assert len(frame) == 4 * 51 * 3


@pytest.mark.parametrize("members", [1, 32])
def test_unlearning_per_member(benchmark: BenchmarkFixture, cache: Path, members: int) -> None:
    """50 steps without evaluation but at the start and the end, on 8 test sequences each, in one
    process.
    """
    base = Experiment(recorded=(0, 50), test_examples=8)
    experiments = grid(base, objective=[npo(0.2)], seed=range(members))
    base = replace(base, pretraining=replace(base.pretraining, epochs=1))
    experiments = [replace(one, pretraining=base.pretraining) for one in experiments]
    run(experiments[:1], progress=False)
    frame = benchmark.pedantic(lambda: run(experiments, progress=False), rounds=3)
    assert len(frame) == members * 2 * 3
    work = 3 * 2 * Transformer().products * 50 * 4 * 19
    report(
        f"{mean_seconds(benchmark) / members:.2f} s per member; its matrix products take "
        f"{work / matmul_rate():.2f} s"
    )


@pytest.mark.parametrize("models", [1, 10])
def test_trivial_runs(benchmark: BenchmarkFixture, cache: Path, models: int) -> None:
    """1,000 runs of two steps of a table of transitions: what each costs beside its own work."""
    experiments = trivial(models)
    run(experiments[:models], progress=False)
    frame = benchmark.pedantic(lambda: run(experiments, progress=False), rounds=1)
    assert frame["run"].nunique() == 1000
    report(f"{mean_seconds(benchmark):.1f} ms per run in one process; it may take 5 ms")


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        (
            "sequences of 20 states",
            lambda generator: LENGTH.chains().retain.sample(100_000, 20, generator),
        ),
        (
            "uniform numbers alone",
            lambda generator: torch.rand(100_000, 20, generator=generator, dtype=torch.float64),
        ),
    ],
)
def test_sampling(
    benchmark: BenchmarkFixture, name: str, draw: Callable[[torch.Generator], torch.Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    assert benchmark(lambda: draw(generator)).shape == (100_000, 20)
    report(f"{1e5 / mean_seconds(benchmark):.3g} {name} per second, in rows of 20")


def test_scalar_law(benchmark: BenchmarkFixture) -> None:
    """1,000 lengths x 100 betas at one time; the bound of a slider drag is 50 ms."""
    lengths, betas = np.arange(1.0, 1001)[:, None], np.geomspace(0.01, 10, 100)
    law = Objective(betas, 0.0, 1.0, 0.0)  # pyright: ignore[reportArgumentType]
    assert benchmark(lambda: theta(law, lengths, 10.0)).shape == (1000, 100)
    report(
        f"{1e3 * mean_seconds(benchmark):.1f} ms for 100,000 responses; a slider drag may take 50 "
        "ms"
    )


def test_length_sweep_per_run(benchmark: BenchmarkFixture, cache: Path) -> None:
    """One ensemble of the figures' sweep over lengths, 120 steps of batch 12, beside its
    products of matrices.
    """
    base = replace(Scale().sweep(), optimizer="sgd")
    experiments = grid(base, objective=middle(), seed=[0, 1])
    for job in model_jobs(base):
        load_model(models_folder(), job)
    frame = benchmark.pedantic(run, (experiments,), {"progress": False}, rounds=1, iterations=1)
    assert frame["run"].nunique() == 8
    mean, count = (
        sum(length - 1 for length in list(base.case.lengths.values())[1:]) / 6,
        len(base.recorded or ()),
    )
    trained = 3 * base.steps * base.batch * mean  # forward and backward
    looked_at = (
        count * (base.test_examples or 0) * sum(length - 1 for length in base.case.lengths.values())
    )
    assert isinstance(base.model, Transformer)
    bound = 2 * base.model.products * (trained + looked_at) / matmul_rate()
    report(
        f"{mean_seconds(benchmark) / 8:.2f} s per run on one core; its products of matrices alone: "
        f"{bound:.2f} s"
    )
