"""The command that weighs tables of scores, and what it and `diagnose` print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm.commands.options import write
from llm.jobs.settings import DEFAULTS
from markov.files import folders

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Gradient weights of each example under any objectives, from tables of scores.
    No model is needed any more.

    With --retrained also how far each example has to move, and whether the effort goes there.
    Example: python -m llm weights --scores now.parquet --reference original.parquet --objectives
    npo:0.1 simnpo:2.5
    """

    scores: Path
    """Scores of the model."""
    reference: Path
    """Scores of the reference: the model before unlearning."""
    retrained: Path | None = None
    """Scores of the model retrained without the forget data."""
    objectives: tuple[str, ...] = DEFAULTS
    """Objectives to weigh by: CORNER:BETA[:GAMMA] or gradient_ascent.
    Such as npo:0.1 or simnpo:2.5:0.5; the default has the paper's betas for forget05.
    """
    out: Path = Path("out/weights.parquet")
    """Table to write: index, logp, length, ref and a column of weights per objective."""


def weights(command: Weights) -> None:
    """Weigh from tables of scores."""
    from llm.jobs.values import objectives_of
    from llm.jobs.weighing import weights as weigh

    objectives_of(command.objectives)
    folders.check_table(command.out, inputs=(command.scores, command.reference, command.retrained))
    frame = weigh(
        command.scores,
        command.reference,
        retrained=command.retrained,
        objectives=command.objectives,
    )
    told = report(frame)  # whatever cannot be told is refused before anything is written
    write(frame, command.out, command)
    print(told)
    print(f"{len(frame)} rows: {command.out}")


def report(frame: pd.DataFrame) -> str:
    """Return in words how the effort of each objective goes with length and need, if known."""
    from llm.diagnostics.allocation import bias, length_correlation, spearman
    from llm.diagnostics.weights import PUSH, WEIGHT
    from llm.jobs.weighing import STATISTICS

    statistics = list(STATISTICS)
    if "length" not in frame:
        pushes = {
            name: WEIGHT + name.removeprefix(PUSH)
            for name in map(str, frame)
            if name.startswith(PUSH)
        }
        # Each response is taken as one token long, so that its weight is its push, and its need
        # the need per token.
        unit = frame.rename(columns={**pushes, "ref_per_token": "ref"})
        unit = unit.assign(length=1, needed=unit["needed_per_token"])
        found = bias(unit).query("effort == 'push' and need == 'per_token'").set_index("objective")
        head = "push on the log-probability per token, beside what is needed per token:"
        return f"{head}\n{found[statistics].round(3).to_string()}"
    of_length = length_correlation(frame).set_index("objective")
    head = ""
    shown = of_length[["spearman", "spearman_low", "spearman_high"]].add_suffix(" of length")
    if "needed" in frame:
        found = bias(frame).query("effort == 'weight' and need == 'total'").set_index("objective")
        shown = shown.join(found[statistics])
        rank = float(spearman(frame["length"].to_numpy(float), frame["needed"].to_numpy(float)))
        head = f"Spearman correlation of length and needed movement: {rank:.3f}\n"
    return head + shown.round(3).to_string()
