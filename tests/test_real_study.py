"""What is told of a pretrained model on TOFU is what the frames of its study say.

The study takes hours (`make real`), so that its frames are kept beside its pictures.
"""

from __future__ import annotations

import math

import pandas as pd
import pytest

from figures import style
from figures.catalogue import BY_NAME
from figures.language import beside, plane
from tests.test_readme import FINDINGS, README, ROOT, numbers, rows, told

KEPT = ROOT / "figures" / "gallery" / "study"
MEASURES, PANELS, RELEARNING = (
    pd.read_csv(KEPT / f"{name}.csv") for name in ("llm_tradeoff", "llm_study", "llm_relearning")
)
HEADING, SHOWN = "A pretrained model on TOFU", "A pretrained model beside the paper's"
KINDS = ("probability", "rouge", "truth_ratio")
TABLE = MEASURES[MEASURES["kind"] == "measure"]
METHODS = {
    **{style.LABELS.get(name, name): name for name in TABLE["method"].unique()},
    **{name: name for name in plane.BASELINES},
}


def shown(value: float) -> float:
    return float(f"{value:.2f}")


def at(method: str, measure: str, task: str) -> tuple[float, float, float]:
    """A measure of a model with its interval, as it is shown."""
    own = TABLE[(TABLE["method"] == method) & (TABLE["measure"] == measure)]
    (row,) = own[own["task"] == task].to_dict("records")
    if measure == "forget_quality" and row["value"] < 0.095:
        return float(f"{row['value']:.0e}"), math.nan, math.nan
    return shown(row["value"]), shown(row["low"]), shown(row["high"])


def check(cell: str, method: str, measure: str, task: str) -> None:
    """Compare a cell with a measure, and with its interval where the cell has one."""
    known = numbers(cell)
    assert known in ([*at(method, measure, task)], [at(method, measure, task)[0]]), (method, cell)


def test_the_table_of_the_findings_is_the_frame() -> None:
    found = rows(FINDINGS, HEADING)
    methods = [METHODS[row[0].partition(",")[0]] for row in found]
    assert methods == TABLE["method"].unique().tolist() and len(methods) >= 8
    for method, (name, *cells) in zip(methods, found, strict=True):
        forget, retain, quality, distance, utility = cells
        for task, cell in (("forget", forget), ("retain", retain)):
            assert numbers(cell) == [at(method, kind, task)[0] for kind in KINDS], method
        check(quality, method, "forget_quality", "forget")
        check(distance, method, "ks_statistic", "forget")
        check(utility, method, "model_utility", "all")
        settings = TABLE.loc[TABLE["method"] == method, ["beta", "retain_weight"]].iloc[0]
        assert numbers(name) == settings.dropna().tolist()


def test_the_table_of_the_readme_is_the_frame() -> None:
    for name, quality, distance, utility, kept in rows(README, SHOWN):
        method = METHODS[name]
        check(quality, method, "forget_quality", "forget")
        check(distance, method, "ks_statistic", "forget")
        check(utility, method, "model_utility", "all")
        check(kept, method, "probability", "retain")


def test_the_gate_is_told_as_it_was() -> None:
    original, retrained = (
        TABLE[TABLE["method"] == name].set_index(["measure", "task"])["value"]
        for name in ("original", "retrained")
    )
    (apart,) = told("Their utilities are # apart")
    utility = ("model_utility", "all")
    assert apart == pytest.approx(abs(original[utility] - retrained[utility]), abs=5.1e-4)
    known, lower = told("of the answers to forget is #, and lower by # under the retrained model")
    forget = ("probability", "forget")
    assert known == pytest.approx(original[forget], abs=5.1e-4)
    assert lower == pytest.approx(original[forget] - retrained[forget], abs=1.1e-3)
    (floor,) = told(r"has \$D = #\$ from the first")
    assert [floor] == PANELS.loc[PANELS["kind"] == "floor", "value"].round(3).tolist()


def correlation(method: str, epoch: int) -> float:
    own = PANELS[(PANELS["kind"] == "weight") & (PANELS["method"] == method)]
    return shown(float(own.loc[own["epoch"] == epoch, "spearman"].iloc[0]))


def test_what_is_kept_is_told_with_its_intervals() -> None:
    pair = r"probability is # \(# to #\) beside # \(# to #\)"
    said = [*told(pair), *told(r"GradDiff keeps less, # \(# to #\)")]
    methods = ("simnpo", "npo", "grad_diff")
    assert said == [x for method in methods for x in at(method, "probability", "retain")]
    quality = told(r"retrained model \(#\), and SimNPO not \(#\)")
    assert quality == [at(method, "forget_quality", "forget")[0] for method in ("npo", "simnpo")]
    utility = told(r"GradDiff does not \(# of a utility of #\)")
    assert utility == [at(name, "model_utility", "all")[0] for name in ("grad_diff", "original")]


def test_weights_are_told_as_they_were() -> None:
    (start,) = told("rank correlation of SimNPO's with length is #")
    assert start == correlation("simnpo", 0)
    assert (
        PANELS.query("kind == 'weight' and method == 'npo' and epoch == 0")["spearman"].isna().all()
    )
    last = int(PANELS.loc[PANELS["kind"] == "weight", "epoch"].max())
    falls = told(r"After the second epoch NPO's fall with length \(#, in the end #\)")
    assert falls == [correlation("npo", 2), correlation("npo", last)]
    turned = told(r"and SimNPO's have turned around \(#, in the end #\)")
    assert turned == [correlation("simnpo", 2), correlation("simnpo", last)]


@pytest.mark.parametrize(("place", "which"), [(0, "shortest"), (2, "random")])
def test_what_comes_back_is_told_as_it_was(place: int, which: str) -> None:
    attacks = RELEARNING[(RELEARNING["kind"] == "attack") & (RELEARNING["which"] == which)]
    for name, *cells in rows(FINDINGS, "What an attack brings back of it"):
        own = attacks[attacks["model"] == METHODS[name]].set_index("epoch")
        for cell, column in zip(cells[place:], ("other_logp", "ks_statistic"), strict=False):
            assert numbers(cell) == [shown(own.loc[epoch, column]) for epoch in (0, 3)]


def test_pictures_of_the_study_have_their_frames() -> None:
    pictures = {path.stem for path in KEPT.glob("*.png")}
    assert pictures >= {"llm_study"} and all(BY_NAME[name].study for name in pictures)
    assert pictures <= {path.stem for path in KEPT.glob("*.csv")}
    assert set(beside.PAPER) <= set(TABLE["method"])
