"""How long the parts of a job really took, kept in a file of lines, one per part.

Lines are added whole, so that several processes may add to one file, and what is killed takes away
no line of others. A part that is killed leaves no line itself, and neither does one that is
refused; when it is made after that, it is `resumed`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from markov.errors import InvalidInput
from markov.files import inputs

KINDS = {"part": str, "model": str, "seconds": float, "finished": bool, "resumed": bool}
COLUMNS = tuple(KINDS)
Row = dict[str, Any]


class Lap(Protocol):
    """Ends the part that is being timed, if there is one, and begins another."""

    def __call__(self, part: str, *, resumed: bool = False) -> None: ...


@contextmanager
def laps(file: Path | None, model: str) -> Iterator[Lap]:
    """Yield a function by which the parts of a work say that they begin; each is a line of a file.

    The last part ends with the block. It is not `finished` where that is stopped, and has no line
    where it is refused. `model` is the model that all of them make or measure. Without a file, or a
    part that begins, nothing is written.
    """
    now: Row = {}
    begun = 0.0

    def end(finished: bool) -> None:
        if now and file is not None:
            _add(file, {**now, "seconds": time.monotonic() - begun, "finished": finished})
        now.clear()

    def lap(part: str, *, resumed: bool = False) -> None:
        nonlocal begun
        end(True)
        now.update({"model": model, "part": part, "resumed": resumed})
        begun = time.monotonic()

    try:
        yield lap
    except InvalidInput:
        raise
    except BaseException:
        end(False)
        raise
    end(True)


def _add(file: Path, row: Row) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # A line that was cut off by a full disk stays alone.
    line = f"\n{json.dumps(row)}\n".encode()
    place = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(place, line)
    finally:
        os.close(place)


def read_times(files: Mapping[int, Path]) -> pd.DataFrame:
    """Return the lines of the file of each seed as one table, with `seed` and the `COLUMNS`.

    A part that was stopped and made later has a line for each time. A file that is not there has no
    lines, and a line that is not whole is left out.
    """
    rows = []
    for seed, file in files.items():
        lines = inputs.read_bytes(file, "times").splitlines() if inputs.exists(file) else ()
        for line in lines:
            try:
                row = inputs.parsed(line, "times", str(file))
            except InvalidInput:
                continue
            if isinstance(row, dict) and all(isinstance(row.get(n), k) for n, k in KINDS.items()):
                rows.append([seed, *(row[name] for name in COLUMNS)])
    return pd.DataFrame(rows, columns=["seed", *COLUMNS])
