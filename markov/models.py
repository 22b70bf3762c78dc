"""Models of a token sequence: `tokens -> logits`, nothing else.

A model is a frozen description of a shape. Its parameters live outside it, as a mapping from names
to tensors whose leading axis runs over an ensemble of runs. A single run is an ensemble of one, so
there is one code path and no batching transform: members are multiplied by hand with batched matrix
products. A run's numbers do not depend on its company, to the last bit: not on how many runs lie
beside it, which, or in what order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from markov.console import limits
from markov.errors import require, require_all_whole, require_number
from markov.numerics import ALIGNED, VECTOR

Parameters = Mapping[str, Tensor]


class Model(Protocol):
    """What training needs of a model: fresh parameters from a seed, and logits of tokens."""

    @property
    def states(self) -> int:
        """The number of states, the largest token plus one."""
        ...

    def init(self, seed: int) -> dict[str, Tensor]:
        """Return the parameters of one run, without the leading axis."""
        ...

    def logits(self, parameters: Parameters, tokens: Tensor) -> Tensor:
        """Return the next-token logits of every run of an ensemble."""
        ...


def stack_parameters(runs: Sequence[Parameters]) -> dict[str, Tensor]:
    """Join the parameters of several runs along a new leading axis."""
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """A trainable transition matrix: p(next = j | now = i) = softmax(table[i])_j."""

    states: int = 10

    def __post_init__(self) -> None:
        require_all_whole(self, states=limits.STATES)

    @property
    def products(self) -> int:
        """Multiplications of a token's forward pass: none, it is a look-up."""
        return 0

    def init(self, seed: int) -> dict[str, Tensor]:
        """Return a table of zeros, the uniform chain, whatever the seed."""
        return {"table": torch.zeros(self.states, self.states)}

    def logits(
        self, parameters: Parameters, tokens: Int64[Tensor, "runs batch time"]
    ) -> Float[Tensor, "runs batch time states"]:
        """Return the row of the table that belongs to each token."""
        return _lookup(parameters["table"], tokens)


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A small decoder-only transformer; the defaults are those of the paper's model (appendix H).

    Linear weights and biases start uniform in +-1/sqrt(fan_in). `released()` is the model that the
    paper's code trains.
    """

    states: int = 10
    context: int = 19
    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp_width: int = 128
    norm: Literal["pre", "post"] = "pre"
    activation: Literal["gelu", "relu"] = "gelu"
    output_projection: bool = True
    attention_bias: bool = True
    token_std: float = 0.02
    position_std: float = 0.02

    def __post_init__(self) -> None:
        require_all_whole(
            self,
            context=limits.CONTEXT,
            width=limits.WIDTH,
            depth=limits.DEPTH,
            heads=limits.WIDTH,
            mlp_width=limits.MLP_WIDTH,
            states=limits.STATES,
        )
        require(
            self.width % self.heads == 0, "heads", self.heads, f"a divisor of width = {self.width}"
        )
        require(self.norm in ("pre", "post"), "norm", self.norm, "'pre' or 'post'")
        require(
            self.activation in ("gelu", "relu"), "activation", self.activation, "'gelu' or 'relu'"
        )
        for field in ("output_projection", "attention_bias"):
            require(
                isinstance(getattr(self, field), bool), field, getattr(self, field), "True or False"
            )
        for field in ("token_std", "position_std"):
            require_number(
                getattr(self, field), field, lambda number: number > 0, "a positive number"
            )

    @classmethod
    def released(cls, *, states: int = 10, context: int = 19) -> Transformer:
        """Return the model that the paper's code trains.

        It has one head, no output projection, post-norm and unit token embeddings. Its number of
        parameters is that of the released code; that its MLP uses ReLU is an assumption.
        """
        return cls(
            states=states,
            context=context,
            heads=1,
            norm="post",
            activation="relu",
            output_projection=False,
            attention_bias=False,
            token_std=1.0,
        )

    @property
    def products(self) -> int:
        """Multiplications of a token's forward pass in its linear layers."""
        attention = (3 + self.output_projection) * self.width**2
        block = attention + 2 * self.width * self.mlp_width
        return self.depth * block + self.width * self.states

    def init(self, seed: int) -> dict[str, Tensor]:
        """Return fresh parameters of one run, drawn in a fixed order from their own generator."""
        generator = torch.Generator().manual_seed(seed)
        width, parameters = self.width, dict[str, Tensor]()

        def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
            bound = 1 / math.sqrt(inputs)
            parameters[f"{name}.weight"] = torch.empty(inputs, outputs).uniform_(
                -bound, bound, generator=generator
            )
            if bias:
                parameters[f"{name}.bias"] = torch.empty(outputs).uniform_(
                    -bound, bound, generator=generator
                )

        def layer_norm(name: str) -> None:
            parameters[f"{name}.weight"], parameters[f"{name}.bias"] = (
                torch.ones(width),
                torch.zeros(width),
            )

        parameters["token"] = torch.empty(self.states, width).normal_(
            0, self.token_std, generator=generator
        )
        parameters["position"] = torch.empty(self.context, width).normal_(
            0, self.position_std, generator=generator
        )
        for block in range(self.depth):
            linear(f"{block}.attention", width, 3 * width, self.attention_bias)
            if self.output_projection:
                linear(f"{block}.projection", width, width)
            layer_norm(f"{block}.norm1")
            linear(f"{block}.up", width, self.mlp_width)
            linear(f"{block}.down", self.mlp_width, width)
            layer_norm(f"{block}.norm2")
        if self.norm == "pre":
            layer_norm("norm")
        linear("head", width, self.states)
        return parameters

    def logits(
        self, parameters: Parameters, tokens: Int64[Tensor, "runs batch time"]
    ) -> Float[Tensor, "runs batch time states"]:
        """Return causal next-token logits; position t sees tokens 0..t.

        Raises `InvalidInput` where the sequences are longer than `context`.
        """
        runs, batch, time = tokens.shape
        require(time <= self.context, "time", time, f"at most context = {self.context} tokens")
        x = _lookup(parameters["token"], tokens) + parameters["position"][:, None, :time]
        x = x.reshape(runs, batch * time, self.width)
        for block in range(self.depth):
            for name, sublayer in (("norm1", self._attention), ("norm2", self._mlp)):
                norm = f"{block}.{name}"
                if self.norm == "pre":
                    x = x + sublayer(parameters, block, _layer_norm(parameters, norm, x), time)
                else:
                    x = _layer_norm(parameters, norm, x + sublayer(parameters, block, x, time))
        if self.norm == "pre":
            x = _layer_norm(parameters, "norm", x)
        return _linear(parameters, "head", x).reshape(runs, batch, time, self.states)

    def _attention(self, parameters: Parameters, block: int, x: Tensor, time: int) -> Tensor:
        runs, rows, width = x.shape
        split = (runs * rows // time, time, self.heads, width // self.heads)
        parts = _linear(parameters, f"{block}.attention", x).split(width, dim=-1)
        query, key, value = (part.view(split).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(runs, rows, width)
        return (
            _linear(parameters, f"{block}.projection", mixed) if self.output_projection else mixed
        )

    def _mlp(self, parameters: Parameters, block: int, x: Tensor, time: int) -> Tensor:
        act = functional.gelu if self.activation == "gelu" else functional.relu
        return _linear(
            parameters, f"{block}.down", _elementwise(act, _linear(parameters, f"{block}.up", x))
        )


def _lookup(
    table: Float[Tensor, "runs rows width"], tokens: Int64[Tensor, "runs batch time"]
) -> Tensor:
    """Return rows of each run's own table, by one flat embedding look-up over all runs."""
    runs, rows, _ = table.shape
    offset = (rows * torch.arange(runs, device=tokens.device)).view(-1, 1, 1)
    return functional.embedding(tokens + offset, table.flatten(0, 1))


def _linear(parameters: Parameters, name: str, x: Float[Tensor, "runs rows inputs"]) -> Tensor:
    bias, weight = parameters.get(f"{name}.bias"), parameters[f"{name}.weight"]
    outputs = weight.shape[-1]
    # Columns of zeros, so that the products of every run begin at a place that vectors are read
    # from: elsewhere a product may be rounded otherwise, and the place depends on the company.
    if spare := -outputs % ALIGNED:
        weight = functional.pad(weight, (0, spare))
        bias = None if bias is None else functional.pad(bias, (0, spare))
    found = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)
    return found[..., :outputs] if spare else found


def _elementwise(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "runs rows width"]
) -> Tensor:
    """Apply a function to every element, to the last bit as for each run alone.

    Rows of zeros are added until every run fills whole vectors: see `markov.numerics.VECTOR`.
    """
    rows, width = x.shape[1:]
    spare = -rows % (VECTOR // math.gcd(VECTOR, width))
    return function(functional.pad(x, (0, 0, 0, spare)) if spare else x)[:, :rows]


def _layer_norm(parameters: Parameters, name: str, x: Float[Tensor, "runs rows width"]) -> Tensor:
    # torch's own scaling takes one weight for all it is given, and would need a call per run. It
    # is given one that changes nothing, since without any it does not compute in vectors.
    width = x.shape[-1:]
    normed = functional.layer_norm(x, width, x.new_ones(width), x.new_zeros(width))
    weight, bias = (parameters[f"{name}.{part}"][:, None] for part in ("weight", "bias"))
    return torch.addcmul(bias, normed, weight)


ARCHITECTURES = {"paper": Transformer(), "released": Transformer.released()}
