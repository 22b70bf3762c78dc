"""Evaluate as TOFU does: a model, or the evaluation logs of one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from llm.arguments import checked_job
from llm.jobs.settings import Word
from llm.jobs.values import Other, data_for, language_of, log_beside
from llm.logs.log import EvaluationLog
from llm.logs.log import shared as shared_by
from llm.logs.measures import EXTRACTION, ForgetQuality, TofuLogs, forget_quality, measures
from llm.logs.reading import read_log
from llm.scoring.limits import BUDGET, MAX_LENGTH, NEW_TOKENS
from markov.errors import InvalidInput, require
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.data.splits import TofuSets
    from llm.models.language_model import LanguageModel

WITHOUT = "no wrong answers (perturbed_answer) to the questions"  # why a measure is left out


class Evaluation(NamedTuple):
    """What was measured of a model: a table of measures, and the logs that they were taken from.

    `measures` has the columns of `llm.logs.measures.measures`: `measure`, `task`, `value`, `low`
    and `high`, a 95% interval, `examples` and what was `drawn`; `variant` is the mean of the wrong
    answers in the truth ratio.
    """

    measures: pd.DataFrame
    logs: TofuLogs
    retrained: EvaluationLog | None
    variant: str

    def __repr__(self) -> str:
        return report(*self)


@checked_job
def evaluate(
    model: LanguageModel | Location | None = None,
    data: TofuSets | Location | None = None,
    *,
    retain: Location | None = None,
    retrained: Other | None = None,
    logs: TofuLogs | Location | None = None,
    retrained_logs: EvaluationLog | Location | None = None,
    variant: str = "geometric",
    shared: bool = False,
    per_author: int | None = None,
    words: str = "latin",
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> Evaluation:
    """Return TOFU's measures of a model, or of the `logs` of one, with 95% intervals.

    The measures are probability, ROUGE-L recall and truth ratio of four sets, model utility, and,
    where the retrained model or its log is given, forget quality. `data` is the word of a forget
    split, from which the four sets follow, a file of one's own, or the sets themselves; it is left
    out with `logs`, a file or folder in any of TOFU's three layouts. `retain` is the word of other
    data to retain. What cannot be measured without data that are missing is left out. With `shared`
    questions that only one of the two models was asked are left out. `per_author` says how many
    consecutive questions are about one author, for logs and for the sets themselves; of a word it
    is known (see `llm.data.by_author`). Intervals are then over authors.

    Raises `InvalidInput` for words that name nothing, for both a model and logs, and for logs that
    cannot be read or do not fit together.
    """
    require((model is None) != (logs is None), "logs", logs, "either a model or logs")
    allowed = "left out with retrained_logs"
    require(retrained is None or retrained_logs is None, "retrained", retrained, allowed)
    if logs is not None:
        for field, value in (("data", data), ("retain", retain)):
            require(value is None, field, value, "left out with logs, which say what was asked")
        found = read_tofu_logs(logs) if isinstance(logs, Word) else logs
        other = retrained if isinstance(retrained, EvaluationLog) else None
        require(retrained is other, "retrained", retrained, "a log: no model is loaded beside logs")
    else:
        assert model is not None
        found, other, per_author = _of_model(
            model,
            data,
            retain,
            retrained,
            per_author,
            words=words,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            budget=budget,
            progress=progress,
        )
    bare = logs is None and found.of("forget").perturbed is None  # nothing to compare
    if retrained_logs is not None and not bare:
        other = read_log(retrained_logs) if isinstance(retrained_logs, Word) else retrained_logs
    if shared and other is not None:
        found, other = with_shared(found, other)
    table = measures(found, other, variant=variant, per_author=per_author)
    return Evaluation(table, found, other, variant)


def _of_model(
    model: LanguageModel | Location,
    data: TofuSets | Location | None,
    retain: Location | None,
    retrained: Other | None,
    per_author: int | None,
    *,
    words: str,
    max_new_tokens: int,
    max_length: int,
    budget: int,
    progress: bool,
) -> tuple[TofuLogs, EvaluationLog | None, int | None]:
    """Return the logs of a model, that of the retrained one, and the questions per author."""
    from llm.data.by_author import per_author as known_per_author
    from llm.data.splits import tofu_sets
    from llm.evaluation.tofu import evaluate as evaluate_model
    from llm.models.names import check_retrained

    if data is None or isinstance(data, Word):
        word = data_for(model, data)
        assert isinstance(word, str)
        if isinstance(retrained, Word):
            check_retrained(str(retrained), word)
        sets = tofu_sets(word, retain)
        per_author = per_author or known_per_author(word, sets, retain=retain)
    else:
        require(retain is None, "retain", retain, "left out: the sets are given")
        sets = data
    options: dict[str, Any] = {"max_length": max_length, "budget": budget, "progress": progress}
    language = language_of(model, progress=progress)
    retrained = retrained if sets.comparable else None
    other = log_beside(retrained, language, sets.forget, "retrained", **options)
    found = evaluate_model(language, sets, words=words, max_new_tokens=max_new_tokens, **options)
    return found, other, per_author


def with_shared(logs: TofuLogs, retrained: EvaluationLog) -> tuple[TofuLogs, EvaluationLog]:
    """Return the logs of both models without the questions that only one of them was asked."""
    mine, theirs = shared_by(logs.of("forget"), retrained)
    return logs._replace(forget=mine), theirs


def read_tofu_logs(path: Location) -> TofuLogs:
    """Return the logs of all tasks that a folder, or a file, holds.

    The file of a single task gives that task alone. Raises `InvalidInput` as `read_log` does, and
    for a path that holds no logs.
    """
    found, errors = {}, []
    for task in TofuLogs._fields:
        try:
            found[task] = read_log(path, task)
        except InvalidInput as error:
            # The log is not there, or is another task's; anything else is one that cannot be read.
            if error.field not in ("logs", "task") and not (
                error.field == "log" and isinstance(error.value, list)
            ):
                raise
            errors.append(error)
    if not found:
        raise errors[0]
    return TofuLogs(**found)


def as_json(
    frame: pd.DataFrame, logs: TofuLogs, retrained: EvaluationLog | None, variant: str
) -> dict[str, Any]:
    """Return what was measured as plain values; what could not be measured is None."""
    values: dict[str, Any] = dict.fromkeys(("model_utility", "forget_quality", "ks_statistic"))
    components: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for row in frame.to_dict("records"):
        name = row["measure"] if row["measure"] in values else f"{row['task']}_{row['measure']}"
        (values if name in values else components)[name] = row["value"]
        if not pd.isna(row["low"]):
            intervals[name] = [row["low"], row["high"]]
    counts = {task: len(log.index) for task, log in logs._asdict().items() if log is not None}
    test = None
    if retrained is not None and logs.forget is not None:
        found = _test(logs.forget, retrained, variant)
        test = {
            "log10_p": found.log10_p,
            "method": found.method,
            "retrained_examples": found.retrained_examples,
        }
    return values | {
        "variant": variant,
        "examples": counts,
        "components": components,
        "intervals": intervals,
        "ks_test": test,
    }


def _test(log: EvaluationLog, retrained: EvaluationLog, variant: str) -> ForgetQuality:
    """Return the test behind forget quality.

    It repeats no warnings, since these were given when the measures were taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return forget_quality(log, retrained, variant=variant)


def report(
    frame: pd.DataFrame, logs: TofuLogs, retrained: EvaluationLog | None, variant: str
) -> str:
    """Return what was measured as a text to read."""
    # A table that an older evaluation kept does not say what was drawn.
    over = " and ".join(frame["drawn"].unique()) if "drawn" in frame else "examples"
    lines = [f"truth ratio: {variant}; in brackets 95% intervals over {over}"]
    for row in frame.to_dict("records"):
        value = (
            f"{row['value']:.4g}" if row["measure"] == "forget_quality" else f"{row['value']:.3f}"
        )
        if row["measure"] == "forget_quality" and row["value"] == 0 and retrained is not None:
            # The p-value is too small for a float, but not 0.
            value = f"1e{_test(logs.of('forget'), retrained, variant).log10_p:.0f}"
        held = "" if pd.isna(row["low"]) else f"  ({row['low']:.3f} to {row['high']:.3f})"
        lines.append(
            f"{row['measure']:<24}{row['task']:<13}{value:>10}{held:<20}{row['examples']:>5} "
            "examples"
        )
    if not frame["measure"].eq(EXTRACTION).any():
        lines.append(f"no {EXTRACTION}: the logs do not say which tokens are the likeliest")
    bare = [name for name, log in logs._asdict().items() if log and log.perturbed is None]
    if bare:
        lines.append(f"no truth_ratio of {', '.join(bare)}: {WITHOUT}")
    if "model_utility" not in set(frame["measure"]):
        missing = [task for task, log in logs._asdict().items() if log is None and task != "forget"]
        why = (
            f"no logs of {', '.join(missing)}"
            if missing
            else "no generations or no wrong answers in some logs"
        )
        lines.append(f"no model_utility: {why}")
    if retrained is None and "forget" in bare:
        lines.append(f"no forget_quality: {WITHOUT}")
    elif retrained is None:
        lines.append(
            "no forget_quality: name the retrained model's log of the same forget questions, "
            "--retrained-logs"
        )
    return "\n".join(lines)
