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
from markov.models import Parameters, Transformer, stack_parameters
from markov.numerics import one_thread
from markov.objectives import CORNERS, Objective
from markov.recording import Probe, Trajectory, kl_to_truth, log_laws
from markov.running.dividing import tokens_of
from markov.running.models import ModelJob, load_model, model_jobs, model_path, train
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
    with started(bench) as cache, one_thread():
        known = trajectory(several(bench, ALONGSIDE, "cpu"), cache=cache, progress=False)
        found = trajectory(
            several(bench, ALONGSIDE, str(bench.device)), cache=cache, progress=False
        )
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
    with started(bench) as cache:
        # What a card prepares at its first call is not counted.
        trajectory(experiments[:1], cache=cache, progress=False)
        for fewer in (one for one in (1, ALONGSIDE, 100) if one < count):
            taken = seconds(
                lambda fewer=fewer: trajectory(experiments[:fewer], cache=cache, progress=False),
                bench.device,
            )
            what = f"{fewer} runs, {experiments[0].steps} steps, all recorded"
            yield Row(what=what, value=taken, unit="s")
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


def learning(bench: Bench) -> Iterator[Row]:
    """Yield how long the device takes to train a model, and how far from the processor's it ends.

    Training ends elsewhere after thousands of steps in another arithmetic, so that there is no
    bound: it is the distance of each component's law from the truth that is compared.
    """
    with started(bench) as cache:
        (job, _), (own, _) = (
            model_jobs(replace(base(bench), device=device)) for device in ("cpu", str(bench.device))
        )
        known = load_model(cache, job, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        taken = seconds(lambda: train(Path(folder), own, progress=False), bench.device)
        found = load_model(Path(folder), own, progress=False)
    yield Row(what="a model trained", value=taken, unit="s")
    for (name, one), (_, other) in zip(goals(job, known), goals(job, found), strict=True):
        note = f"the processor's {one:.4g}"
        what = f"distance of that model from the truth, {name}"
        yield Row(what=what, value=other, unit="nats/token", bound=Bound(note=note))


def goals(job: ModelJob, parameters: Parameters) -> Iterator[tuple[str, float]]:
    """Yield the distance of a model from the truth, on the test sequences of each component."""
    data, one = job.case.sample(job.pretraining.seed), stack_parameters([parameters])
    for name, chain in zip(job.case.lengths, job.case.chains(), strict=True):
        laws = log_laws(job.model, one, data.test[name])
        yield name, float(kl_to_truth(Probe(data.test[name], chain.transition, laws, laws), laws))


@contextmanager
def started(bench: Bench) -> Iterator[Path]:
    """Give a folder with the models that runs start from, for the processor and for the device.

    A device trains models of its own: here those of the processor take their place. They are those
    of the folder of models that was asked for, and else of one that goes with the block.
    """
    with tempfile.TemporaryDirectory() as folder:
        cache = bench.models or Path(folder)
        pairs = zip(
            *(model_jobs(replace(base(bench), device=one)) for one in ("cpu", str(bench.device))),
            strict=True,
        )
        for own, other in pairs:
            load_model(cache, own, progress=False)
            if own != other and not model_path(cache, other).exists():
                shutil.copy(model_path(cache, own), model_path(cache, other))
        yield cache


STEPS = (
    Step("runs beside the processor's", 60, agreement),
    Step("a thousand runs", 60, thousand),
    Step("a model trained", 60, learning),
)
