"""Whether two models are fit for a study: before any method is compared, the start has to be right.

A study asks how near to the retrained model an unlearned one comes. That means something only if
the original knows the forget data, if the retrained model does not, and if the two are alike in
everything else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd

from llm.logs.log import EvaluationLog
from llm.logs.measures import forget_quality

APART = 0.03  # by how much the utilities of the two models may differ
KNOWN = 0.9  # probability per token of the forget answers under the original, at least
FAR = 0.3  # by how much that of the retrained model is lower, at least


def gate(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Return the checks of a study, a row each, from the measures of its two models by seed.

    A table has the rows of `llm.sweeps.sweep.sweep` whose `model` is "original" or "retrained".
    Without utility, for which data of one's own may not do, its check is left out. The columns are
    `check`, `seed`, `value`, `allowed` (in words) and `passed`:

        utility apart    |utility of the original - utility of the retrained model|
        forget data known      probability per token of the forget answers, original
        forget data unknown    by how much it is lower under the retrained model
    """
    rows = []
    for seed, table in tables.items():
        at = table.set_index(["measure", "task", "model"])["value"]

        def pair(measure: str, task: str, at: pd.Series = at) -> tuple[float, float]:
            return float(at[measure, task, "original"]), float(at[measure, task, "retrained"])

        if ("model_utility", "all", "original") in at:
            original, retrained = pair("model_utility", "all")
            apart = abs(original - retrained)
            rows.append(("utility apart", seed, apart, f"at most {APART}", apart <= APART))
        known, other = pair("probability", "forget")
        rows += [
            ("forget data known", seed, known, f"at least {KNOWN}", known >= KNOWN),
            ("forget data unknown", seed, known - other, f"at least {FAR}", known - other >= FAR),
        ]
    return pd.DataFrame(rows, columns=["check", "seed", "value", "allowed", "passed"])


def floor(logs: Sequence[EvaluationLog], variant: str = "geometric") -> tuple[float, ...]:
    """Return D between any two retrained models: what no method can be asked to beat.

    `logs` are those of the forget data, by the seed of the training. With one model there is none.
    """
    return tuple(
        float(forget_quality(one, other, variant=variant).statistic)
        for one, other in itertools.combinations(logs, 2)
    )
