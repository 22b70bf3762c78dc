"""How experiments are divided: into ensembles, and an ensemble into shares of what it records.

How they are divided changes the time, never a row: no run knows its company, and recording less
often records the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from markov.batching import cutting_of
from markov.console import duration
from markov.experiments import Experiment
from markov.running.models import ModelJob

# Tasks for each process: with fewer, one may have nothing left to do while another works.
TASKS = 5
# Multiplications that take as long as the calls of a step that computes next to nothing.
CALLS = 1e8


class Share(NamedTuple):
    """Runs that are made side by side: their places among all experiments, and what is recorded."""

    places: tuple[int, ...]
    experiments: tuple[Experiment, ...]
    recorded: tuple[int, ...]


def shape_of(experiment: Experiment) -> tuple[Any, ...]:
    """Return what the members of an ensemble must share: all but the values that may differ."""
    free = {"case", "objective", "pretraining", "seed", "learning_rate", "retain_weight"}
    return experiment.case.shape + tuple(
        value for name, value in vars(experiment).items() if name not in free
    )


def ensembles(experiments: Sequence[Experiment]) -> list[list[int]]:
    """Return the places of the runs of each ensemble."""
    alike: dict[Any, list[int]] = {}
    for place, experiment in enumerate(experiments):
        alike.setdefault(shape_of(experiment), []).append(place)
    found = []
    for own in alike.values():
        # Runs of one seed draw batches of the same lengths, so that all of them can be computed
        # side by side.
        own.sort(key=lambda place: experiments[place].seed)
        members = cutting_of(experiments[own[0]].device).members
        found += [part.tolist() for part in np.array_split(own, -(-len(own) // members))]
    return found


def shares(experiments: Sequence[Experiment]) -> list[Share]:
    """Return the ensembles as shares that record all that is asked for."""
    found = []
    for places in ensembles(experiments):
        own = tuple(experiments[place] for place in places)
        found.append(Share(tuple(places), own, own[0].steps_recorded))
    return found


def split(share: Share, workers: int, whole: int) -> list[Share]:
    """Return a share in parts: enough of them for `workers` processes, where that pays.

    `whole` is the number of shares that there are. Each part takes all steps again, which costs
    little where recording is what takes long.
    """
    if workers == 1:
        return [share]
    stepping, recording = tokens_of(share.experiments[0])
    worthwhile = int(recording / max(2 * stepping, 1.0))
    # Parts of one ensemble are equally long.
    wanted = workers if whole == 1 else -(-TASKS * workers // whole)
    count = max(1, min(wanted, worthwhile, len(share.recorded)))
    return [share._replace(recorded=share.recorded[part::count]) for part in range(count)]


def cost(share: Share) -> float:
    """Return the multiplications of a share, roughly."""
    first = share.experiments[0]
    stepping, recording = tokens_of(first)
    part = len(share.recorded) / len(first.steps_recorded)
    calls = (first.steps + len(share.recorded)) * CALLS
    return calls + len(share.experiments) * (stepping + part * recording) * first.model.products


def check_ends(missing: Sequence[ModelJob], divided: Sequence[Share], cores: int) -> None:
    """Raise `InvalidInput` for models and shares that would take longer than anybody waits.

    See `markov.console.duration`. `cores` share the work.
    """
    if not divided:
        return
    epochs = max((job.pretraining.epochs for job in missing), default=1)
    parts = {
        "epochs": duration.Part(epochs, sum(job.cost for job in missing)),
        "steps": duration.Part(
            max(share.experiments[0].steps for share in divided), sum(map(cost, divided))
        ),
    }
    duration.check_ends(parts, device=divided[0].experiments[0].device, cores=cores)


def tokens_of(experiment: Experiment) -> tuple[float, float]:
    """Return the tokens of all steps of a run, and of all that is recorded of it.

    A backward pass counts as two forward passes; padding is left out.
    """
    lengths = {name: length - 1 for name, length in experiment.case.lengths.items()}
    most = experiment.test_examples
    tested = {
        name: count if most is None else min(most, count)
        for name, count in experiment.case.tested.items()
    }
    tokens = sum(tested[name] * length for name, length in lengths.items())
    forget = [length for name, length in lengths.items() if name != "retain"]
    gradients = 3 * experiment.gradient_examples * sum(forget)
    stepping = 3 * experiment.steps * experiment.batch * sum(forget) / len(forget)
    return stepping, len(experiment.steps_recorded) * (tokens + gradients)
