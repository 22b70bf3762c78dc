"""Let a model write greedy answers to many prompts at a time, each as if it were alone.

Prompts are padded in front, so that all end where the writing begins; the padding is masked and
positions count from each prompt's own start. Not every model respects that. Recurrent ones may read
padding as if it were text; some go wrong as soon as they write several texts at a time, and some
with what they keep from token to token, at once or when a text outgrows a window. A model is
therefore tried before it writes (`way_of`), and of each batch the two texts with most and least
padding are read again (`_likely`). Both are compared with a forward pass over the text alone,
without padding and with nothing kept. If they do not agree, the model writes in a slower way, and
the batch is written anew.

A model's own settings for sampling, penalties and the like (`generation_config`) play no part, with
the exception of the tokens that end a text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.data.tofu import Example
from llm.models.answers import responses
from llm.models.language_model import LanguageModel
from llm.ranks import in_shards, place, pooled, share, started
from llm.scoring.encoding import MAX_LENGTH, end_tokens
from llm.scoring.inside import most_places
from llm.scoring.limits import NEW_TOKENS, WRITING_BUDGET
from llm.scoring.logprobs import evaluating
from llm.scoring.shared import keeps_apart, padded
from markov.console.progress import bar
from markov.errors import require, require_whole

STRETCH = 8  # tokens after which texts that have ended are dropped from a batch
TRIED = 4  # tokens that are written when a model is tried
# how far rounding may move a logit, as a share of the range of all logits at its place
TOLERANCE = 1e-4


class Way(NamedTuple):
    """How prompts are continued.

    They are written together or one at a time, padded to one length or not, and with what was kept
    from token to token (`cache`) or with everything computed anew.
    """

    together: bool
    padded: bool
    cache: bool


# From the quickest to the slowest, with which the others are compared.
WAYS = (
    Way(True, True, True),
    Way(True, False, True),
    Way(False, False, True),
    Way(False, False, False),
)


def generate(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = WRITING_BUDGET,
    progress: bool = True,
) -> tuple[str, ...]:
    """Return the model's greedy answer to each example's prompt.

    Answers come without the tokens that frame a text and without blanks around them. Prompts have
    the same tokens as when responses are scored. An answer ends with the token that is scored as
    its end, or with another that ends a text. Raises `InvalidInput` as `encode_examples` and
    `continuations` do.
    """
    prompts = [
        one.tokens[: one.prompt] for one in responses(language, examples, max_length=max_length)
    ]
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
    budget: int = WRITING_BUDGET,
    progress: bool = True,
    end: bool = True,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, in the order given; all are token numbers.

    Each token is the most likely next one. A text goes on to `max_new_tokens`, or to the first
    token that ends one, which is not part of it: one of `ends`, the tokenizer's own, or one that
    the model's authors name. If `end` is False, writing continues past such tokens. Raises
    `InvalidInput` for no prompt, an empty one, and a text beyond the model's positions. Of several
    processes (`llm.ranks`) each writes some of the batches, and all get the whole result.
    """
    require(
        len(prompts) > 0 and all(map(len, prompts)),
        "prompts",
        prompts[:1],
        "at least one, each of a token or more",
    )
    require_whole(max_new_tokens, "max_new_tokens", 1)
    inner = cast(Any, getattr(model, "module", model))
    limit, longest = (
        most_places(inner),
        max(map(len, prompts)),
    )
    fits = limit is None or longest + max_new_tokens <= limit
    allowed = (
        f"at most {(limit or 0) - longest}: the model takes {limit} tokens, the longest "
        f"prompt has {longest}"
    )
    require(fits, "max_new_tokens", max_new_tokens, allowed)
    require_whole(budget, "budget", 1)
    stops = _ends(inner, tokenizer, ends) if end else []
    work = hash((tuple(map(tuple, prompts)), max_new_tokens)) if started() > 1 else 0
    options: dict[str, Any] = {"budget": budget, "progress": progress and place() == 0}
    written = pooled(work, lambda: _written(inner, prompts, max_new_tokens, stops, **options))
    return [written[row] for row in range(len(prompts))]


def _written(
    model: Any,
    prompts: Sequence[Sequence[int]],
    new: int,
    stops: Sequence[int],
    *,
    budget: int,
    progress: bool,
) -> dict[int, list[int]]:
    """Return what this process writes of its share of the prompts, by their places."""
    found: dict[int, list[int]] = {}
    # In shards all processes write all texts, to keep step.
    world = 1 if in_shards(model) else started()
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    with evaluating(model), torch.no_grad():
        way = way_of(model, prompts, min(TRIED, new))
        plan = planned(order, prompts, new, budget, way, world)
        if world > 1:
            plan = [plan[item] for item, _ in share(len(plan), rank=place(), world=world)]
        with bar(sum(map(len, plan)), "write", unit="answer", show=progress) as done:
            while plan:
                done.set_description("write" if way.together else "write, one at a time")
                rows = plan[0]
                texts = [prompts[row] for row in rows]
                written = _write(model, texts, new, stops, way)
                if way != WAYS[-1] and not all(
                    _likely(model, texts[row], written[row]) for row in {0, len(rows) - 1}
                ):
                    way = WAYS[WAYS.index(way) + 1]
                    left = [row for rows in plan for row in rows]
                    plan = planned(left, prompts, new, budget, way)
                    continue
                for row, own in zip(rows, written, strict=True):
                    found[row] = own[:-1] if own[-1] in stops else own
                done.update(len(rows))
                plan = plan[1:]
    return found


def way_of(model: Any, prompts: Sequence[Sequence[int]], count: int) -> Way:
    """Return the quickest of `WAYS` in which prompts get the logits that each has alone.

    It is tried on two of the prompts, the longest and the shortest, or, for a way without padding,
    the two longest, of which one is cut. They are continued by `count` tokens. Logits may differ by
    `max(TOLERANCE, 8 eps)` of the range of all logits at their place, eps being the rounding of the
    model's numbers.
    """
    order = sorted(prompts, key=len, reverse=True)
    other = next((prompt for prompt in order if list(prompt) != list(order[0])), order[-1])
    for way in WAYS[:-1]:
        pair = (order[0], order[-1]) if way.padded else (order[0][: len(other)], other)
        tried = pair if way.together else pair[:1]
        if (len(order) > 1 or not way.together) and _as_alone(model, tried, count):
            return way
    return WAYS[-1]


def _as_alone(model: Any, prompts: Sequence[Sequence[int]], count: int) -> bool:
    """Return whether prompts that are continued together have the logits that each has alone.

    They are continued by `count` tokens.
    """
    with _greedy(model, count, [], output_logits=True, return_dict_in_generate=True):
        written = _generate(model, prompts)
    found = torch.stack(written.logits, dim=1)
    for prompt, new, got in zip(
        prompts, written.sequences[:, -count:].tolist(), found, strict=True
    ):
        want = _alone(model, [*prompt, *new[:-1]])[-count:]
        if ((got.to(want) - want).abs().amax(-1) > _rounding(model, want)).any():
            return False
    return True


def _likely(model: Any, prompt: Sequence[int], new: Sequence[int]) -> bool:
    """Return whether each written token is the most likely one when the text is read alone."""
    found = _alone(model, [*prompt, *new[:-1]])[-len(new) :]
    chosen = found.gather(-1, torch.tensor(new, device=found.device)[:, None]).squeeze(-1)
    return not (found.amax(-1) - chosen > _rounding(model, found)).any()


def _alone(model: Any, text: Sequence[int]) -> Float[Tensor, "time vocab"]:
    """Return the logits at every place of one text.

    They come from one forward pass without padding and with nothing kept.
    """
    tokens = torch.tensor([list(text)], device=model.get_input_embeddings().weight.device)
    return model(tokens, use_cache=False, return_dict=True).logits[0].float()


def _rounding(model: Any, logits: Float[Tensor, "time vocab"]) -> Float[Tensor, " time"]:
    """Return how far rounding may move the logits at each place."""
    # Numbers of one byte are only stored: computations use wider ones.
    wide = {one.dtype for one in model.parameters() if one.is_floating_point() and one.itemsize > 1}
    eps = max((torch.finfo(dtype).eps for dtype in wide), default=0.0)
    return max(TOLERANCE, 8 * eps) * (logits.amax(-1) - logits.amin(-1))


def planned(
    left: Sequence[int],
    prompts: Sequence[Sequence[int]],
    new: int,
    budget: int,
    way: Way,
    world: int = 1,
) -> list[list[int]]:
    """Return the rows that are left in batches of at most `budget` tokens each, or of one row.

    The rows come with the longest first. The budget counts tokens, with those that are still to be
    written. Where the number of batches is not a multiple of `world`, they are made smaller and
    alike, so that as many processes have as much to write.
    """
    plan = _within(left, prompts, new, budget, way, 1)
    if way.together and len(plan) % world:
        plan = _within(left, prompts, new, budget, way, math.ceil(len(plan) / world) * world)
    return plan


def _within(
    left: Sequence[int],
    prompts: Sequence[Sequence[int]],
    new: int,
    budget: int,
    way: Way,
    least: int,
) -> list[list[int]]:
    """Return the rows that are left in batches within the budget, and in at least `least` alike.

    Where there are fewer rows than that, each is a batch.
    """
    plan: list[list[int]] = []
    while left:
        longest = len(prompts[left[0]])
        most = math.ceil(len(left) / max(1, least - len(plan)))
        count = max(1, min(most, budget // (longest + new))) if way.together else 1
        rows = [row for row in left[:count] if way.padded or len(prompts[row]) == longest]
        plan.append(rows)
        left = left[len(rows) :]
    return plan


def _write(
    model: Any, prompts: Sequence[Sequence[int]], count: int, ends: Sequence[int], way: Way
) -> list[list[int]]:
    """Return what is written after each prompt, through the token that ends it if one does."""
    if way.cache:
        rows = _in_stretches(model, prompts, count, ends, STRETCH if keeps_apart(model) else count)
        return [
            row[: next((place + 1 for place, token in enumerate(row) if token in ends), count)]
            for row in rows
        ]
    # Without `generate`: what transformers passes on there is not what each model takes by itself.
    found: list[list[int]] = [[] for _ in prompts]
    for prompt, new in zip(prompts, found, strict=True):
        while len(new) < count and not (new and new[-1] in ends):
            new.append(int(_alone(model, [*prompt, *new])[-1].argmax()))
    return found


def _in_stretches(
    model: Any, prompts: Sequence[Sequence[int]], count: int, ends: Sequence[int], stretch: int
) -> list[list[int]]:
    """Return what is written after each prompt, through the token that ends it or beyond it.

    After each stretch of so many tokens the texts that have ended are dropped from what is kept, so
    that the others do not wait for them.
    """
    written: list[list[int]] = [[] for _ in prompts]
    rows, done, kept = list(range(len(prompts))), 0, {}
    tokens, present = (one.to(_device(model)) for one in padded(prompts))
    while rows and done < count:
        with _greedy(model, min(stretch, count - done), ends, return_dict_in_generate=True):
            found = model.generate(tokens, attention_mask=present.long(), **kept)
        new = found.sequences[:, tokens.shape[1] :]
        done += min(stretch, count - done)
        for row, own in zip(rows, new.tolist(), strict=True):
            written[row] += own
        going = [place for place, own in enumerate(new.tolist()) if not set(own) & set(ends)]
        if going and done < count:
            present = torch.cat([present, torch.ones_like(new, dtype=torch.bool)], dim=1)[going]
            kept = {"past_key_values": found.past_key_values}
            if len(going) < len(rows):
                places = torch.tensor(going, device=tokens.device)
                found.past_key_values.batch_select_indices(places)
        tokens, rows = found.sequences[going], [rows[place] for place in going]
    return written


def _generate(model: Any, prompts: Sequence[Sequence[int]]) -> Any:
    tokens, present = (one.to(_device(model)) for one in padded(prompts))
    return model.generate(tokens, attention_mask=present.long())


def _device(model: Any) -> torch.device:
    return model.get_input_embeddings().weight.device


def _ends(model: Any, tokenizer: Any, more: Sequence[int]) -> list[int]:
    """Return the tokens that end a text.

    They are those given, the tokenizer's, and those that the model's authors name beside it.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return list(
        dict.fromkeys(
            token for token in (*more, tokenizer.eos_token_id, *several) if token is not None
        )
    )


@contextmanager
def _greedy(model: Any, new: int, ends: Sequence[int], **more: Any) -> Iterator[None]:
    """Make transformers decode greedily inside the block.

    What a call does not say transformers takes from the model's own settings, which are replaced.
    """
    from transformers import GenerationConfig

    # An adapter's wrapper writes its settings into the model that it wraps.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, beneath = model.generation_config, inner.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        **more,
    )
    try:
        yield
    finally:
        model.generation_config, inner.generation_config = own, beneath
