"""What memorisation does, for six components of one length.

Pretraining saw a share of them from none to all.

One column per update rule, one line per corner of the family at the middle of its grid of beta,
mean and 95% interval over pretrained models. Upper row: the weight before unlearning, relative to
its mean over components: 1 for all where there is a reference, since every response is as likely as
the reference says; without one, what is better memorised is pushed harder from the start. Lower
row: how far each component is beyond the retrained model's distance at the moment when the one that
was seen whole arrives there: above 0 it is over-forgotten. The slope of that line, nats per unit of
share, is printed; 0 would be even forgetting. On one length, length-normalised NPO at beta = 1 is
NPO at beta = 0.05.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.fits import straight_line
from figures.statistics import interval_text, lookup, over_models
from figures.theory.sweeps import share_runs
from markov.diagnostics import first_crossing, read_at
from markov.objectives import CORNERS
from markov.sweeps import SHARES

OPTIMIZERS = {"sgd": "SGD", **style.OPTIMIZER_LABELS}
ROWS = {
    "weight": "weight before unlearning,\nrelative to the mean",
    "gap": "beyond the retrained model's\ndistance, nats",
}


def data(context: Context) -> pd.DataFrame:
    """Return per run and component its weight at the start and its place at the goal.

    The goal is that of the fully memorised component: what counts is the moment when it gets there.
    """
    return pd.concat(
        [at_goal(share_runs(context, optimizer)) for optimizer in OPTIMIZERS], ignore_index=True
    )


def at_goal(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every forget component at the moment when the last one reaches its goal.

    The last one was seen whole, and the goal is the retrained model's distance. Values are nan
    where that never happens.
    """
    names = list(dict.fromkeys(frame.loc[frame["component"] != "retain", "component"]))
    shares, rows = dict(zip(names, SHARES.shares, strict=True)), []
    for run, own in frame.groupby("run"):
        parts = {name: own[own["component"] == name].sort_values("step") for name in names}
        curves = {name: part["kl_to_truth"].to_numpy(dtype=float) for name, part in parts.items()}
        starts = {name: part.iloc[0] for name, part in parts.items()}
        at = first_crossing(curves[names[-1]], float(starts[names[-1]]["retrained"]))
        mean = float(np.mean([first["weight"] for first in starts.values()]))
        for name, first in starts.items():
            known = {
                key: first[key] for key in ("method", "beta", "optimizer", "pretrain_seed", "seed")
            }
            gap = read_at(curves[name], at) - float(first["retrained"])
            rows.append(
                {
                    "run": run,
                    **known,
                    "share": shares[name],
                    "weight": float(first["weight"]) / mean,
                    "gap": gap,
                }
            )
    return pd.DataFrame(rows)


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the slope of the gap against the share, per update rule and corner.

    Its interval is over pretrained models.
    """
    rows = []
    for (optimizer, method), own in frame.groupby(["optimizer", "method"], sort=False):
        fits = [
            {"model": model, "slope": _slope(run)}
            for (model, _), run in own.groupby(["pretrain_seed", "seed"])
        ]
        fitted = pd.DataFrame(fits)
        found, missing = (
            over_models(fitted["slope"], fitted["model"]),
            int(fitted["slope"].isna().sum()),
        )
        rows.append(
            {"optimizer": optimizer, "method": method, **found._asdict(), "missing": missing}
        )
    return pd.DataFrame(rows)


def _slope(run: pd.DataFrame) -> float:
    if run["gap"].isna().any():
        return float("nan")
    return straight_line(run["share"], run["gap"]).slope.value


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(
        len(ROWS), len(OPTIMIZERS), 12, 6.6, sharex=True, sharey="row"
    )
    fitted = lookup(slopes(frame), ["optimizer", "method"])
    for column, (optimizer, title) in enumerate(OPTIMIZERS.items()):
        for row, measure in zip(panels, ROWS, strict=True):
            for shift, method in enumerate(CORNERS):
                own = frame[(frame["optimizer"] == optimizer) & (frame["method"] == method)]
                points = [
                    over_models(one[measure], one["pretrain_seed"])
                    for _, one in own.groupby("share")
                ]
                value, low, high, _ = np.array(points).T
                label = f"{style.LABELS[method]}, slope {interval_text(fitted[optimizer, method])}"
                places, error = (
                    np.sort(own["share"].unique()) + 0.008 * (shift - 1.5),
                    [value - low, high - value],
                )
                row[column].errorbar(
                    places,
                    value,
                    error,
                    color=style.COLORS[method],
                    marker="o",
                    ms=3,
                    label=label,
                    lw=1,
                )
            row[column].axhline(float(measure == "weight"), color="grey", lw=0.6, zorder=0)
        panels[0][column].set_title(title)
        panels[1][column].set_xlabel("share of the component that pretraining saw")
        panels[1][column].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for row, label in zip(panels, ROWS.values(), strict=True):
        row[0].set_ylabel(label)
    panels[0][0].set_ylim(0, 2.5)
    panels[1][0].set_ylim(-2.5, 4)
    return figure
