"""How fast unlearning leaves the original model behind (the paper's Figure A4).

Shown are GA and the corners of the family.

KL(original model || model) on the forget data, mean over its tokens and over components of 2 to 80
scored tokens, against time, whose unit is that of the scalar law at 20 tokens. Left: the scalar
law, where the log-probability lost per token stands for the divergence. Middle: the exact flow of a
transition table. Right: a small transformer under SGD, geometric mean and 95% band over pretrained
models. p is the fitted growth exponent d log KL / d log t over the last decade, once 1 nat is
passed: 1 is linear growth, and a logarithm's comes down towards 0. So it is on the two exact rungs,
as the NPO paper proves for a logistic model with nearly orthogonal features (its Theorem 2). In the
transformer GA runs away far faster than linearly, since there the gradient of logp grows with the
parameters; the others bend, but its steps end too early to show a logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.fits import power_law
from figures.statistics import full_means, interval_text, logs, lookup, mean_interval
from figures.theory.rungs import forget_mixture, tabular_flow
from figures.theory.sweeps import FALL, MIDDLE, PACE, length_runs, middle, runs, start, sweep_case
from llm.intervals import Estimate
from markov.flow import kl_to_table
from markov.numerics import reaches
from markov.objectives import Objective, gradient_ascent, method_name
from markov.sweeps import ComponentSweep
from markov.theory import theta
from markov.theory import time_to_forget as scalar_time

PANELS = {
    "scalar": "scalar law: log-probability lost, |y| = 20",
    "tabular": "transition table: exact flow",
    "transformer": "transformer: SGD",
}
# The exponent is fitted from a tenth of the last time on, and from 1 nat on.
DECADE, GONE = 10.0, 1.0


def data(context: Context) -> pd.DataFrame:
    """Return the divergence by rung, corner, pretrained model and time."""
    case, objectives = sweep_case(context), [gradient_ascent(), *middle()]
    trained = pd.concat(
        [runs(context, [gradient_ascent()]), length_runs(context)], ignore_index=True
    )
    frames = [
        _scalar(case, objectives),
        _tabular(case, objectives),
        _transformer(trained, objectives),
    ]
    return pd.concat(frames, ignore_index=True)


def _scalar(case: ComponentSweep, objectives: Sequence[Objective]) -> pd.DataFrame:
    first, span = start(case), np.geomspace(0.1, 1000, 60)
    frames = []
    for objective in objectives:
        unit = float(scalar_time(objective, MIDDLE, FALL, first))
        lost = first - theta(objective, MIDDLE, unit * span, first)
        frames.append(_rows("scalar", objective, span, lost))
    return pd.concat(frames, ignore_index=True)


def _tabular(case: ComponentSweep, objectives: Sequence[Objective]) -> pd.DataFrame:
    frames, forget = [], forget_mixture(case)
    for objective in objectives:
        flow = tabular_flow(case, objective, seed=0)
        span = flow.times / float(scalar_time(objective, MIDDLE, FALL, start(case)))
        gone = kl_to_table(flow.tables, flow.loss.reference, forget).mean(-1)
        frames.append(_rows("tabular", objective, span, gone))
    return pd.concat(frames, ignore_index=True)


def _rows(rung: str, objective: Objective, span: np.ndarray, gone: np.ndarray) -> pd.DataFrame:
    known = {
        "rung": rung,
        "method": method_name(objective),
        "beta": objective.beta,
        "pretrain_seed": 0,
    }
    return pd.DataFrame({"time": span, "kl_to_reference": gone}).assign(**known)


def _transformer(frame: pd.DataFrame, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Return means over components and batch orders; a step is PACE units of time."""
    betas = {method_name(objective): objective.beta for objective in objectives}
    own = frame[
        (frame["beta"] == frame["method"].map(betas))
        & (frame["component"] != "retain")
        & (frame["step"] > 0)
    ]
    own = own.assign(time=own["step"] * PACE["together"])
    keys = ["method", "beta", "pretrain_seed", "time"]
    return full_means(own.groupby(keys)["kl_to_reference"]).reset_index().assign(rung="transformer")


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the growth exponent over the last decade of time, per rung and corner.

    Its interval is over pretrained models.
    """
    rows = []
    for (rung, method), own in frame.groupby(["rung", "method"], sort=False):
        late = own[
            (reaches(own["time"].to_numpy(), own["time"].max() / DECADE))
            & (own["kl_to_reference"] >= GONE)
        ]
        fits = [
            power_law(one["time"], one["kl_to_reference"]).exponent.value
            for _, one in late.groupby("pretrain_seed")
        ]
        found = (
            mean_interval(np.array(fits))
            if len(fits) > 1
            else Estimate(fits[0], fits[0], fits[0], 1)
        )
        rows.append({"rung": rung, "method": method, **found._asdict()})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(1, len(PANELS), 12, 5)
    found = lookup(exponents(frame), ["rung", "method"])
    for axes, (rung, title) in zip(panels[0], PANELS.items(), strict=True):
        own = frame[frame["rung"] == rung]
        for method in own["method"].unique():
            _line(axes, own[own["method"] == method], method, found[rung, method])
        axes.set(
            xscale="log",
            yscale="log",
            ylim=(1e-3, 3e3),
            title=title,
            xlabel="time, in units of the scalar law's at 20 tokens",
        )
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    panels[0][0].set_ylabel("divergence from the original model, nats")
    return figure


def _line(axes: Axes, own: pd.DataFrame, method: str, exponent: Estimate) -> None:
    span = np.sort(own["time"].unique())
    grouped = logs(own["kl_to_reference"]).groupby(own["time"])
    found = [mean_interval(values.to_numpy(dtype=float))[:3] for _, values in grouped]
    label = f"{style.LABELS[method]}, p = {interval_text(exponent)}"
    style.band(axes, span, np.exp(np.array(found)).T, style.COLORS[method], label=label)
