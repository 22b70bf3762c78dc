"""How far a long job is: a bar on a terminal, and a line a minute where there is none, such as

    unlearn: 120 of 400 updates, 3 min, about 7 min left

Whatever takes long counts on a `bar`. On a terminal it is tqdm's. In a notebook the same line
stands beneath the cell, with a bar, and is written anew every second; where there is neither, as in
a script whose output goes to a file, it is printed once a minute. The line tells of all bars that
are open, the outermost first. A command opens `lines`, so that one comes between its bars too.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Protocol, Self, TextIO

from tqdm import tqdm

SECOND, MINUTE = 1.0, 60.0  # in seconds: between two states in a notebook, and between two lines


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

    def done(self) -> str:
        """Return what was done of how much."""
        units = f" {self.unit}s" if self.unit else ""
        return f"{self.label}: {self.n} of {self.total}{units}"

    def told(self) -> str:
        """Return what was done of how much, since when, and how long the rest may take."""
        text = self.done()
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
def telling(report: Report, say: Callable[[], None], every: float) -> Iterator[None]:
    """Call `say` every so many seconds, while all bars that are opened count for the report."""
    over = threading.Event()

    def keep() -> None:
        # A line that cannot be printed any more must not end the work.
        with suppress(OSError, ValueError):
            while not over.wait(every):
                say()

    # In the caller's context, by which a notebook knows the cell that something is shown for.
    watch = threading.Thread(target=copy_context().run, args=(keep,), daemon=True)
    before = REPORT.set(report)
    watch.start()
    try:
        yield
    finally:
        REPORT.reset(before)
        over.set()
        watch.join()


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
    if terminal(stream):
        yield
        return
    report = Report(clock, head)
    with telling(report, partial(_print, report, stream), every):
        yield


def _print(report: Report, stream: TextIO) -> None:
    print(report.line(), file=stream, flush=True)


class Outermost(Count):
    """A bar outside of any command, which is told of by itself, together with those inside it."""

    def __init__(self, *counted: Any, file: TextIO | None) -> None:
        super().__init__(Report(), *counted)
        self.cell = Cell(self) if file is None and in_notebook() else None
        say = partial(_print, self.report, sys.stderr if file is None else file)
        self.telling: AbstractContextManager[None] = (
            telling(self.report, say, MINUTE)
            if self.cell is None
            else telling(self.report, self.cell.show, SECOND)
        )

    def __enter__(self) -> Self:
        self.telling.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.telling.__exit__(*error)
        if self.cell is not None:
            self.cell.end()


class Cell:
    """A bar and a line beneath a notebook's cell, which stand there from the first `show` on."""

    def __init__(self, count: Count) -> None:
        self.count, self.handle = count, None

    def show(self) -> None:
        """Show how far the work is."""
        share = min(1.0, self.count.n / self.count.total) if self.count.total else 0.0
        self._put(self.count.report.line(), f'<progress value="{share:.3f}"></progress> ')

    def end(self) -> None:
        """Leave what was done and how long it took, if anything was shown."""
        if self.handle is not None:
            seconds = self.count.report.clock() - self.count.began
            took = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
            self._put(f"{self.count.done()} in {took}")

    def _put(self, line: str, picture: str = "") -> None:
        from IPython.display import DisplayHandle

        shown = {"text/plain": line, "text/html": f"{picture}{html.escape(line)}"}
        if self.handle is None:
            self.handle = DisplayHandle()
            self.handle.display(shown, raw=True)
        else:
            self.handle.update(shown, raw=True)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal; a replaced one need not know what that is."""
    return hasattr(stream, "isatty") and stream.isatty()


def bar(
    total: int, label: str, *, unit: str = "", show: bool = True, initial: int = 0, **options: Any
) -> Bar:
    """Return a bar for so many pieces of work, of which `initial` are done; `options` are tqdm's.

    It is a context manager. Nothing is shown without `show`.
    """
    report, file = REPORT.get(), options.get("file")
    if show and report is not None:
        return Count(report, total, label, unit, initial)
    if show and not (terminal(sys.stderr if file is None else file)):
        return Outermost(total, label, unit, initial, file=file)
    return tqdm(
        total=total,
        desc=label,
        unit=unit or "it",
        initial=initial,
        disable=not show,
        **options,
    )


def duration(seconds: float) -> str:
    """Return a number of seconds as one would say it."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {seconds / 60:.0f} min"
