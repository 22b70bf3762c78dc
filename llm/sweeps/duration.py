"""Whether a sweep ends within the time that anybody waits, before its first model is read."""

from __future__ import annotations

from collections.abc import Sequence

from llm.data.tofu import Example, response_words
from llm.models.counted import least_count
from llm.models.language_model import find_device
from llm.training.duration import PASSES
from markov.console import duration
from markov.errors import InvalidInput


def check_ends(model: str, device: str, forget: Sequence[Example], epochs: Sequence[int]) -> None:
    """Raise `InvalidInput` for runs of so many epochs each that no machine ends within a month.

    A word counts as a token, and what a model's files do not tell counts as nothing.
    """
    weights = least_count(model)
    if weights is None or not epochs:
        return
    passes = PASSES * sum(epochs) * int(response_words(forget).sum())
    part = duration.Part(max(epochs), float(weights) * passes)
    try:
        place = find_device(device)
    except InvalidInput:  # whoever loads a model says so: tables can be collected without it
        return
    duration.check_ends({"epochs": part}, device=str(place))
