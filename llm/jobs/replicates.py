"""A replicate of a study: the two models of one seed, and what methods and attacks do to them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llm.jobs import trained_here
from llm.jobs.settings import LARGE_RATE, MIDDLE, MIDDLE_RATE, RATE, lora_of, rate_for
from llm.jobs.sweeping import PROBE, Sweep, jobs_of, runs_of, task_of
from llm.models.source import ModelOptions
from markov.files import folders, storage

if TYPE_CHECKING:
    import pandas as pd

    from llm.data.tofu import Example
    from llm.evaluation.attacks import Relearning
    from llm.jobs.study_settings import Study
    from llm.logs.log import EvaluationLog
    from llm.logs.measures import TofuLogs
    from llm.sweeps.sweep import Task
    from llm.training.settings import Optimization

KINDS = ("original", "retrained")
SCORED = 100  # answers of a set that are scored after every epoch of learning
# Largest step sizes of unlearning by the number of parameters below which they hold.
RATES = ((25e6, RATE), (MIDDLE, MIDDLE_RATE), (float("inf"), LARGE_RATE))
ATTACK_KEYS = ("model", "seed", "which", "repeat", "epoch")  # which attack, after which epoch
TIMES = "times.jsonl"  # how long each part of a seed took


class Replicate(NamedTuple):
    """One seed of a study: its folder, its sweep in words, and what all runs of it share."""

    place: Path
    asked: Sweep
    task: Task

    @property
    def seed(self) -> int:
        return self.asked.seeds[0]

    def logs(self) -> tuple[TofuLogs, TofuLogs]:
        """Return what the original and the retrained model say, asked now if they were not yet."""
        from llm.sweeps.sweep import baseline

        original, retrained = (
            baseline(self.place / "sweep" / kind, self.task, kind) for kind in KINDS
        )
        return original, retrained

    def unlearned(self, words: Sequence[str]) -> dict[str, TofuLogs]:
        """Return what the models of methods say, of those that could be evaluated."""
        from llm.jobs.evaluating import read_tofu_logs
        from llm.logs.reading import OPEN_UNLEARNING

        runs = runs_of(replace(self.asked, methods=tuple(words)))
        places = {run.word: self.place / "sweep" / run.folder / OPEN_UNLEARNING for run in runs}
        return {word: read_tofu_logs(place) for word, place in places.items() if place.exists()}

    def retrained_log(self) -> EvaluationLog:
        """Return what the retrained model says of the forget data, asked now if it was not yet."""
        from llm.sweeps.sweep import retrained_alone

        return retrained_alone(self.place / "sweep", self.task).of("forget")


def replicate(asked: Study, out: Path, data: str, seed: int, progress: bool) -> Replicate:
    """Make the two models of a seed, and return how methods are compared by them."""
    place = out / f"seed{seed}"
    size = _learnt(asked, place, data, seed, KINDS, progress)
    original, retrained = models_of(place)
    sweep = sweep_of(asked, original, retrained, data, seed, unlearning_rate(asked, size))
    return Replicate(place, sweep, replace(task_of(sweep), times=place / TIMES))


def retrained_beside(asked: Study, first: Replicate, seed: int, progress: bool) -> Replicate:
    """Make the retrained model alone of another seed than the `first`, and return that seed.

    Should it be asked for with both models later, what it has is what it would have made.
    """
    place = first.place.with_name(f"seed{seed}")
    _learnt(asked, place, str(first.asked.data), seed, KINDS[1:], progress)
    original, retrained = map(str, models_of(place))
    sweep = replace(first.asked, model=original, retrained=retrained, seeds=(seed,))
    options = replace(first.task.options, model=original)
    task = replace(first.task, options=options, retrained=retrained, times=place / TIMES)
    return Replicate(place, sweep, task)


def models_of(place: Path) -> tuple[Path, Path]:
    """Return where the two models of a seed are: the original, and the retrained one."""
    from llm.models.finetuned import MODEL

    original, retrained = (place / kind / MODEL for kind in KINDS)
    return original, retrained


def _learnt(
    asked: Study, place: Path, data: str, seed: int, kinds: Collection[str], progress: bool
) -> int:
    """Make models of a seed that are not there, and return how many parameters one has."""
    from llm.data.sources import read
    from llm.data.splits import retain_of
    from llm.jobs.finetuning import with_rate
    from llm.models.finetuned import EPOCHS, JOB, finetune_into
    from llm.models.source import load_model
    from llm.sweeps.times import laps

    if trained_here.is_trained_here(asked):
        return trained_here.copy(asked, place, seed, kinds, progress)
    size = 0
    forget, retain = read(data), read(retain_of(data, asked.retain_data))
    taught = lessons(forget, retain)
    for kind in kinds:
        examples, watched = taught[kind]
        with laps(place / TIMES, kind) as lap:
            if not (place / kind / EPOCHS).exists():
                lap("learn", resumed=folders.claimed(place / kind, JOB))
            language = load_model(asked)
            size = sum(one.numel() for one in language.model.parameters())
            finetune_into(
                place / kind,
                language,
                examples,
                with_rate(learning_of(asked, seed), asked.learning_rate, language),
                lora=lora_of(asked.lora_rank),
                watched=watched,
                max_length=asked.max_length,
                progress=progress,
            )
    return size


def lessons(
    forget: Sequence[Example], retain: Sequence[Example]
) -> dict[str, tuple[tuple[Example, ...], dict[str, tuple[Example, ...]]]]:
    """Return what each of the two models learns, and the sets that are measured meanwhile."""
    from llm.models.finetuned import LEARNT

    learnt = {"original": (*retain, *forget), "retrained": tuple(retain)}
    return {
        kind: (examples, {LEARNT: _probed(examples), "forget": _probed(forget)})
        for kind, examples in learnt.items()
    }


def learning_of(asked: Study, seed: int) -> Optimization:
    """Return how the two models of a seed are made, but for the step size."""
    from llm.training.settings import Optimization

    return Optimization(
        epochs=asked.learning_epochs,
        batch=asked.learning_batch,
        learning_rate=1.0,
        seed=seed,
        precision=asked.precision,
        gradient_checkpointing=asked.gradient_checkpointing,
        budget=asked.budget,
    )


def unlearning_rate(asked: Study, size: int) -> float:
    """Return the largest step size of unlearning, for a model of so many parameters."""
    return asked.unlearning_rate or rate_for(size, RATES)


def _probed(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Return the examples that are measured after every epoch of learning."""
    from llm.data.splits import some_of

    return some_of(tuple(examples), SCORED)


def sweep_of(
    asked: Study, original: Path, retrained: Path, data: str, seed: int, rate: float
) -> Sweep:
    """Return the sweep of one seed; raises `InvalidInput` for words that are not allowed."""
    own = {"model", "template", "revision"}  # saved with the model that has learnt
    options = {
        field.name: getattr(asked, field.name)
        for field in fields(ModelOptions)
        if field.name not in own
    }
    return Sweep(
        **options,
        model=str(original),
        retrained=str(retrained),
        data=data,
        retain_data=asked.retain_data,
        methods=asked.methods,
        seeds=(seed,),
        epochs=asked.epochs,
        learning_rate=rate,
        batch=asked.batch,
        precision=asked.precision,
        gradient_checkpointing=asked.gradient_checkpointing,
        lora_rank=asked.lora_rank,
        max_new_tokens=asked.max_new_tokens,
        measured_epochs=asked.measured_epochs,
        probe=min(PROBE, asked.measured_answers or PROBE),
        jobs=asked.jobs,
    )


def swept(
    one: Replicate, words: Sequence[str], progress: bool, *, keep: bool = False
) -> pd.DataFrame:
    """Return the measures of the two models and of methods, made now where they are not there."""
    from llm.sweeps.sweep import sweep as make

    task = replace(one.task, save_models=keep)
    runs, jobs = runs_of(replace(one.asked, methods=tuple(words))), jobs_of(one.asked)
    return make(one.place / "sweep", task, runs, n_jobs=jobs, progress=progress)


def attacked_models(asked: Study, one: Replicate, progress: bool) -> pd.DataFrame:
    """Return what comes back of the retrained model and of each method that is attacked.

    The table has no rows where none is.
    """
    import pandas as pd

    from llm.data.sources import read
    from llm.data.splits import with_wrong
    from llm.jobs.relearning import attacked
    from llm.models.source import load_model
    from llm.sweeps.times import laps

    if not asked.attacked:
        return pd.DataFrame({name: [] for name in ATTACK_KEYS})
    models, left = {"retrained": Path(str(one.asked.retrained))}, []
    for word in asked.attacked:
        (run,) = runs_of(replace(one.asked, methods=(word,)))
        models[run.word] = one.place / "sweep" / run.folder / "model"
        if not finished_attack(one.place, models[run.word]).exists():
            left.append(word)  # a model that is attacked already need not be there any more
    swept(one, left, progress, keep=True)
    wanted = attacks_of(asked, float(one.asked.learning_rate or 0.0))
    forget = with_wrong(read(str(one.asked.data)), one.task.sets().forget)
    frames = []
    for word, model in models.items():
        path = finished_attack(one.place, model)
        if storage.read_kept(path, storage.read_table) is None:
            if not model.exists():  # the run diverged, and left no model to attack
                continue
            parts = unfinished(one.place, model)
            with laps(one.place / TIMES, word) as lap:
                lap("attack", resumed=parts.exists())
                language = load_model(one.asked, str(model))
                found = attacked(
                    language,
                    forget,
                    wanted,
                    one.retrained_log(),
                    parts,
                    max_length=asked.max_length,
                    progress=progress,
                )
            assert found.returns is not None
            known = {"attacks": storage.fingerprint(wanted), "model": word}
            storage.write_table(found.returns, path, storage.provenance(known, __name__))
        frames.append(storage.read_table(path).assign(model=word, seed=one.seed))
    return stacked(frames)


def finished_attack(place: Path, model: Path) -> Path:
    """Return where a seed keeps what came back of a model."""
    return place / "attacks" / f"{model.parent.name}.parquet"


def unfinished(place: Path, model: Path) -> Path:
    """Return where a seed keeps the finished attacks on a model until all are finished."""
    return place / "attacks" / "unfinished" / model.parent.name


def attacks_of(asked: Study, rate: float) -> list[Relearning]:
    """Return the attacks on each model that is attacked."""
    from llm.evaluation.attacks import attacks

    teaching = attack_of(asked, rate)
    lora = lora_of(asked.lora_rank)
    return attacks(("shortest", "random"), asked.share, asked.attack_repeats, teaching, lora)


def attack_of(asked: Study, rate: float) -> Optimization:
    """Return how an attack teaches; raises `InvalidInput` for numbers that are not allowed."""
    from llm.training.settings import Optimization

    return Optimization(
        epochs=asked.attack_epochs,
        batch=asked.learning_batch,
        learning_rate=rate,
        warmup_epochs=0,
        precision=asked.precision,
        gradient_checkpointing=asked.gradient_checkpointing,
        budget=asked.budget,
    )


def stacked(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return tables below each other, without what they say of their making."""
    import pandas as pd

    every = [frame.copy(deep=False) for frame in frames]
    for frame in every:
        frame.attrs = {}
    return pd.concat(every, ignore_index=True)
