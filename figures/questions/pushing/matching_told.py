"""What is told of pushes, needs and runs with given weights: tables, and claims with verdicts.

Everything is taken within a training, or a pretrained model, and then over these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from figures.questions.claim_table import Claimed, judged_together
from figures.questions.pushing.weightings import FIRST, OF_POWER
from figures.statistics import over_models

LANGUAGE = "language model"
CHOSEN_ON = 2  # trainings on which n is chosen; it is judged on the others
POWERS = tuple(name for name in OF_POWER if name != FIRST)
START = {"corner": "", "epoch": 0}
# What a run is compared at: as much utility, or as much of what is retained, as the one with equal
# weights has, at some lambda between those that it was run with.
AT = ("utility", "retain")


def start_of(frame: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the matches at the start that have these values."""
    own = frame[frame["kind"] == "match"]
    for name, value in {**START, **wanted}.items():
        own = own[own[name] == value]
    return own


def matches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how well each weighting matches the need, with intervals over trainings or models.

    Columns `model`, `corner`, `epoch`, `optimizer`, `need_of`, `weighting`, `measure` (whole or
    differences, see `llm.diagnostics.matching.match`, or what becomes of retain answers:
    `retain_moved` and `retain_fell` of `figures.questions.pushing.pushes.of_point`), `value`,
    `low`, `high` and `count`.
    """
    own = frame[frame["kind"] == "match"]
    keys = ["model", "corner", "epoch", "optimizer", "need_of", "weighting"]
    rows = []
    for key, part in own.groupby(keys, sort=False, dropna=False):
        known = dict(zip(keys, key, strict=True))
        for measure in ("whole", "differences", "retain_moved", "retain_fell"):
            found = over_models(part[measure], part["seed"])
            rows.append({**known, "measure": measure, **found._asdict()})
    return pd.DataFrame(rows)


def laws(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how weights at the start go with the length: exponent, share explained, share of 0.

    The columns are `model`, `optimizer`, `weighting`, `measure`, `value`, `low`, `high`, `count`.
    """
    own = frame[(frame["kind"] == "law") & (frame["epoch"] == 0)]
    keys, rows = ["model", "optimizer", "weighting"], []
    for key, part in own.groupby(keys, sort=False):
        for measure in ("power", "explained", "zero"):
            found = over_models(part[measure], part["seed"])
            known = dict(zip(keys, key, strict=True))
            rows.append({**known, "measure": measure, **found._asdict()})
    return pd.DataFrame(rows)


def causes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what gradients, needs and the weights that match go with, over trainings.

    At the start log `quantity` (norm, need, or the best weights, `nnls`) is fitted by least squares
    on log |y| and on the logarithm of the loss per token, -logp / |y|: how well the model knows an
    answer. Columns `optimizer`, `quantity`, `measure`: the exponents `length` and `loss`, the share
    of the variance `explained` by both, and by either alone, `length_alone` and `loss_alone`;
    `value`, `low`, `high`, `count`. Answers where the quantity is not positive are left out; of
    three or fewer nothing is told.
    """
    own, rows = frame[frame["kind"] == "example"], []
    for (optimizer, seed), part in own.groupby(["optimizer", "seed"], sort=False):
        for quantity in ("norm", "need", "nnls"):
            found = _fit(part, quantity)
            rows += [
                {"optimizer": optimizer, "seed": seed, "quantity": quantity, "measure": name}
                | {"value": value}
                for name, value in found.items()
            ]
    single, keys = pd.DataFrame(rows), ["optimizer", "quantity", "measure"]
    return pd.DataFrame(
        [
            dict(zip(keys, key, strict=True)) | over_models(one["value"], one["seed"])._asdict()
            for key, one in single.groupby(keys, sort=False)
        ]
    )


def _fit(part: pd.DataFrame, quantity: str) -> dict[str, float]:
    some = part[(part[quantity] > 0) & (part["logp"] < 0)]
    if len(some) <= 3:  # which a fit of three numbers passes through
        return dict.fromkeys(("length", "loss", "explained", "length_alone", "loss_alone"), np.nan)
    length, loss = np.log(some["length"]), np.log(-some["logp"] / some["length"])
    y = np.log(some[quantity])
    columns = np.column_stack([np.ones(len(some)), length, loss])
    fitted = np.linalg.lstsq(columns, y, rcond=None)[0]
    rest = float(((y - columns @ fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    alone = {
        f"{name}_alone": float(np.corrcoef(one, y)[0, 1] ** 2)
        for name, one in (("length", length), ("loss", loss))
    }
    return {"length": fitted[1], "loss": fitted[2], "explained": 1 - rest, **alone}


def runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the measures of the runs, means over trainings with intervals."""
    own, rows = frame[frame["kind"] == "run"], []
    measures = ["distance", "utility", "retain", "retain_rouge", "facts", "forget", "gap", "left"]
    for key, part in own.groupby(["factor", "retain_weight"], sort=False):
        for measure in measures:
            found = over_models(part[measure], part["seed"])
            known = dict(zip(["factor", "retain_weight"], key, strict=True))
            rows.append({**known, "measure": measure, **found._asdict()})
    return pd.DataFrame(rows)


def excess(frame: pd.DataFrame) -> pd.DataFrame:
    """Return by how much runs end further from the retrained model than those of equal weights.

    Columns `seed`, `factor`, `at` (utility or retain), `distance` (in D) and `gap` (nats per
    token), means over lambda. The distances of the runs with equal weights are interpolated, within
    a training, to where these have as much utility, or probability on retain, as the other run. A
    run that keeps more than any of them is compared with the one of them that keeps most, which is
    the harder comparison; one that keeps less than all is left out, and nan where all do.
    """
    own, rows = frame[frame["kind"] == "run"], []
    for seed, part in own.groupby("seed"):
        for at in AT:
            equal = part[part["factor"] == FIRST].sort_values(at)
            for factor, others in part[part["factor"] != FIRST].groupby("factor", sort=False):
                found = {"seed": seed, "factor": factor, "at": at}
                for measure in ("distance", "gap"):
                    known = equal[at].to_numpy(), equal[measure].to_numpy()
                    theirs = np.interp(others[at], *known, left=np.nan)
                    apart = others[measure].to_numpy() - theirs
                    some = np.isfinite(apart)
                    found[measure] = apart[some].mean() if some.any() else np.nan
                rows.append(found)
    return pd.DataFrame(rows)


def chosen_power(found: pd.DataFrame) -> str:
    """Return the power of |y| with the least D at the same utility on the first trainings."""
    own = found[(found["at"] == "utility") & (found["seed"] < CHOSEN_ON)]
    means = own[own["factor"].isin(POWERS)].groupby("factor")["distance"].mean()
    return str(means.idxmin()) if means.notna().any() else POWERS[-1]


def excesses(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `excess` over trainings, those that n was not chosen on apart.

    Columns `factor`, `at`, `trainings` (all, or judged: those after the first `CHOSEN_ON`),
    `measure`, `value`, `low`, `high`, `count`, and `chosen`, whether the power is the chosen one.
    """
    found, rows = excess(frame), []
    best = chosen_power(found)
    for (factor, at), part in found.groupby(["factor", "at"], sort=False):
        for trainings, some in (("all", part), ("judged", part[part["seed"] >= CHOSEN_ON])):
            for measure in ("distance", "gap"):
                known = {"factor": factor, "at": at, "trainings": trainings, "measure": measure}
                estimate = over_models(some[measure], some["seed"])
                rows.append({**known, **estimate._asdict(), "chosen": factor == best})
    return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about trainings: a number of each that is claimed to exceed `threshold`.

    Without the effect the number is 0. Claims of one `family` are judged together.
    """

    name: str
    text: str
    unit: str
    per_training: Callable[[pd.DataFrame], pd.Series]
    threshold: float = 0.0
    family: str = "first step"


def _match(measure: str, weighting: str, optimizer: str = "AdamW") -> Callable[..., pd.Series]:
    def take(frame: pd.DataFrame) -> pd.Series:
        wanted = {"model": LANGUAGE, "need_of": "total", "weighting": weighting}
        own = start_of(frame, optimizer=optimizer, **wanted)
        return own.set_index("seed")[measure]

    return take


def _law(measure: str, optimizer: str = "AdamW") -> Callable[[pd.DataFrame], pd.Series]:
    def take(frame: pd.DataFrame) -> pd.Series:
        own = frame[(frame["kind"] == "law") & (frame["epoch"] == 0) & (frame["corner"] == "")]
        own = own[(own["model"] == LANGUAGE) & (own["weighting"] == "nnls")]
        return own[own["optimizer"] == optimizer].set_index("seed")[measure]

    return take


def _known_more(frame: pd.DataFrame) -> pd.Series:
    own = frame[(frame["kind"] == "example") & (frame["optimizer"] == "AdamW")]
    found = {seed: _fit(part, "nnls") for seed, part in own.groupby("seed")}
    more = {seed: one["loss_alone"] - one["length_alone"] for seed, one in found.items()}
    return pd.Series(more, dtype=float)


def _falling_too(frame: pd.DataFrame) -> pd.Series:
    own = frame[(frame["kind"] == "example") & (frame["optimizer"] == "AdamW")]
    found = {seed: -_fit(part, "nnls")["length"] for seed, part in own.groupby("seed")}
    return pd.Series(found, dtype=float)


def _nearer(
    factor: str, at: str = "utility", measure: str = "distance"
) -> Callable[[pd.DataFrame], pd.Series]:
    def take(frame: pd.DataFrame) -> pd.Series:
        found = excess(frame)
        own = found[(found["factor"] == factor) & (found["at"] == at)]
        return -own.set_index("seed")[measure]

    return take


def _chosen_nearer(frame: pd.DataFrame) -> pd.Series:
    own = _nearer(chosen_power(excess(frame)))(frame)
    return own[own.index >= CHOSEN_ON]


CLAIMS = (
    Claim(
        name="far",
        text="weights >= 0 exist that meet more than half of the need that NPO's leave unmet",
        unit="of what NPO's leave unmet",
        per_training=lambda frame: (
            (_match("whole", "nnls")(frame) - _match("whole", "npo")(frame))
            / (1 - _match("whole", "npo")(frame))
        ),
        threshold=0.5,
    ),
    Claim(
        name="npo first",
        text="at the start NPO's push meets more of the need than SimNPO's",
        unit="of the need",
        per_training=lambda frame: _match("whole", "npo")(frame) - _match("whole", "simnpo")(frame),
    ),
    Claim(
        name="power",
        text="some power of |y| as the weight meets more of the need than NPO, by over a tenth",
        unit="of the need",
        # The best power cannot be worse than NPO's, which is 0.
        per_training=lambda frame: (
            _match("whole", "power_best")(frame) - _match("whole", "npo")(frame)
        ),
        threshold=0.1,
    ),
    Claim(
        name="falling",
        text="the best weights >= 0 fall with the length",
        unit="exponent",
        per_training=lambda frame: -_law("power")(frame),
    ),
    Claim(
        name="falling too",
        text="the best weights fall with the length of answers that are known equally well",
        unit="exponent",
        per_training=_falling_too,
    ),
    Claim(
        name="length",
        text="the length says more than half of how unequal the best weights are",
        unit="of the variance of log w",
        per_training=_law("explained"),
        threshold=0.5,
    ),
    Claim(
        name="known",
        text="how well an answer is known says more of the best weights than its length",
        unit="of the variance of log w",
        per_training=_known_more,
    ),
    Claim(
        name="needed wins",
        text="unlearning with the best weights ends nearer to the retrained one, at equal utility",
        unit="D",
        per_training=_nearer("nnls"),
        family="runs",
    ),
    Claim(
        name="needed retains",
        text="with the best weights it ends nearer, at equal probability of what is retained",
        unit="D",
        per_training=_nearer("nnls", "retain"),
        family="runs",
    ),
    Claim(
        name="kept wins",
        text="with the best weights that also retain it ends nearer, at equal utility",
        unit="D",
        per_training=_nearer("nnls_kept"),
        family="runs",
    ),
    Claim(
        name="kept retains",
        text="with those that also retain it ends nearer, at equal probability of what is retained",
        unit="D",
        per_training=_nearer("nnls_kept", "retain"),
        family="runs",
    ),
    Claim(
        name="needed meets",
        text="with the best weights log-probabilities end nearer, at equal utility",
        unit="nats per token",
        per_training=_nearer("nnls", measure="gap"),
        family="runs",
    ),
    Claim(
        name="chosen n wins",
        text="|y|^-n ends nearer, n chosen on other trainings, at equal utility",
        unit="D",
        per_training=_chosen_nearer,
        family="runs",
    ),
    Claim(
        name="over norm wins",
        text="|y| / |grad log p|^2, which needs no retrained model, ends nearer, at equal utility",
        unit="D",
        per_training=_nearer("length_over_norm"),
        family="runs",
    ),
    Claim(
        name="over norm retains",
        text="with |y| / |grad log p|^2 it ends nearer, at equal probability of what is retained",
        unit="D",
        per_training=_nearer("length_over_norm", "retain"),
        family="runs",
    ),
)


def assess(frame: pd.DataFrame) -> pd.DataFrame:
    """Estimate every claim: number, 95% interval over trainings, and verdict by Holm's procedure.

    A claim of which no training tells the number is left out, for want of runs. The columns are
    `claim`, `family`, `text`, `unit`, `value`, `low`, `high`, `count`, `interval`,
    `p`, `level`, `threshold` and `verdict`.
    """
    parts = []
    for family in dict.fromkeys(claim.family for claim in CLAIMS):
        every = [(one, one.per_training(frame)) for one in CLAIMS if one.family == family]
        known = [
            Claimed(one.name, "", one.text, one.unit, values.to_numpy(dtype=float), one.threshold)
            for one, values in every
            if values.notna().any()
        ]
        found = judged_together(known)
        found.insert(1, "family", family)
        parts.append(found)
    return pd.concat(parts, ignore_index=True)
