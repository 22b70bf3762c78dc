"""How far each part of what is forgotten is beyond its goal, on chains and on language models.

The parts are short or long, and read before or never. On both rungs the quantity is the same, in
nats per token: how far log pi lies below that of the retrained model, positive where too much was
forgotten. On chains it is the difference of two forget distances, the mean over all that the true
chain might emit, at the moment when the last part that was read reaches its goal, so that all
corners have forgotten what there was to forget. On language models it is the mean over the answers,
at the end of a run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from figures.theory.crossed import SCORED
from llm.logs.measures import ranks_test, tied_ranks
from markov.diagnostics import first_crossing, read_at

READ, NEVER = ("short, read", "long, read"), ("short, never read", "long, never read")
PARTS = (*READ, *NEVER)
# Of the components of `figures.theory.crossed`, in their order.
NAMES = {"forget1": "long, read", "forget2": "short, read"}
NAMES |= {"forget3": "long, never read", "forget4": "short, never read"}
assert len(NAMES) == len(SCORED)
RUN = ["setting", "level", "method", "training", "order"]


def of_chains(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run of `crossed_runs` and part, when the last that was read is at its goal.

    Columns `setting` (the optimiser), `level` (beta), `method`, `training` (the pretrained model),
    `order`, `part`, `start` and `over_forgetting` (before, and at that moment), `retain_paid` (nats
    above the start) and `step`. Where that moment never comes, the last three are nan.
    """
    rows = []
    for _, own in table.groupby("run"):
        parts = {
            str(name): part.sort_values("step")
            for name, part in own.groupby("component", sort=False)
        }
        gaps = {
            name: (parts[code]["kl_to_truth"] - parts[code]["retrained"]).to_numpy(float)
            for code, name in NAMES.items()
        }
        retain, first = parts["retain"]["kl_to_truth"].to_numpy(float), own.iloc[0]
        known = (first["optimizer"], first["level"], first["method"])
        known = (*known, first["pretrain_seed"], first["seed"])
        found = _at_arrival(gaps, retain - retain[0])
        step = read_at(parts["retain"]["step"].to_numpy(float), _arrival(gaps))
        rows += [dict(zip(RUN, known, strict=True)) | one | {"step": step} for one in found]
    return pd.DataFrame(rows)


def of_answers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run of `graded_runs` and part, after its last epoch.

    The columns are those of `of_chains`, without `setting` and `step`: `level` is that of the
    retain weight, and `retain_paid` the retain loss above that at the start.
    """
    keys, means = ["level", "method", "training"], paths_of_answers(table)
    first = means[means["epoch"] == 0].set_index([*keys, "part"])
    last = means[means["epoch"] == means["epoch"].max()].set_index([*keys, "part"])
    found = pd.DataFrame(
        {
            "start": first["over_forgetting"],
            "over_forgetting": last["over_forgetting"],
            "retain_paid": last["retain_loss"] - first["retain_loss"],
        }
    )
    return found.reset_index().assign(order=0)


def paths_of_answers(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run of `graded_runs`, epoch and part, with the means over its answers.

    Columns `level`, `method`, `training`, `epoch`, `part`, `over_forgetting` and `retain_loss`.
    """
    table = table.assign(over_forgetting=(table["retrained"] - table["logp"]) / table["length"])
    keys = ["level", "method", "training", "epoch", "part"]
    groups = _by_part(table).groupby(keys, sort=False)
    return groups[["over_forgetting", "retain_loss"]].mean().reset_index()


def _at_arrival(gaps: Mapping[str, np.ndarray], paid: np.ndarray) -> list[dict[str, object]]:
    at = _arrival(gaps)
    return [
        {
            "part": name,
            "start": float(gaps[name][0]),
            "over_forgetting": read_at(gaps[name], at),
            "retain_paid": read_at(paid, at),
        }
        for name in PARTS
    ]


def _arrival(gaps: Mapping[str, np.ndarray]) -> float:
    """Return the position at which the last part that was read is at its goal, or nan."""
    return float(np.max([first_crossing(gaps[name], 0.0) for name in READ]))


def _by_part(table: pd.DataFrame) -> pd.DataFrame:
    """Return answers with the column `part`: short is up to the median length of all of them."""
    middle = table.drop_duplicates("index")["length"].median()
    long, read = table["length"] > middle, table["read"] > 0
    names = np.select([~long & read, long & read, ~long & ~read], PARTS[:3], PARTS[3])
    return table.assign(part=names)


def by_readings(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far answers end beyond their goals, by how often the start model read them.

    A row per run of `graded_runs` and number of readings: the mean of `over_forgetting` (nats per
    token) and of `over_total` (nats of a whole answer).
    """
    last = table[table["epoch"] == table["epoch"].max()]
    beyond = last["retrained"] - last["logp"]
    last = last.assign(over_forgetting=beyond / last["length"], over_total=beyond)
    groups = last.groupby(["level", "method", "training", "read"], sort=False)
    return groups[["over_forgetting", "over_total"]].mean().reset_index()


def distances(
    ratios: pd.DataFrame, goals: Mapping[int, pd.Series], read: pd.Series
) -> pd.DataFrame:
    """Return D between the truth ratios of models and those of the retrained model.

    `ratios` has the columns `method`, `level`, `training`, `index` and `log_ratio`, `goals` the log
    ratios of the retrained model of each training by index, and `read` how often the start model
    read each. A row per model and half, `read` or `never read`. For the floor the retrained models
    of any two trainings are compared, as `retrained` with the first as `training`.
    """
    halves = {"read": read.index[read > 0], "never read": read.index[read == 0]}
    rows = []
    keys = ["method", "level", "training"]
    for key, own in ratios.groupby(keys, sort=False, dropna=False):
        values, training = own.set_index("index")["log_ratio"], int(own["training"].iloc[0])
        known = dict(zip(keys, key, strict=True))
        for half, index in halves.items():
            rows.append({**known, "half": half, "distance": _d(values, goals[training], index)})
    seeds = sorted(goals)
    for place, one in enumerate(seeds):
        for other in seeds[place + 1 :]:
            known = {"method": "retrained", "level": np.nan, "training": one}
            for half, index in halves.items():
                rows.append(
                    {**known, "half": half, "distance": _d(goals[one], goals[other], index)}
                )
    return pd.DataFrame(rows)


def _d(one: pd.Series, other: pd.Series, index: pd.Index) -> float:
    values = [part.loc[index].to_numpy(float) for part in (one, other)]
    return ranks_test(*tied_ranks(*values)).statistic if np.isfinite(values[0]).all() else np.nan
