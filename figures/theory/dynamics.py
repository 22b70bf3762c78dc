"""How forgetting goes on: log-probability lost per token, and gradient weight, against time.

Curves are told apart by response length.

One column per corner of the family at the middle of its grid of beta; responses of 2, 20 and 80
scored tokens. Dotted: the scalar law; dashed: the exact flow of a transition table; solid: a small
transformer under SGD, mean and 95% band over pretrained models, all lengths forgotten together. The
unit of time is, on each rung, the time in which 20 tokens lose 0.5 nats per token. Under NPO all
weights start at 1, whatever the length, which is gradient ascent; long responses fall first and
lose their weight first. Under SimNPO weights start out near proportion to 1/|y| and the lengths
fall together. In the transformer short responses fall along with long ones, sooner than their own
weight alone would do it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context
from figures.statistics import full_means, logs, mean_interval
from figures.theory.rungs import tabular_flow
from figures.theory.sweeps import FALL, MIDDLE, length_runs, middle, start, sweep_case, times
from markov.banks import shares
from markov.flow import logp_per_token, time_to_forget
from markov.objectives import CORNERS, Objective, SequenceLogProbs, method_name
from markov.sweeps import ComponentSweep
from markov.theory import theta
from markov.theory import time_to_forget as scalar_time

LENGTHS = (2, MIDDLE, 80)
SPAN = np.geomspace(0.05, 8, 60)  # in times of the response of MIDDLE tokens
ROWS = {"fall": "per-token log-probability lost, nats", "weight": "gradient weight"}
LINES = {"scalar": ":", "tabular": "--", "transformer": "-"}


def data(context: Context) -> pd.DataFrame:
    """Return fall and weight by rung, corner, length and relative time.

    On the transformer they are also by pretrained model.
    """
    case = sweep_case(context)
    rungs = [
        frame
        for objective in middle()
        for frame in (_scalar(case, objective), _tabular(case, objective))
    ]
    return pd.concat([*rungs, _transformer(length_runs(context))], ignore_index=True)


def _scalar(case: ComponentSweep, objective: Objective) -> pd.DataFrame:
    first, length = start(case), torch.tensor(LENGTHS, dtype=torch.float64)[:, None]
    unit = float(scalar_time(objective, MIDDLE, FALL, first))
    path = theta(objective, length.numpy(), unit * SPAN, first)
    logp = torch.from_numpy(path) * length
    seq = SequenceLogProbs(*torch.broadcast_tensors(logp, length, length * first))
    weight = objective.weight(seq).numpy()
    return _rows("scalar", objective, SPAN, LENGTHS, (first - path).T, weight.T)


def _tabular(case: ComponentSweep, objective: Objective) -> pd.DataFrame:
    flow = tabular_flow(case, objective, seed=0)
    lengths = [length - 1 for length in case.lengths.values()][1:]
    unit = time_to_forget(flow, FALL)[lengths.index(MIDDLE)]
    span = SPAN[unit * SPAN <= flow.path.t_max]
    bank, tables, chosen = (
        flow.loss.bank,
        flow.at(unit * span),
        [lengths.index(length) for length in LENGTHS],
    )
    fall = logp_per_token(bank, flow.loss.reference[None]) - logp_per_token(bank, tables)
    weight = flow.loss.weight(tables) @ shares(bank).T
    return _rows("tabular", objective, span, LENGTHS, fall[:, chosen], weight[:, chosen])


def _rows(
    rung: str,
    objective: Objective,
    span: np.ndarray,
    lengths: tuple[int, ...],
    fall: np.ndarray,
    weight: np.ndarray,
) -> pd.DataFrame:
    """Return rows from arrays of shape (times, lengths)."""
    known = {
        "rung": rung,
        "method": method_name(objective),
        "beta": objective.beta,
        "pretrain_seed": 0,
    }
    grid = {"time": np.repeat(span, len(lengths)), "length": np.tile(lengths, len(span))}
    return pd.DataFrame({**grid, "fall": fall.ravel(), "weight": weight.ravel()}).assign(**known)


def _transformer(frame: pd.DataFrame) -> pd.DataFrame:
    """Return means over batch orders at the recorded steps.

    The unit of time is the mean time at MIDDLE tokens.
    """
    betas = {method_name(objective): objective.beta for objective in middle()}
    frame = frame[(frame["beta"] == frame["method"].map(betas)) & (frame["component"] != "retain")]
    found = times(frame)
    reached = found[(found["length"] == MIDDLE) & np.isfinite(found["step"])]
    means = logs(reached["step"]).groupby(reached["method"]).mean()
    units = {str(method): float(np.exp(mean)) for method, mean in means.items()}
    frame = frame[frame["length"].isin(LENGTHS)]
    known = frame[frame["step"] == 0].set_index(["run", "length"])["logp_per_token"]
    before = known.loc[list(zip(frame["run"], frame["length"], strict=True))].to_numpy()
    own = frame.assign(
        fall=before - frame["logp_per_token"], time=frame["step"] / frame["method"].map(units)
    )
    keys = ["method", "beta", "pretrain_seed", "length", "time"]
    return (
        full_means(own.groupby(keys)[["fall", "weight"]]).reset_index().assign(rung="transformer")
    )


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, panels = style.grid_figure(2, len(CORNERS), 13, 6, sharex=True, sharey="row")
    shades = dict(zip(LENGTHS, colormaps["viridis"]([0.0, 0.5, 0.85]), strict=True))
    for column, method in enumerate(CORNERS):
        own = frame[frame["method"] == method]
        for row, measure in zip(panels, ROWS, strict=True):
            for rung, line in LINES.items():
                for length, shade in shades.items():
                    part = own[(own["rung"] == rung) & (own["length"] == length)]
                    _line(row[column], part, measure, line, shade)
        panels[0][column].set_title(f"{style.LABELS[method]}, β = {own['beta'].iloc[0]:g}")
        panels[1][column].set_xlabel(f"time, in units of that of {MIDDLE} tokens")
        panels[0][column].axhline(FALL, color="grey", lw=0.6, zorder=0)
    for row, label in zip(panels, ROWS.values(), strict=True):
        row[0].set_ylabel(label)
    panels[0][0].set(xscale="log", xlim=(SPAN[0], SPAN[-1]), ylim=(-0.05, 6))
    # A cube root shows the slow start as well as the late fall, and also where the table first goes
    # the wrong way.
    panels[0][0].set_yscale("function", functions=(lambda y: np.cbrt(y), lambda y: y**3))
    panels[0][0].set_yticks([0, 0.1, 0.5, 1, 2, 4])
    panels[1][0].set(yscale="log", ylim=(1e-3, 2.5))
    handles = [
        Line2D([], [], color=shade, label=f"|y| = {length}") for length, shade in shades.items()
    ]
    names = {"scalar": "scalar law", "tabular": "transition table", "transformer": "transformer"}
    handles += [
        Line2D([], [], color="grey", ls=LINES[rung], label=name) for rung, name in names.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _line(axes: Axes, part: pd.DataFrame, measure: str, line: str, color: np.ndarray) -> None:
    found = [
        mean_interval(values.to_numpy(dtype=float))[:3]
        for _, values in part.groupby("time")[measure]
    ]
    width = 1.8 if line == "-" else 1.1
    style.band(axes, np.sort(part["time"].unique()), np.array(found).T, color, line, lw=width)
