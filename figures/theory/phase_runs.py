"""Runs of the phase diagram: two responses forgotten at once, over beta, length and memorisation.

A response of |y| scored tokens, of which pretraining saw a share, is forgotten beside one of 20
tokens that it saw whole. What is kept of a run is its state at the moment when both have reached
the retrained model's distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from figures.cache import Context, cached_each
from figures.theory.sweeps import FALL, MIDDLE, PACE, corner, start
from markov.diagnostics import at_last_goal
from markov.experiments import Experiment, grid
from markov.models import Transformer
from markov.objectives import CORNERS
from markov.running.run import run
from markov.sweeps import ComponentSweep
from markov.theory import beyond_last_goal, time_to_forget

LENGTHS = (2, 5, 10, 20, 40, 80)
SHARES = (0.1, 0.3, 1.0)
# Betas on the scale of a mean over tokens; on that of a sum each is a twentieth of it.
BETAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
STEPS, RECORDS, BATCH = 80, 20, 8
SWEPT, BESIDE = "forget1", "forget2"
Block = tuple[Experiment, tuple[float, ...], int]


def phase_runs(context: Context) -> pd.DataFrame:
    """Return a row per run: what was paid at the last goal, what was over-forgotten, and the law's.

    `level` is beta on the scale of a mean over tokens. `over_forgetting` is positive where it is
    the swept response that is beyond its goal, negative where it is the one of 20 tokens. `n_jobs`
    processes make one block of runs each, which is kept: another seed makes blocks of its own.
    """
    return cached_each(context, __name__, blocks(context), _block)


def blocks(context: Context) -> list[Block]:
    """Return what each block is made of: its first experiment, its levels of beta, its orders."""
    scale = context.scale
    lengths, levels, shares = (LENGTHS, BETAS, SHARES)
    few: dict[str, int] = {}
    if scale.quick:
        lengths, levels, shares = (2, 20, 80), (0.1, 0.4, 1.6), (0.1, 1.0)
        few = {"tokens": 4000, "retain_tokens": 8000, "forget_count": 50, "test_count": 16}
    found = []
    for length in lengths:
        for share in shares:
            case = ComponentSweep(name="phase", scored=(length, MIDDLE), shares=(share, 1.0))
            case = replace(case, **few)
            model = Transformer(
                states=case.states, context=max(LENGTHS), width=32, depth=1, mlp_width=32
            )
            base = replace(
                scale.sweep(),
                case=case,
                model=model,
                steps=STEPS,
                batch=BATCH,
                recorded=_recorded(),
                optimizer="sgd",
            )
            found += [
                (
                    replace(base, pretraining=replace(base.pretraining, seed=seed)),
                    levels,
                    scale.sweep_orders,
                )
                for seed in range(scale.sweep_pretrained)
            ]
    return found


def experiments(base: Experiment, levels: Sequence[float], orders: int) -> list[Experiment]:
    """Return the runs of a block: every corner at every level of beta, in several orders."""
    assert isinstance(base.case, ComponentSweep)
    found, first = list[Experiment](), start(base.case)
    for method, (_, normalize) in CORNERS.items():
        for level in levels:
            objective = corner(method, level / unit(normalize))
            alone = float(time_to_forget(objective, MIDDLE, FALL, first))
            own = replace(base, objective=objective, learning_rate=PACE["together"] * alone)
            found += grid(own, seed=range(orders))
    return found


def unit(normalize: Any) -> Any:
    """Return by what a level of beta is divided: 1 for a mean over tokens, 20 for a sum of them."""
    return MIDDLE ** (1 - normalize)


def _recorded() -> tuple[int, ...]:
    return tuple(sorted({0, *(round(step) for step in np.geomspace(1, STEPS, RECORDS))}))


def _block(job: Block) -> pd.DataFrame:
    made = experiments(*job)
    case = job[0].case
    assert isinstance(case, ComponentSweep)
    frame = run(made, n_jobs=1, progress=False)
    goals, first = at_last_goal(frame), frame[frame["step"] == 0]
    swept, beside = (
        goals[goals["component"] == name].reset_index(drop=True) for name in (SWEPT, BESIDE)
    )
    length, distance, goal, known = (
        np.stack([first.loc[first["component"] == name, column] for name in (SWEPT, BESIDE)], -1)
        for column in ("length", "kl_to_truth", "retrained", "logp_per_token")
    )
    fall = np.maximum(goal - distance, 0.0)
    law = np.array(
        [
            beyond_last_goal(one.objective, length[place], fall[place], known[place])
            for place, one in enumerate(made)
        ]
    )
    return pd.DataFrame(
        {
            **{name: swept[name] for name in ("method", "beta", "pretrain_seed", "seed")},
            "level": (swept["beta"] * unit(swept["normalize"])).round(9),
            "length": case.scored[0],
            "share": case.shares[0],
            **{name: swept[name] for name in ("reached", "step", "retain_distance")},
            "over_forgetting": swept["beyond"] - beside["beyond"],
            "predicted": law[:, 0] - law[:, 1],
        }
    )
