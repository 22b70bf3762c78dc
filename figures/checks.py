"""What is asked of `python -m figures`, checked before anything is drawn.

What does not go together is refused, and what figures are drawn of is read once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from figures.catalogue import CATALOGUE
from figures.drawn_of import COMPARED, EVALUATED, LOGGED, NOT_OF_RUNS, OF_DEFAULT
from markov.errors import require
from markov.files import folders, inputs, storage

if TYPE_CHECKING:
    from figures.__main__ import Arguments
    from figures.language.own_model import OwnModel

CLAIMS = ("claims",)
# Options of a language model of the user's own.
OWN = (
    *("model", "retrained", "data", "retain_data", "learning_rate", "epochs", "batch"),
    *("precision", "lora_rank", "gradient_checkpointing", "template", "system", "dtype", "device"),
    *("revision", "trust_remote_code", "max_length", "budget", "memory"),
)
LANGUAGE = tuple(one.name for one in CATALOGUE if one.study or ".language." in one.module)


def check_gallery(arguments: Arguments) -> None:
    """Raise `InvalidInput` where pictures and numbers of less evidence would replace those kept."""
    if not arguments.gallery or arguments.study is not None:
        return
    from figures.scale import EVIDENCE

    enough = not arguments.quick and (arguments.seeds or EVIDENCE) >= EVIDENCE
    require(enough, "gallery", True, f"given without --quick, and with {EVIDENCE} seeds at least")


def check_out(arguments: Arguments, names: Sequence[str]) -> None:
    """Check, before any work, that what the figures replace are figures.

    Runs, models and tables of many kinds may lie in the output folder. Raises `InvalidInput` for an
    output folder that cannot be written, or that is, or lies in, what is read, and for a table
    NAME.parquet that this program did not write.
    """
    storage.check_writable(arguments.out, "out", folder=True)
    read = [*arguments.runs, arguments.model, arguments.retrained, *(arguments.logs or ())]
    # A study's own folder for figures may be written to. One that is no folder is refused later.
    if arguments.study is not None and inputs.is_folder(arguments.study):
        read += [arguments.study / "data", *arguments.study.glob("seed*")]
        same = os.path.realpath(arguments.out) == os.path.realpath(arguments.study)
        require(not same, "out", str(arguments.out), "a folder apart from the study, which is read")
    for name in names:
        folders.check_table(arguments.out / f"{name}.parquet", inputs=read)
        for suffix in ("pdf", "png", "md"):
            picture = arguments.out / f"{name}.{suffix}"
            if os.path.lexists(picture):
                storage.check_writable(picture, "out")


def check_memory(own: OwnModel, names: Sequence[str]) -> None:
    """Print the memory that figures of a model of the user's own take.

    Raises `InvalidInput` for what takes more than there is.
    """
    from llm.jobs.planning import planned
    from llm.scoring.limits import NEW_TOKENS

    evaluated = any(name in EVALUATED for name in names)
    if any(name in LANGUAGE for name in names):
        planned(own, training=True, writing=NEW_TOKENS if evaluated else 0)


def check_own(arguments: Arguments) -> None:
    """Raise `InvalidInput` for options of a language model that go with nothing else given."""
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        unused = arguments.model is None and field.name in OWN and value != field.default
        allowed = "left out without --model, whose figures they are about"
        require(not unused, field.name, value, allowed)
    unused = arguments.study is not None and (arguments.runs or arguments.model)
    require(not unused, "study", str(arguments.study), "left out with --runs and --model")
    whole = arguments.study is not None and arguments.gallery and not arguments.names
    require(not whole, "gallery", True, "with --study, beside the NAMEs of the figures to refresh")
    for field, none in (("model", OF_DEFAULT), ("runs", NOT_OF_RUNS)):
        given = getattr(arguments, field)
        odd = [name for name in arguments.names if given and (name in none or name not in LANGUAGE)]
        shown = given if isinstance(given, str) else " ".join(map(str, given or ()))
        allowed = f"left out with {' '.join(odd[:1])}, which is not drawn of it"
        require(not odd, field, shown, allowed)
    allowed = "left out with --runs, which are runs of a model already"
    require(arguments.model is None or not arguments.runs, "model", arguments.model, allowed)


def check_used(arguments: Arguments, names: Sequence[str]) -> None:
    """Raise `InvalidInput` where figures lack what they compare with, or nothing uses an option."""
    compared = [name for name in names if name in COMPARED]
    known = arguments.model is None or arguments.retrained is not None or not compared
    allowed = f"the model retrained without the forget data, for {' '.join(compared[:1])}"
    require(known, "retrained", arguments.retrained, allowed)
    for field, users in (("logs", LOGGED), ("evidence", ("ledger",)), ("architectures", CLAIMS)):
        value = getattr(arguments, field)
        used = not value or any(name in users for name in names)
        shown = value if isinstance(value, bool) else str(value)
        require(used, field, shown, f"left out, or given for {' or '.join(users)}")


def check_read(arguments: Arguments, names: Sequence[str], own: OwnModel | None) -> None:
    """Read what figures are drawn of, so that what cannot be used is refused before any is drawn.

    Raises `InvalidInput` for runs, logs, data and evidence that cannot be read, and for runs
    without the retrained model that a figure compares with.
    """
    if arguments.runs:
        from figures.language.runs import check_compared
        from llm.unlearning.runs import read_run

        found = [read_run(folder) for folder in arguments.runs]
        if any(name in COMPARED and name not in NOT_OF_RUNS for name in names):
            check_compared(found)
    if own is not None and any(name in LANGUAGE for name in names):
        from llm.data.sources import read

        for data in (own.data, own.retain_data):
            read(data)
    if arguments.logs is not None:
        from llm.logs.reading import read_log

        for path in arguments.logs:
            read_log(path if inputs.is_folder(path) else inputs.existing_file(path, "logs"))
    if arguments.evidence is not None:
        from figures.questions.ledger import rows

        rows(inputs.existing_folder(arguments.evidence, "evidence"))
