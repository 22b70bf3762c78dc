"""The command that scores a data set.

What takes seconds to import is imported when the command runs, so that --help answers at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from llm.commands.options import spread, write
from llm.jobs.planning import MemoryOption, planned
from llm.jobs.settings import left_out
from llm.models.names import data_of
from llm.models.source import ModelOptions, load_model
from llm.training.processes import in_first
from markov.files import folders


@dataclass(frozen=True, kw_only=True)
class Score(ModelOptions, MemoryOption):
    """Write the log-probabilities of the responses of a data set.
    The table has the columns index, logp (nats) and length (scored tokens).

    Example: python -m llm score --model authors:original --data authors:forget20 --out
    original.parquet
    """

    data: str | None = None
    """What is scored: authors:SPLIT[:SEED], tofu:SPLIT, or a file or folder in TOFU's JSON.
    Default: for small models authors:forget20.
    """
    split: str | None = None
    """Split of a folder, where it has several."""
    gradients: bool = False
    """Also the norm of the gradient of each logp, in the column gradient_norm.
    It takes about as long as a training step on each batch.
    """
    noise: float | None = None
    """Score a perturbed model instead, as in the paper's A1.
    Its weights are averaged with Gaussian ones, of so many standard deviations of each tensor.
    """
    noise_seed: int = 0
    """Seed of the Gaussian weights."""
    out: Path = Path("out/scores.parquet")
    """Table to write."""


def score(command: Score) -> None:
    """Score a data set."""
    command = replace(command, data=data_of(command.model, command.data))
    if command.noise is None:
        left_out(command, ["noise_seed"], "left out without --noise")
    inputs = (command.model, command.data)
    in_first(lambda: folders.check_table(command.out, inputs=inputs))

    planned(command, copies=int(command.noise is not None))

    # What is refused above need not wait for these.
    from llm.data.sources import read
    from llm.diagnostics.scores import unread_note
    from llm.jobs.scoring import score as score_of

    examples = read(command.data or "", command.split)
    language = load_model(spread(command))
    frame = score_of(
        language,
        examples,
        gradients=command.gradients,
        noise=command.noise,
        noise_seed=command.noise_seed,
        max_length=command.max_length,
        budget=command.budget,
    )
    write(frame, command.out, command, language)
    # Sums of numpy, unlike those of pandas, do not skip a nan.
    length = frame["length"]
    mean = -frame["logp"].to_numpy().sum() / length.to_numpy().sum()
    shown = (
        f"{len(frame)} responses of {length.min()} to {length.max()} tokens, {mean:.4f} nats "
        "per token"
    )
    print(f"{shown}: {command.out}")
    if note := unread_note(frame):
        print(f"note: {note}", file=sys.stderr)
