"""Time of a redraw of every view of the notebooks, beside its bound of 50 ms: `make benchmark`.

As seen in a browser, from a pressed key to the drawn picture, it is 250 ms. That one needs what
`tests/test_browser.py` needs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from figures.views.answers import answers_view
from figures.views.chains import chains_view
from figures.views.law import corners_view, law_view, pace_view
from figures.views.player import player, record, small
from figures.views.view import View
from llm.data.tofu import Example
from markov.experiments import Pretraining
from markov.models import Tabular
from tests import test_browser

BOUND = 0.05  # seconds
SEEN_BOUND = 250  # milliseconds
NEEDS_BROWSER = pytest.mark.skipif(
    not (test_browser.BROWSER and test_browser.DRIVER), reason="no Chromium with its driver"
)
lab, browser = test_browser.lab, test_browser.browser


def a_player() -> View:
    """Forty steps of a table, for the picture is as large as that of a transformer."""
    base = small()
    settings = Pretraining(epochs=1, batch=128, learning_rate=0.3, optimizer="sgd")
    return player([record(replace(base, model=Tabular(), pretraining=settings))])


def an_answers_view() -> View:
    """Forty answers in two panels, whose axes are fitted to them at every redraw."""
    length = np.arange(4.0, 84.0, 2.0)
    columns = {"index": np.arange(len(length)), "length": length, "logp": -0.2 * length}
    table = pd.DataFrame(columns).assign(ref=-0.2 * length, needed=1.8 * length)
    examples = [Example(index=int(at), prompt="Who?", response="They.") for at in table["index"]]
    return answers_view(table, examples, beta=4.5, reference=0.0, normalize=1.0)


VIEWS: list[tuple[Callable[[], View], str, list[Any]]] = [
    (law_view, "fall", [0.1 * step for step in range(30)]),
    (corners_view, "fall", [0.1 * step for step in range(30)]),
    (pace_view, "reference", [0.03 * step for step in range(30)]),
    (chains_view, "leakage", [0.1 + 0.02 * step for step in range(30)]),
    (a_player, "moment", list(range(20))),
    (an_answers_view, "beta", [0.5 + 0.1 * step for step in range(30)]),
]


@pytest.mark.parametrize(
    ("make", "control", "values"), VIEWS, ids=[make.__name__ for make, *_ in VIEWS]
)
def test_redraw(
    benchmark: BenchmarkFixture, make: Callable[[], View], control: str, values: list[Any]
) -> None:
    """One moved slider: from the new value to the encoded picture, in the kernel."""
    torch.set_num_threads(1)
    view, following = make(), itertools.cycle(values)
    before = view.image.value

    def move() -> None:
        view.controls[control].value = next(following)

    benchmark.pedantic(move, rounds=60, warmup_rounds=2)
    assert view.image.value != before
    median = benchmark.stats["median"] if benchmark.stats else float("nan")
    print(f"\n    {1000 * median:.0f} ms for {make.__name__}, whose bound is {1000 * BOUND:.0f} ms")


SEEN = """
const [image, handle, key] = arguments, done = arguments[arguments.length - 1];
const start = performance.now();
image.addEventListener("load", () => done(performance.now() - start), {once: true});
handle.dispatchEvent(new KeyboardEvent("keydown", {key: key, bubbles: true, cancelable: true}));
"""


@NEEDS_BROWSER
@pytest.mark.parametrize(
    ("name", "until", "slider"),
    [("01_objectives", "explain(npo", "reference"), ("03_markov_chains", "for leakage", "leakage")],
)
def test_redraw_as_seen_in_a_browser(
    lab: str, browser: Any, name: str, until: str, slider: str
) -> None:
    """One pressed key: from the slider in the browser to the picture that is decoded there."""
    test_browser.opened(browser, lab, name, until)
    image, handle = test_browser.picture(browser, 0), test_browser.handle(browser, slider)
    keys = ["ArrowLeft", "ArrowRight"] * 15
    times, drawn = [], set[str]()
    for key in keys:
        times.append(browser.execute_async_script(SEEN, image, handle, key))
        drawn.add(browser.execute_script(test_browser.PIXELS, image))
    assert len(drawn) >= 2
    print(f"\n    {statistics.median(times):.0f} ms for {slider} of {name}, bound {SEEN_BOUND} ms")
