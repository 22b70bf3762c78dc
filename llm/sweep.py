"""Many methods on one model: each unlearned and evaluated in a folder of its own, several at a time.

    original/, retrained/    TOFU_EVAL.json of the model before unlearning and of the one retrained
    RUN/                     a run of `llm.runs` with the evaluation of its model; RUN is its word and seed

What is finished is not done again, and what was stopped goes on. All models are compared with the retrained one. By
which rule one run of several of a method is called its best is said in `llm.summaries.best`.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from llm.answers import responses
from llm.authors import Authors
from llm.evaluated import COLUMNS, evaluate_into, tofu_measure
from llm.generation import NEW_TOKENS
from llm.layouts import OPEN_UNLEARNING
from llm.measures import TofuLogs
from llm.methods import METHODS, Method
from llm.models import LanguageModel, check_savable, load, save
from llm.optimization import Optimization
from llm.options import ModelOptions, load_model
from llm.parallel import several
from llm.refusals import REFUSALS, with_refusals
from llm.runs import EPOCHS, MODEL, unlearn_into
from llm.sources import read
from llm.summaries import long_table
from llm.task_vectors import negate_task_vector
from llm.tofu import TofuSets, retain_word, tofu_sets
from llm.unlearning import Unlearning
from markov import storage
from markov.errors import require
from markov.storage import Location

BASELINES = ("original", "retrained")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What unlearns what, and how it is evaluated; `retrained` is a model as `options.model` is.

    `data` is a forget split (see `llm.tofu.split_of`), `retain_data`, if not given, the one that goes with it.
    """

    options: ModelOptions
    retrained: str
    data: str
    retain_data: str | None = None
    authors: Authors | None = None
    refusals: tuple[str, ...] = REFUSALS
    max_new_tokens: int = NEW_TOKENS
    variant: str = "geometric"
    save_models: bool = False

    def sets(self) -> TofuSets:
        """The sets that models are evaluated on."""
        return tofu_sets(self.data, authors=self.authors)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of a sweep: a method, or in its place the scale of a task vector, and how it is optimised.

    After the epochs `measured`, besides the start and the end, forget quality and model utility are taken as well (see
    `epochs`). Raises `InvalidInput` for numbers that cannot be.
    """

    method: Method | None
    optimization: Optimization
    scale: float = 0.0
    retain_probe: int = 100
    measured: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.scale < math.inf, "scale", self.scale, "a finite number >= 0")
        allowed = f"epochs from 0 to {self.optimization.epochs}"
        require(set(self.measured) <= {*range(self.optimization.epochs + 1)}, "measured", self.measured, allowed)

    @property
    def word(self) -> str:
        """The method in a word."""
        return self.method.word if self.method else f"task_vector:{self.scale:g}"

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.word.replace(':', '_').replace('@', '_lambda')}_seed{self.optimization.seed}"

    def unlearning(self) -> Unlearning:
        """Its settings where it has a method."""
        assert self.method is not None
        return Unlearning(
            objective=self.method.objective,
            optimization=self.optimization,
            retain_term=self.method.retain_term,
            retain_weight=self.method.retain_weight,
            retain_probe=self.retain_probe,
        )


def sweep(
    folder: Location, task: Task, runs: Sequence[Run], *, n_jobs: int = -1, progress: bool = True
) -> pd.DataFrame:
    """Make the runs that are not there yet; all their measures, and those of the model before and of the retrained one.

    Columns: those of `llm.measures.measures`, with `model` ("original", "retrained", or the word of the run), `title`,
    `beta`, `gamma`, `retain_weight` (nan where there are none), `seed` and `status`. Raises `InvalidInput` as
    `unlearn_into` and `evaluate_into` do, for a run that comes twice, for data of which the sets to evaluate on do not
    follow, and for a retrained model to which the same answers have other numbers of tokens.
    """
    place = storage.check_writable(folder, "out", folder=True)
    names = [run.folder for run in runs]
    require(len(set(names)) == len(names), "methods", names, "each method and seed once")
    sets, ways = task.sets(), {"n_jobs": n_jobs, "progress": progress}
    place.mkdir(parents=True, exist_ok=True)
    missing = [kind for kind in BASELINES if not (place / kind / OPEN_UNLEARNING).exists()]
    several("baselines", [joblib.delayed(baseline)(place / kind, task, kind) for kind in missing], **ways)
    logs = {kind: baseline(place / kind, task, kind, sets) for kind in BASELINES}
    original, retrained = (logs[kind].of("forget") for kind in BASELINES)
    same = np.array_equal(np.asarray(original.gold.length), np.asarray(retrained.gold.length))
    require(same, "retrained", task.retrained, "a model with the tokenizer and the template of the one that unlearns")
    left = [run for run in runs if not (place / run.folder / OPEN_UNLEARNING).exists()]
    jobs = [joblib.delayed(run_in)(place / run.folder, task, run) for run in left]
    several("unlearn and evaluate", jobs, **ways)
    frames = [long_table(logs, retrained, variant=task.variant).assign(title=lambda frame: frame["model"])]
    for run in runs:
        own = long_table({run.word: run_in(place / run.folder, task, run, sets)}, retrained, variant=task.variant)
        frames.append(own.assign(**_described(run), status=_status(place / run.folder)))
    return pd.concat(frames, ignore_index=True)


def _described(run: Run) -> dict[str, Any]:
    known: dict[str, Any] = {"seed": run.optimization.seed}
    if run.method is None:
        return known | {"title": "task vector"}
    known |= {name: getattr(run.method.objective, name) for name in METHODS[run.method.name].takes}
    known |= {"retain_weight": run.method.retain_weight} if run.method.retain_term != "none" else {}
    return known | {"title": METHODS[run.method.name].title}


def _status(folder: Path) -> str:
    """How a run ended: ok, collapsed or nan (see `llm.unlearning.Unlearned`); ok for one that is not watched."""
    path = folder / EPOCHS
    return str(storage.read_table(path)["status"].iloc[-1]) if path.exists() else "ok"


def baseline(folder: Path, task: Task, kind: str, sets: TofuSets | None = None) -> TofuLogs:
    """The logs of the model before unlearning or of the retrained one, evaluated now if they are not there."""
    word = task.options.model if kind == "original" else task.retrained
    return _evaluated(folder, task, {"model": word}, sets, lambda: load_model(task.options, word))


def run_in(folder: Path, task: Task, run: Run, sets: TofuSets | None = None) -> TofuLogs:
    """The logs of the model that a run leaves, which is made and evaluated now if it is not there."""

    def made() -> LanguageModel:
        language = load_model(task.options)
        (unlearned if run.method else negated)(folder, task, run, language)
        return load(folder / MODEL, dtype=task.options.dtype, device=task.options.device)._replace(name=run.word)

    logs = _evaluated(folder, task, {"model": task.options.model, "run": run}, sets, made)
    if not task.save_models:
        shutil.rmtree(folder / MODEL, ignore_errors=True)
    return logs


def unlearned(folder: Path, task: Task, run: Run, language: LanguageModel) -> None:
    """Unlearn into the folder."""
    assert run.method is not None
    require((folder / MODEL).exists() or not (folder / EPOCHS).exists(), "out", str(folder), "a run with its model")
    words = (task.data, task.retain_data or retain_word(task.data))
    forget, retain = (read(word, authors=task.authors) for word in words)
    preferred = with_refusals(forget, run.optimization.seed, task.refusals) if run.method.prefers else None
    measure, options = None, {"max_length": task.options.max_length}
    if run.measured:
        retrained = baseline(folder.parent / "retrained", task, "retrained").of("forget")
        options |= {"max_new_tokens": task.max_new_tokens, "budget": task.options.budget}
        measure = tofu_measure(task.sets(), retrained, run.measured, variant=task.variant, **options)
    with warnings.catch_warnings():
        # Of several at a time nobody could tell which it was: the table has a column for it.
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


def negated(folder: Path, task: Task, run: Run, language: LanguageModel) -> None:
    """Take the task vector of the forget data away, and save what is left."""
    if not (folder / MODEL).exists():
        check_savable(language, folder / MODEL)
        encoded = responses(language, read(task.data, authors=task.authors), max_length=task.options.max_length)
        found = negate_task_vector(language, encoded, run.optimization, scale=run.scale, progress=False)
        save(found, folder / MODEL, storage.provenance({"model": language.name, "run": run}))


def _evaluated(folder: Path, task: Task, settings: Mapping[str, Any], sets: TofuSets | None, start: Any) -> TofuLogs:
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


def epochs(folder: Location, runs: Sequence[Run], table: pd.DataFrame) -> pd.DataFrame:
    """The tables of epochs of runs that have methods (`llm.unlearning.Unlearned`), with `model`, `title` and `seed`.

    Forget quality and model utility before the first update and after the last are those of `table`, which `sweep` has
    made: no run needs to take them again.
    """
    known, frames = table[table["measure"].isin(COLUMNS)], []
    for run in runs:
        seed = run.optimization.seed
        own = storage.read_table(Path(folder) / run.folder / EPOCHS)
        before = known[known["model"] == "original"]
        after = known[(known["model"] == run.word) & (known["seed"] == seed)]
        for epoch, ends in ((own["epoch"].min(), before), (own["epoch"].max(), after)):
            values = ends.set_index("measure")["value"].reindex(list(COLUMNS))
            own.loc[own["epoch"] == epoch, list(COLUMNS)] = values.to_numpy()
        frames.append(own.assign(model=run.word, title=_described(run)["title"], seed=seed))
    return pd.concat(frames, ignore_index=True)
