"""Command lines with up to three options that nobody should give."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import llm.schemas
from llm.schemas import check_table
from markov.files import storage
from tests.hammer.bases import Base, Options, bases
from tests.hammer.cases import Case, at, once, quoted
from tests.hammer.options import COMMANDS, Option, options_of, values_of
from tests.hammer.world import Box, program

FIXED = ("draw",)  # which takes longer than all the rest
# Without names everything is drawn, and without jobs a process is started for each core.
NEEDED = ("names", "jobs")
UNKNOWN = ("--nope", "--out-of-nowhere", "nope", "--help-me", "-x", "--out.file", "")


def words_of(command: str, options: Options) -> list[str]:
    """Return the command line of a command and its options."""
    known = options_of(COMMANDS[command])
    words, first = command.split(), []
    for name, given in options.items():
        option = known[name]
        if name == "names":
            first += list(given)
        elif len(given) == 1 and given[0].startswith("-"):
            words.append(f"{option.word}={given[0]}")
        elif name == "draw" and not given:
            words.append("--no-draw")
        else:
            words += [option.word, *given]
    return words[:1] + first + words[1:]


def case(given: Path, rng: random.Random) -> Case:
    """A small command line with one to three changes."""
    known = bases(given)
    name = rng.choices(list(known), [base.often for base in known.values()])[0]
    base = known[name]
    options, wrongs = dict(base.options), {}
    for _ in range(rng.choices((1, 2, 3), (6, 3, 2))[0]):
        _change(base, options, wrongs, rng)
    while base.slow and not any(wrongs.values()):
        _change(base, options, wrongs, rng)
    refused = any(wrongs.values())
    words = words_of(base.command, options)
    if rng.random() < 0.03:
        words.insert(rng.randrange(2, len(words) + 1), rng.choice(UNKNOWN))
        # A word may be taken for a value of the option before it.
        refused = refused or words[-1].startswith("--")

    def act(box: Box):
        check = partial(wrong, base=base, options=options)
        return once(box, program(words), must_refuse=refused, check=check)

    return Case(f"commands of {words[0]}", quoted(words), act)


def _change(base: Base, options: Options, wrongs: dict[str, bool], rng: random.Random) -> None:
    """Change one option, and note whether that has to be refused."""
    known = options_of(COMMANDS[base.command])
    # The options of the small command are as often changed as all others.
    names = list(known) if rng.random() < 0.5 else [name for name in options if name in known]
    names = [name for name in names if name not in FIXED]
    option = known[rng.choice(names)]
    while option.kind == "choice" and rng.random() < 0.8:  # which the parser alone refuses
        option = known[rng.choice(names)]
    if option.kind == "flag":
        _change_flag(option, options, wrongs, rng)
        return
    values = values_of(option, command=base.command, folder=base.folder)
    if option.kind in ("int", "float") and rng.random() < 0.9:  # what the parser lets pass
        values = [one for one in values if is_number(option.kind, one.words[0])]
    needed = option.name in NEEDED
    if rng.random() < 0.04 and not needed:
        options[option.name] = ()
        wrongs[option.name] = option.count == 1
        return
    if rng.random() < 0.02 and option.name in options and not needed:
        options.pop(option.name)
        wrongs[option.name] = False
        return
    chosen = [rng.choice(values) for _ in range(option.count or rng.choices((1, 2), (3, 1))[0])]
    words = [word for one in chosen for word in one.words]
    if not option.count:  # among what is right, and more than once
        kept = list(options.get(option.name, ()))
        words = rng.choice((words, kept + words, words + kept, words * 2))
        words = [word for word in words if not word.startswith("--")] or [""]
        if any(word.startswith("-") for word in words) and len(words) > 1:
            words = [word for word in words if word.startswith("-")][:1]
            chosen = [one for one in chosen if words[0] in one.words]
    options[option.name] = tuple(words)
    wrongs[option.name] = any(one.refused for one in chosen)


def is_number(kind: str, word: str) -> bool:
    """Return whether a word is a number of a kind, whichever."""
    try:
        (int if kind == "int" else float)(word)
    except ValueError:
        return False
    return True


def _change_flag(
    option: Option, options: Options, wrongs: dict[str, bool], rng: random.Random
) -> None:
    if option.name in options and rng.random() < 0.5:
        del options[option.name]
        wrongs[option.name] = False
    else:
        options[option.name] = ("nope",) if rng.random() < 0.1 else ()
        wrongs[option.name] = bool(options[option.name])


def wrong(box: Box, base: Base, options: Options) -> str:
    """Return what is wrong with the outputs of a command that succeeded; "" if nothing is."""
    if (box.work / "~").exists():
        return "wrote a file named ~"
    # Of these the first writes parts only, and the second nothing.
    if "out" not in options or options.get("part") or "estimate_only" in options:
        return ""
    out = at(box, options["out"][0])
    if not os.path.lexists(out):
        return f"nothing at {out.name}"
    for name, schema in base.writes.items():
        path = out / name if name else out
        try:
            table = storage.read_table(path)
            if schema:
                check_table(getattr(llm.schemas, schema), table, name or "out", str(path))
        except Exception as error:
            return f"{path.name}: {error}"[:300]
    return ""
