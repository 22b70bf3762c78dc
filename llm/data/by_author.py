"""How many consecutive questions of a data set are about one author.

TOFU and the generated authors have their questions author after author. What is hard about an
author is hard in all of them, so that they are no independent draws of questions.
"""

from __future__ import annotations

from llm.data.authors.corpus import Authors
from llm.data.sources import PREFIX
from llm.data.splits import TofuSets, is_own, split_of
from llm.data.tofu import PREFIX as TOFU
from llm.data.tofu import TOFU_ROWS
from markov.errors import InvalidInput
from markov.files.storage import Location

PER_AUTHOR = 20  # of TOFU


def per_author(
    word: Location,
    sets: TofuSets,
    authors: Authors | None = None,
    *,
    retain: Location | None = None,
) -> int | None:
    """Return how many consecutive indices of the sets are of one author; None if not known.

    `word` is that of the forget split, and `retain` that of other data to retain than go with it,
    of which nothing is known. It is known of the generated authors, of TOFU from the hub,
    and of a folder whose sets have the sizes of TOFU's: in a part of TOFU, rows are numbered anew.
    """
    if retain is not None or is_own(word):
        return None
    try:
        found = split_of(word)
    except InvalidInput:
        return None
    if found.source == PREFIX:
        return (authors or Authors()).questions
    sizes = len(sets.forget), len(sets.retain)
    whole = sizes == (TOFU_ROWS.get(found.name), TOFU_ROWS["retain_perturbed"])
    return PER_AUTHOR if found.source == TOFU or whole else None
