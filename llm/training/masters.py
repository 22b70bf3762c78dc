"""Parameters of 16 bits, trained as float32 masters and rounded whenever the model is looked at.

AdamW moves a parameter by about the learning rate. A bfloat16 number has 8 binary digits: near 0.02
its neighbours lie 1.2e-4 apart, and an update of less than half of that is rounded away, every
time. A float32 master adds such updates up.

They must not be rounded away at the end either: a whole run at a learning rate of 1e-5 can come to
less than half a step. So a master between two neighbours is rounded up or down by a threshold that
differs from parameter to parameter. The thresholds are evenly spread, so that a master goes up the
more often, the nearer it lies to the upper neighbour. What is lost is the exact value of a single
parameter, by less than one step. What is kept is the mean movement of many parameters, and this is
what determines what a model does. A parameter that has not moved stays as it is.

    in training    float32 masters; bfloat16 models are computed under autocast of bfloat16, float16
                   models in float32, since without a scaled loss the gradients of float16 vanish
                   below 6e-8
    looked at      masters rounded to their own dtypes, computed as such a model is: what would be
                   saved
    afterwards     the same, for good

A master costs 4 bytes per parameter in place of 2, and so do its gradient and each of its two
moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from markov.errors import require

NARROW = (torch.bfloat16, torch.float16)
CUT = {torch.bfloat16: 16, torch.float16: 13}  # last bits of a float32 that they lack
CHUNK = 2**24  # parameters that are rounded at once


def rounded(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return float32 numbers in 16 bits, each rounded to one of its two neighbours.

    A number goes to the upper neighbour the more often, the nearer it lies to it. The threshold
    follows from the place in the tensor alone, so that the same numbers are rounded alike at all
    times and on all devices. Below 6e-5, where float16 has fewer digits, its numbers are rounded to
    the nearest.
    """
    flat, found = values.contiguous().flatten(), []
    for start in range(0, flat.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        place = torch.arange(start, start + len(part), device=flat.device)
        # Multiples of the golden ratio's share of 2^32, because their upper bits are spread evenly,
        # whatever the stride.
        threshold = (place * 0x9E3779B1 % 2**32 >> 16 >> (16 - CUT[dtype])).int()
        # The bits of a float, without its sign, grow with its size, so that a carry into the kept
        # bits gives the next number.
        bits = (part.view(torch.int32) + threshold) & -(2 ** CUT[dtype])
        found.append(torch.where(part.isfinite(), bits.view(torch.float32), part).to(dtype))
    return torch.cat(found).view(values.shape) if found else values.to(dtype)


@dataclass(frozen=True)
class Masters:
    """Parameters that are float32 for the time of a training, each with its own dtype."""

    own: tuple[tuple[nn.Parameter, torch.dtype], ...] = ()

    @property
    def computed(self) -> torch.dtype | None:
        """The dtype of products during training; None for the dtype of the parameters."""
        return torch.bfloat16 if {dtype for _, dtype in self.own} == {torch.bfloat16} else None

    @contextmanager
    def rounded(self, model: nn.Module) -> Iterator[None]:
        """Round the masters of the model to their own dtypes inside the context.

        The rounded parameters are held in memory beside the masters.
        """
        # Other parameters are put in their places, because whatever exchanges gradients holds on
        # to the parameters themselves.
        other = {
            id(one): nn.Parameter(rounded(one.detach(), dtype), one.requires_grad)
            for one, dtype in self.own
        }
        places = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in other
        ]
        try:
            for module, name, parameter in places:
                setattr(module, name, other[id(parameter)])
            yield
        finally:
            for module, name, parameter in places:
                setattr(module, name, parameter)


@contextmanager
def widened(model: nn.Module, *, narrow_updates: bool = False) -> Iterator[Masters]:
    """Put float32 masters in place of the model's 16-bit parameters inside the context.

    Afterwards they are rounded back. A model that trains no 16-bit parameter is left as it is
    (adapters are float32 beside bfloat16 layers), and so is one with `narrow_updates`. But a model
    with any float16 parameter is widened as a whole, since gradients pass through all of it. With
    `narrow_updates` such a model is refused: this raises `InvalidInput`.
    """
    parameters = list(model.parameters())
    half = any(one.dtype == torch.float16 for one in parameters)
    allowed = "False for float16 parameters, whose squared gradients are 0 below 2e-4"
    require(not (half and narrow_updates), "narrow_updates", narrow_updates, allowed)
    trained = any(one.dtype in NARROW and one.requires_grad for one in parameters)
    wanted = half or (trained and not narrow_updates)
    own = tuple((one, one.dtype) for one in parameters if wanted and one.dtype in NARROW)
    for parameter, _ in own:
        parameter.data = parameter.data.float()
    try:
        yield Masters(own)
    finally:
        for parameter, dtype in own:
            parameter.data = rounded(parameter.data, dtype)
