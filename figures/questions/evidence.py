"""Where the numbers of the ledger stand.

A finder takes the tables that figures tell, by figure and part (figures/gallery/FIGURE/PART.csv),
and returns what one kind of model says of a claim, at one setting or several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from figures.chains.claims import PRIMARY
from llm.intervals import bootstrap
from markov.objectives import SequenceLogProbs, npo

Tables = Mapping[tuple[str, str], pd.DataFrame]
Answers = Float[np.ndarray, "*resamples answers"]


class Missing(Exception):
    """A table that a finder asks for is not there."""


class Found(NamedTuple):
    """A number that speaks for a claim, or against it.

    The number is claimed to lie above no effect, or below it where `above` is false; without an
    effect it is 0, or 1 of a `factor`. Claims of one `family` are judged together, unless the
    table has a `verdict` already; then `p` and `level` are those by which it was reached.
    """

    rung: str
    value: float
    low: float
    high: float
    count: int
    over: str
    command: str
    unit: str = ""
    setting: str = ""
    factor: bool = False
    above: bool = True
    threshold: float = 0.0
    family: str = ""
    verdict: str | None = None
    p: float = np.nan
    level: float = np.nan


def _said(row: Mapping[Any, Any], level: str = "level") -> dict[str, Any]:
    """Return the verdict of a row, and the p-value and the level by which it was reached."""
    return {"verdict": row["verdict"], "p": row.get("p", np.nan), "level": row.get(level, np.nan)}


def _row(table: pd.DataFrame, **wanted: Any) -> dict[str, Any]:
    """Return the only row with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    if len(table) != 1:
        raise Missing(f"one row with {wanted}")
    return {str(name): value for name, value in table.iloc[0].items()}


def of_claims(name: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds a claim on the paper's Figure 5, in every setting that was run."""

    def find(tables: Tables) -> Sequence[Found]:
        own = tables["claims", "claims"]
        found = []
        for row in own[own["claim"] == name].to_dict("records"):
            setting = (row["architecture"], row["optimizer"])
            found.append(
                Found(
                    "chains",
                    *(row[end] for end in ("value", "low", "high")),
                    count=row["count"],
                    over="pretrained models",
                    command="python -m figures claims --seeds 8 --architectures",
                    unit="" if row["none"] == 1 else "nats",
                    setting="" if setting == PRIMARY else f"{setting[0]}, {setting[1]}",
                    factor=row["none"] == 1,
                    threshold=row["threshold"] if row["threshold"] != row["none"] else 0.0,
                    **_said(row),
                )
            )
        return found

    return find


def of_trainings(name: str, figure: str = "llm_claims") -> Callable[[Tables], Sequence[Found]]:
    """Return what finds a claim that a figure judged by trainings of the default language model."""

    def find(tables: Tables) -> Sequence[Found]:
        row = _row(tables[figure, "claims"], claim=name)
        return [
            Found(
                "small",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over="trainings",
                command=f"python -m figures {figure} --seeds {int(row['count'])}",
                unit=row["unit"],
                threshold=row["threshold"],
                **_said(row),
            )
        ]

    return find


def of_tuned(name: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds a claim on the default language model at settings that were chosen.

    They are chosen on other authors; with each share of the utility that may be lost, the first of
    which is primary.
    """

    def find(tables: Tables) -> Sequence[Found]:
        own = tables["llm_tuned", "claims"]
        return [
            Found(
                "small",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over="trainings",
                command="python -m figures llm_tuned --seeds 5",
                unit=row["unit"],
                setting="" if place == 0 else f"chosen to keep {1 - row['tolerance']:.0%}",
                **_said(row),
            )
            for place, row in enumerate(own[own["claim"] == name].to_dict("records"))
        ]

    return find


def of_effects(case: str, component: str, effect: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds by which factor a change to NPO multiplies the price on chains."""

    def find(tables: Tables) -> Sequence[Found]:
        table = tables["attribution", "effects"]
        row = _row(table, case=case, component=component, effect=effect)
        return [
            Found(
                "chains",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over="pretrained models",
                command="python -m figures attribution --seeds 8",
                factor=True,
                above=False,
                family="attribution",
            )
        ]

    return find


def weakest(
    figure: str, part: str, command: str, axis: str, **wanted: Any
) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds the least of a row of factors along an axis: it holds of all if of that."""

    def find(tables: Tables) -> Sequence[Found]:
        table = tables[figure, part]
        for name, value in wanted.items():
            table = table[table[name] == value]
        row = table.sort_values("low").iloc[0]
        places = table[axis.replace(" ", "_")]
        ends = f"{axis} {places.min():g} to {places.max():g}"
        return [
            Found(
                "chains",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over=f"pretrained models, at the least certain of {ends}",
                command=command,
                factor=True,
                family=figure,
            )
        ]

    return find


def at_the_start(tables: Tables) -> Sequence[Found]:
    """Return that the weight of NPO at its reference is 1, whatever the response."""
    length = torch.arange(1, 101, dtype=torch.float64)
    logp = -torch.logspace(-3, 3, 100, dtype=torch.float64)
    weight = npo(0.1).weight(SequenceLogProbs(logp, length, logp))
    off = float((weight - 1).abs().max())
    if off:
        raise Missing("a weight of 1")
    return [Found("chains", off, off, off, 1, "", "python -m figures weights", verdict="exact")]


def of_study(measure: str, one: str, other: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds by how much a corner lies above another one on SmolLM2."""

    def find(tables: Tables) -> Sequence[Found]:
        table = tables["study", "llm_study"]
        table = table[(table["kind"] == "difference") & (table["measure"] == measure)]
        names = table[["model", "other"]].map(lambda word: word.partition(":")[0])
        sign, pair = 1, (names["model"] == one) & (names["other"] == other)
        if not pair.any():
            sign, pair = -1, (names["model"] == other) & (names["other"] == one)
        if not pair.any():
            raise Missing(f"{one} beside {other}")
        row = table[pair].iloc[0]
        low, high = sorted((sign * row["low"], sign * row["high"]))
        return [_once(sign * row["value"], low, high, MEASURED[measure])]

    return find


MEASURED = {
    "ks_statistic": "D",
    "model_utility": "utility",
    "retain_probability": "probability",
}


def _once(value: float, low: float, high: float, unit: str) -> Found:
    return Found(
        "smollm2",
        float(value),
        float(low),
        float(high),
        count=1,
        over="training, the interval over answers",
        command="make real",
        unit=unit,
        verdict="one run",
    )


def relearned(tables: Tables) -> Sequence[Found]:
    """Return how much less of what it had lost SimNPO regains than NPO, when a fifth is taught."""
    table = tables["study", "llm_relearning"]
    table = table[(table["kind"] == "attack") & (table["which"] == "random")]
    shares = {}
    for method in ("npo", "simnpo"):
        own = table[table["method"] == method].groupby("epoch")["other_logp"].mean().sort_index()
        original = table.loc[table["method"] == method, "original_logp"].iloc[0]
        before, after = own.iloc[0], own.iloc[-1]
        shares[method] = (after - before) / (original - before)
    apart = shares["npo"] - shares["simnpo"]
    return [_once(apart, np.nan, np.nan, "of what was lost")]


def pushed(claim: str, threshold: float = 0.0) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds a claim of question 10 at SmolLM2's start, under AdamW.

    The interval is over the answers whose needs are met, under the weights and K as they are (see
    `figures.questions.pushing.matching_told`).
    """

    def find(tables: Tables) -> Sequence[Found]:
        table = tables["study", "push_and_need"]
        own = table[(table["kind"] == "example") & (table["optimizer"] == "AdamW")]
        names = ["need", *(f"moved_{name}" for name in ("npo", "simnpo", "nnls"))]
        told, unit = PUSHED[claim]
        found = bootstrap(told, *(own[name].to_numpy(dtype=float) for name in names))
        command = "python -m figures push_and_need --study out/real"
        one = _once(found.value, found.low, found.high, unit)
        return [one._replace(command=command, threshold=threshold)]

    return find


def _met(need: Answers, movement: Answers) -> np.ndarray:
    """Return `whole` of `llm.diagnostics.matching.match`, along the last axis."""
    along = np.maximum((need * movement).sum(-1), 0.0)
    return along**2 / ((need**2).sum(-1) * (movement**2).sum(-1))


def _first(need: Answers, npo: Answers, simnpo: Answers, best: Answers) -> np.ndarray:
    return _met(need, npo) - _met(need, simnpo)


def _far(need: Answers, npo: Answers, simnpo: Answers, best: Answers) -> np.ndarray:
    return (_met(need, best) - _met(need, npo)) / (1 - _met(need, npo))


PUSHED = {
    "npo first": (_first, "of the need"),
    "far": (_far, "of what NPO's leave unmet"),
}


def drifts(method: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds by how much GA's growth exponent lies above a method's, on a model."""

    def find(tables: Tables) -> Sequence[Found]:
        row = _row(tables["llm_divergence", "faster"], on="forgotten", method=method)
        return [
            Found(
                "small",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over="trainings",
                command="python -m figures llm_divergence --seeds 5",
                unit="exponent",
                **_said(row),
            )
        ]

    return find


def of_causes(effect: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds how much less is over-forgotten of what was never read, by a change.

    The change is one to NPO, on chains and on the small language model.
    """
    rungs = {
        "chains": ("chains", "pretrained models", "β"),
        "language model": ("small", "trainings", "λ"),
    }

    def find(tables: Tables) -> Sequence[Found]:
        table = tables["reference_or_length", "claims"]
        own = table[(table["effect"] == effect) & (table["setting"] != "adamw")]
        found = []
        for row in own.sort_values("primary", ascending=False, kind="stable").to_dict("records"):
            rung, over, name = rungs[row["rung"]]
            # That two changes interact is found on either side, and claimed on one.
            other_way = row["verdict"] == "holds" and row["value"] > 0
            found.append(
                Found(
                    rung,
                    value=-row["value"],
                    low=-row["high"],
                    high=-row["low"],
                    count=int(row["count"]),
                    over=over,
                    command="python -m figures reference_or_length --seeds 8",
                    unit="nats per token",
                    setting="" if row["primary"] else f"{name} = {row['level']:g}",
                    **_said({**row, "verdict": "contradicted"} if other_way else row, "holm"),
                )
            )
        return found

    return find


def of_kept(part: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds by how much NPO over-forgets beyond SimNPO with a part of their weights.

    It is of what was never read, on the small language model.
    """

    def find(tables: Tables) -> Sequence[Found]:
        table = tables["llm_after_adam", "claims"]
        own = table[table["part"] == part].sort_values("primary", ascending=False, kind="stable")
        return [
            Found(
                "small",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over="trainings",
                command="python -m figures llm_after_adam --seeds 5",
                unit=row["unit"],
                setting="" if row["primary"] else f"λ = {row['level']:g}",
                **_said(row, "holm"),
            )
            for row in own.to_dict("records")
        ]

    return find


def of_parts(outcome: str, part: str) -> Callable[[Tables], Sequence[Found]]:
    """Return what finds by how much NPO exceeds SimNPO with a part of their weights, on chains."""

    def find(tables: Tables) -> Sequence[Found]:
        row = _row(tables["after_adam", "parts"], setting="primary", outcome=outcome, part=part)
        return [
            Found(
                "chains",
                *(row[end] for end in ("value", "low", "high")),
                count=int(row["count"]),
                over="pretrained models",
                command="python -m figures after_adam --seeds 8",
                unit="" if row["none"] == 1 else "nats",
                factor=row["none"] == 1,
                **_said(row),
            )
        ]

    return find
