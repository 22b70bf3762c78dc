"""Runs in which NPO and SimNPO keep a part of their weights, under several rules of an update.

A rule that goes by the size of gradients moves an objective with small weights little, whatever it
does with them. So step sizes are set apart for each kind of rule. AdamW has the paper's for all.
Where all steps are to be equally long, they are a third of gradient ascent's first step under
AdamW. Under plain descent each objective and weighting has a step size with which its first step is
on average as long as gradient ascent's, which is a sixth of that: so the size of the first weights
is taken out, and what is left of the magnitude is how it falls along the path, and from batch to
batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from figures.cache import Context, cached
from figures.experiments import table
from figures.theory.optimizer import updates
from markov.console.choices import OptimizerName, WeightingName
from markov.diagnostics import crossings
from markov.experiments import PAPER_BETAS, Experiment, grid
from markov.objectives import CORNERS, Objective, gradient_ascent

ORDERS = 2
EXAMPLES = 32  # test sequences of each component
RECORDED = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 21, 30, 50, 70, 100)
METHODS = ("npo", "simnpo")
BESIDE = ("length_normalized_npo", "reference_free_npo")  # drawn at the primary setting only
ASCENT = "gradient_ascent"
KEPT: tuple[WeightingName, ...] = ("own", "allocation", "magnitude")
NOTHING: WeightingName = "none"
RETAINED = 1.0  # the retain weight, where there is a retain term
CLIP = 1.0  # the bound of transformers' Trainer, unless it is told another
# Models and orders of batches on which the lengths of first steps are measured.
FIRST = (2, 8)


class Setting(NamedTuple):
    """A way to minimise an objective: the rule, its bound, the retain weight and the steps.

    There are `longer` times as many steps as the paper takes. `share` is the length of a step as a
    share of gradient ascent's first one under AdamW, or None for the paper's step size.
    """

    label: str
    optimizer: OptimizerName
    clip: float | None = None
    retain: float = 0.0
    longer: int = 1
    share: float | None = None


PRIMARY = "primary"
ADAMW: OptimizerName = "adamw_transformers"
SETTINGS = {
    PRIMARY: Setting("AdamW of transformers < 5", ADAMW),
    "clipped": Setting("... gradients clipped", ADAMW, clip=CLIP),
    "retain": Setting("... retain term", ADAMW, retain=RETAINED, longer=2),
    "both": Setting("... both", ADAMW, clip=CLIP, retain=RETAINED, longer=2),
    "torch": Setting("AdamW of torch", "adamw"),
    "matched": Setting(
        "AdamW, steps of one length", "adamw_transformers_matched", longer=2, share=1 / 3
    ),
    "sgd": Setting("SGD, first steps of one length", "sgd", longer=2, share=1 / 6),
}


class Cell(NamedTuple):
    """An objective of a case, and what is kept of its weights."""

    case: str
    method: str
    weighting: WeightingName

    @property
    def objective(self) -> Objective:
        """The objective with the paper's beta of its case and of its `normalize`."""
        if self.method == ASCENT:
            return gradient_ascent()
        reference, normalize = CORNERS[self.method]
        return Objective(
            PAPER_BETAS[self.case]["simnpo" if normalize else "npo"], 0.0, reference, normalize
        )


def cells(case: str, setting: str) -> list[Cell]:
    """Return the cells of a case at a setting.

    Without weights all objectives are gradient ascent, so that is one cell.
    """
    methods = (*METHODS, *BESIDE) if setting == PRIMARY else METHODS
    kept = [Cell(case, method, weighting) for method in methods for weighting in KEPT]
    return [*kept, Cell(case, ASCENT, NOTHING)]


def experiments(context: Context) -> dict[Experiment, tuple[str, Cell]]:
    """Return all runs, each with its setting and its cell."""
    scale, found = context.scale, {}
    for case in PAPER_BETAS:
        base = _base(context, case)
        for name, setting in SETTINGS.items():
            steps = setting.longer * base.steps
            own = replace(
                base,
                optimizer=setting.optimizer,
                clip=setting.clip,
                retain_weight=setting.retain,
                retain_term="cross_entropy" if setting.retain else "none",
                steps=steps,
                recorded=tuple(step for step in RECORDED if step <= steps),
            )
            for cell in cells(case, name):
                runs = grid(
                    replace(own, learning_rate=_rate(context, setting, cell)),
                    objective=[cell.objective],
                    weighting=[cell.weighting],
                    pretraining=scale.pretrainings(),
                    seed=range(min(ORDERS, scale.orders)),
                )
                found |= dict.fromkeys(runs, (name, cell))
    return found


def reached(context: Context) -> pd.DataFrame:
    """Return where each run first reaches its goals: see `markov.diagnostics.crossings`.

    The columns `setting`, `weighting` and `learning_rate` say which run it is, beside its method
    and its seeds.
    """
    wanted = experiments(context)
    found = crossings(table(context, list(wanted)))
    runs = found["run"].map(dict(enumerate(wanted.items())))
    columns = {
        "setting": [name for _, (name, _) in runs],
        "weighting": [cell.weighting for _, (_, cell) in runs],
        "learning_rate": [one.learning_rate for one, _ in runs],
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


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def first_step(
    context: Context, cell: Cell, optimizer: OptimizerName, learning_rate: float
) -> float:
    """Return the mean norm of a cell's first step, over models and orders of batches."""
    models, orders = FIRST
    base = replace(_base(context, cell.case), optimizer=optimizer, learning_rate=learning_rate)
    base = replace(base, steps=1, recorded=(0,), test_examples=1)
    runs = grid(
        base,
        objective=[cell.objective],
        weighting=[cell.weighting],
        pretraining=context.scale.pretrainings()[:models],
        seed=range(orders),
    )
    return float(cached(context, __name__, runs, lambda: updates(runs))["update"].mean())


def rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the step sizes by case, setting, method and weighting, where they are measured."""
    keys = ["case", "setting", "method", "weighting"]
    measured = [name for name, setting in SETTINGS.items() if setting.share is not None]
    own = frame[frame["setting"].isin(measured)]
    return own.groupby(keys, sort=False)["learning_rate"].first().reset_index()
