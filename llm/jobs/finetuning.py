"""Fine-tune: teach a model answers, and measure after every epoch what it knows by heart."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from llm.arguments import checked_job
from llm.jobs.settings import Word, rate_for
from llm.scoring.limits import MAX_LENGTH
from llm.training.settings import Optimization
from markov.errors import require, require_whole
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.data.tofu import Example
    from llm.models.finetuned import Finetuned
    from llm.models.language_model import LanguageModel
    from llm.training.adapters import Lora

# Passes, and examples per update, that teach SmolLM2 TOFU's answers by heart.
EPOCHS, BATCH = 5, 16
PROBE = 400  # examples of a set that are measured, as many as TOFU's own sets have
# Largest step sizes by the number of parameters below which they hold; the last is TOFU's for 7B.
RATES = ((25e6, 1e-3), (500e6, 3e-4), (float("inf"), 1e-5))
# One word, such as tofu:full, a list of words, or the examples themselves.
Data: TypeAlias = "Location | Sequence[Location] | Sequence[Example]"


@checked_job
def finetune(
    model: LanguageModel | Location,
    data: Data,
    *,
    without: Data = (),
    watch: Iterable[Location] = (),
    epochs: int = EPOCHS,
    batch: int = BATCH,
    learning_rate: float | None = None,
    seed: int = 0,
    lora: Lora | None = None,
    probe: int = PROBE,
    out: Location | None = None,
    max_length: int = MAX_LENGTH,
    progress: bool = True,
    **optimization: Any,
) -> Finetuned:
    """Return a model that was fine-tuned on data, and what it knew of them after every epoch.

    `data` is a word such as tofu:full, a file of one's own, or a list of these, or examples. What
    is listed in `without`, in the same words, is left out of it: data less the forget set make the
    retrained model. At most `probe` examples are measured of the data, of what was left out, and of
    each word of `watch`. The step size follows from the number of parameters (`RATES`) if it is not
    given. `optimization` are further fields of `llm.training.settings.Optimization`.

    With the folder `out` all is written there as `python -m llm finetune` does, and goes on where
    it was if it was stopped; without it, all stays in memory. A model that is given as a value is
    not changed: a copy of it learns.

    Raises `InvalidInput` for words that name nothing, for examples to leave out that are not among
    the data, for numbers that are not allowed, and for a folder that holds anything else.
    """
    from llm.jobs.values import language_of
    from llm.models.finetuned import finetune_in_memory, finetune_into
    from llm.models.names import check

    if isinstance(model, Word):
        check(model)
    given = Optimization(  # refuses numbers before anything is read
        epochs=epochs,
        batch=batch,
        learning_rate=1.0 if learning_rate is None else learning_rate,
        seed=seed,
        **optimization,
    )
    examples, watched = read_sets(data, without, watch, probe)
    language = language_of(model, progress=progress)
    if not isinstance(model, Word):
        language = language._replace(model=copy.deepcopy(language.model))
    settings = with_rate(given, learning_rate, language)
    options: dict[str, Any] = dict(lora=lora, watched=watched, max_length=max_length)
    options |= {"progress": progress}
    if out is not None:
        return finetune_into(out, language, examples, settings, **options)
    return finetune_in_memory(language, examples, settings, **options)


def with_rate(
    given: Optimization, learning_rate: float | None, language: LanguageModel
) -> Optimization:
    """Return the settings with the step size that was given, or else the one for this model."""
    if learning_rate is not None:
        return replace(given, learning_rate=learning_rate)
    size = sum(one.numel() for one in language.model.parameters())
    return replace(given, learning_rate=rate_for(size, RATES))


def read_sets(
    data: Data, without: Data, watch: Iterable[Location], probe: int = PROBE
) -> tuple[tuple[Example, ...], dict[str, tuple[Example, ...]]]:
    """Return the examples to learn, and the sets that are measured, by name.

    These are what is learnt, called data, what was left out, called without, and those to watch,
    each by its word. Raises `InvalidInput` as `finetune` does.
    """
    from llm.data.sources import without as left
    from llm.data.splits import some_of
    from llm.models.finetuned import LEARNT

    require_whole(probe, "probe", 1)
    examples, gone = _examples(data), _examples(without)
    require(len(examples) > 0, "data", (), "at least one word, file or example to learn")
    examples = left(examples, gone) if gone else examples
    sets = {LEARNT: examples} | ({"without": gone} if gone else {})
    for word in watch:
        name = os.fspath(word)
        require(name not in sets, "watch", name, f"each word once, and none of {', '.join(sets)}")
        sets[name] = _examples(word)
    return examples, {name: some_of(part, probe) for name, part in sets.items()}


def _examples(data: Data) -> tuple[Example, ...]:
    """Return the examples of one word, of several, or those given, in this order."""
    from llm.data.sources import read

    found: list[Example] = []
    for one in (data,) if isinstance(data, Word) else data:
        found += read(one) if isinstance(one, Word) else (one,)
    return tuple(found)
