"""The options of every command, read off the dataclasses behind the programs."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from figures.__main__ import Arguments
from llm.__main__ import ACTIONS
from markov.__main__ import Grid, Unlearn
from tests.hammer.values import (
    BY_NAME,
    BY_TYPE,
    FILES,
    NOT_FILES,
    NOT_FOLDERS,
    NOT_TABLES,
    Value,
)


class Option(NamedTuple):
    """An option: its name, the kind of one value, and how many it takes (0 for any number)."""

    name: str
    kind: str
    count: int
    free: bool  # whether it may also be a word that is no such value

    @property
    def word(self) -> str:
        return f"--{self.name.replace('_', '-')}"


COMMANDS: Mapping[str, type] = {
    "markov unlearn": Unlearn,
    "markov grid": Grid,
    **{f"llm {action.__name__}": kind for kind, action in ACTIONS.items()},
    "figures": Arguments,
}


def options_of(command: type) -> dict[str, Option]:
    """Return the options of a command by name."""
    hints = typing.get_type_hints(command, include_extras=False)
    return {one.name: _option(one.name, hints[one.name]) for one in fields(command)}


def _option(name: str, hint: Any) -> Option:
    arms = [arm for arm in _arms(hint) if arm is not type(None)]
    inner, count = arms[0], 1
    if typing.get_origin(inner) is tuple:
        inside = typing.get_args(inner)
        inner, count = inside[0], 0 if Ellipsis in inside else len(inside)
    kinds = {_kind(arm) for arm in (arms[1:] or [inner])}
    (kind,) = kinds
    return Option(name, kind, count, len(arms) > 1)


def _arms(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _kind(one: Any) -> str:
    if typing.get_origin(one) is Literal:
        return "choice"
    kinds = {bool: "flag", int: "int", float: "float", str: "str", Path: "path"}
    return kinds[one]


def values_of(option: Option, *, command: str = "", folder: bool) -> list[Value]:
    """Return hostile values of an option of a command, of which `folder` says what it writes."""
    if option.name == "out":
        if command == "figures":  # which draws into any folder, beside what lies there
            return [one for one in NOT_FOLDERS if "kept" not in one.words[0]]
        return NOT_FOLDERS if folder else NOT_TABLES
    found = BY_NAME.get(option.name, BY_TYPE.get(option.kind, []))
    if option.name in FILES:
        # A folder may hold data, and what is listed may be words as well as files.
        found = found + [one for one in NOT_FILES if one.words[0] != "/"]
    return found
