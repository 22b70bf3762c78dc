"""Whether two models are fit for a study: before any method is compared, the start has to be right.

A study asks how near to the retrained model an unlearned one comes. That means something only if
the original knows the forget data, if the retrained model does not, and if the two are alike in
everything else. `gate` asks it of the two models of each seed. `gate_over_seeds` asks more, of a
way to make such models: whether another seed, or another processor, makes models that are as fit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from llm.intervals import Estimate, mean_interval
from llm.logs.comparing import known_utility, utility_difference
from llm.logs.log import EvaluationLog
from llm.logs.measures import (
    MEASURES,
    UTILITY_TASKS,
    ForgetQuality,
    TofuLogs,
    example_values,
    forget_quality,
    model_utility,
)
from markov.errors import require

APART = 0.03  # by how much the utilities of the two models may differ
KNOWN = 0.9  # probability per token of the forget answers under the original, at least
FAR = 0.3  # by how much that of the retrained model is lower, at least
PASSES, INCONCLUSIVE, FAILS = "passes", "inconclusive", "fails"
# Of a way to make models, over its seeds:
EQUAL = 0.02  # by how much the utilities of the two kinds may differ, and each vary over seeds
NEAR, LEAST = 0.05, 0.4  # the same of each of the nine components of utility, and the least of one
LEARNT, UNREAD = 0.95, 0.3  # probability of the forget answers: of an original, of a retrained one
LIKE, PAIRS = 0.05, 0.9  # the p-value above which two retrained models are alike; how many are
# Two one-sided tests of 5% each find two means equivalent where this interval lies in the bounds.
EQUIVALENCE = 0.9
KINDS = ("original", "retrained")
FOUND = ("value", "low", "high", "count", "allowed", "verdict")


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
    return tuple(test.statistic for test in _pairs(logs, variant))


def _pairs(logs: Sequence[EvaluationLog], variant: str) -> list[ForgetQuality]:
    """Return the test between any two models."""
    return [
        forget_quality(one, other, variant=variant)
        for one, other in itertools.combinations(logs, 2)
    ]


def components(
    logs: Mapping[int, tuple[TofuLogs, TofuLogs]], variant: str = "geometric"
) -> pd.DataFrame:
    """Return what the two models of each seed score, a row per seed, model and measure.

    The columns are `seed`, `model`, `task`, `measure` and `value`: the nine components of utility,
    `model_utility` of all, and the `probability` of the forget answers.
    """
    rows = []
    for seed, pair in logs.items():
        for kind, own in zip(KINDS, pair, strict=True):
            rows += [
                (seed, kind, task, name, example_values(own.of(task), task, name, variant).mean())
                for task in UTILITY_TASKS
                for name in MEASURES
            ]
            rows.append((seed, kind, "all", "model_utility", model_utility(own, variant)))
            rows.append((seed, kind, "forget", "probability", _probability(own.of("forget"))))
    return pd.DataFrame(rows, columns=["seed", "model", "task", "measure", "value"])


def all_known(logs: Mapping[int, tuple[TofuLogs, TofuLogs]]) -> bool:
    """Return whether the data tell all that `gate_over_seeds` asks of the models."""
    every = [one for pair in logs.values() for one in pair]
    return all(known_utility(one) and one.of("forget").perturbed is not None for one in every)


def gate_over_seeds(
    logs: Mapping[int, tuple[TofuLogs, TofuLogs]], variant: str = "geometric"
) -> pd.DataFrame:
    """Return whether a way to make the two models is fit for a study, from those of several seeds.

    The columns are `check`, `value`, `low`, `high`, `count`, `allowed` (in words) and `verdict`:

        utility apart          original - retrained, mean over seeds
        MEASURE of TASK apart  the same of the nine components of utility
        least component        of any model
        utility varies         standard deviation over seeds, by kind
        forget data known      probability per token of the forget answers, least of the originals
        forget data unread     the same, greatest of the retrained models
        retrained alike        share of pairs of retrained models whose forget quality is above 0.05
        floor                  D between two retrained models: mean, least and greatest of the pairs

    Of what is apart, `low` to `high` is a 90% interval over seeds (Student's t). The check passes
    if all of it is allowed, which is a pair of one-sided tests of 5% each, fails if none of it is,
    and is inconclusive otherwise. The others pass or fail by their value, and the floor is no
    check: no method can be told to come nearer to the retrained model than that. Raises
    `InvalidInput` for fewer than two seeds.
    """
    require(len(logs) > 1, "seeds", list(logs), "at least two")
    table = components(logs, variant)
    scores = table.pivot(index="seed", columns=["model", "task", "measure"], values="value")
    before, after = scores["original"], scores["retrained"]
    rows: dict[str, tuple[float | str, ...]] = {}
    for task, measure in [("all", "model_utility"), *_nine()]:
        values = before[(task, measure)] - after[(task, measure)]
        name = "utility" if task == "all" else f"{measure} of {task}"
        bound = EQUAL if task == "all" else NEAR
        found = mean_interval(values.to_numpy(), EQUIVALENCE)
        rows[f"{name} apart"] = (*found, f"-{bound} to {bound}", _equivalent(found, bound))
    least = min(float(kind[_nine()].to_numpy().min()) for kind in (before, after))
    rows["least component"] = _at_least(least, LEAST, 2 * len(logs))
    for kind, own in zip(KINDS, (before, after), strict=True):
        spread = float(own[("all", "model_utility")].std(ddof=1))
        rows[f"utility varies, {kind}"] = _at_most(spread, EQUAL, len(logs))
    known, unread = (kind[("forget", "probability")] for kind in (before, after))
    rows["forget data known"] = _at_least(float(known.min()), LEARNT, len(logs))
    rows["forget data unread"] = _at_most(float(unread.max()), UNREAD, len(logs))
    tests = _pairs([retrained.of("forget") for _, retrained in logs.values()], variant)
    alike = float(np.mean([test.p_value > LIKE for test in tests]))
    rows["retrained alike"] = _at_least(alike, PAIRS, len(tests))
    far = [test.statistic for test in tests]
    rows["floor"] = (float(np.mean(far)), min(far), max(far), len(far), "", "")
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(FOUND))
    return frame.rename_axis("check").reset_index()


def _nine() -> list[tuple[str, str]]:
    return [(task, measure) for task in UTILITY_TASKS for measure in MEASURES]


def _equivalent(found: Estimate, bound: float) -> str:
    """Return the verdict of two one-sided tests that a mean lies within a bound of 0."""
    if -bound <= found.low and found.high <= bound:
        return PASSES
    return FAILS if found.low > bound or found.high < -bound else INCONCLUSIVE


def _at_least(value: float, least: float, count: int) -> tuple[float | str, ...]:
    verdict = PASSES if value >= least else FAILS
    return value, math.nan, math.nan, count, f"at least {least}", verdict


def _at_most(value: float, most: float, count: int) -> tuple[float | str, ...]:
    verdict = PASSES if value <= most else FAILS
    return value, math.nan, math.nan, count, f"at most {most}", verdict
