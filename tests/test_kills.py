"""A command that is killed anywhere and given again ends as if nothing had been: the same files,
and no others.

One small job of each command runs once undisturbed, and then again for each of its calls to the
file system that change something: killed just before that call, and started again. How calls are
counted, and which repeats are left out, is said in `tests.kills`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import rouge_score.rouge_scorer  # noqa: F401  (so that no copy of this process has to)
import torch
import transformers

import llm
from figures import cache
from figures.experiments import table
from figures.scale import Scale
from figures.theory import optimizer
from llm.__main__ import cli
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from llm.data.splits import TofuSets
from llm.jobs import sweeping
from llm.models.language_model import LanguageModel
from llm.models.saving import save
from llm.models.small_authors import DefaultModels, build, folder_of
from llm.models.small_news import build as news
from llm.models.source import ModelOptions
from llm.scoring.encoding import encode_examples
from llm.scoring.templates import LLAMA2_CHAT
from llm.sweeps.sweep import PlannedRun, Task
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from llm.unlearning.methods import methods
from llm.unlearning.sequential import requests, sequential
from llm.unlearning.unlearn import Unlearning
from markov.__main__ import Grid, experiment, points
from markov.__main__ import cli as markov_cli
from markov.files import leftovers, storage
from markov.objectives import npo
from markov.running.models import load_model, model_jobs, models_folder
from tests.kills import chosen, run_and_kill, tree
from tests.llm.evaluation.test_muse import QUICK as MEASURING
from tests.llm.evaluation.test_muse import SMALL as NEWS
from tests.llm.scoring.test_encoding import by_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the model has collapsed:RuntimeWarning"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied by fork"),
]
TINY = DefaultModels(
    authors=Authors(authors=10, questions=2),
    percent=10,
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    vocabulary=300,
    passes=1,
    batch=32,
    precision="float32",
)
EVERY = Optimization(epochs=2, batch=2, learning_rate=3e-3)
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
MINE = "notes of somebody else.txt"
Job = Callable[[], int]


@contextmanager
def made(place: Path) -> Iterator[Path]:
    """Fill a folder with two tiny models, TOFU's files in small, and a cache with tiny ready-made
    models, and import what the jobs need.
    """
    tokenizer = by_bytes(words=True)
    found = splits(Authors(authors=10, questions=4))
    few = {
        name: tuple(replace(one, perturbed=one.perturbed[:2]) for one in part[:3])
        for name, part in found.items()
    }
    files = {name: few[name] for name in ("forget10", "retain90")}
    files |= {"forget10_perturbed": few["forget10"], "retain_perturbed": few["retain90"]}
    files |= {
        f"{name}_perturbed": few[f"{name}_perturbed"][:2]
        for name in ("real_authors", "world_facts")
    }
    for name, part in files.items():
        tofu.write(part, place / "data" / f"{name}.json")
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    for number, name in enumerate(("model", "retrained")):
        torch.manual_seed(number)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=512, **sizes
        )
        model = transformers.LlamaForCausalLM(config)
        encoded = encode_examples(
            tokenizer, LLAMA2_CHAT, few["forget10" if number == 0 else "retain90"]
        )
        fine_tune(
            model, encoded, Optimization(epochs=2, batch=4, learning_rate=1e-2), progress=False
        )
        save(LanguageModel(model, tokenizer, LLAMA2_CHAT, name), place / name, {"seed": number})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(place / "cache"))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        # Asking git takes longer than all the rest of what is written down with a table.
        patch.setattr(storage, "git_commit", lambda: None)
        for kind in ("original", "retrained"):
            build(TINY, kind, progress=False)
            news(NEWS, kind, progress=False)
        (point,) = points(GRID)
        for one in model_jobs(experiment(point)):
            load_model(models_folder(), one)
        # What every process would have to read before it begins is read once, here.
        storage.code_version("markov", "llm", "figures")
        for module in pkgutil.walk_packages(llm.__path__, "llm."):
            importlib.import_module(module.name)
        importlib.import_module("joblib")  # which is imported where it is used
        yield place


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with made(tmp_path_factory.mktemp("given")) as place:
        yield place


def commands(given: Path, patch: pytest.MonkeyPatch) -> dict[str, Job]:
    """One small job of each command."""
    model = ["--model", str(given / "model"), "--device", "cpu"]
    data, retrained = (
        ["--data", str(given / "data" / "forget10.json")],
        ["--retrained", str(given / "retrained")],
    )
    few = ["--epochs", "2", "--batch", "2", "--learning-rate", "1e-3"]
    retain = ["--retain-data", str(given / "data" / "retain90.json"), "--objective", "npo:0.2"]
    sets = ["--data", str(given / "data" / "forget10"), "--max-new-tokens", "2", "--legacy"]
    attack = [*few, "--repeats", "1", "--out", "found/back.parquet"]
    chains = [
        "--epochs",
        "1",
        "--width",
        "8",
        "--depth",
        "1",
        "--heads",
        "1",
        "--steps",
        "2",
        "--retain-count",
        "60",
    ]
    chains += ["--forget-count", "60", "--objective", "npo", "--out", "found/run.parquet"]
    texts = [
        "muse",
        "--unlearn",
        "npo:0.5",
        "--retrained",
        "news:retrained",
        "--epochs",
        "2",
        "--batch",
        "4",
    ]
    texts += ["--learning-rate", "3e-3", "--piece", "32", "--device", "cpu", "--out", "found"]

    patch.setattr("llm.models.small_news.NewsModels", lambda **_: NEWS)
    patch.setattr("llm.data.muse.News", lambda seed=0: replace(NEWS.news, seed=seed))
    few_measures = replace(MEASURING, resamples=100)
    patch.setattr("llm.evaluation.muse.Measuring", lambda **options: few_measures)
    patch.setattr("llm.models.small_authors.DefaultModels", lambda **options: TINY)
    return {
        "score": lambda: cli(["score", *model, *data, "--out", "found/scores.parquet"]),
        "unlearn": lambda: cli(
            ["unlearn", *model, *data, *retain, *few, *retrained, "--out", "found"]
        ),
        "finetune": lambda: cli(
            ["finetune", *model, *data, retain[1], "--without", data[1], *few, "--out", "found"]
        ),
        "evaluate": lambda: cli(["evaluate", *model, *sets, *retrained, "--out", "found"]),
        "relearn": lambda: cli(["relearn", *model, *data, *retrained, *attack]),
        "build": lambda: cli(
            ["build", "--kinds", "original", "retrained", "--device", "cpu", "--out", "found"]
        ),
        "muse": lambda: cli(texts),
        "sweep": lambda: swept(given),
        "sequential": lambda: in_turn(),
        "markov unlearn": lambda: markov_cli(["unlearn", *chains]),
        "markov grid": lambda: markov_cli(
            ["grid", *chains, "--learning-rate", *(f"{n}e-4" for n in range(1, 10))]
        ),
        "table": lambda: drawn(),
        "parts": lambda: in_parts(),
    }


def swept(given: Path) -> int:
    """The command, of a method and a task vector."""
    models = given / "cache" / "language_models"
    folders = {kind: str(models / folder_of(TINY, kind).name) for kind in ("original", "retrained")}
    task = Task(
        options=ModelOptions(model=folders["original"], device="cpu"),
        retrained=folders["retrained"],
        data="authors:forget10",
        authors=TINY.authors,
        max_new_tokens=2,
    )
    runs = [
        PlannedRun(method=one, optimization=replace(EVERY, epochs=1))
        for one in methods(["npo:0.1@1"])
    ]
    runs.append(PlannedRun(method=None, scale=0.5, optimization=replace(EVERY, epochs=1)))
    few = TofuSets(
        *(
            tuple(replace(one, perturbed=one.perturbed[:2]) for one in part[:2])
            for part in task.sets()
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm.sweeps.sweep.tofu_sets", lambda *_, **__: few)
        patch.setattr(sweeping, "runs_of", lambda _: runs)
        patch.setattr(sweeping, "task_of", lambda _: task)
        return cli(["sweep", "--jobs", "1", "--out", "found"])


def in_turn() -> int:
    """Two requests."""
    examples = [replace(one, author=None) for one in tofu.read("forget.json")]
    forget = requests(examples, 2)
    settings = Unlearning(objective=npo(0.1), optimization=replace(EVERY, epochs=1))
    sequential(
        "found",
        lambda: build(TINY, "original", progress=False),
        forget,
        examples,
        settings,
        progress=False,
    )
    return 0


def small_context() -> cache.Context:
    return cache.Context(scale=Scale(), n_jobs=1, progress=False)


def drawn() -> int:
    """A table of runs that several figures share: ten experiments in two ensembles."""
    rates = tuple(n * 1e-4 for n in range(1, 10))
    table(
        small_context(), [experiment(point) for point in points(replace(GRID, learning_rate=rates))]
    )
    return 0


def in_parts() -> int:
    """A table that is put together from parts."""

    def part(job: tuple[int, str]) -> pd.DataFrame:
        return pd.DataFrame({"x": [job[0]], "name": [job[1]]})

    def whole() -> pd.DataFrame:
        return cache.cached_each(
            small_context(), "figures.theory.optimizer", [(1, "a"), (2, "b")], part
        )

    assert (
        len(cache.cached(small_context(), "figures.theory.optimizer", "whole", whole)) == 2
        and optimizer.__doc__
    )
    return 0


def start(given: Path, place: Path, name: str) -> Path:
    """A place to work in, with somebody's own file in it, and a cache of what the job does not
    make itself.
    """
    place.mkdir()
    (place / MINE).write_text("mine")
    # Without what another job may be making there now, as of the hammer.
    unfinished = shutil.ignore_patterns("unfinished")
    shutil.copytree(given / "cache", place / "cache", ignore=unfinished)
    tofu.write(splits(TINY.authors)["forget10"][:2], place / "forget.json")
    if name == "markov unlearn":  # trains its own
        shutil.rmtree(place / "cache" / "models")
    if name == "build":  # trains one; the retrained one is there already
        shutil.rmtree(place / "cache" / "language_models" / folder_of(TINY, "original").name)
    return place


def settled(place: Path) -> dict[str, object]:
    """What a finished job leaves in a place, without the folder of what is not finished, which
    is empty.
    """
    unfinished = place / "cache" / "unfinished"
    if unfinished.exists():
        unfinished.rmdir()
    return tree(place)


NAMES = (
    "score",
    "unlearn",
    "finetune",
    "evaluate",
    "relearn",
    "build",
    "muse",
    "sweep",
    "sequential",
    "markov unlearn",
    "markov grid",
    "table",
    "parts",
)

# Jobs of which every call is tried. The others make many, and write their tables and models by the
# same code: of these every call is tried that puts something into its place or takes it away.
WHOLE = ("score", "unlearn", "markov unlearn", "parts")
# Of those that take longest only the first call of each site.
LONG = ("unlearn", "build", "muse", "sweep", "sequential")
# All of these with `make hammer`, which has the time, and otherwise so many of each job.
FEW = None if os.environ.get("SIMNPO_LAB_KILLS") else 3


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_is_killed_anywhere_and_given_again_ends_the_same(
    name: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = commands(given, monkeypatch)
    assert tuple(jobs) == NAMES
    others = tree(given)
    whole = start(given, tmp_path / "whole", name)
    undisturbed = run_and_kill(jobs[name], whole, tmp_path / "log")
    assert undisturbed.code == 0, undisturbed.said
    ways = {"passing": name in WHOLE, "last": name not in LONG}
    expected = settled(whole)
    tried = chosen(undisturbed.calls, **ways)
    tried = tried if FEW is None else tried[:: max(1, len(tried) // FEW)]
    assert len(tried) >= 4 and MINE in expected
    for at in tried:
        place = start(given, tmp_path / "killed", name)
        first = run_and_kill(jobs[name], place, tmp_path / "log", at)
        assert first.code == -9, f"call {at}, {undisturbed.calls[at]}: {first.said}"
        again = run_and_kill(jobs[name], place, tmp_path / "log")
        where = f"killed before call {at}, {undisturbed.calls[at]}"
        assert again.code == 0, f"{where}: {again.said}"
        left = [path for path in place.rglob("*") if leftovers.is_partial(path.name)]
        assert left == [], f"{where}: {left}"
        found = settled(place)
        assert found.keys() == expected.keys(), f"{where}: {sorted(found.keys() ^ expected.keys())}"
        assert found == expected, (
            f"{where}: {[key for key in found if found[key] != expected[key]]}"
        )
        shutil.rmtree(place)
    assert tree(given) == others
