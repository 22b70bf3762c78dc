"""Running: same seed, same table; neither the number of jobs nor the company of a run changes a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from markov import running, storage
from markov.cases import LENGTH, MEMORISATION, Case
from markov.diagnostics import COLUMNS
from markov.errors import InvalidInput
from markov.experiments import Experiment, Pretraining, grid
from markov.models import Parameters, Transformer
from markov.objectives import gradient_ascent, npo, simnpo
from markov.running import model_jobs, model_path, run, trajectory

SMALL = {"retain_count": 80, "forget1_count": 40, "forget2_count": 40, "retain_length": 8, "forget1_length": 8}
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
GRID = grid(BASE, case=[CASE, OTHER], objective=[npo(0.2), simnpo(4.0), gradient_ascent()], seed=[0, 1])


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


def test_the_number_of_jobs_changes_no_row(table: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(run(GRID, n_jobs=2, progress=False), table, check_exact=True)
    assert len(table) > 0


def test_same_seed_same_table_byte_for_byte_with_models_trained_anew(table: pd.DataFrame, tmp_path: Path) -> None:
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
    frame = run(grid(BASE, pretraining=[replace(BASE.pretraining, seed=seed) for seed in (0, 1)]), progress=False)
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
    job, other = (model_jobs(replace(BASE, case=case))[1] for case in (CASE, _changed(CASE, change)))
    assert model_path(Path(), job) != model_path(Path(), other)


def _changed(case: Case, change: dict[str, float]) -> Case:
    return replace(case, **change)  # pyright: ignore[reportArgumentType]


def test_models_are_trained_once_and_read_afterwards(tmp_path: Path) -> None:
    run([BASE], progress=False, cache=tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    run([replace(BASE, seed=5)], progress=False, cache=tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    assert len(before) == 2


def test_an_interrupted_pretraining_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([BASE], progress=False, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_trajectory_can_be_watched_and_stopped() -> None:
    seen: list[int] = []

    def watch(step: int, parameters: Parameters) -> None:
        seen.append(step)
        if step == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        trajectory([BASE], on_step=watch)
    assert seen == [0, 1, 2]


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
