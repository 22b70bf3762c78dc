"""The four sets that TOFU measures a model by, found from the one word that says what was to be forgotten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch

from llm import corpora, sources
from llm.authors import Authors
from llm.corpora import Example
from llm.optimization import derived_seed
from markov.errors import InvalidInput, require
from markov.storage import Location

FORGET = re.compile(r"forget(\d\d)(_perturbed)?")
NAMED = (corpora.PREFIX, sources.PREFIX)


class TofuSets(NamedTuple):
    """What a model is asked, with wrong answers to each question."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    real_authors: tuple[Example, ...]
    world_facts: tuple[Example, ...]


class Split(NamedTuple):
    """A forget split taken apart: where it lies, its name, and the percent that it is."""

    source: str
    name: str
    percent: int


def split_of(word: Location) -> Split:
    """`tofu:forget05`, `authors:forget10`, or FOLDER/forget05 with TOFU's files in a folder, taken apart.

    Raises `InvalidInput` for what names no forget split.
    """
    text = str(word)
    source, colon, name = text.partition(":")
    if not colon or source not in NAMED:
        source, name = str(Path(text).parent), Path(text).stem
    found = FORGET.fullmatch(name)
    if found is None or not 0 < int(found[1]) < 100:
        allowed = "tofu:forgetNN, authors:forgetNN or FOLDER/forgetNN, from which the sets to measure by follow"
        raise InvalidInput("data", text, allowed)
    return Split(source, f"forget{found[1]}", int(found[1]))


def retain_word(word: Location) -> str:
    """What is to stay when this is to be forgotten: `tofu:retain95` for `tofu:forget05`."""
    found = split_of(word)
    name = f"retain{100 - found.percent:02}"
    return f"{found.source}:{name}" if found.source in NAMED else str(Path(found.source) / f"{name}.json")


def tofu_sets(word: Location, *, authors: Authors | None = None) -> TofuSets:
    """The four sets for a forget split (see `split_of`).

    Of TOFU itself, from the hub or a folder, they are `forgetNN_perturbed`, `retain_perturbed`,
    `real_authors_perturbed` and `world_facts_perturbed`. The generated authors have wrong answers to every question:
    there the second set is as many examples to retain as there are to forget, drawn once and for all. Raises
    `InvalidInput` as `llm.sources.read` does, and for examples without wrong answers.
    """
    found = split_of(word)
    common = ("real_authors_perturbed", "world_facts_perturbed")
    if found.source == sources.PREFIX:
        names = (found.name, f"retain{100 - found.percent:02}", *common)
        forget, retain, real, world = (sources.read(found.source, name, authors=authors) for name in names)
        return checked(TofuSets(forget, some_of(retain, len(forget)), real, world))
    names = (f"{found.name}_perturbed", "retain_perturbed", *common)
    return checked(TofuSets(*(corpora.read(found.source, name) for name in names)))


def some_of(examples: tuple[Example, ...], count: int) -> tuple[Example, ...]:
    """`count` of the examples, or all if there are fewer, in their order: always the same ones."""
    own = torch.Generator().manual_seed(derived_seed(0, "measured"))
    rows = torch.randperm(len(examples), generator=own)[:count].sort().values.tolist()
    return tuple(examples[row] for row in rows)


def checked(sets: TofuSets) -> TofuSets:
    """The sets themselves; raises `InvalidInput` for an example without wrong answers."""
    for name, examples in sets._asdict().items():
        lacking = [example.index for example in examples if not example.perturbed]
        allowed = f"perturbed answers to every question of {name} ({len(lacking)} of {len(examples)} have none)"
        require(not lacking, "perturbed, index", lacking[:1], allowed)
    return sets
