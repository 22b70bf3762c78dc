"""How far a long job is: a bar on a terminal, and a line a minute where there is none, such as

    unlearn: 120 of 400 updates, 3 min, about 7 min left

A command opens `lines`, and whatever takes long counts on a `bar`. Off a terminal the lines tell of
all bars that are open, the outermost first. Outside of `lines`, as in a notebook, bars are tqdm's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol, Self, TextIO

from tqdm.auto import tqdm

MINUTE = 60.0  # seconds


class Bar(Protocol):
    """What the work knows of the bar that it counts on: a part of tqdm's."""

    n: Any

    def update(self, n: int = 1) -> object: ...
    def set_description(self, desc: str) -> object: ...
    def set_postfix(self, *, refresh: bool = True, **values: Any) -> object: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> object: ...


class Count:
    """A bar that is not drawn: it counts, and is told of in a line."""

    def __init__(self, report: Report, total: int, label: str, unit: str, initial: int) -> None:
        self.report, self.began = report, report.clock()
        self.total, self.label, self.unit, self.initial, self.n = (
            total,
            label,
            unit,
            initial,
            initial,
        )

    def update(self, n: int = 1) -> None:
        """Count `n` more."""
        self.n += n

    def set_description(self, desc: str) -> None:
        """Change the label."""
        self.label = desc

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Do nothing: a line tells how far the work is, not how well it goes."""

    def __enter__(self) -> Self:
        self.report.open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.report.open.remove(self)

    def told(self) -> str:
        """Return what was done of how much, since when, and how long the rest may take."""
        units = f" {self.unit}s" if self.unit else ""
        text = f"{self.label}: {self.n} of {self.total}{units}"
        seconds, done = self.report.clock() - self.began, self.n - self.initial
        if seconds >= MINUTE:
            text += f", {seconds / MINUTE:.0f} min"
        if done > 0 and self.n < self.total:
            text += f", {duration(seconds * (self.total - self.n) / done)} left"
        return text


class Report:
    """The counts of a command that are open now, the outermost first.

    `head` says what the counts belong to.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, head: Callable[[], str] | None = None
    ) -> None:
        self.clock, self.head, self.began = clock, head, clock()
        self.open: list[Count] = []

    def line(self) -> str:
        """Return the line that tells how far the command is."""
        parts = [] if self.head is None else [self.head()]
        parts += [one.told() for one in tuple(self.open)]
        return "; ".join(parts) or f"at work for {(self.clock() - self.began) / MINUTE:.0f} min"


REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


@contextmanager
def lines(
    head: Callable[[], str] | None = None,
    *,
    file: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    every: float = MINUTE,
) -> Iterator[None]:
    """Print a line every so many seconds while a command is at work, unless `file` is a terminal.

    `file` is standard error by default. A command that takes less than `every` prints none.
    """
    stream = sys.stderr if file is None else file
    if stream.isatty():
        yield
        return
    report, over = Report(clock, head), threading.Event()

    def keep() -> None:
        # A line that cannot be printed any more must not end the work.
        with suppress(OSError, ValueError):
            while not over.wait(every):
                print(report.line(), file=stream, flush=True)

    watch, before = threading.Thread(target=keep, daemon=True), REPORT.set(report)
    watch.start()
    try:
        yield
    finally:
        REPORT.reset(before)
        over.set()
        watch.join()


def bar(
    total: int, label: str, *, unit: str = "", show: bool = True, initial: int = 0, **options: Any
) -> Bar:
    """Return a bar for so many pieces of work, of which `initial` are done; `options` are tqdm's.

    It is a context manager. Nothing is shown without `show`.
    """
    report = REPORT.get()
    if show and report is not None:
        return Count(report, total, label, unit, initial)
    return tqdm(
        total=total,
        desc=label,
        unit=unit or "it",
        initial=initial,
        disable=None if show else True,
        **options,
    )


def duration(seconds: float) -> str:
    """Return a number of seconds as one would say it."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {seconds / 60:.0f} min"
