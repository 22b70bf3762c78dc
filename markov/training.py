"""Pretraining and unlearning of an ensemble: many runs at once, along one leading axis.

Every run has its own data, start, objective, step size and generators; the ensemble only shares the
shapes, and no run knows its company. On one thread a run's numbers are the same to the last bit in
every company: products of matrices are batched, elementwise functions fill whole vectors
(`markov.numerics.VECTOR`), and only runs whose batches are cut alike are computed side by side.
(Several threads may divide a long sum, at a place that depends on the size of the ensemble.)

What is recorded is the sufficient statistic, log-probabilities and distances. So weights under any
objective, rates and profiles are functions of a `Trajectory` and need no new run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from markov.batching import (
    Batches,
    Corpus,
    Cuts,
    Cutting,
    Runs,
    common_count,
    cuts,
    cutting_of,
    derived_seed,
    drawn,
    even_cuts,
    generator,
    grouped,
    lengths_of,
    longest_first,
    pieces,
    take,
)
from markov.console import limits
from markov.console.choices import RetainTerm
from markov.errors import require, require_whole
from markov.models import Model, Parameters, stack_parameters
from markov.objectives import Objective, SequenceLogProbs, stack
from markov.optimizers import Optimizer
from markov.recording import (
    CHUNK,
    Probe,
    Record,
    Trajectory,
    loss_and_weight,
    record,
    reference_logp,
    score,
    together,
)
from markov.weighting import WEIGHTINGS, Weighting, reweighted


class Member(NamedTuple):
    """All that may differ between the runs of an ensemble."""

    start: Parameters
    objective: Objective
    learning_rate: float
    retain_weight: float
    seed: int
    forget: Corpus
    retain: Corpus
    probes: tuple[Probe, ...]


class Threads(NamedTuple):
    """How many threads compute the pieces of a batch, and from which share of all steps on.

    Before that it is one.
    """

    count: int = 1
    start: float = 0.0


ONE_THREAD = Threads()


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
    device: str = "cpu",
    threads: Threads = ONE_THREAD,
    on_step: Callable[[int, Parameters], None] | None = None,
) -> dict[str, Tensor]:
    """Minimise the mean cross-entropy over scored tokens and return the runs' stacked parameters.

    Each run has one corpus and one seed. A seed gives the same start to every corpus. How many
    `threads` compute the pieces of a batch changes the time, never a bit. `on_step(step,
    parameters)` is called after every step. Raises `InvalidInput` for corpora of different shapes.
    """
    count = common_count(model, corpora, "corpora")
    cutting = cutting_of(device)
    parameters = _trainable(
        [model.init(derived_seed(seed, "start")) for seed in seeds], dtype, device
    )
    generators = [generator(seed, "pretraining batches") for seed in seeds]
    rates = next(iter(parameters.values())).new_full((len(seeds),), learning_rate)
    state, step, lengths = optimizer.init(parameters), 0, lengths_of(corpora)
    corpora = [corpus.to(device) for corpus in corpora]
    alone = threads.start * epochs * -(-count // batch)
    with _pieces_by(threads.count) as together:
        for _ in range(epochs):
            order = torch.stack([torch.randperm(count, generator=own) for own in generators])
            for rows in order.split(batch, dim=1):
                rows, step = longest_first(rows, lengths, rows.shape[1]), step + 1
                own = lengths.gather(1, rows)
                now, total = take(corpora, rows), own.sum(-1).to(device)
                groups = grouped(own, partial(even_cuts, rows=cutting.rows), cutting.alike)
                losses = partial(_mean_cross_entropies, model, now, total)
                spread = together if step > alone else map
                gradients = _gradients(parameters, groups, losses, spread)
                optimizer.step(parameters, gradients, state, rates, step)
                if on_step is not None:
                    on_step(step, parameters)
    return {name: value.detach() for name, value in parameters.items()}


def unlearn(
    model: Model,
    runs: Sequence[Member],
    *,
    steps: int,
    batch: int,
    optimizer: Optimizer,
    recorded: Sequence[int] = (0,),
    retain_term: RetainTerm = "none",
    weighting: Weighting = WEIGHTINGS["own"],
    gradient_examples: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, Parameters], None] | None = None,
) -> Trajectory:
    """Minimise E[objective loss] + retain_weight E[retain loss] from each run's own start.

    Batches come from each run's own shuffled forget (and retain) training sequences. A `weighting`
    says which weights the forget loss has within each batch: its own, unless told. The steps in
    `recorded` are recorded, of which 0 is the start; `gradient_examples` is the number of probe
    sequences behind a gradient norm. `on_step(step, parameters)` is called before every step and at
    the end; an exception that it raises ends the run. Raises `InvalidInput` for runs whose data
    differ in shape. Source: paper, section 2.
    """
    require_whole(steps, "steps", *limits.STEPS)
    require_whole(batch, "batch", *limits.BATCH)
    for field in ("forget", "retain"):
        common_count(model, [getattr(run, field) for run in runs], field)
    sizes = {tuple(tuple(probe.tokens.shape) for probe in run.probes) for run in runs}
    require(len(sizes) == 1, "probes", sorted(sizes), "one common shape")
    cutting, like = cutting_of(device), next(iter(runs[0].start.values()))
    parameters = _trainable([run.start for run in runs], like.dtype, device)
    like = next(iter(parameters.values()))
    rates, retain_weight = (
        like.new_tensor([getattr(run, field) for run in runs])
        for field in ("learning_rate", "retain_weight")
    )
    stacked = stack([run.objective for run in runs], dtype=like.dtype, device=like.device)
    laws = [torch.as_tensor(field)[:, None] for field in stacked]
    objective = Objective(*laws)
    seeds = [run.seed for run in runs]
    forget, order, lengths = drawn([run.forget for run in runs], seeds, "forget", steps, batch)
    ref = _references(model, runs, parameters, order, cutting).to(device)
    groups = [
        grouped(
            own,
            partial(cuts, longest=forget.mask.shape[-1], overhead=cutting.overhead),
            cutting.alike,
        )
        for own in lengths.split(batch, dim=1)
    ]
    scored, forget = lengths.to(like), forget.to(device)
    retain = start = None
    if retain_term != "none":
        retain = drawn([run.retain for run in runs], seeds, "retain", steps, batch)[0].to(device)
        start = {name: value.detach().clone() for name, value in parameters.items()}
    wanted = {step for step in recorded if 0 <= step <= steps}
    require(len(wanted) > 0, "recorded", recorded, f"at least one step from 0 to {steps}")
    probes = together([run.probes for run in runs], like.dtype, like.device)
    at_start = reference_logp(probes)
    weights = like.new_zeros(len(runs), steps, batch)
    state, records = optimizer.init(parameters), list[Record]()
    for step in range(steps + 1):
        if on_step is not None:
            on_step(step, parameters)
        if step in wanted:
            records.append(
                record(model, parameters, probes, objective, gradient_examples, at_start)
            )
        if step == steps:
            break
        rows = slice(step * batch, (step + 1) * batch)

        def loss(
            own: Parameters, chosen: Runs, found: Cuts, step: int = step, rows: slice = rows
        ) -> Tensor:
            parts = pieces(forget.of(chosen, rows), found)
            logp = torch.cat([score(model, own, *part[:2]).logp for part in parts], dim=1)
            seq = SequenceLogProbs(logp, scored[chosen, rows], ref[chosen, rows])
            each, weight = loss_and_weight(Objective(*(field[chosen] for field in laws)), seq)
            weights[chosen, step] = used = weighting(weight.detach())
            mean = reweighted(each, logp, weight, used).mean(-1)
            if retain is not None and start is not None:
                kept = retain.of(chosen, rows)
                first = {name: value[chosen] for name, value in start.items()}
                each = RETAIN_LOSSES[retain_term](model, own, first, kept)
                mean = mean + retain_weight[chosen] * _token_mean(each, kept.mask)
            return mean.sum()

        gradients = _gradients(parameters, groups[step], lambda *own: [partial(loss, *own)])
        optimizer.step(parameters, gradients, state, rates, step + 1)
    labels = [index for index, probe in enumerate(runs[0].probes) for _ in probe.tokens]
    probed = [float(probe.tokens.shape[1] - 1) for probe in runs[0].probes for _ in probe.tokens]
    logp, truth, retrained, reference, norms = (
        torch.stack(column, dim=1).cpu() for column in zip(*records, strict=True)
    )
    return Trajectory(
        step=torch.tensor(sorted(wanted)),
        component=torch.tensor(labels),
        length=torch.tensor(probed, dtype=like.dtype),
        reference=at_start.cpu(),
        logp=logp,
        kl_to_truth=truth,
        kl_to_retrained=retrained,
        kl_to_reference=reference,
        gradient_norm=norms,
        batch_weight=weights.cpu(),
        batch_component=forget.component.view(len(runs), steps, batch).cpu(),
    )


def _trainable(runs: Sequence[Parameters], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    stacked = stack_parameters(runs)
    return {
        name: value.detach().to(device, dtype).requires_grad_() for name, value in stacked.items()
    }


# The losses of the parameters of some runs, whose rows are cut in a certain way; none is computed
# before it is called.
Losses = Callable[[Parameters, Runs, Cuts], Iterable[Callable[[], Tensor]]]


def _gradients(
    parameters: Parameters,
    groups: Sequence[tuple[Runs, Cuts]],
    losses: Losses,
    spread: Callable[..., Iterable[Any]] = map,
) -> dict[str, Tensor]:
    """Return the gradient of every run's sum of losses.

    It is found for one group of runs after the other. Each loss is freed of its graph once it has
    its gradient; `spread` may compute several at a time. They are added in their order.
    """

    def found(own: Parameters, chosen: Runs, where: Cuts) -> dict[str, Tensor]:
        values = list(own.values())
        each = spread(lambda loss: torch.autograd.grad(loss(), values), losses(own, chosen, where))
        return dict(
            zip(own, (reduce(torch.add, one) for one in zip(*each, strict=True)), strict=True)
        )

    if len(groups) == 1:
        return found(parameters, *groups[0])
    whole = {name: torch.empty_like(value) for name, value in parameters.items()}
    for chosen, where in groups:
        own = {name: value.detach()[chosen].requires_grad_() for name, value in parameters.items()}
        for name, gradient in found(own, chosen, where).items():
            whole[name][chosen] = gradient
    return whole


@contextmanager
def _pieces_by(count: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield what maps a function over the pieces of a batch, by so many threads.

    Each of them computes as the caller does. (torch counts threads for every thread anew.)
    """
    if count == 1:
        yield map
        return
    same = {"initializer": torch.set_num_threads, "initargs": (torch.get_num_threads(),)}
    with ThreadPoolExecutor(count, **same) as pool:
        yield pool.map


@torch.no_grad()
def _references(
    model: Model,
    runs: Sequence[Member],
    parameters: Parameters,
    order: Int64[Tensor, "runs rows"],
    cutting: Cutting,
) -> Float[Tensor, "runs rows"]:
    """Return log pi(y|x) of every drawn sequence under the start of its run, the reference.

    The reference is frozen: a sequence is scored once however often it is drawn, and once for all
    runs that share a start, data and an order of batches. Where no run of the ensemble uses it,
    nothing is scored, and all is 0.
    """
    like = next(iter(parameters.values()))
    if all(run.objective.reference == 0 for run in runs):
        return like.new_zeros(order.shape)
    firsts: dict[tuple[int, int, int], int] = {}
    keys = [(id(run.start), id(run.forget), run.seed) for run in runs]
    for index, key in enumerate(keys):
        firsts.setdefault(key, index)
    chosen = list(firsts.values())
    corpora = [runs[index].forget for index in chosen]
    lengths = lengths_of(corpora)
    # Within an epoch a sequence is drawn once; more than an epoch has all of them.
    rows = order[chosen]
    if order.shape[1] > lengths.shape[1]:
        rows = torch.arange(lengths.shape[1]).expand_as(lengths)
    rows = longest_first(rows, lengths, rows.shape[1])
    batches = take(corpora, rows).to(str(like.device))
    own_lengths, known = lengths.gather(1, rows), like.new_zeros(lengths.shape)
    for group, found in grouped(own_lengths, partial(even_cuts, rows=CHUNK), cutting.alike):
        members = chosen if isinstance(group, slice) else [chosen[at] for at in group]
        own = {name: value[members] for name, value in parameters.items()}
        parts = pieces(batches.of(group), found)
        logp = torch.cat([score(model, own, *part[:2]).logp for part in parts], dim=1)
        known[group] = known[group].scatter(1, rows[group].to(like.device), logp)
    places = torch.tensor([list(firsts).index(key) for key in keys])
    return known[places].gather(1, order.to(like.device))


def _mean_cross_entropies(
    model: Model,
    now: Batches,
    total: Int64[Tensor, " runs"],
    parameters: Parameters,
    chosen: Runs,
    found: Cuts,
) -> Iterator[Callable[[], Tensor]]:
    """Yield the share of each piece of a batch in the mean over the tokens of the batch, `total`.

    Those of several runs are added up.
    """

    def loss(part: Batches) -> Tensor:
        each = _cross_entropy(model, parameters, parameters, part) * part.mask
        return (each.sum((-1, -2)) / total[chosen]).sum()

    for part in pieces(now.of(chosen), found):
        yield partial(loss, part)


def _cross_entropy(
    model: Model, parameters: Parameters, start: Parameters, now: Batches
) -> Float[Tensor, "runs rows time"]:
    """Return -log pi(token | prefix) at every position."""
    laws = model.logits(parameters, now.tokens[..., :-1]).log_softmax(-1)
    return -laws.gather(-1, now.tokens[..., 1:, None]).squeeze(-1)


def _kl_to_start(
    model: Model, parameters: Parameters, start: Parameters, now: Batches
) -> Float[Tensor, "runs rows time"]:
    """Return KL(start || model) at every position."""
    with torch.no_grad():
        truth = model.logits(start, now.tokens[..., :-1]).log_softmax(-1)
    laws = model.logits(parameters, now.tokens[..., :-1]).log_softmax(-1)
    return (truth.exp() * (truth - laws)).sum(-1)


def _token_mean(
    values: Float[Tensor, "runs rows time"], mask: Bool[Tensor, "runs rows time"]
) -> Float[Tensor, " runs"]:
    return (values * mask).sum((-1, -2)) / mask.sum((-1, -2))


# One reduction for both, the mean over tokens, so that retain_weight means the same.
RETAIN_LOSSES = {"cross_entropy": _cross_entropy, "kl": _kl_to_start}
