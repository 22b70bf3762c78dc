"""The findings tell of this project's own questions what the frames of their figures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from figures.scale import EVIDENCE, TRAINED
from tests.test_findings_language import COUNTED
from tests.test_readme import FINDINGS, numbers, rows, told

KEPT = Path(__file__).parents[1] / "figures" / "gallery"
CHAINS, LANGUAGE = "chains", "language model"


def table(figure: str, part: str) -> Any:
    return pd.read_csv(KEPT / figure / f"{part}.csv")


def shown(row: Any) -> list[float]:
    """A number with its interval, as the tables of the findings show it."""
    digits = 2 if max(abs(row["value"]), abs(row["high"])) >= 0.1 else 3
    return [round(float(row[name]), digits) for name in ("value", "low", "high")]


def test_what_spares_what_was_never_read_is_told_with_its_interval() -> None:
    claims = table("reference_or_length", "claims")
    primary = claims[claims["primary"]].set_index(["rung", "effect"])
    assert primary.loc[CHAINS, "count"].eq(EVIDENCE).all()
    assert primary.loc[LANGUAGE, "count"].eq(TRAINED).all()
    found = rows(FINDINGS, "Reference or length?")
    effects = ("reference dropped", "length normalised", "interaction")
    assert len(found) == len(effects)
    for (_, *cells), effect in zip(found, effects, strict=True):
        for rung, cell in zip((CHAINS, LANGUAGE), cells, strict=True):
            row = primary.loc[(rung, effect)]
            assert numbers(cell) == shown(row) and f"**{row['verdict']}**" in cell
    level = float(claims.loc[claims["primary"] & (claims["rung"] == LANGUAGE), "level"].iloc[0])
    other = claims[(claims["rung"] == LANGUAGE) & ~claims["primary"]].set_index("effect")
    levels = claims[(claims["rung"] == CHAINS) & (claims["setting"] == "adamw_transformers")]
    levels = levels.set_index(["level", "effect"])
    alone, both = "reference dropped", "interaction"
    assert told(r"their interaction is # \(# to #\). At 0.2") == shown(levels.loc[(0.05, both)])
    assert told(
        r"told from 0, # \(# to #\), and nearly all comes from both together, # \(# to #\)"
    ) == [*shown(levels.loc[(0.2, alone)]), *shown(levels.loc[(0.2, both)])]
    assert levels.loc[(0.2, alone), "verdict"] == "inconclusive"
    said = told(
        r"there \(λ = #\) was settled after a look at results. At λ = # the two alone do "
        r"# \(# to #\) and # \(# to #\), and no interaction can be told, # \(# to #\)"
    )
    assert said[:2] == [level, other["level"].iloc[0]]
    assert said[2:] == [one for effect in effects for one in shown(other.loc[effect])]
    assert other.loc["interaction", "verdict"] == "inconclusive"


def test_distances_of_what_was_never_read_are_told_as_they_ended() -> None:
    found = table("reference_or_length", "distances")
    own = found[(found["half"] == "never read") & (found["level"].isna() | (found["level"] == 16))]
    distance = own.set_index("method")["value"].round(2)
    assert told("never read D is # before and # between two retrained models") == [
        distance["start"],
        distance["retrained"],
    ]
    methods = ("npo", "length_normalized_npo", "reference_free_npo", "simnpo")
    said = told(
        "NPO takes it to #, length-normalised NPO to #, reference-free NPO to # and SimNPO to #"
    )
    assert said == [distance[name] for name in methods]


def test_what_survives_adam_is_told_with_its_interval() -> None:
    parts = table("after_adam", "parts").query("setting == 'primary'")
    parts = parts.set_index(["outcome", "part"])
    found = rows(FINDINGS, "What survives Adam?")
    outcomes = ("short chain", "long chain", "memorised chain", "gap")
    assert len(found) == len(outcomes)
    for (_, *cells), outcome in zip(found, outcomes, strict=True):
        for cell, part in zip(cells, ("own", "allocation", "magnitude"), strict=True):
            row = parts.loc[(outcome, part)]
            assert numbers(cell) == shown(row) and ("×" in cell) == (row["none"] == 1)
    assert parts["count"].max() == EVIDENCE
    left = parts.loc[pd.IndexSlice[:, ["magnitude", "interaction"]], "verdict"]
    assert "cannot be told from none" in FINDINGS and set(left) == {"inconclusive"}


def test_how_well_a_push_matches_the_need_is_told_with_its_interval() -> None:
    found = table("push_and_need", "matches")
    own = found[(found["model"] == LANGUAGE) & found["corner"].isna() & (found["epoch"] == 0)]
    own = own[(own["need_of"] == "total") & (own["measure"] == "whole")]
    own = own.set_index(["weighting", "optimizer"])
    names = ("npo", "reference_free_npo", "length_normalized_npo", "simnpo")
    names += ("length_over_norm", "need_over_norm", "nnls")
    shares = rows(FINDINGS, "Does the push match the need?")
    assert len(shares) == len(names)
    for (_, *cells), name in zip(shares, names, strict=True):
        for cell, optimizer in zip(cells, ("gradient descent", "AdamW"), strict=True):
            assert numbers(cell) == shown(own.loc[(name, optimizer)])
    claims = table("push_and_need", "claims").set_index("claim")
    assert told(r"more than SimNPO's here, by # \(# to #\) under AdamW") == shown(
        claims.loc["npo first"]
    )
    chains = found[(found["optimizer"] == "gradient descent") & (found["measure"] == "whole")]
    chains = chains[chains["epoch"].eq(0) & chains["need_of"].eq("total")]
    chains = chains.set_index(["model", "weighting"])
    said = told(
        r"two lengths agree: NPO's meet # \(# to #\) and SimNPO's # \(# to #\). Where chains "
        r"differ in memorisation it is the other way round: NPO's meet next to nothing, "
        r"# \(# to #\), and SimNPO's # \(# to #\)"
    )
    pairs = [(case, name) for case in ("length", "memorisation") for name in ("npo", "simnpo")]
    assert said == [one for pair in pairs for one in shown(chains.loc[pair])]
    runs = claims.loc[["needed wins", "needed retains", "over norm wins"]]
    said = told(
        r"With the best weights D is smaller by # \(# to #\) at equal utility, and by # \(# to #\) "
        r"at equal probability of the answers to retain. With length / norm² it is no "
        r"other: # \(# to #\)"
    )
    assert said == [one for _, row in runs.iterrows() for one in shown(row)]
    said = told(r"the one with the smallest D: # \(# to #\), where it was chosen on other")
    assert said == shown(claims.loc["chosen n wins"])
    over = table("push_and_need", "excess").query("at == 'utility' and trainings == 'all'")
    powers = over[over["factor"].str.startswith("power") & over["measure"].eq("distance")]
    assert powers.set_index("factor")["value"].idxmin() == "power_0.5"
    assert set(claims.loc[claims["family"] == "runs", "verdict"]) == {"inconclusive"}
    count = COUNTED_ALSO[int(runs["count"].max())]
    assert f"All are inconclusive, over {count} trainings" in " ".join(FINDINGS.split())


def test_what_survives_adam_on_a_language_model_is_told_with_its_interval() -> None:
    claims = table("llm_after_adam", "claims").set_index("part")
    parts = table("llm_after_adam", "parts")
    own = parts[(parts["outcome"] == "never read") & (parts["part"] == "own")].iloc[0]
    assert told(r"what was never read by # \(# to #\) nats per token more than SimNPO") == shown(
        own
    )
    assert told(r"comparison of weights alone leaves # \(# to #\), which is at least") == shown(
        claims.loc["allocation"]
    )
    assert told(r"size alone leaves # \(# to #\), which cannot be told from none") == shown(
        claims.loc["magnitude"]
    )
    assert list(claims["verdict"]) == ["holds", "inconclusive"]
    count = COUNTED_ALSO[int(claims["count"].max())]
    assert f"95% intervals over {count} trainings; hollow: 0 is inside" in " ".join(
        FINDINGS.split()
    )
    unseen = table("llm_after_adam", "unseen")
    assert set(unseen["verdict"]) == {"inconclusive"} and set(unseen["count"]) == {2}


COUNTED_ALSO = {**COUNTED, 3: "three", 4: "four"}


def test_how_fast_the_model_drifts_is_told_with_its_interval() -> None:
    found = table("llm_divergence", "exponents").set_index(["on", "method"])
    names = ("gradient_ascent", "npo", "length_normalized_npo", "reference_free_npo", "simnpo")
    told_rows = rows(FINDINGS, "How fast a language model drifts away")
    assert len(told_rows) == len(names)
    for (_, *cells), name in zip(told_rows, names, strict=True):
        for cell, on in zip(cells, ("forgotten", "kept"), strict=True):
            assert numbers(cell) == shown(found.loc[(on, name)])
    assert set(table("llm_divergence", "faster")["verdict"]) == {"holds"}
    assert found["count"].eq(TRAINED).all()
