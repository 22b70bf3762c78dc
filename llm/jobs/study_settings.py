"""What a study is asked to do: its options, and what is refused of them before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.jobs.finetuning import BATCH, EPOCHS
from llm.jobs.planning import MemoryOption
from llm.jobs.replicates import attack_of, sweep_of
from llm.jobs.sweeping import runs_of
from llm.jobs.trained_here import is_trained_here
from llm.models.names import check
from llm.models.source import ModelOptions
from llm.scoring.limits import NEW_TOKENS
from markov.errors import require, require_epochs, require_jobs, require_whole
from markov.files import folders
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.data.parts import Part

JOB = "study"
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

    Writes to OUT gate.parquet, measures.parquet, differences.parquet, attacks.parquet,
    times.parquet and summary.{parquet,md,tex}, the folders data/ and figures/, and a folder per
    seed with models and runs. Example, of a part of TOFU, since all of it takes a GPU: python -m
    llm study --forget-answers 60 --retain-answers 140 --measured-answers 40 --learning-rate
    1.6e-4 --learning-epochs 6 --epochs 5 --batch 16
    """

    model: str = "smollm2-135m"
    """The pretrained model, which must not have read the data: the study teaches it.
    A folder, a GGUF file, a hub id, or a ready-made name. Or authors:original, made here, with
    --data authors:forgetNN: it has read them, and each seed is another training of it.
    """
    data: str = "tofu:forget05"
    """What is to be forgotten: authors:forgetNN[:SEED], tofu:forgetNN or FOLDER/forgetNN.
    Or a file of one's own, with --retain-data: what cannot be measured by it is left out.
    """
    retain_data: str | None = None
    """What is to stay, where it does not follow from --data."""
    forget_answers: int | None = None
    """Learn and forget the last so many answers of the data only (default: all).
    Like the next two it needs a forget split, and what goes with it.
    """
    retain_answers: int | None = None
    """Learn and keep the first so many answers of what is to stay only (default: all)."""
    measured_answers: int | None = None
    """Ask at most so many questions of each set that utility is measured by (default: all).
    After each epoch of unlearning as many retained answers are scored, at most 100.
    """
    methods: tuple[str, ...] = METHODS
    """Methods in the words of `sweep`: NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT].
    Default: eight, with the paper's settings for forget05, whatever --data is.
    """
    attacked: tuple[str, ...] = ATTACKED
    """Those of the methods whose models are attacked, beside the retrained model; they are kept."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the order of examples, in fine-tuning and in unlearning.
    With several the table has means, and intervals over them.
    """
    floor_seeds: tuple[int, ...] = ()
    """Further seeds, none of --seeds, of which only the retrained model is made.
    D between two retrained models is the floor: a smaller one is no better.
    """
    learning_epochs: int = EPOCHS
    """Passes over the data when the two models are made."""
    learning_batch: int = BATCH
    """Examples per update when the two models are made."""
    learning_rate: float | None = None
    """Largest step size of AdamW when the two models are made.
    Default: 1e-3 below 25 million parameters, 3e-4 below 500 million, 1e-5 for others.
    A small model that learns by heart in large steps loses what it knew before.
    """
    epochs: int = 10
    """Passes over the forget data when a method unlearns."""
    batch: int | None = None
    """Forget examples per update, and as many retain examples.
    Default: 16 for small models, 32 for others.
    """
    unlearning_rate: float | None = None
    """Largest step size of AdamW when a method unlearns.
    Default: 1e-3 below 25 million parameters, 1e-4 below 500 million, 1e-5 for others.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the products in training; bfloat16 by autocast."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    measured_epochs: tuple[int, ...] = ()
    """Epochs of unlearning, from 0 to --epochs, after which D and model utility are taken as well.
    Each takes an evaluation of every method, and needs all four sets of TOFU. The numbers are in
    epochs.parquet of each run, and in the figure llm_epochs.
    """
    lora_rank: int | None = None
    """Train adapters of this rank in all linear layers, not the models themselves, in learning,
    in unlearning and in attacks. The default step sizes are not for them: give larger ones.
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
    """Compare methods even if the two models are not fit for it. It can be given later."""
    draw: bool = True
    """Draw into OUT/figures what `python -m figures --study OUT` draws."""
    jobs: int = 1
    """Runs of methods at a time, each with a model in memory; -1 is one per core."""
    estimate_only: bool = False
    """Print how long the study would take on this machine, and what is left of it, and make none.
    Nothing is written.
    """
    out: Path = Path("out/study")
    """Folder to write, or to go on in."""


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
    is_trained_here(asked)
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
    require_jobs(asked.jobs)
    require(len(set(asked.seeds)) == len(asked.seeds) > 0, "seeds", asked.seeds, "each seed once")
    every = (*asked.seeds, *asked.floor_seeds)
    allowed = "other seeds than --seeds, each once"
    require(len(set(every)) == len(every), "floor_seeds", asked.floor_seeds, allowed)
    for name in ("seeds", "floor_seeds"):
        for seed in getattr(asked, name):
            require_whole(seed, name, 0)
    if asked.measured_epochs:
        _check_measured(asked)
    unknown = [word for word in asked.attacked if word not in asked.methods]
    require(not unknown, "attacked", unknown[:1], "some of the methods, in the same words")
    attacks(("random",), asked.share, asked.attack_repeats, attack_of(asked, 1.0))
    for one in (asked.methods, asked.attacked):
        place = sweep_of(asked, Path("original"), Path("retrained"), asked.data, 0, 1.0)
        runs_of(replace(place, methods=one))
    folders.check_place(asked.out, inputs=(asked.model, asked.data, asked.retain_data))
    folders.check_claim(asked.out, JOB, described(asked))
    return asked


def _check_measured(asked: Study) -> None:
    """Raise `InvalidInput` for epochs that no run has, and for data without D or utility."""
    from llm.data.splits import checked_for, tofu_sets

    name = "measured_epochs"
    require_epochs(asked.measured_epochs, name, asked.epochs)
    checked_for(tofu_sets(asked.data, retain=asked.retain_data), name, asked.measured_epochs)


def described(asked: Study) -> dict[str, Any]:
    """Return the fields of a study that it can only be continued with."""
    return {name: getattr(asked, name) for name in vars(asked) if name not in FREE}


def part_asked(asked: Study) -> Part:
    """Return which part of the data is studied."""
    from llm.data.parts import Part

    return Part(
        forget=asked.forget_answers, retain=asked.retain_answers, measured=asked.measured_answers
    )
