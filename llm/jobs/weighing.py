"""Weigh examples: how hard each objective pushes each of them, and whether that is needed.

No model is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from llm.arguments import checked_job
from llm.diagnostics import allocation as curves
from llm.diagnostics.scores import beside, pair
from llm.diagnostics.weights import WEIGHT, diagnose_per_token, weights_table, with_needed
from llm.diagnostics.weights import diagnose as diagnose_logs
from llm.jobs.settings import DEFAULTS, Word
from llm.jobs.values import objectives_of, scores_of
from llm.logs.log import EvaluationLog, align, with_lengths
from llm.logs.log import shared as shared_by
from llm.logs.reading import read_log
from markov.errors import require
from markov.files.storage import Location
from markov.objectives import Objective

Objectives = Mapping[str, Objective] | Iterable[str | Objective]
STATISTICS = ("spearman", "spearman_low", "spearman_high", "area", "misplaced", "unneeded")


@checked_job
def weights(
    scores: pd.DataFrame | Location,
    reference: pd.DataFrame | Location | None = None,
    *,
    retrained: pd.DataFrame | Location | None = None,
    objectives: Objectives = DEFAULTS,
) -> pd.DataFrame:
    """Return the gradient weight of each example under each objective.

    `scores` and `reference` are tables of `score`, or files of them: of the model, and of the model
    before unlearning. Without a `reference` the scores are their own reference, as before the first
    update. The table has `index`, `logp`, `length` and `ref`, and per objective a column
    `weight_<name>`, d loss / d logp. With `retrained`, the scores of the model that never saw the
    forget data, it also has `retrained`, `needed` = ref - retrained (nats) and `needed_per_token`.

    Raises `InvalidInput` for tables of other examples or other numbers of tokens, and for words
    that name no objective.
    """
    chosen = objectives_of(objectives)
    own = scores_of(scores, "scores")
    before = own if reference is None else scores_of(reference, "reference")
    frame = weights_table(pair(own, before), chosen, own["index"].to_numpy())
    if retrained is None:
        return frame
    return with_needed(frame, beside(own, scores_of(retrained, "retrained"), "retrained"))


def spread(weights: pd.DataFrame) -> pd.DataFrame:
    """Return how the weights of each objective are spread, a row per objective.

    The columns are `least`, `mean` and `greatest`, and the Spearman correlations with `length` and
    with `nats_per_token`, how badly an answer is known; nan for weights that are all the same.
    """
    length = weights["length"].to_numpy(float)
    nats = -weights["ref"].to_numpy(float) / length
    rows = {}
    for name in map(str, weights):
        if not name.startswith(WEIGHT):
            continue
        own = weights[name].to_numpy(float)
        rows[name.removeprefix(WEIGHT)] = (
            *(own.min(), own.mean(), own.max()),
            *(float(curves.spearman(one, own)) for one in (length, nats)),
        )
    columns = ["least", "mean", "greatest", "length", "nats_per_token"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


@checked_job
def diagnose(
    logs: EvaluationLog | Location,
    retrained_logs: EvaluationLog | Location,
    *,
    objectives: Objectives = DEFAULTS,
    lengths: pd.DataFrame | Location | None = None,
    shared: bool = False,
) -> pd.DataFrame:
    """Return the weights at the start of unlearning beside what is needed, from evaluation logs.

    The logs are of the model before unlearning and of the model retrained without the forget data:
    files or folders in any of TOFU's three layouts, or logs that were read. The table has `index`,
    `length`, `ref`, `retrained`, `needed`, `needed_per_token` and a column of weights per
    objective. Logs that store mean losses only need `lengths`, a table of `score` by any model with
    this tokenizer; without it objectives that divide the length out are weighed per token, and the
    others are left out with a warning. With `shared` questions that only one of the logs holds
    are left out.

    Raises `InvalidInput` for logs that do not fit together.
    """
    chosen = objectives_of(objectives)
    original, retrained = (
        read_log(log) if isinstance(log, Word) else log for log in (logs, retrained_logs)
    )
    if lengths is not None:
        original = _counted(original, scores_of(lengths, "lengths"))
    if shared:
        original, retrained = shared_by(original, retrained)
    original, retrained = _counted_alike(original, retrained)
    if original.gold.length is None:
        return diagnose_per_token(original, retrained, _without_lengths(chosen, original))
    return diagnose_logs(original, retrained, chosen)


def _counted(log: EvaluationLog, scores: pd.DataFrame) -> EvaluationLog:
    """Return the log with the lengths of a table of scores, found by the examples' index."""
    allowed = f"left out: {log.file} says how many tokens each answer has"
    require(log.gold.length is None, "lengths", "given", allowed)
    found = scores.set_index("index")["length"].reindex(log.index)
    lacking = log.index[found.isna().to_numpy()].tolist()
    allowed = (
        f"the length of each of the {len(log.index)} examples of {log.file} ({len(lacking)} "
        "missing)"
    )
    require(not lacking, "lengths, index", lacking[:1], allowed)
    return with_lengths(log, found.to_numpy(dtype=float))


def _counted_alike(
    original: EvaluationLog, retrained: EvaluationLog
) -> tuple[EvaluationLog, EvaluationLog]:
    """Return both logs with the numbers of tokens that one of them stores.

    They are of the same answers, cut by one tokenizer.
    """
    if original.gold.length is not None and retrained.gold.length is None:
        aligned = align(original, retrained)
        return original, with_lengths(aligned, original.gold.length)
    if original.gold.length is None and retrained.gold.length is not None:
        return with_lengths(original, np.asarray(align(original, retrained).gold.length)), retrained
    return original, retrained


def _without_lengths(chosen: Mapping[str, Objective], log: EvaluationLog) -> dict[str, Objective]:
    """Return the objectives that need no lengths, and warn of the others."""
    found = {name: one for name, one in chosen.items() if float(one.normalize) == 1}
    missing = (
        f"{log.file} stores no numbers of scored tokens, and needs --lengths, a table of "
        "`python -m llm score`"
    )
    allowed = f"one that divides the length out, such as simnpo:2.5: {missing}"
    require(bool(found), "objectives", sorted(chosen), allowed)
    left = f"without {', '.join(sorted(chosen.keys() - found))} and"
    left = left if len(found) < len(chosen) else "without"
    warnings.warn(
        f"per token only, {left} what goes by length: {missing}", RuntimeWarning, stacklevel=3
    )
    return found


class Allocation(NamedTuple):
    """Whether the effort of each objective goes where it is needed.

    `curves` has the columns `objective`, `needed_share` and `effort_share`: the neediest examples
    come first, both shares are cumulated, and a proportional effort lies on the diagonal.
    `statistics` has a row per objective: the Spearman correlation of effort and need, the `area`
    under the curve (1/2 on the diagonal) and the `misplaced` share of the effort, each with a 95%
    interval over examples, and `unneeded`, the share spent on examples that need nothing.
    """

    curves: pd.DataFrame
    statistics: pd.DataFrame

    def __repr__(self) -> str:
        return self.statistics[list(STATISTICS)].round(3).to_string()

    def _repr_html_(self) -> str:
        return self.statistics[list(STATISTICS)].round(3).to_html()


@checked_job
def allocation(table: pd.DataFrame, *, effort: str = "weight", need: str = "total") -> Allocation:
    """Return how each objective of a table of `weights` or `diagnose` spends its effort.

    `effort` is the weight of an example, or its push, weight * length. `need` is how far its
    log-probability has to fall, in total or per token. The table needs the column `needed`, which
    it has where the scores of a retrained model were given. Raises `InvalidInput` as
    `llm.diagnostics.allocation.bias` does.
    """
    found = curves.allocation(table, effort, need)
    rows = curves.bias(table).query("effort == @effort and need == @need").set_index("objective")
    return Allocation(found, rows.drop(columns=["effort", "need"]))
