"""What a model keeps of prompts that it has read, so that texts behind them go on from there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from llm.scoring.inside import bare, embedding


class Kept(NamedTuple):
    """Keys and values of prompts, and which prompt each row of a batch goes on from.

    The prompts are padded in front, where `present` is False, so that what follows stands right
    behind each of them. `rows` has the place of a prompt per row.
    """

    cache: Any
    present: Bool[Tensor, "prompts time"]
    rows: Int64[Tensor, " batch"]

    def options(self, model: nn.Module, present: Bool[Tensor, "batch rest"]) -> dict[str, Any]:
        """Return what the model's forward pass takes besides the rest of each text.

        `present` is False on the padding behind it. Every call has keys and values of its own,
        since a forward pass adds to them.
        """
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(self.rows)
        before = self.present[self.rows.to(self.present.device)]
        whole = torch.cat([before, present], dim=1)
        places = positions(model, whole)
        places = {name: value[:, before.shape[1] :] for name, value in places.items()}
        return {
            "attention_mask": whole.long(),
            "past_key_values": cache,
            "use_cache": True,
            **places,
        }


def positions(model: nn.Module, present: Bool[Tensor, "rows time"]) -> dict[str, Any]:
    """Return the places of tokens, counted from the start of each text, if the model takes any.

    Padding has the place of a token beside it.
    """
    if "position_ids" not in inspect.signature(bare(model).forward).parameters:
        return {}
    return {"position_ids": (present.long().cumsum(-1) - 1).clamp(min=0)}


def padded(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int64[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """Return prompts as rows that are padded in front with token 0, and True where they are."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    length = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(width) >= width - length[:, None]


def kept_of(model: nn.Module, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Kept:
    """Return what a model keeps of prompts, for texts that go on from those in `rows`."""
    tokens, present = (one.to(embedding(model).device) for one in padded(prompts))
    options = {"attention_mask": present.long(), **positions(model, present)}
    found = model(tokens, **options, use_cache=True, return_dict=True)
    return Kept(found.past_key_values, present, torch.tensor(rows))


def keeps_apart(model: Any) -> bool:
    """Return whether the model keeps keys and values of each text apart, in every layer."""
    from transformers import DynamicCache, cache_utils

    kind = getattr(cache_utils, "DynamicLayer", None)  # older versions have none
    default = getattr(model, "_supports_default_dynamic_cache", lambda: False)
    if kind is None or not default():
        return False
    return all(type(layer) is kind for layer in DynamicCache(config=model.config).layers)
