"""Slow, obvious twins of the fast code, and small things for tests to work on.

A twin shares no line with what it checks: one run at a time, loops in place of batched products,
plain autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from markov.batching import Corpus, derived_seed
from markov.models import Model, Transformer

# --- things to work on ---


def check_close(
    got: Tensor, want: Tensor | float, *, rtol: float = 1e-12, atol: float = 1e-12
) -> None:
    """Equal up to rounding; nan only where nan is wanted."""
    want = torch.as_tensor(want, dtype=got.dtype).expand(got.shape)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)


def check_same_parameters(
    got: Mapping[str, Tensor], want: Mapping[str, Tensor], *, atol: float = 1e-12
) -> None:
    """The same names, each with the same numbers up to rounding."""
    assert got.keys() == want.keys()
    for name in got:
        torch.testing.assert_close(
            got[name], want[name], rtol=0, atol=atol, msg=lambda text, of=name: f"{of}: {text}"
        )


def files_in(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file in a folder was last written, and what it holds."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def doubled(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in parameters.items()}


def member(parameters: Mapping[str, Tensor], run: int) -> dict[str, Tensor]:
    """The parameters of one run of an ensemble, without the leading axis."""
    return {name: value[run].detach().clone() for name, value in parameters.items()}


def perturbed(model: Transformer, seed: int) -> dict[str, Tensor]:
    """Parameters in float64 of which none is 0 or 1 or small: those of a fresh model, and noise
    on top.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    noise = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in model.init(seed).items()
    }
    return {name: (value + 0.3 * noise[name]).double() for name, value in model.init(seed).items()}


def some_tokens(*shape: int, states: int, seed: int = 0) -> Tensor:
    return torch.randint(states, shape, generator=torch.Generator().manual_seed(seed))


def some_laws(*shape: int, seed: int = 0) -> Tensor:
    """Rows of positive probabilities, no two alike."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.softmax(-1)


# --- twins ---


def slow_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of one head, (time, width) each: scores over sqrt(width), -inf on the
    future, a softmax.
    """
    time, width = query.shape
    rows = []
    for now in range(time):
        scores = [
            query[now] @ key[then] / math.sqrt(width) if then <= now else -math.inf
            for then in range(time)
        ]
        share = torch.stack(
            [torch.as_tensor(score, dtype=query.dtype) for score in scores]
        ).softmax(0)
        rows.append(sum(share[then] * value[then] for then in range(time)))
    return torch.stack([torch.as_tensor(row) for row in rows])


def slow_logits(model: Transformer, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of one run for one sequence, (time, states)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, parameters[f"{name}.weight"].T, parameters.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(
            x, (model.width,), parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        )

    def attention(block: int, x: Tensor) -> Tensor:
        query, key, value = linear(f"{block}.attention", x).chunk(3, dim=-1)
        heads = zip(*(part.chunk(model.heads, dim=-1) for part in (query, key, value)), strict=True)
        mixed = torch.cat([slow_attention(*head) for head in heads], dim=-1)
        return (
            linear(f"{block}.projection", mixed)
            if f"{block}.projection.weight" in parameters
            else mixed
        )

    def mlp(block: int, x: Tensor) -> Tensor:
        act = {"gelu": functional.gelu, "relu": functional.relu}[model.activation]
        return linear(f"{block}.down", act(linear(f"{block}.up", x)))

    x = torch.stack(
        [parameters["token"][token] + parameters["position"][at] for at, token in enumerate(tokens)]
    )
    for block in range(model.depth):
        if model.norm == "pre":
            x = x + attention(block, norm(f"{block}.norm1", x))
            x = x + mlp(block, norm(f"{block}.norm2", x))
        else:
            x = norm(f"{block}.norm1", x + attention(block, x))
            x = norm(f"{block}.norm2", x + mlp(block, x))
    return linear("head", norm("norm", x) if model.norm == "pre" else x)


def slow_adam(
    gradients: Sequence[float],
    *,
    learning_rate: float,
    eps: float,
    beta1: float,
    beta2: float,
    corrected: bool,
) -> list[float]:
    """Where one number that starts at 0 stands after each step, in the textbook form of each
    rule.
    """
    place, path, m, v = 0.0, [], 0.0, 0.0
    for count, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        if corrected:  # torch: both moments are corrected, then eps is added
            place -= (
                learning_rate * (m / (1 - beta1**count)) / (math.sqrt(v / (1 - beta2**count)) + eps)
            )
        else:  # transformers before version 5: eps is added to the root of the raw moment
            place -= (
                learning_rate
                * math.sqrt(1 - beta2**count)
                / (1 - beta1**count)
                * m
                / (math.sqrt(v) + eps)
            )
        path.append(place)
    return path


def own_logits(model: Model, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of one run through the model's own forward pass, whose laws are tested by
    themselves.
    """
    return model.logits({name: value[None] for name, value in parameters.items()}, tokens[None])[0]


def slow_logp(
    model: Model, parameters: Mapping[str, Tensor], tokens: Tensor, mask: Tensor
) -> Tensor:
    """Total log-probability of the scored tokens of each sequence, token by token."""
    totals = []
    for sequence, scored in zip(tokens, mask, strict=True):
        laws = own_logits(model, parameters, sequence[None, :-1])[0].log_softmax(-1)
        totals.append(
            sum(
                (laws[at, sequence[at + 1]] for at in range(len(scored)) if scored[at]),
                laws.new_zeros(()),
            )
        )
    return torch.stack([torch.as_tensor(total) for total in totals])


def slow_kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q) of two vectors of probabilities."""
    return sum(
        float(a) * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)
    )


def slow_order(seed: int, purpose: str, count: int, rows: int) -> list[int]:
    """The sequences that a run goes through: a fresh shuffle of all of them whenever all have
    been seen.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, purpose))
    order: list[int] = []
    while len(order) < rows:
        order += torch.randperm(count, generator=generator).tolist()
    return order[:rows]


def slow_pretrain(
    model: Transformer,
    corpus: Corpus,
    seed: int,
    *,
    epochs: int,
    batch: int,
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """One run on whole padded batches with an optimiser of torch's, in float64."""
    parameters = {
        name: value.double().requires_grad_()
        for name, value in model.init(derived_seed(seed, "start")).items()
    }
    rule, count = optimizer(list(parameters.values())), len(corpus.tokens)
    order = slow_order(seed, "pretraining batches", count, epochs * count)
    for epoch in range(epochs):
        own = order[epoch * count : (epoch + 1) * count]
        for first in range(0, count, batch):
            rows = own[first : first + batch]
            tokens, mask = corpus.tokens[rows], corpus.mask[rows]
            logits = own_logits(model, parameters, tokens[:, :-1])
            loss = functional.cross_entropy(logits[mask], tokens[:, 1:][mask])
            rule.zero_grad()
            loss.backward()
            rule.step()
    return {name: value.detach() for name, value in parameters.items()}


def slow_loss(name: str, beta: float, logp: Tensor, ref: Tensor, length: Tensor) -> Tensor:
    """The published losses of each example, written down one by one."""
    if name == "npo":
        return 2 / beta * functional.softplus(beta * (logp - ref))
    if name == "simnpo":
        return 2 / beta * functional.softplus(beta * logp / length)
    return {"gradient_ascent": logp, "length_weighted_gradient_ascent": logp / length}[name]


def slow_unlearn(
    model: Model,
    start: Mapping[str, Tensor],
    law: tuple[str, float],
    forget: Corpus,
    retain: Corpus,
    *,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    retain_term: str = "none",
    retain_weight: float = 0.0,
) -> Iterator[dict[str, Tensor]]:
    """The parameters of one run before every step and at the end, by gradient descent on the
    written-out loss.
    """
    now = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    forget_order = slow_order(seed, "forget", len(forget.tokens), steps * batch)
    retain_order = slow_order(seed, "retain", len(retain.tokens), steps * batch)
    for step in range(steps):
        yield {name: value.detach().clone() for name, value in now.items()}
        rows = forget_order[step * batch : (step + 1) * batch]
        tokens, mask = forget.tokens[rows], forget.mask[rows]
        logp = slow_logp(model, now, tokens, mask)
        loss = slow_loss(*law, logp, slow_logp(model, start, tokens, mask), mask.sum(-1)).mean()
        if retain_term != "none":
            rows = retain_order[step * batch : (step + 1) * batch]
            tokens, mask = retain.tokens[rows], retain.mask[rows]
            laws = own_logits(model, now, tokens[:, :-1])[mask].log_softmax(-1)
            if retain_term == "cross_entropy":
                term = functional.nll_loss(laws, tokens[:, 1:][mask])
            else:
                before = own_logits(model, start, tokens[:, :-1])[mask].log_softmax(-1)
                term = functional.kl_div(laws, before, reduction="batchmean", log_target=True)
            loss = loss + retain_weight * term
        gradients = torch.autograd.grad(loss, list(now.values()))
        now = {
            name: (value - learning_rate * gradient).detach().requires_grad_()
            for (name, value), gradient in zip(now.items(), gradients, strict=True)
        }
    yield {name: value.detach().clone() for name, value in now.items()}


class Bar:
    """What is told to a progress bar."""

    def __init__(self, **told: Any) -> None:
        self.total, self.disable, self.count = told["total"], told["disable"], 0
        self.label = told["desc"]

    def update(self, count: int) -> None:
        self.count += count

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass
