"""Let a model go on from many prompts at a time, by its likeliest tokens or by other scores.

Texts that have ended are dropped from a batch, so that the others do not wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from llm.ranks import in_shards, place, pooled, share, started
from llm.scoring.inside import most_places
from llm.scoring.limits import WRITING_BUDGET
from llm.scoring.logprobs import evaluating
from llm.scoring.shared import keeps_apart, padded
from llm.writing.ways import WAYS, Choose, Way, alone, device_of, greedily, likely, way_of
from markov.console.progress import bar
from markov.errors import require, require_whole

STRETCH = 8  # tokens after which texts that have ended are dropped from a batch
TRIED = 4  # tokens that are written when a model is tried


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
    choose: Choose | None = None,
    stream: int = 0,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, in the order given; all are token numbers.

    Each token is the most likely next one, or that of the largest score that `choose` gives. A text
    goes on to `max_new_tokens`, or to the first token that ends one, which is not part of it: one
    of `ends`, the tokenizer's own, or one that the model's authors name. If `end` is False, writing
    continues past such tokens. Raises `InvalidInput` for no prompt, an empty one, and a text beyond
    the model's positions. Of several processes (`llm.ranks`) each writes some of the batches, and
    all get the whole result; an equal `stream` tells that they have the same `choose`.
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
    work = hash((tuple(map(tuple, prompts)), max_new_tokens, stream)) if started() > 1 else 0
    options: dict[str, Any] = {"budget": budget, "progress": progress and place() == 0}
    options |= {"choose": _logits if choose is None else choose}
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
    choose: Choose,
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
                texts, among = [prompts[row] for row in rows], partial(_among, rows, choose)
                written = _write(model, texts, new, stops, way, among)
                if way != WAYS[-1] and not all(
                    likely(model, texts[row], written[row], among, row)
                    for row in {0, len(rows) - 1}
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


def _logits(rows: Sequence[int], places: Sequence[int], logits: Tensor) -> Tensor:
    return logits


def _among(
    batch: Sequence[int],
    choose: Choose,
    rows: Sequence[int],
    places: Sequence[int],
    logits: Tensor,
) -> Tensor:
    """Return the scores of rows of a batch that has these of all prompts."""
    return choose([batch[row] for row in rows], places, logits)


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
    model: Any,
    prompts: Sequence[Sequence[int]],
    count: int,
    ends: Sequence[int],
    way: Way,
    choose: Choose,
) -> list[list[int]]:
    """Return what is written after each prompt, through the token that ends it if one does."""
    if way.cache:
        stretch = STRETCH if keeps_apart(model) else count
        rows = _in_stretches(model, prompts, count, ends, stretch, choose)
        return [
            row[: next((place + 1 for place, token in enumerate(row) if token in ends), count)]
            for row in rows
        ]
    # Without `generate`: what transformers passes on there is not what each model takes by itself.
    found: list[list[int]] = [[] for _ in prompts]
    for row, (prompt, new) in enumerate(zip(prompts, found, strict=True)):
        while len(new) < count and not (new and new[-1] in ends):
            logits = alone(model, [*prompt, *new])[-1:]
            new.append(int(choose([row], [len(new)], logits).argmax()))
    return found


def _in_stretches(
    model: Any,
    prompts: Sequence[Sequence[int]],
    count: int,
    ends: Sequence[int],
    stretch: int,
    choose: Choose,
) -> list[list[int]]:
    """Return what is written after each prompt, through the token that ends it or beyond it.

    After each stretch of so many tokens the texts that have ended are dropped from what is kept, so
    that the others do not wait for them.
    """
    written: list[list[int]] = [[] for _ in prompts]
    rows, done, kept = list(range(len(prompts))), 0, {}
    tokens, present = (one.to(device_of(model)) for one in padded(prompts))
    wide = tokens.shape[1]

    def scored(read: Tensor, logits: Tensor) -> Tensor:
        return choose(rows, [read.shape[1] - wide] * len(rows), logits)

    while rows and done < count:
        with greedily(model, min(stretch, count - done), ends, return_dict_in_generate=True):
            options = {"attention_mask": present.long(), "logits_processor": [scored], **kept}
            found = model.generate(tokens, **options)
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
