"""A model's own answers to questions: greedy ones, or answers that are drawn at random.

A random token is drawn from softmax(logits / temperature). To draw from a law p is to take the
largest of log p_i + g_i, with independent noise g_i of Gumbel's law. So an answer is a greedy one
of other scores, and is written and checked as those are (`llm.writing`). Its noise follows from the
seed, the example, the number of the sample and the place of the token: it depends neither on the
answers written beside it nor on how many are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
WARMTH = (1e-6, 1e4)  # temperatures at which scores stay finite


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
    options: dict[str, Any] = {"budget": budget, "progress": progress}
    return tuple(_texts(language, prompts, max_new_tokens=max_new_tokens, **options))


def _texts(language: LanguageModel, prompts: Sequence[Sequence[int]], **options: Any) -> list[str]:
    """Return what `continuations` writes after prompts, as texts without blanks around them."""
    ends = end_tokens(language.tokenizer, language.template)
    written = continuations(language.model, language.tokenizer, prompts, ends=ends, **options)
    texts: Any = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [text.strip() for text in texts]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Raises `InvalidInput` for a temperature outside `WARMTH` and a seed that is no whole number of
    at least 0.
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        least, most = WARMTH
        allowed = f"a number from {least} to {most}"
        require_number(self.temperature, "temperature", lambda one: least <= one <= most, allowed)
        require_whole(self.seed, "seed")

    def scores(self, label: object, place: int, logits: Float[Tensor, " vocab"]) -> Tensor:
        """Return the scores of the next token, of which the largest is that of the one drawn.

        They are logits + temperature * g, in nats. The noise g follows from the seed, the label of
        the text and the place of the token in it.
        """
        # By numpy, which draws these in a fifth of the time of torch.
        own = np.random.Philox(key=derived_seed(self.seed, "sample", label, place))
        drawn = np.random.Generator(own).standard_exponential(len(logits), dtype=np.float32)
        noise = -np.log(np.maximum(drawn, np.finfo(np.float32).tiny))
        return logits + self.temperature * torch.from_numpy(noise).to(logits)


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
    labels = [(int(one.index), number) for one in examples for number in range(samples)]

    def choose(rows: Sequence[int], places: Sequence[int], logits: Tensor) -> Tensor:
        each = zip(rows, places, logits, strict=True)
        drawn = [sampling.scores(labels[row], place, own) for row, place, own in each]
        return torch.stack(drawn)

    texts = _texts(
        language,
        [one.tokens[: one.prompt] for one in encoded for _ in range(samples)],
        max_new_tokens=max_new_tokens,
        budget=budget,
        progress=progress,
        choose=choose,
        stream=derived_seed(sampling.seed, sampling.temperature, *labels),
    )
    return [tuple(texts[row : row + samples]) for row in range(0, len(texts), samples)]
