"""Exercises of the notebook on what causes over-forgetting, the reference or the length."""

from __future__ import annotations

from figures.lessons.exercise import Exercise, Task
from figures.lessons.law import single, weight
from markov.objectives import npo, reference_free_npo, simnpo

TOKENS, READ, NEVER = 40, -0.05, -2.0  # of an answer, and nats per token


def _spared(answer: object) -> str:
    objective = single(answer)
    if objective.beta != 0.1 or objective.gamma != 0 or objective.normalize != 0:
        return "beta is to stay 0.1, and gamma and normalize are to stay 0: move the reference."
    if objective.reference < 0.5:
        return f"at least half of the reference is to stay, and not {objective.reference:g} of it."
    read, never = (weight(objective, TOKENS, start, 0.0) for start in (READ, NEVER))
    found = never / read
    return "" if found < 0.1 else f"the one never read weighs {found:.2g} times the other there."


CAUSES: dict[str, Exercise | Task] = {
    "cause_interaction": Exercise(
        answer=lambda: (0.9 - 3.0) - (1.2 - 3.0) - (2.5 - 3.0),
        because="both change it by -2.1, and the two alone by -1.8 and -0.5: that is 0.2 less.",
        hint="what does each corner change of NPO's 3.0? Take the two alone from both.",
    ),
    "cause_first_step": Exercise(
        answer=lambda: (
            weight(reference_free_npo(0.1), TOKENS, NEVER, 0.0)
            / weight(reference_free_npo(0.1), TOKENS, READ, 0.0)
        ),
        because="sigmoid(-8) / sigmoid(-0.2): without a reference what is unlikely is left alone.",
        hint="the weight is 2 sigmoid(beta log pi), and log pi is a sum over 40 tokens.",
    ),
    "cause_scale": Exercise(
        answer=lambda: 1.0 / 25,
        because="the divided loss is 1/25 of the summed one on a median answer, so its price too.",
        hint="by which factor does the forget loss change on an answer of 25 tokens?",
    ),
    "cause_short": Exercise(
        answer=lambda: weight(simnpo(2.5), 5, -2.0, 0.0) / weight(npo(0.1), 5, -2.0, 0.0) * 25,
        because="2 sigmoid(-5) is 0.0134; times 25 / 5 that is 0.067, and NPO's weight is 1.",
        hint="SimNPO's weight is 2 sigmoid(beta times the mean) / |y|, and NPO's begins at 1.",
    ),
    "cause_length_alone": Exercise(
        answer=lambda: "b",
        because=(
            "with the whole reference z is 0 at the first step, for every answer. What is left of "
            "the weight is 1/|y|, which does not depend on what was read."
        ),
        hint="",
        hints={
            "a": "is the weight of a long answer larger or smaller than that of a short one?",
            "c": "set reference to 1 in the view, and move start. Does the weight move?",
        },
    ),
    "cause_some_reference": Task(
        missing=_spared,
        because=(
            "what is left of log pi in z is 1 - reference of it, and half is enough of a brake for "
            "an answer of 40 tokens."
        ),
    ),
}
