"""Damaged caches: whatever lies there, a command ends with the same tables as from a sound one."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

import pandas as pd

from figures import progress
from figures.cache import Context
from figures.scale import quick_scale
from markov.console.ending import exit_code
from markov.files import storage
from tests.hammer.bases import Options, bases
from tests.hammer.cases import Case, once
from tests.hammer.commands import words_of
from tests.hammer.files import print_to
from tests.hammer.mutating import change_bytes, change_json, change_weights
from tests.hammer.world import Box, make, program

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
            print_to(box, harm(box.cache, own))
        words = words_of(name, options_of(given, name))
        check = partial(differs, undisturbed=given / "cached" / f"{name}.parquet")
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
        print_to(box, f"{known.name}: {how}")
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
        change = {".json": change_json, ".safetensors": change_weights}.get(
            file.suffix, change_bytes
        )
        # A number of a model that is changed so that the file is whole can be known by nobody.
        change = change_bytes if file.suffix == ".safetensors" else change
        how, _ = change(file, rng)
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


def differs(box: Box, undisturbed: Path) -> str:
    """Say where a table is another than that of an undisturbed run; "" if it is the same."""
    found, wanted = box.work / "found.parquet", storage.read_table(undisturbed)
    try:
        pd.testing.assert_frame_equal(storage.read_table(found), wanted)
    except (AssertionError, ValueError) as error:
        return f"another table: {' '.join(str(error).split())}"[:300]
    return ""


def fill(given: Path) -> None:
    """Run every command once undisturbed."""
    place = given / "cached"
    place.mkdir()
    for name in CACHED:
        make(given, words_of(name, options_of(given, name)), place)
        shutil.move(place / "found.parquet", place / f"{name}.parquet")
