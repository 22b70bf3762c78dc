"""Language models from a folder or the hub, each with the template that it was trained with.

`load_saved` takes a folder in the layout of transformers, such as `llm.models.saving.save` writes,
a GGUF file (`llm.models.gguf_files`), an id of the hub, or a name in `llm.models.names.READY`;
`llm.models.source.load` also takes the words for the small models made here. Weights are read from
safetensors and GGUF only, and code that comes with a model is not run unless asked for. An adapter
is added into the weights of its base (`llm.models.merging`), and quantised weights of a GGUF file
are dequantised, so that every model is a plain one.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import nn

from llm.data.words import checked_word
from llm.models.gguf_files import LINK, alone, find_gguf, keep_to, quantised, read_header
from llm.models.libraries import fetch
from llm.models.merging import Adapter, find_adapter, merge, origin, without_adapter
from llm.models.names import READY, Ready, check_id
from llm.models.packages import find_packaged, hinted
from llm.models.pretrained import (
    PROBES,
    check_folder,
    mend_generation,
    note,
    read_config,
    read_tokenizer,
    read_weights,
    vocabulary,
)
from llm.ranks import own_place, started
from llm.scoring.encoding import fitted
from llm.scoring.logprobs import check_model
from llm.scoring.templates import CHAT, LLAMA2_CHAT, PLAIN, SAVED, Template
from markov.errors import InvalidInput, require
from markov.files.storage import Location

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

Module = TypeVar("Module", bound=nn.Module)
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class LanguageModel(NamedTuple):
    """A causal language model, its tokenizer, its template, and the name that it was asked for by.

    The template says how questions are put to it. `source` says where the weights come from if they
    are no folder's own: which tensors of a GGUF file were quantised, or which commit of the hub.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    template: Template
    name: str
    source: str | None = None


class _Read(NamedTuple):
    """A model as it was read, with the template that is to be used, and its source."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    template: Template
    source: str | None


def load_saved(
    source: Location,
    *,
    dtype: str = "float32",
    device: str = "auto",
    template: Template | None = None,
    system: str | None = None,
    tokenizer: Location | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> LanguageModel:
    """Return the model of a folder, a GGUF file, a hub id or a name in `READY`, for evaluation.

    Its template is the one given; else the one saved with it; else that of the ready-made model of
    this name, id or folder name; else `template_of` its tokenizer. `system` is the system's turn
    for a chat template; the turn is left out if `system` is empty. If `system` is None, the
    template's own turn is used or, if the chat template has no place for one
    (`llm.scoring.encoding.fitted`), none, with a line on standard error. `tokenizer` is where the
    tokenizer lies if not beside the weights. `dtype` is one of `DTYPES`, "auto" being the one of
    the file; `device` "auto" is a GPU if there is one. An adapter without a template or a tokenizer
    gets that of its base. A GGUF file has its own tokenizer and chat template; one line on standard
    error says which of its tensors were quantised.

    Raises `InvalidInput`, as far as possible before weights are read, for a source that is not
    there or cannot be fetched, weights that are missing, have no place or are neither safetensors
    nor GGUF, a GGUF file that is cut short or of an architecture that transformers cannot read, a
    model that is not a causal language model, an adapter that cannot be added into its base, a
    tokenizer without end-of-sequence token or with more tokens than the model, and an unknown dtype
    or device.
    """
    kind, place, name = find_dtype(dtype), find_device(device), checked_word(source, "model")
    file, options = find_gguf(name), {"revision": revision, "trust_remote_code": trust_remote_code}
    if file is not None or Path(name).is_dir():
        what, package = "folder" if file is None else "file", None
        require(revision is None, "revision", revision, f"left out, since {name} is a {what}")
    else:
        package = READY[name].package if name in READY else None
        file = find_packaged(name, package) if revision is None else None
    with hinted(package):
        asked = (options, kind, template, system, tokenizer)
        found = _read(name, *asked) if file is None else _read_gguf(file, *asked)
    came = f"from the package {package.word}, {found.source}" if package and file else found.source
    if came is not None and (package or file):
        note(f"{name} is {came}")

    def ready() -> Any:
        mend_generation(found.model, name)
        model = found.model.to(device=place)  # pyright: ignore[reportCallIssue]
        check_model(model)
        return model

    model = fetch("model", name, ready)
    return LanguageModel(model, found.tokenizer, found.template, name, came)


def _read(
    name: str,
    options: Mapping[str, Any],
    kind: torch.dtype | None,
    template: Template | None,
    system: str | None,
    tokenizer: Location | None,
) -> _Read:
    """Return the model of a folder or the hub, an adapter added into its base."""
    local, ready = Path(name).is_dir(), _ready(name)
    if not local:
        check_id(name)
    where = ready.hub if ready and not local else name
    if ready and not local:
        options = {**options, "revision": options["revision"] or ready.revision}
    adapter = find_adapter(where, options)
    if adapter is None or adapter.base == where:
        if local:
            check_folder(Path(where))
        config, base, own = read_config(where, options), where, options
    else:
        base, own = adapter.base, {**options, "revision": adapter.base_revision}
        config = config_of_base(adapter, own)
    place_of_words, elsewhere = _place_of_words(tokenizer, where, base, options, own)
    words = read_tokenizer(place_of_words, config, elsewhere)
    known = [(where, ready), (base, _ready(base))] if base != where else [(where, ready)]
    template = template or next(filter(None, (_template(*pair) for pair in known)), None)
    written = fitting(words, template or template_of(words), system)
    if adapter is None:
        model = read_weights(base, config, kind, own)
    else:
        model = _merged(adapter, config, kind, own)
    source = origin(name, base, own["revision"], None if base == where else adapter)
    return _Read(model, words, written, source)


def _read_gguf(
    file: Path,
    options: Mapping[str, Any],
    kind: torch.dtype | None,
    template: Template | None,
    system: str | None,
    tokenizer: Location | None,
) -> _Read:
    """Return the model of a GGUF file, dequantised, with the tokenizer that is in the file."""
    header = read_header(file)
    options = {**options, "revision": None}
    with alone(file) as folder:
        own = {**options, "gguf_file": LINK}
        config = read_config(folder, own)
        if tokenizer is None:
            words = read_tokenizer(folder, config, own)
            fetch("tokenizer", str(file), lambda: keep_to(header, words))
        else:
            words = read_tokenizer(checked_word(tokenizer, "tokenizer"), config, options)
        written = fitting(words, template or template_of(words), system)
        model = read_weights(folder, config, kind, own)
    for read in (model, words, model.config):  # the folder is gone
        read.name_or_path = str(file)
    source = f"a GGUF file ({file.name}) of which {quantised(header)}"
    return _Read(model, words, written, source)


def fitting(tokenizer: Tokenizer, template: Template, system: str | None) -> Template:
    """Return the template with the system turn asked for.

    If none was asked for, the template keeps its own turn only if the chat template has a place for
    it. Raises `InvalidInput` for a turn if the template is no chat template.
    """
    if system is not None:
        allowed = "left out, or empty: this model's template has no system turn"
        require(template.chat or not system, "system", system, allowed)
        return replace(template, system=system)
    found = fitted(tokenizer, template)
    if found != template:
        print(
            "the chat template has no place for a system turn: written without one", file=sys.stderr
        )
    return found


def _ready(name: str) -> Ready | None:
    """Return the ready-made model of this name, hub id or folder name, or None."""
    local = Path(name).is_dir()
    names = {name, Path(name).resolve().name if local else name}
    known = READY.items()
    return next((one for key, one in known if names & {key, one.hub, Path(one.hub).name}), None)


def config_of_base(adapter: Adapter, options: Mapping[str, Any]) -> Any:
    """Return the configuration of the model that an adapter changes.

    Raises `InvalidInput`, which names both.
    """
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
    """Return where the tokenizer lies, and the options to read it with.

    It lies where it is said to, else beside the weights or the adapter, else beside the base.
    """
    from transformers.utils.hub import cached_file

    if given is not None:
        return checked_word(given, "tokenizer"), {**options, "revision": None}
    if base == where:
        return where, options
    absent = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo")}
    revision = options["revision"]
    found = fetch(
        "tokenizer",
        where,
        lambda: cached_file(where, "tokenizer_config.json", revision=revision, **absent),
        revision,
    )
    return (base, own) if found is None else (where, options)


def _template(where: str, ready: Ready | None) -> Template | None:
    """Return the template saved in a folder, or else that of the ready-made model of its name."""
    saved = _saved_template(Path(where) / SAVED) if Path(where).is_dir() else None
    return saved or (ready.template if ready else None)


def _merged(
    adapter: Adapter, config: Any, dtype: torch.dtype | None, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Return the base of an adapter with the adapter added into its weights.

    The sum is taken in float32 or wider, and returned in the dtype asked for.
    """
    packed = getattr(config, "quantization_config", None)
    allowed = (
        f"an adapter whose base is not quantised: {adapter.base} is, and adding to it would round"
    )
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
    if not os.path.lexists(file):
        return None
    from llm.models.folder_files import SavedTemplate, read_declared

    return Template(**read_declared(file, SavedTemplate, "template", str(file)).model_dump())


def template_of(tokenizer: Tokenizer) -> Template:
    """Return `PLAIN` for a tokenizer without chat template, else `CHAT`.

    Llama 2's own chat template is replaced by `LLAMA2_CHAT`: it takes a system prompt into the
    first turn, which TOFU's fine-tuning leaves out.
    """
    written = tokenizer.chat_template
    return PLAIN if not written else LLAMA2_CHAT if "<<SYS>>" in str(written) else CHAT


def check_same_vocabulary(tokenizer: Tokenizer, other: Tokenizer, field: str = "reference") -> None:
    """Raise `InvalidInput(field, ...)` unless two tokenizers agree.

    They must agree in their tokens, except for one that only pads, in the end-of-sequence token,
    and in how they cut a few texts, since rules of merging can cut a text in several ways.
    """
    odd = sorted(vocabulary(tokenizer).items() ^ vocabulary(other).items())[:1]
    found = [f"{odd[0][0]!r} is not the same token"] if odd else []
    found += ["another end token"] if tokenizer.eos_token_id != other.eos_token_id else []
    found += [
        f"{text!r} is cut differently"
        for text in PROBES
        if tokenizer(text).input_ids != other(text).input_ids
    ]
    allowed = "a model with the vocabulary of the one it is compared with"
    require(not found, field, other.name_or_path, f"{allowed} ({', '.join(found[:1])})")


def perturbed(model: Module, *, scale: float, share: float = 0.5, seed: int) -> Module:
    """Return a copy of the model, each tensor of parameters averaged with noise (paper, figure A1).

        theta' = (1 - share) * theta + share * scale * std(theta) * xi,    xi ~ N(0, 1)

    The noise is Gaussian and of the tensor's own size: std is over the entries of the tensor. Tied
    weights are one tensor. The noise follows from `seed` alone, whatever device and dtype the model
    has. With share = 0 the copy is equal. Raises `InvalidInput` for a share outside [0, 1] and a
    scale that is negative or not finite.
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


def find_dtype(dtype: str) -> torch.dtype | None:
    """Return the dtype of a name in `DTYPES`, or None for the dtype of the file.

    Raises `InvalidInput` for another name.
    """
    require(dtype in DTYPES, "dtype", dtype, f"one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def find_device(device: str) -> torch.device:
    """Return the device of this name; "auto" is a GPU if there is one.

    Of several processes on a machine each takes a GPU of its own (LOCAL_RANK).

    Raises `InvalidInput` if the device cannot be used.
    """
    own = f"cuda:{own_place()}" if started() > 1 else "cuda"
    wanted = (own if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.ones(1, device=wanted).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            "device", device, f"auto, cpu, or another that is here ({reason})"
        ) from None
    return torch.device(wanted)
