"""Damaged caches: whatever lies there, a command ends with the same tables as from a sound one."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pandas as pd

from figures import progress
from figures.cache import Context
from figures.scale import quick_scale
from markov.console.ending import exit_code
from markov.files import storage
from tests.hammer.bases import Options, bases
from tests.hammer.cases import Case, noted, once
from tests.hammer.commands import words_of
from tests.hammer.mutating import change_bit, change_bytes, change_json
from tests.hammer.world import Box, make, once_made, program

AUTHORS: Options = {
    "model": ("authors:original:10",),
    "data": ("authors:forget10",),
    "device": ("cpu",),
    "out": ("found.parquet",),
}
# Commands that take something from the cache, and what they write.
CACHED = ("markov unlearn", "markov grid", "llm score")
JOURNAL = "seconds.json"


def options_of(given: Path, name: str) -> Options:
    """The options of a command that takes models from the cache."""
    return AUTHORS if name == "llm score" else bases(given)[name].options


def case(given: Path, rng: random.Random) -> Case:
    """A command, after something in its cache was changed, taken away or put in the way."""
    if rng.random() < 0.2:
        return journal(rng)
    name, seed = rng.choice(CACHED), rng.random()

    def act(box: Box):
        own = random.Random(seed)
        for _ in range(own.choice((1, 1, 2))):
            noted(box, harm(box.cache, own))
        words = words_of(name, options_of(given, name))
        check = partial(differs, wanted=undisturbed(given, name))
        return once(box, program(words), check=check)

    return Case("caches", f"{name} with a damaged cache", act)


def journal(rng: random.Random) -> Case:
    """How long figures are expected to take, from a journal that is damaged."""
    seed = rng.random()

    def act(box: Box):
        context = Context(scale=quick_scale(), n_jobs=1, progress=False)
        key = progress._key("weights", context, {})
        known = storage.cache_dir() / JOURNAL
        file = box.cache / JOURNAL
        file.write_text(f'{{"{key}": {{"computed": 3.0, "redrawn": 1.0, "code": "x"}}}}')
        how, _ = change_json(file, random.Random(seed))
        noted(box, f"{known.name}: {how}")
        return once(box, lambda: exit_code(lambda: timed(context)))

    return Case("caches", "the journal of seconds", act)


def timed(context: Context) -> None:
    """Expect something of a figure, and note how long it took."""
    print(progress.expected(("weights",), context))
    with progress.timed("weights", context):
        pass


def harm(cache: Path, rng: random.Random) -> str:
    """Damage something in a cache, and say what."""
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    file = rng.choice(files)
    name = file.relative_to(cache)
    way = rng.choice(("change", "change", "change", "remove", "folder", "link", "fifo", "extra"))
    if way == "change":
        change = change_json if file.suffix == ".json" else change_bytes
        how, _ = rng.choice((change, change_bit))(file, rng)
        return f"{name}: {how}"
    if way == "extra":
        (file.parent / "notes of somebody").write_text("x")
        return f"a file beside {name}"
    file.unlink()
    if way == "folder":
        file.mkdir()
    elif way == "link":
        file.symlink_to(file.name)
    elif way == "fifo":
        import os

        os.mkfifo(file)
    return f"{name}: {way}"


def differs(box: Box, wanted: Path) -> str:
    """Say where a table is another than that of an undisturbed run; "" if it is the same."""
    found = box.work / "found.parquet"
    try:
        pd.testing.assert_frame_equal(storage.read_table(found), storage.read_table(wanted))
    except (AssertionError, ValueError) as error:
        return f"another table: {' '.join(str(error).split())}"[:300]
    return ""


def undisturbed(given: Path, name: str) -> Path:
    """Return the table that a command writes if its cache is sound."""
    words = words_of(name, options_of(given, name))
    return once_made(given / "cached" / name, partial(make, given, words)) / "found.parquet"
