"""Tables that several figures draw on, computed once and cached with their provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import joblib
import numpy as np
import pandas as pd

from figures.scale import Scale
from markov.diagnostics import crossings
from markov.experiments import PAPER_BETAS, Experiment, grid
from markov.files import leftovers, storage
from markov.objectives import CORNERS, Objective
from markov.running import parts_of, run

if TYPE_CHECKING:
    from figures.language.own_model import OwnModel

Job = TypeVar("Job")
# The grid of beta for each corner: the summed log-ratio asks for a smaller beta than the mean over
# tokens.
SUMMED, PER_TOKEN = (0.05, 0.2, 0.5, 1.0), (1.0, 2.5, 4.0, 8.0)
BETAS = {
    "npo": SUMMED,
    "reference_free_npo": SUMMED,
    "length_normalized_npo": PER_TOKEN,
    "simnpo": PER_TOKEN,
}
OPTIMIZERS = ("adamw_transformers", "adamw")
DRAWING = ("figures.style",)  # changes what is drawn, never what is computed
SEARCH_SEED = 1000  # batch orders of the search for beta, apart from those that the figures show


@dataclass(frozen=True)
class Context:
    """How tables are made: at which scale, with how many processes, and from which moment on
    cached runs count.
    """

    scale: Scale = Scale()
    n_jobs: int = -1
    progress: bool = True
    since: float = 0.0  # seconds since the epoch
    runs: tuple[Path, ...] = ()  # of unlearning, that the user made
    own: OwnModel | None = None  # a language model to unlearn in place of the default one
    logs: tuple[Path, Path] | None = None  # of evaluation: before unlearning, and retrained


def table(context: Context, experiments: Sequence[Experiment]) -> pd.DataFrame:
    """The table of `experiments`; only those are run of which the cache holds no table of these
    settings and this code.

    Figures share runs, so each is kept on its own.
    """
    code, folder = storage.code_version("markov.running"), storage.cache_dir() / "tables"
    paths = {
        one: folder / f"{storage.fingerprint([one, code])}.parquet"
        for one in dict.fromkeys(experiments)
    }
    found = {one: _read(context, path) for one, path in paths.items()}
    parts = parts_of(list(found))
    discard_stale(context, parts, parts)
    missing = _begun(
        parts, [number for number, frame in enumerate(found.values()) if frame is None]
    )
    if missing:
        wanted = [list(found)[number] for number in missing]
        frame = run(wanted, n_jobs=context.n_jobs, progress=context.progress, parts=parts)
        known = storage.provenance(None, "markov.running")
        for (_, own), one in zip(frame.groupby("run"), wanted, strict=True):
            described = {
                **known,
                "settings": storage.settings_of(one),
                "seeds": [one.pretraining.seed, one.seed],
            }
            storage.write_table(own.reset_index(drop=True), paths[one], described)
            found[one] = storage.read_table(paths[one])
    leftovers.discard(parts)
    frames = [found[one].assign(run=index) for index, one in enumerate(experiments)]  # pyright: ignore[reportOptionalMemberAccess]
    return pd.concat(frames, ignore_index=True)


def _begun(parts: Path, missing: Sequence[int]) -> Sequence[int]:
    """The numbers of the experiments to run: those that an earlier call began with, if it was
    stopped.

    With some of them alone ensembles would be others, and what is kept of them would not be found.
    """
    path = parts / "missing.json"
    try:
        return [int(number) for number in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        pass
    if missing:
        with storage.atomic_path(path) as partial:
            partial.write_text(json.dumps(list(missing)), "utf-8")
    return missing


def _read(context: Context, path: Path) -> pd.DataFrame | None:
    """A cached table, or None where it has to be made: it is not there, too old, or was damaged
    and is set aside.
    """
    if not is_fresh(context, path):
        return None
    return storage.read_kept(path, storage.read_table)


def cached(
    context: Context, module: str, settings: object, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """The frame of `compute`, kept under the settings and the code behind it: a `module` and all
    that it imports.
    """
    path = _path(module, settings)
    frame = _read(context, path)
    if frame is None:
        leftovers.clear(path.parent)
        storage.write_table(compute(), path, storage.provenance(settings, module, without=DRAWING))
        frame = storage.read_table(path)
    frame.attrs = {}  # pandas would copy its provenance with every part that is taken of it
    return frame


def cached_each(
    context: Context, module: str, jobs: Sequence[Job], compute: Callable[[Job], pd.DataFrame]
) -> pd.DataFrame:
    """The frames of `compute` for each job, one below the other, made in several processes at a
    time.

    Each is kept once it is there, as by `cached` under the job itself: a drawing that was stopped
    loses no more than what it was at.
    """
    left = [job for job in jobs if not is_cached(context, module, job)]
    parallel = joblib.Parallel(n_jobs=context.n_jobs)
    parallel(joblib.delayed(_each)(context, module, job, compute) for job in left)
    kept = replace(context, since=0.0)
    return pd.concat([_each(kept, module, job, compute) for job in jobs], ignore_index=True)


def _each(
    context: Context, module: str, job: Job, compute: Callable[[Job], pd.DataFrame]
) -> pd.DataFrame:
    return cached(context, module, job, lambda: compute(job))


def is_cached(context: Context, module: str, settings: object) -> bool:
    """Whether `cached` would compute nothing."""
    return is_fresh(context, _path(module, settings))


def is_fresh(context: Context, path: Path) -> bool:
    """Whether something lies there that is not older than what the user wants: one rule for all
    that is kept.
    """
    return path.exists() and path.stat().st_mtime >= context.since


def discard_stale(context: Context, folder: Path, mark: Path) -> None:
    """Discards a folder whose `mark` is there and older than what the user wants."""
    if mark.exists() and not is_fresh(context, mark):
        leftovers.discard(folder)


def cache_key(settings: object, module: str) -> str:
    """The name under which something is kept that a module makes: what is only drawn with
    changes none of it.
    """
    return storage.fingerprint(settings, module, without=DRAWING)


def _path(module: str, settings: object) -> Path:
    return (
        storage.cache_dir()
        / "tables"
        / f"{module.rpartition('.')[2]}-{cache_key(settings, module)}.parquet"
    )


def paper_runs(context: Context) -> pd.DataFrame:
    """NPO and SimNPO with the paper's betas, in both cases and under both AdamW rules."""
    scale, experiments = context.scale, []
    for name, case in scale.cases().items():
        base = replace(scale.experiment(), case=case)
        objectives = [_corner(method, beta) for method, beta in PAPER_BETAS[name].items()]
        experiments += grid(
            base,
            optimizer=OPTIMIZERS,
            objective=objectives,
            pretraining=scale.pretrainings(),
            seed=range(scale.orders),
        )
    return table(context, experiments)


def search_runs(context: Context) -> pd.DataFrame:
    """Every corner at every beta of its grid, on batch orders of their own."""
    scale, experiments = context.scale, []
    objectives = [_corner(method, beta) for method, betas in BETAS.items() for beta in betas]
    for case in scale.cases().values():
        recorded = scale.search_recorded
        base = replace(scale.experiment(), case=case, recorded=recorded, steps=recorded[-1])
        base = replace(base, test_examples=scale.search_examples, gradient_examples=0)
        seeds = range(SEARCH_SEED, SEARCH_SEED + scale.search_orders)
        experiments += grid(
            base, objective=objectives, pretraining=scale.pretrainings(), seed=seeds
        )
    return table(context, experiments)


def best_betas(search: pd.DataFrame) -> pd.DataFrame:
    """The beta of each corner with the least cost: geometric mean over runs and forget components
    of retain distance.

    A beta with which some run does not reach its goal is taken only where there is no other; then
    the most reached wins.
    """
    found = crossings(search)
    grouped = found.assign(log_cost=np.log(found["retain_distance"])).groupby(
        ["case", "method", "beta"]
    )
    ranked = grouped[["log_cost", "reached"]].mean().reset_index()
    ranked = ranked.sort_values(["reached", "log_cost"], ascending=[False, True], kind="stable")
    return ranked.groupby(["case", "method"], as_index=False).first()


def corner_runs(context: Context) -> pd.DataFrame:
    """The four corners, each at its best beta, with the gradient norms of the forget components."""
    scale, experiments = context.scale, []
    best = best_betas(search_runs(context)).set_index(["case", "method"])["beta"]
    for name, case in scale.cases().items():
        base = replace(scale.experiment(), case=case)
        objectives = [_corner(method, float(best[name, method])) for method in CORNERS]
        experiments += grid(
            base, objective=objectives, pretraining=scale.pretrainings(), seed=range(scale.orders)
        )
    return table(context, experiments)


def _corner(method: str, beta: float) -> Objective:
    return Objective(beta, 0.0, *CORNERS[method])
