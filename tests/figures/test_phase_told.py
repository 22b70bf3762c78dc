"""What the findings tell of the phase diagram is what its frames say; its runs take minutes."""

from __future__ import annotations

import pandas as pd

from figures import style
from figures.statistics import interval_text, lookup
from figures.theory import phase
from figures.theory.phase_runs import BETAS, LENGTHS, SHARES
from markov.objectives import CORNERS
from tests.test_readme import FINDINGS, ROOT, numbers, rows, told

KEPT = ROOT / "figures" / "gallery" / "phase"
AGREEMENT, PRICES, RATIOS = (
    pd.read_csv(KEPT / f"{name}.csv") for name in ("agreement", "prices", "ratios")
)


def test_the_correlations_are_those_of_the_frame():
    known = lookup(AGREEMENT, ["method", "of"])
    table = rows(FINDINGS, "Which of two goes first, and the price")
    assert [row[0] for row in table] == [style.LABELS[name] for name in CORNERS]
    for name, (_, price, law) in zip(CORNERS, table, strict=True):
        for cell, of in ((price, "price"), (law, "law")):
            assert numbers(cell) == numbers(interval_text(known[name, of]))
    assert set(AGREEMENT["count"]) == {4}
    cells = len(BETAS) * len(LENGTHS) * len(SHARES)
    assert told("correlations over # cells per corner") == [cells]


def test_the_ratios_of_prices_are_those_of_the_frame():
    known = lookup(RATIOS, ["of", "level"])
    for of, level, pattern in (
        ("npo / simnpo", 0.05, "# times as much at β = 0.05 \\(# to #\\)"),
        ("npo / simnpo", 0.4, "and # times at 0.4 \\(# to #\\)"),
        ("length_normalized_npo / simnpo", 0.05, "pays # times what SimNPO pays \\(# to #\\)"),
        ("length_normalized_npo / simnpo", 1.6, "β = 1.6 it pays # times as much \\(# to #\\)"),
    ):
        assert told(pattern) == numbers(interval_text(known[of, level])), (of, level)
    npo = RATIOS[RATIOS["of"] == "npo / simnpo"].set_index("level")["value"]
    assert (npo.dropna() > 1).all() and npo.index[npo.notna()].tolist() == [0.05, 0.1, 0.2, 0.4]
    missing = PRICES.set_index(["method", "level"])["missing"].unstack("method")
    assert (
        missing["simnpo"].sum() == 0 and (missing["npo"] > 0).tolist() == [False] * 4 + [True] * 3
    )


def test_all_prices_are_of_the_levels_and_corners_of_the_figure():
    assert set(PRICES["method"]) == set(CORNERS) and set(PRICES["level"]) == set(BETAS)
    assert set(phase.ROWS) == {"retain_distance", "over_forgetting", "predicted"}
