"""The architecture of a model without its numbers, for what is known before weights are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llm.models.language_model import find_dtype
from llm.models.merging import find_adapter
from llm.models.names import READY, made
from llm.models.pretrained import quiet, read_config
from llm.training.plan import Planner
from markov.errors import InvalidInput


def planner_of(word: str, options: Mapping[str, Any]) -> Planner | None:
    """Return what plans work with the model that a word names, from its configuration alone.

    It is None for a model that is made here, which is small, and for one whose size does not follow
    from a configuration: it is quantised, its own code would have to run, or the configuration
    cannot be read, which loading will say. `options` are those of reading from the hub.
    """
    if made(word) is not None:
        return None
    config = _config(os.path.expanduser(word), options)
    if config is None or getattr(config, "quantization_config", None) is not None:
        return None
    try:
        planner = Planner(lambda dtype: skeleton(config, dtype))
        planner.count()
    except Exception:  # custom code, or settings that no architecture has
        return None
    return planner


def skeleton(config: Any, dtype: str) -> Any:
    """Return the model of a configuration on the device "meta", where it takes no memory."""
    from transformers import AutoModelForCausalLM

    own = find_dtype(dtype) or getattr(config, "dtype", None) or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    with torch.device("meta"), quiet():
        return AutoModelForCausalLM.from_config(config).to(dtype=own).eval()


def _config(name: str, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a model or of an adapter's base, or None if it cannot be read."""
    ready = None if Path(name).is_dir() else READY.get(name)
    where = ready.hub if ready else name
    options = {**options, "revision": options["revision"] or (ready and ready.revision)}
    try:
        adapter = find_adapter(where, options)
        if adapter is None or adapter.base == where:
            return read_config(where, options)
        return read_config(adapter.base, {**options, "revision": adapter.base_revision})
    except InvalidInput:
        return None
