"""Where examples come from, in one word: the generated authors, the public TOFU set, or a file.

    authors:forget20      a split of the generated corpus (`llm.data.authors.corpus.splits`)
    authors:forget20:3    the same split of the corpus of seed 3
    tofu:forget10         a split of TOFU, from the hub
    PATH                  a file of TOFU's JSON; with a `split`, PATH may be a folder
    FOLDER/SPLIT          the file of a split in a folder, without its ending

A file may have any of the shapes that `llm.data.records` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm.arguments import checked_job
from llm.data import records, tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.tofu import Example
from llm.data.words import checked_word, seed_in
from markov.errors import require
from markov.files.storage import Location

PREFIX = "authors"


@checked_job
def read(
    source: Location, split: str | None = None, *, authors: Authors | None = None
) -> tuple[Example, ...]:
    """Return the examples of a source, in its order.

    `authors` says which corpus is generated, if not the one that the word names. Raises
    `InvalidInput` as `llm.data.tofu.read` does, and for a split that the generated corpus does not
    have.
    """
    word = source = checked_word(source, "data")
    name, colon, wanted = word.partition(":")
    if name != PREFIX or (not colon and Path(source).exists()):
        path = Path(source)
        named = split is None and name != tofu.PREFIX and path.suffix not in records.SUFFIXES
        if named and not path.exists() and path.parent.is_dir():
            return tofu.read(path.parent, path.name)
        return tofu.read(source, split)
    require(not (wanted and split), "split", split, f"left out, since {word} names one")
    seed = seed_of(word)
    found = splits(authors or (Authors(seed=seed) if seed else Authors()))
    chosen = wanted.partition(":")[0] or split
    require(chosen in found, "split", chosen, f"one of {', '.join(found)}")
    assert chosen is not None
    return found[chosen]


def seed_of(word: str) -> int:
    """Return the seed of the generated corpus that the word authors:SPLIT[:SEED] names.

    It is 0 if the word has none. Raises `InvalidInput` for a seed that is not a number.
    """
    _, colon, seed = word.partition(":")[2].partition(":")
    allowed = f"{PREFIX}:SPLIT[:SEED], the seed a number"
    return seed_in(seed, "data", word, allowed) if colon else 0


def without(examples: Sequence[Example], others: Sequence[Example]) -> tuple[Example, ...]:
    """Return the examples that are not among the others, in their order.

    Two examples are the same if prompt and response are. Raises `InvalidInput` where some of the
    others are not among the examples, since leaving them out would change nothing, and where no
    example is left.
    """
    known, gone = ({(one.prompt, one.response) for one in part} for part in (examples, others))
    strange = [one.index for one in others if (one.prompt, one.response) not in known]
    allowed = f"examples of the data ({len(strange)} of {len(others)} are not among them)"
    require(not strange, "without, index", strange[:1], allowed)
    left = tuple(one for one in examples if (one.prompt, one.response) not in gone)
    require(len(left) > 0, "without", f"all {len(examples)} examples", "fewer than all of the data")
    return left
