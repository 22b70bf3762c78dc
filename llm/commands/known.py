"""The command that asks a model what it knows, and splits that into two files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm.commands.options import plain_warnings, spread
from llm.jobs.knowing import RECALL, SHARE, WAY, WRITTEN, Way
from llm.jobs.planning import MemoryOption, planned
from llm.models.names import check
from llm.models.source import ModelOptions, load_model
from llm.training.processes import in_first
from markov.errors import require_whole
from markov.files import folders


@dataclass(frozen=True, kw_only=True)
class Known(ModelOptions, MemoryOption):
    """Find what a model knows, and split it into what is to be forgotten and what is to stay.
    Nothing is taught: the model is asked, and what it answers right is kept.

    By probability an answer is right if it is likelier, per token, than every wrong one; a tie is
    wrong. By writing it is right if its words stand, in their order, in what the model writes, and
    not in the question. The numbers by each way and by both are printed, with the guesses.

    Writes to the folder OUT: forget_own.jsonl and retain_own.jsonl, with answers in the model's own
    words, for --data and --retain-data of unlearn, evaluate and sweep, and --data of relearn;
    forget.jsonl and retain.jsonl, with the answers as given, to ask them again; known.parquet, a
    row per question; counts.parquet, the numbers of right answers; weights_own.parquet and
    weights.parquet, the weights of the four corners before the first update. Example:
    python -m llm known --model MODEL --data FILE --retain-data OTHER --out out/known
    """

    data: tuple[str, ...] = ()
    """Questions of which some are to be forgotten.
    Words such as tofu:real_authors_perturbed, files in TOFU's JSON, or several of them.
    """
    retain_data: tuple[str, ...] = ()
    """Questions of which all that are known are to stay, in the same words.
    What is known of --data and is not to be forgotten stays too.
    """
    way: Way = WAY
    """What counts as right: the likeliest answer, one that is written, or both."""
    recall: float = RECALL
    """By writing: the least share of an answer's words that have to be written (ROUGE-L recall).
    The default, all of them, is for answers of a few words.
    """
    words: Literal["latin", "any"] = "latin"
    """By writing: what counts as a word, as in `evaluate`."""
    max_new_tokens: int = WRITTEN
    """At most so many tokens of an answer that the model writes.
    The longer a text, the more words it has by chance.
    """
    share: float | None = SHARE
    """Share of what is known of --data that is to be forgotten.
    1 forgets all of it, where there is --retain-data. None asks only, and splits nothing, which
    shows after unlearning what is left.
    """
    seed: int = 0
    """Seed of the split."""
    out: Path = Path("out/known")
    """Folder to write."""


def known(command: Known) -> None:
    """Ask a model, by all processes that there are, and write what it knows."""
    from llm.jobs.knowing import asked_into, checked_split, read_questions, report

    check(command.model)
    retains = len(command.retain_data) > 0
    split = checked_split(command.way, command.share, command.seed, command.recall, retains=retains)
    require_whole(command.max_new_tokens, "max_new_tokens", 1)
    inputs = (command.model, *command.data, *command.retain_data)
    in_first(lambda: folders.check_place(command.out, inputs=inputs))
    questions = read_questions(command.data, command.retain_data, command.way)
    planned(command, writing=command.max_new_tokens)
    names = ("recall", "words", "max_new_tokens", "max_length")
    options: dict[str, Any] = {name: getattr(command, name) for name in names}
    language = load_model(spread(command))
    with plain_warnings():
        found = asked_into(command.out, language, questions, split, options, budget=command.budget)
    print(report(found))
    print(f"{len(found.table)} rows: {command.out}")
