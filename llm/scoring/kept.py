"""What a model keeps of prompts that it has read, so that texts behind them go on from there."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from llm.scoring.inside import bare


class Kept(NamedTuple):
    """Keys and values of prompts, and which prompt each row of a batch goes on from.

    The prompts are padded behind, where `present` is False; `rows` has the place of a prompt per
    row.
    """

    cache: Any
    present: Bool[Tensor, "prompts time"]
    rows: Int64[Tensor, " batch"]

    def options(self, model: Any, present: Bool[Tensor, "batch rest"]) -> dict[str, Any]:
        """Return what the model's forward pass takes besides the rest of each text.

        Every call has keys and values of its own, since a forward pass adds to them. Places are
        counted from the start of each text, as if no padding stood between its two parts.
        """
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(self.rows)
        before = self.present[self.rows]
        options = {
            "attention_mask": torch.cat([before, present], dim=1).long(),
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in inspect.signature(bare(model).forward).parameters:
            place = torch.arange(present.shape[1], device=present.device)
            options["position_ids"] = before.sum(1, keepdim=True) + place
        return options


def keeps_apart(model: Any) -> bool:
    """Return whether the model keeps keys and values of each text apart, in every layer."""
    from transformers import DynamicCache, cache_utils

    kind = getattr(cache_utils, "DynamicLayer", None)  # older versions have none
    default = getattr(model, "_supports_default_dynamic_cache", lambda: False)
    if kind is None or not default():
        return False
    return all(type(layer) is kind for layer in DynamicCache(config=model.config).layers)
