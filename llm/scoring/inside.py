"""The parts of a causal language model of transformers that scoring needs to reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from markov.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CAUSAL = "a causal language model of transformers"


def inner(model: nn.Module) -> PreTrainedModel:
    """Return the model inside a wrapper for several devices, or the model itself."""
    found = getattr(model, "module", model)
    known = hasattr(found, "get_output_embeddings") and hasattr(found, "config")
    require(known, "model", type(model).__name__, CAUSAL)
    return cast("PreTrainedModel", found)


def bare(model: nn.Module) -> Any:
    """Return the model inside such a wrapper, and inside its adapters."""
    found: Any = inner(model)
    return found.get_base_model() if hasattr(found, "get_base_model") else found


def config_of(model: nn.Module) -> Any:
    """Return the configuration of the part that reads text."""
    return inner(model).config.get_text_config()


def most_places(model: nn.Module) -> int | None:
    """Return how many tokens a text may have; None where the model names no such number."""
    return getattr(config_of(model), "max_position_embeddings", None)


def head(model: nn.Module) -> Any:
    """Return the layer that makes logits of hidden states; None where there is none."""
    return inner(model).get_output_embeddings()


def embedding(model: nn.Module) -> Tensor:
    """Return the vectors of the tokens, a row per token."""
    return cast(Tensor, inner(model).get_input_embeddings().weight)
