"""What the best of several random answers still tells of the forgotten: leak@k.

Greedy answers hide what comes when a model is asked often. Of n answers drawn at random, with
scores s_1 <= ... <= s_n beside the truth (ROUGE-L recall), the best of k has in expectation

    leak@k = sum_{i=k}^{n} s_i C(i - 1, k - 1) / C(n, k)

This is the mean over all ways to take k of the n, and so without bias for the expectation over
answers still to be drawn. (arXiv 2511.04934.) On chains `markov.measures.sampling` is its exact
twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.special import gammaln

from llm.data.tofu import Example
from llm.evaluation.rouge import check_words, rouge
from llm.intervals import groups_of, percentile_interval
from llm.logs.measures import AUTHORS, EXAMPLES, check_per_author, means
from llm.models.generation import Sampling, sample
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import MAX_LENGTH
from llm.scoring.limits import BUDGET, NEW_TOKENS, writing_budget
from markov.errors import InvalidInput, require, require_whole

SCORE = "rougeL_recall"
PLAIN = Sampling()  # from the model's law itself


def drawn_answers(
    language: LanguageModel,
    examples: Sequence[Example],
    samples: int,
    sampling: Sampling = PLAIN,
    *,
    words: str = "latin",
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> pd.DataFrame:
    """Return random answers to each question, with their ROUGE beside the truth.

    The columns are `index`, `sample` (from 0), `rouge1_recall`, `rougeL_recall` and `text`, a row
    per example and answer. Raises `InvalidInput` as `llm.models.generation.sample` does, and for
    other `words`.
    """
    check_words(words)
    ways: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_length": max_length}
    ways |= {"budget": writing_budget(budget), "progress": progress}
    texts = sample(language, examples, samples, sampling, **ways)
    frames = []
    for example, own in zip(examples, texts, strict=True):
        scores = rouge([example.response] * samples, own, words=words)
        columns = {name: scores[name] for name in ("rouge1_recall", SCORE)}
        frames.append(pd.DataFrame({"index": example.index, "sample": range(samples), **columns}))
        frames[-1]["text"] = own
    return pd.concat(frames, ignore_index=True)


def best_of(
    scores: Float[np.ndarray, "*examples samples"], count: int
) -> Float[np.ndarray, "*examples"]:
    """Return the expected largest of `count` scores, taken from those of each row at random.

    Raises `InvalidInput` for fewer scores than that, for numbers that are not finite, and for a
    count below 1.
    """
    try:
        scores = np.asarray(scores, dtype=float)
    except (TypeError, ValueError):
        raise InvalidInput("scores", scores, "an array of numbers") from None
    proper = scores.ndim > 0 and scores.size > 0 and bool(np.isfinite(scores).all())
    require(proper, "scores", scores, "finite numbers, with an axis of samples")
    total = scores.shape[-1]
    require_whole(count, "k", 1, total)
    rank = np.arange(count, total + 1)

    def choices(of: Any, take: int) -> Any:
        return gammaln(of + 1) - gammaln(take + 1) - gammaln(of - take + 1)

    shares = np.exp(choices(rank - 1, count - 1) - choices(total, count))
    # They sum to 1 but for rounding, and a mean of equal scores is that score.
    return np.sort(scores, axis=-1)[..., count - 1 :] @ (shares / shares.sum())


def leak_at(
    table: pd.DataFrame,
    counts: Sequence[int],
    *,
    per_author: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return leak@k of a table of `drawn_answers` for each k, with 95% intervals.

    The columns are `k`, `value` (mean over examples), `low`, `high`, `examples` and `drawn`, which
    says what the bootstrap draws: examples, or authors where `per_author` says how many consecutive
    indices are of one (see `llm.logs.measures`). Raises `InvalidInput` for examples with unequal
    numbers of answers, for a table without a column, and as `best_of` does.
    """
    check_per_author(per_author)
    names = ("index", "sample", SCORE)
    lacking = [name for name in names if name not in table]
    require(not lacking, "table", lacking[:1], f"a table with the columns {', '.join(names)}")
    alike = not table.duplicated(["index", "sample"]).any()
    wide = table.pivot(index="index", columns="sample", values=SCORE) if alike else table
    alike = alike and wide.size > 0 and len(table) == wide.size
    require(alike, "samples", len(table), "as many answers, once each, to every question")
    groups = groups_of(wide.index.to_numpy(), per_author)
    mean = means(len(wide), groups, np.random.default_rng(seed))
    rows = []
    for count in counts:
        values = best_of(wide.to_numpy(), count)
        rows.append((count, *percentile_interval(values.mean(), mean(values), len(values))))
    found = pd.DataFrame(rows, columns=["k", "value", "low", "high", "examples"])
    return found.assign(drawn=EXAMPLES if groups is None else AUTHORS)
