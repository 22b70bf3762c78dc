"""Settings of a job: a frozen dataclass, whose fields are the options of a command.

Nothing here takes long to import, so that what is refused is refused at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.data.published import commits
from llm.models.counted import least_count
from llm.models.names import SMALL_BYTES, is_small
from markov.errors import require, require_whole
from markov.files import storage
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.models.language_model import LanguageModel
    from llm.training.adapters import Lora

# The paper's betas for TOFU's forget05: a sum of log-probabilities needs a smaller beta than a
# mean over tokens.
DEFAULTS = ("npo:0.1", "reference_free_npo:0.1", "length_normalized_npo:2.5", "simnpo:2.5")
Rates = Sequence[tuple[float, float]]  # numbers of parameters, and step sizes below each
RATE = 1e-3  # largest step size for small models
# SmolLM2, of 135 million parameters, forgets and learns again at the first; the second is the
# paper's for 7 * 10^9.
MIDDLE, MIDDLE_RATE, LARGE_RATE = 500_000_000, 1e-4, 1e-5
Word = str | os.PathLike  # the types of words, as against values


def rate_for(size: int, rates: Rates) -> float:
    """Return the step size for a model of so many parameters: that of the first limit above it."""
    return next(rate for limit, rate in rates if size < limit)


def lora_of(rank: int | None) -> Lora | None:
    """Return adapters of a rank, or None, where the model itself is trained.

    Raises `InvalidInput` for a rank that is not allowed.
    """
    if rank is None:
        return None
    require_whole(rank, "lora_rank", 1)
    from llm.training.adapters import Lora

    return Lora(rank=rank)


def left_out(command: Any, names: Iterable[str], allowed: str) -> None:
    """Raise `InvalidInput` for the first of these options that was given.

    Such an option would change nothing.
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


def provenance_of(settings: object, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the provenance of a table that was made with these settings.

    It names none of the settings `without`, which change no number of the table, and the commits of
    the data sets of the hub that the others name.
    """
    # Paths are settings too, since what was scored is part of how a table was made.
    described = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(settings).items()
        if name not in without
    }
    taken = commits(described.values())
    return {**storage.provenance(described, "llm"), **({"data": taken} if taken else {})}


def rate_of(given: float | None, model: LanguageModel | Location, *, small: float) -> float:
    """Return the step size that was given, or else the one for models of this size.

    A model is small if its word says so (`llm.models.names.is_small`), or the size of its
    parameters. Others have `MIDDLE_RATE` below `MIDDLE` parameters, and else `LARGE_RATE`, also
    where no file tells how many there are, as of an id of the hub.
    """
    if given is not None:
        return given
    if isinstance(model, Word):
        if is_small(model):
            return small
        count = least_count(model)
    else:
        every = list(model.model.parameters())
        if sum(one.numel() * one.element_size() for one in every) < SMALL_BYTES:
            return small
        count = sum(one.numel() for one in every)
    return MIDDLE_RATE if count is not None and count < MIDDLE else LARGE_RATE
