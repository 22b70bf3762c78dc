"""A run that diverges is a result: it ends with a status, and everything that reads runs reads
it.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from figures.language import reference_noise
from figures.language import runs as llm_runs
from llm.__main__ import cli
from llm.logs.reading import OPEN_UNLEARNING
from llm.logs.summaries import best, summary
from llm.models.saving import save
from llm.models.source import load
from llm.sweeps.along import epochs
from llm.sweeps.sweep import Task, sweep
from llm.unlearning.runs import MODEL, read_run
from markov.errors import InvalidInput
from tests.llm.sweeps.test_sweep import EVERY, own_cache, task, wanted
from tests.llm.training.test_llm_processes import arguments, folder

__all__ = ["folder", "own_cache", "task"]  # fixtures
DIVERGES = pytest.mark.filterwarnings(
    "ignore:unlearning ends|answers of the unlearned model|the model has collapsed:RuntimeWarning"
)


def given(folder: Path, tmp_path: Path, **changes: str) -> list[str]:
    more = [
        word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    return arguments(folder, tmp_path / "run", "--retrained", str(folder / "model"), *more)


@DIVERGES
@pytest.mark.parametrize(
    ("changes", "epoch"),
    [
        ({"learning_rate": "1e6"}, 1),
        ({"learning_rate": "1e30"}, 1),
        ({"learning_rate": "1e300", "dtype": "bfloat16"}, 1),
        ({"learning_rate": "1e300"}, 1),
        ({"learning_rate": "1e300", "batch": "100", "epochs": "1"}, 1),
        ({"learning_rate": "1e300", "lora_rank": "2"}, 1),
    ],
    ids=str,
)
def test_a_run_that_diverges_is_a_result(
    changes: dict[str, str],
    epoch: int,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli(given(folder, tmp_path, **changes)) == 0
    assert "examples.parquet" in capsys.readouterr().out
    run = read_run(tmp_path / "run")
    assert run.epochs["status"].tolist()[0] == "ok"
    if run.epochs["status"].iloc[-1] == "nan":
        assert run.epochs["epoch"].tolist() == list(range(epoch + 1))
        assert math.isnan(run.epochs["retain_loss"].iloc[-1])
        assert set(run.examples["epoch"]) == set(range(epoch))
    assert np.isfinite(run.examples[["logp", "ref", "needed"]]).all(axis=None)
    assert np.isfinite(run.answers["logp"]).all()
    assert {"original", "retrained"} <= set(run.logs)
    assert (tmp_path / "run" / "weights.parquet").exists() and (tmp_path / "run" / "model").is_dir()
    assert not (tmp_path / "run" / "state").exists()
    assert cli(given(folder, tmp_path, **changes)) == 0  # read again

    frame = llm_runs.trajectories([run])
    assert len(frame) == len(run.examples) and np.isfinite(frame["weight"]).all()
    end = reference_noise._end("own", run, "unlearned", -1)
    assert np.isfinite(end["distance"]) == ("unlearned" in run.logs)


@DIVERGES
def test_a_run_of_weights_that_overflow_has_no_answers_afterwards(
    folder: Path, tmp_path: Path
) -> None:
    assert cli(given(folder, tmp_path, learning_rate="1e300")) == 0
    run = read_run(tmp_path / "run")
    assert run.epochs["status"].iloc[-1] == "nan" and set(run.logs) == {"original", "retrained"}
    # The figures of models leave it out, beside another that has some.
    assert cli(arguments(folder, tmp_path / "good", "--retrained", str(folder / "model"))) == 0
    found = llm_runs.models_of([run, read_run(tmp_path / "good")], "own")
    assert len(found.unlearned) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_not_finite_is_bad_input(
    value: float, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    language = load(folder / "model", device="cpu")
    with torch.no_grad():
        language.model.lm_head.weight[3, 2] = value
    save(language, tmp_path / "model", {})
    given = arguments(folder, tmp_path / "run")
    given[given.index("--model") + 1] = str(tmp_path / "model")
    assert cli(given) == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@DIVERGES
def test_a_sweep_shows_a_run_that_diverged(task: Task, tmp_path: Path) -> None:
    """Its model cannot be evaluated: the other runs have their numbers, and this one its status."""
    good, bad = wanted(("npo:0.1@1", "gradient_ascent"))
    bad = replace(bad, optimization=replace(EVERY, learning_rate=1e300))
    table = sweep(tmp_path, replace(task, save_models=False), [good, bad], n_jobs=1, progress=False)
    own = table[table["model"] == bad.word]
    assert len(own) > 0 and own["value"].isna().all() and set(own["status"]) == {"nan"}
    assert table[table["model"] == good.word]["value"].notna().any()
    again = sweep(tmp_path, replace(task, save_models=False), [good, bad], n_jobs=1, progress=False)
    pd.testing.assert_frame_equal(again, table)
    assert bool(summary(table).loc[bad.word].drop("n", level=1).isna().all())
    chosen = best(table).set_index("model").loc[bad.word]  # shown, as what it is
    assert not bool(chosen["within"]) and bool(
        chosen[["ks_statistic", "model_utility"]].isna().all()
    )
    assert set(epochs(tmp_path, [good, bad], table)["status"]) >= {"nan"}


def test_a_model_of_a_sweep_that_cannot_be_evaluated_is_no_run_that_diverged(
    task: Task, tmp_path: Path
) -> None:
    (one,), kept = wanted(("gradient_ascent",)), replace(task, save_models=True)
    table = sweep(tmp_path, kept, [one], n_jobs=1, progress=False)
    assert set(table.loc[table["model"] == one.word, "status"]) == {"ok"}
    (tmp_path / one.folder / OPEN_UNLEARNING).unlink()
    weights = tmp_path / one.folder / MODEL / "model.safetensors"
    spoiled = load_file(weights)
    spoiled["model.norm.weight"][0] = math.nan
    save_file(spoiled, weights, {"format": "pt"})
    with pytest.raises(InvalidInput, match="damaged, or changed"):
        sweep(tmp_path, kept, [one], n_jobs=1, progress=False)
