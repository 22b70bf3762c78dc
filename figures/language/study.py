"""A study of a language model: how near each method comes, whom it weighs, and what comes back.

Left: the statistic D of the test between the truth ratios of forget answers under a model and under
the retrained one, against model utility; upper right is better. With several seeds dots are seeds,
marks their means and bars 95% intervals over them; with one seed bars are intervals over examples,
and another training could lie outside of them. Dotted: D between the retrained models of two seeds;
a smaller one is no better. Middle: rank correlation of weight and length over the forget answers,
along the epochs of unlearning; equal weights, as NPO's before the first, have none. Right: mean
log-probability per token of the answers that a relearning attack does not teach. Grey: the
retrained model taught the same, which has nothing to remember. Lines in the middle and on the right
are seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures import style
from figures.cache import Context
from figures.language import plane, studies
from llm.diagnostics.allocation import spearman
from llm.evaluation.gate import floor
from llm.jobs.evaluating import read_tofu_logs
from llm.logs.comparing import differences
from llm.logs.reading import OPEN_UNLEARNING
from llm.sweeps.sweep import in_a_path
from llm.unlearning.runs import read_run
from llm.unlearning.unlearn import weights_by_epoch
from markov.objectives import CORNERS
from markov.preferences import Preference

LINES = {"shortest": "--", "random": "-"}  # which answers an attack teaches


def data(context: Context) -> pd.DataFrame:
    """Return what the figure draws of a study's folder (see `llm.jobs.studying`).

    The columns are `kind`, `model` (original, retrained, or a method in a word), `method`, `seed`,
    and by kind:

        seed       `measure`, `value`, `low`, `high` of one seed, the interval over examples
        mean       the same over seeds, where there are several
        floor      `value`, D between any two retrained models of the folder
        difference `other`, `measure`, `value`, `low`, `high`: by how much two of the corners differ
                   in one seed (see `llm.logs.comparing`); not drawn, for what is told of it
        gate       `check`, `value`, `low`, `high`, `allowed`, `verdict`; not drawn either
        other      `task`, `measure`, `value`, `low`, `high`: all other measures, not drawn either
        weight     `epoch` and `spearman`, of weight and length over the forget answers
        attack     `which`, `epoch` and `other_logp` (nats per token), the mean over repeats

    Raises `InvalidInput` without a folder, and for one that no finished study wrote.
    """
    place = studies.check(context.study)
    table = studies.table_of(place)
    kept = table[table["measure"].isin(plane.MEASURES)]
    parts = [kept.assign(kind="seed")]
    if kept["seed"].nunique() > 1:
        parts.append(studies.means(kept).assign(kind="mean"))
    parts += [
        floors(place),
        pd.DataFrame(correlations(place, table)).assign(kind="weight"),
        *(one.assign(kind="difference") for one in _differences(place, table)),
        studies.gate_of(place).assign(kind="gate"),
        table[~table["measure"].isin(plane.MEASURES)].assign(kind="other"),
    ]
    back, known = studies.attacks_of(place), ["model", "seed", "which", "epoch"]
    if len(back):
        parts.append(back.groupby(known, as_index=False)["other_logp"].mean().assign(kind="attack"))
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    # A study without attacks, or without weights, has the columns of both, and nothing in them.
    lacking = [name for name in (*known[2:], "other_logp", "spearman") if name not in frame]
    frame[lacking] = float("nan")
    return frame.assign(method=frame["model"].map(plane.method_of, na_action="ignore"))


def floors(place: Path) -> pd.DataFrame:
    """Return D between any two retrained models of a study's folder, as rows of kind floor.

    A method that comes as near has come as near as another training does.
    """
    logs = [studies.log_of(seed) for seed in studies.retrained_of(place)]
    lowest = floor(logs) if all(log.perturbed is not None for log in logs) else ()
    return pd.DataFrame({"kind": "floor", "value": lowest})


def correlations(place: Path, table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rank correlations of weight and length of every run that has weights."""
    wanted = set(zip(table["model"], table["seed"], strict=True))
    for folder in studies.runs_of(place):
        run = read_run(folder)
        seed = int(run.settings["unlearning"]["optimization"]["seed"])
        words = [word for word, own in wanted if own == seed and _is_of(folder, word)]
        # A pair of responses has two weights.
        if not words or not len(run.examples) or isinstance(run.forgetting, Preference):
            continue
        frame = weights_by_epoch(run.examples, {"own": run.objective})
        for epoch, own in frame.groupby("epoch"):
            length, weight = (own[name].to_numpy(dtype=float) for name in ("length", "weight_own"))
            # Rounded, since equal weights that differ in their last digit would get other ranks.
            found = float(spearman(length[None], np.round(weight, 12)[None])[0])
            yield {"model": words[0], "seed": seed, "epoch": int(str(epoch)), "spearman": found}


def _differences(place: Path, table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield by how much any two corners differ, for each seed, on the same questions."""
    known = table[table["model"].map(plane.method_of).isin(CORNERS)]
    for seed in studies.seeds_of(place):
        number = int(seed.name.removeprefix("seed"))
        words = known.loc[known["seed"] == number, "model"].unique()
        folders = (seed / "sweep").iterdir()
        logs = {
            str(word): read_tofu_logs(folder / OPEN_UNLEARNING)
            for word, folder in itertools.product(words, folders)
            if _is_of(folder, str(word)) and (folder / OPEN_UNLEARNING).exists()
        }
        retrained = studies.log_of(seed)
        told = None if retrained.perturbed is None else retrained
        yield differences(logs, told).assign(seed=number)


def _is_of(folder: Path, word: str) -> bool:
    """Return whether a folder is that of a method's run in a sweep."""
    return folder.name.rpartition("_seed")[0] == in_a_path(word)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, ((left, middle, right),) = style.grid_figure(1, 3, 12.5, 4.4)
    _plane(left, frame)
    for (method, _), own in frame[frame["kind"] == "weight"].groupby(["method", "seed"]):
        if own["spearman"].notna().any():
            middle.plot(own["epoch"], own["spearman"], ".-", lw=1, **_color(str(method)))
    middle.axhline(0, color="black", lw=0.6, zorder=0)
    middle.set(ylim=(-1.05, 1.05), xlabel="epoch of unlearning")
    middle.set_ylabel("rank correlation of weight and |y|")
    attacked = frame[frame["kind"] == "attack"]
    for (method, which, _), own in attacked.groupby(["method", "which", "seed"]):
        right.plot(own["epoch"], own["other_logp"], LINES[str(which)], lw=1, **_color(str(method)))
    if (attacked["model"] == "retrained").any():
        taught = {"label": "retrained, taught the same", **_color("retrained")}
        right.plot([], [], "-", lw=1, **taught)
    for which, line in LINES.items():
        right.plot([], [], line, color="black", lw=1, label=f"{which} answers taught")
    right.set(xlabel="epoch of the attack", ylabel="log π / |y| of the others, nats")
    right.legend()
    for axes in (middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    return figure


def _plane(axes: Axes, frame: pd.DataFrame) -> None:
    seeds, means = (frame[frame["kind"] == kind] for kind in ("seed", "mean"))
    plane.distance_axis(axes)
    if not {"model_utility", "ks_statistic"} <= set(seeds.get("measure", ())):
        axes.set_title("these data do not tell D and utility")
        return
    for _, row in plane.points(means if len(means) else seeds).iterrows():
        plane.mark(axes, row, "ks_statistic")
    if len(means):
        for _, own in seeds.groupby("seed"):
            for row in plane.points(own).to_dict("records"):
                look = {"ms": 3, "alpha": 0.6, **_color(str(row["method"]))}
                axes.plot(row["model_utility"], row["ks_statistic"], ".", **look)
    plane.floor(axes, frame)
    axes.set_xlim(left=-0.02)


def _color(method: str) -> dict[str, Any]:
    known = {"retrained": "#888888", "original": "black"}
    return {"color": style.COLORS.get(method) or known.get(method, "#555555")}
