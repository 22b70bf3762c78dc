"""The ledger: its rows are those of the tables behind it, its verdicts those of the rule, and what
README and findings print of it is what it says.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from figures import __main__ as command
from figures import drawing
from figures.cache import Context
from figures.catalogue import BY_NAME, FIGURES
from figures.questions import ledger, llm_claims, llm_tuned, statements
from figures.scale import TRAINED, Scale
from figures.statistics import at_level, mean_interval, verdict
from figures.theory import weights
from llm.intervals import Estimate
from markov.errors import InvalidInput
from tests.figures.studies import drawn

ROOT = Path(command.__file__).parents[1]
README, FINDINGS = (
    (ROOT / name).read_text("utf-8") for name in ("README.md", "notebooks/findings.md")
)
LEDGER = ledger.rows(ledger.KEPT)
VERDICTS = ("holds", "holds weakly", "inconclusive", "contradicted")
numbers = st.floats(-3, 3)


# --- the rule ---


@given(ends=st.lists(numbers, min_size=2, max_size=2).map(sorted), threshold=st.floats(0, 1))
def test_a_verdict_says_where_the_interval_lies(ends: list[float], threshold: float) -> None:
    low, high = ends
    found = verdict(Estimate((low + high) / 2, low, high, 5), threshold)
    assert (found == "holds") == (low > threshold)
    assert (found in ("holds", "holds weakly")) == (low > 0)
    assert (found == "contradicted") == (high < 0)
    assert verdict(Estimate(1.0, np.nan, np.nan, 1), threshold) == "inconclusive"


@given(st.lists(numbers, min_size=3, max_size=8), st.floats(0.5, 0.999))
def test_an_interval_at_another_level_is_the_one_that_the_values_have(
    values: list[float], level: float
) -> None:
    given_values = np.array(values)
    moved, straight = (
        at_level(mean_interval(given_values), level),
        mean_interval(given_values, level),
    )
    assert moved == pytest.approx(straight, abs=1e-9)


# --- where its numbers stand ---


def evidence(folder: Path, **factors: tuple[float, float, float]) -> Path:
    """A folder with the changes to NPO's price for a short chain, and no other table."""
    rows = [
        ("length", "forget2", effect, *factors[name], 8)
        for name, effect in (
            ("dropped", "reference dropped"),
            ("normalised", "length normalised"),
            ("interaction", "interaction"),
        )
    ]
    names = ["case", "component", "effect", "value", "low", "high", "count"]
    (folder / "attribution").mkdir(parents=True)
    pd.DataFrame(rows, columns=names).to_csv(folder / "attribution" / "effects.csv", index=False)
    return folder


def test_a_factor_is_judged_in_its_direction_and_with_the_others(tmp_path: Path) -> None:
    sure, just, beyond = (0.5, 0.4, 0.625), (0.9, 0.82, 0.9878), (1.5, 1.2, 1.875)
    folder = evidence(tmp_path, dropped=sure, normalised=just, interaction=beyond)
    found = ledger.rows(folder).set_index("claim")
    assert set(found.index) == {"reference, short", "length, short", "interaction, short"} | {
        "start"
    }
    said = found["verdict"].to_dict()
    assert said["reference, short"] == "holds" and said["interaction, short"] == "contradicted"
    # Its 95% interval excludes no effect, and Holm's, the last of three and so as wide, does too.
    assert said["length, short"] == "holds"
    levels = found["level"].drop("start").round(6).tolist()
    assert sorted(levels) == [0.95, 0.975, round(1 - 0.05 / 3, 6)]
    # With a second one as uncertain, neither is told from no effect.
    folder = evidence(tmp_path / "two", dropped=just, normalised=just, interaction=just)
    assert set(ledger.rows(folder)["verdict"]) == {"exact", "inconclusive"}


def test_a_folder_without_tables_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(ledger.data(Context(evidence=tmp_path))) == 1  # what the law says needs no table
    monkeypatch.setattr(ledger, "STATEMENTS", ledger.STATEMENTS[1:])
    with pytest.raises(InvalidInput, match="evidence"):
        ledger.data(Context(evidence=tmp_path))


def test_every_table_that_is_asked_for_is_kept_here() -> None:
    tables = ledger.Kept(ledger.KEPT)
    counts = LEDGER["claim"].value_counts()
    for one in statements.STATEMENTS:
        found = [len(find(tables)) for find in one.evidence]
        assert min(found) > 0 and sum(found) == counts[one.claim]


def test_changed_evidence_changes_the_ledger(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(ledger.KEPT, folder, ignore=shutil.ignore_patterns("*.png"))
    path = folder / "llm_claims" / "claims.csv"
    table = pd.read_csv(path)
    table.loc[table["claim"] == "nearer", ["value", "verdict"]] = [0.5, "holds"]
    table.to_csv(path, index=False)
    found = ledger.rows(folder)
    changed = (found["value"] != LEDGER["value"]) & LEDGER["value"].notna()
    assert found.loc[changed, "claim"].tolist() == ["nearer"]


def test_what_was_run_once_has_no_verdict() -> None:
    once = LEDGER[LEDGER["count"] == 1]
    assert set(once["verdict"]) == {ledger.ONCE, ledger.EXACT}
    assert set(LEDGER.loc[LEDGER["count"] > 1, "verdict"]) <= set(VERDICTS)
    assert LEDGER.loc[LEDGER["rung"] == "smollm2", "count"].eq(1).all()
    assert LEDGER.loc[LEDGER["rung"] == "chains", "count"].isin([1, 8]).all()


def test_every_command_that_makes_a_number_is_one() -> None:
    for line in LEDGER["command"].unique():
        if line == "make real":
            continue
        program, _, rest = line.partition("python -m figures ")
        name, *options = rest.split()
        assert not program and name in BY_NAME
        assert all(
            option in ("--seeds", "--architectures", "--study", "out/real") or option.isdigit()
            for option in options
        )


def test_pushes_of_smollm2_are_those_of_its_frame() -> None:
    frame = pd.read_csv(ledger.KEPT / "study" / "push_and_need.csv")
    own = frame[frame["kind"].eq("match") & frame["need_of"].eq("total")]
    whole = own[own["optimizer"] == "AdamW"].set_index("weighting")["whole"]
    want = {
        "push, NPO": whole["npo"] - whole["simnpo"],
        "push, best": (whole["nnls"] - whole["npo"]) / (1 - whole["npo"]),
    }
    found = LEDGER[LEDGER["rung"] == "smollm2"].set_index("claim")
    for claim, value in want.items():
        assert found["value"][claim] == pytest.approx(value, abs=1e-4)
        assert found["low"][claim] - 1e-4 < value < found["high"][claim] + 1e-4


# --- what is printed of it ---


def test_the_kept_ledger_is_made_of_the_kept_tables() -> None:
    kept = (ledger.KEPT / "ledger" / "ledger.csv").read_text("utf-8")
    written = io.StringIO()
    LEDGER.to_csv(written, index=False, float_format="%.6g")
    assert written.getvalue() == kept


def test_readme_and_findings_print_the_ledger() -> None:
    assert ledger.markdown(LEDGER, brief=True) in README
    assert ledger.markdown(LEDGER) in FINDINGS


def test_a_line_on_the_terminal_has_the_verdict_and_the_number() -> None:
    lines = ledger.text(LEDGER).splitlines()
    assert sum(not line.startswith(" ") for line in lines) == LEDGER["claim"].nunique()
    for row in LEDGER.to_dict("records"):
        said = ledger.cell(row)
        assert any(said.verdict in line and said.number in line for line in lines)


def test_a_point_for_every_number_at_its_place() -> None:
    panels: Any = drawn(ledger, LEDGER).axes
    (axes,) = panels
    shown = LEDGER[LEDGER["verdict"] != ledger.EXACT]
    marks = [line for line in axes.lines if line.get_marker() in ("o", "s", "D")]
    places = [value for line in marks for value in line.get_xdata()]
    factor = shown["none"].eq(1)
    sign = np.where(shown["above"], 1.0, -1.0)
    wanted = sign * np.where(factor, np.log(shown["value"].where(factor, 1.0)), shown["value"])
    assert sorted(places) == pytest.approx(sorted(wanted))
    assert len(axes.get_yticklabels()) == shown["claim"].nunique()


# --- full scale only, and what lies beside a figure ---


def test_what_needs_full_scale_is_left_out_of_a_quick_drawing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = [name for name in FIGURES if BY_NAME[name].full]
    assert {"llm_gate", "llm_claims"} <= set(full)
    quick = command.Arguments(quick=True)
    assert [name for name in FIGURES if name not in command.chosen(quick)] == full
    assert all(name in capsys.readouterr().out for name in full[:1])
    with pytest.raises(InvalidInput, match=r"quick = True.*llm_gate"):
        command.chosen(replace(quick, names=("llm_gate",)))


def test_the_tables_that_are_told_are_written_beside_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evidence(
        tmp_path / "mine",
        dropped=(0.5, 0.4, 0.6),
        normalised=(0.5, 0.4, 0.6),
        interaction=(0.5, 0.4, 0.6),
    )
    command.main(command.Arguments(names=("ledger",), evidence=folder, out=tmp_path / "out"))
    back = pd.read_csv(tmp_path / "out" / "told" / "ledger" / "ledger.csv")
    assert len(back) == 4 and "holds" in capsys.readouterr().out
    assert "**holds** 0.50×" in (tmp_path / "out" / "ledger.md").read_text("utf-8")


# --- claims that are judged by trainings ---


def planted(effect: float, seeds: int = 5) -> pd.DataFrame:
    """Trainings in which each method lies by its own multiple of an effect above NPO."""
    order = {
        name: place
        for place, name in enumerate(
            ("npo", "reference_free_npo", "length_normalized_npo", "simnpo")
        )
    }
    order |= {"original": 4, "gradient_ascent": -3, "grad_diff": -2}
    quantities = (
        "distance",
        "utility",
        "kept",
        "correlation",
        "area",
        "distance, short",
        "distance, long",
    )
    rows = [
        (
            seed,
            quantity,
            method,
            epoch,
            10 + seed + effect * place + 0.001 * effect * (seed % 2) * place,
        )
        for seed in range(seeds)
        for quantity in quantities
        for method, place in order.items()
        for epoch in (1, llm_claims.END)
    ]
    return pd.DataFrame(rows, columns=["seed", "quantity", "method", "epoch", "value"])


def test_claims_are_judged_within_a_training_and_in_their_direction() -> None:
    up, down = (llm_claims.assess(planted(effect)).set_index("claim") for effect in (1.0, -1.0))
    # Trainings differ by more than methods do, and pairing takes that out.
    for name in ("utility", "retain", "early", "allocation"):
        assert (up["verdict"][name], down["verdict"][name]) == ("holds", "contradicted")
    for name in ("nearer", "lengths", "reference", "length"):
        assert (up["verdict"][name], down["verdict"][name]) == ("contradicted", "holds")
    assert up["value"]["utility"] == pytest.approx(3, abs=0.01)
    assert up["value"]["interaction"] == pytest.approx(0, abs=1e-9)
    assert up["verdict"]["interaction"] == "inconclusive"
    assert set(up["count"]) == {5}


def test_the_papers_claims_are_judged_apart_from_this_projects() -> None:
    found = llm_claims.assess(planted(1.0))
    theirs = found[found["panel"] != ""]
    for own in (theirs, found[found["panel"] == ""]):
        assert own["level"].max() <= 1 - 0.05 / len(own) + 1e-12
        assert own["level"].min() >= 0.95 - 1e-12
    assert len(theirs) == sum(bool(claim.panel) for claim in llm_claims.CLAIMS)


def test_the_kept_claims_follow_from_the_kept_trainings() -> None:
    kept = {
        name: pd.read_csv(ledger.KEPT / "llm_claims" / f"{name}.csv")
        for name in ("trainings", "claims")
    }
    found = llm_claims.assess(kept["trainings"]).fillna({"panel": ""})
    same = ["claim", "verdict", "count"]
    claims = kept["claims"]
    pd.testing.assert_frame_equal(found[same], claims[same], check_dtype=False)
    for name in ("value", "low", "high", "level"):
        assert found[name].to_numpy() == pytest.approx(claims[name].to_numpy(), abs=2e-4)


def test_every_claim_of_trainings_is_drawn_with_its_trainings() -> None:
    kept = {
        kind: pd.read_csv(ledger.KEPT / "llm_claims" / f"{part}.csv")
        for part, kind in (("numbers", "number"), ("claims", "claim"))
    }
    frame = pd.concat([own.assign(kind=kind) for kind, own in kept.items()], ignore_index=True)
    (axes,) = drawn(llm_claims, frame.fillna({"panel": ""})).axes
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert len(dots) == len(kept["claim"])
    shown: Any = sorted(value for line in dots for value in np.asarray(line.get_xdata()))
    assert shown == pytest.approx(sorted(kept["number"]["value"]))


def test_told_tables_say_what_made_them(tmp_path: Path) -> None:
    frame = pd.read_csv(ledger.KEPT / "llm_tuned" / "runs.csv")
    scale = Scale(trained=TRAINED)
    for folder in ("a", "b"):
        drawing.tell("llm_tuned", llm_tuned, frame, scale, [tmp_path / folder])
    one, other = (tmp_path / name / "llm_tuned" / drawing.PROVENANCE for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    made = json.loads(one.read_text())
    assert made["settings"]["trained"] == TRAINED and made["code"] and made["version"]
    # A figure that tells nothing leaves nothing.
    drawing.tell("weights", weights, frame, scale, [tmp_path])
    assert not (tmp_path / "weights").exists()
