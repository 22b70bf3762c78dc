"""Ask a model what it knows, and split that into what it is to forget and what it is to retain."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from llm.arguments import checked_job
from llm.jobs.settings import DEFAULTS, Word
from llm.scoring.limits import BUDGET, MAX_LENGTH
from markov.errors import require, require_whole
from markov.files import folders, storage
from markov.files.storage import Location

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from llm.data.tofu import Example
    from llm.models.language_model import LanguageModel

# Files of the folder; the table is written last, so that a folder with it is complete.
FORGET, RETAIN, TABLE = "forget.jsonl", "retain.jsonl", "known.parquet"
COUNTS, WEIGHTS = "counts.parquet", "weights.parquet"
# The same in the model's own words, where it has written the right answers.
OWN_FORGET, OWN_RETAIN, OWN_WEIGHTS = "forget_own.jsonl", "retain_own.jsonl", "weights_own.parquet"
OWN_COUNTS = "own"  # in the provenance of the table: how many examples there are of each
GIVEN, OWN = (FORGET, RETAIN, WEIGHTS), (OWN_FORGET, OWN_RETAIN, OWN_WEIGHTS)
JOB = "known"
NAMES = (*GIVEN, *OWN, COUNTS, TABLE)
Way = Literal["probability", "writing", "both"]  # see `llm.evaluation.knowledge`
WAY: Way = "writing"
SHARE, RECALL = 0.5, 1.0
WRITTEN = 50  # tokens of an answer: the longer a text, the more words it has by chance
COLUMNS = (
    *("source", "index", "question", "answer", "logp", "length", "probability", "rank", "written"),
    *("rouge", "right", "part"),
)
PARTS = ("forget", "retain", "known", "unknown")


class Questions(NamedTuple):
    """Questions to ask, numbered from 0 over all sources, and which of them may be forgotten."""

    examples: tuple[Example, ...]
    source: tuple[str, ...]
    row: tuple[int, ...]
    forgettable: tuple[bool, ...]


class Split(NamedTuple):
    """How what is known is split: by which way of being right, share to forget, and seed.

    With `share` None it is not split.
    """

    way: str = WAY
    share: float | None = SHARE
    seed: int = 0


class Side(NamedTuple):
    """What is to be forgotten and to be retained, with answers of one kind.

    `weights` are those of the four corners before the first update, a row per answer to forget, as
    `llm.weights` has them.
    """

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    weights: pd.DataFrame


class Known(NamedTuple):
    """What a model knows, and its parts to forget and to retain.

    `table` has a row per question: `source`, `index` (its row in the source), `question`, `answer`,
    the columns of `llm.evaluation.knowledge.Answered`, whether it counts as `right`, and `part`:
    forget, retain or unknown, or known where nothing is split. `counts` has the numbers of right
    answers (`llm.evaluation.knowledge.counts`). `given` has the answers as they were given, and
    `own` the model's own words, of those questions where they have the right answer as it stands
    (`llm.evaluation.knowledge.in_own_words`).
    """

    table: pd.DataFrame
    counts: pd.DataFrame
    given: Side
    own: Side
    way: str
    place: Path | None = None

    def __repr__(self) -> str:
        return report(self)


@checked_job
def known(
    model: LanguageModel | Location,
    data: Location | Sequence[Location] | Sequence[Example],
    *,
    retain: Location | Sequence[Location] | Sequence[Example] = (),
    way: str = WAY,
    recall: float = RECALL,
    share: float | None = SHARE,
    seed: int = 0,
    out: Location | None = None,
    words: str = "latin",
    max_new_tokens: int = WRITTEN,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> Known:
    """Return what a model answers right, split into what to forget and what to retain.

    `data` and `retain` are words, files of one's own, lists of these, or examples. Of the questions
    of `data` that the model answers right a `share` is to be forgotten; the others, and all of
    `retain` that it answers right, are to stay. Which ones follows from the `seed`. With `share`
    None the model is asked only. What counts as right is one of `Way`,
    with `recall` the least share of an answer's words in what the model writes.

    With the folder `out` all is written there as `python -m llm known` does, or read where that was
    done. Raises `InvalidInput` for words that name nothing, for a question that comes twice, for
    questions without wrong answers where these are needed, or with different numbers of them, for
    numbers that are not allowed, and for fewer known questions than two parts need.
    """
    from llm.jobs.values import language_of
    from llm.models.names import check

    if isinstance(model, Word):
        check(model)
    split = checked_split(way, share, seed, recall, retains=len(_listed(retain)) > 0)
    require_whole(max_new_tokens, "max_new_tokens", 1)
    questions = read_questions(data, retain, way)
    if out is not None:
        given = [*_listed(data), *_listed(retain), model]
        folders.check_place(out, inputs=[one for one in given if isinstance(one, Word)])
    language = language_of(model, progress=progress)
    options: dict[str, Any] = {"recall": recall, "words": words, "max_length": max_length}
    options |= {"max_new_tokens": max_new_tokens}
    speed: dict[str, Any] = {"budget": budget, "progress": progress}
    if out is None:
        return asked(language, questions, split, **options, **speed)
    return asked_into(out, language, questions, split, options, **speed)


def checked_split(
    way: str, share: float | None, seed: int, recall: float, *, retains: bool
) -> Split:
    """Return how to split; `retains` says whether other questions are retained.

    Raises `InvalidInput` for another way, and for shares and a seed that are not allowed.
    """
    require(way in get_args(Way), "way", way, f"one of {', '.join(get_args(Way))}")
    require(0 < recall <= 1, "recall", recall, "a share above 0, at most 1")
    require_whole(seed, "seed", 0)
    if share is None:
        require(not retains, "retain_data", "given", "left out where nothing is split")
        return Split(way, None, seed)
    allowed = "a share above 0, below 1; 1 only where other questions are retained"
    require(0 < share < 1 or (share == 1 and retains), "share", share, allowed)
    return Split(way, share, seed)


def read_questions(data: Any, retain: Any, way: str) -> Questions:
    """Return the questions of all sources, in their order.

    Raises `InvalidInput` as `known` does.
    """
    found = [(*one, True) for one in _read(data)] + [(*one, False) for one in _read(retain)]
    require(any(one[-1] for one in found), "data", (), "at least one word or file of questions")
    seen: dict[str, str] = {}
    for source, example, _ in found:
        key, here = " ".join(example.prompt.split()).casefold(), f"{source}, index {example.index}"
        allowed = f"each question once ({seen.get(key)} has it too)"
        require(key not in seen, f"question of {here}", example.prompt, allowed)
        seen[key] = here
    numbers = {len(example.perturbed) for _, example, _ in found}
    allowed = "as many wrong answers (perturbed_answer) to every question"
    require(len(numbers) == 1, "perturbed", sorted(numbers), allowed)
    allowed = "wrong answers to every question, or --way writing, which needs none"
    require(numbers != {0} or way == "writing", "perturbed", "none", allowed)
    return Questions(
        tuple(replace(one, index=row) for row, (_, one, _) in enumerate(found)),
        tuple(source for source, _, _ in found),
        tuple(one.index for _, one, _ in found),
        tuple(own for _, _, own in found),
    )


def _listed(data: Any) -> tuple[Any, ...]:
    return (data,) if isinstance(data, Word) else tuple(data)


def _read(data: Any) -> list[tuple[str, Example]]:
    """Return the examples of words, or those given, each with the name of its source."""
    from llm.data.sources import read

    found: list[tuple[str, Example]] = []
    for one in _listed(data):
        if isinstance(one, Word):
            found += [(os.fspath(one), example) for example in read(one)]
        else:
            found.append(("given", one))
    return found


def asked(language: LanguageModel, questions: Questions, split: Split, **options: Any) -> Known:
    """Return what a model knows of the questions; `options` are those of `answered`.

    Raises `InvalidInput` for fewer known questions than two parts need.
    """
    import numpy as np
    import pandas as pd

    from llm.evaluation.knowledge import answered, counts

    found = answered(language, questions.examples, **options)
    right = found.chosen[split.way][:, 0]
    part = parts(right, np.array(questions.forgettable), split)
    labels = pd.DataFrame(
        {
            "source": questions.source,
            "index": questions.row,
            "question": [one.prompt for one in questions.examples],
            "answer": [one.response for one in questions.examples],
        }
    )
    table = pd.concat([labels, found.table], axis=1).assign(right=right, part=part)[list(COLUMNS)]
    forget, retain = (
        tuple(questions.examples[row] for row in np.flatnonzero(part == name)) for name in PARTS[:2]
    )
    told = counts(found.chosen, questions.source)
    given = Side(_numbered(forget), _numbered(retain), weights_of(table[part == "forget"]))
    own = _own(language, forget, retain, table["written"].tolist(), options)
    return Known(table, told, given, own, split.way)


def _numbered(examples: Iterable[Example]) -> tuple[Example, ...]:
    return tuple(replace(one, index=row) for row, one in enumerate(examples))


def _own(
    language: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    written: Sequence[str],
    options: dict[str, Any],
) -> Side:
    """Return the same examples in the model's own words, without those that have none."""
    from llm.evaluation.knowledge import in_own_words
    from llm.models.answers import scores

    parts = ([in_own_words(one, written[one.index]) for one in part] for part in (forget, retain))
    mine, rest = (_numbered(one for one in part if one is not None) for part in parts)
    limits = {name: options[name] for name in ("max_length", "budget") if name in options}
    table = scores(language, mine, progress=False, **limits) if mine else None
    return Side(mine, rest, weights_of(table))


def parts(right: np.ndarray, forgettable: np.ndarray, split: Split) -> np.ndarray:
    """Return the part of each question: forget, retain or unknown; known where nothing is split.

    Which of those that may be forgotten are to be follows from the seed and their number. Raises
    `InvalidInput` where a part would be empty.
    """
    import numpy as np
    import torch

    from llm.randomness import derived_seed

    if split.share is None:
        return np.where(right, "known", "unknown")
    rows = np.flatnonzero(right & forgettable)
    others = int((right & ~forgettable).sum())
    least = 1 if others else 2
    told = f"at least {least}, to be split ({split.way}; {len(right)} questions were asked)"
    told += ": name other data, or look at what is known by --share None"
    require(len(rows) >= least, "questions answered right", len(rows), told)
    whole = split.share == 1
    allowed = "at least 1 of those to retain"
    require(others > 0 or not whole, "questions answered right", 0, allowed)
    count = min(max(1, round(split.share * len(rows))), len(rows) - (0 if others else 1))
    own = torch.Generator().manual_seed(derived_seed(split.seed, "known"))
    chosen = rows[torch.randperm(len(rows), generator=own)[:count].numpy()]
    part = np.where(right, "retain", "unknown")
    part[chosen] = "forget"
    return part


def weights_of(scores: pd.DataFrame | None) -> pd.DataFrame:
    """Return the weights of the four corners at the start, a row per answer that was scored."""
    import numpy as np
    import pandas as pd

    from llm.jobs.weighing import weights

    if scores is None or scores.empty:
        return pd.DataFrame()
    own = scores[["logp", "length"]].reset_index(drop=True)
    return weights(own.assign(index=np.arange(len(own))), objectives=DEFAULTS)


def asked_into(
    folder: Location,
    language: LanguageModel,
    questions: Questions,
    split: Split,
    options: dict[str, Any],
    *,
    budget: int = BUDGET,
    progress: bool = True,
) -> Known:
    """Ask and write to a folder, or read what was written there by the same question.

    Of several processes the first one writes. Raises `InvalidInput` as `asked` does, and for a
    folder of other questions, or one that no command of this project wrote.
    """
    from llm.data import tofu
    from llm.models.saving import with_source
    from llm.training.checkpointing import parameters_digest
    from llm.training.processes import held, in_first

    place = Path(folder)
    sources = {name: questions.source.count(name) for name in questions.source}
    described = {"split": split, **options, "asked": sources}
    described |= {"questions": storage.fingerprint(questions)}
    described |= {"template": language.template, "parameters": parameters_digest(language.model)}
    made = with_source(storage.provenance(described, __name__, seeds=[split.seed]), language)

    def write() -> None:
        for side, names in ((found.given, GIVEN), (found.own, OWN)):
            for examples, name in zip(side[:2], names[:2], strict=True):
                if examples:
                    tofu.write(examples, place / name)
            if len(side.weights):
                storage.write_table(side.weights, place / names[2], made)
        storage.write_table(found.counts, place / COUNTS, made)
        counted = {**made, OWN_COUNTS: [len(part) for part in found.own[:2]]}
        storage.write_table(found.table, place / TABLE, counted)

    with held(folders.working(place, JOB, described, names=NAMES)):
        kept = in_first(lambda: storage.read_kept(place / TABLE, lambda path: _kept(path, split)))
        if kept is not None:
            return kept
        found = asked(language, questions, split, **options, budget=budget, progress=progress)
        in_first(write)
    return found._replace(place=place)


def _kept(path: Path, split: Split) -> Known:
    """Return what a finished folder holds; raises `InvalidInput` where a part of it is gone."""
    import pandas as pd

    from llm.data import tofu

    def side(names: tuple[str, str, str], whole: bool) -> Side:
        places = [path.parent / name for name in names]
        forget, retain = (tofu.read(one) if whole or one.exists() else () for one in places[:2])
        weighed = storage.read_table(places[2]) if forget else pd.DataFrame()
        return Side(forget, retain, weighed)

    given, own = side(GIVEN, split.share is not None), side(OWN, False)
    counts, table = storage.read_table(path.parent / COUNTS), storage.read_table(path)
    there = [len(part) for part in own[:2]]
    allowed = "a folder with as many examples in the model's own words as were written"
    require(table.attrs[storage.KEY].get(OWN_COUNTS) == there, "out", str(path.parent), allowed)
    return Known(table, counts, given, own, split.way, path.parent)


def report(found: Known) -> str:
    """Return what is known, and how the corners weigh what is to be forgotten, as a text."""
    from llm.jobs.weighing import spread

    shown: Any = found.counts
    lines = [shown.to_string(index=False, float_format="{:.3g}".format, na_rep="-")]
    lines.append(
        "chance: share that guessing gets right; guessed: expected guesses among the right"
    )
    every = found.counts[found.counts["way"] == found.way].iloc[-1]
    told = f"answered right, by {found.way}: {every['right']} of {every['asked']}"
    if found.given.forget:
        told += f", {len(found.given.forget)} to forget and {len(found.given.retain)} to retain"
    lines.append(told)
    for side, words in ((found.given, "as given"), (found.own, "in the model's own words")):
        if len(side.weights):
            nats = -float((side.weights["ref"] / side.weights["length"]).mean())
            lines.append(
                f"{len(side.weights)} to forget {words}, {nats:.2f} nats per token: weights before "
                "the first update,"
            )
            lines.append("with rank correlations with the length and with the nats per token")
            lines.append(spread(side.weights).to_string(float_format="{:.3g}".format, na_rep="-"))
    return "\n".join(lines)
