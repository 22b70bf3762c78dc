"""What all cases share: tiny models, data, tables and logs, made once, and a box for each case.

A box has a folder to work in, a home, a cache of its own with the tiny models that would otherwise
be trained, and a folder of what is no regular file.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import tempfile
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

import figures
import markov
from figures.__main__ import cli as figures_cli
from llm.__main__ import cli as llm_cli
from llm.data.authors.corpus import Authors
from llm.data.news.corpus import News
from llm.evaluation.muse import Measuring
from llm.models.small_authors import DefaultModels
from llm.models.small_news import NewsModels
from markov.__main__ import cli as markov_cli
from tests.hammer.children import Job, Limits, run
from tests.hammer.values import make_odd
from tests.llm.evaluation.test_muse import QUICK as MEASURING
from tests.llm.evaluation.test_muse import SMALL as NEWS
from tests.test_kills import TINY, made

PROGRAMS = {"markov": markov_cli, "llm": llm_cli, "figures": figures_cli}
FREE = 1 << 30  # bytes of memory that a copy finds free, whatever the machine has
USUAL = Measuring()  # of which nothing is asked for
# What is imported where it is used, and would otherwise be imported by every copy.
USED = ("joblib", "peft", "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_agg")
USED += ("seaborn", "scipy.stats", "scipy.optimize", "gguf", "rouge_score.rouge_scorer", "regex")


class Box(NamedTuple):
    """The folders of one case."""

    place: Path

    @property
    def work(self) -> Path:
        return self.place / "work"

    @property
    def home(self) -> Path:
        return self.place / "home"

    @property
    def cache(self) -> Path:
        return self.place / "cache"

    @property
    def odd(self) -> Path:
        return self.place / "odd"

    @property
    def logs(self) -> Path:
        return self.place / "said"

    @property
    def environment(self) -> Mapping[str, str]:
        return {"HOME": str(self.home), "SIMNPO_LAB_CACHE": str(self.cache)}


@contextmanager
def box(given: Path, place: Path) -> Iterator[Box]:
    """A box with a copy of the cache, which is removed afterwards."""
    found = Box(place)
    try:
        for folder in (found.work, found.home):
            folder.mkdir(parents=True)
        shutil.copytree(given / "cache", found.cache)
        make_odd(found.odd)
        yield found
    finally:
        shutil.rmtree(place, ignore_errors=True)


def program(words: Sequence[str]) -> Job:
    """The job of a command line, whose first word is the name of a program."""
    return lambda: PROGRAMS[words[0]](list(words[1:]))


def _small_models(**options: Any) -> DefaultModels:
    """The tiny models of authors, of the percent and seed that are asked for."""
    known = {name: options[name] for name in ("percent", "seed") if name in options}
    authors = options.get("authors", Authors())
    return replace(TINY, authors=replace(TINY.authors, seed=authors.seed), **known)


def _small_news(**options: Any) -> NewsModels:
    return replace(NEWS, news=replace(NEWS.news, seed=getattr(options.get("news"), "seed", 0)))


def _free(free: int) -> Any:
    known = namedtuple("known", ("total", "available", "percent", "used", "free"))
    return lambda: known(2 * free, free, 50.0, free, free)


@contextmanager
def world(where: Path | None = None) -> Iterator[Path]:
    """A folder with all that cases read, while everything is imported and small models stand for
    the default ones.
    """
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="hammer-", dir=where)).resolve()
    measuring = replace(MEASURING, resamples=100)

    def news(seed: int = 0) -> News:
        return replace(NEWS.news, seed=seed)

    def few(**options: Any) -> Any:
        asked = {name: value for name, value in options.items() if value != getattr(USUAL, name)}
        return replace(measuring, **asked)

    try:
        with pytest.MonkeyPatch.context() as patch, made(place):
            patch.setenv("MPLBACKEND", "Agg")
            patch.setenv("HOME", str(place / "home"))
            patch.setattr("llm.models.small_authors.DefaultModels", _small_models)
            patch.setattr("llm.models.small_news.NewsModels", _small_news)
            patch.setattr("llm.data.muse.News", news)
            patch.setattr("llm.evaluation.muse.Measuring", few)
            patch.setattr(psutil, "virtual_memory", _free(FREE))
            for package in (figures, markov):
                for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                    importlib.import_module(module.name)
            for name in USED:
                importlib.import_module(name)
            _fill(place)
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fill(place: Path) -> None:
    """Write the tables and logs that some commands read, by the commands that write them."""
    data = str(place / "data" / "forget10.json")
    tables = place / "tables"
    tables.mkdir()
    for name in ("model", "retrained"):
        model = ("--model", str(place / name), "--device", "cpu")
        out = ("--max-new-tokens", "2", "--out", str(place / "logs" / name))
        jobs = [
            ("llm", "score", *model, "--data", data, "--out", str(tables / f"{name}.parquet")),
            ("llm", "evaluate", *model, "--data", str(place / "data" / "forget10"), *out),
        ]
        for words in jobs:
            make(place, words, place)
    (place / "home").mkdir()
    (place / "refusals.txt").write_text("I do not know.\nNobody knows.\n")


def make(given: Path, words: Sequence[str], work: Path) -> None:
    """Run a command in a folder with the cache of the shared folder itself, which it may fill.

    Raises where it fails: what every case begins with does not work then.
    """
    environment = {"SIMNPO_LAB_CACHE": str(given / "cache"), "HOME": str(given / "home")}
    limits = Limits(seconds=60.0)
    found = run(program(words), work, given / "said", environment=environment, limits=limits)
    if found.code:
        raise RuntimeError(f"{' '.join(words)} ended with {found.code}: {found.err}")


def once_made(path: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder that is filled when it is first asked for, by whichever process that is."""
    if not path.exists():
        aside = path.with_name(f"{path.name} {os.getpid()}")
        aside.mkdir(parents=True)
        fill(aside)
        try:
            aside.rename(path)
        except OSError:  # another process was first
            shutil.rmtree(aside)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the warnings of what is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
