"""Processes that are killed in the middle of a job, and a dask scheduler with workers to kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.test_architecture import ROOT


@dataclass(frozen=True, kw_only=True)
class Death:
    """A process that is killed once, as soon as a folder holds some results.

    `victim` is its number, or 0 for whichever process looks. Beside the folder it is noted which
    results there were, and when each was written.
    """

    folder: str
    pattern: str
    count: int
    victim: int = 0

    @property
    def note(self) -> Path:
        return Path(f"{self.folder}.killed")

    def results(self) -> dict[str, int]:
        """When each result was written."""
        found = {}
        for path in sorted(Path(self.folder).glob(self.pattern)):
            found[str(path.relative_to(self.folder))] = path.stat().st_mtime_ns
        return found

    def look(self) -> None:
        """Kill, if it is time to."""
        if self.note.exists() or len(found := self.results()) < self.count:
            return
        with suppress(FileExistsError), self.note.open("x", encoding="utf-8") as note:
            json.dump(found, note)
            note.flush()
            os.kill(self.victim or os.getpid(), signal.SIGKILL)

    def kept(self) -> dict[str, int]:
        """The results that there were when the process was killed."""
        return json.loads(self.note.read_text("utf-8"))


def begin(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    """A process of dask's, which finds this package, and the one of the tests, where it begins."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words, "--no-dashboard"],
        cwd=folder,
        env={**os.environ, **own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class Cluster:
    """A scheduler, its workers, and its address."""

    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]
    address: str

    def end(self) -> None:
        """End all processes, and wait until they have."""
        for one in (self.scheduler, *self.workers):
            one.terminate()
        for one in (self.scheduler, *self.workers):
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


@contextmanager
def cluster(folder: Path, workers: int = 2, threads: int = 1) -> Iterator[Cluster]:
    """A scheduler and workers that begin in a folder of their own, as on other machines."""
    folder.mkdir()
    file = folder / "scheduler.json"
    named = ["--scheduler-file", str(file)]
    where = ["--host", "127.0.0.1", "--port", "0"]
    scheduler = begin("distributed.cli.dask_scheduler", *named, *where, folder=folder)
    ways = [*named, "--nthreads", str(threads), "--local-directory", str(folder)]
    found = [
        begin("distributed.cli.dask_worker", *ways, "--death-timeout", "5", folder=folder)
        for _ in range(workers)
    ]
    try:
        for _ in range(600):
            if file.exists() and file.read_text("utf-8").endswith("}"):
                break
            time.sleep(0.1)
        address = json.loads(file.read_text("utf-8"))["address"]
        yield Cluster(scheduler, found, address)
    finally:
        Cluster(scheduler, found, "").end()


def killed_with_its_workers(code: str) -> int:
    """The exit status of a process that is killed, and whose workers are killed after it.

    Those of loky would finish what they were given, and wait for more for minutes.
    """
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    status = process.wait(120)
    for _ in range(600):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
            continue
        return status
    raise AssertionError("its workers live on")
