"""Read records of questions, answers and texts from the kinds of files that people keep them in.

    SPLIT.json, SPLIT.jsonl    a list of objects; objects one after another, as one per line; an
                               object with one such list in it; or an object of columns
    SPLIT.parquet, .csv, .tsv  a table with a column per field
    SPLIT                      a folder that `datasets` wrote (save_to_disk), of one data set or of
                               one per split

Text is UTF-8, or UTF-16 and UTF-32 with a byte order mark, and any file may be packed by gzip
(SPLIT.json.gz). What a record must contain is checked by the code that asks for it. No format that
could run code is read.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from llm.data.published import Published
from markov import errors
from markov.errors import InvalidInput, first_line, require
from markov.files import inputs, storage
from markov.files.storage import Location, atomic_path

INDEX = "index"
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
# Longer marks come first, since the mark of UTF-32 starts with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
ARCHIVES = (b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd")
DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
INSTALL = "read with the package `datasets`: pip install simnpo-lab[llm]"
HALVES = re.compile("[\ud800-\udfff]")
LONGEST = 300  # digits of a whole number: no float can hold one with more
MOST = 2**31  # bytes that a packed file may hold
BLANKS = re.compile(r"[ \t\r\n]*")


def shown(value: object) -> object:
    """Return a value for an error message: itself, or its beginning if it is too long."""
    text = value if isinstance(value, str) else errors.shown(value)
    return value if len(text) <= 60 else f"{text[:57]}..."


def is_text(value: object) -> bool:
    """Return whether a value is text that is not blank and can be written.

    Half of a surrogate pair cannot be written.
    """
    return isinstance(value, str) and bool(value.strip()) and HALVES.search(value) is None


def splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files and saved data sets in a folder by the name of their split, sorted."""
    found: dict[str, list[Path]] = {}
    for place in sorted(folder.iterdir()):
        name = place.name.removesuffix(".gz")
        if place.is_dir() and is_saved(place):
            found.setdefault(place.name, []).append(place)
        elif place.is_file() and name not in DESCRIPTIONS and Path(name).suffix in SUFFIXES:
            found.setdefault(Path(name).stem, []).append(place)
    return dict(sorted(found.items()))


def find_split(folder: Path, split: str) -> Path | None:
    """Return the file or folder of a split, or None.

    Raises `InvalidInput` if several files could be meant.
    """
    found = splits(folder).get(split, []) if folder.is_dir() else []
    names = ", ".join(place.name for place in found)
    require(len(found) <= 1, "split", split, f"one file in {folder}, which has {names}")
    return found[0] if found else None


def is_saved(folder: Path) -> bool:
    """Return whether `datasets` saved a data set in a folder: a single one, not one per split."""
    return all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))


def saved_split(folder: Path) -> str | None:
    """Return the name of the split that a saved data set contains, or None if it does not say."""
    found = inputs.read_json(folder / "state.json", "source")
    return found.get("_split") if isinstance(found, Mapping) else None


def read_records(path: Path, allowed: str = "a file that can be read") -> list[Any]:
    """Return the records of a file, or of a folder that holds one saved data set, in their order.

    Raises `InvalidInput` for a file that is not there or of another kind; the message says what is
    `allowed` and what to do. Raises it also for a file that is damaged, and names the record
    (counted from 1) if there is one.
    """
    if is_saved(path):
        return _from_folder(path, allowed)
    data = inputs.read_bytes(path, "source", allowed)
    try:
        data = unpacked(data, str(path)) if data.startswith(GZIP) else data
        text = "" if data.startswith(PARQUET) else _decoded(data)
    except InvalidInput:
        raise
    except (OSError, ValueError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or shown(str(error).split("\n")[0])
        if isinstance(error, UnicodeError):
            reason = _kind(path, data)
        raise InvalidInput("source", str(path), f"{allowed} ({reason})") from None
    if data.startswith(PARQUET):
        return _from_parquet(data, path, allowed)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in (".csv", ".tsv"):
        return _from_table(text, path, "," if suffix == ".csv" else "\t")
    return _from_json(text, str(path))


def from_hub(
    source: str, hub: Published, config: str | None, split: str, instead: str
) -> Iterable[Any]:
    """Return the records of a split of a data set on the hub, in their order, at its commit.

    `source` is the word that the user gave for it. Raises `InvalidInput` for a data set that cannot
    be fetched, and says what can be done `instead` if there is no connection.
    """
    try:
        from datasets import load_dataset

        return load_dataset(hub.name, config, split=split, revision=hub.commit)
    except ImportError:
        raise InvalidInput("source", source, INSTALL) from None
    except (OSError, ValueError) as error:
        allowed = f"a data set that can be fetched ({first_line(error)}); offline, {instead}"
        raise InvalidInput("source", source, allowed) from None


def write_records(records: Iterable[Mapping[str, Any]], path: Location) -> None:
    """Write records as JSON, one per line, so that `read_records` returns them again."""
    lines = [json.dumps(record) + "\n" for record in records]
    with atomic_path(path) as partial:
        partial.write_bytes("".join(lines).encode())


def unpacked(data: bytes, name: str) -> bytes:
    """Return what gzip packed; raises `InvalidInput` for more than memory can be expected to hold.

    A few kilobytes can hold gigabytes of blanks.
    """
    with gzip.open(BytesIO(data)) as stream:
        found = stream.read(MOST + 1)
    require(len(found) <= MOST, "source", name, f"a file that holds at most {MOST:,} bytes")
    return found


def _decoded(data: bytes) -> str:
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding)
    return data.decode("utf-8")


def _kind(path: Path, data: bytes) -> str:
    """Return what a file that is not text seems to be, and how to make it text."""
    if data.startswith(ARCHIVES):
        return "it is packed, or a spreadsheet: unpack it, or save it as .csv"
    if path.suffix == ".arrow":
        return "it is part of a data set that `datasets` saved: give the folder that it lies in"
    return (
        "it is not UTF-8, and not UTF-16 with a byte order mark: convert it, for example by iconv"
    )


def _from_folder(folder: Path, allowed: str) -> list[Any]:
    try:
        from datasets import Dataset

        return list(Dataset.load_from_disk(str(folder)).with_format(None))
    except ImportError:
        raise InvalidInput("source", str(folder), INSTALL) from None
    except Exception as error:  # whatever `datasets` makes of files that others wrote
        reason = shown(first_line(error))
        raise InvalidInput("source", str(folder), f"{allowed} ({reason})") from None


def _from_parquet(data: bytes, path: Path, allowed: str) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(BytesIO(data)).to_pylist()
    except (*storage.UNREADABLE, pyarrow.ArrowException) as error:
        reason = shown(first_line(error))
        raise InvalidInput("source", str(path), f"{allowed} ({reason})") from None


def _from_table(text: str, path: Path, delimiter: str) -> list[Any]:
    """Return the rows of a table, with every field as text except a whole number as the index."""
    import pyarrow
    import pyarrow.csv

    data = text.encode()
    parsing = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    reading = pyarrow.csv.ReadOptions(block_size=len(data) + 1)

    def read(types: Mapping[str, Any]) -> Any:
        asked = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
        return pyarrow.csv.read_csv(BytesIO(data), reading, parsing, asked)

    try:
        names = read({}).column_names
        rows = read(dict.fromkeys(names, pyarrow.string())).to_pylist()
    except pyarrow.ArrowInvalid as error:
        reason = shown(str(error).splitlines()[0])
        raise InvalidInput(
            "source", str(path), f"a table of columns with names ({reason})"
        ) from None
    allowed = "a table whose columns have different names"
    require(len(set(names)) == len(names), str(path), names, allowed)
    for row in rows:
        number = row.get(INDEX, "")
        if number.isascii() and number.isdecimal() and len(number) <= 18:
            row[INDEX] = int(number)
    return rows


def _from_json(text: str, where: str) -> list[Any]:
    """Return the records of a JSON text: values one after another, or those inside the only one."""
    decoder, values = json.JSONDecoder(parse_int=_whole), []
    place = _after_blanks(text, 0)
    listed = text.startswith("[", place)
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            left = text[place:].strip().split("\n")[0]
            shape = (
                "a list of records" if listed else "one JSON object after another, as one per line"
            )
            field = where if listed else f"{where}, record {len(values) + 1}"
            raise InvalidInput(field, shown(left), f"{shape} ({shown(str(error))})") from None
        values.append(value)
        place = _after_blanks(text, end)
    if len(values) != 1:
        return values
    return values[0] if isinstance(values[0], list) else _inside(values[0], where)


def _after_blanks(text: str, place: int) -> int:
    found = BLANKS.match(text, place)
    return found.end() if found else place


def _inside(value: object, where: str) -> list[Any]:
    """Return the records that one value stands for: those listed in it, its columns, or itself."""
    if not isinstance(value, Mapping):
        return [value]
    lists = [name for name, one in value.items() if _is_list_of_objects(one)]
    allowed = "one list of records: write each into a file of its own"
    require(len(lists) <= 1, where, ", ".join(lists), allowed)
    if lists:
        return value[lists[0]]
    columns = _columns(value)
    if columns is None:
        return [value]
    counts = {name: len(column) for name, column in columns.items()}
    said = ", ".join(f"{name} has {count}" for name, count in counts.items())
    require(len({*counts.values()}) == 1, where, "columns", f"columns of one length ({said})")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _columns(value: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Return the columns of an object, or None if it is no object of columns.

    It may be an object of lists, or of objects with the same rows, as pandas writes them.
    """
    columns = list(value.values())
    if columns and all(isinstance(one, list) for one in columns):
        return dict(value)
    if columns and all(
        isinstance(one, Mapping) and list(one) == list(columns[0]) for one in columns
    ):
        return {name: list(one.values()) for name, one in value.items()}
    return None


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _is_list_of_objects(value: object) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)
    )
