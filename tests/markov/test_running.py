"""Running: same seed, same table; neither the number of jobs nor the company of a run changes a
row.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from markov.batching import PROCESSOR
from markov.cases import LENGTH, MEMORISATION, Case
from markov.console.progress import Count
from markov.diagnostics import COLUMNS
from markov.errors import InvalidInput
from markov.experiments import Experiment, Pretraining, grid
from markov.files import storage
from markov.models import Parameters, Tabular, Transformer
from markov.objectives import gradient_ascent, npo, simnpo
from markov.running import run as running
from markov.running.backends import together
from markov.running.dividing import Share, ensembles, shares, split
from markov.running.models import load_model, model_jobs, model_path, threads_of
from markov.running.run import parts_missing, run, run_part, trajectory
from markov.sweeps import LENGTHS, SHARES, ComponentSweep
from markov.training import Threads
from tests.helpers import check_same_parameters, files_in

SMALL = {
    "retain_count": 80,
    "forget1_count": 40,
    "forget2_count": 40,
    "retain_length": 8,
    "forget1_length": 8,
}
CASE = replace(LENGTH, forget2_length=4, **SMALL)
OTHER = replace(MEMORISATION, forget2_length=8, **SMALL)
BASE = Experiment(
    case=CASE,
    model=Transformer(width=8, depth=1, heads=2, mlp_width=8, context=7),
    pretraining=Pretraining(epochs=1, batch=32),
    steps=3,
    precision="float64",
    gradient_examples=4,
)
GRID = grid(
    BASE, case=[CASE, OTHER], objective=[npo(0.2), simnpo(4.0), gradient_ascent()], seed=[0, 1]
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return run(GRID, progress=False)


def test_a_table_has_one_row_per_run_step_and_component(table: pd.DataFrame) -> None:
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(GRID) * 4 * 3
    assert not table.duplicated(["run", "step", "component"]).any()
    assert set(table["component"]) == {"retain", "forget1", "forget2"}
    assert table["run"].is_monotonic_increasing


def test_rows_keep_the_order_and_settings_of_the_experiments(table: pd.DataFrame) -> None:
    first = table.groupby("run").first()
    assert list(first["seed"]) == [one.seed for one in GRID]
    assert list(first["beta"]) == [one.objective.beta for one in GRID]
    assert list(first["case"]) == [one.case.name for one in GRID]


def test_the_number_of_jobs_changes_no_row(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LITTLE", 0.0)  # as if there were much to do
    pd.testing.assert_frame_equal(run(GRID, n_jobs=2, progress=False), table, check_exact=True)
    assert len(table) > 0


MANY = replace(BASE, test_examples=None, steps=2, batch=1)  # mostly recording
WIDE = replace(MANY, model=replace(BASE.model, width=16), recorded=(0, 2))


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_every_step_of_every_run_is_in_one_share(workers: int) -> None:
    experiments = [*grid(MANY, seed=range(3)), *grid(WIDE, seed=range(2))]
    whole = shares(experiments)
    found = [part for one in whole for part in split(one, workers, len(whole))]
    assert len(found) > 2 == len(whole)
    for place, one in enumerate(experiments):
        own = [share for share in found if place in share.places]
        steps = [step for share in own for step in share.recorded]
        assert sorted(steps) == list(one.steps_recorded)
        assert all(share.experiments[share.places.index(place)] == one for share in own)


@pytest.mark.parametrize(
    "case", [CASE, OTHER, CASE.retrained(), LENGTHS, SHARES, SHARES.retrained()]
)
def test_a_case_knows_how_much_it_shows_and_tests(case: Case | ComponentSweep) -> None:
    data = case.sample(0)
    shown = sum(part[:, 1:].numel() for part in case.pretraining_data(data))
    assert case.pretraining_tokens == shown
    assert case.tested == {name: len(data.test[name]) for name in case.lengths}


def test_one_process_and_short_records_are_not_shared_out() -> None:
    experiments = grid(MANY, seed=range(3))
    whole = Share((0, 1, 2), tuple(experiments), (0, 1, 2))
    assert shares(experiments) == [whole] == split(whole, 1, 1)
    (short,) = shares(grid(replace(MANY, batch=30, test_examples=1), seed=range(3)))
    assert split(short, 8, 1) == [short]


def test_an_ensemble_has_no_more_members_than_the_device_asks_for() -> None:
    sizes = [len(own) for own in ensembles(grid(BASE, seed=range(20)))]
    assert sum(sizes) == 20 and max(sizes) <= PROCESSOR.members and len(sizes) == 3


def test_shares_make_the_rows_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    experiments = [*grid(MANY, seed=range(2)), WIDE, replace(MANY, objective=simnpo(4.0))]
    whole = run(experiments, progress=False)
    monkeypatch.setattr(running, "LITTLE", 0.0)
    monkeypatch.setattr(running, "together", in_this_process)
    divided = run(experiments, n_jobs=3, progress=False)
    pd.testing.assert_frame_equal(divided, whole, check_exact=True)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_parts_that_know_nothing_of_each_other_make_the_whole(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = [*grid(MANY, seed=range(12)), WIDE, replace(WIDE, seed=1)]
    whole = run(experiments, progress=False)
    assert parts_missing(experiments, tmp_path) == len(shares(experiments)) == 3
    made = [
        run_part(experiments, part, count, parts=tmp_path, progress=False)
        for part in reversed(range(count))
    ]
    assert sum(made) == 3 and parts_missing(experiments, tmp_path) == 0
    monkeypatch.setattr(running, "_table", None)  # nothing is made again
    monkeypatch.setattr(running, "LITTLE", 0.0)
    for n_jobs in (1, 2):
        found = run(experiments, n_jobs=n_jobs, parts=tmp_path, progress=False)
        pd.testing.assert_frame_equal(found, whole, check_exact=True)
    run_part(experiments, 0, 1, parts=tmp_path, progress=False)


class Counted(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    total = 0

    def __torch_dispatch__(
        self, operation: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        self.total += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "base",
    [
        replace(BASE, steps=20, batch=4, model=replace(BASE.model, width=10, mlp_width=11)),
        replace(BASE, steps=20, retain_term="kl", retain_weight=1.0, precision="float32"),
    ],
    ids=["odd", "kl"],
)
def test_an_ensemble_of_32_dispatches_hardly_more_operations_than_one_of_8(
    base: Experiment,
) -> None:
    counts = []
    for members in (8, 32):
        experiments = grid(base, seed=range(members))
        trajectory(experiments[:1], progress=False)  # models and data are there
        with Counted() as counted:
            trajectory(experiments, progress=False)
        counts.append(counted.total)
    assert counts[1] < 1.1 * counts[0]


@pytest.mark.parametrize(("part", "count"), [(-1, 3), (3, 3), (0, 0), (True, 3)])
def test_a_part_that_is_none_is_refused(part: int, count: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        run_part([BASE], part, count, parts=tmp_path)


def test_no_core_is_idle_while_models_are_trained_and_none_is_asked_for_twice() -> None:
    original, retrained = model_jobs(replace(BASE, case=LENGTH, model=Transformer()))
    assert original.cost > retrained.cost
    # the longer one has both cores when the other is there
    share = retrained.cost / original.cost
    assert threads_of([original, retrained], 2) == [Threads(2, share), Threads()]
    assert threads_of([retrained, original], 2) == [Threads(), Threads(2, share)]
    assert threads_of([original], 2) == [Threads(2)]
    assert threads_of([original, retrained], 5) == [Threads(2), Threads(2)]
    # with a queue, and in one process, each has a core
    assert threads_of([original, retrained, retrained], 2) == [Threads()] * 3
    assert threads_of([original, retrained], 1) == [Threads()] * 2
    # of two that take equally long none helps
    assert threads_of([original, original], 2) == [Threads()] * 2
    assert threads_of([], 2) == []


def test_training_is_told_of_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Threads] = []

    def noted(*_: Any, threads: Threads, **__: Any) -> None:
        told.append(threads)

    monkeypatch.setattr(running, "LITTLE", 0.0)
    monkeypatch.setattr(running, "together", lambda tasks, *_: [task() for task in tasks])
    monkeypatch.setattr(running, "train", noted)
    monkeypatch.setattr(running, "_made", lambda *_: (_ for _ in ()).throw(KeyError))
    for cores in (6, 1):  # more processes than cores do not make more threads
        monkeypatch.setattr(running.joblib, "cpu_count", lambda cores=cores: cores)
        with pytest.raises(KeyError):
            running.run(GRID[:1], n_jobs=6, cache=tmp_path, progress=False)
    assert told == [Threads(3), Threads(3), Threads(), Threads()]


def in_this_process(tasks: Sequence[Callable[[], Any]], *_: object) -> list[Any]:
    """Do tasks one after the other, as a stand-in for workers."""
    assert len(tasks) > 3
    return [task() for task in tasks]


class Dying:
    """A task that takes its process along, the first time that it is done."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self) -> str:
        if not self.mark.exists():
            if self.mark.parent.exists():
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.mark.name


@pytest.mark.slow
def test_what_a_dying_worker_took_along_is_done_again(tmp_path: Path) -> None:
    tasks = [Dying(tmp_path / name) for name in "abc"]
    for task in tasks[1:]:
        task.mark.touch()
    assert together(tasks, 2, False, "") == ["a", "b", "c"]


@pytest.mark.slow
def test_a_worker_that_always_dies_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(BrokenProcessPool):
        together([Dying(tmp_path / "nowhere" / "a")], 2, False, "")


def test_same_seed_same_table_byte_for_byte_with_models_trained_anew(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    again = run(GRID, progress=False, cache=tmp_path / "models")
    for name, frame in {"one": table, "two": again}.items():
        storage.write_table(frame, tmp_path / f"{name}.parquet", {"experiments": "the same"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_run_in_company_equals_the_run_alone(table: pd.DataFrame) -> None:
    for index in (0, 3, len(GRID) - 1):
        alone = run([GRID[index]], progress=False).drop(columns="run")
        company = table[table["run"] == index].drop(columns="run").reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, company, rtol=1e-10, atol=1e-12)
        assert len(alone) == len(company)


def test_another_seed_is_another_path_from_the_same_start(table: pd.DataFrame) -> None:
    one, two = (table[table["run"] == index].reset_index(drop=True) for index in (0, 1))
    start = one["step"] == 0
    np.testing.assert_array_equal(one.loc[start, "kl_to_truth"], two.loc[start, "kl_to_truth"])
    assert (one.loc[~start, "kl_to_truth"] != two.loc[~start, "kl_to_truth"]).all()


def test_another_pretraining_seed_is_another_start() -> None:
    frame = run(
        grid(BASE, pretraining=[replace(BASE.pretraining, seed=seed) for seed in (0, 1)]),
        progress=False,
    )
    start = frame[frame["step"] == 0].pivot(index="component", columns="run", values="kl_to_truth")
    assert (start[0] != start[1]).all()


def test_cases_that_share_retain_data_share_one_retrained_model() -> None:
    (original, retrained), (other_original, other_retrained) = (
        model_jobs(replace(BASE, case=c)) for c in (CASE, OTHER)
    )
    folder = Path("models")
    assert model_path(folder, retrained) == model_path(folder, other_retrained)
    assert model_path(folder, original) != model_path(folder, other_original)


@pytest.mark.parametrize("change", [{"leakage": 0.3}, {"retain_count": 90}, {"retain_length": 7}])
def test_what_the_retrained_model_sees_names_its_file(change: dict[str, float]) -> None:
    job, other = (
        model_jobs(replace(BASE, case=case))[1] for case in (CASE, _changed(CASE, change))
    )
    assert model_path(Path(), job) != model_path(Path(), other)


def _changed(case: Case, change: dict[str, float]) -> Case:
    return replace(case, **change)  # pyright: ignore[reportArgumentType]


def test_models_are_trained_once_and_read_afterwards(tmp_path: Path) -> None:
    run([BASE], progress=False, cache=tmp_path)
    before = files_in(tmp_path)
    run([replace(BASE, seed=5)], progress=False, cache=tmp_path)
    assert files_in(tmp_path) == before
    assert len(before) == 2


class Stopped(Tabular):
    """A table that the user stops in its third pass."""

    passes: ClassVar[list[int]] = []

    def logits(self, parameters: Parameters, tokens: torch.Tensor) -> torch.Tensor:
        self.passes.append(len(tokens))
        if len(self.passes) == 3:
            raise KeyboardInterrupt
        return super().logits(parameters, tokens)


def test_an_interrupted_pretraining_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run([replace(BASE, model=Stopped())], progress=False, cache=tmp_path)
    assert len(Stopped.passes) == 3 and list(tmp_path.iterdir()) == []


def test_a_trajectory_can_be_watched_and_stopped() -> None:
    seen: list[int] = []

    def watch(step: int, parameters: Parameters) -> None:
        seen.append(step)
        if step == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        trajectory([BASE], on_step=watch)
    assert seen == [0, 1, 2]


def test_a_trajectory_says_how_far_it_is_unless_it_is_asked_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    enter = Count.__enter__
    monkeypatch.setattr(Count, "__enter__", lambda one: labels.append(one.label) or enter(one))
    quiet = trajectory([BASE], cache=tmp_path / "one", progress=False)
    assert labels == []
    shown = trajectory([BASE], cache=tmp_path / "two")
    assert labels == [" + ".join(job.case.seen) for job in model_jobs(BASE)] + ["unlearning"]
    assert torch.equal(quiet.logp, shown.logp)


def test_a_pretraining_can_be_watched_and_stopped(tmp_path: Path) -> None:
    job, seen = model_jobs(BASE)[0], []

    def watch(step: int, steps: int, parameters: Parameters) -> None:
        seen.append((step, steps, torch.get_num_threads()))
        if len(seen) == 3:
            raise StopIteration

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(StopIteration):
            load_model(tmp_path, job, watch)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    steps = seen[0][1]
    assert seen == [(step, steps, 1) for step in (1, 2, 3)] and not list(tmp_path.iterdir())
    watched = load_model(tmp_path, job, lambda *now: seen.append(now[:2]))
    assert seen[3:] == [(step, steps) for step in range(1, steps + 1)]
    plain = load_model(tmp_path / "other", job)
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    again = load_model(tmp_path, job, watch)  # is read, and does not train
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_experiments_of_several_shapes_are_no_ensemble() -> None:
    with pytest.raises(InvalidInput, match="shapes"):
        trajectory([BASE, replace(BASE, steps=4)])
    with pytest.raises(InvalidInput, match="at least one"):
        run([])


def test_the_threads_of_the_caller_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trajectory([BASE])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- sweeps ---

SWEEP = ComponentSweep(
    name="small",
    scored=(2, 8, 4),
    shares=(1.0, 0.5, 0.0),
    tokens=80,
    retain_scored=5,
    retain_tokens=150,
    forget_count=10,
    test_count=6,
    set_size=1,
)
ALONE = [replace(SWEEP, alone=f"forget{place}") for place in (1, 2, 3)]
SWEPT = replace(BASE, case=SWEEP, model=replace(BASE.model, states=5, context=8), batch=9)
SWEPT_GRID = grid(SWEPT, case=[SWEEP, *ALONE], objective=[npo(0.2), gradient_ascent()])


@pytest.fixture(scope="module")
def swept() -> pd.DataFrame:
    return run(SWEPT_GRID, progress=False)


def test_a_sweep_has_rows_for_all_its_components_and_one_alone_for_its_own(
    swept: pd.DataFrame,
) -> None:
    lengths = {"retain": 5, "forget1": 2, "forget2": 8, "forget3": 4}
    assert list(swept.columns) == list(COLUMNS) and swept["run"].is_monotonic_increasing
    for index, one in enumerate(SWEPT_GRID):
        own = swept[swept["run"] == index]
        alone = one.case.alone if isinstance(one.case, ComponentSweep) else None
        want = {
            name: scored
            for name, scored in lengths.items()
            if alone in (None, name) or name == "retain"
        }
        assert list(zip(own["step"], own["component"], strict=True)) == [
            (step, name) for name in want for step in range(4)
        ]
        assert (own["length"] == own["component"].map(want)).all()
        assert set(own["case"]) == {"small"}
    numbers = swept.drop(columns=["weight_share", "gradient_share", "gradient_norm"]).select_dtypes(
        "number"
    )
    assert np.isfinite(numbers).all(axis=None)


def test_the_shares_of_a_sweep_are_among_the_components_that_it_pushes_on(
    swept: pd.DataFrame,
) -> None:
    forget = swept[swept["component"] != "retain"]
    for name in ("weight_share", "gradient_share"):
        np.testing.assert_allclose(forget.groupby(["run", "step"])[name].sum(), 1)
        assert forget[name].notna().all()
    start = forget[(forget["run"] == 0) & (forget["step"] == 0)]
    # NPO weighs responses alike, and there are as many
    np.testing.assert_allclose(start["weight_share"], 1 / 3)


def test_the_number_of_jobs_changes_no_row_of_a_sweep(
    swept: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LITTLE", 0.0)
    pd.testing.assert_frame_equal(
        run(SWEPT_GRID, n_jobs=2, progress=False), swept, check_exact=True
    )
    assert len(swept) == 2 * 4 * (4 + 3 * 2)


def test_a_component_alone_starts_from_the_model_of_all_and_then_goes_its_own_way(
    swept: pd.DataFrame,
) -> None:
    names = ["kl_to_truth", "kl_to_retrained", "retrained", "ideal", "logp"]
    for place, objective in itertools.product((1, 2, 3), (0, 1)):
        for component in ("retain", f"forget{place}"):
            own = swept[swept["component"] == component].set_index("step")
            alone, whole = own[own["run"] == 2 * place + objective], own[own["run"] == objective]
            pd.testing.assert_frame_equal(alone.loc[[0], names], whole.loc[[0], names], rtol=1e-10)
            assert (alone["logp"] / whole["logp"] - 1).abs().loc[3] > 1e-6


def test_only_at_the_start_is_a_run_at_its_reference(
    swept: pd.DataFrame, table: pd.DataFrame
) -> None:
    for frame in (swept, table):
        start = frame["step"] == 0
        assert frame.loc[start, "kl_to_reference"].abs().max() < 1e-14
        assert frame.loc[~start, "kl_to_reference"].min() > 1e-9
        assert frame.loc[start, "kl_to_retrained"].max() > 1e-3


def test_sweeps_train_one_original_for_all_that_is_alone_and_one_retrained_model_for_all(
    tmp_path: Path,
) -> None:
    once = replace(SWEPT, recorded=(0,), steps=1, gradient_examples=0)
    run(
        grid(once, case=[SWEEP, *ALONE, replace(SWEEP, name="other", forget_count=5)]),
        progress=False,
        cache=tmp_path,
    )
    assert len(list(tmp_path.iterdir())) == 2
    other = replace(SWEEP, scored=(4, 4, 4), shares=(0.0, 0.5, 1.0))
    run([replace(once, case=other)], progress=False, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    original, retrained = model_jobs(replace(once, case=other))
    assert model_path(tmp_path, retrained) == model_path(tmp_path, model_jobs(once)[1])
    assert model_path(tmp_path, original) != model_path(tmp_path, model_jobs(once)[0])


def test_where_pretraining_sees_nothing_to_forget_the_original_is_the_retrained_model(
    tmp_path: Path,
) -> None:
    blank = replace(SWEPT, case=replace(SWEEP, shares=(0.0,) * 3))
    one, two = (load_model(tmp_path, job) for job in model_jobs(blank))
    check_same_parameters(one, two, atol=0)
    seen, _ = (load_model(tmp_path, job) for job in model_jobs(SWEPT))
    assert not torch.equal(seen["token"], one["token"])
    frame = run([blank], progress=False, cache=tmp_path)
    np.testing.assert_allclose(
        frame["kl_to_retrained"], frame["kl_to_reference"], rtol=0, atol=1e-14
    )


def test_sweeps_of_one_shape_run_in_one_ensemble_and_others_do_not() -> None:
    one = [
        replace(SWEPT, case=case)
        for case in (SWEEP, replace(SWEEP, shares=(0.2, 0.4, 0.6), leakage=0.2))
    ]
    found = trajectory(one)
    assert found.logp.shape == (2, 4, 4 * 6)
    for index, member in enumerate(one):
        np.testing.assert_allclose(found.logp[index], trajectory([member]).logp[0], rtol=1e-10)
    with pytest.raises(InvalidInput, match="shapes"):
        trajectory([SWEPT, replace(SWEPT, case=ALONE[0])])


def test_the_labels_of_a_batch_count_the_forget_components_in_their_order() -> None:
    # Length-weighted ascent has weight 1/|y|, so that the weights tell the lengths.
    found = trajectory([replace(SWEPT, objective=gradient_ascent(1.0))])
    length = torch.tensor(SWEEP.scored, dtype=torch.float64)[found.batch_component]
    torch.testing.assert_close(found.batch_weight, 1 / length)
    assert set(found.batch_component.flatten().tolist()) == {0, 1, 2}
