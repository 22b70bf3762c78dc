"""What the commands of `python -m llm` share: they write tables and print warnings alike."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm.jobs.settings import provenance_of
from markov.files import storage

if TYPE_CHECKING:
    import pandas as pd


def write(frame: pd.DataFrame, path: Path, settings: object) -> None:
    """Write a command's table, with the command's settings as its provenance."""
    storage.write_table(frame, path, provenance_of(settings))


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each warning as one line on standard error, once the context ends.

    Where there is an error, no warning is printed.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
