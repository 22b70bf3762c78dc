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
from figures.questions.pushing.matching_told import causes
from tests.test_readme import FINDINGS, ROOT, numbers, rows, told

KEPT = ROOT / "figures" / "gallery" / "study"
PANELS, FLOAT32, RELEARNING = (
    pd.read_csv(KEPT / f"{name}.csv")
    for name in ("llm_study", "llm_study_float32", "llm_relearning")
)
HEADING = "A pretrained model on TOFU"
KINDS = ("probability", "rouge", "truth_ratio")
TABLE = PANELS[PANELS["kind"].isin(["seed", "other"])]
METHODS = {
    "IDK": "idk",
    **{style.LABELS.get(name, name): name for name in TABLE["method"].unique()},
    **{name: name for name in plane.BASELINES},
}


def shown(value: float) -> float:
    return float(f"{value:.2f}")


def at(
    method: str, measure: str, task: str, table: pd.DataFrame = TABLE
) -> tuple[float, float, float]:
    """A measure of a model with its interval, as it is shown."""
    own = table[(table["method"] == method) & (table["measure"] == measure)]
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


def test_the_gate_is_told_as_it_was() -> None:
    gate = PANELS[PANELS["kind"] == "gate"].set_index("check").round(3)
    assert gate["verdict"].to_dict() == {
        "utility apart": "inconclusive",
        "forget data known": "passes",
        "forget data unknown": "passes",
    }
    known = told("of the answers to forget is #, and lower by # under the retrained model")
    assert known == gate.loc[["forget data known", "forget data unknown"], "value"].tolist()
    apart = told(
        "utilities are # apart, by the same questions # to #. Whether that is more than the # that"
    )
    (row,) = gate.loc[["utility apart"]].to_dict("records")
    assert apart == [row["value"], row["low"], row["high"], numbers(row["allowed"])[0]]
    recall = told("ROUGE-L of 40 real authors, # in the original and # in the retrained model")
    assert recall == [at(name, "rouge", "real_authors")[0] for name in plane.BASELINES]
    (floor,) = told(r"has \$D = #\$ from the first")
    assert [floor] == PANELS.loc[PANELS["kind"] == "floor", "value"].round(3).tolist()
    alone = told("the retrained model beside itself has # to #")
    assert alone == [*at("retrained", "ks_statistic", "forget")[1:]]


def apart(frame: pd.DataFrame, other: str, measure: str) -> list[float]:
    """By how much NPO lies above another corner, with the interval, as they are shown."""
    own = frame[(frame["kind"] == "difference") & (frame["measure"] == measure)]
    (row,) = own[
        (own["model"].map(plane.method_of) == "npo") & (own["other"].map(plane.method_of) == other)
    ].to_dict("records")
    return [shown(row[name]) for name in ("value", "low", "high")]


def test_differences_are_told_with_their_intervals() -> None:
    below = FINDINGS.split("Two models that answer the same questions can be")[1]
    table = rows(f"# x\n{below}", "x")
    assert len(table) == 3
    for name, *cells in table:
        pairs = [(PANELS, "ks_statistic"), (PANELS, "retain_probability")]
        pairs += [(FLOAT32, measure) for _, measure in pairs]
        for cell, (frame, measure) in zip(cells, pairs, strict=True):
            assert numbers(cell) == apart(frame, METHODS[name], measure), (name, measure)


def test_the_float32_study_is_told_as_it_was() -> None:
    table = FLOAT32[FLOAT32["kind"].isin(["seed", "other"])]
    utility = [
        float(
            table.loc[
                (table["method"] == name) & (table["measure"] == "model_utility"), "value"
            ].iloc[0]
        )
        for name in plane.BASELINES
    ]
    (near,) = told("retrained model were # apart in utility")
    assert near == round(abs(utility[0] - utility[1]), 3)
    distances = told("D was # under NPO and # under SimNPO. GradDiff kept")
    assert distances == [at(name, "ks_statistic", "forget", table)[0] for name in ("npo", "simnpo")]
    kept = told(r"probability of # \(# to #\) of the answers to retain, where it is # above")
    own, above = (at("grad_diff", "probability", "retain", one) for one in (table, TABLE))
    assert kept == [*own, above[0]] and own[2] < above[1]


def correlation(method: str, epoch: int) -> float:
    own = PANELS[(PANELS["kind"] == "weight") & (PANELS["method"] == method)]
    return shown(float(own.loc[own["epoch"] == epoch, "spearman"].iloc[0]))


def test_what_is_kept_is_told_with_its_intervals() -> None:
    said = told(r"than NPO: # \(# to #\) beside # \(# to #\)")
    assert said == [x for name in ("simnpo", "npo") for x in at(name, "probability", "retain")]
    kept = told(r"its probability of the answers to retain is # \(# to #\)")
    assert kept == [*at("grad_diff", "probability", "retain")]
    quality = told(r"tell NPO \(#\), SimNPO \(#\) and gradient ascent \(#\) from")
    quality += told(r"teaches refusals \(#\), and GradDiff \(#\)")
    names = ("npo", "simnpo", "gradient_ascent", "idk", "grad_diff")
    (hidden,) = told("writes none of them, but they keep a probability of #")
    assert hidden == at("idk", "probability", "forget")[0]
    assert quality == [at(name, "forget_quality", "forget")[0] for name in names]
    (distance,) = told("the D of gradient ascent, #, is hardly larger")
    assert distance == at("gradient_ascent", "ks_statistic", "forget")[0]


def test_weights_are_told_as_they_were() -> None:
    (start,) = told("rank correlation of SimNPO's with length is #")
    assert start == correlation("simnpo", 0)
    assert (
        PANELS.query("kind == 'weight' and method == 'npo' and epoch == 0")["spearman"].isna().all()
    )
    last = int(PANELS.loc[PANELS["kind"] == "weight", "epoch"].max())
    first = told(r"After the first epoch both are near 0 \(SimNPO #, NPO #\)")
    assert first == [correlation("simnpo", 1), correlation("npo", 1)]
    falls = told(r"After the second NPO's fall with length \(#, in the end #\)")
    assert falls == [correlation("npo", 2), correlation("npo", last)]
    turned = told(r"SimNPO's hardly go with it \(#, in the end #\)")
    assert turned == [correlation("simnpo", 2), correlation("simnpo", last)]


@pytest.mark.parametrize(("place", "which"), [(0, "shortest"), (2, "random")])
def test_what_comes_back_is_told_as_it_was(place: int, which: str) -> None:
    attacks = RELEARNING[(RELEARNING["kind"] == "attack") & (RELEARNING["which"] == which)]
    for name, *cells in rows(FINDINGS, "What an attack brings back of it"):
        own = attacks[attacks["model"] == METHODS[name]].set_index("epoch")
        for cell, column in zip(cells[place:], ("other_logp", "ks_statistic"), strict=False):
            assert numbers(cell) == [shown(own.loc[epoch, column]) for epoch in (0, 3)]


def test_how_far_the_others_end_from_a_control_is_told() -> None:
    attacks = RELEARNING[(RELEARNING["kind"] == "attack") & (RELEARNING["which"] == "random")]
    level = {
        METHODS[name]: attacks[attacks["model"] == METHODS[name]].set_index("epoch")["other_logp"]
        for name in ("NPO", "SimNPO", "retrained")
    }
    above = [shown(level[name][3] - level["retrained"][3]) for name in ("npo", "simnpo")]
    ends = told("NPO's others end # nats above those of .*?, and SimNPO's #")
    assert ends == above
    (begun,) = told("SimNPO's had lain # below the retrained model's")
    assert begun == shown(level["retrained"][0] - level["simnpo"][0])
    start = attacks["original_logp"].iloc[0]
    shares = {
        name: (own[3] - own[0]) / (start - own[0])
        for name, own in level.items()
        if name != "retrained"
    }
    said = told("the share of what it had lost that comes back is larger, # beside NPO's #")
    assert said == [shown(shares["simnpo"]), shown(shares["npo"])]
    ledger = pd.read_csv(KEPT.parent / "ledger" / "ledger.csv").set_index("claim")
    apart_by = shares["npo"] - shares["simnpo"]
    assert ledger.loc["relearning", "value"] == pytest.approx(apart_by, abs=1e-5)
    (known,) = told("Before unlearning the 48 had #")
    assert {known} == set(attacks["original_logp"].map(shown))


def test_pictures_of_the_study_have_their_frames() -> None:
    pictures = {path.stem for path in KEPT.glob("*.png")}
    assert "llm_study" in pictures and all(BY_NAME[name].study for name in pictures)
    assert pictures <= {path.stem for path in KEPT.glob("*.csv")}
    assert set(beside.PAPER) <= set(TABLE["method"])


PUSHES = pd.read_csv(KEPT / "push_and_need.csv")


def test_what_pushes_meet_is_told_as_it_was() -> None:
    own = PUSHES[PUSHES["kind"].eq("match") & PUSHES["need_of"].eq("total")]
    own = own.set_index(["weighting", "optimizer"])
    names = ("npo", "reference_free_npo", "length_normalized_npo", "simnpo", "power_best")
    names += ("length_over_norm", "need_over_norm", "nnls_kept", "nnls")
    table = rows(f"# x\n{FINDINGS.split('A pretrained model agrees in the main')[1]}", "x")
    assert len(table) == len(names)
    for (_, *cells), name in zip(table, names, strict=True):
        found = [shown(own["whole"][name, word]) for word in ("gradient descent", "AdamW")]
        assert [numbers(cell)[0] for cell in cells] == found
    differences = own["differences"].xs("AdamW", level="optimizer")
    said = told("NPO's meet #, SimNPO's #, length / norm² # and the best weights #")
    assert said == [
        shown(differences[name]) for name in ("npo", "simnpo", "length_over_norm", "nnls")
    ]
    ledger = pd.read_csv(KEPT.parent / "ledger" / "ledger.csv")
    (row,) = ledger[(ledger["claim"] == "push, NPO") & (ledger["rung"] == "smollm2")].to_dict(
        "records"
    )
    said = told(r"by # under AdamW, though over answers that is not sure \(# to #\)")
    assert said == [shown(row[name]) for name in ("value", "low", "high")]
    need = PUSHES.loc[PUSHES["kind"] == "example", "need"]
    assert told("were all answers to fall by the same, # would be met") == [
        shown(need.mean() ** 2 / (need**2).mean())
    ]


def test_what_the_best_weights_go_with_is_told_as_it_was() -> None:
    keys = ["optimizer", "quantity", "measure"]
    found = causes(PUSHES).set_index(keys)["value"].sort_index()
    default = pd.read_csv(KEPT.parent / "push_and_need" / "causes.csv")
    default = default.set_index(keys)["value"].sort_index()
    own = found.loc["AdamW", "nnls"]
    shares = told("The length says as little .*?, #% of .*? known more, #%")
    assert shares == [round(100 * own[f"{name}_alone"]) for name in ("length", "loss")]
    said = told(r"they go as \|y\|\^#, on the default model as \|y\|\^#")
    assert said == [shown(own["length"]), shown(default["AdamW", "nnls", "length"])]
