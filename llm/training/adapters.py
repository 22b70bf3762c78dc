"""Low-rank adapters for the time of a training, and the model as it was before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.randomness import own_randomness
from llm.scoring.encoding import Batch
from llm.scoring.logprobs import evaluating, scored_logits
from markov.errors import InvalidInput, require, require_all_whole

# of the model in training, asked for a batch
Original = Callable[[nn.Module, Batch], Float[Tensor, "scored vocab"]]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of some `rank` beside linear layers, scaled by alpha / rank (Hu et al. 2021), by
    peft.

    `target_modules` is "all-linear" (all but the head) or names of layers. Raises `InvalidInput`
    for what cannot be.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        require_all_whole(self, rank=1)
        require(self.alpha > 0, "alpha", self.alpha, "a number > 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a number in [0, 1)")


@contextmanager
def adapted(model: nn.Module, lora: Lora | None, seed: int) -> Iterator[nn.Module]:
    """The model with adapters, which alone are trainable while it lasts; the model itself where
    `lora` is None.

    Afterwards the model is one without adapters again, into whose weights they have been added;
    where anything was raised, one with the weights that it had. Raises `InvalidInput` for layers
    that it does not have.
    """
    if lora is None:
        yield model
        return
    import peft

    targets = (
        lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    )
    options: Any = dict(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
    )
    trainable, inner = (
        [(parameter, parameter.requires_grad) for parameter in model.parameters()],
        model,
    )
    try:
        try:
            with own_randomness(seed, "adapters"):
                wrapped: Any = peft.get_peft_model(
                    inner,  # pyright: ignore[reportArgumentType]
                    peft.LoraConfig(task_type="CAUSAL_LM", **options),
                )
        except ValueError as error:
            raise InvalidInput(
                "target_modules", lora.target_modules, f"layers of the model ({error})"
            ) from error
        try:
            yield wrapped
        except BaseException:
            wrapped.unload()
            raise
        wrapped.merge_and_unload()
    finally:
        for parameter, own in trainable:
            parameter.requires_grad_(own)


def original_of(model: nn.Module, lora: Lora | None) -> Original:
    """The logits, without gradients, of the model as it is now; to be called before anything is
    trained.

    With adapters it is the model without them. Otherwise it is a copy: the one case of a second
    model in memory.
    """
    if lora is not None:
        wrapped: Any = model

        def without_adapters(prepared: nn.Module, batch: Batch) -> Tensor:
            with wrapped.disable_adapter(), evaluating(prepared), torch.no_grad():
                return scored_logits(prepared, batch)

        return without_adapters
    frozen: Any = copy.deepcopy(model).eval().requires_grad_(False)

    def of_copy(prepared: nn.Module, batch: Batch) -> Tensor:
        frozen.to(next(prepared.parameters()).device)
        with torch.no_grad():
            return scored_logits(frozen, batch)

    return of_copy
