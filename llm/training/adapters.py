"""Low-rank adapters for the time of a training, and the model as it was before the training."""

from __future__ import annotations

import copy
import warnings
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

# Takes the model in training and a batch, and returns the logits of the original model.
Original = Callable[[nn.Module, Batch], Float[Tensor, "scored vocab"]]


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters beside linear layers, made by peft.

    They have the given `rank` and are scaled by alpha / rank (Hu et al. 2021). `target_modules` is
    "all-linear" (all linear layers but the head) or names of layers. Raises `InvalidInput` for
    values that are not allowed.
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
    """Yield the model with adapters, which alone are trainable inside the context.

    Where `lora` is None, the model itself is yielded. Afterwards the model has no adapters any
    more: they have been added into its weights, or, where an exception was raised, dropped, so that
    the model has the weights that it had before. Raises `InvalidInput` for layers that the model
    does not have.
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
            with own_randomness(seed, "adapters"), warnings.catch_warnings():
                # peft asks by a name that transformers has given up; no user can change that.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
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
    """Return a function that computes the logits of the model as it is now, without gradients.

    It has to be called before anything is trained. With adapters the function runs the model
    without them. Otherwise it runs a copy, which is the one case in which a second model is held in
    memory.
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
