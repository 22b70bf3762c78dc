"""Reference or length: which of the two decides how much is forgotten of what was never read?

Upper row: chains of which pretraining read one half and never read the other, each half long and
short. Lower row: a language model of generated authors, of whom it read one half, 12 times to once,
and never read the other. All of it is unlearnt. Corners are compared at one scale, so that they
differ in form only: those that divide by the length have a beta, and on the language model a retain
weight and a clipping, for which they coincide with the summed ones on an answer of median length.

Left: over-forgetting, how far the log-probability per token lies below the retrained model's. On
chains it is taken at the moment when the last part that was read is at its goal; on the language
model at the end of runs with one retain weight, the larger of those tried. Middle: how much of the
over-forgetting of what was never read is added where NPO's reference is dropped alone, where the
length is divided by alone, and where both are done, which is SimNPO; below 0 is less. The open
marker is the sum of the first two, and the interaction is what both do beyond it. Right: the same
over-forgetting against what is paid on the retain data, at every beta of the chains and with every
retain weight of the language model. Small dots are pretrained models or trainings, batch orders
averaged; bars are 95% intervals over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures import style
from figures.cache import Context
from figures.chains.attribution import EFFECTS, INTERACTION, PRODUCT, changes
from figures.questions import graded, over_forgetting
from figures.questions.graded import GOAL
from figures.questions.over_forgetting import NEVER, PARTS, READ
from figures.statistics import full_means, judged, over_models
from figures.theory.crossed import BETAS, OPTIMIZERS, crossed_runs
from llm.intervals import Estimate
from llm.logs.log import log_truth_ratio
from llm.models.small_authors import readings, sets
from markov.objectives import CORNERS

CHAINS, LANGUAGE = "chains", "language model"
END = "end of a run"
# Retain weights on the scale of summed log-probabilities: with the last of them runs end about
# where the last part that was read is at its goal.
LEVELS = (4.0, 16.0)
# What the verdicts go by: on chains the optimiser of the paper's code at the middle beta.
PRIMARY = {CHAINS: (OPTIMIZERS[0], BETAS[1]), LANGUAGE: (END, LEVELS[-1])}
SUM = "sum of the two"
HALVES = {"read": READ, "never read": NEVER}
ALONE, DIVIDED, BOTH = EFFECTS
CLAIMS = {
    ALONE: "dropping the reference alone reduces over-forgetting of what was never read",
    DIVIDED: "dividing by the length alone reduces over-forgetting of what was never read",
    INTERACTION: "reference and length interact in it",
}


def data(context: Context) -> pd.DataFrame:
    """Return what was measured on both rungs, with the columns `kind` and `rung`.

    By kind:

        part        `setting`, `level`, `method`, `training`, `order`, `part`, `start`,
                    `over_forgetting`, `retain_paid`: see `figures.questions.over_forgetting`. The
                    setting is the optimiser and the level beta on chains, and on the language model
                    the end of a run and its retain weight
        reading     `level`, `method`, `training`, `read`, `over_forgetting`, `over_total`, of the
                    language model at the end of a run
        distance    `method`, `level`, `training`, `half`, `distance`: D of truth ratios there; the
                    method is also start, the model before, or retrained, for the floor
    """
    table = graded.graded_runs(context, LEVELS)
    parts = {
        CHAINS: over_forgetting.of_chains(crossed_runs(context)),
        LANGUAGE: over_forgetting.of_answers(table).assign(setting=END),
    }
    frames = [own.assign(rung=rung, kind="part") for rung, own in parts.items()]
    others = {"reading": over_forgetting.by_readings(table), "distance": distances(context, table)}
    frames += [own.assign(rung=LANGUAGE, kind=kind) for kind, own in others.items()]
    return pd.concat(frames, ignore_index=True)


def distances(context: Context, table: pd.DataFrame) -> pd.DataFrame:
    """Return D of truth ratios at the end of runs: see `over_forgetting.distances`.

    The models before unlearning come last, as `start`, and then the retrained ones.
    """
    last = table[table["epoch"] == table["epoch"].max()]
    goals, starts = dict[int, pd.Series](), list[pd.DataFrame]()
    read = pd.Series(dtype=int)
    for chosen in graded.trainings(context.scale):
        models, seed = chosen.models, chosen.models.seed
        kinds = [graded.Answered(models=models, kind=kind) for kind in (GOAL, graded.START)]
        goal, start = (
            pd.Series(log_truth_ratio(log), index=log.index)
            for log in graded.answers(context, kinds)
        )
        goals[seed] = goal
        known = start.rename_axis("index").reset_index(name="log_ratio")
        starts.append(known.assign(method="start", training=seed, level=np.nan))
        read = pd.Series(readings(models), index=[one.index for one in sets(models).forget])
    return over_forgetting.distances(pd.concat([last, *starts]), goals, read)


def halves(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run and half, read or never read: the mean of its short and its long part.

    It is nan where one of them is.
    """
    rows, parts = [], frame[frame["kind"] == "part"]
    keys = ["rung", "setting", "level", "method", "training", "order"]
    for half, names in HALVES.items():
        own = parts[parts["part"].isin(names)]
        groups = own.groupby(keys, sort=False, dropna=False)
        means = full_means(groups[["start", "over_forgetting", "retain_paid"]])
        rows.append(means.reset_index().assign(half=half))
    return pd.concat(rows, ignore_index=True)


def effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what each change does to NPO's over-forgetting, in nats per token, by half and part.

    Rows of `EFFECTS` compare a corner with NPO, paired by run. Then come the sum of the first two
    and the interaction, what both do beyond that sum. Intervals are over pretrained models or
    trainings; runs of which some corner has no number are left out, and `missing` counts them.
    """
    rows = []
    parts = frame[frame["kind"] == "part"].rename(columns={"part": "of"})
    every = pd.concat([halves(frame).rename(columns={"half": "of"}), parts], ignore_index=True)
    for key, own in every.groupby(["rung", "setting", "level", "of"], sort=False, dropna=False):
        index = ["training", "order"]
        wide = own.pivot(index=index, columns="method", values="over_forgetting").astype(float)
        known = wide.dropna()
        found = changes(known).rename(columns={PRODUCT: SUM})
        models = known.index.get_level_values("training").to_numpy()
        for name in found:
            estimate = over_models(found[name], models)
            settings = dict(zip(["rung", "setting", "level", "of"], key, strict=True))
            missing = len(wide) - len(known)
            rows.append({**settings, "effect": name, **estimate._asdict(), "missing": missing})
    return pd.DataFrame(rows)


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a verdict on each of `CLAIMS`, in every setting, by the rule of the chains' claims.

    The three of one setting are judged together, by Holm's intervals. That they interact holds
    where the interaction's interval leaves 0 out on either side. `primary` marks the settings that
    are quoted.
    """
    rows, found = [], effects(frame)
    known = found[(found["of"] == "never read") & found["effect"].isin(CLAIMS)]
    for key, own in known.groupby(["rung", "setting", "level"], sort=False, dropna=False):
        estimates = [Estimate(*one) for one in own[list(Estimate._fields)].itertuples(index=False)]
        # What is claimed is that over-forgetting falls, and of the interaction that there is any.
        claimed = [
            one if name == INTERACTION and one.value > 0 else _negated(one)
            for name, one in zip(own["effect"], estimates, strict=True)
        ]
        for name, one, said in zip(own["effect"], estimates, judged(claimed), strict=True):
            settings = dict(zip(["rung", "setting", "level"], key, strict=True))
            told = {"claim": CLAIMS[name], "effect": name, **one._asdict(), "p": said.p}
            rows.append({**settings, **told, "verdict": said.verdict, "holm": said.level})
    table = pd.DataFrame(rows)
    primary = pd.concat([_primary(table, rung) for rung in PRIMARY]).index
    return table.assign(primary=table.index.isin(primary))


def _negated(estimate: Estimate) -> Estimate:
    return estimate._replace(value=-estimate.value, low=-estimate.high, high=-estimate.low)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame, a table for each kind of row."""
    kinds = {kind: frame[frame["kind"] == kind] for kind in ("part", "reading", "distance")}
    keys = ["rung", "setting", "level", "method", "part"]
    return {
        "claims": claims(frame),
        "effects": effects(frame),
        "parts": _over(kinds["part"], keys, ["start", "over_forgetting", "retain_paid"]),
        "readings": _over(
            kinds["reading"], ["level", "method", "read"], ["over_forgetting", "over_total"]
        ),
        "distances": _of_distances(kinds["distance"]),
    }


def _of_distances(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean D of each method and half with its interval over trainings.

    Pairs of retrained models share models and are no independent draws: of these it is the mean
    over all pairs, with the least and the largest.
    """
    keys = ["level", "method", "half"]
    pair = frame["method"] == GOAL
    ends = frame[pair].groupby(keys, sort=False, dropna=False)["distance"]
    floor = ends.agg(value="mean", low="min", high="max", count="count").reset_index()
    known = _over(frame[~pair], keys, ["distance"])
    return pd.concat([known, floor.assign(measure="distance", missing=0)], ignore_index=True)


def _over(frame: pd.DataFrame, keys: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Return the mean of each measure with its interval over trainings."""
    rows = []
    for key, own in frame.groupby(list(keys), sort=False, dropna=False):
        for measure in measures:
            found = over_models(own[measure].astype(float), own["training"])
            missing = int(own[measure].isna().sum())
            known = dict(zip(keys, key, strict=True)) | {"measure": measure}
            rows.append({**known, **found._asdict(), "missing": missing})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    rungs = [rung for rung in PRIMARY if rung in set(frame["rung"])]
    figure, panels = style.grid_figure(
        len(rungs), 3, 13, 3.9 * len(rungs), gridspec_kw={"width_ratios": [4, 3, 3]}
    )
    parts, found = frame[frame["kind"] == "part"], effects(frame)
    for row, rung in zip(panels, rungs, strict=True):
        chosen = _primary(parts, rung)
        _parts(row[0], chosen)
        _effects(row[1], _primary(found, rung))
        _prices(row[2], halves(frame), rung)
        row[0].set_ylabel(f"{rung}\n\nover-forgetting, nats per token")
        row[1].set_ylabel("change of the over-forgetting of\nwhat was never read, nats per token")
        row[2].set_ylabel("over-forgetting of what\nwas never read, nats per token")
        models = chosen["training"].nunique()
        kind = "pretrained models" if rung == CHAINS else "trainings"
        when = (
            "when the last part that was read is at its goal" if rung == CHAINS else f"at the {END}"
        )
        row[0].set_title(f"{when} ({models} {kind})")
    panels[0][1].set_title("what is done to NPO")
    panels[0][2].set_title("and what is paid for it")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _primary(frame: pd.DataFrame, rung: str) -> pd.DataFrame:
    """Return the rows of a rung's primary setting."""
    setting, level = PRIMARY[rung]
    return frame[
        (frame["rung"] == rung) & (frame["setting"] == setting) & (frame["level"] == level)
    ]


def _parts(axes: Axes, frame: pd.DataFrame) -> None:
    """Draw every corner's over-forgetting of every part."""
    for shift, method in zip(np.linspace(-0.27, 0.27, len(CORNERS)), CORNERS, strict=True):
        own = frame[frame["method"] == method]
        for place, part in enumerate(PARTS):
            one = own[own["part"] == part]
            label = style.LABELS[method] if place == 0 else None
            look = {"color": style.COLORS[method], "label": label}
            _estimate(axes, place + shift, one["over_forgetting"], one["training"], **look)
    axes.axhline(0, color="grey", lw=0.8, zorder=0)
    axes.set_xticks(range(len(PARTS)), [name.replace(", ", ",\n") for name in PARTS])


def _effects(axes: Axes, found: pd.DataFrame) -> None:
    """Draw the effects on both parts that were never read, and the sum of the first two."""
    names = {**EFFECTS, INTERACTION: ""}
    for shift, part, marker in zip((-0.13, 0.13), NEVER, "so", strict=True):
        own = found[found["of"] == part].set_index("effect")
        for place, name in enumerate(names):
            one = own.loc[name]
            error = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
            label = part if place == 0 else None
            look: dict[str, Any] = {"fmt": marker, "color": "black", "capsize": 3, "label": label}
            axes.errorbar(place + shift, one["value"], error, **look)
        apart = float(own["value"][SUM])
        place = list(EFFECTS).index(BOTH)
        axes.plot(place + shift + 0.09, apart, marker, color="grey", mfc="white", zorder=0)
    axes.axhline(0, color="grey", lw=0.8, zorder=0)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.legend(loc="best")


def _prices(axes: Axes, frame: pd.DataFrame, rung: str) -> None:
    """Draw over-forgetting of what was never read against what is paid, a line per corner."""
    same = (frame["rung"] == rung) & (frame["setting"] == PRIMARY[rung][0])
    own = frame[same & (frame["half"] == "never read")]
    for method in CORNERS:
        one = own[own["method"] == method]
        levels = [part for _, part in one.groupby("level")]
        paid = [over_models(part["retain_paid"], part["training"]).value for part in levels]
        found = [over_models(part["over_forgetting"], part["training"]) for part in levels]
        value, low, high, _ = np.array(found, dtype=float).T
        look: dict[str, Any] = {"marker": "o", "color": style.COLORS[method], "capsize": 3}
        axes.errorbar(paid, value, [value - low, high - value], lw=1, ms=4, **look)
    axes.axhline(0, color="grey", lw=0.8, zorder=0)
    what = "β" if rung == CHAINS else "retain weight"
    axes.set_xlabel(f"paid on retain data, nats per token,\na dot for each {what}")
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _estimate(
    axes: Axes, x: float, values: pd.Series, models: pd.Series, *, color: str, label: str | None
) -> None:
    """Draw a mean with its interval over models, and the models as dots."""
    found = over_models(values.astype(float), models)
    dots = values.groupby(models).mean().to_numpy(dtype=float)
    axes.plot(x + np.linspace(-0.04, 0.04, len(dots)), dots, ".", color=color, ms=3, alpha=0.5)
    error = [[found.value - found.low], [found.high - found.value]]
    look: dict[str, Any] = {"fmt": "o", "color": color, "capsize": 3, "mec": "black", "mew": 0.5}
    axes.errorbar(x, found.value, error, label=label, **look)
