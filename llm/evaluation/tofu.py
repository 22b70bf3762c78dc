"""Evaluation logs of a model on TOFU's four sets, with answers scored and written.

An evaluation of a large model takes long. Its parts, two for each set, are kept until all of it is
finished, so that one that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llm.data.splits import TofuSets, fitting
from llm.data.tofu import Example
from llm.evaluation.rouge import check_words, rouge
from llm.logs.log import EvaluationLog
from llm.logs.measures import TofuLogs
from llm.models.answers import answer_log, log_of, log_table, responses, with_texts
from llm.models.generation import generate
from llm.models.language_model import LanguageModel
from llm.scoring.limits import BUDGET, MAX_LENGTH, NEW_TOKENS, writing_budget
from llm.training.processes import kept_table
from markov.console.progress import bar
from markov.files import storage
from markov.files.storage import Location

PARTS = ".unfinished"


def evaluate(
    language: LanguageModel,
    sets: TofuSets,
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    words: str = "latin",
    parts: Path | None = None,
    progress: bool = True,
) -> TofuLogs:
    """Return the model's logs of the four sets, every value keyed by the index of its example.

    A set that is empty has no log. `parts` is the folder where what is finished is kept, if it is
    (see `unfinished`). A generation without words is a bad answer, not an error: its
    ROUGE is 0, and `empty_generations` counts them. `llm.evaluation.rouge` says what `words` takes
    for a word and what is warned of. Raises `InvalidInput` as `llm.data.splits.fitting` does and
    for other `words`, before any work, and as `answer_log` and `generate` do.
    """
    fitting(sets)
    check_words(words)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "words": words,
    }
    options |= {"budget": budget, "progress": progress}
    logs = {}
    with bar(len(sets.tasks), "evaluate", unit="set", show=progress, leave=False) as done:
        for task in sets.tasks:
            own = None if parts is None else parts / task
            logs[task] = task_log(language, getattr(sets, task), parts=own, **options)
            done.update()
    return TofuLogs(**logs)


def task_log(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    words: str = "latin",
    parts: Path | None = None,
    progress: bool = True,
) -> EvaluationLog:
    """Return the model's log of one set: as `answer_log`, with its own answers and their ROUGE.

    In the folder `parts`, if there is one, the scores are kept as soon as they are taken, and the
    model's answers as soon as they are written.
    """
    check_words(words)
    options: dict[str, Any] = {"max_length": max_length, "progress": progress}

    def scored() -> EvaluationLog:
        return answer_log(language, examples, budget=budget, **options)

    def texts() -> tuple[str, ...]:
        ways = {"max_new_tokens": max_new_tokens, "budget": writing_budget(budget)}
        return generate(language, examples, **ways, **options)

    # Scored first, so that numbers that are not finite are known before hours of writing.
    if parts is None:
        log, written = scored(), texts()
    else:
        table = kept_table(parts / "scored.parquet", lambda: _by_place(scored()))
        log = _log_of(table, language, examples, max_length)
        table = kept_table(parts / "written.parquet", lambda: pd.DataFrame({"text": texts()}))
        written = tuple(table["text"])
    truths = [example.response for example in examples]
    return log._replace(generation=written, rouge=rouge(truths, written, words=words))


def unfinished(folder: Location, asked: object) -> Path:
    """Return where, in a folder, the finished parts of an evaluation are kept until all are.

    `asked` is all that its numbers depend on, to the last digit; beside it the place depends on the
    code. The whole folder `PARTS` is of no use once the evaluation is written.
    """
    return Path(folder) / PARTS / storage.fingerprint(asked, __name__)


def _by_place(log: EvaluationLog) -> pd.DataFrame:
    """Return the table of a log by the places of its examples, whose order it keeps."""
    return log_table(log._replace(index=np.arange(len(log.index))))


def _log_of(
    table: pd.DataFrame, language: LanguageModel, examples: Sequence[Example], max_length: int
) -> EvaluationLog:
    """Return the log of which `_by_place` made a table."""
    index = np.array([example.index for example in examples])
    log = log_of(table, language.name)._replace(index=index)
    return with_texts(log, language, examples, responses(language, examples, max_length=max_length))


def empty_generations(logs: TofuLogs) -> dict[str, int]:
    """Return how many answers of each task have no words at all."""
    found = {
        task: log.generation
        for task, log in logs._asdict().items()
        if log is not None and log.generation
    }
    return {task: sum(not text.strip() for text in texts) for task, texts in found.items()}
