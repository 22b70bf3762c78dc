"""Save language models as folders that `load` takes, and check before training that this works."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from llm.models.digests import DIGESTS, digests
from llm.models.digests import PROVENANCE as PROVENANCE
from llm.models.libraries import muted, quiet, reason_of
from llm.models.pretrained import check_folder
from llm.scoring.templates import SAVED as TEMPLATE
from markov.errors import InvalidInput, require
from markov.files import inputs, leftovers
from markov.files.storage import Location, check_writable, settings_of

if TYPE_CHECKING:
    from llm.models.language_model import LanguageModel

SOURCE = "model_source"  # in a provenance: where the weights came from that were changed


def save(
    language_model: LanguageModel,
    folder: Location,
    provenance: Mapping[str, Any],
    parameters: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model, tokenizer, template and provenance into a new folder that `load` takes.

    Either all of it is written or nothing: it is written beside its place and renamed. What killed
    processes left of it is cleared. The provenance also gets the model's `source`, if it has one.
    `parameters` are those of the whole model if it is in shards.
    Raises `InvalidInput` for a place that is taken or cannot be written, and for a model that
    transformers does not save.
    """
    target = Path(os.path.realpath(folder))
    # An empty folder may remain from a check whether it can be written.
    free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(free, "folder", str(target), "a place where nothing lies yet")
    with _written(language_model, target, provenance, parameters) as partial:
        os.rename(partial, target)


def check_savable(language_model: LanguageModel, folder: Location) -> None:
    """Raise `InvalidInput` unless the model can be saved there, to be known before it is trained.

    The model is written as `save` writes it, beside the folder, and removed again. This finds
    whatever a version of transformers refuses (settings for generation that it takes for invalid,
    weights that share memory without saying so, a tokenizer or custom code that it cannot write),
    and a disk without room for the model.
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
def _written(
    language_model: LanguageModel,
    target: Path,
    provenance: Mapping[str, Any],
    parameters: dict[str, torch.Tensor] | None = None,
) -> Iterator[Path]:
    """Give a folder beside the target with all that is saved of a model.

    The folder is removed afterwards if it is still there.
    """
    name, model = language_model.name, language_model.model
    whole = not getattr(model, "_hf_peft_config_loaded", False) and not hasattr(
        model, "peft_config"
    )
    require(whole, "model", name, "one without adapters: they are merged before it is saved")
    check_writable(target, "folder", folder=True)
    leftovers.clear(target.parent, target.name)
    partial = target.with_name(leftovers.partial_name(target.name))
    known = with_source(provenance, language_model)
    try:
        partial.mkdir(parents=True)
        with quiet(), muted():
            model.save_pretrained(partial, state_dict=parameters)
            language_model.tokenizer.save_pretrained(partial)
        _write(partial / TEMPLATE, asdict(language_model.template))
        _write(partial / PROVENANCE, {**settings_of(known), DIGESTS: digests(partial)})
        for file in partial.glob("*.safetensors"):  # written so that no other user can read them
            shutil.copymode(partial / PROVENANCE, file)
        yield partial
    except InvalidInput:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(
            "folder", str(target), f"a folder that can be written ({reason})"
        ) from None
    except Exception as error:  # custom code can raise anything
        allowed = f"one that transformers can save ({reason_of(error)})"
        raise InvalidInput("model", name, allowed) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def with_source(provenance: Mapping[str, Any], language_model: LanguageModel) -> dict[str, Any]:
    """Return a provenance that also has the model's `source`, if the model has one."""
    source = language_model.source
    return {**provenance, **({} if source is None else {SOURCE: source})}


def check_whole(folder: Location) -> Path:
    """Return a folder that `save` wrote.

    Raises `InvalidInput` if a file in it is missing or cut short. Only the beginnings of the
    weights are read, which say how long the files are.
    """
    place = Path(folder)
    try:
        check_folder(place)
        for name in ("config.json", TEMPLATE, PROVENANCE):
            inputs.read_json(place / name, "model")
        for file in place.glob("*.safetensors"):
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        reason = error.allowed if isinstance(error, InvalidInput) else error
        raise InvalidInput("model", str(place), f"a model that is whole ({reason})") from None
    return place


def saved_settings(folder: Location) -> Any:
    """Return the settings in the provenance that `save` wrote; None for a folder without it."""
    try:
        return inputs.read_json(Path(folder) / PROVENANCE, "model").get("settings")
    except (InvalidInput, AttributeError):
        return None
