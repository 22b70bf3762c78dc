"""The command that fine-tunes: the two models that every study needs, each in a folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llm.commands.options import PassOptions, optimization_of, spread
from llm.jobs.finetuning import BATCH, EPOCHS, PROBE
from llm.jobs.planning import MemoryOption, planned, precision_of, state_minutes_of
from llm.jobs.settings import lora_of
from llm.models.names import check
from llm.models.source import load_model
from llm.training.processes import in_first
from markov.errors import require, require_whole
from markov.files import folders


@dataclass(frozen=True, kw_only=True)
class Finetune(PassOptions, MemoryOption):
    """Teach a model answers: the original of a study, or the model retrained without some of them.
    A fine-tuning that was stopped goes on where it was.

    Writes to the folder OUT: epochs.parquet, a row per epoch with the loss as it was seen;
    memorised.parquet, a row per epoch and set with what the model knows by heart; and model/, for
    transformers and for every other command. A model has learnt the data if `probability` is near 1
    on them. A retrained one must not know what was left out. Example:
    python -m llm finetune --model MODEL --data tofu:full --without tofu:forget05 --out out/less
    """

    data: tuple[str, ...] = ()
    """What is learnt: words such as tofu:full, files in TOFU's JSON, or several of them."""
    without: tuple[str, ...] = ()
    """What is left out of the data, in the same words.
    An example is left out where question and answer are the same; all have to be among the data.
    """
    watch: tuple[str, ...] = ()
    """What is measured besides the data and what was left out, in the same words.
    For example the forget set, and questions that are not learnt.
    """
    epochs: int = EPOCHS
    """Passes over the data.
    The learning rate rises over --warmup-epochs and falls to 0 over the others.
    """
    batch: int = BATCH
    """Examples per update."""
    learning_rate: float | None = None
    """Largest step size of AdamW.
    Default: 1e-3 below 25 million parameters, 3e-4 below 500 million, 1e-5 for others.
    """
    probe: int = PROBE
    """At most so many examples of each set are measured, always the same."""
    out: Path = Path("out/finetuned")
    """Folder to write, or to go on in."""


def finetune(command: Finetune) -> None:
    """Fine-tune into a folder, by all processes that there are."""
    check(command.model)
    require(len(command.data) > 0, "data", (), "at least one word or file of what is to be learnt")
    require_whole(command.probe, "probe", 1)
    command = replace(command, precision=precision_of(command))
    given = optimization_of(command)
    inputs = (command.model, *command.data, *command.without, *command.watch)
    in_first(lambda: folders.check_place(command.out, inputs=inputs))
    lora = lora_of(command.lora_rank)

    # What is refused above need not wait for these.
    from llm.jobs.finetuning import read_sets, with_rate
    from llm.models.finetuned import LEARNT, MEMORISED, MODEL, finetune_into

    command = spread(command)
    plan = planned(command, training=True)
    examples, watched = read_sets(command.data, command.without, command.watch, command.probe)
    language = load_model(command)
    settings = with_rate(given, command.learning_rate, language)
    less = f" without {' '.join(command.without)}" if command.without else ""
    print(
        f"{command.model} learns {' '.join(command.data)}{less}: {len(examples)} examples, "
        f"{settings.epochs} epochs, learning rate {settings.learning_rate:g}"
    )
    found = finetune_into(
        command.out,
        language,
        examples,
        settings,
        lora=lora,
        watched=watched,
        max_length=command.max_length,
        state_minutes=state_minutes_of(command.keep_state, plan),
    )
    print(
        f"loss: over the tokens of an epoch, as seen; {LEARNT}: what is learnt; recited: share of"
    )
    print("an answer's tokens that greedy decoding gets right before its first mistake")
    print(found.table)
    print(
        f"{len(found.memorised)} rows: {command.out / MEMORISED}; the model: {command.out / MODEL}"
    )
