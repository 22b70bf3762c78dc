"""The training loop of language models: short, and the same code on any number of processes.

An update minimises a sum of terms. Each term is a sum over examples of one number per example,
times a factor, such as 1/examples. The examples of an update are dealt out to the processes and cut
into micro-batches by a budget of tokens. Since every factor counts the whole update, the gradient
is that of the mean over single examples, however they are dealt out and cut. The order of examples
follows from (seed, epoch) alone.

The processes, and whether each holds the whole model or a shard of it, are managed by accelerate:
`torchrun` or `accelerate launch` says how many there are and of which kind. Where one process has
fewer micro-batches than another, it makes passes that add nothing, because the processes of a model
in shards have to keep step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from jaxtyping import Float
from torch import Tensor, nn

from llm.randomness import own_randomness
from llm.ranks import joined
from llm.scoring.encoding import Batch, Encoded, batches
from llm.scoring.logprobs import evaluating
from llm.training.masters import NARROW, Masters
from llm.training.settings import Optimization
from markov.console.progress import Bar, bar
from markov.errors import InvalidInput, require

# Takes a model, a padded batch and its rows in a list of examples; returns a loss per row.
Losses = Callable[[nn.Module, Batch, Sequence[int]], Float[Tensor, " rows"]]


class Term(NamedTuple):
    """A part of an update's loss: factor * sum over rows of losses(model, batch, rows).

    The rows are those of `encoded`.
    """

    encoded: Sequence[Encoded]
    rows: Sequence[int]
    losses: Losses
    factor: float
    # Tokens of a forward pass, where the term takes fewer than the settings allow.
    budget: int | None = None


class Update(NamedTuple):
    """What an update saw: the values of its terms, and the norm of their gradient before clipping.

    The parameters are changed only if all of these numbers are finite.
    """

    terms: tuple[float, ...]
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether the parameters were changed."""
        return all(map(math.isfinite, (*self.terms, self.gradient_norm)))


@dataclass(frozen=True)
class Loop:
    """A model and its optimiser, spread over the processes that there are."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Optimization
    masters: Masters = Masters()

    def update(self, step: int, rate: float, terms: Sequence[Term]) -> Update:
        """Change the parameters once, by the gradient of the sum of terms; return what was seen.

        The parameters stay as they are where a term or the norm of the gradient is not finite.
        """
        world, passes = self.accelerator.num_processes, []
        for number, term in enumerate(terms):
            passes += [
                (number, term, *part) for part in self._parts(term.encoded, term.rows, term.budget)
            ]
        sums: list[Any] = [0.0] * len(terms)
        seeds = ("dropout", step, self.accelerator.process_index)
        with own_randomness(self.settings.seed, *seeds, device=self.accelerator.device):
            for place, (number, term, rows, counts) in enumerate(passes, start=1):
                # Gradients are exchanged once, with the last pass, and so equally often in every
                # process.
                last = place == len(passes)
                with (
                    nullcontext() if last else self.accelerator.no_sync(self.model),
                    nullcontext() if counts else _adding_nothing(self.model),
                ):
                    with self._precision(training=True):
                        losses = term.losses(
                            self.model, Batch.pad([term.encoded[row] for row in rows]), rows
                        )
                    loss = losses.sum() * term.factor
                    # The exchange takes the mean over processes, not the sum.
                    self.accelerator.backward(loss * world)
                sums[number] += loss.detach() if counts else loss.new_zeros(())
        seen = self._over_processes(torch.stack(sums))
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.settings.clip or math.inf
        )
        done = Update(tuple(seen.tolist()), float(norm))  # pyright: ignore[reportArgumentType]
        if done.finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad()
        return done

    def evaluate(
        self, encoded: Sequence[Encoded], losses: Losses, budget: int | None = None
    ) -> Float[Tensor, " examples"]:
        """Return the losses of all examples, in their order, without dropout and gradients.

        They are those of the model as it would be saved now. Every process gets them, on its CPU.
        `budget` are the tokens of a forward pass, where that is fewer than the settings allow.
        """
        found, nothing = {}, torch.zeros(())
        with self.as_saved() as saved, evaluating(saved), torch.no_grad(), self._precision():
            model = saved if self.masters.own else self.model
            for rows, counts in self._parts(encoded, range(len(encoded)), budget):
                values = losses(model, Batch.pad([encoded[row] for row in rows]), rows)
                # Every process makes a pass, even if it counts for nothing.
                nothing = torch.zeros_like(values[0])
                found |= dict(zip(rows, values, strict=True)) if counts else {}
        each = torch.stack([found.get(row, nothing) for row in range(len(encoded))])
        return self._over_processes(each).cpu()

    @contextmanager
    def as_saved(self) -> Iterator[nn.Module]:
        """Yield the bare model with the numbers that would be saved now.

        Inside the context masters are rounded to their own dtype.
        """
        model = self.accelerator.unwrap_model(self.model)
        with self.masters.rounded(model):
            yield model

    def _over_processes(self, values: Tensor) -> Any:
        """Return the sums of the values over all processes."""
        return (
            self.accelerator.reduce(values, "sum") if self.accelerator.num_processes > 1 else values
        )

    def bar(self, examples: int, label: str, *, show: bool, past: int = 0) -> Bar:
        """Return a progress bar that counts updates and starts after `past` epochs.

        It is shown by the main process alone.
        """
        each = self.settings.updates(examples)
        return bar(
            self.settings.epochs * each,
            label,
            unit="update",
            show=show and self.accelerator.is_main_process,
            initial=past * each,
        )

    def _parts(
        self, encoded: Sequence[Encoded], rows: Sequence[int], budget: int | None = None
    ) -> list[tuple[list[int], bool]]:
        """Return this process's micro-batches, and whether each of them counts.

        One that does not count only keeps step with the other processes.
        """
        world, order = (
            self.accelerator.num_processes,
            sorted(rows, key=lambda row: -len(encoded[row].tokens)),
        )
        plans = []
        for rank in range(world):
            own = order[rank::world]
            packed = batches([encoded[row] for row in own], budget or self.settings.budget)
            plans.append([([own[place] for place in places], True) for places in packed])
        own = plans[self.accelerator.process_index]
        return own + [([order[-1]], False)] * (max(map(len, plans)) - len(own))

    def _precision(self, *, training: bool = False) -> Any:
        narrow = self.settings.precision == "bfloat16" or (
            training and self.masters.computed == torch.bfloat16
        )
        return torch.autocast(
            next(self.model.parameters()).device.type, torch.bfloat16, enabled=narrow
        )


@contextmanager
def looping(
    model: nn.Module,
    settings: Optimization,
    masters: Masters = Masters(),  # noqa: B008
) -> Iterator[Loop]:
    """Yield a loop over a model in training mode; afterwards every module is in its own mode again.

    `masters` are the parameters that `llm.training.masters.widened` has widened. A single process
    leaves the model where it lies. With several processes, each takes its own device, and a model
    in shards stays in shards.

    Raises `InvalidInput` for a model without trainable parameters or with parameters that are not
    finite, for trainable parameters of 16 bits without masters, unless `narrow_updates` asks for
    them, and for masters in shards.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    require(len(trainable) > 0, "model", type(model).__name__, "one with trainable parameters")
    check_finite(model)
    narrow = settings.narrow_updates or not any(
        parameter.dtype in NARROW for parameter in trainable
    )
    lost = (
        "True where 16-bit parameters have no float32 masters: updates below half their spacing "
        "are lost"
    )
    require(narrow, "narrow_updates", settings.narrow_updates, lost)
    decayed = {"params": [parameter for parameter in trainable if parameter.ndim >= 2]}
    others = {
        "params": [parameter for parameter in trainable if parameter.ndim < 2],
        "weight_decay": 0.0,
    }
    groups = [group for group in (decayed, others) if group["params"]]
    ways = {"weight_decay": settings.weight_decay, "fused": fusable(trainable)}
    optimizer = torch.optim.AdamW(groups, settings.learning_rate, **ways)
    accelerator = joined()
    accelerator.device_placement = accelerator.num_processes > 1
    shards = accelerator.distributed_type == DistributedType.FSDP
    allowed = (
        "float32 where the model is in shards; for products in bfloat16 ask for that precision"
    )
    require(
        not (shards and masters.own), "dtype", str(masters.own[:1] and masters.own[0][1]), allowed
    )
    with evaluating(model), checkpointed(model, settings.gradient_checkpointing):
        model.train()
        prepared, optimizer = accelerator.prepare(model, optimizer)
        try:
            yield Loop(accelerator, prepared, optimizer, settings, masters)
        finally:
            optimizer.zero_grad()
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)


def fusable(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether AdamW can update parameters in one pass over them on their devices."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


def check_finite(model: nn.Module) -> None:
    """Raise `InvalidInput` for a model with a parameter that is not a finite number."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (*NARROW, torch.float32, torch.float64):
            allowed = f"finite parameters (not all numbers of {name} are)"
            require(
                bool(parameter.detach().isfinite().all()), "model", type(model).__name__, allowed
            )


@contextmanager
def _adding_nothing(model: nn.Module) -> Iterator[None]:
    """Set all gradients to exactly 0 inside the context.

    They are 0 even where the product of 0 and what is computed would not be.
    """
    handles: list[Any] = []

    def watch(module: nn.Module, *_: object) -> None:
        own = (one for one in module.parameters(recurse=False) if one.requires_grad)
        handles.extend(one.register_hook(torch.zeros_like) for one in own)

    for module in model.modules():
        watch(module)
        # A model in shards has other parameter objects during its forward pass.
        handles.append(module.register_forward_pre_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def checkpointed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Compute activations again in the backward pass inside the context, if that is wanted.

    A model that does so already is left as it is.
    """
    if not wanted or any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    ):
        yield
        return
    # transformers 5 has another name for gradient checkpointing.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    inner: Any = model
    try:
        # Without reentrant checkpoints adapters need no gradients of the embedding's output.
        getattr(inner, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise InvalidInput(
            "gradient_checkpointing", True, f"a model that can do it ({error})"
        ) from error
    try:
        yield
    finally:
        getattr(inner, f"{kind}_checkpointing_disable")()
