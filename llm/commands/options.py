"""What the commands of `python -m llm` share: which model, which data, which objectives, in
words.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.diagnostics.weights import named
from llm.models.names import is_small
from llm.unlearning.methods import objective
from markov.errors import require
from markov.files import storage
from markov.objectives import Objective

if TYPE_CHECKING:
    import pandas as pd


# The paper's betas for TOFU's forget05: a sum of log-probabilities asks for a smaller one than a
# mean over tokens.
DEFAULTS = ("npo:0.1", "reference_free_npo:0.1", "length_normalized_npo:2.5", "simnpo:2.5")


def chosen_rate(given: float | None, model: str, small: float, large: float = 1e-5) -> float:
    """The step size that was given; else the one that models of such a size take (see
    `llm.models.names.is_small`).
    """
    if given is not None:
        return given
    return small if is_small(model) else large


def left_out(command: Any, names: Iterable[str], allowed: str) -> None:
    """Raise `InvalidInput` for the first of these options that was given, since it would change
    nothing.
    """
    for field in fields(command):
        if field.name in names:
            value = getattr(command, field.name)
            require(
                value == field.default,
                field.name,
                str(value) if isinstance(value, Path) else value,
                allowed,
            )


def objectives(words: Sequence[str]) -> dict[str, Objective]:
    """Objectives by name, from words; raises `InvalidInput` for none, or one that comes twice."""
    require(len(words) > 0, "objectives", list(words), "at least one")
    return named(objective(word) for word in words)


def write(frame: pd.DataFrame, path: Path, settings: object) -> None:
    """Write a command's table, with the command's settings as its provenance."""
    # Paths are settings too: what was scored is part of how a table came about.
    described = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(settings).items()
    }
    storage.write_table(frame, path, storage.provenance(described, "llm"))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """What is warned of, as one line each on standard error; where there is an error, that alone
    is said.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
