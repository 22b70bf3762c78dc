"""Cases run in copies of one process that has imported everything, each within bounds of its own.

A copy begins at once, works in a folder of its own with a home and a cache of its own, and may take
so many seconds, so much memory and so large files. What it takes is watched from outside, with the
processes that it starts itself.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.kills import forked

Job = Callable[[], int]
PAUSE = 0.004  # seconds between two looks
RARELY = 12  # looks between two at the processes that a copy has started


class Limits(NamedTuple):
    """What a copy may take: seconds of work, bytes beyond those it begins with, bytes of a file.

    After `idle` seconds without work it waits for what never comes.
    """

    seconds: float = 10.0
    idle: float = 5.0
    memory: int = 3 << 30
    file: int = 256 << 20


USUAL = Limits()


class Ended(NamedTuple):
    """How a copy ended.

    `code` is its exit code, or minus the number of the signal that ended it. `how` is "returned",
    "parser" where the arguments were not understood, "raised" where something came out of the
    program that it should have told itself, or "" where the copy did not get so far. `killed` is
    "hang" or "memory" where it was stopped for that.
    """

    code: int
    how: str
    killed: str
    out: str
    err: str
    seconds: float


class Running(NamedTuple):
    """A copy at work, and where it says what it has to say."""

    pid: int
    began: float
    rss: int
    logs: Path


def begin(
    job: Job,
    place: Path,
    logs: Path,
    *,
    environment: Mapping[str, str] | None = None,
    limits: Limits = USUAL,
) -> Running:
    """Begin a job in a copy of this process, within `place`; what it says goes to files in `logs`.

    Whatever the job raises is written down and ends the copy with code 70.
    """
    logs.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = forked()
    if pid == 0:
        code = 70
        try:
            _settle(place, logs, environment or {}, limits)
            code = _done(job, logs)
        finally:
            os._exit(code)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # as the copy does itself: whoever comes first
    return Running(pid, time.monotonic(), _rss(pid), logs)


def _settle(place: Path, logs: Path, environment: Mapping[str, str], limits: Limits) -> None:
    """Take the files, signals and bounds of a process that a shell has begun."""
    with suppress(PermissionError):
        os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), "utf-8", "strict")  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", closefd=False),  # noqa: SIM115
        "utf-8",
        "backslashreplace",
        line_buffering=True,
    )
    warnings.resetwarnings()  # as where nobody has asked for others
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file, limits.file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update(environment)
    os.chdir(place)


def _done(job: Job, logs: Path) -> int:
    how, code = "raised", 70
    try:
        code, how = job(), "returned"
    except SystemExit as error:
        code, how = error.code if isinstance(error.code, int) else 1, "parser"
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            how, code = "raised", 70
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    (logs / "how").write_text(json.dumps(how), "utf-8")
    return code


def end(
    running: Sequence[Running],
    limits: Limits = USUAL,
    signals: Sequence[tuple[int, float, int]] = (),
    *,
    one_for_all: bool = False,
) -> list[Ended]:
    """Wait until copies have ended, stop those that go beyond a limit, and say how each ended.

    `signals` are sent meanwhile: to which copy, after how many seconds, which one. With
    `one_for_all` the first copy that fails ends the others, as torchrun does.
    """
    left, waiting = dict(enumerate(running)), list(signals)
    found: dict[int, Ended] = {}
    worked = {number: (0.0, one.began) for number, one in left.items()}
    killed = dict.fromkeys(left, "")
    looks = 0
    while left:
        now = time.monotonic()
        for one in [one for one in waiting if now >= running[one[0]].began + one[1]]:
            waiting.remove(one)
            if one[0] in left:
                os.kill(running[one[0]].pid, one[2])
        for number, one in list(left.items()):
            pid, status = os.waitpid(one.pid, os.WNOHANG)
            if pid:
                del left[number]
                code = os.waitstatus_to_exitcode(status)
                found[number] = _told(one, code, killed[number], now - one.began)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(one.pid, signal.SIGKILL)  # what it began and did not end
                for other in left.values() if code and one_for_all else ():
                    os.kill(other.pid, signal.SIGTERM)
            elif not killed[number] and looks % 4 == 0:
                work, memory, busy = _taken(one.pid, everything=looks % RARELY == 0)
                # However little of a processor it gets, who could work does not wait.
                if busy or work > worked[number][0]:
                    worked[number] = (work, now)
                idle = now - worked[number][1] > limits.idle
                if work > limits.seconds or idle:
                    killed[number] = "hang"
                elif memory - one.rss > limits.memory:
                    killed[number] = "memory"
                if killed[number]:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(one.pid, signal.SIGKILL)
        looks += 1
        time.sleep(PAUSE)
    return [found[number] for number in range(len(running))]


def run(job: Job, place: Path, logs: Path, **ways: object) -> Ended:
    """Run one job in a copy of this process until it ends or goes beyond a limit."""
    limits = ways.get("limits", USUAL)
    return end([begin(job, place, logs, **ways)], limits)[0]  # pyright: ignore[reportArgumentType]


def _told(one: Running, code: int, killed: str, seconds: float) -> Ended:
    how = ""
    with suppress(OSError, ValueError):
        how = json.loads((one.logs / "how").read_text("utf-8"))
        (one.logs / "how").unlink()
    out, err = ((one.logs / name).read_text("utf-8", "replace") for name in ("out", "err"))
    return Ended(code, how, killed, out, err, seconds)


def _taken(pid: int, *, everything: bool) -> tuple[float, int, bool]:
    """Seconds of work and bytes of memory of a process, and of those that it began, and whether one
    of them could work now.
    """
    work, memory, busy = 0.0, 0, False
    with suppress(psutil.Error):
        own = psutil.Process(pid)
        for one in [own, *(own.children(recursive=True) if everything else ())]:
            with suppress(psutil.Error):
                times = one.cpu_times()
                work += times.user + times.system
                memory += one.memory_info().rss
                busy = busy or one.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    return work, memory, busy


def _rss(pid: int) -> int:
    with suppress(psutil.Error):
        return psutil.Process(pid).memory_info().rss
    return 0
