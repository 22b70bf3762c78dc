"""The command that makes the default models.

What takes seconds to import is imported when the command runs, so that --help answers at once.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from llm.data.authors.corpus import PERCENT
from llm.models.kinds import AUTHORS, OfAuthors
from llm.models.names import Made, made
from markov.errors import require
from markov.files import folders, storage
from markov.files.turns import turn

DATA = "data"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Make the default models, a small Llama that knows fictional authors by heart.
    Nothing is downloaded.

    They are kept in the cache ($SIMNPO_LAB_CACHE chooses where) and known to every command by the
    words that are printed: authors:KIND, or with another percent or seed
    authors:KIND:PERCENT[:SEED], whose data are authors:SPLIT and authors:SPLIT:SEED. With --out
    they are also written to a folder, beside the data as files in TOFU's format.
    """

    kinds: tuple[OfAuthors, ...] = AUTHORS
    """Models to make.
    original: trained on all; retrained: never saw the forget data; partial: saw half of it,
    some of that often and some once.
    """
    percent: int = PERCENT
    """Percent of the authors that is to be forgotten: 1, 5, 10 or 20."""
    seed: int = 0
    """Seed of the corpus and of the training."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU where there is one."""
    out: Path | None = None
    """Folder for copies: OUT/KIND the models, OUT/data the splits."""


def build(command: Build) -> None:
    """Train what is not cached, and copy."""
    from llm.data import tofu
    from llm.data.authors.corpus import Authors, splits
    from llm.models.saving import save, saved_settings
    from llm.models.source import load

    require(len(command.kinds) > 0, "kinds", command.kinds, "at least one")
    words = {
        kind: Made("authors", kind, command.percent, command.seed).word for kind in command.kinds
    }
    for word in words.values():
        made(word)  # refuses a percent of which there are no splits
    authors = Authors(seed=command.seed)
    described = {
        kind: {"model": word, "percent": command.percent, "authors": authors}
        for kind, word in words.items()
    }
    if command.out is not None:
        folders.check_place(command.out)
        claimed = {"percent": command.percent, "authors": authors}
        folders.claim(command.out, "build", claimed, names=(*AUTHORS, DATA))
        for kind in command.kinds:
            copy = command.out / kind
            ours = not copy.exists() or saved_settings(copy) == storage.settings_of(described[kind])
            require(
                ours,
                "out",
                str(command.out),
                f"a folder whose {kind} is of these settings, or not there",
            )
    # The models are built by one process at a time anyway.
    with nullcontext() if command.out is None else turn(command.out, "build", note=True):
        for kind, word in words.items():
            language = load(word, device=command.device)
            if command.out is not None and not (command.out / kind).exists():
                known = storage.provenance(described[kind], __name__, seeds=[command.seed])
                save(language, command.out / kind, known)
            print(f"{kind}: {language.name if command.out is None else command.out / kind}")
        if command.out is not None:
            for name, examples in splits(authors).items():
                path = command.out / DATA / f"{name}.json"
                if not path.exists():  # a file that is there may have been edited since
                    tofu.write(examples, path)
