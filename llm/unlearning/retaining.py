"""Retain terms: losses on what a model is to keep, one number per example.

    cross_entropy   -log pi_theta(y|x) / |y|
    kl              (1/|y|) sum_t KL(pi_original(. | x, y_<t) || pi_theta(. | x, y_<t)),  over the
                    whole vocabulary

Both are means over the response tokens of an example, in nats per token, and count no token of a
prompt, so that `retain_weight` means the same for both.

What lambda multiplies differs between the paper, the released code and this package. With n
examples on each side, an update minimises means over examples or, under the average "tokens", means
over all of their tokens:

    "examples"   (1/n) sum_i loss_i                 + lambda (1/n) sum_j -log pi(y_j) / |y_j|
    "tokens"     (sum_i loss_i) / (sum_i |y_i|)     + lambda (sum_j -log pi(y_j)) / (sum_j |y_j|)

The second is what the released code of TOFU and SimNPO computes for GA and GradDiff, where a loss
is the mean over the labels of a batch (`model(input_ids, labels=labels).loss`). For NPO and SimNPO
that code takes the first on the forget side and the second on the retain side. The two retain sides
differ in how retain examples are weighted: in the second, long ones count for more. From one lambda
to another, where |y| is the mean length of an update's forget or retain responses:

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
from llm.scoring.logprobs import response_logprobs, scored_logits
from llm.training.adapters import Original

RetainTerm = Literal["none", "cross_entropy", "kl"]
Average = Literal["examples", "tokens"]
POSITIONS = 32  # positions whose distributions are held at once, beside the logits


def divisor(average: Average, encoded: Sequence[Encoded]) -> int:
    """Return what a sum of losses over these examples is divided by.

    It is their number, or under the average "tokens" the number of their scored tokens.
    """
    return (
        sum(len(one.tokens) - one.prompt for one in encoded)
        if average == "tokens"
        else len(encoded)
    )


def cross_entropy(model: nn.Module, batch: Batch, _: object = None) -> Float[Tensor, " batch"]:
    """Return -log pi_theta(y|x) / |y| of each example, in nats per token."""
    seq = response_logprobs(model, batch)
    return -seq.logp / seq.length


def kl(model: nn.Module, batch: Batch, original: Original) -> Float[Tensor, " batch"]:
    """Return KL(original || model) of each example, the mean over its response tokens.

    The unit is nats per token. The logits of both models at the scored positions are held in
    memory, in the model's dtype. Distributions are held for a few positions at a time, and are
    computed again in the backward pass.
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


RETAIN_LOSSES: dict[str, Callable[..., Float[Tensor, " batch"]]] = {
    "cross_entropy": cross_entropy,
    "kl": kl,
}
