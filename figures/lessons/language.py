"""Exercises of the notebooks on language models, checked as in `figures.lessons.chains`."""

from __future__ import annotations

import numpy as np

from figures.lessons.chains import Exercise, Verdict, verdict
from figures.views.law import sequences
from llm.logs.log import Answers, EvaluationLog, truth_ratio
from markov.objectives import simnpo


def check(name: str, answer: object = ...) -> Verdict:
    """Check the answer to one of these exercises: see `figures.lessons.chains.check`."""
    return verdict(name, answer, EXERCISES)


def _ratio(variant: str) -> float:
    """Return the truth ratio of a paraphrase that costs 1 nat per token.

    The wrong answers beside it cost 2 and 3.
    """
    right, wrong = (Answers(np.array(values), None, None) for values in ([1.0], [[2.0, 3.0]]))
    return float(truth_ratio(EvaluationLog("", "", np.arange(1), right, right, wrong), variant)[0])


def _short_over_long() -> float:
    weights = simnpo(4.5).weight(sequences([10, 100], -0.05, 0.0))
    return float(weights[0] / weights[1])


EXERCISES: dict[str, Exercise] = {
    "llm_needy": Exercise(
        answer=lambda: "a",
        because=(
            "needed movement grows with the number of tokens, and the weight falls with it as "
            "1/|y|."
        ),
        hint="",
        hints={
            "b": "the retain term does not enter the weight: compare the formula.",
            "c": "that is true, but answers known by heart differ little in likelihood per token.",
        },
    ),
    "llm_tenfold": Exercise(
        answer=_short_over_long,
        because=(
            "both have the same z, a mean over tokens, so what is left is the ratio of the lengths."
        ),
        hint="z is the same for both: only the 1/|y| in front differs.",
    ),
    "llm_control": Exercise(
        answer=lambda: "b",
        because="any model that is taught a fifth of such answers guesses the form of the rest "
        "better; only what "
        "exceeds that gain was hidden.",
        hint="",
        hints={
            "a": (
                "a rise alone does not show that: what would a model gain that never knew the "
                "answers?"
            ),
            "c": "the share taught is not among the others, which are scored apart.",
        },
    ),
    "llm_rising": Exercise(
        answer=lambda: "a",
        because=(
            "at the start the weight falls with the length and with what the model finds unlikely, "
            "and both go with need."
        ),
        hint="",
        hints={
            "b": "the retain term does not enter the weight.",
            "c": "the margin moves the weights of all answers the same way; try its largest value.",
        },
    ),
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
    "logs_two_papers": Exercise(
        answer=lambda: "b",
        because=(
            "with more examples the same p belongs to a smaller D, and the distributions lie "
            "nearer to each other."
        ),
        hint="",
        hints={
            "a": "with few examples only a large difference gets so small a p-value.",
            "c": (
                "move `examples` in the view: the same two models get a smaller p from more "
                "examples."
            ),
        },
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
            "c": "a smaller D is nearer to the standard; and is the difference larger than chance?",
        },
    ),
    "yours_word": Exercise(
        answer=lambda: "a",
        because="name, beta and, after the @, the weight of the retain term.",
        hint="",
        hints={
            "b": "what follows the @ is the weight of the retain term, and nothing else.",
            "c": (
                "a word has no brackets: put it into the template's first cell and read what you "
                "are told."
            ),
        },
    ),
    "yours_no_twin": Exercise(
        answer=lambda: "b",
        because=(
            "it is the distance from the retrained model; the rest is known from your own model."
        ),
        hint="",
        hints={
            "a": (
                "weights follow from the model and its reference alone, which is the model before "
                "unlearning."
            ),
            "c": "utility is measured on what was to stay, with nothing to compare it with.",
        },
    ),
    "figures_four": Exercise(
        answer=lambda: "a",
        because="weight against length, epoch after epoch: the table above has it.",
        hint="",
        hints={
            "b": "that is Figure 5: forget distance against retain distance on Markov chains.",
            "c": "that one is this project's own: weight against what an answer needs.",
        },
    ),
    "figures_colour": Exercise(
        answer=lambda: "c",
        because="`data` computes and `plot` draws: the frame in your hands is drawn again.",
        hint="",
        hints={
            "a": "a colour is no setting of a model, and `plot` never computes.",
            "b": "the frame holds numbers and names only; look at its columns.",
        },
    ),
}
