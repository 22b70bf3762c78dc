"""What the commands of `python -m llm` share: options of training, tables, warnings, processes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llm.jobs.settings import provenance_of
from llm.models.names import made
from llm.models.source import ModelOptions
from llm.ranks import joined, started
from llm.training.processes import in_first
from llm.training.settings import Optimization
from markov.errors import require
from markov.files import storage

if TYPE_CHECKING:
    import pandas as pd

    from llm.models.language_model import LanguageModel

Options = TypeVar("Options", bound=ModelOptions)
# Options that may name a model, or else something that is no model made here.
MODELS = ("model", "reference", "retrained")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ModelOptions):
    """How the parameters of a model are trained, whatever it is taught."""

    weight_decay: float = 0.01
    """Weight decay of AdamW; 0 leaves it out."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Precision of the products; bfloat16 by autocast.
    Default: bfloat16 on a GPU for models from 10^9 parameters, else float32.
    """
    narrow_updates: bool = False
    """With --dtype bfloat16: update the parameters themselves, not float32 masters of them.
    It takes half the memory, and loses updates of less than 1/512 of a parameter.
    At learning rates such as 1e-5 these are most of them.
    """
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    lora_rank: int | None = None
    """Train adapters of this rank in all linear layers, not the model itself."""


@dataclass(frozen=True, kw_only=True)
class PassOptions(TrainingOptions):
    """How often and in which order a model is trained on its data, and with which steps."""

    epochs: int = 10
    """Passes over the data.
    The learning rate rises over the first and falls to 0 over the others.
    """
    warmup_epochs: float = 1.0
    """Passes over which the learning rate rises."""
    batch: int = 32
    """Examples per update."""
    learning_rate: float | None = None
    """Largest step size of AdamW."""
    seed: int = 0
    """Seed of the order of examples."""
    keep_state: Literal["epoch", "never"] | float | None = None
    """When the state is written from which a stopped run goes on.
    epoch: after each; a number: after the first epoch that ends so many minutes after the last.
    Default: after each up to 4 GB of state, else so seldom that it takes little time.
    """


def optimization_of(command: TrainingOptions, **others: Any) -> Optimization:
    """Return how a command optimises: its own options, and `others` that it has no option for.

    A learning rate that is left open counts as 1 for that. Raises `InvalidInput` for values that
    are not allowed.
    """
    given: dict[str, Any] = {
        field.name: getattr(command, field.name)
        for field in fields(Optimization)
        if field.name in vars(command)
    }
    given |= {"learning_rate": 1.0} if given.get("learning_rate", 0) is None else {}
    return Optimization(**given, **others)


def spread(command: Options) -> Options:
    """Return the command for this process, with a device of its own where there are several.

    Process 0 says on standard error how many there are. Raises `InvalidInput` for processes that
    are not joined, and for small models that they would have to train first.
    """
    if started() == 1:
        return command
    from llm.models.source import is_cached

    state = joined()
    print(f"{state.num_processes} processes", file=sys.stderr)
    device = str(state.device) if command.device == "auto" else command.device
    allowed = "one that is there before several processes start (see `python -m llm build`)"
    for field in MODELS:
        word = getattr(command, field, None)
        own = made(word, field) if word else None
        require(own is None or is_cached(own, device), field, word, allowed)
    return replace(command, device=device)


def write(
    frame: pd.DataFrame, path: Path, settings: object, language: LanguageModel | None = None
) -> None:
    """Write a command's table, with its settings as provenance; of several processes one writes.

    If the table is of one model, its provenance also has that model's `source`.
    """
    known = provenance_of(settings)
    if language is not None:
        from llm.models.saving import with_source

        known = with_source(known, language)
    in_first(lambda: storage.write_table(frame, path, known))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each warning as one line on standard error, once the context ends.

    Where there is an error, no warning is printed.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
