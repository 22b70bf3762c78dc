"""Does 1/|y| undo the growth of the gradient with length?

Drawn is the effective push, weight x |grad log pi(y|x)|, against length.

One column per corner of the family at the middle of its grid of beta; upper row: before unlearning,
lower row: after 30 steps of SGD, or the time in which the transition table has gone as far. Line:
the scalar law; diamonds: transition table; circles: transformer, with 95% intervals over pretrained
models; per example, geometric means relative to that over lengths, p the fitted exponent of push ~
|y|^p. Before unlearning NPO's weight is 1, so that its panel shows the norm of grad log pi itself.
The scalar law has it grow as |y|. Where the model knows the law of the data the gradients of tokens
have mean 0 and add up as a random walk does, as the root of |y|, until the model has moved away
from that law. So at the start 1/|y| over-corrects: under SimNPO a single long response is pushed
less than a short one. That is the push on single examples; what many of them have in common grows
faster with length, and sets the time to forget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from figures import style
from figures.cache import Context, cached, cached_each
from figures.fits import power_law
from figures.statistics import interval_text, logs, lookup, mean_interval
from figures.theory.rungs import tabular_flow
from figures.theory.sweeps import FALL, MIDDLE, PACE, middle, start, sweep_case
from llm.intervals import Estimate
from markov.experiments import Experiment
from markov.flow import push, time_to_forget
from markov.models import Parameters
from markov.objectives import CORNERS, Objective, SequenceLogProbs, method_name
from markov.recording import example_gradient_norms, score
from markov.running.run import trajectory
from markov.sweeps import ComponentSweep
from markov.theory import theta
from markov.theory import time_to_forget as scalar_time

STEPS = 30
STAGES = {"start": "before unlearning", "later": f"after {STEPS} steps, or as far"}
RUNGS = {"tabular": ("D", "table"), "transformer": ("o", "transformer")}


def data(context: Context) -> pd.DataFrame:
    """Return the geometric mean of the push over examples.

    It is given by rung, stage, corner, pretrained model and length.
    """
    case, experiments = sweep_case(context), _experiments(context)

    flows = [
        (case, objective, seed)
        for objective in middle()
        for seed in range(context.scale.sweep_pretrained)
    ]

    def compute() -> pd.DataFrame:
        exact = [_scalar(case, objective) for objective in middle()]
        tabular = cached_each(context, __name__, flows, lambda job: _tabular(*job))
        return pd.concat(
            [*exact, tabular, cached_each(context, __name__, experiments, _transformer)],
            ignore_index=True,
        )

    return cached(context, __name__, [experiments, [*middle()], STEPS], compute)


def _experiments(context: Context) -> list[Experiment]:
    base, case = context.scale.sweep(), sweep_case(context)
    found = []
    for seed in range(context.scale.sweep_pretrained):
        for objective in middle():
            rate = PACE["together"] * float(scalar_time(objective, MIDDLE, FALL, start(case)))
            pretraining = replace(base.pretraining, seed=seed)
            own = replace(
                base,
                objective=objective,
                learning_rate=rate,
                pretraining=pretraining,
                optimizer="sgd",
            )
            found.append(replace(own, steps=STEPS, recorded=(0,), test_examples=1))
    return found


def _scalar(case: ComponentSweep, objective: Objective) -> pd.DataFrame:
    first, length = start(case), np.array(list(case.lengths.values())[1:], dtype=float) - 1
    unit, rows = float(scalar_time(objective, MIDDLE, FALL, first)), []
    for stage, time in (("start", 0.0), ("later", unit)):
        per_token = torch.from_numpy(theta(objective, length, time, first))
        scored = torch.from_numpy(length)
        weight = objective.weight(
            SequenceLogProbs(per_token * scored, scored, first * scored)
        ).numpy()
        rows.append(_rows("scalar", stage, objective, 0, length, weight * length))
    return pd.concat(rows, ignore_index=True)


def _tabular(case: ComponentSweep, objective: Objective, seed: int) -> pd.DataFrame:
    flow = tabular_flow(case, objective, seed)
    lengths = [length - 1 for length in case.lengths.values()][1:]
    later = time_to_forget(flow, FALL)[lengths.index(MIDDLE)]
    moments = np.array([0.0, later])
    pushes = push(replace(flow, times=moments, tables=flow.at(moments)))
    rows = []
    for stage, own in zip(STAGES, pushes, strict=True):
        means = [
            _geometric_mean(own[flow.loss.bank.component == index]) for index in range(len(lengths))
        ]
        rows.append(_rows("tabular", stage, objective, seed, lengths, means))
    return pd.concat(rows, ignore_index=True)


def _transformer(experiment: Experiment) -> pd.DataFrame:
    """Return weights and gradient norms before the first step and after the last.

    They are those of the same test sequences.
    """
    base, case, objective, rows = experiment, experiment.case, experiment.objective, []
    test = case.sample(base.pretraining.seed).test
    lengths = {name: length - 1 for name, length in case.lengths.items() if name != "retain"}
    known: dict[str, torch.Tensor] = {}

    def look(step: int, parameters: Parameters) -> None:
        if step not in (0, STEPS):
            return
        means = []
        for name in lengths:
            tokens = test[name][:16]
            with torch.no_grad():
                seq = score(
                    base.model,
                    parameters,
                    tokens[None],
                    torch.ones_like(tokens[None, :, 1:], dtype=torch.bool),
                )
            weight = objective.weight(seq._replace(ref=known.setdefault(name, seq.logp)))[0]
            means.append(
                _geometric_mean(
                    (weight * example_gradient_norms(base.model, parameters, tokens)).numpy()
                )
            )
        stage = "start" if step == 0 else "later"
        rows.append(
            _rows(
                "transformer",
                stage,
                objective,
                base.pretraining.seed,
                list(lengths.values()),
                means,
            )
        )

    trajectory([experiment], on_step=look, progress=False)
    return pd.concat(rows, ignore_index=True)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _rows(
    rung: str,
    stage: str,
    objective: Objective,
    seed: int,
    length: Sequence[float] | np.ndarray,
    values: object,
) -> pd.DataFrame:
    known = {"rung": rung, "stage": stage, "method": method_name(objective), "beta": objective.beta}
    return pd.DataFrame({"length": length, "push": values}).assign(**known, pretrain_seed=seed)


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the fitted exponent of push against length per rung, stage and corner.

    Its interval is over pretrained models.
    """
    rows = []
    for (rung, stage, method), own in frame.groupby(["rung", "stage", "method"], sort=False):
        fits = [
            power_law(one["length"], one["push"]).exponent.value
            for _, one in own.groupby("pretrain_seed")
        ]
        found = (
            mean_interval(np.array(fits))
            if len(fits) > 1
            else Estimate(fits[0], fits[0], fits[0], 1)
        )
        rows.append({"rung": rung, "stage": stage, "method": method, **found._asdict()})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(len(STAGES), len(CORNERS), 13, 6, sharex=True, sharey="row")
    numbers = lookup(exponents(frame), ["stage", "method", "rung"])
    for row, (stage, label) in zip(panels, STAGES.items(), strict=True):
        for axes, method in zip(row, CORNERS, strict=True):
            own = frame[(frame["stage"] == stage) & (frame["method"] == method)]
            _panel(
                axes,
                own,
                {rung: numbers[stage, method, rung] for rung in own["rung"].unique()},
                style.COLORS[method],
            )
        row[0].set_ylabel(f"push, relative to the mean\n{label}")
        row[0].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        row[0].yaxis.set_major_formatter("{x:g}")
    for top, bottom, method in zip(panels[0], panels[-1], CORNERS, strict=True):
        beta = frame.loc[frame["method"] == method, "beta"].iloc[0]
        top.set_title(f"{style.LABELS[method]}, β = {beta:g}")
        bottom.set_xlabel("|y|, scored tokens")
    return figure


def _panel(axes: Axes, own: pd.DataFrame, numbers: Mapping[str, Estimate], color: str) -> None:
    scalar = own[own["rung"] == "scalar"]
    mean = _geometric_mean(scalar["push"].to_numpy(dtype=float))
    label = f"scalar law, p = {interval_text(numbers['scalar'])}"
    axes.plot(scalar["length"], scalar["push"] / mean, color="black", lw=1, label=label)
    for shift, (rung, (marker, name)) in zip((0.97, 1.03), RUNGS.items(), strict=True):
        part = own[own["rung"] == rung]
        pushes = logs(part["push"])
        part = part.assign(
            relative=pushes - pushes.groupby(part["pretrain_seed"]).transform("mean")
        )
        points = [
            mean_interval(one["relative"].to_numpy(dtype=float))
            for _, one in part.groupby("length")
        ]
        value, low, high = np.exp(np.array([point[:3] for point in points])).T
        label = f"{name}, p = {interval_text(numbers[rung])}"
        lengths = np.sort(part["length"].unique()) * shift
        look = {
            "color": color,
            "mfc": "white" if rung == "tabular" else color,
            "ms": 5,
            "lw": 0.8,
            "capsize": 2,
        }
        axes.errorbar(lengths, value, [value - low, high - value], fmt=marker, label=label, **look)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([2, 5, 10, 20, 40, 80], ["2", "5", "10", "20", "40", "80"])
    axes.minorticks_off()
    axes.legend(fontsize=6.5, loc="best")
