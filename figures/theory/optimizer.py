"""What reaches the parameters: size of an update against its batch's mean gradient weight.

This is shown by update rule.

Upper row: NPO, SimNPO and the corners between while they forget six lengths, one point per step
(mean over pretrained models), both axes relative to the first step; e is the elasticity d log
|update| / d log weight along the path, 1 where the weight alone sets the size of the update, 0
where it does not matter. Lower row: on responses of one length, length-normalised NPO at |y| beta
is NPO at beta with all weights divided by |y| = 20, whatever the model; the ratio of their updates,
step by step, shows what a mere factor on all weights does, one line per pretrained model. Under SGD
it is 1/20, until the two paths have parted. Adam divides the size of gradients out again, so that
the factor is lost: what is left of the weights is how they compare within a batch, and over the
steps that the moments remember. AdamW as transformers shipped it adds its eps before the bias
correction, which would let the factor through where gradients are that small; here they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context, cached, cached_each
from figures.statistics import full_means, interval_text, lookup, mean_interval
from figures.theory.memorisation import OPTIMIZERS
from figures.theory.sweeps import FALL, MIDDLE, PACE, corner, middle, start, sweep_case
from markov.experiments import Experiment
from markov.models import Parameters
from markov.objectives import CORNERS, method_name
from markov.running.run import trajectory
from markov.sweeps import SHARES
from markov.theory import time_to_forget as scalar_time

STEPS = 60
FACTOR = MIDDLE  # how many times smaller every weight of the pair's second member is
LEVELS = (
    (1.0, ":", "a factor on all weights is lost"),
    (1 / FACTOR, "-", f"it passes to the update: 1/{FACTOR}"),
)
PAIR = (corner("npo", 0.05), corner("length_normalized_npo", 0.05 * FACTOR))


def data(context: Context) -> pd.DataFrame:
    """Return the size of the update and the mean weight of the batch.

    They are given by study, update rule, corner, pretrained model and step.
    """
    ensembles = [one for optimizer in OPTIMIZERS for one in _ensembles(context, optimizer)]

    return cached(
        context, __name__, ensembles, lambda: cached_each(context, __name__, ensembles, updates)
    )


def _ensembles(context: Context, optimizer: str) -> list[list[Experiment]]:
    base, case = context.scale.sweep(), sweep_case(context)
    steps = min(STEPS, context.scale.sweep_steps)
    base = replace(base, optimizer=optimizer, steps=steps, recorded=(0,), test_examples=1)
    same = replace(
        case, name="one length", scored=SHARES.scored, shares=(1.0,) * len(SHARES.scored)
    )
    found = []
    for study, objectives in ((case, middle()), (same, PAIR)):
        # One step size for the pair: so its two members differ in the factor alone.
        paces = [
            PACE["together"] * float(scalar_time(one, MIDDLE, FALL, start(case)))
            for one in objectives
        ]
        rates = [paces[0]] * len(paces) if study is same else paces
        own = [
            replace(
                base,
                case=study,
                objective=objective,
                pretraining=replace(base.pretraining, seed=seed),
                **chosen,
            )
            for objective, rate in zip(objectives, rates, strict=True)
            for chosen in [{"learning_rate": rate} if optimizer == "sgd" else {}]
            for seed in range(context.scale.sweep_pretrained)
        ]
        found.append(own)
    return found


def updates(experiments: Sequence[Experiment]) -> pd.DataFrame:
    """Return |parameters after a step - before| over all parameters, and the step's mean weight.

    The mean is over the batch of the step. There is a row per run and step.
    """
    before: dict[str, torch.Tensor] = {}
    sizes: list[np.ndarray] = []

    def look(step: int, parameters: Parameters) -> None:
        if before:
            moved = (parameters[name].detach() - old for name, old in before.items())
            sizes.append(
                torch.stack([gone.flatten(1).square().sum(-1) for gone in moved])
                .sum(0)
                .sqrt()
                .numpy()
            )
        before.update({name: value.detach().clone() for name, value in parameters.items()})

    found = trajectory(experiments, on_step=look, progress=False)
    frames = []
    for index, one in enumerate(experiments):
        known = {
            "study": one.case.name,
            "optimizer": one.optimizer,
            "method": method_name(one.objective),
        }
        own = {"step": np.arange(one.steps), "update": np.stack(sizes)[:, index]}
        weight = found.batch_weight[index].double().mean(-1).numpy()
        frames.append(
            pd.DataFrame(own).assign(**known, weight=weight, pretrain_seed=one.pretraining.seed)
        )
    return pd.concat(frames, ignore_index=True)


def elasticities(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of log update on log weight along a path, per update rule and corner.

    Its interval is over models.
    """
    rows = []
    for (optimizer, method), own in frame[frame["study"] != "one length"].groupby(
        ["optimizer", "method"], sort=False
    ):
        fits = [
            float(np.polyfit(np.log(run["weight"]), np.log(run["update"]), 1)[0])
            for _, run in own.groupby("pretrain_seed")
        ]
        rows.append(
            {"optimizer": optimizer, "method": method, **mean_interval(np.array(fits))._asdict()}
        )
    return pd.DataFrame(rows)


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the update of the pair's second member over that of the first.

    There is one per update rule, pretrained model and step.
    """
    keys = ["optimizer", "pretrain_seed", "step"]
    wide = frame[frame["study"] == "one length"].pivot(
        index=keys, columns="method", values="update"
    )
    return (wide["length_normalized_npo"] / wide["npo"]).rename("ratio").reset_index()


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(2, len(OPTIMIZERS), 12, 6.4, sharey="row")
    fitted, factor = lookup(elasticities(frame), ["optimizer", "method"]), ratios(frame)
    paths = frame[frame["study"] != "one length"]
    for (optimizer, title), upper, lower in zip(OPTIMIZERS.items(), *panels, strict=True):
        for method in CORNERS:
            own = paths[(paths["optimizer"] == optimizer) & (paths["method"] == method)]
            logs = np.log(own.set_index(["pretrain_seed", "step"])[["weight", "update"]])
            mean = np.exp(full_means((logs - logs.xs(0, level="step")).groupby("step")))
            label = f"{style.LABELS[method]}, e = {interval_text(fitted[optimizer, method])}"
            upper.plot(
                mean["weight"], mean["update"], "o", ms=2.5, color=style.COLORS[method], label=label
            )
        span = np.array([0.003, 1.5])
        upper.plot(span, span, color="grey", lw=0.8, zorder=0)
        upper.axhline(1, color="grey", lw=0.8, ls=":", zorder=0)
        upper.set(
            xscale="log",
            yscale="log",
            title=title,
            xlabel="mean weight of the batch, relative to the first",
        )
        upper.legend(fontsize=6.5, loc="best")
        for _, run in factor[factor["optimizer"] == optimizer].groupby("pretrain_seed"):
            lower.plot(
                run["step"] + 1, run["ratio"], color=style.COLORS["length_normalized_npo"], lw=0.9
            )
        for level, look, name in LEVELS:
            lower.axhline(level, color="grey", lw=0.8, ls=look, zorder=0, label=name)
        lower.set(yscale="log", xlabel="unlearning step")
    panels[1][1].plot(
        [],
        [],
        color=style.COLORS["length_normalized_npo"],
        label="a run on one length",
    )
    panels[1][1].legend(fontsize=7, loc="center")
    panels[0][0].set_ylabel("size of the update, relative to the first")
    panels[1][0].set_ylabel(
        f"update with all weights / {FACTOR},\nover that with the weights themselves"
    )
    return figure
