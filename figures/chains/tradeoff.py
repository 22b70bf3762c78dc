"""The paper's Figure 5: what forgetting costs on the data to be retained, step by step.

Upper row: forget distance (KL(true row || model) on the forget data, more is more forgotten; the
paper calls it forget quality) against retain distance (the same on the retain data, less is
better), one curve per method and forget component, thin for single runs and bold for their mean
over runs; circle: the model before unlearning, star: the retrained model, grey line: the
closed-form value of an ideal model that knows the retain chain only. A curve that passes the line
over-forgets. Lower row: distance from the retrained model, where the ideal is the origin and
over-forgetting turns a curve back up. Left to right: the two cases, each under the optimiser of the
released code and under torch's.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context
from figures.chains.runs import OPTIMIZERS, paper_runs
from figures.statistics import full_means
from markov.experiments import PAPER_BETAS

AXES = {"kl_to_truth": (0.4, 1.25), "kl_to_retrained": (0.4, 0.9)}


def data(context: Context) -> pd.DataFrame:
    """Return both distances along the path of every run."""
    return paper_runs(context)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    columns = [(case, optimizer) for case in PAPER_BETAS for optimizer in OPTIMIZERS]
    figure, panels = style.grid_figure(2, len(columns), 3.1 * len(columns), 5.8)
    for row, measure in zip(panels, AXES, strict=True):
        for axes, (case, optimizer) in zip(row, columns, strict=True):
            part = frame[(frame["case"] == case) & (frame["optimizer"] == optimizer)]
            _panel(axes, part, measure)
            axes.set(xlim=(0, AXES[measure][0]), ylim=(0, AXES[measure][1]))
    for axes, (case, optimizer) in zip(panels[0], columns, strict=True):
        axes.set_title(f"{style.CASE_LABELS[case]}\n{style.OPTIMIZER_LABELS[optimizer]}")
    panels[0][0].set_ylabel("forget distance, nats:\nKL(truth || model)")
    panels[1][0].set_ylabel("on forget data, nats:\nKL(retrained || model)")
    for axes in panels[0]:
        axes.set_xlabel("retain distance, nats: KL(truth || model)")
    for axes in panels[1]:
        axes.set_xlabel("on retain data, nats: KL(retrained || model)")
    for axes, (case, _) in zip(panels[0], columns, strict=True):
        axes.legend(handles=_legend(case, frame), loc="lower right", fontsize=6.5)
    return figure


def _panel(axes: Axes, frame: pd.DataFrame, measure: str) -> None:
    for method in frame["method"].unique():
        color = style.COLORS[method]
        wide = frame[frame["method"] == method].pivot(
            index=["run", "step"], columns="component", values=measure
        )
        mean = full_means(wide.groupby("step"))
        for component in style.LINES:
            for _, own in wide.groupby("run"):
                axes.plot(
                    own["retain"],
                    own[component],
                    style.LINES[component],
                    color=color,
                    lw=0.5,
                    alpha=0.35,
                )
            axes.plot(
                mean["retain"],
                mean[component],
                style.LINES[component],
                color=color,
                lw=2,
                marker=style.MARKERS[component],
                ms=3,
            )
    starts = full_means(
        frame[frame["step"] == 0].groupby("component")[[measure, "retrained", "ideal"]]
    ).astype(float)
    start, retrained, ideal = (dict(starts[column]) for column in (measure, "retrained", "ideal"))
    for component in style.LINES:
        axes.plot(
            start["retain"], start[component], "o", color="black", mfc="white", ms=5, zorder=5
        )
        if measure == "kl_to_truth":
            axes.axhline(
                ideal[component], color="grey", lw=0.8, ls=style.LINES[component], zorder=0
            )
            axes.plot(retrained["retain"], retrained[component], "*", color="black", ms=9, zorder=5)
    if measure == "kl_to_retrained":
        axes.plot(0, 0, "*", color="black", ms=9, clip_on=False, zorder=5)


def _legend(case: str, frame: pd.DataFrame) -> list[Line2D]:
    handles = []
    for method in PAPER_BETAS[case]:
        beta = frame.loc[(frame["case"] == case) & (frame["method"] == method), "beta"].iloc[0]
        for component in style.LINES:
            label = (
                f"{style.LABELS[method]} (β = {beta:g}), {style.COMPONENT_LABELS[case][component]}"
            )
            look = {"ls": style.LINES[component], "marker": style.MARKERS[component], "ms": 3}
            handles.append(Line2D([], [], color=style.COLORS[method], label=label, **look))
    return handles
