"""`python -m llm evaluate`: TOFU's measures, from evaluation logs or of a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.commands.options import plain_warnings, spread, write
from llm.jobs.planning import MemoryOption, planned
from llm.jobs.settings import left_out
from llm.models.names import check_retrained, data_of
from llm.models.source import ModelOptions, load_model
from llm.scoring.limits import NEW_TOKENS
from llm.training.processes import held, in_first
from markov.errors import require
from markov.files import folders, storage

if TYPE_CHECKING:
    import pandas as pd

    from llm.data.splits import TofuSets
    from llm.data.tofu import Example
    from llm.logs.log import EvaluationLog
    from llm.logs.measures import TofuLogs
    from llm.models.language_model import LanguageModel

# Options that say nothing about logs, and are left out beside --logs.
OF_MODEL = (
    *("model", "revision", "retrained", "data", "retain_data", "max_new_tokens", "legacy"),
    *("template", "system", "dtype", "device", "trust_remote_code", "max_length", "budget"),
    *("words", "memory", "out"),
)
JOB, TABLE = "evaluate", "measures.parquet"
# Options of where an evaluation goes and how it is printed: its numbers do not depend on them, or
# on the word of what is to stay, whose examples are named by themselves.
NOT_ASKED = (
    *("out", "json", "legacy", "allow_identical", "device", "memory", "logs", "retrained_logs"),
    "retain_data",
)


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelOptions, MemoryOption):
    """Measure as TOFU does: probability, ROUGE-L, truth ratio, utility, forget quality.
    All have 95% intervals.

    From evaluation logs, in any of their three layouts and with no model, or of a model, whose logs
    are then written to OUT (TOFU_EVAL.json in open-unlearning's layout, TOFU_SUMMARY.json,
    measures.parquet). Forget quality needs the logs of the model, or the model, that was retrained
    without the forget data. A command that was stopped goes on after the last set that it had
    scored or written. Example: python -m llm evaluate --logs llama2-7b_full --retrained-logs
    llama2-7b_retain90
    """

    logs: Path | None = None
    """Measure these logs, a folder or a file, and load no model."""
    retrained_logs: Path | None = None
    """Log of the retrained model on the same forget questions: a folder or a file."""
    retrained: str | None = None
    """With --model: the retrained model itself, in place of its log."""
    data: str | None = None
    """With --model: what was forgotten.
    authors:forgetNN, tofu:forgetNN or FOLDER/forgetNN, from which the other sets follow, or a file
    of one's own: what needs more than the file has is left out, and named.
    Default: for small models authors:forget20.
    """
    retain_data: str | None = None
    """With --model: what was to stay, where it does not follow from --data.
    At most 400 of the examples are measured, always the same.
    """
    variant: Literal["geometric", "arithmetic"] = "geometric"
    """Mean of the wrong answers' probabilities in the truth ratio.
    geometric: as in the released code; arithmetic: as in the TOFU paper.
    """
    per_author: int | None = None
    """How many consecutive questions are about one author, 20 in TOFU.
    Intervals are then over authors, not over questions. Of --data that are TOFU's or made here it
    is known.
    """
    shared: bool = False
    """Compare the questions that both logs hold, where they hold different ones."""
    allow_identical: bool = False
    """Do not warn of two logs with the same losses."""
    max_new_tokens: int = NEW_TOKENS
    """With --model: at most so many tokens of an answer that it writes, as in open-unlearning."""
    words: Literal["latin", "any"] = "latin"
    """With --model: what ROUGE takes for words.
    latin: runs of a to z and 0 to 9, as in every published number;
    any: words of every script, and characters of those that write no blanks.
    """
    legacy: bool = False
    """With --model: also write the layout of TOFU's released code."""
    json: bool = False
    """Print one JSON object and nothing else."""
    out: Path = Path("out/evaluation")
    """With --model: folder to write."""


def evaluate(command: Evaluate) -> None:
    """Measure, and print what was found."""
    if command.logs is not None:
        left_out(command, OF_MODEL, "left out with --logs, which say what a model did")
        frame, logs, retrained = _of_logs(command, command.logs)
    else:
        data = data_of(command.model, command.data)
        check_retrained(command.retrained, data)
        frame, logs, retrained = _of_model(replace(command, data=data))

    from llm.jobs.evaluating import as_json, report

    found = as_json(frame, logs, retrained, command.variant)
    print(
        json.dumps(found, allow_nan=False)
        if command.json
        else report(frame, logs, retrained, command.variant)
    )


def _of_logs(command: Evaluate, path: Path) -> tuple[pd.DataFrame, TofuLogs, EvaluationLog | None]:
    """Return the measures and the logs that the command names."""
    from llm.jobs.evaluating import read_tofu_logs, with_shared
    from llm.logs.reading import read_log

    with plain_warnings():
        logs = read_tofu_logs(path)
        retrained = None if command.retrained_logs is None else read_log(command.retrained_logs)
        if command.shared and retrained is not None:
            logs, retrained = with_shared(logs, retrained)
        frame = _measured(command, logs, retrained, command.per_author)
        return frame, logs, retrained


def _measured(
    command: Evaluate, logs: TofuLogs, retrained: EvaluationLog | None, per_author: int | None
) -> pd.DataFrame:
    from llm.logs.measures import measures

    identical = command.allow_identical
    ways = {"variant": command.variant, "per_author": per_author}
    return measures(logs, retrained, allow_identical=identical, **ways)


def _retrained_log(command: Evaluate, forget: Sequence[Example]) -> EvaluationLog | None:
    """Return the retrained model's log that the command names, checked before any model is loaded.

    The log has to be of these examples. Raises `InvalidInput` as `read_log` and `align` do, and for
    a log without the answers that forget quality compares.
    """
    import numpy as np

    from llm.logs.log import log_truth_ratio
    from llm.logs.questions import Asked, places, shared_places
    from llm.logs.reading import read_log

    if command.retrained_logs is None:
        return None
    with plain_warnings():
        retrained = read_log(command.retrained_logs)
    log_truth_ratio(retrained, command.variant)
    index, questions = np.array([one.index for one in forget]), tuple(one.prompt for one in forget)
    match = shared_places if command.shared else places
    match(Asked(command.data or "", index, questions), retrained.asked)
    return retrained


def _of_model(command: Evaluate) -> tuple[pd.DataFrame, TofuLogs, EvaluationLog | None]:
    """Evaluate the model that the command names, by all processes that there are.

    Process 0 writes its logs.
    """
    from llm.data.splits import tofu_sets
    from llm.evaluation.tofu import PARTS, unfinished
    from llm.jobs.values import model_beside
    from llm.logs.reading import AGGREGATED, OPEN_UNLEARNING, TASKS
    from llm.logs.writing import SUMMARY
    from llm.models.answers import answer_log
    from llm.training.checkpointing import parameters_digest

    both = command.retrained is not None and command.retrained_logs is not None
    require(not both, "retrained", command.retrained, "left out with --retrained-logs")
    inputs = (command.model, command.data, command.retrained, command.retrained_logs)
    inputs += (command.retain_data,)
    in_first(lambda: folders.check_place(command.out, inputs=inputs))
    planned(command, writing=command.max_new_tokens, copies=int(command.retrained is not None))
    sets = tofu_sets(command.data or "", command.retain_data)
    retrained = _retrained_log(command, sets.forget) if sets.comparable else None
    options: dict[str, Any] = {"max_length": command.max_length, "budget": command.budget}
    asked = {name: value for name, value in vars(command).items() if name not in NOT_ASKED}
    here = spread(command)
    language = load_model(here)
    parameters = parameters_digest(language.model)
    asked |= {"parameters": parameters, "sets": storage.fingerprint(sets)}
    asked |= {} if retrained is None else {"retrained_logs": storage.fingerprint(retrained)}
    if command.retrained is not None and sets.comparable:
        load = partial(load_model, here)
        other = model_beside(command.retrained, language, "retrained", load=load)
        asked |= {"retrained_parameters": parameters_digest(other.model)}
        retrained = answer_log(other, sets.forget, **options)
        del other
    names = (OPEN_UNLEARNING, SUMMARY, TABLE, *TASKS.values(), AGGREGATED, PARTS)
    kept: dict[str, Any] = {"names": names, "passing": (PARTS,), "parts": PARTS}
    with held(folders.working(command.out, JOB, asked, **kept)):
        parts = unfinished(command.out, {**asked, "device": language.model.device.type})
        return _evaluated(command, language, parameters, sets, retrained, parts)


def _evaluated(
    command: Evaluate,
    language: LanguageModel,
    parameters: str,
    sets: TofuSets,
    retrained: EvaluationLog | None,
    parts: Path,
) -> tuple[pd.DataFrame, TofuLogs, EvaluationLog | None]:
    """Return the measures and logs of the model, read where they are written already."""
    from llm.data.by_author import per_author
    from llm.evaluation.folders import manifest
    from llm.evaluation.tofu import empty_generations
    from llm.evaluation.tofu import evaluate as evaluate_model
    from llm.jobs.evaluating import with_shared
    from llm.logs.reading import OPEN_UNLEARNING
    from llm.logs.writing import write_legacy, write_tofu_eval

    finished = partial(_finished, tasks=sets.tasks)
    kept = in_first(lambda: storage.read_kept(command.out / OPEN_UNLEARNING, finished))
    if kept is not None:
        logs, frame = kept
        if command.shared and retrained is not None:
            logs, retrained = with_shared(logs, retrained)
        if command.legacy:
            in_first(lambda: write_legacy(logs, command.out))
        in_first(lambda: folders.tidy(command.out, JOB))
        return frame, logs, retrained
    names = ("max_new_tokens", "max_length", "budget", "words")
    options: dict[str, Any] = {name: getattr(command, name) for name in names}
    with plain_warnings():
        logs = evaluate_model(language, sets, **options, parts=parts)
        if command.shared and retrained is not None:
            logs, retrained = with_shared(logs, retrained)
        known = per_author(command.data or "", sets, retain=command.retain_data)
        authors = known if command.per_author is None else command.per_author
        frame = _measured(command, logs, retrained, authors)
    whole = frame[
        frame["task"].eq("all") | frame["measure"].isin(["forget_quality", "ks_statistic"])
    ]
    aggregates = dict(zip(whole["measure"], whole["value"].astype(float), strict=True))
    described = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(command).items()
    }
    about = manifest(described, language, command.max_new_tokens, parameters)

    def write_logs() -> None:
        if command.legacy:
            write_legacy(logs, command.out)
        # Written last, so that where it exists all other files exist.
        write_tofu_eval(logs, command.out, about, variant=command.variant, aggregates=aggregates)
        folders.tidy(command.out, JOB)

    write(frame, command.out / TABLE, command, language)
    in_first(write_logs)
    for task, count in empty_generations(logs).items():
        if count:
            print(
                f"warning: {count} answers of {task} are empty and count as ROUGE 0",
                file=sys.stderr,
            )
    return frame, logs, retrained


def _finished(path: Path, tasks: Sequence[str]) -> tuple[TofuLogs, pd.DataFrame]:
    """Return the logs and the measures of an evaluation of these sets that is finished."""
    from llm.logs.measures import TofuLogs
    from llm.logs.reading import read_log

    logs = TofuLogs(**{task: read_log(path, task) for task in tasks})
    return logs, storage.read_table(path.parent / TABLE)
