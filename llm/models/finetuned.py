"""Fine-tuned models as folders, written whole or to be continued.

    epochs.parquet      a row per epoch: see `llm.training.fine_tuning.fine_tune`; written last, so
                        that a folder with it is complete
    memorised.parquet   a row per epoch and set of examples: see `llm.training.memorising`
    model/              the model at the end

Until a fine-tuning is finished, its folder holds the state from which it goes on if it was stopped.
The folder is claimed, as that of a run of unlearning is (`markov.files.folders`). Of several
processes (see `llm.training.processes`) the first one writes all of this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from llm.data.tofu import Example
from llm.models.answers import responses
from llm.models.language_model import LanguageModel, load_saved
from llm.models.saving import save
from llm.models.trained import EPOCHS, MODEL, STATE, read_finished, working
from llm.scoring.encoding import MAX_LENGTH, Encoded
from llm.scoring.logprobs import check_fits, check_model
from llm.training.adapters import Lora, adapted
from llm.training.checkpointing import gathered, parameters_digest
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from llm.training.memorising import Memorising
from llm.training.processes import held, in_first
from markov.errors import InvalidInput, require
from markov.files import folders, inputs, storage
from markov.files.storage import Location

MEMORISED = "memorised.parquet"
JOB, NAMES = "finetune", (EPOCHS, MEMORISED, MODEL, STATE)
LEARNT = "data"  # what the set of examples that are learnt is called in the table


class Finetuned(NamedTuple):
    """A finished fine-tuning: its tables, the settings it was made with, and where its model is.

    `epochs` has a row per epoch (see `llm.training.fine_tuning.fine_tune`), and `memorised` one per
    epoch, from 0, and set of examples (see `llm.training.memorising`). One that was made in memory
    has no `place`, and holds its model in `learnt`.
    """

    epochs: pd.DataFrame
    memorised: pd.DataFrame
    settings: Mapping[str, Any]
    place: Path | None = None
    learnt: LanguageModel | None = None

    def __repr__(self) -> str:
        return f"{self.table}\n{self.place or 'in memory'}"

    @property
    def table(self) -> str:
        """What `python -m llm finetune` prints: a line per epoch and set, with the loss as seen."""
        seen = self.memorised.merge(self.epochs, on="epoch", how="left")
        names = ["epoch", "learning_rate", "loss", *self.memorised.columns[1:]]
        shown: Any = seen[names]
        return shown.to_string(index=False, float_format="{:.4g}".format, na_rep="-")

    @property
    def model(self) -> LanguageModel:
        """The model at the end, loaded from the folder where it is not in memory.

        Raises `InvalidInput` where it is gone.
        """
        if self.learnt is not None:
            return self.learnt
        assert self.place is not None
        return load_saved(self.place / MODEL)


class _Asked(NamedTuple):
    """What is learnt and measured, in tokens, and all that determines the numbers."""

    encoded: list[Encoded]
    sets: dict[str, list[Encoded]]
    described: dict[str, Any]


def finetune_into(
    folder: Location,
    language: LanguageModel,
    examples: Sequence[Example],
    settings: Optimization,
    *,
    lora: Lora | None = None,
    watched: Mapping[str, Sequence[Example]],
    max_length: int = MAX_LENGTH,
    parameters: str | None = None,
    state_minutes: float = 0.0,
    progress: bool = True,
) -> Finetuned:
    """Fine-tune in a folder, go on with what an earlier call left there, or read what it finished.

    The model is changed in place. After every epoch the `watched` sets of examples are measured.
    `parameters` is the digest of the model as it is now, where it is known, and `state_minutes` how
    often the state is written (see `llm.training.checkpointing.Pace`).

    Raises `InvalidInput` as `fine_tune` does, and for a folder that cannot be written, or that
    holds anything but a fine-tuning of these settings, data and model; before any work also for a
    model that cannot be saved. A table that is damaged is set aside, and the model is made again.
    """
    place = folder
    folder = in_first(lambda: storage.check_writable(place, "out", folder=True))
    asked = _asked(language, examples, settings, lora, watched, max_length, parameters)
    described = asked.described
    known = storage.provenance(described, __name__, seeds=[settings.seed])

    def there() -> bool:
        return in_first(lambda: _finished(folder) is not None)

    def write() -> None:
        storage.write_table(memorised, folder / MEMORISED, known)
        if not (folder / MODEL).exists():
            save(language, folder / MODEL, known, whole)
        storage.write_table(epochs, folder / EPOCHS, known)

    if not there():
        with held(working(folder, JOB, described, NAMES, language)):
            if not there():  # made by another process meanwhile
                try:
                    epochs, memorised = _trained(
                        language, asked, settings, lora, folder / STATE, state_minutes, progress
                    )
                except InvalidInput as error:
                    # Too large: nothing would go on from its state.
                    if error.field == "learning_rate":
                        in_first(lambda: folders.tidy(folder, JOB))
                    raise
                whole = gathered(language.model)
                in_first(write)
    found = read_finetuned(folder)
    same = found.settings == storage.settings_of(described)
    allowed = "an empty folder, or that of a fine-tuning of these settings, data and model"
    require(same, "out", str(folder), allowed)
    in_first(lambda: folders.tidy(folder, JOB))
    return found


def finetune_in_memory(
    language: LanguageModel,
    examples: Sequence[Example],
    settings: Optimization,
    *,
    lora: Lora | None = None,
    watched: Mapping[str, Sequence[Example]],
    max_length: int = MAX_LENGTH,
    progress: bool = True,
) -> Finetuned:
    """Fine-tune as `finetune_into` does, but without a folder: nothing is written or resumed.

    The model is changed in place, and what is returned holds it.
    """
    asked = _asked(language, examples, settings, lora, watched, max_length, None)
    epochs, memorised = _trained(language, asked, settings, lora, None, 0.0, progress)
    described = storage.settings_of(asked.described)
    return Finetuned(epochs, memorised, described, learnt=language)


def read_finetuned(folder: Location) -> Finetuned:
    """Return the finished fine-tuning in a folder.

    Raises `InvalidInput` where there is none, and where its tables hold what `llm.schemas` does not
    allow.
    """
    # Imported here, because building the schemas takes as long as answering --help.
    from llm.schemas import FinetunedSettings, Learning, Memorised, check_settings, check_table

    path = inputs.expanded(folder, "out")
    allowed = "a folder that `python -m llm finetune` wrote and finished"
    require(inputs.is_file(path / EPOCHS), "out", os.fspath(folder), allowed)
    epochs, memorised = (storage.read_table(path / name) for name in (EPOCHS, MEMORISED))
    for name, schema, frame in ((EPOCHS, Learning, epochs), (MEMORISED, Memorised, memorised)):
        check_table(schema, frame, f"finetune, {name}", os.fspath(path / name))
    known, where = epochs.attrs[storage.KEY], os.fspath(path / EPOCHS)
    settings = check_settings(FinetunedSettings, known, "out", where)
    return Finetuned(epochs, memorised, settings, path)


def _asked(
    language: LanguageModel,
    examples: Sequence[Example],
    settings: Optimization,
    lora: Lora | None,
    watched: Mapping[str, Sequence[Example]],
    max_length: int,
    parameters: str | None,
) -> _Asked:
    """Return what is learnt and measured, in tokens; refuses what the model cannot take."""
    encoded = responses(language, examples, max_length=max_length)
    sets = {name: responses(language, own, max_length=max_length) for name, own in watched.items()}
    check_model(language.model)
    for one in (encoded, *sets.values()):
        check_fits(language.model, one)
    described = {
        "model": language.name,
        "optimization": settings,
        "lora": lora,
        "data": storage.fingerprint([one.tokens for one in encoded]),
        "watched": {
            name: storage.fingerprint([one.tokens for one in own]) for name, own in sets.items()
        },
        "parameters": parameters or parameters_digest(language.model),
    }
    return _Asked(encoded, sets, described)


def _trained(
    language: LanguageModel,
    asked: _Asked,
    settings: Optimization,
    lora: Lora | None,
    state: Path | None,
    state_minutes: float,
    progress: bool,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fine-tune, and return the tables of epochs and of what was memorised."""
    key = "" if state is None else storage.fingerprint(asked.described, __name__)
    recorder = Memorising(asked.sets, state=state, fingerprint=key, state_minutes=state_minutes)
    with adapted(language.model, lora, settings.seed) as trained:
        epochs = fine_tune(
            trained, asked.encoded, settings, progress=progress, label="finetune", recorder=recorder
        )
    return epochs, recorder.table


def _finished(folder: Path) -> Finetuned | None:
    """Return the fine-tuning of a folder if it is finished, or None.

    A damaged table or model is set aside, to be made again.
    """
    if not folders.claimed(folder, JOB):
        return None
    return read_finished(folder, read_finetuned)
