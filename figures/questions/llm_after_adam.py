"""What of an objective's weights survives Adam, on a language model?

The models are those of the figure `reference_or_length`: of the answers to forget they have read
one half, 12 times to once, and never read the other, and all is unlearnt by AdamW, with a retain
term. NPO and SimNPO keep of their weights in each batch what they are (own), only how they compare
(allocation: scaled to a mean of 1), only how large they are (magnitude: each is the mean of its
batch), or nothing (1, which is gradient ascent, GA, whichever the objective).

Upper row: when as much is forgotten of what was read as SimNPO with its own weights forgets by its
end, how far the answers that were never read lie below the retrained model's log-probability, and
what is paid on the retain data; and by how much NPO exceeds SimNPO in the first, within a training:
with all weights, with each part alone, and what all do beyond the two parts together. That moment
is interpolated between records, which are after every epoch and, in the first, after every few
updates. Lower row, after the last epoch: how far answers that were never read, and those that were,
lie below the retrained model's; and D between the truth ratios of the former and the retrained
model's, where the band has those of any two retrained models. Small dots are trainings, bars 95%
intervals over them; hollow marks have 0 in their interval. A run that stopped, because a number was
not finite, has no mark in the lower row.

AdamW takes no notice of a factor on all of a gradient. So the size of weights acts by what it is
weighed against: the retain term, other steps that the optimiser remembers, and the bound of
gradients. Weights as they are, or of a size of their own, have the retain weight and the bound of
their corner (λ and c, or λ/m and c/m with the median length m of an answer where the length is
divided by). Weights of mean 1 have λ and c whatever the corner, so that the comparison acts alone.
That, and the λ of `reference_or_length` by which its verdicts go, was settled before any run of
this figure. The moment of the upper row was not: it was to be the end, until the runs of one
training had been seen, in which neither part alone stops unlearning. The table `unseen` has the
verdicts of the other trainings alone. Batches are of sixteen, so that their mean weight says little
of which answers they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.questions import graded, over_forgetting, reference_or_length
from figures.questions.after_adam import HALF, INTERACTION, PART_COLORS, PART_MARKERS, PARTS
from figures.questions.first_epoch import first_epochs
from figures.questions.graded import ASCENT
from figures.questions.reference_or_length import HALVES
from figures.questions.weighting_runs import KEPT, METHODS, NOTHING
from figures.statistics import at_level, judged, over_models
from llm.intervals import Estimate
from markov.diagnostics import first_crossing, read_at

PRIMARY = reference_or_length.LEVELS[-1]
LEVELS = (PRIMARY,)
CELLS: tuple[graded.Kept, ...] = (
    *((method, weighting) for weighting in KEPT for method in METHODS),
    (ASCENT, NOTHING),
)
RUN = ["level", "method", "weighting", "training"]
GOAL = ("simnpo", "own")  # the run whose end says how much of what was read is forgotten by all
NATS = "nats per token"
NEVER, PAID, WHEN = "never read", "paid on retain data", "epochs"
END_NEVER, END_READ = "never read, at the end", "read, at the end"
END_PAID, END_DISTANCE = "paid on retain data, at the end", "D of what was never read, at the end"
UNITS = {
    NEVER: NATS,
    PAID: NATS,
    WHEN: "epochs",
    END_NEVER: NATS,
    END_READ: NATS,
    END_PAID: NATS,
    END_DISTANCE: "D",
}
CLAIMS = {
    "allocation": "the comparison of weights alone keeps half of what SimNPO narrows",
    "magnitude": "the size of weights alone keeps any of what SimNPO narrows",
}
SHARES = {"allocation": HALF, "magnitude": 0.0}  # of the difference, what is claimed to be kept
SEEN = 0  # the training after which the moment was chosen


def data(context: Context) -> pd.DataFrame:
    """Return the way of runs with a part of their weights; see `measured`."""
    table = graded.graded_runs(context, LEVELS, CELLS)
    return measured(context, table, first_epochs(context, graded.planned(context, LEVELS, CELLS)))


def measured(context: Context, table: pd.DataFrame, early: pd.DataFrame) -> pd.DataFrame:
    """Return the way of runs, with the columns `kind`, `weighting`, `level`, `method`.

    `table` is that of `graded_runs`, and `early` that of `first_epochs`. By kind:

        path        `training`, `epoch` (a fraction within the first), `part` (see
                    `figures.questions.over_forgetting`), `over_forgetting`, `retain_loss`, both in
                    nats per token
        distance    `training`, `half`, `distance`, at the end; the method is also start or
                    retrained, which have no weighting
    """
    frames = list[pd.DataFrame]()
    for weighting, own in table.groupby("weighting", sort=False):
        found = reference_or_length.distances(context, own).assign(kind="distance")
        ran = found["method"].isin(own["method"])
        if not frames:  # the others are the same of all
            frames.append(found[~ran].assign(weighting=""))
        both = pd.concat([own, early[early["weighting"] == weighting]], ignore_index=True)
        paths = over_forgetting.paths_of_answers(both).assign(kind="path")
        frames += [one.assign(weighting=weighting) for one in (paths, found[ran])]
    return pd.concat(frames, ignore_index=True)


def outcomes(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run and outcome of `UNITS`, with its `value`.

    Of what was read or never read it is the mean of the short and the long part. It is nan where a
    run stopped before, or never forgets as much.
    """
    paths, rows = frame[frame["kind"] == "path"], list[dict[str, Any]]()
    apart = frame[(frame["kind"] == "distance") & (frame["half"] == "never read")]
    ran = apart["level"].notna()
    distances = apart[ran].set_index(RUN)["distance"].to_dict()
    last = paths["epoch"].max()
    runs = {key: _halves(own) for key, own in paths.groupby(RUN, sort=False)}
    for (level, method, weighting, training), own in runs.items():
        goal = runs[level, *GOAL, training]
        enough = goal["read"][-1] if goal["epoch"][-1] == last else np.nan
        at = first_crossing(own["read"], enough) if np.isfinite(enough) else np.nan
        whole = own["epoch"][-1] == last
        ends = {name: values[-1] if whole else np.nan for name, values in own.items()}
        found = {
            NEVER: read_at(own["never read"], at),
            PAID: read_at(own["paid"], at),
            WHEN: read_at(own["epoch"], at),
            END_NEVER: ends["never read"],
            END_READ: ends["read"],
            END_PAID: ends["paid"],
            END_DISTANCE: distances.get((level, method, weighting, training), np.nan),
        }
        known = dict(zip(RUN, (level, method, weighting, training), strict=True))
        rows += [{**known, "outcome": name, "value": value} for name, value in found.items()]
    others = apart.loc[~ran, [*RUN, "distance"]].rename(columns={"distance": "value"})
    return pd.concat([pd.DataFrame(rows), others.assign(outcome=END_DISTANCE)], ignore_index=True)


def _halves(path: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the way of a run: each half's over-forgetting, what is paid, and the epoch."""
    wide = path.pivot(index="epoch", columns="part", values="over_forgetting").sort_index()
    retain = path.groupby("epoch")["retain_loss"].first().sort_index().to_numpy(dtype=float)
    halves = {name: wide[list(both)].mean(axis=1).to_numpy() for name, both in HALVES.items()}
    return {**halves, "paid": retain - retain[0], "epoch": wide.index.to_numpy(dtype=float)}


def differences(known: pd.DataFrame, level: float, outcome: str) -> pd.DataFrame:
    """Return NPO's number minus SimNPO's for each part of the weights: a row per training."""
    own = known[(known["level"] == level) & (known["outcome"] == outcome)]
    wide = own.pivot(index="training", columns=["method", "weighting"], values="value")
    npo, simnpo = METHODS
    found = pd.DataFrame({kept: wide[npo, kept] - wide[simnpo, kept] for kept in KEPT})
    apart = found["allocation"] + found["magnitude"]
    return found.assign(**{INTERACTION: found["own"] - apart}).astype(float)


def parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return by how much NPO exceeds SimNPO in each outcome, with each part of the weights.

    Columns `level`, `outcome`, `part`; `value`, `low`, `high` over `count` trainings; `share`, the
    difference over that of all weights; `missing` counts the trainings in which a run has no
    number.
    """
    rows, known = [], outcomes(frame)
    for level in _levels(frame):
        for outcome in UNITS:
            found = differences(known, level, outcome)
            whole = _over(found["own"]).value or np.nan
            for part in PARTS:
                one = _over(found[part])
                row = {"level": level, "outcome": outcome, "part": part, **one._asdict()}
                missing = int(found[part].isna().sum())
                rows.append({**row, "share": one.value / whole, "missing": missing})
    return pd.DataFrame(rows)


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a verdict on each of `CLAIMS` at each level, about what was never read.

    It is at the moment of equal forgetting. The two of one level are judged together, by Holm's
    intervals. That a share of the difference is
    kept *holds* where more than that is, and *weakly* where some is. `beyond` is what is kept
    beyond the share that is claimed. `primary` marks the level that is quoted.
    """
    rows, known = [], outcomes(frame)
    for level in _levels(frame):
        found = differences(known, level, NEVER)
        kept = [_over(found[part]) for part in CLAIMS]
        for part, one, said in zip(CLAIMS, kept, judged(kept), strict=True):
            beyond = _over(found[part] - SHARES[part] * found["own"])
            weakly = said.verdict == "holds" and at_level(beyond, said.level).low <= 0
            rows.append(
                {
                    "claim": CLAIMS[part],
                    "part": part,
                    "level": level,
                    **one._asdict(),
                    "unit": NATS,
                    "beyond": beyond.value,
                    "beyond_low": beyond.low,
                    "beyond_high": beyond.high,
                    "p": said.p,
                    "holm": said.level,
                    "verdict": "holds weakly" if weakly else said.verdict,
                    "primary": level == PRIMARY,
                }
            )
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame."""
    rows, keys = [], ["level", "method", "weighting", "outcome"]
    for key, own in outcomes(frame).groupby(keys, sort=False, dropna=False):
        found = _over(own.set_index("training")["value"])
        missing = int(own["value"].isna().sum())
        rows.append({**dict(zip(keys, key, strict=True)), **found._asdict(), "missing": missing})
    values = pd.DataFrame(rows)
    unseen = claims(frame[frame["training"] != SEEN])
    return {"claims": claims(frame), "unseen": unseen, "parts": parts(frame), "values": values}


def _levels(frame: pd.DataFrame) -> list[float]:
    """Return the retain weights of the runs, the primary one first."""
    return sorted(set(frame.loc[frame["kind"] == "path", "level"]), reverse=True)


def _over(values: pd.Series) -> Estimate:
    return over_models(values.astype(float), values.index.to_numpy())


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((never, paid, forest), lower) = style.grid_figure(2, 3, 12, 7.2)
    known, summary = outcomes(frame), parts(frame)
    first = _levels(frame)[0]
    titles = {
        never: (NEVER, "over-forgetting of what was never read"),
        paid: (PAID, PAID),
        lower[0]: (END_NEVER, "over-forgetting of what was never read"),
        lower[1]: (END_READ, "over-forgetting of what was read"),
        lower[2]: (END_DISTANCE, "D of what was never read"),
    }
    for axes, (outcome, title) in titles.items():
        _values(axes, known[(known["outcome"] == outcome) & (known["level"] == first)])
        axes.set(ylabel=UNITS[outcome], xlabel="what is kept of the weights")
        when = "when as much of what was read is gone" if axes in (never, paid) else "at the end"
        axes.set_title(f"{title},\n{when}")
    floor = known[(known["outcome"] == END_DISTANCE) & (known["method"] == "retrained")]["value"]
    if len(floor) > 0:
        label = "D of two retrained models"
        look: dict[str, Any] = {"color": "0.85", "lw": 0, "zorder": 0}
        lower[2].axhspan(floor.min(), floor.max(), label=label, **look)
    _forest(forest, summary[summary["outcome"] == NEVER], _levels(frame))
    forest.set_xlabel(f"NPO's excess over SimNPO's, {NATS}")
    forest.set_title("over-forgetting of what was never read,\nNPO beyond SimNPO")
    count = int(known.loc[known["level"] == first, "training"].nunique())
    handles, labels = lower[2].get_legend_handles_labels()
    title = f"λ = {first:g}; 95% intervals over {count} trainings"
    place = "outside upper center"
    figure.legend(handles, labels, loc=place, ncols=len(labels), title=title)
    handles, labels = forest.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _values(axes: Axes, known: pd.DataFrame) -> None:
    """Draw an outcome of each method with each part of its weights."""
    places = (*KEPT, NOTHING)
    shifts: Mapping[str, float] = dict(zip((*METHODS, ASCENT), (-0.12, 0.12, 0.0), strict=True))
    shown = set[str]()
    for method, weighting in CELLS:
        own = known[(known["method"] == method) & (known["weighting"] == weighting)]
        values = own.set_index("training")["value"]
        color, x = style.COLORS[method], places.index(weighting) + shifts[method]
        spread = np.linspace(-0.05, 0.05, len(values))
        axes.plot(x + spread, values.to_numpy(), ".", color=color, ms=3, alpha=0.5)
        found, label = _over(values), None if method in shown else style.LABELS[method]
        error = [[found.value - found.low], [found.high - found.value]]
        marker = "D" if method == ASCENT else "o"
        look: dict[str, Any] = {"fmt": marker, "capsize": 3, "mec": "black", "mew": 0.5}
        axes.errorbar(x, found.value, error, color=color, label=label, **look)
        shown.add(method)
    axes.axhline(0, color="grey", lw=0.8, zorder=0)
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)


def _forest(axes: Axes, summary: pd.DataFrame, levels: list[float]) -> None:
    """Draw NPO's excess over SimNPO with each part of the weights, a row per retain weight."""
    for row in summary.to_dict("records"):
        at = PARTS.index(row["part"])
        y = levels.index(row["level"]) + 0.19 * (at - (len(PARTS) - 1) / 2)
        sure, color = row["low"] > 0 or row["high"] < 0, PART_COLORS[row["part"]]
        look: dict[str, Any] = {"fmt": PART_MARKERS[row["part"]], "color": color, "capsize": 3}
        look["mfc"] = color if sure else "white"
        error = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        names = {"own": "all weights", INTERACTION: INTERACTION}
        name = names.get(row["part"], f"{row['part']} alone")
        label = name if row["level"] == levels[0] else None
        axes.errorbar(row["value"], y, xerr=error, label=label, **look)
    axes.axvline(0, color="grey", lw=0.8, zorder=0)
    axes.set_yticks(range(len(levels)), [f"λ = {level:g}" for level in levels])
    axes.set_ylim(len(levels) - 0.5, -0.5)
