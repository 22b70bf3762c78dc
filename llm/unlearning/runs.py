"""Runs of unlearning as folders, written whole or to be continued.

    examples.parquet    a row per epoch and forget example: see `llm.unlearning.unlearn`, with the
                        columns `retrained`, `needed` and `needed_per_token` of
                        `llm.diagnostics.weights` where a retrained model was given
    answers.parquet     a row per model, forget example and answer (see
                        `llm.models.answers.log_table`): `model` is original, retrained, where its
                        log was given, and unlearned, unless its answers have no finite scores
    epochs.parquet      a row per epoch; written last, so that a folder with it is complete
    model/              the model at the end; of a run that diverged, before the first update that
                        could not be made

A run that diverged is a result: its last row of epochs.parquet has the status nan, and
examples.parquet ends with the epoch before. Of several processes (see `llm.training.processes`) the
first one writes all of this.

Until a run is finished, its folder holds the state from which it goes on if it was stopped. The
tables carry the settings, and so does the claim with which a run begins (`markov.files.folders`):
no run begins in a folder that holds anything else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from llm.arguments import checked_job
from llm.data.tofu import Example
from llm.logs.log import EvaluationLog
from llm.models.answers import log_of
from llm.models.language_model import LanguageModel, load_saved
from llm.models.saving import save, with_source
from llm.models.trained import EPOCHS, MODEL, STATE, read_finished, working
from llm.scoring.encoding import MAX_LENGTH
from llm.training.checkpointing import gathered, parameters_digest
from llm.training.processes import held, in_first
from llm.unlearning.epoch import Measure
from llm.unlearning.prepared import prepared, unlearned
from llm.unlearning.unlearn import Unlearning
from markov.errors import InvalidInput, require
from markov.files import folders, inputs, storage
from markov.files.storage import Location
from markov.objectives import Objective
from markov.preferences import Forgetting, Preference

EXAMPLES, ANSWERS, WEIGHTS = (f"{name}.parquet" for name in ("examples", "answers", "weights"))
SHOWN = ("epoch", "step", "forget_loss", "forget_nll", "retain_loss", "status")
JOB, NAMES = "unlearn", (EXAMPLES, ANSWERS, EPOCHS, WEIGHTS, MODEL, STATE)


class Run(NamedTuple):
    """A finished run: its tables, the settings it was made with, and where its model is.

    A run that was made in memory has no folder, and holds its model in `unlearned`.
    """

    examples: pd.DataFrame
    answers: pd.DataFrame
    epochs: pd.DataFrame
    settings: Mapping[str, Any]
    place: Path | None = None
    unlearned: LanguageModel | None = None

    def __repr__(self) -> str:
        shown = [name for name in SHOWN if name in self.epochs]
        table = self.epochs[shown].to_string(index=False, float_format="{:.4g}".format)
        where = self.place or "in memory"
        return f"{table}\n{len(self.examples)} rows of examples; {where}"

    @property
    def model(self) -> LanguageModel:
        """The model at the end, loaded from the folder where it is not in memory.

        Raises `InvalidInput` where it is gone.
        """
        if self.unlearned is not None:
            return self.unlearned
        return load_saved(self.folder / MODEL)

    @property
    def folder(self) -> Path:
        """The folder of the run; raises `InvalidInput` for one that was made in memory."""
        if self.place is None:
            raise InvalidInput("run", "in memory", "one in a folder: give `out` to keep it there")
        return self.place

    @property
    def forgetting(self) -> Forgetting:
        """What was minimised on the forget data."""
        fields = self.settings["unlearning"]["objective"]
        law = Preference if Preference.__name__ == fields["class"] else Objective
        return law(**{name: fields[name] for name in law._fields})

    @property
    def objective(self) -> Objective:
        """What was minimised, where nothing was preferred to the forgotten responses.

        Raises `InvalidInput` where something was.
        """
        found = self.forgetting
        if not isinstance(found, Objective):
            raise InvalidInput(
                "run", str(self.folder), "one whose objective is of single responses, not of pairs"
            )
        return found

    @property
    def logs(self) -> dict[str, EvaluationLog]:
        """Evaluation logs of the forget set by model.

        The models are original and, where they are known, unlearned and retrained.
        """
        where = self.place or "a run"
        return {
            str(model): log_of(own.drop(columns="model"), f"{model} model of {where}")
            for model, own in self.answers.groupby("model")
        }


def unlearn_into(
    folder: Location,
    language: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    settings: Unlearning,
    *,
    reference: EvaluationLog | None = None,
    original: EvaluationLog | None = None,
    retrained: EvaluationLog | None = None,
    preferred: Sequence[Example] | None = None,
    importance: Float[np.ndarray, "examples"] | None = None,
    measure: Measure[LanguageModel] | None = None,
    max_length: int = MAX_LENGTH,
    parameters: str | None = None,
    state_minutes: float = 0.0,
    progress: bool = True,
) -> Run:
    """Unlearn in a folder, go on with what an earlier call left there, or read what it finished.

    The logs are those of other models on the forget examples: a `reference` other than the model
    itself, a model `retrained` without the forget examples, and the `original`, which is scored now
    if not given. `preferred` are the same examples with the response that is preferred to theirs.
    `importance` multiplies the loss of each forget example (see `llm.unlearning.unlearn.unlearn`),
    and `measure` is called after every epoch. `parameters` is the digest of the model as it is now,
    where it is known, and `state_minutes` how often the state is written (see
    `llm.unlearning.unlearn.unlearn`).

    Raises `InvalidInput` as `unlearn` does, for logs of other examples or tokens, and for a folder
    that cannot be written, that holds a run of other settings, data, models or measures, or that
    holds anything else that is no run; before any work also for a model that cannot be saved. A
    table that is damaged is set aside, and the run is made again.
    """
    place = folder
    folder = in_first(lambda: storage.check_writable(place, "out", folder=True))
    own = parameters or parameters_digest(language.model)
    others = (reference, retrained, preferred, measure, importance)
    asked = prepared(language, forget, retain, settings, *others, max_length, own)
    described = asked.described
    known = with_source(
        storage.provenance(described, __name__, seeds=[settings.optimization.seed]), language
    )

    def there() -> bool:
        return in_first(lambda: finished(folder) is not None)

    def write() -> None:
        storage.write_table(examples, folder / EXAMPLES, known)
        storage.write_table(table, folder / ANSWERS, known)
        if not (folder / MODEL).exists():
            save(language, folder / MODEL, known, whole)
        storage.write_table(found.epochs, folder / EPOCHS, known)

    if not there():
        # A run that is refused before it begins, such as that of a model that cannot be scored,
        # leaves the folder free for another.
        with held(working(folder, JOB, described, NAMES, language)):
            if not there():  # made by another process meanwhile
                ways = (max_length, progress, state_minutes)
                logs = (original, retrained)
                found, examples, table = unlearned(
                    asked, language, forget, settings, *logs, folder / STATE, *ways
                )
                whole = gathered(language.model)
                in_first(write)
    run = read_run(folder)
    same = run.settings == storage.settings_of(described)
    allowed = "an empty folder, or that of a run of these settings, data and models"
    require(same, "out", str(folder), allowed)
    in_first(lambda: folders.tidy(folder, JOB))
    return run


def unlearn_in_memory(
    language: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    settings: Unlearning,
    *,
    reference: EvaluationLog | None = None,
    original: EvaluationLog | None = None,
    retrained: EvaluationLog | None = None,
    preferred: Sequence[Example] | None = None,
    importance: Float[np.ndarray, "examples"] | None = None,
    measure: Measure[LanguageModel] | None = None,
    max_length: int = MAX_LENGTH,
    progress: bool = True,
) -> Run:
    """Unlearn as `unlearn_into` does, but without a folder: nothing is written or resumed.

    The model is changed in place, and the run holds it.
    """
    own = parameters_digest(language.model)
    others = (reference, retrained, preferred, measure, importance)
    asked = prepared(language, forget, retain, settings, *others, max_length, own)

    found, examples, table = unlearned(
        asked, language, forget, settings, original, retrained, None, max_length, progress
    )
    return Run(
        examples, table, found.epochs, storage.settings_of(asked.described), unlearned=language
    )


def finished(folder: Path) -> Run | None:
    """Return the run of a folder if it is finished, or None.

    In a folder of ours a damaged table or model is set aside, to be made again.
    """
    if not folders.claimed(folder, JOB):
        return read_run(folder) if (folder / EPOCHS).exists() else None
    return read_finished(folder, read_run)


@checked_job
def read_run(folder: Location) -> Run:
    """Return the run in a folder.

    Raises `InvalidInput` where there is none, where it is not finished, and where its tables hold
    what `llm.schemas` does not allow.
    """
    # Imported here, because building the schemas takes as long as answering --help.
    from llm.schemas import Answered, ByEpoch, Epochs, RunSettings, check_settings, check_table

    path = inputs.expanded(folder, "run")
    if not inputs.is_file(path / EPOCHS):
        unfinished = inputs.is_folder(path) and any(path.iterdir())
        reason = "it holds no finished run" if unfinished else "there is no such run"
        raise InvalidInput(
            "run", os.fspath(folder), f"a folder that `python -m llm unlearn` wrote ({reason})"
        )
    examples, answers, epochs = (
        storage.read_table(path / name) for name in (EXAMPLES, ANSWERS, EPOCHS)
    )
    schemas = {
        EXAMPLES: (ByEpoch, examples),
        ANSWERS: (Answered, answers),
        EPOCHS: (Epochs, epochs),
    }
    for name, (schema, frame) in schemas.items():
        if len(frame) > 0:  # a run that diverged at once may have no examples
            check_table(schema, frame, f"run, {name}", os.fspath(path / name))
    known = epochs.attrs[storage.KEY]
    settings = check_settings(RunSettings, known, "run", os.fspath(path / EPOCHS))
    return Run(examples, answers, epochs, settings, path)
