"""The table of times in the book is the measured one (`make speed`)."""

from __future__ import annotations

import pandas as pd
import pytest

from markov.models import Transformer
from tests.benchmarks import table
from tests.test_readme import ROOT, rows

PAGE = (ROOT / "notebooks" / "speed.md").read_text("utf-8")
MEASURED = pd.read_csv(table.KEPT).set_index("what")


def cell(value: float, form: str = "{:.0f}") -> str:
    return "" if pd.isna(value) or not value else form.format(value)


def test_every_path_is_a_row_with_what_was_measured():
    found = rows(PAGE, "How fast it is")
    assert [row[0] for row in found] == [one.what for one in table.ROWS] == MEASURED.index.tolist()
    for (what, *cells), one in zip(found, table.ROWS, strict=True):
        known = MEASURED.loc[what].to_dict()
        assert known["command"] == " ".join(one.command)
        assert cells == [
            f"`{known['command']}`",
            cell(known["seconds"]),
            cell(known["of_all_cores"]),
            cell(known["bound"]),
            cell(known["ratio"], "{:.2f}"),
            cell(known["memory_gb"], "{:.1f}"),
        ]


def test_the_machine_and_its_rate_are_said():
    (machine,) = MEASURED["machine"].unique()
    assert machine in " ".join(PAGE.split())
    low, high = MEASURED["gflops"].min(), MEASURED["gflops"].max()
    assert f"{low} to {high} GFLOP/s" in " ".join(PAGE.split())


def test_a_bound_counts_what_its_experiments_multiply():
    """By hand, for the runs of Figure 5: the models, and all test data at 51 steps."""
    found = table.products(table.figure_5(), models=False)
    model = Transformer.released()
    tokens = {"length": (19 * 2000 + 19 * 1000 + 4 * 1000), "memorisation": (19 * 4000)}
    seen = [19 * 10_000 + 19 * 5000 + 4 * 5000, 19 * 10_000 + 19 * 5000, 19 * 10_000]
    recorded = 2 * 51 * sum(tokens.values())
    trained = 3 * 5 * 0.8 * sum(seen)
    steps = found / 2 / model.products - recorded - trained
    assert 0 < steps < 0.02 * recorded  # of four runs of 50 steps of 4 sequences
    without = table.products(table.figure_5(), models=True)
    assert found - without == pytest.approx(2 * model.products * trained)
