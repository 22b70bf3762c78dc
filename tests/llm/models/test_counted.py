"""The number of parameters from files alone: never more than there are, and nearly all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import save_file

from llm.models.counted import LIKE_LLAMA, least_count
from llm.models.size import skeleton

SIZES: dict[str, Any] = dict(
    vocab_size=500,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def saved(config: Any, place: Path, *without: str) -> int:
    """Write the settings of a model alone, and return how many parameters it has."""
    config.save_pretrained(place)
    said = json.loads((place / "config.json").read_text())
    kept = {name: value for name, value in said.items() if name not in without}
    (place / "config.json").write_text(json.dumps(kept))
    return sum(one.numel() for one in skeleton(config, "float32").parameters())


@pytest.mark.parametrize("kind", LIKE_LLAMA)
@pytest.mark.parametrize(
    "without", [(), ("head_dim", "num_key_value_heads", "tie_word_embeddings")]
)
def test_settings_tell_nearly_all_parameters_and_never_more(
    kind: str, without: tuple[str, ...], tmp_path: Path
) -> None:
    found = saved(transformers.CONFIG_MAPPING[kind](**SIZES), tmp_path, *without)
    least = least_count(tmp_path)
    # What is left out may have any default, such as heads much wider than the model's here.
    assert least is not None and (0 if without else 0.97 * found) < least <= found


@pytest.mark.parametrize("parts", [1, 3])
def test_headers_of_weights_tell_all_parameters(parts: int, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path, max_shard_size="200KB" if parts > 1 else "5GB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= parts
    save_file({"another": model.lm_head.weight.detach()}, tmp_path / "another.safetensors")
    assert least_count(tmp_path) == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"model_type": "llama"}', '{"model_type": "llama", "hidden_size": "x"}'],
)
def test_settings_that_say_nothing_are_left_to_loading(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert least_count(tmp_path) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"num_attention_heads": 0, "head_dim": None},
        {"hidden_size": math.inf},
        {"num_hidden_layers": -1000},
    ],
)
def test_settings_of_no_model_are_left_to_loading(changed: dict[str, Any], tmp_path: Path) -> None:
    saved(transformers.LlamaConfig(**SIZES), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, **changed}))
    assert least_count(tmp_path) is None


def test_what_is_nested_too_deep_is_left_to_loading(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert least_count(tmp_path) is None


@pytest.mark.parametrize("shape", ["[-1, 3]", "[1e400]"])
def test_shapes_of_no_weights_are_left_to_loading(shape: str, tmp_path: Path) -> None:
    saved(transformers.LlamaConfig(**SIZES), tmp_path)
    header = f'{{"one": {{"shape": {shape}}}}}'.encode()
    written = len(header).to_bytes(8, "little") + header
    (tmp_path / "model.safetensors").write_bytes(written)
    assert least_count(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40])
def test_weights_that_say_nothing_are_left_to_loading(
    name: str, content: bytes, tmp_path: Path
) -> None:
    saved(transformers.LlamaConfig(**SIZES), tmp_path)
    (tmp_path / name).write_bytes(content)
    assert least_count(tmp_path) is None


def test_what_is_no_plain_model_is_not_counted(tmp_path: Path) -> None:
    quantised: dict[str, Any] = {"quantization_config": {"quant_method": "x"}}
    saved(transformers.LlamaConfig(**SIZES, **quantised), tmp_path)
    assert least_count(tmp_path) is None
    assert least_count("authors:original") is None and least_count("owner/name") is None
    gpt2 = tmp_path / "gpt2"
    saved(transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=4, n_head=4), gpt2)
    assert least_count(gpt2) is None
