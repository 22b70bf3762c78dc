"""Tables that are read: what may stand in a column is declared, and what may not is named by
column, row and value.
"""

from __future__ import annotations

import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.diagnostics.scores import read_scores
from llm.models.answers import log_of
from llm.schemas import (
    LARGEST_INDEX,
    MOST_TOKENS,
    ROUNDING,
    WIDEST,
    Answered,
    ByEpoch,
    ByRelearning,
    Epochs,
    Log,
    Schema,
    Scores,
    check_table,
    checked,
)
from llm.training.settings import Optimization
from llm.unlearning.runs import ANSWERS, EPOCHS, EXAMPLES, read_run
from llm.unlearning.unlearn import Unlearning
from markov.errors import InvalidInput
from markov.files import storage
from markov.objectives import npo

ROOT = Path(__file__).parents[3]


def some_scores() -> pd.DataFrame:
    return pd.DataFrame({"index": [7, 5, 9], "logp": [-1.5, -20.0, -0.25], "length": [3, 30, 1]})


def with_cell(frame: pd.DataFrame, column: str, value: Any, row: int = 1) -> pd.DataFrame:
    values = [value if place == row else old for place, old in enumerate(frame[column].tolist())]
    return frame.assign(**{column: pd.Series(values, dtype=object)})


# What may not stand in a column of scores, and what the message says of it besides column and row.
REFUSED: list[tuple[str, Any, str]] = [
    ("logp", 0.5, "at most 0"),
    ("logp", 10 * ROUNDING, "at most 0"),
    ("logp", math.nan, "finite"),
    ("logp", -math.inf, "finite"),
    ("logp", "-1.5", "log-probability"),
    ("logp", True, "log-probability"),
    ("logp", None, "log-probability"),
    ("length", 2.5, "whole"),
    ("length", 0, ">= 1"),
    ("length", -3, ">= 1"),
    ("length", MOST_TOKENS + 1, f"at most {MOST_TOKENS}"),
    ("length", 1e300, f"at most {MOST_TOKENS}"),
    ("length", math.nan, "whole"),
    ("length", False, "whole"),
    ("length", "3", "whole"),
    ("length", pd.Timestamp("2026-01-01"), "whole"),
    ("length", Decimal(3), "whole"),
    ("length", pd.NA, "whole"),
    ("index", math.nan, "whole"),
    ("index", 5.5, "whole"),
    ("index", -1, "at least 0"),
    ("index", True, "whole"),
    ("index", "5", "whole"),
    ("index", 10**30, "whole"),
]


@pytest.mark.parametrize(("column", "value", "said"), REFUSED, ids=lambda value: repr(value)[:20])
def test_what_may_not_stand_in_a_column_is_named_by_column_row_and_value(
    column: str, value: Any, said: str
):
    with pytest.raises(InvalidInput) as caught:
        check_table(Scores, with_cell(some_scores(), column, value), "scores", "mine.parquet")
    known = "" if column == "index" else " (index 5)"
    assert caught.value.field == f"scores, {column} of row 1{known}"
    assert said in caught.value.allowed and caught.value.allowed.endswith(" in mine.parquet")
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


# Of these a parquet file has no column: whole numbers beyond 64 bits, and what pandas alone knows.
STORED = [case for case in REFUSED if case[1] is not pd.NA and case[1] != 10**30]


@pytest.mark.parametrize(("column", "value", "said"), STORED, ids=lambda value: repr(value)[:20])
def test_a_file_is_not_believed_either(tmp_path: Path, column: str, value: Any, said: str):
    path = tmp_path / "scores.parquet"
    frame = some_scores()
    frame[column] = pd.Series([value] * len(frame))
    frame.to_parquet(path)
    with pytest.raises(InvalidInput, match=f"reference, {column} of row 0") as caught:
        read_scores(path, "reference")
    assert said in caught.value.allowed and str(path) in caught.value.allowed


@given(
    st.lists(
        st.tuples(
            st.integers(0, LARGEST_INDEX),
            st.floats(-1e30, 0),
            st.integers(1, MOST_TOKENS),
        ),
        min_size=1,
        unique_by=lambda row: row[0],
    ),
    st.booleans(),
)
def test_what_may_stand_is_left_as_it_is(rows: list[tuple[int, float, int]], whole_floats: bool):
    frame = pd.DataFrame(rows, columns=["index", "logp", "length"]).assign(note="kept")
    if whole_floats:
        frame["length"] = frame["length"].astype(float)
    pd.testing.assert_frame_equal(check_table(Scores, frame, "scores", "a file"), frame)


def test_the_rounding_of_a_probability_of_one_counts_as_one():
    frame = with_cell(some_scores(), "logp", ROUNDING / 2).astype({"logp": float})
    assert check_table(Scores, frame, "scores", "a file")["logp"].tolist() == [-1.5, 0, -0.25]


def test_an_index_that_comes_twice_and_a_table_without_rows_are_refused(tmp_path: Path):
    path = tmp_path / "scores.parquet"
    with_cell(some_scores(), "index", 7, row=2).to_parquet(path)
    with pytest.raises(InvalidInput, match=r"scores, index of row 2 = 7 .*each index once"):
        read_scores(path, "scores")
    some_scores().head(0).to_parquet(path)
    with pytest.raises(InvalidInput, match="at least one row"):
        read_scores(path, "scores")


def test_a_long_value_is_cut_short():
    with pytest.raises(InvalidInput) as caught:
        check_table(Scores, with_cell(some_scores(), "length", "x" * 10_000), "scores", "a file")
    assert len(caught.value.value) == WIDEST  # pyright: ignore[reportArgumentType]


ANSWER = some_scores().assign(answer="gold")
EPOCH = some_scores().assign(epoch=0, ref=-1.0)
ROW = {
    "epoch": [0],
    "step": [0],
    "learning_rate": [math.nan],
    "forget_loss": [1.0],
    "retain_loss": [math.nan],
}
LAST = pd.DataFrame({**ROW, "gradient_norm": [math.nan], "status": ["nan"]})
KINDS: list[tuple[type[Schema], pd.DataFrame, str, Any]] = [
    (Answered, ANSWER, "answer", 3),
    (ByRelearning, ANSWER.assign(epoch=1, relearned=True), "relearned", 1),
    (ByEpoch, EPOCH, "ref", 2.0),
    (ByEpoch, EPOCH.assign(retrained=-2.0, needed=1.0, needed_per_token=0.5), "needed", math.inf),
    (
        ByEpoch,
        EPOCH.assign(preferred_logp=-2.0, preferred_length=2, preferred_ref=-1.0),
        "preferred_length",
        1.5,
    ),
    (Epochs, LAST, "status", "fine"),
    (Epochs, LAST, "step", 0.5),
]


@pytest.mark.parametrize(("schema", "frame", "column", "bad"), KINDS)
def test_every_kind_of_table_has_a_schema(
    schema: type[Schema], frame: pd.DataFrame, column: str, bad: Any
):
    pd.testing.assert_frame_equal(check_table(schema, frame, "table", "a file"), frame)
    with pytest.raises(InvalidInput, match=f"table, {column} of row 0"):
        check_table(schema, with_cell(frame, column, bad, row=0), "table", "a file")
    with pytest.raises(InvalidInput, match=f"{frame.columns[0]} missing"):
        check_table(schema, frame.drop(columns=frame.columns[0]), "table", "a file")


def test_answers_are_of_known_kinds_each_once_and_of_every_example():
    whole = pd.concat(
        [some_scores().assign(answer=name) for name in ("gold", "perturbed_0")], ignore_index=True
    )
    assert log_of(whole, "a run").perturbed is not None
    for table, said in (
        (
            whole.iloc[:-1],
            "perturbed_0 = 2 .*as many answers of each kind as there are examples, 3",
        ),
        (pd.concat([whole, whole.tail(1)]), "index = 9 .*each perturbed_0 answer once"),
        (whole.replace("perturbed_0", "perturbed_1"), r"\['perturbed_1'\]"),
        (whole.replace("gold", "paraphrased"), "gold among them"),
        (whole.assign(logp=1.0), "answers, logp of row 0"),
    ):
        with pytest.raises(InvalidInput, match=said):
            log_of(table, "a run")


@pytest.mark.parametrize(
    ("name", "column", "bad"),
    [(EXAMPLES, "logp", 3.0), (ANSWERS, "length", 0), (EPOCHS, "step", -1)],
)
def test_the_tables_of_a_run_are_checked_when_it_is_read(
    tmp_path: Path, name: str, column: str, bad: float
):
    tables = {EXAMPLES: EPOCH, ANSWERS: ANSWER.assign(model="original"), EPOCHS: LAST}
    how = storage.provenance(
        {
            "unlearning": Unlearning(
                objective=npo(0.1), optimization=Optimization(epochs=1, batch=1, learning_rate=1e-3)
            )
        }
    )
    for file, table in tables.items():
        storage.write_table(table, tmp_path / file, how)
    assert read_run(tmp_path).logs["original"].index.tolist() == [5, 7, 9]
    storage.write_table(tables[name].assign(**{column: bad}), tmp_path / name, how)
    with pytest.raises(InvalidInput, match=f"run, {name}, {column} of row 0"):
        read_run(tmp_path)


def test_columns_of_a_log_are_told_by_example_and_answer():
    columns = {
        "avg_gt_loss": {0: 1.0, 4: 2.0},
        "average_perturb_loss": {0: [1.0, 2.0], 4: [1.0, "2"]},
    }
    with pytest.raises(InvalidInput) as caught:
        checked(
            Log,
            columns,
            "a log",
            row=lambda _, index: f"example {index}",
            names={"average_perturb_loss": "wrong"},
        )
    assert (caught.value.field, caught.value.value) == ("wrong of example 4, answer 1", "2")


def test_the_schemas_are_not_loaded_before_they_are_needed():
    """--help is answered without them; where they are needed, they load without a warning."""
    code = (
        "import sys, warnings, llm.__main__, llm.logs.reading, llm.models.answers; "
        "print('llm.schemas' in sys.modules);"
    )
    code += "warnings.simplefilter('error'); import llm.schemas; print(llm.schemas.ROUNDING)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", str(ROUNDING)], done.stderr
