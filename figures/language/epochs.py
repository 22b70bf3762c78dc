"""Forget quality and model utility epoch by epoch (paper, Figures 3c and 3d).

They are drawn for the four corners of the family.

The p-value on a logarithmic scale, the statistic D behind it, downwards, and model utility; the
paper shows the first and the last. Grey: D between any two retrained models. Lines: means over
trainings of the default model; bands: 95% intervals over them.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane
from figures.language.runs import source_of, study
from figures.language.study import floors
from figures.language.sweeps import along, corner_words, swept

PANELS = {
    "forget_quality": plane.QUALITY,
    "ks_statistic": plane.DISTANCE,
    "model_utility": plane.UTILITY,
}
LINES = ("-", "--", "-.", ":")  # of the settings of one method


def data(context: Context) -> pd.DataFrame:
    """Return the corners after each epoch, and the models that they lie between.

    Columns `source`, `kind`, `model`, `method`, and by kind:

        epoch   `epoch`, `forget_quality`, `ks_statistic`, `model_utility`, `forget_loss`,
                `retain_loss`, `status`; of a study with several seeds means of the numbers, of
                p-values the median, each with an interval from `<number>_low` to `<number>_high`
        level   `measure` and its `value`, with `low` and `high`, of original and retrained
        floor   `value`, D between any two retrained models of a study
    """
    words = corner_words(study(context.scale))
    table = swept(context, words)
    path = along(context, words, table)
    levels = table[table["model"].isin(plane.BASELINES) & table["measure"].isin(PANELS)]
    parts = [path[path["model_utility"].notna()].assign(kind="epoch"), levels.assign(kind="level")]
    if context.study is not None:
        parts.append(floors(context.study))
    frame = pd.concat(parts, ignore_index=True)
    method = frame["model"].map(plane.method_of, na_action="ignore")
    frame = frame.assign(method=method, source=source_of(context))
    return frame.dropna(axis=1, how="all").reset_index(drop=True)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, (line,) = style.grid_figure(1, 3, 10, 3.6)
    path, levels = (
        frame[frame["kind"] == "epoch"],
        frame[frame["kind"] == "level"].set_index(["model", "measure"]),
    )
    models = list(path["model"].unique())
    for axes, (measure, label) in zip(line, PANELS.items(), strict=True):
        for model, own in path.groupby("model", sort=False):
            method = plane.method_of(str(model))
            color, name = style.COLORS[method], style.LABELS[method]
            others = [one for one in models if plane.method_of(one) == method]
            if len(others) > 1:  # one method at several settings
                name = str(model)
            line_style = LINES[others.index(model) % len(LINES)]
            least = plane.SMALLEST if measure == "forget_quality" else 0.0
            axes.plot(
                own["epoch"],
                own[measure].clip(lower=least),
                marker="o",
                ls=line_style,
                ms=3.5,
                color=color,
                label=name,
            )
            if f"{measure}_low" in own:
                low, high = (own[f"{measure}_{end}"].clip(lower=least) for end in ("low", "high"))
                axes.fill_between(own["epoch"], low, high, color=color, alpha=0.15, lw=0)
        for model, dashes in (("original", ":"), ("retrained", "--")):
            level = float(levels.loc[(model, measure), "value"])  # pyright: ignore[reportArgumentType]
            axes.axhline(
                level, color="black", lw=1, ls=dashes, label=plane.BASELINES[model], zorder=0
            )
        axes.set(xlabel="epoch", ylabel=label)
    plane.quality_axis(line[0])
    line[1].set_ylim(1.02, -0.04)
    plane.floor(line[1], frame)
    line[2].set_ylim(bottom=0)
    handles, labels = line[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    return figure
