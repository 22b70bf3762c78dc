"""Which of the two causes is it: the reference, or the length?

The paper changes both at once; here they are apart.

Left: retain distance at which a corner of the family brings a forget component to the retrained
model's forget distance, each corner at the best beta of its grid (chosen on other batch orders;
geometric mean over pretrained models with the 95% interval over them, dots are runs). Middle: how
far the other forget component is from its own goal at that moment, positive where it is
over-forgotten, so that 0 is even. A component that starts at its goal, as the never memorised one
does, is there at step 0. Right: by which factor the cost changes, paired by run, where NPO's
reference is dropped alone, where its length is normalised alone, and where both are done, which is
SimNPO; below 1 means cheaper. If the two acted apart, both together would have the product of their
factors (open marker): the distance from it is the interaction.

Where all responses have one length (memorisation), dividing by it only changes the scale of beta
and of the loss, so that what is left of its factor comes from the grid of beta and the optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.chains.runs import corner_runs
from figures.scale import SEARCHED
from figures.statistics import geometric_over_models, lookup, over_models, ratio
from llm.intervals import Estimate
from markov.diagnostics import crossings
from markov.objectives import CORNERS

# What is done to NPO, and the corner that it leads to.
EFFECTS = {
    "reference dropped": "reference_free_npo",
    "length normalised": "length_normalized_npo",
    "both: SimNPO": "simnpo",
}
# What both would do if they acted apart, and the factor that is left beside it.
PRODUCT, INTERACTION = "product", "interaction"

SHIFTS = {-0.15: "forget1", 0.15: "forget2"}


def data(context: Context) -> pd.DataFrame:
    """Return the step and the retain distance of the first crossing.

    There is one per run, corner and forget component.
    """
    return crossings(corner_runs(context))


def effects(frame: pd.DataFrame, over: str = "pretrain_seed") -> pd.DataFrame:
    """Return what is done to NPO's cost, as a factor and in nats, with intervals over models.

    Of a single model the interval can be one `over` its orders of batches, "seed". Rows of
    `EFFECTS` compare a corner with NPO. Then come the product of the first two (in nats: their
    sum), and the interaction, what both do beyond that: a factor of 1, or 0 nats, where they act
    apart. Main effects follow from these: that of the reference is its factor alone times the root
    of the interaction. A factor compares levels, of which the start may be the larger part, and
    nats compare what is paid above it. Only runs that all corners bring to the goal are compared,
    and none of those that start at it: these cost what the start costs, whatever is done.
    """
    index = ["case", "component", "pretrain_seed", "seed"]
    wide = frame.pivot(
        index=index, columns="method", values=["retain_distance", "retain_paid", "step"]
    ).astype(float)
    rows = []
    for key, own in wide.groupby(["case", "component"], sort=True):
        steps = own["step"].to_numpy()
        arriving = (steps > 0).any(axis=1) & np.isfinite(steps).all(axis=1)
        compared = own[arriving]
        models, all_models = (part.index.get_level_values(over) for part in (compared, own))
        if 2 * models.nunique() < all_models.nunique():
            continue
        factors = changes(compared["retain_distance"].transform(np.log))
        paid = changes(compared["retain_paid"])
        for name in factors:
            nats = over_models(paid[name], models.to_numpy())
            rows.append(
                {
                    **dict(zip(["case", "component"], key, strict=True)),
                    "effect": name,
                    **ratio(over_models(factors[name], models.to_numpy()))._asdict(),
                    "nats": nats.value,
                    "nats_low": nats.low,
                    "nats_high": nats.high,
                }
            )
    return pd.DataFrame(rows)


def changes(costs: pd.DataFrame) -> pd.DataFrame:
    """Return what is added to NPO's cost by each change, by both apart, and by their meeting."""
    each = pd.DataFrame({name: costs[method] - costs["npo"] for name, method in EFFECTS.items()})
    alone, normalised, both = (each[name] for name in EFFECTS)
    return each.assign(**{PRODUCT: alone + normalised, INTERACTION: both - alone - normalised})


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame."""
    betas = frame.groupby(["case", "method"], sort=False)["beta"].first().reset_index()
    return {"effects": effects(frame), "betas": betas}


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    cases = list(dict.fromkeys(frame["case"]))
    figure, panels = style.grid_figure(len(cases), 3, 13, 3.3 * len(cases), width_ratios=(3, 3, 2))
    summary = effects(frame)
    for row, case in zip(panels, cases, strict=True):
        part, labels = frame[frame["case"] == case], style.COMPONENT_LABELS[case]
        betas = dict(part.groupby("method")["beta"].first().astype(float))
        names = [
            style.LABELS[method].replace(" ", "\n", 1)
            + f"\nβ = {betas[method]:g}{_edge(method, betas)}"
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


def _edge(method: str, betas: Mapping[str, float]) -> str:
    """Say where the best beta is the first or last of its grid: it might lie beyond.

    That a neighbour does not reach its goals at all is shown by the figure `betas`.
    """
    ends = SEARCHED[method][0], SEARCHED[method][-1]
    return " (edge)" if betas[method] in ends else ""


def _estimate(
    axes: Axes, x: float, own: pd.DataFrame, column: str, color: str, marker: str
) -> None:
    """Draw a mean with its interval, the runs as dots, and how many never reached their goal."""
    values = own[column].to_numpy(dtype=float)
    found = _over_models(own, column)
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


def _over_models(own: pd.DataFrame, column: str) -> Estimate:
    """Return the mean over models, a geometric one of the distance that is paid."""
    if column == "retain_distance":
        return geometric_over_models(own[column], own["pretrain_seed"])
    return over_models(own[column], own["pretrain_seed"])


def _effects(axes: Axes, summary: pd.DataFrame) -> None:
    found = lookup(summary, ["effect", "component"])
    shown = {shift: one for shift, one in SHIFTS.items() if one in set(summary["component"])}
    for place, name in enumerate(EFFECTS):
        for shift, component in shown.items():
            one, marker = found[name, component], style.MARKERS[component]
            error = [[one.value - one.low], [one.high - one.value]]
            axes.errorbar(place + shift, one.value, error, fmt=marker, color="black", capsize=3)
            if place == len(EFFECTS) - 1:
                apart = found[PRODUCT, component].value
                axes.plot(place + shift + 0.1, apart, marker, color="grey", mfc="white")
    axes.plot([], [], "o", color="grey", mfc="white", label="product of the two alone")
    axes.legend(fontsize=7)
    axes.axhline(1, color="grey", lw=0.8)
    axes.set_xticks(range(len(EFFECTS)), [name.replace(" ", "\n") for name in EFFECTS])
    axes.set(
        yscale="log",
        xlim=(-0.5, len(EFFECTS) - 0.5),
        ylabel="factor on NPO's retain distance",
        title="what is done to NPO",
    )
    style.plain_log_ticks(axes)
