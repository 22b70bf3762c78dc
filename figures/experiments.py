"""Tables of runs on chains, each kept on its own because several figures draw the same runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from figures.cache import Context, discard_stale, read_fresh
from markov.errors import is_whole, require
from markov.experiments import Experiment
from markov.files import inputs, leftovers, storage
from markov.running.run import parts_of, run


def table(context: Context, experiments: Sequence[Experiment]) -> pd.DataFrame:
    """Return the table of `experiments`, running only those that the cache does not hold.

    A cached table counts if it was made with these settings and this code. Figures share runs, so
    each run is kept on its own.
    """
    code, folder = storage.code_version("markov.running"), storage.cache_dir() / "tables"
    paths = {
        one: folder / f"{storage.fingerprint([one, code])}.parquet"
        for one in dict.fromkeys(experiments)
    }
    found = {one: read_fresh(context, path) for one, path in paths.items()}
    parts = parts_of(list(found))
    discard_stale(context, parts, parts)
    missing = _begun(
        parts, [number for number, frame in enumerate(found.values()) if frame is None], len(found)
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


def _begun(parts: Path, missing: Sequence[int], count: int) -> Sequence[int]:
    """Return the numbers of the experiments to run: those of an earlier call, if it was stopped.

    Running only some of these would form other ensembles, and the parts that were kept would not be
    found.
    """
    path = parts / "missing.json"

    def read(path: Path) -> list[int]:
        numbers = inputs.read_json(path, "missing")
        good = isinstance(numbers, list) and all(is_whole(one, 0, count - 1) for one in numbers)
        require(good, "missing", str(path), f"a list of whole numbers below {count}")
        return numbers

    begun = storage.read_kept(path, read)
    if begun is not None:
        return begun
    if missing:
        # Another process that has drawn the same may just have discarded the folder.
        with suppress(FileNotFoundError), storage.atomic_path(path) as partial:
            partial.write_text(json.dumps(list(missing)), "utf-8")
    return missing
