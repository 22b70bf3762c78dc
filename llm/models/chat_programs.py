"""Chat templates as programs that somebody else wrote: refused if they do not end in a short time.

A few lines of one can loop for years, double a text until memory is full, or ask for a number of a
billion digits. Such a program is found before the first conversation is written: by the numbers in
it, and by a trial whose lines are counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from llm.models.libraries import reason_of, tried
from markov.errors import InvalidInput, require

LINES = 300_000  # lines that two turns may take; templates that are used take some hundreds
NUMBER = 10**5  # the largest whole number that may stand in one
MEMORY = 2**27  # bytes by which memory may grow meanwhile
FILE = "<template>"  # as which jinja compiles every template
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ALLOWED = "a tokenizer whose chat template ends in a short time"


class _Endless(Exception):
    """Raised inside a template that takes too much."""


def check_program(tokenizer: Any, where: str) -> None:
    """Raise `InvalidInput` for a tokenizer whose chat template takes too long, or too much memory.

    A template that refuses these two turns is not looked at further: what may be said with it is
    found out when it is used.
    """
    if not tokenizer.chat_template:
        return
    written, error = tried(lambda: str(tokenizer.get_chat_template()))
    if error is not None:
        return
    _, error = tried(lambda: _check_numbers(written, where))
    # Too deep for the parser: it would be so for Python as well.
    known = error is None or not isinstance(error, RecursionError)
    require(known, "tokenizer", where, f"{ALLOWED} ({error and reason_of(error)})")

    def write() -> None:
        for turns in (TURNS[:1], TURNS):
            options = {"tokenize": False, "add_generation_prompt": len(turns) == 1}
            tokenizer.apply_chat_template(turns, **options)

    with _counted():
        _, error = tried(write)
    if isinstance(error, _Endless):
        raise InvalidInput("tokenizer", where, f"{ALLOWED} ({error})")


def _check_numbers(written: str, where: str) -> None:
    """Raise `InvalidInput` for a power, a large number, or a product that is large."""
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tree = _compile_jinja_template("").environment.parse(written)
    large = [
        one.value
        for one in tree.find_all(nodes.Const)
        if isinstance(one.value, int) and abs(one.value) > NUMBER
    ]
    for one in tree.find_all(nodes.Mul):
        product = 1
        for factor in one.find_all(nodes.Const):
            product *= factor.value if isinstance(factor.value, int) else 1
        large += [product] if abs(product) > NUMBER else []
    require(not large, "tokenizer", where, f"{ALLOWED} (it has the number {large[:1]})")
    power = tree.find(nodes.Pow) is not None
    require(not power, "tokenizer", where, f"{ALLOWED} (it takes a power)")
    # What jinja itself has for long texts at random.
    padded = any(one.name == "lipsum" for one in tree.find_all(nodes.Name))
    require(not padded, "tokenizer", where, f"{ALLOWED} (it calls lipsum)")


@contextmanager
def _counted() -> Iterator[None]:
    """Raise `_Endless` in a template inside the block after too many lines, or too much memory."""
    lines, used = 0, _memory()

    def line(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal lines
        lines += event == "line"
        if lines > LINES:
            raise _Endless(f"it takes more than {LINES:,} lines for two turns")
        if _memory() > used + MEMORY:
            raise _Endless("it fills the memory")
        return line

    def call(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return line if frame.f_code.co_filename == FILE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def _memory() -> int:
    """Return the most bytes that this process has held, or 0 where nobody knows."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
