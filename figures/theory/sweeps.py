"""Runs of the sweeps over response length and memorisation, which several figures draw on.

Under SGD the step size of each objective is the one with which the scalar law would bring a
response of 20 tokens to the goal in 1 / PACE steps: all objectives then take comparable numbers of
steps, and what is compared, the times of different lengths under one objective, does not depend on
it. Under AdamW the step size is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from figures.cache import Context
from figures.experiments import table
from markov.diagnostics import steps_to_forget
from markov.experiments import Experiment, grid
from markov.objectives import CORNERS, Objective
from markov.sweeps import SHARES, ComponentSweep
from markov.theory import time_to_forget

FALL = 0.5  # nats per token: forgotten, where times are compared
MIDDLE = 20  # scored tokens of the response that sets the pace
PACE = {"together": 0.06, "alone": 0.04}
# The summed log-ratio asks for a small beta: beta |y| fall must stay moderate at 80 tokens, and so
# must beta |logp| where there is no reference to subtract.
BETAS = {
    "npo": (0.01, 0.05, 0.2),
    "reference_free_npo": (0.005, 0.01, 0.03),
    "length_normalized_npo": (0.5, 1.0, 2.0),
    "simnpo": (0.5, 1.0, 2.0),
}


def sweep_case(context: Context) -> ComponentSweep:
    """Return the sweep over lengths at the scale of the context."""
    case = context.scale.sweep().case
    assert isinstance(case, ComponentSweep)
    return case


def corner(method: str, beta: float) -> Objective:
    """Return a corner of the family at a beta, without margin."""
    return Objective(beta, 0.0, *CORNERS[method])


def middle() -> list[Objective]:
    """Return the four corners, each at the middle of its grid."""
    return [corner(method, betas[1]) for method, betas in BETAS.items()]


def start(case: ComponentSweep) -> float:
    """Return the exact log-probability per token of a forget component's responses (nats).

    It is that under the component's own chain.
    """
    return -float(case.chains()[-1].expected_row_entropy(MIDDLE + 1))


def runs(
    context: Context,
    objectives: Sequence[Objective],
    *,
    optimizer: str = "sgd",
    alone: bool = False,
    case: ComponentSweep | None = None,
    orders: int | None = None,
    steps: int | None = None,
) -> pd.DataFrame:
    """Return the table of a sweep (default: over lengths).

    All components are forgotten together, or each `alone`.
    """
    scale, base = context.scale, context.scale.sweep()
    whole = sweep_case(context) if case is None else case
    mode = "alone" if alone else "together"
    base = replace(base, case=whole, optimizer=optimizer)
    if alone:
        base = replace(base, batch=4)
    last = steps or (scale.sweep_steps if optimizer == "sgd" else scale.sweep_adam_steps)
    base = replace(
        base, steps=last, recorded=(*(step for step in base.recorded or () if step < last), last)
    )
    cases = (
        [replace(whole, alone=name) for name in whole.lengths if name != "retain"]
        if alone
        else [whole]
    )
    experiments: list[Experiment] = []
    for objective in objectives:
        rate = PACE[mode] * float(time_to_forget(objective, MIDDLE, FALL, start(whole)))
        own = replace(
            base, objective=objective, **({"learning_rate": rate} if optimizer == "sgd" else {})
        )
        pretrainings = [
            replace(base.pretraining, seed=seed) for seed in range(scale.sweep_pretrained)
        ]
        seeds = range(scale.sweep_orders if orders is None else orders)
        experiments += grid(own, pretraining=pretrainings, seed=seeds, case=cases)
    return table(context, experiments).assign(mode=mode)


def length_runs(context: Context) -> pd.DataFrame:
    """Forget six lengths together under SGD, every corner at every beta of its grid."""
    return runs(
        context, [corner(method, beta) for method, betas in BETAS.items() for beta in betas]
    )


def alone_runs(context: Context, optimizer: str = "sgd") -> pd.DataFrame:
    """Forget one length at a time, every corner at the middle of its grid.

    This shows what lengths do without interference.
    """
    return runs(context, middle(), optimizer=optimizer, alone=True, orders=1)


def adam_runs(context: Context, optimizer: str) -> pd.DataFrame:
    """Forget six lengths together under an AdamW rule, every corner at the middle of its grid."""
    return runs(context, middle(), optimizer=optimizer)


def share_runs(context: Context, optimizer: str = "sgd") -> pd.DataFrame:
    """Forget six components of graded memorisation together.

    Every corner is at the middle of its grid.
    """
    graded = replace(
        sweep_case(context), name=SHARES.name, scored=SHARES.scored, shares=SHARES.shares
    )
    return runs(
        context, middle(), optimizer=optimizer, case=graded, steps=context.scale.sweep_steps
    )


def times(frame: pd.DataFrame, fall: float = FALL) -> pd.DataFrame:
    """Return the steps to forget, by setting, run and length."""
    modes = frame.groupby("run")["mode"].first()
    found = steps_to_forget(frame, fall)
    found["mode"] = found["run"].map(modes)
    return found
