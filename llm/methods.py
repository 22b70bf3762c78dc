"""Methods of unlearning in a word: what is minimised on the forget data, and what holds the model back meanwhile.

    NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT]     such as npo:0.1@1, simnpo:4.5:0.5@0.125, grad_diff, idk

A method is a row of the table below: an objective of the family (`markov.objectives`, `markov.preferences`) and a
retain term (`llm.retaining`). What the paper calls GradDiff is gradient ascent with a retain term, and "weighted
GradDiff" its length-weighted form (paper, appendix F).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llm.retaining import RetainTerm
from llm.unlearning import Unlearning
from markov.errors import InvalidInput, require
from markov.objectives import CORNERS, LIMITS, Objective, validate
from markov.preferences import PAIRED_CORNERS, PAIRED_LIMITS, Forgetting, Preference, paired, validate_pair


class Form(NamedTuple):
    """A row of the table: what it is called, its objective at beta = gamma = 0, which of the two it takes, and its
    retain term.
    """

    title: str
    objective: Forgetting
    takes: tuple[str, ...]
    retain_term: RetainTerm


_GA, _WEIGHTED = Objective(0.0), Objective(0.0, normalize=LIMITS["length_weighted_gradient_ascent"])
_NPO, _LENGTH, _FREE, _SIM = (
    Objective(0.0, 0.0, *CORNERS[name]) for name in ("npo", "length_normalized_npo", "reference_free_npo", "simnpo")
)
_DPO, _SIMPO = (Preference(0.0, 0.0, *PAIRED_CORNERS[name]) for name in ("dpo", "simpo"))
_BETA, _BOTH = ("beta",), ("beta", "gamma")
METHODS = {
    "gradient_ascent": Form("GA", _GA, (), "none"),
    "length_weighted_gradient_ascent": Form("length-weighted GA", _WEIGHTED, (), "none"),
    "grad_diff": Form("GradDiff", _GA, (), "cross_entropy"),
    "weighted_grad_diff": Form("weighted GradDiff", _WEIGHTED, (), "cross_entropy"),
    "npo": Form("NPO", _NPO, _BETA, "cross_entropy"),
    "length_normalized_npo": Form("length-normalised NPO", _LENGTH, _BOTH, "cross_entropy"),
    "reference_free_npo": Form("reference-free NPO", _FREE, _BOTH, "cross_entropy"),
    "simnpo": Form("SimNPO", _SIM, _BOTH, "cross_entropy"),
    "idk": Form("IDK", Preference(0.0, 0.0, *PAIRED_LIMITS["idk"]), (), "cross_entropy"),
    "dpo": Form("DPO", _DPO, _BETA, "cross_entropy"),
    "simpo": Form("SimPO", _SIMPO, _BOTH, "cross_entropy"),
    "ga_kl": Form("GA + KL", _GA, (), "kl"),
    "npo_kl": Form("NPO + KL", _NPO, _BETA, "kl"),
    "simnpo_kl": Form("SimNPO + KL", _SIM, _BOTH, "kl"),
}
SIGNS = {"beta": "β", "gamma": "γ"}
FORM = f"NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT] with a name of {', '.join(METHODS)}"


class Method(NamedTuple):
    """One of `METHODS` with its numbers."""

    name: str
    objective: Forgetting
    retain_term: RetainTerm
    retain_weight: float

    @property
    def word(self) -> str:
        """The word that `method` takes for it."""
        numbers = [getattr(self.objective, name) for name in METHODS[self.name].takes]
        while numbers and numbers[-1] == 0 and len(numbers) > 1:
            numbers.pop()
        weight = f"@{self.retain_weight:g}" if self.retain_term != "none" else ""
        return ":".join([self.name, *(f"{number:g}" for number in numbers)]) + weight

    @property
    def label(self) -> str:
        """What it is called, with its numbers."""
        form, numbers = METHODS[self.name], {}
        for name in form.takes:
            value = getattr(self.objective, name)
            if name == "beta" or value:
                numbers[SIGNS[name]] = value
        if self.retain_term != "none":
            numbers["λ"] = self.retain_weight
        return ", ".join([form.title, *(f"{sign} = {number:g}" for sign, number in numbers.items())])

    @property
    def prefers(self) -> bool:
        """Whether it needs a response that is preferred, such as a refusal."""
        return bool(paired(self.objective).prefer)


def method(word: str) -> Method:
    """The method of a word that leaves nothing open but lambda, 1 if not given; raises `InvalidInput` for another."""
    (found, *others) = methods([word])
    require(not others, "method", word, FORM)
    return found


def methods(
    words: Sequence[str],
    *,
    beta: Iterable[float] = (),
    gamma: Iterable[float] = (0.0,),
    retain_weight: Iterable[float] = (1.0,),
) -> list[Method]:
    """All methods of some words: what a word leaves open takes every value that is given for it.

    Raises `InvalidInput` for a word of another form, a beta that is open with none given, a number out of bounds, and a
    method that comes twice.
    """
    require(len(words) > 0, "methods", list(words), f"at least one {FORM}")
    for word in words:
        require(isinstance(word, str), "method", word, FORM)
    grid = {"beta": tuple(beta), "gamma": tuple(gamma)}
    found: list[Method] = []
    for word in words:
        known, weight = _parsed(word)
        form = METHODS[known[0]]
        axes = [[number] for number in known[1:]] + [list(grid[name]) for name in form.takes[len(known) - 1 :]]
        for name, values in zip(form.takes, axes, strict=True):
            require(len(values) > 0, "methods", word, f"{known[0]}:{name.upper()}, or --{name} given")
        weights = [weight] if weight is not None else list(retain_weight) if form.retain_term != "none" else [1.0]
        for *numbers, one in itertools.product(*axes, weights):
            law = form.objective._replace(**dict(zip(form.takes, numbers, strict=True)))
            (validate if isinstance(law, Objective) else validate_pair)(law)  # pyright: ignore[reportArgumentType]
            require(0 <= one < math.inf, "retain_weight", one, "a finite number >= 0")
            found.append(Method(known[0], law, form.retain_term, one))
    repeated = [one.word for place, one in enumerate(found) if one in found[:place]]
    require(not repeated, "methods", repeated[:1], "each method once")
    return found


def _parsed(word: str) -> tuple[list, float | None]:
    """Its name followed by the numbers that it gives, and lambda."""
    front, at, weight = word.partition("@")
    name, *numbers = front.split(":")
    require(name in METHODS, "method", word, FORM)
    form = METHODS[name]
    allowed = name + "".join(f"[:{one.upper()}]" for one in form.takes)
    allowed += "" if form.retain_term == "none" else "[@RETAIN_WEIGHT]"
    fits = len(numbers) <= len(form.takes) and not (at and form.retain_term == "none")
    require(fits, "method", word, allowed)
    try:
        return [name, *map(float, numbers)], float(weight) if at else None
    except ValueError:
        raise InvalidInput("method", word, allowed) from None


def method_of(settings: Unlearning) -> Method:
    """The method whose settings these are; raises `InvalidInput` for an objective between the named ones."""
    law, term = settings.objective, settings.retain_term if settings.retain_weight else "none"
    for name, form in METHODS.items():
        taken = dict.fromkeys(form.takes, 0.0)
        if type(law) is type(form.objective) and law._replace(**taken) == form.objective and term == form.retain_term:
            return Method(name, law, term, settings.retain_weight if term != "none" else 1.0)
    raise InvalidInput("objective", law, f"that of a method with retain term {term}: {', '.join(METHODS)}")
