"""The number of a model's parameters, from files that need neither torch nor transformers.

Importing these takes seconds. What the weights alone would take more than is free can be refused
before that. Weights tell their shapes in the headers of their files; where there are only settings,
those of a decoder that is built as Llama is do.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from llm.models.gguf_files import find_gguf, read_header
from llm.models.names import READY, made
from markov.errors import InvalidInput
from markov.files import inputs

# Decoders of Llama's matrices: four of attention, three of the layer's own, in every layer.
LIKE_LLAMA = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo"),
    *("olmo2", "granite", "smollm3"),
)
WHOLE, PARTS = "model.safetensors", "model.safetensors.index.json"
BAD = (
    *(InvalidInput, OSError, ValueError, TypeError, KeyError, AttributeError, struct.error),
    *(ArithmeticError, RecursionError),
)
LONGEST = 100_000_000  # bytes of a header, as safetensors itself has it


def least_count(word: str | os.PathLike[str]) -> int | None:
    """Return how many parameters the model in a folder or a GGUF file has at least.

    It is None where that does not follow from the files: the model is made here, is quantised or an
    adapter, or its settings are not those of a decoder as Llama is. Of the ready-made models of the
    hub some are known, of others of the hub none.
    """
    name = os.path.expanduser(word)
    if made(name) is not None:
        return None
    if name in READY:
        return READY[name].count
    try:
        file = find_gguf(name)
        if file is not None:
            return sum(one.numbers for one in read_header(file).tensors) or None
        place = Path(name)
        if not (place / "config.json").is_file() or (place / "adapter_config.json").exists():
            return None
        config = json.loads((place / "config.json").read_bytes())
        if not isinstance(config, dict) or config.get("quantization_config") is not None:
            return None
        found = _of_weights(place) or _of_config(config)
        return found if found is not None and found > 0 else None
    except BAD:  # loading says what is wrong with the files
        return None


def _of_weights(place: Path) -> int | None:
    """Return how many numbers the weights of a folder hold, or None where it has none."""
    names = [WHOLE] if (place / WHOLE).is_file() else []
    if not names and (place / PARTS).is_file():
        names = sorted(set(json.loads((place / PARTS).read_bytes())["weight_map"].values()))
    return sum(_numbers(place / name) for name in names) or None


def _numbers(file: Path) -> int:
    """Return how many numbers a file of safetensors holds: a length, then a header in JSON.

    Format: https://github.com/huggingface/safetensors#format
    """
    with inputs.existing_file(file, "model").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, LONGEST)))
    shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
    return sum(prod(map(int, shape)) for shape in shapes)


def _of_config(config: Mapping[str, Any]) -> int | None:
    """Return how many parameters the matrices of a decoder have; what is not said counts least."""
    if config.get("model_type") not in LIKE_LLAMA:
        return None
    width, layers, inner = (
        int(config[name]) for name in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or width // heads)
    queries, keys = heads * size, int(config.get("num_key_value_heads") or 1) * size
    tables = 2 if config.get("tie_word_embeddings") is False else 1
    words = int(config["vocab_size"]) * width * tables
    return words + layers * width * (2 * queries + 2 * keys + 3 * inner)
