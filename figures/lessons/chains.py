"""Exercises with checked answers: `check("npo_half", 11.0)` says whether it is right.

If it is not, it says where to look. Numbers are computed from the shipped law when they are asked
for, and accepted within 2%; of several choices one letter is right, and each of the others has a
hint of its own. Where many answers are right, each is tried on what was asked for.

Here are the exercises of the notebook on Markov chains, and the table of all up to length.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from figures.lessons.exercise import Exercise, Task, Verdict, verdict
from figures.lessons.law import OBJECTIVES, TOUR, WEIGHTS
from figures.lessons.pace import PACE
from figures.views.player import Recording
from markov.cases import LENGTH, MEMORISATION
from markov.diagnostics import crossings
from markov.errors import require
from markov.objectives import method_name
from markov.studies import ideal_forget_distance


def check(name: str, answer: object = ...) -> Verdict:
    """Check the answer to an exercise: a number, a letter, or what a task asks for.

    `...` stands for an answer that is still to come. Raises `InvalidInput` for an exercise that
    does not exist, or an answer of the wrong kind.
    """
    return verdict(name, answer, EXERCISES)


def _recording(answer: object, case: str) -> Recording:
    """Return the answer if it is a recorded run of a case; else raise `InvalidInput`."""
    allowed = f"a recording: record(replace(small({case!r}), objective=...))"
    require(isinstance(answer, Recording), "answer", type(answer).__name__, allowed)
    assert isinstance(answer, Recording)
    require(answer.experiment.case.name == case, "answer", answer.experiment.case.name, allowed)
    return answer


def _graded(answer: object) -> str:
    one = _recording(answer, "memorisation")
    if method_name(one.experiment.objective) != "simnpo":
        return "the method is to be SimNPO: move its beta only."
    start = one.table[(one.table["step"] == 0) & (one.table["component"] == "forget1")]
    share = float(start["weight_share"].iloc[0])
    return "" if 0.6 < share < 0.7 else f"the memorised chain gets {share:.2f} of the effort there."


def _together(answer: object) -> str:
    gap = float(_arrivals(_recording(answer, "length"))["other_gap"]["forget1"])
    if math.isnan(gap):
        return "the long chain did not reach its goal within this run."
    return "" if abs(gap) < 0.1 else f"the short chain is then {gap:+.2f} nats from its own goal."


def _anecdote(answer: object) -> str:
    pair = isinstance(answer, tuple | list) and len(answer) == 2
    require(pair, "answer", type(answer).__name__, "two recordings: [first, second]")
    assert isinstance(answer, tuple | list)
    runs = [_recording(one, "length") for one in answer]
    first, second = (one.experiment for one in runs)
    if method_name(first.objective) != "npo":
        return "both runs are to be NPO."
    if replace(first, seed=second.seed) != second:
        return "the two runs are to differ in their seed and in nothing else."
    steps = [_arrivals(one)["step"] for one in runs]
    ahead = [bool(step["forget1"] < step["forget2"]) for step in steps]
    if any(step.isna().any() for step in steps):
        return "in one of the runs a chain did not reach its goal."
    return "" if ahead[0] != ahead[1] else "in both runs the same chain arrives first."


def _arrivals(one: Recording) -> pd.DataFrame:
    return crossings(one.table).set_index("component")


def _unseen_row() -> float:
    """Return KL(true row || uniform) at a state of a forget chain."""
    chain = LENGTH.chains().forget1
    row = chain.transition[LENGTH.set_size]
    return float((row * (row * LENGTH.states).log()).sum())


CHAINS: dict[str, Exercise | Task] = {
    "stays": Exercise(
        answer=lambda: (1 - 0.2) ** 3,
        because="each step stays with probability 0.8, and 0.8^3 is about a half.",
        hint="one step stays with probability 1 - 0.2, and three steps have to stay.",
    ),
    "start_share": Exercise(
        answer=lambda: 1 / (1 + 3),
        because="NPO gives every sequence the weight 1 at first, long or short: one of four.",
        hint="what is the weight of each sequence at step 0? Tokens are not counted here.",
    ),
    "never_learnt_goal": Exercise(
        answer=lambda: ideal_forget_distance(replace(MEMORISATION, leakage=0.1))["forget2"],
        because=(
            "the goal depends on the chains and not on what was learnt: a chain that leaks less "
            "is farther from what the retained data tell of it."
        ),
        hint="ideal_forget_distance(replace(MEMORISATION, leakage=...)), the component forget2.",
    ),
    "unseen_row": Exercise(
        answer=_unseen_row,
        because=(
            "0.8 log(0.8/3 / 0.1) + 0.2 log(0.2/7 / 0.1). The goal is lower, as sequences also "
            "visit states that are not their own."
        ),
        hint="sum p log(p / 0.1) over the true row: three states of 0.8/3, seven of 0.2/7.",
    ),
    "gap_sign": Exercise(
        answer=lambda: 0.31 - 0.47,
        because="distance minus goal of the other chain: negative, so it is not there yet.",
        hint="other_gap is about the other forget chain: its distance minus its own goal.",
    ),
    "same_step": Exercise(
        answer=lambda: 0.07 / 0.04,
        because="the goal is reached after 20 steps by A and after 30 by B: prices differ there.",
        hint="the price is the retain distance when the goal is reached: after which step is that?",
    ),
    "reference_or_length": Exercise(
        answer=lambda: "b",
        because=(
            "the whole interval of the reference lies below 1; that of the length holds 1, so it "
            "may make the chain cheaper, or dearer, or do nothing."
        ),
        hint="",
        hints={
            "a": "an interval that holds 1 does not show that there is no effect.",
            "c": "a value below 1 is not enough: where are the ends of its interval?",
            "d": "there are two questions and two intervals: what does the other one say?",
        },
    ),
    "graded": Task(
        missing=_graded,
        because="beta of SimNPO says how much likelihood counts: at beta 0 both get a half.",
    ),
    "together": Task(
        missing=_together,
        because="there both chains arrive nearly together, which neither published setting does.",
    ),
    "anecdote": Task(
        missing=_anecdote,
        because="the order of the batches alone decides who arrives first: one run is no proof.",
    ),
}

EXERCISES: dict[str, Exercise | Task] = {**TOUR, **OBJECTIVES, **WEIGHTS, **CHAINS, **PACE}
