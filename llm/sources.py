"""Where examples come from, in one word: the generated authors, the public TOFU set, or a file.

authors:forget10    a split of the generated corpus (`llm.authors.splits`)
tofu:forget10       a split of TOFU, from the hub
PATH                a file of TOFU's JSON; PATH with a split where it is a folder
"""

from __future__ import annotations

import os
from pathlib import Path

from llm import corpora
from llm.authors import Authors, splits
from llm.corpora import Example
from markov.errors import require
from markov.storage import Location

PREFIX = "authors"


def read(source: Location, split: str | None = None, *, authors: Authors | None = None) -> tuple[Example, ...]:
    """The examples of a source, in its order; `authors` says which corpus is generated, if not the default one.

    Raises `InvalidInput` as `corpora.read` does, and for a split that the generated corpus does not have.
    """
    name, colon, wanted = os.fspath(source).partition(":")
    if name != PREFIX or (not colon and Path(source).exists()):
        return corpora.read(source, split)
    require(not (wanted and split), "split", split, f"left out, since {os.fspath(source)} names one")
    found = splits(authors or Authors())
    chosen = wanted or split
    require(chosen in found, "split", chosen, f"one of {', '.join(found)}")
    assert chosen is not None
    return found[chosen]
