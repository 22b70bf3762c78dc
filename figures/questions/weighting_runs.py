"""Runs in which NPO and SimNPO keep a part of their weights, under several rules of an update.

A rule that goes by the size of gradients moves an objective with small weights little, whatever it
does with them. So step sizes are set apart for each kind of rule. AdamW has the paper's for all.
Where all steps are to be equally long, they are a third of gradient ascent's first step under
AdamW. Under plain descent each objective and weighting has a step size with which its first step is
on average as long as gradient ascent's, which is a sixth of that: so the size of the first weights
is taken out, and what is left of the magnitude is how it falls along the path, and from batch to
batch.

Beside a retain term, too, it is the size of the weights that says which of the two losses is heard:
with one retain weight for all, an objective with small weights is drowned, whatever the optimiser.
So there is a setting in which each objective and weighting has a retain weight of its own, with
which the two gradients are on average equally long at the start; and a run of the retain term
alone, since training on retain data forgets the rest without being told to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from figures.cache import Context, cached
from figures.experiments import table
from figures.theory.optimizer import updates
from markov.console.choices import OptimizerName, RetainTerm, WeightingName
from markov.diagnostics import crossings
from markov.experiments import PAPER_BETAS, Experiment, grid
from markov.objectives import CORNERS, Objective, gradient_ascent

EXAMPLES = 32  # test sequences of each component
RECORDED = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 21, 30, 50, 70, 100)
METHODS = ("npo", "simnpo")
BESIDE = ("length_normalized_npo", "reference_free_npo")  # drawn at the primary setting only
ASCENT = "gradient_ascent"
ALONE = "retain_term_alone"
SILENT = Objective(1.0, -200.0)  # its weights are 0: sigmoid(-200) is less than a float32 can be
LIMITS = {ASCENT: gradient_ascent(), ALONE: SILENT}
KEPT: tuple[WeightingName, ...] = ("own", "allocation", "magnitude")
NOTHING: WeightingName = "none"
TERM: RetainTerm = "cross_entropy"
RETAINED = 1.0  # the retain weight that is the same for all
CLIP = 1.0  # the bound of transformers' Trainer, unless it is told another
# Models and orders of batches on which the lengths of first steps are measured.
FIRST = (2, 8)


class Setting(NamedTuple):
    """A way to minimise an objective: the rule, its bound, the retain weight and the steps.

    There are `longer` times as many steps as the paper takes. `retain` is None where each run has a
    retain weight with which both gradients are equally long at the start. `share` is the length of
    a step as a share of gradient ascent's first one under AdamW, or None for the paper's step size.
    Every model is unlearned in so many `orders` of batches, at most as many as the scale has.
    """

    label: str
    optimizer: OptimizerName
    clip: float | None = None
    retain: float | None = 0.0
    longer: int = 1
    share: float | None = None
    orders: int = 1


PRIMARY = "primary"
ADAMW: OptimizerName = "adamw_transformers"
SETTINGS = {
    PRIMARY: Setting("AdamW (primary)", ADAMW, orders=2),
    "clipped": Setting("... gradients clipped", ADAMW, clip=CLIP),
    "retain": Setting("... retain term", ADAMW, retain=RETAINED, longer=2),
    "both": Setting("... both", ADAMW, clip=CLIP, retain=RETAINED, longer=2),
    "balanced": Setting("... retain, balanced", ADAMW, retain=None, longer=2),
    "torch": Setting("AdamW of torch", "adamw"),
    "matched": Setting("AdamW, equal steps", "adamw_transformers_matched", longer=2, share=1 / 3),
    "sgd": Setting("SGD, equal first steps", "sgd", longer=2, share=1 / 6),
}


class Cell(NamedTuple):
    """An objective of a case, and what is kept of its weights."""

    case: str
    method: str
    weighting: WeightingName

    @property
    def objective(self) -> Objective:
        """The objective with the paper's beta of its case and of its `normalize`."""
        if self.method in LIMITS:
            return LIMITS[self.method]
        reference, normalize = CORNERS[self.method]
        return Objective(
            PAPER_BETAS[self.case]["simnpo" if normalize else "npo"], 0.0, reference, normalize
        )


def cells(case: str, setting: str) -> list[Cell]:
    """Return the cells of a case at a setting.

    Without weights all objectives are gradient ascent, so that is one cell. Where all have one
    retain weight, the retain term alone is one, too.
    """
    methods = (*METHODS, *BESIDE) if setting == PRIMARY else METHODS
    kept = [Cell(case, method, weighting) for method in methods for weighting in KEPT]
    alone = [Cell(case, ALONE, "own")] if SETTINGS[setting].retain else []
    return [*kept, Cell(case, ASCENT, NOTHING), *alone]


def experiments(context: Context) -> dict[Experiment, tuple[str, Cell]]:
    """Return all runs, each with its setting and its cell."""
    scale, found = context.scale, {}
    for case in PAPER_BETAS:
        base = _base(context, case)
        for name, setting in SETTINGS.items():
            steps = setting.longer * base.steps
            own: dict[str, Any] = {
                "optimizer": setting.optimizer,
                "clip": setting.clip,
                "retain_term": "none" if setting.retain == 0 else TERM,
                "steps": steps,
                "recorded": tuple(step for step in RECORDED if step <= steps),
            }
            for cell in cells(case, name):
                chosen = {
                    "learning_rate": _rate(context, setting, cell),
                    "retain_weight": _retain_weight(context, setting, cell),
                }
                runs = grid(
                    replace(base, **own, **chosen),
                    objective=[cell.objective],
                    weighting=[cell.weighting],
                    pretraining=scale.pretrainings(),
                    seed=range(min(setting.orders, scale.orders)),
                )
                found |= dict.fromkeys(runs, (name, cell))
    return found


def reached(context: Context) -> pd.DataFrame:
    """Return where each run first reaches its goals: see `markov.diagnostics.crossings`.

    The columns `setting`, `method`, `weighting`, `learning_rate` and `retain_weight` say which run
    it is, beside its seeds.
    """
    wanted = experiments(context)
    found = crossings(table(context, list(wanted)))
    runs = found["run"].map(dict(enumerate(wanted.items())))
    columns = {
        "setting": [name for _, (name, _) in runs],
        "weighting": [cell.weighting for _, (_, cell) in runs],
        "method": [cell.method for _, (_, cell) in runs],
        "learning_rate": [one.learning_rate for one, _ in runs],
        "retain_weight": [one.retain_weight for one, _ in runs],
    }
    return found.assign(**columns)


def _base(context: Context, case: str) -> Experiment:
    examples = min(EXAMPLES, context.scale.test_examples)
    return replace(
        context.scale.experiment(),
        case=context.scale.cases()[case],
        gradient_examples=0,
        test_examples=examples,
    )


def _rate(context: Context, setting: Setting, cell: Cell) -> float:
    """Return the step size of a cell at a setting, to three digits."""
    base = _base(context, cell.case)
    if setting.share is None:
        return base.learning_rate
    ascent = Cell(cell.case, ASCENT, NOTHING)
    length = setting.share * first_step(context, ascent, base.optimizer, base.learning_rate)
    if setting.optimizer != "sgd":
        return _rounded(length)
    return _rounded(length / first_step(context, cell, setting.optimizer, 1.0))


def _retain_weight(context: Context, setting: Setting, cell: Cell) -> float:
    """Return the retain weight of a cell at a setting, to three digits."""
    if setting.retain is not None:
        return setting.retain
    term = first_step(context, Cell(cell.case, ALONE, "own"), "sgd", 1.0, RETAINED)
    return _rounded(RETAINED * first_step(context, cell, "sgd", 1.0) / term)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def first_step(
    context: Context,
    cell: Cell,
    optimizer: OptimizerName,
    learning_rate: float,
    retain_weight: float = 0.0,
) -> float:
    """Return the mean norm of a cell's first step, over models and orders of batches."""
    models, orders = FIRST
    base = replace(_base(context, cell.case), optimizer=optimizer, learning_rate=learning_rate)
    base = replace(base, steps=1, recorded=(0,), test_examples=1)
    if retain_weight > 0:
        base = replace(base, retain_term=TERM, retain_weight=retain_weight)
    runs = grid(
        base,
        objective=[cell.objective],
        weighting=[cell.weighting],
        pretraining=context.scale.pretrainings()[:models],
        seed=range(orders),
    )
    return float(cached(context, __name__, runs, lambda: updates(runs))["update"].mean())


def rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Return step size and retain weight by case, setting, method and weighting, where measured."""
    keys = ["case", "setting", "method", "weighting"]
    measured = [
        name
        for name, setting in SETTINGS.items()
        if setting.share is not None or setting.retain is None
    ]
    own = frame[frame["setting"].isin(measured)]
    return own.groupby(keys, sort=False)[["learning_rate", "retain_weight"]].first().reset_index()
