"""The command that diagnoses reference-model bias from evaluation logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm.commands.options import plain_warnings, write
from llm.commands.weights import report
from llm.jobs.settings import DEFAULTS
from markov.files import folders


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Reference-model bias from the evaluation logs of TOFU runs, in any of their three layouts.
    No model is needed.

    open-unlearning's logs store mean losses only. --lengths then says how many tokens each answer
    has; without it, objectives that divide the length out are diagnosed per token, and the others
    are left out. Example: python -m llm diagnose --logs llama2-7b_full --retrained-logs
    llama2-7b_retain90
    """

    logs: Path
    """Log of the model before unlearning: a file, or the folder that holds it."""
    retrained_logs: Path
    """Log of the model retrained without the forget data, on the same questions."""
    shared: bool = False
    """Keep the questions that both logs hold, where they hold different ones."""
    lengths: Path | None = None
    """Table of scores, for logs without numbers of tokens.
    It is what `score` wrote of the same answers for any model with this tokenizer and template.
    """
    objectives: tuple[str, ...] = DEFAULTS
    """Objectives to weigh by: CORNER:BETA[:GAMMA] or gradient_ascent.
    Such as npo:0.1 or simnpo:2.5:0.5; the default has the paper's betas for forget05.
    """
    out: Path = Path("out/diagnosis.parquet")
    """Table to write, with a row per example.
    Its columns: index, length, ref, retrained, needed, needed_per_token, weights per objective.
    """


def diagnose(command: Diagnose) -> None:
    """Weigh from evaluation logs."""
    from llm.jobs.values import objectives_of
    from llm.jobs.weighing import diagnose as diagnose_logs

    objectives_of(command.objectives)
    folders.check_table(command.out)
    with plain_warnings():
        frame = diagnose_logs(
            command.logs,
            command.retrained_logs,
            objectives=command.objectives,
            lengths=command.lengths,
            shared=command.shared,
        )
    told = report(frame)  # whatever cannot be told is refused before anything is written
    write(frame, command.out, command)
    print(told)
    print(f"{len(frame)} rows: {command.out}")
