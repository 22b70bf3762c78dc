"""Whether two models are fit for a study: before any method is compared, the start has to be right.

A study asks how near to the retrained model an unlearned one comes. That means something only if
the original knows the forget data, if the retrained model does not, and if the two are alike in
everything else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from llm.logs.comparing import known_utility, utility_difference
from llm.logs.log import EvaluationLog
from llm.logs.measures import TofuLogs, forget_quality, model_utility

APART = 0.03  # by how much the utilities of the two models may differ
KNOWN = 0.9  # probability per token of the forget answers under the original, at least
FAR = 0.3  # by how much that of the retrained model is lower, at least
PASSES, INCONCLUSIVE, FAILS = "passes", "inconclusive", "fails"


def gate(logs: Mapping[int, tuple[TofuLogs, TofuLogs]], variant: str = "geometric") -> pd.DataFrame:
    """Return the checks of a study, a row each, from the logs of its two models by seed.

    The original comes first, then the retrained model. Without utility, for which data of one's own
    may not do, its check is left out. The columns are `check`, `seed`, `value`, `low`, `high`,
    `allowed` (in words) and `verdict`:

        utility apart          |utility of the original - utility of the retrained model|
        forget data known      probability per token of the forget answers, original
        forget data unknown    by how much it is lower under the retrained model

    From `low` to `high` is a 95% interval over questions, the same ones for both models, of how far
    the utilities are apart. That check passes if all of the interval is allowed, fails if none of
    it is, and is inconclusive otherwise: a model that answers few questions of a set has a utility
    that hangs on these few. A utility of 0, of a model that answers none of a set, is inconclusive
    too, since no draw of its questions could be another. The other two checks, which are far from
    their bounds in models that are fit, pass or fail by their value.
    """
    rows = []
    for seed, (original, retrained) in logs.items():
        rows += [(*row, seed) for row in _utility(original, retrained, variant)]
        known, other = (_probability(one.of("forget")) for one in (original, retrained))
        for check, value, least in (
            ("forget data known", known, KNOWN),
            ("forget data unknown", known - other, FAR),
        ):
            verdict = PASSES if value >= least else FAILS
            rows.append((check, value, math.nan, math.nan, f"at least {least}", verdict, seed))
    names = ["check", "value", "low", "high", "allowed", "verdict", "seed"]
    order = ["check", "seed", *names[1:-1]]
    return pd.DataFrame(rows, columns=names)[order]


def _utility(
    original: TofuLogs, retrained: TofuLogs, variant: str
) -> list[tuple[str, float, float, float, str, str]]:
    """Return the check of the utilities, or nothing where the data do not tell them."""
    if not (known_utility(original) and known_utility(retrained)):
        return []
    value, low, high, _ = utility_difference(original, retrained, variant=variant)
    least, most = max(0.0, low, -high), max(abs(low), abs(high))
    verdict = PASSES if most <= APART else FAILS if least > APART else INCONCLUSIVE
    if 0 in (model_utility(original, variant), model_utility(retrained, variant)):
        verdict = INCONCLUSIVE
    return [("utility apart", abs(value), least, most, f"at most {APART}", verdict)]


def _probability(log: EvaluationLog) -> float:
    """Return the mean probability per token of the answers."""
    return float(np.exp(-log.gold.average).mean())


def floor(logs: Sequence[EvaluationLog], variant: str = "geometric") -> tuple[float, ...]:
    """Return D between any two retrained models: a smaller one is no better.

    `logs` are those of the forget data, by the seed of the training. With one model there is none.
    """
    return tuple(
        float(forget_quality(one, other, variant=variant).statistic)
        for one, other in itertools.combinations(logs, 2)
    )
