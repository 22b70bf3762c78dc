"""Evaluation logs of TOFU runs as values: their examples, pairs of logs, and truth ratios.

Losses are -log pi of one answer in nats. `llm.logs.reading` reads the files.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special

from llm.logs.questions import Asked, places, shared_places
from markov.errors import InvalidInput, require
from markov.objectives import SequenceLogProbs

MEMORISED = ("exact_memorization", "extraction_strength")  # as open-unlearning calls them


class Answers(NamedTuple):
    """Losses of one kind of answer (nats): mean over the scored tokens, sum, and number of tokens.

    `total` and `length` are None if a log does not store them. Perturbed answers have a second
    axis.
    """

    average: Float[np.ndarray, "examples *answers"]
    total: Float[np.ndarray, "examples *answers"] | None
    length: Float[np.ndarray, "examples *answers"] | None


class EvaluationLog(NamedTuple):
    """What a log says of each example, in the order of `index`; None for what it does not say.

    `question` is bare, as in the data, and `prompt` is what the model was given, the question in
    its template: logs of other codes have the prompt alone. `answer` is the truth and `generation`
    the model's own answer. `rouge` maps rouge1_recall and rougeL_recall to values, `memorised` maps
    exact_memorization and extraction_strength of the truth. `file` and `layout` say where the log
    was read.
    """

    file: str
    layout: str
    index: Int[np.ndarray, "examples"]
    gold: Answers
    paraphrased: Answers | None = None
    perturbed: Answers | None = None
    rouge: Mapping[str, Float[np.ndarray, "examples"]] = {}
    memorised: Mapping[str, Float[np.ndarray, "examples"]] = {}
    question: tuple[str, ...] | None = None
    generation: tuple[str, ...] | None = None
    answer: tuple[str, ...] | None = None
    prompt: tuple[str, ...] | None = None

    @property
    def asked(self) -> Asked:
        """What was asked in each example, for `llm.logs.questions`."""
        return Asked(self.file, self.index, self.question, self.prompt)


def take(log: EvaluationLog, positions: Int[np.ndarray, "taken"] | list[int]) -> EvaluationLog:
    """Return the log with the examples at these positions, in this order."""
    at = np.asarray(positions, dtype=np.int64)

    def of(value: Any) -> Any:
        if isinstance(value, Answers):
            return Answers(*(of(part) for part in value))
        if isinstance(value, tuple):
            return tuple(value[int(position)] for position in at)
        if isinstance(value, Mapping):
            return {name: of(values) for name, values in value.items()}
        return value if value is None else value[at]

    names = [name for name in log._fields if name not in ("file", "layout")]
    return log._replace(**{name: of(getattr(log, name)) for name in names})


def align(
    log: EvaluationLog, other: EvaluationLog, *, allow_identical: bool = True
) -> EvaluationLog:
    """Return the other model's log in the order of this one: equal indices are the same example.

    Raises `InvalidInput` as `llm.logs.questions.places` does, for examples that are not the same,
    and for different numbers of scored tokens (if both logs have counts), which mean other answers
    or another tokenizer. Warns if two logs have the same losses, so that a model is compared with
    itself, unless `allow_identical`.
    """
    both = f"{log.file} and {other.file}"
    other = take(other, places(log.asked, other.asked))
    if log.gold.length is not None and other.gold.length is not None:
        mine, theirs = log.gold.length, other.gold.length
        uneven = [
            (int(i), int(a), int(b))
            for i, a, b in zip(log.index, mine, theirs, strict=True)
            if a != b
        ]
        allowed = (
            f"as many scored tokens in {both} ({len(uneven)} of {len(mine)} differ): same "
            "answers and tokenizer"
        )
        require(not uneven, "length", uneven[:1], allowed)
    if not allow_identical and np.array_equal(log.gold.average, other.gold.average):
        warnings.warn(
            f"{both} hold the same losses: one model is compared with itself", stacklevel=2
        )
    return other


def shared(log: EvaluationLog, other: EvaluationLog) -> tuple[EvaluationLog, EvaluationLog]:
    """Return both logs cut to their shared questions, with the order and the indices of the first.

    This is for splits that overlap, such as the first 300 examples of TOFU's forget10 and its
    forget05. Raises `InvalidInput` as `llm.logs.questions.shared_places` does.
    """
    mine, theirs = shared_places(log.asked, other.asked)
    first = take(log, mine)
    return first, take(other, theirs)._replace(index=first.index)


def with_lengths(log: EvaluationLog, length: Float[np.ndarray, "examples"]) -> EvaluationLog:
    """Return the log with the given numbers of scored tokens of its gold answers.

    This is for a layout that stores only means: total = average * length. Raises `InvalidInput`
    unless there is a whole count of at least 1 for each example.
    """
    length = np.asarray(length, dtype=np.float64)
    require(
        length.shape == log.index.shape,
        "length",
        f"{length.size} counts",
        f"{len(log.index)}, as in {log.file}",
    )
    whole = np.isfinite(length) & (length >= 1) & (length == np.round(length))
    if not whole.all():
        row = int(np.argmin(whole))
        allowed = "a whole number of at least 1 scored token"
        raise InvalidInput(f"length of example {log.index[row]}", float(length[row]), allowed)
    return log._replace(gold=Answers(log.gold.average, log.gold.average * length, length))


def sequence_logprobs(log: EvaluationLog, reference: EvaluationLog) -> SequenceLogProbs:
    """Return log-probabilities of gold answers beside the reference's, in the log's order (nats).

    logp = -total under the log's model, and ref = -total under the reference's. A log beside itself
    is the model at the reference. Raises `InvalidInput` as `align` does, and for a log without
    numbers of scored tokens (see `with_lengths`).
    """
    reference = align(log, reference)
    logp, length, ref = -total_loss(log), log.gold.length, -total_loss(reference)
    return SequenceLogProbs(
        *(torch.from_numpy(np.array(x, dtype=np.float64)) for x in (logp, length, ref))
    )


def total_loss(log: EvaluationLog) -> Float[np.ndarray, "examples"]:
    """Return the summed loss of each gold answer (nats).

    Raises `InvalidInput` if the log has no numbers of scored tokens.
    """
    if log.gold.total is None or log.gold.length is None:
        allowed = (
            f"numbers of scored tokens in {log.file}, or supplied by `with_lengths`: it "
            "stores means only"
        )
        raise InvalidInput("length", None, allowed)
    return log.gold.total


def _geometric(right: Any, wrong: Any) -> Any:
    return right - wrong.mean(-1)


def _arithmetic(right: Any, wrong: Any) -> Any:
    return right + special.logsumexp(-wrong, axis=-1) - np.log(wrong.shape[-1])


# log R, with R = wrong / right by the geometric or the arithmetic mean of the wrong answers'
# probabilities; of a ratio that is turned round, log 1/R; of a share of the right answer, its log
# odds. Losses that are finite never saturate it.
LOG_RATIOS: dict[str, Callable[[Any, Any], Any]] = {
    "geometric": _geometric,
    "arithmetic": _arithmetic,
    "inverse_geometric": lambda right, wrong: -_geometric(right, wrong),
    "prob_mean": lambda right, wrong: -_geometric(right, wrong),
}
# From the above.
TRUTH_RATIOS: dict[str, Callable[[Any], Any]] = {
    "geometric": np.exp,
    "arithmetic": np.exp,
    "inverse_geometric": np.exp,
    "prob_mean": special.expit,
}


def log_truth_ratio(
    log: EvaluationLog, variant: str = "geometric"
) -> Float[np.ndarray, "examples"]:
    """Return the logarithm of each example's truth ratio; for `prob_mean`, the log odds.

    It increases with the truth ratio, so that a test of ranks sees the same distribution, and it
    distinguishes values that the ratio cannot: the ratio is infinite once the mean losses differ by
    710 nats. Raises `InvalidInput` as `truth_ratio` does.
    """
    require(variant in LOG_RATIOS, "variant", variant, f"one of {', '.join(LOG_RATIOS)}")
    for field, answers in (("paraphrased", log.paraphrased), ("perturbed", log.perturbed)):
        require(answers is not None, field, None, f"losses of {field} answers in {log.file}")
    assert log.paraphrased is not None and log.perturbed is not None
    return LOG_RATIOS[variant](log.paraphrased.average, log.perturbed.average)


def truth_ratio(log: EvaluationLog, variant: str = "geometric") -> Float[np.ndarray, "examples"]:
    """Return how likely the perturbed answers of each example are beside the paraphrased one.

    Answers are compared by their probability per token. With right = exp(-l~), l~ the mean loss of
    the paraphrased answer and l^_j those of the perturbed ones, the variants are

        geometric          R = exp(-mean_j l^_j) / right   the released TOFU code, and its log's
                                                           truth_ratio
        arithmetic         R = mean_j exp(-l^_j) / right   as the TOFU paper defines it
        inverse_geometric  right / exp(-mean_j l^_j)       the `stat` that forget quality compares
        prob_mean          1 / (1 + R), R geometric        open-unlearning's share of the right
                                                           answer

    Raises `InvalidInput` for another variant, and for a log without paraphrased or perturbed
    answers. The ratio may overflow to inf: code that compares ratios takes `log_truth_ratio`.
    """
    logarithm = log_truth_ratio(log, variant)
    with np.errstate(over="ignore"):
        return TRUTH_RATIOS[variant](logarithm)
