"""Study: from one pretrained model to the table of all methods, with the models that it needs.

    data/                  the part of the data that is studied, if it is not all of it
    seedN/original/        the model that learnt all of them (`llm.models.finetuned`)
    seedN/retrained/       the one that learnt all but what is to be forgotten
    seedN/sweep/           a folder per method, unlearned and evaluated (`llm.sweeps.sweep`)
    seedN/attacks/         what comes back of each attacked model (`llm.jobs.relearning`)
    gate.parquet           whether the two models are fit to compare methods by
    measures.parquet       every measure of every model and seed
    attacks.parquet        what came back, by model, seed, attack and epoch
    times.parquet          how long each part of it took (see `llm.sweeps.times`)
    summary.{parquet,md,tex}    the paper's table, with intervals over seeds where there are several
    figures/               what `python -m figures --study` draws of it

Each part goes on where it was stopped, and is not done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llm.jobs.finetuning import BATCH, EPOCHS
from llm.jobs.planning import MemoryOption
from llm.jobs.replicates import (
    TIMES,
    Replicate,
    attack_of,
    attacked_models,
    replicate,
    retrained_beside,
    stacked,
    sweep_of,
    swept,
)
from llm.jobs.settings import provenance_of
from llm.jobs.sweeping import runs_of, write_summary
from llm.models.names import check
from llm.models.source import ModelOptions
from llm.scoring.limits import NEW_TOKENS
from markov.errors import InvalidInput, require, require_whole
from markov.files import folders, storage
from markov.files.storage import Location

if TYPE_CHECKING:
    import pandas as pd

    from llm.data.parts import Part

JOB = "study"
FILES = (
    *(f"{name}.parquet" for name in ("gate", "measures", "attacks", "summary", "times")),
    "summary.md",
    "summary.tex",
)
# Fields that a study may be continued with other values of.
FREE = (
    *("out", "draw", "jobs", "seeds", "floor_seeds", "methods", "attacked", "despite_gate"),
    *("device", "memory", "estimate_only"),
)
# The four corners, two baselines that ascend, one that descends on refusals; betas and retain
# weights of the paper for forget05.
METHODS = (
    "gradient_ascent",
    "grad_diff@1",
    "weighted_grad_diff@1",
    "idk@1",
    "npo:0.1@1",
    "reference_free_npo:0.1@1",
    "length_normalized_npo:2.5@0.1375",
    "simnpo:2.5@0.1375",
)
ATTACKED = ("npo:0.1@1", "simnpo:2.5@0.1375")


@dataclass(frozen=True, kw_only=True)
class Study(ModelOptions, MemoryOption):
    """Compare methods on a model of your own, from the pretrained weights to the paper's table.
    A study that was stopped goes on where it was.

    Fine-tunes the two models that a study needs, the original on all data and the retrained one
    without those to forget. Asks whether they are fit for it, which is printed as a gate. Unlearns
    by every method, evaluates each as TOFU does, and attacks some by teaching a fifth of the
    answers again. All of that over --seeds, each with models of its own.

    Writes to OUT gate.parquet, measures.parquet, attacks.parquet and summary.{parquet,md,tex}, the
    folder figures/, and a folder per seed with models and runs. Example: python -m llm study
    --model smollm2-135m --data tofu:forget05 --forget-answers 60 --retain-answers 540
    --measured-answers 40 --precision bfloat16 --out out/study
    """

    data: str = "tofu:forget05"
    """What is to be forgotten: authors:forgetNN[:SEED], tofu:forgetNN or FOLDER/forgetNN.
    Or a file of one's own, with --retain-data: what cannot be measured by it is left out.
    """
    retain_data: str | None = None
    """What is to stay, where it does not follow from --data."""
    forget_answers: int | None = None
    """Learn and forget the last so many answers of the data only (default: all)."""
    retain_answers: int | None = None
    """Learn and keep the first so many answers of what is to stay only (default: all)."""
    measured_answers: int | None = None
    """Ask at most so many questions of each set that utility is measured by (default: all).
    No more retained answers than these are scored after an epoch, and 100 at most.
    """
    methods: tuple[str, ...] = METHODS
    """Methods in the words of `sweep`: NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT]."""
    attacked: tuple[str, ...] = ATTACKED
    """Those of the methods whose models are attacked, beside the retrained model; they are kept."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the order of examples, in fine-tuning and in unlearning.
    With several the table has means, and intervals over them.
    """
    floor_seeds: tuple[int, ...] = ()
    """Further seeds, of which only the retrained model is made.
    D between two retrained models is the floor: no method can be asked to come nearer.
    """
    learning_epochs: int = EPOCHS
    """Passes over the data when the two models are made."""
    learning_batch: int = BATCH
    """Examples per update when the two models are made."""
    learning_rate: float | None = None
    """Largest step size of AdamW when the two models are made.
    Default: 1e-3 below 25 million parameters, 3e-4 below 500 million, 1e-5 for others.
    """
    epochs: int = 10
    """Passes over the forget data when a method unlearns."""
    batch: int | None = None
    """Forget examples per update, and as many retain examples.
    Default: 16 for small models, 32 for others.
    """
    unlearning_rate: float | None = None
    """Largest step size of AdamW when a method unlearns.
    Default: 6e-4 below 25 million parameters, 1e-4 below 500 million, 1e-5 for others.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the products in training; bfloat16 by autocast."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    measured_epochs: tuple[int, ...] = ()
    """Epochs of unlearning after which D and model utility are taken as well as at its end.
    Each takes an evaluation of every method.
    """
    lora_rank: int | None = None
    """Train adapters of this rank in all linear layers, not the models themselves, in learning,
    in unlearning and in attacks. They take larger step sizes.
    """
    max_new_tokens: int = NEW_TOKENS
    """At most so many tokens of an answer that a model writes."""
    share: float = 0.2
    """Share of the forget answers that an attack teaches again."""
    attack_epochs: int = 3
    """Passes over what an attack teaches."""
    attack_repeats: int = 1
    """Attacks of each kind on each model, which choose other answers at random."""
    despite_gate: bool = False
    """Compare methods even if the two models are not fit for it."""
    draw: bool = True
    """Draw the figures of the study into OUT/figures, as `python -m figures --study OUT` does."""
    jobs: int = 1
    """Runs of methods at a time, each with a model in memory; -1 is one per core."""
    estimate_only: bool = False
    """Print how long the study would take on this machine, and what is left of it, and make none.
    Nothing is written.
    """
    out: Path = Path("out/study")
    """Folder to write, or to go on in."""


class Studied(NamedTuple):
    """What a study found.

    `measures` has a row per seed, model and measure; `gate` a row per check (see
    `llm.evaluation.gate`); `attacks` a row per seed, model, attack and epoch (see
    `llm.evaluation.relearning.returns`), and `floor` D between the retrained models of any two
    seeds, with those of `floor_seeds`.
    """

    measures: pd.DataFrame
    gate: pd.DataFrame
    attacks: pd.DataFrame
    floor: tuple[float, ...]

    @property
    def summary(self) -> pd.DataFrame:
        """A row per method in the paper's layout, the mean over seeds."""
        from llm.logs.summaries import over_seeds, summary

        return summary(over_seeds(self.measures))

    def __repr__(self) -> str:
        from llm.logs.summaries import markdown

        return markdown(self.summary)


def study(
    model: Location,
    data: Location = "tofu:forget05",
    *,
    out: Location,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **options: Any,
) -> Studied:
    """Return what all methods do to a model, from its pretrained weights on.

    Everything is written to the folder `out` as `python -m llm study` does, and goes on where it
    was if it was stopped. `options` are further fields of `Study`. Raises `InvalidInput` for words
    and numbers that are not allowed, for a folder of another study, and for two models by which
    methods cannot be compared.
    """
    asked = asked_for(model, data, out=out, methods=methods, seeds=seeds, **options)
    return studied(asked, progress=progress)


def asked_for(
    model: Location,
    data: Location,
    *,
    out: Location,
    methods: Sequence[str],
    seeds: Sequence[int],
    **options: Any,
) -> Study:
    """Return a study in words; raises `InvalidInput` as `checked` does."""
    words: dict[str, Any] = {"model": str(model), "data": str(data), "out": Path(out)}
    words |= {"methods": tuple(methods), "seeds": tuple(seeds)}
    asked = checked(Study(**words, **options))
    allowed = "left out: llm.estimate returns how long a study takes"
    require(not asked.estimate_only, "estimate_only", True, allowed)
    return asked


def checked(asked: Study) -> Study:
    """Return the same study; raises `InvalidInput` for what is refused before any work."""
    from llm.data.parts import Part
    from llm.data.splits import is_own, retain_of, split_of
    from llm.evaluation.attacks import attacks

    check(asked.model)
    own = is_own(asked.data)
    if not own:
        split_of(asked.data)
    retain_of(asked.data, asked.retain_data)
    sizes = ("forget_answers", "retain_answers", "measured_answers")
    Part(**{name.partition("_")[0]: getattr(asked, name) for name in sizes})
    allowed = "left out: a part is taken of a forget split and what goes with it"
    for name in sizes if own or asked.retain_data else ():
        require(getattr(asked, name) is None, name, getattr(asked, name), allowed)
    for name in ("learning_epochs", "learning_batch", "epochs"):
        require_whole(getattr(asked, name), name, 1)
    require(len(set(asked.seeds)) == len(asked.seeds) > 0, "seeds", asked.seeds, "each seed once")
    every = (*asked.seeds, *asked.floor_seeds)
    allowed = "other seeds than --seeds, each once"
    require(len(set(every)) == len(every), "floor_seeds", asked.floor_seeds, allowed)
    unknown = [word for word in asked.attacked if word not in asked.methods]
    require(not unknown, "attacked", unknown[:1], "some of the methods, in the same words")
    attacks(("random",), asked.share, asked.attack_repeats, attack_of(asked, 1.0))
    for one in (asked.methods, asked.attacked):
        place = sweep_of(asked, Path("original"), Path("retrained"), asked.data, 0, 1.0)
        runs_of(replace(place, methods=one))
    folders.check_place(asked.out, inputs=(asked.model, asked.data, asked.retain_data))
    folders.check_claim(asked.out, JOB, described(asked))
    return asked


def described(asked: Study) -> dict[str, Any]:
    """Return the fields of a study that it can only be continued with."""
    return {name: getattr(asked, name) for name in vars(asked) if name not in FREE}


def studied(
    asked: Study,
    *,
    progress: bool = True,
    on_gate: Callable[[pd.DataFrame, tuple[float, ...]], object] | None = None,
) -> Studied:
    """Make what is not there yet, write the tables, and return them.

    `on_gate` is called with the gate and the floor before any method is compared.
    """
    out = storage.check_writable(asked.out, "out", folder=True)
    with folders.given_back(out, JOB):
        folders.claim(out, JOB, described(asked), names=("data", "figures", *FILES))
        data = _data(asked, out)
        with _timed(asked):
            seeds = [replicate(asked, out, data, seed, progress) for seed in asked.seeds]
            alone = [
                retrained_beside(asked, seeds[0], seed, progress) for seed in asked.floor_seeds
            ]
    with _timed(asked):
        return _compared(asked, seeds, alone, progress, on_gate)


def _compared(
    asked: Study,
    seeds: Sequence[Replicate],
    alone: Sequence[Replicate],
    progress: bool,
    on_gate: Callable[[pd.DataFrame, tuple[float, ...]], object] | None,
) -> Studied:
    """Compare the methods by the models of all seeds, if these pass the gate.

    Those `alone` have a retrained model only.
    """
    from llm.evaluation.gate import floor, gate

    out = asked.out
    before = [swept(one, (), progress) for one in seeds]
    found = gate({one.seed: table for one, table in zip(seeds, before, strict=True)})
    logs = [one.retrained_log() for one in (*seeds, *alone)]
    lowest = floor(logs) if all(log.perturbed is not None for log in logs) else ()
    if on_gate is not None:
        on_gate(found, lowest)
    storage.write_table(found, out / "gate.parquet", provenance_of(asked))
    lacking = found[~found["passed"]]
    if len(lacking) and not asked.despite_gate:
        raise _refusal(lacking.iloc[0])
    back = stacked(attacked_models(asked, one, progress) for one in seeds)
    measured = stacked(swept(one, asked.methods, progress).assign(seed=one.seed) for one in seeds)
    done = Studied(measured, found, back, lowest)
    _write(asked, out, done)
    return done


def _refusal(check: pd.Series) -> InvalidInput:
    """Return what is said of a check that does not pass."""
    from llm.evaluation.gate import APART

    instead = "Other --learning-epochs or --learning-rate may help"
    if check["low"] <= APART:
        instead = (
            f"It is between {check['low']:.3f} and {check['high']:.3f}, so that it can be chance: "
            "more --measured-answers would tell"
        )
    return InvalidInput(
        f"gate, {check['check']}, seed {check['seed']}",
        round(float(check["value"]), 3),
        f"{check['allowed']}: with such models no method can be judged. {instead}; "
        "--despite-gate goes on",
    )


def _data(asked: Study, out: Path) -> str:
    """Return the word of what is to be forgotten: all of it, or a part that is written now."""
    from llm.data.parts import Part, write_part

    part = part_asked(asked)
    return asked.data if part == Part() else write_part(out / "data", asked.data, part)


def part_asked(asked: Study) -> Part:
    """Return which part of the data is studied."""
    from llm.data.parts import Part

    return Part(
        forget=asked.forget_answers, retain=asked.retain_answers, measured=asked.measured_answers
    )


@contextmanager
def _timed(asked: Study) -> Iterator[None]:
    """Write afterwards, however it ends, how long all parts took so far, if there are any.

    A seed that is not asked for now keeps its rows.
    """
    from llm.sweeps.times import read_times

    try:
        yield
    finally:
        files = {
            int(file.parent.name.removeprefix("seed")): file
            for file in asked.out.glob(f"seed*/{TIMES}")
        }
        table = read_times(dict(sorted(files.items())))
        if len(table):
            storage.write_table(table, asked.out / "times.parquet", provenance_of(asked))


def _write(asked: Study, out: Path, done: Studied) -> None:
    """Write the tables of a study; the measures last, so that where they are all others are."""
    known = provenance_of(asked)
    storage.write_table(done.attacks, out / "attacks.parquet", known)
    write_summary(done.summary, out, known)
    storage.write_table(done.measures, out / "measures.parquet", known)
