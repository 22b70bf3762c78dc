"""Score every answer of a data set under a model: an evaluation log computed instead of read.

The truth, its paraphrase and the wrong answers are scored together. The `layout` of such a log
is `scored`, and its `file` names the model. What a model writes itself, and with it rouge, is not
part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from llm.data.tofu import Example
from llm.diagnostics.scores import score_table
from llm.logs.log import MEMORISED, Answers, EvaluationLog
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import BUDGET, MAX_LENGTH, Encoded, encode_examples
from llm.scoring.finite import Named
from llm.scoring.greedy import greedy_scores
from llm.scoring.logprobs import score_encoded
from llm.scoring.shared import score_responses
from markov.errors import InvalidInput, require

LAYOUT = "scored"
PERTURBED = "perturbed_"


def answer_log(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> EvaluationLog:
    """Return the losses of each example's response, paraphrase and perturbed responses.

    Beside them stands how much of the response is memorised (`llm.logs.measures`). Losses are in
    nats and in the order of the examples. If an example has no paraphrase, its
    response takes the place of one, as in TOFU's sets of real authors and world facts. If no
    example has perturbed responses, the log has none. No text is scored twice, and a prompt is read
    once for all answers to it where the model allows it (`llm.scoring.shared`). Raises
    `InvalidInput` as `encode_examples` and `score_encoded` do, and for examples that differ in
    their numbers of perturbed responses.
    """
    columns = encoded_columns(language, examples, max_length)
    texts, rows = distinct(columns)
    kinds = ("gold", "paraphrased", *(f"{PERTURBED}{place}" for place in range(len(columns) - 2)))
    names = [f"{example.index} ({kind})" for kind in kinds for example in examples]
    # A text is called after the first example that has it.
    called = dict(zip(reversed(rows), reversed(names), strict=True))
    named = Named([called[text] for text in range(len(texts))], language.name)
    seq = score_responses(
        language.model, texts, greedy_scores, budget=budget, progress=progress, named=named
    )
    # A column per kind of answer: the response, its paraphrase, then the perturbed ones.
    shape = (len(columns), len(examples))
    total, length = (part[rows].double().reshape(shape).numpy() for part in (-seq.logp, seq.length))
    gold, paraphrased = (
        Answers(total[row] / length[row], total[row], length[row]) for row in (0, 1)
    )
    wrong, count = total[2:].T, length[2:].T
    own = rows[: len(examples)]  # the responses themselves
    shares = (part[own].double().numpy() / length[0] for part in (seq.right, seq.tail))
    log = EvaluationLog(
        file=language.name,
        layout=LAYOUT,
        index=np.array([example.index for example in examples]),
        gold=gold,
        paraphrased=paraphrased,
        perturbed=Answers(wrong / count, wrong, count) if len(columns) > 2 else None,
        memorised=dict(zip(MEMORISED, shares, strict=True)),
    )
    return with_texts(log, language, examples, columns[0])


def with_texts(
    log: EvaluationLog,
    language: LanguageModel,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
) -> EvaluationLog:
    """Return the log of some examples, in their order, with their questions, prompts and answers.

    `encoded` are the tokens of each example's prompt and response (see `responses`).
    """
    return log._replace(
        question=tuple(example.prompt for example in examples),
        prompt=tuple(_prompt(language, one) for one in encoded),
        answer=tuple(example.response for example in examples),
    )


def _prompt(language: LanguageModel, encoded: Encoded) -> str:
    """Return the prompt as its tokens read, without tokens that only mark a start or an end.

    This is how open-unlearning's logs store it.
    """
    return str(
        language.tokenizer.decode(list(encoded.tokens[: encoded.prompt]), skip_special_tokens=True)
    )


def log_table(log: EvaluationLog) -> pd.DataFrame:
    """Return a log of answers as a tidy table.

    The columns are `index`, `answer` (gold, paraphrased, perturbed_0, ...), `logp` and `length`,
    and those of `MEMORISED`, if the log has them, which are nan but for gold answers. Raises
    `InvalidInput` for a log without numbers of scored tokens.
    """
    columns = {"gold": _counted(log, log.gold)}
    if log.paraphrased is not None:
        columns["paraphrased"] = _counted(log, log.paraphrased)
    if log.perturbed is not None:
        total, length = _counted(log, log.perturbed)
        columns |= {
            f"{PERTURBED}{place}": pair
            for place, pair in enumerate(zip(total.T, length.T, strict=True))
        }
    frames = [
        pd.DataFrame({"index": log.index, "answer": name, "logp": -total, "length": length})
        for name, (total, length) in columns.items()
    ]
    frames[0] = frames[0].assign(**log.memorised)
    return pd.concat(frames, ignore_index=True)


def log_of(table: pd.DataFrame, file: str) -> EvaluationLog:
    """Return the log of a table that `log_table` made, examples by ascending index.

    `file` names the model. Raises `InvalidInput` for what `llm.schemas.Answered` does not allow,
    for an answer that comes twice or is of no known kind, and for one that some examples lack.
    """
    # Here, because building the schemas takes as long as answering --help.
    from llm.schemas import Answered, check_table

    table = check_table(Answered, table, "answers", file)
    twice = table.duplicated(["index", "answer"])
    if twice.any():
        first = table[twice].iloc[0]
        raise InvalidInput(
            "answers, index", int(first["index"]), f"each {first['answer']} answer once in {file}"
        )
    kinds = set(table["answer"])
    wrong = [
        f"{PERTURBED}{place}" for place in range(sum(kind.startswith(PERTURBED) for kind in kinds))
    ]
    odd = sorted(kinds - {"gold", "paraphrased", *wrong})
    require(
        not odd,
        "answers, answer",
        odd[:1],
        f"gold, paraphrased, {PERTURBED}0, {PERTURBED}1, ... in {file}",
    )
    require("gold" in kinds, "answers, answer", sorted(kinds), f"gold among them in {file}")
    counts = table["answer"].value_counts()
    fewest, most = str(counts.idxmin()), table["index"].nunique()
    allowed = f"as many answers of each kind as there are examples, {most}, in {file}"
    require(int(counts.min()) == most, f"answers, {fewest}", int(counts.min()), allowed)
    wide = table.pivot(index="index", columns="answer", values=["logp", "length"])

    def answers(names: str | list[str]) -> Answers:
        total, length = (
            -wide["logp"][names].to_numpy(dtype=float),
            wide["length"][names].to_numpy(dtype=float),
        )
        return Answers(total / length, total, length)

    gold = table[table["answer"] == "gold"].sort_values("index")
    # Where none has a value, the log of another model in the same table had them.
    known = [name for name in MEMORISED if name in gold and gold[name].notna().any()]
    memorised = {name: gold[name].to_numpy(dtype=float) for name in known}
    for name, values in memorised.items():
        lacking = int(np.isnan(values).sum())
        require(not lacking, f"answers, {name}", lacking, f"no gold answer without it in {file}")
    return EvaluationLog(
        file=file,
        layout=LAYOUT,
        index=wide.index.to_numpy(),
        gold=answers("gold"),
        paraphrased=answers("paraphrased") if "paraphrased" in kinds else None,
        perturbed=answers(wrong) if wrong else None,
        memorised=memorised,
    )


def _counted(log: EvaluationLog, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    if answers.total is None or answers.length is None:
        raise InvalidInput(
            "length", None, f"numbers of scored tokens in {log.file}: it stores means only"
        )
    return answers.total, answers.length


def encoded_columns(
    language: LanguageModel, examples: Sequence[Example], max_length: int
) -> list[list[Encoded]]:
    """Return the tokens of all answers that `answer_log` scores: a list of examples per kind.

    Raises `InvalidInput` as `answer_log` does.
    """
    require(len(examples) > 0, "examples", examples, "at least one")
    counts = {len(example.perturbed) for example in examples}
    require(
        len(counts) == 1,
        "perturbed",
        sorted(counts),
        "as many perturbed responses for every example",
    )
    columns = [
        list(examples),
        [replace(one, response=one.paraphrase or one.response) for one in examples],
        *(
            [replace(one, response=one.perturbed[place]) for one in examples]
            for place in range(counts.pop())
        ),
    ]
    # Column by column, so that an error names the example by its place in the data set.
    return [
        encode_examples(language.tokenizer, language.template, column, max_length=max_length)
        for column in columns
    ]


def distinct(columns: Sequence[Sequence[Encoded]]) -> tuple[list[Encoded], list[int]]:
    """Return the texts of some columns, each once, and which of them stands where.

    The places are in the order of the columns, one below the other.
    """
    found: dict[Encoded, int] = {}
    rows = [found.setdefault(one, len(found)) for column in columns for one in column]
    return list(found), rows


def responses(
    language: LanguageModel, examples: Sequence[Example], *, max_length: int = MAX_LENGTH
) -> list[Encoded]:
    """Return the tokens of each example's prompt and response in the model's template."""
    return encode_examples(language.tokenizer, language.template, examples, max_length=max_length)


def scores(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> pd.DataFrame:
    """Return a table of scores (`llm.diagnostics.scores`) of each example's response.

    The columns are `index`, `logp` (nats) and `length`. Raises `InvalidInput` as `encode_examples`
    and `score_encoded` do.
    """
    encoded = responses(language, examples, max_length=max_length)
    named = Named([example.index for example in examples], language.name)
    seq = score_encoded(language.model, encoded, budget=budget, progress=progress, named=named)
    return score_table(seq, np.array([example.index for example in examples]))
