"""The corners at settings that were chosen on other authors: the default language model.

It is the paper's Figure 1c at equal utility. Every corner has the same sixteen settings, four betas
and four retain weights on one scale (a corner that divides by the length has them for an answer of
40 tokens). Left: where these bring a model that has read other authors than all that follow, small
dots. Chosen is the setting with the smallest D of those that keep 95% of the original's utility
(dotted); where none keeps as much, the one with the largest utility. Large: what is chosen. Middle:
the chosen settings on trainings that nothing was chosen on. Right: by how much D lies above that of
NPO there; below 0 is nearer to the retrained model. Open: the same for settings chosen to keep 90%.
Dots are trainings, bars 95% intervals over them (Student's t). Grey: D between any two retrained
models.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context, cached_each
from figures.language import plane
from figures.questions import graded, tuned_runs
from figures.questions.graded import trainings
from figures.statistics import judged, over_models
from llm.intervals import Estimate
from llm.logs.measures import forget_quality
from llm.logs.summaries import TOLERANCE, best
from markov.objectives import CORNERS

CHOSEN, JUDGED = "chosen on", "judged on"
TOLERANCES = (TOLERANCE, 0.1)  # shares of the utility that may be lost; the first is primary
MEASURES = ("distance", "utility", "retain", "retain_rouge", "facts", "forget", "gap", "left")
PAPER, OWN = ("nearer",), ("reference", "length", "interaction")
TEXTS = {
    "nearer": "SimNPO ends nearer to the retrained model than NPO",
    "reference": "dropping the reference alone brings NPO nearer to it",
    "length": "dividing by the length alone brings NPO nearer to it",
    "interaction": "both together bring NPO nearer than the two apart do",
}
OTHERS = tuple(method for method in CORNERS if method != "npo")


def data(context: Context) -> pd.DataFrame:
    """Return every run, and the models that nothing was done to.

    Columns `kind`, `stage` (chosen on, judged on), `seed`, `method`, and by kind:

        run    `beta` and `level`, the setting on the scale of sums; `tolerance`, for which it was
               chosen, of runs that are judged; `status`, and the measures of
               `figures.questions.endings.ending`
        start  the same measures of the original and of the retrained model
        floor  `other` and `distance`: D between the retrained models of two trainings
    """
    on, off = tuned_runs.chosen_on(context.scale), trainings(context.scale)
    module = tuned_runs.__name__
    begun = [
        cached_each(context, module, tuned_runs.starts(own), tuned_runs.started).assign(stage=stage)
        for stage, own in ((CHOSEN, on), (JUDGED, off))
    ]
    tried = cached_each(context, module, tuned_runs.tried(on), tuned_runs.unlearned)
    known = pd.concat([begun[0], tried], ignore_index=True)
    wanted = {
        tolerance: [
            tuned_runs.Tuned(study=own, method=row["method"], beta=row["beta"], level=row["level"])
            for own in off
            for row in choice(known, tolerance).to_dict("records")
        ]
        for tolerance in TOLERANCES
    }
    jobs = list(dict.fromkeys(itertools.chain(*wanted.values())))
    cached_each(context, module, jobs, tuned_runs.unlearned)  # several at a time
    parts = [own.assign(kind="start") for own in begun]
    parts += [tried.assign(kind="run", stage=CHOSEN)]
    for tolerance, own in wanted.items():
        table = cached_each(context, module, own, tuned_runs.unlearned)
        parts.append(table.assign(kind="run", stage=JUDGED, tolerance=tolerance))
    logs = graded.answers(
        context, [graded.Answered(models=own.models, kind=graded.GOAL) for own in off]
    )
    seeds = [own.models.seed for own in off]
    floor = [
        (seed, other, forget_quality(one, theirs).statistic)
        for (seed, one), (other, theirs) in itertools.combinations(zip(seeds, logs, strict=True), 2)
    ]
    below = pd.DataFrame(floor, columns=["seed", "other", "distance"])
    return pd.concat([*parts, below.assign(kind="floor", stage=JUDGED)], ignore_index=True)


def choice(frame: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """Return the chosen setting of each corner, by the rule of `llm.logs.summaries.best`.

    `frame` has the runs and the originals of the trainings on which it is chosen. The columns are
    `method`, `beta`, `level`, `distance`, `utility` (means over trainings), `within`, and `edge`,
    whether the setting lies at an end of the grid of betas or of retain weights.
    """
    names = {"distance": "ks_statistic", "utility": "model_utility"}
    own = frame[frame["method"].isin([*CORNERS, "original"])]
    word = own["method"] + [f":{beta}@{level}" for beta, level in _settings(own)]
    table = own.assign(model=word, title=own["method"]).rename(columns=names)
    long = table.melt(["title", "model"], list(names.values()), "measure")
    found = best(long, tolerance)
    found = found[found["title"] != "original"].merge(
        own.assign(model=word)[["model", "beta", "level"]].drop_duplicates(), on="model"
    )
    edge = [
        beta in (betas.min(), betas.max()) or level in (levels.min(), levels.max())
        for beta, level, betas, levels in (
            (row["beta"], row["level"], own["beta"], own["level"])
            for row in found.to_dict("records")
        )
    ]
    back = {column: name for name, column in names.items()} | {"title": "method"}
    columns = ["method", "beta", "level", "distance", "utility", "within", "edge"]
    return found.assign(edge=edge).rename(columns=back)[columns]


def _settings(frame: pd.DataFrame) -> list[tuple[float, float]]:
    return list(frame.reindex(columns=["beta", "level"]).itertuples(index=False, name=None))


def of_stage(frame: pd.DataFrame, stage: str) -> pd.DataFrame:
    """Return the runs and the starts of a stage."""
    return frame[(frame["stage"] == stage) & frame["kind"].isin(["run", "start"])]


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what is chosen for each tolerance: see `choice`."""
    known = of_stage(frame, CHOSEN)
    return pd.concat(
        [choice(known, tolerance).assign(tolerance=tolerance) for tolerance in TOLERANCES],
        ignore_index=True,
    )


def differences(frame: pd.DataFrame, tolerance: float) -> dict[str, pd.Series]:
    """Return how much nearer each change brings NPO, by training: the numbers of the claims."""
    runs = frame[(frame["kind"] == "run") & (frame["tolerance"] == tolerance)]
    wide = runs.pivot(index="seed", columns="method", values="distance")
    nearer = {name: wide["npo"] - wide[name] for name in OTHERS}
    free, normalised, both = (
        nearer[name] for name in ("reference_free_npo", "length_normalized_npo", "simnpo")
    )
    return {
        "nearer": both,
        "reference": free,
        "length": normalised,
        "interaction": both - free - normalised,
    }


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """Return every claim with its verdict: the paper's by itself, this project's together.

    The columns are `tolerance`, `claim`, `text`, `unit`, `value`, `low`, `high`, `count`, `p`,
    `level` (of the interval by which the verdict goes), `threshold`, `verdict`.
    """
    rows = []
    for tolerance, names in itertools.product(TOLERANCES, (PAPER, OWN)):
        found = differences(frame, tolerance)
        estimates = [_over(found[name]) for name in names]
        for name, one, said in zip(names, estimates, judged(estimates), strict=True):
            known = {"tolerance": tolerance, "claim": name, "text": TEXTS[name], "unit": "D"}
            rows.append({**known, **one._asdict(), "threshold": 0.0, **said._asdict()})
    return pd.DataFrame(rows)


def _over(values: pd.Series) -> Estimate:
    return over_models(values.astype(float), values.index.to_numpy())


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame.

    `runs` is the frame itself, `grid` has the means over the trainings on which settings are
    chosen, `chosen` what is chosen, and `judged` the measures on the others with intervals, and by
    how much they lie above NPO's.
    """
    tried = frame[(frame["kind"] == "run") & (frame["stage"] == CHOSEN)]
    keys = ["method", "beta", "level"]
    grid = tried.groupby(keys, sort=False)[list(MEASURES)].mean().reset_index()
    floor = frame.loc[frame["kind"] == "floor", "distance"]
    ends = {"least": floor.min(), "mean": floor.mean(), "largest": floor.max()}
    return {
        "runs": frame,
        "grid": grid.assign(trainings=tried["seed"].nunique()),
        "chosen": chosen(frame),
        "judged": measured(frame),
        "claims": claims(frame),
        "floor": pd.DataFrame([{**ends, "pairs": len(floor)}]),
    }


def measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each measure on the trainings that judge, with intervals over them.

    `of` says of what: the measure itself, or by how much it lies above NPO's of the same training.
    """
    rows = []
    own = of_stage(frame, JUDGED)
    for tolerance in TOLERANCES:
        part = own[(own["tolerance"] == tolerance) | (own["kind"] == "start")]
        for measure in MEASURES:
            wide = part.pivot(index="seed", columns="method", values=measure)
            for method in wide:
                above = wide[method] - wide["npo"] if method in OTHERS else None
                for of, values in (("measure", wide[method]), ("above npo", above)):
                    if values is not None:
                        known = {"tolerance": tolerance, "method": method, "measure": measure}
                        rows.append({**known, "of": of, **_over(values)._asdict()})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((left, middle, right),) = style.grid_figure(
        1, 3, 13, 4.6, gridspec_kw={"width_ratios": [3, 3, 2]}
    )
    _tried(left, frame)
    _judged(middle, frame)
    _apart(right, frame)
    handles, labels = middle.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _keep(frame: pd.DataFrame, stage: str) -> float:
    own = of_stage(frame, stage)
    return (1 - TOLERANCE) * float(own.loc[own["method"] == "original", "utility"].mean())


def _tried(axes: Axes, frame: pd.DataFrame) -> None:
    known = of_stage(frame, CHOSEN)
    runs = known[known["kind"] == "run"]
    for method, own in runs.groupby("method", sort=False):
        mean = own.groupby(["beta", "level"])[["utility", "distance"]].mean()
        color = style.COLORS[str(method)]
        axes.plot(mean["utility"], mean["distance"], "o", ms=4, color=color, alpha=0.5, mew=0)
    for row in choice(known, TOLERANCE).to_dict("records"):
        shape, size = plane.SHAPES[row["method"]]
        look: dict[str, Any] = {"marker": shape, "ms": size, "mec": "black", "mew": 0.7}
        unit = tuned_runs.MEDIAN ** CORNERS[row["method"]][1]
        label = f"β = {row['beta'] * unit:.3g}, λ = {row['level'] / unit:.3g}"
        color = style.COLORS[row["method"]]
        axes.plot(row["utility"], row["distance"], ls="", color=color, label=label, **look)
    _plane(axes, _keep(frame, CHOSEN))
    axes.set_title(f"sixteen settings each, on other authors (n = {known['seed'].nunique()})")
    axes.legend(loc="best", fontsize=7)


def _plane(axes: Axes, keep: float) -> None:
    axes.axvline(keep, color="black", lw=1, ls=":", zorder=0)
    plane.distance_axis(axes)


def _judged(axes: Axes, frame: pd.DataFrame) -> None:
    own = of_stage(frame, JUDGED)
    runs = own[own["tolerance"] == TOLERANCE]
    for method, one in runs.groupby("method", sort=False):
        shape, size = plane.SHAPES[str(method)]
        color = style.COLORS[str(method)]
        axes.plot(one["utility"], one["distance"], ".", ms=4, color=color, alpha=0.6)
        x, y = (over_models(one[name], one["seed"]) for name in ("utility", "distance"))
        error = [np.nan_to_num([[end.value - end.low], [end.high - end.value]]) for end in (x, y)]
        look: dict[str, Any] = {"fmt": shape, "ms": 0.8 * size, "color": color, "mec": "white"}
        label = style.LABELS[str(method)]
        axes.errorbar(x.value, y.value, error[1], error[0], capsize=2, lw=1, label=label, **look)
    floor = frame[frame["kind"] == "floor"].assign(value=lambda table: table["distance"])
    plane.floor(axes, floor)
    _plane(axes, _keep(frame, JUDGED))
    axes.set_title(f"the chosen ones, judged (n = {own['seed'].nunique()} trainings)")


def _apart(axes: Axes, frame: pd.DataFrame) -> None:
    shifts = dict(zip(TOLERANCES, (0.14, -0.14), strict=True))
    for tolerance, shift in shifts.items():
        runs = frame[(frame["kind"] == "run") & (frame["tolerance"] == tolerance)]
        wide = runs.pivot(index="seed", columns="method", values="distance")
        for place, method in enumerate(OTHERS):
            values = wide[method] - wide["npo"]
            one, color = _over(values), style.COLORS[method]
            heights = [-place + shift - 0.07] * len(values)
            axes.plot(values, heights, ".", color=color, ms=4, alpha=0.6)
            error = np.nan_to_num([[one.value - one.low], [one.high - one.value]])
            face = color if tolerance == TOLERANCE else "white"
            label = f"to keep {1 - tolerance:.0%}" if place == 0 else None
            look: dict[str, Any] = {"fmt": "o", "color": color, "mfc": face, "capsize": 3}
            axes.errorbar(one.value, -place + shift, xerr=error, label=label, **look)
    axes.axvline(0, color="grey", lw=0.8, zorder=0)
    names = [style.LABELS[method].replace(" ", "\n", 1) for method in OTHERS]
    axes.set_yticks([-place for place in range(len(OTHERS))], names)
    axes.set(xlabel="D above that of NPO", ylim=(-len(OTHERS) + 0.4, 0.9))
    axes.legend(loc="upper right", fontsize=7)
