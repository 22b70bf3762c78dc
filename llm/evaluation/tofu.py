"""Evaluation logs of a model on TOFU's four sets, with answers scored and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm.data.splits import TofuSets, fitting
from llm.data.tofu import Example
from llm.evaluation.rouge import check_words, rouge
from llm.logs.log import EvaluationLog
from llm.logs.measures import TofuLogs
from llm.models.answers import answer_log
from llm.models.generation import generate
from llm.models.language_model import LanguageModel
from llm.scoring.limits import BUDGET, MAX_LENGTH, NEW_TOKENS, writing_budget
from markov.console.progress import bar


def evaluate(
    language: LanguageModel,
    sets: TofuSets,
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    words: str = "latin",
    progress: bool = True,
) -> TofuLogs:
    """Return the model's logs of the four sets, every value keyed by the index of its example.

    A set that is empty has no log. A generation without words is a bad answer, not an error: its
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
            logs[task] = task_log(language, getattr(sets, task), **options)
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
    progress: bool = True,
) -> EvaluationLog:
    """Return the model's log of one set: as `answer_log`, with its own answers and their ROUGE."""
    check_words(words)
    # Scored first, so that numbers that are not finite are known before hours of writing.
    log = answer_log(language, examples, max_length=max_length, budget=budget, progress=progress)
    written = generate(
        language,
        examples,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        budget=writing_budget(budget),
        progress=progress,
    )
    truths = [example.response for example in examples]
    return log._replace(generation=written, rouge=rouge(truths, written, words=words))


def empty_generations(logs: TofuLogs) -> dict[str, int]:
    """Return how many answers of each task have no words at all."""
    found = {
        task: log.generation
        for task, log in logs._asdict().items()
        if log is not None and log.generation
    }
    return {task: sum(not text.strip() for text in texts) for task, texts in found.items()}
