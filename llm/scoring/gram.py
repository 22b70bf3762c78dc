"""How far a step moves each response: inner products of gradients of log-probabilities.

A step on the loss sum_j loss_j(logp_j), with weights w_j = d loss_j / d logp_j, moves the
parameters by -rate * P sum_j w_j grad logp_j. The preconditioner P is 1 for gradient descent. To
first order in the rate the log-probability of a response i then falls by

    logp_i(before) - logp_i(after) = rate * sum_j K_ij w_j,    K_ij = <grad logp_i, P grad logp_j>.

So K says what a weighting does to every response, those that are kept included, before any step is
made. A term that raises the log-probability of retain responses has negative weights.

AdamW divides each coordinate by the root of a running mean v of squared gradients, so that its P is
the diagonal 1 / (sqrt(v) + eps) as long as v changes little. `second_moment` takes v from the
gradients of batches at one point, whose mean an optimiser that stays there arrives at;
`adam_of_batches` does so from the gradients of the examples, which are there anyway.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import check_fits, check_model, evaluating, response_logprobs
from markov.console.progress import bar
from markov.errors import require

ELEMENTS = 2**28  # gradients held at once: 1 GiB in float32
EPS = 1e-8  # of AdamW
COLUMNS = 2**16  # coordinates whose products are taken at once

# Of the gradients of all examples in a part of the parameters, and where this part lies: the
# diagonal of P there.
Metric = Callable[[Float[Tensor, "examples part"], slice], Float[Tensor, " part"]]


def gram(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    parameters: Sequence[nn.Parameter] | None = None,
    preconditioner: Float[Tensor, " parameters"] | None = None,
    elements: int = ELEMENTS,
    progress: bool = True,
) -> Float[Tensor, "examples examples"]:
    """Return K_ij = <grad logp_i, P grad logp_j> of the responses, in float64 on the CPU.

    `preconditioner` is the diagonal of P, in the order of the parameters, laid one behind the
    other; P is 1 without it. Everything else is as in `grams`. Raises `InvalidInput` as that does,
    and for a preconditioner of another size or with negative numbers.
    """
    size = sum(one.numel() for one in chosen_of(model, parameters))
    scale = preconditioner
    if scale is not None:
        allowed = f"{size} numbers >= 0, one per parameter"
        fits = scale.shape == (size,) and bool((scale >= 0).all())
        require(fits, "preconditioner", tuple(scale.shape), allowed)
    metrics: list[Metric] = [plain if scale is None else lambda _, part: scale[part]]
    ways: Any = {"parameters": parameters, "elements": elements, "progress": progress}
    return grams(model, encoded, metrics, **ways)[0]


def grams(
    model: nn.Module,
    encoded: Sequence[Encoded],
    metrics: Sequence[Metric],
    *,
    parameters: Sequence[nn.Parameter] | None = None,
    elements: int = ELEMENTS,
    progress: bool = True,
) -> list[Float[Tensor, "examples examples"]]:
    """Return K of the responses under several preconditioners, each in float64 on the CPU.

    The gradients are taken without dropout, over the chosen `parameters`, by default all that are
    trainable. K is a sum over parameters, so that about `elements` numbers of gradients are held at
    a time: those of all examples in a part of the parameters. Each part takes a pass per example,
    whose way back ends at the first layer that has some of it. Raises `InvalidInput` as
    `score_encoded` does, and for no parameters.
    """
    check_model(model)
    check_fits(model, encoded)
    chosen, count = chosen_of(model, parameters), len(encoded)
    parts = list(_parts(sum(one.numel() for one in chosen), max(1, elements // count)))
    found = [torch.zeros(count, count, dtype=torch.float64) for _ in metrics]
    with (
        evaluating(model),
        torch.enable_grad(),
        bar(len(parts) * count, "gram", unit="gradient", show=progress) as done,
    ):
        for part in parts:
            some, start = _overlapping(chosen, part)
            own = slice(part.start - start, part.stop - start)
            rows = torch.empty(0)
            for place, one in enumerate(encoded):
                row = gradient(model, [one], torch.ones(1), some)[own]
                rows = row.new_empty(count, len(row)) if place == 0 else rows
                rows[place] = row
                done.update()
            for metric, k in zip(metrics, found, strict=True):
                k += _products(rows, metric(rows, part).to(rows))
            del rows  # before the next part has its own
    return found


def plain(rows: Float[Tensor, "examples part"], part: slice) -> Float[Tensor, " part"]:
    """Return the metric of gradient descent, 1."""
    return torch.ones_like(rows[0])


def adam_of_batches(
    weights: Float[Tensor, " examples"], plan: Iterable[Sequence[int]], eps: float = EPS
) -> Metric:
    """Return the metric of AdamW at the mean square of the gradients of batches.

    It is `adam` of what `second_moment` returns for these weights and this plan, made from the
    gradients of the examples. Raises `InvalidInput` for no batch.
    """
    batches = [torch.as_tensor(rows) for rows in plan]
    require(len(batches) > 0, "plan", batches, "at least one batch")
    shares = torch.zeros(len(batches), len(weights), dtype=weights.dtype)
    for own, rows in zip(shares, batches, strict=True):
        own.index_add_(0, rows, weights[rows])

    def metric(rows: Float[Tensor, "examples part"], part: slice) -> Float[Tensor, " part"]:
        moment = torch.zeros_like(rows[0])
        for own in shares.to(rows):
            moment += (own @ rows).square() / len(shares)
        return adam(moment, eps)

    return metric


def _parts(size: int, width: int) -> Iterator[slice]:
    """Yield slices that cover so many numbers, of at most a width."""
    for low in range(0, size, width):
        yield slice(low, min(low + width, size))


def _overlapping(parameters: Sequence[nn.Parameter], part: slice) -> tuple[list[nn.Parameter], int]:
    """Return the parameters that have some of a part, and where the first of them starts."""
    starts = [0, *itertools.accumulate(one.numel() for one in parameters)]
    some = [
        place
        for place in range(len(parameters))
        if starts[place] < part.stop and part.start < starts[place + 1]
    ]
    return [parameters[place] for place in some], starts[some[0]]


def _products(
    rows: Float[Tensor, "examples part"], scale: Float[Tensor, " part"]
) -> Float[Tensor, "examples examples"]:
    """Return rows diag(scale) rows^T, few columns at a time: no second copy of all is made."""
    count = len(rows)
    found = torch.zeros(count, count, dtype=torch.float64)
    for columns in _parts(len(scale), COLUMNS):
        own = rows[:, columns]
        found += ((own * scale[columns]) @ own.mT).double().cpu()
    return (found + found.mT) / 2


def second_moment(
    model: nn.Module,
    encoded: Sequence[Encoded],
    weights: Float[Tensor, " examples"],
    plan: Iterable[Sequence[int]],
    *,
    parameters: Sequence[nn.Parameter] | None = None,
) -> Float[Tensor, " parameters"]:
    """Return the mean over batches of the square of their gradient, sum_j w_j grad logp_j.

    `plan` holds the rows of each batch. The gradients are all taken at the model as it is, without
    dropout. Raises `InvalidInput` for weights of another shape and for no batch.
    """
    check_model(model)
    check_fits(model, encoded)
    require(
        weights.shape == (len(encoded),), "weights", tuple(weights.shape), f"{len(encoded)} numbers"
    )
    chosen, batches = chosen_of(model, parameters), [list(rows) for rows in plan]
    require(len(batches) > 0, "plan", batches, "at least one batch")
    with evaluating(model), torch.enable_grad():
        squares = (
            gradient(model, [encoded[row] for row in rows], weights[rows], chosen).square()
            for rows in batches
        )
        return sum(squares, torch.zeros(())) / len(batches)


def adam(moment: Float[Tensor, " parameters"], eps: float = EPS) -> Float[Tensor, " parameters"]:
    """Return AdamW's preconditioner, 1 / (sqrt(v) + eps), of its mean of squared gradients."""
    return 1 / (moment.sqrt() + eps)


def gradient(
    model: nn.Module,
    encoded: Sequence[Encoded],
    weights: Float[Tensor, " examples"],
    parameters: Sequence[nn.Parameter],
) -> Float[Tensor, " parameters"]:
    """Return sum_j w_j grad logp_j over the parameters, by one pass for all examples.

    A parameter that has no part in it has gradient 0. It is computed in the mode that the model is
    in.
    """
    logp = response_logprobs(model, Batch.pad(encoded)).logp
    found = torch.autograd.grad((weights.to(logp) * logp).sum(), parameters, allow_unused=True)
    return torch.cat(list(_flat(found, parameters)))


def _flat(
    found: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]
) -> Iterator[Float[Tensor, " parameter"]]:
    for one, parameter in zip(found, parameters, strict=True):
        flat = torch.zeros_like(parameter) if one is None else one
        yield flat.flatten().to(torch.promote_types(flat.dtype, torch.float32))


def chosen_of(model: nn.Module, parameters: Sequence[nn.Parameter] | None) -> list[nn.Parameter]:
    """Return the parameters that are meant: those given, or all that are trainable.

    Raises `InvalidInput` where there are none.
    """
    every = model.parameters() if parameters is None else parameters
    chosen = [one for one in every if one.requires_grad]
    require(len(chosen) > 0, "parameters", 0, "at least one that is trainable")
    return chosen
