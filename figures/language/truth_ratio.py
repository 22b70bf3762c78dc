"""Truth ratios of a forget set in halves, and how far they lie from the retrained model's.

The figure that is drawn of them is `llm_truth_ratio`, in `figures.questions.truth_ratios`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from scipy import stats

from figures import style
from figures.cache import Context
from figures.language import runs, sources, studies
from figures.language.sources import Logs, Models
from llm.logs.measures import ranks_test, tied_ranks
from markov.errors import require

# By split, which is a column: its halves, and what they are called.
READ = {"read_half": {"read": "answers that were read", "never": "answers that were never read"}}
SPLITS = {
    "memorised_half": {"strong": "strongly memorised half", "weak": "weakly memorised half"},
    "length_half": {"short": "short half", "long": "long half"},
}
EVERY = {**READ, **SPLITS}
# A collapsed model's ratios may be anything, and would leave no room for the others.
POINTS, REACH = 301, 100.0
BOUNDS = {"distance": ("distance_low", "distance_high"), "p": ("p_low", "p_high")}  # over seeds
MEANINGS = {
    "geometric": "wrong over right answer, per token",
    "arithmetic": "wrong over right answer, per token",
    "inverse_geometric": "right over wrong answer, per token",
    "prob_mean": "share of the right answer, per token",
}
OTHERS = ("#CC79A7", "#56B4E9", "#F0E442", "#7F3C8D")  # for models that are called after no method


def data(context: Context) -> pd.DataFrame:
    """Return the frame of the runs of a context (see `runs.runs`), and that of logs.

    The logs are the user's, or the public ones if at hand. Of a study with several seeds the
    statistics are means over them, with intervals, and all else is of the first.
    """
    logs, source = of_logs(context), runs.source_of(context)  # logs first: they may be missing
    if context.study is not None:
        seeds = [frame_of_models(one) for one in studies.logs_of(context.study, source)]
        own = over_trainings(seeds)
    else:
        own = frame_of_models(runs.models_of(runs.runs(context), source))
    return pd.concat([own, *logs], ignore_index=True)


def of_logs(context: Context) -> list[pd.DataFrame]:
    """Return the frame of logs that the user names, or of the public ones at hand, if any."""
    logs = sources.chosen(context)
    return [frame_of_logs(logs)] if logs else []


def over_trainings(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the first of several frames with means of D and medians of p (see `studies.over`)."""
    return studies.over(frames, ["split", "half", "model"], BOUNDS)


def frame_of_logs(logs: Iterable[Logs], variant: str = "geometric") -> pd.DataFrame:
    """Return the frame of any logs, with two rows of panels for each source.

    `variant` is one of `llm.logs.log.TRUTH_RATIOS`.
    """
    return pd.concat(
        [frame_of_models(one, variant) for one in sources.read_all(logs)], ignore_index=True
    )


def frame_of_models(
    found: Models, variant: str = "geometric", read: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """Return the rows of one source.

    Its answers are split by length, and by how strongly they were memorised; or, where `read` says
    which of them were read at all, by that alone.

    Columns `source`, `variant`, `kind`, `model`, and by kind:

        example     `index`, `length`, `needed_per_token`, a column for each split, `ratio`
        density     `split`, `half`, `ratio`, `density` (per unit of log ratio)
        statistic   `split`, `half`, `count`, `outside` (ratios that are not on the axis), `median`,
                    `distance` (D), `p`

    The halves are the same for all models. Distances are to the retrained model, with exact
    p-values.
    """
    examples = sources.truth_ratios(found, variant)
    if read is not None:
        examples = examples.drop(columns=["length_half", "memorised_half"])
        examples["read_half"] = examples["index"].map(read)
    frames = [examples.drop(columns="log_ratio").assign(kind="example")]
    grid = _grid(examples)
    rows = []
    for split in known_splits(examples):
        for half in EVERY[split]:
            part = examples[examples[split] == half]
            ratios = {
                str(model): own["ratio"].to_numpy()
                for model, own in part.groupby("model", sort=False)
            }
            logs = {
                str(model): own["log_ratio"].to_numpy()
                for model, own in part.groupby("model", sort=False)
            }
            for model, values in ratios.items():
                settings = {"split": split, "half": half, "model": model}
                curve = {"ratio": np.exp(grid), "density": _density(values, grid)}
                frames.append(pd.DataFrame(curve).assign(kind="density", **settings))
                outside = len(values) - len(_inside(values, grid))
                test = ranks_test(*tied_ranks(logs[model], logs["retrained"]))
                numbers = {
                    "count": len(values),
                    "median": float(np.median(values)),
                    "distance": test.statistic,
                }
                numbers |= {"p": test.p_value, "outside": outside}
                rows.append({"kind": "statistic", **settings, **numbers})
    frame = pd.concat([*frames, pd.DataFrame(rows)], ignore_index=True)
    return frame.assign(source=found.source, variant=variant)


def known_splits(examples: pd.DataFrame) -> list[str]:
    """Return the splits of which the examples say to which half they belong."""
    return [split for split in EVERY if split in examples and examples[split].notna().any()]


def _grid(examples: pd.DataFrame) -> Float[np.ndarray, "points"]:
    """Return the log ratios of the axis.

    It covers all there are, but none more than a factor of `REACH` beyond retrained and original.
    """
    known = examples[(examples["ratio"] > 0) & np.isfinite(examples["ratio"])]
    logs, baseline = (
        np.log(known["ratio"].to_numpy()),
        known["model"].isin(sources.BASELINES).to_numpy(),
    )
    allowed = f"truth ratios that are finite and not 0 in the logs of {examples['source'].iloc[0]}"
    require(bool(baseline.any()), "ratio", "none", allowed)
    low, high = np.quantile(logs[baseline], [0.01, 0.99]) + np.log([1 / REACH, REACH])
    low, high = max(logs.min(), low), min(logs.max(), high)
    margin = max(0.15 * (high - low), 0.1)
    return np.linspace(low - margin, high + margin, POINTS)


def _inside(
    ratios: Float[np.ndarray, "examples"], grid: Float[np.ndarray, "points"]
) -> Float[np.ndarray, "inside"]:
    """Return the logarithms of ratios that lie on the axis."""
    with np.errstate(divide="ignore"):
        logs = np.log(ratios)
    return logs[(logs >= grid[0]) & (logs <= grid[-1])]


def _density(
    ratios: Float[np.ndarray, "examples"], grid: Float[np.ndarray, "points"]
) -> Float[np.ndarray, "points"]:
    """Return the Gaussian kernel estimate (Scott's width) of the log ratios on the axis.

    Their share is its mass. It is nan where fewer than two of them differ.
    """
    logs = _inside(ratios, grid)
    if len(logs) < 2 or np.ptp(logs) == 0:
        return np.full(grid.shape, np.nan)
    return stats.gaussian_kde(logs)(grid) * len(logs) / len(ratios)


class Row(NamedTuple):
    """A row of panels: the part of the frame that it is of, the split, and the panels."""

    own: pd.DataFrame
    split: str
    axes: list[Axes]


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    return drawn(frame)[0]


def drawn(frame: pd.DataFrame, more: int = 0) -> tuple[Figure, list[Row]]:
    """Draw the densities of a frame, with so many panels `more` in each row, which stay empty."""
    shown = list(dict.fromkeys(frame["source"]))
    each = {}
    for source in shown:
        examples = frame[(frame["source"] == source) & (frame["kind"] == "example")]
        each[source] = known_splits(examples)
    count = sum(map(len, each.values()))
    figure, panels = style.grid_figure(count, 2 + more, 10 + 4.4 * more, 3 * count)
    rows = []
    for source, splits in each.items():
        own, mine = frame[frame["source"] == source], panels[len(rows) :][: len(splits)]
        for row, split in zip(mine, splits, strict=True):
            for axes, (half, name) in zip(row[:2], EVERY[split].items(), strict=True):
                part = own[(own["split"] == split) & (own["half"] == half)]
                found = part[part["kind"] == "statistic"]
                _densities(axes, part[part["kind"] == "density"], found)
                axes.set_title(f"{name}, {found['count'].iloc[0]:.0f} answers", loc="left")
            rows.append(Row(own, split, row))
        variant = own["variant"].iloc[0]
        _share(
            [row[:2] for row in mine],
            f"truth ratio R ({variant}): {MEANINGS[variant]}",
            own["density"].max() / (1 - min(0.09 * own["model"].nunique(), 0.6)),
        )
        title = {"fontsize": 11, "fontweight": "bold", "transform": mine[0][0].transAxes}
        mine[0][0].text(0, 1.12, source, **title)
    if shown[0].startswith(runs.DEFAULT) and all(one.startswith(runs.DEFAULT) for one in shown):
        sources.hint(figure)
    return figure, rows


def _share(rows: list[list[Axes]], label: str, top: float) -> None:
    """Give the four panels of a source one scale, with labels at the outside.

    Above the curves is the legend.
    """
    for row in rows:
        row[0].set_ylabel("density, per unit of log R")
        for axes in row:
            axes.set_ylim(0, top)
            axes.tick_params(labelleft=axes is row[0], labelbottom=row is rows[-1])
    for axes in rows[-1]:
        axes.set_xlabel(label, fontsize=8)


def _densities(axes: Axes, curves: pd.DataFrame, found: pd.DataFrame) -> None:
    others = cycle(OTHERS)
    for model, own in curves.groupby("model", sort=False):
        row = found[found["model"] == model].iloc[0]
        if model == "retrained":
            axes.fill_between(own["ratio"], own["density"], color="lightgrey", lw=0)
            look: dict[str, Any] = {"color": "grey", "label": "retrained"}
        else:
            label = f"{style.LABELS.get(str(model), model)}: D = {row['distance']:.2f}"
            if pd.notna(row.get("distance_low")):
                label += f" ({row['distance_low']:.2f} to {row['distance_high']:.2f})"
            label += f", p = {row['p']:.2g}"
            label += f", {row['outside']:.0f} off the axis" if row["outside"] else ""
            color = "black" if model == "original" else style.COLORS.get(str(model)) or next(others)
            look = {"color": color, "label": label, "ls": "--" if model == "original" else "-"}
        axes.plot(own["ratio"], own["density"], **look)
    axes.axvline(1, color="grey", lw=0.8, ls=":", zorder=0)
    axes.set(xscale="log", xlim=(curves["ratio"].min(), curves["ratio"].max()))
    wide = curves["ratio"].max() / curves["ratio"].min() > 1e4
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left", fontsize=7.5)
