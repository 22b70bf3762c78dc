"""Where forgetting two things at once is even, and what it costs: beta by length by memorisation.

A response of |y| scored tokens, of which pretraining saw a share, is forgotten beside one of 20
tokens that it saw whole. Each cell is a small transformer under SGD at the moment when both have
reached the retrained model's distance: the mean over pretrained models and orders of batches. Step
sizes are those with which the scalar law forgets 20 tokens alone in the same number of steps
whatever the beta, so that cells take comparable numbers of steps. One column per corner of the
family; the scale of beta is such that columns agree on 20 tokens, where length-normalising changes
nothing.

First row: the retain distance that is paid. Second: over-forgetting, how far the one that arrived
first is then beyond its goal. It is orange where that is the swept response, purple where it is the
one of 20 tokens, and white where they arrive together. Third: the same by the scalar law, in which
responses do not touch each other, from the measured starts and goals. The line in the second row is
where the law changes sign. Last two rows: the same two by the share that pretraining saw, on 20
tokens. Grey: some run did not get there. r is the rank correlation over all cells, with a 95%
interval over pretrained models: of over-forgetting with the law's, and of the price with its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.statistics import full_means, interval_text, logs, mean_interval, ratio_interval
from figures.theory.phase_runs import phase_runs, unit
from figures.theory.sweeps import MIDDLE
from llm.intervals import Estimate
from markov.objectives import CORNERS

KEYS = ["method", "level", "length", "share"]
ROWS = {
    "retain_distance": "retain distance paid, nats",
    "over_forgetting": "over-forgetting, nats\ntransformer",
    "predicted": "over-forgetting, nats\nscalar law",
}
COSTS, TILTS = LogNorm(0.03, 0.5), SymLogNorm(0.2, vmin=-5, vmax=5)
LOOKS: dict[str, tuple[str, Normalize]] = {
    "retain_distance": ("viridis_r", COSTS),
    "over_forgetting": ("PuOr_r", TILTS),
    "predicted": ("PuOr_r", TILTS),
}


def data(context: Context) -> pd.DataFrame:
    """Return the table of `phase_runs`."""
    return phase_runs(context)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of every cell over pretrained models, whose orders of batches are averaged.

    It is nan where some run did not reach its goals; `reached` is the share of those that did.
    """
    columns = [*ROWS, "reached"]
    return full_means(of_models(frame, columns).groupby(KEYS)[columns]).reset_index()


def of_models(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the mean of every cell and pretrained model over its orders of batches.

    It is nan where some run did not reach its goals.
    """
    return full_means(frame.groupby([*KEYS, "pretrain_seed"])[list(columns)])


def agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rank correlations over all cells, per corner, with intervals over pretrained models.

    `law` is that of over-forgetting with the scalar law's, `price` that of the retain distance with
    the size of over-forgetting. They are averaged after Fisher's transform, arctanh. Cells in which
    a run did not reach its goals are left out.
    """
    rows = []
    for method, own in frame.groupby("method", sort=False):
        pairs: dict[str, list[float]] = {"law": [], "price": []}
        for _, model in own.groupby("pretrain_seed"):
            known = cells(model).dropna(subset=list(ROWS))
            size = known["over_forgetting"].abs()
            pairs["law"].append(_ranks(known["over_forgetting"], known["predicted"]))
            pairs["price"].append(_ranks(known["retain_distance"], size))
        for name, values in pairs.items():
            # Few cells can be in the very same order, of which the transform is infinite.
            inside = np.clip(values, -0.999, 0.999)
            *ends, count = mean_interval(np.arctanh(inside))
            value, low, high = np.tanh(ends).tolist()
            found = Estimate(value, low, high, count)
            rows.append({"method": method, "of": name, **found._asdict()})
    return pd.DataFrame(rows)


def prices(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what a corner pays at each level of beta for responses that were seen whole.

    `value` is the geometric mean over lengths of the retain distance (nats), with an interval over
    pretrained models; it is nan where some run did not reach its goals. `missing` is the number of
    these runs.
    """
    rows = []
    for (method, level), own in frame[frame["share"] == 1].groupby(["method", "level"], sort=False):
        costs = logs(own["retain_distance"]).groupby(own["pretrain_seed"])
        missing = int((~own["reached"]).sum())
        values = full_means(costs).to_numpy(dtype=float)
        found = ratio_interval(values if not missing else values[:0])
        rows.append({"method": method, "level": level, **found._asdict(), "missing": missing})
    return pd.DataFrame(rows)


def price_ratios(frame: pd.DataFrame, one: str = "npo", other: str = "simnpo") -> pd.DataFrame:
    """Return how many times the price of one corner is that of another, level by level.

    They are compared run by run, on the same model, length and order of batches, for responses that
    were seen whole: the geometric mean with an interval over pretrained models. It is nan where
    some run of either did not reach its goals.
    """
    whole, keys = frame[frame["share"] == 1], ["level", "pretrain_seed", "length", "seed"]
    costs = [
        logs(own.set_index(keys)["retain_distance"])
        for own in (whole[whole["method"] == method] for method in (one, other))
    ]
    rows = []
    for level, apart in (costs[0] - costs[1]).groupby("level"):
        models = full_means(apart.groupby("pretrain_seed")).to_numpy(dtype=float)
        found = ratio_interval(models if np.isfinite(models).all() else models[:0])
        rows.append({"level": level, "of": f"{one} / {other}", **found._asdict()})
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame."""
    others = [method for method in CORNERS if method != "simnpo"]
    ratios = [price_ratios(frame, method) for method in others]
    return {"agreement": agreement(frame), "prices": prices(frame), "ratios": pd.concat(ratios)}


def _ranks(one: pd.Series, other: pd.Series) -> float:
    return float(one.corr(other, method="spearman"))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    heights = [*(len(frame["length"].unique()),) * 3, *(len(frame["share"].unique()),) * 2]
    figure, panels = style.grid_figure(
        5, len(CORNERS), 12, 11, gridspec_kw={"height_ratios": heights}
    )
    known, found = cells(frame), agreement(frame)
    for column, method in enumerate(CORNERS):
        own = known[known["method"] == method]
        by_length, by_share = own[own["share"] == 1.0], own[own["length"] == MIDDLE]
        for axes, measure in zip([row[column] for row in panels[:3]], ROWS, strict=True):
            heat(axes, by_length, measure, "length")
        for axes, measure in zip([row[column] for row in panels[3:]], list(ROWS)[1:], strict=True):
            heat(axes, by_share, measure, "share")
        _front(panels[1][column], by_length)
        law, price = (_of(found, method, name) for name in ("law", "price"))
        title = f"r with over-forgetting: {interval_text(price)}"
        panels[0][column].set_title(f"{style.LABELS[method]}\n{title}", fontsize=7)
        panels[1][column].set_title(f"r with the law: {interval_text(law)}", fontsize=7)
        panels[4][column].set_xlabel("β")
    names = [*ROWS.values(), *list(ROWS.values())[1:]]
    for row, name, of in zip(panels, names, [*["|y|"] * 3, *["share seen"] * 2], strict=True):
        row[0].set_ylabel(f"{name}\n\n{of}")
    for rows, measure in ((panels[:1], "retain_distance"), (panels[1:], "over_forgetting")):
        cmap, norm = LOOKS[measure]
        bar = figure.colorbar(
            ScalarMappable(norm, cmap), ax=[one for row in rows for one in row], extend="both"
        )
        bar.ax.tick_params(labelsize=7)
    return figure


def heat(axes: Axes, own: pd.DataFrame, measure: str, by: str) -> Any:
    """Draw one measure of the cells of one corner over beta and length, or over beta and share."""
    table = own.pivot(index=by, columns="level", values=measure)
    cmap, norm = LOOKS[measure]
    axes.set_facecolor("0.82")
    image = axes.imshow(
        np.ma.masked_invalid(table.to_numpy(float)),
        cmap=cmap,
        norm=norm,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    _, normalize = CORNERS[str(own["method"].iloc[0])]
    betas = table.columns.to_numpy(float) / unit(normalize)
    axes.set_xticks(range(len(table.columns)), [f"{beta:.3g}" for beta in betas], fontsize=6.5)
    axes.set_yticks(range(len(table.index)), [f"{value:g}" for value in table.index])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _front(axes: Axes, own: pd.DataFrame) -> None:
    """Draw where the scalar law changes sign, if it does."""
    table = own.pivot(index="length", columns="level", values="predicted").to_numpy(float)
    if np.nanmin(table) < 0 < np.nanmax(table):
        axes.contour(np.ma.masked_invalid(table), levels=[0.0], colors="black", linewidths=1)


def _of(found: pd.DataFrame, method: str, name: str) -> Estimate:
    (row,) = found[(found["method"] == method) & (found["of"] == name)].to_dict("records")
    return Estimate(row["value"], row["low"], row["high"], row["count"])
