"""The law for pairs: a response to forget, and one that is preferred to it, such as a refusal.

With the score u = (logp - reference * ref) / length**normalize of `markov.objectives`, in nats, for
either response,

    logit    z = beta * (forget * u_forgotten - prefer * u_preferred) + gamma
    loss       = (2 / beta) * softplus(z)                                            per pair
    weight     = d loss / d logp_forgotten
               =  forget * 2 * sigmoid(z) / length_forgotten**normalize >= 0
                 d loss / d logp_preferred
               = -prefer * 2 * sigmoid(z) / length_preferred**normalize <= 0

    prefer = 0                                            the law of `Objective`
    forget, prefer, reference, normalize = 1, 1, 1, 0     DPO    (Rafailov et al. 2023; gamma = 0)
    forget, prefer, reference, normalize = 1, 1, 0, 1     SimPO  (Meng et al. 2024; gamma the bare
                                                                 margin)
    beta = 0, forget, prefer, reference, normalize = 0, 1, 0, 1
                                      "I don't know": cross-entropy of the refusal

DPO and SimPO are published, and coded in TRL, as softplus(z), without the factor 2 / beta. So a
learning rate of plain gradient descent does not carry over between the two forms, and one of Adam
does. `beta = 0` is the limit itself, as for `Objective`: loss = 2 * sigmoid(gamma) * (forget *
u_forgotten - prefer * u_preferred).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from markov.errors import InvalidInput, require
from markov.objectives import (
    HIGHEST,
    Number,
    Objective,
    SequenceLogProbs,
    check_plain,
    validate,
)

# reference, normalize, forget, prefer of the corners that are in use, and of those at beta = 0.
PAIRED_CORNERS = {"dpo": (1.0, 0.0, 1.0, 1.0), "simpo": (0.0, 1.0, 1.0, 1.0)}
PAIRED_LIMITS = {"idk": (0.0, 1.0, 0.0, 1.0)}
# the bounds of forget and prefer, written as in `markov.objectives.ALLOWED`
FACTOR = (0.0, HIGHEST, "a finite number >= 0")


class PairLogProbs(NamedTuple):
    """What the law needs to know of each pair: its two responses, of one shape."""

    forgotten: SequenceLogProbs
    preferred: SequenceLogProbs


class PairWeights(NamedTuple):
    """d loss / d logp of the two responses of each pair.

    It says how hard the forgotten one is pushed down and, negative, how hard the preferred one is
    pushed up.
    """

    forgotten: Float[Tensor, "*batch"]
    preferred: Float[Tensor, "*batch"]


class Preference(NamedTuple):
    """One member of the family of pairs, or many.

    The fields are numbers, or tensors that broadcast against `*batch`. The first four are those of
    `Objective`, for both responses; `forget` and `prefer`, at least 0, say how much of each
    response enters.
    """

    beta: Number
    gamma: Number = 0.0
    reference: Number = 0.0
    normalize: Number = 0.0
    forget: Number = 1.0
    prefer: Number = 1.0

    @property
    def objective(self) -> Objective:
        """The law of one response from which this law of two is made."""
        return Objective(*self[:4])

    def score(self, pair: PairLogProbs) -> Float[Tensor, "*batch"]:
        """Return forget * u_forgotten - prefer * u_preferred, in nats.

        It is in nats per token where normalize = 1. This method and all that use it raise
        `InvalidInput` as `Objective.score` does, and for two responses of unequal shapes.
        """
        own = self.objective
        shapes = [tuple(one.logp.shape) for one in pair if isinstance(one.logp, Tensor)]
        require(len(set(shapes)) <= 1, "forgotten and preferred", shapes, "responses of one shape")
        for name, value in (("forget", self.forget), ("prefer", self.prefer)):
            check_plain(name, value, FACTOR)
        return self.forget * own.score(pair.forgotten) - self.prefer * own.score(pair.preferred)

    def logit(self, pair: PairLogProbs) -> Float[Tensor, "*batch"]:
        """Return z = beta * score + gamma.

        This is plain arithmetic, so that symbols pass through it as well as tensors.
        """
        return self._of_score.logit(self._as_one(pair))

    def loss(self, pair: PairLogProbs) -> Float[Tensor, "*batch"]:
        """Return (2/beta) softplus(z) per pair; at beta = 0, 2 sigmoid(gamma) * score."""
        return self._of_score.loss(self._as_one(pair))

    def centered_loss(self, pair: PairLogProbs) -> Float[Tensor, "*batch"]:
        """Return (2/beta) (softplus(z) - softplus(gamma)) per pair.

        It is continuous at beta = 0. Its gradient is that of `loss`.
        """
        return self._of_score.centered_loss(self._as_one(pair))

    def weight(self, pair: PairLogProbs) -> PairWeights:
        """Return d loss / d logp of either response.

        It is +-(forget or prefer) * 2 sigmoid(z) / length**normalize.
        """
        slope = self._of_score.weight(self._as_one(pair))
        forgotten, preferred = (one.length**self.normalize for one in pair)
        return PairWeights(self.forget * slope / forgotten, -(self.prefer * slope / preferred))

    @property
    def _of_score(self) -> Objective:
        """The law of the score, in which reference and length are already taken account of."""
        none: Any = 0  # whole numbers, which leave symbols unchanged
        return Objective(self.beta, self.gamma, none, none)

    def _as_one(self, pair: PairLogProbs) -> SequenceLogProbs:
        """Return the pair as a single response of one token whose log-probability is the score."""
        length: Any = 1
        ref: Any = 0
        return SequenceLogProbs(self.score(pair), length, ref)


Forgetting = Objective | Preference


def paired(objective: Forgetting) -> Preference:
    """Return the same objective as one of pairs.

    An `Objective` becomes one that prefers nothing, and gives the same numbers. Raises
    `InvalidInput` for anything that is neither.
    """
    if isinstance(objective, Preference):
        return objective
    require(
        isinstance(objective, Objective), "objective", objective, "an Objective or a Preference"
    )
    return Preference(*objective, forget=1.0, prefer=0.0)


def dpo(beta: Number) -> Preference:
    """Return DPO, z = beta * (logp - ref of the forgotten - that of the preferred).

    Its weights are 1 and -1 at the reference.
    """
    return validate_pair(_corner(beta, 0.0, *PAIRED_CORNERS["dpo"]))


def simpo(beta: Number, gamma: Number = 0.0) -> Preference:
    """Return SimPO, z = beta * (logp/length of the forgotten - that of the preferred) + gamma.

    Source: Meng et al. 2024.
    """
    return validate_pair(_corner(beta, gamma, *PAIRED_CORNERS["simpo"]))


def idk() -> Preference:
    """Return fine-tuning on refusals, loss = -logp/length of the preferred.

    It is the "IDK" of TOFU (Maini et al. 2024).
    """
    return _corner(0.0, 0.0, *PAIRED_LIMITS["idk"])


def validate_pair(preference: Preference) -> Preference:
    """Return the objective if its fields are allowed, else raise `InvalidInput`.

    It also raises where neither response enters.
    """
    require(
        isinstance(preference, Preference),
        "objective",
        preference,
        "a Preference, such as dpo(0.1)",
    )
    validate(preference.objective)
    for name in ("forget", "prefer"):
        value = getattr(preference, name)
        try:
            validate(Objective(value))  # a factor has the same bounds as beta
        except InvalidInput as error:
            raise InvalidInput(name, value, error.allowed) from None
    nothing = (torch.as_tensor(preference.forget) == 0) & (torch.as_tensor(preference.prefer) == 0)
    require(not bool(nothing.any()), "prefer", preference.prefer, "more than 0 where forget is 0")
    return preference


def _corner(beta: Number, gamma: Number, *place: float) -> Preference:
    return Preference(beta, gamma, *place)
