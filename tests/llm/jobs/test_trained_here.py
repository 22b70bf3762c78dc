"""A study of models that are made here: each seed is another training of both, and nothing is
taught.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.commands.gate import Gate, gate
from llm.data.authors.corpus import Authors
from llm.jobs.study_settings import Study, checked
from llm.jobs.studying import studied
from llm.jobs.trained_here import DECIDED, is_trained_here
from llm.models import small_authors
from llm.models.language_model import load_saved
from llm.models.small_authors import DefaultModels
from markov.errors import InvalidInput
from markov.files import storage

FEW = Authors(authors=10, questions=2)
TINY = DefaultModels(
    authors=FEW,
    width=16,
    depth=1,
    heads=2,
    mlp_width=16,
    vocabulary=300,
    passes=1,
    precision="float32",
)
MODEL, DATA = "authors:original", "authors:forget20"
WAYS: dict[str, Any] = {"max_new_tokens": 4, "device": "cpu", "draw": False, "despite_gate": True}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The default models are tiny, of ten authors, in a cache of their own."""
    patch = monkeypatch.setattr
    patch(
        "llm.models.small_authors.DefaultModels", lambda **given: replace(TINY, seed=given["seed"])
    )
    for module in ("llm.data.sources", "llm.data.splits"):
        patch(f"{module}.Authors", lambda **_: FEW)
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    yield tmp_path


def asked(place: Path, **changes: Any) -> Study:
    words = {"model": MODEL, "data": DATA, "methods": (), "attacked": (), "seeds": (0, 1)}
    return checked(Study(**{**WAYS, **words, "out": place, **changes}))


def same(place: Path, seed: int, kind: str) -> bool:
    """Whether the model of a study is that of the cache, trained with this seed."""
    ours = load_saved(place / f"seed{seed}" / kind / "model", device="cpu").model.state_dict()
    theirs = small_authors.build(
        replace(TINY, seed=seed), kind, device="cpu", progress=False
    ).model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_each_seed_is_another_training_and_nothing_is_taught(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taught(*_: object, **__: object) -> None:
        raise AssertionError("a model was taught")

    monkeypatch.setattr("llm.models.finetuned.finetune_into", taught)
    place = few / "study"
    found = studied(asked(place), progress=False)
    assert all(same(place, seed, kind) for seed in (0, 1) for kind in ("original", "retrained"))
    assert set(found.measures["model"]) == {"original", "retrained"} and found.attacks.empty
    over = storage.read_table(place / "gate_over_seeds.parquet")
    assert over.set_index("check").loc["utility apart", "count"] == 2 and len(found.floor) == 1
    assert set(storage.read_table(place / "components.parquet")["seed"]) == {0, 1}
    # What is of several seeds does not outlive a call for one.
    studied(asked(place, seeds=(0,)), progress=False)
    assert not (place / "gate_over_seeds.parquet").exists()
    assert not (place / "components.parquet").exists()
    # It goes on with another seed, and makes nothing twice.
    before = (place / "seed0" / "original" / "model" / "model.safetensors").stat().st_mtime_ns
    more = studied(asked(place, seeds=(0, 2)), progress=False)
    assert set(more.measures["seed"]) == {0, 2} and same(place, 2, "original")
    assert (
        before == (place / "seed0" / "original" / "model" / "model.safetensors").stat().st_mtime_ns
    )


@pytest.mark.slow
def test_the_command_prints_the_checks_over_all_seeds(
    few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate(Gate(seeds=(3, 4), device="cpu", jobs=1, out=few / "gate"))
    said = capsys.readouterr().out
    for check in ("forget data known", "utility apart", "retrained alike", "floor"):
        assert check in said
    assert (few / "gate" / "seed4" / "retrained" / "model").is_dir()


def test_a_gate_of_one_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="seeds"):
        gate(Gate(seeds=(0,), out=tmp_path / "gate"))


@pytest.mark.parametrize(
    ("model", "data", "here"),
    [
        (MODEL, DATA, True),
        ("authors:original:20:3", "authors:forget05:3", True),
        (MODEL, "tofu:forget05", False),
        (MODEL, "folder/forget05", False),
        ("authors:retrained", "authors:forget20", False),
        ("news:original", "authors:forget20", False),
        ("smollm2-135m", "authors:forget20", False),
    ],
)
def test_only_an_original_that_has_read_the_data_is_not_taught(
    model: str, data: str, here: bool
) -> None:
    assert is_trained_here(Study(model=model, data=data)) == here


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        *[(name, {name: 3}) for name in DECIDED],
        ("model", {"data": "authors:forget20:3"}),
    ],
)
def test_what_such_a_study_cannot_decide_is_refused(
    field: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput) as caught:
        asked(tmp_path / "study", **changes)
    assert caught.value.field == field and not (tmp_path / "study").exists()


def test_an_estimate_counts_no_teaching(few: Path) -> None:
    from llm.jobs.estimating import estimated

    small_authors.build(replace(TINY, seed=0), "original", device="cpu", progress=False)
    found = estimated(asked(few / "study", methods=("npo:0.1@1",), epochs=1))
    assert set(found["part"]) == {"evaluate", "unlearn"}
