"""The ways in which a model can write several texts at a time, and which of them it respects.

Prompts are padded in front, so that all end where the writing begins; the padding is masked and
positions count from each prompt's own start. Not every model respects that. Recurrent ones may read
padding as if it were text; some go wrong as soon as they write several texts at a time, and some
with what they keep from token to token, at once or when a text outgrows a window. A model is
therefore tried before it writes (`way_of`), and of each batch the two texts with most and least
padding are read again (`likely`). Both are compared with a forward pass over the text alone,
without padding and with nothing kept. If they do not agree, the model writes in a slower way, and
the batch is written anew.

A model's own settings for sampling, penalties and the like (`generation_config`) play no part, with
the exception of the tokens that end a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llm.scoring.shared import padded

# how far rounding may move a logit, as a share of the range of all logits at its place
TOLERANCE = 1e-4
# Scores of the next token, (rows, vocab), from its logits: each row is of a prompt, by its number,
# and of a place in what is written behind it, from 0.
Choose = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]


class Way(NamedTuple):
    """How prompts are continued.

    They are written together or one at a time, padded to one length or not, and with what was kept
    from token to token (`cache`) or with everything computed anew.
    """

    together: bool
    padded: bool
    cache: bool


# From the quickest to the slowest, with which the others are compared.
WAYS = (
    Way(True, True, True),
    Way(True, False, True),
    Way(False, False, True),
    Way(False, False, False),
)


def way_of(model: Any, prompts: Sequence[Sequence[int]], count: int) -> Way:
    """Return the quickest of `WAYS` in which prompts get the logits that each has alone.

    It is tried on two of the prompts, the longest and the shortest, or, for a way without padding,
    the two longest, of which one is cut. They are continued by `count` tokens. Logits may differ by
    `max(TOLERANCE, 8 eps)` of the range of all logits at their place, eps being the rounding of the
    model's numbers.
    """
    order = sorted(prompts, key=len, reverse=True)
    other = next((prompt for prompt in order if list(prompt) != list(order[0])), order[-1])
    for way in WAYS[:-1]:
        pair = (order[0], order[-1]) if way.padded else (order[0][: len(other)], other)
        tried = pair if way.together else pair[:1]
        if (len(order) > 1 or not way.together) and _as_alone(model, tried, count):
            return way
    return WAYS[-1]


def _as_alone(model: Any, prompts: Sequence[Sequence[int]], count: int) -> bool:
    """Return whether prompts that are continued together have the logits that each has alone.

    They are continued by `count` tokens.
    """
    with greedily(model, count, [], output_logits=True, return_dict_in_generate=True):
        written = _generate(model, prompts)
    found = torch.stack(written.logits, dim=1)
    for prompt, new, got in zip(
        prompts, written.sequences[:, -count:].tolist(), found, strict=True
    ):
        want = alone(model, [*prompt, *new[:-1]])[-count:]
        if ((got.to(want) - want).abs().amax(-1) > _rounding(model, want)).any():
            return False
    return True


def likely(model: Any, prompt: Sequence[int], new: Sequence[int], choose: Choose, row: int) -> bool:
    """Return whether each written token is the most likely one when the text is read alone.

    It is so by the scores that `choose` gives for the prompt of this number.
    """
    logits = alone(model, [*prompt, *new[:-1]])[-len(new) :]
    found = choose([row] * len(new), range(len(new)), logits)
    chosen = found.gather(-1, torch.tensor(new, device=found.device)[:, None]).squeeze(-1)
    return not (found.amax(-1) - chosen > _rounding(model, logits)).any()


def alone(model: Any, text: Sequence[int]) -> Float[Tensor, "time vocab"]:
    """Return the logits at every place of one text.

    They come from one forward pass without padding and with nothing kept.
    """
    tokens = torch.tensor([list(text)], device=device_of(model))
    return model(tokens, use_cache=False, return_dict=True).logits[0].float()


def _rounding(model: Any, logits: Float[Tensor, "time vocab"]) -> Float[Tensor, " time"]:
    """Return how far rounding may move the logits at each place."""
    # Numbers of one byte are only stored: computations use wider ones.
    wide = {one.dtype for one in model.parameters() if one.is_floating_point() and one.itemsize > 1}
    eps = max((torch.finfo(dtype).eps for dtype in wide), default=0.0)
    return max(TOLERANCE, 8 * eps) * (logits.amax(-1) - logits.amin(-1))


def _generate(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    tokens, present = (one.to(device_of(model)) for one in padded(prompts))
    return model.generate(tokens, attention_mask=present.long())


def device_of(model: Any) -> torch.device:
    """Return the device that takes a model's tokens."""
    return model.get_input_embeddings().weight.device


@contextmanager
def greedily(model: Any, new: int, ends: Sequence[int], **more: Any) -> Iterator[None]:
    """Make transformers decode greedily inside the block.

    What a call does not say transformers takes from the model's own settings, which are replaced.
    """
    from transformers import GenerationConfig

    # An adapter's wrapper writes its settings into the model that it wraps.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, beneath = model.generation_config, inner.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        **more,
    )
    try:
        yield
    finally:
        model.generation_config, inner.generation_config = own, beneath
