"""Merge adapters on loading: they are added once into the weights of their base.

A folder with an adapter is thus one plain model to every command: what is scored is what unlearning
starts from, and what is saved is whole. An adapter lies beside the weights of its base, or alone in
a folder that names its base (`base_model_name_or_path` in its adapter_config.json), as peft writes
it; which base is read follows transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from llm.data.words import checked_word
from llm.models.hub import commit_of
from llm.models.libraries import fetch, reason_of, tried
from llm.models.pretrained import note
from markov.errors import InvalidInput, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Largest difference between the logits before and after merging in float32, as a share of the
# largest logit.
TOLERANCE = 1e-3


UNPINNED = " (not pinned)"


class Adapter(NamedTuple):
    """An adapter of a folder or the hub, and the folder or hub id of the model that it changes."""

    where: str
    base: str
    revision: str | None
    base_revision: str | None


def find_adapter(where: str, options: Mapping[str, Any]) -> Adapter | None:
    """Return the adapter of a folder or a hub id, or None if there is none.

    Its base is the folder itself if that holds a whole model. Raises `InvalidInput` for an adapter
    that names no base, and for one whose weights are not there or are pickles.
    """
    from transformers.utils.hub import cached_file

    # Here, because building the schemas takes as long as answering --help.
    from llm.models.folder_files import AdapterConfig, read_declared

    revision, local = options.get("revision"), Path(where).is_dir()
    quietly = {
        f"_raise_exceptions_for_{what}": False
        for what in ("missing_entries", "connection_errors", "gated_repo")
    }

    def found(name: str) -> str | None:
        if local:
            return str(Path(where, name)) if Path(where, name).is_file() else None
        try:
            return cached_file(where, name, revision=revision, **quietly)
        except Exception:  # no such model, no hub: what reads its configuration will say so
            return None

    file = found(CONFIG)
    if file is None:
        return None
    place = Path(file)
    settings = read_declared(place, AdapterConfig, "model", where)
    base, base_revision = settings.base_model_name_or_path, settings.revision
    require(found(WEIGHTS) is not None, "model", where, f"an adapter with its weights in {WEIGHTS}")
    if local and is_whole(Path(where)):
        return Adapter(where, where, None, None)
    allowed = f"an adapter that names its base (base_model_name_or_path is {base!r})"
    if base is None or not base.strip():
        raise InvalidInput("model", where, allowed)
    return Adapter(where, checked_word(base, "model"), revision, base_revision)


def origin(name: str, base: str, revision: str | None, adapter: Adapter | None) -> str | None:
    """Return the commits of the hub that a model and its adapter came from, or None for folders.

    Where no commit was asked for, the newest was taken, and another day has another: a note on
    standard error says so, with the commit that takes the same one again.
    """
    asked = [(base, base, revision, "config.json")]
    if adapter is not None:
        own = f"the adapter {adapter.where}"
        asked.append((own, adapter.where, adapter.revision, CONFIG))
    taken = []
    for shown, place, wanted, file in asked:
        commit = None if Path(place).is_dir() else commit_of(place, wanted, file)
        if commit is not None:
            loose = "" if commit == wanted else UNPINNED
            taken.append(f"{shown} of the hub, commit {commit}{loose}")
    if any(one.endswith(UNPINNED) for one in taken):
        note(f"{name} is {', and '.join(taken)}: name a commit as the revision to keep it")
    return ", and ".join(taken) or None


def _check_rank(folder: Path) -> None:
    """Raise `InvalidInput` for ranks beyond the widths of all weights of an adapter.

    peft would make matrices of that rank before it looks for their numbers.
    """
    from llm.models.folder_files import AdapterConfig, read_declared, stored

    settings = read_declared(folder / CONFIG, AdapterConfig, "model", str(folder))
    try:
        weights = stored(folder / WEIGHTS).values()
    except InvalidInput:  # peft will say so, beside the name of the base
        return
    widest = max((max(one.shape, default=0) for one in weights), default=0)
    rank = max([settings.r or 1, *(settings.rank_pattern or {}).values()])
    allowed = f"an adapter of at most the rank of its weights, {widest} ({CONFIG} says {rank})"
    require(rank <= max(1, widest), "model", str(folder), allowed)


def is_whole(folder: Path) -> bool:
    """Return whether a folder holds a configuration and weights that are no adapter's."""
    weights = [
        file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_")
    ]
    return (folder / "config.json").is_file() and bool(weights)


@contextmanager
def without_adapter(adapter: Adapter) -> Iterator[str]:
    """Give the place where the base can be read by itself.

    It cannot be read beside its adapter, since transformers always reads both: in that case the
    place is a temporary folder of links to the other files. Raises `InvalidInput` under the name of
    the folder that was asked for.
    """
    if adapter.base != adapter.where:
        yield adapter.base
        return
    with TemporaryDirectory() as bare:
        for file in Path(adapter.where).iterdir():
            if not file.name.startswith("adapter_"):
                Path(bare, file.name).symlink_to(file.resolve())
        try:
            yield bare
        except InvalidInput as error:
            value, allowed = (
                str(one).replace(bare, adapter.where) for one in (error.value, error.allowed)
            )
            raise InvalidInput(error.field, value, allowed) from None


def merge(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Return the model with the adapter added into its weights: a plain one, all of it trainable.

    The sum is taken in the model's own dtype, which should be float32 or wider: in a narrower one
    small changes by the adapter are rounded away. A few tokens are used to check that the merged
    model computes what the two compute together. Raises `InvalidInput` for an adapter of another
    model (weights that it lacks, or that have no place), and for one that weights cannot express,
    such as a prompt.
    """
    import peft

    if Path(adapter.where).is_dir():
        _check_rank(Path(adapter.where))
    options: Any = {} if adapter.revision is None else {"revision": adapter.revision}
    read = peft.PeftConfig.from_pretrained
    config = fetch("model", adapter.where, lambda: read(adapter.where, **options))
    kind = getattr(config.peft_type, "value", config.peft_type)
    _require(not config.is_prompt_learning, adapter, f"{kind} is none of weights")

    def add() -> tuple[Any, Tensor]:
        # What peft warns of, weights that are missing or no longer tied, is checked here.
        with torch.random.fork_rng(devices=[]):
            wrapped: Any = peft.PeftModel(model, config)
            wrapped.eval()
            found = wrapped.load_adapter(adapter.where, "default", torch_device="cpu", **options)
            for name in sorted(found.missing_keys):
                _require(False, adapter, f"its file lacks {name}")
            for name in sorted(found.unexpected_keys):
                _require(False, adapter, f"its file has {name}, for which the base has no place")
            together = _logits(wrapped)
            _untie(model)
            return wrapped.merge_and_unload(safe_merge=True), together

    found, error = tried(add)
    if error is not None:
        _require(False, adapter, reason_of(error))
    merged, together = found
    away = float((_logits(merged) - together).abs().max() / together.abs().max())
    _require(away <= TOLERANCE, adapter, f"merged, its logits differ by {away:.1g} of the largest")
    merged.requires_grad_(True)  # peft has frozen the base
    return merged.eval()


def _require(condition: bool, adapter: Adapter, reason: str) -> None:
    allowed = f"an adapter that can be added to the weights of its base {adapter.base} ({reason})"
    require(condition, "model", adapter.where, allowed)


def _logits(model: nn.Module) -> Tensor:
    """Return the logits on a few arbitrary tokens."""
    with torch.no_grad():
        return model(input_ids=torch.arange(8)[None], use_cache=False).logits.double()


def _untie(model: PreTrainedModel) -> None:
    """Give a head that shares the embedding's weights its own if an adapter changes either."""
    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers: list[Any] = [getattr(layer, "base_layer", layer) for layer in (inner, head)]
    changed = any(hasattr(layer, "base_layer") for layer in (inner, head))
    if changed and layers[0].weight is layers[1].weight:
        layers[1].weight = nn.Parameter(layers[1].weight.detach().clone())
        model.config.tie_word_embeddings = False
