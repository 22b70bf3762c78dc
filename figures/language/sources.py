"""Where figures of language models get their logs: from the user, or the public ones.

The public logs are those of Llama-2-7B on TOFU. The repository locuslab/tofu has them in its folder
data. OPTML-Group/Unlearn-Simple, that of the paper, has logs of retrained models of its own: other
trainings, with other numbers, so that each log is named with its repository. The environment
variable SIMNPO_LAB_TOFU names a copy of such a repository or of its folder, or a folder with the
logs as logs/llama2-7b_full and so on. It may name several, as PATH does; each log comes from the
first that has it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.cache import Context
from llm.diagnostics.weights import corners, diagnose, with_halves
from llm.logs.log import EvaluationLog, align, log_truth_ratio, truth_ratio
from llm.logs.reading import read_log
from markov.errors import InvalidInput, require
from markov.files.storage import Location
from markov.objectives import Objective

VARIABLE = "SIMNPO_LAB_TOFU"
HOW = (
    "a folder with evaluation logs of Llama-2-7B on TOFU. They are in the public repository "
    "locuslab/tofu, folder data:"
    f" git clone https://github.com/locuslab/tofu, and set {VARIABLE} to the clone"
)
# Where a model's logs lie in such a folder: collected, in the repository, in its folder data.
_RUN = "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01/eval_results/ds_size300"
PLACES = ("logs/llama2-7b_{}", f"data/{_RUN}", _RUN, f"TOFU/data/{_RUN}")
# By the digest of its mean losses, rounded: whose log it is.
REPOSITORIES = {
    "c8c9904b284285de": "locuslab/tofu",
    "17b0329b9e328442": "locuslab/tofu",
    "0ad01c5676660db1": "OPTML-Group/Unlearn-Simple",
}
# The split that the log of the model fine-tuned on all of TOFU covers, and the split of the model
# retrained without it.
SPLIT, RETAINED = "forget10", "retain90"
HINT = (
    f"Llama-2-7B as well: git clone https://github.com/locuslab/tofu, and set {VARIABLE} to the "
    "clone"
)
BASELINES = ("retrained", "original")


@dataclass(frozen=True, kw_only=True)
class Logs:
    """Logs of one source and what to call them.

    Each log is a file or a folder that `llm.logs.reading.read_log` reads. `source` names the model
    and the data set in the figure. `unlearned` has a name for each model, shown in the legend; a
    method's own name, such as "npo", gives it the method's colour.
    """

    source: str
    original: Location
    retrained: Location
    unlearned: tuple[tuple[str, Location], ...] = ()


class Models(NamedTuple):
    """The logs of one source as values, all in the order of the original's examples."""

    source: str
    original: EvaluationLog
    retrained: EvaluationLog
    unlearned: Mapping[str, EvaluationLog] = {}


def models(
    source: str,
    original: EvaluationLog,
    retrained: EvaluationLog,
    unlearned: Mapping[str, EvaluationLog] | None = None,
) -> Models:
    """Put the logs of one source side by side, matched by index.

    Raises `InvalidInput` where logs do not fit together (see `llm.logs.log.align`), and for an
    unlearned model that is called "original" or "retrained".
    """
    unlearned = unlearned or {}
    taken = [name for name in unlearned if name in BASELINES]
    require(not taken, "unlearned", taken[:1], f"other names than {' and '.join(BASELINES)}")
    aligned = {name: align(original, log) for name, log in unlearned.items()}
    return Models(source, original, align(original, retrained), aligned)


def read(logs: Logs) -> Models:
    """Read and match the forget logs of one source.

    Raises `InvalidInput` as `read_log` and `models` do.
    """
    names = [name for name, _ in logs.unlearned]
    repeated = sorted({name for name in names if names.count(name) > 1})
    require(not repeated, "unlearned", repeated[:1], "a name of its own for each model")
    unlearned = {name: read_log(path) for name, path in logs.unlearned}
    retrained = read_log(logs.retrained)
    public = repository(retrained)
    # Two public models were retrained without the same answers, and their numbers differ.
    source = f"{logs.source}, {RETAINED} of {public}" if public else logs.source
    return models(source, read_log(logs.original), retrained, unlearned)


def read_all(logs: Iterable[Logs]) -> list[Models]:
    """Read several sources.

    Raises `InvalidInput` for none, and for two of one name, which would share a panel.
    """
    chosen = list(logs)
    names = [one.source for one in chosen]
    require(bool(names), "logs", names, "at least one source")
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    require(not repeated, "source", repeated[:1], "a name of its own for each source")
    return [read(one) for one in chosen]


def logs_in(folder: Location) -> Logs:
    """Return the public logs of Llama-2-7B in a folder, or in several with `os.pathsep` between.

    The models are fine-tuned on all of TOFU, and retrained without forget10. Raises `InvalidInput`,
    saying where they are to be had, for folders that do not hold both.
    """
    roots = [Path(one) for one in os.fspath(folder).split(os.pathsep)]
    found = []
    for name in ("full", RETAINED):
        every = (root / place.format(name) for root in roots for place in PLACES)
        found.append(next((path for path in every if path.is_dir()), None))
    original, retrained = found
    if original is None or retrained is None:
        raise InvalidInput("logs", os.fspath(folder), HOW)
    return Logs(source=f"Llama-2-7B, TOFU {SPLIT}", original=original, retrained=retrained)


def repository(log: EvaluationLog) -> str | None:
    """Return the public repository that a forget log of Llama-2-7B is from; None for other logs."""
    losses = np.round(np.asarray(log.gold.average, dtype=float)[np.argsort(log.index)], 4)
    return REPOSITORIES.get(hashlib.sha256(losses.tobytes()).hexdigest()[:16])


def real_logs() -> Logs | None:
    """Return the public logs in the folder that SIMNPO_LAB_TOFU names, or None where it is not set.

    See `logs_in`.
    """
    folder = os.environ.get(VARIABLE)
    return logs_in(folder) if folder else None


def chosen(context: Context) -> list[Logs]:
    """Return the logs that the user names, else the public ones where they are at hand.

    See `real_logs`.
    """
    if context.logs:
        return [
            Logs(source=context.logs[0].name, original=context.logs[0], retrained=context.logs[1])
        ]
    found = real_logs()
    others = context.runs or context.own or context.study
    return [] if found is None or others else [found]


def hint(figure: Figure) -> None:
    """Say below a figure how to have the public logs in it too."""
    figure.supxlabel(HINT, fontsize=7.5, color="0.4", x=0.99, ha="right")


def objectives() -> dict[str, Objective]:
    """Return the four corners with the paper's betas for forget10.

    Beta is 0.1 where log-probabilities are summed, 4.5 per token.
    """
    return corners(0.1, 4.5)


def weights_at_the_start(found: Models, objectives: Mapping[str, Objective]) -> pd.DataFrame:
    """Return what is needed and what weight is given before the first step, per example.

    See `llm.diagnostics.weights.diagnose`.
    """
    return diagnose(found.original, found.retrained, objectives)


def truth_ratios(found: Models, variant: str = "geometric") -> pd.DataFrame:
    """Return the truth ratio of each example under each model, with the halves it belongs to.

    Columns `source`, `variant`, `model` ("retrained", "original", then the unlearned), `index`,
    `length`, `needed_per_token`, `length_half`, `memorised_half`, `ratio`, `log_ratio` (which never
    saturates). The halves come from original and retrained alone, so they are the same for all
    models. Raises `InvalidInput` as `diagnose` and `truth_ratio` do.
    """
    halves = with_halves(diagnose(found.original, found.retrained, {}))
    halves = halves[["index", "length", "needed_per_token", "length_half", "memorised_half"]]
    logs = {"retrained": found.retrained, "original": found.original, **found.unlearned}
    frames = [
        halves.assign(
            model=model, ratio=truth_ratio(log, variant), log_ratio=log_truth_ratio(log, variant)
        )
        for model, log in logs.items()
    ]
    frame = pd.concat(frames, ignore_index=True).assign(source=found.source, variant=variant)
    return frame[["source", "variant", "model", *halves.columns, "ratio", "log_ratio"]]
