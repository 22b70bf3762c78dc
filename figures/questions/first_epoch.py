"""The first epoch of the runs of `figures.questions.graded`, looked at between its updates.

Runs are recorded after every epoch, and some have forgotten more than enough after the first. So
that epoch is made once more, with the same updates, and recorded after every few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch.optim.optimizer import register_optimizer_step_post_hook

from figures.cache import Context, cached_each
from figures.questions.graded import GOAL, START, Answered, Graded, answers
from llm.logs.log import total_loss
from llm.models.answers import responses
from llm.models.small_authors import build, readings, sets
from llm.scoring.logprobs import score_encoded
from llm.unlearning.epoch import probed
from llm.unlearning.unlearn import unlearn

EVERY = 4  # updates from one record to the next


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A run whose first epoch is recorded, and after how many updates each time."""

    run: Graded
    every: int


def first_epochs(context: Context, runs: Sequence[Graded], every: int = EVERY) -> pd.DataFrame:
    """Return a row per run, record within its first epoch and answer to forget.

    The columns are those of `graded_runs`, of which `epoch` is now a fraction, without `ref` and
    `log_ratio`. Neither the start nor the end of the epoch is among them.
    """
    jobs = [Watched(run=run, every=every) for run in runs]
    return cached_each(context, __name__, jobs, _watched)


def _watched(job: Watched) -> pd.DataFrame:
    run = job.run
    forget, retain = sets(run.models)
    language = build(run.models, START, progress=False)
    encoded, kept = responses(language, forget), responses(language, retain)
    probe = probed(kept, run.unlearning)
    updates = run.unlearning.optimization.updates(len(encoded))
    done, records = [0], list[pd.DataFrame]()

    def look(*_: object) -> None:
        done[0] += 1
        if done[0] % job.every or done[0] == updates:
            return
        logp = score_encoded(language.model, encoded, progress=False).logp.numpy()
        seen = score_encoded(language.model, probe, progress=False)
        paid = float(-(seen.logp / seen.length).double().mean())
        record = {"epoch": done[0] / updates, "logp": logp, "retain_loss": paid}
        records.append(pd.DataFrame(record))

    # With as many epochs of warm-up the first of all epochs is the same if it is the last, too.
    once = replace(run.unlearning.optimization, epochs=1)
    handle = register_optimizer_step_post_hook(look)
    try:
        unlearn(
            language.model,
            encoded,
            kept,
            replace(run.unlearning, optimization=once),
            progress=False,
        )
    finally:
        handle.remove()
    (goal,) = answers(Context(n_jobs=1, progress=False), [Answered(models=run.models, kind=GOAL)])
    wanted = dict(zip(goal.index.tolist(), -total_loss(goal), strict=True))
    index = [one.index for one in forget]
    known = pd.DataFrame(
        {
            "index": index,
            "length": np.array([len(one.tokens) - one.prompt for one in encoded], dtype=float),
            "retrained": [wanted[one] for one in index],
            "read": readings(run.models),
        }
    )
    frames = [pd.concat([known, record], axis=1) for record in records]
    found = pd.concat(frames, ignore_index=True) if frames else known.iloc[:0]
    return found.assign(
        method=run.method,
        weighting=run.unlearning.weighting,
        level=run.level,
        training=run.models.seed,
    )
