"""Language models from the command line, `python -m llm COMMAND --help`:
build, gate, study, finetune, known, score, weights, unlearn, evaluate, relearn, sweep, muse,
diagnose.

The same diagnostics as for the Markov chains, on any causal language model: score the responses of
a data set, weigh them under any objective, unlearn, and ask whether the effort goes where it is
needed. Nothing is downloaded unless a name from the hub is given: `authors:...` are models and data
made here. Try

    python -m llm build
    python -m llm score --model authors:original --data authors:forget20 --out original.parquet
    python -m llm score --model authors:retrained --data authors:forget20 --out retrained.parquet
    python -m llm weights --scores original.parquet --reference original.parquet \\
        --retrained retrained.parquet
    python -m llm unlearn --objective simnpo:4.5@0.125 --out out/simnpo

    python -m llm evaluate --model out/simnpo/model --retrained authors:retrained
    python -m llm relearn --model out/simnpo/model --retrained authors:retrained
    python -m llm sweep --out out/table
    python -m llm muse --retrained news:retrained --unlearn simnpo:0.7

with a model of your own, which has to learn the answers first, all of them or all but some,

    python -m llm finetune --model MODEL --data tofu:full --out out/original
    python -m llm finetune --model MODEL --data tofu:full --without tofu:forget05 \\
        --out out/retrained

or all at once, `python -m llm study --model MODEL --data tofu:forget05`; with what a model knows
already, which nobody has to teach it,

    python -m llm known --model MODEL --data tofu:real_authors_perturbed --out out/known

on several GPUs, `torchrun --nproc_per_node 2 -m llm score ...`, and so evaluate, finetune, known,
unlearn, relearn and muse; and, where there are only evaluation logs of TOFU runs, `python -m llm
evaluate --logs DIR --retrained-logs DIR` and `python -m llm diagnose --logs DIR --retrained-logs
DIR`. With --debug anywhere a command also prints where an error was raised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from threading import TIMEOUT_MAX
from typing import Annotated, Any

import tyro

from llm.arguments import check_command
from llm.commands.build import Build, build
from llm.commands.diagnose import Diagnose, diagnose
from llm.commands.evaluate import Evaluate, evaluate
from llm.commands.finetune import Finetune, finetune
from llm.commands.gate import Gate, gate
from llm.commands.known import Known, known
from llm.commands.muse import Muse, muse
from llm.commands.relearn import Relearn, relearn
from llm.commands.score import Score, score
from llm.commands.study import study
from llm.commands.sweep import sweep
from llm.commands.unlearn import Unlearn, unlearn
from llm.commands.weights import Weights, weights
from llm.jobs.planning import MemoryOption, check_weights
from llm.jobs.study_settings import Study
from llm.jobs.sweeping import Sweep
from llm.ranks import place, started
from llm.training.processes import in_one_voice
from markov.console import ending, progress
from markov.errors import require
from markov.files import inputs

ACTIONS: dict[type, Callable[[Any], None]] = {
    Build: build,
    Gate: gate,
    Study: study,
    Finetune: finetune,
    Known: known,
    Score: score,
    Weights: weights,
    Unlearn: unlearn,
    Evaluate: evaluate,
    Relearn: relearn,
    Sweep: sweep,
    Muse: muse,
    Diagnose: diagnose,
}
# Commands that deal their work out to several processes.
SPREAD = (Score, Finetune, Known, Unlearn, Evaluate, Relearn, Muse)
# Commands that train a model whatever they are asked.
TRAINING = (Study, Finetune, Unlearn, Relearn, Sweep)


def parse(arguments: Sequence[str] | None = None) -> Any:
    """Return the command that the arguments (default: the process's own) ask for."""
    commands = (
        Annotated[Build, tyro.conf.subcommand("build", prefix_name=False)]
        | Annotated[Gate, tyro.conf.subcommand("gate", prefix_name=False)]
        | Annotated[Study, tyro.conf.subcommand("study", prefix_name=False)]
        | Annotated[Finetune, tyro.conf.subcommand("finetune", prefix_name=False)]
        | Annotated[Known, tyro.conf.subcommand("known", prefix_name=False)]
        | Annotated[Score, tyro.conf.subcommand("score", prefix_name=False)]
        | Annotated[Weights, tyro.conf.subcommand("weights", prefix_name=False)]
        | Annotated[Unlearn, tyro.conf.subcommand("unlearn", prefix_name=False)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate", prefix_name=False)]
        | Annotated[Relearn, tyro.conf.subcommand("relearn", prefix_name=False)]
        | Annotated[Sweep, tyro.conf.subcommand("sweep", prefix_name=False)]
        | Annotated[Muse, tyro.conf.subcommand("muse", prefix_name=False)]
        | Annotated[Diagnose, tyro.conf.subcommand("diagnose", prefix_name=False)]
    )
    return tyro.cli(commands, prog="python -m llm", description=__doc__, args=arguments)  # pyright: ignore[reportArgumentType, reportCallIssue]


def cli(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run, and return the exit code."""

    def run() -> int:
        given, debug = ending.debugged(arguments)
        parsed = []
        code = ending.exit_code(lambda: parsed.append(parse(given)), debug=debug)
        if code:
            return code
        (command,) = parsed
        every = progress.MINUTE if place() == 0 else TIMEOUT_MAX  # the others say nothing
        with progress.lines(every=every):
            return ending.exit_code(
                lambda: act(command), lower=lower(command), debug=debug, alone=started() == 1
            )

    return in_one_voice(run)


def lower(command: Any) -> str:
    """Return the options of a command that lower the memory it takes, in words."""
    words = {
        "budget": f"--budget {max(1, getattr(command, 'budget', 0) // 2)}",
        "gradient_checkpointing": "--gradient-checkpointing",
        "lora_rank": "--lora-rank 8",
        "dtype": "--dtype bfloat16",
        "jobs": "--jobs 1",
    }
    found = [word for field, word in words.items() if field in vars(command)]
    return " or ".join(found) or "smaller inputs"


def act(command: Any) -> None:
    """Do what a command asks for.

    Raises `InvalidInput` for a command that would do the same work in several processes, and for a
    model whose weights cannot fit, before anything that takes seconds is imported.
    """
    command = inputs.expand_all(command)
    check_command(command)
    spread = isinstance(command, SPREAD)
    require(
        spread or started() == 1,
        "processes",
        started(),
        "1: this command does not deal its work out",
    )
    if isinstance(command, MemoryOption):
        check_weights(command, training=isinstance(command, TRAINING))
    ACTIONS[type(command)](command)


if __name__ == "__main__":
    sys.exit(cli())
