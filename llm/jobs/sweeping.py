"""Sweep: unlearn by many methods, evaluate each, and put them into one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llm.arguments import checked_job
from llm.jobs.dividing import SPREAD, DividingOptions, check_divided, dealt_out
from llm.jobs.planning import MemoryOption
from llm.jobs.settings import RATE, left_out, lora_of, provenance_of, rate_of
from llm.models.names import check, check_retrained, data_of, is_small, made, retrained_of
from llm.models.source import ModelOptions
from llm.scoring.limits import BUDGET, NEW_TOKENS
from markov.console.parts import check_collected
from markov.errors import InvalidInput, require, require_epochs, require_jobs, require_whole
from markov.files import folders, storage
from markov.files.storage import Location

if TYPE_CHECKING:
    import pandas as pd

    from llm.sweeps.sweep import PlannedRun, Task
    from llm.unlearning.methods import Method

# The paper's table with both ablations between NPO and SimNPO, at the paper's settings for
# forget10.
TABLE = (
    "gradient_ascent",
    "grad_diff@1",
    "npo:0.1@1",
    "reference_free_npo:0.1@1",
    "length_normalized_npo:4.5@0.125",
    "simnpo:4.5@0.125",
)
PROBE = 100  # retained answers that are scored after every epoch
# Batch, and tokens of a forward pass. A small model takes few tokens, so that short
# answers are not padded to the length of long ones.
LARGE = {"batch": 32, "budget": BUDGET}
SMALL = {"batch": 16, "budget": 384}


@dataclass(frozen=True, kw_only=True)
class Sweep(ModelOptions, MemoryOption, DividingOptions):
    """Unlearn by many methods, evaluate each as TOFU does, and put them into the paper's table.

    Without arguments: the paper's table on the model made here. A method is
    NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT]. What its word leaves open takes each value of --beta,
    of --gamma and of --retain-weight in turn: --methods simnpo@1 --beta 2.5 4.5 --gamma 0 1 is a
    grid of four. Names: gradient_ascent, weighted_grad_diff, npo, simnpo, length_normalized_npo,
    reference_free_npo, idk, dpo, simpo; grad_diff, as in the released code a mean over tokens,
    mean_gradient_ascent without its retain term, and summed_grad_diff, where log-probabilities are
    summed; and ga_kl, npo_kl, simnpo_kl with a KL retain term.

    Writes to OUT a folder per run, sweep.parquet (all measures with intervals), summary.parquet,
    summary.md and summary.tex (a row per run), best.parquet (the best settings of each method by
    the rule that is printed). A sweep that was stopped goes on where it was. Example: python -m llm
    sweep --model tofu-llama2-7b --retrained MODEL --data tofu:forget10 --out out/llama
    On three machines, each with another I: the same with --part I/3, and then once with --collect.
    """

    retrained: str | None = None
    """The model retrained without the forget data, which all are compared with.
    Default, for a model made here and authors:forgetNN: the one that read all but these.
    For a file of one's own it may be left out: then so is what compares with it, and is named.
    """
    data: str | None = None
    """What is to be forgotten: authors:forgetNN[:SEED], tofu:forgetNN or FOLDER/forgetNN.
    What is to stay follows from it.
    Or a file of one's own: what needs more than the file has is left out, and named.
    Default: for small models authors:forget20.
    """
    retain_data: str | None = None
    """What is to stay, where it does not follow from --data.
    At most 400 of the examples are measured, always the same.
    """
    methods: tuple[str, ...] = TABLE
    """Methods to run: NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT].
    Default: the paper's table, with its settings for forget10, whatever --data is.
    """
    beta: tuple[float, ...] = ()
    """Inverse temperatures, for methods whose word gives no beta."""
    gamma: tuple[float, ...] = (0.0,)
    """Reward margins, outside beta, for methods whose word gives none and that take one."""
    retain_weight: tuple[float, ...] = (1.0,)
    """Factors of the retain loss, lambda, for methods that have one and whose word gives none."""
    task_vectors: tuple[float, ...] = ()
    """Scales of task vectors to take away.
    They are fine-tuned on the forget data at the same rate (Ilharco et al. 2023).
    """
    seeds: tuple[int, ...] = (0,)
    """Seeds of the order of examples.
    With several the table has their means, and intervals over them.
    """
    epochs: int = 10
    """Passes over the forget data."""
    learning_rate: float | None = None
    """Largest step size of AdamW.
    Default: 1e-3 for small models, below 100 MB as those made here are, 1e-4 for others below
    500 million parameters, 1e-5 for larger ones and for an id of the hub.
    """
    batch: int | None = None
    """Forget examples per update, and as many retain examples.
    Default: 16 for small models, 32 for others.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the products; bfloat16 by autocast."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    measured_epochs: tuple[int, ...] = ()
    """Epochs, from 0 to --epochs, after which D and model utility are taken as well.
    Each takes an evaluation, and needs all four sets of TOFU. The numbers are in epochs.parquet of
    each run.
    """
    lora_rank: int | None = None
    """Train adapters of this rank in all linear layers, not the model itself."""
    refusals: Path | None = None
    """For idk, dpo and simpo: a file of refusals, one per line.
    Default: a hundred that come with this package.
    """
    variant: Literal["geometric", "arithmetic"] = "geometric"
    """Mean of the wrong answers' probabilities in the truth ratio.
    geometric: as in the released code; arithmetic: as in the TOFU paper.
    """
    max_new_tokens: int = NEW_TOKENS
    """At most so many tokens of an answer that a model writes, as in open-unlearning."""
    tolerance: float = 0.05
    """Share of the original's utility that a method's best settings may lose, from 0 to below 1."""
    save_models: bool = False
    """Keep the unlearned models, not only what was measured of them."""
    probe: int = PROBE
    """At most so many retained answers are scored after every epoch."""
    jobs: int | None = None
    """Runs at a time, each with a model in memory; -1 is one per core.
    Default: one per core for small models, one for others. On a GPU it is always one.
    """
    out: Path = Path("out/sweep")
    """Folder to write, or to go on in."""


class Swept(NamedTuple):
    """What a sweep measured.

    `measures` has a row per model and measure (see `llm.sweeps.sweep.sweep`); `summary` a row per
    model, in the paper's layout, averaged over seeds; `best` the settings of each method with the
    smallest D among those that keep enough of the original's utility. Measures whose data are
    missing are left out, and without D and utility `best` has no rows.
    """

    measures: pd.DataFrame
    summary: pd.DataFrame
    best: pd.DataFrame

    def __repr__(self) -> str:
        from llm.logs.summaries import markdown

        return markdown(self.summary)


@checked_job
def sweep(
    methods: Sequence[str] = TABLE,
    *,
    out: Location,
    model: Location = "authors:original",
    retrained: Location | None = None,
    data: Location | None = None,
    retain_data: Location | None = None,
    beta: Sequence[float] = (),
    gamma: Sequence[float] = (0.0,),
    retain_weight: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    epochs: int = 10,
    learning_rate: float | None = None,
    jobs: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Swept:
    """Return TOFU's measures of a model after each of many methods, beside the retrained model.

    Methods are words such as simnpo:4.5@0.125; what a word leaves open takes every value of `beta`,
    `gamma` and `retain_weight` in turn. Each run has a folder in `out`, which holds the tables of
    `python -m llm sweep` as well; a sweep that was stopped goes on where it was. Models are words
    here, since each run loads its own. `options` are further fields of `Sweep`.

    Raises `InvalidInput` for words and numbers that are not allowed, and for a folder of another
    sweep.
    """
    asked = Sweep(
        methods=tuple(methods),
        out=Path(out),
        model=str(model),
        retrained=None if retrained is None else str(retrained),
        data=None if data is None else str(data),
        retain_data=None if retain_data is None else str(retain_data),
        beta=tuple(beta),
        gamma=tuple(gamma),
        retain_weight=tuple(retain_weight),
        seeds=tuple(seeds),
        epochs=epochs,
        learning_rate=learning_rate,
        jobs=jobs,
        **options,
    )
    return swept(checked(asked), progress=progress)


def checked(asked: Sweep) -> Sweep:
    """Return the same sweep with nothing left open.

    Raises `InvalidInput` for values that are not allowed, and for a folder that cannot be used.
    """
    check_divided(asked)
    given = len(asked.methods) + len(asked.task_vectors)
    require(given > 0, "methods", (), "at least one, or a scale of --task-vectors")
    require_jobs(jobs_of(asked))
    require(0 <= asked.tolerance < 1, "tolerance", asked.tolerance, "a share >= 0, below 1")
    if not asked.methods:
        left_out(asked, {"measured_epochs", "probe"}, "left out, since no method has epochs")
    found = resolved(asked)
    inputs = (found.model, found.retrained, found.data, found.retain_data, found.refusals)
    folders.check_place(found.out, inputs=inputs)
    return found


def jobs_of(asked: Sweep) -> int:
    """Return how many runs are made at a time: by default one of a model that is not small."""
    if asked.jobs is not None:
        return asked.jobs
    return -1 if is_small(asked.model) else 1


def swept(asked: Sweep, *, progress: bool = True) -> Swept:
    """Make the runs that are not there, write their tables, and return the tables."""
    from llm.logs.summaries import best, over_seeds, summary
    from llm.sweeps.parts import missing
    from llm.sweeps.sweep import sweep as make

    require(asked.part is None, "part", asked.part, "left out: a part has no tables")
    task, runs = task_of(asked), runs_of(asked)
    if asked.collect:
        left = missing(asked.out, task, runs)
        check_collected(len(left), "models", left)
    with dealt_out(asked, jobs_of(asked), asked.out):
        found = make(asked.out, task, runs, n_jobs=jobs_of(asked), progress=progress)
    table = summary(over_seeds(found))
    ranked = {"ks_statistic", "model_utility"} <= set(found["measure"])
    chosen = best(found, asked.tolerance) if ranked else found.iloc[:0]
    known = provenance_of(asked, SPREAD)
    if ranked:
        storage.write_table(chosen, asked.out / "best.parquet", known)
    write_summary(table, asked.out, known)
    # Written last, so that where it exists all other tables exist.
    storage.write_table(found, asked.out / "sweep.parquet", known)
    return Swept(found, table, chosen)


def write_summary(
    table: pd.DataFrame, out: Path, known: Mapping[str, Any], caveat: str = ""
) -> None:
    """Write a summary as a table, in Markdown and in LaTeX, with its provenance `known`.

    A `caveat` stands below it in Markdown, and in LaTeX as a comment.
    """
    from llm.logs.summaries import latex, markdown

    path = out / "summary.parquet"
    flat = table.set_axis([" ".join(filter(None, pair)) for pair in table.columns], axis=1)
    storage.write_table(flat, path, known)
    below = {".md": f"\n{caveat}\n", ".tex": f"% {caveat}\n"} if caveat else {}
    for suffix, text in ((".md", markdown(table)), (".tex", latex(table))):
        with storage.atomic_path(path.with_suffix(suffix)) as partial:
            partial.write_text(text + below.get(suffix, ""), "utf-8")


def _check_all_used(command: Sweep, found: Sequence[Method]) -> None:
    """Raise `InvalidInput` for numbers of a grid, or refusals, that none of the methods takes."""
    from llm.unlearning.methods import METHODS, parsed

    asked = [
        (METHODS[name], numbers, weight) for name, numbers, weight in map(parsed, command.methods)
    ]
    opened = {axis for form, numbers, _ in asked for axis in form.takes[len(numbers) :]}
    opened |= {
        "retain_weight"
        for form, _, weight in asked
        if weight is None and form.retain_term != "none"
    }
    taken = opened | ({"refusals"} if any(one.prefers for one in found) else set())
    unused = {"beta", "gamma", "retain_weight", "refusals"} - taken
    left_out(command, unused, "left out, since no method of --methods leaves it open")


def resolved(command: Sweep) -> Sweep:
    """Return the same command with its data and its retrained model filled in.

    Raises `InvalidInput` for words that do not go together.
    """
    from llm.data.splits import is_own, retain_of, split_of

    check(command.model)
    free = command.data is not None and is_own(command.data)
    if command.retrained is None and made(command.model) is None and not free:
        raise InvalidInput(
            "retrained",
            None,
            "the model retrained without the forget data: all are compared with it",
        )
    data = data_of(command.model, command.data)
    if is_own(data):
        retain_of(data, command.retain_data)
    else:
        split_of(data)
    retrained = retrained_of(data) if command.retrained is None else command.retrained
    if retrained is None and not free:
        raise InvalidInput(
            "retrained", None, f"named: of {data} none is known that was retrained without them"
        )
    check_retrained(retrained, data)
    return replace(command, data=data, retrained=retrained)


def task_of(command: Sweep) -> Task:
    """Return what all runs of a command have in common: models, data and evaluation.

    Raises `InvalidInput` as `resolved` does, and for refusals that cannot be read.
    """
    from llm.data.refusals import REFUSALS, read_refusals
    from llm.sweeps.sweep import Task

    command = resolved(command)
    assert command.data is not None
    return Task(
        options=ModelOptions(
            **{name: getattr(command, name) for name in ModelOptions.__dataclass_fields__}
        ),
        retrained=command.retrained,
        data=command.data,
        retain_data=command.retain_data,
        refusals=REFUSALS if command.refusals is None else read_refusals(command.refusals),
        max_new_tokens=command.max_new_tokens,
        variant=command.variant,
        save_models=command.save_models,
    )


def runs_of(command: Sweep) -> list[PlannedRun]:
    """Return the runs that a command asks for.

    Raises `InvalidInput` for words and numbers that are not allowed.
    """
    from llm.sweeps.sweep import PlannedRun
    from llm.training.loop import Optimization
    from llm.unlearning.methods import methods

    require(len(command.seeds) > 0, "seeds", command.seeds, "at least one")
    require_whole(command.probe, "probe", 1)
    require_epochs(command.measured_epochs, "measured_epochs", command.epochs)
    given = SMALL if is_small(command.model) else LARGE
    asked: dict[str, Any] = {} if command.batch is None else {"batch": command.batch}
    asked |= {"learning_rate": rate_of(command.learning_rate, command.model, small=RATE)}
    asked |= {"budget": command.budget} if command.budget != BUDGET else {}
    every = [
        Optimization(
            epochs=command.epochs,
            precision=command.precision,
            gradient_checkpointing=command.gradient_checkpointing,
            seed=seed,
            **{**given, **asked},  # pyright: ignore[reportArgumentType]
        )
        for seed in command.seeds
    ]
    grid = {"beta": command.beta, "gamma": command.gamma, "retain_weight": command.retain_weight}
    words = methods(command.methods, **grid) if command.methods else []
    lora = lora_of(command.lora_rank)
    if command.task_vectors:
        left_out(command, {"lora_rank"}, "left out: a task vector is of all parameters")
    _check_all_used(command, words)
    runs = [
        PlannedRun(
            method=one,
            optimization=optimization,
            retain_probe=command.probe,
            measured=command.measured_epochs,
            lora=lora,
        )
        for one in words
        for optimization in every
    ]
    return runs + [
        PlannedRun(method=None, scale=one, optimization=own)
        for one in command.task_vectors
        for own in every
    ]
