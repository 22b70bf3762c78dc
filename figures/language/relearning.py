"""How fast does the forgotten come back when a fifth of it is taught again? (Paper, Figure 6.)

A fifth of the forget set, its shortest answers (upper row) or random ones (lower row), is taught
again for three epochs at the learning rate of the unlearning, eight answers per update: ten updates
per epoch for 80 of the 400 answers of the default model. Bands: 95% intervals over three repeats,
which differ in the order of batches, and in the lower row also in the answers taught. Left:
Kolmogorov-Smirnov distance D between the truth ratios of all forget answers and the retrained
model's, and its p-value, forget quality. Middle and right: mean log-probability per token of the
answers taught, and of the others, which come back untaught. Grey: the retrained model taught the
same; it never knew the answers, and what it learns of the others is no return. Dotted: the model
before unlearning. Grey band: D between the retrained models of any two trainings, as far as these
have been made; a smaller one is no better. The runs are of one training, so that intervals say
nothing about another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import joblib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.cache import Context, cached
from figures.language import plane, runs, studies, sweeps
from figures.language.own_model import OwnModel
from figures.language.runs import Wanted, default_log, source_of
from figures.language.study import floors
from figures.statistics import mean_interval, smallest_distance
from llm.data.sources import read
from llm.data.tofu import Example
from llm.evaluation.attacks import Relearning, Which
from llm.evaluation.relearning import relearn, returns
from llm.logs.log import total_loss
from llm.models.answers import log_table, responses
from llm.models.language_model import LanguageModel
from llm.models.small_authors import build, folder_of, sets
from llm.models.source import load, load_model
from llm.scoring.limits import MAX_LENGTH
from llm.sweeps.parallel import several
from llm.training.loop import Optimization
from llm.unlearning.runs import MODEL, Run
from markov.errors import require
from markov.files import storage
from markov.files.storage import Location
from markov.objectives import method_name

# 80 of the 400 answers of the default model are taught: ten updates per epoch
EPOCHS, BATCH, SHARE = 3, 8, 0.2
REPEATS, QUICK_REPEATS = 3, 2
RETRAINED = "retrained"
QUANTITIES = {
    "ks_statistic": "D to the retrained model",
    "relearned_logp": "log π / |y| of the answers taught, nats",
    "other_logp": "log π / |y| of the other answers, nats",
}
ROWS = {"shortest": "the shortest {:.0%} taught again", "random": "a random {:.0%} taught again"}
READINGS = (1.0, 0.05, 1e-3, 1e-6, 1e-12, 1e-24)  # p-values to mark beside D


class Attack(NamedTuple):
    """A model that is taught again: where it lies, what made it, and a run.

    Its answers are compared with the logs of the run.
    """

    model: str
    place: str
    made: Any
    run: Run


def data(context: Context) -> pd.DataFrame:
    """Return what comes back of the forget set of the user's runs, or of the four corners.

    The corners are on the default model; a study has attacked its models already. Columns
    `source`, `kind`, `which` (shortest or random), `share`, `model` (a method, or `RETRAINED`: the
    retrained model itself, taught the same), `method`, and by kind:

        attack     `repeat`, `epoch`, what `llm.evaluation.relearning.returns` has, and the
                   `original_logp` of the answers that are not taught, before unlearning (nats per
                   token)
        estimate   `epoch`, `quantity`, its mean `value` over repeats, with a 95% interval `low`,
                   `high` and `count`
        reading    `p` and the smallest `distance` D that has at most this p-value, for as many
                   `examples`
        floor      `value`, D between two retrained models (see `floors_known`)

    Raises `InvalidInput` for runs without a retrained model, without their model, or on another
    forget set.
    """
    if context.study is not None:
        return _with_floors(context, frame_of_attacks(*studies.relearned(context.study)))
    found = _runs(context)
    attacks = _attacks(context, found)
    count = QUICK_REPEATS if context.scale.quick else REPEATS
    wanted = [(one, settings) for one in attacks for settings in _settings(one.run, count)]
    key = [
        {"made": one.made, "model": one.model, "relearning": settings} for one, settings in wanted
    ]

    def compute() -> pd.DataFrame:
        quiet = replace(context, progress=False)
        jobs = [joblib.delayed(_attacked)(quiet, one, settings) for one, settings in wanted]
        several("relearning", jobs, n_jobs=context.n_jobs, progress=context.progress)
        kept = replace(quiet, since=0.0)
        frame = pd.concat(
            [_attacked(kept, one, settings) for one, settings in wanted], ignore_index=True
        )
        return frame_of_attacks(frame, attacks[0].run.answers["index"].nunique())

    return _with_floors(context, cached(context, __name__, key, compute))


def _with_floors(context: Context, frame: pd.DataFrame) -> pd.DataFrame:
    floor = floors_known(context)
    found = pd.concat([frame, floor], ignore_index=True) if len(floor) else frame
    return found.assign(source=source_of(context))


def floors_known(context: Context) -> pd.DataFrame:
    """Return D between any two retrained models of the study, as `figures.language.study.floors`.

    Of the default model there are none unless its study has been made already.
    """
    place = context.study
    if place is None and _of_default(context):
        ours = sweeps.default_folder(context.scale)
        place = ours if (ours / studies.MEASURES).is_file() else None
    return pd.DataFrame() if place is None else floors(place)


def frame_of_attacks(attacks: pd.DataFrame, examples: int) -> pd.DataFrame:
    """Return the rows of `data` from those of kind attack, of a forget set of so many examples."""
    rows = []
    known = ["which", "share", "model", "method", "epoch"]
    for place, own in attacks.groupby(known, sort=False, dropna=False):
        for quantity in (*QUANTITIES, "original_logp"):
            estimate = mean_interval(own[quantity].to_numpy(dtype=float))
            rows.append(
                {**dict(zip(known, place, strict=True)), "quantity": quantity, **estimate._asdict()}
            )
    readings = pd.DataFrame({"p": READINGS, "examples": examples})
    readings["distance"] = [smallest_distance(p, examples) for p in READINGS]
    parts = {"attack": attacks, "estimate": pd.DataFrame(rows), "reading": readings.dropna()}
    return pd.concat([part.assign(kind=kind) for kind, part in parts.items()], ignore_index=True)


def _runs(context: Context) -> list[Run]:
    """Return the runs whose models are attacked.

    On the default model they are those that `llm_tradeoff` has made, where it has been drawn: they
    are trained a second time by nobody. What the retrained model says is added to them.
    """
    kept = sweeps.corner_runs(context) if _of_default(context) else None
    if kept is None:
        return runs.runs(context, ends=True)
    log = default_log(context, RETRAINED)
    known = {RETRAINED: storage.fingerprint(-total_loss(log))}  # as a run has it
    answers = log_table(log).assign(model=RETRAINED)
    return [
        run._replace(
            answers=pd.concat([run.answers, answers], ignore_index=True),
            settings={**run.settings, **known},
        )
        for run in kept
    ]


def _of_default(context: Context) -> bool:
    return not context.runs and context.own is None


def _made(context: Context, run: Run) -> str:
    """Return what stands for all that the model of a run follows from.

    Of the default model it is the same for a run that records more or less along the way.
    """
    if _of_default(context):
        return runs.folder_for(context, Wanted(run.objective, ends=True)).name
    return run.epochs.attrs[storage.KEY]["fingerprint"]


def _settings(run: Run, repeats: int) -> list[Relearning]:
    """Return every attack on one model, at the learning rate of the run.

    There are several updates per epoch.
    """
    made = run.settings["unlearning"]["optimization"]
    every = Optimization(
        epochs=EPOCHS,
        batch=BATCH,
        learning_rate=made["learning_rate"],
        warmup_epochs=0,
        budget=made["budget"],
        precision=made["precision"],
        gradient_checkpointing=made["gradient_checkpointing"],
    )
    return [
        Relearning(which=which, share=SHARE, seed=seed, optimization=every)
        for which in get_args(Which)
        for seed in range(repeats)
    ]


def _attacks(context: Context, found: Sequence[Run]) -> list[Attack]:
    """Return the models to attack: that of every run, and the retrained one."""
    forget = _forget(context)
    for run in found:
        folder = str(run.folder)
        require(
            RETRAINED in run.logs,
            "run",
            folder,
            "one made with --retrained MODEL, to tell what is forgotten",
        )
        require((run.folder / MODEL).is_dir(), "run", folder, "one that has kept its model")
        if context.runs:
            tokens = [one.tokens for one in responses(_loaded(context, run.folder / MODEL), forget)]
            allowed = (
                "one on the forget set of the default model; `python -m llm relearn` attacks "
                "any other"
            )
            require(storage.fingerprint(tokens) == run.settings["forget"], "run", folder, allowed)
    names = [method_name(run.objective) for run in found]
    if len(set(names)) < len(names):
        names = [f"{name} ({run.folder.name})" for name, run in zip(names, found, strict=True)]
    attacks = [
        Attack(name, str(run.folder / MODEL), _made(context, run), run)
        for name, run in zip(names, found, strict=True)
    ]
    first = found[0]
    chosen = _own(context)
    own = chosen.retrained if chosen else None
    models = runs.study(context.scale).models
    if own is None:
        build(models, RETRAINED, progress=context.progress)  # where it is no longer in the cache
    place = own or str(folder_of(models, RETRAINED))
    return [Attack(RETRAINED, place, first.settings[RETRAINED], first), *attacks]


def _forget(context: Context) -> Sequence[Example]:
    own = _own(context)
    return read(own.data) if own else sets(runs.study(context.scale).models).forget


def _own(context: Context) -> OwnModel | None:
    return None if context.runs else context.own


def _loaded(context: Context, place: Location) -> LanguageModel:
    own = _own(context)
    return load_model(own.options(), str(place)) if own else load(place)


def _attacked(context: Context, attack: Attack, settings: Relearning) -> pd.DataFrame:
    """Return what one attack brings back, from the cache or found now."""
    run = attack.run

    def compute() -> pd.DataFrame:
        logs = run.logs
        own = _own(context)
        longest = own.max_length if own else MAX_LENGTH
        language = _loaded(context, attack.place)
        table = relearn(
            language, _forget(context), settings, max_length=longest, progress=context.progress
        )
        taught = table.loc[table["relearned"], "index"]
        before = pd.Series(-logs["original"].gold.average, logs["original"].index)
        frame = returns(table, logs[RETRAINED])
        return frame.assign(original_logp=before[~before.index.isin(taught)].mean())

    known = {"made": attack.made, "forget": run.settings["forget"], "relearning": settings}
    frame = cached(context, __name__, known, compute)
    method = None if attack.model == RETRAINED else method_name(run.objective)
    facts = {
        "which": settings.which,
        "share": settings.share,
        "model": attack.model,
        "method": method,
    }
    return frame.assign(**facts, repeat=settings.seed)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    found = frame[frame["kind"] == "estimate"]
    figure, panels = style.grid_figure(2, 3, 10, 6.2, sharex=True, sharey="col")
    for line, which in zip(panels, ROWS, strict=True):
        rows = found[found["which"] == which]
        for axes, quantity in zip(line, QUANTITIES, strict=True):
            _curves(axes, rows[rows["quantity"] == quantity])
            axes.set_ylabel(QUANTITIES[quantity])
            # by the curves: two repeats have intervals that leave no room for them
            if quantity != "ks_statistic":
                values = found.loc[found["quantity"] == quantity, "value"]
                axes.set_ylim(values.min() - 0.3, min(0.1, values.max() + 0.3))
        level = rows[rows["quantity"] == "original_logp"]["value"].mean()
        line[2].set_ylim(top=0)
        line[2].axhline(level, color="black", lw=1, ls=":")
        _p_values(line[0], frame[frame["kind"] == "reading"])
        plane.floor(line[0], frame)
        line[0].set_title(ROWS[which].format(rows["share"].iloc[0]), loc="left", fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("epoch of relearning")
        axes.set_xticks(sorted(found["epoch"].unique()))
    figure.get_layout_engine().set(w_pad=0.1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    handles, labels = panels[0][0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="black", lw=1, ls=":"))
    figure.legend(handles, [*labels, "before unlearning"], loc="outside upper center", ncols=3)
    return figure


def _curves(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw a curve per model, with the interval over repeats."""
    for model, own in rows.groupby("model", sort=False):
        method = str(own["method"].iloc[0])
        color, ls = style.COLORS.get(method, "0.5"), "--" if model == RETRAINED else "-"
        label = str(model).replace(method, style.LABELS.get(method, method))
        label = "retrained, taught the same" if model == RETRAINED else label
        axes.plot(own["epoch"], own["value"], marker="o", ms=3, color=color, ls=ls, label=label)
        axes.fill_between(own["epoch"], own["low"], own["high"], color=color, alpha=0.15, lw=0)


def _p_values(axes: Axes, readings: pd.DataFrame) -> None:
    """Write what a D means as a p-value on the right-hand side."""
    axes.set_ylim(0, 1)
    beside = axes.twinx()
    beside.set_ylim(0, 1)
    beside.spines["right"].set_visible(True)
    beside.set_yticks(
        readings["distance"], [f"{p:.0e}" if p < 1e-3 else f"{p:g}" for p in readings["p"]]
    )
    beside.set_ylabel("its p-value: forget quality")
