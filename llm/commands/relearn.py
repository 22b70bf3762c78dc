"""`python -m llm relearn`: teach a model a share of what it forgot, and watch the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llm.commands.options import TrainingOptions, optimization_of, spread, write
from llm.evaluation.attacks import Which, attacks
from llm.jobs.planning import MemoryOption, planned, precision_of
from llm.jobs.settings import RATE, lora_of, rate_of
from llm.models.names import check_retrained, data_of
from llm.models.source import load_model
from llm.training.processes import in_first
from markov.errors import require
from markov.files import folders, leftovers


@dataclass(frozen=True, kw_only=True)
class Relearn(TrainingOptions, MemoryOption):
    """A relearning attack: fine-tune on a share of the forget data.
    All of it is scored after every epoch.

    Writes OUT, a row per attack, epoch, forget example and answer, and beside it OUT with _returns
    before its ending: a row per attack and epoch with forget quality and what comes back untaught,
    where --retrained is given. A command that was stopped goes on after the last attack that it had
    finished. Example: python -m llm relearn --model out/simnpo/model --retrained authors:retrained
    """

    data: str | None = None
    """What was forgotten: authors:SPLIT, tofu:SPLIT, or a file in TOFU's JSON.
    A split of TOFU's is one with perturbed answers.
    Of a file without these, forget quality is left out, and named.
    Default: for small models authors:forget20.
    """
    retrained: str | None = None
    """The model retrained without the forget data, to compare with."""
    which: tuple[Which, ...] = ("shortest", "random")
    """Which examples are taught: those with the shortest responses, or any."""
    share: float = 0.2
    """Share of the forget examples that is taught, between 0 and 1; the paper's is 0.2."""
    repeats: int = 5
    """Attacks of each kind, each with other random examples and another order of batches."""
    epochs: int = 3
    """Passes over the examples that are taught."""
    batch: int = 32
    """Examples per update."""
    learning_rate: float | None = None
    """Largest step size of AdamW, from which it falls to 0.
    Default: 1e-3 for small models, below 100 MB as those made here are, 1e-4 for others below
    500 million parameters, 1e-5 for larger ones and for an id of the hub.
    """
    out: Path = Path("out/relearning.parquet")
    """Table to write."""


def relearn(command: Relearn) -> None:
    """Attack, and print what came back."""
    rate = rate_of(command.learning_rate, command.model, small=RATE)
    command = replace(command, learning_rate=rate, precision=precision_of(command))
    every = optimization_of(command, warmup_epochs=0)
    wanted = attacks(
        command.which, command.share, command.repeats, every, lora_of(command.lora_rank)
    )
    data = data_of(command.model, command.data)
    command = replace(command, data=data)
    check_retrained(command.retrained, data)
    inputs = (command.model, command.data, command.retrained)
    for path in (command.out, _returns(command)) if command.retrained else (command.out,):
        in_first(partial(folders.check_table, path, inputs=inputs))

    planned(command, training=True, copies=1)

    # What is refused above need not wait for these.
    from llm.data.sources import read
    from llm.data.splits import forget_of
    from llm.jobs.relearning import attacked, unfinished
    from llm.jobs.values import model_beside
    from llm.models.answers import answer_log

    print(f"{command.model} is taught a share of {data}; learning rate {rate:g}")
    here = spread(command)
    # Wrong answers are asked for only where they are compared.
    forget = read(data) if command.retrained is None else forget_of(data)
    retrained = None
    if command.retrained is not None:
        bare = [example.index for example in forget if not example.perturbed]
        if len(bare) == len(forget):
            print("no forget_quality: no wrong answers (perturbed_answer) to the questions")
            bare = []
        allowed = f"perturbed answers in {data}, which forget quality compares"
        require(not bare, "data, index", bare[:1], allowed)
    language = load_model(here)
    if command.retrained is not None:
        load = partial(load_model, here)
        other = model_beside(command.retrained, language, "retrained", load=load)
        retrained = answer_log(other, forget, max_length=command.max_length, budget=command.budget)
        del other
    parts = unfinished(language, forget, command.max_length)
    found = attacked(language, forget, wanted, retrained, parts, max_length=command.max_length)
    write(found.examples, command.out, command, language)
    print("mean of logp/length over repeats, nats per token; relearned: of the examples taught")
    print(found)
    if found.returns is not None:
        path = _returns(command)
        write(found.returns, path, command, language)
        names = ("forget_quality", "ks_statistic", "other_statistic", "extraction_strength")
        names += ("other_extraction", "other_returned")
        names = [name for name in names if name in found.returns]
        shown = found.returns.groupby(["which", "epoch"])[names]
        print(shown.agg("median").to_string(float_format="{:.3g}".format))
        print(f"{len(found.returns)} rows: {path}")
    in_first(lambda: leftovers.discard(parts))
    print(f"{len(found.examples)} rows: {command.out}")


def _returns(command: Relearn) -> Path:
    return command.out.with_stem(f"{command.out.stem}_returns")
