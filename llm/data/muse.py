"""The data of MUSE (Shi et al. 2024): texts to forget and to retain, and questions about them.

    raw         splits   forget, retain1, retain2
                fields   text: what a model reads
    verbmem     split    forget
                fields   prompt, gt: a passage and how it goes on
    knowmem     splits   forget_qa, forget_qa_icl, retain_qa, retain_qa_icl
                fields   question, answer; those of the icl splits are shown in the prompt
    privleak    splits   forget, retain, holdout
                fields   text: the first two are read by models, the hold-out never is

These are the configurations and splits of `muse-bench/MUSE-News` and `-Books` on the hub. In a
folder each is a file CONFIG/SPLIT.json, or in another shape that `llm.data.records` knows.
Unlearning may use only `retain1`; `retain2` shows what becomes of the other retained texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm.data.news.corpus import Article, News, QuestionAndAnswer, edition
from llm.data.published import MUSE as HUB
from llm.data.records import (
    find_split,
    from_hub,
    is_text,
    read_records,
    shown,
    write_records,
)
from llm.data.words import checked_word, seed_in
from markov.errors import InvalidInput, require
from markov.files.storage import Location, check_writable

GENERATED = "news"
SHOTS = 3  # questions with their answers before a question, in generated data
# Field of `MuseData`: its configuration, its split, and the fields of its records.
FILES = {
    "raw_forget": ("raw", "forget", ("text",)),
    "raw_retain1": ("raw", "retain1", ("text",)),
    "raw_retain2": ("raw", "retain2", ("text",)),
    "verbmem": ("verbmem", "forget", ("prompt", "gt")),
    "forget_qa": ("knowmem", "forget_qa", ("question", "answer")),
    "forget_qa_icl": ("knowmem", "forget_qa_icl", ("question", "answer")),
    "retain_qa": ("knowmem", "retain_qa", ("question", "answer")),
    "retain_qa_icl": ("knowmem", "retain_qa_icl", ("question", "answer")),
    "privleak_forget": ("privleak", "forget", ("text",)),
    "privleak_retain": ("privleak", "retain", ("text",)),
    "privleak_holdout": ("privleak", "holdout", ("text",)),
}
OPTIONAL = ("raw_retain2",)


class Passage(NamedTuple):
    """The beginning of a passage and how it goes on."""

    prompt: str
    gt: str


# What a record becomes, by its first field.
MAKE: dict[str, Callable[..., Any]] = {
    "prompt": Passage,
    "question": QuestionAndAnswer,
    "text": str,
}


@dataclass(frozen=True, kw_only=True)
class MuseData:
    """One of MUSE's data sets, or one of the same shape.

    Items of a field are known by their place in it.
    """

    raw_forget: tuple[str, ...]
    raw_retain1: tuple[str, ...]
    raw_retain2: tuple[str, ...] = ()
    verbmem: tuple[Passage, ...]
    forget_qa: tuple[QuestionAndAnswer, ...]
    forget_qa_icl: tuple[QuestionAndAnswer, ...]
    retain_qa: tuple[QuestionAndAnswer, ...]
    retain_qa_icl: tuple[QuestionAndAnswer, ...]
    privleak_forget: tuple[str, ...]
    privleak_retain: tuple[str, ...]
    privleak_holdout: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in FILES:
            require(
                name in OPTIONAL or len(getattr(self, name)) > 0, name, (), "at least one record"
            )


def read_muse(source: Location) -> MuseData:
    """Return the data of a source: from the hub, generated, or from a folder.

    The source is `muse:News` or `muse:Books` for the hub, `news` or `news:SEED` for generated data,
    or a folder that holds CONFIG/SPLIT.json, or the same in another shape of `llm.data.records`.
    Raises `InvalidInput` for a source that is not there or cannot be fetched, and for a record of
    another shape: it names the file, the record (counted from 1) and the field.
    """
    source = checked_word(source, "source")
    if (news := generated(source)) is not None:
        return news_data(news)
    if os.fspath(source) in HUB:
        return _parsed(os.fspath(source), _from_hub)
    known = (
        f"a folder of files CONFIG/SPLIT.json, {', '.join(HUB)}, {GENERATED} or {GENERATED}:SEED"
    )
    require(Path(source).is_dir(), "source", os.fspath(source), known)
    return _parsed(os.fspath(source), _from_folder)


def generated(source: Location) -> News | None:
    """Return the generated news that a source names, or None if it names none.

    Such a source is `news` or `news:SEED`; if there is a folder called news, `news` means that
    folder. Raises `InvalidInput` for a seed that is not a number.
    """
    word = checked_word(source, "source")
    name, colon, seed = word.partition(":")
    if name != GENERATED or (not colon and Path(source).exists()):
        return None
    allowed = f"{GENERATED}:SEED, the seed a number"
    return News(seed=seed_in(seed, "source", word, allowed) if colon else 0)


def news_data(settings: News) -> MuseData:
    """Return the generated news in MUSE's shape.

    A passage begins with the first sentence of an article. The questions that are shown in a prompt
    are never among those that are asked. Every second article to retain, the first among them, is
    in `raw_retain1`; questions are about all articles.
    """
    forget, holdout, retain = edition(settings)

    def asked(articles: Iterable[Article]) -> tuple[QuestionAndAnswer, ...]:
        return tuple(
            pair for article in articles for pair in article.questions[: settings.questions]
        )

    def shown(articles: Iterable[Article]) -> tuple[QuestionAndAnswer, ...]:
        return tuple(article.questions[settings.questions] for article in articles)

    return MuseData(
        raw_forget=_texts(forget),
        raw_retain1=_texts(retain[::2]),
        raw_retain2=_texts(retain[1::2]),
        verbmem=tuple(
            Passage(article.lead, article.text.removeprefix(article.lead)) for article in forget
        ),
        forget_qa=asked(forget),
        forget_qa_icl=shown(forget[:SHOTS]),
        retain_qa=asked(retain),
        retain_qa_icl=shown(retain[:SHOTS]),
        privleak_forget=_texts(forget),
        privleak_retain=_texts(retain),
        privleak_holdout=_texts(holdout),
    )


def _texts(articles: Iterable[Article]) -> tuple[str, ...]:
    return tuple(article.text for article in articles)


def write_muse(data: MuseData, folder: Location) -> None:
    """Write files CONFIG/SPLIT.json, one record per line, from which `read_muse` returns the data.

    Raises `InvalidInput` for a folder that cannot be written.
    """
    place = check_writable(folder, "folder", folder=True)
    for name, (config, split, keys) in FILES.items():
        rows = ((value,) if isinstance(value, str) else value for value in getattr(data, name))
        records = (dict(zip(keys, row, strict=True)) for row in rows)
        write_records(records, place / config / f"{split}.json")


def _parsed(source: str, fetch: Any) -> MuseData:
    found: dict[str, Any] = {}
    for name, (config, split, keys) in FILES.items():
        where, records = fetch(source, config, split, name in OPTIONAL)
        found[name] = tuple(
            _item(record, f"{where}, record {row}", keys) for row, record in enumerate(records, 1)
        )
        require(name in OPTIONAL or len(found[name]) > 0, where, "no record", "at least one")
    return MuseData(**found)


def _item(record: object, where: str, keys: tuple[str, ...]) -> Any:
    if not isinstance(record, Mapping):
        raise InvalidInput(where, shown(record), f"an object with the fields {', '.join(keys)}")
    for key in keys:
        value = record.get(key)
        has = "" if key in record else f" (the record has {', '.join(map(str, record))})"
        require(is_text(value), f"{where}, {key}", shown(value), f"text that is not blank{has}")
    return MAKE[keys[0]](*(record[key] for key in keys))


def _from_hub(source: str, config: str, split: str, optional: bool) -> tuple[str, Iterable[object]]:
    instead = f"give a folder of files CONFIG/SPLIT.json, or {GENERATED}, which is generated"
    return f"{source}, {config}/{split}", from_hub(source, HUB[source], config, split, instead)


def _from_folder(source: str, config: str, split: str, optional: bool) -> tuple[str, list[Any]]:
    path = find_split(Path(source) / config, split)
    if path is None:
        require(optional, "source", source, f"a folder that has {config}/{split}.json")
        return f"{source}, {config}/{split}", []
    return str(path), read_records(path)
