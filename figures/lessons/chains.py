"""Exercises with checked answers: `check("npo_first_weight", 1.0)` says whether it is right.

If it is not, it says where to look. Numbers are computed from the shipped law when they are asked
for, and accepted within 2%; of several choices one letter is right, and each of the others has a
hint of its own.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from figures.views.law import sequences
from figures.views.view import RIGHT, WRONG
from markov.cases import LENGTH, MEMORISATION
from markov.conventions import from_paper, to_released_tofu
from markov.errors import require
from markov.objectives import Objective, gradient_ascent, npo, simnpo
from markov.studies import ideal_forget_quality
from markov.theory import time_to_forget

TOLERANCE = 0.02  # relative


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What is right, a number or a letter, why, and what to tell whoever gets it wrong.

    A hint is for a letter, or in general.
    """

    answer: Callable[[], float | str]
    because: str
    hint: str
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an answer is right, None where none was given, and what there is to say about it."""

    right: bool | None
    says: str

    def __bool__(self) -> bool:
        return self.right is True

    def _repr_html_(self) -> str:
        color, word = {True: (RIGHT, "right"), False: (WRONG, "not yet"), None: ("grey", "to do")}[
            self.right
        ]
        return f'<span style="color:{color}"><b>{word}:</b> {html.escape(self.says)}</span>'


def check(name: str, answer: object = ...) -> Verdict:
    """Check the answer to an exercise, a number or a letter.

    `...` stands for an answer that is still to come. Raises `InvalidInput` for an exercise that
    does not exist, or an answer of the wrong kind.
    """
    return verdict(name, answer, EXERCISES)


def verdict(name: str, answer: object, known: Mapping[str, Exercise]) -> Verdict:
    """Check an answer in the same way for the exercises of any table."""
    require(name in known, "exercise", name, f"one of {sorted(known)}")
    if answer is ...:
        return Verdict(
            right=None, says="put your answer in place of the dots and run this cell again"
        )
    exercise = known[name]
    truth = exercise.answer()
    if isinstance(truth, str):
        letters = sorted({truth, *exercise.hints})
        given = answer.strip().lower() if isinstance(answer, str) else None
        require(
            given in letters,
            "answer",
            answer,
            f"one of the letters {', '.join(letters)}, in quotes",
        )
        right, hint = given == truth, exercise.hints.get(str(given), exercise.hint)
    else:
        given = _number(answer)
        require(given is not None and math.isfinite(given), "answer", answer, "a number")
        right, hint = (
            math.isclose(given or 0.0, truth, rel_tol=TOLERANCE, abs_tol=1e-12),
            exercise.hint,
        )
    return Verdict(right=right, says=exercise.because if right else hint)


def _number(answer: object) -> float | None:
    try:
        return None if isinstance(answer, bool | str) else float(answer)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, RuntimeError):
        return None


def _weight(objective: Objective, length: float, start: float, fall: float) -> float:
    return float(objective.weight(sequences(length, start, fall)))


def _ratio(objective: Objective) -> float:
    """Return how much more a response of 4 tokens weighs than one of 80.

    Both have fallen by 0.5 nats per token.
    """
    return _weight(objective, 4, -1.0, 0.5) / _weight(objective, 80, -1.0, 0.5)


def _rate(objective: Objective) -> float:
    """Return the exponent of the time to fall by 0.001 nats in the length, around 20 tokens."""
    short, long = (float(time_to_forget(objective, length, 1e-3)) for length in (19, 21))
    return math.log(long / short) / math.log(21 / 19)


EXERCISES: dict[str, Exercise] = {
    "goal": Exercise(
        answer=lambda: "b",
        because=(
            "the model that never read the forget data is the standard; it still guesses, as "
            "anybody would."
        ),
        hint="",
        hints={
            "a": (
                "a probability of zero is itself a trace: nobody who never read a text is that "
                "sure against it."
            ),
            "c": "a model that talks nonsense has lost what was to be retained as well.",
        },
    ),
    "over_forgetting": Exercise(
        answer=lambda: ideal_forget_quality(LENGTH)["forget1"],
        because=(
            "a model that knows the retain chain only stands just this far from the truth; "
            "beyond it is too much."
        ),
        hint="print ideal_forget_quality(LENGTH) and read off the component forget1.",
    ),
    "npo_first_weight": Exercise(
        answer=lambda: _weight(npo(0.2), 19, -1.0, 0.0),
        because="at the reference z = 0 and 2σ(0) = 1, whatever beta, length or probability.",
        hint="before the first step logp = ref: put that into z, and z into 2σ(z).",
    ),
    "why_ga": Exercise(
        answer=lambda: "c",
        because=(
            "NPO weighs by the ratio to the reference and nothing else, and at the start that "
            "is 1 for all."
        ),
        hint="",
        hints={
            "a": "try another beta in the view: the weight at the start does not move.",
            "b": (
                "all lengths weigh the same at the start: what is the ratio to the reference then?"
            ),
            "d": (
                "the retain term adds a gradient of its own; it does not touch the weights of "
                "forget examples."
            ),
        },
    ),
    "simnpo_first_weight": Exercise(
        answer=lambda: _weight(simnpo(4.0), 4, -1.0, 0.0),
        because="2σ(-4)/4: no reference, so likelihood and length matter from the first step on.",
        hint="z = beta * logp / |y| with logp/|y| = -1; then 2σ(z)/|y|.",
    ),
    "tight_bound": Exercise(
        answer=lambda: _weight(simnpo(4.0), 5, 0.0, 0.0),
        because=(
            "at probability 1 z = 0 and the weight 1/|y|: at gamma = 0 the printed bound 2/|y| "
            "is never reached."
        ),
        hint="the weight grows with logp, and no log-probability exceeds 0.",
    ),
    "released_gamma": Exercise(
        answer=lambda: to_released_tofu(from_paper(2.5, 1.0, 0.0))["gamma"],
        because="the released code multiplies its gamma by beta, so the published 1 is its 1/2.5.",
        hint="the released code computes beta * (logp/|y| + gamma_code): what must gamma_code be?",
    ),
    "npo_ratio": Exercise(
        answer=lambda: _ratio(npo(0.2)),
        because=(
            "the long response's log-ratio is a sum over 80 tokens, -40 nats, and its weight "
            "has died."
        ),
        hint="weights 2σ(z) with z = -beta * 0.5 * |y|, for 4 and for 80 tokens; divide.",
    ),
    "simnpo_ratio": Exercise(
        answer=lambda: _ratio(simnpo(4.0)),
        because=(
            "the mean over tokens is the same for both, so all that is left is 80/4, at any time."
        ),
        hint="both responses have the same z: what remains of the weight?",
    ),
    "memorisation_ratio": Exercise(
        answer=lambda: _weight(simnpo(4.0), 19, -0.5, 0.0) / _weight(simnpo(4.0), 19, -2.0, 0.0),
        because="SimNPO pushes hardest on what the model knows best; NPO would say 1 here.",
        hint="2σ(4 * -0.5) / 2σ(4 * -2): the lengths cancel.",
    ),
    "reference_free": Exercise(
        answer=lambda: "a",
        because=(
            "without the division by |y| the sum runs over all tokens, so long responses have "
            "next to no weight."
        ),
        hint="",
        hints={
            "b": (
                "that is what a reference does; it has been dropped. Look at the start curve of "
                "the view."
            ),
            "c": "that needs z to be a mean over tokens: here normalize = 0.",
        },
    ),
    "short_share": Exercise(
        answer=lambda: 0.5,
        because=(
            "all weights are 1 and both chains have as many sequences: half of the weight each."
        ),
        hint=(
            "look at step 0 under NPO: what are the weights, and how many sequences has each chain?"
        ),
    ),
    "never_learnt_goal": Exercise(
        answer=lambda: ideal_forget_quality(MEMORISATION)["forget2"],
        because=(
            "what was never learnt is near its goal before unlearning: pushing there is "
            "over-forgetting."
        ),
        hint=(
            "print ideal_forget_quality(MEMORISATION): the retrained model never saw either chain."
        ),
    ),
    "who_pays": Exercise(
        answer=lambda: "b",
        because=(
            "half of NPO's effort goes to the long chain at first, and whatever that moves is "
            "paid for at once."
        ),
        hint="",
        hints={
            "a": (
                "compare the retain distance at the moment when each curve of the short chain "
                "passes its goal."
            ),
            "c": (
                "look at the two columns of the table again: they differ by a factor of about two "
                "or more."
            ),
        },
    ),
    "ga_times": Exercise(
        answer=lambda: float(
            time_to_forget(gradient_ascent(), 4, 0.5) / time_to_forget(gradient_ascent(), 80, 0.5)
        ),
        because="at weight 1 a response falls by |y| nats per token and time: time goes as 1/|y|.",
        hint="under gradient ascent d theta/dt = -|y|: divide the two times.",
    ),
    "simnpo_exponent": Exercise(
        answer=lambda: _rate(simnpo(1.0)),
        because="the 1/|y| in the weight cancels the |y| in the gradient: lengths fall together.",
        hint="set normalize to 1 in the view and read the exponent in its first line.",
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
    "why_short_survive": Exercise(
        answer=lambda: "b",
        because="the weights are equal, so what differs is the gradient: a sum over |y| tokens "
        "moves about |y| times "
        "as fast, and short responses are left behind.",
        hint="",
        hints={
            "a": (
                "at the start both weights are 1, and later the long one's is the smaller, not "
                "the larger."
            ),
            "c": "lengths are compared here at the same log-probability per token.",
            "d": (
                "the reference gives every length the weight 1 at the start: it protects none of "
                "them."
            ),
        },
    ),
    "what_simnpo_changes": Exercise(
        answer=lambda: "d",
        because=(
            "the paper changes both factors at once; each corner in between changes one of them."
        ),
        hint="",
        hints={
            "a": "that is reference-free NPO: something else changes as well.",
            "b": "that is length-normalised NPO: something else changes as well.",
            "c": "gamma is 0 in most runs of the paper: the change is elsewhere.",
        },
    ),
    "what_is_over_corrected": Exercise(
        answer=lambda: "a",
        because="the gradient of a response grows more slowly than |y|, so dividing by |y| takes "
        "away more than was "
        "there: short responses are pushed hardest and are the first to go.",
        hint="",
        hints={
            "b": "that is NPO's own failure, the one that SimNPO sets out to mend.",
            "c": (
                "the weights do differ under SimNPO, from the first step on: look at the player's "
                "bars."
            ),
            "d": (
                "gamma moves all weights together; it does not tell a short response from a long "
                "one."
            ),
        },
    ),
    "push": Exercise(
        answer=lambda: 20.0**0.62 / 20.0 / (4.0**0.62 / 4.0),
        because="a response of 20 tokens gets about half the push of one of 4, not the same.",
        hint=(
            "push = weight x gradient, and SimNPO's weight goes as 1/|y|: (20^0.62/20) / "
            "(4^0.62/4)."
        ),
    ),
}
