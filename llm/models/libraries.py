"""The one place where transformers, tokenizers and peft are asked to read what somebody else wrote.

What they raise for it is turned into one line, whatever it is: a file can be odd in more ways than
they foresee. What they print meanwhile is left out, since the line says what counts.
"""

from __future__ import annotations

import logging as python_logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from llm.models.hub import FOLDER, reason_of_hub
from markov.errors import InvalidInput, out_of_memory

LONGEST = 240  # characters of a library's reason in a message
# What ends a process, and is no complaint about a file. All else is one, also what is no
# `Exception`, as the panics of libraries in Rust are.
ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


def fetch(field: str, where: str, read: Callable[[], Any], revision: str | None = None) -> Any:
    """Return what `read` reads from a folder or, at a revision, the hub.

    Raises `InvalidInput` with the reason if reading fails.
    """
    found, error = tried(read)
    if error is not None:
        allowed = f"a folder that transformers can read ({reason_of(error)})"
        if not os.path.isdir(where):
            reason = reason_of_hub(error, where, revision)
            reason = reason or f"{reason_of(error)}; offline, {FOLDER}"
            allowed = f"one on the hub that can be fetched: {reason}"
        elif isinstance(error, SafetensorError) and (damaged := _damaged(Path(where))):
            allowed = f"a folder of whole files: {damaged} is damaged or cut short"
        raise InvalidInput(field, where, allowed) from None
    return found


def tried(read: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what `read` returns, or the complaint of a library that it ended with.

    What ends a process is raised, and so are full memory and what we say ourselves.
    """
    try:
        with muted():
            return read(), None
    except (*ENDS, InvalidInput):
        raise
    except BaseException as error:
        if out_of_memory(error):
            raise
        return None, error


def _damaged(folder: Path) -> str | None:
    """Return the name of the first file of weights that cannot be opened, or None."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return file.name
    return None


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one line that is not long.

    This is its first line, and the second if the first only announces it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    # Of some only the kind tells what is meant: a KeyError says no more than the key.
    bare = isinstance(error, LookupError | AssertionError | RecursionError) or not said
    said = f"{type(error).__name__}: {said}".removesuffix(": ") if bare else said
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}..."


@contextmanager
def muted() -> Iterator[None]:
    """Print nothing inside the block that the libraries report or warn of."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(python_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block if the output is not a terminal."""
    from transformers.utils import logging

    with ExitStack() as afterwards:
        if logging.is_progress_bar_enabled() and not sys.stderr.isatty():
            logging.disable_progress_bar()
            afterwards.callback(logging.enable_progress_bar)
        yield
