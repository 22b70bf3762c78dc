"""Retain terms: what a model is to keep, a number per example, the mean over its response tokens.

    cross_entropy   -log pi_theta(y|x) / |y|
    kl              (1/|y|) sum_t KL(pi_original(. | x, y_<t) || pi_theta(. | x, y_<t)),  over the
                    whole vocabulary

Both in nats per token, and both count no token of a prompt, so that `retain_weight` means the same.

What lambda multiplies is not one thing everywhere. An update minimises, with n examples on each
side and means over them or, under the average "tokens", over all of their tokens,

    "examples"   (1/n) sum_i loss_i                 + lambda (1/n) sum_j -log pi(y_j) / |y_j|
    "tokens"     (sum_i loss_i) / (sum_i |y_i|)     + lambda (sum_j -log pi(y_j)) / (sum_j |y_j|)

The second is what the released code of TOFU and SimNPO computes for GA and GradDiff, where a loss
is the mean over the labels of a batch (`model(input_ids, labels=labels).loss`); for NPO and SimNPO
it takes the first on the forget side and the second on the retain side, which differ by which
retain examples count: there long ones count for more. From one lambda to another, where |y| is the
mean length of an update's forget or retain responses:

    the paper prints the retain loss as a sum, E[-log pi(y)]:
        lambda here = lambda_printed * |y_retain|
    the released GradDiff, written with summed losses:
        lambda of summed_grad_diff = lambda * |y_forget|
    the released SimNPO has a factor on its forget loss instead:
        lambda here = grad_diff_coeff / npo_coeff

The first two are exact for responses of one length and up to the scale of the whole loss, which
AdamW undoes unless gradients are clipped. With the third, npo_coeff = 0.1375 is lambda = 7.27,
where the paper says 0.1375. `markov.conventions` has them as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import ELEMENTS, response_logprobs, scored_logits
from llm.training.adapters import Original

RetainTerm = Literal["none", "cross_entropy", "kl"]
Average = Literal["examples", "tokens"]
POSITIONS = 32  # whose distributions are held at once, beside the logits


def divisor(average: Average, encoded: Sequence[Encoded]) -> int:
    """What a sum of losses over these examples is divided by: their number, or that of their
    scored tokens.
    """
    return (
        sum(len(one.tokens) - one.prompt for one in encoded)
        if average == "tokens"
        else len(encoded)
    )


def cross_entropy(model: nn.Module, batch: Batch, _: object = None) -> Float[Tensor, " batch"]:
    """-log pi_theta(y|x) / |y| of each example, nats per token."""
    seq = response_logprobs(model, batch)
    return -seq.logp / seq.length


def kl(model: nn.Module, batch: Batch, original: Original) -> Float[Tensor, " batch"]:
    """KL(original || model), the mean over each example's response tokens, nats per token.

    The logits of both at the scored positions are held, in the model's dtype; distributions of some
    at a time, which are computed again in the backward pass.
    """
    truth, own, found = original(model, batch), scored_logits(model, batch), []
    for part in zip(truth.split(POSITIONS), own.split(POSITIONS), strict=True):
        found.append(checkpoint(_divergences, *part, use_reentrant=False))
    scored = batch.scored
    each = torch.cat(found)
    places = tuple(index.to(each.device) for index in scored.nonzero(as_tuple=True))
    return each.new_zeros(scored.shape).index_put(places, each).sum(-1) / scored.sum(-1).to(each)


def _divergences(
    truth: Float[Tensor, "some vocab"], own: Float[Tensor, "some vocab"]
) -> Float[Tensor, " some"]:
    wide = torch.promote_types(own.dtype, torch.float32)
    truth, own = truth.to(own.device, wide).log_softmax(-1), own.to(wide).log_softmax(-1)
    return (truth.exp() * (truth - own)).sum(-1)


def kl_budget(vocab: int, budget: int) -> int:
    """Tokens of a forward pass, so that about `ELEMENTS` logits of each model are held."""
    return max(1, min(budget, ELEMENTS // vocab))


RETAIN_LOSSES: dict[str, Callable[..., Float[Tensor, " batch"]]] = {
    "cross_entropy": cross_entropy,
    "kl": kl,
}
