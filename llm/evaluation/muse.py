"""MUSE's measures of an unlearned model: what it still recites, knows and gives away.

    VerbMem    100 x mean ROUGE-L F1 between the greedy continuation of a passage's beginning and
               how the passage really goes on, both of at most 128 tokens; those of the truth
               include the token that begins a text, if there is one
    KnowMem    100 x mean ROUGE-L F1 of greedy answers of at most 32 tokens, after some questions
               with their answers; one value for questions on what was to be forgotten, one for
               questions on what was to be retained
    PrivLeak   see `llm.evaluation.membership`

ROUGE is taken without the stemmer. A model that writes nothing scores 0, and `empty` counts how
often it did.

Long texts are unlearnt in pieces of one length (`llm.scoring.documents`). Each is a response
without a prompt, and enters by its log-probability, where MUSE's released code puts raw logits.
Where all pieces have one length L, that law with beta and retain weight r is L times the same law
normalised by the length, with beta L and r / L. So whatever dividing by the length can do there,
beta and the retain weight can do as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from llm.data.muse import MuseData, Passage
from llm.data.news.corpus import QuestionAndAnswer
from llm.evaluation.membership import K, Membership, auc_interval, leakage, membership
from llm.evaluation.rouge import Words, check_words, rouge
from llm.intervals import LEVEL, Estimate, bootstrap
from llm.models.language_model import LanguageModel
from llm.scoring.documents import pieces, start_of
from llm.scoring.encoding import BUDGET
from llm.scoring.limits import writing_budget
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import Unlearned, Unlearning, unlearn
from llm.writing.continuations import continuations
from markov.errors import require, require_all_whole, require_number
from markov.files.storage import Location

STOPS = ("\n\n", "\nQuestion", "Question:")
COLUMNS = ("measure", "split", "value", "low", "high", "items", "empty")
ESTIMATE = ("value", "low", "high", "items")


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How the measures are taken.

    The defaults are MUSE's, except for intervals, which MUSE does not have. `words` says what ROUGE
    takes for a word (see `llm.evaluation.rouge`). Texts are cut to `max_length` tokens for
    PrivLeak, if one is given. Raises `InvalidInput` for values that are not allowed.
    """

    verbmem_tokens: int = 128
    knowmem_tokens: int = 32
    k: float = K
    words: Words = "latin"
    max_length: int | None = None
    budget: int = BUDGET
    resamples: int = 1000
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        require_all_whole(self, verbmem_tokens=2, knowmem_tokens=1, budget=1, resamples=100, seed=0)
        if self.max_length is not None:
            require_all_whole(self, max_length=2)
        check_words(self.words)
        require_number(self.k, "k", lambda number: 0 < number <= 1, "a share > 0, at most 1")
        require_number(
            self.level, "level", lambda number: 0 < number < 1, "a number between 0 and 1"
        )


UNITS = {
    "verbmem": "% ROUGE-L F1",
    "knowmem": "% ROUGE-L F1",
    "privleak": "%",
    "auc": "",
    "auc_retrained": "",
}
ORIENTATION = (
    "AUC: share of pairs in which the held-out text looks better known; 0: forget texts "
    "known by heart"
)
DIRECTION = (
    "PrivLeak: change of the AUC from the retrained model's; 0 is ideal, below too little "
    "forgotten, above too much"
)


class Measured(NamedTuple):
    """What was measured of a model.

    `items` has a row per item:

        measure       verbmem, knowmem or min_k
        split         forget or retain; for min_k forget or holdout
        index         its place in the data
        value         percent; for min_k a score in nats per token
        text          what the model wrote

    `table` has a row per measure and split: `value` with its bounds `low` and `high`, the number of
    `items` and of those that are `empty`. Its measures are verbmem, knowmem and auc and, where a
    retrained model's scores were given, privleak and auc_retrained. `membership` are this model's
    own scores, with which other models are compared if it is the retrained one.
    """

    items: pd.DataFrame
    table: pd.DataFrame
    membership: Membership

    def __repr__(self) -> str:
        return report(self)

    def of(self, measure: str, split: str) -> Estimate:
        """Return one row of the table; raises `InvalidInput` for a measure that was not taken."""
        row = self.table[self.table["measure"].eq(measure) & self.table["split"].eq(split)]
        require(len(row) == 1, "measure", (measure, split), "one that was taken")
        value, low, high, items = (row[name].iloc[0] for name in ESTIMATE)
        return Estimate(float(value), float(low), float(high), int(items))


def question_prompt(question: str, shown: Sequence[QuestionAndAnswer]) -> str:
    """Return the prompt of a question: the questions shown with their answers, then the one asked.

    It ends with a blank, as MUSE's does.
    """
    before = "".join(f"Question: {pair.question}\nAnswer: {pair.answer}\n\n" for pair in shown)
    return f"{before}Question: {question}\nAnswer: "


def until_stop(text: str, stops: Sequence[str] = STOPS) -> str:
    """Return the part of a text before the first of the stops."""
    return text[
        : min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
    ]


def recited(
    language: LanguageModel,
    passages: Sequence[Passage],
    settings: Measuring,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Return VerbMem of each passage: `index`, `value` (percent) and `text`."""
    count, tokenizer = settings.verbmem_tokens, language.tokenizer
    room = count - len(start_of(tokenizer))
    truths = [_text(tokenizer, _tokens(tokenizer, passage.gt)[:room]) for passage in passages]
    return _written(
        language, [passage.prompt for passage in passages], truths, count, settings, (), progress
    )


def answered(
    language: LanguageModel,
    questions: Sequence[QuestionAndAnswer],
    shown: Sequence[QuestionAndAnswer],
    settings: Measuring,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Return KnowMem of each question: `index`, `value` (percent) and `text`."""
    prompts = [question_prompt(pair.question, shown) for pair in questions]
    truths = [pair.answer for pair in questions]
    return _written(language, prompts, truths, settings.knowmem_tokens, settings, STOPS, progress)


def _written(
    language: LanguageModel,
    prompts: Sequence[str],
    truths: Sequence[str],
    count: int,
    settings: Measuring,
    stops: Sequence[str],
    progress: bool,
) -> pd.DataFrame:
    tokenizer = language.tokenizer
    tokens = [[*start_of(tokenizer), *_tokens(tokenizer, prompt)] for prompt in prompts]
    budget = writing_budget(settings.budget)
    new = continuations(
        language.model, tokenizer, tokens, max_new_tokens=count, budget=budget, progress=progress
    )
    texts = [until_stop(_text(tokenizer, own), stops) for own in new]
    values = 100 * rouge(truths, texts, stemmer=False, words=settings.words)["rougeL_f1"]
    return pd.DataFrame({"index": np.arange(len(texts)), "value": values, "text": texts})


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True)


def evaluate_muse(
    language: LanguageModel,
    data: MuseData,
    *,
    retrained: Membership | None = None,
    settings: Measuring | None = None,
    progress: bool = True,
) -> Measured:
    """Return all measures of one model.

    `retrained` is `Measured.membership` of the model that never read the forget texts. A mean's
    interval is that of items drawn with replacement. Raises `InvalidInput` as `continuations`,
    `text_scores` and `leakage` do.
    """
    settings = settings or Measuring()
    options: dict[str, Any] = dict(
        k=settings.k, max_length=settings.max_length, budget=settings.budget
    )
    # Scored first, so that texts that do not fit the model are known before hours of writing.
    own = membership(
        language, data.privleak_forget, data.privleak_holdout, **options, progress=progress
    )
    parts = {
        ("verbmem", "forget"): recited(language, data.verbmem, settings, progress=progress),
        ("knowmem", "forget"): answered(
            language, data.forget_qa, data.forget_qa_icl, settings, progress=progress
        ),
        ("knowmem", "retain"): answered(
            language, data.retain_qa, data.retain_qa_icl, settings, progress=progress
        ),
    }
    rows = [
        (*key, *_mean(part["value"].to_numpy(), settings), _empty(part))
        for key, part in parts.items()
    ]
    for split, scores in own._asdict().items():
        parts["min_k", split] = pd.DataFrame(
            {"index": np.arange(len(scores)), "value": scores, "text": None}
        )
    resampling: dict[str, Any] = dict(
        resamples=settings.resamples, seed=settings.seed, level=settings.level
    )
    found = {"auc": auc_interval(own, **resampling)} if retrained is None else {}
    found |= leakage(own, retrained, **resampling)._asdict() if retrained is not None else {}
    rows += [(measure, "forget", *estimate, 0) for measure, estimate in found.items()]
    items = pd.concat(
        [part.assign(measure=key[0], split=key[1]) for key, part in parts.items()],
        ignore_index=True,
    )
    return Measured(
        items[["measure", "split", "index", "value", "text"]],
        pd.DataFrame(rows, columns=COLUMNS),
        own,
    )


def _mean(values: np.ndarray, settings: Measuring) -> Estimate:
    """Return the mean with its interval.

    Raises `InvalidInput` for no value, or one that is not finite.
    """
    bad = int((~np.isfinite(values)).sum())
    require(
        len(values) > 0 and not bad,
        "values",
        f"{bad} of {len(values)} not finite",
        "finite numbers, at least one",
    )
    return bootstrap(
        partial(np.mean, axis=-1),
        values,
        resamples=settings.resamples,
        seed=settings.seed,
        level=settings.level,
        least=1,
    )


def _empty(part: pd.DataFrame) -> int:
    return int((part["text"].str.strip() == "").sum())


def numbers(found: Measured) -> dict[str, float]:
    """Return the table as numbers by name.

    A value is named MEASURE_SPLIT, and its bounds are named the same with _low and _high.
    """
    rows = {f"{row['measure']}_{row['split']}": row for row in found.table.to_dict("records")}
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {
        f"{name}{end}": float(row[key]) for name, row in rows.items() for key, end in ends.items()
    }


def every_epoch(
    language: LanguageModel,
    data: MuseData,
    *,
    retrained: Membership | None,
    settings: Measuring | None = None,
    epochs: Collection[int] | None = None,
) -> Measure[nn.Module]:
    """Return a measure that gives all `numbers` for the table of a run, after all epochs or some.

    After the other epochs it gives none. `language` is the model that is unlearned, from which the
    name and the tokenizer are taken.
    """
    chosen = settings or Measuring()

    def call(epoch: int, model: Any) -> dict[str, float]:
        if epochs is not None and epoch not in epochs:
            return {}
        now = language._replace(model=model)
        return numbers(
            evaluate_muse(now, data, retrained=retrained, settings=chosen, progress=False)
        )

    return Measure(f"muse {chosen}, epochs {epochs and sorted(epochs)}", call)


def unlearn_texts(
    language: LanguageModel,
    data: MuseData,
    settings: Unlearning,
    *,
    length: int,
    measure: Measure[nn.Module] | None = None,
    state: Location | None = None,
    parameters: str | None = None,
    progress: bool = True,
) -> Unlearned:
    """Unlearn `raw_forget` while keeping `raw_retain1`, in pieces of `length` tokens.

    The model is changed in place, as by `unlearn`. With the folder `state` a run that was killed
    goes on. `parameters` is the digest of the model as it is now, where it is known. Raises
    `InvalidInput` as `pieces` and `unlearn` do.
    """
    forget, retain = (
        pieces(language.tokenizer, texts, length=length)
        for texts in (data.raw_forget, data.raw_retain1)
    )
    return unlearn(
        language.model,
        forget,
        retain,
        settings,
        measure=measure,
        state=state,
        parameters=parameters,
        progress=progress,
    )


def as_json(found: Measured) -> dict[str, Any]:
    """Return what was measured as plain values.

    Values of VerbMem and KnowMem are named MEASURE_SPLIT and others MEASURE; intervals and numbers
    of items have the same names.
    """
    rows = {_name(row): row for row in found.table.to_dict("records")}
    return {name: row["value"] for name, row in rows.items()} | {
        "intervals": {name: [row["low"], row["high"]] for name, row in rows.items()},
        "items": {name: int(row["items"]) for name, row in rows.items()},
        "empty": {name: int(row["empty"]) for name, row in rows.items()},
        "orientation": ORIENTATION,
    }


def _name(row: dict[Any, Any]) -> str:
    with_split = row["measure"] in ("verbmem", "knowmem")
    return f"{row['measure']}_{row['split']}" if with_split else str(row["measure"])


def report(found: Measured) -> str:
    """Return what was measured as a text to read."""
    lines = ["in brackets 95% intervals over items"]
    for row in found.table.to_dict("records"):
        held = f"({row['low']:.3f} to {row['high']:.3f})"
        empty = f", {row['empty']} answered by nothing" if row["empty"] else ""
        name, unit = row["measure"], UNITS[row["measure"]]
        lines.append(
            f"{name:<15}{row['split']:<8}{row['value']:>9.3f} {held:<22}{unit:<14}{row['items']} "
            f"items{empty}"
        )
    lines.append(ORIENTATION)
    privleak = "privleak" in set(found.table["measure"])
    lines.append(
        DIRECTION
        if privleak
        else "no PrivLeak: name the model that never read the forget texts, --retrained"
    )
    return "\n".join(lines)
