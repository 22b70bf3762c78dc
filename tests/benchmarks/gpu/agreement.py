"""Scores of the same answers, under the same weights, on the processor and on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llm.data.sources import read
from llm.scoring.encoding import encode_examples
from llm.scoring.logprobs import score_encoded
from tests.benchmarks.gpu.bench import DTYPES, Bench
from tests.benchmarks.gpu.rows import Bound, Row

# What the mean, and each answer, may differ by, of their size. An answer of few tokens that a model
# is sure of has a small log-probability, of which rounding to bfloat16 (a 256th of a logit) can be
# any part: there the mean alone is judged. On an H100 it differed by 0.05%, and one answer by 2.8%.
ALLOWED = {"float32": (1e-3, 1e-3), "bfloat16": (1e-2, None)}


def differences(found: Tensor, true: Tensor) -> tuple[float, float]:
    """Return by how much the sum differs, and at most an answer, relative to the true numbers."""
    found, true = found.double(), true.double()
    each = ((found - true) / true).abs()
    return float(((found.sum() - true.sum()) / true.sum()).abs()), float(each.max())


def agreement(bench: Bench) -> Iterator[Row]:
    """Yield by how much scores on the device differ from those on the processor."""
    language = bench.language()
    examples = read(bench.data)[: bench.scale.compared]
    encoded = encode_examples(language.tokenizer, language.template, examples)
    true = score_encoded(language.model, encoded, progress=False)
    tokens = float(true.length.sum())
    yield Row(
        what=f"mean log-probability of {len(encoded)} answers, processor, float32",
        value=float(true.logp.double().sum()) / tokens,
        unit="nats/token",
    )
    model: Any = bench.small().make(torch.float32)
    for word, dtype in DTYPES.items():
        model.to(dtype=dtype)
        found = score_encoded(model, encoded, budget=bench.scale.budgets[-1], progress=False)
        mean, most = differences(found.logp, true.logp)
        of_mean, of_each = ALLOWED[word]
        note = "" if of_each else "no bound: those of few tokens can differ by more"
        yield Row(
            what=f"scores in {word}, difference of the mean, of its size",
            value=mean,
            bound=Bound(most=of_mean),
        )
        yield Row(
            what=f"scores in {word}, largest difference of an answer, of its size",
            value=most,
            bound=Bound(most=of_each, note=note),
        )
