"""Unlearn: push a model away from forget data by any method, with all that diagnostics need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm.arguments import checked_job
from llm.jobs.settings import RATE, Word, rate_of
from llm.jobs.values import (
    Other,
    check_other,
    data_for,
    examples_of,
    language_of,
    log_beside,
    word_of,
)
from llm.scoring.limits import MAX_LENGTH
from llm.unlearning.methods import Method, retaining
from llm.unlearning.methods import method as method_of
from markov.errors import require
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.data.tofu import Example
    from llm.models.language_model import LanguageModel
    from llm.training.adapters import Lora
    from llm.unlearning.retaining import RetainTerm
    from llm.unlearning.runs import Run
    from markov.console.choices import WeightingName

METHOD = "simnpo:4.5@0.125"  # the paper's for forget10


@checked_job
def unlearn(
    model: LanguageModel | Location = "authors:original",
    forget: Sequence[Example] | Location | None = None,
    *,
    method: Method | str = METHOD,
    retain: Sequence[Example] | Location | None = None,
    retain_term: RetainTerm | None = None,
    retain_weight: float | None = None,
    weighting: WeightingName = "own",
    refusals: Sequence[str] | None = None,
    reference: Other | None = None,
    retrained: Other | None = None,
    epochs: int = 10,
    batch: int = 32,
    learning_rate: float | None = None,
    seed: int = 0,
    lora: Lora | None = None,
    gradients: bool = False,
    out: Location | None = None,
    max_length: int = MAX_LENGTH,
    progress: bool = True,
    **optimization: Any,
) -> Run:
    """Return a run that makes a model forget the `forget` data, and the model that it leaves.

    `method` is one of `llm.method`, or its word, such as npo:0.1@1 or simnpo:4.5@0.125. The data to
    `retain` follow from a word such as tofu:forget10 (tofu:retain90), and the step size from the
    size of the model (`llm.jobs.settings.rate_of`). `reference` is another reference than
    the model itself. With `retrained`, the model that never saw the forget data, the table of
    examples tells how far each of them has to move. `weighting` is what is kept of the objective's
    weights (see `markov.weighting`). `refusals` are what dpo, simpo and idk teach in
    place of the responses. `optimization` are further fields of `llm.training.loop.Optimization`.

    With the folder `out` the run is written there as `python -m llm unlearn` does, and goes on
    where it was if it was stopped; without it, the run stays in memory. A model that is given as a
    value is not changed: the run has a copy.

    Raises `InvalidInput` for words that name nothing, for numbers that are not allowed, for data to
    retain that do not follow from what is to be forgotten, and for a folder of another run.
    """
    from llm.data.refusals import REFUSALS, with_refusals
    from llm.data.splits import retain_of
    from llm.models.names import check_retrained
    from llm.training.loop import Optimization
    from llm.unlearning.runs import unlearn_in_memory, unlearn_into

    chosen = method_of(method) if isinstance(method, str) else method
    source = data_for(model, forget)
    if isinstance(retrained, Word) and isinstance(source, str):
        check_retrained(str(retrained), source)
    if isinstance(method, str):
        term, weight = retaining(method, retain_term, retain_weight, field="method")
    else:
        term = retain_term or chosen.retain_term
        weight = chosen.retain_weight if retain_weight is None else retain_weight
    if retain is None and term != "none":
        known = isinstance(source, str)
        require(known, "retain", None, f"given, beside examples to forget, for {chosen.word}")
        retain = retain_of(str(source), None)
    every = Optimization(
        epochs=epochs,
        batch=batch,
        learning_rate=rate_of(learning_rate, model, small=RATE),
        seed=seed,
        **optimization,
    )
    settings = chosen.unlearning(
        every,
        retain_term=term,
        retain_weight=weight,
        lora=lora,
        gradients=tuple(range(epochs + 1)) if gradients else (),
        weighting=weighting,
    )
    require(
        chosen.prefers or refusals is None, "refusals", refusals, f"left out with {chosen.word}"
    )
    examples, kept = examples_of(source), examples_of(retain if retain is not None else ())
    for field, other in (("reference", reference), ("retrained", retrained)):
        check_other(other, examples, field)
    preferred = (
        with_refusals(examples, seed, tuple(refusals or REFUSALS)) if chosen.prefers else None
    )
    language = language_of(model, progress=progress)
    if not isinstance(model, Word):
        language = language._replace(model=copy.deepcopy(language.model))
    ways: dict[str, Any] = {"max_length": max_length, "progress": progress}
    others: dict[str, Any] = {
        field: log_beside(other, language, examples, field, **ways)
        for field, other in (("reference", reference), ("retrained", retrained))
    }
    others |= {"preferred": preferred, **ways}
    if out is not None:
        return unlearn_into(out, language, examples, kept, settings, **others)
    run = unlearn_in_memory(language, examples, kept, settings, **others)
    name = f"{chosen.word} of {word_of(model)}"
    return run._replace(unlearned=language._replace(name=name))
