"""What the measurements share: the device, the sizes, the models, and what a failure leaves."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from llm.models.source import load
from markov.errors import InvalidInput, out_of_memory
from tests.benchmarks.gpu.card import product_rate
from tests.benchmarks.gpu.rows import Row
from tests.benchmarks.gpu.subjects import FULL, Scale, config_of, random_llama

if TYPE_CHECKING:
    from llm.models.language_model import LanguageModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class OutOfTime(BaseException):
    """The time is spent. It is no `Exception`, so that no measurement takes it for its own."""


class Subject(NamedTuple):
    """A model that is measured: its name, and what makes it on the device in a dtype."""

    name: str
    make: Callable[[torch.dtype], Any]


@dataclass
class Bench:
    """Where and on what is measured."""

    device: torch.device
    model: str
    data: str
    scale: Scale = FULL
    models: Path | None = None
    """Where models of the Markov lab are kept from one time to the next."""
    _rates: dict[torch.dtype, float] = field(default_factory=dict)
    _read: list[Any] = field(default_factory=list)

    def rate(self, dtype: torch.dtype) -> float:
        """Return the operations per second of matrix products, measured at the first call."""
        if dtype not in self._rates:
            self._rates[dtype] = product_rate(self.device, dtype, self.scale.product)
        return self._rates[dtype]

    def language(self) -> LanguageModel:
        """Return the pretrained model on the processor, in float32, read at the first call.

        Raises `InvalidInput`, at every call, where it cannot be read.
        """
        if not self._read:
            try:
                self._read.append(load(self.model, device="cpu", progress=False))
            except InvalidInput as error:
                self._read.append(error)
        found = self._read[0]
        if isinstance(found, InvalidInput):
            raise InvalidInput(found.field, found.value, found.allowed)
        return found

    def small(self) -> Subject:
        """Return the pretrained model, or a random one of its shape where it cannot be read."""
        config = config_of(self.scale.small)
        try:
            own = self.language()
        except InvalidInput:
            return Subject(
                self.scale.names[0], lambda dtype: random_llama(config, dtype, self.device)
            )

        def make(dtype: torch.dtype) -> Any:
            copied: Any = deepcopy(own.model)
            return copied.to(device=self.device, dtype=dtype)

        return Subject(os.path.basename(self.model.rstrip("/")), make)

    def one(self) -> Subject:
        """Return the random model of a billion parameters."""
        config = config_of(self.scale.one)
        return Subject(self.scale.names[1], lambda dtype: random_llama(config, dtype, self.device))


def free() -> None:
    """Give back what nothing holds any more, so that the next measurement has all of the memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """Return why something was not measured, in one short line."""
    if out_of_memory(error):
        return "out of memory"
    said = next(iter(str(error).splitlines()), "")
    named = said if isinstance(error, InvalidInput) else f"{type(error).__name__}: {said}"
    return named if len(named) <= 300 else f"{named[:297]}..."


def guarded(what: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of a measurement; where it fails, those before it, and one that says why."""
    try:
        yield from rows()
    except Exception as error:
        told = reason(error)
    else:
        told = ""
    # Only now, because an exception holds on to all that was alive where it was raised.
    free()
    if told:
        yield Row(what=what, reason=told)
