"""The architecture of a model without its numbers, for what is known before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llm.data.words import checked_word
from llm.models.gguf_files import LINK, alone, find_gguf, read_header
from llm.models.language_model import config_of_base, find_dtype
from llm.models.libraries import muted, quiet
from llm.models.merging import find_adapter
from llm.models.names import READY, check_id, made
from llm.models.packages import find_packaged, hinted
from llm.models.pretrained import read_config, without_numbers
from llm.training.plan import Planner
from markov.errors import InvalidInput

SMALL_FILE = 500_000_000  # parameters of a GGUF file, below which no memory is planned


def planner_of(word: str, options: Mapping[str, Any], *, always: bool = False) -> Planner | None:
    """Return what plans work with the model that a word names, from its configuration alone.

    It is None for a model that is made here, which is small, and for one whose size does not follow
    from a configuration: it is quantised, its own code would have to run, or the configuration of
    a folder cannot be read, which loading will say. It is also None for a small GGUF file, unless
    it is asked for `always`: reading the configuration in it takes seconds. `options` are those of
    reading from the hub.

    Raises `InvalidInput` for a model of the hub whose configuration cannot be fetched.
    """
    if made(word) is not None:
        return None
    config = _config(checked_word(word, "model"), options, always)
    if config is None or getattr(config, "quantization_config", None) is not None:
        return None
    try:
        planner = Planner(lambda dtype: skeleton(config, dtype))
        planner.count()
    except Exception:  # custom code, or settings that no architecture has
        return None
    return planner


def skeleton(config: Any, dtype: str) -> Any:
    """Return the model of a configuration in a dtype, on the device "meta"."""
    own = find_dtype(dtype) or getattr(config, "dtype", None) or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    with quiet(), muted():
        return without_numbers(config).to(dtype=own).eval()


def _config(name: str, options: Mapping[str, Any], always: bool) -> Any:
    """Return the configuration of a model or of an adapter's base, or None if it cannot be read."""
    ready = None if Path(name).is_dir() else READY.get(name)
    package = ready and ready.package
    try:
        file = None if options["revision"] else find_packaged(name, package)
        file = file or find_gguf(name)
        if file is not None:
            return _of_file(file, options, always)
        if Path(name).is_dir():
            return _of_place(name, options)
    except InvalidInput:
        return None
    with hinted(package):
        check_id(name)
        where = ready.hub if ready else name
        revision = options["revision"] or (ready and ready.revision)
        return _of_place(where, {**options, "revision": revision})


def _of_file(file: Path, options: Mapping[str, Any], always: bool) -> Any:
    header = read_header(file)
    if not always and sum(one.numbers for one in header.tensors) < SMALL_FILE:
        return None
    with alone(file) as folder:
        return read_config(folder, {**options, "revision": None, "gguf_file": LINK})


def _of_place(where: str, options: Mapping[str, Any]) -> Any:
    adapter = find_adapter(where, options)
    if adapter is None or adapter.base == where:
        return read_config(where, options)
    return config_of_base(adapter, {**options, "revision": adapter.base_revision})
