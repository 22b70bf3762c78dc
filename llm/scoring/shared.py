"""Score several responses to one prompt, which is read once for all of them.

TOFU asks for seven answers to each question: the truth, its paraphrase and five wrong ones. Read
one by one, the question is read seven times, which is about half of all tokens. Here a batch takes
two passes: the prompts, each once, up to their last token; then that token and the response of each
text, which goes on from what the model has kept of its prompt.

Not every model allows that. Some keep a summary of what they read, some a window of it, and some
count places in ways of their own. A model is therefore tried first, on a few short texts: unless it
gives each response the log-probabilities that it has when it is read with its prompt, every text is
read whole (`llm.scoring.logprobs.score_encoded`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from llm.ranks import dealt, started
from llm.scoring.encoding import BUDGET, Batch, Encoded, batches
from llm.scoring.finite import Named
from llm.scoring.inside import bare, config_of, embedding, head, most_places
from llm.scoring.logprobs import (
    ELEMENTS,
    Found,
    check_fits,
    check_model,
    evaluating,
    in_batches,
    response_logprobs,
    scored_in,
)
from markov.errors import InvalidInput, out_of_memory, require_whole

LEAST = 2048  # tokens that have to be saved: below that, trying costs about as much
HELD = 2  # tokens whose keys and values are held at once, for each token of the budget
COARSE = 1e-6  # rounding above which nobody knows beforehand how far it moves a score
LONG = 24  # tokens of the longer prompt on which a model is tried
# How a model may fail that cannot go on from what it keeps, or keeps it in another way.
FAILURES = (
    *(TypeError, AttributeError, LookupError, ValueError, AssertionError, RuntimeError),
    InvalidInput,
)


Value = TypeVar("Value")
Given = TypeVar("Given", covariant=True)


class Scores(Protocol[Given]):
    """What scores the responses of a batch, behind what the model has kept of their prompts."""

    def __call__(
        self, model: nn.Module, batch: Batch, *, elements: int, before: Kept | None = None
    ) -> Given: ...


class Kept(NamedTuple):
    """Keys and values of prompts, and which prompt each row of a batch goes on from.

    The prompts are padded in front, where `present` is False, so that what follows stands right
    behind each of them. `rows` has the place of a prompt per row.
    """

    cache: Any
    present: Bool[Tensor, "prompts time"]
    rows: Int64[Tensor, " batch"]

    def options(self, model: nn.Module, present: Bool[Tensor, "batch rest"]) -> dict[str, Any]:
        """Return what the model's forward pass takes besides the rest of each text.

        `present` is False on the padding behind it. Every call has keys and values of its own,
        since a forward pass adds to them.
        """
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(self.rows)
        before = self.present[self.rows.to(self.present.device)]
        whole = torch.cat([before, present], dim=1)
        places = positions(model, whole)
        places = {name: value[:, before.shape[1] :] for name, value in places.items()}
        return {
            "attention_mask": whole.long(),
            "past_key_values": cache,
            "use_cache": True,
            **places,
        }


def positions(model: nn.Module, present: Bool[Tensor, "rows time"]) -> dict[str, Any]:
    """Return the places of tokens, counted from the start of each text, if the model takes any.

    Padding has the place of a token beside it.
    """
    if "position_ids" not in inspect.signature(bare(model).forward).parameters:
        return {}
    return {"position_ids": (present.long().cumsum(-1) - 1).clamp(min=0)}


def padded(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int64[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """Return prompts as rows that are padded in front with token 0, and True where they are."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    length = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(width) >= width - length[:, None]


def kept_of(model: nn.Module, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> Kept:
    """Return what a model keeps of prompts, for texts that go on from those in `rows`."""
    tokens, present = (one.to(embedding(model).device) for one in padded(prompts))
    options = {"attention_mask": present.long(), **positions(model, present)}
    found = model(tokens, **options, use_cache=True, return_dict=True)
    return Kept(found.past_key_values, present, torch.tensor(rows))


def keeps_apart(model: Any) -> bool:
    """Return whether the model keeps keys and values of each text apart, in every layer."""
    from transformers import DynamicCache, cache_utils

    kind = getattr(cache_utils, "DynamicLayer", None)  # older versions have none
    default = getattr(model, "_supports_default_dynamic_cache", lambda: False)
    if kind is None or not default():
        return False
    return all(type(layer) is kind for layer in DynamicCache(config=model.config).layers)


class Parts(NamedTuple):
    """A batch of texts in two parts: what is read of prompts, and what is read behind them.

    `prompts` are the distinct prompts without their last tokens, `rest` the last token of the
    prompt with each response, and `rows` the place of a prompt for each of these.
    """

    prompts: list[tuple[int, ...]]
    rest: list[Encoded]
    rows: list[int]

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Parts:
        """Return the parts of texts, whose prompts have two tokens or more."""
        found: dict[tuple[int, ...], int] = {}
        rows = [found.setdefault(one.tokens[: one.prompt], len(found)) for one in encoded]
        rest = [Encoded(one.tokens[one.prompt - 1 :], 1) for one in encoded]
        return cls([asked[:-1] for asked in found], rest, rows)

    @property
    def passes(self) -> tuple[int, int]:
        """The tokens of both passes, padding included."""
        # The last token of a response predicts nothing.
        widths = max(map(len, self.prompts)), max(len(one.tokens) for one in self.rest) - 1
        return widths[0] * len(self.prompts), widths[1] * len(self.rest)


def score_responses(
    model: nn.Module,
    encoded: Sequence[Encoded],
    of: Scores[Found] = response_logprobs,
    *,
    budget: int = BUDGET,
    elements: int = ELEMENTS,
    progress: bool = True,
    named: Named | None = None,
) -> Found:
    """Return what `of` gives for each response, in the order of the examples.

    These are their log-probabilities, as `score_encoded` takes them, to within rounding, or other
    scores beside them (`llm.scoring.greedy`). A prompt with several responses is read once where
    that saves tokens and the model allows it. No pass has more than `budget` tokens, or than one
    text, and keys and values of `HELD` times as many tokens are held. Raises `InvalidInput` as
    `score_encoded` does.
    """
    options: dict[str, Any] = {"progress": progress, "named": named}
    plan = plan_of(model, encoded, budget)
    if plan is None:
        return in_batches(model, encoded, partial(of, model, elements=elements), budget, **options)
    check_fits(model, encoded)

    def scores(rows: Sequence[int]) -> Found:
        return together(model, [encoded[row] for row in rows], of, elements=elements)

    return scored_in(model, encoded, plan, scores, **options)


def plan_of(
    model: nn.Module, encoded: Sequence[Encoded], budget: int = BUDGET
) -> list[list[int]] | None:
    """Return the batches in which `score_responses` reads a prompt once for all its responses.

    It is None where texts are read whole: where less than `LEAST` tokens are saved, or the model
    does not allow it. Raises `InvalidInput` for a budget that is not allowed, and for a model that
    is not a causal language model.
    """
    asked = {one.tokens[: one.prompt] for one in encoded}
    if len(asked) == len(encoded) or min(map(len, asked)) < 2:
        return None
    whole = sum(len(rows) * (len(encoded[rows[0]].tokens) - 1) for rows in batches(encoded, budget))
    plan = planned(model, encoded, budget)
    own = sum(sum(Parts.of([encoded[row] for row in rows]).passes) for rows in plan)
    return plan if whole - own >= LEAST and allows(model) else None


def planned(model: nn.Module, encoded: Sequence[Encoded], budget: int) -> list[list[int]]:
    """Return batches of places of texts, those of one prompt beside each other.

    The prompt with the longest response comes first. Neither pass over a batch has more than
    `budget` tokens, padding included, and no more than `HELD` times as many are held; or it is of
    one text. Nor are there more places, padding included, than the model has.
    """
    require_whole(budget, "budget", 1)
    limit = most_places(model)
    longest: dict[tuple[int, ...], int] = {}
    for one in encoded:
        asked = one.tokens[: one.prompt]
        longest[asked] = max(longest.get(asked, 0), len(one.tokens) - one.prompt)

    def order(row: int) -> tuple[object, ...]:
        one = encoded[row]
        asked = one.tokens[: one.prompt]
        return -longest[asked], -one.prompt, asked, -len(one.tokens)

    return list(_batches(encoded, sorted(range(len(encoded)), key=order), budget, limit))


def _batches(
    encoded: Sequence[Encoded], order: Sequence[int], budget: int, limit: int | None
) -> Iterator[list[int]]:
    rows: list[int] = []
    first = rest = 0  # tokens of the longest prompt of the batch, and of its longest response
    prompts: set[tuple[int, ...]] = set()
    for row in order:
        one = encoded[row]
        asked, own = one.tokens[: one.prompt], len(one.tokens) - one.prompt
        now, wide, long = prompts | {asked}, max(first, one.prompt - 1), max(rest, own)
        count = len(rows) + 1
        fits = count * long <= budget and len(now) * wide <= budget
        fits = fits and count * (wide + long) + len(now) * wide <= HELD * budget
        fits = fits and (limit is None or wide + long <= limit)
        if rows and not fits:
            yield rows
            rows, now, wide, long = [], {asked}, one.prompt - 1, own
        rows.append(row)
        first, rest, prompts = wide, long, now
    if rows:
        yield rows


def together(
    model: nn.Module,
    encoded: Sequence[Encoded],
    of: Scores[Found] = response_logprobs,
    *,
    elements: int = ELEMENTS,
) -> Found:
    """Return what `of` gives for the responses of one batch, each prompt being read once.

    Every prompt needs two tokens: the last one is read with its responses, of which it predicts
    the first token.
    """
    parts = Parts.of(encoded)
    before = _kept(model, parts)
    return of(model, Batch.pad(parts.rest), elements=elements, before=before)


def _kept(model: nn.Module, parts: Parts) -> Kept:
    def least(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:1, :1], *args[1:])  # of prompts no logits are wanted

    handle = head(model).register_forward_pre_hook(least)
    try:
        return kept_of(model, parts.prompts, parts.rows)
    finally:
        handle.remove()


def allows(model: nn.Module) -> bool:
    """Return whether responses that go on from what was kept of prompts score as whole texts do.

    The model is tried on four short texts of two prompts, one of two tokens beside a longer one.
    How far rounding moves a score of 16 bits is seen by reading the same texts alone and side by
    side. Raises `InvalidInput` for a model that is not a causal language model.
    """
    check_model(model)
    limit = most_places(model)
    long = LONG if limit is None else min(LONG, limit - 4)
    if long < 3 or not _tried(lambda: keeps_apart(bare(model))):
        return False
    vocab = max(1, config_of(model).vocab_size - 1)
    first, second = tuple(islice(cycle((1, 2, 3, 5, 4)), long)), (4, 1)
    texts = [(first, (2, 6, 3)), (first, (7,)), (second, (2, 5, 6, 1)), (second, (3,))]
    tried = [
        Encoded(tuple((token - 1) % vocab + 1 for token in (*prompt, *response)), len(prompt))
        for prompt, response in texts
    ]
    with evaluating(model), torch.no_grad():
        whole = response_logprobs(model, Batch.pad(tried)).logp
        rounding = 1e-5 * whole.abs().max().clamp(min=1.0)
        if torch.finfo(embedding(model).dtype).eps > COARSE:
            alone = torch.cat([response_logprobs(model, Batch.pad([one])).logp for one in tried])
            rounding = rounding + 4 * (alone - whole).abs().max()
        apart = _tried(lambda: together(model, tried).logp)
    # Of several processes all have to read alike.
    alike = apart is not None and bool((apart - whole).abs().max() <= rounding)
    return all(dealt(range(started()), lambda _: alike, work=0))


def _tried(call: Callable[[], Value]) -> Value | None:
    """Return what a call gives, or None where it fails for the model's reasons."""
    try:
        return call()
    except FAILURES as error:
        if out_of_memory(error):
            raise
        return None
