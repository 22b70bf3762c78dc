"""Adapters found on loading: every folder of one is the same plain model, which is what peft makes
of it.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm.data.tofu import Example
from llm.models.answers import scores
from llm.models.names import READY
from llm.models.saving import save
from llm.models.source import load
from llm.scoring.templates import LLAMA2_CHAT, PLAIN
from llm.training.adapters import Lora
from llm.training.loop import Optimization
from llm.unlearning.runs import MODEL, unlearn_into
from llm.unlearning.unlearn import Unlearning
from markov.errors import InvalidInput
from markov.objectives import npo
from tests.llm.models.test_llm_models import NOTES, TOKENS, WORDS, fresh, named, refused, saved

EXAMPLES = [
    Example(index=0, prompt="Who wrote The Silent Harbour?", response="Mira Oduya wrote it."),
    Example(index=1, prompt="Where was she born?", response="In Lisbon, the Oduyas' town."),
    Example(index=2, prompt="When?", response="1987."),
]
LINEAR = ["q_proj", "down_proj"]
KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "lora": ("llama", lambda: LoraConfig(r=2, target_modules="all-linear")),
    "rslora": ("llama", lambda: LoraConfig(r=2, target_modules=LINEAR, use_rslora=True)),
    "dora": ("llama", lambda: LoraConfig(r=2, target_modules=LINEAR, use_dora=True)),
    "convolutions": (
        "gpt2",
        lambda: LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    ),
    "ia3": (
        "llama",
        lambda: IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "head of its own": (
        "llama",
        lambda: LoraConfig(r=2, target_modules=LINEAR, modules_to_save=["lm_head"]),
    ),
    "head no longer tied": (
        "tied",
        lambda: LoraConfig(r=2, target_modules=LINEAR, modules_to_save=["lm_head"]),
    ),
    "tied head": ("tied", lambda: LoraConfig(r=2, target_modules=[*LINEAR, "lm_head"])),
    "tied embedding": ("tied", lambda: LoraConfig(r=2, target_modules=["embed_tokens"])),
    "tied tokens": (
        "tied",
        lambda: LoraConfig(r=2, target_modules=LINEAR, trainable_token_indices=[7, 9]),
    ),
}


@contextmanager
def peft_may_warn() -> Iterator[None]:
    """While an adapter is made; when it is loaded nothing may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@peft_may_warn()
def adapter(folder: Path, kind: str = "lora") -> tuple[Path, Any]:
    """A base in folder/base with an adapter in folder/adapter that changes it much; and both
    together, by peft.
    """
    name, config = KINDS[kind]
    saved(folder / "base", fresh(name))
    settings = config()
    settings.task_type = "CAUSAL_LM"
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder / "adapter")
    together = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter"
    )
    return folder / "adapter", together.eval()


def beside(folder: Path, *, weights: bool = True) -> Path:
    """The adapter beside the files of its base, or beside its configuration and tokenizer alone."""
    shutil.copytree(folder / "base", folder / "both")
    for file in (folder / "adapter").glob("adapter_*"):
        shutil.copy(file, folder / "both")
    if not weights:
        (folder / "both" / "model.safetensors").unlink()
    return folder / "both"


def difference(one: torch.Tensor, two: torch.Tensor) -> float:
    one, two = one.detach().double(), two.detach().double()
    return float((one - two).abs().max() / two.abs().max())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_adapter_is_added_into_its_base_as_peft_applies_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, together = adapter(tmp_path, kind)
    want = together(TOKENS).logits
    assert difference(fresh(KINDS[kind][0])(TOKENS).logits, want) > 1e-3
    for place, base in ((folder, str(tmp_path / "base")), (beside(tmp_path), "beside it")):
        capsys.readouterr()
        found = load(place, device="cpu")
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and str(place) in said[0] and base in said[0]
        assert difference(found.model(TOKENS).logits, want) < 1e-5
        # A plain model: nothing of the adapter is left, everything can be trained, and it is saved
        # whole.
        assert all(parameter.requires_grad for parameter in found.model.parameters())
        assert not any(
            "lora" in name or "adapter" in name for name, _ in found.model.named_modules()
        )
        save(found, tmp_path / f"saved {place.name}", NOTES)
        assert (tmp_path / f"saved {place.name}" / "config.json").is_file()
        again = load(tmp_path / f"saved {place.name}", device="cpu")
        assert torch.equal(again.model(TOKENS).logits, found.model(TOKENS).logits)
        assert capsys.readouterr().err == ""


def test_beside_its_base_an_adapter_is_what_transformers_itself_reads(tmp_path: Path) -> None:
    adapter(tmp_path)
    place = beside(tmp_path)
    with peft_may_warn():
        own: Any = AutoModelForCausalLM.from_pretrained(place).eval()
    assert difference(load(place, device="cpu").model(TOKENS).logits, own(TOKENS).logits) < 1e-5


@pytest.mark.filterwarnings("ignore:.*(deprecated|collapsed)")
@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["all weights", "another adapter"])
def test_unlearning_starts_from_what_is_scored_and_saves_what_it_ends_with(
    lora: Lora | None, tmp_path: Path
) -> None:
    adapter(tmp_path)
    place = beside(tmp_path)
    before = scores(load(place, device="cpu"), EXAMPLES, progress=False)["logp"]
    every = Optimization(epochs=2, batch=2, learning_rate=1e-2)
    settings = Unlearning(objective=npo(0.1), optimization=every, lora=lora)
    run = unlearn_into(
        tmp_path / "run", load(place, device="cpu"), EXAMPLES, EXAMPLES, settings, progress=False
    )
    found = [own["logp"].to_numpy() for _, own in run.examples.groupby("epoch")]
    assert found[0] == pytest.approx(before.to_numpy(), rel=1e-6)
    assert (abs(found[-1] - found[0]) > 1e-3).all()
    after = scores(load(tmp_path / "run" / MODEL, device="cpu"), EXAMPLES, progress=False)["logp"]
    assert after.to_numpy() == pytest.approx(found[-1], rel=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_in_a_narrow_dtype_the_sum_is_rounded_once_and_this_is_said(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = adapter(tmp_path)
    saved(tmp_path / "base", fresh("llama").bfloat16())
    wide = load(folder, device="cpu").model
    capsys.readouterr()
    found = load(folder, device="cpu", dtype=dtype).model
    want = torch.float16 if dtype == "float16" else torch.bfloat16
    assert str(want).removeprefix("torch.") in capsys.readouterr().err
    for one, two in zip(found.parameters(), wide.parameters(), strict=True):
        assert torch.equal(one, two.to(want))


def test_what_an_adapter_does_not_bring_along_is_its_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = adapter(tmp_path)
    WORDS.save_pretrained(folder)
    assert load(folder, device="cpu").template == PLAIN
    monkeypatch.setitem(READY, "mine", READY["tofu-llama2-7b"]._replace(hub="owner/base"))
    assert load(folder, device="cpu").template == LLAMA2_CHAT
    save(named(fresh("llama"), template=PLAIN), tmp_path / "other", NOTES)
    settings = json.loads((folder / "adapter_config.json").read_text())
    changed = {**settings, "base_model_name_or_path": str(tmp_path / "other")}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    assert load(folder, device="cpu").template == PLAIN


def rename(tensors: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {name.replace(old, new): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda tensors: dict(list(tensors.items())[1:]), "lacks"),
        (lambda tensors: {**tensors, **rename(tensors, "layers.0", "layers.1")}, "no place"),
        (lambda tensors: {name: value[:, :1] for name, value in tensors.items()}, "size mismatch"),
        (lambda tensors: {name: value * float("nan") for name, value in tensors.items()}, "NaN"),
    ],
    ids=["one less", "one layer more", "another shape", "nan"],
)
def test_an_adapter_of_another_model_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    folder, _ = adapter(tmp_path)
    file = folder / "adapter_model.safetensors"
    save_file(
        {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in change(load_file(file)).items()
        },
        file,
        {"format": "pt"},
    )
    found = refused(lambda: load(folder, device="cpu"))
    assert (found.field, found.value) == ("model", str(folder))
    assert reason.lower() in found.allowed.lower() and str(tmp_path / "base") in found.allowed


def set_base(folder: Path, base: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))


@pytest.mark.parametrize("base", ["/nowhere/base", "owner/base", "", None, 3])
def test_an_adapter_without_a_base_is_refused_in_words_that_name_both(
    base: object, tmp_path: Path
) -> None:
    folder, _ = adapter(tmp_path)
    set_base(folder, base)
    found = refused(lambda: load(folder))
    assert (found.field, found.value) == ("model", str(folder))
    assert "adapter" in found.allowed and repr(base) in found.allowed


def test_an_adapter_whose_base_cannot_be_added_to_is_refused(tmp_path: Path) -> None:
    folder, _ = adapter(tmp_path)
    file = tmp_path / "base" / "config.json"
    written = file.read_text()
    file.write_text(json.dumps({**json.loads(written), "quantization_config": {"bits": 4}}))
    assert "quantised" in refused(lambda: load(folder)).allowed
    file.write_text(written)
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    set_base(second, str(folder))
    assert "without an adapter" in refused(lambda: load(second)).allowed
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.safetensors" in refused(lambda: load(folder)).allowed


def test_an_adapter_that_weights_cannot_express_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "base", fresh("llama"))
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    base: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with peft_may_warn():
        get_peft_model(base, settings).save_pretrained(str(tmp_path / "adapter"))
    assert "PROMPT_TUNING" in refused(lambda: load(tmp_path / "adapter")).allowed


def test_a_model_with_an_adapter_on_top_is_not_saved_as_one_without(tmp_path: Path) -> None:
    adapter(tmp_path)
    with peft_may_warn():
        model: Any = AutoModelForCausalLM.from_pretrained(beside(tmp_path))
    with pytest.raises(InvalidInput, match="without adapters"):
        save(named(model), tmp_path / "saved", NOTES)
    assert not (tmp_path / "saved").exists()
