"""Records: the same ones from every file and folder that people keep them in, and one line for what
cannot be read.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.muse import read_muse, write_muse
from llm.data.records import find_split, is_saved, is_text, read_records, splits
from llm.data.tofu import Example, read
from markov.errors import InvalidInput

Records = list[dict[str, str]]
# What JSON allows inside a text and lines are cut at elsewhere, quotes, delimiters, and words that
# stand for nothing.
words = st.sampled_from(
    ["NaN", "null", "None", "1987", "1e5", "true", "a,b\t'c' \"d\"", "\u2028", "e\nf\r\ng"]
)
texts = st.text(max_size=8).map(lambda text: text.replace("\0", "0")) | words
records = st.lists(
    st.fixed_dictionaries({"question": texts, "answer": texts}), min_size=1, max_size=4
)


def lines(found: Records, ascii_only: bool = False) -> str:
    return "".join(json.dumps(one, ensure_ascii=ascii_only) + "\n" for one in found)


def parquet(found: Records) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(found).to_parquet(buffer)
    return buffer.getvalue()


def table(delimiter: str) -> Callable[[Records], bytes]:
    return lambda found: pd.DataFrame(found).to_csv(sep=delimiter, index=False, quoting=1).encode()


LAYOUTS: dict[str, tuple[str, Callable[[Records], bytes]]] = {
    "lines": (".jsonl", lambda found: lines(found).encode()),
    "lines of Windows": (".json", lambda found: lines(found).replace("\n", "\r\n").encode()),
    "list": (".json", lambda found: json.dumps(found).encode()),
    "indented list": (".json", lambda found: json.dumps(found, indent=2).encode()),
    "indented objects": (
        ".json",
        lambda found: "\n".join(json.dumps(one, indent=2) for one in found).encode(),
    ),
    "a list in an object": (
        ".json",
        lambda found: json.dumps({"version": "1.1", "data": found}, indent=1).encode(),
    ),
    "columns": (
        ".json",
        lambda found: json.dumps({key: [one[key] for one in found] for key in found[0]}).encode(),
    ),
    "columns of pandas": (".json", lambda found: (pd.DataFrame(found).to_json() or "").encode()),
    "records of pandas": (
        ".json",
        lambda found: (pd.DataFrame(found).to_json(orient="records") or "").encode(),
    ),
    "mark": (".json", lambda found: b"\xef\xbb\xbf" + lines(found).encode()),
    "UTF-16": (".jsonl", lambda found: lines(found).encode("utf-16")),
    "UTF-16, the other order": (
        ".jsonl",
        lambda found: b"\xfe\xff" + lines(found).encode("utf-16-be"),
    ),
    "UTF-32": (".jsonl", lambda found: lines(found).encode("utf-32")),
    "packed": (".jsonl.gz", lambda found: gzip.compress(lines(found).encode())),
    "packed without saying so": (".json", lambda found: gzip.compress(lines(found).encode())),
    "parquet": (".parquet", parquet),
    "commas": (".csv", table(",")),
    "tabs": (".tsv", table("\t")),
    "packed table": (".csv.gz", lambda found: gzip.compress(table(",")(found))),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@settings(max_examples=15)
@given(found=records)
def test_records_are_the_same_in_every_layout(folder: Path, layout: str, found: Records) -> None:
    ending, write = LAYOUTS[layout]
    path = folder / f"some{ending}"
    path.write_bytes(write(found))
    assert read_records(path) == found
    assert find_split(folder, "some") == path
    path.unlink()


@given(
    st.text() | st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF) | st.none() | st.floats()
)
def test_text_is_what_is_not_blank_and_can_be_written(value: object) -> None:
    good = isinstance(value, str) and value.strip() != ""
    if good:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            good = False
    assert is_text(value) == good


def rows(*numbers: int) -> Records:
    return [{"question": f"Who {number}?", "answer": f"Nobody {number}."} for number in numbers]


def save(found: dict[str, Records], folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    sets = {name: Dataset.from_list(rows) for name, rows in found.items()}
    saved: Any = sets.get("") or DatasetDict(list(sets.items()))
    saved.save_to_disk(str(folder))


def prompts(examples: tuple[Example, ...]) -> list[str]:
    return [example.prompt for example in examples]


def test_a_saved_data_set_is_read_by_its_folder(tmp_path: Path) -> None:
    save({"": rows(0, 1)}, tmp_path / "forget10")
    assert is_saved(tmp_path / "forget10") and not is_saved(tmp_path)
    assert prompts(read(tmp_path / "forget10")) == ["Who 0?", "Who 1?"]
    # It lies among files of other splits, too.
    (tmp_path / "retain90.json").write_text(lines(rows(2)))
    assert list(splits(tmp_path)) == ["forget10", "retain90"]
    assert prompts(read(tmp_path, "forget10")) == ["Who 0?", "Who 1?"]
    with pytest.raises(InvalidInput, match="single data set"):
        read(tmp_path / "forget10", "train")


def test_saved_data_sets_are_read_by_split(tmp_path: Path) -> None:
    save({"forget10": rows(0, 1), "retain90": rows(2)}, tmp_path / "tofu")
    assert prompts(read(tmp_path / "tofu", "retain90")) == ["Who 2?"]
    assert prompts(read(tmp_path / "tofu" / "forget10")) == ["Who 0?", "Who 1?"]
    for split in (None, "train", "dataset_dict"):
        with pytest.raises(InvalidInput, match="one of forget10, retain90, as found in") as refused:
            read(tmp_path / "tofu", split)
        assert (refused.value.field, refused.value.value) == ("split", split)


def test_a_saved_data_set_keeps_lists_whole_and_what_is_absent_absent(tmp_path: Path) -> None:
    own = [
        {**one, "perturbed_answer": ["You.", "I."], "index": 5 - row}
        for row, one in enumerate(rows(0, 1))
    ]
    save({"": own}, tmp_path / "saved")  # pyright: ignore[reportArgumentType]
    pd.DataFrame(own).to_parquet(tmp_path / "same.parquet")
    found = read(tmp_path / "saved")
    assert found == read(tmp_path / "same.parquet")
    assert [(one.index, one.perturbed, one.paraphrase) for one in found] == [
        (index, ("You.", "I."), None) for index in (5, 4)
    ]


def test_damage_to_a_saved_data_set_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"": rows(0, 1)}, tmp_path / "saved")
    with monkeypatch.context() as patch, pytest.raises(InvalidInput, match="pip install"):
        patch.setitem(sys.modules, "datasets", None)
        read(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    with pytest.raises(InvalidInput, match="give the folder"):
        read(arrow)
    arrow.unlink()
    with pytest.raises(InvalidInput) as refused:
        read(tmp_path / "saved")
    assert refused.value.value == str(tmp_path / "saved") and "\n" not in str(refused.value)


def test_the_index_of_a_table_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("index,question,answer\n7,Who?,1987\n3,When?,Nobody\n")
    assert [(one.index, one.response) for one in read(path)] == [(7, "1987"), (3, "Nobody")]
    path.write_text("index,question,answer\n7,Who?,1987\nx,When?,Nobody\n")
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert (refused.value.field, refused.value.value) == (f"{path}, record 2, index", "x")


def test_a_split_may_be_named_behind_its_folder(tmp_path: Path) -> None:
    (tmp_path / "forget10.jsonl").write_text(lines(rows(3)))
    assert prompts(read(tmp_path / "forget10")) == ["Who 3?"]


def test_a_split_with_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("forget10.json", "forget10.csv", "retain90.json"):
        (tmp_path / name).write_text(lines(rows(0)))
    assert prompts(read(tmp_path, "retain90")) == ["Who 0?"]
    with pytest.raises(InvalidInput, match=r"forget10\.csv, forget10\.json"):
        read(tmp_path, "forget10")


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("a.json", b"PK\x03\x04....\xff", "unpack it"),
        ("a.xlsx", b"PK\x03\x04....\xff", "save it as .csv"),
        ("a.json.bz2", b"BZh9\xff", "unpack it"),
        ("a.arrow", b"\xff\xff\xff\xff", "give the folder"),
        ("a.json", b"caf\xe9", "iconv"),
        ("a.jsonl", b"\xff\xfea", "iconv"),
        ("a.json.gz", gzip.compress(b"{}" * 100, mtime=0)[:-8], ""),
        ("a.json.gz", b"\x1f\x8bnothing", ""),
        ("a.parquet", b"PAR1 cut short", ""),
        ("a.csv", b"", "columns"),
        ("a.csv", b"question,answer\na,b,c\n", "Expected 2 columns"),
        ("a.csv", b'question,answer\n"a,b\n', "columns"),
        ("a.csv", b"question,question\na,b\n", "different names"),
        ("a.json", b'{"question": ["a", "b"], "answer": ["c"]}', "question has 2, answer has 1"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "file of its own"),
        ("a.json", b'{"question": "a"}\n{"question": ', "one per line"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_says_what_to_do(
    name: str, data: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInput) as refused:
        read_records(tmp_path / name)
    assert reason in str(refused.value) and str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


@pytest.mark.parametrize("value", [float("nan"), None, 7, True, ["a"], {"a": 1}, "", " ", "\ud800"])
@pytest.mark.parametrize("field", ["question", "answer"])
def test_what_is_no_text_is_named_with_its_row_and_field(
    field: str, value: object, tmp_path: Path
) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps([*rows(0, 1), {**rows(2)[0], field: value}]))
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert refused.value.field == f"{path}, record 3, {field}" and "\n" not in str(refused.value)


def test_perturbed_answers_are_as_many_everywhere(tmp_path: Path) -> None:
    path, counts = tmp_path / "some.json", (2, 0, 2, 3)
    own = [{**rows(0)[0], "perturbed_answer": ["You."] * count} for count in counts]
    path.write_text(json.dumps(own[:3]))
    assert [len(example.perturbed) for example in read(path)] == [2, 0, 2]
    path.write_text(json.dumps(own))
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert refused.value.field == f"{path}, record 4, perturbed_answer"


def test_the_data_of_muse_have_the_same_shapes(tmp_path: Path) -> None:
    data = read_muse("news:1")
    write_muse(data, tmp_path)

    def replace(name: str, ending: str, write: Callable[[Records], bytes]) -> None:
        path = tmp_path / f"{name}.json"
        found = read_records(path)
        path.unlink()
        path.with_suffix(ending).write_bytes(write(found))

    replace("raw/forget", ".parquet", parquet)
    replace("raw/retain1", ".jsonl", lambda found: lines(found).encode("utf-16"))
    replace("verbmem/forget", ".csv", table(","))
    replace("knowmem/forget_qa", ".json.gz", lambda found: gzip.compress(lines(found).encode()))
    replace("privleak/forget", ".json", LAYOUTS["columns"][1])
    replace("privleak/retain", ".json", LAYOUTS["a list in an object"][1])
    found = {
        split: read_records(tmp_path / "knowmem" / f"{split}.json")
        for split in ("retain_qa", "retain_qa_icl")
    }
    for split in found:
        (tmp_path / "knowmem" / f"{split}.json").unlink()
    save(found, tmp_path / "saved")
    for split in found:
        (tmp_path / "saved" / split).rename(tmp_path / "knowmem" / split)
    assert read_muse(tmp_path) == data


DEEP = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"question": ' + DEEP + ', "answer": "a"}',
        '{"question": "a", "answer": "b", "index": ' + "9" * 400 + "}",
        '{"question": "a", "answer": "b", "index": ' + "9" * 5000 + "}",
        '{"question": "a", "answer": "b", "index": ' + "9" * 30 + "}",
        '{"question": "\\ud800", "answer": "b"}',
    ],
    ids=range(6),
)
def test_deep_huge_and_odd_records_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / "data.json")
    assert "data.json" in str(caught.value) and len(str(caught.value)) < 900


def test_a_packed_file_is_not_unpacked_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.data.records.MOST", 1000)
    (tmp_path / "data.json.gz").write_bytes(gzip.compress(b" " * 10_000))
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / "data.json.gz")
    assert "1,000 bytes" in str(caught.value)


@pytest.mark.parametrize("row", ["5", "[]", "{}", '{"part": 5}', "[" * 100_000, "\\xff"])
def test_lines_of_times_that_nobody_wrote_are_left_out(row: str, tmp_path: Path) -> None:
    from llm.sweeps.times import read_times

    good = '{"part": "a", "model": "b", "seconds": 1.5, "finished": true, "resumed": false}'
    odd = good.replace("1.5", '"long"')
    (tmp_path / "times").write_text(f"{row}\n{good}\n{odd}\n")
    assert read_times({0: tmp_path / "times"}).to_numpy().tolist() == [
        [0, "a", "b", 1.5, True, False]
    ]
