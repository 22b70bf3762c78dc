"""Run experiments: pretrain what is missing, unlearn in ensembles, return one table.

Values that differ (objective, beta, seed, step size, leakage) go inside one ensemble. Shapes that
differ (states, lengths, width, number of steps) go to different ensembles, which joblib spreads
over processes, or over the workers of a cluster that share the cache folder, where tables are
handed over: see `markov.running.backends`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd

from markov import diagnostics
from markov.batching import Corpus
from markov.cases import Case
from markov.errors import require, require_jobs, require_whole
from markov.experiments import Experiment
from markov.files import leftovers, storage
from markov.models import Parameters, stack_parameters
from markov.numerics import one_thread
from markov.optimizers import OPTIMIZERS, clipped
from markov.recording import Probe, Trajectory, kl_to_truth, log_laws
from markov.running.backends import elsewhere, together
from markov.running.dividing import Share, check_ends, cost, shape_of, shares, split
from markov.running.memory import fitting_jobs
from markov.running.models import (
    ModelJob,
    OnStep,
    check_devices,
    is_trained,
    load_model,
    model_jobs,
    model_path,
    models_folder,
    needed,
    steps_bar,
    threads_of,
    train,
)
from markov.studies import ideal_forget_distance
from markov.sweeps import ComponentSweep
from markov.training import Member, unlearn
from markov.weighting import WEIGHTINGS

# Multiplications below which starting processes takes longer than they save: some seconds' work.
LITTLE = 1e11
# Workers for which ensembles are split on a cluster, however many there are: a restart on others
# finds the same shares.
SPLIT = 16


def run(
    experiments: Iterable[Experiment],
    *,
    n_jobs: int = 1,
    progress: bool = True,
    cache: Path | None = None,
    parts: Path | None = None,
) -> pd.DataFrame:
    """Run all experiments and return one row per run x step x component, in the order given.

    The columns are those of `diagnostics.COLUMNS`. Models are trained where `cache` (default: the
    user's cache folder) lacks them. `n_jobs` (-1: one per core) changes the time, never a row;
    where there is little to do, or a GPU does it, one process does it all. With a folder `parts`,
    the table of each share of the work is kept there once it is made, and found by the next call
    with the same experiments: see `parts_of`. A worker that dies loses no more than what it was
    making: that is made again. Raises `InvalidInput` if there is no experiment, and for a device
    that is not there.
    """
    experiments = _checked(experiments, n_jobs)
    folder, whole = models_folder(cache), shares(experiments)
    missing = _missing(folder, whole)
    n_jobs = _processes(missing, whole, n_jobs)
    alone = n_jobs == 1 and not elsewhere()
    kept = parts or (None if alone else parts_of(experiments))
    workers = SPLIT if elsewhere() else joblib.effective_n_jobs(n_jobs)
    divided = list[Share]()
    for share in whole:
        there = kept is not None and (kept / _part_name(share)).exists()
        divided += [share] if there else split(share, workers, len(whole))
    found = _make(missing, divided, n_jobs, progress, folder, kept)
    tables = [
        one if kept is None else _read_part(folder, kept / one, share)
        for one, share in zip(found, divided, strict=True)
    ]
    frames = [_own_rows(*pair) for pair in zip(divided, tables, strict=True)]
    if kept is not None and parts is None:
        leftovers.discard(kept)
    rows = pd.concat(frames).sort_values(["run", "place", "step"], ignore_index=True)
    return rows.drop(columns="place")


def _checked(experiments: Iterable[Experiment], n_jobs: int = 1) -> list[Experiment]:
    """Return a list of what is to be run; raise `InvalidInput` for what is no list of experiments.

    An experiment itself is none.
    """
    several = isinstance(experiments, Iterable) and not isinstance(experiments, str)
    found = list(experiments) if several else []
    known = len(found) > 0 and all(isinstance(one, Experiment) for one in found)
    require(known, "experiments", experiments, "at least one, in a list of Experiments")
    require_jobs(n_jobs)
    return found


def run_part(
    experiments: Sequence[Experiment],
    part: int,
    count: int,
    *,
    parts: Path,
    n_jobs: int = 1,
    progress: bool = True,
    cache: Path | None = None,
) -> int:
    """Make the tables of part number `part` (from 0) of `count`; return how many these are.

    They are left in the folder `parts`, where `run` finds them. The parts of a batch system's array
    need not know of each other: they are made at any time, on any machines that share the folders.
    What lies there already is not made again. Raises `InvalidInput` for a part that is not below
    `count`.
    """
    require_whole(count, "count", 1)
    require_whole(part, "part", 0, count - 1)
    experiments = _checked(experiments, n_jobs)
    folder, chosen = models_folder(cache), shares(experiments)[part::count]
    missing = _missing(folder, chosen)
    n_jobs = _processes(missing, chosen, n_jobs)
    _make(missing, chosen, n_jobs, progress, folder, parts)
    return len(chosen)


def parts_missing(experiments: Sequence[Experiment], parts: Path) -> int:
    """Return of how many ensembles the whole table does not lie in `parts`."""
    return sum(not (parts / _part_name(share)).is_file() for share in shares(experiments))


def _missing(folder: Path, divided: Sequence[Share]) -> list[ModelJob]:
    """Return the models that shares need and the folder lacks; refuse devices that are not here."""
    experiments = [one for share in divided for one in share.experiments]
    check_devices(experiments)
    leftovers.clear(folder)
    return [job for job in needed(experiments) if not is_trained(folder, job)]


def _make(
    missing: Sequence[ModelJob],
    divided: Sequence[Share],
    n_jobs: int,
    progress: bool,
    folder: Path,
    kept: Path | None,
) -> list[Any]:
    """Train the models that are missing, make the tables, and return what `_made` does."""
    # A share comes when its models are there, and of those that are ready the longest comes first,
    # so that no process is left with a long one at the end.
    ready = {job: place for place, job in enumerate(missing)}
    turns = [
        (max(ready.get(job, -1) for one in own.experiments for job in model_jobs(one)), -cost(own))
        for own in divided
    ]
    order = sorted(range(len(divided)), key=turns.__getitem__)
    # With one process the bar follows single steps; workers cannot draw on it, so there it counts
    # models and shares.
    alone = progress and n_jobs == 1 and not elsewhere()
    # Workers of a cluster have one thread each.
    cores = 1 if elsewhere() else min(joblib.effective_n_jobs(n_jobs), joblib.cpu_count())
    threads = threads_of(missing, cores)
    training = [
        partial(train, folder, job, progress=alone, threads=own)
        for job, own in zip(missing, threads, strict=True)
    ]
    making = [partial(_made, folder, alone, kept, divided[place]) for place in order]
    label = "pretraining and unlearning" if missing else "unlearning"
    found = together([*training, *making], n_jobs, progress, label)[len(missing) :]
    made = dict(zip(order, found, strict=True))
    return [made[place] for place in range(len(divided))]


def _processes(missing: Sequence[ModelJob], divided: Sequence[Share], asked: int) -> int:
    """Return how many processes do the work: those asked for, where they pay and memory has room.

    Raises `InvalidInput` where it has no room, unless the memory is that of a cluster.
    """
    wanted = asked if _worth_processes(missing, divided) else 1
    if elsewhere():
        return wanted
    many = joblib.effective_n_jobs(wanted)
    tasks = [part for share in divided for part in split(share, many, len(divided))]
    busy = max(1, min(many, max(len(missing), len(tasks))))
    fit = fitting_jobs(tasks, busy, asked)
    check_ends(missing, divided, cores=joblib.cpu_count())
    return wanted if fit == busy else fit


def _worth_processes(missing: Sequence[ModelJob], divided: Sequence[Share]) -> bool:
    """Return whether several processes would save more time than it takes to start them.

    Workers of a cluster are there already, and are asked for whatever there is to do.
    """
    if elsewhere():
        return True
    on_processor = all(share.experiments[0].device == "cpu" for share in divided)
    return on_processor and sum(job.cost for job in missing) + sum(map(cost, divided)) > LITTLE


def _own_rows(share: Share, table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of a share with the runs' places among all experiments.

    `place` is that of a component among those of its run.
    """
    steps = table["step"].nunique()
    place = np.arange(len(table)) // steps % (len(table) // steps // len(share.places))
    return table.assign(run=np.array(share.places)[table["run"]], place=place)


def parts_of(experiments: Sequence[Experiment]) -> Path:
    """Return the cache folder for the parts of these experiments' table.

    Whoever has written the whole table discards the folder.
    """
    return storage.unfinished(list(experiments), __name__)


def trajectory(
    experiments: Sequence[Experiment],
    *,
    cache: Path | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Trajectory:
    """Run experiments of one shape as one ensemble, in this process, and return its trajectory.

    Models that the cache lacks are trained first. `on_step` is as in `training.unlearn`. Raises
    `InvalidInput` where the experiments differ in more than values.
    """
    experiments = _checked(experiments)
    shapes = {shape_of(experiment) for experiment in experiments}
    require(
        len(shapes) == 1,
        "experiments",
        f"{len(shapes)} shapes",
        "experiments that differ in values only",
    )
    check_devices(experiments)
    recorded = experiments[0].steps_recorded
    whole = [Share(tuple(range(len(experiments))), tuple(experiments), recorded)]
    fitting_jobs(whole, 1, 1)
    check_ends([], whole, cores=1)
    with one_thread():
        starts = _starts(models_folder(cache), experiments, progress)
        with steps_bar(experiments[0].steps, "unlearning", progress, on_step) as tick:
            return _unlearn(experiments, starts, recorded, tick)


def _made(folder: Path, progress: bool, parts: Path | None, share: Share) -> Any:
    """Return the table of a share or, with a folder for parts, the name under which it is there.

    It is the same to the last bit in both cases.
    """
    if parts is None:
        return _table(folder, progress, share)
    name = _part_name(share)
    if storage.read_kept(parts / name, storage.read_table) is None:
        storage.write_table(_table(folder, progress, share), parts / name, {})
    return name


def _part_name(share: Share) -> str:
    return f"{storage.fingerprint([list(share.experiments), share.recorded])}.parquet"


def _read_part(folder: Path, path: Path, share: Share) -> pd.DataFrame:
    frame = storage.read_kept(path, storage.read_table)
    if frame is None:  # discarded by another process that has done the same work
        return _table(folder, False, share)
    frame.attrs = {}
    return frame


def _table(folder: Path, progress: bool, share: Share) -> pd.DataFrame:
    experiments, label = share.experiments, f"{len(share.experiments)} runs"
    with one_thread(), steps_bar(experiments[0].steps, label, progress) as tick:
        starts = _starts(folder, experiments, progress)
        found = _unlearn(experiments, starts, share.recorded, tick)
    retrained, ideal = ([getattr(one, name) for one in starts] for name in ("retrained", "ideal"))
    return diagnostics.table(experiments, found, retrained, ideal)


def _unlearn(
    experiments: Sequence[Experiment],
    starts: Sequence[_Start],
    recorded: Sequence[int],
    on_step: OnStep | None,
) -> Trajectory:
    first = experiments[0]
    members = [
        Member(
            start=start.parameters,
            objective=experiment.objective,
            learning_rate=experiment.learning_rate,
            retain_weight=experiment.retain_weight,
            seed=experiment.seed,
            forget=start.forget,
            retain=start.retain,
            probes=start.probes,
        )
        for experiment, start in zip(experiments, starts, strict=True)
    ]
    return unlearn(
        first.model,
        members,
        steps=first.steps,
        batch=first.batch,
        optimizer=clipped(OPTIMIZERS[first.optimizer], first.clip),
        recorded=recorded,
        retain_term=first.retain_term,
        weighting=WEIGHTINGS[first.weighting],
        gradient_examples=first.gradient_examples,
        device=first.device,
        on_step=on_step,
    )


def _starts(folder: Path, experiments: Sequence[Experiment], progress: bool) -> list[_Start]:
    found = []
    for experiment in experiments:
        jobs = model_jobs(experiment)
        paths = [model_path(folder, job) for job in jobs]
        for job, path in zip(jobs, paths, strict=True):
            if not path.exists():
                train(folder, job, progress=progress)
        stamps = tuple((path.stat().st_mtime_ns, path.stat().st_ino) for path in paths)
        settings = experiment.case, experiment.test_examples
        found.append(_start(folder, jobs, *settings, stamps, progress))
    return found


class _Start(NamedTuple):
    """What all runs of a pretrained model begin with, and their goals for each component."""

    parameters: Parameters
    forget: Corpus
    retain: Corpus
    probes: tuple[Probe, ...]
    retrained: list[float]
    ideal: list[float]


# Most runs of a grid share a pretrained model, whose data are drawn and scored once. It is known by
# when its files were written, so that another one of the same name is read.
@lru_cache(maxsize=16)
def _start(
    folder: Path,
    jobs: tuple[ModelJob, ModelJob],
    case: Case | ComponentSweep,
    test_examples: int | None,
    stamps: tuple[tuple[int, int], ...],
    progress: bool,
) -> _Start:
    original, retrained = (load_model(folder, job, progress=progress) for job in jobs)
    data, model = case.sample(jobs[0].pretraining.seed), jobs[0].model
    models, probes = [stack_parameters([one]) for one in (retrained, original)], []
    for component, chain in zip(case.lengths, case.chains(), strict=True):
        tokens = data.test[component][:test_examples]
        laws = (log_laws(model, one, tokens) for one in models)
        probes.append(Probe(tokens, chain.transition, *laws, forgotten=component != "retain"))
    return _Start(
        parameters=original,
        forget=Corpus.join(case.forget_data(data)),
        retain=Corpus.join([data.train["retain"]]),
        probes=tuple(probes),
        retrained=[float(kl_to_truth(probe, probe.retrained)) for probe in probes],
        ideal=list(ideal_forget_distance(case).values()),
    )
