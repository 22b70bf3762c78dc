"""Exercises on the pace of forgetting: those of the notebook on length."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from figures.lessons.exercise import Exercise, Task
from figures.lessons.law import single
from figures.views.ladder import exponents
from markov.errors import require
from markov.objectives import Objective, gradient_ascent, npo
from markov.theory import divergence, time_to_forget

WORDS = ("above", "below", "undecided")


def exponent(objective: Objective, fall: float = 0.5, start: float = -1.0) -> float:
    """Return the exponent p of the scalar law's time ~ |y|^p around 20 tokens."""
    ends = np.log(time_to_forget(objective, np.array([19.0, 21.0]), fall, start))
    return float(ends[1] - ends[0]) / math.log(21 / 19)


def _alike_without_reference(answer: object) -> str:
    objective = single(answer)
    if objective.reference != 0 or objective.normalize > 0.8:
        return "reference is to be 0, and normalize at most 0.8."
    found = exponent(objective)
    return "" if abs(found) < 0.1 else f"there p is {found:.2f}, not between -0.1 and 0.1."


def _told(answer: object) -> str:
    allowed = f"a frame of rung(...) and one of the words {', '.join(WORDS)}: (frame, word)"
    proper = isinstance(answer, tuple) and len(answer) == 2
    require(proper, "answer", type(answer).__name__, allowed)
    assert isinstance(answer, tuple)
    frame, word = answer
    columns = ["rung", "method", "length", "time"]
    measured = isinstance(frame, pd.DataFrame) and list(frame.columns) == columns
    require(measured and word in WORDS, "answer", word, allowed)
    assert isinstance(frame, pd.DataFrame)
    method = str(frame["method"].iloc[0])
    if method in ("npo", "simnpo"):
        return "measure a corner that the notebook has not measured."
    if frame["length"].nunique() < 4:
        return "measure at least four lengths: through two points there is always a line."
    fitted = exponents([frame]).iloc[0]
    low, high = float(fitted[f"{method}, low"]), float(fitted[f"{method}, high"])
    right = "above" if low > 0 else "below" if high < 0 else "undecided"
    return "" if word == right else f"look at both ends of the interval, {low:.2f} and {high:.2f}."


PACE: dict[str, Exercise | Task] = {
    "ga_times": Exercise(
        answer=lambda: float(
            time_to_forget(gradient_ascent(), 6, 1.0) / time_to_forget(gradient_ascent(), 90, 0.1)
        ),
        because="15 times for the lengths, and 10 times for the falls.",
        hint="under gradient ascent d theta/dt = -|y|: what is the time of each? Then divide.",
    ),
    "why_short_survive": Exercise(
        answer=lambda: 60 / 5,
        because=(
            "the weights are equal, so the gradient sets the pace, a sum of 5 terms or of 60: that "
            "is why short answers survive, and dividing by the length makes up for it."
        ),
        hint="d theta/dt = -|y| times the number in front, at weight 1: make the two equal.",
    ),
    "half_normalised": Exercise(
        answer=lambda: exponent(Objective(0.0, 0.0, 1.0, 0.5)),
        because="the gradient gives |y| and the weight takes |y|^0.5 away: time goes as |y|^-0.5.",
        hint="at beta = 0 the weight is 1/|y|^0.5; put it into d theta/dt = -|y| w.",
    ),
    "turning_beta": Exercise(
        answer=lambda: 2 / (20 * 0.5),
        because=(
            "the exponent vanishes where beta |y| d = 2; beyond, long responses are the slow ones."
        ),
        hint=(
            "move beta until the exponent in the first line of the view is 0; it lies between 0.1 "
            "and 0.5."
        ),
    ),
    "what_is_over_corrected": Exercise(
        answer=lambda: "b",
        because=(
            "if nothing cancels, the gradient grows as |y| and 1/|y| is right. SimNPO "
            "over-corrects the length where the gradient grows more slowly, as in a transformer."
        ),
        hint="",
        hints={
            "a": "above, the gradient grows as about |y|^0.6, as tokens cancel: how does it here?",
            "c": "the gradient is larger for the long ones, and what does the weight do?",
            "d": "gamma moves z of all lengths alike: does it tell a short one from a long one?",
        },
    ),
    "push": Exercise(
        answer=lambda: 20.0**0.62 / 20.0 / (4.0**0.62 / 4.0),
        because="a response of 20 tokens gets about half of what one of 4 gets, not the same.",
        hint=(
            "it is weight x gradient, and SimNPO's weight goes as 1/|y|: (20^0.62/20) / (4^0.62/4)."
        ),
    ),
    "even_push": Exercise(
        answer=lambda: 0.62,
        because="a weight that falls as |y|^-0.62 makes up for a gradient that grows as |y|^0.62.",
        hint="weight x gradient goes as |y|^(0.62 - normalize): when does |y| drop out?",
    ),
    "without_reference": Exercise(
        answer=lambda: exponent(Objective(1.0, 0.0, 0.0, 0.5)),
        because=(
            "without a reference a long response starts far down: z is -|y|^0.5, the weight is "
            "nearly 0, and the long response takes longer."
        ),
        hint=(
            "it is not normalize - 1, as z is no longer 0 at the start. Read p off the view, or "
            "compute it from time_to_forget at 19 and 21 tokens."
        ),
    ),
    "late_fall": Exercise(
        answer=lambda: float(divergence(npo(0.1), 40).logarithmic) * math.log(10),
        because="log(10)/(0.1 * 40): late, each further nat takes more and more time.",
        hint="the fall grows by 1/(beta |y|) each time that the time grows by a factor of e.",
    ),
    "alike_without_reference": Task(
        missing=_alike_without_reference,
        because="beta bends p upwards as much as the missing part of normalize bends it down.",
    ),
    "told": Task(
        missing=_told,
        because="the word says what the interval says; only one without 0 tells the sign.",
    ),
}
