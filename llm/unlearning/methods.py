"""Methods of unlearning, each named by a word such as npo:0.1@1.

    NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT]     such as npo:0.1@1, simnpo:4.5:0.5@0.125, grad_diff, idk

A word says what is minimised on the forget data, and what holds the model back meanwhile. A method
is a row of the table below: an objective of the family (`markov.objectives`, `markov.preferences`),
a retain term, and what both losses of an update are averaged over (`llm.unlearning.retaining`).
What the paper calls GradDiff is gradient ascent with a retain term, and "weighted GradDiff" is its
length-weighted form (paper, appendix F).

"Gradient ascent" has two meanings. One is the limit of the law at beta = 0: a sum of
log-probabilities, averaged over examples, whose weight is 1. The other is what the released code
computes: minus the cross-entropy, a mean over the tokens of an update. The two agree up to a factor
of |y|, which matters for lambda and for the clipping of gradients. `gradient_ascent` is the former,
as in the law; `grad_diff` and `ga_kl` are the latter, as released. The other form of each has a
name that says so.

Every command that takes a method or an objective in a word takes it from here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markov.errors import InvalidInput, require
from markov.objectives import AT_BETA_ZERO, CORNERS, Objective, validate
from markov.preferences import (
    PAIRED_CORNERS,
    PAIRED_LIMITS,
    Forgetting,
    Preference,
    paired,
    validate_pair,
)

if TYPE_CHECKING:
    from llm.training.loop import Optimization
    from llm.unlearning.retaining import Average, RetainTerm
    from llm.unlearning.unlearn import Unlearning


class Form(NamedTuple):
    """A row of the table of methods.

    `objective` has beta = gamma = 0. `takes` names the numbers for which a grid gives values. A
    word may give both beta and gamma to each method that takes beta.
    """

    title: str
    objective: Forgetting
    takes: tuple[str, ...]
    retain_term: RetainTerm
    average: Average = "examples"


_GA, _WEIGHTED = (
    Objective(0.0),
    Objective(0.0, normalize=AT_BETA_ZERO["length_weighted_gradient_ascent"]),
)
_NPO, _LENGTH, _FREE, _SIM = (
    Objective(0.0, 0.0, *CORNERS[name])
    for name in ("npo", "length_normalized_npo", "reference_free_npo", "simnpo")
)
_DPO, _SIMPO = (Preference(0.0, 0.0, *PAIRED_CORNERS[name]) for name in ("dpo", "simpo"))
_BETA, _BOTH = ("beta",), ("beta", "gamma")
METHODS = {
    "gradient_ascent": Form("GA", _GA, (), "none"),
    "mean_gradient_ascent": Form("mean GA", _GA, (), "none", "tokens"),
    "length_weighted_gradient_ascent": Form("length-weighted GA", _WEIGHTED, (), "none"),
    "grad_diff": Form("GradDiff", _GA, (), "cross_entropy", "tokens"),
    "summed_grad_diff": Form("summed GradDiff", _GA, (), "cross_entropy"),
    "weighted_grad_diff": Form("weighted GradDiff", _WEIGHTED, (), "cross_entropy"),
    "npo": Form("NPO", _NPO, _BETA, "cross_entropy"),
    "length_normalized_npo": Form("length-normalised NPO", _LENGTH, _BOTH, "cross_entropy"),
    "reference_free_npo": Form("reference-free NPO", _FREE, _BOTH, "cross_entropy"),
    "simnpo": Form("SimNPO", _SIM, _BOTH, "cross_entropy"),
    "idk": Form("IDK", Preference(0.0, 0.0, *PAIRED_LIMITS["idk"]), (), "cross_entropy"),
    "dpo": Form("DPO", _DPO, _BETA, "cross_entropy"),
    "simpo": Form("SimPO", _SIMPO, _BOTH, "cross_entropy"),
    "ga_kl": Form("GA + KL", _GA, (), "kl", "tokens"),
    "summed_ga_kl": Form("summed GA + KL", _GA, (), "kl"),
    "npo_kl": Form("NPO + KL", _NPO, _BETA, "kl"),
    "simnpo_kl": Form("SimNPO + KL", _SIM, _BOTH, "kl"),
}
NUMBERS = ("beta", "gamma")  # in the order of a word
SIGNS = {"beta": "β", "gamma": "γ"}
FORM = f"NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT] with a name of {', '.join(METHODS)}"


class Method(NamedTuple):
    """One of `METHODS` with its numbers."""

    name: str
    objective: Forgetting
    retain_term: RetainTerm
    retain_weight: float
    average: Average

    @property
    def word(self) -> str:
        """The word from which `method` makes this method."""
        numbers = [f"{number:g}" for number in self.numbers.values()]
        weight = f"@{self.retain_weight:g}" if self.retain_term != "none" else ""
        return ":".join([self.name, *numbers]) + weight

    @property
    def label(self) -> str:
        """The title of the method with its numbers."""
        signs = {SIGNS[name]: value for name, value in self.numbers.items()}
        signs |= {"λ": self.retain_weight} if self.retain_term != "none" else {}
        return ", ".join(
            [METHODS[self.name].title, *(f"{sign} = {number:g}" for sign, number in signs.items())]
        )

    @property
    def numbers(self) -> dict[str, float]:
        """Its beta, and its gamma unless that is 0; empty for a method that takes neither."""
        known = {
            name: float(getattr(self.objective, name))
            for name in NUMBERS
            if METHODS[self.name].takes
        }
        return {name: value for name, value in known.items() if name == "beta" or value}

    @property
    def prefers(self) -> bool:
        """Whether the method needs a response that is preferred, such as a refusal."""
        return bool(paired(self.objective).prefer)

    def unlearning(self, optimization: Optimization, **others: Any) -> Unlearning:
        """Return the settings of a run by this method.

        `others` are further fields of `Unlearning`; they take precedence over those of the method.
        """
        # Imported here, because it takes seconds that commands without a model need not wait.
        from llm.unlearning.unlearn import Unlearning

        return Unlearning(
            objective=self.objective,
            optimization=optimization,
            **{
                "retain_term": self.retain_term,
                "retain_weight": self.retain_weight,
                "average": self.average,
                **others,
            },
        )


def method(word: str, *, field: str = "method") -> Method:
    """Return the method of a word that leaves nothing open but lambda, which is then 1.

    Raises `InvalidInput`, naming `field`, for another word.
    """
    name, numbers, weight = parsed(word, field)
    require(len(numbers) > 0 or not METHODS[name].takes, field, word, _form_of(name))
    return _made(name, numbers, 1.0 if weight is None else weight)


def objective(word: str, *, field: str = "objective") -> Objective:
    """Return the objective of a method of single responses; its retain term is ignored.

    Raises `InvalidInput`, naming `field`, for a word of another form and for a method that compares
    two responses.
    """
    found = method(word, field=field).objective
    if not isinstance(found, Objective):
        single = [name for name, form in METHODS.items() if isinstance(form.objective, Objective)]
        raise InvalidInput(field, word, f"a method of single responses, one of {', '.join(single)}")
    return found


def methods(
    words: Sequence[str],
    *,
    beta: Iterable[float] = (),
    gamma: Iterable[float] = (0.0,),
    retain_weight: Iterable[float] = (1.0,),
) -> list[Method]:
    """Return all methods of some words: what a word leaves open takes every value given for it.

    Raises `InvalidInput` for a word of another form, a beta that is open with none given, a number
    out of bounds, and a method that comes twice.
    """
    require(len(words) > 0, "methods", list(words), f"at least one {FORM}")
    grid = {"beta": tuple(beta), "gamma": tuple(gamma)}
    found: list[Method] = []
    for word in words:
        name, numbers, weight = parsed(word)
        form = METHODS[name]
        axes = [[number] for number in numbers] + [
            list(grid[one]) for one in form.takes[len(numbers) :]
        ]
        for axis, values in zip(NUMBERS, axes, strict=False):
            require(len(values) > 0, "methods", word, f"{name}:{axis.upper()}, or --{axis} given")
        weights = (
            [weight]
            if weight is not None
            else list(retain_weight)
            if form.retain_term != "none"
            else [1.0]
        )
        for *values, one in itertools.product(*axes, weights):
            found.append(_made(name, values, one))
    repeated = [one.word for place, one in enumerate(found) if one in found[:place]]
    require(not repeated, "methods", repeated[:1], "each method once")
    return found


def _made(name: str, numbers: Sequence[float], weight: float) -> Method:
    form = METHODS[name]
    law = form.objective._replace(**dict(zip(NUMBERS, numbers, strict=False)))
    (validate if isinstance(law, Objective) else validate_pair)(law)  # pyright: ignore[reportArgumentType]
    require(0 <= weight < math.inf, "retain_weight", weight, "a finite number >= 0")
    return Method(name, law, form.retain_term, weight, form.average)


def parsed(word: str, field: str = "method") -> tuple[str, list[float], float | None]:
    """Return the name of a method in a word, the numbers in it, and lambda or None.

    Raises `InvalidInput`, naming `field`, for a word of another form.
    """
    require(isinstance(word, str), field, word, FORM)
    front, at, weight = word.partition("@")
    name, *numbers = front.split(":")
    require(name in METHODS, field, word, FORM)
    form = METHODS[name]
    fits = len(numbers) <= (len(NUMBERS) if form.takes else 0) and not (
        at and form.retain_term == "none"
    )
    require(fits, field, word, _form_of(name))
    try:
        return name, [float(number) for number in numbers], float(weight) if at else None
    except ValueError:
        raise InvalidInput(field, word, _form_of(name)) from None


def retaining(
    word: str,
    term: RetainTerm | None,
    weight: float | None,
    *,
    otherwise: float = 1.0,
    field: str = "objective",
) -> tuple[RetainTerm, float]:
    """Return the retain term of a word and its lambda.

    The options `term` and `weight` may say them in the word's place. Where neither the word nor an
    option gives lambda, it is `otherwise`. Raises `InvalidInput` for a lambda that both give, or
    that would weigh nothing because there is no retain term.
    """
    name, _, own = parsed(word, field)
    chosen = term or METHODS[name].retain_term
    require(
        own is None or weight is None,
        "retain_weight",
        weight,
        f"left out with {word}, which says it",
    )
    allowed = f"left out with {word} and no retain term; --retain-term names one"
    require(chosen != "none" or weight is None, "retain_weight", weight, allowed)
    found = weight if own is None else own
    return chosen, otherwise if found is None else found


def described(word: str, settings: Unlearning) -> str:
    """Return one line on how a model unlearns by a method, defaults included."""
    term, rate = settings.retain_term, settings.optimization.learning_rate
    kept = (
        "no retain term" if term == "none" else f"{term} with lambda = {settings.retain_weight:g}"
    )
    own = "" if settings.weighting == "own" else f", weights: {settings.weighting}"
    return f"{word.partition('@')[0]}{own}, {kept}, learning rate {rate:g}"


def _form_of(name: str) -> str:
    """Return the form of the words that name one method."""
    form = METHODS[name]
    return (
        name
        + (":BETA[:GAMMA]" if form.takes else "")
        + ("[@RETAIN_WEIGHT]" if form.retain_term != "none" else "")
    )


def method_of(settings: Unlearning) -> Method:
    """Return the method that has these settings.

    Raises `InvalidInput` for an objective between the named ones, and for one that does not keep
    its weights.
    """
    law, term = settings.objective, settings.retain_term if settings.retain_weight else "none"
    for name, form in METHODS.items():
        bare = law._replace(**dict.fromkeys(NUMBERS, 0.0)) if form.takes else law
        same = type(law) is type(form.objective) and bare == form.objective
        plain = settings.average == form.average and settings.weighting == "own"
        if same and term == form.retain_term and plain:
            return Method(
                name, law, term, settings.retain_weight if term != "none" else 1.0, form.average
            )
    allowed = (
        f"that of a method with retain term {term}, averaged over {settings.average}: "
        f"{', '.join(METHODS)}, with its own weights"
    )
    raise InvalidInput("objective", law, allowed)
