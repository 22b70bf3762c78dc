"""Several processes that were started together: which of them writes files and prints.

Process 0 alone writes files and prints; the others wait for it and read what it wrote. An error in
process 0 is raised in all of them.
"""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm.ranks import joined, place, started
from markov.errors import InvalidInput
from markov.files import storage

if TYPE_CHECKING:
    import pandas as pd

# Seconds in which process 0 may say what is wrong before other processes say it themselves.
GRACE = 10.0
Result = TypeVar("Result")


def in_first(call: Callable[[], Result]) -> Result:
    """Make the call in process 0 alone, and return its result in all processes.

    The other processes wait for it. What the call raises is raised in all of them; in the others it
    is a `RuntimeError` unless it is an `InvalidInput`. The result is sent to them, so it should be
    small.
    """
    if started() == 1:
        return call()
    import torch.distributed as distributed

    sent: list[Any] = [None, None]
    if joined().is_main_process:
        try:
            sent[0] = call()
        except Exception as error:
            known = isinstance(error, InvalidInput)
            sent[1] = error if known else RuntimeError(f"process 0 failed: {error!r}")
            distributed.broadcast_object_list(sent)
            raise
    distributed.broadcast_object_list(sent)
    if sent[1] is not None:
        raise sent[1]
    return sent[0]


def kept_table(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return the table that is kept in a file, made by all processes and kept where it is missing.

    Process 0 writes and reads it. A table that cannot be read is set aside, and made again.
    """
    found = in_first(partial(storage.read_kept, path, storage.read_table))
    if found is None:
        made = make()
        in_first(partial(storage.write_table, made, path, {}))
        # Another command may have finished the same work meanwhile, and put its parts away.
        found = in_first(partial(storage.read_kept, path, storage.read_table))
        found = made if found is None else found
    found.attrs = {}
    return found


@contextmanager
def held(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context in process 0 alone.

    What it raises when it is entered is raised in all processes.
    """
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(context)

        in_first(enter)
        yield


def in_one_voice(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; only process 0 prints.

    What the other processes print is not shown, unless one of them fails and process 0, which most
    often fails for the same reason, does not end the program within `GRACE` seconds.
    """
    if place() == 0:
        code = command()
    else:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                code = command()
            except SystemExit as ended:  # raised by the parser of arguments
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if code:
            time.sleep(GRACE)
            print(f"process {place()}: {said.getvalue().strip()}", file=sys.stderr)
    if started() > 1 and code == 0:
        _part()
    return code


def _part() -> None:
    """Leave the group of processes, if they were joined."""
    import torch.distributed as distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
