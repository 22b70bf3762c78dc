"""The command that unlearns: a run in a folder, with all that the diagnostics need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.commands.options import PassOptions, optimization_of, spread, write
from llm.jobs.planning import MemoryOption, planned, precision_of, state_minutes_of
from llm.jobs.settings import DEFAULTS, RATE, left_out, lora_of, rate_of
from llm.models.gguf_files import is_gguf
from llm.models.names import check, check_retrained, data_of
from llm.models.source import load_model
from llm.scoring.limits import NEW_TOKENS
from llm.training.processes import in_first
from markov.console.choices import WeightingName
from markov.errors import require_epochs
from markov.files import folders, inputs

if TYPE_CHECKING:
    from llm.unlearning.unlearn import Unlearning


@dataclass(frozen=True, kw_only=True)
class Unlearn(PassOptions, MemoryOption):
    """Unlearn a data set by any objective of the family.
    A run that was stopped goes on where it was.

    Writes to the folder OUT: examples.parquet, a row per epoch and example with logp, length and
    ref; weights.parquet, the same with a column of weights per objective of --objectives;
    epochs.parquet, a row per epoch with both losses; answers.parquet, scores of right, paraphrased
    and wrong answers before and after; and model/, for transformers. What nobody said is taken from
    what was, and printed: what is to stay from --data, the step size from --model. Example:
    python -m llm unlearn --objective npo:0.1@1 --retrained authors:retrained --out out/npo
    """

    data: str | None = None
    """What is to be forgotten: authors:SPLIT, tofu:SPLIT, or a file in TOFU's JSON.
    Default: for small models authors:forget20.
    """
    retain_data: str | None = None
    """What is to stay, in the same words as --data.
    Default: what goes with a forget split, such as tofu:retain95 with tofu:forget05.
    """
    objective: str | None = None
    """A method in the words of `sweep`: NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT].
    NAME is npo, simnpo, length_normalized_npo, reference_free_npo, gradient_ascent, grad_diff;
    or against refusals dpo:BETA, simpo:BETA[:GAMMA] and idk, which only teaches them.
    Default: simnpo:4.5@0.125, the paper's for forget10.
    """
    refusals: Path | None = None
    """For dpo, simpo and idk: a file of refusals, one per line.
    Default: a hundred that come with this package.
    """
    retain_term: Literal["none", "cross_entropy", "kl"] | None = None
    """Loss on the retain data that is added to the forget loss.
    kl: from the model before unlearning.
    Default: the method's: none for gradient_ascent, kl for names with kl, else cross_entropy.
    """
    retain_weight: float | None = None
    """Factor of the retain loss, lambda, as published, where --objective does not say it.
    Default: 1.
    """
    weighting: WeightingName = "own"
    """What is kept of the objective's weights w in each batch, to see what they do.
    own: all;
    magnitude: how large they are, each is replaced by the mean of its batch;
    allocation: how they compare, all are divided by the mean of their batch;
    none: nothing, every weight is 1, which is gradient ascent.
    All but own take one more forward pass for every update.
    """
    epochs: int = 10
    """Passes over the forget data.
    The learning rate rises over the first and falls to 0 over the others.
    """
    batch: int = 32
    """Forget examples per update, and as many retain examples."""
    learning_rate: float | None = None
    """Largest step size of AdamW.
    Default: 1e-3 for small models, below 100 MB as those made here are, 1e-4 for others below
    500 million parameters, 1e-5 for larger ones and for an id of the hub.
    """
    gradients: bool = False
    """Also record the norm of each example's gradient, after every epoch."""
    reference: str | None = None
    """Another reference than the model itself: a model, or a table of its scores.
    `score --noise` makes one.
    """
    retrained: str | None = None
    """The model retrained without the forget data, or a table of its scores.
    With it the tables tell how far each example has to move.
    """
    measured: tuple[int, ...] = ()
    """Epochs after which forget quality and model utility are taken as well.
    From 0, which is before the first update, to --epochs.
    Default: none, since each takes as long as an evaluation.
    """
    objectives: tuple[str, ...] = DEFAULTS
    """Objectives to report weights of; they cost nothing."""
    out: Path = Path("out/unlearned")
    """Folder to write, or to go on in."""


def unlearn(command: Unlearn) -> None:
    """Unlearn into a folder, by all processes that there are."""
    from llm.data.refusals import REFUSALS, read_refusals, with_refusals
    from llm.data.sources import read
    from llm.data.splits import checked, tofu_sets
    from llm.evaluation.folders import tofu_measure
    from llm.jobs.values import check_other, log_beside, objectives_of
    from llm.unlearning.methods import described
    from llm.unlearning.runs import EPOCHS, WEIGHTS, unlearn_into
    from llm.unlearning.unlearn import weights_by_epoch
    from markov.preferences import paired

    command = resolved(command)
    asked = command
    data, kept = command.data or "", command.retain_data or ""
    chosen, settings = objectives_of(command.objectives), unlearning(command)
    if not paired(settings.objective).prefer:
        left_out(command, ["refusals"], f"left out with {command.objective}, which teaches none")
    refusals = REFUSALS if command.refusals is None else read_refusals(command.refusals)
    require_epochs(command.measured, "measured", command.epochs)
    named = ("model", "data", "retain_data", "reference", "retrained", "refusals")
    inputs = [getattr(command, name) for name in named]
    in_first(lambda: folders.check_place(command.out, inputs=inputs, finished=EPOCHS))
    command = spread(command)
    writing, before = NEW_TOKENS if command.measured else 0, command.retain_term == "kl"
    copies = int(before and command.lora_rank is None)
    plan = planned(command, training=True, writing=writing, copies=copies)
    forget, retain = read(data), read(kept)
    preferred = (
        with_refusals(forget, command.seed, refusals) if paired(settings.objective).prefer else None
    )
    for field in ("reference", "retrained"):
        check_other(getattr(command, field), forget, field)
    sets = checked(tofu_sets(data)) if command.measured else None
    by = described(command.objective or "", settings)
    print(f"{command.model} unlearns {data} and keeps {kept}: {by}")
    language, measure = load_model(command), None
    options: dict[str, Any] = {
        "max_length": command.max_length,
        "load": partial(load_model, command),
    }
    reference = log_beside(command.reference, language, forget, "reference", **options)
    # Forget quality needs the wrong answers as well.
    asked_of = sets.forget if sets else forget
    retrained = log_beside(command.retrained, language, asked_of, "retrained", **options)
    if sets is not None:
        length, budget = command.max_length, command.budget
        measure = tofu_measure(sets, retrained, command.measured, max_length=length, budget=budget)
    run = unlearn_into(
        command.out,
        language,
        forget,
        retain,
        settings,
        reference=reference,
        retrained=retrained,
        preferred=preferred,
        measure=measure,
        max_length=command.max_length,
        state_minutes=state_minutes_of(command.keep_state, plan),
    )
    write(weights_by_epoch(run.examples, chosen), command.out / WEIGHTS, asked, language)
    print(
        run.epochs.drop(columns=["gradient_norm"]).to_string(
            index=False, float_format="{:.4g}".format
        )
    )
    print(f"{len(run.examples)} rows: {command.out / 'examples.parquet'}")


def resolved(command: Unlearn) -> Unlearn:
    """Return the same command with nothing left open.

    The words of the command are checked, but nothing is loaded or read yet. Raises `InvalidInput`
    for options that do not go together.
    """
    from llm.data.splits import retain_of
    from llm.jobs.unlearning import METHOD
    from llm.unlearning.methods import method, retaining

    data = data_of(command.model, command.data)
    check_retrained(command.retrained, data)
    table = command.reference is not None and inputs.is_file(command.reference)
    if command.reference is not None and (not table or is_gguf(command.reference)):
        check(command.reference, "reference")
    word = METHOD if command.retain_weight is None else METHOD.partition("@")[0]
    # A word without letters is a word, not one that was left out.
    word = word if command.objective is None else command.objective
    method(word, field="objective")
    term, weight = retaining(word, command.retain_term, command.retain_weight)
    return replace(
        command,
        data=data,
        retain_data=retain_of(data, command.retain_data),
        objective=word,
        retain_term=term,
        retain_weight=weight,
        learning_rate=rate_of(command.learning_rate, command.model, small=RATE),
        precision=precision_of(command),
    )


def unlearning(command: Unlearn) -> Unlearning:
    """Return the settings of a run that a `resolved` command describes.

    Raises `InvalidInput` for values that are not allowed.
    """
    from llm.jobs.unlearning import METHOD
    from llm.unlearning.methods import method

    word = METHOD if command.objective is None else command.objective
    return method(word, field="objective").unlearning(
        optimization_of(command),
        retain_term=command.retain_term,
        retain_weight=command.retain_weight,
        lora=lora_of(command.lora_rank),
        gradients=tuple(range(command.epochs + 1)) if command.gradients else (),
        weighting=command.weighting,
    )
