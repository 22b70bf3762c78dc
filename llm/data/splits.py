"""Find the four sets that TOFU measures a model by, from the word of the data to be forgotten.

Of data of one's own some sets are not there, or have no wrong answers. What needs them is then left
out of what is measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from llm.data import records, sources, tofu
from llm.data.authors.corpus import Authors
from llm.data.tofu import Example
from llm.data.words import checked_word
from llm.randomness import derived_seed
from markov.errors import InvalidInput, require
from markov.files.storage import Location

FORGET = re.compile(r"forget(\d\d)(_perturbed)?")
NAMED = (tofu.PREFIX, sources.PREFIX)
MEASURED = 400  # examples of a retain set of one's own that are measured, as many as TOFU's has


class TofuSets(NamedTuple):
    """The four sets of questions that a model is asked, with wrong answers to each question.

    A set that is not there is empty.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...] = ()
    real_authors: tuple[Example, ...] = ()
    world_facts: tuple[Example, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the sets that are there."""
        return tuple(name for name, examples in self._asdict().items() if examples)

    @property
    def comparable(self) -> bool:
        """Whether forget quality can be taken, which compares wrong answers."""
        return all(example.perturbed for example in self.forget)


class SplitName(NamedTuple):
    """A forget split in its parts: its place, name and percent, and the seed of generated data."""

    source: str
    name: str
    percent: int
    seed: int = 0


def split_of(word: Location) -> SplitName:
    """Return the parts of a word that names a forget split.

    Such words are `tofu:forget05`, `authors:forget20[:SEED]`, and FOLDER/forget05 for a folder with
    TOFU's files. Raises `InvalidInput` for a word that names no forget split.
    """
    text = checked_word(word, "data")
    source, colon, name = text.partition(":")
    seed = 0
    if not colon or source not in NAMED:
        source, name = str(Path(text).parent), Path(text).stem
        # A folder may be called as what is fetched or made here.
        source = os.path.join(os.curdir, source) if source in NAMED else source
    elif source == sources.PREFIX:
        name, seed = name.partition(":")[0], sources.seed_of(text)
    found = FORGET.fullmatch(name)
    if found is None or not 0 < int(found[1]) < 100:
        allowed = (
            "tofu:forgetNN, authors:forgetNN or FOLDER/forgetNN, from which the sets to "
            "measure by follow, or a file of one's own"
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
        return checked_word(retain, "retain_data")
    try:
        return retain_word(data)
    except InvalidInput:
        allowed = (
            f"named, since what is to stay does not follow from {os.fspath(data)}, as it "
            "does from a forget split"
        )
        raise InvalidInput("retain_data", None, allowed) from None


def is_own(word: Location) -> bool:
    """Return whether a word is that of a file, or folder, from which no other set follows."""
    text = checked_word(word, "data")
    path, own = Path(text), text.partition(":")[0] not in NAMED
    return own and FORGET.fullmatch(path.stem) is None and path.exists()


def tofu_sets(
    word: Location, retain: Location | None = None, *, authors: Authors | None = None
) -> TofuSets:
    """Return the four sets for a forget split (see `split_of`), or for a file of one's own.

    For TOFU itself, from the hub or a folder, they are `forgetNN_perturbed`, `retain_perturbed`,
    `real_authors_perturbed` and `world_facts_perturbed`. The generated authors, and a folder of
    them, have wrong answers to every question in the splits themselves. Their second set is a
    sample of the examples to retain, as many as there are to forget and always the same. Of a
    folder those sets are empty whose files are not there. A file of one's own is the forget set and
    has no other. With `retain`, the word of other examples to retain than those that follow from
    the split, a sample of at most `MEASURED` of these is the second set.

    Raises `InvalidInput` as `llm.data.sources.read` does, and as `fitting`, or, for the generated
    authors and for TOFU from the hub, as `checked`.
    """
    own_file = is_own(word)
    if retain is not None and not own_file and str(retain) == retain_word(word):
        retain = None
    kept = None if retain is None else some_of(sources.read(retain, authors=authors), MEASURED)
    if own_file:
        return fitting(TofuSets(sources.read(word), kept or ()))
    found = split_of(word)
    common = ("real_authors_perturbed", "world_facts_perturbed")
    names = (found.name, f"retain{100 - found.percent:02}", *common)
    own = authors or (Authors(seed=found.seed) if found.seed else None)
    one_kind = found.source == sources.PREFIX or _is_of_one_kind(found)
    if not one_kind:
        names = (f"{found.name}_perturbed", "retain_perturbed", *common)
    there = [
        sources.read(found.source, name, authors=own)
        if place == 0 or _is_there(found, name)
        else ()
        for place, name in enumerate(names)
    ]
    if one_kind:
        there[1] = some_of(there[1], len(there[0]))
    sets = TofuSets(*there)
    sets = sets if kept is None else sets._replace(retain=kept)
    return checked(sets) if found.source in NAMED and retain is None else fitting(sets)


def forget_of(word: Location, *, authors: Authors | None = None) -> tuple[Example, ...]:
    """Return the examples that a word names, with wrong answers where those to forget have any.

    TOFU has them in a split of their own, `forgetNN_perturbed`. Raises `InvalidInput` as
    `llm.data.sources.read` does.
    """
    plain = sources.read(word, authors=authors)
    if is_own(word) or all(one.perturbed for one in plain):
        return plain
    try:
        found = split_of(word)
    except InvalidInput:  # another split, of which nothing is to be forgotten
        return plain
    name = f"{found.name}_perturbed"
    if found.source == sources.PREFIX or not _is_there(found, name):
        return plain
    return with_wrong(plain, sources.read(found.source, name))


def with_wrong(forget: Sequence[Example], asked: Sequence[Example]) -> tuple[Example, ...]:
    """Return the examples to forget with the other answers that `asked` has to each of them.

    They stay as they are if any of them is not among those asked, or has no wrong answer there.
    """
    known = {(one.prompt, one.response): one for one in asked if one.perturbed}
    found = [known[key] for one in forget if (key := (one.prompt, one.response)) in known]
    if len(found) < len(forget):
        return tuple(forget)
    return tuple(
        replace(one, paraphrase=other.paraphrase, perturbed=other.perturbed)
        for one, other in zip(forget, found, strict=True)
    )


def _is_there(found: SplitName, name: str) -> bool:
    """Return whether a set is there: of a folder, whether it has its file."""
    folder = Path(found.source)
    known = found.source in NAMED or not folder.is_dir()
    return known or records.find_split(folder, name) is not None


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
    """Return the sets; raises `InvalidInput` for one that is empty or lacks wrong answers."""
    for name, examples in sets._asdict().items():
        allowed = f"questions of {name}, with wrong answers"
        require(len(examples) > 0, f"data, {name}", "no question", allowed)
        _check_perturbed(name, examples)
    return sets


def checked_for(sets: TofuSets, field: str, value: object) -> TofuSets:
    """Return the sets; raises `InvalidInput` for a field that needs D and utility, as `checked`."""
    try:
        return checked(sets)
    except InvalidInput as error:
        allowed = f"left out: the data do not tell D and model utility ({error})"
        raise InvalidInput(field, value, allowed) from None


def fitting(sets: TofuSets) -> TofuSets:
    """Return the sets, as far as a model can be measured by them.

    Raises `InvalidInput` for no example to forget, and for examples without wrong answers in a set
    where others have some, or of real authors and world facts.
    """
    require(len(sets.forget) > 0, "forget", "no question", "at least one question to forget")
    for name, examples in sets._asdict().items():
        if name not in ("forget", "retain") or any(one.perturbed for one in examples):
            _check_perturbed(name, examples)
    return sets


def _check_perturbed(name: str, examples: tuple[Example, ...]) -> None:
    lacking = [example.index for example in examples if not example.perturbed]
    allowed = (
        f"perturbed answers to every question of {name} ({len(lacking)} of "
        f"{len(examples)} have none)"
    )
    require(not lacking, "perturbed, index", lacking[:1], allowed)
