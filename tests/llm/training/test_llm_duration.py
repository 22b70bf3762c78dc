"""Trainings of language models that would take more than a month are refused before an update."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import transformers

from llm.data.tofu import Example
from llm.jobs import estimating
from llm.scoring.encoding import Encoded
from llm.sweeps.duration import check_ends as check_sweep
from llm.training import duration as own
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.console import duration
from markov.errors import InvalidInput
from markov.objectives import npo

EXAMPLES = [Encoded((1, 3, 4, 5), 2), Encoded((1, 6, 7), 1)]
FORGET = [Example(index=0, prompt="who", response="nobody we ever heard of")]


def llama() -> Any:
    sizes: dict[str, Any] = dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(duration, "products_a_second", lambda _: 1.0)
    monkeypatch.setattr(duration, "LITTLE", 0.0)
    yield


def test_what_is_counted_is_the_products_of_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(duration, "check_ends", lambda parts, **_: counted.append(parts))
    own.check_ends(llama(), EXAMPLES, 7)
    linear = 4 * 16 * 16 + 3 * 16 * 24 + 50 * 16
    assert counted == [{"epochs": duration.Part(7, 2 * 7 * linear * (3 + 2))}]


def test_a_training_that_would_not_end_changes_nothing(slow: None) -> None:
    model, settings = llama(), Optimization(epochs=10**5, batch=2, learning_rate=1e-3)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with pytest.raises(InvalidInput, match=r"^epochs = 100000 is not allowed: at most \d+, since"):
        fine_tune(model, EXAMPLES, settings, progress=False)
    forgetting = Unlearning(objective=npo(0.1), optimization=settings, retain_term="none")
    with pytest.raises(InvalidInput, match=r"^epochs = 100000 is not allowed: at most \d+, since"):
        unlearn(model, EXAMPLES, [], forgetting, progress=False)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_a_sweep_is_refused_before_its_first_model_is_read(tmp_path: Path) -> None:
    large = str(tmp_path)  # of which there are settings only, those of Llama 2 with 7B
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    sizes |= {"num_attention_heads": 32, "vocab_size": 32000}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    with pytest.raises(InvalidInput, match=r"^epochs = 100000 is not allowed"):
        check_sweep(large, "cpu", FORGET, [10**5] * 10**5)
    check_sweep(large, "cpu", FORGET, [10] * 3)
    check_sweep(large, "nowhere", FORGET, [10**5] * 10**5)  # where tables are collected
    check_sweep("authors:original", "cpu", FORGET, [10**5] * 10**5)  # of unknown size


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("attack", "^attack_epochs = 3 is not allowed: at most 1, since about 45 days"),
        ("evaluate", "^measured_answers = 400 is not allowed: at most 240, since about 45 days"),
    ],
)
def test_a_study_is_refused_by_its_estimate(part: str, said: str) -> None:
    asked: Any = SimpleNamespace(jobs=1, measured_answers=None, attack_epochs=3, epochs=5)
    month = duration.LONGEST
    found = pd.DataFrame({"part": [part, "unlearn"], "seconds": [1.25 * month, 0.25 * month]})
    with pytest.raises(InvalidInput, match=said):
        estimating.check_ends(asked, found)
    asked.jobs = 2
    estimating.check_ends(asked, found)
    estimating.check_ends(asked, found.iloc[:0])
