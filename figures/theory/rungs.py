"""Time to forget on every rung of the theory, in one table.

The rungs are the scalar law, the tabular flow and the transformer.

Each rung has its own unit of time, so times are compared relative to their geometric mean over
lengths. The scalar law knows one response whose tokens share one parameter. The tabular flow
forgets the same training sequences as the transformer, all lengths at once, without the noise of
batches: its rows are shared by all tokens of a state, and what a chain leaks visits the rows of
others. The transformer shares everything, which is why it is run both ways: each length alone, and
all lengths together. Where two rungs part, the next one's additions are what does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from figures.cache import Context, cached, cached_each
from figures.statistics import logs
from figures.theory.sweeps import (
    BETAS,
    FALL,
    MIDDLE,
    adam_runs,
    alone_runs,
    corner,
    length_runs,
    middle,
    start,
    sweep_case,
    times,
)
from markov.banks import ExpectedLoss, best_table, from_sequences
from markov.chains import Mixture
from markov.flow import Flow, gradient_flow, time_to_forget
from markov.objectives import Objective, method_name
from markov.sweeps import ComponentSweep
from markov.theory import time_to_forget as scalar_time

HORIZON = 30_000.0  # in units of the scalar law's time at MIDDLE tokens, alone


def forget_mixture(case: ComponentSweep) -> Mixture:
    """Return the law that unlearning draws from: every component as often as any other."""
    lengths = tuple(case.lengths.values())[1:]
    return Mixture(
        weights=(1 / len(lengths),) * len(lengths), chains=case.chains()[1:], lengths=lengths
    )


def tabular_flow(
    case: ComponentSweep, objective: Objective, seed: int, horizon: float = HORIZON
) -> Flow:
    """Return the exact flow from the best table of the pretraining data.

    It forgets the training sequences that unlearning draws from.
    """
    forget = forget_mixture(case)
    bank = from_sequences(case.forget_data(case.sample(seed)), forget.weights, case.states)
    pace = float(scalar_time(objective, MIDDLE, FALL, start(case)))
    loss = ExpectedLoss(objective=objective, bank=bank, reference=best_table(case.mixture()))
    return gradient_flow(loss, pace * np.geomspace(1e-2, horizon, 60), tolerance=1e-7)


def tabular_times(context: Context, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Return the time to forget each length under the tabular flow, with one forget set per seed.

    Lengths are forgotten together, and alone at middle betas.
    """
    case = sweep_case(context)
    alone = [replace(case, alone=name) for name in case.lengths if name != "retain"]
    jobs = [
        (mode, own, objective, seed)
        for mode, cases, chosen in (("together", [case], objectives), ("alone", alone, middle()))
        for objective in chosen
        for seed in range(context.scale.sweep_pretrained)
        for own in cases
    ]

    def solve(job: tuple[str, ComponentSweep, Objective, int]) -> pd.DataFrame:
        mode, own, objective, seed = job
        known = {
            "mode": mode,
            "method": method_name(objective),
            "beta": objective.beta,
            "pretrain_seed": seed,
        }
        lengths = [length - 1 for length in own.lengths.values()][1:]
        found = time_to_forget(tabular_flow(own, objective, seed), FALL)
        return pd.DataFrame({"length": lengths, "step": found}).assign(**known)

    settings = [jobs, FALL, HORIZON]
    return cached(context, __name__, settings, lambda: cached_each(context, __name__, jobs, solve))


def scalar_times(case: ComponentSweep, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Return the exact time to forget each length under the scalar law."""
    lengths = np.array(list(case.lengths.values())[1:]) - 1
    frames = [
        pd.DataFrame(
            {
                "method": method_name(objective),
                "beta": objective.beta,
                "pretrain_seed": 0,
                "length": lengths,
                "step": scalar_time(objective, lengths, FALL, start(case)),
            }
        )
        for objective in objectives
    ]
    return pd.concat(frames, ignore_index=True)


def all_times(context: Context) -> pd.DataFrame:
    """Return the times to forget by rung, optimiser, corner, beta, run and length.

    They are given also relative to their mean over lengths.
    """
    objectives = [corner(method, beta) for method, betas in BETAS.items() for beta in betas]
    curve = [
        corner(method, float(beta))
        for method, betas in BETAS.items()
        for beta in {*np.geomspace(betas[0] / 1.5, betas[-1] * 1.5, 30), *betas}
    ]
    frames = [
        scalar_times(sweep_case(context), curve).assign(
            rung="scalar", mode="alone", optimizer="flow", seed=0
        ),
        tabular_times(context, objectives).assign(rung="tabular", optimizer="flow", seed=0),
    ]
    trained = [length_runs(context), alone_runs(context), alone_runs(context, "adamw")]
    trained += [adam_runs(context, "adamw"), adam_runs(context, "adamw_transformers")]
    frames += [times(frame).assign(rung="transformer") for frame in trained]
    frame = pd.concat(frames, ignore_index=True)
    keys = ["rung", "mode", "optimizer", "method", "beta", "pretrain_seed", "seed"]
    known = logs(frame["step"].where(np.isfinite(frame["step"]) & (frame["step"] > 0)))
    frame["relative"] = frame["step"] / np.exp(
        known.groupby([frame[key] for key in keys]).transform("mean")
    )
    return frame[[*keys, "length", "step", "relative"]]
