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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llm.scoring.encoding import BUDGET, Batch, Encoded
from llm.scoring.inside import bare, config_of
from llm.scoring.kept import Kept, keeps_apart
from llm.scoring.logprobs import (
    ELEMENTS,
    Named,
    check_fits,
    check_model,
    evaluating,
    logits,
    response_logprobs,
    score_encoded,
    scored_in,
)
from markov.objectives import SequenceLogProbs


def score_responses(
    model: nn.Module,
    encoded: Sequence[Encoded],
    *,
    budget: int = BUDGET,
    elements: int = ELEMENTS,
    progress: bool = True,
    named: Named | None = None,
) -> SequenceLogProbs:
    """Return the log-probabilities of responses, as `score_encoded` does, to within rounding.

    A prompt with several responses is read once where that saves tokens and the model allows it.
    No pass has more than `budget` tokens, or than one text. Raises `InvalidInput` as
    `score_encoded` does.
    """
    options: dict[str, Any] = {"progress": progress, "named": named}
    if not shares(model, encoded):
        return score_encoded(model, encoded, budget=budget, elements=elements, **options)
    check_fits(model, encoded)

    def logprobs(rows: Sequence[int]) -> SequenceLogProbs:
        return together(model, [encoded[row] for row in rows], elements=elements)

    return scored_in(model, encoded, planned(encoded, budget), logprobs, **options)


def planned(encoded: Sequence[Encoded], budget: int) -> list[list[int]]:
    """Return batches of places of texts, those of one prompt beside each other.

    The prompt with the longest text comes first. The second pass over a batch has at most `budget`
    tokens, padding included, or one text.
    """
    longest: dict[tuple[int, ...], int] = {}
    for one in encoded:
        asked = one.tokens[: one.prompt]
        longest[asked] = max(longest.get(asked, 0), len(one.tokens) - one.prompt)

    def place(row: int) -> tuple[object, ...]:
        one = encoded[row]
        asked = one.tokens[: one.prompt]
        return -longest[asked], -one.prompt, asked, -len(one.tokens)

    found: list[list[int]] = []
    width = 0
    for row in sorted(range(len(encoded)), key=place):
        own = len(encoded[row].tokens) - encoded[row].prompt
        if found and max(width, own) * (len(found[-1]) + 1) <= budget:
            found[-1].append(row)
            width = max(width, own)
        else:
            found.append([row])
            width = own
    return found


def together(
    model: nn.Module, encoded: Sequence[Encoded], *, elements: int = ELEMENTS
) -> SequenceLogProbs:
    """Return the log-probabilities of the responses of one batch, each prompt being read once.

    Every prompt needs two tokens: the last one is read with its responses, of which it predicts
    the first token.
    """
    first, rest, rows = parts(encoded)
    batch = Batch.pad(first)
    kept: list[Any] = []
    # Of the prompts no logits are wanted, but the head has to see something.
    logits(model, batch, lambda hidden: hidden[:, :1], kept=kept)
    cache = kept[0]
    # Without the last token of each, which is read again with the responses.
    present = batch.present[:, 1:].to(_device(cache))
    before = Kept(cache, present, torch.tensor(rows, device=present.device))
    return response_logprobs(model, Batch.pad(rest), elements=elements, before=before)


def parts(encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[Encoded], list[int]]:
    """Return the prompts, each once; the last token of each with each response; and whose it is."""
    found: dict[tuple[int, ...], int] = {}
    rows = [found.setdefault(one.tokens[: one.prompt], len(found)) for one in encoded]
    first = [Encoded(asked, len(asked)) for asked in found]
    return first, [Encoded(one.tokens[one.prompt - 1 :], 1) for one in encoded], rows


def _device(cache: Any) -> torch.device:
    return cache.layers[0].keys.device


def shares(model: nn.Module, encoded: Sequence[Encoded]) -> bool:
    """Return whether `score_responses` reads a prompt once for all its responses.

    That is where prompts come more than once, each can be read in two parts, and the model allows
    it.
    """
    asked = {one.tokens[: one.prompt] for one in encoded}
    return len(asked) < len(encoded) and min(map(len, asked)) > 1 and allows(model)


def allows(model: nn.Module) -> bool:
    """Return whether responses that go on from what was kept of prompts score as whole texts do.

    The model is tried on four short texts of two prompts, of which one is shorter. Raises
    `InvalidInput` for a model that is not a causal language model.
    """
    check_model(model)
    if not keeps_apart(bare(model)):
        return False
    vocab = config_of(model).vocab_size
    texts = [((1, 2, 3, 4, 5), 3), ((1, 2, 3, 6), 3), ((5, 4, 1, 7, 2, 3), 2), ((5, 4, 6), 2)]
    tried = [
        Encoded(tuple((token - 1) % max(1, vocab - 1) + 1 for token in tokens), prompt)
        for tokens, prompt in texts
    ]
    with evaluating(model), torch.no_grad():
        apart = together(model, tried).logp
        whole = response_logprobs(model, Batch.pad(tried)).logp
    return bool((apart - whole).abs().max() <= _rounding(model, whole))


def _rounding(model: nn.Module, logp: Tensor) -> float:
    """Return how far rounding may move a log-probability of a few tokens."""
    wide = {one.dtype for one in model.parameters() if one.is_floating_point() and one.itemsize > 1}
    eps = max((torch.finfo(dtype).eps for dtype in wide), default=0.0)
    return max(1e-5, 8 * eps) * max(1.0, float(logp.abs().max()))
