"""States of an interrupted run: one file, written whole at the end of each epoch, without pickle.

The file holds the parameters that are trained (of 16-bit ones the float32 masters), the optimiser's
moments, the tables so far, and the fingerprint of all that determines the run: only the same run
can go on from it. It does not hold parameters that stay fixed. The parameters of a model in shards
are gathered before they are written, by the first process, so that a run may go on with another
number of processes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from llm.ranks import in_shards
from llm.training.loop import Loop
from llm.training.processes import in_first
from markov.errors import InvalidInput, require
from markov.files.leftovers import beside_others
from markov.files.storage import (
    KEY,
    Location,
    atomic_path,
    check_writable,
    load_parameters,
    read_provenance,
    settings_of,
)

FILE = "state.safetensors"
WHOLE = StateDictOptions(
    full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False
)
Tables = Mapping[str, pd.DataFrame]


@dataclass
class Pace:
    """When states are written: not before so many minutes have passed since the last one.

    0 is at every opportunity, and infinity never.
    """

    minutes: float = 0.0
    last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Return whether a state is to be written now; all processes ask together."""
        passed = in_first(lambda: time.monotonic() - self.last) if self.minutes else 0.0
        if passed < 60 * self.minutes:
            return False
        self.last = time.monotonic()
        return True


class State(NamedTuple):
    """A state that was found: the epochs done, the tables so far, and the tensors for `restore`."""

    epoch: int
    tables: Tables
    tensors: dict[str, Tensor]


def save_state(folder: Location, loop: Loop, fingerprint: str, epoch: int, tables: Tables) -> None:
    """Write the state of a run after epoch `epoch` >= 1.

    All processes call this together. The columns of the tables are numbers or texts.
    """
    parameters: Any = get_model_state_dict(loop.model, options=WHOLE)
    tensors = {f"model.{name}": value for name, value in parameters.items()}
    # in one process
    moments: Any = get_optimizer_state_dict(loop.model, _inner(loop), options=WHOLE).get(
        "state", {}
    )
    tensors |= {
        f"optimizer.{name}/{key}": value
        for name, own in moments.items()
        for key, value in own.items()
    }

    def write() -> None:
        texts: dict[str, Any] = {}
        for name, table in tables.items():
            for column, values in table.items():
                if pd.api.types.is_numeric_dtype(values):
                    tensors[f"table.{name}/{column}"] = torch.from_numpy(values.to_numpy(copy=True))
                else:
                    texts[f"table.{name}/{column}"] = values.tolist()
        columns = {name: list(table.columns) for name, table in tables.items()}
        _write(
            Path(folder) / FILE,
            tensors,
            dict(fingerprint=fingerprint, epoch=epoch, columns=columns, texts=texts),
        )

    in_first(write)


def find_state(folder: Location, fingerprint: str) -> State | None:
    """Return the state in a folder, or None if there is none yet.

    Raises `InvalidInput` for the state of another run, for a broken one, and for a folder that
    cannot be written.
    """
    path = Path(folder) / FILE

    def there() -> bool:
        check_writable(folder, "state", folder=True)
        return path.exists()

    if not in_first(there):
        return None
    known = read_provenance(path)
    allowed = (
        "the state of a run of the same settings, data, model and code; or a folder without one"
    )
    require(known.get("fingerprint") == fingerprint, "state", str(folder), allowed)
    tensors, tables = load_parameters(path), {}
    for name, columns in known["columns"].items():
        named = {column: f"table.{name}/{column}" for column in columns}
        found: Mapping[str, Any] = {
            column: known["texts"][key] if key in known["texts"] else tensors.pop(key).numpy()
            for column, key in named.items()
        }
        tables[name] = pd.DataFrame(found)
    return State(known["epoch"], tables, tensors)


def restore(loop: Loop, state: State) -> None:
    """Give the loop's model and optimiser the parameters and moments of a state."""
    parameters, moments = {}, {}
    for name, value in state.tensors.items():
        kind, rest = name.split(".", 1)
        if kind == "model":
            parameters[rest] = value
        else:
            parameter, key = rest.rsplit("/", 1)
            moments.setdefault(parameter, {})[key] = value
    set_model_state_dict(loop.model, parameters, options=WHOLE)
    fresh = get_optimizer_state_dict(
        loop.model, _inner(loop), options=replace(WHOLE, cpu_offload=False)
    )
    set_optimizer_state_dict(loop.model, _inner(loop), {**fresh, "state": moments}, options=WHOLE)


def gathered(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the whole parameters of a model in shards, or None for any other model.

    All processes call this together; process 0 gets the parameters.
    """
    if not in_shards(model):
        return None
    whole: Any = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


def parameters_digest(model: nn.Module) -> str:
    """Return a digest of all parameters of a model: their names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        value = parameter.detach().cpu().contiguous()
        digest.update(repr((name, tuple(value.shape), str(value.dtype))).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    import json

    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held, places = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        # Tied parameters have two names; one of them brings back both.
        if tensor.numel() and tensor.data_ptr() in places:
            continue
        places.add(tensor.data_ptr())
        held[name] = tensor
    known = {KEY: json.dumps(settings_of(metadata), sort_keys=True)}

    @beside_others
    def save() -> None:
        with atomic_path(path) as partial:
            # Straight to the file: such states are several times the size of the model.
            try:
                save_file(held, partial, known)
            except SafetensorError:
                partial.parent.stat()  # raises FileNotFoundError if it has been taken away
                raise

    try:
        save()
    except SafetensorError as error:
        raise InvalidInput("state", str(path), f"a place that can be written ({error})") from None


def _inner(loop: Loop) -> torch.optim.Optimizer:
    return getattr(loop.optimizer, "optimizer", loop.optimizer)
