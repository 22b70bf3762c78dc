"""Several long calls at a time, under one progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import joblib
import torch
from tqdm.auto import tqdm


def several(label: str, jobs: Sequence[Any], *, n_jobs: int = -1, progress: bool = True) -> None:
    """Make calls that `joblib.delayed` holds: one process per core, or one call after the other on
    a GPU.

    Which of them ends first changes nothing: they leave their results on disk. `n_jobs` is
    joblib's, and so is what is raised: the error of the first call that fails, the others being
    stopped.
    """
    if not jobs:
        return
    alone = torch.cuda.is_available() or len(jobs) == 1
    parallel = joblib.Parallel(n_jobs=1 if alone else n_jobs, return_as="generator_unordered")
    with warnings.catch_warnings():
        # A process that has grown large is replaced by a fresh one, which loses nothing.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        for _ in tqdm(
            parallel(jobs), label, len(jobs), disable=None if progress else True, leave=False
        ):
            pass
