"""Refuse scores that are not finite, and say of which example and which model they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.scoring.inside import embedding
from markov.errors import InvalidInput


class NotFinite(InvalidInput):
    """A model gave a score that is not finite; the message names the example and the model."""


class Named(NamedTuple):
    """Names of the examples and of their model, for the message if a score is refused."""

    examples: Sequence[object]
    model: str


def check_finite(
    field: str,
    values: Float[Tensor, " rows"],
    model: nn.Module,
    rows: Sequence[int],
    named: Named | None = None,
) -> None:
    """Raise `NotFinite` for the first of the examples `rows` whose value is nan or infinite.

    A token of probability 0 leads to such a value: log 0 is minus infinity. `named` is as in
    `score_encoded`.
    """
    bad = {
        rows[place]: float(values[place])
        for place in (~values.isfinite()).nonzero().flatten().tolist()
    }
    if not bad:
        return
    row, dtype = min(bad), str(embedding(model).dtype).removeprefix("torch.")
    example, name = (
        (row, type(model).__name__) if named is None else (named.examples[row], named.model)
    )
    hint = (
        f"; numbers above {torch.finfo(torch.float16).max:.0f} overflow float16: another "
        "--dtype may help"
    )
    allowed = (
        f"a finite number for example {example} under {name} "
        f"({dtype}{hint if dtype == 'float16' else ''})"
    )
    raise NotFinite(field, bad[row], allowed)
