"""The four corners on a model of the user's own, for the figures of language models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from figures.cache import Context, cache_key, discard_stale
from llm.data.sources import read
from llm.data.splits import retain_of
from llm.jobs.settings import rate_of
from llm.models.answers import answer_log
from llm.models.language_model import check_same_vocabulary
from llm.models.names import check_retrained, data_of
from llm.models.source import load
from llm.scoring.encoding import BUDGET
from llm.training.checkpointing import parameters_digest
from llm.unlearning.runs import EPOCHS, Run, unlearn_into
from llm.unlearning.unlearn import Unlearning
from markov.errors import require
from markov.files import storage


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """What unlearns what, in the words of `python -m llm unlearn`.

    The optimisation is one that a large model takes. `batch` is the paper's for Llama-2-7B.
    `own_model` says what follows from what.
    """

    model: str
    retrained: str | None
    data: str
    retain_data: str
    learning_rate: float
    batch: int = 32


def own_model(
    model: str,
    retrained: str | None,
    data: str | None,
    retain_data: str | None,
    learning_rate: float | None,
) -> OwnModel:
    """Return a model of the user's own.

    What is to stay follows from the data, the step size from the model. Raises `InvalidInput` for
    words that do not go together, before anything is loaded.
    """
    data = data_of(model, data)
    check_retrained(retrained, data)
    rate = rate_of(learning_rate, model, small=2e-4)
    return OwnModel(
        model=model,
        retrained=retrained,
        data=data,
        retain_data=retain_of(data, retain_data),
        learning_rate=rate,
    )


def runs_of_own(context: Context, own: OwnModel, wanted: Iterable[Unlearning]) -> list[Run]:
    """Return a run for each of the settings, with the batch and the learning rate of `own`.

    Runs come from the cache or are made now. Raises `InvalidInput` as `load`, `read` and
    `unlearn_into` do, and for a retrained model of another vocabulary.
    """
    forget, retain = read(own.data), read(own.retain_data)
    language, retrained = load(own.model), None
    if own.retrained is not None:
        other = load(own.retrained)
        check_same_vocabulary(language.tokenizer, other.tokenizer, "retrained")
        retrained = answer_log(other, forget, progress=context.progress)
    digest, found = parameters_digest(language.model), []
    for number, one in enumerate(wanted):
        every = replace(
            one.optimization, learning_rate=own.learning_rate, batch=own.batch, budget=BUDGET
        )
        settings = replace(one, optimization=every)
        key = {"own": vars(own), "parameters": digest, "unlearning": settings}
        folder = storage.cache_dir() / "unlearning" / cache_key(key, __name__)
        discard_stale(context, folder, folder / EPOCHS)
        if number > 0:  # the run before changed the model in place
            language = load(own.model)
            same = parameters_digest(language.model) == digest
            require(same, "model", own.model, "one that stays as it is meanwhile")
        found.append(
            unlearn_into(
                folder,
                language,
                forget,
                retain,
                settings,
                retrained=retrained,
                parameters=digest,
                progress=context.progress,
            )
        )
    return found
