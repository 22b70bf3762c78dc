"""Several long calls at a time, under one progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from markov.running.backends import elsewhere, together


def several(label: str, jobs: Sequence[Any], *, n_jobs: int = -1, progress: bool = True) -> None:
    """Make the calls that `joblib.delayed` holds, several at a time.

    There is one process per core; on a GPU one call follows the other. Where joblib was told of a
    cluster, its workers make them. Which call ends first changes nothing, since they leave their
    results on disk. `n_jobs` is joblib's. Calls that a dying worker took along are made again. What
    is raised is the error of the first call that fails; the others are stopped.
    """
    if not jobs:
        return
    alone = not elsewhere() and (torch.cuda.is_available() or len(jobs) == 1)
    tasks = [partial(call, *arguments, **options) for call, arguments, options in jobs]
    with warnings.catch_warnings():
        # joblib replaces a process that has grown large by a fresh one, and nothing is lost.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        given = [partial(_only, task) for task in tasks]
        together(given, 1 if alone else n_jobs, progress, label, leave=False)


def _only(call: Any) -> None:
    """Make a call, and keep what it returns from being sent to another process."""
    call()
