"""Every checked exercise of the notebooks on language models is solved here from its own words.

As in `test_lessons`: a solution names the words that it uses, goes another way than the shipped
answer where there is one, and lists the answers of those who misread. None of these is accepted.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import ks_2samp, kstwobign, rankdata

from figures import style
from figures.cache import Context
from figures.lessons.exercise import TOLERANCE, Exercise, Task
from figures.lessons.language import EXERCISES, check
from figures.theory import weights
from llm.diagnostics.matching import Match
from llm.unlearning.methods import METHODS, method
from markov.errors import InvalidInput
from markov.objectives import CORNERS, Objective, npo
from tests.figures.lessons import LESSONS, Solved, asked, cells, lesson, letter, sigmoid

OWN = [name for name in LESSONS if name >= "05"]
GREY = {"npo": "#000000", "simnpo": "#BBBBBB"}


def simnpo_weight(length: float, mean: float, beta: float = 4.5) -> float:
    """SimNPO's weight at gamma = 0 by the log-probability per token, written out."""
    return 2 * sigmoid(beta * mean) / length


def under_curve(needs: list[float], given: list[float]) -> float:
    """The area under the straight pieces of an allocation curve, the neediest first."""
    ranked = sorted(zip(needs, given, strict=True), reverse=True)
    x, y = (np.cumsum([0.0, *(pair[place] for pair in ranked)]) for place in (0, 1))
    return float(np.trapezoid(y / y[-1], x / x[-1]))


def rising() -> str:
    """Whether the weight rises with the need anywhere in the square, and under any margin."""
    rng = np.random.default_rng(0)
    length = np.geomspace(5, 150, 40)
    ref, needed = (-size * length * rng.uniform(0.5, 2, 40) for size in (0.1, -2.0))
    found = []
    places = [place for place in itertools.product((0.0, 0.5, 1.0), (0.0, 0.5, 1.0)) if any(place)]
    for (reference, power), beta, gamma in itertools.product(places, (0.1, 4.5), (0.0, 2.0, 8.0)):
        if (reference, power) != CORNERS["npo"]:  # there all weights are equal at the first step
            z = beta * (1 - reference) * ref / length**power + gamma
            weight = 2 / (1 + np.exp(-z)) / length**power
            found.append(np.corrcoef(rankdata(weight), rankdata(needed))[0, 1])
    return "a" if max(found) < 0 else "c"


def answers(power: float | None = 0.9) -> pd.DataFrame:
    """A table of answers whose need grows with the length, and a weight that is a power of it."""
    rng = np.random.default_rng(1)
    length = np.repeat(np.geomspace(5, 150, 20).round(), 2)
    needed = 2 * length * rng.uniform(0.7, 1.4, 40)
    table = pd.DataFrame({"index": range(40), "length": length, "needed": needed})
    return table if power is None else table.assign(weight_mine=length**power)


def from_needs() -> pd.DataFrame:
    table = answers(None)
    return table.assign(weight_mine=table["needed"])


def reduced(*shares: float) -> float:
    return len(shares) / sum(1 / one for one in shares)


def distance(answers: int, p: float = 0.01) -> float:
    """The D at which the large-sample law of Kolmogorov and Smirnov gives this p."""
    return brentq(lambda d: kstwobign.sf(d * math.sqrt(answers / 2)) - p, 0.01, 0.9)  # pyright: ignore[reportReturnType]


def counted() -> tuple[int, int]:
    """Two numbers of answers by drawing: samples that lie apart by D = 0.2, tested exactly."""
    p = {}
    for count in (40, 80, 160, 320):
        own = np.arange(count, dtype=float)
        p[count] = ks_2samp(own, own + count // 5 - 0.5, method="exact").pvalue
    few = max(one for one, value in p.items() if value > 0.05)
    return few, min(one for one, value in p.items() if value < 0.001)


def word_of(text: str) -> str:
    """The letter of the word whose numbers the text asks for, each word being read."""
    offered = dict(re.findall(r"\((\w)\) `([^`]+)`", text))
    for name, word in offered.items():
        try:
            found = method(word)
        except InvalidInput:
            continue
        if (*found.objective[:2], found.retain_weight) == (0.2, 1.0, 0.25):
            return name
    raise AssertionError(offered)


def unread() -> str:
    """A word found by trying every method with this retain term."""
    named = [name for name, form in METHODS.items() if form.retain_term == "kl" and form.takes]
    for name, beta in itertools.product(named, (1, 5, 10, 20)):
        chosen = method(f"{name}:{beta}")
        if chosen.objective[2:] == CORNERS["simnpo"] and simnpo_weight(40, -0.1, beta) < 0.01:
            return chosen.word
    raise AssertionError(named)


def row(corner: str, length: int, fall: float) -> float:
    """A weight read off the table of the figure `weights`."""
    frame = weights.data(Context(progress=False))
    own = frame[(frame["method"] == corner) & (frame["view"] == "fall")]
    return float(
        own[(own["length"] == length) & np.isclose(own["fall"], fall)]["weight"].to_numpy()[0]
    )


def again() -> str:
    """Whether the table has rows at the fall asked for, and whether a model was needed for it."""
    frame = weights.data(Context(progress=False, n_jobs=1))
    falls = set(frame[frame["view"] == "length"]["fall"])
    return "a" if 1.0 in falls else "b"


def figure(colors: dict[str, str] = GREY, width: float = 9.0) -> Figure:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "COLORS", style.COLORS | colors)
        drawn = weights.plot(weights.data(Context(progress=False)))
    drawn.set_size_inches(width, 7)
    return drawn


MODELS = {
    "llm_share": Solved(
        ("need 10, 20, 30 and 140 nats", "NPO makes its first step", "first share divided by"),
        lambda: 0.25 / 0.7,
        lambda: (0.25, 0.7, 2.8, 1.0),
    ),
    "llm_two_answers": Solved(
        (r"$\beta = 4.5$ and $\gamma = 0$", "12 tokens and -0.05", "60 tokens and -0.3"),
        lambda: simnpo_weight(12, -0.05) / simnpo_weight(60, -0.3),
        lambda: (
            5,
            simnpo_weight(60, -0.3) / simnpo_weight(12, -0.05),
            sigmoid(-0.225) / sigmoid(-1.35),
            5 * sigmoid(4.5 * -0.6) / sigmoid(4.5 * -18),
        ),
    ),
    "llm_area": Solved(
        ("10, 20 and 70 tokens", "2 nats per token", "SimNPO at the first step"),
        lambda: under_curve([20, 40, 140], [1 / 10, 1 / 20, 1 / 70]),
        lambda: (
            0.5,
            under_curve([20, 40, 140], [1, 1, 1]),  # NPO
            under_curve([20, 40, 140], [10, 20, 70]),
            1 - under_curve([20, 40, 140], [1 / 10, 1 / 20, 1 / 70]),  # the least needy first
        ),
    ),
    "llm_hidden": Solved(
        ("-2.6 nats per token under the unlearned model, and -2.4", "-1.75 and -1.95"),
        lambda: (2.6 - 1.75) - (2.4 - 1.95),
        lambda: (0.85, 0.45, 0.2, -0.4, -1.75),
    ),
    "llm_rising": Solved(
        ("Under no setting of the four sliders", "*rise* with the needed movement"),
        rising,
        lambda: ("b", "c"),
    ),
    "llm_from_lengths": Solved(
        ("follows from the length alone", "between 0.45 and 0.55", "`table.assign(weight_mine="),
        answers,
        lambda: (answers(0.0), answers(-1.0), answers(2.0), from_needs()),
    ),
}
LOGS = {
    "logs_geometric": Solved(
        ("mean loss of 1 nat per token", "2 and 3 nats per token", "geometric"),
        lambda: math.sqrt(math.exp(-2) * math.exp(-3)) / math.exp(-1),
        lambda: (math.exp(1.5), math.exp(-2.5), (math.exp(-1) + math.exp(-2)) / 2),
    ),
    "logs_arithmetic": Solved(
        ("arithmetic", "a paraphrase of 1 nat per token, and wrong answers of 2 and 3"),
        lambda: (math.exp(-(2 - 1)) + math.exp(-(3 - 1))) / 2,
        lambda: (math.exp(-1.5), math.exp(-1) + math.exp(-2), (math.exp(-2) + math.exp(-3)) / 2),
    ),
    "logs_harmonic": Solved(
        ("eight are 0.6, and one is 0.2",),
        lambda: reduced(*[0.6] * 8, 0.2),
        lambda: ((8 * 0.6 + 0.2) / 9, 0.2, 0.6, (0.6**8 * 0.2) ** (1 / 9)),
    ),
    "logs_ten_times": Solved(
        ("the same p-value", "40 answers, in the second 400", r"$D\sqrt{n}$"),
        lambda: distance(40) / distance(400),
        lambda: (10, 1 / math.sqrt(10), 1, 100),
    ),
    "logs_chance": Solved(
        (
            "D = 0.38$ from one retrained model, and 0.40 from another",
            "= 0.10$, and method B leaves 0.12",
        ),
        # what another retrained model moves, against what is between the methods
        lambda: "b" if round(0.40 - 0.38, 2) >= round(0.12 - 0.10, 2) else "a",
        lambda: ("a", "c"),
    ),
    "logs_few_and_many": Solved(
        ("$D = 0.2$", "above 0.05 in the first test and below 0.001", "`(few, many)`"),
        counted,
        lambda: (counted()[::-1], (40, 60), (100, 1000), (42, 400)),
    ),
}
YOURS = {
    "yours_word": Solved(
        (r"reference-free NPO with $\beta = 0.2$, a margin of $\gamma = 1$", "of a quarter"),
        lambda: word_of(TEXTS["yours_word"]),
        lambda: ("a", "b"),
    ),
    "yours_updates": Solved(
        ("405 answers", "4 epochs with a batch of 8", "last batch of an epoch may be smaller"),
        lambda: 4 * len(range(0, 405, 8)),
        lambda: (4 * 405 / 8 - 8, 4 * 405, 51, 4 * 405 * 8),
    ),
    "yours_needed": Solved(
        ("40 tokens", "-5 nats in all", "a loss of 2.4 nats per token", "in nats in all"),
        lambda: sum(-5 / 40 + 2.4 for _ in range(40)),
        lambda: (2.4 - 5, 96, 2.4 - 5 / 40, 101, -91),
    ),
    "yours_price": Solved(
        ("has a `forget_nll` of 1.9", "`forget_nll` of 3.5", "of 0.6", "ends with 1.8 and 0.2"),
        # nearer to the retrained model, and less damage
        lambda: "b" if abs(1.8 - 1.9) < abs(3.5 - 1.9) and 0.2 < 0.6 else "a",
        lambda: ("a", "c"),
    ),
    "yours_strong_word": Solved(
        ("whose retain term is KL", "40 tokens and -0.1 nats per token", "below 0.01"),
        unread,
        lambda: ("simnpo:20@1", "simnpo_kl:4.5@1", "npo_kl:20", "ga_kl"),
    ),
}
DRAWN = {
    "figures_read": Solved(
        (r"SimNPO with $\beta = 4$", "80 tokens that has fallen by 0.5 nats per token"),
        lambda: row("simnpo", 80, 0.5),
        lambda: (row("simnpo", 80, 0.0), row("npo", 80, 0.5), row("simnpo", 4, 0.5), 1 / 80),
    ),
    "figures_ratio": Solved(
        (r"NPO with $\beta = 0.2$", "of 4 and of 80 tokens", "fallen by 0.25 nats per token"),
        lambda: row("npo", 4, 0.25) / row("npo", 80, 0.25),
        lambda: (20, row("npo", 4, 0.5) / row("npo", 80, 0.5), row("npo", 80, 0.25), math.exp(3.8)),
    ),
    "figures_again": Solved(
        ("after a fall of 1 nat per token", "What has to be made again?"),
        again,
        lambda: ("a", "c"),
    ),
    "figures_in_grey": Solved(
        ("differs by at least 0.4", "at most 10 inches wide", "$0.2126 R + 0.7152 G + 0.0722 B$"),
        figure,
        lambda: (figure({}), figure({"npo": "#FF0000", "simnpo": "#8888FF"}), figure(width=12.0)),
    ),
}
CAUSES = {
    "cause_interaction": Solved(
        ("NPO 3.0", "reference-free NPO 1.2", "length-normalised NPO 2.5", "SimNPO 0.9"),
        lambda: 0.9 + 3.0 - 1.2 - 2.5,
        lambda: (-0.2, -2.1, -2.3, 0.9),
    ),
    "cause_first_step": Solved(
        (r"$\beta = 0.1$", "40 tokens", "-2 nats per token", "-0.05 nats per token"),
        lambda: sigmoid(-0.1 * 40 * 2) / sigmoid(-0.1 * 40 * 0.05),
        lambda: (1, sigmoid(-0.2) / sigmoid(-8), sigmoid(-0.2) / sigmoid(-0.005), 40),
    ),
    "cause_scale": Solved(
        ("25 tokens", "a retain weight of 1"),
        lambda: 1 / 25,
        lambda: (1, 25, 0.1 * 25, 0.1 / 25),
    ),
    "cause_short": Solved(
        ("5 tokens and -2 nats per token", r"NPO with $\beta = 0.1$", "25 tokens"),
        lambda: 25 * simnpo_weight(5, -2, beta=0.1 * 25),
        lambda: (
            simnpo_weight(5, -2, beta=2.5),
            5 * simnpo_weight(5, -2, beta=2.5),
            25 * simnpo_weight(5, -2, beta=0.1),
            5.0,
        ),
    ),
    "cause_length_alone": Solved(
        ("does not spare what was never read at the first step",),
        lambda: "b" if CORNERS["length_normalized_npo"] == (1.0, 1.0) else "c",
        lambda: ("a", "c"),
    ),
    "cause_some_reference": Solved(
        ("40 tokens", "less than a tenth", "at least half of the reference"),
        lambda: Objective(0.1, 0.0, 0.5, 0.0),
        lambda: (npo(0.1), Objective(0.1, 0.0, 0.4, 0.0), Objective(0.2, 0.0, 0.5, 0.0)),
    ),
}
WEIGHED = {
    "weighting_apart": Solved(
        (
            "squared norms are 5 and 1",
            "both have to fall by 8 nats",
            "divided by that of the second",
        ),
        lambda: np.linalg.solve(np.diag([5.0, 1.0]), [8.0, 8.0])[0] / 8,
        lambda: (5.0, 1.0, math.sqrt(1 / 5)),
    ),
    "weighting_together": Solved(
        ("2 on its diagonal and 1 beside it", "fall by 3 nats, the second must stay"),
        lambda: minimize_scalar(lambda w: (3 - 2 * w) ** 2 + w**2).x,
        lambda: (2.0, 1.5, 1.0),  # negative weights; the second forgotten; weights of norms
    ),
    "weighting_follows": letter("b", "The best weights meet nearly all of the need"),
    "weighting_mine": Solved(
        ("need no retrained model", "more than half of the need", "`match(need, k @ mine)`"),
        lambda: Match(2.0, 0.6, 0.1),
        lambda: (Match(2.0, 0.5, 0.9), Match(0.0, 0.0, 0.0)),
    ),
}
SOLVED = {**MODELS, **LOGS, **YOURS, **DRAWN, **CAUSES, **WEIGHED}
TEXTS = {one: text for name in OWN for one, text in asked(name).items()}
every_exercise = pytest.mark.parametrize("name", SOLVED)
NUMBERS = [name for name, one in EXERCISES.items() if isinstance(one, Exercise) and not one.hints]


def close(told: set[float], truth: float) -> list[float]:
    return [one for one in told if math.isclose(one, truth, rel_tol=TOLERANCE)]


def test_every_checked_exercise_is_solved_here():
    assert TEXTS.keys() == EXERCISES.keys() == SOLVED.keys()
    assert len({" ".join(text.split()[1:]) for text in TEXTS.values()}) == len(TEXTS)


@every_exercise
def test_the_text_says_what_its_solution_uses(name: str):
    for words in SOLVED[name].words:
        assert words in TEXTS[name]
    if EXERCISES[name].hints:
        offered = re.findall(r"\(([a-d])\)", TEXTS[name])
        assert offered == sorted({SOLVED[name].answer(), *SOLVED[name].near()})


@every_exercise
def test_the_answer_from_the_words_is_right_and_says_why(name: str):
    verdict = check(name, SOLVED[name].answer())
    assert verdict.right is True and verdict.says == EXERCISES[name].because
    assert check(name, ...).right is None


@every_exercise
def test_the_answer_of_somebody_who_misreads_is_not_accepted(name: str):
    near = SOLVED[name].near()
    assert len(near) >= 2
    for answer in near:
        verdict = check(name, answer)
        assert verdict.right is False and len(verdict.says) > 10
        assert verdict.says != EXERCISES[name].because


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_accepted_within_two_percent(name: str):
    truth = SOLVED[name].answer()
    for factor in (0.985, 1.015):
        assert check(name, truth * factor)
    for wrong in (truth * 1.025, truth * 0.975, -truth):
        assert not check(name, wrong)


@pytest.mark.parametrize("name", OWN)
def test_no_answer_in_numbers_stands_above_its_question(name: str):
    parts = "\n\n".join(cells(lesson(name), "markdown")).split("## Exercises")[0]
    code = "\n".join(one for one in cells(lesson(name), "code") if "check(" not in one)
    told = {float(one) for one in re.findall(r"-?\d+\.\d+|\b\d{2,}\b", parts + code)}
    for one in asked(name):
        if one in NUMBERS:
            assert close(told, float(SOLVED[one].answer())) == [], one


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("nothing", 1.0),
        ("llm_share", "0.4"),
        ("llm_rising", 1),
        ("llm_from_lengths", 0.5),
        ("llm_from_lengths", answers(None)),
        ("llm_from_lengths", answers().assign(weight_mine=-1.0)),
        ("llm_from_lengths", answers().assign(weight_mine=math.nan)),
        ("logs_few_and_many", 40),
        ("logs_few_and_many", (40, 400, 4000)),
        ("logs_few_and_many", (0, 400)),
        ("logs_few_and_many", (40.0, 400)),
        ("logs_chance", "e"),
        ("yours_strong_word", 20),
        ("yours_strong_word", "simnpo_kl"),
        ("figures_in_grey", "a figure"),
        ("weighting_mine", 0.6),
        ("figures_in_grey", Figure()),
        ("cause_some_reference", 0.5),
    ],
)
def test_an_answer_of_the_wrong_kind_is_refused(name: str, answer: Any):
    with pytest.raises(InvalidInput, match=r"exercise|answer|weight_mine"):
        check(name, answer)


def test_there_are_tasks_and_letters_and_numbers_in_each_lesson():
    for name in OWN:
        every = [EXERCISES[one] for one in asked(name)]
        assert {(isinstance(one, Task), bool(one.hints)) for one in every} == {
            (True, False),
            (False, True),
            (False, False),
        }
