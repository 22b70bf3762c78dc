"""What a model writes itself: greedy answers, many prompts at a time, each as if it were alone.

Prompts are padded in front, so that all end where the writing begins; the padding is masked and positions count from
each prompt's own start. Not every model heeds that. Recurrent ones may read padding as if it were text, and some go
wrong with what they keep from token to token as soon as they write several texts. So a model is tried first, see
`way_of`, and what changes its answers is done without: padding, company, or what is kept.

A model's own settings for sampling, penalties and the like (`generation_config`) play no part; of them only the tokens
that end a text are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm.answers import responses
from llm.corpora import Example
from llm.encoding import MAX_LENGTH, end_tokens
from llm.models import LanguageModel
from llm.scoring import evaluating
from markov.errors import require

NEW_TOKENS = 200  # of an answer, as open-unlearning has it for TOFU
BUDGET = 16384  # tokens of a batch with what is still to be written, padding included
TRIED = 4  # tokens that are written to try a model
TOLERANCE = 1e-4  # how far rounding may move a logit, as a share of the range of all logits at its place


class Way(NamedTuple):
    """How prompts are written on: with others or alone, padded to one length or not, with what was kept or anew."""

    together: bool
    padded: bool
    cache: bool


# From the quickest to the slowest, which is what the others are compared with.
WAYS = (Way(True, True, True), Way(True, False, True), Way(False, False, True), Way(False, False, False))


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

    Prompts have just the tokens that they have when responses are scored. An answer ends with the token that is scored
    as its end, or with another that ends a text. Raises `InvalidInput` as `encode_examples` and `continuations` do.
    """
    prompts = [one.tokens[: one.prompt] for one in responses(language, examples, max_length=max_length)]
    written = continuations(
        language.model,
        language.tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        ends=end_tokens(language.tokenizer, language.template),
        budget=budget,
        progress=progress,
    )
    texts: Any = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    return tuple(text.strip() for text in texts)


def continuations(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int] = (),
    budget: int = BUDGET,
    progress: bool = True,
    end: bool = True,
) -> list[list[int]]:
    """The most likely next token, again and again, after each prompt (both as token numbers), in the order given.

    A text goes on to `max_new_tokens`, or to the first token that ends one, which is not part of it:
    one of `ends`, the tokenizer's own, or one that the model's authors name. Not `end` goes past such
    tokens. Raises `InvalidInput` for no prompt, an empty one, and a text beyond the model's positions.
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
    require(budget >= 1, "budget", budget, "at least 1 token")
    stops = _ends(inner, tokenizer, ends) if end else []
    found: list[list[int]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts), desc="write", unit="answer", disable=None if progress else True)
    with evaluating(inner), torch.no_grad(), bar:
        way = way_of(inner, prompts, min(TRIED, max_new_tokens))
        bar.set_description("write" if way.together else "write, one at a time")
        with _greedy(inner, max_new_tokens, stops, cache=way.cache):
            for rows in _batches(prompts, max_new_tokens, budget, way):
                new = _write(inner, [prompts[row] for row in rows]).tolist()
                for row, own in zip(rows, new, strict=True):
                    found[row] = own[: next((place for place, token in enumerate(own) if token in stops), len(own))]
                bar.update(len(rows))
    return found


def way_of(model: Any, prompts: Sequence[Sequence[int]], count: int) -> Way:
    """The quickest of `WAYS` in which the model writes after such prompts as it would after each of them alone.

    It is tried on two of them, the shortest and the longest, which is cut to the shortest's length
    where nothing is to be padded. They are written on by `count` tokens. The logits of each are
    compared with those of one forward pass over its text alone, without padding and with nothing
    kept. They may differ by `max(TOLERANCE, 4 eps)` of the range of the logits at a place, eps being
    the rounding of the model's numbers.
    """
    short = min(prompts, key=len)
    long = max(prompts, key=lambda prompt: (len(prompt), list(prompt) != list(short)))
    for way in WAYS[:-1]:
        if way.together and len(prompts) == 1:
            continue
        tried = [short, long if way.padded else long[: len(short)]] if way.together else [long]
        if _as_alone(model, tried, count, cache=way.cache):
            return way
    return WAYS[-1]


def _as_alone(model: Any, prompts: Sequence[Sequence[int]], count: int, *, cache: bool) -> bool:
    seen: list[Tensor] = []
    with _greedy(model, count, [], cache=cache, output_logits=True, return_dict_in_generate=True):
        written = _write(model, prompts, seen)
    eps = max(torch.finfo(one.dtype).eps for one in model.parameters() if one.is_floating_point())
    device = model.get_input_embeddings().weight.device
    for prompt, new, got in zip(prompts, written.tolist(), seen[0], strict=True):
        text = torch.tensor([[*prompt, *new[:-1]]], device=device)
        want = model(text, use_cache=False, return_dict=True).logits[0, -count:].to(got)
        # What is not a number is so in both, and no reason to go slowly.
        apart = (got - want).nan_to_num().abs().amax(-1)
        allowed = max(TOLERANCE, 4 * eps) * (want.amax(-1) - want.amin(-1)).nan_to_num()
        if (apart > allowed).any():
            return False
    return True


def _batches(prompts: Sequence[Sequence[int]], new: int, budget: int, way: Way) -> Iterator[list[int]]:
    """Rows in batches of at most `budget` tokens, or of one row; the first of each has the longest prompt."""
    left = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    while left:
        longest = len(prompts[left[0]])
        count = max(1, budget // (longest + new)) if way.together else 1
        rows = [row for row in left[:count] if way.padded or len(prompts[row]) == longest]
        yield rows
        left = left[len(rows) :]


def _write(model: Any, prompts: Sequence[Sequence[int]], seen: list[Tensor] | None = None) -> Int64[Tensor, "rows new"]:
    """What is written after each prompt; `seen` is given the logits (rows, new, vocab) if the model keeps them."""
    tokens, present = _padded(prompts)
    device = model.get_input_embeddings().weight.device
    written = model.generate(tokens.to(device), attention_mask=present.long().to(device))
    if seen is None:
        return written[:, tokens.shape[1] :]
    seen.append(torch.stack(written.logits, dim=1))
    return written.sequences[:, tokens.shape[1] :]


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    length = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(width) >= width - length[:, None]


def _ends(model: Any, tokenizer: Any, more: Sequence[int]) -> list[int]:
    """The tokens that end a text: those given, the tokenizer's, and those that the model's authors name beside it."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(token for token in (*more, tokenizer.eos_token_id, *several) if token is not None))


@contextmanager
def _greedy(model: Any, new: int, ends: list[int], *, cache: bool, **more: Any) -> Iterator[None]:
    """Greedy decoding while it lasts: what is not said in a call transformers takes from the model's own settings."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=cache,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        **more,
    )
    try:
        yield
    finally:
        model.generation_config = own
