"""One line for a call of `python -m figures`: which figure is drawn, and about how long all takes.

How long a figure took is kept in the cache folder, by its name and settings: once for a drawing
that computed anything and once for one that found everything in the cache. A figure that has not
been drawn yet is expected to take what it took on two cores. Bars of the work itself appear beneath
the line; where nobody watches, there are plain lines instead, at most one a minute.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm.auto import tqdm

from figures.cache import Context
from figures.catalogue import BY_NAME, OTHERWISE
from figures.scale import Scale
from markov.console.progress import MINUTE, duration, lines
from markov.errors import is_number, require
from markov.files import inputs, storage

AGAIN = 3.0  # seconds to draw a table that is there
QUICK = 0.07  # share of a figure's seconds that the quick scale takes
OF_MODELS = "figures.chains."  # figures that take as much longer as there are more models
JOURNAL = "seconds.json"
LONGEST = 1e9  # seconds that anything here has taken
Journal = dict[str, dict[str, Any]]
COMPUTED, REDRAWN = "computed", "redrawn"


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and is_number(value) and 0 <= value <= LONGEST


# What is kept of a figure, by name.
KINDS: Mapping[str, Callable[[object], bool]] = {
    COMPUTED: _is_time,
    REDRAWN: _is_time,
    "code": lambda value: isinstance(value, str),
}


class Expected(NamedTuple):
    """The seconds that a drawing will take, and whether its tables are in the cache."""

    seconds: float
    cached: bool


def expected(names: Sequence[str], context: Context, **more: Any) -> dict[str, Expected]:
    """Return what to expect of each figure; `more` are settings that the context does not hold."""
    journal, code, found = _read(), _code(), {}
    for name in names:
        known = journal.get(_key(name, context, more), {})
        cached = known.get("code") == code and not context.since
        guess = BY_NAME[name].seconds * (QUICK if context.scale.quick else 1)
        if BY_NAME[name].module.startswith(OF_MODELS) and not context.scale.quick:
            guess *= context.scale.pretrained / Scale().pretrained
        if BY_NAME[name].trained and not context.scale.quick:
            guess *= context.scale.trained / Scale().trained
        if context.study is not None and not BY_NAME[name].named:  # its models are made already
            guess = OTHERWISE
        kind, otherwise = (REDRAWN, AGAIN) if cached else (COMPUTED, max(guess, AGAIN))
        found[name] = Expected(float(known.get(kind, otherwise)), cached)
    return found


@contextmanager
def timed(name: str, context: Context, **more: Any) -> Iterator[None]:
    """Keep for the next time how long a drawing took, and that its tables are there.

    Nothing is kept of a drawing that is not finished.
    """
    before, began = _tables(), time.perf_counter()
    yield
    seconds, kind = time.perf_counter() - began, REDRAWN if _tables() == before else COMPUTED
    journal, key = _read(), _key(name, context, more)
    journal[key] = {**journal.get(key, {}), kind: round(seconds, 1), "code": _code()}
    with storage.atomic_path(storage.cache_dir() / JOURNAL) as partial:
        partial.write_text(json.dumps(journal, indent=1, sort_keys=True), "utf-8")


def _key(name: str, context: Context, more: Mapping[str, Any]) -> str:
    paths = {
        field: [str(path) for path in getattr(context, field) or ()] for field in ("runs", "logs")
    }
    settings = {
        "scale": context.scale,
        "study": str(context.study) if context.study else None,
        "own": vars(context.own) if context.own else None,
        **paths,
        **more,
    }
    return f"{name} {storage.fingerprint(settings)}"


def _code() -> str:
    return storage.code_version("markov", "llm", "figures")


def _tables() -> list[tuple[str, int]]:
    """Return a value that changes whenever anything is put into a folder of the cache."""
    with os.scandir(storage.cache_dir()) as entries:
        return sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries if entry.is_dir())


def _read() -> Journal:
    """Return what is known of earlier drawings.

    A file that this program did not write is set aside.
    """
    return storage.read_kept(storage.cache_dir() / JOURNAL, _parsed) or {}


def _parsed(path: Path) -> Journal:
    found = inputs.read_json(path, "journal")
    good = isinstance(found, dict) and all(
        isinstance(one, dict)
        and all(name in KINDS and KINDS[name](value) for name, value in one.items())
        for one in found.values()
    )
    require(good, "journal", str(path), "seconds by figure, as this program writes them")
    return found


class Display:
    """The figures of a call, those that are done, and the one that is being drawn."""

    def __init__(self, figures: Mapping[str, Expected], clock: Callable[[], float]) -> None:
        self.figures, self.clock = dict(figures), clock
        self.current, self.began = 0, clock()
        self.bar: tqdm | None = None

    def start(self, name: str) -> None:
        """Note that a figure is about to be drawn."""
        self.current, self.began = list(self.figures).index(name), self.clock()
        self.refresh()

    def say(self, text: str) -> None:
        """Print a line above the display."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text, file=sys.stdout)

    def done(self, text: str) -> None:
        """Print that the current figure is there, how many are, and how long the others take."""
        count, after = self.current + 1, list(self.figures.values())[self.current + 1 :]
        rest = f", {duration(sum(one.seconds for one in after))} left" if after else ""
        told = f"; {count} of {len(self.figures)} figures{rest}" if len(self.figures) > 1 else ""
        self.say(f"{text}{told}")

    def left(self) -> float:
        """Return the seconds until all is drawn.

        A figure that takes longer than expected is expected to end at once.
        """
        rest = [one.seconds for one in self.figures.values()][self.current :]
        return sum(rest) - min(self.clock() - self.began, rest[0])

    def line(self) -> str:
        """Return the line that describes the present state."""
        name, count = list(self.figures)[self.current], len(self.figures)
        note = ", from the cache" if all(one.cached for one in self.figures.values()) else ""
        return f"figure {self.current + 1} of {count}: {name}, {duration(self.left())} left{note}"

    def refresh(self) -> None:
        """Draw the line again."""
        if self.bar is not None:
            self.bar.n = max(0.0, self.bar.total - self.left())
            self.bar.set_description_str(self.line())


@contextmanager
def display(
    figures: Mapping[str, Expected],
    *,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    beat: float = 1.0,
    every: float = MINUTE,
) -> Iterator[Display]:
    """Show the state of a call, kept up to date every `beat` seconds while it lasts.

    Where `file` (default: standard error) is not a terminal, one line with what to expect is
    printed at once instead, and then one `every` so many seconds.
    """
    shown, over = Display(figures, clock), threading.Event()
    stream: TextIO = sys.stderr if file is None else file
    if not stream.isatty():
        whole = "figures" if len(figures) > 1 else "figure"
        note = (
            ", all tables being in the cache" if all(one.cached for one in figures.values()) else ""
        )
        shown.say(f"{len(figures)} {whole}: {duration(shown.left())}{note}")
        with lines(shown.line, file=stream, every=every):
            yield shown
        return

    def keep() -> None:
        while not over.wait(beat):
            shown.refresh()

    total = sum(one.seconds for one in figures.values())
    form = "{desc} |{bar:20}|"
    with tqdm(
        total=total, desc=shown.line(), file=stream, bar_format=form, position=0, leave=False
    ) as shown.bar:
        watch = threading.Thread(target=keep, daemon=True)
        watch.start()
        try:
            yield shown
        finally:
            over.set()
            watch.join()
