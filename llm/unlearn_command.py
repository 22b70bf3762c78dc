"""The command that unlearns: a run in a folder, with all that the diagnostics need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm.options import DEFAULTS, ModelOptions, forgetting, load_model, objectives, write
from llm.processes import in_first, joined, started
from llm.score_tables import beside, read_scores
from markov import storage
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
    narrow_updates: bool = False
    """With --dtype bfloat16: update the parameters themselves, not float32 masters of them. Takes half the memory, and
    loses updates of less than 1/512 of a parameter: most of them, at learning rates such as 1e-5."""
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
    """Unlearn into a folder, by all processes that there are."""
    from llm.evaluated import tofu_measure
    from llm.refusals import REFUSALS, read_refusals, with_refusals
    from llm.runs import WEIGHTS, unlearn_into
    from llm.sources import read
    from llm.tofu import tofu_sets
    from llm.unlearning import weights_by_epoch

    asked, chosen, settings = command, objectives(command.objectives), unlearning(command)
    refusals = REFUSALS if command.refusals is None else read_refusals(command.refusals)
    allowed = f"epochs from 0 to {command.epochs}"
    require(set(command.measured) <= {*range(command.epochs + 1)}, "measured", command.measured, allowed)
    in_first(lambda: storage.check_writable(command.out, "out", folder=True))
    command = spread(command)
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
    in_first(lambda: write(weights_by_epoch(run.examples, chosen), command.out / WEIGHTS, asked))
    print(run.epochs.drop(columns=["gradient_norm"]).to_string(index=False, float_format="{:.4g}".format))
    print(f"{len(run.examples)} rows: {command.out / 'examples.parquet'}")


def spread(command: Unlearn) -> Unlearn:
    """The command for this process: where there are several, on a device of its own. Process 0 says how many there are.

    Raises `InvalidInput` for processes that are not joined, and for small models that would be trained by them first.
    """
    if started() == 1:
        return command
    from llm.default_models import DefaultModels, folder_of
    from llm.models import PREFIX

    state = joined()
    print(f"{state.num_processes} processes", file=sys.stderr)
    device = str(state.device) if command.device == "auto" else command.device
    for field in ("model", "reference", "retrained"):
        word = getattr(command, field) or ""
        known = not word.startswith(PREFIX) or folder_of(DefaultModels(), word.removeprefix(PREFIX), device).exists()
        require(known, field, word, "one that is there before several processes start (see `python -m llm build`)")
    return replace(command, device=device)


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
