"""Model folders that somebody else wrote: each is read, or refused in one line and in a moment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm.models.chat_programs import LINES
from llm.models.counted import least_count
from llm.models.folder_files import AdapterConfig, read_declared
from llm.models.libraries import LONGEST, fetch, tried
from llm.models.source import load
from markov.errors import InvalidInput
from tests.llm.models.test_llm_models import configure, fresh, refused, rewrite, saved

Change = Callable[[Path], object]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of others that can be read."""
    place = tmp_path_factory.mktemp("folders")
    for name in ("llama", "gpt2"):
        saved(place / name, fresh(name))
    return place


def copied(folders: Path, tmp_path: Path, name: str = "llama") -> Path:
    return Path(shutil.copytree(folders / name, tmp_path / "model"))


def one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> InvalidInput:
    """What a folder is refused with: one line that is not long, before which nothing is printed."""
    capfd.readouterr()
    found = refused(lambda: load(folder, device="cpu"))
    assert len(str(found)) < 900 and "".join(capfd.readouterr()) == ""
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_as_declared_is_read(name: str, folders: Path) -> None:
    assert load(folders / name, device="cpu").model is not None


# --- settings ---

SETTINGS: list[tuple[str, list[Any]]] = [
    ("num_hidden_layers", [0, -1, 10**6, 10**12, 1.5, "2", True, [1], 7]),
    ("num_attention_heads", [0, -1, 3, 10**9, "2"]),
    ("num_key_value_heads", [0, -1, 3, "a"]),
    ("hidden_size", [0, -16, 17, 10**9, 10**18]),
    ("intermediate_size", [0, -1, 10**8, 10**10]),
    ("vocab_size", [0, -5, 10**8, 10**12, "x", None]),
    ("head_dim", [0, -1, 10**9]),
    ("max_position_embeddings", [0, -1, 10**12, "x"]),
    ("dtype", ["int32", "float7", "complex64", 5, []]),
    ("torch_dtype", ["int8"]),
    ("architectures", ["LlamaForCausalLM", 5, [5], []]),
    ("model_type", [5, ["llama"], "nothing"]),
    ("quantization_config", [5, [], {}, {"quant_method": 5}, {"quant_method": "nothing"}]),
    ("rope_parameters", [5, {"rope_type": "nothing"}]),
    ("rope_scaling", [5, {"rope_type": "linear"}]),
    ("rms_norm_eps", ["a", -1, float("nan")]),
    ("initializer_range", [-1, "x"]),
    ("hidden_act", [5, "nothing"]),
    ("tie_word_embeddings", ["yes"]),
    ("is_encoder_decoder", ["no"]),
    ("eos_token_id", ["x", [1, [2]], 10**9]),
    ("text_config", [5, {"vocab_size": -1}]),
    ("layer_types", [5, ["nothing"]]),
    ("auto_map", [5]),
    ("id2label", [5, {"a": 1}]),
]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in SETTINGS for value in values]
)
def test_settings_that_no_model_has_are_refused(
    key: str, value: Any, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    configure(folder, **{key: value})
    assert one_line(folder, capfd).field in ("model", "tokenizer")


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_layer", 0), ("n_layer", 10**9), ("n_head", 3), ("n_embd", 10**8), ("n_positions", 10**9)],
)
def test_so_are_settings_of_other_names(
    key: str, value: int, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path, "gpt2")
    configure(folder, **{key: value})
    assert one_line(folder, capfd).field == "model"


def test_a_model_of_no_layers_is_not_scored_as_one(folders: Path, tmp_path: Path) -> None:
    folder = copied(folders, tmp_path)
    kept = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in kept.items() if "layers" not in k}, folder / WEIGHTS)
    configure(folder, num_hidden_layers=-1)
    assert "num_hidden_layers" in refused(lambda: load(folder)).allowed


# --- files ---

OBJECTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("name", [*OBJECTS, "special_tokens_map.json", "template.json", INDEX])
@pytest.mark.parametrize("text", ["[]", "null", "5", "{", "", DEEP], ids=range(6))
def test_files_that_are_no_objects_are_refused(
    name: str, text: str, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    if name == INDEX:
        os.rename(folder / WEIGHTS, folder / "part.safetensors")
    (folder / name).write_text(text)
    assert str(folder) in str(one_line(folder, capfd).value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", [*OBJECTS, WEIGHTS, "template.json", "chat_template.jinja"])
def test_pipes_are_refused_and_not_opened(
    name: str, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert one_line(folder, capfd).field in ("model", "tokenizer", "template")
    assert (least_count(folder) or 1) > 0  # which does not open it either


NAMES = sorted(fresh("llama").state_dict())
ABSENT = "none.safetensors"


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"a": 5}},
        {"weight_map": dict.fromkeys(NAMES, "../model.safetensors")},
        {"weight_map": dict.fromkeys(NAMES, "/etc/hostname")},
        {"weight_map": dict.fromkeys(NAMES, ABSENT)},
        {"weight_map": dict.fromkeys(NAMES, "part.safetensors"), "metadata": 5},
    ],
    ids=range(8),
)
def test_an_index_names_files_of_its_own_folder(
    index: object, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    shutil.copy(folder / WEIGHTS, tmp_path / WEIGHTS)
    os.rename(folder / WEIGHTS, folder / "part.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    assert one_line(folder, capfd).value == str(folder)


def test_weights_of_an_index_are_read(folders: Path, tmp_path: Path) -> None:
    folder = copied(folders, tmp_path)
    os.rename(folder / WEIGHTS, folder / "part.safetensors")
    known = {"metadata": {}, "weight_map": dict.fromkeys(NAMES, "part.safetensors")}
    (folder / INDEX).write_text(json.dumps(known))
    same = load(folders / "llama", device="cpu").model.state_dict()
    for name, value in load(folder, device="cpu").model.state_dict().items():
        assert torch.equal(value, same[name])


def test_weights_that_are_whole_numbers_are_refused(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    rewrite(folder, lambda tensors: {name: one.to(torch.int32) for name, one in tensors.items()})
    assert "I32" in one_line(folder, capfd).allowed


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": 5},
        {"chat_template": 5},
        {"chat_template": [5]},
        {"tokenizer_class": 5},
        {"added_tokens_decoder": {"1": {"content": 5}}},
        {"model_max_length": "x"},
        {"extra_special_tokens": 5},
        {"padding_side": 5},
    ],
    ids=str,
)
def test_tokenizers_of_other_settings_are_refused(
    settings: dict[str, Any], folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    retokenize(folder, **settings)
    assert one_line(folder, capfd).field == "tokenizer"


def retokenize(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_the_library_of_tokenizers_raises_is_one_line(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][0]["special"] = -1  # of which it makes a bare Exception
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert one_line(folder, capfd).field == "tokenizer"


@pytest.mark.parametrize("settings", [{"max_new_tokens": -1}, {"watermarking_config": 5}], ids=str)
def test_settings_for_generation_that_cannot_be_read_are_refused(
    settings: dict[str, Any], folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    assert one_line(folder, capfd).field == "model"


# --- chat templates ---

LOOP = "{% for i in range(99999) %}"
ENDLESS = {
    "loops": LOOP * 3 + "{% endfor %}" * 3,
    "doubles": "{% set n = namespace(s='aa') %}{% for i in range(60) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "power": "{{ 9**9**9 }}",
    "product": "{{ 'a' * 99999 * 99999 }}",
    "width": "{{ 'a'|center(9999999999) }}",
    "chance": "{{ lipsum(99999) }}",
    "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% if 1 %}" * 500 + "{% endif %}" * 500,
}
UNFIT = ["{{", "{{ 1/0 }}", "{{ messages.x.y }}", "{% include 'x' %}", "{{ '%d' | format('a') }}"]


@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_a_chat_template_without_an_end_is_refused(
    kind: str, folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    retokenize(folder, chat_template=ENDLESS[kind])
    assert "short time" in one_line(folder, capfd).allowed


@pytest.mark.parametrize("template", [*UNFIT, "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"])
def test_a_chat_template_that_fails_is_refused_where_it_is_used(
    template: str, folders: Path, tmp_path: Path
) -> None:
    from llm.models.answers import scores
    from tests.llm.models.test_llm_models import Example

    folder = copied(folders, tmp_path)
    retokenize(folder, chat_template=template)
    lone = [Example(index=0, prompt="Who?", response="She was born in Lisbon.")]
    found = refused(lambda: scores(load(folder, device="cpu"), lone, progress=False))
    assert found.field == "template" and len(str(found)) < 900


def test_counting_the_lines_of_a_template_leaves_no_trace(folders: Path, tmp_path: Path) -> None:
    import sys

    folder = copied(folders, tmp_path)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    retokenize(folder, chat_template=template)
    before = sys.gettrace()
    assert load(folder, device="cpu").template.chat
    assert sys.gettrace() is before and 1000 * len(template) < LINES


# --- templates and adapters ---


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": 0.0},
        {"prompt": "{prompt}", "chat": "yes"},
        {"prompt": "{prompt}", "date": 5},
        {"prompt": "{prompt}", "more": 1},
    ],
    ids=str,
)
def test_a_saved_template_of_other_types_is_refused(
    content: dict[str, Any], folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(folders, tmp_path)
    (folder / "template.json").write_text(json.dumps(content))
    assert one_line(folder, capfd).field == "template"


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"base_model_name_or_path": 5},
        {"r": 0},
        {"r": 10**12},
        {"lora_alpha": "x"},
        {"target_modules": 5},
        {"rank_pattern": {"a": -1}},
        {"lora_dropout": -1},
    ],
    ids=str,
)
def test_the_settings_of_an_adapter_are_declared(content: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    found = refused(
        lambda: read_declared(tmp_path / "adapter_config.json", AdapterConfig, "model", "here")
    )
    assert (found.field, found.value) == ("model", "here")


# --- libraries ---


class Panic(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize("error", [Panic("lost"), KeyError("x"), AssertionError(), Exception("a")])
def test_whatever_a_library_raises_is_one_short_line(error: BaseException, tmp_path: Path) -> None:
    def read() -> None:
        raise error

    found = refused(lambda: fetch("model", str(tmp_path), read))
    assert type(error).__name__ in str(found) or str(error) in str(found)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_ends_a_process_is_no_complaint(error: type[BaseException]) -> None:
    def read() -> None:
        raise error

    with pytest.raises(error):
        tried(read)


def test_a_long_complaint_is_cut(tmp_path: Path) -> None:
    def read() -> None:
        raise ValueError("a" * 10_000)

    assert len(refused(lambda: fetch("model", str(tmp_path), read)).allowed) < 2 * LONGEST
