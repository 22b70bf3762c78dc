"""Exercises on the law: those of the tour and of the notebooks on objectives and weights."""

from __future__ import annotations

import math

from figures.lessons.exercise import Exercise, Task, number
from figures.views.law import sequences
from markov.cases import LENGTH
from markov.conventions import from_paper, to_released_tofu
from markov.errors import require
from markov.objectives import (
    CORNERS,
    Objective,
    SequenceLogProbs,
    check_logprobs,
    npo,
    reference_free_npo,
    simnpo,
    validate,
)
from markov.studies import ideal_forget_distance


def weight(objective: Objective, length: float, start: float, fall: float) -> float:
    """Return the weight of a response that has fallen from `start` by `fall` nats per token."""
    return float(objective.weight(sequences(length, start, fall)))


def single(answer: object) -> Objective:
    """Return the answer if it is one objective of four numbers; else raise `InvalidInput`."""
    allowed = "one objective, such as npo(0.1)"
    require(isinstance(answer, Objective), "answer", answer, allowed)
    assert isinstance(answer, Objective)
    validate(answer)
    require(all(getattr(value, "ndim", 0) == 0 for value in answer), "answer", answer, allowed)
    return Objective(*(float(value) for value in answer))


def _twice(answer: object) -> str:
    beta = number(answer)
    short, long = (weight(npo(beta), length, -1.0, 0.5) for length in (4, 19))
    right = abs(short / long - 2) < 0.05
    return "" if right else f"there the short answer weighs {short / long:.3g} times the long one."


def _between(answer: object) -> str:
    objective = single(answer)
    if objective.beta != 0.2:
        return f"beta is to stay 0.2, and not {objective.beta:g}."
    found = weight(objective, 80, -1.0, 0.0)
    return "" if 0.1 < found < 0.2 else f"the weight there is {found:.3g}, not between 0.1 and 0.2."


def _above_bound(answer: object) -> str:
    objective = single(answer)
    if (objective.reference, objective.normalize) != CORNERS["simnpo"] or objective.beta < 1:
        return "hand in SimNPO with a beta of at least 1: simnpo(beta, gamma)."
    found = weight(objective, 10, -2.0, 0.0)
    return "" if found > 0.15 else f"the weight there is {found:.3g}, not above 0.15."


def _longer_first(answer: object) -> str:
    allowed = "two responses, such as sequences([4, 8], [-1.0, -2.0], 0.0)"
    require(isinstance(answer, SequenceLogProbs), "answer", answer, allowed)
    assert isinstance(answer, SequenceLogProbs)
    pair = check_logprobs(answer)
    require(tuple(pair.logp.shape) == (2,), "answer", tuple(pair.logp.shape), allowed)
    if not pair.logp.equal(pair.ref):
        return "nothing has been lost yet: let the third argument of sequences be 0.0."
    (short, long), (first, second) = pair.length.tolist(), simnpo(4.0).weight(pair).tolist()
    if long < 5 * short:
        return (
            f"the second response has {long:g} tokens, not five times the {short:g} of the first."
        )
    return (
        "" if second > first else f"they weigh {first:.3g} and {second:.3g}: the first weighs more."
    )


def _first_beta(answer: object) -> str:
    short, long = (weight(npo(number(answer)), length, -1.0, 0.5) for length in (10, 400))
    if long < short / 10:
        return (
            f"the longest weighs {long / short:.3g} of the shortest: it has been let go too early."
        )
    return "" if long <= 0.5 else f"the longest still weighs {long:.3g}: nothing brakes it yet."


TOUR: dict[str, Exercise | Task] = {
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
    "nats": Exercise(
        answer=lambda: math.exp(12 * 0.25),
        because="the fall is a sum over 12 tokens, 3 nats in all, and e^3 is about 20.",
        hint="how many nats has the whole response lost? One nat is a factor of e.",
    ),
    "over_forgetting": Exercise(
        answer=lambda: ideal_forget_distance(LENGTH)["forget1"],
        because=(
            "a model that knows the retain chain only stands just this far from the truth; "
            "beyond it is too much."
        ),
        hint="print ideal_forget_distance(LENGTH) and read off the component forget1.",
    ),
    "plane": Exercise(
        answer=lambda: "b",
        because="the height of the star is the goal, and everything to the right is damage.",
        hint="",
        hints={
            "a": "A stands at the height of its star: that is as much as was to be forgotten.",
            "c": "more is not better: the retrained model, the star, knows more than B does.",
        },
    ),
    "equal_sums": Exercise(
        answer=lambda: weight(npo(0.2), 4, -1.0, 2.0) / weight(npo(0.2), 16, -1.0, 0.5),
        because="both have lost 8 nats in all, and NPO looks at the sum and at nothing else.",
        hint="add up what each has lost over all its tokens, and put both into z.",
    ),
    "twice": Task(
        missing=_twice,
        because="a small beta tells lengths hardly apart, a large one lets the long answer go.",
    ),
}

OBJECTIVES: dict[str, Exercise | Task] = {
    "above_reference": Exercise(
        answer=lambda: float(npo(0.2).weight(SequenceLogProbs.of([-15.0], 19, -20.0))),
        because="2σ(1): what has become likelier than it was is pushed harder than at the start.",
        hint="z = beta * (logp - ref), and here logp - ref is +5; then 2σ(z).",
    ),
    "why_ga": Exercise(
        answer=lambda: "b",
        because=(
            "NPO weighs by the ratio to the reference alone. It starts as gradient ascent where "
            "that ratio is 1 for all, which needs the model itself as the reference."
        ),
        hint="",
        hints={
            "a": "why are the weights 1 otherwise? Put this reference into z = beta (logp - ref).",
            "c": "two responses of one length, one likelier than under the reference: which z?",
            "d": "they would be equal if all ratios to this reference were equal: are they?",
        },
    ),
    "npo_half": Exercise(
        answer=lambda: math.log(3) / 0.1,
        because="2σ(z) = 1/2 where z = -log 3, and z = -beta times the fall.",
        hint="for which z is 2σ(z) = 1/2? Then divide by beta; a fall is a positive number.",
    ),
    "simnpo_first_weight": Exercise(
        answer=lambda: weight(simnpo(4.0), 4, -1.0, 0.0),
        because="2σ(-4)/4: no reference, so likelihood and length matter from the first step on.",
        hint="z = beta * logp / |y| with logp/|y| = -1; then 2σ(z)/|y|.",
    ),
    "margin_bound": Exercise(
        answer=lambda: weight(simnpo(4.0, 1.0), 5, 0.0, 0.0),
        because="at probability 1 z = gamma, so the largest weight is 2σ(1)/5, below 2/5.",
        hint="the weight grows with logp, and no log-probability exceeds 0: what is z there?",
    ),
    "what_simnpo_changes": Exercise(
        answer=lambda: "b",
        because=(
            "the weights go as 1/|y| and do not see the likelihood: the reference is still there. "
            "SimNPO changes both, and gives the third response less than the second."
        ),
        hint="",
        hints={
            "a": "NPO weighs nothing before the first step: what weights would it give?",
            "c": "without a reference the likelihood counts: compare the last two responses.",
            "d": "SimNPO has no reference: would it give the last two the same weight?",
        },
    ),
    "released_gamma": Exercise(
        answer=lambda: to_released_tofu(from_paper(2.5, 1.0, 0.0))["gamma"],
        because="the released code multiplies its gamma by beta, so the published 1 is its 1/2.5.",
        hint="the released code computes beta * (logp/|y| + gamma_code): what must gamma_code be?",
    ),
    "same_brake": Exercise(
        answer=lambda: 0.2 * 30,
        because="a sum over 30 tokens is 30 times the mean, and only beta can make up for that.",
        hint="write z for both, once with the sum and once with the mean over 30 tokens.",
    ),
    "above_bound": Task(
        missing=_above_bound,
        because="a margin of more than 2 beta + log 3 does it: the bound 1/|y| is for gamma = 0.",
    ),
    "between": Task(
        missing=_between,
        because="inside the square a long response keeps a part of its weight.",
    ),
}

WEIGHTS: dict[str, Exercise | Task] = {
    "npo_ratio": Exercise(
        answer=lambda: weight(npo(0.1), 10, -2.0, 1.0) / weight(npo(0.1), 30, -2.0, 1.0),
        because="σ(-1)/σ(-3): the fall of the long response is summed over 30 tokens.",
        hint="weights 2σ(z) with z = -beta * 1 * |y|, for 10 and for 30 tokens; divide.",
    ),
    "simnpo_ratio": Exercise(
        answer=lambda: weight(simnpo(4.0), 5, -1.5, 0.0) / weight(simnpo(4.0), 50, -1.25, 0.0),
        because="the lengths give 10, and the long response is likelier now: 10 σ(-6)/σ(-5).",
        hint="the two have different z: what are they, and what do the lengths give besides?",
    ),
    "memorisation_ratio": Exercise(
        answer=lambda: weight(simnpo(2.0), 19, -0.25, 0.0) / weight(simnpo(2.0), 19, -1.0, 0.0),
        because="SimNPO pushes hardest on what the model knows best; NPO would say 1 here.",
        hint="σ(2 * -0.25) / σ(2 * -1): the lengths cancel. z is too near 0 for e^z to do.",
    ),
    "doubling": Exercise(
        answer=lambda: "b",
        because="far below 0 the weight goes as e^z; NPO gives the two different z.",
        hint="",
        hints={
            "a": "a ratio of exponentials of z is not proportional to z.",
            "c": "under NPO the two have different z, and doubling beta doubles the difference.",
            "d": "under SimNPO both have the same z, so that beta cancels.",
        },
    ),
    "share": Exercise(
        answer=lambda: (2 / 4) / (2 / 4 + 8 / 20),
        because="2/4 against 8/20: few short responses take more than half of the effort.",
        hint="all have the same z, so each weighs as 1/|y|; add up each kind and divide.",
    ),
    "longest": Exercise(
        answer=lambda: _longest(reference_free_npo(0.2), -1.0, 0.01),
        because="z is -0.2 per token, and at 26 tokens 2σ(z) is the last time above 0.01.",
        hint="2σ(-0.2 |y|) >= 0.01; the largest whole |y|.",
    ),
    "margin_near_zero": Exercise(
        answer=lambda: weight(simnpo(1.0, 1.5), 10, -1.0, 0.0) / weight(simnpo(1.0), 10, -1.0, 0.0),
        because="σ(0.5)/σ(-1), not e^1.5: near z = 0 the weight bends towards its bound.",
        hint="e^gamma holds for z well below 0 only: compute σ at z = -1 and at z = -1 + 1.5.",
    ),
    "longer_first": Task(
        missing=_longer_first,
        because="a long response that is known well can weigh more than a short one known badly.",
    ),
    "first_beta": Task(
        missing=_first_beta,
        because="the brake is felt by the longest, and has not yet let them go.",
    ),
}


def _longest(objective: Objective, start: float, least: float) -> float:
    """Return the largest number of tokens at which a response still has the least weight."""
    length = 1
    while weight(objective, length + 1, start, 0.0) >= least:
        length += 1
    return float(length)
