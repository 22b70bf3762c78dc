"""What no job can use is refused before any work, from the command line and in Python alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import llm
from llm.__main__ import ACTIONS, cli
from llm.arguments import ROWS, check, checked_job
from llm.data import sources
from llm.data.muse import read_muse
from llm.data.words import checked_word
from llm.models import names
from llm.training.settings import Optimization
from llm.unlearning import runs
from markov.errors import InvalidInput
from tests.llm.conftest import place as place

JOBS: dict[str, Callable[..., object]] = {
    name: getattr(llm, name)
    for name in (
        *("score", "evaluate", "weights", "diagnose", "allocation", "unlearn", "relearn"),
        *("sweep", "finetune", "known", "muse", "study", "estimate", "load", "read", "read_run"),
    )
}
ODDLY: Any = llm  # called as nobody should
LOOP, LONG, HUGE = "loop", "y/" * 2500, 10**20


def refused(call: Callable[[], object]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    return caught.value


def untouched(*_: object, **__: object) -> None:
    raise AssertionError("work was begun")


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm.models.language_model.load_saved", untouched)
    monkeypatch.setattr("llm.models.small_authors.build", untouched)
    monkeypatch.setattr("llm.models.small_news.build", untouched)


# --- the table ---

# Values that no row allows.
ODD: dict[str, Callable[[], Any]] = {
    "generator": lambda: (one for one in "ab"),
    "complex": lambda: 1j,
    "object": object,
    "bytes": lambda: b"ab",
    "set": lambda: {1, 2},
}


@pytest.mark.parametrize("kind", sorted(ODD))
@pytest.mark.parametrize("name", sorted(ROWS))
def test_no_argument_is_of_an_odd_kind(name: str, kind: str) -> None:
    assert refused(lambda: check(name, ODD[kind]())).field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("epochs", "batch", "budget") for value in (0, -1, HUGE, 1.0)),
        *((name, HUGE) for name in ("seed", "repeats", "max_length", "max_new_tokens", "piece")),
        ("seed", -1),
        ("seeds", (0, -1)),
        ("seeds", range(10**6)),
        ("measured", range(10**6)),
        ("lora_rank", 10**6),
        ("jobs", 0),
        ("jobs", 10**9),
        ("learning_rate", float("nan")),
        ("learning_rate", True),
        ("share", "a"),
        ("noise", -1.0),
        ("progress", 1),
        ("methods", "npo:0.1"),
        ("model", 5),
        ("data", [1, 2]),
        ("scores", None),
        ("out", ""),
        ("out", Path("\udcffname")),
        ("model", "\ud800"),
    ],
)
def test_numbers_out_of_bounds_and_values_of_another_kind_are_refused(
    name: str, value: Any
) -> None:
    assert refused(lambda: check(name, value)).field == name


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    for name, value in (
        *(("seed", np.int64(3)), ("epochs", np.int32(2)), ("learning_rate", np.float32(0.1))),
        *(("seeds", [0, 1]), ("seeds", np.arange(3)), ("measured", range(3)), ("seed", 2**63 - 1)),
        *(("objectives", ["npo:0.1"]), ("objectives", {"a": 1}), ("scores", pd.DataFrame())),
        *(("model", Path("a")), ("data", ["a", Path("b")]), ("beta", (0.1,)), ("beta", 1)),
    ):
        assert check(name, value) is None
    assert check("no argument of any job", object()) is None


def test_none_is_left_to_the_default() -> None:
    @checked_job
    def job(seed: int | None = None, epochs: int = 3, **more: Any) -> tuple[Any, ...]:
        return seed, epochs, more

    assert job(None, clip=None) == (None, 3, {"clip": None})
    assert refused(lambda: job(epochs=None)).field == "epochs"  # pyright: ignore[reportArgumentType]
    assert refused(lambda: job(batch=0)).field == "batch"


# --- in Python ---


@pytest.mark.parametrize(
    "value", [None, 5, True, 1j, b"a", [], object()], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("name", sorted(JOBS))
def test_the_first_argument_of_a_job_is_looked_at(name: str, value: Any) -> None:
    more = {} if name in ("evaluate", "load", "read", "read_run") else {"out": "found"}
    given = {"finetune": ("a.json",), "known": ("a.json",), "diagnose": ("b",)}.get(name, ())
    more = {} if name in ("score", "weights", "diagnose", "allocation", "relearn", "muse") else more
    refused(lambda: JOBS[name](value, *given, **more))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: ODDLY.score("authors:original", noise="text"), "noise"),
        (lambda: ODDLY.score("authors:original", noise=True), "noise"),
        (lambda: ODDLY.score("authors:original:20:" + "9" * 5000), "model"),
        (lambda: ODDLY.read("authors:forget20:" + "9" * 400), "data"),
        (lambda: ODDLY.load("authors:original", device=1j), "device"),
        (lambda: ODDLY.load("authors:original", dtype=["float32"]), "dtype"),
        (lambda: ODDLY.load("authors:original", template="chat"), "template"),
        (lambda: ODDLY.unlearn(epochs=HUGE), "epochs"),
        (lambda: ODDLY.unlearn(gradients=1), "gradients"),
        (lambda: ODDLY.unlearn(seed=-1), "seed"),
        (lambda: ODDLY.relearn("authors:original", repeats=HUGE), "repeats"),
        (lambda: ODDLY.relearn("authors:original", which="shortest"), "which"),
        (lambda: ODDLY.sweep((), out="found"), "methods"),
        (lambda: ODDLY.study("a", "b", out="found", seeds=(HUGE,)), "seeds"),
        (lambda: ODDLY.weights(None, None), "scores"),
        (lambda: ODDLY.read_run("x" * 5000), "run"),
        (lambda: ODDLY.method(None), "method"),
    ],
)
def test_what_a_job_cannot_use_is_refused_by_its_name(
    call: Callable[[], object], field: str
) -> None:
    assert refused(call).field == field


@pytest.mark.parametrize(
    "provenance", [{}, {"settings": None}, {"settings": []}, {"settings": {"unlearning": 5}}]
)
def test_a_run_whose_provenance_says_nothing_is_refused(
    provenance: dict[str, Any], tmp_path: Path
) -> None:
    from llm.schemas import RunSettings, check_settings

    found = refused(lambda: check_settings(RunSettings, provenance, "run", "epochs.parquet"))
    assert found.field == "run" and "provenance" in found.allowed
    assert runs.EPOCHS == "epochs.parquet"


# --- words and paths ---


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, str]:
    """Words that no path can be, and paths of what is neither a file nor a folder."""
    (tmp_path / LOOP).symlink_to(LOOP)
    os.mkfifo(tmp_path / "pipe.json")
    found = {"loop": LOOP, "long": LONG, "name": "n" * 300, "nul": "a\0b", "device": "/dev/zero"}
    return found | {"pipe": "pipe.json", "empty": "", "half": "\ud800"}


WORDS: dict[str, Callable[[Any], object]] = {
    "model": names.check,
    "made": names.made,
    "retrained": lambda word: names.check_retrained(word, "authors:forget20"),
    "data": sources.read,
    "texts": read_muse,
    "scores": lambda word: llm.weights(word),
    "logs": lambda word: llm.diagnose(word, word),
    "evaluated": lambda word: llm.evaluate(logs=word),
    "run": llm.read_run,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("kind", ["loop", "long", "name", "nul", "device", "pipe", "empty"])
@pytest.mark.parametrize("what", sorted(WORDS))
def test_words_that_name_no_file_are_refused_without_being_opened(
    what: str, kind: str, odd: dict[str, str]
) -> None:
    refused(lambda: WORDS[what](odd[kind]))


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_word("~/a", "data") == str(tmp_path / "a")
    assert checked_word("a~", "data") == "a~"


# --- from the command line ---

COMMON = {
    "epochs": ("unlearn", "finetune", "relearn", "muse", "sweep", "study"),
    "batch": ("unlearn", "finetune", "relearn", "muse", "sweep", "study"),
    "seed": ("build", "unlearn", "finetune", "known"),
    "seeds": ("gate", "sweep", "study"),
    "budget": ("score", "unlearn", "evaluate", "muse"),
    "max-length": ("score", "unlearn", "evaluate", "muse"),
    "max-new-tokens": ("evaluate", "known", "sweep", "study"),
    "lora-rank": ("unlearn", "finetune", "relearn", "sweep", "study"),
    "repeats": ("relearn",),
    "noise-seed": ("score",),
    "jobs": ("gate", "sweep", "study"),
    "measured": ("unlearn",),
}


@pytest.mark.parametrize(
    ("option", "command"), [(option, one) for option, many in COMMON.items() for one in many]
)
@pytest.mark.parametrize("value", [str(HUGE), "-2"])
def test_commands_refuse_numbers_beyond_bounds_in_one_line(
    option: str, command: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli([command, f"--{option}", value]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {option.replace('-', '_')} = ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("kind", ["loop", "long", "name", "device", "pipe"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((one, "--model") for one in ("score", "evaluate", "unlearn", "relearn", "sweep", "muse")),
        *((one, "--data") for one in ("score", "unlearn", "evaluate", "muse", "finetune")),
        *((one, "--retrained") for one in ("evaluate", "unlearn", "relearn", "sweep", "muse")),
        *((("unlearn", "--reference"), ("unlearn", "--refusals"), ("sweep", "--refusals"))),
        *((("evaluate", "--logs"), ("weights", "--scores"), ("diagnose", "--logs"))),
    ],
)
def test_commands_open_nothing_that_is_no_file(
    command: str,
    option: str,
    kind: str,
    odd: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = {
        "weights": ["--reference", "absent.parquet"],
        "diagnose": ["--retrained-logs", "absent"],
    }.get(command, [])
    more += ["--objective", "idk@1"] if (command, option) == ("unlearn", "--refusals") else []
    more += ["--methods", "idk@1"] if (command, option) == ("sweep", "--refusals") else []
    assert cli([command, option, odd[kind], *more]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "not allowed" in line and len(line) < 1000


def test_a_sweep_of_nothing_is_refused_before_anything_is_evaluated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli(["sweep", "--methods", "--out", "found"]) == 2
    assert "methods" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [["--device", "tpu"], ["--budget", "5"], ["--dtype", "auto"], ["--words", "any"]]
)
def test_options_of_a_model_are_not_passed_over_beside_logs(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["evaluate", "--logs", "absent", *option]) == 2
    assert "--logs" in capsys.readouterr().err


def test_every_command_looks_at_its_options() -> None:
    known = {name for command in ACTIONS for name in command.__dataclass_fields__}
    assert known & {"epochs", "batch", "seed", "seeds", "budget", "jobs"} <= ROWS.keys()
    assert {"epochs", "batch", "learning_rate"} <= set(Optimization.__dataclass_fields__)
