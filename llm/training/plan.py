"""The memory that work with a model will take, known before its weights are read.

Parameters are counted on the architecture itself, built without numbers, and what passes hold is
counted on passes over pretended tensors (`llm.training.rehearsal`). Work has phases with peaks of
their own: training, scoring, writing. A `Plan` is the phase that takes most.

    training    parameters, masters, gradients, two moments, activations and logits of the largest
                micro-batch
    scoring     parameters (after an update also masters and moments), and one batch without
                gradients
    writing     the same, with the keys and values of all tokens of a batch

What a program takes without a model, the pieces that an allocator cannot use, tables of results,
and what is kept of prompts while several answers to them are scored (`llm.scoring.shared.HELD`) are
not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from llm.scoring.limits import BUDGET, MAX_LENGTH, writing_budget
from llm.training.adapters import Lora
from llm.training.memory import gigabytes
from llm.training.rehearsal import (
    Held,
    Shape,
    Way,
    Weights,
    largest_layer,
    rehearsed,
    weighed,
)

RANK = 8  # of adapters that are suggested
MOMENTS = 2  # that AdamW keeps of every parameter
DEVICES = (2, 4, 8, 16)
LEAST_BUDGET = 128  # tokens of a batch, below which no smaller batch is suggested

NOTHING = Held(0, 0)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done with a model, as far as it takes memory.

    `way` says how it is trained, if it is. `writing` is the number of tokens of an answer that it
    writes, 0 for none, in batches of `writing_budget` tokens. `copies` are whole copies of the
    parameters held besides. The work is shared by `processes`; with `shards` each of them holds a
    part of all that is trained.
    """

    dtype: str = "float32"
    way: Way | None = None
    budget: int = BUDGET
    max_length: int = MAX_LENGTH
    writing: int = 0
    writing_budget: int = 0
    copies: int = 0
    processes: int = 1
    shards: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes that work takes at its peak, per process, by what they are for.

    `state` is not among them: it is what an interrupted run keeps on the disk.
    """

    parameters: int = 0
    masters: int = 0
    copies: int = 0
    gradients: int = 0
    moments: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    state: int = 0
    count: int = 0
    """Parameters, adapters included."""
    whole: bool = True
    """Whether passes were counted too: the code of some models cannot run without numbers."""

    @property
    def parts(self) -> dict[str, int]:
        """The bytes by what they are for, without those that are not needed."""
        named = {**vars(self), "keys and values": self.cache}
        return {
            name: size
            for name, size in named.items()
            if size and name not in ("state", "count", "cache", "whole")
        }

    @property
    def total(self) -> int:
        """The bytes at the peak."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.parts.items())
        least = "" if self.whole else "at least "
        return f"{least}{gigabytes(self.total)} GB ({parts})"


@dataclass(frozen=True)
class Planner:
    """Plans work with one architecture.

    `build` returns the architecture in a dtype, on torch's device "meta".
    """

    build: Callable[[str], Any]

    @cached_property
    def _skeletons(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _known(self) -> dict[Any, Any]:
        return {}

    def count(self) -> int:
        """Return the number of parameters."""
        return self._weights("float32", None).count

    def plan(self, work: Work) -> Plan:
        """Return what the work takes in the phase that takes most."""
        return max(self._phases(work), key=lambda plan: plan.total)

    def least(self, work: Work) -> int:
        """Return what the work takes at least: no pass is rehearsed for this."""
        return max(plan.total for plan in self._phases(work, passes=False))

    def _phases(self, work: Work, *, passes: bool = True) -> Iterator[Plan]:
        """Yield what each phase of the work takes."""
        own = self._weights(work.dtype, None)
        state, count, after = 0, own.count, {"parameters": own.parameters}
        largest, most = 0, NOTHING
        if work.way is not None:
            trained = self._weights(work.dtype, work.way)
            count, state = trained.count, (1 + MOMENTS) * trained.gradients
            parts = {
                "parameters": trained.parameters,
                "masters": trained.masters,
                "gradients": trained.gradients,
                "moments": MOMENTS * trained.gradients,
            }
            if work.shards:
                layer, others = largest_layer(self._skeleton("float32"))
                whole = 2 * (layer + others)  # gathered for a pass, with their gradients
                parts = {name: size // work.processes for name, size in parts.items()}
                parts["parameters"] += whole
            elif work.processes > 1:
                parts["gradients"] *= 2  # once more in what is exchanged
            held = self._held(work.dtype, self._shape(work), work.way) if passes else NOTHING
            plan = Plan(
                **parts,
                copies=work.copies * (trained.parameters + trained.masters),
                activations=held.activations,
                logits=held.logits,
                state=state,
                count=count,
                whole=held != NOTHING,
            )
            yield plan
            largest, most = plan.total, held
            after = {name: parts[name] for name in ("parameters", "masters", "moments")}
            if trained.masters:  # rounded beside the masters whenever the model is looked at
                after["parameters"] += own.parameters
        after["copies"] = work.copies * own.parameters
        known: dict[str, Any] = {**after, "state": state, "count": count}
        if work.shards:  # each process reads all weights before it keeps its part
            yield Plan(parameters=own.parameters, state=state, count=count)
        # A batch without gradients holds no more than one of training.
        if not passes or Plan(**known).total + sum(most) > largest or work.way is None:
            held = self._held(work.dtype, self._shape(work), None) if passes else NOTHING
            known["whole"] = held != NOTHING
            yield Plan(**known, activations=held.activations, logits=held.logits)
        if work.writing and passes:
            rows = max(1, work.writing_budget // (work.max_length + work.writing))
            held = self._held(work.dtype, Shape(rows, work.max_length), None, writing=True)
            cache = held.cache * (work.max_length + work.writing) // work.max_length
            yield Plan(**known, activations=held.activations, logits=held.logits, cache=cache)

    def _shape(self, work: Work) -> Shape:
        """Return the shape of the largest batch, as `llm.scoring.encoding.batches` makes them."""
        rows = max(1, work.budget // work.max_length)
        return Shape(rows, max(2, work.max_length) - 1)

    def _skeleton(self, dtype: str) -> Any:
        if dtype not in self._skeletons:
            self._skeletons[dtype] = self.build(dtype)
        return self._skeletons[dtype]

    def _weights(self, dtype: str, way: Way | None) -> Weights:
        bare = None if way is None else replace(way, bfloat16=False, gradient_checkpointing=False)
        key = (dtype, bare)
        if key not in self._known:
            self._known[key] = weighed(self._skeleton(dtype), bare)
        return self._known[key]

    def _held(self, dtype: str, shape: Shape, way: Way | None, *, writing: bool = False) -> Held:
        key = (dtype, shape, way, writing)
        if key not in self._known:
            found = rehearsed(self._skeleton(dtype), shape, way, writing=writing)
            self._known[key] = found or NOTHING
        return self._known[key]


def fitting(
    planner: Planner, work: Work, options: Container[str], room: Callable[[Work], int]
) -> tuple[str, Plan] | None:
    """Return the least change with which some work fits, in words, and its plan; or None.

    `options` are the names of those that the command has, and `room` is what a process may take
    for some work, in bytes.
    """
    for words, less in changes(work, options):
        if planner.least(less) <= room(less):
            plan = planner.plan(less)
            if plan.total <= room(less):
                return words, plan
    return None


def changes(work: Work, options: Container[str]) -> Iterator[tuple[str, Work]]:
    """Yield what takes less memory than some work: options in words, and the work with them.

    First come single changes, in the order adapters, gradient checkpointing, bfloat16, a smaller
    batch; then several of them; then shards.
    """
    ways = [
        name
        for name, option in (
            ("lora", "lora_rank"),
            ("checkpointing", "gradient_checkpointing"),
            ("bfloat16", "dtype"),
        )
        if option in options
    ]
    budgets, budget = [], work.budget // 2
    while budget >= (LEAST_BUDGET if work.writing else max(LEAST_BUDGET, work.max_length)):
        budgets.append(budget)
        budget //= 2
    chosen = [((name,), None) for name in ways] + [((), budget) for budget in budgets]
    chosen += [(names, None) for count in (2, 3) for names in combinations(ways, count)]
    chosen += [(tuple(ways), budget) for budget in budgets]
    for names, budget in chosen:
        words, less = changed(work, names, budget, options)
        if len(words) == len(names) + (budget is not None):
            yield " ".join(words), less
    alone = "jobs" in options  # a command of one process
    if work.way is not None and work.way.lora is None and not (work.shards or alone):
        for devices in DEVICES:
            kept = [name for name in ways if name == "checkpointing"]
            words, less = changed(work, kept, None, options)
            words = [f"FSDP over {devices} such devices", *words]
            yield " ".join(words), replace(less, processes=devices, shards=True)


def changed(
    work: Work, names: Sequence[str], budget: int | None, options: Container[str]
) -> tuple[list[str], Work]:
    """Return the options of the named changes, and the work with them.

    A change that would change nothing has no option.
    """
    words = []
    for name in names:
        way = work.way
        if name == "lora" and way is not None and way.lora is None:
            words.append(f"--lora-rank {RANK}")
            work = replace(work, way=replace(way, lora=Lora(rank=RANK)))
        elif name == "checkpointing" and way is not None and not way.gradient_checkpointing:
            words.append("--gradient-checkpointing")
            work = replace(work, way=replace(way, gradient_checkpointing=True))
        elif name != "bfloat16" or work.dtype != "float32":
            continue
        elif way is None or way.lora is not None:
            words.append("--dtype bfloat16")
            work = replace(work, dtype="bfloat16")
        elif not way.bfloat16 and "precision" in options:
            # Masters are float32 whatever the dtype: of full training only products get narrower.
            words.append("--precision bfloat16")
            work = replace(work, way=replace(way, bfloat16=True))
    if budget is not None:
        words.append(f"--budget {budget}")
        less = writing_budget(budget) if work.writing else 0
        work = replace(work, budget=budget, writing_budget=less)
    return words, work
