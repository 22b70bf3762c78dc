"""Norms of the gradient of each response's log-probability, without the gradients themselves.

If a weight matrix meets one vector per token, its gradient for one example is a sum of outer
products, sum_t l_t r_t'. For a linear layer l_t is the gradient of its output and r_t its input;
for an embedding l_t is the one-hot token and r_t the gradient of its output. The squared norm is

    ||sum_t l_t r_t'||^2 = sum_st <l_s, l_t> <r_s, r_t>,

two matrices of time x time in place of the gradient (Goodfellow 2015, arXiv 1510.01799). A matrix
that is embedding and head at once has the terms of both in one sum, cross terms included. Other
layers, with their few parameters, get a gradient per example.

One backward pass serves a batch, and stops at the embeddings: gradients of weights are never
formed. This is first compared with one backward pass per example on a few examples; a model for
which it is impossible or wrong gets one backward pass per example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from llm.scoring.encoding import Batch, Encoded, batches
from llm.scoring.logprobs import (
    check_fits,
    check_model,
    evaluating,
    logits,
    response_logprobs,
)
from llm.scoring.passes import by_batch
from markov.errors import require

# tokens of a batch, padding included: activations and the logits of responses are held
GRADIENT_BUDGET = 1024
SMALL_LAYER = 2**20  # parameters of a layer that may get a gradient per example
ELEMENTS = 2**25  # of such gradients held at once
NO_GRADIENT = "one that passes a gradient to its trainable parameters"


class NotCovered(Exception):
    """A layer's gradients per example do not follow from its inputs and output gradients."""


class Outer(NamedTuple):
    """Terms of a matrix's gradient: an outer product per token.

    An integer `left` stands for one-hot vectors.
    """

    left: Float[Tensor, "batch time rows"] | Int64[Tensor, "batch time"]
    right: Float[Tensor, "batch time columns"]


Term = Outer | Float[Tensor, "batch ..."]
Rule = Callable[[Any, Tensor, Tensor], Mapping[str, Term]]


def gradient_norms(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    budget: int = GRADIENT_BUDGET,
    progress: bool = True,
) -> Float[Tensor, " examples"]:
    """Return ||grad_theta log pi(y|x)||_2 of each example over all trainable parameters.

    The norms are float32 or wider, on the CPU, and exact up to rounding. There is no dropout, and
    gradients that the model holds stay as they are. Parameters to which autograd passes no
    gradient, such as those of layers that the model runs under `no_grad`, count as 0. Batches hold
    at most `budget` tokens, or one example. Raises `InvalidInput` as `score_encoded` does, for a
    model without trainable parameters, and for one that passes a gradient to none of them.
    """
    check_model(model)
    check_fits(model, encoded)
    trainable = any(parameter.requires_grad for parameter in model.parameters())
    require(trainable, "model", type(model).__name__, "one with trainable parameters")
    plan = batches(encoded, budget)
    with evaluating(model), torch.enable_grad():
        # Two of middling length, since a model that mixes up the examples of a batch would go
        # unnoticed in a batch of one.
        tried = sorted(encoded, key=lambda one: len(one.tokens))[(len(encoded) - 1) // 2 :][:2]
        norms = together if _agrees(model, tried) else one_by_one

        def one(rows: Sequence[int]) -> Tensor:
            return norms(model, [encoded[row] for row in rows]).detach().cpu()

        found = by_batch(model, encoded, plan, one, "gradient norms", progress=progress)
    return torch.cat(found)[torch.tensor([row for rows in plan for row in rows]).argsort()]


def one_by_one(model: nn.Module, encoded: Sequence[Encoded]) -> Float[Tensor, " examples"]:
    """Return the norms by one backward pass per example, which works for every kind of layer."""
    trainable, found = (
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        [],
    )
    for one in encoded:
        logp = response_logprobs(model, Batch.pad([one])).logp.sum()
        require(logp.requires_grad, "model", type(model).__name__, NO_GRADIENT)
        gradients = torch.autograd.grad(logp, trainable, allow_unused=True)
        squares = [
            _wide(gradient).square().sum().to(logp)
            for gradient in gradients
            if gradient is not None
        ]
        found.append(torch.stack(squares).sum().sqrt())
    return torch.stack(found)


def together(model: nn.Module, encoded: Sequence[Encoded]) -> Float[Tensor, " examples"]:
    """Return the norms by one backward pass for all examples.

    Raises `NotCovered` for layers that do not allow it.
    """
    ledger, handles = _Ledger(len(encoded)), []
    try:
        for module in model.modules():
            handles += ledger.watch(module)
        logp = _padded_logp(model, Batch.pad(encoded))
    finally:
        for handle in handles:
            handle.remove()
    if ledger.bottom and logp.requires_grad:
        torch.autograd.grad(logp, ledger.bottom, allow_unused=True)
    if ledger.terms or not logp.requires_grad:
        raise NotCovered("the backward pass does not reach every layer from the embeddings")
    return ledger.squares.sqrt()


def _agrees(model: nn.Module, encoded: Sequence[Encoded]) -> bool:
    """Return whether one backward pass for all gives what one for each does, up to rounding."""
    try:
        quick, slow = together(model, encoded), one_by_one(model, encoded)
    except NotCovered:
        return False
    eps = max(torch.finfo(one.dtype).eps for one in model.parameters() if one.is_floating_point())
    return bool((quick - slow).abs().max() <= max(1e-3, eps**0.5) * slow.max())


def _padded_logp(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Return the sum of all log-probabilities.

    The head's input is laid out as (batch, response, width) to keep examples apart.
    """
    count = batch.scored.sum(-1)
    place = torch.arange(int(count.max()))
    places = (batch.prompt[:, None] - 1 + place).clamp(max=batch.scored.shape[1] - 1)
    targets, valid = batch.tokens[:, 1:].gather(1, places), place < count[:, None]

    def change(hidden: Tensor) -> Tensor:
        return hidden.take_along_dim(places.to(hidden.device)[..., None], dim=1)

    found = _wide(logits(model, batch, change))
    chosen = found.take_along_dim(targets.to(found.device)[..., None], dim=-1).squeeze(-1)
    return (chosen - found.logsumexp(-1)).where(valid.to(found.device), 0.0).sum()


class _Ledger:
    """What the layers report in one forward and backward pass, and the norms settled so far.

    The pass is over `count` examples.
    """

    def __init__(self, count: int) -> None:
        self.count, self.squares = count, torch.zeros(())
        self.terms: dict[nn.Parameter, list[Term]] = {}
        self.due: Counter[nn.Parameter] = Counter()
        self.bottom: list[Tensor] = []

    def watch(self, module: nn.Module) -> list[RemovableHandle]:
        """Make a layer report its parameters' terms once its output's gradient is known."""
        own = {
            name: one for name, one in module.named_parameters(recurse=False) if one.requires_grad
        }
        if not own and not isinstance(module, nn.Embedding):
            return []
        rule = _rule(module, own)

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                raise NotCovered(
                    f"{type(module).__name__} takes or gives something else than one tensor"
                )
            if not torch.is_grad_enabled() or not (
                output.requires_grad or isinstance(module, nn.Embedding)
            ):
                return output  # run without gradients: autograd gives its parameters none from here
            x = args[0].detach()
            if isinstance(module, nn.Embedding):
                # Positions are looked up once for all examples; expanded, each example has a
                # gradient of its own.
                x, output = (
                    one.expand(self.count, *one.shape[1:]) if len(one) == 1 else one
                    for one in (x, output)
                )
                self.bottom.append(output if output.requires_grad else output.requires_grad_())
            if len(x) != self.count or len(output) != self.count:
                raise NotCovered(f"{type(module).__name__} does not keep the examples apart")
            for one in own.values():
                self.due[one] += 1
                self.terms.setdefault(one, [])
            output.register_hook(lambda g: self.report(own, rule(module, x, g)))
            return output

        return [module.register_forward_hook(hook)]

    def report(self, own: dict[str, nn.Parameter], terms: Mapping[str, Term]) -> None:
        """Record a layer's terms, and settle parameters that no other layer has to report."""
        for name, parameter in own.items():
            self.terms[parameter].append(terms[name])
            if len(self.terms[parameter]) == self.due[parameter]:
                squares = _squared_norms(self.terms.pop(parameter), parameter.shape)
                self.squares = self.squares.to(squares) + squares


def _rule(module: nn.Module, own: dict[str, nn.Parameter]) -> Rule:
    """Return how the terms of a layer follow from its input x and the gradient g of its output."""
    # Rules are known by the forward pass: a subclass that computes something else has one of its
    # own, and is not taken for its parent.
    if known := RULES.get(type(module).forward):
        return known
    if sum(one.numel() for one in own.values()) > SMALL_LAYER:
        raise NotCovered(f"{type(module).__name__} is none of the known layers, and not small")
    return _by_example


def _linear(module: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Term]:
    return {"weight": Outer(g, x), "bias": g.sum(1)}


def _conv1d(module: Conv1D, x: Tensor, g: Tensor) -> dict[str, Term]:
    return {"weight": Outer(x, g), "bias": g.sum(1)}


def _embedding(module: nn.Embedding, x: Tensor, g: Tensor) -> dict[str, Term]:
    # The padding token gets no gradient from where it is looked up; -1 is no token.
    skipped = x == (-1 if module.padding_idx is None else module.padding_idx)
    return {"weight": Outer(x, g.masked_fill(skipped[..., None], 0.0))}


def _by_example(module: nn.Module, x: Tensor, g: Tensor) -> Mapping[str, Term]:
    own = {
        name: one.detach()
        for name, one in module.named_parameters(recurse=False)
        if one.requires_grad
    }

    def gradient(x: Tensor, g: Tensor) -> dict[str, Tensor]:
        return vjp(lambda own: functional_call(module, own, (x[None],)), own)[1](g[None])[0]

    try:
        return vmap(gradient)(x, g)
    except RuntimeError as error:
        raise NotCovered(
            f"{type(module).__name__} has operations without a rule for batches"
        ) from error


RULES: dict[Any, Rule] = {
    nn.Linear.forward: _linear,
    Conv1D.forward: _conv1d,
    nn.Embedding.forward: _embedding,
}


def _squared_norms(terms: Sequence[Term], shape: torch.Size) -> Float[Tensor, " batch"]:
    """Return ||sum of all terms||^2 of each example.

    It is computed by matrices of time x time or by gradients, whichever is cheaper.
    """
    outer = [one for one in terms if isinstance(one, Outer)]
    dense = [_wide(one) for one in terms if isinstance(one, Tensor)]
    if not outer:
        return sum(dense[1:], dense[0]).flatten(1).square().sum(-1)
    if dense:
        raise NotCovered("a parameter is shared by layers of different kinds")
    time, (rows, columns) = sum(one.right.shape[1] for one in outer), shape
    one_hot = any(not one.left.is_floating_point() for one in outer)
    if one_hot or time * (rows + columns) < rows * columns:
        pairs = combinations_with_replacement(outer, 2)
        return torch.stack(
            [(1 if one is other else 2) * _product(one, other) for one, other in pairs]
        ).sum(0)
    left, right = (
        torch.cat([_wide(part) for part in parts], dim=1) for parts in zip(*outer, strict=True)
    )
    step = max(1, ELEMENTS // (rows * columns))
    parts = zip(left.split(step), right.split(step), strict=True)
    return torch.cat([(one.mT @ other).flatten(1).square().sum(-1) for one, other in parts])


def _product(one: Outer, other: Outer) -> Float[Tensor, " batch"]:
    """Return the inner product of the gradients of each example, sum_st <l_s, l_t> <r_s, r_t>."""
    if not one.left.is_floating_point() and other.left.is_floating_point():
        one, other = other, one
    if one.left.is_floating_point() and other.left.is_floating_point():
        left = _wide(one.left) @ _wide(other.left).mT
    elif one.left.is_floating_point():
        left = _wide(one.left).take_along_dim(other.left[:, None, :], dim=2)
    else:
        left = one.left[:, :, None] == other.left[:, None, :]
    return (left * (_wide(one.right) @ _wide(other.right).mT)).sum((1, 2))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
