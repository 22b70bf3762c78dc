"""TOFU's measures of a model, computed from its evaluation logs: forget quality and model utility.

Let l be the mean loss per token of the truth, l~ that of its paraphrase and l^_j those of the wrong
answers (nats). The measures of each example are

    probability    exp(-l) on retain and forget;
                   exp(-l) / (exp(-l) + sum_j exp(-l^_j)) on real authors and world facts
    rouge          ROUGE-L recall of the greedy answer
    truth_ratio    max(0, 1 - R) of R = wrong / right (`llm.logs.log.truth_ratio`);
                   min(R, 1/R) on forget
    paraphrased_probability   exp(-l~) on retain and forget, where there are paraphrases
    exact_memorization        share of the truth's tokens that are the likeliest ones
    extraction_strength       share of them, at its end, that need not be given: see
                              `llm.scoring.greedy`

and those of a model are

    model utility    the harmonic mean of the means of these three on retain, real authors and
                     world facts
    forget quality   the p-value of the two-sample Kolmogorov-Smirnov test between R of the model
                     and of the retrained model on the forget set

The wrong answers enter R by their geometric mean, as in the released code, or by their arithmetic
mean, as in TOFU's paper. The resulting numbers are not interchangeable, so every table names its
variant. (Paper, section 6; Maini et al.)

R itself overflows for models that have collapsed. Everything is therefore computed from log R, and
the test compares log R: its statistic is the same for any increasing function of R.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from scipy import special, stats

from llm.intervals import (
    Groups,
    groups_of,
    percentile_interval,
    resample,
    resample_groups,
)
from llm.logs.log import MEMORISED, EvaluationLog, align, log_truth_ratio
from markov.errors import InvalidInput, require, require_whole

# Both are of wrong / right; model utility is not defined for the other orientations.
VARIANTS = ("geometric", "arithmetic")
UTILITY_TASKS = ("retain", "real_authors", "world_facts")
MEASURES = ("probability", "rouge", "truth_ratio")  # those behind model utility
REPLICATES = 1000
EXTRACTION = "extraction_strength"  # stands beside D, which sees little of what can be called forth
BY_AUTHOR = ("forget", "retain")  # tasks whose questions are about authors, several about each
EXAMPLES, AUTHORS = "examples", "authors"  # what a bootstrap draws
# Values tie if they differ by less than this share of the largest log ratio. In float64 the order
# in which five losses are added moves their mean by 1e-16 of it, and losses that are stored as
# float32 are known to no better than 6e-8.
TIE = 1e-9


class TofuLogs(NamedTuple):
    """A model's evaluation logs by task; None for a task that was not evaluated."""

    forget: EvaluationLog | None = None
    retain: EvaluationLog | None = None
    real_authors: EvaluationLog | None = None
    world_facts: EvaluationLog | None = None

    def of(self, task: str) -> EvaluationLog:
        """Return the log of a task; raises `InvalidInput` if there is none."""
        found = getattr(self, task)
        there = (
            ", ".join(name for name in self._fields if getattr(self, name) is not None) or "none"
        )
        if found is None:
            raise InvalidInput("logs", there, f"logs of {task} too, which this measure needs")
        return found


class ForgetQuality(NamedTuple):
    """The test behind forget quality.

    P-values from different numbers of examples are not comparable; the statistic D nearly is. With
    n and m examples D is a multiple of 1/lcm(n, m), so that p takes few values: with 40 and 40
    examples these are 0.99, 0.92, 0.77, 0.58, ... `method` says how both p and its logarithm were
    computed, exactly or from Kolmogorov's limit, and `variant` is that of the truth ratio. p is 0
    below the smallest float; `log10_p` is finite wherever D > 0.
    """

    p_value: float
    log10_p: float
    statistic: float
    examples: int
    retrained_examples: int
    variant: str
    method: str


def check_variant(variant: str) -> None:
    """Raise `InvalidInput` unless the variant is `geometric` or `arithmetic`."""
    require(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}")


def example_values(
    log: EvaluationLog, task: str, kind: str, variant: str = "geometric"
) -> Float[np.ndarray, " n"]:
    """Return each example's contribution to the mean of a measure on a task, a number in [0, 1].

    The values are in the order of the log. Raises `InvalidInput` for a log that lacks the answers
    or the generations that the measure takes.
    """
    if kind == "rouge":
        require(
            "rougeL_recall" in log.rouge, "rougeL_recall", None, f"generated answers in {log.file}"
        )
        return log.rouge["rougeL_recall"]
    if kind in MEMORISED:
        require(kind in log.memorised, kind, None, f"the likeliest tokens of answers in {log.file}")
        return log.memorised[kind]
    if kind == "paraphrased_probability":
        if log.paraphrased is None:
            raise InvalidInput("paraphrased", None, f"losses of paraphrases in {log.file}")
        return np.exp(-log.paraphrased.average)
    if kind == "probability" and task in BY_AUTHOR:
        return np.exp(-log.gold.average)
    if log.perturbed is None:
        raise InvalidInput(
            "perturbed", None, f"losses of perturbed answers of {task} in {log.file}"
        )
    if kind == "probability":
        every = -np.column_stack([log.gold.average, log.perturbed.average])
        return special.softmax(every, axis=1)[:, 0]
    # Facts of the real world have no paraphrase: the answer takes its place.
    scored = log if log.paraphrased is not None else log._replace(paraphrased=log.gold)
    log_ratio = log_truth_ratio(scored, variant)
    if task != "forget":
        return -np.expm1(np.minimum(log_ratio, 0.0))  # max(0, 1 - R)
    return np.exp(-np.abs(log_ratio))  # min(R, 1 / R)


def known_kinds(log: EvaluationLog, task: str) -> list[str]:
    """Return the measures of examples that a log of a task allows, `MEASURES` first."""
    wrong, own = log.perturbed is not None, task in BY_AUTHOR
    # Where no example has a paraphrase the truth stands in its place.
    other = log.paraphrased is not None and not np.array_equal(
        log.paraphrased.average, log.gold.average
    )
    known = {
        "probability": own or wrong,
        "rouge": "rougeL_recall" in log.rouge,
        "truth_ratio": wrong,
        "paraphrased_probability": own and other,
        **{kind: kind in log.memorised for kind in MEMORISED},
    }
    return [kind for kind, there in known.items() if there]


def harmonic_mean(values: Float[np.ndarray, "*rows n"]) -> Float[np.ndarray, "*rows"]:
    """Return n / sum_k 1/values_k over the last axis; 0 if one of the values is 0."""
    return np.asarray(stats.hmean(values, axis=-1))


def forget_quality(
    log: EvaluationLog,
    retrained: EvaluationLog,
    *,
    variant: str = "geometric",
    allow_identical: bool = True,
) -> ForgetQuality:
    """Return the test between the truth ratios of a model and the retrained one on the forget set.

    Examples are matched by index. Raises `InvalidInput` as `align` does, for logs of different
    examples, and as `truth_ratio` does. Warns if both logs are of one model, unless
    `allow_identical`.
    """
    check_variant(variant)
    other = align(log, retrained, allow_identical=allow_identical)
    return ranks_test(
        *tied_ranks(log_truth_ratio(log, variant), log_truth_ratio(other, variant)), variant
    )


def tied_ranks(
    own: Float[np.ndarray, " n"], other: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Return the rank of each value among the distinct values of both samples.

    Neighbours that are closer than `TIE` share a rank, so that values that differ by rounding alone
    are equal. The two-sample test depends on these ranks alone.
    """
    pooled = np.sort(np.concatenate([own, other]))
    apart = np.diff(pooled) > TIE * max(1.0, float(np.abs(pooled).max(initial=0.0)))
    starts = pooled[np.concatenate([[True], apart])]
    return np.searchsorted(starts, own, side="right"), np.searchsorted(starts, other, side="right")


def ranks_test(
    own: Shaped[np.ndarray, " n"], other: Shaped[np.ndarray, " m"], variant: str = "geometric"
) -> ForgetQuality:
    """Return the two-sample Kolmogorov-Smirnov test between two models' values.

    Values that tie must already be equal. The test is exact if scipy can compute it, else it is
    from Kolmogorov's limit.
    """
    method: Literal["exact", "asymp"] = "exact"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # scipy's way to say that it could not
        try:
            found = stats.ks_2samp(own, other, method=method)
        except RuntimeWarning:
            method = "asymp"
            found = stats.ks_2samp(own, other, method=method)
    p, statistic = float(found.pvalue), float(found.statistic)
    if p >= np.finfo(float).tiny:
        log10 = math.log10(p)
    elif method == "exact" and len(own) == len(other):
        log10 = exact_log10_p(len(own), round(statistic * len(own)))
    else:
        # Below the smallest float the first term of Kolmogorov's series is all there is.
        method, effective = "asymp", len(own) * len(other) / (len(own) + len(other))
        log10 = (math.log(2) - 2 * effective * statistic**2) / math.log(10)
    return ForgetQuality(p, log10, statistic, len(own), len(other), variant, method)


def exact_log10_p(count: int, steps: int) -> float:
    """Return log10 of P(D >= steps / count) for two samples of `count` values each.

    Both samples are from one distribution, without ties. Two samples of n may lie in C(2n, n)
    orders; those with a distance of h steps or more number 2 (C(2n, n - h) - C(2n, n - 2h) + C(2n,
    n - 3h) - ...), by reflecting lattice paths. These are whole numbers, of which only the
    logarithms are rounded. Raises `InvalidInput` unless 1 <= steps <= count.
    """
    require_whole(steps, "steps", 1, count)
    terms = (math.comb(2 * count, count - turn * steps) for turn in range(1, count // steps + 1))
    orders = 2 * sum(term if place % 2 == 0 else -term for place, term in enumerate(terms))
    return math.log10(orders) - math.log10(math.comb(2 * count, count))


def measures(
    logs: TofuLogs,
    retrained: EvaluationLog | None = None,
    *,
    variant: str = "geometric",
    allow_identical: bool = True,
    per_author: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return all measures that the logs allow, each with a 95% interval over examples.

    The columns are `measure`, `task` ("all" for model utility), `value`, `low`, `high`, `examples`,
    `drawn` and `variant`. The rows are

        those of examples on every task that is there, as far as its log has what they need
        model_utility     if all nine values behind it are there
        forget_quality    with `retrained`, the retrained model's log of the forget set: the
                          p-value, without an interval
        ks_statistic      with `retrained`: the statistic D

    Intervals are percentiles of a bootstrap: they say what another draw of questions would change,
    not another training. The interval of D lies too high, since resampled distributions are
    rougher. `drawn` says what is drawn: "examples" one by one, or "authors", each with all of its
    questions, on the forget and the retain set where `per_author` says how many consecutive indices
    are of one author, and there are at least `FEWEST_AUTHORS`. Raises `InvalidInput` as
    `forget_quality` does, and for a `per_author` below 1.
    """
    check_variant(variant)
    check_per_author(per_author)
    rng, rows, nine = np.random.default_rng(seed), [], []
    for task in TofuLogs._fields:
        log = getattr(logs, task)
        if log is None:
            continue
        groups = authors_of(log, task, per_author)
        drawn, mean = EXAMPLES if groups is None else AUTHORS, means(len(log.index), groups, rng)
        for kind in known_kinds(log, task):
            values = example_values(log, task, kind, variant)
            replicates = mean(values)
            found = percentile_interval(values.mean(), replicates, len(values))
            rows.append((kind, task, *found, drawn))
            if task in UTILITY_TASKS and kind in MEASURES:
                nine.append((values.mean(), replicates))
    if len(nine) == len(UTILITY_TASKS) * len(MEASURES):
        point, replicates = (
            np.array([pair[0] for pair in nine]),
            np.array([pair[1] for pair in nine]),
        )
        count = sum(len(logs.of(task).index) for task in UTILITY_TASKS)
        value, every = float(harmonic_mean(point)), harmonic_mean(replicates.T)
        known = authors_of(logs.of("retain"), "retain", per_author) is not None
        found = percentile_interval(value, every, count)
        rows.append(("model_utility", "all", *found, AUTHORS if known else EXAMPLES))
    if retrained is not None:
        found = forget_quality(
            logs.of("forget"), retrained, variant=variant, allow_identical=allow_identical
        )
        own, other = tied_ranks(
            *(log_truth_ratio(log, variant) for log in (logs.of("forget"), retrained))
        )
        none = (found.p_value, math.nan, math.nan, found.examples)
        rows.append(("forget_quality", "forget", *none, EXAMPLES))
        groups = authors_of(logs.of("forget"), "forget", per_author)
        # The retrained model's log, too, is cut into its authors by its own indices.
        theirs = authors_of(retrained, "forget", per_author)
        every = resampled_statistics(
            own, other, rng, (groups, groups if theirs is None or groups is None else theirs)
        )
        distance = percentile_interval(found.statistic, every, found.examples)
        rows.append(("ks_statistic", "forget", *distance, EXAMPLES if groups is None else AUTHORS))
    names = ["measure", "task", "value", "low", "high", "examples", "drawn"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.assign(variant=variant)


def check_per_author(per_author: int | None) -> None:
    """Raise `InvalidInput` unless it is None, or a whole number of at least 1."""
    if per_author is not None:
        require_whole(per_author, "per_author", 1)


def authors_of(log: EvaluationLog, task: str, per_author: int | None) -> Groups:
    """Return which author each example of a log is about, numbered, or None.

    It is None where that is not known, for facts of the world, and for fewer authors than
    `FEWEST_AUTHORS`, of which a bootstrap over authors would make too narrow an interval.
    """
    return groups_of(log.index, per_author) if task in BY_AUTHOR else None


def means(
    count: int, groups: Groups, rng: np.random.Generator
) -> Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " replicates"]]:
    """Return what takes the mean of values in each of `REPLICATES` resamples, always the same ones.

    Examples are drawn, or `groups` of them (see `llm.intervals.resample_groups`).
    """
    if groups is None:
        draws = resample(count, REPLICATES, rng)
        return lambda values: values[draws].mean(axis=1)
    times = draws_of(count, rng, groups)
    return lambda values: (times @ values) / times.sum(axis=1)


def model_utility(logs: TofuLogs, variant: str = "geometric") -> float:
    """Return the harmonic mean of the nine values; raises `InvalidInput` if one is missing."""
    check_variant(variant)
    nine = [
        example_values(logs.of(task), task, kind, variant).mean()
        for task in UTILITY_TASKS
        for kind in MEASURES
    ]
    return float(harmonic_mean(np.array(nine)))


def resampled_statistics(
    own: Shaped[np.ndarray, " n"],
    other: Shaped[np.ndarray, " m"],
    rng: np.random.Generator,
    groups: tuple[Groups, Groups] = (None, None),
) -> Float[np.ndarray, " replicates"]:
    """Return D = sup |F - G| of resampled pairs of samples, each drawn by itself.

    D is the largest distance between the two distribution functions. Examples are drawn, or the
    `groups` of each sample.
    """
    pairs = zip((own, other), groups, strict=True)
    return statistics_of(own, other, *(draws_of(len(one), rng, part) for one, part in pairs))


def draws_of(
    count: int, rng: np.random.Generator, groups: Groups = None
) -> Int[np.ndarray, "replicates count"]:
    """Return how often each of some examples is drawn in each resample.

    Examples are drawn, or `groups` of them (see `llm.intervals.resample_groups`).
    """
    if groups is not None:
        return resample_groups(groups, REPLICATES, rng)
    return rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES)


def statistics_of(
    own: Shaped[np.ndarray, " n"],
    other: Shaped[np.ndarray, " m"],
    own_draws: Int[np.ndarray, "replicates n"],
    other_draws: Int[np.ndarray, "replicates m"],
) -> Float[np.ndarray, " replicates"]:
    """Return D = sup |F - G| of two samples of which examples are drawn so many times."""
    pooled = np.unique(np.concatenate([own, other]))
    functions = []
    for values, draws in ((own, own_draws), (other, other_draws)):
        mass = np.zeros((len(pooled), len(draws)))
        np.add.at(mass, np.searchsorted(pooled, values), draws.T)  # equal values share a place
        functions.append(mass.cumsum(axis=0) / draws.sum(axis=1))
    return np.abs(functions[0] - functions[1]).max(axis=0)
