"""Whether a training of a language model ends within the time that anybody waits.

See `markov.console.duration`. Counted are the multiplications of linear layers alone, two thirds of
which, forward and back to what is trained, no training can do without.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llm.ranks import started
from llm.scoring.encoding import Encoded
from markov.console import duration

PASSES = 2  # products with all weights that an example takes at least, in an epoch


def check_ends(model: nn.Module, encoded: Sequence[Encoded], epochs: int) -> None:
    """Raise `InvalidInput` for more epochs than end within a month, however fast they are made."""
    linear = (one for one in model.modules() if isinstance(one, nn.Linear))
    weights = sum(one.weight.numel() for one in linear)
    tokens = sum(len(one.tokens) - 1 for one in encoded)
    device = str(next(model.parameters()).device)
    part = duration.Part(epochs, PASSES * weights * tokens * epochs / started())
    duration.check_ends({"epochs": part}, device=device)
