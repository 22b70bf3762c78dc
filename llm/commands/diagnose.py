"""The command that diagnoses reference-model bias from evaluation logs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from llm.commands.options import DEFAULTS, objectives, plain_warnings, write
from llm.commands.weights import report
from llm.diagnostics.scores import read_scores
from llm.diagnostics.weights import diagnose as diagnose_logs
from llm.diagnostics.weights import diagnose_per_token
from llm.logs.log import EvaluationLog, align, shared, with_lengths
from llm.logs.reading import read_log
from markov.errors import require
from markov.files import folders
from markov.objectives import Objective


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Reference-model bias from the evaluation logs of TOFU runs, in any of their three layouts: no
    model is needed.

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
    """Scores of the same answers by any model with this tokenizer and template (see score), for
    logs without counts.
    """
    objectives: tuple[str, ...] = DEFAULTS
    """CORNER:BETA[:GAMMA], such as npo:0.1 or simnpo:2.5:0.5, or gradient_ascent."""
    out: Path = Path("out/diagnosis.parquet")
    """Table to write: index, length, ref, retrained, needed, needed_per_token and a column of
    weights per objective.
    """


def diagnose(command: Diagnose) -> None:
    """Weigh from evaluation logs."""
    chosen = objectives(command.objectives)
    folders.check_table(command.out)
    with plain_warnings():
        original, retrained = read_log(command.logs), read_log(command.retrained_logs)
        if command.lengths is not None:
            original = _counted(original, read_scores(command.lengths, "lengths"))
        if command.shared:
            original, retrained = shared(original, retrained)
        original, retrained = _counted_alike(original, retrained)
        if original.gold.length is None:
            frame = diagnose_per_token(original, retrained, _without_lengths(chosen, original))
        else:
            frame = diagnose_logs(original, retrained, chosen)
    write(frame, command.out, command)
    report(frame)
    print(f"{len(frame)} rows: {command.out}")


def _counted(log: EvaluationLog, scores: pd.DataFrame) -> EvaluationLog:
    """The log with the lengths of a table of scores, in which its examples are found by index."""
    require(
        log.gold.length is None,
        "lengths",
        "given",
        f"left out: {log.file} says how many tokens each answer has",
    )
    found = scores.set_index("index")["length"].reindex(log.index)
    lacking = log.index[found.isna().to_numpy()].tolist()
    allowed = (
        f"the length of each of the {len(log.index)} examples of {log.file} ({len(lacking)} "
        "missing)"
    )
    require(not lacking, "lengths, index", lacking[:1], allowed)
    return with_lengths(log, found.to_numpy(dtype=float))


def _counted_alike(
    original: EvaluationLog, retrained: EvaluationLog
) -> tuple[EvaluationLog, EvaluationLog]:
    """Both logs with the numbers of tokens that one of them stores: they are of the same
    answers, and one tokenizer.
    """
    if original.gold.length is not None and retrained.gold.length is None:
        aligned = align(original, retrained)
        return original, with_lengths(aligned, original.gold.length)
    if original.gold.length is None and retrained.gold.length is not None:
        return with_lengths(original, np.asarray(align(original, retrained).gold.length)), retrained
    return original, retrained


def _without_lengths(chosen: Mapping[str, Objective], log: EvaluationLog) -> dict[str, Objective]:
    """The objectives that can do without lengths; says in one line which cannot, and what they
    lack.
    """
    found = {name: one for name, one in chosen.items() if float(one.normalize) == 1}
    missing = (
        f"{log.file} stores no numbers of scored tokens, and needs --lengths, a table of "
        "`python -m llm score`"
    )
    allowed = f"one that divides the length out, such as simnpo:2.5: {missing}"
    require(bool(found), "objectives", sorted(chosen), allowed)
    left = (
        f"without {', '.join(sorted(chosen.keys() - found))} and"
        if len(found) < len(chosen)
        else "without"
    )
    print(f"warning: per token only, {left} what goes by length: {missing}", file=sys.stderr)
    return found
