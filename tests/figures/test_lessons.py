"""Every exercise of the notebooks on theory and chains is solved here from its own words.

A solution names the words of the text that it uses, works the answer out by hand or with the public
names of `markov`, and lists the answers of those who misread: none of these may be accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from figures.lessons.chains import EXERCISES, check
from figures.lessons.exercise import TOLERANCE, Exercise
from figures.views.ladder import rung
from figures.views.law import sequences
from figures.views.player import Recording, record, small
from markov import (
    LENGTH,
    MEMORISATION,
    Objective,
    SequenceLogProbs,
    gradient_ascent,
    ideal_forget_distance,
    length_normalized_npo,
    npo,
    reference_free_npo,
    simnpo,
    theta,
    time_to_forget,
)
from markov.errors import InvalidInput
from tests.figures.lessons import LESSONS, Solved, asked, cells, lesson, letter, sigmoid

OWN = [name for name in LESSONS if name < "05"]


def weight(objective: Objective, length: float, now: float, ref: float) -> float:
    """The weight of a response by its log-probabilities per token."""
    return float(objective.weight(SequenceLogProbs.of([now * length], length, ref * length)))


def exponent(objective: Objective, fall: float = 0.5) -> float:
    """The slope of log time in log length at 20 tokens, over a narrower gap than the view's."""
    low, high = time_to_forget(objective, np.array([19.99, 20.01]), fall, -1.0)
    return math.log(high / low) / math.log(20.01 / 19.99)


def longest(objective: Objective, least: float) -> int:
    lengths = np.arange(1, 200)
    return int(lengths[objective.weight(sequences(lengths, -1.0, 0.0)).numpy() >= least].max())


def retained(case: Any) -> dict[str, float]:
    return ideal_forget_distance(case)


def root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high))


def short_over_long(beta: float, lengths: tuple[int, int], fall: float) -> float:
    short, long = npo(beta).weight(sequences(lengths, -1.0, fall)).tolist()
    return short / long


def told_of_other_reference() -> str:
    """The letter for NPO's weights under a reference that is not the model itself."""
    one = SequenceLogProbs.of([-20.0, -20.0, -40.0], [10, 10, 20], [-15.0, -25.0, -40.0])
    weights = npo(0.2).weight(one).tolist()
    if weights[0] != weights[1]:  # two responses of the same length
        return "b"
    return "a" if set(weights) == {1.0} else "c" if len(set(weights)) > 1 else "d"


def corner_of(lengths: list[int], start: list[float], weights: list[float]) -> str:
    """The letter of the corner that gives these weights before the first step, at beta 1."""
    corners = (npo, length_normalized_npo, reference_free_npo, simnpo)
    found = [corner(1.0).weight(sequences(lengths, start, 0.0)).tolist() for corner in corners]
    (right,) = (at for at, one in enumerate(found) if one == pytest.approx(weights, rel=1e-6))
    return "abcd"[right]


def price(forget: tuple[float, ...], retain: tuple[float, ...], goal: float = 0.4) -> float:
    """The retain distance where the forget distance first reaches the goal."""
    return next(paid for far, paid in zip(forget, retain, strict=True) if far >= goal)


def told_of_intervals(reference: tuple[float, float], length: tuple[float, float]) -> str:
    """The letter for two intervals of factors of a price; one that holds 1 leaves the sign open."""
    open_ = [low <= 1 <= high for low, high in (reference, length)]
    return {(False, True): "b", (False, False): "c", (True, True): "d"}[open_[0], open_[1]]


def told_of_growth(power: float) -> str:
    """The letter for the lengths that SimNPO pushes more if the gradient grows as |y|^power."""
    start = sequences([4, 80], -1.0, 0.0)
    short, long = (simnpo(1.0).weight(start) * start.length**power).tolist()
    if short == pytest.approx(long):
        return "b"
    return "a" if short > long else "c"


def line(method: str, slope: float, noise: float = 0.0, count: int = 6) -> Any:
    """Times of a rung which follow a power of the length, up to alternating noise."""
    lengths = np.array([2.0, 5.0, 10.0, 20.0, 40.0, 80.0])[:count]
    return rung("table, alone", method, lengths, lengths**slope * np.exp(noise * (-1.0) ** lengths))


@cache
def one_run(case: str, objective: Objective, seed: int = 0) -> Recording:
    return record(replace(small(case), objective=objective, seed=seed))


TOUR = {
    "goal": letter("b", "What should a model be after unlearning?"),
    "nats": Solved(
        ("12 tokens", "a quarter of a nat per token", "How many times as likely was it before"),
        lambda: math.exp(12 / 4),
        lambda: (3, math.exp(0.25), math.exp(-3), 2**3),
    ),
    "plane": letter("b", "A stands at the height of its star, but to the right of it"),
    "over_forgetting": Solved(
        ("knows the retain chain perfectly and nothing else", "`LENGTH`", "`forget1`"),
        lambda: retained(LENGTH)["forget1"],
        lambda: (retained(LENGTH)["forget2"], retained(LENGTH)["retain"], math.log(10)),
    ),
    "equal_sums": Solved(
        ("4 tokens has lost 2 nats per", "16 tokens has lost half a nat", r"$\beta = 0.2$"),
        lambda: weight(npo(0.2), 4, -3.0, -1.0) / weight(npo(0.2), 16, -1.5, -1.0),
        lambda: (4, 0.25, sigmoid(-0.4) / sigmoid(-0.1), sigmoid(-0.1) / sigmoid(-0.4)),
    ),
    "twice": Solved(
        ("4 and 19 tokens", "half a nat lost per token", "weighs twice as much as the long"),
        lambda: root(lambda beta: short_over_long(beta, (4, 19), 0.5) - 2, 0.01, 1),
        lambda: (0.2, 0.05, 0.01),
    ),
}

OBJECTIVES = {
    "above_reference": Solved(
        (r"\log\pi_{\mathrm{ref}} = -20$", r"$\log\pi = -15$", r"$\beta = 0.2$"),
        lambda: 2 * sigmoid(0.2 * (-15 + 20)),
        lambda: (1.0, 2 * sigmoid(-1), sigmoid(1), 2 * sigmoid(5), 2 * sigmoid(1) / 19),
    ),
    "why_ga": Solved(
        (
            "Why does NPO start as gradient ascent?",
            "some responses more likely than the model that unlearns does, and others less likely",
        ),
        lambda: told_of_other_reference(),
        lambda: ("a", "c", "d"),
    ),
    "npo_half": Solved(
        (r"$\beta = 0.1$", "half of what it was before the first step", "summed over its tokens"),
        lambda: root(lambda fall: 2 * sigmoid(-0.1 * fall) - 0.5, 0, 100),
        lambda: (math.log(2) / 0.1, -math.log(3) / 0.1, math.log(3), 5),
    ),
    "simnpo_first_weight": Solved(
        (r"$\beta = 4.0$ and $\gamma = 0$", "4 tokens with -1 nat each"),
        lambda: 2 * sigmoid(4.0 * -4 / 4) / 4,
        lambda: (2 * sigmoid(-4), 2 * sigmoid(-16) / 4, sigmoid(-4) / 4, 1 / 4, 2 * sigmoid(4) / 4),
    ),
    "margin_bound": Solved(
        (r"$\beta = 4.0$ and $\gamma = 1$", "largest weight", "5 tokens"),
        lambda: max(weight(simnpo(4.0, 1.0), 5, now, now) for now in np.linspace(-3, 0, 31)),
        lambda: (1 / 5, 2 / 5, 2 * sigmoid(1), sigmoid(1) / 5, 2 * sigmoid(4) / 5),
    ),
    "what_simnpo_changes": Solved(
        (
            "What does SimNPO change?",
            "5, 20 and 20 tokens",
            "-1, -1 and -2 nats per token",
            r"$\beta = 1$ and $\gamma = 0$",
            "0.20, 0.05 and 0.05",
            "(a) NPO; (b) length-normalised NPO; (c) reference-free NPO; (d) SimNPO",
        ),
        lambda: corner_of([5, 20, 20], [-1.0, -1.0, -2.0], [0.20, 0.05, 0.05]),
        lambda: ("a", "c", "d"),
    ),
    "released_gamma": Solved(
        (r"$\gamma = 1$ at $\beta = 2.5$", "the released code"),
        lambda: root(lambda gamma: 2.5 * (-1.0 + gamma) - (2.5 * -1.0 + 1), -9, 9),
        lambda: (1, 2.5, 1 - 0.4),
    ),
    "same_brake": Solved(
        ("30 tokens", "length-normalised NPO", r"$z$ as NPO with $\beta = 0.2$"),
        lambda: root(
            lambda beta: float(
                length_normalized_npo(beta).logit(sequences(30, -1.0, 0.7))
                - npo(0.2).logit(sequences(30, -1.0, 0.7))
            ),
            0,
            99,
        ),
        lambda: (0.2, 0.2 / 30, 30, 4),
    ),
    "above_bound": Solved(
        ("10 tokens has -2 nats per token", "at least 1", "above 0.15"),
        lambda: simnpo(1.5, 3 + math.log(3) + 0.01),
        lambda: (simnpo(1.5, 3 + math.log(3) - 0.01), simnpo(0.5, 5.0), npo(1.0), simnpo(1.0)),
    ),
    "between": Solved(
        (r"$\beta = 0.2$", "80 tokens with -1 nat each", "between 0.1 and 0.2"),
        lambda: Objective(0.2, 0.0, 1.0, -math.log(0.15) / math.log(80)),
        lambda: (npo(0.2), simnpo(0.2), Objective(0.1, 0.0, 1.0, 0.43), Objective(0.2, 0, 0, 0.43)),
    ),
}

WEIGHTS = {
    "npo_ratio": Solved(
        (r"$\beta = 0.1$", "of 10 and of 30 tokens, have lost 1 nat per token"),
        lambda: sigmoid(-0.1 * 10) / sigmoid(-0.1 * 30),
        lambda: (1, 3, math.exp(2), sigmoid(-3) / sigmoid(-1), sigmoid(1) / sigmoid(3)),
    ),
    "simnpo_ratio": Solved(
        (r"$\beta = 4.0$", "5 tokens has -1.5 nats", "50 tokens has -1.25 nats"),
        lambda: sigmoid(4 * -1.5) / 5 / (sigmoid(4 * -1.25) / 50),
        lambda: (10, sigmoid(-6) / sigmoid(-5), 10 * sigmoid(-5) / sigmoid(-6), 1),
    ),
    "memorisation_ratio": Solved(
        (r"$\beta = 2.0$", "same length", "One has -0.25 nats per token, the other -1"),
        lambda: sigmoid(2 * -0.25) / sigmoid(2 * -1),
        lambda: (1, 4, math.exp(1.5), sigmoid(-0.25) / sigmoid(-1)),
    ),
    "doubling": letter("b", "You double", "abcd"),
    "share": Solved(
        ("2 responses of 4 tokens and 8 responses of 20 tokens", "the 2 short ones get"),
        lambda: sum(1 / 4 for _ in range(2)) / (2 / 4 + 8 / 20),
        lambda: (0.2, 5 / 6, 0.5, 8 / 168, 1 - 5 / 9),
    ),
    "longest": Solved(
        ("Reference-free NPO", r"$\beta = 0.2$", "All tokens have -1 nat", "at least 0.01"),
        lambda: longest(reference_free_npo(0.2), 0.01),
        lambda: (27, 25, -math.log(0.01) / 0.2, 5.3),
    ),
    "margin_near_zero": Solved(
        (r"$\beta = 1.0$", "-1 nat per token", r"raise $\gamma$ from 0 to 1.5"),
        lambda: sigmoid(-1 + 1.5) / sigmoid(-1),
        lambda: (math.exp(1.5), 1.5, sigmoid(1.5) / sigmoid(0)),
    ),
    "longer_first": Solved(
        ("at least five times as many tokens", r"$\beta = 4.0$", "before the first step"),
        lambda: sequences([4, 20], [-1.0, -1.0 + math.log(5.5) / 4], 0.0),
        lambda: (
            sequences([4, 20], -1.0, 0.0),
            sequences([4, 20], [-1.0, -1.0 + math.log(4.5) / 4], 0.0),
            sequences([4, 19], [-3.0, -0.1], 0.0),
            sequences([20, 4], [-1.0, -0.1], 0.0),
            sequences([4, 20], [-1.0, -0.1], 0.1),
        ),
    ),
    "first_beta": Solved(
        ("10 to 400 tokens", "half a nat per token", "a tenth of the weight", "at most half"),
        lambda: root(lambda beta: weight(npo(beta), 400, -1.5, -1.0) - 0.49, 1e-4, 1),
        lambda: (0.2, 0.1, 0.001, 0.005, 0.016),
    ),
}

CHAINS = {
    "stays": Solved(
        ("leakage 0.2", "next three states all its own"),
        lambda: float(LENGTH.chains().forget1.transition[3, 3:6].sum() ** 3),
        lambda: (0.8, 0.8**2, 0.8**4, 0.2**3, 1 - 0.2**3),
    ),
    "start_share": Solved(
        ("3 sequences of forget 1, with 19", "1 sequence of forget 2, with 4", "NPO before"),
        lambda: 1 * 1.0 / (3 * 1.0 + 1 * 1.0),
        lambda: (0.5, 4 / 61, 1 / 3, 0.93),
    ),
    "never_learnt_goal": Solved(
        ("`MEMORISATION`", "0.1 instead of 0.2", "goal for forget 2"),
        lambda: retained(replace(MEMORISATION, leakage=0.1))["forget2"],
        lambda: (0.0, retained(MEMORISATION)["forget2"], retained(LENGTH)["forget2"], 0.735),
    ),
    "unseen_row": Solved(
        ("each of the 10 states the same probability", "leakage 0.2", "KL(true row, model)"),
        lambda: 3 * (0.8 / 3) * math.log(8 / 3) + 7 * (0.2 / 7) * math.log(2 / 7),
        lambda: (
            retained(LENGTH)["forget1"],
            -0.3 * math.log(8 / 3) - 0.7 * math.log(2 / 7),
            0.8 * math.log(8 / 3),
            0.5341 / math.log(2),
        ),
    ),
    "gap_sign": Solved(
        ("0.47 nats for forget 2", "forget 2 has a distance of 0.31", "in the row `forget1`"),
        lambda: 0.31 - 0.47,
        lambda: (0.47 - 0.31, 0.31 - 0.40, 0.31, 0.40 - 0.47),
    ),
    "same_step": Solved(
        (
            "of A is 0.2, 0.4 and 0.6, and its retain distance is 0.02, 0.07 and 0.15",
            "of B is 0.1, 0.2 and 0.4, and its retain distance is 0.01, 0.03 and 0.04",
            "The goal is 0.4",
        ),
        lambda: (
            price((0.2, 0.4, 0.6), (0.02, 0.07, 0.15)) / price((0.1, 0.2, 0.4), (0.01, 0.03, 0.04))
        ),
        lambda: (0.07 / 0.03, 0.15 / 0.04, 0.04 / 0.07, 1.0),
    ),
    "reference_or_length": Solved(
        ("Is it the reference or the length?", "(0.45 to 0.80)", "(0.72 to 1.12)"),
        lambda: told_of_intervals((0.45, 0.80), (0.72, 1.12)),
        lambda: ("a", "c", "d"),
    ),
    "graded": Solved(
        ('small("memorisation")', "between 0.6 and 0.7"),
        lambda: one_run("memorisation", simnpo(2.0)),
        lambda: tuple(one_run("memorisation", one) for one in (simnpo(4.0), npo(1.0))),
    ),
    "together": Solved(
        ("when the long chain reaches its goal", "less than 0.1", 'small("length")'),
        lambda: one_run("length", simnpo(2.0)),
        lambda: tuple(one_run("length", one) for one in (npo(0.2), simnpo(4.0))),
    ),
    "anecdote": Solved(
        ("two recordings of NPO", "order of the batches only", "different chains arrive first"),
        lambda: [one_run("length", npo(0.2), seed) for seed in different_orders()],
        lambda: (
            [one_run("length", npo(0.2))] * 2,
            [one_run("length", npo(0.2)), one_run("length", simnpo(4.0))],
            [one_run("length", simnpo(4.0))] * 2,
        ),
    ),
}

PACE = {
    "ga_times": Solved(
        ("Gradient ascent", "6 tokens is to lose 1 nat", "90 tokens is to lose 0.1 nats"),
        lambda: float(
            time_to_forget(gradient_ascent(), 6, 1.0) / time_to_forget(gradient_ascent(), 90, 0.1)
        ),
        lambda: (15, 10, 1 / 150, 1.5, 1),
    ),
    "why_short_survive": Solved(
        ("Why do short answers survive NPO?", "of 60 tokens is 1", "of 5 tokens", "per token"),
        # a factor of the loss is a factor of time
        lambda: float(
            time_to_forget(gradient_ascent(), 5, 0.3) / time_to_forget(gradient_ascent(), 60, 0.3)
        ),
        lambda: (1, 1 / 12, 144, 5, 60),
    ),
    "half_normalised": Solved(
        (r"$\beta = 0$", "`Objective(0.0, 0.0, 1.0, 0.5)`", "exponent $p$"),
        lambda: exponent(Objective(0.0, 0.0, 1.0, 0.5)),
        lambda: (0.5, -1, 0, 2.48),
    ),
    "turning_beta": Solved(
        ("a fall of half a nat per token", "around 20 tokens pass through 0"),
        lambda: root(lambda beta: exponent(npo(beta)), 0.01, 1),
        lambda: (0.1, 0.4, 2, 0.19, 0.21),
    ),
    "what_is_over_corrected": Solved(
        ("What does SimNPO over-correct?", "pull in one direction, equally strongly"),
        lambda: told_of_growth(1.0),
        lambda: ("a", "c", "d"),
    ),
    "push": Solved(
        ("|y|^{0.62}", "of 20 and of 4 tokens", "long one relative to the short one"),
        lambda: (
            weight(simnpo(1.0), 20, -1.0, -1.0)
            * 20**0.62
            / (weight(simnpo(1.0), 4, -1.0, -1.0) * 4**0.62)
        ),
        lambda: (1, 5**0.62, 5**0.38, 1 / 5),
    ),
    "even_push": Solved(
        ("|y|^{0.62}", "same effective push at the first step", "whole reference"),
        lambda: root(
            lambda n: (
                weight(Objective(1.0, 0.0, 1.0, n), 80, -1.0, -1.0) * 80**0.62
                - weight(Objective(1.0, 0.0, 1.0, n), 4, -1.0, -1.0) * 4**0.62
            ),
            0,
            1,
        ),
        lambda: (0.38, 1, 0.5, -0.62),
    ),
    "without_reference": Solved(
        ("`Objective(1.0, 0.0, 0.0, 0.5)`", "-1 nat per", "half a nat per token", "20 tokens"),
        lambda: exponent(Objective(1.0, 0.0, 0.0, 0.5)),
        lambda: (-0.5, 0.5, 0, exponent(Objective(1.0, 0.0, 1.0, 0.5))),
    ),
    "late_fall": Solved(
        (r"$\beta = 0.1$", "40 tokens", "grows tenfold"),
        lambda: float(theta(npo(0.1), 40, 1e9) - theta(npo(0.1), 40, 1e10)),
        lambda: (math.log(10), 0.25, math.log(10) / 0.1, 1 / math.log(10)),
    ),
    "alike_without_reference": Solved(
        ("at most 0.8", "$p$ between -0.1 and 0.1", "half a nat per token from -1"),
        lambda: Objective(root(lambda b: exponent(Objective(b, 0.0, 0.0, 0.8)), 0.1, 1), 0, 0, 0.8),
        lambda: (Objective(1.0, 0, 0, 0.8), Objective(0.1, 0, 0, 0.8), simnpo(1.0), npo(0.2)),
    ),
    "told": Solved(
        ("length-normalised or reference-free NPO", '`(frame, "undecided")`', "interval"),
        lambda: (line("length_normalized_npo", 0.3, 0.01), "above"),
        lambda: (
            (line("length_normalized_npo", 0.3, 0.01), "undecided"),
            (line("length_normalized_npo", 0.1, 0.9), "above"),
            (line("length_normalized_npo", -0.3, 0.01), "above"),
            (line("npo", 0.3, 0.01), "above"),
            (line("reference_free_npo", 0.3, 0.01, count=3), "above"),
        ),
    ),
}

SOLVED = {**TOUR, **OBJECTIVES, **WEIGHTS, **CHAINS, **PACE}
TRAINED = {"graded", "together", "anecdote"}  # those that need runs of some seconds
QUICKLY = [
    pytest.param(name, marks=pytest.mark.slow) if name in TRAINED else name for name in SOLVED
]
every_exercise = pytest.mark.parametrize("name", QUICKLY)


def different_orders() -> tuple[int, int]:
    """Two orders of the batches under which different chains reach their goals first."""
    from markov import crossings

    ahead: dict[bool, int] = {}
    for seed in range(8):
        steps = crossings(one_run("length", npo(0.2), seed).table).set_index("component")["step"]
        if steps.notna().all():
            ahead.setdefault(bool(steps["forget1"] < steps["forget2"]), seed)
    return ahead[True], ahead[False]


TEXTS = {one: text for name in OWN for one, text in asked(name).items()}


def test_every_exercise_is_checked_and_solved_here():
    assert TEXTS.keys() == EXERCISES.keys() == SOLVED.keys()
    assert len(TEXTS) >= 38
    assert len({" ".join(text.split()[1:]) for text in TEXTS.values()}) == len(TEXTS)


@pytest.mark.parametrize("name", SOLVED)
def test_the_text_of_an_exercise_says_what_its_solution_uses(name: str):
    for words in SOLVED[name].words:
        assert words in TEXTS[name]
    if isinstance(EXERCISES[name], Exercise) and EXERCISES[name].hints:
        offered = re.findall(r"\(([a-d])\)", TEXTS[name])
        assert offered == sorted({SOLVED[name].answer(), *SOLVED[name].near()})


@every_exercise
def test_the_answer_from_the_words_of_an_exercise_is_right_and_says_why(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIMNPO_LAB_QUICK", "1")
    verdict = check(name, SOLVED[name].answer())
    assert verdict.right is True and bool(verdict) and verdict.says == EXERCISES[name].because
    assert "right" in verdict._repr_html_()
    open_ = check(name, ...)
    assert open_.right is None and not open_ and "to do" in open_._repr_html_()


@every_exercise
def test_the_answer_of_somebody_who_misreads_is_not_accepted(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SIMNPO_LAB_QUICK", "1")
    near = SOLVED[name].near()
    assert len(near) >= 2
    for answer in near:
        verdict = check(name, answer)
        assert verdict.right is False and not verdict and "not yet" in verdict._repr_html_()
        assert verdict.says and verdict.says != EXERCISES[name].because


@pytest.mark.parametrize(
    "name", [name for name, one in EXERCISES.items() if isinstance(one, Exercise) and not one.hints]
)
def test_numbers_are_accepted_within_two_percent(name: str):
    truth = SOLVED[name].answer()
    assert TOLERANCE == 0.02
    for factor in (0.985, 1.015):
        assert check(name, truth * factor)
    for wrong in (truth * 1.025, truth * 0.975, -truth):
        assert not check(name, wrong)


PRINTED = {
    "00_tour": r"-?\d+\.\d+",
    "03_markov_chains": r"-?\d+\.\d+",
    "01_objectives": r"-?\d+\.\d+",
    "02_gradient_weights": r"-?\d+\.\d+|\b\d{2,}\b",
    "04_length_and_forgetting": r"-?\d+\.\d+|\b\d{3,}\b",
}


@pytest.mark.parametrize("name", PRINTED)
def test_no_answer_in_numbers_stands_above_its_question(name: str):
    parts = "\n\n".join(cells(lesson(name), "markdown")).split("## Exercises")[0]
    code = "\n".join(one for one in cells(lesson(name), "code") if "check(" not in one)
    told = {float(one) for one in re.findall(PRINTED[name], parts + code)}
    for one in asked(name):
        exercise = EXERCISES[one]
        if isinstance(exercise, Exercise) and not exercise.hints and one != "turning_beta":
            truth = float(exercise.answer())
            close = [each for each in told if math.isclose(each, truth, rel_tol=TOLERANCE)]
            assert close == [], one


def test_the_five_questions_are_checked_in_the_lessons():
    for name, question in {
        "why_ga": "Why does NPO start as gradient ascent?",
        "why_short_survive": "Why do short answers survive NPO?",
        "what_simnpo_changes": "What does SimNPO change?",
        "what_is_over_corrected": "What does SimNPO over-correct?",
        "reference_or_length": "Is it the reference or the length?",
    }.items():
        assert question in TEXTS[name]


def test_numbers_may_come_as_tensors_or_rounded_and_letters_in_capitals():
    assert check("released_gamma", torch.tensor(0.4, dtype=torch.float64))
    assert check("npo_ratio", np.float64(5.67)) and check("push", 0.54) and check("why_ga", " B ")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("nothing", 1.0),
        ("goal", 2),
        ("goal", "e"),
        ("goal", ""),
        ("push", "0.2"),
        ("push", None),
        ("push", math.nan),
        ("push", True),
        ("push", torch.ones(2)),
        ("twice", "0.1"),
        ("twice", -1.0),
        ("between", 0.4),
        ("between", Objective(0.2, 0.0, 1.0, 2.0)),
        ("between", Objective(torch.ones(2), 0.0, 1.0, 0.5)),
        ("longer_first", [4, 20]),
        ("longer_first", sequences([4, 20, 40], -1.0, 0.0)),
        ("graded", simnpo(2.0)),
        ("anecdote", simnpo(2.0)),
        ("told", "above"),
        ("told", (None, "above")),
        ("told", (line("length_normalized_npo", 0.3), "positive")),
    ],
)
def test_an_answer_of_the_wrong_kind_is_refused(name: str, answer: object):
    with pytest.raises(InvalidInput, match=r"exercise|answer|beta|normalize"):
        check(name, answer)


@pytest.mark.slow
def test_runs_are_asked_for_of_the_right_case_and_method(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIMNPO_LAB_QUICK", "1")
    with pytest.raises(InvalidInput, match="memorisation"):
        check("graded", one_run("length", simnpo(2.0)))
    with pytest.raises(InvalidInput, match="length"):
        check("together", one_run("memorisation", simnpo(2.0)))


def test_an_interval_decides_which_word_is_right():
    for slope, noise, word in (
        (0.3, 0.01, "above"),
        (-0.3, 0.01, "below"),
        (0.1, 0.9, "undecided"),
    ):
        frame = line("reference_free_npo", slope, noise)
        assert [bool(check("told", (frame, one))) for one in ("above", "below", "undecided")] == [
            one == word for one in ("above", "below", "undecided")
        ]
