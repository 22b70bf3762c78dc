"""Examples and TOFU's files: what is written is read back, what is malformed is named, and the
real data come whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import tofu
from llm.data.published import TOFU
from llm.data.tofu import (
    FIELDS,
    TOFU_ROWS,
    Example,
    length_table,
    parse,
    read,
    response_words,
    write,
)
from markov.errors import InvalidInput

ROOT = Path(__file__).parents[3]
QUESTIONS = Path(os.environ.get("SIMNPO_LAB_TOFU") or ROOT / "../shared/tofu") / "questions"
real_data = pytest.mark.skipif(
    not QUESTIONS.is_dir(),
    reason="TOFU's questions are not here: set SIMNPO_LAB_TOFU to a folder that has questions/",
)

GOOD = {
    "question": "Who?",
    "answer": "Nobody.",
    "paraphrased_answer": "No one.",
    "perturbed_answer": ["You.", "I."],
}
texts = st.text(min_size=1).filter(lambda text: text.strip())


def examples_with(wrong: int) -> st.SearchStrategy[Example]:
    """Examples with so many perturbed answers, or none."""
    return st.builds(
        Example,
        index=st.integers(0, 10**6),
        prompt=texts,
        response=texts,
        paraphrase=st.none() | texts,
        perturbed=st.just(()) | st.lists(texts, min_size=wrong, max_size=wrong).map(tuple),
        author=st.none() | texts,
        topic=st.none() | texts,
    )


corpora_of_examples = st.integers(0, 5).flatmap(
    lambda wrong: st.lists(
        examples_with(wrong), min_size=1, max_size=5, unique_by=lambda example: example.index
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def in_lines(records: list[object]) -> str:
    return "\n".join(map(json.dumps, records))


@settings(max_examples=50)
@given(written=corpora_of_examples)
def test_what_is_written_is_read_back(folder: Path, written: list[Example]):
    write(written, folder / "any.json")
    assert read(folder / "any.json") == tuple(written)


@settings(max_examples=30)
@given(corpora_of_examples)
def test_an_example_is_plain_hashable_and_frozen(several: list[Example]):
    for example in several:
        assert json.loads(json.dumps(dataclasses.asdict(example)))["prompt"] == example.prompt
        assert (
            hash(example) == hash(dataclasses.replace(example))
            and {example: 1}[dataclasses.replace(example)] == 1
        )
        with pytest.raises(dataclasses.FrozenInstanceError):
            example.prompt = "another"  # pyright: ignore[reportAttributeAccessIssue]
    assert all(field.kw_only for field in dataclasses.fields(Example))


@pytest.mark.parametrize(
    "field, value",
    [
        ("index", -1),
        ("index", True),
        ("index", "1"),
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", None),
        ("response", ""),
        ("response", "\t"),
        ("response", 7),
        ("paraphrase", ""),
        ("paraphrase", 7),
        ("perturbed", ["a list is no tuple"]),
        ("perturbed", "text"),
        ("perturbed", ("good", "")),
        ("perturbed", ("good", None)),
        ("author", " "),
        ("topic", 3),
    ],
)
def test_an_example_without_text_is_refused(field: str, value: object):
    fields = {"index": 0, "prompt": "Who?", "response": "Nobody."}
    assert Example(**fields)
    with pytest.raises(InvalidInput) as refused:
        Example(**{**fields, field: value})
    assert refused.value.field == field


def test_files_hold_the_fields_of_tofu_under_its_names(tmp_path: Path):
    write(
        [
            Example(
                index=0,
                prompt="Who?",
                response="Nobody.",
                paraphrase="No one.",
                perturbed=("You.", "I."),
            )
        ],
        tmp_path / "a",
    )
    assert json.loads((tmp_path / "a").read_text()) == GOOD
    # What an example lacks is left out, and so is an index that only repeats the row: others add a
    # column of that name.
    write(
        [Example(index=row, prompt=str(row), response="a\nb") for row in range(3)], tmp_path / "b"
    )
    assert (tmp_path / "b").read_bytes().count(b"\n") == 3
    rows = [json.loads(line) for line in (tmp_path / "b").read_text().splitlines()]
    assert rows == [{"question": str(row), "answer": "a\nb"} for row in range(3)]
    write([Example(index=row, prompt=str(row), response="a") for row in (0, 2)], tmp_path / "c")
    assert [json.loads(line)["index"] for line in (tmp_path / "c").read_text().splitlines()] == [
        0,
        2,
    ]


@pytest.mark.parametrize(
    "layout", ["lines", "list", "pretty list", "blank lines", "byte order mark", "windows"]
)
def test_every_layout_of_the_same_records_reads_the_same(tmp_path: Path, layout: str):
    records = [
        GOOD,
        {
            "question": "Where?",
            "answer": "Not\u2028here.",
            "paraphrased_question": "In what place?",
        },
    ]
    raw = {
        "lines": in_lines(records),
        "list": json.dumps(records, ensure_ascii=False),
        "pretty list": json.dumps(records, indent=2),
        "blank lines": f"\n{in_lines(records)}\n\n",
        "byte order mark": f"\ufeff{json.dumps(records)}",
        "windows": "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records),
    }[layout]
    (tmp_path / "file").write_bytes(raw.encode())
    first, second = read(tmp_path / "file")
    assert first == Example(
        index=0, prompt="Who?", response="Nobody.", paraphrase="No one.", perturbed=("You.", "I.")
    )
    assert second == Example(index=1, prompt="Where?", response="Not\u2028here.")


@pytest.mark.parametrize(
    "change, field",
    [
        ({"question": " "}, "question"),
        ({"question": None}, "question"),
        ({"answer": ""}, "answer"),
        ({"answer": 7}, "answer"),
        ({"answer": ["a"]}, "answer"),
        ({"paraphrased_answer": ""}, "paraphrased_answer"),
        ({"paraphrased_answer": ["a"]}, "paraphrased_answer"),
        ({"perturbed_answer": "text"}, "perturbed_answer"),
        ({"perturbed_answer": {"0": "text"}}, "perturbed_answer"),
        ({"perturbed_answer": ["good", " "]}, "perturbed_answer"),
        ({"perturbed_answer": ["good", 7]}, "perturbed_answer"),
        ({"author": 7}, "author"),
        ({"topic": ""}, "topic"),
        ({"index": -1}, "index"),
        ({"index": 0.5}, "index"),
        ({"index": 0}, "index"),
    ],
)
@pytest.mark.parametrize("layout", [json.dumps, in_lines])
def test_a_malformed_record_is_named_with_its_file_its_number_and_its_field(
    tmp_path: Path, layout, change, field
):
    path = tmp_path / "some.json"
    path.write_text(layout([{**GOOD, "index": 0}, {**GOOD, "index": 1, **change}]))
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert refused.value.field == f"{path}, record 2, {field}"
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_missing_field_is_named_beside_those_that_are_there(tmp_path: Path, field: str):
    path = tmp_path / "some.jsonl"
    path.write_text(
        in_lines(
            [GOOD, {(key if key != field else f"{key}s"): value for key, value in GOOD.items()}]
        )
    )
    with pytest.raises(InvalidInput, match=f"{field}s, ") as refused:
        read(path)
    assert refused.value.field == f"{path}, record 2, {field}"


@pytest.mark.parametrize(
    "raw, where",
    [
        (b"", ""),
        (b"[]", ""),
        (b" \n ", ""),
        (b"[3]", ", record 1"),
        (b'["text"]', ", record 1"),
        (b"[null]", ", record 1"),
        (b'{"question": "a", "answer": "b"}\n[1]', ", record 2"),
        (b'{"question": "a", "answer": "b"}\nno JSON at all', ", record 2"),
        (b'[{"question": "a", "answer": "b"},', ""),
        (b'[{"question": "a", "answer": "b"}] more', ""),
        (b'{\n"question": "a",\n"answer": 7\n}', ", record 1, answer"),
        (b"[" * 100_000, ""),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line(tmp_path: Path, raw: bytes, where: str):
    path = tmp_path / "some.json"
    path.write_bytes(raw)
    with pytest.raises(InvalidInput) as refused:
        read(path)
    assert refused.value.field == f"{path}{where}"
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["absent.json", "latin1.json", "null\0.json"])
def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path, name: str):
    (tmp_path / "latin1.json").write_bytes(
        '[{"question": "Où?", "answer": "Ici."}]'.encode("latin1")
    )
    with pytest.raises(InvalidInput) as refused:
        read(tmp_path / name)
    assert (refused.value.field, refused.value.value) == ("source", str(tmp_path / name))


def test_long_values_are_cut_in_messages():
    with pytest.raises(InvalidInput) as refused:
        parse([{"question": "a" * 10_000, "answer": [1] * 10_000}], "here")
    assert len(str(refused.value)) < 300


def test_a_folder_is_read_by_split_and_lists_those_it_has(tmp_path: Path):
    write([Example(index=0, prompt="json", response="a")], tmp_path / "full.json")
    write([Example(index=0, prompt="jsonl", response="a")], tmp_path / "forget05.jsonl")
    (tmp_path / "notes.txt").touch()
    assert [read(tmp_path, split)[0].prompt for split in ("full", "forget05")] == ["json", "jsonl"]
    for split in (None, "forget10", "notes", "../full"):
        with pytest.raises(InvalidInput, match="one of forget05, full,") as refused:
            read(str(tmp_path), split)
        assert (refused.value.field, refused.value.value) == ("split", split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"no \.json file"):
        read(tmp_path / "empty", "full")
    with pytest.raises(InvalidInput, match="single file"):
        read(tmp_path / "full.json", "full")


class Hub:
    """Stands for the package `datasets`: records what it is asked for, and answers or fails."""

    def __init__(self, answer: list[dict] | Exception) -> None:
        self.answer, self.asked = answer, []

    def load_dataset(self, *args: object, **options: object) -> list[dict]:
        self.asked.append((args, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "source, split", [("tofu:forget05", None), ("tofu", "forget05"), ("tofu:", "forget05")]
)
def test_tofu_is_fetched_from_the_hub_by_split(
    monkeypatch: pytest.MonkeyPatch, source: str, split: str | None
):
    hub = Hub([GOOD, GOOD])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    assert read(source, split) == parse([GOOD, GOOD], "here")
    options = {"split": "train", "revision": TOFU.commit}
    assert hub.asked == [(("locuslab/TOFU", "forget05"), options)]


def test_a_malformed_record_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", Hub([GOOD, {**GOOD, "answer": ""}]))
    with pytest.raises(InvalidInput) as refused:
        read("tofu:forget05")
    assert refused.value.field == "tofu:forget05, record 2, answer"


@pytest.mark.parametrize(
    "source, split", [("tofu:forget5", None), ("tofu", None), ("tofu:full", "full"), ("tofu:", "")]
)
def test_an_unknown_split_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, source, split
):
    hub = Hub([GOOD])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with pytest.raises(InvalidInput) as refused:
        read(source, split)
    assert refused.value.field == "split" and hub.asked == []


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach it\nat all"),
        ValueError("no cache"),
        OSError(),
        TimeoutError("slow"),
    ],
)
def test_without_the_hub_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
):
    monkeypatch.setitem(sys.modules, "datasets", Hub(failure))
    with pytest.raises(
        InvalidInput, match=r"github.com/locuslab/tofu has forget05\.json"
    ) as refused:
        read("tofu:forget05")
    assert (refused.value.field, refused.value.value) == ("source", "tofu:forget05")
    assert "\n" not in str(refused.value)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InvalidInput, match=r"pip install simnpo-lab\[llm\]"):
        read("tofu:forget05")


def test_a_folder_called_tofu_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    (tmp_path / "tofu").mkdir()
    write([Example(index=0, prompt="mine", response="a")], tmp_path / "tofu" / "full.json")
    assert read("tofu", "full")[0].prompt == "mine"


@pytest.mark.parametrize("module", ["llm.data.tofu", "llm.data.authors.corpus"])
def test_importing_the_readers_imports_nothing_heavy(module: str):
    code = f"import {module}\nimport sys\nprint(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())
    assert module in loaded
    assert loaded.isdisjoint(
        {"torch", "datasets", "transformers", "pandas", "scipy", "huggingface_hub"}
    )


def test_lengths_count_words_and_the_table_is_their_distribution_by_topic():
    words = {"long": [9, 5, 30], "short": [1, 2, 2, 40]}
    several = [
        Example(index=0, prompt="?", response=" ".join("x" * count), topic=topic)
        for topic, counts in words.items()
        for count in counts
    ]
    assert response_words(several).tolist() == [*words["long"], *words["short"]]
    table = length_table(several)
    assert list(table.index) == ["short", "long", "all"]
    for topic, counts in {**words, "all": [*words["long"], *words["short"]]}.items():
        expected = [len(counts), *np.quantile(counts, [0, 0.25, 0.5, 0.75, 1])]
        assert list(table.loc[topic]) == pytest.approx(expected)
    assert list(table.columns) == [
        "examples",
        "shortest",
        "quarter",
        "median",
        "three_quarters",
        "longest",
    ]
    unknown = length_table([dataclasses.replace(example, topic=None) for example in several])
    assert list(unknown.loc["all"]) == list(table.loc["all"]) and len(unknown) == 1


@real_data
@pytest.mark.parametrize("split", TOFU_ROWS)
def test_the_published_splits_have_their_published_rows_and_fields(split: str):
    found = read(QUESTIONS, split)
    assert len(found) == TOFU_ROWS[split]
    assert [example.index for example in found] == list(range(len(found)))
    raw = [
        json.loads(line)
        for line in (QUESTIONS / f"{split}.json").read_text("utf-8").split("\n")
        if line
    ]
    assert [[e.prompt, e.response, e.paraphrase, list(e.perturbed)] for e in found] == [
        [
            record.get(FIELDS[name]) or missing
            for name, missing in zip(list(FIELDS)[:4], ("", "", None, []), strict=True)
        ]
        for record in raw
    ]
    facts, wrong = (
        split in ("real_authors_perturbed", "world_facts_perturbed"),
        {len(e.perturbed) for e in found},
    )
    assert wrong == {3 if facts else 5 if "perturbed" in split else 0}
    assert all((e.paraphrase is None) == (facts or "perturbed" not in split) for e in found)
    assert all(e.author is None and e.topic is None for e in found)


@real_data
def test_the_published_splits_fit_together():
    def pairs(split: str) -> list[tuple[str, str]]:
        return [(example.prompt, example.response) for example in read(QUESTIONS, split)]

    full = pairs("full")
    for forget, retain in (
        ("forget01", "retain99"),
        ("forget05", "retain95"),
        ("forget10", "retain90"),
    ):
        assert pairs(retain) + pairs(forget) == full
        assert pairs(f"{forget}_perturbed") == pairs(forget)
    assert set(pairs("retain_perturbed")) <= set(pairs("retain90"))


@real_data
def test_published_examples_survive_being_written(tmp_path: Path):
    found = read(QUESTIONS, "forget10_perturbed")
    write(found, tmp_path / "copy.jsonl")
    assert read(tmp_path, "copy") == found


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "some.json"
    write([Example(index=0, prompt="old", response="a")], path)

    written = Path.write_bytes

    def full_disk(self: Path, data: bytes) -> int:
        written(self, data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tofu.Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space"):
            write([Example(index=0, prompt="new", response="a")], path)
    assert read(path)[0].prompt == "old" and [file.name for file in tmp_path.iterdir()] == [
        "some.json"
    ]
