"""What the commands of `python -m llm` share: which model, which data, which objectives, in words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.diagnostics.weights import named
from llm.models.names import is_small
from llm.scoring.encoding import BUDGET, MAX_LENGTH, TEMPLATES
from llm.unlearning.methods import objective
from markov import storage
from markov.errors import require
from markov.objectives import Objective

if TYPE_CHECKING:
    import pandas as pd

    from llm.models.language_model import LanguageModel

# The paper's betas for TOFU's forget05: a sum of log-probabilities asks for a smaller one than a mean over tokens.
DEFAULTS = ("npo:0.1", "reference_free_npo:0.1", "length_normalized_npo:2.5", "simnpo:2.5")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: str = "authors:original"
    """A folder, a hub id, a ready-made name, or a model made here, authors:KIND[:PERCENT[:SEED]] or news:KIND[:SEED]:
    authors:original, authors:retrained (never saw the tenth to forget) or authors:partial (saw half of it)."""
    template: Literal["auto", "plain", "llama2_chat", "chat"] = "auto"
    """How prompt and response are written (default: as the model was trained)."""
    system: str | None = None
    """What a chat template is given as the system's turn; "" leaves the turn out."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Floating-point numbers of the model; log-probabilities are float32 in any case."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    revision: str | None = None
    """Commit, tag or branch of a model from the hub."""
    trust_remote_code: bool = False
    """Run code that comes with a model; only for those whose authors you trust."""
    max_length: int = MAX_LENGTH
    """Tokens that prompt and response may have; a longer one is refused, never cut silently."""
    budget: int = BUDGET
    """Tokens of a batch, padding included; changes speed and memory, never a number beyond rounding."""


def chosen_rate(given: float | None, model: str, small: float, large: float = 1e-5) -> float:
    """The step size that was given; else the one that models of such a size take (see `llm.models.names.is_small`)."""
    if given is not None:
        return given
    return small if is_small(model) else large


def left_out(command: Any, names: Iterable[str], allowed: str) -> None:
    """Raise `InvalidInput` for the first of these options that was given, since it would change nothing."""
    for field in fields(command):
        if field.name in names:
            value = getattr(command, field.name)
            require(value == field.default, field.name, str(value) if isinstance(value, Path) else value, allowed)


def load_model(options: ModelOptions, source: str | None = None) -> LanguageModel:
    """The model of the options, or another one loaded in the same way."""
    from llm.models.language_model import load  # takes seconds, which commands without a model need not wait for

    return load(
        source or options.model,
        dtype=options.dtype,
        device=options.device,
        template=None if options.template == "auto" else TEMPLATES[options.template],
        system=options.system,
        revision=None if source else options.revision,
        trust_remote_code=options.trust_remote_code,
    )


def objectives(words: Sequence[str]) -> dict[str, Objective]:
    """Objectives by name, from words; raises `InvalidInput` for none, or one that comes twice."""
    require(len(words) > 0, "objectives", list(words), "at least one")
    return named(objective(word) for word in words)


def write(frame: pd.DataFrame, path: Path, settings: object) -> None:
    """Write a command's table, with the command's settings as its provenance."""
    # Paths are settings too: what was scored is part of how a table came about.
    described = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    storage.write_table(frame, path, storage.provenance(described, "llm"))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """What is warned of, as one line each on standard error; where there is an error, that alone is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
