"""Rung 2, the tabular chain: exact gradient flow of a softmax table.

The flow is on the expected unlearning loss of a mixture. With p_ij = softmax(table_i)_j and N the
transition counts of a sequence, log pi = sum_ij N_ij log p_ij and

    d table/dt = -sum_s share_s w_s (N_s - R_s p) + retain_weight (C - c p),

where w is the weight of the shipped law, C the law of a retain transition, and R and c are the row
sums of N and C. This takes two products with the counts, however long the sequences are. Time is
learning rate x steps. Assumed: plain gradient descent, in the limit of small steps and full
batches, and a model without memory: chains that visit a state share its row, as they need not in a
transformer.

Where the scalar law of `markov.theory` stops being valid:

- The closest case is one transition, taken |y| times, whose row has otherwise equal logits. With S
  states, d theta/dt = -|y| w S/(S - 1) (1 - e^theta)^2: the scalar law times a factor that knows
  neither objective nor length, and is late a mere change of clock.
- Memorised random sequences obey it late only. Where the table is their law, grad log pi = N - R p
  sums |y| martingale differences: its mean is 0, and its root mean square grows as sqrt(|y|). It
  grows as |y| only once they are forgotten. While all weights are equal (at beta = 0, or at the
  start with the reference) nothing moves but a deviation from that law. Such a deviation grows
  along an eigenvector of diag p_i - p_i p_i^T, of eigenvalue e, as exp(rate t), by Fisher's
  identity with

      rate = share E[R_i] e |y|^-n (1 - beta |y|^-n / 2),    n = normalize, reference = 1,
                                                             gamma = 0.

  Times still go as 1/|y| for n = 0 and as |y|^0 for n = 1, but through the rate; for beta > 2 NPO
  is stable there.
- What starts the fall sets its time through a logarithm: retain data in the reference, unequal
  weights without the reference, the accidents of a finite forget set. An exactly symmetric mixture,
  enumerated or centered, stays symmetric until rounding has grown to order one, after about
  36/rate: later times are not to be trusted.
- Components that share rows have no pace of their own, which moves the exponents of time in length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.integrate import OdeSolution, solve_ivp
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax, xlogy

from markov.banks import (
    Bank,
    ExpectedLoss,
    Table,
    Tables,
    best_table,
    check_mixture,
    expected_counts,
    mean_counts,
    shares,
    transition_law,
)
from markov.chains import Mixture
from markov.errors import require
from markov.numerics import reaches
from markov.objectives import method_name

OWN_COLUMNS: dict[str, str] = {  # its other columns are those of markov.diagnostics.COLUMNS
    "time": "learning rate x steps of gradient descent, in the limit of small steps",
    "push": "mean over the sequences of weight x |grad logp|",
}


class SolverFailure(ArithmeticError):
    """An equation that could not be solved to the end.

    It holds the time reached, the lowest and highest logit there, and the reason.
    """

    def __init__(self, time: float, low: float, high: float, reason: str) -> None:
        self.time, self.low, self.high, self.reason = time, low, high, reason
        super().__init__(
            f"stopped at time {time:.6g}, with logits from {low:.6g} to {high:.6g}: {reason}"
        )

    def __reduce__(self) -> tuple[type[SolverFailure], tuple[float, float, float, str]]:
        # In another process it is rebuilt from its arguments, not from its message.
        return (type(self), (self.time, self.low, self.high, self.reason))


@dataclass(frozen=True, eq=False, kw_only=True)
class Flow:
    """A solved path of the gradient flow.

    `tables` are its logits at `times`, and `path` gives them at any time up to the last.
    `loss.logp( tables)` and `loss.weight(tables)` follow every pattern of the bank; `evaluations`
    counts the gradients.
    """

    loss: ExpectedLoss
    times: Float[np.ndarray, " times"]
    tables: Tables
    path: OdeSolution
    evaluations: int

    def at(self, times: Float[np.ndarray, " times"]) -> Tables:
        """Return the logits at given times.

        Raises `InvalidInput` for a time outside the span that was solved.
        """
        times, (first, last) = np.asarray(times, dtype=float), (self.path.t_min, self.path.t_max)
        inside = (times >= first) & reaches(-times, -last)
        require(bool(inside.all()), "times", times, f"from {first:g} to {last:g}")
        # the last time, computed in another way, may round to just beyond the span
        times = np.minimum(times, last)
        return np.moveaxis(self.path(times.ravel()), -1, 0).reshape(
            *times.shape, *self.loss.reference.shape
        )


def gradient_flow(
    loss: ExpectedLoss,
    times: Float[np.ndarray, " times"],
    *,
    tolerance: float = 1e-10,
    evaluations: int = 100_000,
) -> Flow:
    """Follow d table/dt = -gradient from the reference at time 0 and return the path.

    The method is explicit and of order 8 (DOP853). `times` are those to record; `tolerance` bounds
    the error of a step, absolute and relative, in logits. Raises `SolverFailure` where the step
    size vanishes, logits leave the floating-point range, or more than `evaluations` gradients would
    be needed (no path is cut short), and `InvalidInput` for times that do not ascend from 0.
    """
    times = np.asarray(times, dtype=float)
    proper = (
        times.ndim == 1
        and len(times) >= 1
        and bool(np.isfinite(times).all() and (np.diff(times) > 0).all())
    )
    require(
        proper and times[0] >= 0 and times[-1] > 0, "times", times, "finite, ascending, from 0 on"
    )
    require(1e-13 <= tolerance < 1, "tolerance", tolerance, "from 1e-13, near rounding, to below 1")
    shape, count = loss.reference.shape, 0

    def fail(time: float, logits: np.ndarray, reason: str) -> SolverFailure:
        return SolverFailure(float(time), float(logits.min()), float(logits.max()), reason)

    def slope(time: float, logits: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        if count > evaluations:
            raise fail(time, logits, f"the limit of {evaluations} evaluations")
        found = -loss.gradient(logits.reshape(shape)).ravel()
        if not np.isfinite(found).all():
            raise fail(time, logits, "a gradient that is not finite")
        return found

    start, span = np.asarray(loss.reference, dtype=float).ravel(), (0.0, times[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        solved = solve_ivp(
            slope, span, start, "DOP853", dense_output=True, rtol=tolerance, atol=tolerance
        )
    path = solved.sol
    if not solved.success or path is None:
        raise fail(solved.t[-1], solved.y[:, -1], solved.message)
    tables = np.moveaxis(path(times), -1, 0).reshape(-1, *shape)
    return Flow(loss=loss, times=times, tables=tables, path=path, evaluations=count)


def logp_per_token(bank: Bank, tables: Tables) -> Float[np.ndarray, "times components"]:
    """Return the mean logp / |y| of each component of the bank under each table (nats)."""
    return np.einsum("tij,cij->tc", log_softmax(tables, axis=-1), _per_token(bank))


def push(flow: Flow) -> Float[np.ndarray, "times rows"]:
    """Return the effective push of every pattern: weight x |N - R p|, its own gradient's norm."""
    counts = flow.loss.bank.counts
    visits = counts.sum(-1, keepdims=True)
    norms = [
        np.linalg.norm(counts - visits * softmax(table, axis=-1), axis=(1, 2))
        for table in flow.tables
    ]
    return flow.loss.weight(flow.tables) * np.stack(norms)


def gradient_norm(flow: Flow) -> Float[np.ndarray, "times components"]:
    """Return the norm of the gradient of each component's mean loss.

    It is what is left of the pushes of single patterns after they partly cancel.
    """
    weight, laws, bank = (
        flow.loss.weight(flow.tables),
        softmax(flow.tables, axis=-1),
        flow.loss.bank,
    )
    mean = np.einsum("tr,cr,rij->tcij", weight, shares(bank), bank.counts, optimize=True)
    return np.linalg.norm(mean - mean.sum(-1, keepdims=True) * laws[:, None], axis=(2, 3))


def kl_to_truth(tables: Tables, mixture: Mixture) -> Float[np.ndarray, "times components"]:
    """Return the exact mean over a component's scored tokens of KL(true row || softmax(table)).

    The unit is nats.

    It is the distance of `MarkovChain.expected_row_kl`.
    """
    return _mean_kl(
        np.stack([chain.transition.numpy() for chain in mixture.chains]), tables, mixture
    )


def kl_to_table(
    tables: Tables, origin: Table, mixture: Mixture
) -> Float[np.ndarray, "times components"]:
    """Return the same mean of KL(softmax(origin) || softmax(table)) (nats).

    `origin` is for example the reference or the retrained table.
    """
    return _mean_kl(softmax(origin, axis=-1)[None], tables, mixture)


def time_to_forget(flow: Flow, fall: float) -> Float[np.ndarray, " components"]:
    """Return the first time at which each component's logp per token has fallen by `fall` nats.

    It is inf where it has not fallen so far. The time is bracketed on the solver's own steps, each
    cut into four, and found by Brent's method on the dense output. Raises `InvalidInput` for a fall
    that is not positive.
    """
    require(fall > 0, "fall", fall, "a positive number")
    counts, steps = _per_token(flow.loss.bank), flow.path.ts
    start = np.einsum("ij,cij->c", log_softmax(flow.loss.reference, axis=-1), counts)

    def fallen(times: np.ndarray) -> Float[np.ndarray, "times components"]:
        return start - np.einsum("tij,cij->tc", log_softmax(flow.at(times), axis=-1), counts)

    def missing(time: float, component: int) -> float:
        return float(fall - fallen(np.array([time]))[0, component])

    grid = np.interp(np.arange(4 * len(steps) - 3) / 4, np.arange(len(steps)), steps)
    beyond, found = fallen(grid) >= fall, np.full(len(counts), np.inf)
    for component in np.flatnonzero(beyond.any(0)).tolist():
        last = int(beyond[:, component].argmax())
        before, after = grid[last - 1], grid[last]
        # A single time may round otherwise than it does in the whole grid, and so lie beyond the
        # goal.
        at_end = [
            time
            for time, sign in ((before, -1), (after, 1))
            if sign * missing(time, component) >= 0
        ]
        solve = partial(brentq, missing, before, after, (component,), xtol=1e-300, rtol=1e-14)
        found[component] = at_end[0] if at_end else solve()
    return found


def frame(flow: Flow, forget: Mixture, retain: Mixture) -> pd.DataFrame:
    """Return one row per recorded time x component, with columns named as in `markov.diagnostics`.

    The components are retain, then forget1, ... of the bank. Distances and the retain data's logp
    are exact expectations; values of forget sequences are means over the bank; values that need
    weights are nan on retain. `retrained` is the distance of the best table of the retain data.
    Raises `InvalidInput` for a forget mixture that is not the bank's, or more than one retain
    component.
    """
    require(len(retain.chains) == 1, "retain", retain.lengths, "one component")
    check_mixture(flow.loss.bank, forget, "forget")
    loss, tables, inside, retrained = (
        flow.loss,
        flow.tables,
        shares(flow.loss.bank),
        best_table(retain),
    )
    chains, lengths = (*retain.chains, *forget.chains), (*retain.lengths, *forget.lengths)
    both = Mixture(
        weights=(0.5, *(weight / 2 for weight in forget.weights)), chains=chains, lengths=lengths
    )
    weight, norm = loss.weight(tables), gradient_norm(flow)
    mean, law = weight @ inside.T, np.bincount(loss.bank.component, weights=loss.bank.share)
    spread = (
        np.stack([(weight - mean[:, [c]]) ** 2 @ own for c, own in enumerate(inside)], axis=1)
        ** 0.5
    )
    kept = np.einsum("tij,ij->t", log_softmax(tables, axis=-1), transition_law(retain))
    shape, scored = (len(tables), len(chains)), np.array(lengths) - 1
    per_token = np.column_stack([kept, logp_per_token(loss.bank, tables)])
    of_forget = {
        "weight": mean,
        "weight_std": spread,
        "weight_share": _share(mean * law),
        "push": push(flow) @ inside.T,
        "gradient_norm": norm,
        "gradient_share": _share(norm * law),
    }
    columns = {
        "time": flow.times[:, None],
        "component": np.array(["retain", *(f"forget{index}" for index in range(1, len(chains)))]),
        "length": scored,
        "kl_to_truth": kl_to_truth(tables, both),
        "kl_to_retrained": kl_to_table(tables, retrained, both),
        "kl_to_reference": kl_to_table(tables, loss.reference, both),
        "retrained": kl_to_truth(retrained[None], both),
        "logp": per_token * scored,
        "logp_per_token": per_token,
        **{name: np.insert(values, 0, np.nan, axis=1) for name, values in of_forget.items()},
    }
    settings = {
        "method": method_name(loss.objective),
        **{k: float(v) for k, v in loss.objective._asdict().items()},
    }
    flat = {name: np.broadcast_to(values, shape).ravel() for name, values in columns.items()}
    return pd.DataFrame({**settings, **flat})


def _per_token(bank: Bank) -> Float[np.ndarray, "components states states"]:
    means = mean_counts(bank)
    return means / means.sum((1, 2), keepdims=True)


def _share(amounts: Float[np.ndarray, "times components"]) -> Float[np.ndarray, "times components"]:
    with np.errstate(invalid="ignore"):  # 0/0 where nothing moves any more: there are no shares
        return amounts / amounts.sum(1, keepdims=True)


def _mean_kl(
    laws: Tables, tables: Tables, mixture: Mixture
) -> Float[np.ndarray, "times components"]:
    # From the logs of the model, which stay finite where its probabilities underflow.
    kl = xlogy(laws, laws).sum(-1) - np.einsum("cij,tij->tci", laws, log_softmax(tables, axis=-1))
    visits = expected_counts(mixture).sum(-1)
    return (kl * visits).sum(-1) / visits.sum(-1)
