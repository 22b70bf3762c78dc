"""Many methods on one model: each unlearned and evaluated in a folder of its own.

    original/, retrained/    TOFU_EVAL.json of the model before unlearning and of the one retrained
    RUN/                     a run of `llm.unlearning.runs` with the evaluation of its model; RUN is
                             its word and seed

Several runs are made at a time. What is finished is not done again, and what was stopped goes on.
All models are compared with the retrained one, where there is one. The rule by which one of several
runs of a method is called its best is that of `llm.logs.summaries.best`.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from llm.data.authors.corpus import Authors
from llm.data.by_author import per_author
from llm.data.refusals import REFUSALS, with_refusals
from llm.data.sources import read
from llm.data.splits import TofuSets, checked_for, retain_word, tofu_sets
from llm.data.tofu import Example
from llm.evaluation.folders import JOB as EVALUATION
from llm.evaluation.folders import evaluate_into, tofu_measure
from llm.logs.measures import TofuLogs
from llm.logs.reading import OPEN_UNLEARNING
from llm.logs.summaries import long_table
from llm.models.answers import responses
from llm.models.language_model import LanguageModel
from llm.models.saving import check_savable, save
from llm.models.source import ModelOptions, load, load_model
from llm.scoring.limits import NEW_TOKENS
from llm.sweeps.comparable import check_comparable
from llm.sweeps.duration import check_ends
from llm.sweeps.parallel import several
from llm.sweeps.times import laps
from llm.training.adapters import Lora
from llm.training.loop import Optimization
from llm.unlearning.epoch import NAN
from llm.unlearning.methods import METHODS, Method
from llm.unlearning.runs import EPOCHS, MODEL, unlearn_into
from llm.unlearning.runs import JOB as UNLEARNING
from llm.unlearning.task_vectors import negate_task_vector
from llm.unlearning.unlearn import Unlearning
from markov.errors import InvalidInput, require, require_epochs
from markov.files import folders, leftovers, storage, turns
from markov.files.storage import Location

BASELINES = ("original", "retrained")
JOB, MEASURED = "run", (OPEN_UNLEARNING, MODEL)  # what a run that can be measured has
# What the command writes beside the folders of the runs.
TABLES = (
    "sweep.parquet",
    "best.parquet",
    *(f"summary.{suffix}" for suffix in ("parquet", "md", "tex")),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Which model unlearns which data, and how it is evaluated.

    `retrained` names a model as `options.model` does, or is None where there is none. `data` is a
    forget split (see `llm.data.splits.split_of`), and `retain_data`, if not given, the one that
    goes with it; or both are files of one's own. Into the file `times`, if there is one, goes how
    long every part took (see `llm.sweeps.times`).
    """

    options: ModelOptions
    retrained: str | None
    data: str
    retain_data: str | None = None
    authors: Authors | None = None
    refusals: tuple[str, ...] = REFUSALS
    max_new_tokens: int = NEW_TOKENS
    variant: str = "geometric"
    save_models: bool = False
    times: Path | None = None

    @property
    def baselines(self) -> tuple[str, ...]:
        """The models that are evaluated beside those of the runs."""
        return BASELINES if self.retrained is not None else BASELINES[:1]

    def sets(self) -> TofuSets:
        """Return the sets that models are evaluated on."""
        return tofu_sets(self.data, retain=self.retain_data, authors=self.authors)

    def examples(self) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """Return the examples to be forgotten, and those to be kept."""
        retain = self.retain_data or retain_word(self.data)
        return read(self.data, authors=self.authors), read(retain, authors=self.authors)


def in_a_path(word: str) -> str:
    """Return a method's word as it stands in the names of folders."""
    return word.replace(":", "_").replace("@", "_lambda")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run of a sweep: a method, or the scale of a task vector, and how it is optimised.

    After the epochs `measured`, besides the start and the end, forget quality and model utility are
    taken as well (see `llm.sweeps.along`). With `lora` a method trains adapters, not the model
    itself. Raises `InvalidInput` for numbers that are not allowed, and for the adapters of a task
    vector.
    """

    method: Method | None
    optimization: Optimization
    scale: float = 0.0
    retain_probe: int = 100
    measured: tuple[int, ...] = ()
    lora: Lora | None = None

    def __post_init__(self) -> None:
        require(0 <= self.scale < math.inf, "scale", self.scale, "a finite number >= 0")
        last = self.optimization.epochs
        require_epochs(self.measured, "measured", last)
        adapted = self.lora is not None and self.method is None
        require(not adapted, "lora", self.lora, "left out: a task vector is of all parameters")
        object.__setattr__(self, "measured", tuple(sorted({*map(int, self.measured)})))

    @property
    def word(self) -> str:
        """The method in a word."""
        return self.method.word if self.method else f"task_vector:{self.scale:g}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{in_a_path(self.word)}_seed{self.optimization.seed}"

    def unlearning(self) -> Unlearning:
        """Return the settings of unlearning, for a run that has a method."""
        assert self.method is not None
        options = {"retain_probe": self.retain_probe, "lora": self.lora}
        return self.method.unlearning(self.optimization, **options)


def sweep(
    folder: Location,
    task: Task,
    runs: Sequence[PlannedRun],
    *,
    n_jobs: int = -1,
    progress: bool = True,
) -> pd.DataFrame:
    """Make the runs that are not there yet, and return the measures of all models.

    They include the model before unlearning and the retrained one, if there is one. The columns are
    those of `llm.logs.measures.measures`, with `model` ("original", "retrained", or the word of the
    run), `title`, `beta`, `gamma`, `retain_weight` (nan where there are none), `seed` and `status`.
    Measures whose data are missing are left out. All values are nan for a run that diverged, of
    status nan, so far that its model cannot be evaluated.

    Raises `InvalidInput` as `unlearn_into` and `evaluate_into` do, for a run that comes twice, for
    data from which the sets to evaluate on do not follow, for a folder that holds another sweep or
    anything else, and for a retrained model to which the same answers have other numbers of tokens.
    """
    place = storage.check_writable(folder, "out", folder=True)
    sets, ways = checked_sets(task, runs), {"n_jobs": n_jobs, "progress": progress}
    with folders.given_back(place, "sweep"):
        claim(place, task, [run.folder for run in runs])
        missing = [kind for kind in task.baselines if not (place / kind / OPEN_UNLEARNING).exists()]
        if len(missing) == len(BASELINES):
            check_comparable(task.options, task.retrained)
        several(
            "baselines",
            [joblib.delayed(baseline)(place / kind, task, kind) for kind in missing],
            **ways,
        )
        logs = {kind: baseline(place / kind, task, kind, sets) for kind in task.baselines}
    original, theirs = (logs[kind].of("forget") for kind in (BASELINES[0], task.baselines[-1]))
    retrained = theirs if sets.comparable and task.retrained is not None else None
    same = np.array_equal(np.asarray(original.gold.length), np.asarray(theirs.gold.length))
    allowed = "a model with the tokenizer and the template of the one that unlearns"
    require(same, "retrained", task.retrained, allowed)
    left = [run for run in runs if not (place / run.folder / OPEN_UNLEARNING).exists()]
    jobs = [joblib.delayed(run_in)(place / run.folder, task, run) for run in left]
    several("unlearn and evaluate", jobs, **ways)
    authors = per_author(task.data, sets, task.authors, retain=task.retain_data)
    how = {"variant": task.variant, "per_author": authors}
    frames = [long_table(logs, retrained, **how).assign(title=lambda frame: frame["model"])]
    for run in runs:
        found = run_in(place / run.folder, task, run, sets)
        if found is None:
            unknown = dict.fromkeys(("value", "low", "high"), math.nan)
            own = frames[0][frames[0]["model"] == "original"].assign(model=run.word, **unknown)
        else:
            own = long_table({run.word: found}, retrained, **how)
        frames.append(own.assign(**_described(run), status=status_of(place / run.folder)))
    return pd.concat(frames, ignore_index=True)


def retrained_alone(folder: Location, task: Task) -> TofuLogs:
    """Return the logs of the retrained model, in the folder of a sweep of which nothing else is.

    It is evaluated now if its logs are not there, and a sweep that follows finds it. Raises
    `InvalidInput` as `sweep` does.
    """
    place = storage.check_writable(folder, "out", folder=True)
    with folders.given_back(place, "sweep"):
        claim(place, task)
        return baseline(place / "retrained", task, "retrained")


def checked_sets(task: Task, runs: Sequence[PlannedRun]) -> TofuSets:
    """Return the sets that models are evaluated on.

    Raises `InvalidInput` for what a sweep of these runs would refuse before it makes anything.
    """
    names = [run.folder for run in runs]
    require(len(set(names)) == len(names), "methods", names, "each method and seed once")
    sets = task.sets()
    for run in (one for one in runs if one.measured):
        checked_for(sets, "measured_epochs", run.measured)
    forget, _ = task.examples()  # refuses what cannot be read
    epochs = [run.optimization.epochs for run in runs]
    check_ends(task.options.model, task.options.device, forget, epochs)
    return sets


def claim(place: Path, task: Task, names: Iterable[str] = ()) -> None:
    """Claim the folder of a sweep, and look whether the places of its runs are free."""
    folders.claim(place, "sweep", _shared(task), names=(*BASELINES, *TABLES))
    for name in (*BASELINES, *names):
        folders.check_place(place / name)


def _shared(task: Task) -> dict[str, Any]:
    """Return what all runs of a sweep share; the sets are named by the evaluations themselves."""
    return {
        "model": task.options.model,
        "retrained": task.retrained,
        "data": task.data,
        "retain_data": task.retain_data,
        "refusals": storage.fingerprint(task.refusals),
        # Options that decide which numbers the same model gives to the same answers.
        **{
            name: getattr(task.options, name)
            for name in ("dtype", "template", "system", "revision", "max_length")
        },
    }


def _described(run: PlannedRun) -> dict[str, Any]:
    known: dict[str, Any] = {"seed": run.optimization.seed}
    if run.method is None:
        return known | {"title": "task vector"}
    known |= {name: getattr(run.method.objective, name) for name in METHODS[run.method.name].takes}
    known |= run.method.numbers  # with a gamma that the grid of the method does not have
    known |= {"retain_weight": run.method.retain_weight} if run.method.retain_term != "none" else {}
    return known | {"title": METHODS[run.method.name].title}


def status_of(folder: Path) -> str:
    """Return how a run ended (see `Unlearned`): ok, collapsed or nan; ok for one without epochs."""
    path = folder / EPOCHS
    return str(storage.read_table(path)["status"].iloc[-1]) if path.exists() else "ok"


def baseline(folder: Path, task: Task, kind: str, sets: TofuSets | None = None) -> TofuLogs:
    """Return the logs of the model before unlearning, or of the retrained one.

    `kind` says which; it is evaluated now if its logs are not there.
    """
    word = task.options.model if kind == "original" else task.retrained
    assert word is not None  # else there is no such baseline
    begun = folders.claimed(folder, EVALUATION)
    with laps(task.times, kind) as lap:

        def start() -> LanguageModel:
            lap("evaluate", resumed=begun)
            return load_model(task.options, word)

        return _evaluated(folder, task, {"model": word}, sets, start)


def run_in(
    folder: Path, task: Task, run: PlannedRun, sets: TofuSets | None = None
) -> TofuLogs | None:
    """Return the logs of the model that a run leaves; made and evaluated now if they are not there.

    Returns None for a model that cannot be evaluated because its run diverged.
    """

    def made() -> LanguageModel:
        # A run that is finished but not evaluated has its model, or it has to be made again.
        if (folder / EPOCHS).exists() and not os.path.lexists(folder / MODEL):
            leftovers.set_aside(folder / EPOCHS, "the model of this run is gone")
        if not (folder / EPOCHS).exists():
            lap("unlearn", resumed=UNLEARNING in begun)
        language = load_model(task.options)
        (unlearned if run.method else negated)(folder, task, run, language)
        lap("evaluate", resumed=EVALUATION in begun)
        found = load(
            folder / MODEL,
            dtype=task.options.dtype,
            device=task.options.device,
            trust_remote_code=task.options.trust_remote_code,
        )
        return found._replace(name=run.word)

    folders.claim(folder, JOB, {"run": run}, names=(), passing=() if task.save_models else (MODEL,))
    with turns.turn(folder, JOB, note=True):
        if status_of(folder) == NAN and not any((folder / one).exists() for one in MEASURED):
            return None
        begun = [job for job in (UNLEARNING, EVALUATION) if folders.claimed(folder, job)]
        settings = {"model": task.options.model, "run": run}
        try:
            with laps(task.times, run.word) as lap:
                logs = _evaluated(folder, task, settings, sets, made)
        except InvalidInput:
            if status_of(folder) != NAN:
                raise
            folders.tidy(folder, EVALUATION)
            logs = None
        if task.save_models and logs is not None and not os.path.lexists(folder / MODEL):
            with laps(task.times, run.word) as lap:  # measured before anybody asked to keep it
                made()
        # A model that an earlier call was asked to keep is not removed: its claim says so.
        if not task.save_models:
            folders.tidy(folder, JOB)
        return logs


def unlearned(folder: Path, task: Task, run: PlannedRun, language: LanguageModel) -> None:
    """Unlearn into the folder."""
    assert run.method is not None
    forget, retain = task.examples()
    preferred = (
        with_refusals(forget, run.optimization.seed, task.refusals) if run.method.prefers else None
    )
    measure, retrained, options = None, None, {"max_length": task.options.max_length}
    if run.measured:
        if task.retrained is not None:
            retrained = baseline(folder.parent / "retrained", task, "retrained").of("forget")
        options |= {"max_new_tokens": task.max_new_tokens, "budget": task.options.budget}
        measure = tofu_measure(
            task.sets(), retrained, run.measured, variant=task.variant, **options
        )
    with warnings.catch_warnings():
        # Of several runs at a time nobody could tell which one warns; the table has a column.
        warnings.filterwarnings("ignore", "the model has collapsed|unlearning ends", RuntimeWarning)
        unlearn_into(
            folder,
            language,
            forget,
            retain,
            run.unlearning(),
            preferred=preferred,
            measure=measure,
            max_length=task.options.max_length,
            progress=False,
        )


def negated(folder: Path, task: Task, run: PlannedRun, language: LanguageModel) -> None:
    """Subtract the task vector of the forget data, and save the model."""
    described = {"model": language.name, "run": run}
    folders.claim(folder, "task_vector", described, names=(MODEL,))
    if not (folder / MODEL).exists():
        check_savable(language, folder / MODEL)
        encoded = responses(
            language, read(task.data, authors=task.authors), max_length=task.options.max_length
        )
        found = negate_task_vector(
            language, encoded, run.optimization, scale=run.scale, progress=False
        )
        save(found, folder / MODEL, storage.provenance(described))


def _evaluated(
    folder: Path, task: Task, settings: Mapping[str, Any], sets: TofuSets | None, start: Any
) -> TofuLogs:
    return evaluate_into(
        folder,
        start,
        sets or task.sets(),
        settings,
        variant=task.variant,
        max_new_tokens=task.max_new_tokens,
        max_length=task.options.max_length,
        budget=task.options.budget,
        progress=False,
    )
