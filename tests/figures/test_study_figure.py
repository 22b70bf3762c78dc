"""The figure of a study: what it draws of a folder, and which folders it refuses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from figures import __main__ as figures
from figures.cache import Context
from figures.language import study as figure
from llm import study
from llm.data import tofu
from llm.data.authors.corpus import Authors, splits
from markov.errors import InvalidInput
from tests.llm.conftest import place

__all__ = ["place"]
METHODS = ("npo:0.1@1", "simnpo:2.5@0.1375", "gradient_ascent")


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two seeds on a tiny model."""
    folder = tmp_path_factory.mktemp("study")
    found = splits(Authors(authors=10, questions=4))
    for name in ("forget10", "retain90", "real_authors_perturbed", "world_facts_perturbed"):
        tofu.write(found[name][:8], folder / "questions" / f"{name}.json")
    study(
        place / "model",
        folder / "questions" / "forget10",
        out=folder / "out",
        methods=METHODS,
        attacked=METHODS[:2],
        seeds=(0, 1),
        learning_epochs=1,
        epochs=2,
        unlearning_rate=1e-3,
        max_new_tokens=4,
        attack_epochs=1,
        despite_gate=True,
        progress=False,
    )
    return folder / "out"


def test_a_study_is_drawn_with_its_seeds_means_weights_and_attacks(done: Path):
    frame = figure.data(Context(study=done))
    table = pd.read_parquet(done / "measures.parquet")
    utility = table[table["measure"] == "model_utility"].groupby("model")["value"].mean()
    means = frame[(frame["kind"] == "mean") & (frame["measure"] == "model_utility")]
    assert means.set_index("model")["value"].to_dict() == pytest.approx(utility.to_dict())
    weights = frame[frame["kind"] == "weight"]
    assert set(zip(weights["model"], weights["seed"], weights["epoch"], strict=True)) == {
        (word, seed, epoch) for word in METHODS for seed in (0, 1) for epoch in (0, 1, 2)
    }
    first = weights[weights["epoch"] == 0].set_index("model")["spearman"]
    assert first[[METHODS[0], METHODS[2]]].isna().all() and (first[METHODS[1]] < 0).all()
    attacked = frame[frame["kind"] == "attack"]
    assert set(attacked["model"]) == {"retrained", *METHODS[:2]}
    assert frame["kind"].eq("floor").sum() == 1
    drawn = figure.plot(frame)
    left, middle, right = drawn.axes
    assert len(middle.get_lines()) == 1 + 2 * 2  # a rule, and both seeds of two methods
    assert len(right.get_lines()) == 2 + 3 * 2 * 2
    assert any(line.get_linestyle() == ":" for line in left.get_lines())


def test_a_study_is_drawn_from_the_command_line_with_the_runs_of_its_first_seed(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert figures.cli(["--study", str(done), "--out", str(tmp_path / "drawn")]) == 0
    names = ("llm_study", "llm_weights_epoch1", "llm_weight_boxes", "llm_weights_length")
    assert {path.name for path in (tmp_path / "drawn").glob("*.png")} == {
        f"{name}.png" for name in names
    }
    frame = pd.read_parquet(tmp_path / "drawn" / "llm_weights_length.parquet")
    assert set(frame["method"]) == {"npo", "simnpo"}


@pytest.mark.parametrize(
    "arguments",
    [["llm_study"], ["--study", "nowhere"], ["--study", ".", "--runs", "."], ["llm_studies"]],
)
def test_what_is_no_study_is_refused_in_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert figures.cli([*arguments, "--out", str(tmp_path / "drawn")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and ("study" in told[0] or "figure" in told[0])
    assert not (tmp_path / "drawn").exists()


def test_a_study_without_measures_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="study"):
        figure.first_corners(tmp_path)
