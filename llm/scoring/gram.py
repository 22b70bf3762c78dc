"""How far a step moves each response: inner products of gradients of log-probabilities.

A step on the loss sum_j loss_j(logp_j), with weights w_j = d loss_j / d logp_j, moves the
parameters by -rate * P sum_j w_j grad logp_j. The preconditioner P is 1 for gradient descent. To
first order in the rate the log-probability of a response i then falls by

    logp_i(before) - logp_i(after) = rate * sum_j K_ij w_j,    K_ij = <grad logp_i, P grad logp_j>.

So K says what a weighting does to every response, those that are kept included, before any step is
made. A term that raises the log-probability of retain responses has negative weights.

AdamW divides each coordinate by the root of a running mean v of squared gradients, so that its P is
the diagonal 1 / (sqrt(v) + eps) as long as v changes little. `second_moment` takes v from the
gradients of batches at one point, whose mean an optimiser that stays there arrives at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import check_fits, check_model, evaluating, response_logprobs
from markov.console.progress import bar
from markov.errors import require

ELEMENTS = 2**28  # gradients held at once: 1 GiB in float32
EPS = 1e-8  # of AdamW


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

    The gradients are taken without dropout, over the chosen `parameters`, by default all that are
    trainable, laid one behind the other. `preconditioner` is the diagonal of P in the same order.
    About `elements` numbers of gradients are held at a time, or those of two examples: the
    gradients of one block of examples, and of another one beside it, which are computed again for
    each. Raises `InvalidInput` as `score_encoded` does, for no parameters, and for a preconditioner
    of another size or with negative numbers.
    """
    check_model(model)
    check_fits(model, encoded)
    chosen = chosen_of(model, parameters)
    size = sum(one.numel() for one in chosen)
    if preconditioner is not None:
        allowed = f"{size} numbers >= 0, one per parameter"
        fits = preconditioner.shape == (size,) and bool((preconditioner >= 0).all())
        require(fits, "preconditioner", tuple(preconditioner.shape), allowed)
    step = max(1, elements // (2 * size))
    blocks = [range(low, min(low + step, len(encoded))) for low in range(0, len(encoded), step)]
    found = torch.zeros(len(encoded), len(encoded), dtype=torch.float64)
    passes = sum(len(block) * (place + 1) for place, block in enumerate(blocks))
    with (
        evaluating(model),
        torch.enable_grad(),
        bar(passes, "gram", unit="gradient", show=progress) as done,
    ):

        def block_of(rows: range) -> Tensor:
            own = []
            for row in rows:
                own.append(gradient(model, [encoded[row]], torch.ones(1), chosen))
                done.update()
            return torch.stack(own)

        for place, rows in enumerate(blocks):
            left = block_of(rows)
            scaled = left if preconditioner is None else left * preconditioner.to(left)
            for other in blocks[place:]:
                right = left if other is rows else block_of(other)
                part = (scaled @ right.mT).double().cpu()
                found[rows.start : rows.stop, other.start : other.stop] = part
                found[other.start : other.stop, rows.start : rows.stop] = part.mT
    return found


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
