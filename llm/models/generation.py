"""A model's own answers to questions: greedy ones, or answers that are drawn at random.

A random token is drawn from softmax(logits / temperature), cut to the likeliest tokens that
together have the probability `top_p`. To draw from a law p is to take the largest of log p_i + g_i,
with g_i independent noise of Gumbel's law. So an answer is a greedy one of other scores, and is
written and checked as those are (`llm.writing`); and since its noise follows from the seed, the
example, the number of the sample and the place of the token, it depends neither on the answers
written beside it nor on how many are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm.data.tofu import Example
from llm.models.answers import responses
from llm.models.language_model import LanguageModel
from llm.randomness import derived_seed
from llm.scoring.encoding import MAX_LENGTH, end_tokens
from llm.scoring.limits import NEW_TOKENS, WRITING_BUDGET
from llm.writing.continuations import continuations
from markov.errors import require_number, require_whole

MOST = 10_000  # samples of an example


def generate(
    language: LanguageModel,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = WRITING_BUDGET,
    progress: bool = True,
) -> tuple[str, ...]:
    """Return the model's greedy answer to each example's prompt.

    Answers come without the tokens that frame a text and without blanks around them. Prompts have
    the same tokens as when responses are scored. An answer ends with the token that is scored as
    its end, or with another that ends a text. Raises `InvalidInput` as `encode_examples` and
    `continuations` do.
    """
    prompts = [
        one.tokens[: one.prompt] for one in responses(language, examples, max_length=max_length)
    ]
    written = continuations(
        language.model,
        language.tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        ends=end_tokens(language.tokenizer, language.template),
        budget=budget,
        progress=progress,
    )
    texts: Any = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    return tuple(text.strip() for text in texts)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Raises `InvalidInput` for a temperature that is not above 0, a `top_p` outside (0, 1] and a
    seed that is no whole number of at least 0.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_number(self.temperature, "temperature", lambda one: one > 0, "a number above 0")
        require_number(self.top_p, "top_p", lambda one: 0 < one <= 1, "a number in (0, 1]")
        require_whole(self.seed, "seed")

    def scores(self, label: object, place: int, logits: Float[Tensor, " vocab"]) -> Tensor:
        """Return the scores of the next token, of which the largest is that of the one drawn.

        They are logits + temperature * g, in nats, and -inf for tokens that are cut off. The noise
        g follows from the seed, the label of the text and the place of the token in it.
        """
        own = torch.Generator().manual_seed(derived_seed(self.seed, "sample", label, place))
        drawn = torch.empty(logits.shape).exponential_(generator=own)
        noise = -drawn.clamp(min=torch.finfo(drawn.dtype).tiny).log().to(logits)
        return self._cut(logits) + self.temperature * noise

    def _cut(self, logits: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
        if self.top_p == 1:
            return logits
        law, order = (logits / self.temperature).softmax(-1).sort(descending=True, stable=True)
        # A token is left out if those before it have the probability already; the first never is.
        beyond = law.cumsum(-1) - law >= self.top_p
        beyond[0] = False
        return logits.index_fill(0, order[beyond], -math.inf)


def sample(
    language: LanguageModel,
    examples: Sequence[Example],
    samples: int,
    sampling: Sampling,
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = WRITING_BUDGET,
    progress: bool = True,
) -> list[tuple[str, ...]]:
    """Return so many answers to each example's prompt, drawn independently.

    Prompts, ends and texts are as in `generate`. The noise of an answer is named by the index of
    its example. Raises `InvalidInput` as `generate` does, and unless there are 1 to `MOST` samples.
    """
    require_whole(samples, "samples", 1, MOST)
    encoded = responses(language, examples, max_length=max_length)
    labels = [(one.index, number) for one in examples for number in range(samples)]

    def choose(rows: Sequence[int], places: Sequence[int], logits: Tensor) -> Tensor:
        each = zip(rows, places, logits, strict=True)
        drawn = [sampling.scores(labels[row], place, own) for row, place, own in each]
        return torch.stack(drawn)

    written = continuations(
        language.model,
        language.tokenizer,
        [one.tokens[: one.prompt] for one in encoded for _ in range(samples)],
        max_new_tokens=max_new_tokens,
        ends=end_tokens(language.tokenizer, language.template),
        budget=budget,
        progress=progress,
        choose=choose,
    )
    texts: Any = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    stripped = [text.strip() for text in texts]
    return [tuple(stripped[row : row + samples]) for row in range(0, len(stripped), samples)]
