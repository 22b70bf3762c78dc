"""Log-probabilities of responses under any causal language model of transformers.

This is what the law needs of a model:

    logp = sum over the response's tokens y_t of log pi(y_t | prompt, y_<t),    in nats

The model's head, its widest layer by far, is applied to the scored positions only, and to a part of
them at a time if they are many, so that the logits of a whole batch never exist at once. A hook on
the head does this within the model's own forward pass, so that adapters and wrappers for several
devices work as ever. Padding comes last, where no scored position sees it.

A score that is not finite only says that the model's numbers have left their range. Entry points
that score or evaluate refuse it, and name the example and the model. Within a training it is a
divergence, which the run reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.scoring.encoding import (
    BUDGET,
    MAX_LENGTH,
    Batch,
    Encoded,
    PromptAndResponse,
    batches,
    encode_examples,
)
from llm.scoring.finite import Named, check_finite
from llm.scoring.inside import CAUSAL, config_of, embedding, head, most_places
from llm.scoring.passes import by_batch
from llm.scoring.templates import PLAIN, Template
from markov.errors import require
from markov.objectives import Number, SequenceLogProbs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm.scoring.shared import Kept

ELEMENTS = 2**25  # logits held at once: 128 MiB in float32, 256 positions of 128k words
# Named tensors with a value per row, of which `logp` is the first.
Found = TypeVar("Found", bound=tuple[Tensor, ...])


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[PromptAndResponse],
    *,
    template: Template = PLAIN,
    max_length: int = MAX_LENGTH,
    ref: Number = 0.0,
    budget: int = BUDGET,
    progress: bool = True,
) -> SequenceLogProbs:
    """Return the log-probabilities of the responses of examples, in their order.

    This is `encode_examples`, then `score_encoded`.
    """
    encoded = encode_examples(tokenizer, template, examples, max_length=max_length)
    return score_encoded(model, encoded, ref=ref, budget=budget, progress=progress)


def score_encoded(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    ref: Number = 0.0,
    budget: int = BUDGET,
    elements: int = ELEMENTS,
    progress: bool = True,
    named: Named | None = None,
) -> SequenceLogProbs:
    """Return the log-probabilities of responses, in the order given, computed without dropout.

    They are in nats, float32 or wider, on the CPU. `ref` (nats) is passed on: another model's
    `logp`, or 0.0 if there is no reference. A batch has examples of similar length and at most
    `budget` tokens, or one example. Raises `InvalidInput` for no example, a model that is not a
    causal language model, tokens or lengths beyond the model's own, and a `ref` of another shape;
    and `NotFinite`, which is an `InvalidInput`, at the first batch with a log-probability that is
    not a finite number. Its message calls the examples and the model what `named` calls them;
    without `named` it gives the place of the example and the class of the model.

    Of several processes (`llm.ranks`) each computes some of the batches, and all get the result.
    """

    def logprobs(batch: Batch) -> SequenceLogProbs:
        return response_logprobs(model, batch, elements=elements)

    found = in_batches(model, encoded, logprobs, budget, progress=progress, named=named)
    found = _with_reference(found.logp, found.length, ref)
    bad = found.ref[~found.ref.isfinite()].tolist()
    count = len(found.logp)
    require(not bad, "ref", bad[:1], f"finite numbers of nats ({len(bad)} of {count} are not)")
    return found


def in_batches(
    model: nn.Module,
    encoded: Sequence[Encoded],
    of: Callable[[Batch], Found],
    budget: int = BUDGET,
    **options: Any,
) -> Found:
    """Return what `of(batch)` gives for batches of the examples, checked as by `score_encoded`."""
    check_model(model)
    check_fits(model, encoded)
    plan = batches(encoded, budget)

    def one(rows: Sequence[int]) -> Found:
        return of(Batch.pad([encoded[row] for row in rows]))

    return scored_in(model, encoded, plan, one, **options)


def scored_in(
    model: nn.Module,
    encoded: Sequence[Encoded],
    plan: Sequence[Sequence[int]],
    call: Callable[[Sequence[int]], Found],
    *,
    progress: bool = True,
    named: Named | None = None,
) -> Found:
    """Return what `call(rows)` gives for each batch of a plan, in the order of the examples.

    Everything else is as in `score_encoded`.
    """

    def one(rows: Sequence[int]) -> Any:
        found: Any = call(rows)
        check_finite("logp", found.logp, model, rows, named)
        return found._make(part.cpu() for part in found)

    with evaluating(model), torch.no_grad():
        parts = by_batch(model, encoded, plan, one, "score", progress=progress)
    order = torch.tensor([row for rows in plan for row in rows]).argsort()
    return parts[0]._make(torch.cat(part)[order] for part in zip(*parts, strict=True))


def logits_budget(vocab: int, budget: int) -> int:
    """Return the tokens of a pass whose logits are all kept: about `ELEMENTS` logits at most."""
    return max(1, min(budget, ELEMENTS // vocab))


def response_logprobs(
    model: nn.Module,
    batch: Batch,
    ref: Number = 0.0,
    *,
    elements: int = ELEMENTS,
    before: Kept | None = None,
) -> SequenceLogProbs:
    """Return the log-probabilities of the responses of one batch, differentiable.

    They are computed in the mode that the model is in, and stay on the device of the logits. With
    `before`, what the model has kept of prompts, each row is the rest of a text. Raises
    `InvalidInput` for a `ref` that does not broadcast to the batch.
    """
    scored = batch.scored
    each = token_logprobs(model, batch, elements=elements, before=before)
    # Every place is written once, so that the sum is the same at every run, unlike one by scattered
    # addition.
    places = tuple(index.to(each.device) for index in scored.nonzero(as_tuple=True))
    logp = each.new_zeros(scored.shape).index_put(places, each).sum(-1)
    return _with_reference(logp, scored.sum(-1).to(logp), ref)


def token_logprobs(
    model: nn.Module, batch: Batch, *, elements: int = ELEMENTS, before: Kept | None = None
) -> Float[Tensor, " scored"]:
    """Return log pi(y_t | prompt, y_<t) of the scored tokens, row after row."""
    return token_values(model, batch, token_logprobs_of, elements=elements, before=before)


def token_values(
    model: nn.Module,
    batch: Batch,
    of: Callable[[Tensor, Tensor], Tensor],
    *,
    elements: int = ELEMENTS,
    before: Kept | None = None,
) -> Float[Tensor, "scored *values"]:
    """Return `of(logits, targets)` of the scored tokens, row after row.

    About `elements` logits are held at a time. They are normalised in float32 or wider, whatever
    the model's dtype. If gradients are wanted and the logits are computed in parts, each part is
    computed again in the backward pass rather than kept.
    """
    last, config = head(model), config_of(model)
    targets = batch.tokens[:, 1:][batch.scored]
    step = max(1, elements // config.vocab_size)
    if step >= len(targets):
        return of(scored_logits(model, batch, before), targets)
    finish, parts, tried = _finish(config), [], []

    def part(hidden: Tensor, target: Tensor) -> Tensor:
        return of(finish(last.forward(hidden)), target)

    def change(hidden: Tensor) -> Tensor:
        hidden = hidden[batch.scored.to(hidden.device)]
        for own in zip(hidden.split(step), targets.split(step), strict=True):
            parts.append(
                checkpoint(part, *own, use_reentrant=False)
                if torch.is_grad_enabled()
                else part(*own)
            )
        tried.append(finish(last.forward(hidden[None, :1])))
        return hidden[None, :1]

    # For one position the logits come from the model itself. If `finish` does not give the same,
    # the model has to compute all of them.
    one = logits(model, batch, change, before=before)
    if torch.allclose(one, tried[0], rtol=2 * torch.finfo(one.dtype).eps, atol=0.0):
        return torch.cat(parts)
    return of(scored_logits(model, batch, before), targets)


def scored_logits(
    model: nn.Module, batch: Batch, before: Kept | None = None
) -> Float[Tensor, "scored vocab"]:
    """Return the logits that predict each scored token, row after row, as the model computes them.

    They are differentiable.
    """
    scored = batch.scored
    return logits(model, batch, lambda own: own[scored.to(own.device)][None], before=before)[0]


def logits(
    model: nn.Module,
    batch: Batch,
    change: Callable[[Tensor], Tensor],
    *,
    before: Kept | None = None,
) -> Float[Tensor, "rows positions vocab"]:
    """Return the model's logits, with `change(hidden)` as the input of its head.

    `hidden` are the hidden states (batch, time-1, width). With `before`, what the model has kept of
    prompts, each row is the rest of a text. Raises `InvalidInput` if the model's forward pass does
    not put all its hidden states through its head, once.
    """
    device, shape, seen = embedding(model).device, tuple(batch.scored.shape), []

    def pre_hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(tuple(args[0].shape[:-1]))
        return (change(args[0]), *args[1:]) if seen == [shape] else args

    handle = head(model).register_forward_pre_hook(pre_hook)
    try:
        tokens, present = (field[:, :-1].to(device) for field in (batch.tokens, batch.present))
        options = {"attention_mask": present.long(), "use_cache": False}
        if before is not None:
            options = before.options(model, present)
        found = model(tokens, **options, return_dict=True)
    finally:
        handle.remove()
    require(
        seen == [shape],
        "model",
        type(model).__name__,
        f"{CAUSAL} whose head sees all hidden states once",
    )
    return found.logits


def check_model(model: nn.Module) -> None:
    """Raise `InvalidInput` unless the model predicts each token from earlier ones alone.

    Padding behind a text must not change its logits either. The model is tried on three short rows:
    two that differ in their last token, and one that ends earlier. No token but padding is 0, which
    some models take for padding wherever it stands.
    """
    name, device = type(model).__name__, embedding(model).device
    require(not getattr(config_of(model), "is_encoder_decoder", False), "model", name, CAUSAL)
    require(head(model) is not None, "model", name, f"{CAUSAL}: this one has no head")
    tokens = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 0, 0]], device=device)
    tokens = torch.where(tokens > 0, (tokens - 1) % max(1, config_of(model).vocab_size - 1) + 1, 0)
    present = torch.tensor([[True] * 5, [True] * 5, [True] * 3 + [False] * 2], device=device)
    with evaluating(model), torch.no_grad():
        found = model(
            tokens, attention_mask=present.long(), use_cache=False, return_dict=True
        ).logits
    require(found.shape[:2] == tokens.shape, "model", name, CAUSAL)
    allowed = 16 * torch.finfo(found.dtype).eps * found[present].abs().max()
    ahead = bool((found[0, :4] - found[1, :4]).abs().max() > allowed)
    require(not ahead, "model", name, f"{CAUSAL}: this one looks at what comes later")
    padded = bool((found[0, :3] - found[2, :3]).abs().max() > allowed)
    require(
        not padded,
        "model",
        name,
        f"{CAUSAL}: padding behind a text changes what this one makes of it",
    )


def check_fits(model: nn.Module, encoded: Sequence[Encoded]) -> None:
    """Raise `InvalidInput` unless there are examples and the model can take all their tokens.

    Tokens must be in the model's vocabulary, and examples no longer than its number of positions.
    """
    require(len(encoded) > 0, "examples", encoded, "at least one")
    token, vocab = max(max(one.tokens) for one in encoded), embedding(model).shape[0]
    require(
        token < vocab,
        "tokenizer",
        f"token {token}",
        f"one for this model, which knows tokens 0 to {vocab - 1}",
    )
    longest, limit = (
        max(len(one.tokens) for one in encoded),
        most_places(model),
    )
    require(
        limit is None or longest <= limit,
        "examples",
        f"{longest} tokens",
        f"at most {limit}, as the model takes",
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode inside the block, and restore all modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def token_logprobs_of(
    logits: Float[Tensor, "scored vocab"], targets: Int64[Tensor, " scored"]
) -> Float[Tensor, " scored"]:
    """Return log pi of the target at each position, normalised in float32 or wider."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(-1, targets.to(logits.device)[:, None]).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def _with_reference(logp: Tensor, length: Tensor, ref: Number) -> SequenceLogProbs:
    values, allowed = torch.as_tensor(ref).to(logp), f"a number, or {len(logp)} of them"
    # A single number stands for all; any other shape would silently be broadcast.
    require(values.ndim == 0 or values.shape == logp.shape, "ref", tuple(values.shape), allowed)
    return SequenceLogProbs(logp, length, values.expand(logp.shape))


def _finish(config: Any) -> Callable[[Tensor], Tensor]:
    """Return what models are known to do to logits after the head: scale or softly cap them."""

    def number(name: str) -> float | None:
        # Some configurations have a word here, such as MPT's "inv_sqrt_d_model", which their models
        # ignore.
        value = getattr(config, name, None)
        return value if isinstance(value, (int, float)) and value else None

    cap = number("final_logit_softcapping")
    factor, divisor = number("logit_scale") or 1, number("logits_scaling") or 1

    def finish(logits: Tensor) -> Tensor:
        logits = logits if factor == 1 else logits * factor
        logits = logits if divisor == 1 else logits / divisor
        return torch.tanh(logits / cap) * cap if cap else logits

    return finish
