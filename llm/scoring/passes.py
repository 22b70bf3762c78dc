"""Passes over batches of examples, dealt out to the processes that there are (`llm.ranks`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from llm.ranks import dealt, in_shards, place, share, started
from llm.scoring.encoding import Encoded
from markov.console.progress import Bar, bar

Value = TypeVar("Value")


def by_batch(
    model: nn.Module,
    encoded: Sequence[Encoded],
    plan: Sequence[Sequence[int]],
    call: Callable[[Sequence[int]], Value],
    label: str,
    *,
    progress: bool = True,
) -> list[Value]:
    """Return what `call(rows)` gives for each batch of the plan, in its order, to every process.

    Each process makes the calls of its share. Where the model is in shards it makes as many as any
    other, so a call should make the same number of forward passes for every batch. The bar counts
    the tokens of this process. Raises, in all processes, what a call refuses in one of them.
    """
    in_step = started() > 1 and in_shards(model)
    own = share(len(plan), rank=place(), world=started())
    tokens = sum(len(encoded[row].tokens) for item, _ in own for row in plan[item])
    with token_bar(tokens, label, show=progress) as done:

        def one(rows: Sequence[int]) -> Value:
            value = call(rows)
            done.update(sum(len(encoded[row].tokens) for row in rows))
            return value

        return dealt(plan, one, work=work_of(encoded, plan), in_step=in_step)


def work_of(encoded: Sequence[Encoded], plan: Sequence[Sequence[int]]) -> int:
    """Return a number that follows from examples and batches, the same in every process."""
    # Python hashes whole numbers, unlike texts, in every process alike.
    texts = tuple((one.tokens, one.prompt) for one in encoded)
    return hash((texts, tuple(map(tuple, plan)))) if started() > 1 else 0


def token_bar(tokens: int, label: str, *, show: bool) -> Bar:
    """Return a bar that counts tokens; of several processes only the first shows one."""
    return bar(tokens, label, unit="token", show=show and place() == 0, unit_scale=True)
