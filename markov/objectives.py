"""The one law of forgetting: NPO, SimNPO, gradient ascent and what lies between them.

With `logp` = log pi_theta(y|x) and `ref` = log pi_ref(y|x) in nats, summed over `length` = |y|
scored tokens,

    score    u = (logp - reference * ref) / length**normalize
    logit    z = beta * u + gamma
    loss       = (2 / beta) * softplus(z)                          per example
    weight     = d loss / d logp = 2 * sigmoid(z) / length**normalize

    reference, normalize = 1, 0   NPO               (Zhang et al. 2024; gamma = 0)
    reference, normalize = 0, 1   SimNPO            (Fan et al. 2025, Eq. 4; gamma outside beta, as
                                                    published)
    beta -> 0                     gradient ascent   (weight 1/length**normalize, times 2 *
                                                    sigmoid(gamma))

`beta = 0` is that limit itself, not an approximation of it. The law needs length >= 1: see
`check_nonempty`.

What is checked where: every method of the law refuses responses of unequal shapes and plain numbers
outside the family. That needs no look into a tensor, so that symbols and `torch.func.vmap` pass.
The contents of tensors are checked once, where numbers enter: by `SequenceLogProbs.of` and
`check_logprobs` for responses, by `validate` and `stack` for objectives. Within a training no
values are checked: there a number that is not finite is a divergence, which the run reports.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from markov.errors import InvalidInput, is_number, require, require_number
from markov.numerics import as_like, away_from_zero, is_plain, require_all, tensor_of

Number = float | Tensor
Values = Number | Sequence[Any] | np.ndarray

# (reference, normalize) of the 2x2 corners; at beta = 0 the reference only adds a constant.
CORNERS = {
    "npo": (1.0, 0.0),
    "length_normalized_npo": (1.0, 1.0),
    "reference_free_npo": (0.0, 0.0),
    "simnpo": (0.0, 1.0),
}
AT_BETA_ZERO = {"gradient_ascent": 0.0, "length_weighted_gradient_ascent": 1.0}
HIGHEST = sys.float_info.max  # not inf, so that one comparison refuses what is not finite
# Lowest and highest value of each field of an Objective, and the same in words.
ALLOWED = {
    "beta": (0.0, HIGHEST, "a finite number >= 0"),
    "gamma": (-HIGHEST, HIGHEST, "a finite number"),
    "reference": (0.0, 1.0, "a number in [0, 1]"),
    "normalize": (0.0, 1.0, "a number in [0, 1]"),
}
# A sum of log-probabilities may exceed 0 by rounding, by far less than this per token (nats).
ROUNDING = 1e-4


class SequenceLogProbs(NamedTuple):
    """What the law needs to know of each response: three finite tensors of one shape and dtype.

    The dtype is a floating one. `logp` and `ref` are total log-probabilities (nats); `length`
    counts the scored tokens. The bare constructor checks nothing, as training and `torch.func.vmap`
    need it; `of` takes numbers from anywhere else, and checks them.
    """

    logp: Float[Tensor, "*batch"]
    length: Float[Tensor, "*batch"]
    ref: Float[Tensor, "*batch"]

    @classmethod
    def of(cls, logp: Values, length: Values, ref: Values = 0.0) -> SequenceLogProbs:
        """Make responses of numbers, lists, arrays or tensors and check them by `check_logprobs`.

        A single number of `length` or `ref` stands for all responses. All fields get the dtype and
        device of `logp`, which becomes float64 unless it is a floating tensor. Raises
        `InvalidInput` for anything that is not so.
        """
        first = tensor_of("logp", logp, None)
        others = (tensor_of("length", length, first), tensor_of("ref", ref, first))
        return check_logprobs(
            cls(first, *(x.expand(first.shape) if x.ndim == 0 else x for x in others))
        )

    @classmethod
    def from_logits(
        cls,
        logits: Float[Tensor, "*batch time vocab"],
        targets: Int[Tensor, "*batch time"],
        mask: Bool[Tensor, "*batch time"],
        *,
        ref: Number,
        check: bool = True,
    ) -> SequenceLogProbs:
        """Score responses from the logits of a model.

        logp = sum over the mask of (logits[t, targets[t]] - logsumexp(logits[t])). `logits[..., t,
        :]` predicts `targets[..., t]` (already shifted); `mask` is True on scored tokens and serves
        padding and prompts alike. What lies outside it, be it nan or a label of -100, changes
        nothing and gets zero gradient. `ref` (nats) broadcasts to `*batch`: write 0.0 where there
        is no reference. Sums are float32 or wider. Raises `InvalidInput` for shapes or dtypes that
        do not fit and, while `check` is on, for an empty response or a scored target outside the
        vocabulary. These two checks look at values, which `torch.func.vmap` refuses for a mapped
        mask: check once outside, then pass `check=False`.
        """
        for name, value in (("logits", logits), ("targets", targets), ("mask", mask)):
            require(isinstance(value, Tensor) and value.ndim > 0, name, value, "a tensor of rows")
        require(logits.is_floating_point(), "logits", logits.dtype, "a floating dtype")
        require(not targets.is_floating_point(), "targets", targets.dtype, "whole numbers")
        shape, vocab = tuple(logits.shape[:-1]), logits.shape[-1]
        for name, value in (("targets", targets), ("mask", mask)):
            fits = value.shape == shape
            require(fits, name, tuple(value.shape), f"the shape {shape} of the logits")
        require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True on scored tokens")
        if check:
            check_nonempty(mask.sum(-1), field="mask")
            outside = targets[mask & ((targets < 0) | (targets >= vocab))].tolist()
            require(not outside, "targets", outside[:1], f"0 to {vocab - 1} on scored tokens")

        # Masked before and after: nan * 0 is nan, so a mask on the result alone lets nan into the
        # gradient.
        known = logits.masked_fill(~mask[..., None], 0.0).to(
            torch.promote_types(logits.dtype, torch.float32)
        )
        chosen = known.gather(-1, targets.where(mask, 0).long()[..., None]).squeeze(-1)
        logp = (chosen - known.logsumexp(-1)).where(mask, 0.0).sum(-1)
        try:
            ref = as_like(ref, logp).expand(logp.shape)
        except (RuntimeError, TypeError, ValueError) as error:
            allowed = f"a number, or a tensor that fits {tuple(logp.shape)}"
            raise InvalidInput("ref", ref, allowed) from error
        return cls(logp, mask.sum(-1).to(logp.dtype), ref)


def check_nonempty(length: Tensor, *, field: str = "length") -> None:
    """Raise `InvalidInput` if any response has no scored token.

    Its values per token would be 0/0.
    """
    if empty := (length == 0).nonzero().tolist():
        allowed = f"at least 1 per example ({len(empty)} of {length.numel()} have none)"
        raise InvalidInput(field, f"0 scored tokens at index {tuple(empty[0])}", allowed)


def check_logprobs(seq: SequenceLogProbs) -> SequenceLogProbs:
    """Return the responses if they are possible ones, else raise `InvalidInput`.

    Possible are three floating tensors of one shape, with `logp` and `ref` finite and not above 0,
    but for rounding, and with `length` a whole number of at least 1. The error names the field and
    the first bad value. This looks at values, which `torch.func.vmap` refuses for mapped tensors.
    """
    check_shapes(seq)
    for name, values in seq._asdict().items():
        proper = isinstance(values, Tensor) and values.is_floating_point()
        require(proper, name, getattr(values, "dtype", values), "a tensor of floating dtype")
    for name, values in seq._asdict().items():
        require_all(values.isfinite(), name, values, "finite numbers")
    check_nonempty(seq.length)
    whole = (seq.length >= 1) & (seq.length == seq.length.round())
    require_all(whole, "length", seq.length, "at least 1 scored token, a whole number of them")
    for name, values in (("logp", seq.logp), ("ref", seq.ref)):
        low = values <= ROUNDING * seq.length
        require_all(low, name, values, "log-probabilities, in nats: at most 0")
    return seq


def check_shapes(seq: SequenceLogProbs) -> None:
    """Raise `InvalidInput` unless all fields that are tensors have one shape.

    Other shapes would broadcast silently. What is neither a tensor nor a number or symbol is
    refused as well.
    """
    require(isinstance(seq, SequenceLogProbs), "seq", seq, "a SequenceLogProbs")
    logp, length, ref = seq
    tensors = isinstance(logp, Tensor) and isinstance(length, Tensor) and isinstance(ref, Tensor)
    if tensors and logp.shape == length.shape == ref.shape:  # as in every step of a training
        return
    for name, value in zip(seq._fields, seq, strict=True):
        plain = is_number(value) or hasattr(value, "free_symbols")
        require(isinstance(value, Tensor) or plain, name, value, "a tensor or one finite number")
    shapes = [(name, tuple(x.shape)) for name, x in seq._asdict().items() if isinstance(x, Tensor)]
    for name, shape in shapes[1:]:
        first, wanted = shapes[0]
        require(shape == wanted, name, shape, f"the shape of {first}, {wanted}")


class Objective(NamedTuple):
    """One member of the family, or many: four numbers, or tensors that broadcast against `*batch`.

    `beta` >= 0 is the inverse temperature and `gamma` the reward margin, both as published;
    `reference` and `normalize`, in [0, 1], say how much of the reference and of the length enters.
    Dtypes promote as usual.
    """

    beta: Number
    gamma: Number = 0.0
    reference: Number = 0.0
    normalize: Number = 0.0

    def score(self, seq: SequenceLogProbs) -> Float[Tensor, "*batch"]:
        """Return u = (logp - reference * ref) / length**normalize, in nats.

        It is in nats per token where normalize = 1. This method and all that use it raise
        `InvalidInput` for tensors of unequal shapes and for plain numbers that no objective of the
        family has.
        """
        self._check(seq)
        return self._score(seq)

    def logit(self, seq: SequenceLogProbs) -> Float[Tensor, "*batch"]:
        """Return z = beta * score + gamma.

        This is plain arithmetic, so that symbols pass through it as well as tensors.
        """
        return self.beta * self.score(seq) + self.gamma

    def loss(self, seq: SequenceLogProbs) -> Float[Tensor, "*batch"]:
        """Return (2/beta) softplus(z) per example (Fan et al. 2025, Eq. 4).

        At beta = 0 it is that of `centered_loss`. When beta -> 0 the loss grows as (2/beta)
        softplus(gamma): to follow the limit, compare centred losses. A beta below the smallest
        normal number of the dtype counts as 0, since 2/beta would overflow.
        """
        self._check(seq, tensors=True)
        if seq.logp.dtype == torch.float16:
            return self._wide(seq).loss(_in_float32(seq)).half()
        beta, zero = away_from_zero(self.beta, seq.logp)
        # Not softplus: torch's turns linear at z = 20 and would lose the last digits of the weight.
        curved = -(2 / beta) * logsigmoid(-(beta * self._score(seq) + self.gamma))
        return torch.where(zero, self._limit(seq), curved)

    def centered_loss(self, seq: SequenceLogProbs) -> Float[Tensor, "*batch"]:
        """Return (2/beta) (softplus(z) - softplus(gamma)) per example.

        It is free of cancellation. Its gradient is that of `loss`. It is zero at score = 0, and
        continuous at beta = 0, where it is 2 sigmoid(gamma) * score: for gamma = 0 the loss of
        gradient ascent, up to the reference's constant (Zhang et al. 2024, Proposition 1).
        """
        self._check(seq, tensors=True)
        if seq.logp.dtype == torch.float16:
            return self._wide(seq).centered_loss(_in_float32(seq)).half()
        beta, zero = away_from_zero(self.beta, seq.logp)
        gamma = as_like(self.gamma, seq.logp)
        shift = beta * self._score(seq)
        small = shift.abs() < 1
        # softplus(gamma + d) - softplus(gamma) = log(sigmoid(-gamma) + sigmoid(gamma) e^d): for
        # small d by expm1 and log1p, otherwise in logs. Each form is given a harmless d where the
        # other is used.
        near = torch.log1p(gamma.sigmoid() * torch.expm1(shift.where(small, 0.0)))
        far = torch.logaddexp(logsigmoid(-gamma), logsigmoid(gamma) + shift.where(~small, 1.0))
        return torch.where(zero, self._limit(seq), (2 / beta) * torch.where(small, near, far))

    def _check(self, seq: SequenceLogProbs, *, tensors: bool = False) -> None:
        """Check all that can be known without looking into a tensor."""
        check_shapes(seq)
        if tensors:
            # The others may be numbers, which stand for all responses.
            proper = isinstance(seq.logp, Tensor) and seq.logp.is_floating_point()
            require(proper, "logp", seq.logp, "a tensor of floating dtype")
        for name, value in zip(self._fields, self, strict=True):
            check_plain(name, value, ALLOWED[name])

    def _wide(self, seq: SequenceLogProbs) -> Objective:
        """Return the objective for float32: in float16 a logit may overflow where no loss does."""
        zero = away_from_zero(self.beta, seq.logp)[1]
        return self._replace(beta=as_like(self.beta, seq.logp.float()).masked_fill(zero, 0.0))

    def _score(self, seq: SequenceLogProbs) -> Tensor:
        return (seq.logp - self.reference * seq.ref) / seq.length**self.normalize

    def _limit(self, seq: SequenceLogProbs) -> Tensor:
        return 2 * as_like(self.gamma, seq.logp).sigmoid() * self._score(seq)

    def weight(self, seq: SequenceLogProbs) -> Float[Tensor, "*batch"]:
        """Return d loss / d logp = 2 sigmoid(z) / length**normalize.

        It says how hard each example is pushed down. At beta = 0 no log-probability enters, so that
        one of -inf has a weight too.
        """
        self._check(seq, tensors=True)
        z = self.beta * self._score(seq) + self.gamma
        if isinstance(self.beta, Tensor):
            z = z.where(self.beta != 0, as_like(self.gamma, z))
        elif self.beta == 0:
            z = z.where(z.isfinite(), as_like(self.gamma, z))
        return 2 * torch.sigmoid(z) / seq.length**self.normalize


def _in_float32(seq: SequenceLogProbs) -> SequenceLogProbs:
    return SequenceLogProbs(*(x.float() if isinstance(x, Tensor) else x for x in seq))


def npo(beta: Number) -> Objective:
    """Return NPO, z = beta * (logp - ref): weight 1 at the reference (Zhang et al. 2024)."""
    return validate(Objective(beta, 0.0, *CORNERS["npo"]))


def length_normalized_npo(beta: Number, gamma: Number = 0.0) -> Objective:
    """Return NPO per token, z = beta * (logp - ref) / length + gamma: it corrects length only."""
    return validate(Objective(beta, gamma, *CORNERS["length_normalized_npo"]))


def reference_free_npo(beta: Number, gamma: Number = 0.0) -> Objective:
    """Return NPO without its reference, z = beta * logp + gamma: the length is not corrected."""
    return validate(Objective(beta, gamma, *CORNERS["reference_free_npo"]))


def simnpo(beta: Number, gamma: Number = 0.0) -> Objective:
    """Return SimNPO, z = beta * logp / length + gamma, as published (Fan et al. 2025, Eq. 4)."""
    return validate(Objective(beta, gamma, *CORNERS["simnpo"]))


def gradient_ascent(normalize: Number = 0.0) -> Objective:
    """Return gradient ascent (GA), loss = logp / length**normalize.

    Its weight is 1, or 1/length in the length-weighted form with normalize = 1.
    """
    return validate(Objective(0.0, normalize=normalize))


def method_name(objective: Objective) -> str:
    """Return the name of the corner that an objective stands on, or "between".

    Any objective with beta = 0 is gradient ascent, length-weighted where normalize = 1.
    """
    require(isinstance(objective, Objective), "objective", objective, "an Objective")
    for name, value in zip(objective._fields, objective, strict=True):
        require(math.prod(np.shape(value)) == 1, name, value, "one number, not a stack")
    if objective.beta == 0:
        return "length_weighted_gradient_ascent" if objective.normalize == 1 else "gradient_ascent"
    names = {corner: name for name, corner in CORNERS.items()}
    return names.get((float(objective.reference), float(objective.normalize)), "between")


def validate(objective: Objective) -> Objective:
    """Return the objective if its fields lie where `ALLOWED` says; else raise `InvalidInput`."""
    known = isinstance(objective, Objective)
    require(known, "objective", objective, "an Objective, such as npo(0.1)")
    for name, value in zip(objective._fields, objective, strict=True):
        low, high, allowed = ALLOWED[name]
        if isinstance(value, np.ndarray) and getattr(value.dtype, "kind", "") == "f" and value.size:
            # By its ends, in half the time of an array of truths; nan would be both of them.
            ends = float(np.minimum.reduce(value, None)), float(np.maximum.reduce(value, None))
            require(low <= ends[0] and ends[1] <= high, name, value, allowed)
            continue
        check_plain(name, value, ALLOWED[name])
        if isinstance(value, float | int):  # whose bounds have been looked at
            continue
        require(getattr(value, "dtype", None) not in (torch.bool, np.bool_), name, value, allowed)
        try:
            numbers = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInput(name, value, allowed) from error
        require(bool(((low <= numbers) & (numbers <= high)).all()), name, value, allowed)
    return objective


def check_plain(field: str, value: object, bounds: tuple[float, float, str]) -> None:
    """Raise `InvalidInput` for a number out of bounds, and for what is neither number nor tensor.

    Bounds are finite, and so refuse what is not. Tensors, arrays and symbols are not looked at.
    """
    low, high, allowed = bounds
    # Most often by far, and so without further calls.
    if (type(value) is float and low <= value <= high) or isinstance(value, Tensor):
        return
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "iuf"
    require(numbers or is_plain(value), field, value, allowed)
    if isinstance(value, Real):
        require_number(value, field, lambda number: low <= number <= high, allowed)


def stack(
    objectives: Sequence[Objective],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Objective:
    """Return one objective whose fields are tensors of shape (runs,).

    `torch.func.vmap` can map it beside `SequenceLogProbs`. `dtype` should be that of logp. Raises
    `InvalidInput` if there is no member, or one that is not valid or itself stacked.
    """
    several = isinstance(objectives, Sequence) and not isinstance(objectives, str)
    require(several and len(objectives) > 0, "objectives", objectives, "a list of at least one")
    dtype, rows = dtype or torch.get_default_dtype(), []
    for member in objectives:
        row = [torch.as_tensor(value, dtype=dtype, device=device) for value in validate(member)]
        single = all(value.ndim == 0 for value in row)
        require(single, "objectives", member, "members of four numbers each")
        rows.append(torch.stack(row))
    return Objective(*torch.stack(rows).unbind(-1))
