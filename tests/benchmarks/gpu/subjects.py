"""The models that are measured, and what they read: a pretrained one, and random Llamas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm.models.size import skeleton
from llm.scoring.encoding import Encoded
from llm.training.plan import Planner

COMMON: dict[str, Any] = dict(max_position_embeddings=4096, bos_token_id=1, eos_token_id=2)
# The shape of SmolLM2-135M.
SMALL: dict[str, Any] = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
# That of Llama 3.2 1B.
ONE: dict[str, Any] = dict(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
# That of Llama 2 7B.
SEVEN: dict[str, Any] = dict(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    tie_word_embeddings=False,
)
TINY: dict[str, Any] = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    tie_word_embeddings=True,
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is that is measured."""

    small: dict[str, Any]
    """Of the random model that stands in for the pretrained one where that cannot be read."""
    one: dict[str, Any]
    seven: dict[str, Any]
    names: tuple[str, str, str]
    compared: int
    """Answers whose scores are compared."""
    scored: int
    """Answers that are scored to take the time."""
    updated: int
    """Answers that are forgotten to take the time, and as many that are retained."""
    shortest: int
    longest: int
    product: int
    """Rows of the matrices whose product is timed."""
    budgets: tuple[int, ...]
    batches: tuple[int, ...]
    length: int
    """Tokens of each answer where memory is measured."""


FULL = Scale(
    small=SMALL,
    one=ONE,
    seven=SEVEN,
    names=("a random 135M Llama", "a random 1B Llama", "a random 7B Llama"),
    compared=40,
    scored=1000,
    updated=128,
    shortest=24,
    longest=120,  # mean 72, as TOFU's questions with their answers
    product=8192,
    budgets=(2048, 16384, 65536),
    batches=(16, 64),
    length=512,
)
QUICK = Scale(
    small=TINY,
    one={**TINY, "hidden_size": 48, "num_hidden_layers": 3},
    seven={**TINY, "hidden_size": 64, "num_hidden_layers": 4},
    names=("a tiny Llama", "a larger tiny Llama", "a third tiny Llama"),
    compared=6,
    scored=12,
    updated=8,
    shortest=6,
    longest=20,
    product=64,
    budgets=(64, 256),
    batches=(4,),
    length=64,
)


def config_of(shape: dict[str, Any]) -> LlamaConfig:
    """Return the configuration of a Llama of some shape."""
    return LlamaConfig(**COMMON, **shape)


def planner_of(config: Any) -> Planner:
    """Return what plans work with the architecture of a configuration."""
    return Planner(lambda dtype: skeleton(config, dtype))


def random_llama(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> LlamaForCausalLM:
    """Return a Llama of random weights, made on the device, so that no weights travel there."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _made_in(dtype):
        torch.manual_seed(0)
        with torch.device(device):
            return LlamaForCausalLM(config).eval()


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Make new parameters in a dtype inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def made_answers(count: int, vocab: int, shortest: int, longest: int, seed: int) -> list[Encoded]:
    """Return sequences of random tokens of evenly spread lengths, the prompt a third of each.

    These are about the proportions of TOFU, and how fast a pass is does not depend on the tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(shortest, longest, count).long().tolist()
    draw = (torch.randint(3, vocab, (one,), generator=generator).tolist() for one in lengths)
    return [Encoded(tuple(tokens), max(1, len(tokens) // 3)) for tokens in draw]


def tokens_of(encoded: list[Encoded]) -> tuple[int, int]:
    """Return how many tokens there are, and how many of them are scored."""
    tokens = sum(len(one.tokens) for one in encoded)
    return tokens, tokens - sum(one.prompt for one in encoded)
