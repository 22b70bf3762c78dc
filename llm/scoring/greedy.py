"""How much of a response a model writes by itself: its likeliest tokens beside those of the truth.

With y the n scored tokens of a response, and right_t true where y_t is the likeliest token after
the prompt and y_<t, a tie going to the token of the smaller number,

    right    the number of t with right_t
    tail     the number of tokens at the end of y that are all right: given the first n - tail
             tokens, greedy decoding writes all the rest

Divided by n they are exact memorisation (Tirumala et al. 2022), and extraction strength, 1 - k/n
with the fewest first tokens k that call forth the rest (Carlini et al. 2021). It is 0 where not
even the last token is right. open-unlearning leaves out the last token, the end of an answer, and
its least value is 1/n: its numbers are not quite these. Both are read from the pass that takes the
log-probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from llm.scoring.encoding import Batch
from llm.scoring.logprobs import ELEMENTS, token_logprobs_of, token_values
from llm.scoring.shared import Kept


class Greedy(NamedTuple):
    """Scores of responses: their log-probabilities (nats), and tokens that are the likeliest."""

    logp: Float[Tensor, " rows"]
    length: Float[Tensor, " rows"]
    right: Float[Tensor, " rows"]
    tail: Float[Tensor, " rows"]


def greedy_scores(
    model: nn.Module, batch: Batch, *, elements: int = ELEMENTS, before: Kept | None = None
) -> Greedy:
    """Return the scores of the responses of one batch, as `response_logprobs` takes them."""
    each = token_values(model, batch, _values, elements=elements, before=before)
    scored = batch.scored.to(each.device)
    places = scored.nonzero(as_tuple=True)
    logp, right = (each.new_zeros(scored.shape).index_put(places, own) for own in each.unbind(-1))
    # Padding behind a response neither ends its tail nor counts as a part of it.
    tail = right.masked_fill(~scored, 1.0).flip(-1).cumprod(-1).flip(-1) * scored
    length = scored.sum(-1).to(logp)
    return Greedy(logp.sum(-1), length, right.sum(-1), tail.sum(-1))


def _values(
    logits: Float[Tensor, "scored vocab"], targets: Int64[Tensor, " scored"]
) -> Float[Tensor, "scored 2"]:
    logp = token_logprobs_of(logits, targets)
    right = logits.argmax(-1) == targets.to(logits.device)
    return torch.stack([logp, right.to(logp)], dim=-1)
