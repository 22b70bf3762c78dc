"""Exercises of the notebooks on language models, checked as in `figures.lessons.chains`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from figures.lessons.causes import CAUSES
from figures.lessons.chains import Exercise, Task, Verdict, verdict
from figures.lessons.law import weight
from figures.views.law import sequences
from llm.diagnostics.allocation import allocation_area
from llm.diagnostics.matching import Match, best_weights
from llm.logs.log import Answers, EvaluationLog, truth_ratio
from llm.logs.measures import exact_log10_p, harmonic_mean
from llm.training.loop import Optimization
from llm.unlearning.methods import method
from markov.errors import require, require_whole
from markov.objectives import CORNERS, Objective, npo, simnpo

LIGHTNESS = (0.2126, 0.7152, 0.0722)  # of red, green and blue


def check(name: str, answer: object = ...) -> Verdict:
    """Check the answer to one of these exercises: see `figures.lessons.chains.check`."""
    return verdict(name, answer, EXERCISES)


def _area(lengths: Sequence[float]) -> float:
    """Return the area of SimNPO for answers that are equally likely, and equally needy, per token.

    The area is that under the allocation curve, before the first step.
    """
    given = simnpo(4.5).weight(sequences(lengths, -1.0, 0.0)).numpy()
    return float(allocation_area(2.0 * np.asarray(lengths), given))


def _two_answers() -> float:
    short, long = (weight(simnpo(4.5), *one, 0.0) for one in ((12, -0.05), (60, -0.3)))
    return short / long


def _from_lengths(answer: object) -> str:
    allowed = "the table with a column of your own: table.assign(weight_mine=...)"
    known = isinstance(answer, pd.DataFrame) and {"length", "needed", "weight_mine"} <= {*answer}
    require(known, "answer", type(answer).__name__, allowed)
    assert isinstance(answer, pd.DataFrame)
    given = answer["weight_mine"].to_numpy(dtype=float)
    require(bool(np.isfinite(given).all() and (given > 0).all()), "weight_mine", given, "all > 0")
    ends = answer.groupby("length")["weight_mine"].agg(["min", "max"])
    if not np.allclose(ends["min"], ends["max"]):
        return "two answers of one length have different weights: use the length and nothing else."
    area = float(allocation_area(answer["needed"].to_numpy(dtype=float), given))
    return "" if 0.45 < area < 0.55 else f"the area is {area:.2f}, not between 0.45 and 0.55."


def _ratio(variant: str) -> float:
    """Return the truth ratio of a paraphrase that costs 1 nat per token.

    The wrong answers beside it cost 2 and 3.
    """
    right, wrong = (Answers(np.array(values), None, None) for values in ([1.0], [[2.0, 3.0]]))
    return float(truth_ratio(EvaluationLog("", "", np.arange(1), right, right, wrong), variant)[0])


def _few_and_many(answer: object) -> str:
    pair = isinstance(answer, tuple | list) and len(answer) == 2
    require(pair, "answer", answer, "two numbers of answers: (few, many)")
    assert isinstance(answer, tuple | list)
    for one in answer:
        require_whole(one, "answer", 5, 100_000)
    if any(one % 5 for one in answer):
        return "D is a whole number of n-ths: for D = 0.2 take multiples of 5."
    few, many = (exact_log10_p(one, one // 5) for one in answer)
    right = few > np.log10(0.05) and many < np.log10(0.001)
    return "" if right else f"the p-values there are {10**few:.2g} and {10**many:.2g}."


def _met(answer: object) -> str:
    known = isinstance(answer, Match)
    require(known, "answer", type(answer).__name__, "a match: match(need, k @ mine)")
    assert isinstance(answer, Match)
    met = answer.whole
    return "" if met > 0.5 else f"these weights meet {met:.0%} of the need, not more than half."


def _strong_word(answer: object) -> str:
    require(isinstance(answer, str), "answer", answer, "a word, in quotes")
    chosen = method(str(answer), field="answer")
    if chosen.retain_term != "kl":
        return f"the retain term of {chosen.label} is {chosen.retain_term}, not kl."
    assert isinstance(chosen.objective, Objective)  # no method with this term compares two answers
    found = weight(chosen.objective, 40, -0.1, 0.0)
    return "" if found < 0.01 else f"the weight of that answer is {found:.2g}, not below 0.01."


def _in_grey(answer: object) -> str:
    drawn = isinstance(answer, Figure) and len(answer.axes) == 3 * len(CORNERS)
    require(drawn, "answer", type(answer).__name__, "the figure: module.plot(frame)")
    assert isinstance(answer, Figure)
    if answer.get_figwidth() > 10:
        return f"the figure is {answer.get_figwidth():.1f} inches wide, not at most 10."
    row = dict(zip(CORNERS, answer.axes[-len(CORNERS) :], strict=True))
    thick = [
        max(row[name].lines, key=lambda one: one.get_linewidth()) for name in ("npo", "simnpo")
    ]
    first, second = (float(np.dot(LIGHTNESS, to_rgb(one.get_color()))) for one in thick)
    right = abs(first - second) >= 0.4
    return "" if right else f"NPO's lightness is {first:.2f}, and SimNPO's is {second:.2f}."


MODELS: dict[str, Exercise | Task] = {
    "llm_share": Exercise(
        answer=lambda: (1 / 4) / (140 / (10 + 20 + 30 + 140)),
        because="it has 0.7 of the need and gets one weight of four, which is 0.25.",
        hint="under NPO all weights are 1 before the first step; the need is 200 nats in all.",
    ),
    "llm_two_answers": Exercise(
        answer=_two_answers,
        because="five times for the lengths, and about twice for the likelihood per token.",
        hint="SimNPO's weight is 2 sigmoid(z)/|y|, and z is beta times the mean over tokens.",
    ),
    "llm_area": Exercise(
        answer=lambda: _area((10, 20, 70)),
        because="the answer with most of the need comes first, and gets the least weight.",
        hint=(
            "begin with 70 tokens: 0.7 of the need, and 1/70 of (1/70 + 1/20 + 1/10). Cumulate "
            "both shares, and add the areas of three trapezia."
        ),
    ),
    "llm_hidden": Exercise(
        answer=lambda: (-1.75 - -2.6) - (-1.95 - -2.4),
        because=(
            "a model that never knew the answers gains 0.45 from the form alone; only what exceeds "
            "that gain was still there."
        ),
        hint="how much does each model gain? The retrained model has no answers to remember.",
    ),
    "llm_rising": Exercise(
        answer=lambda: "a",
        because="both changes take weight from long answers, and long answers need most.",
        hint="",
        hints={
            "b": "the retain term does not enter the weight.",
            "c": "the margin brings the sigmoids nearer to each other, and turns no order round.",
        },
    ),
    "llm_from_lengths": Task(
        missing=_from_lengths,
        because=(
            "lengths are known before unlearning, and needs are not. Such a weight is outside of "
            "the square, and it needs a brake: long answers would be over-forgotten soon."
        ),
    ),
}
LOGS: dict[str, Exercise | Task] = {
    "logs_geometric": Exercise(
        answer=lambda: _ratio("geometric"),
        because="exp(-(2 + 3)/2) / exp(-1): the mean is taken of the losses.",
        hint="take the mean of the two losses first, then the exponential.",
    ),
    "logs_arithmetic": Exercise(
        answer=lambda: _ratio("arithmetic"),
        because=(
            "(exp(-2) + exp(-3)) / 2 / exp(-1): the mean is taken of the probabilities, and is "
            "the larger one."
        ),
        hint="take the exponential of each loss first, then the mean.",
    ),
    "logs_harmonic": Exercise(
        answer=lambda: float(harmonic_mean(np.array([0.6] * 8 + [0.2]))),
        because="one number that is small pulls a harmonic mean down much more than a plain mean.",
        hint="9 / (8/0.6 + 1/0.2)",
    ),
    "logs_ten_times": Exercise(
        answer=lambda: (400 / 40) ** 0.5,
        because="with ten times the answers, the same p has a D that is smaller by the root of 10.",
        hint="D * sqrt(40) in the first paper is the same number as D * sqrt(400) in the second.",
    ),
    "logs_chance": Exercise(
        answer=lambda: "b",
        because=(
            "the retrained model is one training of many, and between two of them the same "
            "comparison moves by as much as A and B differ."
        ),
        hint="",
        hints={
            "a": "how far does D move when the standard is trained once more?",
            "c": "that two numbers cannot be told apart does not make them equal.",
        },
    ),
    "logs_few_and_many": Task(
        missing=_few_and_many,
        because="the distance is the same in both tests, and only the number of answers differs.",
    ),
}
YOURS: dict[str, Exercise | Task] = {
    "yours_word": Exercise(
        answer=lambda: "c",
        because="name, beta, gamma and, after the @, the weight of the retain term.",
        hint="",
        hints={
            "a": "what follows the @ is the weight of the retain term, and nothing else.",
            "b": "read the label of that word: method('...').label. Which number is beta?",
        },
    ),
    "yours_updates": Exercise(
        answer=lambda: float(4 * Optimization(epochs=4, batch=8, learning_rate=1e-5).updates(405)),
        because="the last batch of an epoch is smaller than the others, but it is an update too.",
        hint="how many batches has an epoch, with the last one, which is not full?",
    ),
    "yours_needed": Exercise(
        answer=lambda: 40 * 2.4 - 5.0,
        because="2.4 nats for each of 40 tokens are 96 nats, and 5 of them are already lost.",
        hint="needed = ref - log pi of the retrained model, both summed over the tokens.",
    ),
    "yours_price": Exercise(
        answer=lambda: "b",
        because=(
            "the goal is the retrained model's level and not the highest number: A went beyond it, "
            "and damaged more."
        ),
        hint="",
        hints={
            "a": "is more forgetting better? Look at the retrained model's 1.9.",
            "c": "retain_loss is about what is to stay, and it must not rise.",
        },
    ),
    "yours_strong_word": Task(
        missing=_strong_word,
        because=(
            "at a small beta z is near 0 and the weight near 1/40; a large beta lowers it, as the "
            "answer is a little less likely than certain."
        ),
    ),
}
DRAWN: dict[str, Exercise | Task] = {
    "figures_read": Exercise(
        answer=lambda: weight(simnpo(4.0), 80, -1.0, 0.5),
        because="every number of a figure stands in its table, also those that are hard to see.",
        hint=(
            "frame.query(\"corner == 'simnpo' and view == 'fall' and length == 80\"), and in it "
            "the row in which beta is 4 and fall is 0.5."
        ),
    ),
    "figures_ratio": Exercise(
        answer=lambda: weight(npo(0.2), 4, -1.0, 0.25) / weight(npo(0.2), 80, -1.0, 0.25),
        because="the long answer has lost 20 nats and the short one 1: sigmoid(-0.2)/sigmoid(-4).",
        hint="two rows of the lower part, view == 'fall', beta == 0.2, fall near 0.25.",
    ),
    "figures_again": Exercise(
        answer=lambda: "b",
        because=(
            "the table has no rows for that fall, so `data` computes them; this figure is a "
            "formula, so that nothing is trained."
        ),
        hint="",
        hints={
            "a": "`plot` draws what is in the frame: is there such a fall with view == 'length'?",
            "c": "which model does this figure need? Read the caption.",
        },
    ),
    "figures_in_grey": Task(
        missing=_in_grey,
        because="the two differ in lightness, so they can be told apart without their colours.",
    ),
}
WEIGHED: dict[str, Exercise | Task] = {
    "weighting_apart": Exercise(
        answer=lambda: (8 / 5) / (8 / 1),
        because="each falls by its weight times its squared norm: one is 5 times the other.",
        hint="what does a step with weight 1 do to each of the two?",
    ),
    "weighting_together": Exercise(
        answer=lambda: float(
            best_weights(np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([3.0, 0.0]))[0]
        ),
        because="alone it makes the answers fall by 2 w and w: (2 * 3 + 1 * 0) / (4 + 1) is best.",
        hint="a negative second weight would be better; so it is 0, and one number is left to fit.",
    ),
    "weighting_follows": Exercise(
        answer=lambda: "b",
        because="there is a weight for each answer: only a negative one could stand in the way.",
        hint="",
        hints={
            "a": "a power of the length is one number. How many weights were fitted?",
            "c": "the match is that of the first step, and the matrix changes with the model.",
        },
    ),
    "weighting_mine": Task(
        missing=_met,
        because="norms and lengths need no retrained model, but they are those of the first step.",
    ),
}
EXERCISES = {**MODELS, **LOGS, **YOURS, **DRAWN, **CAUSES, **WEIGHED}
