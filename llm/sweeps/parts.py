"""A sweep in parts: each is made by itself, on any machine that shares the folder of the sweep.

A part is of whole models: the baselines and the runs are dealt out in turn. What lies in its folder
already is not made again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import joblib

from llm.logs.reading import OPEN_UNLEARNING
from llm.sweeps.comparable import check_comparable
from llm.sweeps.parallel import several
from llm.sweeps.sweep import PlannedRun, Task, baseline, checked_sets, claim, run_in, status_of
from llm.unlearning.epoch import NAN
from llm.unlearning.runs import MODEL
from markov.errors import require_whole
from markov.files import folders, storage
from markov.files.storage import Location


def make_part(
    folder: Location,
    task: Task,
    runs: Sequence[PlannedRun],
    part: int,
    count: int,
    *,
    n_jobs: int = -1,
    progress: bool = True,
) -> int:
    """Make the models of part number `part` (from 0) of `count`; return how many these are.

    They are left in the folder, where `sweep` finds them. Raises `InvalidInput` as `sweep` does,
    and for a part that is not below `count`.
    """
    require_whole(count, "count", 1)
    require_whole(part, "part", 0, count - 1)
    place = storage.check_writable(folder, "out", folder=True)
    checked_sets(task, runs)
    own, ways = [*task.baselines, *runs][part::count], {"n_jobs": n_jobs, "progress": progress}
    kinds = [one for one in own if isinstance(one, str)]
    chosen = [one for one in own if not isinstance(one, str)]
    # What is measured along a run is compared with the retrained model. Two parts that make it at
    # the same time write the same.
    if any(run.measured for run in chosen):
        kinds = list(dict.fromkeys([*kinds, *task.baselines[1:]]))
    left = [run for run in chosen if not is_made(place, task, run.folder)]
    with folders.given_back(place, "sweep"):
        claim(place, task, [run.folder for run in runs])
        # Another part compares what this one makes, when it is too late to find that they differ.
        if not any(is_made(place, task, kind) for kind in task.baselines):
            check_comparable(task.options, task.retrained)
        several(
            "baselines",
            [
                joblib.delayed(baseline)(place / kind, task, kind)
                for kind in kinds
                if not is_made(place, task, kind)
            ],
            **ways,
        )
    jobs = [joblib.delayed(run_in)(place / run.folder, task, run) for run in left]
    several("unlearn and evaluate", jobs, **ways)
    return len(own)


def missing(folder: Location, task: Task, runs: Sequence[PlannedRun]) -> list[str]:
    """Return the folders of the models of a sweep that are not made, or not wholly."""
    names = [*task.baselines, *(run.folder for run in runs)]
    return [name for name in names if not is_made(Path(folder), task, name)]


def is_made(place: Path, task: Task, name: str) -> bool:
    """Return whether a model of a sweep was evaluated, or could not be since its run diverged."""
    folder = place / name
    if not (folder / OPEN_UNLEARNING).exists():
        return status_of(folder) == NAN
    kept = task.save_models and name not in task.baselines
    return not kept or os.path.lexists(folder / MODEL)
