"""Whole numbers of settings are whole numbers: True and 3.0, which count and compare like them, are
refused by name, and numpy's integers are held as Python's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from figures import __main__ as drawing
from figures.scale import Scale
from llm.commands.muse import Muse, muse
from llm.commands.relearn import Relearn, relearn
from llm.commands.sweep import Sweep, sweep
from llm.data.authors.corpus import Authors, split
from llm.data.news.corpus import News
from llm.data.tofu import Example
from llm.evaluation.membership import Membership, auc_interval
from llm.intervals import bootstrap
from llm.jobs.sweeping import runs_of
from llm.logs.measures import exact_log10_p
from llm.models.small_authors import DefaultModels
from llm.models.small_news import NewsModels
from llm.scoring.documents import pieces, whole
from llm.scoring.encoding import Encoded, batches, encode
from llm.scoring.templates import PLAIN
from llm.sweeps.sweep import PlannedRun
from llm.training.adapters import Lora
from llm.training.loop import Optimization
from llm.unlearning.sequential import requests
from llm.unlearning.unlearn import Unlearning
from llm.writing.continuations import continuations
from markov.__main__ import Unlearn, experiment
from markov.errors import InvalidInput, require_jobs
from markov.experiments import Pretraining
from markov.explanation import explain
from markov.objectives import SequenceLogProbs, npo
from tests.llm.models.test_generation import model_of
from tests.llm.scoring.test_encoding import by_bytes

STEPS = Optimization(epochs=3, batch=1, learning_rate=1e-3)
EXAMPLES = tuple(Example(index=row, prompt="Who?", response="Ann.") for row in range(4))
TOKENIZER: Any = by_bytes(words=True)
MODEL = model_of("llama", vocab_size=len(TOKENIZER))
SOME = Membership(np.arange(4.0), np.arange(4.0))


def of_law(index: Any) -> str:
    return explain(npo(0.1), SequenceLogProbs.of(*torch.tensor([[-2.0] * 4, [3.0] * 4])), index)


def encoded(longest: Any) -> Encoded:
    return encode(TOKENIZER, PLAIN, "a", "b", max_length=longest, truncate=True)


def written(**options: Any) -> Any:
    return continuations(MODEL, TOKENIZER, [[1]], **{"max_new_tokens": 2, **options})


# What takes a whole number, by its name, and what it is called where it is refused.
TAKERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "bootstrap": (lambda n: bootstrap(np.mean, np.arange(3.0), resamples=n), "resamples"),
    "auc_interval": (lambda n: auc_interval(SOME, resamples=n), "resamples"),
    "exact_log10_p": (lambda n: exact_log10_p(5, n), "steps"),
    "split": (lambda n: split(EXAMPLES, n), "percent"),
    "requests": (lambda n: requests(EXAMPLES, n), "requests"),
    "pieces": (lambda n: pieces(TOKENIZER, ["a b c d"], length=n), "length"),
    "whole": (lambda n: whole(TOKENIZER, ["a b c d"], max_length=n), "max_length"),
    "batches": (lambda n: batches([encoded(9)], n), "budget"),
    "encode": (encoded, "max_length"),
    "continuations": (lambda n: written(max_new_tokens=n), "max_new_tokens"),
    "continuations, budget": (lambda n: written(budget=n), "budget"),
    "explain": (of_law, "index"),
    "Scale": (lambda n: Scale(pretrained=n), "seeds"),
    "Scale, sweeps": (lambda n: Scale(sweep_pretrained=n), "seeds"),
    "gradients": (
        lambda n: Unlearning(objective=npo(0.1), optimization=STEPS, gradients=(n,)),
        "gradients",
    ),
    "measured": (lambda n: PlannedRun(method=None, optimization=STEPS, measured=(n,)), "measured"),
    "recorded": (
        lambda n: replace(experiment(Unlearn(steps=3, record_every=1)), recorded=(n,)),
        "recorded",
    ),
    "record_every": (lambda n: experiment(Unlearn(record_every=n)), "record_every"),
    "jobs": (require_jobs, "jobs"),
    "markov, jobs": (lambda n: experiment(Unlearn(jobs=n)), "jobs"),
    "sweep, jobs": (lambda n: sweep(Sweep(jobs=n)), "jobs"),
    "sweep, probe": (lambda n: runs_of(Sweep(probe=n)), "probe"),
    "figures, jobs": (
        lambda n: drawing.main(drawing.Arguments(names=("tradeoff",), jobs=n)),
        "jobs",
    ),
    "relearn": (
        lambda n: relearn(Relearn(model="m", retrained="r", repeats=n)),
        "repeats",
    ),
    "muse": (lambda n: muse(Muse(model="news:original", piece=n)), "piece"),
}
# Fields of settings, by what holds them.
SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]] = [
    (
        Optimization,
        {"epochs": 3, "batch": 2, "learning_rate": 1e-3},
        ("epochs", "batch", "budget"),
    ),
    (Lora, {}, ("rank",)),
    (Unlearning, {"objective": npo(0.1)}, ("retain_probe",)),
    (
        DefaultModels,
        {},
        (
            "percent",
            "width",
            "depth",
            "heads",
            "mlp_width",
            "vocabulary",
            "passes",
            "batch",
            "seed",
        ),
    ),
    (NewsModels, {}, ("piece", "passes")),
    (News, {}, ("seed", "forget", "holdout", "retain", "questions")),
    (Authors, {}, ("seed", "authors", "questions")),
    (Example, {"index": 1, "prompt": "Who?", "response": "Ann."}, ("index",)),
    (Pretraining, {}, ("epochs", "batch", "seed")),
]
FIELDS = [(make, given, field) for make, given, fields in SETTINGS for field in fields]


@pytest.mark.parametrize("bad", [True, 3.0, np.float64(3), "3"], ids=repr)
@pytest.mark.parametrize("taker", TAKERS)
def test_what_only_compares_like_a_whole_number_is_refused(taker: str, bad: Any) -> None:
    take, field = TAKERS[taker]
    with pytest.raises(InvalidInput) as refused:
        take(bad)
    assert refused.value.field == field


@pytest.mark.parametrize("bad", [True, 3.0, "3", None, -1], ids=repr)
@pytest.mark.parametrize(("make", "given", "field"), FIELDS)
def test_a_setting_that_only_compares_like_a_whole_number_is_refused(
    make: Callable[..., Any], given: dict[str, Any], field: str, bad: Any
) -> None:
    with pytest.raises(InvalidInput) as refused:
        make(**{**given, field: bad})
    assert refused.value.field == field


@pytest.mark.parametrize(("make", "given", "field"), FIELDS)
def test_numpys_integers_are_held_as_pythons(
    make: Callable[..., Any], given: dict[str, Any], field: str
) -> None:
    usual = make(**given)
    same = make(**{**given, field: np.int64(getattr(usual, field))})
    assert same == usual and json.dumps(getattr(same, field)) == json.dumps(getattr(usual, field))


def test_epochs_are_held_as_pythons_integers() -> None:
    epochs: Any = tuple(np.arange(3))
    found = Unlearning(objective=npo(0.1), optimization=STEPS, gradients=epochs)
    measured = PlannedRun(method=None, optimization=STEPS, measured=epochs).measured
    assert json.dumps(found.gradients) == json.dumps(measured) == "[0, 1, 2]"
    for beyond in ((4,), (-1,)):
        with pytest.raises(InvalidInput, match="epochs from 0 to 3"):
            replace(found, gradients=beyond)


def test_processes_are_counted_or_left_to_the_machine() -> None:
    for jobs in (-1, 1, np.int64(8)):
        require_jobs(jobs)
    for jobs in (0, -2, -1.0, None):
        with pytest.raises(InvalidInput, match="-1 or a whole number from 1 to"):
            require_jobs(jobs)
