"""Paths and files of the user's: what is no regular file is never opened, what no file can have as
its name is bad input, and JSON that nothing here can use is refused in one line.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from markov.errors import WIDEST, InvalidInput
from markov.files import folders, inputs, storage

FRAME = pd.DataFrame({"step": [0, 1]})


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Paths by what is wrong with them, beside a whole table; the work is done beside them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    storage.write_table(FRAME, tmp_path / "table.parquet", {})
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path / ("b" if name == "a" else "a"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        yield {
            "pipe": tmp_path / "pipe",
            "link to a pipe": tmp_path / "to_pipe",
            "socket": tmp_path / "socket",
            "device": Path("/dev/zero"),
            "long name": Path("x" * 5000),
            "long path": Path("/".join(["x" * 100] * 50)),
            "circle": tmp_path / "a",
            "below a file": tmp_path / "table.parquet" / "table.parquet",
            "nul": Path("a\0b"),
        }


BAD = (
    *("pipe", "link to a pipe", "socket", "device", "long name", "long path", "circle"),
    *("below a file", "nul"),
)
READERS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: inputs.existing_file(path, "data"),
    "folder": lambda path: inputs.existing_folder(path, "data"),
    "bytes": lambda path: inputs.read_bytes(path, "data"),
    "text": lambda path: inputs.read_text(path, "data"),
    "json": lambda path: inputs.read_json(path, "data"),
    "table": storage.read_table,
    "provenance": storage.read_provenance,
    "parameters": storage.load_parameters,
    "place of a table": folders.check_table,
    "place of a folder": folders.check_place,
    "file to write": lambda path: storage.check_writable(path, "out"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_file_of_ours_is_refused_and_never_opened(
    places: dict[str, Path], kind: str, reader: str
):
    path = places[kind]
    before = sorted(os.listdir())
    with pytest.raises(InvalidInput) as caught:  # reading a pipe would never end
        READERS[reader](path)
    message = str(caught.value)
    assert caught.value.value == str(path)
    assert "\n" not in message and len(message) < WIDEST + 200
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("word", ["pipe", "link to a pipe", "device", "long name", "circle", "nul"])
def test_a_word_that_is_no_path_of_a_file_is_just_a_word(places: dict[str, Path], word: str):
    path = places[word]
    assert not inputs.is_file(path) and not inputs.is_folder(path)
    assert inputs.exists(path) == (word in ("pipe", "link to a pipe", "device"))


def test_what_lies_in_the_way_is_named(places: dict[str, Path], tmp_path: Path):
    for path, said in [
        (places["pipe"], "a pipe lies there"),
        (places["device"], "a device lies there"),
        (places["socket"], "a socket lies there"),
        (tmp_path, "a folder lies there"),
    ]:
        for use in (inputs.existing_file, storage.check_writable):
            with pytest.raises(InvalidInput, match=said):
                use(path, "data")
    with pytest.raises(InvalidInput, match="a file lies there"):
        inputs.existing_folder(tmp_path / "table.parquet", "data")


@pytest.mark.parametrize("value", [None, 3, b"name", "", True, 1.5, ["a"], np.int64(3)])
def test_what_is_no_path_is_refused(value: object):
    with pytest.raises(InvalidInput, match="a path"):
        inputs.expanded(value, "data")


def test_a_tilde_is_the_home_folder_wherever_it_stands(places: dict[str, Path], tmp_path: Path):
    assert places
    table, home = "~/new/table.parquet", tmp_path / "home"
    folders.check_table(table)
    storage.write_table(FRAME, table, {})
    assert (home / "new" / "table.parquet").is_file()
    assert storage.read_table(table).equals(FRAME) and storage.read_provenance(table) == {}
    folders.claim("~/folder", "job", {}, names=("a",), passing=("b",))
    assert folders.claimed("~/folder", "job") and folders.claimed(home / "folder", "job")
    assert folders.check_place("~/folder") == home / "folder"
    assert inputs.is_folder("~/folder") and inputs.is_file(table)
    assert not os.path.lexists("~")


def test_a_home_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)
    for path in ("~", "~/out.parquet"):
        with pytest.raises(InvalidInput, match="no home folder is known"):
            storage.check_writable(path, "out")
    assert inputs.expanded("~someone/a", "out") == Path("~someone/a")


@dataclass(frozen=True)
class Arguments:
    out: Path
    logs: tuple[Path, Path] | None
    runs: tuple[Path, ...] = ()
    name: str = "~/kept"


def test_the_paths_among_arguments_are_expanded(places: dict[str, Path], tmp_path: Path):
    assert places
    given = Arguments(Path("~/a"), (Path("~/b"), Path("c")), (Path("~"),))
    home = tmp_path / "home"
    assert inputs.expand_all(given) == Arguments(home / "a", (home / "b", Path("c")), (home,))
    assert inputs.expand_all(Arguments(Path("a"), None)) == Arguments(Path("a"), None)


def test_a_link_is_tried_where_it_points_to(places: dict[str, Path], tmp_path: Path):
    (tmp_path / "good").symlink_to(tmp_path / "new.parquet")
    (tmp_path / "bad").symlink_to(places["below a file"])
    assert storage.check_writable(tmp_path / "good", "out") == tmp_path / "good"
    with pytest.raises(InvalidInput, match="a file that can be written"):
        storage.check_writable(tmp_path / "bad", "out")


def test_a_name_that_is_no_text_can_be_written_and_read(tmp_path: Path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")
    storage.write_table(FRAME, path, {"seed": 1})
    assert storage.read_table(path).equals(FRAME)


# Reading


def test_a_file_beyond_the_memory_is_refused_unread(tmp_path: Path):
    with open(tmp_path / "sparse", "wb") as file:
        try:
            file.truncate(2**43)
        except OSError:
            pytest.skip("no file of this size can be made here")
    with pytest.raises(InvalidInput, match=r"memory has room for, [\d.]+ GB \(it has 8796.1 GB\)"):
        inputs.read_bytes(tmp_path / "sparse", "data")


def test_no_more_is_read_than_a_file_is_said_to_hold():
    assert inputs.read_bytes("/proc/self/status", "data") == b""


def test_text_is_read_with_and_without_its_mark(tmp_path: Path):
    for data in (b"\xef\xbb\xbfone\n", b"one\n"):
        (tmp_path / "text").write_bytes(data)
        assert inputs.read_text(tmp_path / "text", "data") == "one\n"
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="can't decode"):
        inputs.read_text(tmp_path / "text", "data")


GOOD = [
    {},
    [],
    None,
    {"a": [1, -(2**63), 2**64 - 1, 0.5, "\u20ac", {"\U0001f600": None}]},
    0.1234567890123456789012345,
]


@pytest.mark.parametrize("value", GOOD)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_plain_json_is_read_as_it_is(tmp_path: Path, value: object, ascii_only: bool):
    (tmp_path / "file").write_text(json.dumps(value, ensure_ascii=ascii_only), "utf-8")
    assert inputs.read_json(tmp_path / "file", "logs") == value


ODD = {
    "deep list": "[" * 101 + "]" * 101,
    "deep object": '{"a":' * 101 + "1" + "}" * 101,
    "deeper than Python": "[" * 100_000,
    "30 digits": '{"a": 1000000000000000000000000000000}',
    "400 digits": f"[{'7' * 400}]",
    "5000 digits": f"[-{'7' * 5000}]",
    "half a character": '["\\ud800"]',
    "half a character in a key": '{"\\uDFFF": 1}',
    "half a character deep inside": '[[{"a": "x\\udc00y"}]]',
    "nothing": "",
    "half": '{"a": ',
    "words": "hello",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_json_is_refused_in_one_line(tmp_path: Path, name: str):
    (tmp_path / "file").write_text(ODD[name], "utf-8")
    with pytest.raises(InvalidInput) as caught:
        inputs.read_json(tmp_path / "file", "logs")
    message = str(caught.value)
    assert caught.value.field == "logs" and caught.value.value == str(tmp_path / "file")
    assert "a JSON file that can be read (" in message and "\n" not in message
    assert len(message) < WIDEST + 200


def test_objects_are_made_as_the_caller_asks(tmp_path: Path):
    (tmp_path / "file").write_text('{"a": {"b": 1}}')
    made = inputs.read_json(tmp_path / "file", "logs", pairs=lambda pairs: dict(pairs, more=0))
    assert made == {"a": {"b": 1, "more": 0}, "more": 0}


# Claims and provenance


@pytest.mark.parametrize(
    "claim",
    [
        *([], 5, None, {"job": 3}, {"job": {"names": 5}}, {"job": {"names": [3]}}),
        *({"job": {"passing": ["/tmp"]}}, {"job": {"passing": ["../other"]}}),
        *({"job": {"passing": ["a\0b"]}}, {"job": {"passing": ["."]}}, {"job": {"process": 7}}),
    ],
)
def test_a_claim_that_nothing_here_made_is_refused(tmp_path: Path, claim: object):
    place = tmp_path / "place"
    place.mkdir()
    (place / folders.CLAIM).write_text(json.dumps(claim))
    for use in (
        lambda: folders.claim(place, "job", {}, names=("a",)),
        lambda: folders.check_place(place),
        lambda: folders.tidy(place, "job"),
    ):
        with pytest.raises(InvalidInput, match="no claim of this program"):
            use()
    assert os.listdir(place) == [folders.CLAIM]


@pytest.mark.parametrize("said", [*ODD.values(), "5", "[]", "null", '"text"'])
def test_odd_provenance_is_no_provenance(tmp_path: Path, said: str):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"a": [1]}).replace_schema_metadata({storage.KEY: said})
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
    for read in (storage.read_provenance, storage.read_table, folders.check_table):
        with pytest.raises(InvalidInput):
            read(tmp_path / "table.parquet")


@pytest.mark.parametrize("said", ["[" * 5000, "5", '{"columns": 5}', '{"columns": [{}]}'])
def test_a_table_with_an_odd_description_is_refused(tmp_path: Path, said: str):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"a": [1]})
    table = table.replace_schema_metadata({storage.KEY: "{}", "pandas": said})
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(InvalidInput, match="a table that can be read"):
        storage.read_table(tmp_path / "table.parquet")
