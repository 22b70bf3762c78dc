"""What a model writes itself: greedy answers, many prompts at a time, each as if it were alone.

Prompts are padded in front, so that all end where the writing begins; the padding is masked and positions count from
each prompt's own start, so that the batch changes a text by rounding at most. A model's own settings for sampling,
penalties and the like (`generation_config`) play no part; of them only the tokens that end a text are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm.answers import responses
from llm.corpora import Example
from llm.encoding import MAX_LENGTH
from llm.models import LanguageModel
from llm.scoring import evaluating
from markov.errors import require

NEW_TOKENS = 200  # of an answer, as open-unlearning has it for TOFU
BUDGET = 16384  # tokens of a batch with what is still to be written, padding included


def generate(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> tuple[str, ...]:
    """The model's greedy answer to each example's prompt, without the tokens that frame a text and the blanks around.

    Prompts have just the tokens that they have when responses are scored. Raises `InvalidInput` as `encode_examples`
    and `continuations` do.
    """
    prompts = [one.tokens[: one.prompt] for one in responses(language, examples, max_length=max_length)]
    written = continuations(
        language.model, language.tokenizer, prompts, max_new_tokens=max_new_tokens, budget=budget, progress=progress
    )
    texts: Any = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    return tuple(text.strip() for text in texts)


def continuations(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    budget: int = BUDGET,
    progress: bool = True,
    end: bool = True,
) -> list[list[int]]:
    """The most likely next token, again and again, after each prompt (both as token numbers), in the order given.

    A text goes on to the first token that ends one, which is not part of it, or to `max_new_tokens`; not `end` goes
    past such tokens. Raises `InvalidInput` for no prompt, an empty one, and a text beyond the model's positions.
    """
    require(
        len(prompts) > 0 and all(map(len, prompts)), "prompts", prompts[:1], "at least one, each of a token or more"
    )
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "a whole number of at least 1")
    inner = cast(Any, getattr(model, "module", model))
    limit, longest = getattr(inner.config.get_text_config(), "max_position_embeddings", None), max(map(len, prompts))
    fits = limit is None or longest + max_new_tokens <= limit
    allowed = f"at most {(limit or 0) - longest}: the model takes {limit} tokens, the longest prompt has {longest}"
    require(fits, "max_new_tokens", max_new_tokens, allowed)
    ends = _ends(inner, tokenizer) if end else []
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    found: list[list[int]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts), desc="write", unit="answer", disable=None if progress else True)
    with evaluating(inner), _greedy(inner, max_new_tokens, ends), torch.no_grad(), bar:
        for rows in _batches(order, prompts, max_new_tokens, budget):
            tokens, present = _padded([prompts[row] for row in rows])
            device = inner.get_input_embeddings().weight.device
            written = inner.generate(tokens.to(device), attention_mask=present.long().to(device))
            for row, new in zip(rows, written[:, tokens.shape[1] :].tolist(), strict=True):
                found[row] = new[: next((place for place, token in enumerate(new) if token in ends), len(new))]
            bar.update(len(rows))
    return found


def _batches(order: Sequence[int], prompts: Sequence[Sequence[int]], new: int, budget: int) -> Iterator[list[int]]:
    """Rows in batches of at most `budget` tokens, or of one row; the first of each has the longest prompt."""
    require(budget >= 1, "budget", budget, "at least 1 token")
    left = list(order)
    while left:
        count = max(1, budget // (len(prompts[left[0]]) + new))
        yield left[:count]
        left = left[count:]


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    length = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(width) >= width - length[:, None]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those that the model's authors name beside it."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(token for token in (tokenizer.eos_token_id, *several) if token is not None))


@contextmanager
def _greedy(model: Any, new: int, ends: list[int]) -> Iterator[None]:
    """Greedy decoding while it lasts: what is not said in a call transformers takes from the model's own settings."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    try:
        yield
    finally:
        model.generation_config = own
