"""The Markov lab on a GPU: its numbers beside the processor's, and a thousand runs at once.

Time and memory are those of one ensemble of the paper's first case, the defaults of `python -m
markov unlearn`: 50 steps, after each of which all is recorded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from markov.cases import LENGTH
from markov.experiments import Experiment, Pretraining, grid
from markov.models import Transformer
from markov.numerics import one_thread
from markov.objectives import CORNERS, Objective
from markov.recording import Trajectory
from markov.running.dividing import tokens_of
from markov.running.models import model_jobs, model_path
from markov.running.run import trajectory
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.card import peak, seconds
from tests.benchmarks.gpu.rows import Bound, Row
from tests.benchmarks.gpu.steps import Step
from tests.benchmarks.gpu.subjects import QUICK

OBJECTIVES = tuple(
    Objective(4.0 if normalize else 0.2, 0.0, reference, normalize)
    for reference, normalize in CORNERS.values()
)
ALONGSIDE = 8  # runs that the processor makes as well


def base(bench: Bench) -> Experiment:
    """Return the experiment that all runs start from, small where this script itself is tried."""
    if bench.scale != QUICK:
        return Experiment(test_examples=48, gradient_examples=8)
    few = replace(LENGTH, retain_count=60, forget1_count=60, forget2_count=60)
    model = Transformer(width=16, depth=1, mlp_width=16)
    short = Pretraining(epochs=1, batch=16)
    return Experiment(case=few, model=model, pretraining=short, steps=3, gradient_examples=2)


def several(bench: Bench, count: int, device: str) -> list[Experiment]:
    """Return runs on a device: the four corners, each with as many orders of batches."""
    orders = range(-(-count // len(OBJECTIVES)))
    return grid(replace(base(bench), device=device), objective=OBJECTIVES, seed=orders)[:count]


def agreement(bench: Bench) -> Iterator[Row]:
    """Yield how far the numbers of a few runs lie from those of the processor.

    They start from one model, so that only unlearning and recording are compared.
    """
    with cached() as cache, one_thread():
        known = trajectory(several(bench, ALONGSIDE, "cpu"), cache=cache, progress=False)
        runs = several(bench, ALONGSIDE, str(bench.device))
        # A device trains models of its own: here those of the processor take their place.
        pairs = zip(model_jobs(base(bench)), model_jobs(runs[0]), strict=True)
        for own, other in pairs:
            if own != other:
                shutil.copy(model_path(cache, own), model_path(cache, other))
        found = trajectory(runs, cache=cache, progress=False)
    for name in ("reference", "logp", "kl_to_truth", "gradient_norm", "batch_weight"):
        yield Row(
            what=f"{name} of {ALONGSIDE} runs beside the processor's, largest relative difference",
            value=apart(known, found, name),
            bound=Bound(most=1e-4),
        )


def apart(known: Trajectory, found: Trajectory, name: str) -> float:
    """Return the largest difference of a field, relative to its largest number."""
    one, other = getattr(known, name).double().nan_to_num(), getattr(found, name).double()
    return float((other.nan_to_num() - one).abs().max() / one.abs().max())


def thousand(bench: Bench) -> Iterator[Row]:
    """Yield time, memory and runs per hour of an ensemble as large as a card's."""
    count = ALONGSIDE if bench.scale == QUICK else 1000
    experiments = several(bench, count, str(bench.device))
    with cached() as cache:
        # What is trained, and what a card prepares at its first call, is not counted.
        trajectory(experiments[:1], cache=cache, progress=False)
        with peak(bench.device) as held:
            taken = seconds(
                lambda: trajectory(experiments, cache=cache, progress=False), bench.device
            )
    what = f"{count} runs, {experiments[0].steps} steps, all recorded"
    yield Row(what=what, value=taken, unit="s", bound=Bound(most=240))
    yield Row(what=f"memory of {what}", value=held.bytes / 1e9, unit="GB", bound=Bound(most=40))
    yield Row(what="runs per hour", value=3600 * count / taken, unit="runs")
    rate = bench.rate(torch.float32)
    bound = Bound(note="products of matrices alone, at the device's rate")
    alone = products(experiments) / rate
    yield Row(what=f"products of {what}", value=alone, unit="s", bound=bound)


def products(experiments: Iterable[Experiment]) -> float:
    """Return the operations of the linear layers of runs: two for each multiplication."""
    return sum(2.0 * one.model.products * sum(tokens_of(one)) for one in experiments)


@contextmanager
def cached() -> Iterator[Path]:
    """Give a folder for models that goes with the block."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


STEPS = (
    Step("runs beside the processor's", 60, agreement),
    Step("a thousand runs", 60, thousand),
)
