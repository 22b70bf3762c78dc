"""Language models from a folder, the hub or the lab itself, each with the template that it was trained with.

`load` takes a folder in the layout of transformers, an id of the hub, a name in `READY`, or
`authors:original`, `authors:retrained` and `authors:partial`, the small models of `default_models`,
which are trained on first use. Weights are read from safetensors only, and code that comes with a
model is not run unless asked for. An adapter is added into the weights of its base (`llm.merging`),
so that every model is a plain one. `save` writes a folder that `load` takes.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from llm.encoding import CHAT, LLAMA2_CHAT, PLAIN, Template
from llm.merging import Adapter, find_adapter, merge, without_adapter
from llm.pretrained import (
    PROBES,
    check_folder,
    mend_generation,
    note,
    quiet,
    read_config,
    read_tokenizer,
    read_weights,
    reason_of,
    vocabulary,
)
from llm.scoring import check_model
from markov.errors import InvalidInput, require
from markov.storage import Location, check_writable, settings_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Module = TypeVar("Module", bound=nn.Module)
PREFIX = "authors:"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEMPLATE, PROVENANCE = "template.json", "provenance.json"


class Ready(NamedTuple):
    """A model of the hub, the template that it was fine-tuned with, and the revision to take if not the newest."""

    hub: str
    template: Template
    revision: str | None = None


# Fine-tuned on all of TOFU or on a retain split of it, and unlearned from it by the authors of SimNPO.
READY = {
    **{
        f"tofu-llama3.2-1b-{part}": Ready(f"open-unlearning/tofu_Llama-3.2-1B-Instruct_{part}", CHAT)
        for part in ("full", "retain90", "retain95", "retain99")
    },
    "tofu-llama2-7b": Ready("locuslab/tofu_ft_llama2-7b", LLAMA2_CHAT),
    "simnpo-origin": Ready("OPTML-Group/TOFU-origin-Llama-2-7b-chat", LLAMA2_CHAT),
    "simnpo-forget05": Ready("OPTML-Group/SimNPO-TOFU-forget05-Llama-2-7b-chat", LLAMA2_CHAT),
    "simnpo-forget10": Ready("OPTML-Group/SimNPO-TOFU-forget10-Llama-2-7b-chat", LLAMA2_CHAT),
}
NAMES = f"a model of the hub, OWNER/NAME, or one of {PREFIX}KIND, {', '.join(READY)}"


class LanguageModel(NamedTuple):
    """A causal language model, its tokenizer, how questions are put to it, and the name that it was asked for by."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    template: Template
    name: str


def load(
    source: Location,
    *,
    dtype: str = "float32",
    device: str = "auto",
    template: Template | None = None,
    tokenizer: Location | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> LanguageModel:
    """The model of a folder, a hub id, a name in `READY` or `authors:KIND`, in evaluation mode.

    Its template is the one given; else the one saved with it; else that of the ready-made model of
    this name, id or folder name; else `template_of` its tokenizer. `tokenizer` is where that lies
    if not beside the weights. `dtype` is one of `DTYPES`, "auto" being the one of the file;
    `device` "auto" is a GPU where there is one. What an adapter lacks, its template or its
    tokenizer, is that of its base.

    Raises `InvalidInput`, as far as possible before weights are read, for a source that is not
    there or cannot be fetched, weights that are missing, have no place or are not safetensors, a
    model that is not a causal language model, an adapter that cannot be added into its base, a
    tokenizer without end-of-sequence token or with more tokens than the model, and an unknown dtype
    or device.
    """
    require(dtype in DTYPES, "dtype", dtype, f"one of {', '.join(DTYPES)}")
    place, name = find_device(device), os.path.expanduser(source)
    if name.startswith(PREFIX):
        from llm.default_models import DefaultModels, build

        built = build(DefaultModels(), name.removeprefix(PREFIX), device=device)
        model = built.model.to(dtype=DTYPES[dtype])  # pyright: ignore[reportCallIssue]
        return built._replace(model=model, template=template or built.template, name=name)
    local, ready = Path(name).is_dir(), _ready(name)
    if local:
        require(revision is None, "revision", revision, f"left out, since {name} is a folder")
    elif ready is None:
        _check_word(name)
    else:
        revision = revision or ready.revision
    where = ready.hub if ready and not local else name
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    adapter = find_adapter(where, options)
    if adapter is None or adapter.base == where:
        if local:
            check_folder(Path(where))
        config, base, own = read_config(where, options), where, options
    else:
        base, own = adapter.base, {**options, "revision": adapter.base_revision}
        config = _config_of_base(adapter, own)
    place_of_words, elsewhere = _place_of_words(tokenizer, where, base, options, own)
    words = read_tokenizer(place_of_words, config, elsewhere)
    known = [(where, ready), (base, _ready(base))] if base != where else [(where, ready)]
    template = template or next(filter(None, (_template(*pair) for pair in known)), None)
    if adapter is None:
        model = read_weights(base, config, DTYPES[dtype], own)
    else:
        model = _merged(adapter, config, DTYPES[dtype], own)
    mend_generation(model, name)
    model = model.to(device=place)  # pyright: ignore[reportCallIssue]
    check_model(model)
    return LanguageModel(model, words, template or template_of(words), name)


def _ready(name: str) -> Ready | None:
    """The ready-made model of this name, hub id or folder name."""
    local = Path(name).is_dir()
    names = {name, Path(name).resolve().name if local else name}
    known = READY.items()
    return next((one for key, one in known if names & {key, one.hub, Path(one.hub).name}), None)


def _check_word(name: str) -> None:
    good = name.count("/") < 2 and name[:1].isalnum()
    require(good, "model", name, f"a folder that exists, or {NAMES}")


def _config_of_base(adapter: Adapter, options: Mapping[str, Any]) -> Any:
    """The configuration of the model that an adapter changes; raises `InvalidInput`, naming both."""
    base = adapter.base
    try:
        if Path(base).is_dir():
            alone = find_adapter(base, options) is None
            require(alone, "model", base, "a model without an adapter of its own")
            check_folder(Path(base))
        else:
            good = base.count("/") < 2 and base[:1].isalnum()
            require(good, "model", base, "a folder that exists")
        return read_config(base, options)
    except InvalidInput as error:
        allowed = f"an adapter whose base can be read: {base!r} has to be {error.allowed}"
        raise InvalidInput("model", adapter.where, allowed) from None


def _place_of_words(
    given: Location | None,
    where: str,
    base: str,
    options: Mapping[str, Any],
    own: Mapping[str, Any],
) -> tuple[str, Mapping[str, Any]]:
    """Where the tokenizer lies: where it is said to, beside the weights or the adapter, or beside
    the base.
    """
    from transformers.utils.hub import cached_file

    if given is not None:
        return os.path.expanduser(given), {**options, "revision": None}
    if base == where:
        return where, options
    absent = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo")}
    found = cached_file(where, "tokenizer_config.json", revision=options["revision"], **absent)
    return (base, own) if found is None else (where, options)


def _template(where: str, ready: Ready | None) -> Template | None:
    """The template saved in a folder, or else that of the ready-made model of its name."""
    saved = _saved_template(Path(where) / TEMPLATE) if Path(where).is_dir() else None
    return saved or (ready.template if ready else None)


def _merged(adapter: Adapter, config: Any, dtype: torch.dtype | None, options: Mapping[str, Any]) -> PreTrainedModel:
    """The base of an adapter with the adapter added into its weights in float32, in the dtype asked
    for.
    """
    packed = getattr(config, "quantization_config", None)
    allowed = f"an adapter whose base is not quantised: {adapter.base} is, and adding to it would round"
    require(packed is None, "model", adapter.where, allowed)
    narrow = dtype is not None and dtype.itemsize < torch.float32.itemsize
    with without_adapter(adapter) as bare:
        model = read_weights(bare, config, torch.float32 if narrow else dtype, options)
    own = dtype or model.dtype
    wide = torch.promote_types(own, torch.float32)
    model = merge(model.to(dtype=wide), adapter)  # pyright: ignore[reportCallIssue]
    model = model.to(dtype=own)  # pyright: ignore[reportCallIssue]
    name = str(own).removeprefix("torch.")
    rounded = "" if own == wide else f", and the sum is rounded to {name}"
    beside = "the weights beside it" if adapter.base == adapter.where else adapter.base
    note(f"the adapter in {adapter.where} is added into {beside}{rounded}")
    return model


def _saved_template(file: Path) -> Template | None:
    try:
        return Template(**json.loads(file.read_text("utf-8"))) if file.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput("template", str(file), f"a template as `save` writes it ({error})") from None


def template_of(tokenizer: Tokenizer) -> Template:
    """`PLAIN` for a tokenizer without chat template, else `CHAT`, but `LLAMA2_CHAT` in place of Llama 2's own, which
    takes a system prompt into the first turn: TOFU's fine-tuning leaves that out.
    """
    written = tokenizer.chat_template
    return PLAIN if not written else LLAMA2_CHAT if "<<SYS>>" in str(written) else CHAT


def check_same_vocabulary(tokenizer: Tokenizer, other: Tokenizer, field: str = "reference") -> None:
    """Raise `InvalidInput(field, ...)` unless two tokenizers agree: in their tokens, but for one that only pads, in the
    end-of-sequence token, and in how they cut a few texts, which rules of merging can do in several ways.
    """
    odd = sorted(vocabulary(tokenizer).items() ^ vocabulary(other).items())[:1]
    found = [f"{odd[0][0]!r} is not the same token"] if odd else []
    found += ["another end token"] if tokenizer.eos_token_id != other.eos_token_id else []
    found += [f"{text!r} is cut differently" for text in PROBES if tokenizer(text).input_ids != other(text).input_ids]
    allowed = "a model with the vocabulary of the one it is compared with"
    require(not found, field, other.name_or_path, f"{allowed} ({', '.join(found[:1])})")


def perturbed(model: Module, *, scale: float, share: float = 0.5, seed: int) -> Module:
    """A copy of the model, each tensor of parameters averaged with Gaussian noise of its own size (paper, figure A1).

        theta' = (1 - share) * theta + share * scale * std(theta) * xi,    xi ~ N(0, 1)

    std is over the entries of the tensor; tied weights are one tensor. The noise follows from `seed` alone, whatever
    device and dtype the model has. With share = 0 the copy is equal. Raises `InvalidInput` for a share outside [0, 1]
    and a scale that is negative or not finite.
    """
    require(0 <= share <= 1, "share", share, "a number from 0 to 1")
    require(0 <= scale < math.inf, "scale", scale, "a finite number, at least 0")
    generator, copy = torch.Generator().manual_seed(seed), deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            wide = parameter.to(torch.promote_types(parameter.dtype, torch.float32))
            parameter.copy_((1 - share) * wide + share * scale * wide.std(correction=0) * noise)
    return copy


def save(language_model: LanguageModel, folder: Location, provenance: Mapping[str, Any]) -> None:
    """Write model, tokenizer, template and provenance into a new folder that `load` takes: all of it or nothing.

    It is written beside its place and renamed. Raises `InvalidInput` for a place that is taken or
    cannot be written, and for a model that transformers does not save.
    """
    target = Path(os.path.realpath(folder))
    require(not target.exists(), "folder", str(target), "a place where nothing lies yet")
    with _written(language_model, target, provenance) as partial:
        os.rename(partial, target)


def check_savable(language_model: LanguageModel, folder: Location) -> None:
    """Raise `InvalidInput` unless the model can be saved there, so that this is known before it is
    trained.

    It is tried: the model is written as `save` writes it, beside the folder, and removed again. So
    whatever a version of transformers refuses is found (settings for generation that it takes for
    invalid, weights that share memory without saying so, a tokenizer or custom code that it cannot
    write), and so is a disk without room for the model.
    """
    target = Path(os.path.realpath(folder))
    fresh = [parent for parent in target.parents if not parent.exists()]
    try:
        with _written(language_model, target, {}):
            pass
    finally:
        for parent in fresh:  # made by the trial, from the innermost
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _written(language_model: LanguageModel, target: Path, provenance: Mapping[str, Any]) -> Iterator[Path]:
    """A folder beside the target with all that is saved of a model, which is gone afterwards if it
    is still there.
    """
    name, model = language_model.name, language_model.model
    whole = not getattr(model, "_hf_peft_config_loaded", False) and not hasattr(model, "peft_config")
    require(whole, "model", name, "one without adapters: they are merged before it is saved")
    check_writable(target, "folder", folder=True)
    partial = target.with_name(f".partial-{secrets.token_hex(8)}")
    described = {TEMPLATE: asdict(language_model.template), PROVENANCE: settings_of(provenance)}
    try:
        partial.mkdir(parents=True)
        with quiet():
            model.save_pretrained(partial)
            language_model.tokenizer.save_pretrained(partial)
        for file, content in described.items():
            (partial / file).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        for file in partial.glob("*.safetensors"):  # written so that no other user can read them
            shutil.copymode(partial / PROVENANCE, file)
        yield partial
    except InvalidInput:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput("folder", str(target), f"a folder that can be written ({reason})") from None
    except Exception as error:  # custom code can raise anything
        allowed = f"one that transformers can save ({reason_of(error)})"
        raise InvalidInput("model", name, allowed) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_device(device: str) -> torch.device:
    """The device of this name, "auto" being a GPU where there is one; raises `InvalidInput` if it cannot be used."""
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.ones(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput("device", device, f"auto, cpu, or another that is here ({reason})") from None
    return torch.device(wanted)
