"""Settings of a job: a frozen dataclass, whose fields are the options of a command."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from markov.errors import require
from markov.files import storage

# The paper's betas for TOFU's forget05: a sum of log-probabilities needs a smaller beta than a
# mean over tokens.
DEFAULTS = ("npo:0.1", "reference_free_npo:0.1", "length_normalized_npo:2.5", "simnpo:2.5")


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


def provenance_of(settings: object) -> dict[str, Any]:
    """Return the provenance of a table that was made with these settings."""
    # Paths are settings too, since what was scored is part of how a table was made.
    described = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(settings).items()
    }
    return storage.provenance(described, "llm")
