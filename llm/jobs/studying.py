"""Study: from one pretrained model to the table of all methods, with the models that it needs.

    data/                  the part of the data that is studied, if it is not all of it
    seedN/original/        the model that learnt all of them (`llm.models.finetuned`); a seed that
                           is there for the floor has none, and of what follows retrained/ and its
                           evaluation in sweep/ only
    seedN/retrained/       the one that learnt all but what is to be forgotten
    seedN/sweep/           a folder per method, unlearned and evaluated (`llm.sweeps.sweep`)
    seedN/attacks/         what comes back of each attacked model (`llm.jobs.relearning`)
    gate.parquet           whether the two models are fit to compare methods by, seed by seed
    gate_over_seeds.parquet    whether all of them are, where there are several
    components.parquet     what their models score, by seed
    measures.parquet       every measure of every model and seed
    differences.parquet    by how much any two methods differ, on the same questions
    attacks.parquet        what came back, by model, seed, attack and epoch
    times.parquet          how long each part of it took (see `llm.sweeps.times`)
    summary.{parquet,md,tex}    the paper's table, with intervals over seeds where there are several
    figures/               what `python -m figures --study` draws of it

Each part goes on where it was stopped, and is not done twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from llm.arguments import checked_job
from llm.jobs import trained_here
from llm.jobs.replicates import (
    KINDS,
    TIMES,
    Replicate,
    attacked_models,
    replicate,
    retrained_beside,
    stacked,
    swept,
)
from llm.jobs.settings import provenance_of
from llm.jobs.study_settings import JOB, METHODS, Study, asked_for, described, part_asked
from llm.jobs.sweeping import write_summary
from markov.errors import InvalidInput
from markov.files import folders, storage
from markov.files.storage import Location

if TYPE_CHECKING:
    import pandas as pd


# Of several seeds alone.
OVER, COMPONENTS = OF_SEVERAL = ("gate_over_seeds.parquet", "components.parquet")
FILES = (
    *(f"{name}.parquet" for name in ("gate", "measures", "differences", "attacks")),
    *(f"{name}.parquet" for name in ("summary", "times")),
    *OF_SEVERAL,
    "summary.md",
    "summary.tex",
)


class OnGate(Protocol):
    """Is told what the gate found, D between retrained models, and what holds over the seeds."""

    def __call__(
        self, gate: pd.DataFrame, floor: tuple[float, ...], over: pd.DataFrame | None
    ) -> object: ...


class Studied(NamedTuple):
    """What a study found.

    `measures` has a row per seed, model and measure; `differences` one per seed, pair of methods
    and measure (see `llm.logs.comparing.differences`); `gate` a row per check (see
    `llm.evaluation.gate`); `attacks` a row per seed, model, attack and epoch (see
    `llm.evaluation.relearning.returns`), and `floor` D between the retrained models of any two
    seeds, with those of `floor_seeds`.
    """

    measures: pd.DataFrame
    gate: pd.DataFrame
    attacks: pd.DataFrame
    floor: tuple[float, ...]
    differences: pd.DataFrame

    @property
    def summary(self) -> pd.DataFrame:
        """A row per method in the paper's layout, the mean over seeds."""
        from llm.logs.summaries import over_seeds, summary

        return summary(over_seeds(self.measures))

    def __repr__(self) -> str:
        from llm.logs.summaries import markdown

        return markdown(self.summary)


@checked_job
def study(
    model: Location,
    data: Location = "tofu:forget05",
    *,
    out: Location,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    progress: bool = True,
    **options: Any,
) -> Studied:
    """Return what all methods do to a model, from its pretrained weights on.

    Everything is written to the folder `out` as `python -m llm study` does, and goes on where it
    was if it was stopped. `options` are further fields of `Study`. Raises `InvalidInput` for words
    and numbers that are not allowed, for a folder of another study, and for two models by which
    methods cannot be compared.
    """
    asked = asked_for(model, data, out=out, methods=methods, seeds=seeds, **options)
    return studied(asked, progress=progress)


def studied(
    asked: Study,
    *,
    progress: bool = True,
    on_gate: OnGate | None = None,
) -> Studied:
    """Make what is not there yet, write the tables, and return them.

    `on_gate` is called before any method is compared.
    """
    out = storage.check_writable(asked.out, "out", folder=True)
    with folders.given_back(out, JOB):
        folders.claim(out, JOB, described(asked), names=("data", "figures", *FILES))
        data = _data(asked, out)
        with _timed(asked):
            trained_here.make(asked, asked.seeds, KINDS, progress)
            seeds = [replicate(asked, out, data, seed, progress) for seed in asked.seeds]
    with _timed(asked):
        return _compared(asked, seeds, progress, on_gate)


def _compared(
    asked: Study,
    seeds: Sequence[Replicate],
    progress: bool,
    on_gate: OnGate | None,
) -> Studied:
    """Compare the methods by the models of all seeds, unless these fail at the gate."""
    from llm.evaluation.gate import FAILS, all_known, components, floor, gate, gate_over_seeds

    out = asked.out
    for one in seeds:
        swept(one, (), progress)
    models = {one.seed: one.logs() for one in seeds}
    found = gate(models)
    lacking = found[found["verdict"] == FAILS]
    refused = len(lacking) > 0 and not asked.despite_gate
    # No floor is made below two models that no method is compared by.
    more = () if refused else asked.floor_seeds
    trained_here.make(asked, more, KINDS[1:], progress)
    alone = [retrained_beside(asked, seeds[0], seed, progress) for seed in more]
    logs = [one.retrained_log() for one in (*seeds, *alone)]
    lowest = floor(logs) if all(log.perturbed is not None for log in logs) else ()
    over = gate_over_seeds(models) if len(models) > 1 and all_known(models) else None
    if on_gate is not None:
        on_gate(found, lowest, over)
    storage.write_table(found, out / "gate.parquet", provenance_of(asked))
    if over is not None:
        storage.write_table(over, out / OVER, provenance_of(asked))
        storage.write_table(components(models), out / COMPONENTS, provenance_of(asked))
    for name in () if over is not None else OF_SEVERAL:  # of seeds that were asked for before
        (out / name).unlink(missing_ok=True)
    if refused:
        raise _refusal(lacking.iloc[0])
    back = stacked(attacked_models(asked, one, progress) for one in seeds)
    measured = stacked(swept(one, asked.methods, progress).assign(seed=one.seed) for one in seeds)
    apart = stacked(_differences(asked, one) for one in seeds)
    done = Studied(measured, found, back, lowest, apart)
    _write(asked, out, done)
    return done


def _differences(asked: Study, one: Replicate) -> pd.DataFrame:
    """Return by how much any two methods of a seed differ, on the same questions."""
    from llm.data.by_author import per_author
    from llm.logs.comparing import differences

    retrained, task = one.retrained_log(), one.task
    known = retrained if retrained.perturbed is not None else None
    authors = per_author(task.data, task.sets(), task.authors, retain=task.retain_data)
    found = differences(one.unlearned(asked.methods), known, per_author=authors)
    return found.assign(seed=one.seed)


def _caveat(gate: pd.DataFrame) -> str:
    """Return what a table has to say of models that were not shown to be fit; mostly nothing."""
    from llm.evaluation.gate import PASSES

    left = gate[gate["verdict"] != PASSES]
    each = (f"{row['check']}, seed {row['seed']}: {row['verdict']}" for _, row in left.iterrows())
    return f"Gate: {'; '.join(each)}." if len(left) else ""


def _refusal(check: pd.Series) -> InvalidInput:
    """Return what is said of a check that fails."""
    return InvalidInput(
        f"gate, {check['check']}, seed {check['seed']}",
        round(float(check["value"]), 3),
        f"{check['allowed']}: with such models no method can be judged. Other --learning-epochs or "
        "--learning-rate may help, with another --out; --despite-gate goes on",
    )


def _data(asked: Study, out: Path) -> str:
    """Return the word of what is to be forgotten: all of it, or a part that is written now."""
    from llm.data.parts import Part, write_part

    part = part_asked(asked)
    return asked.data if part == Part() else write_part(out / "data", asked.data, part)


@contextmanager
def _timed(asked: Study) -> Iterator[None]:
    """Write afterwards, however it ends, how long all parts took so far, if there are any.

    A seed that is not asked for now keeps its rows.
    """
    from llm.sweeps.times import read_times

    try:
        yield
    finally:
        files = {
            int(file.parent.name.removeprefix("seed")): file
            for file in asked.out.glob(f"seed*/{TIMES}")
        }
        table = read_times(dict(sorted(files.items())))
        if len(table):
            storage.write_table(table, asked.out / "times.parquet", provenance_of(asked))


def _write(asked: Study, out: Path, done: Studied) -> None:
    """Write the tables of a study; the measures last, so that where they are all others are."""
    known = provenance_of(asked)
    storage.write_table(done.attacks, out / "attacks.parquet", known)
    storage.write_table(done.differences, out / "differences.parquet", known)
    write_summary(done.summary, out, known, _caveat(done.gate))
    storage.write_table(done.measures, out / "measures.parquet", known)
