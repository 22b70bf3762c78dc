"""What is recorded of a run while it unlearns, on fixed examples.

Recorded are log-probabilities, distances and gradient norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from markov.models import Model, Parameters
from markov.numerics import VECTOR
from markov.objectives import Number, Objective, SequenceLogProbs

# Sequences of a run per forward pass without gradients: few enough that a layer's activations stay
# in the processor's cache.
CHUNK = 32


class Probe(NamedTuple):
    """Fixed test sequences of one component, with the laws that the model is compared with.

    There is a law at every position: `truth` are the rows of the component's chain, `retrained` and
    `reference` the logs of the laws of the retrained and of the reference model. `forgotten` says
    whether unlearning pushes on the component, so that its gradient is worth measuring.
    """

    tokens: Int64[Tensor, "count time"]
    truth: Float[Tensor, "states states"]
    retrained: Float[Tensor, "count time-1 states"]
    reference: Float[Tensor, "count time-1 states"]
    forgotten: bool = True


class Record(NamedTuple):
    """The state of every run of an ensemble at one step (nats)."""

    logp: Float[Tensor, "runs examples"]
    kl_to_truth: Float[Tensor, "runs components"]
    kl_to_retrained: Float[Tensor, "runs components"]
    kl_to_reference: Float[Tensor, "runs components"]
    gradient_norm: Float[Tensor, "runs components"]


class Trajectory(NamedTuple):
    """What an ensemble leaves behind; step 0 is the reference model (nats).

    `reference` are the log-probabilities of the examples under it, also where step 0 is not
    recorded.
    `kl_to_truth` is the mean over test tokens of KL(true row || model), `kl_to_retrained` that of
    KL(retrained model || model), `kl_to_reference` that of KL(reference model || model), and
    `gradient_norm` the norm of the gradient of a component's mean loss. `batch_weight` are the
    weights that the steps themselves used, with the longest sequences first.
    """

    step: Int64[Tensor, " recorded"]
    component: Int64[Tensor, " examples"]
    length: Float[Tensor, " examples"]
    reference: Float[Tensor, "runs examples"]
    logp: Float[Tensor, "runs recorded examples"]
    kl_to_truth: Float[Tensor, "runs recorded components"]
    kl_to_retrained: Float[Tensor, "runs recorded components"]
    kl_to_reference: Float[Tensor, "runs recorded components"]
    gradient_norm: Float[Tensor, "runs recorded components"]
    batch_weight: Float[Tensor, "runs steps batch"]
    batch_component: Int64[Tensor, "runs steps batch"]


class Probes(NamedTuple):
    """The probes of one component for every run of an ensemble, ready to be compared with.

    `laws` are the probabilities of the true, the retrained and the reference law at every position,
    `logs` their logs. They stay as they are while the runs unlearn.
    """

    tokens: Int64[Tensor, "runs count time"]
    laws: Float[Tensor, "laws runs count time-1 states"]
    logs: Float[Tensor, "laws runs count time-1 states"]
    forgotten: bool


def together(
    runs: Sequence[Sequence[Probe]], dtype: torch.dtype, device: torch.device | None = None
) -> list[Probes]:
    """Return the probes of each component for all runs at once, on a device."""
    # Runs of one pretrained model have the same probes, whose laws need not be found again.
    known: dict[int, tuple[Tensor, Tensor]] = {}

    def laws(probe: Probe) -> tuple[Tensor, Tensor]:
        if id(probe) not in known:
            rows = probe.truth.to(dtype).log()[probe.tokens[:, :-1]]
            logs = torch.stack([rows, probe.retrained.to(dtype), probe.reference.to(dtype)])
            known[id(probe)] = logs.exp(), logs
        return known[id(probe)]

    found = []
    for column in zip(*runs, strict=True):
        both = zip(*map(laws, column), strict=True)
        own, logs = (torch.stack(one, dim=1).to(device) for one in both)
        tokens = torch.stack([probe.tokens for probe in column]).to(device)
        found.append(Probes(tokens, own, logs, column[0].forgotten))
    return found


def reference_logp(probes: Sequence[Probes]) -> Float[Tensor, "runs examples"]:
    """Return the log-probabilities of all examples under the reference model (nats)."""
    return torch.cat([_logp(own.logs[-1], own.tokens) for own in probes], dim=1)


def log_laws(
    model: Model, parameters: Parameters, tokens: Int64[Tensor, "count time"], run: int = 0
) -> Float[Tensor, "count time-1 states"]:
    """Return the logs of one run's next-state laws (nats).

    There is one after every prefix but the whole sequence.
    """
    one = {name: value[run : run + 1] for name, value in parameters.items()}
    return all_log_laws(model, one, tokens[None])[0]


@torch.no_grad()
def all_log_laws(
    model: Model, parameters: Parameters, tokens: Int64[Tensor, "runs count time"]
) -> Float[Tensor, "runs count time-1 states"]:
    """Return the logs of every run's next-state laws (nats), each on its own sequences."""
    parts = tokens[..., :-1].split(CHUNK, dim=1)
    return torch.cat([model.logits(parameters, part).log_softmax(-1) for part in parts], dim=1)


def _logp(laws: Tensor, tokens: Tensor) -> Tensor:
    return laws.gather(-1, tokens[..., 1:, None]).squeeze(-1).sum(-1)


def mean_kl(
    truth: Float[Tensor, "*tokens states"], model: Float[Tensor, "*tokens states"]
) -> Float[Tensor, ""]:
    """Return the mean over tokens of KL(truth || model) (nats), from the logs of both laws."""
    return (truth.exp() * (truth - model)).sum(-1).mean()


def kl_to_truth(probe: Probe, laws: Float[Tensor, "count time-1 states"]) -> Float[Tensor, ""]:
    """Return the mean over the probe's tokens of KL(true row || law) (nats).

    It is the distance of the paper's Figure 5.
    """
    return mean_kl(probe.truth.to(laws).log()[probe.tokens[:, :-1]], laws)


def record(
    model: Model,
    parameters: Parameters,
    probes: Sequence[Probes],
    objective: Objective,
    gradient_examples: int = 0,
    reference: Float[Tensor, "runs examples"] | None = None,
) -> Record:
    """Evaluate all runs at once, each on its own probes.

    `objective` has fields of shape (runs, 1). `reference` are the probes' log-probabilities under
    the reference model (default: the model as it is now). Gradient norms are nan unless
    `gradient_examples` is positive.
    """
    logps, distances = [], []
    for own in probes:
        laws = all_log_laws(model, parameters, own.tokens)
        logps.append(_logp(laws, own.tokens))
        # Row by row of the laws, which needs a third of the memory.
        each = [
            (law * (log - laws)).sum(-1).flatten(1).mean(-1)
            for law, log in zip(own.laws, own.logs, strict=True)
        ]
        distances.append(torch.stack(each))
    logp = torch.cat(logps, dim=1)
    truth, retrained, reference_kl = torch.stack(distances, dim=-1)
    norms = torch.full_like(truth, torch.nan)
    if gradient_examples:
        reference = logp if reference is None else reference
        norms = gradient_norms(model, parameters, probes, objective, gradient_examples, reference)
    return Record(logp, truth, retrained, reference_kl, norms)


def gradient_norms(
    model: Model,
    parameters: Parameters,
    probes: Sequence[Probes],
    objective: Objective,
    examples: int,
    reference: Float[Tensor, "runs examples"],
) -> Float[Tensor, "runs components"]:
    """Return |grad of the mean loss| of each forgotten component, nan for others.

    The mean is over the first `examples` probe sequences. A mean over few examples keeps some of
    their noise, as the batch of a training step does: compare components at one number of examples
    only.
    """
    norms, first = [], 0
    for own in probes:
        if not own.forgotten:
            norms.append(reference.new_full((len(reference),), torch.nan))
            first += own.tokens.shape[1]
            continue
        tokens = own.tokens[:, :examples]
        mask = torch.ones_like(tokens[..., 1:], dtype=torch.bool)
        ref = reference[:, first : first + tokens.shape[1]]
        loss, _ = loss_and_weight(objective, score(model, parameters, tokens, mask, ref))
        gradients = torch.autograd.grad(loss.mean(-1).sum(), list(parameters.values()))
        norms.append(_norm(gradients))
        first += own.tokens.shape[1]
    return torch.stack(norms, dim=-1)


def example_gradient_norms(
    model: Model, parameters: Parameters, tokens: Int64[Tensor, "count time"], run: int = 0
) -> Float[Tensor, " count"]:
    """Return |grad log pi(y|x)| of each single sequence over all parameters of one run.

    The first token is context. Every sequence is given a run of its own, so that the ensemble's
    leading axis yields per-example gradients.
    """
    norms = []
    for part in tokens.split(CHUNK):
        own = {
            name: value[run].detach().expand(len(part), *value.shape[1:])
            for name, value in parameters.items()
        }
        own = {name: value.clone().requires_grad_() for name, value in own.items()}
        logp = score(
            model, own, part[:, None], torch.ones_like(part[:, None, 1:], dtype=torch.bool)
        ).logp
        norms.append(_norm(torch.autograd.grad(logp.sum(), [*own.values()])))
    return torch.cat(norms)


def loss_and_weight(
    objective: Objective, seq: SequenceLogProbs
) -> tuple[Float[Tensor, "runs batch"], Float[Tensor, "runs batch"]]:
    """Return the loss of every response and its d loss / d logp.

    Both are to the last bit what each run has alone. The fields of `seq` have shape (runs, batch).
    The last response is repeated until every run fills whole vectors (see
    `markov.numerics.VECTOR`), and the repetitions are dropped.
    """
    count = seq.logp.shape[-1]
    spare = (*seq.logp.shape[:-1], -count % VECTOR)
    full = SequenceLogProbs(
        *(torch.cat([field, field[..., -1:].detach().expand(spare)], dim=-1) for field in seq)
    )
    own = Objective(*(_like(field, full.logp) for field in objective))
    return own.loss(full)[..., :count], own.weight(full)[..., :count]


def score(
    model: Model,
    parameters: Parameters,
    tokens: Int64[Tensor, "runs batch time"],
    mask: Tensor,
    ref: Float[Tensor, "runs batch"] | float = 0.0,
) -> SequenceLogProbs:
    """Return each sequence's summed log-probability of the masked tokens given their prefixes.

    Gradients flow through it.
    """
    logits = model.logits(parameters, tokens[..., :-1])
    return SequenceLogProbs.from_logits(logits, tokens[..., 1:], mask, ref=ref, check=False)


def _like(value: Number, like: Tensor) -> Tensor:
    """Return a number, or one for each run, repeated for every response."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand_as(like).contiguous()


def _norm(gradients: Sequence[Float[Tensor, "runs ..."]]) -> Float[Tensor, " runs"]:
    """Return the norm of each run's gradient over all tensors together."""
    # One column per tensor, summed along the last axis: how a sum along the first axis is taken
    # depends on the number of runs.
    squares = [gradient.flatten(1).square().sum(-1) for gradient in gradients]
    return torch.stack(squares, dim=-1).sum(-1).sqrt()
