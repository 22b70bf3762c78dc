"""The command that unlearns: a run in a folder, with all that the diagnostics need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm.options import DEFAULTS, ModelOptions, forgetting, load_model, objectives, write
from llm.score_tables import beside, read_scores
from markov import folders
from markov.errors import require
from markov.preferences import paired

if TYPE_CHECKING:
    from llm.corpora import Example
    from llm.logs import EvaluationLog
    from llm.models import LanguageModel
    from llm.unlearning import Unlearning


@dataclass(frozen=True, kw_only=True)
class Unlearn(ModelOptions):
    """Unlearn a data set by any objective of the family; a run that was stopped goes on where it was.

    Writes to the folder OUT: examples.parquet, a row per epoch and example with logp, length and ref; weights.parquet,
    the same with a column of weights per objective of --objectives; epochs.parquet, a row per epoch with both losses;
    answers.parquet, scores of right, paraphrased and wrong answers before and after; and model/, for transformers.
    Example: python -m llm unlearn --objective simnpo:4.5 --retain-weight 0.125 --learning-rate 2e-4 --out out/simnpo
    """

    data: str = "authors:forget10"
    """What is to be forgotten: authors:SPLIT, tofu:SPLIT, or a file in TOFU's JSON."""
    retain_data: str = "authors:retain90"
    """What is to stay, likewise."""
    objective: str = "simnpo:4.5"
    """CORNER:BETA[:GAMMA] of npo, simnpo, length_normalized_npo, reference_free_npo, or gradient_ascent; and against
    refusals dpo:BETA, simpo:BETA[:GAMMA], idk (which only teaches them)."""
    refusals: Path | None = None
    """For the latter: a file of refusals, one per line (default: a hundred that come with this package)."""
    retain_term: Literal["none", "cross_entropy", "kl"] = "cross_entropy"
    """Loss on the retain data that is added to the forget loss; kl: from the model before unlearning."""
    retain_weight: float = 0.125
    """Its factor, lambda, as published."""
    epochs: int = 10
    """Passes over the forget data; the learning rate rises over the first and falls to 0 over the others."""
    batch: int = 32
    """Forget examples per update, and as many retain examples."""
    learning_rate: float = 1e-5
    """Largest step size of AdamW. The default is for billions of parameters; for authors:original take 2e-4."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    seed: int = 0
    """Seed of the order of examples."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products in that precision (autocast)."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    lora_rank: int | None = None
    """Train adapters of this rank in all linear layers, not the model itself."""
    gradients: bool = False
    """Also record the norm of each example's gradient, after every epoch."""
    reference: str | None = None
    """Another reference than the model itself: a model, or a table of its scores (`score --noise` makes one)."""
    retrained: str | None = None
    """The model retrained without the forget data, likewise: adds how far each example has to move."""
    measured: tuple[int, ...] = ()
    """Epochs (0 is before the first update) after which forget quality and model utility are taken as well."""
    objectives: tuple[str, ...] = DEFAULTS
    """Objectives to report weights of; they cost nothing."""
    out: Path = Path("out/unlearned")
    """Folder to write, or to go on in."""


def unlearn(command: Unlearn) -> None:
    """Unlearn into a folder."""
    from llm.evaluated import tofu_measure
    from llm.refusals import REFUSALS, read_refusals, with_refusals
    from llm.runs import EPOCHS, WEIGHTS, unlearn_into
    from llm.sources import read
    from llm.tofu import tofu_sets
    from llm.unlearning import weights_by_epoch

    chosen, settings = objectives(command.objectives), unlearning(command)
    refusals = REFUSALS if command.refusals is None else read_refusals(command.refusals)
    allowed = f"epochs from 0 to {command.epochs}"
    require(set(command.measured) <= {*range(command.epochs + 1)}, "measured", command.measured, allowed)
    named = ("model", "data", "retain_data", "reference", "retrained", "refusals")
    folders.check_place(command.out, inputs=(getattr(command, name) for name in named), finished=EPOCHS)
    forget, retain = read(command.data), read(command.retain_data)
    preferred = with_refusals(forget, command.seed, refusals) if paired(settings.objective).prefer else None
    sets = tofu_sets(command.data) if command.measured else None
    language, measure = load_model(command), None
    reference = other_log(command, language, forget, "reference")
    # With its wrong answers, where forget quality is wanted of them.
    retrained = other_log(command, language, sets.forget if sets else forget, "retrained")
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
    )
    write(weights_by_epoch(run.examples, chosen), command.out / WEIGHTS, command)
    print(run.epochs.drop(columns=["gradient_norm"]).to_string(index=False, float_format="{:.4g}".format))
    print(f"{len(run.examples)} rows: {command.out / 'examples.parquet'}")


def unlearning(command: Unlearn) -> Unlearning:
    """The settings of a run that a command describes; raises `InvalidInput` for what they cannot be."""
    from llm.optimization import Optimization
    from llm.unlearning import Lora, Unlearning

    given = {field.name: getattr(command, field.name) for field in fields(Optimization) if field.name in vars(command)}
    return Unlearning(
        objective=forgetting(command.objective),
        optimization=Optimization(**given),
        retain_term=command.retain_term,
        retain_weight=command.retain_weight,
        lora=None if command.lora_rank is None else Lora(rank=command.lora_rank),
        gradients=tuple(range(command.epochs + 1)) if command.gradients else (),
    )


def other_log(
    command: Unlearn, language: LanguageModel, examples: Sequence[Example], field: str
) -> EvaluationLog | None:
    """What the model, or the table of scores, that the command names in `field` makes of the examples, in their order.

    Of a table only the responses themselves are known. None where the command names nothing. Raises `InvalidInput` for
    a model of another vocabulary, and for a table of other examples or other tokens.
    """
    from llm.answers import answer_log, log_of, scores
    from llm.models import check_same_vocabulary

    word = getattr(command, field)
    if word is None:
        return None
    if Path(word).is_file():
        own = scores(language, examples, max_length=command.max_length)
        found = own.assign(logp=beside(own, read_scores(word, field), field))
        return log_of(found.assign(answer="gold"), word)
    other = load_model(command, word)
    check_same_vocabulary(language.tokenizer, other.tokenizer, field)
    return answer_log(other, examples, max_length=command.max_length)
