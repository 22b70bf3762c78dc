"""Share of the time that checks of input take of a training and of a moved slider, beside 1%.

Functions that check are wrapped by a clock, whose own time counts as theirs.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from llm.training.loop import Optimization
from llm.unlearning.unlearn import Unlearning, unlearn
from markov.cases import LENGTH
from markov.experiments import Experiment, Pretraining
from markov.models import Transformer
from markov.objectives import npo, simnpo
from markov.running.run import run
from tests.benchmarks.test_interactive import VIEWS
from tests.benchmarks.test_llm_scoring import answers, llama

BOUND = 0.01
OURS = ("markov", "llm", "figures")
NAMES = re.compile(r"_*(check|require|valid)")


class Clock:
    """Counts the seconds in functions that are wrapped, of those within one another once."""

    def __init__(self) -> None:
        self.seconds, self.inside = 0.0, False

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return function(*arguments, **options)
            self.inside, began = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began
                self.inside = False

        return call


def checks() -> Iterator[tuple[object, str, Callable[..., Any]]]:
    """All functions that look at input, by their names, wherever they are known."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in OURS:
            continue
        places = [module, *(one for one in vars(module).values() if isinstance(one, type))]
        for place in places:
            for known, one in list(vars(place).items()):
                ours = str(getattr(one, "__module__", "")).partition(".")[0] in OURS
                if isinstance(one, FunctionType) and ours and NAMES.match(known):
                    yield place, known, one


def share(work: Callable[[], object]) -> float:
    """The share of some work that is spent in checks, and in what they call."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        for place, name, function in checks():
            if getattr(place, "__module__", "").partition(".")[0] in ("", *OURS):
                patch.setattr(place, name, clock.wrapped(function))
        began = time.perf_counter()
        work()
        whole = time.perf_counter() - began
    assert clock.seconds > 0
    return clock.seconds / whole


def report(what: str, found: float) -> None:
    assert 0 < found < 1
    print(f"\n    checks take {100 * found:.2f}% of {what}, whose bound is {100 * BOUND:.0f}%")


def test_training_of_chains(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Two runs of the paper's case, with a smaller transformer, models included."""
    small = Transformer(width=32, depth=1, heads=2)
    wanted = [
        Experiment(
            case=LENGTH, model=small, objective=one, steps=50, pretraining=Pretraining(epochs=1)
        )
        for one in (npo(0.1), simnpo(4.0))
    ]

    def work() -> None:
        run(wanted, cache=tmp_path, n_jobs=1, progress=False)

    report("a training of chains", benchmark.pedantic(share, args=(work,), rounds=1))


@pytest.mark.filterwarnings("ignore:the model has collapsed")
def test_training_of_a_language_model(benchmark: BenchmarkFixture) -> None:
    torch.set_num_threads(1)
    every = Optimization(epochs=3, batch=16, learning_rate=1e-5, budget=384)
    settings = Unlearning(objective=simnpo(4.0), optimization=every, retain_term="cross_entropy")
    forget, retain, model = answers(48, 512), answers(48, 512), llama(512)

    def work() -> None:
        unlearn(model, forget, retain, settings, progress=False)

    report("a training of a language model", benchmark.pedantic(share, args=(work,), rounds=1))


@pytest.mark.parametrize(
    ("make", "control", "values"), VIEWS, ids=[make.__name__ for make, *_ in VIEWS]
)
def test_sliders(
    benchmark: BenchmarkFixture, make: Callable[[], Any], control: str, values: list[Any]
) -> None:
    torch.set_num_threads(1)
    view, following = make(), itertools.cycle(values)

    def work() -> None:
        for _ in range(20):
            view.controls[control].value = next(following)

    report(f"a moved slider, {make.__name__}", benchmark.pedantic(share, args=(work,), rounds=1))
