"""Folders that trainers and peft leave: what is a model in them is read, and of what is none the
line says what to give instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from llm.models.source import load
from tests.llm.models.test_llm_models import TOKENS, WORDS, configure, fresh, refused, saved
from tests.llm.models.test_merging import peft_may_warn

# What transformers' trainer writes beside a model; all but the last are pickles.
BESIDE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")


def same(folder: Path) -> bool:
    found = load(folder, device="cpu").model(TOKENS).logits
    return torch.equal(found, fresh("llama")(TOKENS).logits)


def checkpoint(folder: Path, tokenizer: Any = WORDS) -> Path:
    saved(folder, fresh("llama"), tokenizer)
    for name in BESIDE:
        (folder / name).write_bytes(b"a pickle, which nothing opens")
    (folder / "trainer_state.json").write_text("{}")
    return folder


def sharded(folder: Path) -> list[Path]:
    fresh("llama").save_pretrained(folder, max_shard_size="20KB")
    WORDS.save_pretrained(folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    return shards


@peft_may_warn()
def adapter(folder: Path, base: str | Path) -> Path:
    inner: Any = fresh("llama")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(inner, settings).save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    content = {**json.loads(file.read_text()), "base_model_name_or_path": str(base)}
    file.write_text(json.dumps(content))
    return folder


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


# --- trainers ---


def test_a_checkpoint_of_a_trainer_is_a_model_whatever_else_is_in_it(tmp_path: Path) -> None:
    assert same(checkpoint(tmp_path / "checkpoint-7"))


@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_of_a_folder_of_checkpoints_the_newest_is_named_by_its_number(
    kind: str, tmp_path: Path
) -> None:
    for number in (9, 10, 100):
        place = tmp_path / f"checkpoint-{number}"
        checkpoint(place) if kind == "models" else adapter(place, "owner/name")
    (tmp_path / "runs").mkdir()
    found = refused(lambda: load(tmp_path))
    assert f"the newest is {tmp_path / 'checkpoint-100'}" in found.allowed


def test_a_folder_with_a_model_is_that_model_though_it_holds_checkpoints(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    saved(tmp_path / "checkpoint-5", fresh("tied"))
    assert same(tmp_path)


def test_a_checkpoint_without_tokenizer_says_what_to_copy(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint-7", None)
    found = refused(lambda: load(folder))
    assert found.field == "tokenizer" and "copy tokenizer.json" in found.allowed
    WORDS.save_pretrained(tmp_path / "words")
    assert load(folder, tokenizer=tmp_path / "words").tokenizer.eos_token == WORDS.eos_token


# --- weights in several files ---


def test_weights_in_several_files_are_read_as_one_model(tmp_path: Path) -> None:
    sharded(tmp_path)
    assert same(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_file_of_several_that_is_not_whole_is_named(damage: str, tmp_path: Path) -> None:
    shard = sharded(tmp_path)[1]
    cut(shard) if damage == "cut" else shard.unlink()
    found = refused(lambda: load(tmp_path))
    assert found.field == "model" and shard.name in found.allowed


@pytest.mark.parametrize("content", [None, "{", "{}", '{"weight_map": {}}'])
def test_several_files_without_a_list_of_them_are_refused(
    content: str | None, tmp_path: Path
) -> None:
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.unlink() if content is None else index.write_text(content)
    assert refused(lambda: load(tmp_path)).value == str(tmp_path)


def test_weights_of_a_file_that_the_list_leaves_out_are_missed_by_name(tmp_path: Path) -> None:
    lost = sharded(tmp_path)[1].name
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    kept = {name: file for name, file in content["weight_map"].items() if file != lost}
    index.write_text(json.dumps({**content, "weight_map": kept}))
    found = refused(lambda: load(tmp_path))
    assert any(name in found.allowed for name in content["weight_map"].keys() - kept.keys())


# --- adapters ---


def test_an_adapter_that_has_not_learnt_leaves_its_base_as_it_is(tmp_path: Path) -> None:
    saved(tmp_path / "base", fresh("llama"))
    found = load(adapter(tmp_path / "checkpoint-3", tmp_path / "base"), device="cpu")
    torch.testing.assert_close(found.model(TOKENS).logits, fresh("llama")(TOKENS).logits)


@pytest.mark.parametrize("base", ["there", "gone", "hub", "quantised"])
def test_an_adapter_that_is_cut_short_is_one_line_with_or_without_its_base(
    base: str, tmp_path: Path
) -> None:
    saved(tmp_path / "there", fresh("llama"))
    saved(tmp_path / "quantised", fresh("llama"))
    configure(tmp_path / "quantised", quantization_config={"quant_method": "fp8"})
    folder = adapter(tmp_path / "adapter", "owner/name" if base == "hub" else tmp_path / base)
    cut(folder / "adapter_model.safetensors")
    found = refused(lambda: load(folder))
    named = "owner/name" if base == "hub" else str(tmp_path / base)
    assert found.value == str(folder) and named in found.allowed


def test_loading_leaves_the_verbosity_of_transformers_as_it_was(tmp_path: Path) -> None:
    before = transformers.logging.get_verbosity()
    refused(lambda: load(checkpoint(tmp_path / "checkpoint-7", None)))
    assert transformers.logging.get_verbosity() == before
