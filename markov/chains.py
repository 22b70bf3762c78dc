"""Markov chains and their mixtures, with exact laws beside samples: a model is scored on the truth.

Tokens are states 0 ... states-1. A law is a float64 vector, or a matrix row, that sums to 1. Units:
nats.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from markov.console import limits
from markov.errors import InvalidInput, is_number, is_whole, require, require_whole

Tokens = Int64[Tensor, "*batch time"]


def row_entropy(law: Float[Tensor, "*batch states"]) -> Float[Tensor, "*batch"]:
    """Return the entropy of each row, -sum_j p_j ln p_j with 0 ln 0 = 0 (nats)."""
    return -torch.xlogy(law, law).sum(-1)


def row_kl(
    p: Float[Tensor, "*batch states"], q: Float[Tensor, "*batch states"]
) -> Float[Tensor, "*batch"]:
    """Return KL(p || q) of each row, sum_j p_j ln(p_j / q_j) (nats).

    It is inf where q gives probability 0 to a state that p visits.
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


@dataclass(frozen=True, eq=False, kw_only=True)
class MarkovChain:
    """A chain of order one: p(x) = initial[x_0] prod_t transition[x_t, x_t+1].

    Raises `InvalidInput` unless both are float64 on at least two states and every row is a law (to
    1e-8); rows that are laws by their formula need no look: pass `check=False`. Its methods raise
    it for tokens that are no states. Source: paper, section 5 and appendix H.
    """

    initial: Float[Tensor, " states"]
    transition: Float[Tensor, "states states"]
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        for name, values in (("initial", self.initial), ("transition", self.transition)):
            proper = isinstance(values, Tensor) and values.dtype == torch.float64
            require(
                proper, name, getattr(values, "dtype", values), "must be a tensor of torch.float64"
            )
        size, square = tuple(self.initial.shape), tuple(self.transition.shape)
        proper = len(square) == 2 and square[0] == square[1] >= 2
        require(proper, "transition", square, "must be square, on at least 2 states")
        require(
            size == square[:1], "initial", size, f"must be {square[:1]}, a law on the same states"
        )
        if check:
            require_laws("initial", self.initial, tolerance=1e-8)
            require_laws("transition", self.transition, tolerance=1e-8)

    @property
    def states(self) -> int:
        """The number of states."""
        return self.transition.shape[0]

    def sample(
        self, count: int, length: int, generator: torch.Generator
    ) -> Int64[Tensor, "count length"]:
        """Draw `count` independent sequences of `length` states.

        A state of probability 0 is never drawn.
        """
        return self._walk(_uniforms(count, length, generator, self.initial))

    def log_prob(self, tokens: Tokens) -> Float[Tensor, "*batch"]:
        """Return ln p(x), first state included (nats); -inf for an impossible sequence."""
        _require_tokens(tokens, self.states)
        return self._prefix_log_probs(tokens)[..., -1]

    def conditional_log_prob(self, tokens: Tokens) -> Float[Tensor, "*batch"]:
        """Return ln p(x_1 ... | x_0) (nats), which is what a model scores.

        The first state x_0 is context, so |y| = time - 1.
        """
        _require_tokens(tokens, self.states)
        return self.transition.log()[tokens[..., :-1], tokens[..., 1:]].sum(-1)

    def stationary(self) -> Float[Tensor, " states"]:
        """Return the law pi with pi T = pi.

        Raises `InvalidInput` where several exist, that is, where there is more than one closed
        class.
        """
        # pi T = pi and pi 1 = 1 give pi (I - T + J) = 1, J all ones: invertible exactly when pi is
        # unique.
        system = torch.ones_like(self.initial).diag() - self.transition + 1
        unique = int(torch.linalg.matrix_rank(system)) == self.states
        require(
            unique,
            "transition",
            "several closed classes",
            "stationary() needs a single stationary law",
        )
        return torch.linalg.solve(system.T, torch.ones_like(self.initial)).clamp(min=0)

    def entropy_rate(self) -> Float[Tensor, ""]:
        """Return the entropy per token under the stationary law (nats per token).

        It is sum_i pi_i H(transition[i]).
        """
        return self.stationary() @ row_entropy(self.transition)

    def marginals(self, length: int) -> Float[Tensor, "length states"]:
        """Return the exact law of each state: row t is initial T^t, the law of x_t."""
        require_whole(length, "length", 1, limits.LENGTH[1])
        laws = [self.initial]
        for _ in range(length - 1):
            laws.append(laws[-1] @ self.transition)
        return torch.stack(laws)

    def expected_row_kl(
        self, model: Float[Tensor, "states states"], length: int
    ) -> Float[Tensor, ""]:
        """Return the mean over the length - 1 contexts x_t of E KL(transition[x_t] || model[x_t]).

        The unit is nats per token. With another chain's transition as `model` it is the
        `kl_to_truth` of an ideal model that knows only that chain, where a retrained model should
        land (paper, Figure 5). Raises `InvalidInput` for a model of another shape, or with rows
        that are no laws (to 1e-5, so that a float32 softmax is accepted).
        """
        known = isinstance(model, Tensor) and model.shape == self.transition.shape
        shape = tuple(model.shape) if isinstance(model, Tensor) else model
        require(known, "model", shape, "a tensor with one row for each state")
        require_laws("model", model, tolerance=1e-5)
        return self._context_mean(row_kl(self.transition, model), length)

    def expected_row_entropy(self, length: int) -> Float[Tensor, ""]:
        """Return the mean over the same contexts of E H(transition[x_t]) (nats per token).

        No model has a lower cross-entropy.
        """
        return self._context_mean(row_entropy(self.transition), length)

    def _context_mean(self, value: Float[Tensor, " states"], length: int) -> Float[Tensor, ""]:
        require_whole(length, "length", *limits.LENGTH)  # a context and a next state
        visits = self.marginals(length - 1).mean(0)
        # A state that is never visited counts for nothing, even where its divergence is infinite (0
        # times inf would be nan).
        return visits[visits > 0] @ value[visits > 0]

    def _walk(self, uniforms: Float[Tensor, "count length"]) -> Int64[Tensor, "count length"]:
        tokens = [_draw(self.initial, uniforms[:, 0])]
        for t in range(1, uniforms.shape[1]):
            tokens.append(_draw(self.transition[tokens[-1]], uniforms[:, t]))
        return torch.stack(tokens, dim=1)

    def _prefix_log_probs(self, tokens: Tokens) -> Float[Tensor, "*batch time"]:
        first = self.initial.log()[tokens[..., :1]]
        steps = self.transition.log()[tokens[..., :-1], tokens[..., 1:]]
        return torch.cat([first, steps], dim=-1).cumsum(-1)


class MixtureSample(NamedTuple):
    """Sequences padded with 0, with the number of tokens and the component of each."""

    tokens: Int64[Tensor, "count time"]
    length: Int64[Tensor, " count"]
    component: Int64[Tensor, " count"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture:
    """The pretraining law: draw component c by `weights`, then `lengths[c]` states by `chains[c]`.

    Raises `InvalidInput` unless each component has a positive weight (sum 1), a length (>= 2) and a
    chain, all on the same states. Source: paper, section 5.
    """

    weights: tuple[float, ...]
    chains: tuple[MarkovChain, ...]
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        several = isinstance(self.chains, tuple | list) and len(self.chains) >= 1
        proper = several and all(isinstance(chain, MarkovChain) for chain in self.chains)
        require(proper, "chains", self.chains, "a tuple of at least one MarkovChain")
        count = len(self.chains)
        for name, values in (("weights", self.weights), ("lengths", self.lengths)):
            each = isinstance(values, tuple | list) and len(values) == count
            require(each, name, values, f"a tuple, one for each of {count} chains")
        law = all(is_number(weight) and weight > 0 for weight in self.weights)
        law = law and abs(sum(self.weights) - 1) <= 1e-8
        require(law, "weights", self.weights, "must be positive with sum 1")
        whole = all(is_whole(length, 2) for length in self.lengths)
        require(
            whole,
            "lengths",
            self.lengths,
            "whole numbers of at least 2: a context and a next state",
        )
        sizes = [chain.states for chain in self.chains]
        require(len(set(sizes)) == 1, "chains", sizes, "must have the same number of states")

    def sample(self, count: int, generator: torch.Generator) -> MixtureSample:
        """Draw `count` independent sequences, padded with 0 to the longest component's length."""
        uniforms = _uniforms(count, 1 + max(self.lengths), generator, self.chains[0].initial)
        component = _draw(uniforms.new_tensor(self.weights), uniforms[:, 0])
        tokens = torch.zeros((count, max(self.lengths)), dtype=torch.int64, device=uniforms.device)
        for index, (chain, length) in enumerate(zip(self.chains, self.lengths, strict=True)):
            mine = component == index
            tokens[mine, :length] = chain._walk(uniforms[mine, 1 : 1 + length])
        return MixtureSample(tokens, tokens.new_tensor(self.lengths)[component], component)

    def log_prob(self, tokens: Tokens, length: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return ln sum_c weights[c] [lengths[c] = length] p_c(tokens[:length]) (nats).

        Later tokens are padding. The length is part of what is sampled: a component of another
        length has probability 0, and the sum over sequences of all lengths is 1. Raises
        `InvalidInput` unless there is one length for each sequence, of at least 1 and of no more
        tokens than are given.
        """
        _require_tokens(tokens, self.chains[0].states)
        each = (
            isinstance(length, Tensor)
            and length.dtype == torch.int64
            and length.shape == tokens.shape[:-1]
        )
        found = (length.dtype, tuple(length.shape)) if isinstance(length, Tensor) else length
        require(
            each,
            "length",
            found,
            f"a tensor of torch.int64 and of shape {tuple(tokens.shape[:-1])}",
        )
        allowed = bool((length >= 1).all() and (length <= tokens.shape[-1]).all())
        require(
            allowed, "length", length.unique().tolist(), f"1 to the {tokens.shape[-1]} tokens given"
        )
        last = (length - 1)[..., None, None].expand(*length.shape, 1, len(self.chains))
        joint = self._joint(tokens).gather(-2, last).squeeze(-2)
        other = length[..., None] != length.new_tensor(self.lengths)
        return joint.masked_fill(other, -torch.inf).logsumexp(-1)

    def posterior(self, tokens: Tokens) -> Float[Tensor, "*batch time components"]:
        """Return p(c | x_0 ... x_t, a next state exists) at each t.

        It is proportional to weights[c] p_c(x_0 ... x_t). Like a causal model it knows the prefix
        and not the final length; but a component whose sequences have ended (t + 1 >= lengths[c])
        has no next state and is left out. It is undefined (nan) where no component is left: at the
        last position of the longest, or after a prefix that is impossible under all that remain.
        """
        _require_tokens(tokens, self.chains[0].states)
        following = torch.arange(1, tokens.shape[-1] + 1, device=tokens.device)
        ended = following[:, None] >= following.new_tensor(self.lengths)
        return self._joint(tokens).masked_fill(ended, -torch.inf).softmax(-1)

    def predictive(self, tokens: Tokens) -> Float[Tensor, "*batch time states"]:
        """Return the Bayes law of state t + 1 given tokens[..., : t + 1].

        It is sum_c posterior[t, c] transition_c[x_t]. No causal model can do better on this
        mixture. It is nan where `posterior` is.
        """
        posterior = self.posterior(tokens)
        rows = torch.stack([chain.transition[tokens] for chain in self.chains], dim=-2)
        return (posterior[..., None] * rows).sum(-2)

    def _joint(self, tokens: Tokens) -> Float[Tensor, "*batch time components"]:
        prefixes = torch.stack([chain._prefix_log_probs(tokens) for chain in self.chains], dim=-1)
        return prefixes.new_tensor(self.weights).log() + prefixes


def _uniforms(count: int, length: int, generator: torch.Generator, like: Tensor) -> Tensor:
    require_whole(count, "count", 1, limits.COUNT[1])
    require_whole(length, "length", 1, 1 + limits.LENGTH[1])
    known = isinstance(generator, torch.Generator)
    require(known, "generator", generator, "a torch.Generator")
    return torch.rand((count, length), generator=generator, dtype=torch.float64, device=like.device)


def _draw(
    law: Float[Tensor, "*count states"], uniforms: Float[Tensor, " count"]
) -> Int64[Tensor, " count"]:
    # Rounding may leave the total below a uniform number, so the first state to reach the total
    # takes all the rest. Its probability is positive, as trailing states of probability 0 come
    # after it.
    edges = law.cumsum(-1)
    edges = torch.where(edges >= edges[..., -1:], torch.inf, edges)
    return (uniforms[:, None] >= edges).sum(-1)


def require_laws(field: str, laws: Float[Tensor, "*rows states"], *, tolerance: float) -> None:
    """Raise `InvalidInput` unless all rows are laws: not below 0, with sum 1 to the tolerance."""
    # By numpy, which takes half the time of torch for so few numbers.
    rows = laws.detach().to("cpu", torch.float64).reshape(-1, laws.shape[-1]).numpy()
    sums, least = rows.sum(-1), rows.min(-1)
    bad = ~((least >= 0) & (abs(sums - 1) <= tolerance))
    if bad.any():
        row = int(bad.argmax())
        found = (
            f"row {row} with sum {float(sums[row]):.10g} and least entry {float(least[row]):.3g}"
        )
        raise InvalidInput(field, found, "rows must be non-negative with sum 1")


def _require_tokens(tokens: Tokens, states: int) -> None:
    proper = (
        isinstance(tokens, Tensor)
        and tokens.dtype == torch.int64
        and tokens.ndim >= 1
        and tokens.numel() >= 1
    )
    if not proper:
        found = (tokens.dtype, tuple(tokens.shape)) if isinstance(tokens, Tensor) else tokens
        raise InvalidInput("tokens", found, "a tensor of torch.int64, at least one state")
    span = tuple(map(int, tokens.aminmax()))
    # A negative index would silently count from the end.
    if span[0] < 0 or span[1] >= states:
        raise InvalidInput("tokens", span, f"states from 0 to {states - 1}")
