"""Find the four sets that TOFU measures a model by, from the word of the data to be forgotten."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

from llm.data import records, sources, tofu
from llm.data.authors.corpus import Authors
from llm.data.tofu import Example
from llm.randomness import derived_seed
from markov.errors import InvalidInput, require
from markov.files.storage import Location

FORGET = re.compile(r"forget(\d\d)(_perturbed)?")
NAMED = (tofu.PREFIX, sources.PREFIX)


class TofuSets(NamedTuple):
    """The four sets of questions that a model is asked, with wrong answers to each question."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    real_authors: tuple[Example, ...]
    world_facts: tuple[Example, ...]


class SplitName(NamedTuple):
    """A forget split in its parts: its place, name and percent, and the seed of generated data."""

    source: str
    name: str
    percent: int
    seed: int = 0


def split_of(word: Location) -> SplitName:
    """Return the parts of a word that names a forget split.

    Such words are `tofu:forget05`, `authors:forget10[:SEED]`, and FOLDER/forget05 for a folder with
    TOFU's files. Raises `InvalidInput` for a word that names no forget split.
    """
    text = str(word)
    source, colon, name = text.partition(":")
    seed = 0
    if not colon or source not in NAMED:
        source, name = str(Path(text).parent), Path(text).stem
    elif source == sources.PREFIX:
        name, seed = name.partition(":")[0], sources.seed_of(text)
    found = FORGET.fullmatch(name)
    if found is None or not 0 < int(found[1]) < 100:
        allowed = (
            "tofu:forgetNN, authors:forgetNN or FOLDER/forgetNN, from which the sets to "
            "measure by follow"
        )
        raise InvalidInput("data", text, allowed)
    return SplitName(source, f"forget{found[1]}", int(found[1]), seed)


def retain_word(word: Location) -> str:
    """Return the word of the data to retain when the given ones are to be forgotten.

    For `tofu:forget05` it is `tofu:retain95`.
    """
    found = split_of(word)
    name = f"retain{100 - found.percent:02}"
    if found.source not in NAMED:
        return str(Path(found.source) / name)
    return f"{found.source}:{name}" + (f":{found.seed}" if found.seed else "")


def retain_of(data: Location, retain: str | None) -> str:
    """Return the word of the data to retain: the given one, or what follows from the forget data.

    Raises `InvalidInput` if none is given and none goes with the data.
    """
    if retain is not None:
        return retain
    try:
        return retain_word(data)
    except InvalidInput:
        allowed = (
            f"named, since what is to stay does not follow from {os.fspath(data)}, as it "
            "does from a forget split"
        )
        raise InvalidInput("retain_data", None, allowed) from None


def tofu_sets(word: Location, *, authors: Authors | None = None) -> TofuSets:
    """Return the four sets for a forget split (see `split_of`).

    For TOFU itself, from the hub or a folder, they are `forgetNN_perturbed`, `retain_perturbed`,
    `real_authors_perturbed` and `world_facts_perturbed`. The generated authors, and a folder of
    them, have wrong answers to every question in the splits themselves. Their second set is a
    sample of the examples to retain, as many as there are to forget and always the same. Raises
    `InvalidInput` as `llm.data.sources.read` does, and for examples without wrong answers.
    """
    found = split_of(word)
    common = ("real_authors_perturbed", "world_facts_perturbed")
    names = (found.name, f"retain{100 - found.percent:02}", *common)
    if found.source == sources.PREFIX or _is_of_one_kind(found):
        own = authors or (Authors(seed=found.seed) if found.seed else None)
        forget, retain, real, world = (
            sources.read(found.source, name, authors=own) for name in names
        )
        return checked(TofuSets(forget, some_of(retain, len(forget)), real, world))
    names = (f"{found.name}_perturbed", "retain_perturbed", *common)
    return checked(TofuSets(*(tofu.read(found.source, name) for name in names)))


def _is_of_one_kind(found: SplitName) -> bool:
    """Return whether a folder has the split itself, but no split of its name with wrong answers.

    The wrong answers are then in the split itself.
    """
    if found.source in NAMED or not Path(found.source).is_dir():
        return False
    names = {file.stem for file in Path(found.source).iterdir() if file.suffix in records.SUFFIXES}
    return found.name in names and f"{found.name}_perturbed" not in names


def some_of(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """Return `count` of the examples in their order, or all if there are fewer.

    The choice is always the same.
    """
    own = torch.Generator().manual_seed(derived_seed(0, "measured"))
    rows = torch.randperm(len(examples), generator=own)[:count].sort().values.tolist()
    return tuple(examples[row] for row in rows)


def checked(sets: TofuSets) -> TofuSets:
    """Return the sets; raises `InvalidInput` for an example without wrong answers."""
    for name, examples in sets._asdict().items():
        lacking = [example.index for example in examples if not example.perturbed]
        allowed = (
            f"perturbed answers to every question of {name} ({len(lacking)} of "
            f"{len(examples)} have none)"
        )
        require(not lacking, "perturbed, index", lacking[:1], allowed)
    return sets
