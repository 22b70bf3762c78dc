"""Claims over trainings of the default language model, as a table with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from figures.statistics import judged, mean_interval
from llm.intervals import Estimate

INTERVAL = "t over trainings"


class Claimed(NamedTuple):
    """A statement, and the number of each training that it claims to be above `threshold`.

    Without the effect it is 0. `panel` is the paper's figure, or "" for a statement of this
    project.
    """

    name: str
    panel: str
    text: str
    unit: str
    values: np.ndarray
    threshold: float = 0.0


def claim_table(claims: Sequence[Claimed]) -> pd.DataFrame:
    """Estimate every claim, with a t interval over trainings.

    The columns are `claim`, `panel`, `text`, `unit`; `value`, `low`, `high`; `interval`, what it is
    over; `count` trainings; `p`, two-sided against no effect; `level`, that of the interval by
    which the `verdict` goes; `threshold`. Claims of the paper are judged together, and this
    project's too.
    """
    parts = []
    for theirs in (True, False):
        own = [claim for claim in claims if bool(claim.panel) == theirs]
        found = judged_together(own)
        found.insert(1, "panel", [claim.panel for claim in own])
        parts.append(found)
    return pd.concat(parts, ignore_index=True)


def judged_together(claims: Sequence[Claimed]) -> pd.DataFrame:
    """Estimate claims that are judged together: the columns of `claim_table` but for `panel`."""
    estimates = [mean_interval(np.asarray(claim.values, dtype=float)) for claim in claims]
    every = judged(estimates, [claim.threshold for claim in claims])
    rows = [
        {
            "claim": claim.name,
            "text": claim.text,
            "unit": claim.unit,
            **estimate._asdict(),
            "interval": INTERVAL,
            "p": said.p,
            "level": said.level,
            "threshold": claim.threshold,
            "verdict": said.verdict,
        }
        for claim, estimate, said in zip(claims, estimates, every, strict=True)
    ]
    columns = ["claim", "text", "unit", *Estimate._fields, "interval"]
    return pd.DataFrame(rows, columns=[*columns, "p", "level", "threshold", "verdict"])
