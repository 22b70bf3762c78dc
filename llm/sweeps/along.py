"""What was recorded along the runs of a sweep, epoch by epoch, with the measures of both ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from llm.evaluation.folders import COLUMNS
from llm.sweeps.sweep import PlannedRun
from llm.unlearning.methods import METHODS
from llm.unlearning.runs import EPOCHS
from markov.files import storage
from markov.files.storage import Location


def epochs(folder: Location, runs: Sequence[PlannedRun], table: pd.DataFrame) -> pd.DataFrame:
    """Return the tables of epochs of runs that have methods, with `model`, `title` and `seed`.

    They are those of `llm.unlearning.unlearn.Unlearned`. Forget quality, extraction strength and
    model utility before the first update and after the last are those of `table`, which
    `llm.sweeps.sweep.sweep` has made: no run needs to take them again.
    """
    frames = []
    for run in runs:
        assert run.method is not None
        seed, title = run.optimization.seed, METHODS[run.method.name].title
        own = storage.read_table(Path(folder) / run.folder / EPOCHS)
        frames.append(with_ends(own, table, run.word, seed).assign(title=title))
    return pd.concat(frames, ignore_index=True)


def with_ends(own: pd.DataFrame, table: pd.DataFrame, model: str, seed: int) -> pd.DataFrame:
    """Return the table of epochs of a run with the measures of both ends, `model` and `seed`.

    `table` has the measures of the original model, and of `model` by seed.
    """
    # Of measures that are taken on several sets, that of the forget set.
    whole = table["measure"].isin(COLUMNS) & table["task"].isin(["forget", "all"])
    known, own = table[whole], own.copy()
    before = known[known["model"] == "original"]
    after = known[(known["model"] == model) & (known["seed"] == seed)]
    for epoch, ends in ((own["epoch"].min(), before), (own["epoch"].max(), after)):
        values = ends.set_index("measure")["value"].reindex(list(COLUMNS))
        own.loc[own["epoch"] == epoch, list(COLUMNS)] = values.to_numpy()
    return own.assign(model=model, seed=seed)
