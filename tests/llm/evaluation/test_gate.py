"""The gate over seeds: when a way to make models is fit for a study, and that each check can fail.

What it finds of the default models is in `tests/figures/test_gate_figure.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from llm.evaluation.gate import all_known, components, gate_over_seeds
from llm.intervals import mean_interval
from llm.logs.log import Answers, EvaluationLog
from llm.logs.measures import TofuLogs, forget_quality, model_utility
from markov.errors import InvalidInput

SEEDS, QUESTIONS = 5, 200


def log_of(gold: float, wrong: np.ndarray, rouge: float) -> EvaluationLog:
    """A log of questions whose answer has one probability, and one wrong answer each."""
    count = len(wrong)
    loss = np.full(count, -np.log(gold))
    return EvaluationLog(
        file="model",
        layout="scored",
        index=np.arange(count),
        gold=Answers(loss, None, None),
        paraphrased=Answers(loss, None, None),
        perturbed=Answers(np.asarray(wrong, dtype=float)[:, None], None, None),
        rouge={"rougeL_recall": np.full(count, rouge)},
    )


def model(seed: int, known: float, *, rouge: float = 0.9, shift: float = 0.0) -> TofuLogs:
    """A model: its probability of the forget answers, its ROUGE, and how its truth ratios lie."""
    rng = np.random.default_rng(seed)
    forget = rng.normal(size=QUESTIONS) + shift - np.log(known)
    kept = log_of(0.8, np.full(QUESTIONS, 3.0) + 0.01 * rng.normal(size=QUESTIONS), rouge)
    return TofuLogs(log_of(known, forget, rouge), kept, kept, kept)


def pairs(
    originals: dict[str, Any] | None = None, retrained: dict[str, Any] | None = None
) -> dict[int, tuple[TofuLogs, TofuLogs]]:
    """The models of five seeds, with changes to the last original or the last retrained one."""
    found = {seed: (model(seed, 0.97), model(100 + seed, 0.15)) for seed in range(SEEDS)}
    last = SEEDS - 1
    if originals is not None:
        found[last] = (model(last, **{"known": 0.97, **originals}), found[last][1])
    if retrained is not None:
        found[last] = (found[last][0], model(100 + last, **{"known": 0.15, **retrained}))
    return found


def verdicts(found: Any) -> dict[str, str]:
    return dict(zip(found["check"], found["verdict"], strict=True))


def test_a_way_that_makes_the_same_models_passes_every_check() -> None:
    found = gate_over_seeds(pairs())
    assert set(verdicts(found).values()) == {"passes", ""} and len(found) == 17
    assert verdicts(found)["floor"] == ""


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("forget data known", {"originals": {"known": 0.94}}),
        ("forget data unread", {"retrained": {"known": 0.31}}),
        ("retrained alike", {"retrained": {"shift": 2.0}}),
        ("least component", {"originals": {"rouge": 0.39}}),
        ("utility varies, original", {"originals": {"rouge": 0.6}}),
        ("utility varies, retrained", {"retrained": {"rouge": 0.6}}),
    ],
)
def test_one_bad_model_of_ten_fails_the_check_that_is_about_it(
    check: str, changes: dict[str, Any]
) -> None:
    assert verdicts(gate_over_seeds(pairs(**changes)))[check] == "fails"


@pytest.mark.parametrize(("apart", "verdict"), [(0.005, "passes"), (0.1, "fails")])
def test_two_kinds_are_alike_if_their_whole_interval_is(apart: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    rouges = 0.9 + 0.002 * rng.normal(size=(SEEDS, 2))
    logs = {
        seed: (
            model(seed, 0.97, rouge=float(rouges[seed, 0])),
            model(100 + seed, 0.15, rouge=float(rouges[seed, 1]) - apart),
        )
        for seed in range(SEEDS)
    }
    found: Any = gate_over_seeds(logs).set_index("check")
    row = found.loc["rouge of retain apart"]
    values = rouges[:, 0] - rouges[:, 1] + apart
    assert row["value"] == pytest.approx(values.mean())
    # Two one-sided tests of 5%: an interval of 90%.
    half = stats.t.ppf(0.95, SEEDS - 1) * values.std(ddof=1) / np.sqrt(SEEDS)
    assert (row["low"], row["high"]) == pytest.approx((values.mean() - half, values.mean() + half))
    assert row["verdict"] == verdict


def test_kinds_that_vary_too_much_to_tell_are_inconclusive() -> None:
    logs = {
        seed: (model(seed, 0.97, rouge=0.9), model(100 + seed, 0.15, rouge=0.8 + 0.1 * (seed % 2)))
        for seed in range(SEEDS)
    }
    assert verdicts(gate_over_seeds(logs))["rouge of retain apart"] == "inconclusive"


def test_the_floor_is_what_two_retrained_models_are_apart() -> None:
    logs = pairs()
    retrained = [pair[1].of("forget") for pair in logs.values()]
    far = [
        forget_quality(one, other).statistic
        for place, one in enumerate(retrained)
        for other in retrained[:place]
    ]
    row: Any = gate_over_seeds(logs).set_index("check").loc["floor"]
    assert [row[name] for name in ("value", "low", "high", "count")] == pytest.approx(
        [np.mean(far), min(far), max(far), 10]
    )


def test_components_are_the_measures_of_each_model() -> None:
    logs = pairs()
    table: Any = components(logs)
    assert len(table) == 2 * SEEDS * (9 + 2)
    own = table[(table["seed"] == 3) & (table["model"] == "retrained")].set_index(
        ["task", "measure"]
    )["value"]
    assert own["all", "model_utility"] == model_utility(logs[3][1])
    assert own["forget", "probability"] == pytest.approx(0.15)
    assert own["retain", "rouge"] == pytest.approx(0.9)


def test_a_single_seed_is_no_gate() -> None:
    with pytest.raises(InvalidInput, match="seeds"):
        gate_over_seeds({0: pairs()[0]})


def test_data_without_wrong_answers_are_asked_nothing() -> None:
    logs = pairs()
    assert all_known(logs)
    bare = logs[0][0]._replace(forget=logs[0][0].of("forget")._replace(perturbed=None))
    assert not all_known({**logs, 0: (bare, logs[0][1])})
    assert not all_known({**logs, 0: (logs[0][0]._replace(world_facts=None), logs[0][1])})


def test_the_mean_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, np.nan])
    found = mean_interval(values, 0.9)
    known = stats.t.interval(0.9, 2, loc=7 / 3, scale=stats.sem(values[:3]))
    assert found[:3] == pytest.approx((7 / 3, *known)) and found.count == 3
