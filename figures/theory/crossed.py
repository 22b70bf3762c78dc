"""Runs that cross length with memorisation: long or short, read by pretraining or never.

The paper's two cases change one of them each. Four components are forgotten together here, so that
what the reference does and what the length does are seen on the same runs. Corners are compared at
one scale, so that they differ in form only: with m the median length of the forget data, those that
divide by the length have beta * m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from figures.cache import Context
from figures.experiments import table
from figures.theory.sweeps import corner, sweep_case
from markov.experiments import grid
from markov.models import Transformer
from markov.objectives import CORNERS, Objective
from markov.sweeps import ComponentSweep

LONG, SHORT = 19, 4  # scored tokens, as in the paper's case A
# What is forgotten, component by component: scored tokens, and the share that pretraining saw.
SCORED, SHARES = (LONG, SHORT, LONG, SHORT), (1.0, 1.0, 0.0, 0.0)
MEDIAN = float(np.median(SCORED))  # all components have equally many sequences
BETAS = (0.05, 0.1, 0.2)  # on the scale of summed log-probabilities
OPTIMIZERS = ("adamw_transformers", "adamw")


def crossed_case(context: Context) -> ComponentSweep:
    """Return the four components, with as much data as the scale has for a sweep."""
    return replace(sweep_case(context), name="crossed", scored=SCORED, shares=SHARES)


def crossed_runs(context: Context, optimizers: Sequence[str] = OPTIMIZERS) -> pd.DataFrame:
    """Return the table of the four corners at every beta, by default under both AdamW rules.

    `level` is beta on the scale of summed log-probabilities, of which `beta` is that of the
    objective.
    """
    scale, case = context.scale, crossed_case(context)
    base = scale.sweep()
    assert isinstance(base.model, Transformer)
    model = replace(base.model, states=case.states)
    base = replace(base, case=case, model=model, test_examples=case.test_count)
    pretrainings = [replace(base.pretraining, seed=seed) for seed in range(scale.pretrained)]
    experiments = grid(
        base,
        optimizer=optimizers,
        objective=objectives(),
        pretraining=pretrainings,
        seed=range(scale.sweep_orders),
    )
    frame = table(context, experiments)
    level = frame["beta"] / MEDIAN ** frame["normalize"]
    return frame.assign(level=level.round(9))


def objectives() -> list[Objective]:
    """Return every corner at every beta, on the scale that all corners share."""
    return [
        corner(method, beta * MEDIAN**normalize)
        for method, (_, normalize) in CORNERS.items()
        for beta in BETAS
    ]
