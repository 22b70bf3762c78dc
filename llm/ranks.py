"""Several processes that were started together: which one this is, and its share of the work.

`torchrun --nproc_per_node 2 -m llm score ...` starts two processes, and accelerate joins them. All
do the same, up to what is costly, a list of batches. The list is dealt out, one batch to each
process in turn, and every process then gets the results of all, in the order of the list. A batch
holds the same examples as in a single process, so that its numbers are the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from markov.errors import InvalidInput, require

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

# Environment variables set by whatever starts processes; accelerate reads the same names.
COUNTS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
PLACES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "RANK")
Value = TypeVar("Value")


class Done(NamedTuple):
    """What one process did of a list of work: results, and what was refused, by place in the list.

    `work` is a number that follows from the list, by which processes tell that they share one.
    """

    work: int
    found: Mapping[int, Any]
    refused: Mapping[int, InvalidInput]


def started() -> int:
    """Return how many processes were started together; 1 for a program that was simply called."""
    return max(1, _number(COUNTS, 1))


def place() -> int:
    """Return the number of this process among them, from 0."""
    return max(0, _number(PLACES, 0)) if started() > 1 else 0


def own_place() -> int:
    """Return the number of this process among those on this machine, from 0."""
    return _number(("LOCAL_RANK",), 0)


def _number(names: tuple[str, ...], default: int) -> int:
    return next(
        (int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default
    )


def joined() -> Accelerator:
    """Return accelerate's view of the processes, which are joined by this call at the latest.

    Raises `InvalidInput` where accelerate sees fewer processes than were started: each of them
    would train, and write, alone.
    """
    import torch
    from accelerate import Accelerator

    # Not accelerate's states alone: made first, they would not learn of shards or
    # ACCELERATE_USE_CPU. Without an accelerator it joins processes only where it is told so.
    several = started() > 1
    cpu = several and not torch.accelerator.is_available()
    found = Accelerator(device_placement=False, cpu=cpu)
    allowed = (
        f"processes that accelerate joins (it sees {found.num_processes}; on CPUs beside a GPU it "
        "needs ACCELERATE_USE_CPU=1)"
    )
    require(found.num_processes == started(), "processes", started(), allowed)
    return found


def in_shards(model: nn.Module) -> bool:
    """Return whether each process holds a part of the model only, so that all have to keep step."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def share(count: int, *, rank: int, world: int, in_step: bool = False) -> list[tuple[int, bool]]:
    """Return the places, in a list of `count` items, that a process works on, and if each counts.

    Process `rank` of `world` has every `world`-th item. With `in_step` all processes get as many
    items: those that do not count only repeat the last of the list.
    """
    own = [(item, True) for item in range(rank, count, world)]
    most = -(-count // world) if in_step else 0
    return own + [(count - 1, False)] * (most - len(own))


def together(parts: Sequence[Done]) -> dict[int, Any]:
    """Return the results of all processes by place.

    Raises what was refused first in the order of the list, and `InvalidInput` for processes that
    worked on other lists.
    """
    alike = len({part.work for part in parts}) == 1
    allowed = "processes that all ask for the same examples: their work is one list, dealt out"
    require(alike, "processes", len(parts), allowed)
    refused = {item: error for part in parts for item, error in part.refused.items()}
    if refused:
        raise refused[min(refused)]
    return {item: value for part in parts for item, value in part.found.items()}


def pooled(work: int, call: Callable[[], Mapping[int, Value]]) -> dict[int, Value]:
    """Return what the call gives in all processes, by number; each makes the call for its share.

    What is sent between processes should be plain values, or tensors on the CPU. `work` is as in
    `Done`. An `InvalidInput` that is raised in one process is raised in all.
    """
    if started() == 1:
        return dict(call())
    try:
        own = Done(work, call(), {})
    except InvalidInput as error:
        own = Done(work, {}, {place(): error})
    return together(exchanged(own))


def dealt(
    items: Sequence[Any],
    call: Callable[[Any], Value],
    *,
    work: int,
    in_step: bool = False,
) -> list[Value]:
    """Return the result of the call for each item, in their order; each process makes its share.

    What is refused, by an `InvalidInput`, is refused in all processes, and is what a single process
    would have refused first. With `in_step` each process makes as many calls as any other, as
    models in shards need. `work` is as in `Done`.
    """
    if started() == 1:
        return [call(item) for item in items]
    found, refused = {}, {}
    for item, counts in share(len(items), rank=place(), world=started(), in_step=in_step):
        try:
            value = call(items[item])
        except InvalidInput as error:
            refused |= {item: error} if counts else {}
            if not in_step:
                break
        else:
            found |= {item: value} if counts else {}
    every = together(exchanged(Done(work, found, refused)))
    return [every[item] for item in range(len(items))]


def exchanged(own: Done) -> list[Done]:
    """Return what every process did, in the order of the processes."""
    import torch.distributed as distributed

    every: list[Any] = [None] * joined().num_processes
    distributed.all_gather_object(every, own)
    return every
