"""`python -m llm relearn`: teach an unlearned model a share of what it forgot, and watch the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from llm.commands.options import chosen_rate, write
from llm.models.names import check_retrained, data_of
from llm.models.source import ModelOptions, load_model
from markov.errors import require, require_whole
from markov.files import folders, leftovers, storage

if TYPE_CHECKING:
    from llm.data.tofu import Example
    from llm.models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Relearn(ModelOptions):
    """A relearning attack: fine-tune on a share of the forget data, and score all of it after every
    epoch.

    Writes OUT, a row per attack, epoch, forget example and answer, and beside it OUT with _returns
    before its ending: a row per attack and epoch with forget quality and what comes back untaught,
    where --retrained is given. A command that was stopped goes on after the last attack that it had
    finished. Example: python -m llm relearn --model out/simnpo/model --retrained authors:retrained
    """

    data: str | None = None
    """What was forgotten: authors:SPLIT, tofu:SPLIT (one with perturbed answers), or a file in
    TOFU's JSON (default: for small models authors:forget10)."""
    retrained: str | None = None
    """The model retrained without the forget data, to compare with."""
    which: tuple[Literal["shortest", "random"], ...] = ("shortest", "random")
    """Which examples are taught: those with the shortest responses, or any."""
    share: float = 0.2
    """How many of them."""
    repeats: int = 5
    """Attacks of each kind: other random examples, and another order of batches."""
    epochs: int = 3
    """Passes over the examples that are taught."""
    batch: int = 32
    """Examples per update."""
    learning_rate: float | None = None
    """Largest step size of AdamW, from which it falls to 0 (default: 2e-4 for small models, such as
    those made here, 1e-5 for others)."""
    out: Path = Path("out/relearning.parquet")
    """Table to write."""


def relearn(command: Relearn) -> None:
    """Attack, and print what came back."""
    from llm.data.sources import read
    from llm.evaluation.relearning import Relearning, returns
    from llm.evaluation.relearning import relearn as attack
    from llm.models.answers import answer_log
    from llm.models.language_model import check_same_vocabulary
    from llm.training.loop import Optimization

    require_whole(command.repeats, "repeats", 1)
    require(len(command.which) > 0, "which", command.which, "shortest, random or both")
    rate, data = (
        chosen_rate(command.learning_rate, command.model, small=2e-4),
        data_of(command.model, command.data),
    )
    command = replace(command, learning_rate=rate, data=data)
    check_retrained(command.retrained, data)
    optimization = Optimization(
        epochs=command.epochs,
        batch=command.batch,
        learning_rate=rate,
        warmup_epochs=0,
        budget=command.budget,
    )
    wanted = [
        Relearning(which=which, share=command.share, seed=seed, optimization=optimization)
        for which in dict.fromkeys(command.which)
        for seed in range(command.repeats)
    ]
    inputs = (command.model, command.data, command.retrained)
    for path in (command.out, _returns(command)) if command.retrained else (command.out,):
        folders.check_table(path, inputs=inputs)
    print(f"{command.model} is taught a share of {data}; learning rate {rate:g}")
    forget, language, retrained = read(data), load_model(command), None
    if command.retrained is not None:
        bare = [example.index for example in forget if not example.perturbed]
        allowed = f"perturbed answers in {data}, which forget quality compares"
        require(not bare, "data, index", bare[:1], allowed)
        other = load_model(command, command.retrained)
        check_same_vocabulary(language.tokenizer, other.tokenizer, "retrained")
        retrained = answer_log(other, forget, max_length=command.max_length, budget=command.budget)
        del other
    tables, found, parts = [], [], _unfinished(command, language, forget)
    for one in wanted:
        known, path = (
            {"which": one.which, "repeat": one.seed},
            parts / f"{storage.fingerprint(one)}.parquet",
        )
        if storage.read_kept(path, storage.read_table) is None:
            storage.write_table(
                attack(language, forget, one, max_length=command.max_length), path, {}
            )
        frame = storage.read_table(path)
        frame.attrs = {}
        tables.append(frame.assign(**known))
        if retrained is not None:
            found.append(returns(tables[-1], retrained).assign(**known))
    write(pd.concat(tables, ignore_index=True), command.out, command)
    gold = pd.concat(tables)[lambda frame: frame["answer"] == "gold"]
    each = gold.assign(per_token=gold["logp"] / gold["length"]).groupby(
        ["which", "epoch", "relearned"]
    )["per_token"]
    print("mean of logp/length over repeats, nats per token; relearned: of the examples taught")
    print(
        each.mean()
        .unstack()
        .rename(columns={False: "others", True: "relearned"})
        .to_string(float_format="{:.3f}".format)
    )
    if found:
        path = _returns(command)
        frame = pd.concat(found, ignore_index=True)
        write(frame, path, command)
        shown = frame.groupby(["which", "epoch"])[
            ["forget_quality", "ks_statistic", "other_statistic", "other_returned"]
        ]
        print(shown.agg("median").to_string(float_format="{:.3g}".format))
        print(f"{len(frame)} rows: {path}")
    leftovers.discard(parts)
    print(f"{sum(map(len, tables))} rows: {command.out}")


def _returns(command: Relearn) -> Path:
    return command.out.with_stem(f"{command.out.stem}_returns")


def _unfinished(command: Relearn, language: LanguageModel, forget: Sequence[Example]) -> Path:
    """Where finished attacks are kept until all are: named by what is attacked, with what, and
    by the code.
    """
    from llm.training.checkpointing import parameters_digest

    key = [parameters_digest(language.model), language.template, list(forget), command.max_length]
    return storage.unfinished(key, __name__)
