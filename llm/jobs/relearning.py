"""Attack an unlearned model: teach it a share of what it forgot, and watch the rest come back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from llm.arguments import checked_job
from llm.evaluation.attacks import Relearning, Which, attacks
from llm.jobs.settings import RATE, Word, rate_of
from llm.jobs.values import Other, data_for, examples_of, language_of, log_beside
from llm.ranks import place
from llm.scoring.limits import BUDGET, MAX_LENGTH
from llm.training.processes import in_first, kept_table
from llm.training.settings import Optimization
from markov.console.progress import bar
from markov.files import leftovers, storage
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.data.tofu import Example
    from llm.logs.log import EvaluationLog
    from llm.models.language_model import LanguageModel
    from llm.training.adapters import Lora


class Relearned(NamedTuple):
    """What came back under relearning attacks.

    `examples` has a row per attack, epoch, forget example and answer (see
    `llm.evaluation.relearning.relearn`). `returns` has a row per attack and epoch (see
    `llm.evaluation.relearning.returns`), and is None without a retrained model. Both name the
    attack by `which` and `repeat`.
    """

    examples: pd.DataFrame
    returns: pd.DataFrame | None

    @property
    def means(self) -> pd.DataFrame:
        """Mean of logp/length over repeats (nats per token), of the examples taught and of others.

        It is the table that `python -m llm relearn` prints.
        """
        gold = self.examples[self.examples["answer"] == "gold"]
        each = gold.assign(per_token=gold["logp"] / gold["length"]).groupby(
            ["which", "epoch", "relearned"]
        )["per_token"]
        return each.mean().unstack().rename(columns={False: "others", True: "relearned"})

    def __repr__(self) -> str:
        return self.means.to_string(float_format="{:.3f}".format)


@checked_job
def relearn(
    model: LanguageModel | Location,
    data: Sequence[Example] | Location | None = None,
    *,
    retrained: Other | None = None,
    which: Sequence[Which] = ("shortest", "random"),
    share: float = 0.2,
    repeats: int = 5,
    epochs: int = 3,
    batch: int = 32,
    learning_rate: float | None = None,
    lora: Lora | None = None,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
    **optimization: Any,
) -> Relearned:
    """Return what comes back of the forgotten `data` when a `share` of it is taught again.

    Each attack fine-tunes a copy on the shortest responses, or on some at random, and scores all of
    the data after every epoch; the model stays as it was. With the retrained model, or its log,
    forget quality is taken as well. Finished attacks are kept until all are finished, so that a
    call that was stopped goes on where it was. The step size follows from the size of the model if
    it is not given (`llm.jobs.settings.rate_of`). With `lora` adapters are taught.
    `optimization` are further fields of `llm.training.settings.Optimization`.

    Raises `InvalidInput` for words that name nothing and for numbers that are not allowed.
    """
    from llm.data.splits import forget_of
    from llm.models.names import check_retrained

    source = data_for(model, data)
    if isinstance(retrained, Word) and isinstance(source, str):
        check_retrained(str(retrained), source)
    rate = rate_of(learning_rate, model, small=RATE)
    every = Optimization(
        **{"warmup_epochs": 0, **optimization},
        epochs=epochs,
        batch=batch,
        learning_rate=rate,
        budget=budget,
    )
    wanted = attacks(which, share, repeats, every, lora)
    if retrained is not None and isinstance(source, Word):
        forget = forget_of(source)
    else:
        forget = examples_of(source)
    language = language_of(model, progress=progress)
    ways: dict[str, Any] = {"max_length": max_length, "progress": progress}
    log = log_beside(retrained, language, forget, "retrained", budget=budget, **ways)
    parts = unfinished(language, forget, max_length)
    found = attacked(language, forget, wanted, log, parts, **ways)
    in_first(lambda: leftovers.discard(parts))
    return found


def finished_in(parts: Path, attack: Relearning) -> Path:
    """Return where a folder keeps the table of an attack that is finished."""
    return parts / f"{storage.fingerprint(attack)}.parquet"


def attacked(
    language: LanguageModel,
    forget: Sequence[Example],
    wanted: Sequence[Relearning],
    retrained: EvaluationLog | None,
    parts: Path,
    *,
    max_length: int = MAX_LENGTH,
    progress: bool = True,
) -> Relearned:
    """Return what came back under each attack; finished ones are kept in the folder `parts`.

    Of several processes the first one keeps them, and all share the work of each attack.
    """
    from llm.evaluation.relearning import relearn as attack
    from llm.evaluation.relearning import returns
    from llm.models.answers import answer_log

    ways: dict[str, Any] = {"max_length": max_length, "progress": progress}
    tables, found, before = [], [], None
    with bar(len(wanted), "attacks", show=progress and place() == 0, leave=False) as done:
        for one in wanted:
            path, budget = finished_in(parts, one), one.optimization.budget
            if before is None and not in_first(path.exists):
                before = answer_log(language, forget, budget=budget, **ways)
            frame = kept_table(path, partial(attack, language, forget, one, before=before, **ways))
            tables.append(frame.assign(which=one.which, repeat=one.seed))
            if retrained is not None:
                frame = returns(tables[-1], retrained)
                found.append(frame.assign(which=one.which, repeat=one.seed))
            done.update()
    back = pd.concat(found, ignore_index=True) if found else None
    return Relearned(pd.concat(tables, ignore_index=True), back)


def unfinished(language: LanguageModel, forget: Sequence[Example], max_length: int) -> Path:
    """Return the folder where finished attacks are kept until all are finished.

    Its name follows from the model, its template, the examples, `max_length` and the code.
    """
    from llm.training.checkpointing import parameters_digest

    key = [parameters_digest(language.model), language.template, list(forget), max_length]
    return in_first(lambda: storage.unfinished(key, __name__))
