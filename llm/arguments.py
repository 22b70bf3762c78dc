"""What the arguments of every job may be: one row per name, for commands and for Python alike.

A row says which kind of value a name takes, and within which bounds. The bounds are far beyond
what anybody needs, and within what a machine can count: a batch of 10**30 examples, or a hundred
thousand attacks, would end in an error of a library or not at all. What depends on the data or on
other arguments is checked by the job itself.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, TypeVar, cast

from markov.errors import LARGEST, InvalidInput, is_number, is_whole

Job = TypeVar("Job", bound=Callable[..., Any])
SEVERAL = 1000  # seeds, methods or epochs in one argument


class Row(NamedTuple):
    """What an argument may be, in words and as a condition."""

    allowed: str
    holds: Callable[[Any], object]

    def __or__(self, other: Row) -> Row:
        return Row(
            f"{self.allowed}, or {other.allowed}",
            lambda one: self.holds(one) or other.holds(one),
        )


def whole(least: int, most: int) -> Row:
    """Return the row of a whole number."""
    return Row(f"a whole number from {least} to {most}", lambda one: is_whole(one, least, most))


def several(row: Row) -> Row:
    """Return the row of a list or tuple, but not of what can be gone through only once."""
    return Row(
        f"a list of at most {SEVERAL}, each {row.allowed}",
        lambda one: _is_list(one) and len(one) <= SEVERAL and all(map(row.holds, one)),
    )


def of(*names: str) -> Row:
    """Return the row of values of these classes, which are known by their names.

    To import the classes would take seconds that a mistake need not wait for.
    """
    return Row(
        f"a value of {' or '.join(names)}",
        lambda one: any(kind.__name__ in names for kind in type(one).__mro__),
    )


def _is_list(value: object) -> bool:
    parts = all(hasattr(value, name) for name in ("__len__", "__getitem__", "__iter__"))
    return parts and not isinstance(value, str | bytes | Mapping)


def _is_word(value: object) -> bool:
    # A name that is no UTF-8 could be opened, but not written into tables or printed.
    return isinstance(value, str | os.PathLike) and bool(str(value).strip()) and _is_text(value)


def _is_text(value: object) -> bool:
    try:
        return bool(str(value).encode())
    except UnicodeEncodeError:
        return False


EXAMPLE = of("Example")
NUMBER = Row("one finite number", is_number)
TRUTH = Row("True or False", lambda one: isinstance(one, bool))
TEXT = Row("a text", lambda one: isinstance(one, str))
WORD = Row("a word or a path, in UTF-8", _is_word)
EPOCHS, MODEL = whole(1, 10**5), WORD | of("LanguageModel")
EXAMPLES = Row(
    "a list of words, paths or examples",
    lambda one: _is_list(one) and all(_is_word(part) or EXAMPLE.holds(part) for part in one),
)
DATA = WORD | EXAMPLES | of("TofuSets", "MuseData")
OTHER = MODEL | of("EvaluationLog", "DataFrame")
LOGS, TABLE = WORD | of("EvaluationLog", "TofuLogs"), WORD | of("DataFrame")
METHOD = Row("a word, such as npo:0.1", _is_word) | of("Method", "Objective")
SEED = whole(0, LARGEST)

ROWS: dict[str, Row] = {
    **dict.fromkeys(("model",), MODEL),
    **dict.fromkeys(("data", "forget", "retain", "retain_data", "without", "watch"), DATA),
    **dict.fromkeys(("retrained", "reference"), OTHER),
    **dict.fromkeys(("logs", "retrained_logs"), LOGS),
    **dict.fromkeys(("scores", "lengths"), TABLE),
    **dict.fromkeys(("epochs", "learning_epochs", "attack_epochs"), EPOCHS),
    **dict.fromkeys(("batch", "learning_batch"), whole(1, 10**6)),
    **dict.fromkeys(("repeats", "attack_repeats"), whole(1, SEVERAL)),
    **dict.fromkeys(("seed", "noise_seed"), SEED),
    **dict.fromkeys(("seeds", "floor_seeds"), several(SEED)),
    **dict.fromkeys(("measured", "measured_epochs"), several(whole(0, 10**5))),
    **dict.fromkeys(("probe", "per_author"), whole(1, 10**9)),
    **dict.fromkeys(("forget_answers", "retain_answers", "measured_answers"), whole(2, 10**9)),
    **dict.fromkeys(("learning_rate", "unlearning_rate", "weight_decay", "clip"), NUMBER),
    **dict.fromkeys(("warmup_epochs", "recall", "tolerance"), NUMBER),
    "share": NUMBER | Row("None", lambda one: one is None),  # of what is not split
    **dict.fromkeys(("beta", "gamma", "retain_weight", "task_vectors"), NUMBER | several(NUMBER)),
    **dict.fromkeys(("gradients", "shared", "progress", "save_models", "collect"), TRUTH),
    **dict.fromkeys(("gradient_checkpointing", "narrow_updates", "despite_gate"), TRUTH),
    **dict.fromkeys(("trust_remote_code", "draw", "estimate_only"), TRUTH),
    **dict.fromkeys(("variant", "way", "words", "retain_term", "weighting", "device"), TEXT),
    **dict.fromkeys(("dtype", "precision", "system", "revision", "memory", "effort", "need"), TEXT),
    "methods": several(METHOD),
    "attacked": several(TEXT),
    "method": METHOD,
    "objectives": several(METHOD) | Row("a mapping of them", lambda one: isinstance(one, Mapping)),
    "refusals": WORD | several(TEXT),
    "which": several(TEXT),
    "lora": of("Lora"),
    "lora_rank": whole(1, 2**14),
    "piece": whole(2, 2**20),
    "budget": whole(1, 10**7),
    "max_length": whole(1, 2**20),
    "max_new_tokens": whole(1, 2**16),
    "jobs": Row("-1 or a whole number from 1 to 1024", lambda one: is_whole(one, -1, 1024) and one),
    **dict.fromkeys(("out", "source", "folder", "tokenizer"), WORD),
    "noise": Row("a finite number >= 0", lambda one: is_number(one) and one >= 0),
    "split": TEXT,
    "template": TEXT | of("Template"),
    "table": of("DataFrame"),
}


def check(name: str, value: object) -> None:
    """Raise `InvalidInput` for an argument that is not as its row says; others are passed over."""
    row = ROWS.get(name)
    try:
        good = row is None or row.holds(value)
    except (TypeError, ValueError, OverflowError):  # of a value that is no list, but says so
        good = False
    if row is not None and not good:
        raise InvalidInput(name, value, row.allowed)


def check_command(command: Any) -> None:
    """Raise `InvalidInput` for the first option of a command that is not as its row says.

    None is allowed where it is the default.
    """
    for field in fields(command):
        value, default = getattr(command, field.name), field.default
        if value is not None or default not in (None, MISSING):
            check(field.name, value)


def checked_job(job: Job) -> Job:
    """Return the job, which looks at its arguments before it does anything.

    None is allowed where it is the default. Raises `InvalidInput` for a value that is of another
    kind, or out of bounds.
    """
    signature = inspect.signature(job)
    defaults = {name: one.default for name, one in signature.parameters.items()}

    @functools.wraps(job)
    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named).arguments
        kinds = ((name, signature.parameters[name].kind) for name in bound)
        gathered = [name for name, kind in kinds if kind is inspect.Parameter.VAR_KEYWORD]
        values = {name: one for name, one in bound.items() if name not in gathered}
        for name in gathered:
            values |= bound[name]
        for name, value in values.items():
            if value is not None or defaults.get(name) is not None:
                check(name, value)
        return job(*given, **named)

    return cast(Job, call)
