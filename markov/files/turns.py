"""Turns: one process of a machine at a time does the work that belongs to one place.

The system lets go of a turn when a process ends, however it ends. Locks lie apart from results, so
that nothing is left among them. Processes of other machines are not waited for.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(place: Path, job: str = "", *, note: bool = False) -> Iterator[None]:
    """Wait until no other process does the same job at a place, and keep others waiting meanwhile.

    A `note` on standard error says so if it has to wait. A process that asks for a turn that it
    has already waits for ever.
    """
    from filelock import FileLock, Timeout  # here, so that --help answers at once

    # By its number, since in a container a user may have no name.
    user = getattr(os, "getuid", int)()
    words = " ".join(one for one in (str(user), os.path.realpath(place), job) if one)
    name = hashlib.sha256(os.fsencode(words)).hexdigest()[:32]
    lock = FileLock(Path(tempfile.gettempdir()) / f"simnpo-lab-{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if note:
            print(f"note: waiting for another process that works on {place}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
