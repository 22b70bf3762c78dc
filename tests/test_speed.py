"""The table of times in the book is the measured one (`make speed`)."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from markov.models import Transformer, stack_parameters
from tests.benchmarks import released, table
from tests.helpers import check_close
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


def test_the_released_way_is_compared_with_figure_5():
    ours, theirs = (MEASURED["seconds"].iloc[row] for row in (0, 1))
    assert f"{theirs / ours:.1f} times as long" in " ".join(PAGE.split())


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


def test_the_released_way_computes_the_same_model():
    model, net = Transformer.released(), released.Net()
    own = model.init(3)
    theirs = {"token.weight": own["token"], "position.weight": own["position"]}
    names = {"norm1": "norms.0", "up": "mlp.0", "down": "mlp.2", "norm2": "norms.1"}
    for block in range(model.depth):
        parts = own[f"{block}.attention.weight"].split(model.width, dim=1)
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            theirs[f"blocks.{block}.{name}.weight"] = part.T
        for mine, name in names.items():
            weight = own[f"{block}.{mine}.weight"]
            theirs[f"blocks.{block}.{name}.weight"] = weight.T if weight.ndim == 2 else weight
            theirs[f"blocks.{block}.{name}.bias"] = own[f"{block}.{mine}.bias"]
    theirs |= {"head.weight": own["head.weight"].T, "head.bias": own["head.bias"]}
    net.load_state_dict(theirs)
    states = torch.randint(10, (6, 19), generator=torch.Generator().manual_seed(1))
    want = model.logits(stack_parameters([own]), states[None])[0]
    check_close(net(states), want, rtol=1e-4, atol=1e-5)


def test_a_step_of_the_released_way_is_timed_over_the_steps_that_there_are():
    rows = [("retain", [3, 1, 2])] * 25
    assert 0 < released.step(released.Net(), rows, 1) < 5
    with pytest.raises(ValueError, match="too few"):
        released.step(released.Net(), rows, 2)


def test_the_released_way_pads_behind_and_scores_no_padding():
    rows = released.OneByOne([("retain", [3, 1, 2]), ("forget2", list(range(10)) * 2)])
    assert rows[0]["seen"].tolist() == [3, 1] + [0] * 17
    assert rows[0]["next"].tolist() == [1, 2] + [released.NOTHING] * 17
    assert rows[1]["next"].tolist() == [*range(1, 10), *range(10)]
