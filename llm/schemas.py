"""Schemas of the tables and logs that are read, and one-line errors for values that do not fit.

There is one schema per kind of file: a pydantic model whose fields are columns. A column is a list
of values in the order of the rows, or a mapping from the index of an example to its value. Values
are not converted: text is not a number, and neither is true, nor a date. `checked` returns the
columns as declared, or raises `InvalidInput`, which names the column, the row, the value and what
may stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from markov import errors
from markov.errors import InvalidInput, require

# Rounding of a logit may push a probability of 1 above 1: float32 numbers near 100 lie 8e-6 apart.
# A log-probability that is above 0 by no more than this (nats) counts as 0.
ROUNDING = 1e-5
# No loss of a float32 model exceeds it, and sums and means of such losses are finite.
LARGEST = 1e40
MOST_TOKENS = 2**31 - 1
# Floats are exact for whole numbers up to here, and an index may have been a float for a time.
LARGEST_INDEX = 2**53
WIDEST = 80  # characters of a value in an error message


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _share_or_nan(value: float) -> float:
    if not (value != value or 0 <= value <= 1):  # nan is the one number that is not itself
        raise ValueError("neither")
    return value


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _writable(text: str) -> str:
    text.encode()  # fails for half of a surrogate pair, which no file in UTF-8 can hold
    return text


Index = Annotated[
    int,
    BeforeValidator(_whole),
    Field(strict=True, ge=0, le=LARGEST_INDEX, description="a whole number of at least 0"),
]
Tokens = Annotated[
    int,
    BeforeValidator(_whole),
    Field(
        strict=True,
        ge=1,
        le=MOST_TOKENS,
        description=f"a number of tokens, a whole number >= 1, at most {MOST_TOKENS}",
    ),
]
LogProb = Annotated[
    float,
    Field(
        strict=True,
        ge=-LARGEST,
        le=ROUNDING,
        allow_inf_nan=False,
        description="a log-probability, a finite number of at most 0",
    ),
    AfterValidator(lambda value: min(value, 0.0)),
]
Loss = Annotated[
    float,
    Field(
        strict=True,
        ge=-ROUNDING,
        le=LARGEST,
        allow_inf_nan=False,
        description="a loss >= 0, one finite number",
    ),
    AfterValidator(lambda value: max(value, 0.0)),
]
Share = Annotated[
    float,
    Field(strict=True, ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1"),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, description="a finite number")]
Measured = Annotated[
    float, Field(strict=True, description="a number, nan where it was not measured")
]
MeasuredShare = Annotated[
    float,
    Field(strict=True, description="a number from 0 to 1, nan where it was not measured"),
    AfterValidator(_share_or_nan),
]
Text = Annotated[
    str,
    Field(strict=True, description="text that can be written"),
    AfterValidator(_writable),
]
Truth = Annotated[bool, Field(strict=True, description="True or False")]
Status = Annotated[
    Literal["ok", "not forgetting", "collapsed", "nan"],
    Field(description="ok, not forgetting, collapsed or nan"),
]

Value = TypeVar("Value")
# Only the first value that does not fit is reported; the others are not looked at.
Column = Annotated[list[Value], Field(fail_fast=True)]
# One value per wrong answer; a single value may also stand without a list around it.
PerAnswer = Annotated[list[Value], BeforeValidator(_one_or_more), Field(min_length=1)]


class Schema(BaseModel):
    """What every table and log shares: columns beyond the declared ones may be present."""

    model_config = ConfigDict(extra="ignore")


class Scores(Schema):
    """Scores of one model, as `python -m llm score` writes them: a row per example."""

    index: Column[Index]
    logp: Column[LogProb]
    length: Column[Tokens]


class Answered(Scores):
    """Scores of every kind of answer, a row per example and answer: a run's answers.parquet."""

    answer: Column[Text]
    exact_memorization: Column[MeasuredShare] | None = None
    extraction_strength: Column[MeasuredShare] | None = None


class ByRelearning(Answered):
    """What a relearning attack brings back: scores with a row per epoch, example and answer."""

    epoch: Column[Index]
    relearned: Column[Truth]


class ByEpoch(Scores):
    """A run's examples.parquet: a row per epoch and forget example.

    Beside the scores stand the examples' needs and what else was asked for.
    """

    epoch: Column[Index]
    ref: Column[LogProb]
    retrained: Column[LogProb] | None = None
    needed: Column[Number] | None = None
    needed_per_token: Column[Number] | None = None
    preferred_logp: Column[LogProb] | None = None
    preferred_length: Column[Tokens] | None = None
    preferred_ref: Column[LogProb] | None = None
    gradient_norm: Column[Measured] | None = None


class Epochs(Schema):
    """A run's epochs.parquet: a row per epoch.

    The numbers in the last row of a run that diverged are nan.
    """

    epoch: Column[Index]
    step: Column[Index]
    learning_rate: Column[Measured]
    forget_loss: Column[Measured]
    forget_nll: Column[Measured] | None = None
    retain_loss: Column[Measured]
    gradient_norm: Column[Measured]
    status: Column[Status]


class Learning(Schema):
    """The epochs.parquet of a fine-tuning: a row per epoch."""

    epoch: Column[Index]
    step: Column[Index]
    learning_rate: Column[Number]
    loss: Column[Number]


class Memorised(Schema):
    """The memorised.parquet of a fine-tuning: a row per epoch and set of examples."""

    epoch: Column[Index]
    set: Column[Text]
    examples: Column[Index]
    nats_per_token: Column[Measured]
    probability: Column[Measured]
    recited: Column[Measured]


class Log(Schema):
    """One task of an evaluation log, each measure by the index of its example.

    The names are those of `llm.logs.reading`.
    """

    avg_gt_loss: dict[Index, Loss]
    gt_loss: dict[Index, Loss] | None = None
    num_token_gt: dict[Index, Tokens] | None = None
    gt_prob: dict[Index, Share] | None = None
    avg_paraphrased_loss: dict[Index, Loss] | None = None
    paraphrased_loss: dict[Index, Loss] | None = None
    num_token_paraphrased: dict[Index, Tokens] | None = None
    paraphrased_prob: dict[Index, Share] | None = None
    average_perturb_loss: dict[Index, PerAnswer[Loss]] | None = None
    perturb_loss: dict[Index, PerAnswer[Loss]] | None = None
    num_token_perturb: dict[Index, PerAnswer[Tokens]] | None = None
    perturb_prob: dict[Index, PerAnswer[Share]] | None = None
    rouge1_recall: dict[Index, Share] | None = None
    rougeL_recall: dict[Index, Share] | None = None  # noqa: N815
    exact_memorization: dict[Index, Share] | None = None
    extraction_strength: dict[Index, Share] | None = None
    question: dict[Index, Text] | None = None
    generated_text: (
        dict[
            Index,
            Annotated[
                list[Text],
                Field(
                    min_length=3,
                    max_length=3,
                    description="prompt, generation and truth, three texts",
                ),
            ],
        ]
        | None
    ) = None


class Law(Schema):
    """What was minimised, as provenance says it."""

    model_config = ConfigDict(extra="allow")
    kind: Annotated[
        Literal["Objective", "Preference"],
        Field(alias="class", description="Objective or Preference"),
    ]
    beta: Number
    gamma: Number
    reference: Number
    normalize: Number


class Unlearned(Schema):
    """How a run was optimised, as provenance says it."""

    objective: Annotated[Law, Field(description="an objective with its numbers")]


class RunSettings(Schema):
    """The settings in the provenance of a run."""

    unlearning: Annotated[Unlearned, Field(description="settings with an objective")]


class FinetunedSettings(Schema):
    """The settings in the provenance of a fine-tuning."""


Kind = TypeVar("Kind", bound=Schema)


def check_settings(
    schema: type[Schema], provenance: Mapping[str, Any], field: str, where: str
) -> Mapping[str, Any]:
    """Return the settings in a provenance; raises `InvalidInput` for what the schema forbids.

    `where` names the file that the provenance lies in.
    """
    found = provenance.get("settings")
    try:
        schema.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in ("settings", *first["loc"]))
        allowed = f"a table whose provenance says how it was made ({place}: {first['msg']})"
        raise InvalidInput(field, where, allowed) from None
    assert isinstance(found, Mapping)
    return found


def checked(
    schema: type[Kind],
    columns: Mapping[str, Any],
    where: str,
    *,
    row: Callable[[str, Any], str],
    names: Mapping[str, str],
) -> Kind:
    """Return the columns as the schema declares them.

    `where` names the file. `row` returns what a place in a column is called, and `names` maps a
    column to what it is called if that differs from its own name. Raises `InvalidInput` for the
    first value that does not fit.
    """
    try:
        return schema.model_validate(dict(columns))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    column, *place = first["loc"]
    name = names.get(str(column), str(column))
    allowed = described(schema.model_json_schema()["properties"][column]) or first["msg"]
    field = f"{name} of {row(str(column), place[0])}" if place else name
    field += f", answer {place[1]}" if len(place) > 1 and isinstance(place[1], int) else ""
    raise InvalidInput(field, shown(first["input"]), f"{allowed} in {where}")


def check_table(schema: type[Schema], frame: pd.DataFrame, field: str, where: str) -> pd.DataFrame:
    """Return the table after checking the columns that the schema declares.

    All other columns stay as they are. `field` is what the table is called in error messages, and
    `where` names the file. Raises `InvalidInput` for a table without rows, for one that lacks a
    required column, and as `checked` does.
    """
    required = [name for name, known in schema.model_fields.items() if known.is_required()]
    lacking = [name for name in required if name not in frame]
    allowed = f"a table with the columns {', '.join(required)} ({', '.join(lacking)} missing)"
    require(not lacking, field, where, allowed)
    require(len(frame) > 0, field, where, "a table with at least one row (it has none)")
    present = [name for name in schema.model_fields if name in frame]
    values: dict[str, list[Any]] = {name: frame[name].tolist() for name in present}

    def row(column: str, place: int) -> str:
        known = (
            f" (index {shown(values['index'][place])})"
            if "index" in values and column != "index"
            else ""
        )
        return f"row {place}{known}"

    names = {name: f"{field}, {name}" for name in present}
    found = checked(schema, values, where, row=row, names=names)
    return frame.assign(**{name: _as(getattr(found, name), frame[name].dtype) for name in present})


def _as(values: list[Any], dtype: Any) -> np.ndarray:
    """Return the values as an array, in the type that they were stored in if that is numeric."""
    return np.array(values, dtype=dtype if getattr(dtype, "kind", "") in "iuf" else None)


def shown(value: Any) -> Any:
    """Return a value for an error message: itself if short and plain, else how its text begins."""
    text = " ".join(errors.shown(value).split())
    plain = value is None or isinstance(value, bool | int | float | str | list)
    return value if plain and len(text) <= WIDEST else text[:WIDEST]


def described(node: Any) -> str | None:
    """Return what may stand in a column, from the part of the JSON schema that declares it.

    This is the first description in that part.
    """
    if isinstance(node, Mapping):
        own = node.get("description")
        return own if isinstance(own, str) else _first(node.values())
    return _first(node) if isinstance(node, list) else None


def _first(nodes: Any) -> str | None:
    return next((found for found in map(described, nodes) if found), None)
