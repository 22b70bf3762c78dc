"""Language models by name: what is loaded is what was saved, and what cannot be used is refused
in one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.tofu import Example
from llm.models import language_model, small_authors
from llm.models.language_model import (
    LanguageModel,
    check_same_vocabulary,
    find_device,
    perturbed,
    template_of,
)
from llm.models.names import READY
from llm.models.pretrained import mend_generation, read_weights
from llm.models.saving import check_savable, save
from llm.models.small import kept_model
from llm.models.source import load
from llm.scoring.logprobs import score
from llm.scoring.templates import CHAT, LLAMA2_CHAT, PLAIN, Template
from markov.errors import LARGEST, InvalidInput
from tests.llm.scoring.test_encoding import by_bytes, by_pieces

VOCAB = 700
SIZES: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)
COMMON: dict[str, Any] = dict(vocab_size=VOCAB, max_position_embeddings=64, **SIZES)
GPT2: dict[str, Any] = dict(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=64)
T5: dict[str, Any] = dict(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
MODELS: dict[str, Callable[..., Any]] = {
    "llama": lambda **more: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**COMMON, **more})
    ),
    "tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(tie_word_embeddings=True, **COMMON)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
}
WORDS, PIECES = by_bytes(words=True), by_pieces()
NOTES = {"seed": 3, "what": "a test"}
TOKENS = torch.tensor([[5, 40, 7, 300, 9]])


def fresh(name: str, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name](**more).eval()


def named(model: Any, tokenizer: Any = WORDS, template: Template = PLAIN) -> LanguageModel:
    return LanguageModel(model, tokenizer, template, "fresh")


def saved(folder: Path, model: Any, tokenizer: Any = WORDS) -> Path:
    """A folder as others write it, without what `save` adds."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def refused(call: Callable[[], object]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def without_weights(folder: Path) -> None:
    """Leave a file of weights that cannot be read, and would be refused as such."""
    (folder / "model.safetensors").write_bytes(b"no weights")


# --- what is saved is what is loaded ---


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("tokenizer", [WORDS, PIECES], ids=["bytes", "pieces"])
def test_a_model_loaded_is_the_model_saved(name: str, tokenizer: Any, tmp_path: Path) -> None:
    model = fresh(name)
    save(named(model.train(), tokenizer), tmp_path / "new" / "model", NOTES)
    found = load(tmp_path / "new" / "model", device="cpu")
    assert torch.equal(found.model(TOKENS).logits, model.eval()(TOKENS).logits)
    assert not found.model.training and found.name == str(tmp_path / "new" / "model")
    check_same_vocabulary(tokenizer, found.tokenizer)
    assert found.tokenizer.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "template", [PLAIN, LLAMA2_CHAT, CHAT, Template(prompt="{prompt}?", end=False)]
)
def test_the_template_is_the_one_saved_unless_another_is_given(
    template: Template, tmp_path: Path
) -> None:
    save(named(fresh("llama"), template=template), tmp_path / "model", NOTES)
    assert load(tmp_path / "model").template == template
    assert load(tmp_path / "model", template=LLAMA2_CHAT).template == LLAMA2_CHAT


def test_a_saved_folder_tells_how_it_came_about_and_others_can_read_it(tmp_path: Path) -> None:
    save(named(fresh("tied")), tmp_path / "model", NOTES)
    known = json.loads((tmp_path / "model" / "provenance.json").read_text())
    digests = known.pop("digests")
    assert known == NOTES
    files = {file.name: file for file in (tmp_path / "model").iterdir()}
    assert digests.keys() == files.keys() - {"provenance.json"}
    for name, digest in digests.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    assert len({(file.stat().st_mode & 0o777) for file in (tmp_path / "model").iterdir()}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_were_changed_since_they_were_written_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A digit that is another one leaves a model that scores, and nobody could tell."""
    save(named(fresh("llama")), tmp_path / "model", NOTES)
    file = tmp_path / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = refused(lambda: load(tmp_path / "model"))
    assert found.field == "model" and "damaged, or changed" in found.allowed
    # Words, too, may be others: a cache is to be as it was written, a folder of one's own not.
    save(named(fresh("llama")), tmp_path / "second", NOTES)
    words = tmp_path / "second" / "template.json"
    words.write_text(words.read_text().replace("{prompt}", "{prompt}:"))
    assert load(tmp_path / "second").template.prompt.count(":")
    assert kept_model(tmp_path / "second") is None and not (tmp_path / "second").exists()
    # Of a folder of somebody else nobody knows what was written.
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    (tmp_path / "other" / "provenance.json").unlink()
    assert load(tmp_path / "other").model is not None
    assert kept_model(tmp_path / "model") is None
    assert not (tmp_path / "model").exists() and "damaged, or" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_the_dtype_is_the_one_asked_for(dtype: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, fresh("llama").half())
    assert (
        load(folder, dtype=dtype).model.dtype
        == {**language_model.DTYPES, "auto": torch.float16}[dtype]
    )


def test_saving_never_writes_over_what_lies_there(tmp_path: Path) -> None:
    save(named(fresh("llama")), tmp_path / "model", NOTES)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    found = refused(lambda: save(named(fresh("gpt2")), tmp_path / "model", NOTES))
    assert (
        found.field == "folder"
        and (tmp_path / "model" / "model.safetensors").read_bytes() == before
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_saving_that_fails_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise error

    model = fresh("llama")
    monkeypatch.setattr(type(WORDS), "save_pretrained", full)
    with pytest.raises(InvalidInput if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        save(named(model), tmp_path / "model", NOTES)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(error, KeyboardInterrupt) or "No space left on device" in str(caught.value)


def test_a_saved_folder_appears_when_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(old: Path, new: Path) -> None:
        assert not new.exists() and load(old, template=None).template == CHAT
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(language_model.os, "rename", rename)
    assert (
        "not empty"
        in refused(
            lambda: save(named(fresh("llama"), template=CHAT), tmp_path / "model", NOTES)
        ).allowed
    )
    assert list(tmp_path.iterdir()) == []


# --- what cannot be saved is known before it is trained ---


def bad_tokenizer(*args: object, **options: object) -> None:
    raise TypeError("Object of type set is not JSON serializable")


def test_what_can_be_saved_leaves_no_trace_of_the_trial(tmp_path: Path) -> None:
    check_savable(named(fresh("llama")), tmp_path / "deep" / "run" / "model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    check_savable(named(fresh("tied")), tmp_path / "run" / "model")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("what", ["tokenizer", "weights", "configuration", "disk"])
def test_what_cannot_be_saved_is_refused_without_a_trace(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh("llama")
    if what == "tokenizer":
        monkeypatch.setattr(type(WORDS), "save_pretrained", bad_tokenizer)
    # two parts that share memory, of which neither config nor class says so
    elif what == "weights":
        norm = model.model.layers[0]
        model.model.norm.weight = norm.input_layernorm.weight
        monkeypatch.setattr(type(model), "save_pretrained", as_safetensors)
    elif what == "configuration":
        model.config.custom = {1, 2}
    else:
        monkeypatch.setattr(type(WORDS), "save_pretrained", no_room)
    found = refused(lambda: check_savable(named(model), tmp_path / "run" / "model"))
    assert found.field == ("folder" if what == "disk" else "model")
    assert list(tmp_path.iterdir()) == []


def as_safetensors(self: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(self.state_dict(), folder / "model.safetensors")


def no_room(*args: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_model_that_cannot_be_saved_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm.unlearning import runs

    monkeypatch.setattr(type(WORDS), "save_pretrained", bad_tokenizer)
    lone = [Example(index=0, prompt="Who?", response="She was born in Lisbon.")]
    settings, model = runs.Unlearning(objective=runs.Objective(0.0)), fresh("llama")
    found = refused(lambda: runs.unlearn_into(tmp_path / "run", named(model), lone, lone, settings))
    assert found.field == "model" and list(tmp_path.iterdir()) == []
    for one, two in zip(model.parameters(), fresh("llama").parameters(), strict=True):
        assert torch.equal(one, two)


class Strict(transformers.GenerationConfig):
    """Settings for generation as versions of transformers before the fifth save them: only if all
    are valid.
    """

    def save_pretrained(self, *args: Any, **options: Any) -> None:
        self.validate(strict=True)
        super().save_pretrained(*args, **options)


@pytest.mark.parametrize(
    "given, kept",
    [
        ({"temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 2]}, {"eos_token_id": [1, 2]}),
        ({"do_sample": True, "temperature": 0.9}, {"do_sample": True, "temperature": 0.9}),
        (
            {"do_sample": True, "top_k": 5, "length_penalty": 2.0},
            {"do_sample": True, "top_k": 5},
        ),
        ({"num_beams": 2, "length_penalty": 2.0}, {"num_beams": 2, "length_penalty": 2.0}),
        ({"bos_token_id": 3, "max_length": 77}, {"bos_token_id": 3, "max_length": 77}),
    ],
)
def test_settings_for_generation_that_would_not_be_saved_are_dropped_and_said(
    given: dict[str, Any],
    kept: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(transformers, "GenerationConfig", Strict)
    model = fresh("llama")
    model.generation_config = Strict(**given)
    mend_generation(model, "mine")
    found = model.generation_config.to_diff_dict()
    assert {key: value for key, value in found.items() if key in given} == kept
    model.generation_config.save_pretrained(tmp_path)
    said = capsys.readouterr().err
    assert [key in said for key in given] == [key not in kept for key in given]
    assert said.count("\n") == (kept != given)


# --- which template ---


@pytest.mark.parametrize(
    "written, template",
    [
        (None, PLAIN),
        ("{{ messages[0].content }}", CHAT),
        ("[INST] <<SYS>> {{ messages }} [/INST]", LLAMA2_CHAT),
    ],
)
def test_the_template_follows_from_the_tokenizers_chat_template(
    written: str | None, template: Template, tmp_path: Path
) -> None:
    tokenizer = by_bytes(words=True)
    tokenizer.chat_template = written
    assert template_of(tokenizer) == template
    assert load(saved(tmp_path, fresh("llama"), tokenizer)).template == template


@pytest.mark.parametrize("name", sorted(READY))
def test_a_folder_with_the_name_of_a_ready_made_model_has_its_template(
    name: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / READY[name].hub.split("/")[1], fresh("llama"))
    assert load(folder).template == READY[name].template != PLAIN


@pytest.mark.parametrize("name", sorted(READY))
def test_a_ready_made_name_means_its_hub_id(name: str) -> None:
    assert (
        refused(lambda: load(name)).value
        == refused(lambda: load(READY[name].hub)).value
        == READY[name].hub
    )


# Of these no commit is known that has all files; loading says that they are not pinned.
LOOSE = {"simnpo-origin", "simnpo-forget05", "simnpo-forget10"}


@pytest.mark.parametrize("name", sorted(READY))
def test_a_ready_made_model_is_taken_at_one_commit(name: str) -> None:
    revision = READY[name].revision
    assert (revision is None) == (name in LOOSE)
    assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)


@pytest.mark.parametrize("revision, asked", [(None, "a1"), ("b2", "b2")])
def test_a_ready_made_model_is_read_at_its_revision_and_with_its_template(
    revision: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def reader(found: object) -> Callable[..., object]:
        return lambda where, *rest: seen.append((where, rest[-1])) or found

    monkeypatch.setitem(READY, "mine", language_model.Ready("owner/name", LLAMA2_CHAT, "a1"))
    for name, found in (("config", None), ("tokenizer", WORDS), ("weights", fresh("llama"))):
        monkeypatch.setattr(language_model, f"read_{name}", reader(found))
    assert load("mine", revision=revision, trust_remote_code=True).template == LLAMA2_CHAT
    assert seen == 3 * [("owner/name", {"revision": asked, "trust_remote_code": True})]
    assert load("other/name").template == PLAIN
    assert seen[3:] == 3 * [("other/name", {"revision": None, "trust_remote_code": False})]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_small_models_are_those_of_the_cache(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path))
    folder, start = (
        small_authors.folder_of(small_authors.DefaultModels(), "partial", "cpu"),
        fresh("llama"),
    )
    save(named(start), folder, NOTES)
    found = load("authors:partial", device="cpu", dtype=dtype, template=LLAMA2_CHAT)
    assert found.model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    for one, two in zip(found.model.parameters(), start.parameters(), strict=True):
        assert torch.equal(one, two.to(one.dtype))
    assert (found.template, found.name) == (LLAMA2_CHAT, "authors:partial")
    assert load("authors:partial", device="cpu").template == PLAIN


# --- what cannot be used ---


@pytest.mark.parametrize(
    "source", ["/nowhere/at/all", "./nowhere", "owner/name/more", "owner/name", "name"]
)
def test_a_source_that_is_not_there_is_named(source: str) -> None:
    found = refused(lambda: load(source))
    assert (found.field, found.value) == ("model", source) and "folder" in found.allowed


def test_a_folder_without_configuration_or_weights_is_refused_before_anything_is_read(
    tmp_path: Path,
) -> None:
    assert "config.json" in refused(lambda: load(tmp_path)).allowed
    (tmp_path / "config.json").write_text("{")  # would be refused as what it is
    assert "safetensors" in refused(lambda: load(tmp_path)).allowed
    (tmp_path / "pytest_model.bin").write_bytes(b"")
    assert "pickle" in refused(lambda: load(tmp_path)).allowed


def test_pickles_are_not_read_even_where_only_the_hub_knows_the_files(tmp_path: Path) -> None:
    fresh("llama").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    found = refused(lambda: read_weights(str(tmp_path), fresh("llama").config, None, {}))
    assert "model.safetensors" in found.allowed


@pytest.mark.parametrize("config", ["{", "{}", '{"model_type": "nothing"}', "[]"])
def test_a_configuration_that_cannot_be_read_is_refused(config: str, tmp_path: Path) -> None:
    saved(tmp_path, fresh("llama"))
    (tmp_path / "config.json").write_text(config)
    found = refused(lambda: load(tmp_path))
    assert (found.field, found.value) == ("model", str(tmp_path))


@pytest.mark.parametrize(
    "model",
    [
        lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**COMMON)),
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**COMMON)),
    ],
    ids=["encoder and decoder", "encoder", "no head"],
)
def test_a_model_that_is_not_a_causal_language_model_is_refused_before_its_weights_are_read(
    model: Callable[[], Any], tmp_path: Path
) -> None:
    without_weights(saved(tmp_path, model()))
    found = refused(lambda: load(tmp_path))
    assert found.field == "model" and "causal" in found.allowed


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    model = transformers.BertLMHeadModel(transformers.BertConfig(is_decoder=False, **COMMON))
    found = refused(lambda: load(saved(tmp_path, model)))
    assert found.field == "model" and "looks at what comes later" in found.allowed


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = saved(tmp_path, fresh("llama")) / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if name != "lm_head.weight"}
    save_file(kept, file, {"format": "pt"})
    assert "lm_head.weight" in refused(lambda: load(tmp_path)).allowed


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the weights of a saved model."""
    from safetensors.torch import load_file, save_file

    save_file(
        change(load_file(folder / "model.safetensors")),
        folder / "model.safetensors",
        {"format": "pt"},
    )


def configure(folder: Path, **changes: Any) -> None:
    """Change the configuration of a saved model."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "name, model, changes",
    [
        ("layers.1.input_layernorm", {"num_hidden_layers": 2}, {"num_hidden_layers": 1}),
        ("k_proj.bias", {"attention_bias": True}, {"attention_bias": False}),
        ("mlp.down_proj.bias", {"mlp_bias": True}, {"mlp_bias": False}),
    ],
    ids=["a layer", "a bias", "a bias elsewhere"],
)
def test_weights_without_a_place_in_the_configured_model_are_refused(
    name: str, model: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = saved(tmp_path, fresh("llama", **model))
    assert load(folder).model is not None
    configure(folder, **changes)
    assert name in refused(lambda: load(folder)).allowed


def test_scales_of_quantised_weights_are_not_left_out(tmp_path: Path) -> None:
    folder, name = saved(tmp_path, fresh("llama")), "model.layers.0.mlp.down_proj.weight_scale"
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(1)})
    assert name in refused(lambda: load(folder)).allowed


def test_a_part_that_the_model_lacks_as_a_whole_is_left_out_and_this_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path, fresh("llama"))
    rewrite(folder, lambda tensors: {**tensors, "v_head.summary.weight": torch.ones(1, 16)})
    capsys.readouterr()
    found = load(folder).model(TOKENS).logits
    assert torch.equal(found, fresh("llama")(TOKENS).logits)
    assert "v_head.summary.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, name, shape",
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("llama", "model.layers.0.self_attn.rotary_emb.cos_cached", (1, 1, 8, 8)),
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 8, 8)),
        ("gpt2", "transformer.h.0.attn.masked_bias", ()),
        ("gpt2", "transformer.h.0.attn.causal_mask", (1, 1, 8, 8)),
        ("llama", "model.version", (1,)),
    ],
)
def test_what_older_files_hold_beside_the_weights_is_passed_over(
    model: str,
    name: str,
    shape: tuple[int, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved(tmp_path, fresh(model))
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(shape)})
    capsys.readouterr()
    assert torch.equal(load(folder).model(TOKENS).logits, fresh(model)(TOKENS).logits)
    assert capsys.readouterr().err == ""


def test_weights_of_another_shape_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path, fresh("llama"))
    configure(folder, intermediate_size=24)
    capsys.readouterr()
    assert "down_proj.weight has another shape" in refused(lambda: load(folder)).allowed
    assert capsys.readouterr().err == ""


def test_a_folder_of_folders_is_refused_with_those_that_hold_a_model(tmp_path: Path) -> None:
    saved(tmp_path / "exp" / "checkpoint-5", fresh("llama"))
    (tmp_path / "exp" / "logs").mkdir()
    assert "checkpoint-5" in refused(lambda: load(tmp_path / "exp")).allowed


def test_weights_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, fresh("llama")) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert refused(lambda: load(tmp_path)).value == str(tmp_path)


@pytest.mark.parametrize("damage", ["gone", "no end", "too large"])
def test_a_tokenizer_that_does_not_serve_is_refused_before_weights_are_read(
    damage: str, tmp_path: Path
) -> None:
    tokenizer = by_bytes(words=True)
    if damage == "no end":
        tokenizer.eos_token = None
    model = fresh("llama", vocab_size=300) if damage == "too large" else fresh("llama")
    without_weights(saved(tmp_path, model, None if damage == "gone" else tokenizer))
    assert refused(lambda: load(tmp_path)).field == "tokenizer"


@pytest.mark.parametrize("more, fits", [(0, True), (-1, False)], ids=["as many", "one more"])
def test_a_tokenizer_may_have_as_many_tokens_as_the_model_and_one_more_that_only_pads(
    more: int, fits: bool, tmp_path: Path
) -> None:
    tokenizer = by_bytes(words=True)
    folder = saved(tmp_path, fresh("llama", vocab_size=len(tokenizer) + more), tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    if fits:
        assert load(folder).tokenizer.pad_token == "[PAD]"
    else:
        assert refused(lambda: load(folder)).field == "tokenizer"


def longer(*tokens: str) -> Any:
    tokenizer = by_bytes(words=True)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("more", [1, 3])
def test_added_tokens_beyond_the_model_are_refused_only_in_a_text(
    more: int, tmp_path: Path
) -> None:
    tokenizer = longer(*(f"<image_{place}>" for place in range(more)))
    folder = saved(tmp_path, fresh("llama", vocab_size=len(tokenizer) - more), tokenizer)
    found = load(folder, device="cpu")
    lone = [Example(index=0, prompt="Who?", response="She was born in Lisbon.")]
    want = score(found.model, WORDS, lone, progress=False)
    assert torch.equal(score(found.model, found.tokenizer, lone, progress=False).logp, want.logp)
    seen = [Example(index=0, prompt="Who?", response="She was <image_0> born.")]
    assert (
        refused(lambda: score(found.model, found.tokenizer, seen, progress=False)).field
        == "tokenizer"
    )


def test_an_end_token_beyond_the_model_is_refused(tmp_path: Path) -> None:
    tokenizer = longer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    folder = saved(tmp_path, fresh("llama", vocab_size=len(tokenizer) - 1), tokenizer)
    assert refused(lambda: load(folder)).field == "tokenizer"


@pytest.mark.parametrize("agrees", [True, False])
def test_a_tokenizer_that_is_not_read_as_its_file_has_it_is_named(
    agrees: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path, fresh("llama"))
    if not agrees:  # what is read is no longer what tokenizer.json says
        other_rule().save_pretrained(tmp_path / "other")
        words = (tmp_path / "other" / "tokenizer.json").read_text()
        pretrained_file = transformers.AutoTokenizer.from_pretrained

        def reading(where: str, **options: Any) -> Any:
            found = pretrained_file(where, **options)
            (folder / "tokenizer.json").write_text(words)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformers.AutoTokenizer, "from_pretrained", reading)
            capsys.readouterr()
            load(folder)
    else:
        capsys.readouterr()
        load(folder)
    assert ("cuts" in capsys.readouterr().err) == (not agrees)


def test_a_tokenizer_from_elsewhere_is_taken_if_named(tmp_path: Path) -> None:
    saved(tmp_path / "model", fresh("llama"), None)
    WORDS.save_pretrained(tmp_path / "words")
    check_same_vocabulary(load(tmp_path / "model", tokenizer=tmp_path / "words").tokenizer, WORDS)
    assert (
        refused(lambda: load(tmp_path / "model", tokenizer=tmp_path / "none")).field == "tokenizer"
    )


@pytest.mark.parametrize("template", ["[]", "{", '{"prompt": "no place"}', '{"other": 1}'])
def test_a_damaged_template_is_refused(template: str, tmp_path: Path) -> None:
    save(named(fresh("llama")), tmp_path / "model", NOTES)
    (tmp_path / "model" / "template.json").write_text(template)
    assert refused(lambda: load(tmp_path / "model")).field in ("template", "prompt")


@pytest.mark.parametrize(
    "options, field",
    [
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": "Float32"}, "dtype"),
        ({"device": "gpu"}, "device"),
        ({"device": "meta"}, "device"),
        ({"device": "cuda:99"}, "device"),
        ({"revision": "main"}, "revision"),
    ],
)
def test_options_that_do_not_exist_are_refused_before_anything_is_read(
    options: dict[str, str], field: str, tmp_path: Path
) -> None:
    (saved(tmp_path, fresh("llama")) / "config.json").write_text("{")
    assert refused(lambda: load(tmp_path)).field == "model"
    found = refused(lambda: load(tmp_path, **options))  # pyright: ignore[reportArgumentType]
    assert (found.field, found.value) == (field, options[field])


def test_the_device_is_found_without_being_named() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_a_place_that_cannot_be_written_is_refused_for_want_of_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert refused(lambda: save(named(fresh("llama")), tmp_path / "model", NOTES)).field == "folder"
    tmp_path.chmod(0o700)


def test_a_place_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert (
        refused(lambda: save(named(fresh("llama")), tmp_path / "file" / "model", NOTES)).field
        == "folder"
    )
    assert (tmp_path / "file").read_text() == ""


# --- the same vocabulary ---


def test_a_tokenizer_agrees_with_itself_and_with_one_that_also_pads() -> None:
    padding = by_bytes(words=True)
    padding.add_special_tokens({"pad_token": "[PAD]"})
    assert (
        check_same_vocabulary(WORDS, padding) is None
        and check_same_vocabulary(padding, WORDS) is None
    )
    assert len(padding) == len(WORDS) + 1


def other_end() -> Any:
    tokenizer = by_bytes(words=True)
    tokenizer.eos_token = "<s>"
    return tokenizer


def other_rule() -> Any:
    """The same tokens, of which it never merges two."""
    tokenizer = by_bytes(words=True)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["model"]["merges"] = []
    rebuilt = type(tokenizer.backend_tokenizer).from_str(json.dumps(parts))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=rebuilt, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize(
    "other, reason",
    [(by_pieces, "not the same token"), (other_end, "end token"), (other_rule, "cut differently")],
)
def test_another_vocabulary_is_refused(other: Callable[[], Any], reason: str) -> None:
    for one, two in ((WORDS, other()), (other(), WORDS)):
        found = refused(lambda one=one, two=two: check_same_vocabulary(one, two, "retrained"))
        assert found.field == "retrained" and reason in found.allowed
    assert refused(lambda: check_same_vocabulary(WORDS, other())).field == "reference"


# --- noise on the weights ---

shares, scales = st.floats(0, 1), st.floats(0, 10)


@settings(max_examples=20)
@given(st.sampled_from(sorted(MODELS)), shares, scales, st.integers(0, LARGEST))
def test_perturbed_weights_are_averages_with_noise_of_their_own_size(
    name: str, share: float, scale: float, seed: int
) -> None:
    model, generator = fresh(name), torch.Generator().manual_seed(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = dict(perturbed(model, scale=scale, share=share, seed=seed).named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in model.named_parameters():
        numbers = value.flatten().tolist()
        mean = sum(numbers) / len(numbers)
        std = (sum((number - mean) ** 2 for number in numbers) / len(numbers)) ** 0.5
        noise = torch.randn(value.shape, generator=generator)
        want = (1 - share) * value.detach() + share * scale * std * noise
        torch.testing.assert_close(
            found[name], want, rtol=1e-4, atol=1e-5 * (1 + scale) * (1e-3 + std)
        )


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_share_of_noise_changes_nothing(name: str, dtype: torch.dtype) -> None:
    model = fresh(name).to(dtype)
    copy = perturbed(model, scale=3.0, share=0.0, seed=1)
    assert all(
        torch.equal(*pair) for pair in zip(copy.parameters(), model.parameters(), strict=True)
    )
    assert copy.dtype == dtype and {id(value) for value in copy.parameters()}.isdisjoint(
        map(id, model.parameters())
    )


def test_tied_weights_stay_tied_under_noise() -> None:
    copy = perturbed(fresh("tied"), scale=1.0, seed=1)
    assert copy.get_input_embeddings().weight is copy.get_output_embeddings().weight


def test_noise_follows_from_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        perturbed(fresh("gpt2"), scale=1.0, seed=seed).lm_head.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    narrow = perturbed(fresh("gpt2").bfloat16(), scale=1.0, seed=1).lm_head.weight
    torch.testing.assert_close(narrow.float(), one, rtol=2e-2, atol=1e-3)


def test_with_all_noise_the_weights_are_forgotten() -> None:
    own = fresh("llama").requires_grad_(False)
    weight = perturbed(own, scale=2.0, share=1.0, seed=1).get_input_embeddings().weight
    own = own.get_input_embeddings().weight
    assert float(weight.std() / own.std()) == pytest.approx(2.0, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([weight.flatten(), own.flatten()]))[0, 1])) < 0.05


@pytest.mark.parametrize(
    "field, value", [("share", -0.1), ("share", 1.1), ("scale", -1.0), ("scale", float("inf"))]
)
def test_noise_out_of_bounds_is_refused(field: str, value: float) -> None:
    options: dict[str, Any] = {"scale": 1.0, "share": 0.5, field: value}
    assert refused(lambda: perturbed(fresh("llama"), seed=0, **options)).field == field
