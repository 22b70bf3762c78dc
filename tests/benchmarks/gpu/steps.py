"""The parts of the work in their order, and the clock that ends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.benchmarks.gpu import agreement, memory, speed
from tests.benchmarks.gpu.bench import Bench, OutOfTime, free, guarded
from tests.benchmarks.gpu.rows import Row, Table


class Step(NamedTuple):
    """A part of the work, and about how many seconds it takes on a fast card."""

    name: str
    seconds: float
    call: Callable[[Bench], Iterable[Row]]


# The most valuable ones come first.
STEPS = (
    Step("products of matrices", 5, speed.products),
    Step("scores beside the processor's", 20, agreement.agreement),
    Step("speed of the pretrained model", 40, speed.small_speed),
    Step("memory beside its plan", 40, memory.plans),
    Step("adapters on a model of seven billion parameters", 30, memory.seven),
    Step("speed of a model of a billion parameters", 40, speed.large_speed),
)


def work(bench: Bench, table: Table, minutes: float, steps: Iterable[Step] = STEPS) -> None:
    """Take the steps until the time is spent; what is left out is a row as well.

    A step is not begun where less time is left than it takes, and is ended where it takes more.
    """
    end = time.monotonic() + 60 * minutes

    def spent(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, spent)
    try:
        for step in steps:
            since = time.monotonic()
            spare = end - since
            try:
                if spare < step.seconds:
                    raise OutOfTime
                signal.setitimer(signal.ITIMER_REAL, spare)
                for row in guarded(step.name, lambda step=step: step.call(bench)):
                    table.add(row, time.monotonic() - since)
                    since = time.monotonic()
            except OutOfTime:
                left_out = Row(what=step.name, reason=f"no time left of {minutes:g} minutes")
                table.add(left_out, time.monotonic() - since)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            free()
    finally:
        signal.signal(signal.SIGALRM, before)
    table.write()
