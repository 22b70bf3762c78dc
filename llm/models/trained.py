"""What all folders share in which a model is trained: a claim, a state, a model, and an end.

EPOCHS is written last, so that a folder with it is complete. Until then STATE holds that from which
a training goes on if it was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from llm.models.language_model import LanguageModel
from llm.models.saving import check_savable, check_whole, saved_settings
from llm.training.checkpointing import FILE
from markov.errors import require
from markov.files import folders, leftovers, storage

EPOCHS, MODEL, STATE = "epochs.parquet", "model", "state"
Found = TypeVar("Found")


@contextmanager
def working(
    folder: Path, job: str, described: object, names: Sequence[str], language: LanguageModel
) -> Iterator[None]:
    """Claim a folder for a training that is `described`, or go on under its earlier claim; alone.

    Another process that does the same is waited for (see `markov.files.folders.working`).
    Raises `InvalidInput` as `folders.claim` does, for a model of anything else that lies there, and
    for a model that could not be saved in the end.
    """
    with folders.working(folder, job, described, names=names, passing=(STATE,)):
        # A model of this very run was written whole before the last table, and is kept; any other
        # model is not touched.
        there = os.path.lexists(folder / MODEL)
        taken = there and saved_settings(folder / MODEL) != storage.settings_of(described)
        allowed = f"a folder whose {MODEL} is of this run, or not there"
        require(not taken, "out", str(folder), allowed)
        if not there:
            check_savable(language, folder / MODEL)
        # A state that was cut short is set aside.
        storage.read_kept(folder / STATE / FILE, storage.read_provenance)
        yield


def read_finished(folder: Path, read: Callable[[Path], Found]) -> Found | None:
    """Return what `read` reads of a claimed folder if its training is finished, or None.

    A damaged table or model is set aside, to be made again.
    """
    there, whole = (folder / MODEL).exists(), storage.read_kept(folder / MODEL, check_whole)
    if there and whole is None and (folder / EPOCHS).exists():
        leftovers.set_aside(folder / EPOCHS, "its model is made again")
    return storage.read_kept(folder / EPOCHS, lambda path: read(path.parent))
