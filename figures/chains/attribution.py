"""Which of the two causes is it: the reference, or the length?

The paper changes both at once; here they are apart.

Left: retain distance at which a corner of the family brings a forget component to the retrained
model's forget distance, each corner at the best beta of its grid (chosen on other batch orders;
geometric mean over runs with 95% interval, dots are runs). Middle: how far the other forget
component is from its own goal at that moment, positive where it is over-forgotten, so that 0 is
even. A component that starts at its goal, as the never memorised one does, is there at step 0.
Right: the main effects, the factor by which the cost changes when the reference is dropped, and
when the length is normalised, each averaged over the other factor and paired by run; below 1 means
cheaper.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.chains.runs import corner_runs
from figures.statistics import mean_interval, ratio_interval
from markov.diagnostics import crossings
from markov.objectives import CORNERS

EFFECTS = {
    "reference dropped": ("reference_free_npo", "simnpo"),
    "length normalised": ("length_normalized_npo", "simnpo"),
}

SHIFTS = {-0.15: "forget1", 0.15: "forget2"}


def data(context: Context) -> pd.DataFrame:
    """Return the step and the retain distance of the first crossing.

    There is one per run, corner and forget component.
    """
    return crossings(corner_runs(context))


def effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the main effect of each factor on log cost.

    It is the mean over the two corners with the factor minus the mean over the two without.
    """
    index = ["case", "component", "pretrain_seed", "seed"]
    logs = frame.assign(log=np.log(frame["retain_distance"])).pivot(
        index=index, columns="method", values="log"
    )
    rows = []
    for name, treated in EFFECTS.items():
        others = [corner for corner in CORNERS if corner not in treated]
        effect = (logs[treated[0]] + logs[treated[1]] - logs[others[0]] - logs[others[1]]) / 2
        for _, own in (
            effect.rename("effect").reset_index().groupby(["case", "component"], as_index=False)
        ):
            found = ratio_interval(own["effect"].to_numpy(dtype=float))
            rows.append({**own[["case", "component"]].iloc[0], "effect": name, **found._asdict()})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    cases = list(dict.fromkeys(frame["case"]))
    figure, panels = style.grid_figure(len(cases), 3, 13, 3.3 * len(cases), width_ratios=(3, 3, 2))
    summary = effects(frame)
    for row, case in zip(panels, cases, strict=True):
        part, labels = frame[frame["case"] == case], style.COMPONENT_LABELS[case]
        betas = part.groupby("method")["beta"].first()
        names = [
            style.LABELS[method].replace(" ", "\n", 1) + f"\nβ = {betas[method]:g}"
            for method in CORNERS
        ]
        for axes, column in zip(row, ("retain_distance", "other_gap"), strict=False):
            for place, method in enumerate(CORNERS):
                for shift, component in SHIFTS.items():
                    own = part[(part["method"] == method) & (part["component"] == component)]
                    _estimate(
                        axes,
                        place + shift,
                        own,
                        column,
                        style.COLORS[method],
                        style.MARKERS[component],
                    )
            axes.set_xticks(range(len(CORNERS)), names)
        for component in SHIFTS.values():
            row[0].plot([], [], style.MARKERS[component], color="grey", label=labels[component])
        row[0].set(yscale="log", ylabel="retain distance paid, nats", title=style.CASE_LABELS[case])
        style.plain_log_ticks(row[0])
        # Room above all that is drawn, for the legend and for how many never got there.
        low, high = row[0].get_ylim()
        row[0].set_ylim(low, high * (high / low) ** 0.3)
        row[0].legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.96),
            ncols=2,
            title="to forget the part that is",
            borderaxespad=0,
        )
        row[1].axhline(0, color="grey", lw=0.8, zorder=0)
        row[1].set(
            ylabel="other part, beyond its goal, nats",
            title="over- (> 0) and under-forgetting (< 0)",
        )
        _effects(row[2], summary[summary["case"] == case])
    return figure


def _estimate(
    axes: Axes, x: float, own: pd.DataFrame, column: str, color: str, marker: str
) -> None:
    """Draw a mean with its interval, the runs as dots, and how many never reached their goal."""
    values = own[column].to_numpy(dtype=float)
    found = ratio_interval(np.log(values)) if column == "retain_distance" else mean_interval(values)
    axes.plot(x + np.linspace(-0.07, 0.07, len(values)), values, ".", color=color, ms=3, alpha=0.5)
    error = [[found.value - found.low], [found.high - found.value]]
    axes.errorbar(x, found.value, error, fmt=marker, color=color, capsize=3, mec="black", mew=0.5)
    missed = int((~own["reached"]).sum())
    if missed:
        axes.annotate(
            f"{missed} never",
            (x, 0.99),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=7,
        )


def _effects(axes: Axes, summary: pd.DataFrame) -> None:
    for place, name in enumerate(EFFECTS):
        for shift, component in SHIFTS.items():
            row = summary[(summary["effect"] == name) & (summary["component"] == component)].iloc[0]
            error = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
            axes.errorbar(
                place + shift,
                row["value"],
                error,
                fmt=style.MARKERS[component],
                color="black",
                capsize=3,
            )
    axes.axhline(1, color="grey", lw=0.8)
    axes.set_xticks(range(len(EFFECTS)), [name.replace(" ", "\n") for name in EFFECTS])
    axes.set(
        yscale="log",
        xlim=(-0.5, 1.5),
        ylabel="factor on the retain distance paid",
        title="main effects",
    )
    style.plain_log_ticks(axes)
