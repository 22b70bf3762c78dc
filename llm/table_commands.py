"""The commands that need no model: weights and reference-model bias from tables of scores or evaluation logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llm.diagnostics import diagnose as diagnose_logs
from llm.diagnostics import weights_table, with_needed
from llm.layouts import read_log
from llm.logs import shared
from llm.options import DEFAULTS, objectives, write
from llm.score_tables import beside, pair, read_scores
from markov import folders


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Gradient weights of each example under any objectives, from tables of scores: no model is needed any more.

    With --retrained also how far each example has to move, and whether the effort goes there.
    Example: python -m llm weights --scores now.parquet --reference original.parquet --objectives npo:0.1 simnpo:2.5
    """

    scores: Path
    """Scores of the model."""
    reference: Path
    """Scores of the reference: the model before unlearning."""
    retrained: Path | None = None
    """Scores of the model retrained without the forget data."""
    objectives: tuple[str, ...] = DEFAULTS
    """CORNER:BETA[:GAMMA], such as npo:0.1 or simnpo:2.5:0.5, or gradient_ascent."""
    out: Path = Path("out/weights.parquet")
    """Table to write: index, logp, length, ref and a column of weights per objective."""


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Reference-model bias from the evaluation logs of TOFU runs, in any of their three layouts: no model is needed.

    Example: python -m llm diagnose --logs llama2-7b_full --retrained-logs llama2-7b_retain90
    """

    logs: Path
    """Log of the model before unlearning: a file, or the folder that holds it."""
    retrained_logs: Path
    """Log of the model retrained without the forget data, on the same questions."""
    shared: bool = False
    """Keep the questions that both logs hold, where they hold different ones."""
    objectives: tuple[str, ...] = DEFAULTS
    """CORNER:BETA[:GAMMA], such as npo:0.1 or simnpo:2.5:0.5, or gradient_ascent."""
    out: Path = Path("out/diagnosis.parquet")
    """Table to write: index, length, ref, retrained, needed, needed_per_token and a column of weights per objective."""


def weights(command: Weights) -> None:
    """Weigh from tables of scores."""
    chosen = objectives(command.objectives)
    folders.check_table(command.out, inputs=(command.scores, command.reference, command.retrained))
    scores, reference = read_scores(command.scores, "scores"), read_scores(command.reference, "reference")
    frame = weights_table(pair(scores, reference), chosen, scores["index"].to_numpy())
    if command.retrained is not None:
        frame = with_needed(frame, beside(scores, read_scores(command.retrained, "retrained"), "retrained"))
    write(frame, command.out, command)
    _report(frame)
    print(f"{len(frame)} rows: {command.out}")


def diagnose(command: Diagnose) -> None:
    """Weigh from evaluation logs."""
    chosen = objectives(command.objectives)
    folders.check_table(command.out)
    original, retrained = read_log(command.logs), read_log(command.retrained_logs)
    if command.shared:
        original, retrained = shared(original, retrained)
    frame = diagnose_logs(original, retrained, chosen)
    write(frame, command.out, command)
    _report(frame)
    print(f"{len(frame)} rows: {command.out}")


def _report(frame: pd.DataFrame) -> None:
    """Print how the weight of each objective goes with length and, where that is known, with what is needed."""
    from llm.bias import bias, length_correlation, spearman

    of_length = length_correlation(frame).set_index("objective")
    shown = of_length[["spearman", "spearman_low", "spearman_high"]].add_suffix(" of length")
    if "needed" in frame:
        found = bias(frame).query("effort == 'weight' and need == 'total'").set_index("objective")
        shown = shown.join(found[["spearman", "spearman_low", "spearman_high", "area", "misplaced", "unneeded"]])
        rank = float(spearman(frame["length"].to_numpy(float), frame["needed"].to_numpy(float)))
        print(f"Spearman correlation of length and needed movement: {rank:.3f}")
    print(shown.round(3).to_string())
