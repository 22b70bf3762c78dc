"""The plane that unlearned models are judged in: nearness to the retrained model, and utility."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from figures import style

BASELINES = {"original": "before unlearning", "retrained": "retrained"}
MARKS: dict[str, dict[str, Any]] = {
    "original": {"marker": "o", "mfc": "white", "mec": "black", "ms": 7},
    "retrained": {"marker": "*", "mfc": "#555555", "mec": "black", "ms": 13},
}
# Corners that end in one place are told apart by their shapes; the larger ones are drawn first.
SHAPES = {
    "npo": ("s", 10),
    "length_normalized_npo": ("^", 10),
    "reference_free_npo": ("D", 5),
    "simnpo": ("v", 8),
}
MEASURES = ("model_utility", "ks_statistic", "forget_quality")
UTILITY, DISTANCE, QUALITY = "model utility", "D to the retrained model", "forget quality (p-value)"
SMALLEST, LEVEL = 1e-36, 0.05  # p-values


def points(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model of a table of measures.

    It has `model`, `method`, `beta`, `gamma`, `retain_weight`, and per measure (`model_utility`,
    `ks_statistic`, `forget_quality`) its value, with `_low` and `_high`.
    """
    rows = []
    for model, own in table[table["measure"].isin(MEASURES)].groupby("model", sort=False):
        row: dict[str, Any] = {"model": model, "method": method_of(str(model))}
        row |= {
            name: own[name].iloc[0] for name in ("beta", "gamma", "retain_weight") if name in own
        }
        for measure, value, low, high in own[["measure", "value", "low", "high"]].itertuples(
            index=False
        ):
            row |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def method_of(word: str) -> str:
    """Return the name of the method in a word."""
    return word.partition("@")[0].partition(":")[0]


def mark(
    axes: Axes, row: pd.Series, vertical: str, *, label: str | None = None, **look: Any
) -> None:
    """Draw one model: its utility against another measure.

    There are 95% intervals over examples, where the row has any.
    """
    method = str(row["method"])
    shape, size = SHAPES.get(method, ("o", 6))
    known = MARKS.get(
        method,
        {"marker": shape, "ms": size, "color": style.COLORS.get(method, "black"), "mec": "white"},
    )
    name = label or BASELINES.get(method) or style.LABELS.get(method, method)
    x, y = row["model_utility"], max(row[vertical], SMALLEST)
    thin = {"color": known.get("color", "#555555"), "lw": 0.8, "alpha": 0.6, "zorder": 1}
    axes.plot([row["model_utility_low"], row["model_utility_high"]], [y, y], **thin)
    # the distance of a model from itself has no uncertainty
    if pd.notna(row[f"{vertical}_low"]) and method != "retrained":
        axes.plot([x, x], [row[f"{vertical}_low"], row[f"{vertical}_high"]], **thin)
    axes.plot(x, y, ls="", label=name, zorder=3 - 0.01 * known["ms"], **{**known, **look})


def distance_axis(axes: Axes) -> None:
    """Set an axis for D downwards: what is higher has forgotten better."""
    axes.set(ylim=(1.02, -0.04), ylabel=DISTANCE, xlabel=UTILITY)


def floor(axes: Axes, frame: pd.DataFrame) -> None:
    """Draw how far apart two retrained models are, where the frame has rows of kind floor.

    Of several pairs it is a band from the least to the largest D.
    """
    values = frame.loc[frame["kind"] == "floor", "value"]
    if values.empty:
        return
    low, high = float(values.min()), float(values.max())
    if low < high:
        axes.axhspan(low, high, color="0.6", alpha=0.3, lw=0, zorder=0)
    else:
        axes.axhline(low, color="#555555", lw=0.8, ls=":", zorder=0)
    where: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "va": "top"}
    axes.annotate("two retrained models", (0.99, high), fontsize=6.5, color="0.4", **where)


def quality_axis(axes: Axes, least: float = SMALLEST) -> None:
    """Set an axis for forget quality on which small p-values differ, down to some below `least`.

    Below `SMALLEST` all are one.
    """
    bottom = max(SMALLEST, 1e-3 * least)
    axes.set_yscale("log")
    axes.set(ylim=(bottom, 1 / bottom**0.03), ylabel=QUALITY)
    axes.axhline(LEVEL, color="black", lw=0.6, ls="-.", zorder=0)
    axes.annotate(
        f"p = {LEVEL:g}",
        (0.99, LEVEL),
        xycoords=axes.get_yaxis_transform(),
        ha="right",  # gradient ascent lies on the left
        va="top",
        fontsize=7,
    )
