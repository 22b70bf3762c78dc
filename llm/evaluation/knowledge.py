"""Which questions a model answers right: by its probabilities, in its own words, or by both.

A question comes with its right answer and, for most purposes, with wrong ones of the same shape.
A model chooses some of these answers, in one of three ways:

    probability   the one answer that is likelier, per token, than each of the others; none if two
                  are equally likely. Who guesses among k answers is right at 1/k.
    writing       each answer whose words stand, in their order, in what the model writes: at least
                  a share `recall` of them, by ROUGE-L. None that stands so in the question, which
                  who repeats the question would write.
    both          each answer that is chosen in both ways.

A question is answered right if the right answer is chosen. Some of these are guesses. A guess
meets the right answer as often as any one of the wrong ones, so their number is estimated by

    guessed = (wrong answers chosen) / (wrong answers per question)

but by no more than are right. For the choice by probability this is the usual correction of tests
of multiple choice. It is too low where wrong answers are easy to rule out, and too high where the
model holds one of them to be true.

A probability per token compares answers of different lengths, and says little of a model that would
not write them as they stand: one that answers in sentences finds the end of a bare name unlikely,
so that of its choices the longest is often the likeliest. Then writing is the better way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy import special

from llm.data.tofu import Example
from llm.evaluation.rouge import rouge
from llm.evaluation.tofu import task_log
from llm.logs.log import Answers, EvaluationLog
from llm.models.language_model import LanguageModel
from llm.scoring.limits import BUDGET, MAX_LENGTH, NEW_TOKENS

COUNTS = ("source", "way", "asked", "right", "share", "chance", "guessed")
SENTENCE = re.compile(r"[.!?][\"')]*(?=\s|$)|(?=\s*\n)")  # where one ends
TIE = 1e-5  # nats per token, by which rounding may part equal sums of float32 numbers
Chosen = Bool[np.ndarray, "questions answers"]


class Answered(NamedTuple):
    """What a model answers: a table, and by each of the three ways which answers it chooses.

    `table` has a row per question, in their order. Its columns are `logp` (nats) and `length` (in
    tokens) of the right answer; `probability`, its share of the probability per token of all
    answers, and `rank`, 1 if it is the likeliest, both nan without wrong answers; `written`, what
    the model writes, and `rouge`, its ROUGE-L recall. The first column of `chosen` is the right
    answer.
    """

    table: pd.DataFrame
    chosen: Mapping[str, Chosen]


def answered(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    recall: float = 1.0,
    words: str = "latin",
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> Answered:
    """Return what a model answers to the examples' prompts, by probability and by writing.

    `recall` is the least share of an answer's words by which it counts as written. Raises
    `InvalidInput` as `llm.evaluation.tofu.task_log` does.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_length": max_length}
    options |= {"budget": budget, "words": words, "progress": progress}
    log = task_log(language, examples, **options)
    written = log.generation or ()
    own = _losses(log.gold, log.perturbed)
    likeliest = chosen_by_probability(own)
    answers = [(one.response, *one.perturbed) for one in examples]
    stands, asked = (
        _recalls(answers, texts, words) >= recall - TIE
        for texts in (written, [one.prompt for one in examples])
    )
    found = stands & ~asked
    chosen = {"probability": likeliest, "writing": found, "both": likeliest & found}
    if log.perturbed is None:  # an answer alone is the likeliest of all, which tells nothing
        chosen = {"writing": found}
    return Answered(_table(log, own, written), chosen)


def chosen_by_probability(losses: Float[np.ndarray, "questions answers"]) -> Chosen:
    """Return which answer has the smallest mean loss (nats per token); none where two are equal."""
    others = np.where(np.eye(losses.shape[1], dtype=bool), np.inf, losses[:, None, :])
    return losses < others.min(axis=-1) - TIE


def guessed(chosen: Chosen) -> float:
    """Return how many of the right answers are expected to be guesses; nan without wrong ones."""
    wrong = chosen.shape[1] - 1
    if wrong == 0:
        return float("nan")
    return float(min(chosen[:, 1:].sum() / wrong, chosen[:, 0].sum()))


def in_own_words(example: Example, written: str) -> Example | None:
    """Return the example with what the model writes as its answer, or None where that has not the
    right answer as it stands.

    The text ends with the sentence that has the right answer. The wrong ones are the same text with
    a wrong answer in its place, so that all are of one shape.
    """
    # Not a part of a word or of a number such as 3.5.
    before, behind = r"(?<!\w)(?<!\d[.,])", r"(?!\w|[.,]\d)"
    stands = re.compile(f"{before}{re.escape(example.response)}{behind}", re.IGNORECASE)
    found = stands.search(written)
    if found is None:
        return None
    ends = (one.end() for one in SENTENCE.finditer(written))
    said = written[: next((end for end in ends if end >= found.end()), len(written))]
    wrong = tuple(stands.sub(lambda _, one=one: one, said) for one in example.perturbed)
    return replace(example, response=said, paraphrase=None, perturbed=wrong)


def counts(chosen: Mapping[str, Chosen], sources: Sequence[str]) -> pd.DataFrame:
    """Return how many questions are answered right: a row per source and way, then those of `all`.

    The columns are `source`, `way`, `asked`, `right`, `share` = right / asked, `chance`, the share
    by guessing (nan for ways that offer no choice), and `guessed`, the expected number of guesses
    among those that are right.
    """
    names, own = list(dict.fromkeys(sources)), np.array(sources)
    parts = [(name, own == name) for name in names]
    parts += [("all", np.ones(len(own), dtype=bool))] if len(names) > 1 else []
    rows = []
    for name, here in parts:
        for way, every in chosen.items():
            one = every[here]
            of_choices = way == "probability" and one.shape[1] > 1
            chance = 1 / one.shape[1] if of_choices else float("nan")
            right = int(one[:, 0].sum())
            rows.append((name, way, len(one), right, right / len(one), chance, guessed(one)))
    return pd.DataFrame(rows, columns=list(COUNTS))


def _recalls(
    answers: Sequence[Sequence[str]], texts: Sequence[str], words: str
) -> Float[np.ndarray, "questions answers"]:
    """Return the share of each answer's words that stand in the text of its question."""
    columns = zip(*answers, strict=True)
    return np.column_stack([rouge(own, texts, words=words)["rougeL_recall"] for own in columns])


def _losses(gold: Answers, wrong: Answers | None) -> Float[np.ndarray, "questions answers"]:
    parts = [gold.average] if wrong is None else [gold.average, wrong.average]
    return np.column_stack(parts)


def _table(
    log: EvaluationLog,
    losses: Float[np.ndarray, "questions answers"],
    written: Sequence[str],
) -> pd.DataFrame:
    likelier = (losses[:, 1:] <= losses[:, :1] + TIE).sum(axis=1)
    known = losses.shape[1] > 1
    assert log.gold.total is not None and log.gold.length is not None
    return pd.DataFrame(
        {
            "logp": -log.gold.total,
            "length": log.gold.length.astype(np.int64),
            "probability": special.softmax(-losses, axis=1)[:, 0] if known else np.nan,
            "rank": 1.0 + likelier if known else np.nan,
            "written": list(written),
            "rouge": log.rouge["rougeL_recall"],
        }
    )
