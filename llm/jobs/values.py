"""Words and values: a model, data or an objective may be given as either.

A word is a text or a path, such as authors:original, tofu:forget10 or npo:0.1; a value is what
the word stands for, and is taken as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from llm.data.sources import read
from llm.data.words import checked_word
from llm.diagnostics.scores import beside, check_scores, read_scores
from llm.diagnostics.weights import named
from llm.jobs.settings import Word
from llm.logs.log import EvaluationLog
from llm.logs.questions import matched
from llm.models.gguf_files import is_gguf
from llm.models.names import check, check_has_read, data_of
from llm.models.source import load
from llm.scoring.limits import BUDGET, MAX_LENGTH
from llm.unlearning.methods import objective
from markov.errors import require
from markov.files.storage import Location
from markov.objectives import Objective

if TYPE_CHECKING:
    from llm.data.tofu import Example
    from llm.models.language_model import LanguageModel

# Another model of the same examples: itself, its log, its scores, or a word for any of them.
Other: TypeAlias = "LanguageModel | EvaluationLog | pd.DataFrame | Location"


def word_of(model: LanguageModel | Location) -> str:
    """Return the word by which a model was loaded."""
    return os.fspath(model) if isinstance(model, Word) else model.name


def language_of(
    model: LanguageModel | Location, field: str = "model", *, progress: bool = True
) -> LanguageModel:
    """Return the model itself, loaded if it is a word.

    Raises `InvalidInput` for a word that names no model.
    """
    if not isinstance(model, Word):
        return model
    check(model, field)
    return load(model, progress=progress)


def data_for(
    model: LanguageModel | Location, data: Sequence[Example] | Location | None
) -> Sequence[Example] | str:
    """Return the data as given, or the word of those that go with a model where none are given.

    Raises `InvalidInput` as `llm.models.names.data_of` does.
    """
    if data is None:
        return data_of(word_of(model), None)
    if not isinstance(data, Word):
        return data
    if isinstance(model, Word):
        return data_of(word_of(model), os.fspath(data))
    check_has_read(word_of(model), data)
    return os.fspath(data)


def examples_of(data: Sequence[Example] | Location) -> tuple[Example, ...]:
    """Return the examples themselves, read if they are a word."""
    return read(data) if isinstance(data, Word) else tuple(data)


def objectives_of(
    objectives: Mapping[str, Objective] | Iterable[str | Objective],
) -> dict[str, Objective]:
    """Return objectives by name, parsed where they are words.

    Raises `InvalidInput` for no objective, for a word that names none, and for one that comes
    twice.
    """
    if isinstance(objectives, Mapping):
        found: dict[str, Objective] = {str(name): one for name, one in objectives.items()}
    else:
        found = named(objective(one) if isinstance(one, str) else one for one in objectives)
    require(len(found) > 0, "objectives", list(found), "at least one")
    return found


def scores_of(scores: pd.DataFrame | Location, field: str) -> pd.DataFrame:
    """Return a table of scores, read if it is a path.

    Raises `InvalidInput` as `llm.diagnostics.scores.read_scores` does.
    """
    if isinstance(scores, Word):
        return read_scores(scores, field)
    return check_scores(scores, field)


def model_beside(
    other: LanguageModel | Location,
    language: LanguageModel,
    field: str,
    *,
    load: Callable[[str], LanguageModel] | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Return another model to compare with, loaded if it is a word, by `load` where it is given.

    Raises `InvalidInput` for a word that names no model, and for a model of another vocabulary.
    """
    from llm.models.language_model import check_same_vocabulary

    if isinstance(other, Word) and load is not None:
        check(other, field)
        other = load(os.fspath(other))
    found = language_of(other, field, progress=progress)
    check_same_vocabulary(language.tokenizer, found.tokenizer, field)
    return found


def _is_table(word: Location, field: str) -> bool:
    return Path(checked_word(word, field)).is_file() and not is_gguf(word)


def check_other(other: Other | None, examples: Sequence[Example], field: str) -> None:
    """Raise `InvalidInput` for a table of scores that is not one of these examples.

    No model is needed for that, nor for another one in its place, which is looked at when loaded.
    """
    if isinstance(other, pd.DataFrame) or (isinstance(other, Word) and _is_table(other, field)):
        theirs = scores_of(other, field)
        asked = np.array([one.index for one in examples])
        order, lacking = matched(asked, theirs["index"].to_numpy())
        allowed = f"the {len(asked)} that are scored"
        found = f"{len(theirs)} examples, {len(lacking)} missing"
        require(not lacking and len(order) == len(theirs), field, found, allowed)


def log_beside(
    other: Other | None,
    language: LanguageModel,
    examples: Sequence[Example],
    field: str,
    *,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    load: Callable[[str], LanguageModel] | None = None,
    progress: bool = True,
) -> EvaluationLog | None:
    """Return the log of another model on the examples, in their order; None for no model.

    The other one may be a model, a word for one, its log, or a table of its scores, which knows
    only the responses themselves. Raises `InvalidInput` for a model of another vocabulary, and for
    a table of other examples or other tokens.
    """
    from llm.models.answers import answer_log, log_of, scores

    if other is None or isinstance(other, EvaluationLog):
        return other
    options: dict[str, Any] = {"max_length": max_length, "budget": budget, "progress": progress}
    if isinstance(other, pd.DataFrame) or (isinstance(other, Word) and _is_table(other, field)):
        theirs = scores_of(other, field)
        own = scores(language, examples, **options)
        found = own.assign(logp=beside(own, theirs, field))
        file = "a table of scores" if isinstance(other, pd.DataFrame) else os.fspath(other)
        return log_of(found.assign(answer="gold"), file)
    found = model_beside(other, language, field, load=load, progress=progress)
    return answer_log(found, examples, **options)
