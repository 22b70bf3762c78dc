"""The runs that figures of language models draw on.

They are the four corners on the default model, or runs of the user's own. A run is a folder
(`llm.unlearning.runs`), kept in the cache under its settings and the code behind it, so that
figures share it and a second drawing trains nothing. The default model knows fictional authors by
heart, of which a fifth is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import joblib
import pandas as pd

from figures.cache import Context, cache_key, cached, is_fresh
from figures.language import studies
from figures.language.own_model import OwnModel, Perturbation, runs_of_own
from figures.language.sources import Models, models
from figures.scale import Scale
from llm.data.authors.corpus import PERCENT, Authors
from llm.diagnostics.weights import corners
from llm.logs.log import EvaluationLog
from llm.models.answers import answer_log, log_of, log_table
from llm.models.language_model import LanguageModel
from llm.models.small_authors import AUTHORS_BUDGET, DefaultModels, build, folder_of, sets
from llm.sweeps.parallel import several
from llm.training.loop import Optimization
from llm.unlearning.runs import EPOCHS, Run, finished, read_run, unlearn_into
from llm.unlearning.unlearn import Unlearning, weights_by_epoch
from markov.errors import require
from markov.files import leftovers, storage
from markov.objectives import Objective, method_name

DEFAULT = f"default model, forget{PERCENT}"
SEED = 0


@dataclass(frozen=True, kw_only=True)
class AuthorsStudy:
    """How the default model unlearns: beta and retain weight of the paper for forget10.

    There are two sets of them: where log-probabilities are summed and where they are averaged over
    tokens. The optimisation is that of a small model, and one for all figures.
    """

    models: DefaultModels = DefaultModels()
    epochs: int = 5
    own_epochs: int = 10  # of a user's own model
    batch: int = 16
    learning_rate: float = 1e-3
    beta: float = 0.1
    beta_per_token: float = 4.5
    retain_weight: float = 1.0
    retain_weight_per_token: float = 0.125
    noises: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)

    def objectives(self) -> dict[str, Objective]:
        """Return the four corners by name."""
        return corners(self.beta, self.beta_per_token)

    def optimization(self) -> Optimization:
        """Return how all of them are optimised."""
        return Optimization(
            epochs=self.epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            budget=AUTHORS_BUDGET,
            seed=SEED,
        )

    def unlearning(self, objective: Objective, *, ends: bool = False) -> Unlearning:
        """Return how one of them is run.

        `ends`: what becomes of a model is asked, so that no gradients are taken along the way, and
        more is said of what stays.
        """
        return Unlearning(
            objective=objective,
            optimization=self.optimization(),
            retain_term="cross_entropy",
            retain_weight=self.retain_weight_per_token
            if objective.normalize
            else self.retain_weight,
            gradients=() if ends else tuple(sorted({0, 1, self.epochs})),
            retain_probe=400 if ends else 50,
        )


def study(scale: Scale) -> AuthorsStudy:
    """Return the study of a scale.

    At quick scale it has a fifth of the authors and a model that learns them in seconds.
    """
    if not scale.quick:
        return AuthorsStudy()
    small = DefaultModels(
        authors=Authors(authors=20), width=96, depth=2, mlp_width=256, heads=2, batch=16
    )
    return AuthorsStudy(
        models=replace(small, vocabulary=1024),
        own_epochs=5,
        batch=8,
        learning_rate=5e-4,
        noises=(0.0, 0.5),
    )


class Wanted(NamedTuple):
    """A run of the study: what is minimised and on what.

    It has the kind of default model that unlearns, the reference's noise, and whether only its
    `ends` are asked about.
    """

    objective: Objective
    start: str = "original"
    noise: Perturbation | None = None
    ends: bool = False


def run_of(
    context: Context,
    objective: Objective,
    *,
    start: str = "original",
    noise: Perturbation | None = None,
    ends: bool = False,
) -> Run:
    """Return one run of the study, from the cache or made now.

    `start` is the kind of default model that unlearns.
    """
    chosen, folder = (
        study(context.scale),
        folder_for(context, Wanted(objective, start, noise, ends)),
    )
    leftovers.clear(folder.parent)
    kept = finished(folder) if _kept(context, folder) else None
    if kept is not None:
        return kept
    if (folder / EPOCHS).exists():  # it is older than what the user wants
        leftovers.discard(folder)
    forget, retain = sets(chosen.models)
    language = _build(context, start)
    reference = None
    if noise is not None:
        reference = noise.log(language, forget, SEED, progress=context.progress)
    return unlearn_into(
        folder,
        language,
        forget,
        retain,
        chosen.unlearning(objective, ends=ends),
        reference=reference,
        original=default_log(context, start),
        retrained=default_log(context, "retrained"),
        progress=context.progress,
    )


def runs(context: Context, start: str = "original", *, ends: bool = False) -> list[Run]:
    """Return the user's own runs where there are any, else the four corners.

    The corners are on the user's model, in the first seed of a study, or on the default model.
    """
    chosen = study(context.scale)
    if context.runs:
        return [read_run(folder) for folder in context.runs]
    if context.study:
        return studies.corners(context.study)[0]
    return models_runs(
        context,
        [Wanted(objective, start, ends=ends) for objective in chosen.objectives().values()],
    )


def models_runs(context: Context, wanted: Sequence[Wanted]) -> list[Run]:
    """Return runs of the study in this order, on the user's own model where there is one."""
    if context.own is None:
        return runs_of(context, wanted)
    chosen = study(context.scale)
    chosen = replace(chosen, epochs=own_epochs(context, context.own))
    settings = [chosen.unlearning(one.objective, ends=one.ends) for one in wanted]
    return runs_of_own(context, context.own, settings, [one.noise for one in wanted])


def own_epochs(context: Context, own: OwnModel) -> int:
    """Return the passes over the forget data of a user's own model, as many as in the paper."""
    return own.epochs or study(context.scale).own_epochs


def runs_of(context: Context, wanted: Sequence[Wanted]) -> list[Run]:
    """Return runs of the study in this order.

    Those that are not in the cache are made in several processes at a time.
    """
    missing = [one for one in wanted if not _kept(context, folder_for(context, one))]
    if missing:
        quiet, kinds = (
            replace(context, progress=False),
            dict.fromkeys(["retrained", *(one.start for one in missing)]),
        )
        absent = [
            kind for kind in kinds if not folder_of(study(context.scale).models, kind).exists()
        ]
        ways = {"n_jobs": context.n_jobs, "progress": context.progress}
        if absent:
            several("models", [joblib.delayed(default_log)(quiet, kind) for kind in absent], **ways)
        jobs = [joblib.delayed(_made)(quiet, one) for one in missing]
        several("unlearning", jobs, **ways)
    kept = replace(context, since=0.0)
    return [_made(kept, one) for one in wanted]


def _made(context: Context, one: Wanted) -> Run:
    return run_of(context, one.objective, start=one.start, noise=one.noise, ends=one.ends)


def folder_for(context: Context, wanted: Wanted) -> Path:
    """Return where a run of the study lies; its name stands for the settings and the code."""
    chosen = study(context.scale)
    settings = {
        "models": chosen.models,
        "unlearning": chosen.unlearning(wanted.objective, ends=wanted.ends),
    }
    key = {**settings, "start": wanted.start, "noise": wanted.noise}
    return storage.cache_dir() / "unlearning" / cache_key(key, __name__)


def _kept(context: Context, folder: Path) -> bool:
    """Return whether a finished run lies there that is not older than what the user wants."""
    return is_fresh(context, folder / EPOCHS)


def source_of(context: Context) -> str:
    """Return what unlearns, for titles."""
    if context.study:
        return studies.name_of(context.study)
    if context.own and not context.runs:
        return f"{Path(context.own.model).name}, {Path(context.own.data).stem}"
    return ", ".join(folder.name for folder in context.runs) or DEFAULT


def trajectories(found: Sequence[Run]) -> pd.DataFrame:
    """Return what runs recorded, side by side: a row per run, epoch and forget example.

    Columns `run` (counts from 0), `method`, `beta`, `gamma`, `epoch`, `index`, `logp`, `length`,
    `ref`, `weight` (of the objective that the run minimised), and where recorded `retrained`,
    `needed`, `needed_per_token` and `gradient_norm`.
    """
    frames = []
    for number, run in enumerate(found):
        objective = run.objective
        frame = weights_by_epoch(run.examples, {"own": objective}).rename(
            columns={"weight_own": "weight"}
        )
        known = {
            "run": number,
            "method": method_name(objective),
            "beta": objective.beta,
            "gamma": objective.gamma,
        }
        frames.append(frame.assign(**known))
    frame = pd.concat(frames, ignore_index=True)
    first = ["run", "method", "beta", "gamma"]
    return frame[[*first, *(name for name in frame if name not in first)]]


def default_log(context: Context, kind: str) -> EvaluationLog:
    """Return the answers of a default model on the forget set, as an evaluation log."""
    chosen = study(context.scale)

    def compute() -> pd.DataFrame:
        return log_table(
            answer_log(_build(context, kind), sets(chosen.models).forget, progress=context.progress)
        )

    return log_of(cached(context, __name__, {"models": chosen.models, "kind": kind}, compute), kind)


def _build(context: Context, kind: str) -> LanguageModel:
    return build(study(context.scale).models, kind, progress=context.progress)


def check_compared(found: Sequence[Run]) -> None:
    """Raise `InvalidInput` for a run that was not told of a retrained model."""
    allowed = (
        "one made with --retrained MODEL, which says what a model that never saw the "
        "forget data would do"
    )
    for run in found:
        require("retrained" in run.logs, "run", str(run.folder), allowed)


def models_of(found: Sequence[Run], source: str) -> Models:
    """Return truth-ratio logs of runs that started from one model, by method.

    See `figures.language.sources.models`. A run that diverged so far that its model cannot be
    scored is left out. Raises `InvalidInput` for a run that was not told of a retrained model.
    """
    check_compared(found)
    logs = [run.logs for run in found]
    names = [method_name(run.objective) for run in found]
    if len(set(names)) < len(names):
        names = [f"{name} ({run.folder.name})" for name, run in zip(names, found, strict=True)]
    # A run that diverged may have left a model under which no answer can be scored.
    unlearned = {
        name: own["unlearned"] for name, own in zip(names, logs, strict=True) if "unlearned" in own
    }
    return models(source, logs[0]["original"], logs[0]["retrained"], unlearned)


def start_of(run: Run, objectives: Mapping[str, Objective]) -> pd.DataFrame:
    """Return what is needed and what weight is given before the first update.

    See `llm.diagnostics.weights.diagnose`. Raises `InvalidInput` for a run that was not told of a
    retrained model.
    """
    require("needed" in run.examples, "run", str(run.folder), "one made with --retrained MODEL")
    first = run.examples[run.examples["epoch"] == 0]
    return weights_by_epoch(first, objectives).drop(columns=["epoch", "logp"])
