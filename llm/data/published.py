"""The data sets of the hub that have a word of their own, each at one commit.

Whoever owns a data set can change it at any time: at a commit it is the same on every day.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """A data set of the hub, and the commit to take of it."""

    name: str
    commit: str


PREFIX = "tofu"
TOFU = Published("locuslab/TOFU", "324592d84ae4f482ac7249b9285c2ecdb53e3a68")
MUSE = {
    "muse:News": Published("muse-bench/MUSE-News", "506bd5b150b92814d45e4404a82f120ab2d748bf"),
    "muse:Books": Published("muse-bench/MUSE-Books", "051ba90319e920d410d87cfdbd61f25843c1b892"),
}


def published(word: str) -> Published | None:
    """Return the data set of the hub that a word for data names, or None if it names none."""
    name, colon, _ = word.partition(":")
    if name == PREFIX and (colon or not Path(word).exists()):
        return TOFU
    return MUSE.get(word)


def commits(values: Iterable[object]) -> dict[str, str]:
    """Return the commit of each data set of the hub that one of these values names."""
    words = (os.fspath(one) for one in values if isinstance(one, str | os.PathLike))
    found = (published(word) for word in words if isinstance(word, str))
    return {one.name: one.commit for one in found if one is not None}
