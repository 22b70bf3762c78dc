"""Runs of unlearning as folders: everything that is known of a run, written whole or to be
continued.

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

Before that the folder holds the state from which a run that was stopped goes on. The tables carry
the settings, and so does the claim with which a run begins (`markov.files.folders`): in a folder
that holds anything else none begins.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import nn

from llm.data.tofu import Example
from llm.diagnostics.weights import with_needed
from llm.logs.log import EvaluationLog, total_loss
from llm.models.answers import answer_log, log_of, log_table, responses
from llm.models.language_model import LanguageModel
from llm.models.saving import check_savable, check_whole, save, saved_settings
from llm.scoring.encoding import MAX_LENGTH, Encoded
from llm.training.checkpointing import FILE, gathered, parameters_digest
from llm.training.processes import in_first
from llm.training.processes import place as rank
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.errors import InvalidInput, require
from markov.files import folders, leftovers, storage
from markov.files.storage import Location
from markov.objectives import Objective
from markov.preferences import Forgetting, Preference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXAMPLES, ANSWERS, EPOCHS, WEIGHTS = (
    f"{name}.parquet" for name in ("examples", "answers", "epochs", "weights")
)
MODEL, STATE = "model", "state"
JOB, NAMES = "unlearn", (EXAMPLES, ANSWERS, EPOCHS, WEIGHTS, MODEL, STATE)


class Run(NamedTuple):
    """A finished run: its tables, the settings it was made with, and its folder."""

    examples: pd.DataFrame
    answers: pd.DataFrame
    epochs: pd.DataFrame
    settings: Mapping[str, Any]
    folder: Path

    @property
    def forgetting(self) -> Forgetting:
        """What was minimised on the forget data."""
        fields = self.settings["unlearning"]["objective"]
        law = Preference if Preference.__name__ == fields["class"] else Objective
        return law(**{name: fields[name] for name in law._fields})

    @property
    def objective(self) -> Objective:
        """The same where nothing was preferred to what was forgotten; raises `InvalidInput`
        where something was.
        """
        found = self.forgetting
        if not isinstance(found, Objective):
            raise InvalidInput(
                "run", str(self.folder), "one whose objective is of single responses, not of pairs"
            )
        return found

    @property
    def logs(self) -> dict[str, EvaluationLog]:
        """Evaluation logs of the forget set by model: original and, where they are known,
        unlearned and retrained.
        """
        return {
            str(model): log_of(own.drop(columns="model"), f"{model} model of {self.folder}")
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
    measure: Measure[LanguageModel] | None = None,
    max_length: int = MAX_LENGTH,
    parameters: str | None = None,
    progress: bool = True,
) -> Run:
    """Unlearn in a folder, go on with what an earlier call left there, or read what it finished.

    Logs say what other models make of the forget examples: a `reference` other than the model
    itself, one `retrained` without them, and the `original`, which is scored now if not given.
    `preferred` are the same examples with the response that is preferred to theirs; `measure` is
    called after every epoch, and `parameters` the digest of the model as it is now, where it is
    known (see `llm.unlearning.unlearn.unlearn`). Raises `InvalidInput` as
    `unlearn` does, for logs of other examples or tokens, and for a folder that cannot be written,
    holds a run of other settings, data, models or measures, or anything else that is no run; before
    any work also for a model that cannot be saved. A table that is damaged is set aside, and the
    run made again.
    """
    place = folder
    folder = in_first(lambda: storage.check_writable(place, "out", folder=True))
    index = np.array([example.index for example in forget])
    encoded, kept = (
        responses(language, examples, max_length=max_length) for examples in (forget, retain)
    )
    better = None if preferred is None else responses(language, preferred, max_length=max_length)
    others = {
        name: log
        for name, log in (("reference", reference), ("retrained", retrained))
        if log is not None
    }
    logps = {name: _logp_of(log, name, index, encoded) for name, log in others.items()}
    own = parameters or parameters_digest(language.model)
    described = {
        "model": language.name,
        "unlearning": settings,
        "forget": storage.fingerprint([one.tokens for one in encoded]),
        "retain": storage.fingerprint([one.tokens for one in kept]),
        **(
            {}
            if better is None
            else {"preferred": storage.fingerprint([one.tokens for one in better])}
        ),
        **({} if measure is None else {"measure": measure.name}),
        **{name: storage.fingerprint(logp) for name, logp in logps.items()},
        "parameters": own,
    }
    known = storage.provenance(described, __name__, seeds=[settings.optimization.seed])
    if in_first(lambda: finished(folder) is not None):
        run = read_run(folder)
        same = run.settings == storage.settings_of(described)
        require(
            same,
            "out",
            str(folder),
            "an empty folder, or that of a run of these settings, data and models",
        )
        in_first(lambda: folders.tidy(folder, JOB))
        return run

    state = folder / STATE

    def begin() -> None:
        folders.claim(folder, JOB, described, names=NAMES, passing=(STATE,))
        # Written whole before the last table was: a model of this very run is kept, and no other is
        # touched.
        there = os.path.lexists(folder / MODEL)
        taken = there and saved_settings(folder / MODEL) != storage.settings_of(described)
        require(
            not taken, "out", str(folder), f"a folder whose {MODEL} is of this run, or not there"
        )
        if not there:
            check_savable(language, folder / MODEL)
        # one that was cut short is set aside
        storage.read_kept(state / FILE, storage.read_provenance)

    def answers() -> EvaluationLog:
        return answer_log(language, forget, max_length=max_length, progress=progress)

    # What is refused before it begins, such as a model that cannot be scored, leaves the folder to
    # another.
    with folders.given_back(folder, JOB) if rank() == 0 else nullcontext():
        in_first(begin)
        logs = {"original": answers() if original is None else original, "retrained": retrained}
        ref = torch.tensor(logps["reference"]) if reference is not None else None
        found = unlearn(
            language.model,
            encoded,
            kept,
            settings,
            preferred=better,
            ref=ref,
            index=index,
            measure=None if measure is None else _of_model(measure, language),
            state=state,
            parameters=own,
            progress=progress,
        )
    examples = found.examples
    if retrained is not None:
        epochs = examples["epoch"].nunique()
        examples = with_needed(examples, np.tile(logps["retrained"], epochs))
    logs["unlearned"] = _if_finite(answers)
    tables = [log_table(log).assign(model=model) for model, log in logs.items() if log is not None]
    whole = gathered(language.model)

    def write() -> None:
        storage.write_table(examples, folder / EXAMPLES, known)
        storage.write_table(pd.concat(tables, ignore_index=True), folder / ANSWERS, known)
        if not (folder / MODEL).exists():
            save(language, folder / MODEL, known, whole)
        storage.write_table(found.epochs, folder / EPOCHS, known)
        folders.tidy(folder, JOB)

    in_first(write)
    return read_run(folder)


def _if_finite(answers: Callable[[], EvaluationLog]) -> EvaluationLog | None:
    """The log of a model that has unlearned, or None, with a warning, where it cannot be scored
    any more.
    """
    try:
        found = answers()
        kinds = (found.gold, found.paraphrased, found.perturbed)
        reason = (
            ""
            if all(bool(np.isfinite(one.average).all()) for one in kinds if one is not None)
            else "not finite"
        )
    except InvalidInput as error:  # what could be scored before the first update, and no longer can
        found, reason = None, str(error)
    if reason:
        warnings.warn(
            f"answers of the unlearned model are left out: {reason}", RuntimeWarning, stacklevel=3
        )
    return None if reason else found


def finished(folder: Path) -> Run | None:
    """The run of a folder if it is finished; of ours, a damaged table or model is set aside, to
    be made again.
    """
    if not folders.claimed(folder, JOB):
        return read_run(folder) if (folder / EPOCHS).exists() else None
    there, whole = (folder / MODEL).exists(), storage.read_kept(folder / MODEL, check_whole)
    if there and whole is None and (folder / EPOCHS).exists():
        leftovers.set_aside(folder / EPOCHS, "its model is made again")
    return storage.read_kept(folder / EPOCHS, lambda path: read_run(path.parent))


def _of_model(measure: Measure[LanguageModel], language: LanguageModel) -> Measure[nn.Module]:
    """The same measure, of the bare model."""

    def call(epoch: int, model: nn.Module) -> Mapping[str, float]:
        return measure.call(epoch, language._replace(model=cast("PreTrainedModel", model)))

    return Measure(measure.name, call)


def read_run(folder: Location) -> Run:
    """The run in a folder.

    Raises `InvalidInput` where there is none, or one that is not finished, and for tables that hold
    what `llm.schemas` does not allow.
    """
    # Here, because building the schemas takes as long as answering --help.
    from llm.schemas import Answered, ByEpoch, Epochs, check_table

    path = Path(folder)
    if not (path / EPOCHS).is_file():
        unfinished = path.is_dir() and any(path.iterdir())
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
        if len(frame) > 0:  # of a run that diverged at once there may be no examples
            check_table(schema, frame, f"run, {name}", os.fspath(path / name))
    return Run(examples, answers, epochs, epochs.attrs[storage.KEY]["settings"], path)


def _logp_of(
    log: EvaluationLog, field: str, index: Int[np.ndarray, "examples"], encoded: Sequence[Encoded]
) -> Float[np.ndarray, "examples"]:
    """log pi of each response (nats) in the order of `index`; raises `InvalidInput` for other
    examples or tokens.
    """
    places = {int(one): place for place, one in enumerate(log.index)}
    lacking = [int(one) for one in index if int(one) not in places]
    require(
        not lacking and len(log.index) == len(index),
        field,
        lacking[:1],
        f"all forget examples in {log.file}",
    )
    order = [places[int(one)] for one in index]
    loss, length = (
        total_loss(log)[order],
        np.array([len(one.tokens) - one.prompt for one in encoded]),
    )
    uneven = int((np.asarray(log.gold.length)[order] != length).sum())
    require(
        not uneven,
        field,
        log.file,
        f"scores of the same tokens of each response ({uneven} have other lengths)",
    )
    return -loss
