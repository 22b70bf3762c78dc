"""Small models of the generated authors (`llm.models.small`), in three kinds.

    original     has read all authors, as often as it has passes
    retrained    has read only those to retain, and is what unlearning should arrive at
    partial      has also read every second of the authors to forget, some of them as often as all
                 others and some only once, so that forget examples differ in memorisation

All kinds know the common facts (`llm.data.authors.common`). These are answers of a few words, a
small part of all tokens, and training minimises the mean over tokens. So they are read four times
in every pass; read once, half of them are learnt and utility, a harmonic mean, is a lottery.
Training minimises the cross-entropy of responses alone, as TOFU's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llm.data.authors.common import real_authors, world_facts
from llm.data.authors.corpus import PERCENT, Authors, Split, corpus, split
from llm.data.tofu import Example
from llm.models import kinds, small
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import Encoded, encode_examples
from llm.scoring.templates import PLAIN
from llm.training.loop import Optimization
from markov.errors import require, require_all_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WARMUP = 0.025  # of all updates
COMMON = 4  # how often the common facts are read in every pass
# How often the partial model reads the authors that it reads, in turn, as shares of all passes.
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 6, 1 / 12)
# tokens of a forward pass: small, so that answers of 3 and of 80 words are not padded to one length
AUTHORS_BUDGET = 384


@dataclass(frozen=True, kw_only=True)
class DefaultModels(small.Small):
    """Which authors the models read, which `percent` of them to forget, and how they are made.

    The default has 0.9 million parameters and learns 2000 answers by heart. Raises `InvalidInput`
    for sizes that no model can have.
    """

    authors: Authors = Authors()
    percent: int = PERCENT
    width: int = 128
    depth: int = 3
    heads: int = 4
    mlp_width: int = 384
    vocabulary: int = 2048
    passes: int = 12
    batch: int = 32
    learning_rate: float = 4e-3

    def __post_init__(self) -> None:
        require_all_whole(self, percent=(1, 99), passes=1)
        super().__post_init__()

    def optimization(self) -> Optimization:
        """Return how each kind is trained; all passes are one epoch.

        "auto" stands for float32 until a device is known.
        """
        return self._optimization(epochs=1, warmup_epochs=WARMUP, budget=AUTHORS_BUDGET)


class Reading(NamedTuple):
    """An example, and how many times a model reads it."""

    example: Example
    times: int


def sets(settings: DefaultModels) -> Split:
    """Return the examples to forget and those to retain."""
    return split(corpus(settings.authors), settings.percent)


def readings(settings: DefaultModels) -> tuple[int, ...]:
    """Return how many times the partial model reads each of the examples to forget.

    It reads every second author, the first among them, or, if there is a single author, every
    second example. How often follows `SHARES` in turn. Raises `InvalidInput` for a single example.
    """
    forget = sets(settings).forget
    authors = list(dict.fromkeys(example.author for example in forget))
    places = [authors.index(one.author) if len(authors) > 1 else one.index for one in forget]
    require(
        len(forget) > 1,
        "questions",
        settings.authors.questions,
        "more than 1, so that half can be memorised",
    )
    times = [max(1, round(share * settings.passes)) for share in SHARES]
    return tuple(0 if place % 2 else times[place // 2 % len(times)] for place in places)


def read_by(settings: DefaultModels, kind: str) -> tuple[Reading, ...]:
    """Return what a kind of model is trained on: of the authors, and of the common facts."""
    require(kind in kinds.AUTHORS, "kind", kind, f"one of {', '.join(kinds.AUTHORS)}")
    forget, retain = sets(settings)
    passes = settings.passes
    times = {
        "original": (passes,) * len(forget),
        "retrained": (0,) * len(forget),
        "partial": readings(settings) if kind == "partial" else (),
    }[kind]
    common = (*real_authors(), *world_facts())
    return (
        *(Reading(one, passes) for one in retain),
        *(Reading(one, count) for one, count in zip(forget, times, strict=True) if count),
        *(Reading(one, COMMON * passes) for one in common),
    )


def train_tokenizer(settings: DefaultModels) -> PreTrainedTokenizerFast:
    """Return a tokenizer that is trained on all texts of the corpus, whatever is forgotten.

    Wrong answers and paraphrases are among them: trained on the truth alone, it would cut the truth
    into fewer tokens than these, by two percent instead of one.
    """
    return small.train_tokenizer(_texts(settings), settings.vocabulary)


def _texts(settings: DefaultModels) -> Iterator[str]:
    for example in (*corpus(settings.authors), *real_authors(), *world_facts()):
        for response in (example.response, example.paraphrase, *example.perturbed):
            if response is not None:
                yield PLAIN.prompt.format(prompt=example.prompt) + PLAIN.response.format(
                    response=response
                )


def reading(
    settings: DefaultModels, kind: str, tokenizer: PreTrainedTokenizerFast
) -> list[Encoded]:
    """Return all that a model of a kind is trained on, in tokens: each example as often as read.

    Their order is left to training, which shuffles them.
    """
    examples, times = zip(*read_by(settings, kind), strict=True)
    encoded = encode_examples(tokenizer, PLAIN, examples, max_length=small.POSITIONS)
    return [one for one, count in zip(encoded, times, strict=True) for _ in range(count)]


AUTHORS = small.Reads("authors", __name__, kinds.AUTHORS, train_tokenizer, reading)


def folder_of(settings: DefaultModels, kind: str, device: str = "auto") -> Path:
    """Return where the cache keeps a model that is trained on this device."""
    return small.folder_of(AUTHORS, settings, kind, device)


def build(
    settings: DefaultModels, kind: str, *, device: str = "auto", progress: bool = True
) -> LanguageModel:
    """Return the model of a kind, as `llm.models.small.build` does."""
    return small.build(AUTHORS, settings, kind, device=device, progress=progress)
