"""What is damaged in the cache is set aside, named in one line, and made again; what is the
user's is not touched.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from figures import cache
from figures.__main__ import cli as figures_cli
from figures.experiments import table as table_of
from figures.scale import Scale
from llm.__main__ import cli
from llm.data.authors.corpus import Authors
from llm.data.splits import TofuSets, tofu_sets
from llm.evaluation.folders import evaluate_into
from llm.models import small_news
from llm.models.answers import answer_log
from llm.models.language_model import LanguageModel
from llm.models.saving import check_whole
from llm.models.small_authors import DefaultModels, build, folder_of, sets
from llm.training.loop import Optimization
from llm.unlearning.runs import ANSWERS, EPOCHS, EXAMPLES, MODEL, Run, unlearn_into
from llm.unlearning.sequential import REQUESTS, requests, sequential
from llm.unlearning.unlearn import Unlearning
from markov.__main__ import Grid, experiment, points
from markov.errors import InvalidInput
from markov.files import storage
from markov.files.folders import CLAIM
from markov.objectives import npo
from markov.running import models as running
from tests.llm.evaluation.test_muse import SMALL as NEWS

pytestmark = pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning")
TINY = DefaultModels(
    authors=Authors(authors=10, questions=2),
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    vocabulary=300,
    passes=1,
    batch=32,
    precision="float32",
)
SETTINGS = Unlearning(
    objective=npo(0.1), optimization=Optimization(epochs=1, batch=2, learning_rate=1e-3)
)
FORGET, RETAIN = sets(TINY)
GRID = Grid(
    objective=("npo",),
    epochs=1,
    width=8,
    depth=1,
    heads=1,
    steps=2,
    retain_count=60,
    forget_count=60,
)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cut(path: Path) -> None:
    """What a full disk or a lost connection leaves of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def spoil(path: Path) -> None:
    """The same length, other bytes: the beginning of a table is read last."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\x00" * 40 + content[44:])


def the_line(capsys: pytest.CaptureFixture[str], *names: str) -> None:
    """One line about each name has been said, and no other."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(lines) == len(names), lines
    for line, name in zip(lines, names, strict=True):
        assert f"{name} is broken (" in line and f"set aside as {name}.broken" in line


@pytest.mark.parametrize("harm", [cut, spoil, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_table_is_made_again(
    harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    context, calls = cache.Context(scale=Scale(), n_jobs=1, progress=False), []

    def compute() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"x": range(1000)})

    first = cache.cached(context, "figures.theory.optimizer", "settings", compute)
    (path,) = (storage.cache_dir() / "tables").iterdir()
    harm(path)
    pd.testing.assert_frame_equal(
        cache.cached(context, "figures.theory.optimizer", "settings", compute), first
    )
    assert len(calls) == 2
    the_line(capsys, *([] if harm is Path.unlink else [path.name]))


@pytest.mark.parametrize("harm", [cut, lambda path: path.write_text("neither")])
def test_damaged_tables_and_models_of_chains_are_made_again(
    own: Path, harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    context = cache.Context(scale=Scale(), n_jobs=1, progress=False)
    wanted = [experiment(point) for point in points(GRID)]
    first = table_of(context, wanted)
    (table,), model = (own / "tables").iterdir(), min((own / "models").iterdir())
    before = table.read_bytes(), model.read_bytes()
    for path in (table, model):
        harm(path)
    pd.testing.assert_frame_equal(table_of(context, wanted), first)
    assert (table.read_bytes(), model.read_bytes()) == before
    the_line(capsys, table.name, model.name)
    harm(model)
    loaded = running.load_model(
        own / "models",
        next(
            one
            for one in running.model_jobs(wanted[0])
            if running.model_path(own / "models", one) == model
        ),
    )
    assert loaded.keys() == storage.load_parameters(model).keys()
    assert not any((own / "unfinished").iterdir())


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["authors", "news"])
def test_a_damaged_model_is_trained_again(
    own: Path, file: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def made() -> LanguageModel:
        if kind == "news":
            return small_news.build(NEWS, "retrained", progress=False)
        return build(TINY, "retrained", progress=False)

    folder = (
        small_news.folder_of(NEWS, "retrained") if kind == "news" else folder_of(TINY, "retrained")
    )
    # not what the file is mapped to
    first = {name: value.clone() for name, value in made().model.state_dict().items()}
    cut(folder / file)
    again = made().model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())
    the_line(capsys, folder.name)
    assert (folder.parent / f"{folder.name}.broken" / "config.json").exists()
    made()
    the_line(capsys)


def _build(place: str, waiting: Any, told: Any) -> None:
    import os

    os.environ["SIMNPO_LAB_CACHE"] = place
    waiting.wait()
    model = build(TINY, "original", progress=False).model
    told.put({name: value.tolist() for name, value in list(model.state_dict().items())[:1]})


@pytest.mark.slow
def test_two_processes_that_build_one_model_at_once_get_the_same(own: Path) -> None:
    context = multiprocessing.get_context("spawn")
    waiting, told = context.Barrier(2), context.Queue()
    both = [context.Process(target=_build, args=(str(own), waiting, told)) for _ in range(2)]
    for one in both:
        one.start()
    found = [told.get(timeout=300) for _ in both]
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert found[0] == found[1]
    assert [path.name for path in (own / "language_models").iterdir()] == [
        folder_of(TINY, "original").name
    ]
    check_whole(folder_of(TINY, "original"))


# --- runs ---


def unlearned(folder: Path, **options: Any) -> Run:
    language = build(TINY, "original", progress=False)
    return unlearn_into(folder, language, FORGET, RETAIN[:2], SETTINGS, progress=False, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != CLAIM and ".broken" not in str(path)
    }


@pytest.mark.parametrize("harmed", [EPOCHS, EXAMPLES, ANSWERS, f"{MODEL}/model.safetensors"])
def test_a_run_with_a_damaged_part_is_made_again_and_is_the_same(
    harmed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlearned(tmp_path / "run")
    before = contents(tmp_path / "run")
    cut(tmp_path / "run" / harmed)
    unlearned(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    the_line(capsys, *(["model"] if harmed.startswith(MODEL) else []), EPOCHS)


def test_a_run_with_a_damaged_state_begins_anew_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    unlearned(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llm.unlearning.runs.save", interrupted)
        unlearned(tmp_path / "run")
    cut(tmp_path / "run" / "state" / "state.safetensors")
    unlearned(tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    the_line(capsys, "state.safetensors")


def test_a_run_never_touches_what_it_did_not_make(tmp_path: Path) -> None:
    """A model of somebody else's, a user's files where the model would go, and files beside it."""
    for name in (
        "model/model.safetensors",
        "model/notes.txt",
        "epochs.parquet",
        "state/mine",
        "notes.txt",
    ):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(InvalidInput):
            unlearned(folder)
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / name]
        assert (folder / name).read_text() == "mine"


def test_a_model_that_came_into_a_claimed_folder_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llm.unlearning.runs.save", interrupted)
        unlearned(tmp_path / "run")
    shutil.copytree(folder_of(TINY, "original"), tmp_path / "run" / MODEL)
    before = contents(tmp_path / "run" / MODEL)
    with pytest.raises(InvalidInput, match="out = "):
        unlearned(tmp_path / "run")
    assert contents(tmp_path / "run" / MODEL) == before


def test_an_evaluation_that_was_cut_short_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tofu_sets("authors:forget10", authors=TINY.authors)
    few = TofuSets(
        *(tuple(replace(one, perturbed=one.perturbed[:2]) for one in part[:2]) for part in whole)
    )

    def evaluated() -> None:
        start = lambda: build(TINY, "original", progress=False)  # noqa: E731
        evaluate_into(
            tmp_path / "run", start, few, {"model": "a"}, max_new_tokens=2, progress=False
        )

    evaluated()
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "TOFU_SUMMARY.json").unlink()
    evaluated()
    assert contents(tmp_path / "run") == before
    cut(tmp_path / "run" / "TOFU_EVAL.json")
    evaluated()
    assert contents(tmp_path / "run") == before
    the_line(capsys, "TOFU_EVAL.json")


def test_a_damaged_table_of_requests_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_turn() -> pd.DataFrame:
        start = lambda: build(TINY, "original", progress=False)  # noqa: E731
        wanted = requests(FORGET, 1)
        return sequential(
            tmp_path / "run", start, wanted, RETAIN[:2], SETTINGS, progress=False
        ).answers

    first = in_turn()
    for folder in ("run", "run/request_1"):
        cut(tmp_path / folder / REQUESTS)
        pd.testing.assert_frame_equal(in_turn(), first)
        the_line(capsys, REQUESTS)
    cut(tmp_path / "run" / "request_1" / MODEL / "model.safetensors")
    pd.testing.assert_frame_equal(in_turn(), first)
    assert answer_log(
        build(TINY, "original", progress=False), FORGET, progress=False
    ).index.tolist()


# --- what the user named is not what is destroyed ---


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("unlearn --model MODEL --data DATA --retain-data DATA --retain-term none", "MODEL/.."),
        ("unlearn --model MODEL --data DATA --retain-data DATA --retain-term none", "MODEL"),
        ("unlearn --model MODEL --data DATA --retain-data DATA --retain-term none", "MODEL/inside"),
        ("unlearn --model MODEL --data DATA --retain-data DATA", "taken"),
        ("evaluate --model MODEL", "MODEL/.."),
        ("evaluate --model MODEL", "taken"),
        ("sweep --model MODEL --retrained MODEL --data tofu:forget10", "MODEL"),
        ("sweep", "taken"),
        ("muse --model MODEL", "MODEL/.."),
        ("muse", "taken"),
        ("build", "taken"),
        ("score --model MODEL --data DATA", "DATA"),
        ("score --model MODEL --data DATA", "MODEL/model.safetensors"),
        ("score --model MODEL --data DATA", "taken/notes.txt"),
        ("relearn --model MODEL --data DATA", "DATA"),
        ("weights --scores SCORES --reference SCORES", "SCORES"),
        ("diagnose --logs DATA --retrained-logs DATA", "DATA"),
    ],
)
def test_a_command_refuses_in_one_line_to_write_where_it_reads_or_where_another_has_written(
    command: str,
    out: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"MODEL": "exp/model", "DATA": "exp/forget10.json", "SCORES": "scores.parquet"}
    for name in (
        "exp/model/model.safetensors",
        "exp/model/config.json",
        "exp/forget10.json",
        "taken/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    storage.write_table(
        pd.DataFrame({"index": [0], "logp": [-1.0], "length": [2]}), tmp_path / "scores.parquet", {}
    )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = [known.get(word, word) for word in command.split()]
    for name, path in known.items():
        out = out.replace(name, path)
    assert cli([*words, "--out", out]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: out = "), line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_figures_replace_figures_and_no_other_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.parquet").write_text("mine")
    assert figures_cli(["weights", "--quick", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: out = ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights.parquet"]
