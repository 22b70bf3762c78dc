"""Does the effort go where it is needed? At the start of unlearning a language model it does not.

Each row is a forget set, known from two evaluation logs alone: log-probabilities of its answers
under the model before unlearning, which is the reference too, and under the model retrained without
them. Needed is how far an answer has to fall, log pi_ref - log pi_retrained. Left: the weight that
each corner gives an answer, relative to the mean, against what the answer needs; dotted: in
proportion to need. Under NPO every answer weighs 1, whatever it needs. Where the length is
normalised the weight goes as 1/|y|, and long answers need most, so that the neediest get least: on
Llama-2-7B the rank correlation is -0.85, that of length and need turned around. Without the
reference what is known least weighs less, but where all is known by heart weights hardly differ.
Middle: share of the weight that goes to the neediest answers, cumulated: on the diagonal it is in
proportion to need, below it the neediest get less than their share. Right: the same for what an
answer needs per token and for weight x |y|, the push on its log-probability per token. So measured
the length-normalised corners push all answers nearly alike and NPO the long ones more, which on
Llama-2-7B need a little more per token too: its area is 0.44 beside SimNPO's 0.40. The area is 1/2
on the diagonal; intervals are 95%, over answers. Numbers of Llama-2-7B are those of its logs in
locuslab/tofu, beside the retain90 model of OPTML-Group/Unlearn-Simple.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import runs, sources, studies, sweeps
from figures.language.sources import Logs
from figures.statistics import interval_text
from llm.diagnostics.allocation import allocation, bias, spearman
from llm.diagnostics.weights import COLUMNS, WEIGHT
from llm.intervals import Estimate, bootstrap
from markov.errors import require
from markov.objectives import Objective, method_name

CURVES = {"weight": "total", "push": "per_token"}  # by effort: the need that it answers to
NEED = {"total": "needed movement", "per_token": "needed movement per token"}
EFFORT = {"weight": "weight", "push": "weight × |y|"}
# Corners that differ in the reference alone nearly coincide at the start: those with the reference
# are drawn broad, and below.
BROAD = ("npo", "length_normalized_npo")
OTHER = "#CC79A7"  # of objectives between the corners
SMALL: dict[str, Any] = {
    "fontsize": 7.5,
    "title_fontsize": 7.5,
    "alignment": "left",
    "handlelength": 1.2,
}


def data(context: Context) -> pd.DataFrame:
    """Return the frame of the default model or the user's own run, and that of logs.

    The logs are the user's, or the public ones if at hand.
    """
    logs, chosen = sources.chosen(sweeps.for_logs(context)), sources.objectives()
    of_logs = [frame_of_logs(logs)] if logs else []
    if context.study is not None:
        return pd.concat([_frame_of_study(context, context.study), *of_logs], ignore_index=True)
    table = runs.start_of(runs.runs(context)[0], chosen)
    return pd.concat(
        [frame_of_table(runs.source_of(context), table, chosen), *of_logs], ignore_index=True
    )


def _frame_of_study(context: Context, place: Path) -> pd.DataFrame:
    """Return the frame of a study, with the corners at the settings that it has of them.

    Of several seeds the statistics are means over them, and all else is of the first.
    """
    source, known = runs.source_of(context), [run.objective for run in runs.runs(context)]
    chosen = {_word(one): one for one in known}
    tables = [sources.weights_at_the_start(one, chosen) for one in studies.logs_of(place, source)]
    seeds = [frame_of_table(source, table, chosen) for table in tables]
    bounds = {name: (f"{name}_low", f"{name}_high") for name in ("spearman", "area", "misplaced")}
    return studies.over(seeds, ["objective", "effort", "need"], bounds)


def _word(objective: Objective) -> str:
    return f"{method_name(objective)}:{float(objective.beta):g}:{float(objective.gamma):g}"


def frame_of_logs(
    logs: Iterable[Logs], objectives: Mapping[str, Objective] | None = None
) -> pd.DataFrame:
    """Return the frame of any logs, with a row of panels for each.

    If `objectives` are not given they are the paper's for forget10.
    """
    chosen = sources.objectives() if objectives is None else objectives
    found = sources.read_all(logs)
    tables = [(one.source, sources.weights_at_the_start(one, chosen)) for one in found]
    return pd.concat(
        [frame_of_table(source, table, chosen) for source, table in tables], ignore_index=True
    )


def frame_of_table(
    source: str,
    table: pd.DataFrame,
    objectives: Mapping[str, Objective],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the rows of one source, from a table of `llm.diagnostics.weights.diagnose`.

    The table has the weights of `objectives`. Columns `source`, `kind`, `objective`, `method`,
    `beta`, `gamma`, and by kind:

        example     `index`, `length`, `ref`, `retrained`, `needed`, `needed_per_token`, `weight`,
                    `push` (weight x length), `relative` (weight / mean weight), `proportional`
                    (need / mean need, none below 0)
        curve       `effort` (weight, push), `need` (total, per_token), `needed_share`,
                    `effort_share`
        statistic   `effort`, `need`, `count`, and with bounds `_low` and `_high`: `spearman` of
                    effort and need, `area`, `misplaced`; `unneeded`. One more, of no objective:
                    effort `length`, need `total`
    """
    weighted = {
        column.removeprefix(WEIGHT) for column in table.columns if column.startswith(WEIGHT)
    }
    require(
        weighted == set(objectives),
        "objectives",
        sorted(objectives),
        f"those of the table: {sorted(weighted)}",
    )
    frames = [bias(table, resamples=resamples, seed=seed).assign(kind="statistic")]
    length, needed = (table[name].to_numpy(dtype=float) for name in ("length", "needed"))
    found = bootstrap(spearman, length, needed, resamples=resamples, seed=seed)
    row = {
        "spearman": found.value,
        "spearman_low": found.low,
        "spearman_high": found.high,
        "count": len(table),
    }
    frames.append(pd.DataFrame([{"kind": "statistic", "effort": "length", "need": "total", **row}]))
    for effort, need in CURVES.items():
        frames.append(
            allocation(table, effort, need).assign(kind="curve", effort=effort, need=need)
        )
    facts, proportional = (
        table[[name for name in table if name in COLUMNS]],
        _relative(np.maximum(needed, 0.0)),
    )
    for name in objectives:
        weight = table[WEIGHT + name].to_numpy(dtype=float)
        own = {
            "weight": weight,
            "push": weight * length,
            "relative": _relative(weight),
            "proportional": proportional,
        }
        frames.append(facts.assign(kind="example", objective=name, **own))
    known = [(method_name(one), float(one.beta), float(one.gamma)) for one in objectives.values()]
    settings = pd.DataFrame(
        known, index=pd.Index(objectives), columns=pd.Index(["method", "beta", "gamma"])
    )
    frame = (
        pd.concat(frames, ignore_index=True).assign(source=source).join(settings, on="objective")
    )
    first = ["source", "kind", "objective", *settings.columns]
    return frame[[*first, *(name for name in frame if name not in first)]]


def _relative(values: Float[np.ndarray, "examples"]) -> Float[np.ndarray, "examples"]:
    """Return values relative to their mean; nan where all are 0, as after a collapse."""
    return np.divide(
        values, values.mean(), out=np.full(values.shape, np.nan), where=values.mean() > 0
    )


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    shown = list(dict.fromkeys(frame["source"]))
    figure, panels = style.grid_figure(
        len(shown), 3, 14, 4.4 * len(shown), width_ratios=(1.3, 1, 1)
    )
    for row, source in zip(panels, shown, strict=True):
        own = frame[frame["source"] == source]
        found = own[own["kind"] == "statistic"]
        _against_need(row[0], own[own["kind"] == "example"], found[found["need"] == "total"])
        row[0].set_title(
            f"{source}: {found['count'].iloc[0]:.0f} answers",
            loc="left",
            fontsize=11,
            fontweight="bold",
        )
        for axes, (effort, need) in zip(row[1:], CURVES.items(), strict=True):
            chosen = (own["effort"] == effort) & (own["need"] == need)
            _curves(
                axes,
                own[chosen & (own["kind"] == "curve")],
                own[chosen & (own["kind"] == "statistic")],
            )
            axes.set(
                xlabel=f"share of {NEED[need]}, neediest first", ylabel=f"share of {EFFORT[effort]}"
            )
    if shown == [runs.DEFAULT]:
        sources.hint(figure)
    return figure


def _against_need(axes: Axes, examples: pd.DataFrame, found: pd.DataFrame) -> None:
    for objective, own in examples.groupby("objective", sort=False):
        method = own["method"].iloc[0]
        row = found[(found["objective"] == objective) & (found["effort"] == "weight")].iloc[0]
        color, label = (
            style.COLORS.get(method, OTHER),
            f"{_label(row)}: {_estimate(row, 'spearman')}",
        )
        look: dict[str, Any] = (
            {"ms": 5, "mfc": "none"} if method in BROAD else {"ms": 3, "mew": 0, "zorder": 3}
        )
        axes.plot(own["needed"], own["relative"], "o", color=color, label=label, alpha=0.7, **look)
    line = own.sort_values("needed")
    axes.plot(
        line["needed"],
        line["proportional"],
        ":",
        color="black",
        lw=1.2,
        label="in proportion to need: 1.00",
    )
    length = _estimate(found[found["effort"] == "length"].iloc[0], "spearman")
    title = f"rank correlation with needed movement\n(of |y| itself: {length})"
    axes.legend(
        title=title, loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", **SMALL
    )
    axes.set(
        xlabel=r"needed movement, $\log\pi_{ref} - \log\pi_{retrained}$, nats",
        ylabel="weight / mean weight",
    )
    # Room for the legend: the heaviest answers are short, and need little.
    axes.set_ylim(-0.1, 1.25 * examples["relative"].max())


def _curves(axes: Axes, curves: pd.DataFrame, found: pd.DataFrame) -> None:
    # otherwise beta tells them apart
    alone = found["method"].is_unique and found["method"].isin(list(style.LABELS)).all()
    for objective, own in curves.groupby("objective", sort=False):
        method, row = own["method"].iloc[0], found[found["objective"] == objective].iloc[0]
        look: dict[str, Any] = {"lw": 4.0} if method in BROAD else {"lw": 1.4, "zorder": 3}
        label = f"{style.LABELS[method] if alone else _label(row)}: {_estimate(row, 'area')}"
        axes.plot(
            own["needed_share"],
            own["effort_share"],
            color=style.COLORS.get(method, OTHER),
            label=label,
            **look,
        )
    axes.plot([0, 1], [0, 1], ":", color="black", lw=1.2, label="in proportion to need: 0.50")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(title="area under the curve", loc="upper left", **SMALL)


def _label(row: pd.Series) -> str:
    if row["method"] not in style.LABELS:
        return str(row["objective"])
    margin = f", γ = {row['gamma']:g}" if row["gamma"] else ""
    return f"{style.LABELS[row['method']]}, β = {row['beta']:g}{margin}"


def _estimate(row: pd.Series, name: str) -> str:
    if np.isnan(row[name]):
        return "none, a constant"
    return interval_text(
        Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row["count"]))
    )
