"""Rung 1, the scalar law: one response whose log-probability per token, theta, is the parameter.

With logp = |y| theta, gradient flow on the loss of any `Objective` is d theta/dt = -|y| weight. In
terms of the logit z, linear in theta with slope a = beta |y|^(1 - normalize), that is

    dz/dt = -k sigmoid(z),    k = 2 beta |y|^(2 - 2 normalize),

and e^-z - z = e^-z0 - z0 + k t. This is solved by Wright's omega function, omega(s) + log omega(s)
= s, as z = -log omega(s). So every corner of the family has a closed form; at beta = 0 theta falls
linearly. The paper's appendix G keeps only e^z of the sigmoid, which gives theta = -log(1 + 2 beta
|y|^2 t) / (beta |y|) for NPO.

Assumed: tokens share one parameter, and only this response is trained. A network adds interference
between responses and a gradient of logp that does not grow as |y|: the other rungs measure these.
All functions broadcast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from markov.errors import InvalidInput, require
from markov.objectives import Objective, validate

Array = Float[np.ndarray, "*batch"]


class Divergence(NamedTuple):
    """How far theta has fallen at late times: `linear` t + `logarithmic` log t, per-token nats."""

    linear: Array
    logarithmic: Array


def theta(objective: Objective, length: Any, time: Any, start: Any = -1.0) -> Array:
    """Return the log-probability per token at a time of gradient flow (nats).

    The reference is the start. theta(t) = theta_0 + (z(t) - z_0) / a, and theta_0 - 2
    sigmoid(gamma) |y|^(1 - normalize) t at beta = 0. Raises `InvalidInput` for an objective or a
    start that is not allowed, a length below 1 or a negative time.
    """
    validate(objective)
    length, time, start = _numbers(length=length, time=time, start=start)
    _check(length, time, "time", start)
    return _theta(objective, length, time, start)


def _theta(objective: Objective, length: Array, time: Array, start: Array) -> Array:
    beta, gamma, _, normalize = (np.asarray(field, dtype=float) for field in objective)
    scale = length ** (1 - normalize)
    first, slope = _logit(objective, length, start), np.where(beta > 0, beta, 1.0) * scale
    # omega's argument overflows where z is very negative; there the flow has all but stopped.
    with np.errstate(over="ignore"):
        passed = np.exp(-first) - first + 2 * beta * scale**2 * time
    last = -np.log(special.wrightomega(np.minimum(passed, np.finfo(float).max)))
    return np.where(
        beta > 0, start + (last - first) / slope, start - 2 * special.expit(gamma) * scale * time
    )


def time_to_forget(objective: Objective, length: Any, fall: Any, start: Any = -1.0) -> Array:
    """Return the time of gradient flow in which the log-probability per token falls by `fall` nats.

    t = (e^-z1 - e^-z0 + a fall) / k with z1 = z0 - a fall, and fall / (2 sigmoid(gamma) |y|^(1 -
    normalize)) at beta = 0. It is inf beyond floating-point range. Raises `InvalidInput` for a
    length below 1 or a negative fall.
    """
    validate(objective)
    length, fall, start = _numbers(length=length, fall=fall, start=start)
    _check(length, fall, "fall", start)
    return _time(objective, length, fall, start)


def _time(objective: Objective, length: Array, fall: Array, start: Array) -> Array:
    beta, gamma, _, normalize = (np.asarray(field, dtype=float) for field in objective)
    scale, known = length ** (1 - normalize), np.where(beta > 0, beta, 1.0)
    first, drop = _logit(objective, length, start), known * scale * fall
    with np.errstate(over="ignore", invalid="ignore"):
        # expm1, because e^-z1 - e^-z0 cancels for a small fall; where, because 0 * inf would be nan
        # for a fall of nothing.
        gained = np.where(drop > 0, np.exp(-first) * np.expm1(drop), 0.0)
        curved = (gained + drop) / (2 * known * scale**2)
    return np.where(beta > 0, curved, fall / (2 * special.expit(gamma) * scale))


def fallen_beside(
    objective: Objective, length: Any, other: Any, fall: Any, start: Any = -1.0
) -> Array:
    """Return how far responses have fallen when one of `other` tokens has fallen by `fall`.

    Both are in nats per token: start - theta(t) at the t that is `time_to_forget` of the other
    length, and nan where that lies beyond floating-point range. Raises `InvalidInput` as the two
    functions do.
    """
    validate(objective)
    length, other, fall, start = _numbers(length=length, other=other, fall=fall, start=start)
    _check(length, fall, "fall", start)
    _check_length(other, "other")
    time = _time(objective, other, fall, start)
    there = np.isfinite(time)
    gone = start - _theta(objective, length, np.where(there, time, 0.0), start)
    return np.where(there, gone, np.nan)


def beyond_last_goal(objective: Objective, length: Any, fall: Any, start: Any = -1.0) -> Array:
    """Return how far responses are beyond their goals when the last of them gets there.

    Several responses, along the last axis, are forgotten side by side, without interference. Each
    has a goal of its own, a `fall` in nats per token. At the moment T when the last one has reached
    its goal, response i lies start_i - theta_i(T) - fall_i beyond: 0 for the last one, and above 0
    for what is over-forgotten by then. It is nan where some goal lies beyond floating-point range.
    Raises `InvalidInput` as `theta` and `time_to_forget` do.
    """
    times = time_to_forget(objective, length, fall, start)
    require(times.ndim > 0, "fall", fall, "one for each of several responses")
    last = np.broadcast_to(times.max(-1, keepdims=True), times.shape)
    there = np.isfinite(last)
    gone = np.asarray(start, float) - theta(objective, length, np.where(there, last, 0.0), start)
    # The last one has arrived, whatever rounding says.
    found = np.where(times == last, 0.0, np.maximum(gone - fall, 0.0))
    return np.where(there, found, np.nan)


def divergence(objective: Objective, length: Any) -> Divergence:
    """Return the fall of theta at late times: linear at beta = 0 (GA), else logarithmic.

    The constant of the logarithm is 1 / (beta |y|^(1 - normalize)): from omega(s) ~ s follows z ~
    -log(k t) whatever the start. The NPO paper's Theorem 2 proves the two rates for a logistic
    model with nearly orthogonal features; here the constants are exact.
    """
    beta, gamma, _, normalize = (np.asarray(field, dtype=float) for field in validate(objective))
    (length,) = _numbers(length=length)
    scale = length ** (1 - normalize)
    _check_length(length)
    known = np.where(beta > 0, beta, 1.0)
    linear = np.where(beta > 0, 0.0, 2 * special.expit(gamma) * scale)
    return Divergence(linear, np.where(beta > 0, 1 / (known * scale), 0.0))


def _numbers(**values: Any) -> list[Array]:
    """Return numbers as arrays.

    Raises `InvalidInput` for what is no number, for none at all, and for unequal shapes.
    """
    found = []
    for field, value in values.items():
        try:
            array = np.asarray(value)
            real = array.dtype.kind in "iuf" and array.size > 0
        except (TypeError, ValueError, RuntimeError):  # rows of unequal lengths
            real = False
        require(real, field, value, "real numbers, at least one")
        found.append(array.astype(float))
    shapes = [array.shape for array in found]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        raise InvalidInput(" and ".join(values), shapes, "shapes that go together") from None
    return found


def _logit(objective: Objective, length: Array, start: Array) -> Array:
    """Return z at the start, where logp = ref = |y| theta_0."""
    beta, gamma, reference, normalize = (np.asarray(field, dtype=float) for field in objective)
    return beta * (1 - reference) * start * length ** (1 - normalize) + gamma


def _check(length: Array, value: Array, field: str, start: Array) -> None:
    _check_length(length)
    least, _ = _ends(value)
    if not least >= 0:
        raise InvalidInput(field, least, "at least 0")
    least, most = _ends(start)
    if not -np.inf < least <= most <= 0:
        allowed = "a finite log-probability per token, at most 0"
        raise InvalidInput("start", least if most <= 0 else most, allowed)


def _check_length(length: Array, field: str = "length") -> None:
    least, most = _ends(length)
    if not 1 <= least <= most < np.inf:
        raise InvalidInput(field, most if least >= 1 else least, "at least 1 scored token")


def _ends(values: Array) -> tuple[float, float]:
    # In half the time of an array of truths; nan would be both of them.
    return float(np.minimum.reduce(values, None)), float(np.maximum.reduce(values, None))
