"""Several long calls at a time, under one progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import joblib
import torch

from markov.console.progress import bar


def several(label: str, jobs: Sequence[Any], *, n_jobs: int = -1, progress: bool = True) -> None:
    """Make the calls that `joblib.delayed` holds, several at a time.

    There is one process per core; on a GPU one call follows the other. Which call ends first
    changes nothing, since they leave their results on disk. `n_jobs` is joblib's. What is raised is
    the error of the first call that fails; the others are stopped.
    """
    if not jobs:
        return
    alone = torch.cuda.is_available() or len(jobs) == 1
    parallel = joblib.Parallel(n_jobs=1 if alone else n_jobs, return_as="generator_unordered")
    with warnings.catch_warnings():
        # joblib replaces a process that has grown large by a fresh one, and nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        with bar(len(jobs), label, show=progress, leave=False) as done:
            for _ in parallel(jobs):
                done.update()
