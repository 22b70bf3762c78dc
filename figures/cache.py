"""How figures are made, and the tables that they draw: computed once, and kept with provenance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import joblib
import pandas as pd

from figures.scale import Scale
from markov.console.progress import bar
from markov.errors import require
from markov.files import leftovers, storage

if TYPE_CHECKING:
    from figures.language.own_model import OwnModel

Job = TypeVar("Job")
DRAWING = ("figures.style",)  # modules that change what is drawn, never what is computed


@dataclass(frozen=True)
class Context:
    """How tables are made: the scale, the number of processes, and since when cached runs count."""

    scale: Scale = Scale()
    n_jobs: int = -1
    progress: bool = True
    since: float = 0.0  # seconds since the epoch
    runs: tuple[Path, ...] = ()  # runs of unlearning that the user made
    own: OwnModel | None = None  # a language model to unlearn in place of the default one
    logs: tuple[Path, Path] | None = None  # evaluation logs: before unlearning, and retrained
    study: Path | None = None  # the folder of a study of a language model
    evidence: Path | None = None  # the folder with the tables that a ledger judges


def read_fresh(context: Context, path: Path, key: str | None = None) -> pd.DataFrame | None:
    """Return a cached table, or None if it has to be made.

    That is so if it is not there, is too old, or was damaged and has been set aside; and, where a
    `key` is given, if it is the table of another one.
    """
    if not is_fresh(context, path):
        return None

    def read(path: Path) -> pd.DataFrame:
        frame = storage.read_table(path)
        made = frame.attrs[storage.KEY].get("fingerprint")
        require(key in (None, made), "table", str(path), "that of its own name")
        return frame

    return storage.read_kept(path, read)


def cached(
    context: Context, module: str, settings: object, compute: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """Return the frame of `compute`, from the cache if it is there.

    It is kept under the settings and the code behind it: a `module` and all that it imports.
    """
    path = _path(module, settings)
    frame = read_fresh(context, path, cache_key(settings, module))
    if frame is None:
        leftovers.clear(path.parent)
        storage.write_table(compute(), path, storage.provenance(settings, module, without=DRAWING))
        frame = storage.read_table(path)
    frame.attrs = {}  # pandas would copy the provenance with every part that is taken of the frame
    return frame


def cached_each(
    context: Context, module: str, jobs: Sequence[Job], compute: Callable[[Job], pd.DataFrame]
) -> pd.DataFrame:
    """Return the frames of `compute` for each job, one below the other.

    They are made in several processes at a time. Each is kept as soon as it is there, as by
    `cached` with the job as settings, so that a drawing that is stopped loses only the frames that
    were in progress.
    """
    left = [job for job in jobs if not is_cached(context, module, job)]
    parallel = joblib.Parallel(n_jobs=context.n_jobs, return_as="generator_unordered")
    show = context.progress and len(left) > 0
    with bar(len(left), module.rpartition(".")[2], show=show, leave=False) as done:
        for _ in parallel(joblib.delayed(_each)(context, module, job, compute) for job in left):
            done.update()
    kept = replace(context, since=0.0)
    return pd.concat([_each(kept, module, job, compute) for job in jobs], ignore_index=True)


def _each(
    context: Context, module: str, job: Job, compute: Callable[[Job], pd.DataFrame]
) -> pd.DataFrame:
    return cached(context, module, job, lambda: compute(job))


def is_cached(context: Context, module: str, settings: object) -> bool:
    """Return whether `cached` would compute nothing."""
    return is_fresh(context, _path(module, settings))


def is_fresh(context: Context, path: Path) -> bool:
    """Return whether a path exists and is not older than the user wants.

    This is the one rule for all that is kept.
    """
    return path.exists() and path.stat().st_mtime >= context.since


def discard_stale(context: Context, folder: Path, mark: Path) -> None:
    """Discard a folder whose `mark` exists and is older than the user wants."""
    if mark.exists() and not is_fresh(context, mark):
        leftovers.discard(folder)


def cache_key(settings: object, module: str) -> str:
    """Return the name under which something that a module makes is kept.

    Modules that only change how things are drawn do not enter it.
    """
    return storage.fingerprint(settings, module, without=DRAWING)


def _path(module: str, settings: object) -> Path:
    return (
        storage.cache_dir()
        / "tables"
        / f"{module.rpartition('.')[2]}-{cache_key(settings, module)}.parquet"
    )
