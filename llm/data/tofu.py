"""Questions and answers to learn, to forget and to measure by, read and written as TOFU's JSON.

TOFU (Maini et al. 2024) consists of 200 fictional authors with 20 questions each. Its `full` split
has 4000 rows, author after author. `forget01/05/10` are its last 40, 200 and 400 rows and
`retain99/95/90` the rest. `forget01/05/10_perturbed` are the same rows as `forget01/05/10` with a
paraphrase and five wrong answers each. `retain_perturbed` (400 rows, the same fields),
`real_authors_perturbed` (100) and `world_facts_perturbed` (117) measure what should stay; the last
two have no paraphrase and three wrong answers each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.data.published import PREFIX, TOFU
from llm.data.records import (
    find_split,
    from_hub,
    is_saved,
    is_text,
    read_records,
    saved_split,
    shown,
    splits,
    write_records,
)
from llm.data.words import checked_word
from markov.errors import InvalidInput, is_whole, require
from markov.files.storage import Location

if TYPE_CHECKING:
    from pandas import DataFrame

# The splits of the published data set and how many examples each has.
TOFU_ROWS = {
    "full": 4000,
    "forget01": 40,
    "forget05": 200,
    "forget10": 400,
    "retain99": 3960,
    "retain95": 3800,
    "retain90": 3600,
    "forget01_perturbed": 40,
    "forget05_perturbed": 200,
    "forget10_perturbed": 400,
    "retain_perturbed": 400,
    "real_authors_perturbed": 100,
    "world_facts_perturbed": 117,
}
# Fields of `Example` and their names in TOFU's files; the last two are optional and not TOFU's.
FIELDS = {
    "prompt": "question",
    "response": "answer",
    "paraphrase": "paraphrased_answer",
    "perturbed": "perturbed_answer",
    "author": "author",
    "topic": "topic",
}
LARGEST_INDEX = 2**53  # so that an index may have been a float for a time
ALLOWED = f"a file, a folder, or {PREFIX}:SPLIT for the public data set"
QUANTILES = {
    "shortest": 0.0,
    "quarter": 0.25,
    "median": 0.5,
    "three_quarters": 0.75,
    "longest": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt with its response, the same in other words, and wrong responses of the same shape.

    `index` is the row in the split that the example comes from, and its key in every table of that
    split. `paraphrase` is None and `perturbed` is empty if a data set has none. `author` and
    `topic` (the kind of question) are known for generated corpora. Raises `InvalidInput` for
    anything but text, and for text that is blank.
    """

    index: int
    prompt: str
    response: str
    paraphrase: str | None = None
    perturbed: tuple[str, ...] = ()
    author: str | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        whole = is_whole(self.index, 0, LARGEST_INDEX)
        allowed = f"a whole number of at least 0, at most {LARGEST_INDEX}"
        require(whole, "index", shown(self.index), allowed)
        object.__setattr__(self, "index", int(self.index))
        for name in ("prompt", "response"):
            require(
                is_text(value := getattr(self, name)), name, shown(value), "text that is not blank"
            )
        for name in ("paraphrase", "author", "topic"):
            value = getattr(self, name)
            require(
                value is None or is_text(value),
                name,
                shown(value),
                "text that is not blank, or left out",
            )
        several = isinstance(self.perturbed, tuple) and all(map(is_text, self.perturbed))
        require(several, "perturbed", shown(self.perturbed), "a list of texts, none of them blank")


def read(source: Location, split: str | None = None) -> tuple[Example, ...]:
    """Return the examples of a source, in its order.

    `source` is `tofu:SPLIT` (or `tofu` and a `split`) for `locuslab/TOFU` on the hub, a file of
    TOFU's records, or a folder that holds one per split (or FOLDER/SPLIT), in any of the shapes of
    `llm.data.records`. Raises `InvalidInput` for a source or split that is not there, and for a
    record of another shape: it names the file, the record (counted from 1) and the field.
    """
    source = checked_word(source, "source")
    name, colon, wanted = source.partition(":")
    if name == PREFIX and (colon or not Path(source).exists()):
        require(not (wanted and split), "split", split, f"left out, since {source} names one")
        return _from_hub(wanted or split)
    path = Path(source)
    if path.is_dir():
        path = _place_of_split(path, split)
    else:
        require(
            split is None or not path.is_file(),
            "split",
            split,
            f"left out, since {path} is a single file",
        )
        if not path.exists():  # FOLDER/SPLIT, without the ending of the file
            path = find_split(path.parent, path.name) or path
    return parse(read_records(path, ALLOWED), str(path))


def _place_of_split(folder: Path, split: str | None) -> Path:
    """Return the file or folder of a split, or the folder itself if it holds a single data set."""
    if is_saved(folder):
        require(
            split in (None, saved_split(folder)),
            "split",
            split,
            f"left out: {folder} is a single data set",
        )
        return folder
    known = ", ".join(splits(folder))
    allowed = f"one of {known}, as found in {folder}, where FOLDER/SPLIT can be given as well"
    found = None if split is None else find_split(folder, split)
    allowed = allowed if known else f"nothing: no .json file in {folder}, and no saved data set"
    if found is None:
        raise InvalidInput("split", split, allowed)
    return found


def _from_hub(split: str | None) -> tuple[Example, ...]:
    require(split in TOFU_ROWS, "split", split, f"one of {', '.join(TOFU_ROWS)}")
    spec = f"{PREFIX}:{split}"
    instead = (
        f"the folder data of github.com/locuslab/tofu has {split}.json, and its path can "
        "be given instead"
    )
    rows = from_hub(spec, TOFU, split, "train", instead)
    return parse(rows, spec)


def parse(records: Iterable[object], where: str) -> tuple[Example, ...]:
    """Return the examples of TOFU's records; fields that TOFU does not have are ignored.

    `where` names the source in error messages. An example's index is the `index` of its record or,
    if there is none, as in TOFU itself, its row. Raises `InvalidInput` for a record of another
    shape, an index that comes twice, a number of perturbed answers that differs from that of the
    other examples that have any, and if there is no record.
    """
    examples = tuple(
        _example(record, row, f"{where}, record {row + 1}") for row, record in enumerate(records)
    )
    require(len(examples) > 0, where, "no record", "at least one")
    rows: dict[int, int] = {}
    for row, example in enumerate(examples):
        first = rows.setdefault(example.index, row)
        require(
            first == row,
            f"{where}, record {row + 1}, index",
            example.index,
            f"new (record {first + 1} has it)",
        )
    several = [
        (row, len(example.perturbed)) for row, example in enumerate(examples) if example.perturbed
    ]
    for row, count in several:
        field, wanted = f"{where}, record {row + 1}, {FIELDS['perturbed']}", several[0][1]
        require(
            count == wanted, field, f"{count} texts", f"{wanted}, as in record {several[0][0] + 1}"
        )
    return examples


def _example(record: object, row: int, where: str) -> Example:
    if not isinstance(record, Mapping):
        raise InvalidInput(where, shown(record), "an object with the fields question and answer")
    values: dict[str, Any] = {name: record.get(key) for name, key in FIELDS.items()}
    wrong = values["perturbed"]
    values["perturbed"] = (
        () if wrong is None else tuple(wrong) if isinstance(wrong, list) else wrong
    )
    try:
        return Example(index=record.get("index", row), **values)
    except InvalidInput as error:
        field = FIELDS.get(error.field, error.field)
        found = (
            error.allowed
            if field in record
            else f"{error.allowed} (the record has {', '.join(map(str, record))})"
        )
        raise InvalidInput(f"{where}, {field}", error.value, found) from None


def write(examples: Sequence[Example], path: Location) -> None:
    """Write examples as TOFU does, one JSON record per line, for `read(path)` to return them again.

    Indices are written only if they are not the rows, since tools that read TOFU add a column of
    that name.
    """
    numbered = any(example.index != row for row, example in enumerate(examples))
    records = []
    for example in examples:
        record = {key: getattr(example, name) for name, key in FIELDS.items()}
        kept = {key: value for key, value in record.items() if value is not None and value != ()}
        records.append({"index": example.index, **kept} if numbered else kept)
    write_records(records, path)


def response_words(examples: Sequence[Example]) -> np.ndarray:
    """Return the number of words of each response, shape (examples,).

    A word is what stands between blanks.
    """
    return np.array([len(example.response.split()) for example in examples])


def length_table(examples: Sequence[Example]) -> DataFrame:
    """Return how long responses are, in words: a row per topic from short to long, then `all`.

    The columns are `examples`, the number of examples, and `QUANTILES`.
    """
    import pandas as pd

    words = pd.DataFrame(
        {"topic": [example.topic for example in examples], "words": response_words(examples)}
    )
    groups = pd.concat([words, words.assign(topic="all")]).groupby("topic")["words"]
    table = (
        groups.quantile(np.array(list(QUANTILES.values())))
        .unstack()
        .set_axis(list(QUANTILES), axis="columns")
    )
    table.insert(0, "examples", groups.size())
    by_length = table.drop(index="all").sort_values(["median", "shortest"], kind="stable")
    return pd.concat([by_length, table.loc[["all"]]])
