"""How fast a model works on this machine, and how long counted work takes at that speed.

    seconds = sum over kinds of work of (passes * fixed + tokens * token)
              + updates * update + bytes * byte

The kinds are passes of training, forward and back; passes that measure within a training, in its
precision; passes that score, in the model's own dtype; and steps of writing, each of which adds a
token to some texts. Every kind has two costs, since a pass reads all weights, however few tokens it
has. Both are measured with the real weights, on passes of two sizes. Tokens count with the padding
around them, since a pass computes that too.

The speed of the disk is not measured but assumed (`DISK`): it matters for large models only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm.models.language_model import LanguageModel
from llm.randomness import shuffled
from llm.scoring.encoding import Batch, Encoded, batches
from llm.scoring.logprobs import check_fits, evaluating, response_logprobs
from llm.training.adapters import Lora, adapted
from llm.training.loop import Loop, Optimization, Term, fusable, looping
from llm.training.masters import widened
from llm.writing.continuations import continuations

DISK = 5e8  # bytes a second, to write or to read, and to take a digest of
LIMIT = 1.5  # seconds after which a pass of one kind and size is not repeated
REPEATS = 3
STEPS, TAIL = 6, 8  # tokens that are written on trial, after so many tokens of each prompt
SAMPLE = 2**24  # parameters on which the cost of an update is measured
Some = Sequence[Encoded]


@dataclass(frozen=True)
class Passes:
    """How many passes of one kind, and how many tokens they have together, padding included."""

    count: float = 0
    tokens: float = 0

    @classmethod
    def over(cls, encoded: Some, budget: int) -> Passes:
        """Return the passes over examples, in batches of at most `budget` tokens."""
        plan = batches(encoded, budget)
        # The last token of a text predicts nothing, so that no pass reads it.
        wide = (len(encoded[rows[0]].tokens) - 1 for rows in plan)
        return cls(len(plan), sum(len(rows) * one for rows, one in zip(plan, wide, strict=True)))

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.count + other.count, self.tokens + other.tokens)

    def __mul__(self, factor: float) -> Passes:
        return Passes(self.count * factor, self.tokens * factor)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a part of a job has to do, in numbers that do not depend on the machine.

    Of writing there are two, since nobody knows how long an answer will be: `written`, where
    answers are as long as the true ones, and `most`, where each is as long as it may be.
    """

    trained: Passes = Passes()
    watched: Passes = Passes()
    scored: Passes = Passes()
    written: Passes = Passes()
    most: Passes = Passes()
    updates: float = 0
    stored: float = 0
    """Bytes that are written, read, or taken a digest of."""

    def __add__(self, other: Work) -> Work:
        return Work(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        )

    def __mul__(self, factor: float) -> Work:
        return Work(**{one.name: getattr(self, one.name) * factor for one in fields(self)})


class Cost(NamedTuple):
    """Seconds of a pass without tokens, and of each of its tokens."""

    fixed: float
    token: float

    @classmethod
    def between(cls, few: tuple[float, float], many: tuple[float, float]) -> Cost:
        """Return the cost of a pass from (tokens, seconds) of a small one and of a large one.

        Where noise hides one of the two costs, it is 0, and the other one explains the large pass.
        """
        (less, quick), (more, slow) = few, many
        token = (slow - quick) / (more - less) if more > less else slow / more
        if token <= 0:
            return cls(slow, 0.0)
        fixed = slow - token * more
        return cls(fixed, token) if fixed >= 0 else cls(0.0, slow / more)

    def seconds(self, passes: Passes) -> float:
        """Return how long so many passes take."""
        return self.fixed * passes.count + self.token * passes.tokens


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a model works on a machine, in seconds: see the module."""

    trained: Cost
    watched: Cost
    scored: Cost
    written: Cost
    update: float
    byte: float = 1 / DISK

    def seconds(self, work: Work) -> float:
        """Return how long work takes if answers are written as long as the true ones are."""
        return self._besides(work) + self.written.seconds(work.written)

    def at_most(self, work: Work) -> float:
        """Return how long work takes if every answer is written as long as it may be."""
        return self._besides(work) + self.written.seconds(work.most)

    def _besides(self, work: Work) -> float:
        passes = sum(
            getattr(self, kind).seconds(getattr(work, kind))
            for kind in ("trained", "watched", "scored")
        )
        return passes + self.update * work.updates + self.byte * work.stored


def measured(
    language: LanguageModel,
    encoded: Some,
    settings: Optimization,
    *,
    lora: Lora | None = None,
    together: int = 0,
    limit: float = LIMIT,
) -> Speed:
    """Return how fast a model is trained by the settings, scores and writes, measured now.

    The passes are those of a training on the examples `encoded`, cut short where they are slow:
    after `limit` seconds none of one kind is repeated. `together` is how many texts are written at
    a time; with 0 writing is not tried, and costs nothing. The model keeps its weights: gradients
    are computed, but no update is made of them. The cost of an update is that of AdamW on other
    numbers, as many as there are parameters to train. Raises `InvalidInput` as `looping` does.
    """
    model = language.model
    check_fits(model, encoded)
    update = [encoded[row] for row in shuffled(len(encoded), settings.batch, settings.seed, 1)[0]]
    part = [update[row] for row in batches(update, settings.budget)[0]]
    with (
        adapted(model, lora, settings.seed) as learning,
        widened(learning, narrow_updates=settings.narrow_updates) as masters,
        looping(learning, settings, masters) as loop,
    ):
        trained = _cost(lambda some: _train(loop, some), part, limit)
        watched = _cost(lambda some: loop.evaluate(some, _losses), part, limit)
        changed = _update(learning, limit)

    def score(some: Some) -> None:
        with evaluating(model), torch.no_grad():
            response_logprobs(model, Batch.pad(some)).logp.cpu()

    return Speed(
        trained=trained,
        watched=watched,
        scored=_cost(score, part, limit),
        written=_writing(language, encoded, together, limit) if together else Cost(0.0, 0.0),
        update=changed,
    )


def _losses(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
    return -response_logprobs(model, batch).logp


def _train(loop: Loop, some: Some) -> None:
    # A loss of nan takes as long as any other, and no update is made of it.
    loop.update(1, 0.0, [Term(some, range(len(some)), _losses, math.nan)])


def _cost(call: Callable[[Some], object], part: Some, limit: float) -> Cost:
    """Return the cost of passes over examples, of which the first is the longest."""
    call(part[:1])  # the first pass makes what later ones find
    quick = _median(lambda: call(part[:1]), limit)
    width, count = len(part[0].tokens) - 1, min(len(part), max(2, int(limit / quick)))
    slow = _median(lambda: call(part[:count]), limit) if count > 1 else quick
    return Cost.between((width, quick), (width * count, slow))


def _median(call: Callable[[], object], limit: float) -> float:
    """Return the median of the seconds that some calls take, at least one."""
    found: list[float] = []
    end = time.perf_counter() + limit
    while len(found) < REPEATS and (not found or time.perf_counter() < end):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return max(statistics.median(found), 1e-9)


def _update(model: nn.Module, limit: float) -> float:
    """Return the seconds of a step of AdamW over the parameters that are trained."""
    learnt = [one for one in model.parameters() if one.requires_grad]
    count, like = sum(one.numel() for one in learnt), learnt[0]
    size = min(count, SAMPLE)
    other = nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device))
    other.grad = torch.zeros_like(other)
    optimizer = torch.optim.AdamW([other], fused=fusable([other]))

    def step() -> None:
        optimizer.step()
        _wait(like.device)

    step()  # makes the moments
    return _median(step, limit) * count / size


def _writing(language: LanguageModel, encoded: Some, together: int, limit: float) -> Cost:
    """Return the cost of a step of writing, in which each of some texts gets a token."""
    prompts = [one.tokens[max(0, one.prompt - TAIL) : one.prompt] for one in encoded]

    def step(rows: int) -> float:
        texts, stamps = [prompts[row % len(prompts)] for row in range(rows)], []

        def stamp(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any], __: object) -> None:
            tokens = given.get("input_ids", args[0] if args else None)
            _wait(language.model.device)
            stamps.append((time.perf_counter(), None if tokens is None else tuple(tokens.shape)))

        handle = language.model.register_forward_hook(stamp, with_kwargs=True)
        begun = time.perf_counter()
        try:
            options: dict[str, Any] = {"max_new_tokens": STEPS, "end": False, "progress": False}
            continuations(language.model, language.tokenizer, texts, **options)
        finally:
            handle.remove()
        one = (rows, 1)
        found = [now - past for (past, a), (now, b) in pairwise(stamps) if a == b == one]
        # A model that keeps nothing from token to token makes other passes.
        return statistics.median(found or [(time.perf_counter() - begun) / STEPS])

    few = min(2, together)
    quick = step(few)
    count = min(together, max(2 * few, int(few * limit / quick)))
    return Cost.between((few, quick), (count, step(count) if count > few else quick))


def _wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
