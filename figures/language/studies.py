"""What a study's folder holds for figures: models, runs, logs and tables, a set for each seed.

`llm.jobs.studying` says how the folder is laid out. Nothing is trained here, and nothing is written
to the folder.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.language import plane
from figures.language.sources import Models, models
from figures.statistics import mean_interval
from llm.data.sources import PREFIX, read
from llm.data.tofu import Example
from llm.evaluation.attacks import Relearning
from llm.evaluation.folders import COLUMNS
from llm.evaluation.gate import FAILS, INCONCLUSIVE, PASSES
from llm.jobs.studying import OVER
from llm.logs.log import EvaluationLog
from llm.logs.reading import OPEN_UNLEARNING, read_log
from llm.logs.summaries import over_seeds
from llm.models.names import made
from llm.sweeps.along import with_ends
from llm.sweeps.sweep import in_a_path
from llm.unlearning.epoch import NAN
from llm.unlearning.runs import EPOCHS, MODEL, Run, read_run
from markov.errors import require
from markov.files import inputs, storage
from markov.objectives import CORNERS, method_name

MEASURES, ATTACKS = "measures.parquet", "attacks.parquet"
NAME, SEEDS, GATE = "study", "seeds", "gate"  # columns of a frame that shows a study
GATE_WORDS = {FAILS: "was refused", INCONCLUSIVE: "is inconclusive"}
UNDRAWN = ("difference", "gate", "other")  # kinds of rows for what is told of a study
CHARACTER, LINE = 0.055, 0.14  # inches that the small print below a figure takes
P_VALUES = ("p", "forget_quality")
# What two methods are compared in: task and measure.
DIFFERING = (("forget", "ks_statistic"), ("all", "model_utility"), ("retain", "probability"))
CORNER = re.compile(rf"({'|'.join(CORNERS)})_\d.*_seed-?\d+")  # the folder of a corner's run


def check(place: Path | None) -> Path:
    """Return the folder of a finished study; raise `InvalidInput` for any other."""
    allowed = "a folder that `python -m llm study` wrote and finished"
    known = place is not None and inputs.is_file(place / MEASURES)
    require(known, "study", place and str(place), allowed)
    assert place is not None
    return place


def table_of(place: Path) -> pd.DataFrame:
    """Return all measures of a study's models and seeds; raise `InvalidInput` for no study."""
    return _read(check(place) / MEASURES)


def attacks_of(place: Path) -> pd.DataFrame:
    """Return what came back of the attacked models, by seed, attack, repeat and epoch."""
    return _read(check(place) / ATTACKS)


def _read(path: Path) -> pd.DataFrame:
    table = storage.read_table(path)
    table.attrs = {}  # pandas would copy the provenance with every part that is taken of the table
    return table


def seeds_of(place: Path) -> list[Path]:
    """Return the folder of each seed, in the order in which the study was asked for them."""
    return [place / f"seed{seed}" for seed in table_of(place)["seed"].unique()]


def runs_of(place: Path) -> tuple[Path, ...]:
    """Return the folders of a study's runs, of all seeds."""
    return tuple(sorted(path.parent for path in place.glob(f"seed*/sweep/*/{EPOCHS}")))


def corners(place: Path) -> list[list[Run]]:
    """Return the runs of the four corners, a list for each seed, in the same order.

    Left out is a run that diverged at once, and so has no examples, in any of the seeds.
    """
    found: list[dict[str, Run]] = []
    for seed in seeds_of(place):
        folders = [one for one in runs_of(place) if one.parent.parent == seed]
        known = [one for one in folders if CORNER.fullmatch(one.name)]
        runs = {one.name.rpartition("_seed")[0]: read_run(one) for one in known}
        found.append({name: run for name, run in runs.items() if len(run.examples)})
    every = [name for name in found[0] if all(name in own for own in found)]
    return [[own[name] for name in every] for own in found]


def measures_of(place: Path, methods: Collection[str]) -> pd.DataFrame:
    """Return the measures of some methods, of the original model and of the retrained one.

    Of several seeds they are means with intervals over them (`llm.logs.summaries.over_seeds`).
    """
    table = table_of(place)
    kept = table[table["model"].map(plane.method_of).isin({*methods, *plane.BASELINES})]
    return means(kept) if kept["seed"].nunique() > 1 else kept.reset_index(drop=True)


def differences_of(place: Path, methods: Collection[str], other: str) -> pd.DataFrame:
    """Return by how much some methods lie above another one, with intervals over seeds.

    A difference is taken within each seed, since both methods start from one model there. The
    columns are `model`, `other`, `task`, `measure`, `value`, `low`, `high` and `seeds`, and the
    measures those of `DIFFERING`. There are no rows for a single seed, or without the other method.
    """
    table = table_of(place)
    key = ["method", "task", "measure", "seed"]
    table = table.assign(method=table["model"].map(plane.method_of)).drop_duplicates(key)
    values, rows = table.set_index(key)["value"].sort_index(), []
    known = set(table["method"]) if table["seed"].nunique() > 1 else set()
    for method in [one for one in methods if one != other and {one, other} <= known]:
        for task, measure in DIFFERING:
            apart = values[method, task, measure] - values[other, task, measure]
            rows.append((method, other, task, measure, *mean_interval(apart.to_numpy())))
    return pd.DataFrame(
        rows, columns=["model", "other", "task", "measure", "value", "low", "high", "seeds"]
    )


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Return the means over seeds of a table of measures, with the models' own names."""
    found = over_seeds(table)
    return found.assign(model=found["model"].str.replace(r" x\d+$", "", regex=True))


def retrained_of(place: Path) -> list[Path]:
    """Return the folders of all seeds that have a retrained model that was evaluated."""
    found = place.glob(f"seed*/sweep/retrained/{OPEN_UNLEARNING}")
    return sorted(file.parents[2] for file in found)


def log_of(seed: Path, kind: str = "retrained") -> EvaluationLog:
    """Return what the retrained model of a seed, or its original, says of the forget data."""
    return read_log(seed / "sweep" / kind / OPEN_UNLEARNING, "forget")


def along(place: Path) -> pd.DataFrame:
    """Return what was recorded along the runs of the four corners, with the measures of both ends.

    See `llm.sweeps.along.with_ends`. Of several seeds the numbers are means (see `over`), as far as
    all of them have them, and the status is that of the first. Of a study that measured at the ends
    alone there are no rows.
    """
    table, numbers, known = table_of(place), [*COLUMNS, "forget_loss", "retain_loss"], []
    for number, runs in measured_along(place, table).items():
        mine = table[table["seed"] == number]
        every = [with_ends(run.epochs, mine, word, number) for word, run in runs.items()]
        known.append(pd.concat(every, ignore_index=True)[["model", "epoch", *numbers, "status"]])
    if not known:
        return pd.DataFrame(columns=["model", *COLUMNS])
    # Of what a seed lacks, since its run has ended or is not finite, there is no mean of all.
    key = ["model", "epoch"]
    sound = pd.concat(known).groupby(key)[numbers].count() == len(known)
    frames = []
    for frame in known:
        at = sound.loc[pd.MultiIndex.from_frame(frame[key])].to_numpy()
        frame = frame.assign(**frame[numbers].where(at))
        frames.append(frame[at.any(axis=1)].reset_index(drop=True))
    return over(frames, key, {name: (f"{name}_low", f"{name}_high") for name in numbers})


def measured_along(place: Path, table: pd.DataFrame) -> dict[int, dict[str, Run]]:
    """Return the corners' runs that were measured along their epochs, by seed and model.

    They are those of the models in the table; a seed that has none is left out.
    """
    found = {}
    for seed, runs in zip(seeds_of(place), corners(place), strict=True):
        names = {in_a_path(word): str(word) for word in table["model"].unique()}
        own = {
            names[name]: run
            for run in runs
            if (name := run.folder.name.rpartition("_seed")[0]) in names
            and "model_utility" in run.epochs
        }
        if own:
            found[int(seed.name.removeprefix("seed"))] = own
    return found


def logs_of(place: Path, source: str) -> list[Models]:
    """Return the logs of each seed: of its two models, and of what the four corners leave.

    A model is called after its method, and after its run where a method has several.
    """
    found = []
    for seed, runs in zip(seeds_of(place), corners(place), strict=True):
        evaluated = [one for one in runs if (one.folder / OPEN_UNLEARNING).exists()]
        names = [method_name(one.objective) for one in evaluated]
        unlearned = {
            name if names.count(name) == 1 else one.folder.name.rpartition("_seed")[0]: read_log(
                one.folder / OPEN_UNLEARNING, "forget"
            )
            for name, one in zip(names, evaluated, strict=True)
        }
        found.append(models(source, log_of(seed, "original"), log_of(seed), unlearned))
    return found


def relearned(place: Path) -> tuple[pd.DataFrame, int]:
    """Return what each attack brought back, for the figure of relearning.

    Also returned is how many forget answers there are. The rows are those of kind attack of
    `figures.language.relearning`. Of several seeds a repeat is one of them: the mean over what was
    repeated with it.
    """
    table, settings = attacks_of(place), settings_of(place)
    share, frames, count = float(settings["share"]), [], 0
    names = table["model"].map(plane.method_of)
    repeated = table.assign(name=names).groupby("name")["model"].transform("nunique") > 1
    for seed in seeds_of(place):
        log = log_of(seed, "original")
        own = table[table["seed"] == int(seed.name.removeprefix("seed"))]
        lengths, before = np.asarray(log.gold.length).astype(int), -np.asarray(log.gold.average)
        count = len(lengths)
        for (which, repeat), part in own.groupby(["which", "repeat"], sort=False):
            attack = Relearning(which=which, share=share, seed=int(repeat))  # pyright: ignore[reportArgumentType]
            others = np.delete(before, attack.chosen(lengths.tolist()))
            frames.append(part.assign(original_logp=others.mean()))
    found = pd.concat(frames, ignore_index=True).assign(share=share)
    if found["seed"].nunique() > 1:
        known = ["which", "share", "model", "seed", "epoch"]
        numbers = found.drop(columns="repeat").groupby(known, sort=False).mean().reset_index()
        found = numbers.assign(repeat=numbers["seed"])
    method = found["model"].map(plane.method_of)
    several = found["model"].isin(table.loc[repeated, "model"])
    named = found["model"].where(several, method)
    return found.assign(model=named, method=method.where(method != "retrained")), count


def settings_of(place: Path) -> Mapping[str, Any]:
    """Return the settings of a study (see `llm.jobs.study_settings.Study`)."""
    return storage.read_table(check(place) / MEASURES).attrs[storage.KEY]["settings"]


def name_of(place: Path) -> str:
    """Return which model learnt and forgot what, for titles."""
    settings = settings_of(place)
    count = settings["forget_answers"]
    part = f" (last {count} answers)" if count else ""
    model = "default model" if made(settings["model"]) else Path(settings["model"]).name
    data = Path(settings["data"]).stem.removeprefix(f"{PREFIX}:")
    return f"{model}, {data}{part}"


def forget_of(place: Path) -> tuple[Example, ...]:
    """Return the examples that are forgotten: the part of the data that the study took, or all."""
    parts = (place / "data").glob("forget*.json")
    own = [path for path in parts if not path.stem.endswith("_perturbed")]
    return tuple(read(str(own[0]) if own else settings_of(place)["data"]))


def saved_models(run: Run) -> dict[int, Path]:
    """Return the saved models of a study's run, by the epoch after which they are what it made.

    That is the original one, at 0, and the last one of a run whose model is kept.
    """
    found = {0: run.folder.parents[1] / "original" / MODEL}
    if (run.folder / MODEL).is_dir() and run.epochs["status"].iloc[-1] != NAN:
        found[int(run.examples["epoch"].max())] = run.folder / MODEL
    return found


def over(
    frames: Sequence[pd.DataFrame], keys: Sequence[str], bounds: Mapping[str, tuple[str, str]]
) -> pd.DataFrame:
    """Return the first of several frames, one for each seed, with means in place of its numbers.

    `bounds` maps the column of a number to those of the ends of its interval, which is Student's
    over seeds; of p-values it is the median with the least and the largest. Rows are matched by
    `keys`. The frame of a single seed stays as it is.
    """
    frame = frames[0]
    if len(frames) == 1:
        return frame
    every = pd.concat([one[[*keys, *bounds]] for one in frames], ignore_index=True)
    for quantity, (low, high) in bounds.items():
        rows = []
        known = every[every[quantity].notna()]
        for place, own in known.groupby(list(keys), dropna=False, sort=False):
            values = own[quantity].to_numpy(dtype=float)
            ends = mean_interval(values)[:3]
            if quantity in P_VALUES:
                ends = (float(np.median(values)), values.min(), values.max())
            place = place if isinstance(place, tuple) else (place,)
            rows.append((*place, *ends))
        found = pd.DataFrame(rows, columns=[*keys, "mean", "from", "to"])
        beside = frame[list(keys)].merge(found, on=list(keys), how="left").set_index(frame.index)
        there = frame[quantity].notna()
        frame = frame.assign(**{name: frame.get(name, np.nan) for name in (low, high)})
        for name, part in ((quantity, "mean"), (low, "from"), (high, "to")):
            frame[name] = frame[name].where(~there, beside[part])
    return frame


def lacking(place: Path) -> dict[str, str]:
    """Return what the folder of a study does not hold for figures, and why, by its name.

    The names are those of `figures.catalogue.Entry.study`.
    """
    table, attacks = table_of(place), attacks_of(place)
    methods = table[~table["model"].isin(list(plane.BASELINES))]
    methods = methods.assign(method=methods["model"].map(plane.method_of))
    settings = methods.drop_duplicates("model")
    own = settings[settings["method"].isin(list(CORNERS))]
    found = {}
    if not {"model_utility", "ks_statistic"} <= set(table["measure"]):
        found["measures"] = "its data do not tell D and model utility"
    if methods.empty:
        found["measures"] = "it has no method"
    if not corners(place)[0]:
        found["corners"] = "it has no run of NPO, SimNPO or a corner between them"
    if not measured_along(place, table):
        ends = "its runs were measured at their ends only: see --measured-epochs"
        found["along"] = found.get("corners", ends)
    if log_of(seeds_of(place)[0]).perturbed is None:
        found["ratios"] = "its data have no wrong answers to compare right ones with"
    if not (place / OVER).is_file():
        found["gate"] = "it has one seed, or its data do not tell D and model utility"
    if "ks_statistic" not in attacks or set(attacks["model"]) <= {"retrained"}:
        found["attacks"] = "it has no attacked method, or no D of one"
    if "measures" in found or not own.groupby("method")["model"].nunique().gt(1).any():
        found["settings"] = "its methods have each corner at one setting only"
    simnpo = own[own["method"] == "simnpo"]
    if "measures" in found or simnpo.get("beta", simnpo["model"]).nunique() < 2:
        found["grid"] = "its methods have SimNPO at less than two betas"
    return found


def signed(place: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of a figure with columns that name the study and count its seeds.

    Where the gate did not show that its models are fit to judge utility by, a column says so.
    """
    known: dict[str, Any] = {NAME: name_of(place), SEEDS: len(seeds_of(place))}
    gate = gate_of(place)
    own = gate.loc[gate["check"] == "utility apart", "verdict"]
    if not own.isin([PASSES]).all():
        known[GATE] = FAILS if (own == FAILS).any() else INCONCLUSIVE
    return frame.assign(**known)


def gate_of(place: Path) -> pd.DataFrame:
    """Return the checks of a study's gate (see `llm.evaluation.gate`); none of an older study."""
    found = _read(place / "gate.parquet") if (place / "gate.parquet").exists() else pd.DataFrame()
    return found if "verdict" in found else pd.DataFrame(columns=["check", "verdict"])


def note(figure: Figure, frame: pd.DataFrame) -> None:
    """Say below a figure of a study whose it is, and what its intervals are over."""
    count, name = int(frame[SEEDS].max()), frame[NAME].iloc[0]
    if count == 1 and _has_intervals(frame):
        text = "one seed: intervals are over answers, and another training could lie outside"
    elif count == 1:
        text = "one seed, without intervals: another training would give other numbers"
    else:
        text = f"{count} seeds: numbers are means, intervals 95% over seeds"
        text += "; of p-values median, least and largest" if _shows_p_values(frame) else ""
        text += "; answers are those of the first seed" if "index" in frame else ""
    if GATE in frame and "model_utility" in {*frame, *frame.get("measure", ())}:
        verdict = frame[GATE].iloc[0]
        text += f"; gate: whether the first two models are alike in utility {GATE_WORDS[verdict]}"
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(f"{name}; {text}", int(width / CHARACTER))
    room = (0.05 + LINE * len(lines)) / height
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, room, 1, 1 - room))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for legend in figure.legends:  # which would lie on it: they are placed beside the panels
        legend.set_bbox_to_anchor((0, room, 1, 1 - room), figure.transFigure)
    for text in figure.texts:  # such as a hint below the panels
        x, y = text.get_position()
        text.set_position((x, y + room if y < room else y))
    figure.text(0.99, 0.04 / height, "\n".join(lines), fontsize=7, color="0.4", ha="right")


def _has_intervals(frame: pd.DataFrame) -> bool:
    """Return whether any of the columns low and high, of whatever measure, are apart."""
    drawn = frame[~frame["kind"].isin(UNDRAWN)] if "kind" in frame else frame
    bounds = {column: f"{column[:-3]}high" for column in map(str, drawn) if column.endswith("low")}
    return any((drawn[high] > drawn[low]).any() for low, high in bounds.items() if high in drawn)


def _shows_p_values(frame: pd.DataFrame) -> bool:
    return "p_low" in frame or ("measure" in frame and "forget_quality" in set(frame["measure"]))
