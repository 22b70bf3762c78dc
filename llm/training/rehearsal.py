"""A pass of a model over pretended tensors, which counts the memory that a real one would take.

Pretended tensors (torch's `FakeTensorMode`) have shapes and dtypes but no numbers, so that a pass
of any architecture takes milliseconds and no memory. What is alive is counted, storage by storage,
while the model's own forward and backward code runs. Layers of one kind take the same each, so
that a pass through two of them tells what all of them would hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from llm.scoring.logprobs import ELEMENTS
from llm.training.adapters import Lora, adapted
from llm.training.loop import checkpointed
from llm.training.masters import widened

CHOSEN = "layers_chosen"  # the mark of a list of which some layers were left out


class Held(NamedTuple):
    """Bytes that a pass holds at its peak, besides parameters and their gradients."""

    activations: int
    """What layers hold: of a pass without gradients that is little, of another one much."""
    logits: int
    """What the head and the log-probabilities hold on top of that."""
    cache: int = 0
    """Keys and values of all tokens, where a text is to be continued."""


class Shape(NamedTuple):
    """How many texts a batch has, and how many tokens each of them."""

    rows: int
    time: int


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, Tensor):
                self._add(one)
        # Of its own copy, exp(logits - max), no other operation knows.
        inner = function is torch.ops.aten.logsumexp.default
        self.peak = max(self.peak, self.now + (_bytes(args[0]) if inner else 0))
        return found

    def leave_out(self, tensors: Iterable[Any]) -> None:
        """Do not count these tensors, which were there before."""
        for one in tensors:
            self._known[one.untyped_storage()._cdata] = one.untyped_storage()

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self.now += size

        def gone(_: object) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = ref(storage, gone)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model is trained, as far as it takes memory."""

    bfloat16: bool = False
    """Products in bfloat16, by autocast."""
    gradient_checkpointing: bool = False
    narrow_updates: bool = False
    lora: Lora | None = None


def rehearsed(
    skeleton: Any, shape: Shape, way: Way | None = None, *, writing: bool = False
) -> Held | None:
    """Return what a pass over one batch would hold, or None for a model that cannot pretend.

    `skeleton` is a model on torch's device "meta"; it is not changed. With a `way` the pass is one
    of training: it goes back too, over gradients that are there already. `writing` keeps the keys
    and values of all tokens, and takes the logits of the last ones alone.
    """

    def call(model: Any, counts: Sequence[int]) -> _Pass:
        with _as_trained(model, way) as (trained, bfloat16), FakeTensorMode():
            _move(trained)
            checkpointing = way is not None and way.gradient_checkpointing
            how = (counts, way is not None, bfloat16, checkpointing, writing)
            try:
                return _counted(trained, shape, True, *how)
            except Exception:  # a model that takes no mask of queries and keys
                return _counted(trained, shape, False, *how)

    try:
        layers = layers_of(skeleton)
        kinds = [] if layers is None else _kinds(layers)
        # A layer of each kind, then a second one of those kinds that have several.
        chosen = [one[0] for one in kinds] + [one[1] for one in kinds if len(one) > 1]
        with _only(layers, chosen):
            bare = deepcopy(skeleton)
        found = call(bare, [max(0, len(one) - 2) for one in kinds])
    except Exception:  # code of models can raise anything on tensors without numbers
        return None
    return Held(found.held + max(0, found.inner - found.head), found.head, found.cache)


def weighed(skeleton: Any, way: Way | None = None) -> Weights:
    """Return the bytes of a model's parameters, before or during training in a `way`."""

    def call(model: Any) -> Weights:
        names = {id(one): one.dtype for one in model.parameters()}
        with _as_trained(model, way) as (trained, _):
            every = list(trained.parameters())
            wide = [one for one in every if names.get(id(one), one.dtype) != one.dtype]
            learnt = [one for one in every if one.requires_grad and way is not None]
            buffers = sum(map(_bytes, trained.buffers()))
            masters = sum(map(_bytes, wide))
            return Weights(
                parameters=sum(map(_bytes, every)) + buffers - masters,
                masters=masters,
                gradients=sum(map(_bytes, learnt)),
                count=sum(one.numel() for one in every),
            )

    return _of_all_layers(skeleton, call)


@contextmanager
def _as_trained(model: Any, way: Way | None) -> Iterator[tuple[Any, bool]]:
    """Yield a model as it would be trained, and whether its products are in bfloat16."""
    if way is None:
        yield model.eval(), False
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to a model without numbers
        with (
            adapted(model, way.lora, 0) as trained,
            widened(trained, narrow_updates=way.narrow_updates) as masters,
        ):
            yield trained, way.bfloat16 or masters.computed == torch.bfloat16


def _of_all_layers(skeleton: Any, call: Callable[[Any], Weights]) -> Weights:
    """Return the numbers of a whole model, from copies with one or two layers of each kind."""
    layers = layers_of(skeleton)
    if layers is None:
        return call(deepcopy(skeleton))
    kinds = _kinds(layers)
    first = [one[0] for one in kinds]

    def of(chosen: Sequence[nn.Module]) -> Any:
        with _only(layers, chosen):
            return call(deepcopy(skeleton))

    least = of(first)
    found = least
    for same in kinds:
        if len(same) > 1:
            found = found.with_more(len(same) - 1, least, of([*first, same[1]]))
    return found


class Weights(NamedTuple):
    """Bytes of parameters in their own dtype, of float32 masters and of gradients."""

    parameters: int
    masters: int
    gradients: int
    count: int
    """Parameters, adapters included."""

    def with_more(self, count: int, least: Weights, more: Weights) -> Weights:
        """Return the numbers with so many further layers."""
        triples = zip(self, least, more, strict=True)
        return Weights(*(own + count * (b - a) for own, a, b in triples))


class _Pass(NamedTuple):
    """What is held when the head begins, and beyond it at most by the layers, or by the head."""

    held: int
    inner: int
    head: int
    cache: int


def _counted(
    model: Any,
    shape: Shape,
    masked: bool,
    counts: Sequence[int],
    training: bool,
    bfloat16: bool,
    gradient_checkpointing: bool,
    writing: bool,
) -> _Pass:
    tokens, head = torch.zeros(shape, dtype=torch.long), model.get_output_embeddings()
    # With padding a mask is made of both; made here, because its making looks at numbers.
    mask = torch.ones(shape.rows, 1, shape.time, shape.time, dtype=torch.bool) if masked else None
    live, entered, left, losses = Live(), [], [], []
    trainable = [one for one in model.parameters() if one.requires_grad and training]
    for parameter in trainable:
        parameter.grad = torch.empty_like(parameter)
    live.leave_out((*model.parameters(), *model.buffers(), *(one.grad for one in trainable)))

    def leave(gradient: Tensor) -> Tensor:
        left.append(live.peak)
        live.peak = live.now
        return gradient

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if entered:
            return None
        entered.append((live.now, live.peak))
        live.peak = live.now
        if args[0].requires_grad:
            args[0].register_hook(leave)
        hidden = args[0].flatten(0, -2)
        if writing:
            return (hidden[None, : shape.rows], *args[1:])
        step = max(1, ELEMENTS // head.weight.shape[0])
        for part in hidden.split(step):
            again = training and len(hidden) > step
            one = checkpoint(_logp, head, part, use_reentrant=False) if again else _logp(head, part)
            losses.append(one.sum())
        return (hidden[None, :1], *args[1:])

    begun: list[int] = []

    def begin(*_: object) -> None:
        if not entered:  # and not when a layer is computed again
            begun.append(live.now)

    layers = layers_of(model) if counts else None
    handles = [layer.register_forward_pre_hook(begin) for layer in layers or ()]
    handles.append(head.register_forward_pre_hook(enter))
    model.train(training)
    try:
        with (
            checkpointed(model, gradient_checkpointing and training),
            torch.set_grad_enabled(training),
            live,
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                found = model(tokens, attention_mask=mask, use_cache=writing, return_dict=True)
            past = getattr(found, "past_key_values", None) if writing else None
            if writing:
                found.logits.float()
            del found
            ((held, before),), after = entered, live.peak
            if training:
                torch.stack(losses).sum().backward()
                before, after = (
                    (max(before, live.peak), max(after, *left))
                    if left
                    else (
                        before,
                        live.peak,
                    )
                )
            cache = live.now if past is not None else 0
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.grad = None
    inner, outer = max(0, before - held), max(0, after - held)
    if training:
        # What a layer leaves behind is what the next one finds.
        ends = zip(counts, begun, begun[1:], strict=False)
        held += sum(count * max(0, end - start) for count, start, end in ends)
    # Of a pass without gradients nothing is left but keys and values, as many in every layer.
    share = 1 + sum(counts) / max(1, len(layers or ()))
    return _Pass(held - cache, inner, outer, round(cache * share))


def _logp(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return a log-probability per position, by the operations of `llm.scoring.logprobs`."""
    logits = head.forward(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, torch.zeros(len(logits), 1, dtype=torch.long)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kind(layer: nn.Module) -> Any:
    """Return what layers have in common that take the same memory."""
    shapes = tuple((name, tuple(one.shape), one.dtype) for name, one in layer.named_parameters())
    words = tuple(
        (name, value) for name, value in vars(layer).items() if isinstance(value, str | bool)
    )
    return type(layer), shapes, words


def _kinds(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Return the layers by kind."""
    kinds: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    return list(kinds.values())


def layers_of(model: Any) -> nn.ModuleList | None:
    """Return the list of a model's layers, or None where it has none of the configured length."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    return next((one for one in lists if len(one) == count or hasattr(one, CHOSEN)), None)


def _move(model: nn.Module) -> None:
    """Put pretended tensors in the places of parameters and buffers; tied ones stay tied."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for places in (module._parameters, module._buffers):
            for name, one in places.items():
                if one is None:
                    continue
                if id(one) not in moved:
                    fake: Any = torch.empty(one.shape, dtype=one.dtype, device="cpu")
                    if isinstance(one, nn.Parameter):
                        fake = nn.Parameter(fake, one.requires_grad)
                    moved[id(one)] = (fake, one)  # kept, so that no other gets its number
                places[name] = moved[id(one)][0]


def largest_layer(model: Any) -> tuple[int, int]:
    """Return the bytes of the largest layer, and of what lies outside all layers."""
    sizes = [sum(map(_bytes, layer.parameters())) for layer in layers_of(model) or ()]
    whole = sum(map(_bytes, model.parameters()))
    return max(sizes, default=0), whole - sum(sizes)


@contextmanager
def _only(layers: nn.ModuleList | None, chosen: Sequence[nn.Module]) -> Iterator[None]:
    """Leave only the chosen layers in the model inside the context."""
    if layers is None:
        yield
        return
    own = layers._modules
    layers._modules = {str(place): layer for place, layer in enumerate(chosen)}
    setattr(layers, CHOSEN, True)
    try:
        yield
    finally:
        layers._modules = own
        delattr(layers, CHOSEN)
