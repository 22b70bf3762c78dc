"""How fast does unlearning leave a language model behind (the paper's Figure A4)?

KL(original model || model) on answers of the default model, in nats per token, against time: the
step sizes of all updates so far over the largest one. GA and the four corners, without a retain
term, under AdamW with gradients clipped, as elsewhere here. Left: on the answers that are
forgotten; right: on answers that should stay, which nothing holds. Lines: geometric means over
trainings of the model; bands: 95% intervals over them. p is the fitted growth exponent d log KL / d
log t over the last decade of time: 1 is linear growth, and a logarithm's comes down towards 0. The
figure `divergence` shows the same of the scalar law, a transition table and a small transformer,
under gradient descent, where step sizes are not rescaled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import nn

from figures import style
from figures.cache import Context, cached, cached_each
from figures.fits import power_law
from figures.language.runs import AuthorsStudy, study
from figures.statistics import (
    interval_text,
    judged,
    logs,
    lookup,
    mean_interval,
)
from llm.models.answers import responses
from llm.models.small_authors import build, sets
from llm.scoring.encoding import Batch, Encoded, batches
from llm.scoring.logprobs import scored_logits
from llm.training.loop import Optimization
from llm.unlearning.epoch import Measure
from llm.unlearning.retaining import kl
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.objectives import CORNERS, Objective, gradient_ascent, method_name

# Few answers an epoch, since the model is measured after each, and many epochs.
ANSWERS, EPOCHS, BATCH = 80, 20, 16
RATE = 1e-3  # largest step size, that of all language figures
DECADE = 10.0  # the exponent is fitted from a tenth of the last time on
ON = {"forgotten": "answers that are forgotten", "kept": "answers that should stay"}
QUICK = 4  # times fewer epochs at quick scale


class Job(NamedTuple):
    """A run: the study, which training of its model, and what is minimised."""

    study: AuthorsStudy
    seed: int
    objective: Objective
    epochs: int


def data(context: Context) -> pd.DataFrame:
    """Return the divergence of each training under each method, along the run.

    The columns are `seed`, `method`, `beta`, `step`, `time`, `on` (forgotten or kept) and `kl`. A
    run that is no longer finite ends before that.
    """
    chosen = study(context.scale)
    laws = [gradient_ascent(), *chosen.objectives().values()]
    epochs = EPOCHS // QUICK if context.scale.quick else EPOCHS
    jobs = [Job(chosen, seed, law, epochs) for seed in range(context.scale.trained) for law in laws]
    return cached(
        context, __name__, jobs, lambda: cached_each(context, __name__, jobs, divergences)
    )


def divergences(job: Job) -> pd.DataFrame:
    """Unlearn by one method without a retain term, and return the divergence after every epoch."""
    models = replace(job.study.models, seed=job.seed)
    language = build(models, "original", progress=False)
    parts = {
        name: responses(language, spread(examples, ANSWERS))
        for name, examples in zip(ON, sets(models), strict=True)
    }
    original, budget = copy.deepcopy(language.model), job.study.optimization().budget

    def call(epoch: int, model: nn.Module) -> dict[str, float]:
        return {name: divergence(original, model, own, budget) for name, own in parts.items()}

    settings = Unlearning(
        objective=job.objective,
        optimization=Optimization(
            epochs=job.epochs,
            batch=BATCH,
            learning_rate=RATE,
            warmup_epochs=0.0,
            budget=budget,
            seed=job.seed,
        ),
    )
    measure = Measure("KL to the original", call)
    found = unlearn(
        language.model, parts["forgotten"], [], settings, measure=measure, progress=False
    ).epochs
    rows = found.melt(["step"], list(ON), var_name="on", value_name="kl").dropna()
    known = {"seed": job.seed, "method": method_name(job.objective), "beta": job.objective.beta}
    times = _times(settings.optimization, len(parts["forgotten"]))
    return rows.assign(time=times[rows["step"]], **known)


def _times(optimization: Optimization, answers: int) -> np.ndarray:
    """Return the time after each update, 0 first: the sum of step sizes over the largest one."""
    each = optimization.updates(answers)
    rates = [optimization.rate(step + 1, each) for step in range(each * optimization.epochs)]
    return np.concatenate([[0.0], np.cumsum(rates)]) / optimization.learning_rate


def spread(examples: Sequence[Any], count: int) -> list[Any]:
    """Return so many of the examples, at even distances, or all if there are fewer."""
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return [examples[place] for place in places]


@torch.no_grad()
def divergence(
    original: nn.Module, model: nn.Module, encoded: Sequence[Encoded], budget: int
) -> float:
    """Return KL(original || model), nats per token: the mean over responses of their means."""
    found = []
    for rows in batches(encoded, budget):
        batch = Batch.pad([encoded[row] for row in rows])
        found.append(kl(model, batch, lambda _, batch: scored_logits(original, batch)))
    return float(torch.cat(found).double().mean())


def exponents(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the growth exponent over the last decade of time, by method and answers.

    There is a row per training, with its `exponent`.
    """
    late = frame[frame["time"] >= frame["time"].max() / DECADE]
    rows = [
        {"on": on, "method": method, "seed": seed}
        | {"exponent": power_law(own["time"], own["kl"]).exponent.value}
        for (on, method, seed), own in late.groupby(["on", "method", "seed"], sort=False)
    ]
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the exponents with intervals over trainings, and how far GA's lies above others'.

    The second table has a verdict on each: that the model drifts faster under GA.
    """
    found = exponents(frame)
    means = [
        {"on": on, "method": method, **mean_interval(own["exponent"].to_numpy())._asdict()}
        for (on, method), own in found.groupby(["on", "method"], sort=False)
    ]
    rows = []
    for on, own in found.groupby("on", sort=False):
        wide = own.pivot(index="seed", columns="method", values="exponent")
        apart = {name: (wide["gradient_ascent"] - wide[name]).to_numpy() for name in CORNERS}
        estimates = {name: mean_interval(values) for name, values in apart.items()}
        for (name, one), said in zip(estimates.items(), judged([*estimates.values()]), strict=True):
            rows.append({"on": on, "method": name, **one._asdict(), **said._asdict()})
    return {"exponents": pd.DataFrame(means), "faster": pd.DataFrame(rows)}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, (panels,) = style.grid_figure(1, len(ON), 9.5, 4.6, sharey=True)
    numbers = lookup(told(frame)["exponents"], ["on", "method"])
    moved = frame[(frame["time"] > 0) & (frame["kl"] > 0)]
    for axes, (on, title) in zip(panels, ON.items(), strict=True):
        for method, own in moved[moved["on"] == on].groupby("method", sort=False):
            grouped = logs(own["kl"]).groupby(own["time"])
            found = np.array([mean_interval(one.to_numpy())[:3] for _, one in grouped])
            name = str(method)
            label = f"{style.LABELS[name]}, p = {interval_text(numbers[on, name])}"
            times = np.sort(own["time"].unique())
            style.band(axes, times, np.exp(found).T, style.COLORS[name], label=label)
        axes.set(xscale="log", yscale="log", title=title, xlabel="time, in largest step sizes")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    panels[0].set_ylabel("KL to the original model, nats per token")
    return figure
