"""Runs that the figures of chains draw on: the paper's, a search for the best beta, and the four
corners at theirs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from figures.cache import Context
from figures.experiments import table
from figures.scale import SEARCHED
from markov.diagnostics import crossings
from markov.experiments import PAPER_BETAS, grid
from markov.objectives import CORNERS, Objective

OPTIMIZERS = ("adamw_transformers", "adamw")
SEARCH_SEED = 1000  # batch orders of the search for beta, apart from those that the figures show


def paper_runs(context: Context) -> pd.DataFrame:
    """NPO and SimNPO with the paper's betas, in both cases and under both AdamW rules."""
    scale, experiments = context.scale, []
    for name, case in scale.cases().items():
        base = replace(scale.experiment(), case=case)
        objectives = [_corner(method, beta) for method, beta in PAPER_BETAS[name].items()]
        experiments += grid(
            base,
            optimizer=OPTIMIZERS,
            objective=objectives,
            pretraining=scale.pretrainings(),
            seed=range(scale.orders),
        )
    return table(context, experiments)


def search_runs(context: Context) -> pd.DataFrame:
    """Every corner at every beta of its grid, on batch orders of their own."""
    scale, experiments = context.scale, []
    objectives = [_corner(method, beta) for method, betas in SEARCHED.items() for beta in betas]
    for case in scale.cases().values():
        recorded = scale.search_recorded
        base = replace(scale.experiment(), case=case, recorded=recorded, steps=recorded[-1])
        base = replace(base, test_examples=scale.search_examples, gradient_examples=0)
        seeds = range(SEARCH_SEED, SEARCH_SEED + scale.search_orders)
        experiments += grid(
            base, objective=objectives, pretraining=scale.pretrainings(), seed=seeds
        )
    return table(context, experiments)


def best_betas(search: pd.DataFrame) -> pd.DataFrame:
    """The beta of each corner with the least cost: geometric mean over runs and forget components
    of retain distance.

    A beta with which some run does not reach its goal is taken only where there is no other; then
    the most reached wins.
    """
    return best_of(crossings(search))


def best_of(found: pd.DataFrame) -> pd.DataFrame:
    """Return the same as `best_betas` of the crossings of a search."""
    grouped = found.assign(log_cost=np.log(found["retain_distance"])).groupby(
        ["case", "method", "beta"]
    )
    ranked = grouped[["log_cost", "reached"]].mean().reset_index()
    ranked = ranked.sort_values(["reached", "log_cost"], ascending=[False, True], kind="stable")
    return ranked.groupby(["case", "method"], as_index=False).first()


def corner_runs(context: Context) -> pd.DataFrame:
    """The four corners, each at its best beta, with the gradient norms of the forget components."""
    scale, experiments = context.scale, []
    best = best_betas(search_runs(context)).set_index(["case", "method"])["beta"]
    for name, case in scale.cases().items():
        base = replace(scale.experiment(), case=case)
        objectives = [_corner(method, float(best[name, method])) for method in CORNERS]
        experiments += grid(
            base, objective=objectives, pretraining=scale.pretrainings(), seed=range(scale.orders)
        )
    return table(context, experiments)


def _corner(method: str, beta: float) -> Objective:
    return Objective(beta, 0.0, *CORNERS[method])
