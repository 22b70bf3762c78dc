"""What the commands of `python -m llm` share: which model, which data, which objectives, in words."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm.diagnostics import named
from llm.encoding import BUDGET, MAX_LENGTH, TEMPLATES
from markov import storage
from markov.errors import InvalidInput, require
from markov.objectives import CORNERS, LIMITS, Objective, validate
from markov.preferences import PAIRED_CORNERS, PAIRED_LIMITS, Forgetting, Preference, validate_pair

if TYPE_CHECKING:
    import pandas as pd

    from llm.models import LanguageModel

SOURCES = ("markov.objectives", "markov.diagnostics", "llm")
# The paper's betas for TOFU's forget05: a sum of log-probabilities asks for a smaller one than a mean over tokens.
DEFAULTS = ("npo:0.1", "reference_free_npo:0.1", "length_normalized_npo:2.5", "simnpo:2.5")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: str = "authors:original"
    """A folder, a hub id, a ready-made name, or a model made here: authors:original, authors:retrained (never saw the
    forget data) or authors:partial (saw half of it)."""
    template: Literal["auto", "plain", "llama2_chat", "chat"] = "auto"
    """How prompt and response are written (default: as the model was trained)."""
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


def load_model(options: ModelOptions, source: str | None = None) -> LanguageModel:
    """The model of the options, or another one loaded in the same way."""
    from llm.models import load  # takes seconds, which commands without a model need not wait for

    return load(
        source or options.model,
        dtype=options.dtype,
        device=options.device,
        template=None if options.template == "auto" else TEMPLATES[options.template],
        revision=None if source else options.revision,
        trust_remote_code=options.trust_remote_code,
    )


def objective(text: str) -> Objective:
    """An objective in a word: CORNER:BETA or CORNER:BETA:GAMMA, such as npo:0.1 and simnpo:2.5:0.5, or a limit's name.

    Raises `InvalidInput` for another word.
    """
    corner, numbers = _parsed(text, (CORNERS, LIMITS))
    if corner in LIMITS:
        return Objective(0.0, normalize=LIMITS[corner])
    beta, gamma = numbers
    return validate(Objective(beta, gamma, *CORNERS[corner]))


def forgetting(text: str) -> Forgetting:
    """What may be unlearned by, in a word: an `objective`, or one of pairs: idk, dpo:BETA, simpo:BETA[:GAMMA].

    Raises `InvalidInput` for another word.
    """
    corner, numbers = _parsed(text, (CORNERS | PAIRED_CORNERS, LIMITS | PAIRED_LIMITS))
    if corner in PAIRED_LIMITS:
        return Preference(0.0, 0.0, *PAIRED_LIMITS[corner])
    if corner not in PAIRED_CORNERS:
        return objective(text)
    beta, gamma = numbers
    return validate_pair(Preference(beta, gamma, *PAIRED_CORNERS[corner]))


def _parsed(text: str, known: tuple[Iterable[str], Iterable[str]]) -> tuple[str, tuple[float, ...]]:
    """A name with its beta and gamma, if it is one of the former that are known; of the latter, which take none."""
    name, *numbers = text.split(":")
    corners, limits = known
    form = f"CORNER:BETA[:GAMMA] with a corner of {', '.join(corners)}, or {' or '.join(limits)}"
    if name in limits and not numbers:
        return name, ()
    require(name in corners and 1 <= len(numbers) <= 2, "objective", text, form)
    try:
        return name, tuple(float(number) for number in (*numbers, 0.0)[:2])
    except ValueError:
        raise InvalidInput("objective", text, form) from None


def objectives(words: Sequence[str]) -> dict[str, Objective]:
    """Objectives by name, from words; raises `InvalidInput` for none, or one that comes twice."""
    require(len(words) > 0, "objectives", list(words), "at least one")
    return named(objective(word) for word in words)


def write(frame: pd.DataFrame, path: Path, settings: object) -> None:
    """Write a command's table, with the command's settings as its provenance."""
    # Paths are settings too: what was scored is part of how a table came about.
    described = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    storage.write_table(frame, path, storage.provenance(described, *SOURCES))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """What is warned of, as one line each on standard error; where there is an error, that alone is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
