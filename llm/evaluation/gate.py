"""Whether two models are fit for a study: before any method is compared, the start has to be right.

A study asks how near to the retrained model an unlearned one comes. That means something only if
the original knows the forget data, if the retrained model does not, and if the two are alike in
everything else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from llm.logs.log import EvaluationLog
from llm.logs.measures import forget_quality

APART = 0.03  # by how much the utilities of the two models may differ
KNOWN = 0.9  # probability per token of the forget answers under the original, at least
NO_BOUNDS = (math.nan, math.nan)
FAR = 0.3  # by how much that of the retrained model is lower, at least


def gate(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Return the checks of a study, a row each, from the measures of its two models by seed.

    A table has the rows of `llm.sweeps.sweep.sweep` whose `model` is "original" or "retrained".
    Without utility, for which data of one's own may not do, its check is left out. The columns are
    `check`, `seed`, `value`, `low`, `high`, `allowed` (in words) and `passed`:

        utility apart    |utility of the original - utility of the retrained model|
        forget data known      probability per token of the forget answers, original
        forget data unknown    by how much it is lower under the retrained model

    From `low` to `high` is a 95% interval over questions of how far the utilities are apart. It is
    made of those of the two utilities, as if the models were asked different questions, so that it
    is rather too wide. A value that does not pass can be chance if `low` would.
    """
    rows = []
    for seed, table in tables.items():
        at = table.set_index(["measure", "task", "model"])["value"]

        def pair(measure: str, task: str, at: pd.Series = at) -> tuple[float, float]:
            return float(at[measure, task, "original"]), float(at[measure, task, "retrained"])

        if ("model_utility", "all", "original") in at:
            original, retrained = pair("model_utility", "all")
            apart = abs(original - retrained)
            bounds = _apart(table)
            rows.append(("utility apart", seed, apart, *bounds, f"at most {APART}", apart <= APART))
        known, other = pair("probability", "forget")
        for check, value, least in (
            ("forget data known", known, KNOWN),
            ("forget data unknown", known - other, FAR),
        ):
            rows.append((check, seed, value, *NO_BOUNDS, f"at least {least}", value >= least))
    names = ["check", "seed", "value", "low", "high", "allowed", "passed"]
    return pd.DataFrame(rows, columns=names)


def _apart(table: pd.DataFrame) -> tuple[float, float]:
    """Return an interval of |u - v| for two utilities, from that of each.

    With u in (u1, u2) and v in (v1, v2) that of u - v ends at
    u - v - sqrt((u - u1)^2 + (v2 - v)^2) and u - v + sqrt((u2 - u)^2 + (v - v1)^2)
    (Zou and Donner 2008). Where a table has no intervals, there is none.
    """
    if not {"low", "high"} <= set(table):
        return NO_BOUNDS
    rows = table[table["measure"] == "model_utility"].set_index("model")
    (u, u1, u2), (v, v1, v2) = (
        [float(rows[name][model]) for name in ("value", "low", "high")]
        for model in ("original", "retrained")
    )
    low, high = u - v - math.hypot(u - u1, v2 - v), u - v + math.hypot(u2 - u, v - v1)
    return max(0.0, low, -high), max(abs(low), abs(high))


def floor(logs: Sequence[EvaluationLog], variant: str = "geometric") -> tuple[float, ...]:
    """Return D between any two retrained models: what no method can be asked to beat.

    `logs` are those of the forget data, by the seed of the training. With one model there is none.
    """
    return tuple(
        float(forget_quality(one, other, variant=variant).statistic)
        for one, other in itertools.combinations(logs, 2)
    )
