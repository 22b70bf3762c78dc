"""How far a language model drifts from the original one: what is measured, and how it is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from figures.questions import llm_divergence as figure
from llm.models.answers import responses
from llm.models.small_authors import build, sets
from llm.scoring.encoding import Batch
from llm.scoring.logprobs import scored_logits
from markov.objectives import CORNERS, gradient_ascent, npo
from tests.figures.studies import drawn, tiny_study

STUDY = tiny_study(questions=4, percent=50)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def found() -> dict[str, pd.DataFrame]:
    """Runs of two methods on a tiny model, of which nothing is known by heart."""
    laws = {"gradient_ascent": gradient_ascent(), "npo": npo(0.1)}
    return {
        name: figure.divergences(figure.Job(STUDY, 0, law, epochs=3)) for name, law in laws.items()
    }


def test_a_model_lies_nowhere_from_itself_and_elsewhere_by_the_mean_over_tokens() -> None:
    original = build(STUDY.models, "original", progress=False)
    other = build(STUDY.models, "retrained", progress=False)
    encoded = responses(original, sets(STUDY.models).forget)[:5]
    assert figure.divergence(original.model, original.model, encoded, 100) == 0
    slow = []
    for one in encoded:
        batch = Batch.pad([one])
        with torch.no_grad():
            p, q = (
                scored_logits(model, batch).double().log_softmax(-1)
                for model in (original.model, other.model)
            )
        slow.append(float((p.exp() * (p - q)).sum(-1).mean()))
    for budget in (1, 60, 10_000):
        mean = figure.divergence(original.model, other.model, encoded, budget)
        assert mean == pytest.approx(np.mean(slow), rel=1e-4)


def test_a_run_starts_at_the_original_and_drifts_away(found: dict[str, pd.DataFrame]) -> None:
    for name, frame in found.items():
        assert set(frame["method"]) == {name} and set(frame["on"]) == set(figure.ON)
        for _, own in frame.groupby("on"):
            first, *later = own.sort_values("step")["kl"]
            assert first == pytest.approx(0, abs=1e-6) and min(later) > 0 and later[-1] > later[0]
    # The first epoch is not the same: after its first update NPO's weights are below 1.
    ends = [frame.query("on == 'forgotten'")["kl"].iloc[-1] for frame in found.values()]
    assert ends[0] > ends[1]


def test_time_counts_the_step_sizes_of_all_updates(found: dict[str, pd.DataFrame]) -> None:
    own = found["npo"].query("on == 'kept'").sort_values("step")
    last = own["step"].iloc[-1]
    # They fall linearly from the largest one to 1/last of it.
    each = (last - np.arange(last)) / last
    wanted = [each[: int(step)].sum() for step in own["step"]]
    assert own["time"].tolist() == pytest.approx(wanted)


def test_answers_are_taken_at_even_distances() -> None:
    assert figure.spread(range(400), 80)[:2] == [0, 5] and len(figure.spread(range(400), 80)) == 80
    assert figure.spread(range(3), 80) == [0, 1, 2]


def planted(power: dict[str, float], seeds: int = 5) -> pd.DataFrame:
    """Divergences that grow as powers of time, by a factor that is each training's own."""
    times = np.geomspace(1, 100, 12)
    frames = [
        pd.DataFrame({"time": times, "kl": (1 + seed) * times ** (own + 0.01 * seed)}).assign(
            on=on, method=method, seed=seed, step=range(12), beta=0.1
        )
        for on in figure.ON
        for method, own in power.items()
        for seed in range(seeds)
    ]
    return pd.concat(frames, ignore_index=True)


def test_exponents_are_those_of_the_powers_and_judged_beside_gas() -> None:
    power = {"gradient_ascent": 1.0, **dict.fromkeys(CORNERS, 0.4), "simnpo": 1.2}
    told = figure.told(planted(power))
    exponents = told["exponents"].set_index(["on", "method"])
    assert exponents.loc[("kept", "npo"), "value"] == pytest.approx(0.42)
    faster = told["faster"].set_index(["on", "method"])
    assert faster.loc[("kept", "npo"), "value"] == pytest.approx(0.6)
    assert set(faster["verdict"].drop(index="simnpo", level="method")) == {"holds"}
    assert set(faster.xs("simnpo", level="method")["verdict"]) == {"contradicted"}
    assert set(faster["count"]) == {5}


def test_the_figure_has_a_line_for_each_method_on_both_kinds_of_answers(tmp_path: Path) -> None:
    power = {"gradient_ascent": 1.0, **dict.fromkeys(CORNERS, 0.4)}
    panels: Any = drawn(figure, planted(power)).axes
    assert len(panels) == len(figure.ON)
    for axes in panels:
        assert len(axes.get_lines()) == 1 + len(CORNERS)
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert "p = 1.02" in labels[0] and "p = 0.42" in labels[1]
