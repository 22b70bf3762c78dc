"""Does the step size decide what forgetting costs?

NPO and SimNPO at the paper's betas forget the two lengths at step sizes from a sixteenth of the
paper's to twice it, with as many steps more or fewer, so that each run goes as far. Left: retain
distance at which a method brings a forget component to the retrained model's forget distance
(geometric mean over pretrained models with the 95% interval over them). Right: by which factor NPO
pays more than SimNPO on the same model and order of batches; above 1, SimNPO is cheaper. Dotted:
the paper's step size. A run that does not get there is left out, and the number of models that are
left is written beside the point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.experiments import table
from figures.statistics import geometric_over_models, logs, lookup, over_models, ratio
from markov.cases import LENGTH
from markov.diagnostics import crossings
from markov.experiments import PAPER_BETAS, Experiment, grid
from markov.objectives import npo, simnpo

CASE = LENGTH.name
FRACTIONS = (1 / 16, 1 / 4, 1 / 2, 1.0, 2.0)  # of the paper's step size
ORDERS = 2
METHODS = ("npo", "simnpo")
COMPONENTS = ("forget1", "forget2")


def experiments(context: Context) -> list[Experiment]:
    """Return the runs: at a fraction of the step size, as many times more steps and records."""
    scale, found = context.scale, []
    base = replace(scale.experiment(), case=scale.cases()[CASE], gradient_examples=0)
    betas = PAPER_BETAS[CASE]
    for fraction in FRACTIONS:
        recorded = tuple(sorted({round(step / fraction) for step in base.steps_recorded}))
        own = replace(
            base,
            learning_rate=base.learning_rate * fraction,
            steps=round(base.steps / fraction),
            recorded=recorded,
        )
        found += grid(
            own,
            objective=[npo(betas["npo"]), simnpo(betas["simnpo"])],
            pretraining=scale.pretrainings(),
            seed=range(min(ORDERS, scale.orders)),
        )
    return found


def data(context: Context) -> pd.DataFrame:
    """Return where each run first reaches its goals, with its `learning_rate`.

    There is a row per run and forget component: see `markov.diagnostics.crossings`.
    """
    wanted = experiments(context)
    found = crossings(table(context, wanted))
    rates = {number: one.learning_rate for number, one in enumerate(wanted)}
    return found.assign(learning_rate=found["run"].map(rates))


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what a method pays at each step size (nats), with its interval over models."""
    keys = ["component", "method", "learning_rate"]
    rows = []
    for key, own in frame.groupby(keys, sort=True):
        found = geometric_over_models(own["retain_distance"], own["pretrain_seed"])
        rows.append({**dict(zip(keys, key, strict=True)), **found._asdict()})
    return pd.DataFrame(rows)


def factors(frame: pd.DataFrame) -> pd.DataFrame:
    """Return how many times SimNPO's retain distance NPO pays, with its interval over models."""
    index = ["component", "learning_rate", "pretrain_seed", "seed"]
    wide = frame.assign(log=logs(frame["retain_distance"])).pivot(
        index=index, columns="method", values="log"
    )
    apart, rows = (wide["npo"] - wide["simnpo"]).rename("apart").reset_index(), []
    for (component, rate), own in apart.groupby(["component", "learning_rate"], sort=True):
        found = ratio(over_models(own["apart"], own["pretrain_seed"]))
        rows.append({"component": component, "learning_rate": rate, **found._asdict()})
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame."""
    return {"factors": factors(frame), "costs": costs(frame)}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((left, right),) = style.grid_figure(1, 2, 9, 3.6)
    models, paid = (
        frame["pretrain_seed"].nunique(),
        lookup(costs(frame), ["component", "method", "learning_rate"]),
    )
    rates = sorted(frame["learning_rate"].unique())
    labels = style.COMPONENT_LABELS[CASE]
    for component in COMPONENTS:
        for method in METHODS:
            found = [paid[component, method, rate] for rate in rates]
            name = f"{style.LABELS[method]}, {labels[component]}"
            _line(left, rates, found, models, style.COLORS[method], component, name)
    more = lookup(factors(frame), ["component", "learning_rate"])
    for component in COMPONENTS:
        found = [more[component, rate] for rate in rates]
        _line(right, rates, found, models, "black", component, labels[component])
    right.axhline(1, color="grey", lw=0.8)
    left.set(ylabel="retain distance paid, nats", title="what forgetting costs")
    right.set(ylabel="NPO's retain distance / SimNPO's", title="how much more NPO pays")
    paper = rates[FRACTIONS.index(1.0)]
    for axes in (left, right):
        axes.axvline(paper, color="grey", lw=0.6, ls=":")
        axes.set(xscale="log", yscale="log", xlabel="step size of unlearning")
        style.plain_log_ticks(axes)
    right.legend(fontsize=7)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=7)
    return figure


def _line(
    axes: Axes,
    rates: Sequence[float],
    found: Sequence[tuple[float, float, float, int]],
    models: int,
    color: str,
    component: str,
    label: str,
) -> None:
    value, low, high, count = np.array(found, dtype=float).T
    shift = 1.03 if component == "forget1" else 0.97
    axes.errorbar(
        np.array(rates) * shift,
        value,
        [value - low, high - value],
        color=color,
        ls=style.LINES[component],
        marker=style.MARKERS[component],
        ms=4,
        lw=1,
        capsize=2,
        label=label,
    )
    for rate, at, known in zip(rates, value, count, strict=True):
        if known < models:
            axes.annotate(f"{known:.0f}", (rate * shift, at), fontsize=7, ha="left", va="bottom")
