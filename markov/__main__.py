"""Run the Markov lab from the command line: `python -m markov {unlearn,grid} --help`.

With --debug anywhere a command also prints where an error was raised.
"""

# torch and pandas are imported where a command runs, so that --help answers at once.

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from markov.console import ending, limits, progress
from markov.console.choices import OptimizerName, RetainTerm, WeightingName
from markov.console.parts import asked_part, check_collected
from markov.errors import is_whole, require, require_jobs, require_whole
from markov.files import folders, inputs, leftovers, storage
from markov.running.backends import BackendOptions, check_backend, workers

if TYPE_CHECKING:
    import pandas as pd

    from markov.experiments import Experiment
    from markov.objectives import Objective

Method = Literal[
    "npo",
    "simnpo",
    "length_normalized_npo",
    "reference_free_npo",
    "gradient_ascent",
    "length_weighted_gradient_ascent",
]


@dataclass(frozen=True, kw_only=True)
class Common:
    """What `unlearn` and `grid` share."""

    steps: int = 50
    """Unlearning steps."""
    batch: int = 4
    """Forget sequences per step."""
    retain_term: RetainTerm = "none"
    """Loss on retain data that is added to the forget loss."""
    retain_weight: float = 0.0
    """Factor of the retain loss, lambda: above 0 where there is one, else 0."""
    weighting: WeightingName = "own"
    """What is kept of the objective's weights w in each batch, to see what they do.
    own: all;
    magnitude: how large they are, each is replaced by the mean of its batch;
    allocation: how they compare, all are divided by the mean of their batch;
    none: nothing, every weight is 1, which is gradient ascent.
    """
    clip: float | None = None
    """Largest norm of a gradient over all parameters; a larger one is cut to it (default: any)."""
    epochs: int = 5
    """Epochs of pretraining."""
    width: int | None = None
    """Width of the transformer (default: that of the architecture)."""
    depth: int | None = None
    """Number of its blocks (default: that of the architecture)."""
    heads: int | None = None
    """Number of its attention heads (default: that of the architecture)."""
    retain_length: int = 20
    """Tokens of a retain sequence; the first is context, |y| is one less."""
    forget1_length: int | None = None
    """Tokens of a sequence of the first forget chain (default: that of the case)."""
    forget2_length: int | None = None
    """Tokens of a sequence of the second forget chain (default: that of the case)."""
    retain_count: int = 10_000
    """Retain sequences, of which a fifth is for testing."""
    forget_count: int = 5_000
    """Sequences of each forget chain, of which a fifth is for testing."""
    states: int = 10
    """States of the chains."""
    set_size: int = 3
    """States that each of the three chains calls its own."""
    record_every: int = 1
    """Evaluate every so many steps."""
    test_examples: int | None = None
    """Test sequences of each component to evaluate on (default: all)."""
    gradient_examples: int = 0
    """Sequences behind each gradient norm; 0 leaves the norms out."""
    precision: Literal["float32", "float64"] = "float32"
    """Floating-point numbers of the model."""
    device: str = "cpu"
    """Where models are trained and runs made: cpu, cuda or cuda:N."""
    jobs: int = -1
    """Processes; -1 is one per core. Changes the time, never a number.
    Where there is little to do, or a GPU does it, one process does it all.
    """
    out: Path = Path("out/run.parquet")
    """Table to write: one row per run x step x component."""


@dataclass(frozen=True, kw_only=True)
class Unlearn(Common):
    """Pretrain the original and the retrained model, unlearn once, and write the whole path.

    Models that are in the cache are taken from it.

    Example, the paper's Figure 5: python -m markov unlearn --case length --objective simnpo --beta
    4 --seed 1
    """

    case: Literal["length", "memorisation"] = "length"
    """Two lengths of forget data, or forget data that pretraining saw beside data it never saw."""
    objective: Method = "npo"
    """Corner of the family, or its limit."""
    beta: float | None = None
    """Inverse temperature, as published (default: the paper's for the case)."""
    gamma: float = 0.0
    """Reward margin, as published: outside beta."""
    leakage: float = 0.2
    """Probability that a chain leaves its own states, between 0 and 1; the paper's is 0.2."""
    learning_rate: float = 5e-4
    """Step size of unlearning."""
    optimizer: OptimizerName = "adamw_transformers"
    """Rule of an update.
    adamw_transformers: AdamW as in transformers before version 5, which the released code uses;
    adamw: as in torch;
    sgd: plain descent;
    ..._matched: the same direction, but every step is as long as the step size, over all
    parameters, so that only the direction is left of a rule.
    """
    architecture: Literal["paper", "released"] = "paper"
    """What the paper describes, or what its released code trains."""
    seed: int = 0
    """Seed of the order of batches."""
    pretrain_seed: int = 0
    """Seed of the data and of the pretrained model."""


@dataclass(frozen=True, kw_only=True)
class Grid(Common, BackendOptions):
    """Run every combination of the values given; runs that differ in values only share an ensemble.

    Example: python -m markov grid --objective npo simnpo --seed 0 1 2 --pretrain-seed 0 1
    On three machines, each with another I: the same with --part I/3, and then once with --collect.
    """

    case: tuple[Literal["length", "memorisation"], ...] = ("length",)
    """Cases."""
    objective: tuple[Method, ...] = ("npo", "simnpo")
    """Corners of the family."""
    beta: tuple[float, ...] = ()
    """Inverse temperatures (default: the paper's for each case and objective)."""
    gamma: tuple[float, ...] = (0.0,)
    """Reward margins, as published: outside beta."""
    leakage: tuple[float, ...] = (0.2,)
    """Probabilities that a chain leaves its own states, between 0 and 1."""
    learning_rate: tuple[float, ...] = (5e-4,)
    """Step sizes of unlearning."""
    optimizer: tuple[OptimizerName, ...] = ("adamw_transformers",)
    """Rules of an update."""
    architecture: tuple[Literal["paper", "released"], ...] = ("paper",)
    """Architectures."""
    seed: tuple[int, ...] = (0,)
    """Seeds of the order of batches."""
    pretrain_seed: tuple[int, ...] = (0,)
    """Seeds of the data and of the pretrained models."""
    part: str | None = None
    """Make only part I of N, written I/N with I from 0, and write no table.
    It is for the array of a batch system, whose machines share $SIMNPO_LAB_CACHE.
    """
    collect: bool = False
    """Write the table of parts that were all made, and make none."""


def points(command: Grid) -> list[Unlearn]:
    """Return the single runs of a grid; raise `InvalidInput` for an axis without values."""
    common = {field.name: getattr(command, field.name) for field in fields(Common)}
    axes = {
        field.name: getattr(command, field.name)
        for field in fields(Grid)
        if field.name not in (*common, *BackendOptions.__dataclass_fields__, "part", "collect")
    }
    axes["beta"] = axes["beta"] or (None,)
    for name, values in axes.items():
        require(len(values) > 0, name, values, "at least one value")
    runs = math.prod(map(len, axes.values()))
    require(is_whole(runs, *limits.RUNS), "runs", runs, f"at most {limits.RUNS[1]} in a grid")
    return [
        Unlearn(**common, **dict(zip(axes, point, strict=True)))
        for point in itertools.product(*axes.values())
    ]


def experiment(command: Unlearn) -> Experiment:
    """Return the experiment that a command describes.

    Raises `InvalidInput` for settings that are not allowed.
    """
    from markov.cases import CASES
    from markov.experiments import Experiment, Pretraining
    from markov.models import ARCHITECTURES

    _check_steps(command)
    require_jobs(command.jobs)
    lengths = {name: getattr(command, name) for name in ("forget1_length", "forget2_length")}
    case = replace(
        CASES[command.case],
        leakage=command.leakage,
        states=command.states,
        set_size=command.set_size,
        retain_length=command.retain_length,
        retain_count=command.retain_count,
        forget1_count=command.forget_count,
        forget2_count=command.forget_count,
        **{name: length for name, length in lengths.items() if length is not None},
    )
    architecture = ARCHITECTURES[command.architecture]
    shape = {name: getattr(command, name) for name in ("width", "depth", "heads")}
    model = replace(
        architecture,
        states=case.states,
        context=max(architecture.context, *(length - 1 for length in case.lengths.values())),
        **{name: value for name, value in shape.items() if value is not None},
    )
    return Experiment(
        case=case,
        objective=_objective(command),
        model=model,
        pretraining=Pretraining(epochs=command.epochs, seed=command.pretrain_seed),
        seed=command.seed,
        steps=command.steps,
        batch=command.batch,
        learning_rate=command.learning_rate,
        optimizer=command.optimizer,
        retain_term=command.retain_term,
        retain_weight=command.retain_weight,
        weighting=command.weighting,
        clip=command.clip,
        recorded=_recorded(command.steps, command.record_every),
        test_examples=command.test_examples,
        gradient_examples=command.gradient_examples,
        precision=command.precision,
        device=command.device,
    )


def _check_steps(command: Common) -> None:
    """Check what a list of the recorded steps is made of, before it is made."""
    for name in ("steps", "record_every"):
        require_whole(getattr(command, name), name, *limits.STEPS)


@cache  # one tuple for all runs of a grid
def _recorded(steps: int, every: int) -> tuple[int, ...]:
    return (*range(0, steps, every), steps)


def _objective(command: Unlearn) -> Objective:
    from markov.experiments import PAPER_BETAS
    from markov.objectives import AT_BETA_ZERO, CORNERS, Objective

    if command.objective in AT_BETA_ZERO:
        require(not command.beta, "beta", command.beta, f"0, or left out, with {command.objective}")
        return Objective(0.0, command.gamma, 0.0, AT_BETA_ZERO[command.objective])
    reference, normalize = CORNERS[command.objective]
    # A corner that the paper does not use takes the beta of its method that has this normalize.
    published = PAPER_BETAS[command.case]["simnpo" if normalize else "npo"]
    beta = published if command.beta is None else command.beta
    return Objective(beta, command.gamma, reference, normalize)


def summary(table: pd.DataFrame) -> str:
    """Return a text that says, for each run, its distances and when each forget component is done.

    Done is the step at which a component reaches the retrained model's distance.

    The distances are those at the first and the last recorded step.
    """
    from markov.diagnostics import crossings

    lines = []
    found = crossings(table)
    for number, own in table.groupby("run"):
        first = own.iloc[0]
        lines.append(
            f"{first['method']} (beta {first['beta']:g}, gamma {first['gamma']:g}), case "
            f"{first['case']}, "
            f"{first['optimizer']}, seeds {first['pretrain_seed']}/{first['seed']}"
        )
        for component, part in own.groupby("component", sort=False):
            start, end = part.iloc[0], part.iloc[-1]
            line = (
                f"  {component:8} KL(truth || model) {start['kl_to_truth']:.3f} -> "
                f"{end['kl_to_truth']:.3f} nats"
            )
            crossing = found[(found["run"] == number) & (found["component"] == component)]
            for _, row in crossing.iterrows():
                goal = f"; the retrained model's {start['retrained']:.3f}"
                line += (
                    f"{goal} reached at step {row['step']:.1f}"
                    if row["reached"]
                    else f"{goal} never reached"
                )
                line += f", retain distance {row['retain_distance']:.3f}" if row["reached"] else ""
            lines.append(line)
    return "\n".join(lines)


def main(command: Unlearn | Grid) -> None:
    """Check every setting, run the experiments, write the table and print the summary.

    Ensembles that were finished when a command was stopped are not run again by the next one like
    it.
    """
    part, collect, spread = None, False, BackendOptions()
    if isinstance(command, Grid):
        part, collect = asked_part(command.part, command.collect), command.collect
        check_backend(command)
        spread = spread if collect else command
    from markov.running.memory import check_table_size
    from markov.running.run import parts_missing, parts_of, run, run_part

    chosen = points(command) if isinstance(command, Grid) else [command]
    _check_steps(command)
    check_table_size(len(chosen), command.steps, command.record_every)
    experiments = [experiment(point) for point in chosen]
    folders.check_table(command.out)
    parts = parts_of(experiments)
    if part is not None:
        with workers(spread, command.jobs, [], "markov"):
            made = run_part(experiments, *part, parts=parts, n_jobs=command.jobs)
        left = parts_missing(experiments, parts)
        print(f"part {part[0]}/{part[1]}: {made} ensembles; of the whole grid {left} are missing")
        return
    if collect:
        check_collected(parts_missing(experiments, parts), "ensembles")
    with workers(spread, command.jobs, [], "markov"):
        frame = run(experiments, n_jobs=command.jobs, parts=parts)
    seeds = sorted(
        {one.pretraining.seed for one in experiments} | {one.seed for one in experiments}
    )
    storage.write_table(frame, command.out, storage.provenance(experiments, seeds=seeds))
    leftovers.discard(parts)
    print(summary(frame))
    print(f"{len(frame)} rows: {command.out}")


def cli(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments (default: the process's own), run, and return the exit code."""
    commands = (
        Annotated[Unlearn, tyro.conf.subcommand("unlearn", prefix_name=False)]
        | Annotated[Grid, tyro.conf.subcommand("grid", prefix_name=False)]
    )
    given, debug = ending.debugged(arguments)

    def run() -> None:
        command: Any = tyro.cli(commands, prog="python -m markov", description=__doc__, args=given)  # pyright: ignore[reportArgumentType, reportCallIssue]
        with progress.lines():
            main(inputs.expand_all(command))

    return ending.exit_code(run, debug=debug)


if __name__ == "__main__":
    sys.exit(cli())
