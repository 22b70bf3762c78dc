"""What the commands of `python -m llm` share: which model, which data, which objectives, in
words.
"""

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
    """What is warned of, as one line each on standard error; where there is an error, that alone
    is said.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
