"""README and findings tell of the small language model what the frames of its figures say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from figures.questions.tuned_runs import MEDIAN
from figures.scale import TRAINED, Scale
from llm.evaluation.gate import EQUAL, NEAR
from markov.objectives import CORNERS
from tests.test_readme import FINDINGS, README, number, numbers, rows, told

KEPT = Path(__file__).parents[1] / "figures" / "gallery"
COUNTED = {2: "two", 3: "three", 4: "four", 5: "five"}
# What the table of the findings calls a model, and the word that the sweep has for it.
MODELS = {
    "original": "original",
    "retrained": "retrained",
    "GA": "gradient_ascent",
    "GradDiff": "grad_diff@1",
    "NPO": "npo:0.1@1",
    "reference-free NPO": "reference_free_npo:0.1@1",
    "length-normalised NPO": "length_normalized_npo:4.5@0.125",
    "SimNPO": "simnpo:4.5@0.125",
}
KINDS = ("probability", "rouge", "truth_ratio")
TABLE: Any = pd.read_csv(KEPT / "llm_tradeoff" / "table.csv")
MEASURES: Any = TABLE[TABLE["kind"] == "measure"].set_index(["model", "measure", "task"])
APART: Any = TABLE[TABLE["kind"] == "difference"].set_index(["model", "measure"])
CHECKS: Any = pd.read_csv(KEPT / "llm_gate" / "checks.csv").set_index("check")


def interval(row: Any, digits: int = 2) -> list[float]:
    return [round(float(row[name]), digits) for name in ("value", "low", "high")]


def test_the_table_is_that_of_the_frame() -> None:
    table = {row[0].split(", ")[0]: row[1:] for row in rows(FINDINGS, "The paper's table")}
    assert list(table) == list(MODELS) and set(MEASURES["seeds"].dropna()) == {TRAINED}
    for name, (forget, retain, quality, distance, utility) in table.items():
        own = MEASURES.loc[MODELS[name]]
        for cell, task in ((forget, "forget"), (retain, "retain")):
            assert numbers(cell) == [
                round(float(own.loc[(kind, task), "value"]), 2) for kind in KINDS
            ]
        assert numbers(utility) == interval(own.loc[("model_utility", "all")])
        if name == "retrained":
            assert (quality, distance) == ("1", "0")
            continue
        assert numbers(distance) == interval(own.loc[("ks_statistic", "forget")])
        value = float(own.loc[("forget_quality", "forget"), "value"])
        assert number(quality) == float(f"{value:.0e}") or number(quality) == round(value, 2)


@pytest.mark.parametrize("measure", ["ks_statistic", "model_utility", "probability"])
def test_what_corners_differ_in_is_told_with_its_interval(measure: str) -> None:
    place = ["ks_statistic", "model_utility", "probability"].index(measure) + 1
    table = {row[0]: row[1:] for row in rows(FINDINGS, "By how much the corners differ")}
    for name in ("reference-free NPO", "length-normalised NPO", "SimNPO"):
        word = MODELS[name].partition(":")[0]
        assert numbers(table[name][place - 1]) == interval(APART.loc[(word, measure)])


def test_the_gate_is_told_as_it_was_found() -> None:
    utility = CHECKS.loc["utility apart"]
    assert told("utility differs by # \\(90% interval # to #\\), where # is allowed") == [
        *interval(utility, 3),
        EQUAL,
    ]
    apart = CHECKS[CHECKS.index.str.endswith(" apart") & (CHECKS.index != "utility apart")]
    assert len(apart) == 9
    assert told("each of its nine parts by at most #, where # is allowed") == [
        round(float(apart["value"].abs().max()), 3),
        NEAR,
    ]
    assert told("The standard deviation of utility over trainings is # and #") == [
        round(float(CHECKS.loc[f"utility varies, {kind}", "value"]), 3)
        for kind in ("original", "retrained")
    ]
    assert told("at least # under every original, and at most # under every retrained") == [
        round(float(CHECKS.loc[f"forget data {name}", "value"]), 3) for name in ("known", "unread")
    ]
    assert told("D between two retrained models is # \\(# to # of ten pairs\\)") == interval(
        CHECKS.loc["floor"], 3
    )
    assert CHECKS["verdict"].dropna().eq("passes").all()


def test_another_processor_moves_a_model_no_further_than_another_seed() -> None:
    elsewhere: Any = pd.read_csv(KEPT / "llm_gate" / "elsewhere.csv").set_index("model")
    scores = pd.read_csv(KEPT / "llm_gate" / "components.csv").query("measure == 'model_utility'")
    ends = []
    for kind in ("original", "retrained"):
        values = scores.loc[scores["model"] == kind, "value"].to_numpy()
        half = (
            stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
        )
        utility = float(elsewhere.at[kind, "model_utility"])
        assert abs(utility - values.mean()) < half
        ends.append([round(float(values.mean() + sign * half), 3) for sign in (-1, 1)])
    assert told("ends at a utility of #, and without the answers to forget at #") == [
        round(float(elsewhere.at[kind, "model_utility"]), 3) for kind in ("original", "retrained")
    ]
    assert told("one more lies between # to #, and between # to #") == [*ends[0], *ends[1]]


def corner(name: str) -> str:
    return MODELS.get(name, "original").partition(":")[0]


def claimed(figure: str) -> Any:
    return pd.read_csv(KEPT / figure / "claims.csv").set_index("claim")


def test_what_was_never_read_is_told_as_it_was_found() -> None:
    found: Any = pd.read_csv(KEPT / "llm_truth_ratio" / "parts.csv")
    found = found[found["split"] == "read_half"].set_index(["half", "model"])
    table = {row[0]: row[1:] for row in rows(FINDINGS, "What was never read")}
    assert len(table) == 5
    ends = ["distance", "distance_low", "distance_high"]
    for name, cells in table.items():
        for half, cell in zip(("never", "read"), cells, strict=True):
            want = [round(float(found.loc[(half, corner(name)), one]), 2) for one in ends]
            assert numbers(cell) == want
    floor = float(found.loc[("never", "npo"), "floor_high"])
    assert told("Two retrained models lie at most # apart on what") == [round(floor, 2)]
    assert f"D over {COUNTED[int(claimed('llm_truth_ratio')['count'].max())]} trainings" in (
        " ".join(FINDINGS.split())
    )


def test_what_is_claimed_of_the_unread_half_is_told_as_it_was_judged() -> None:
    found = claimed("llm_truth_ratio")
    assert told("D grows by # \\(# to #\\) there") == interval(found.loc["away"])
    assert told("SimNPO leaves it nearer by # \\(# to #\\). Both") == interval(found.loc["spared"])
    other = [-one for one in interval(found.loc["read"])]
    assert told("contradicted by # \\(# to #\\): at") == [other[0], other[2], other[1]]
    assert told("unread half nearer by # \\(# to #\\), and the length alone by # \\(# to #\\)") == [
        *interval(found.loc["reference"]),
        *interval(found.loc["length"]),
    ]
    verdicts = dict(zip(found.index, found["verdict"], strict=True))
    assert verdicts["away"] == verdicts["spared"] == "holds"
    assert verdicts["read"] == "contradicted"
    assert verdicts["reference"] == verdicts["length"] == "inconclusive"
    assert found["count"].eq(3).all()


def test_requests_in_turn_are_told_as_they_ended() -> None:
    found: Any = pd.read_csv(KEPT / "llm_sequential" / "so_far.csv")
    last = found[found["stage"] == found["stage"].max()].set_index(["quantity", "method"])
    table = {row[0]: row[1:] for row in rows(FINDINGS, "Requests that arrive in turn")}
    assert len(table) == 4
    for name, cells in table.items():
        for quantity, cell in zip(("retain_loss", "ks_statistic"), cells, strict=True):
            assert numbers(cell) == interval(last.loc[(quantity, corner(name))])
    judged = claimed("llm_sequential")
    assert told("lower than NPO's by # \\(# to #\\)") == interval(judged.loc["kept"])
    assert told("D is smaller by # \\(# to #\\), which Holm's") == interval(judged.loc["nearer"])
    assert set(judged["verdict"]) == {"inconclusive"} and set(judged["count"]) == {3}
    floor: Any = pd.read_csv(KEPT / "llm_sequential" / "floor.csv").iloc[0]
    assert told("Two retrained models lie # apart \\(# to #\\)") == [
        round(float(floor[name]), 2) for name in ("value", "least", "largest")
    ]


def test_numbers_of_trainings_are_those_of_the_scale() -> None:
    text = " ".join(FINDINGS.split())
    assert f"{COUNTED[TRAINED]} trainings" in text
    assert f"`make figures` draws {COUNTED[Scale().trained]} trainings" in text


def test_what_lies_between_the_halves_of_length_is_told_as_it_was_found() -> None:
    found: Any = pd.read_csv(KEPT / "llm_claims" / "claims.csv").set_index("claim")
    short = found.loc["short"]
    assert short["high"] < 0
    want = [-float(short[name]) for name in ("value", "high", "low")]
    assert told("these D lie apart by # \\(# to #\\)") == [round(one, 2) for one in want]
    verdicts = {name: found.loc[name, "verdict"] for name in ("graddiff", "utility", "retain")}
    assert verdicts == {"graddiff": "holds", "utility": "inconclusive", "retain": "inconclusive"}
    assert all(found.loc[name, "low"] > 0 for name in verdicts)
    assert found.loc["even", "verdict"] == "holds"
    table: Any = pd.read_csv(KEPT / "llm_claims" / "trainings.csv")
    means = table.groupby(["quantity", "method"])["value"].mean().round(2)
    said = told("D of the short half is # beside NPO's #, and of the long one # beside #")
    assert said == [
        means[f"distance, {half}", name] for half in ("short", "long") for name in ("simnpo", "npo")
    ]


def test_other_trainings_are_told_as_they_were_judged() -> None:
    first: Any = pd.read_csv(KEPT / "llm_claims" / "claims.csv").set_index("claim")
    others: Any = pd.read_csv(KEPT / "llm_claims" / "others.csv").set_index("claim")
    table = rows(FINDINGS, "The same with three other trainings")
    assert [row[0] for row in table] == first["text"].tolist() == others["text"].tolist()
    assert set(first["count"]) == {TRAINED} and set(others["count"]) == {3}
    for (_, *cells), claim in zip(table, first.index, strict=True):
        for found, (said, verdict) in ((first, cells[:2]), (others, cells[2:])):
            assert numbers(said) == interval(found.loc[claim])
            assert verdict == found.loc[claim, "verdict"]
    same = first["verdict"] == others["verdict"]
    assert (len(same), int(same.sum())) == (13, 12) and not same["graddiff"]
    assert told("one set has #, the other #") == [
        round(-float(found.loc["nearer", "value"]), 2) for found in (first, others)
    ]


TUNED = {
    "NPO": "npo",
    "reference-free NPO": "reference_free_npo",
    "length-normalised NPO": "length_normalized_npo",
    "SimNPO": "simnpo",
}


def test_corners_at_chosen_settings_are_told_as_they_were_judged() -> None:
    judged: Any = pd.read_csv(KEPT / "llm_tuned" / "judged.csv")
    assert set(judged["count"]) == {TRAINED}
    judged = judged.set_index(["tolerance", "method", "measure", "of"])
    chosen: Any = pd.read_csv(KEPT / "llm_tuned" / "chosen.csv").set_index(["tolerance", "method"])
    table = rows(FINDINGS, "Each corner at its best settings")
    assert len(table) == len(chosen)
    for share, corner, distance, nearer, utility, more in table:
        tolerance, (name, *settings) = round(1 - numbers(share)[0] / 100, 2), corner.split(", ")
        method = TUNED[name]
        unit = MEDIAN ** CORNERS[method][1]
        setting = chosen.loc[(tolerance, method)]
        told_here = [round(numbers(one)[0], 4) for one in settings]
        assert told_here == [round(setting["beta"] * unit, 4), round(setting["level"] / unit, 4)]
        assert setting["within"]
        for cells, measure in (((distance, nearer), "distance"), ((utility, more), "utility")):
            for cell, of in zip(cells, ("measure", "above npo"), strict=True):
                if method == "npo" and of == "above npo":
                    assert cell == ""
                else:
                    assert numbers(cell) == interval(judged.loc[(tolerance, method, measure, of)])


def test_sentences_that_do_not_stand_are_gone() -> None:
    told_here = " ".join((README + FINDINGS).split())
    for gone in (
        "so it is the length, and not the reference",
        "no corner goes where it is needed",
        "the other way round on the default model",
        "none unlearns too much",
        "none unlearns too",
    ):
        assert gone not in told_here
    captions = " ".join(
        path.read_text("utf-8").split('"""')[1] for path in KEPT.parent.rglob("language/*.py")
    )
    assert not re.search(r"it is the length, (and )?not the reference", " ".join(captions.split()))
