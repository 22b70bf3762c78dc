"""Estimate how long a study takes: work that is counted, at the speed that this machine has now.

The work is counted from the tokens of the data and the settings (`llm.jobs.counting`), the speed is
measured with the real model in some seconds (`llm.models.speed`). What a study has finished in its
folder is left out, and so are the epochs of which it has the state. How long answers will be is not
known: `seconds` takes them to be as long as the true ones, `at_most` as long as is allowed. Not
counted are the gate, the tables, the figures, and models that are made here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import pandas as pd

from llm.arguments import checked_job
from llm.data.parts import Learnt, Part, part_of
from llm.data.refusals import with_refusals
from llm.data.sources import read
from llm.data.splits import MEASURED, retain_of, tofu_sets, with_wrong
from llm.data.tofu import Example
from llm.evaluation.attacks import Relearning
from llm.jobs import counting
from llm.jobs.relearning import finished_in
from llm.jobs.replicates import (
    KINDS,
    attacks_of,
    finished_attack,
    learning_of,
    lessons,
    sweep_of,
    unfinished,
    unlearning_rate,
)
from llm.jobs.settings import lora_of
from llm.jobs.studying import METHODS, Study, asked_for, part_asked
from llm.jobs.sweeping import LARGE, SMALL, runs_of
from llm.jobs.trained_here import is_trained_here
from llm.logs.measures import UTILITY_TASKS
from llm.logs.reading import OPEN_UNLEARNING
from llm.models.answers import encoded_columns, responses
from llm.models.language_model import LanguageModel
from llm.models.names import SMALL_BYTES, made
from llm.models.source import is_cached, load_model
from llm.models.speed import Speed, Work, measured
from llm.models.trained import EPOCHS, MODEL, STATE
from llm.scoring.limits import BUDGET, MAX_LENGTH, writing_budget
from llm.sweeps.sweep import PlannedRun
from llm.training.checkpointing import FILE
from llm.unlearning.epoch import NAN
from llm.unlearning.unlearn import Unlearning
from markov.console import duration
from markov.errors import InvalidInput, require
from markov.files import storage
from markov.files.storage import Location

# The parts of a study, and the setting that each is in proportion to.
SETTINGS = {
    "learn": "learning_epochs",
    "evaluate": "measured_answers",
    "unlearn": "epochs",
    "attack": "attack_epochs",
}
PARTS = tuple(SETTINGS)


class Remaining(NamedTuple):
    """A part of a study that is left: what is done to which model of a seed, and its work."""

    seed: int
    part: str
    model: str
    work: Work


@checked_job
def estimate(
    model: Location,
    data: Location = "tofu:forget05",
    *,
    out: Location,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    **options: Any,
) -> pd.DataFrame:
    """Return how long `llm.study` of the same arguments takes on this machine; write nothing.

    The table has a row for each part that is left to do: `seed`, `part` (learn, unlearn, evaluate
    or attack) and `model`, then `trained_tokens` and `scored_tokens`, padding included,
    `written_tokens` at most, `updates`, and two times. `seconds` is the time if answers are as long
    as the true ones, `at_most` if each is as long as it may be, both with one run at a time. Raises
    `InvalidInput` as `llm.study` does before any work, and for a model that is yet to be made here.
    """
    asked = asked_for(model, data, out=out, methods=methods, seeds=seeds, **options)
    return estimated(replace(asked, estimate_only=True))


def estimated(asked: Study) -> pd.DataFrame:
    """Return the table of `estimate` for a study that was checked."""
    own = made(asked.model)
    allowed = "a model that is there: `python -m llm build` makes it"
    ready = not asked.estimate_only or own is None or is_cached(own, asked.device)
    require(ready, "model", asked.model, allowed)
    language, learnt = load_model(asked), learnt_of(asked)
    tasks = left(asked, language, learnt)
    if not tasks:
        return table((), None)
    examples = (*learnt.retain, *learnt.forget)
    encoded = responses(language, examples, max_length=asked.max_length)
    longest = max(one.prompt for one in encoded) + asked.max_new_tokens
    most = max(len(own) for own in learnt.sets)
    together = min(most, max(1, writing_budget(asked.budget) // longest))
    every, lora = learning_of(asked, asked.seeds[0]), lora_of(asked.lora_rank)
    speed = measured(language, encoded, every, lora=lora, together=together)
    return table(tasks, speed)


def table(tasks: Iterable[Remaining], speed: Speed | None) -> pd.DataFrame:
    """Return the table of `estimate`: the time that each task takes at a speed."""
    rows = []
    for one in tasks:
        work = one.work
        assert speed is not None
        tokens = (work.trained.tokens, work.watched.tokens + work.scored.tokens, work.most.tokens)
        times = (speed.seconds(work), speed.at_most(work))
        rows.append((one.seed, one.part, one.model, *tokens, work.updates, *times))
    names = ("trained_tokens", "scored_tokens", "written_tokens", "updates")
    columns = ["seed", "part", "model", *names, "seconds", "at_most"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(names, "int64"))


def learnt_of(asked: Study) -> Learnt:
    """Return what a study learns, forgets and measures; nothing is written."""
    part = part_asked(asked)
    if part != Part():
        return part_of(asked.data, part)
    retain = retain_of(asked.data, asked.retain_data)
    sets = tofu_sets(asked.data, retain=asked.retain_data)
    return Learnt(read(asked.data), read(retain), sets)


def left(asked: Study, language: LanguageModel, learnt: Learnt) -> list[Remaining]:
    """Return what of a study is left to do in its folder, with its work."""
    size = counting.Size.of(language, lora_of(asked.lora_rank))
    count = sum(one.numel() for one in language.model.parameters())
    rate = unlearning_rate(asked, count)
    attacks = attacks_of(asked, rate)
    attacked_on = with_wrong(learnt.forget, learnt.sets.forget)

    def encoded(examples: Sequence[Example]) -> Any:
        return responses(language, examples, max_length=asked.max_length)

    forget, retain = encoded(learnt.forget), encoded(learnt.retain)
    columns = encoded_columns(language, learnt.forget, asked.max_length)
    answers = counting.answering(language, columns)
    taught = {
        kind: (encoded(examples), [encoded(own) for own in watched.values()])
        for kind, (examples, watched) in lessons(learnt.forget, learnt.retain).items()
    }
    limits = {"max_length": asked.max_length, "budget": asked.budget}
    limits["max_new_tokens"] = asked.max_new_tokens
    evaluated = counting.evaluating(language, learnt.sets, size, **limits)
    along = Work()
    if asked.measured_epochs:
        along = counting.measuring(language, learnt.sets, UTILITY_TASKS, **limits)
    ready = is_trained_here(asked)
    found: list[Remaining] = []
    attacking: dict[tuple[Relearning, ...], Work] = {}
    for seed in (*asked.seeds, *asked.floor_seeds):
        place = asked.out / f"seed{seed}"
        models = {kind: place / kind / MODEL for kind in taught}
        kinds = KINDS if seed in asked.seeds else KINDS[1:]
        for kind in kinds:
            examples, watched = taught[kind]
            if not (ready or (place / kind / EPOCHS).exists()):
                ways = {"done": epochs_done(place / kind)}
                work = counting.learning(examples, learning_of(asked, seed), watched, size, **ways)
                found.append(Remaining(seed, "learn", kind, work))
        for kind in kinds:
            if not (place / "sweep" / kind / OPEN_UNLEARNING).exists():
                found.append(Remaining(seed, "evaluate", kind, evaluated))
        if seed in asked.floor_seeds:
            continue
        attacked = {"retrained": models["retrained"]} if asked.attacked else {}
        for run in planned_runs(asked, models, seed, rate, size):
            folder = place / "sweep" / run.folder
            made, measured = _made(folder), (folder / OPEN_UNLEARNING).exists()
            if run.word in asked.attacked and (not made or (folder / MODEL).exists()):
                attacked[run.word] = folder / MODEL
            kept = finished_attack(place, folder / MODEL).exists() or run.word not in asked.attacked
            if not made and not (measured and kept):
                preferred, done = None, epochs_done(folder)
                if run.method is not None and run.method.prefers:
                    preferred = encoded(with_refusals(learnt.forget, seed))
                work = counting.unlearning(
                    forget,
                    retain,
                    run.unlearning(),
                    size,
                    preferred=preferred,
                    answers=answers,
                    done=done,
                )
                work += along * sum(epoch > done or not done for epoch in run.measured)
                found.append(Remaining(seed, "unlearn", run.word, work))
            if not measured and not (made and not (folder / MODEL).exists()):
                found.append(Remaining(seed, "evaluate", run.word, evaluated))
        for word, model in attacked.items():
            if not finished_attack(place, model).exists():
                parts = unfinished(place, model)
                kept = [finished_in(parts, one).exists() for one in attacks]
                wanted = tuple(one for one, there in zip(attacks, kept, strict=True) if not there)
                if wanted not in attacking:
                    ways = {"max_length": asked.max_length}
                    attacking[wanted] = counting.attacking(
                        language, attacked_on, wanted, size, **ways
                    )
                found.append(Remaining(seed, "attack", word, attacking[wanted]))
    return found


def planned_runs(
    asked: Study, models: dict[str, Path], seed: int, rate: float, size: counting.Size
) -> list[PlannedRun]:
    """Return the runs of a seed, as they are once the model that unlearns is there."""
    own = SMALL if size.weights < SMALL_BYTES else LARGE
    sweep = sweep_of(asked, models["original"], models["retrained"], asked.data, seed, rate)
    budget = int(own["budget"]) if asked.budget == BUDGET else asked.budget
    batch = asked.batch or int(own["batch"])
    return runs_of(replace(sweep, batch=batch, budget=budget))


def epochs_done(folder: Path) -> int:
    """Return how many epochs a training has made of which its folder has the state."""
    try:
        return int(storage.read_provenance(folder / STATE / FILE)["epoch"])
    except InvalidInput:
        return 0


def _made(folder: Path) -> bool:
    """Return whether a run is finished: its model is there, or it diverged and has none."""
    if not (folder / EPOCHS).exists():
        return False
    if os.path.lexists(folder / MODEL):
        return True
    return str(storage.read_table(folder / EPOCHS)["status"].iloc[-1]) == NAN


def lines(found: pd.DataFrame, jobs: int = 1) -> list[str]:
    """Return an estimate in a few lines: one per part, over all seeds and models, and their sum."""
    if found.empty:
        return ["estimate: nothing is left to make"]
    shown = ["estimate, at the speed that was measured now, one run at a time:"]
    for part in PARTS:
        own = found[found["part"] == part]
        if len(own):
            names = ("trained", "scored", "written")
            counts = {name: int(own[f"{name}_tokens"].sum()) for name in names}
            work = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
            models = f"{len(own)} model{'s' if len(own) > 1 else ''}"
            shown.append(f"  {part:9}{models:>10}  {span(own)}  ({work} tokens)")
    shown.append(f"  {'in all':19}  {span(found)}")
    if found["at_most"].sum() > found["seconds"].sum():
        shown.append(
            "the first time is for answers as long as the true ones, the second one for answers as "
            "long as --max-new-tokens allows"
        )
    if jobs != 1:
        shown.append("with --jobs runs share this machine, which may take less time than that")
    return shown


def check_ends(asked: Study, found: pd.DataFrame) -> None:
    """Raise `InvalidInput` for a study that takes longer than anybody waits, by its estimate.

    The message names the setting of the part that takes most of the time.
    """
    runs, parts = max(1, joblib.effective_n_jobs(asked.jobs)), {}
    for part, own in found.groupby("part"):
        setting = SETTINGS[str(part)]
        number = getattr(asked, setting) or MEASURED
        parts[setting] = duration.Part(number, float(own["seconds"].sum()) / runs)
    duration.check_seconds(parts)


def span(found: pd.DataFrame) -> str:
    """Return the time of some rows of an estimate in words, or two times where they differ."""
    least, most = (spoken(float(found[name].sum())) for name in ("seconds", "at_most"))
    return least if least == most else f"{least} to {most}"


def spoken(seconds: float) -> str:
    """Return a number of seconds as one would say it, in two digits or hours and minutes."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def seconds_of_runs(
    language: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    wanted: Sequence[Unlearning],
    *,
    max_length: int = MAX_LENGTH,
) -> float:
    """Return how long a run of unlearning for each of the settings takes, measured and counted now.

    The runs are those of `llm.unlearning.runs.unlearn_into` on single responses, each from the
    model as it is. Which of them are finished already, the caller knows. Raises `InvalidInput` as
    `llm.models.answers.responses` does.
    """
    if not wanted:
        return 0.0
    work = counting.runs(language, forget, retain, wanted, max_length=max_length)
    encoded = responses(language, [*forget, *retain], max_length=max_length)
    first = wanted[0]
    return measured(language, encoded, first.optimization, lora=first.lora).seconds(work)
