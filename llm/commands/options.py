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

    from llm.models.language_model import LanguageModel


def write(
    frame: pd.DataFrame, path: Path, settings: object, language: LanguageModel | None = None
) -> None:
    """Write a command's table, with the command's settings as its provenance.

    If the table is of one model, its provenance also has that model's `source`.
    """
    known = provenance_of(settings)
    if language is not None:
        from llm.models.saving import with_source

        known = with_source(known, language)
    storage.write_table(frame, path, known)


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
