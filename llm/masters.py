"""Parameters of 16 bits, trained as float32 masters and rounded where the model is looked at.

AdamW moves a parameter by about the learning rate. A bfloat16 number has 8 binary digits: near 0.02 its neighbours lie
1.2e-4 apart, and an update of less than half of that is rounded away, every time. A master adds such updates up. What
rounding a master at the end loses is at most half such a step per parameter, once.

    in training    float32 masters; bfloat16 models are computed under autocast of bfloat16, float16 models in float32,
                   since without a scaled loss the gradients of float16 vanish below 6e-8
    looked at      masters rounded to their own dtypes, computed as such a model is: what would be saved
    afterwards     the same, for good

A master costs 4 bytes per parameter in place of 2, and so do its gradient and each of its two moments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from markov.errors import require

NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Masters:
    """Parameters that are float32 for the time of a training, each with its own dtype."""

    own: tuple[tuple[nn.Parameter, torch.dtype], ...] = ()

    @property
    def computed(self) -> torch.dtype | None:
        """The dtype that products are computed in during training; None for that of the parameters."""
        return torch.bfloat16 if {dtype for _, dtype in self.own} == {torch.bfloat16} else None

    @contextmanager
    def rounded(self, model: nn.Module) -> Iterator[None]:
        """The model with its masters rounded to their own dtypes while it lasts; holds the rounded ones beside them."""
        # Others are put in their places, because whoever exchanges gradients holds on to the parameters themselves.
        other = {id(one): nn.Parameter(one.detach().to(dtype), one.requires_grad) for one, dtype in self.own}
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
    """The model with float32 masters in place of parameters of 16 bits while it lasts, rounded back afterwards.

    Nothing is done to a model that trains no such parameter (adapters are float32 beside bfloat16 layers), or with
    `narrow_updates`; but a model with any float16 parameter is widened as a whole, since gradients pass through all of
    it, and refused with `narrow_updates`: it raises `InvalidInput`.
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
            parameter.data = parameter.data.to(dtype)
