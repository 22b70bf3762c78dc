"""Relearning attacks: a few forgotten answers are taught again, while the others are watched.

An unlearned model that had lost an answer would have to be told it again. One that merely hides its
answers needs to be told some, and gives the others too. So the model is fine-tuned for a few epochs
on a share of the forget set, its shortest responses or some at random, and after each epoch every
forget example is scored. (Paper, section 5 and Figure 6, where the share is 20% and the epochs are
up to 3.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from llm.data.tofu import Example
from llm.evaluation.attacks import Relearning
from llm.logs.log import EvaluationLog, align, take
from llm.logs.measures import EXTRACTION, forget_quality
from llm.models.answers import answer_log, log_of, log_table, responses
from llm.models.language_model import LanguageModel
from llm.randomness import derived_seed
from llm.scoring.encoding import MAX_LENGTH
from llm.training.adapters import adapted
from llm.training.fine_tuning import fine_tune
from markov.errors import require


def relearn(
    language: LanguageModel,
    forget: Sequence[Example],
    settings: Relearning,
    *,
    before: EvaluationLog | None = None,
    max_length: int = MAX_LENGTH,
    progress: bool = True,
) -> pd.DataFrame:
    """Teach the chosen examples again, and return the scores of all forget examples.

    The model stays as it was, since a copy is taught. `before` is what it says of the examples now,
    where that is known (see `llm.models.answers.answer_log`). The table has a row per epoch (0 is
    before the first update), forget example and answer: `epoch`, `relearned` (whether the example
    is one of those taught), and the columns of `llm.models.answers.log_table`. Raises
    `InvalidInput` as `answer_log` and `fine_tune` do.
    """
    encoded = responses(language, forget, max_length=max_length)
    if before is not None:
        same = before.index.tolist() == [one.index for one in forget]
        require(same, "before", before.file, "a log of these examples, in their order")
    taught = settings.chosen([len(one.tokens) - one.prompt for one in encoded])
    index = [forget[row].index for row in taught]
    frames, optimization = [], settings.optimization

    def record(epoch: int, model: Any = language.model, known: EvaluationLog | None = None) -> None:
        now, budget = language._replace(model=model), optimization.budget
        log = known or answer_log(now, forget, max_length=max_length, budget=budget, progress=False)
        frames.append(log_table(log).assign(epoch=epoch))

    record(0, known=before)
    seed = derived_seed(settings.seed, "order")
    ordered = replace(optimization, seed=seed)
    chosen = [encoded[row] for row in taught]
    # A copy is taught, since a model that several processes hold in shards stays in shards.
    with adapted(copy.deepcopy(language.model), settings.lora, seed) as model:
        after = partial(record, model=model)
        fine_tune(model, chosen, ordered, progress=progress, label="relearn", after=after)
    table = pd.concat(frames, ignore_index=True)
    table.insert(0, "relearned", table["index"].isin(index))
    table.insert(0, "epoch", table.pop("epoch"))
    return table


def returns(table: pd.DataFrame, retrained: EvaluationLog) -> pd.DataFrame:
    """Return how far the forgotten has come back after each epoch, beside a retrained model.

    The retrained model never saw the forgotten. The table has a row per epoch:

        epoch
        forget_quality, ks_statistic
                           of all forget examples (see `llm.logs.measures.forget_quality`)
        other_statistic    the statistic of the examples that were not taught
        extraction_strength, other_extraction
                           mean of all forget examples, and of those that were not taught
        relearned_logp     mean of logp/length over the examples taught (nats per token)
        other_logp         the same over the others; it needs no test and shows a return first
        other_returned     the share of the others that are likelier than under the retrained model

    Of examples without wrong answers the table has neither of the first two nor `other_statistic`,
    and of tables without extraction strength neither of those two.
    Raises `InvalidInput` for a log of other examples or other tokens, or without wrong answers.
    """
    rows = []
    for epoch, frame in table.groupby("epoch"):
        log = log_of(frame, f"the model after epoch {epoch} of relearning")
        theirs = align(log, retrained)
        taught = np.isin(log.index, frame["index"][frame["relearned"]])
        row: dict[str, float] = {"epoch": epoch}  # pyright: ignore[reportAssignmentType]
        if log.perturbed is not None:
            whole = forget_quality(log, theirs)
            others = (take(one, np.flatnonzero(~taught)) for one in (log, theirs))
            row |= {
                "forget_quality": whole.p_value,
                "ks_statistic": whole.statistic,
                "other_statistic": forget_quality(*others).statistic,
            }
        if EXTRACTION in log.memorised:
            own = log.memorised[EXTRACTION]
            row |= {EXTRACTION: own.mean(), "other_extraction": own[~taught].mean()}
        each = -log.gold.average
        row |= {
            "relearned_logp": each[taught].mean(),
            "other_logp": each[~taught].mean(),
            "other_returned": (each > -theirs.gold.average)[~taught].mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows)
