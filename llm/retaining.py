"""Retain terms: what a model is to keep, a number per example, the mean over its response tokens.

    cross_entropy   -log pi_theta(y|x) / |y|
    kl              (1/|y|) sum_t KL(pi_original(. | x, y_<t) || pi_theta(. | x, y_<t)),  over the whole vocabulary

Both in nats per token, and both count no token of a prompt, so that `retain_weight` means the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.adapters import Original
from llm.encoding import Batch
from llm.scoring import ELEMENTS, response_logprobs, scored_logits

RetainTerm = Literal["none", "cross_entropy", "kl"]
POSITIONS = 32  # whose distributions are held at once, beside the logits


def cross_entropy(model: nn.Module, batch: Batch, _: object = None) -> Float[Tensor, " batch"]:
    """-log pi_theta(y|x) / |y| of each example, nats per token."""
    seq = response_logprobs(model, batch)
    return -seq.logp / seq.length


def kl(model: nn.Module, batch: Batch, original: Original) -> Float[Tensor, " batch"]:
    """KL(original || model), the mean over each example's response tokens, nats per token.

    The logits of both at the scored positions are held, in the model's dtype; distributions of some at a time, which
    are computed again in the backward pass.
    """
    truth, own, found = original(model, batch), scored_logits(model, batch), []
    for part in zip(truth.split(POSITIONS), own.split(POSITIONS), strict=True):
        found.append(checkpoint(_divergences, *part, use_reentrant=False))
    scored = batch.scored
    each = torch.cat(found)
    places = tuple(index.to(each.device) for index in scored.nonzero(as_tuple=True))
    return each.new_zeros(scored.shape).index_put(places, each).sum(-1) / scored.sum(-1).to(each)


def _divergences(truth: Float[Tensor, "some vocab"], own: Float[Tensor, "some vocab"]) -> Float[Tensor, " some"]:
    wide = torch.promote_types(own.dtype, torch.float32)
    truth, own = truth.to(own.device, wide).log_softmax(-1), own.to(wide).log_softmax(-1)
    return (truth.exp() * (truth - own)).sum(-1)


def kl_budget(vocab: int, budget: int) -> int:
    """Tokens of a forward pass, so that about `ELEMENTS` logits of each model are held."""
    return max(1, min(budget, ELEMENTS // vocab))


RETAIN_LOSSES: dict[str, Callable[..., Float[Tensor, " batch"]]] = {"cross_entropy": cross_entropy, "kl": kl}
