"""How much of a text another one has, in words: ROUGE, by the package rouge-score.

With L the length of the longest common subsequence of words (of runs of letters and digits, in lower case; with
`stemmer` without their endings),

    ROUGE-L recall     L / words of the truth
    ROUGE-L precision  L / words of the generation
    ROUGE-L F1         their harmonic mean

and ROUGE-1 recall with the number of common words, wherever they stand, for L. TOFU takes recall, with the stemmer;
MUSE takes F1, without. A generation of no words has 0 of everything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from markov.errors import require

MEASURES = ("rouge1_recall", "rougeL_recall", "rougeL_f1")


def rouge(
    truths: Sequence[str], generations: Sequence[str], *, stemmer: bool = True
) -> dict[str, Float[np.ndarray, "examples"]]:
    """`rouge1_recall`, `rougeL_recall` and `rougeL_f1` of each generation beside its truth, numbers in [0, 1].

    Raises `InvalidInput` for unequal counts.
    """
    from rouge_score.rouge_scorer import RougeScorer  # takes a second, which readers of logs need not wait for

    require(len(truths) == len(generations), "generations", len(generations), f"{len(truths)}, one for each truth")
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
    found = [scorer.score(target=truth, prediction=own) for truth, own in zip(truths, generations, strict=True)]
    rows = [(one["rouge1"].recall, one["rougeL"].recall, one["rougeL"].fmeasure) for one in found]
    values = np.array(rows, dtype=float).reshape(len(rows), len(MEASURES))
    return dict(zip(MEASURES, values.T, strict=True))
