"""Pretraining and unlearning of an ensemble: many runs at once, one leading axis, no run knowing its company.

Every run has its own data, start, objective, step size and generators; the ensemble only shares the shapes. What is
recorded is the sufficient statistic, log-probabilities and distances, so that weights under any objective, rates and
profiles are functions of a `Trajectory` and need no new run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from markov.errors import require
from markov.models import Model, Parameters, stack_parameters
from markov.objectives import Objective, stack
from markov.optimizers import Optimizer
from markov.recording import CHUNK, Probe, Trajectory, record, score

PART = 32  # sequences per forward and backward pass in pretraining
RetainTerm = Literal["none", "cross_entropy", "kl"]


class Corpus(NamedTuple):
    """Sequences padded with 0 to one length, the tokens to score (never the first), and a label per sequence."""

    tokens: Int64[Tensor, "count time"]
    mask: Bool[Tensor, "count time-1"]
    component: Int64[Tensor, " count"]

    @classmethod
    def join(cls, parts: Sequence[Int64[Tensor, "count length"]]) -> Corpus:
        """One corpus out of components of possibly different lengths; `component` is the position in `parts`."""
        time = max(part.shape[-1] for part in parts)
        tokens = torch.cat([functional.pad(part, (0, time - part.shape[-1])) for part in parts])
        length = torch.cat([torch.full((len(part),), part.shape[-1]) for part in parts])
        component = torch.cat([torch.full((len(part),), index) for index, part in enumerate(parts)])
        return cls(tokens, torch.arange(1, time) < length[:, None], component)


class Run(NamedTuple):
    """All that may differ between the runs of an ensemble."""

    start: Parameters
    objective: Objective
    learning_rate: float
    retain_weight: float
    seed: int
    forget: Corpus
    retain: Corpus
    probes: tuple[Probe, ...]


class Batches(NamedTuple):
    """All the batches of an ensemble, one behind the other along the second axis."""

    tokens: Int64[Tensor, "runs rows time"]
    mask: Bool[Tensor, "runs rows time-1"]
    component: Int64[Tensor, "runs rows"]


def pretrain(
    model: Model,
    corpora: Sequence[Corpus],
    seeds: Sequence[int],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    optimizer: Optimizer,
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, Parameters], None] | None = None,
) -> dict[str, Tensor]:
    """Minimise the mean cross-entropy over scored tokens, one corpus and one seed per run; stacked parameters.

    A seed gives the same start to every corpus. `on_step(step, parameters)` is called after every step. Raises
    `InvalidInput` for corpora of different shapes.
    """
    shapes = sorted({tuple(corpus.tokens.shape) for corpus in corpora})
    require(len(shapes) == 1, "corpora", shapes, "one common shape")
    parameters = _trainable([model.init(derive_seed(seed, "start")) for seed in seeds], dtype, corpora[0].tokens.device)
    generators = [_generator(seed, "pretraining batches") for seed in seeds]
    rates = next(iter(parameters.values())).new_full((len(seeds),), learning_rate)
    state, count = optimizer.init(parameters), 0
    for _ in range(epochs):
        order = torch.stack([torch.randperm(shapes[0][0], generator=generator) for generator in generators])
        for rows in order.split(batch, dim=1):
            now, count = _take(corpora, rows), count + 1
            total = now.mask.sum((-1, -2))
            losses = (_cross_entropy(model, parameters, parameters, part) * part.mask for part in _parts(now))
            gradients = _gradients(parameters, ((loss.sum((-1, -2)) / total).sum() for loss in losses))
            optimizer.step(parameters, gradients, state, rates, count)
            if on_step is not None:
                on_step(count, parameters)
    return {name: value.detach() for name, value in parameters.items()}


def unlearn(
    model: Model,
    runs: Sequence[Run],
    *,
    steps: int,
    batch: int,
    optimizer: Optimizer,
    recorded: Sequence[int] = (0,),
    retain_term: RetainTerm = "none",
    gradient_examples: int = 0,
    on_step: Callable[[int, Parameters], None] | None = None,
) -> Trajectory:
    """Minimise E[objective loss] + retain_weight E[retain loss] from each run's own start (paper, section 2).

    Batches come from each run's own shuffled forget (and retain) training sequences. Step 0 and the steps in `recorded`
    are recorded; `gradient_examples` is the number of probe sequences behind a gradient norm. `on_step(step,
    parameters)` is called before every step and at the end; what it raises ends the run.
    """
    like = next(iter(runs[0].start.values()))
    parameters = _trainable([run.start for run in runs], like.dtype, like.device)
    rates, retain_weight = (
        like.new_tensor([getattr(run, field) for run in runs]) for field in ("learning_rate", "retain_weight")
    )
    stacked = stack([run.objective for run in runs], dtype=like.dtype, device=like.device)
    objective = Objective(*(torch.as_tensor(field)[:, None] for field in stacked))
    forget = _batches([run.forget for run in runs], [_generator(run.seed, "forget") for run in runs], steps * batch)
    retain = _batches([run.retain for run in runs], [_generator(run.seed, "retain") for run in runs], steps * batch)
    # The reference is frozen: scored once, and not at all where no run of the ensemble looks at it.
    ref = like.new_zeros(forget.component.shape)
    if any(run.objective.reference != 0 for run in runs):
        ref = _score_all(model, parameters, forget)
    start = {name: value.detach().clone() for name, value in parameters.items()} if retain_term == "kl" else {}
    wanted = {0, *(step for step in recorded if 0 <= step <= steps)}
    state, weights, records = optimizer.init(parameters), [], []
    for step in range(steps + 1):
        if on_step is not None:
            on_step(step, parameters)
        if step in wanted:
            at_start = records[0].logp if records else None
            probes = [run.probes for run in runs]
            records.append(record(model, parameters, probes, objective, gradient_examples, at_start))
        if step == steps:
            break
        rows = slice(step * batch, (step + 1) * batch)
        seq = score(model, parameters, forget.tokens[:, rows], forget.mask[:, rows], ref[:, rows])
        weights.append(objective.weight(seq).detach())
        loss = objective.loss(seq).mean(-1)
        if retain_term != "none":
            now = Batches(*(field[:, rows] for field in retain))
            loss = loss + retain_weight * _token_mean(
                RETAIN_LOSSES[retain_term](model, parameters, start, now), now.mask
            )
        optimizer.step(parameters, _gradients(parameters, [loss.sum()]), state, rates, step + 1)
    labels = [index for index, probe in enumerate(runs[0].probes) for _ in probe.tokens]
    lengths = [float(probe.tokens.shape[1] - 1) for probe in runs[0].probes for _ in probe.tokens]
    logp, truth, retrained, norms = (torch.stack(column, dim=1).cpu() for column in zip(*records, strict=True))
    return Trajectory(
        step=torch.tensor(sorted(wanted)),
        component=torch.tensor(labels),
        length=torch.tensor(lengths, dtype=like.dtype),
        logp=logp,
        kl_to_truth=truth,
        kl_to_retrained=retrained,
        gradient_norm=norms,
        batch_weight=torch.stack(weights, dim=1).cpu(),
        batch_component=forget.component.view(len(runs), steps, batch).cpu(),
    )


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of its own for each purpose (start, order of batches, ...), so that streams never overlap."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint64)[0] >> 1)


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


def _trainable(runs: Sequence[Parameters], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    stacked = stack_parameters(runs)
    return {name: value.detach().to(device, dtype).requires_grad_() for name, value in stacked.items()}


def _gradients(parameters: Parameters, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Gradient of the sum of losses, each freed of its graph before the next is computed."""
    each = (torch.autograd.grad(loss, list(parameters.values())) for loss in losses)
    return dict(zip(parameters, (torch.stack(parts).sum(0) for parts in zip(*each, strict=True)), strict=True))


def _take(corpora: Sequence[Corpus], rows: Int64[Tensor, "runs rows"]) -> Batches:
    taken = [[field[own.to(field.device)] for field in corpus] for corpus, own in zip(corpora, rows, strict=True)]
    return Batches(*(torch.stack(fields) for fields in zip(*taken, strict=True)))


def _batches(corpora: Sequence[Corpus], generators: Sequence[torch.Generator], rows: int) -> Batches:
    """As many rows as asked for, epoch after epoch, each epoch in a new order."""
    count = len(corpora[0].tokens)
    epochs = max(1, -(-rows // count))
    orders = [torch.cat([torch.randperm(count, generator=own) for _ in range(epochs)]) for own in generators]
    return _take(corpora, torch.stack(orders)[:, :rows])


def _parts(batches: Batches) -> Iterator[Batches]:
    """A batch in parts that fit the cache, sorted by length, each as long as its longest sequence: less padding."""
    order = batches.mask.sum(-1).argsort(dim=1, descending=True, stable=True)
    tokens, mask = (field.take_along_dim(order[..., None], dim=1) for field in batches[:2])
    for rows in torch.arange(order.shape[1]).split(PART):
        time = int(mask[:, rows].sum(-1).max())
        yield Batches(
            tokens[:, rows, : time + 1], mask[:, rows, :time], batches.component.take_along_dim(order, 1)[:, rows]
        )


@torch.no_grad()
def _score_all(model: Model, parameters: Parameters, batches: Batches) -> Float[Tensor, "runs rows"]:
    parts = zip(batches.tokens.split(CHUNK, dim=1), batches.mask.split(CHUNK, dim=1), strict=True)
    return torch.cat([score(model, parameters, tokens, mask).logp for tokens, mask in parts], dim=1)


def _cross_entropy(
    model: Model, parameters: Parameters, start: Parameters, now: Batches
) -> Float[Tensor, "runs rows time"]:
    """-log pi(token | prefix) at every position."""
    laws = model.logits(parameters, now.tokens[..., :-1]).log_softmax(-1)
    return -laws.gather(-1, now.tokens[..., 1:, None]).squeeze(-1)


def _kl_to_start(
    model: Model, parameters: Parameters, start: Parameters, now: Batches
) -> Float[Tensor, "runs rows time"]:
    """KL(start || model) at every position."""
    with torch.no_grad():
        truth = model.logits(start, now.tokens[..., :-1]).log_softmax(-1)
    laws = model.logits(parameters, now.tokens[..., :-1]).log_softmax(-1)
    return (truth.exp() * (truth - laws)).sum(-1)


def _token_mean(
    values: Float[Tensor, "runs rows time"], mask: Bool[Tensor, "runs rows time"]
) -> Float[Tensor, " runs"]:
    return (values * mask).sum((-1, -2)) / mask.sum((-1, -2))


# One reduction, the mean over tokens, for both: so that retain_weight means the same.
RETAIN_LOSSES = {"cross_entropy": _cross_entropy, "kl": _kl_to_start}
