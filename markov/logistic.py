"""The NPO paper's synthetic study: logistic labels, random features, gradient descent.

    inputs     x ~ N(mu, I_d)
    labels     P(y = 1 | x) = sigmoid((x - mu)'theta + shift)
    model      pi_w(y = 1 | x) = sigmoid(w'phi(x)),  phi(x) = relu(W x),  W_ij ~ N(0, 1/d)

with mu = alpha 1_d, theta = 1_d/sqrt(d) and shift = 1 on forget data, and the opposite of all three
on retain data. A response is one label, so |y| = 1, `normalize` changes nothing, and of the four
corners two remain: NPO and its reference-free form, here called SimNPO. grad logp = (y - pi_w(1 |
x)) phi(x), and the KL divergence between two models at one input is a sum of two terms. Nothing is
approximated but the expectation over inputs, for which the distances take a test sample of the same
law. Source: Zhang et al. 2024, section 4.

The paper's Theorem 2 (GA diverges linearly, NPO logarithmically) is about nearly orthogonal phi(x),
of which there are at most as many as they have entries. Here 200 vectors share 128 entries, none of
them negative, so that all point the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from markov.batching import generator
from markov.console import limits
from markov.errors import is_whole, require, require_number, require_whole
from markov.numerics import VECTOR, exceeds, one_thread
from markov.objectives import Objective, SequenceLogProbs, method_name, stack, validate

COLUMNS: dict[str, str] = {
    "run": "position of the run, counted through the instances",
    "alpha": "how far the inputs' mean lies from 0, per coordinate",
    "seed": "seed of the data and of the features",
    "method": "name of the corner of the family",
    "beta": "inverse temperature, as published",
    "gamma": "reward margin, outside beta",
    "learning_rate": "step size of unlearning",
    "forget_weight": "factor of the forget loss: 1, or 0 for the retain loss alone",
    "retain_weight": "factor of the retain loss, as published",
    "step": "unlearning steps taken",
    "forget_distance": (
        "mean over forget test inputs of KL(retrained model || model), nats; 0 is ideal"
    ),
    "retain_distance": "the same over retain test inputs",
    "kl_to_reference": "mean over forget test inputs of KL(reference model || model), nats",
    "parameter_distance": "|w - w_ref|",
    "logit_distance": (
        "root mean square over the forget data of (w - w_ref)'phi: Theorem 2's norm / sqrt(n_f)"
    ),
    "weight": "mean of d loss / d logp over the forget data",
    "risen": (
        "share of the forget data that is more probable than under the reference, by more "
        "than rounding"
    ),
}
# So many runs always go side by side, because how a product is summed depends on its number of
# rows. Places without a run are filled with a copy. A product of four rows takes no longer than one
# of one row.
SIDE = 4
POSITIVE = "a finite number > 0"


@dataclass(frozen=True, kw_only=True)
class LogisticWorld:
    """One instance: its law, its sample, and the training of its models.

    Equal seeds share the noise at any alpha.
    """

    alpha: float = 1.0
    seed: int = 0
    dimension: int = 16
    width: int = 128
    shift: float = 1.0
    forget_count: int = 200
    retain_count: int = 1000
    test_count: int = 1000
    steps: int = 20_000
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        for name in ("dimension", "width", "forget_count", "retain_count", "test_count", "steps"):
            require_whole(getattr(self, name), name, *limits.LOGISTIC)
        require_whole(self.seed, "seed")
        require_number(self.alpha, "alpha", lambda number: number >= 0, "a finite number >= 0")
        require_number(self.shift, "shift", lambda number: True, "a finite number")
        require_number(self.learning_rate, "learning_rate", lambda number: number > 0, POSITIVE)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Full-batch gradient descent from the reference on a weighted sum of two losses.

    The sum is forget_weight * forget loss + retain_weight * retain loss. Both losses are means over
    their data; `recorded` are the steps to look at, in order.
    """

    objective: Objective
    learning_rate: float
    forget_weight: float = 1.0
    retain_weight: float = 0.0
    recorded: tuple[int, ...] = tuple(range(0, 2001, 25))

    def __post_init__(self) -> None:
        validate(self.objective)
        require_number(self.learning_rate, "learning_rate", lambda number: number > 0, POSITIVE)
        for name in ("forget_weight", "retain_weight"):
            require_number(
                getattr(self, name), name, lambda number: number >= 0, "a finite number >= 0"
            )
        steps = self.recorded
        whole = isinstance(steps, tuple) and len(steps) > 0 and all(map(is_whole, steps))
        ordered = whole and list(steps) == sorted(set(steps))
        require(ordered, "recorded", steps, "different whole numbers of at least 0, in order")


class Sample(NamedTuple):
    """Inputs, the features that the model sees of them, and their labels, 0 or 1."""

    inputs: Float[Tensor, "count dimension"]
    features: Float[Tensor, "count width"]
    label: Float[Tensor, " count"]


class Samples(NamedTuple):
    """The four samples of an instance."""

    forget: Sample
    retain: Sample
    forget_test: Sample
    retain_test: Sample


class Pair(NamedTuple):
    """Parameters of two models: one trained on everything, one that never saw the forget data."""

    reference: Float[Tensor, " width"]
    retrained: Float[Tensor, " width"]


def draw(world: LogisticWorld) -> Samples:
    """Draw the samples of an instance, each from a stream of random numbers of its own."""
    size, root, double = (world.width, world.dimension), world.dimension**0.5, torch.float64
    weights = (
        torch.randn(size, generator=generator(world.seed, "logistic weights"), dtype=double) / root
    )

    def sample(name: str, sign: int, count: int) -> Sample:
        own = generator(world.seed, f"logistic {name}")
        noise = torch.randn((count, world.dimension), generator=own, dtype=double)
        prob = torch.sigmoid(sign * (noise.sum(1) / root + world.shift))
        label = (torch.rand(count, generator=own, dtype=double) < prob).to(double)
        inputs = noise + sign * world.alpha
        return Sample(inputs, (inputs @ weights.T).relu(), label)

    counts = (world.forget_count, world.retain_count, world.test_count, world.test_count)
    return Samples(*map(sample, Samples._fields, (1, -1, 1, -1), counts))


def pretrain(world: LogisticWorld, *samples: Sample) -> Float[Tensor, " width"]:
    """Return the parameters after gradient descent from zero on the mean of -logp over all samples.

    A step is w += rate * mean((y - pi_w) phi).
    """
    # In numpy, whose products of a matrix and a vector are three times as fast.
    half = torch.cat([sample.features for sample in samples]).numpy() / 2
    sign = 2 * torch.cat([sample.label for sample in samples]).numpy() - 1
    parameters, rate = np.zeros(world.width), world.learning_rate / len(sign)
    for _ in range(world.steps):
        # y - sigmoid(z) = (sign - tanh(z/2)) / 2: tanh never overflows, and the features carry both
        # halves.
        parameters += rate * ((sign - np.tanh(half @ parameters)) @ half)
    return torch.from_numpy(parameters)


def train_pair(world: LogisticWorld, data: Samples) -> Pair:
    """Train the reference (all data) and the retrained model (retain data only) of an instance."""
    return Pair(pretrain(world, data.forget, data.retain), pretrain(world, data.retain))


def descend(
    data: Samples, start: Tensor, runs: Sequence[Descent]
) -> Float[Tensor, "recorded runs width"]:
    """Return the parameters of all runs at the recorded steps.

    The runs go side by side from one start, and all record the same steps.

    Slope: forget_weight mean(weight (y - pi_w) phi) - retain_weight mean((y - pi_w) phi), with the
    weight of the law. Raises `InvalidInput` unless all runs record the same steps.
    """
    require(
        len({run.recorded for run in runs}) == 1,
        "recorded",
        [run.recorded for run in runs],
        "one for all runs",
    )
    parts = []
    for first in range(0, len(runs), SIDE):
        own = runs[first : first + SIDE]
        filled = [*own, *[own[-1]] * (SIDE - len(own))]
        parts.append(_descend(data, start, filled)[:, : len(own)])
    return torch.cat(parts, dim=1)


def _descend(
    data: Samples, start: Tensor, runs: Sequence[Descent]
) -> Float[Tensor, "recorded runs width"]:
    numbers = [[run.learning_rate, run.forget_weight, run.retain_weight] for run in runs]
    rate, forgetting, retaining = np.array(numbers).T[..., None]
    forget, count, recorded = _whole_vectors(data.forget), len(data.forget.label), runs[0].recorded
    law, before = _stacked(runs), _logp(forget, start).expand(len(runs), -1)
    length, sign, label = torch.ones_like(before), 2 * forget.label - 1, forget.label
    # Products in numpy: several times as fast for so few rows, and faster still where both factors
    # lie in order.
    phi, kept, kept_label = (
        forget.features.numpy(),
        data.retain.features.numpy(),
        data.retain.label.numpy(),
    )
    across, both = np.ascontiguousarray(kept.T), bool(retaining.any())
    parameters, path, wanted = np.repeat(start.numpy()[None], len(runs), axis=0), [], set(recorded)
    for step in range(recorded[-1] + 1):
        if step in wanted:
            path.append(parameters)
        logit = torch.from_numpy(parameters @ phi.T)
        weight = law.weight(SequenceLogProbs(logsigmoid(sign * logit), length, before))
        slope = forgetting / count * ((weight * (label - logit.sigmoid())).numpy() @ phi)
        if both:
            slope -= retaining / len(kept) * ((kept_label - expit(parameters @ across)) @ kept)
        parameters = parameters - rate * slope
    return torch.from_numpy(np.stack(path))


def _whole_vectors(sample: Sample) -> Sample:
    """Return the sample with zero features appended until it fills whole vectors (see `VECTOR`).

    Inputs of which the model sees nothing, 0, move no parameter.
    """
    spare = -len(sample.label) % VECTOR
    inputs, features = (pad(field, (0, 0, 0, spare)) for field in sample[:2])
    return Sample(inputs, features, pad(sample.label, (0, spare)))


def bernoulli_kl(
    logit: Float[Tensor, "*batch"], other: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Return KL(sigmoid(logit) || sigmoid(other)) in nats.

    It is p (a - b) + softplus(b) - softplus(a), accurate at any size of a and b.
    """
    return logit.sigmoid() * (logit - other) - logsigmoid(-other) + logsigmoid(-logit)


def measure(data: Samples, pair: Pair, runs: Sequence[Descent], path: Tensor) -> dict[str, Tensor]:
    """Measure a path of `descend`: return what `COLUMNS` lists from `forget_distance` on.

    Each value has the shape (recorded, runs).
    """

    def distance(sample: Sample, model: Tensor) -> Tensor:
        return bernoulli_kl(sample.features @ model, path @ sample.features.T).mean(-1)

    logp, ref, moved = (
        _logp(data.forget, path),
        _logp(data.forget, pair.reference),
        path - pair.reference,
    )
    return {
        "forget_distance": distance(data.forget_test, pair.retrained),
        "retain_distance": distance(data.retain_test, pair.retrained),
        "kl_to_reference": distance(data.forget_test, pair.reference),
        "parameter_distance": moved.norm(dim=-1),
        "logit_distance": (moved @ data.forget.features.T).square().mean(-1).sqrt(),
        "weight": _stacked(runs)
        .weight(SequenceLogProbs(logp, torch.ones_like(logp), ref.expand_as(logp)))
        .mean(-1),
        "risen": exceeds(logp, ref).double().mean(-1),
    }


def run(
    worlds: Sequence[LogisticWorld], runs: Sequence[Descent], *, n_jobs: int = 1
) -> pd.DataFrame:
    """Do every run in every instance and return one row per instance x run x recorded step.

    The columns are those of `COLUMNS`. `n_jobs` (-1: one per core) spreads instances over processes
    and changes the time, never a row. Raises `InvalidInput` if there is no instance or no run.
    """
    require(len(worlds) > 0, "worlds", worlds, "at least one")
    require(len(runs) > 0, "runs", runs, "at least one")
    jobs = (
        joblib.delayed(_instance)(world, runs, index * len(runs))
        for index, world in enumerate(worlds)
    )
    return pd.concat(list(joblib.Parallel(n_jobs=n_jobs)(jobs)), ignore_index=True)


def _instance(world: LogisticWorld, runs: Sequence[Descent], first: int) -> pd.DataFrame:
    with one_thread():
        data = draw(world)
        pair, groups, frames = train_pair(world, data), {}, []
        for index, one in enumerate(runs, first):
            # Runs that record the same steps go side by side; those without a retain term need no
            # retain data.
            groups.setdefault((one.recorded, one.retain_weight > 0), {})[index] = one
        for (recorded, _), group in groups.items():
            path = descend(data, pair.reference, list(group.values()))
            for place, (index, one) in enumerate(group.items()):
                found = measure(data, pair, [one], path[:, place : place + 1].contiguous())
                own = {name: values[:, 0].numpy() for name, values in found.items()}
                own |= {"run": index, "method": method_name(one.objective), "step": recorded}
                known = {**vars(world), **one.objective._asdict(), **vars(one), **own}
                frames.append(pd.DataFrame({name: known[name] for name in COLUMNS}))
    return pd.concat(frames).sort_values(["run", "step"], kind="stable", ignore_index=True)


def _logp(
    sample: Sample, parameters: Float[Tensor, "*batch width"]
) -> Float[Tensor, "*batch count"]:
    return logsigmoid((2 * sample.label - 1) * (parameters @ sample.features.T))


def _stacked(runs: Sequence[Descent]) -> Objective:
    """Return one objective whose fields broadcast against (runs, examples)."""
    fields = stack([run.objective for run in runs], dtype=torch.float64)
    return Objective(*(torch.as_tensor(field)[:, None] for field in fields))
