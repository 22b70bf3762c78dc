"""Small models of the generated authors (`llm.models.small`), in three kinds.

    original     has read all authors
    retrained    has read only those to retain, and is what unlearning should arrive at
    partial      has also read every second of the authors to forget, so that forget examples
                 differ in memorisation

All kinds know the common facts (`llm.data.authors.common`). Training minimises the cross-entropy of
responses alone, as TOFU's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm.data.authors.common import real_authors, world_facts
from llm.data.authors.corpus import Authors, Split, corpus, split
from llm.data.tofu import Example
from llm.models import kinds, small
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import Encoded, encode_examples
from llm.scoring.templates import PLAIN
from llm.training.loop import Optimization
from markov.errors import require, require_all_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WARMUP = 0.3  # epochs
# tokens of a forward pass: small, so that answers of 3 and of 80 words are not padded to one length
AUTHORS_BUDGET = 384


@dataclass(frozen=True, kw_only=True)
class DefaultModels(small.Small):
    """Which authors the models read, which `percent` of them to forget, and how they are made.

    The default has 2.2 million parameters and learns 1200 answers by heart. Raises `InvalidInput`
    for sizes that no model can have.
    """

    authors: Authors = Authors()
    percent: int = 10
    width: int = 192
    depth: int = 4
    heads: int = 4
    mlp_width: int = 512
    vocabulary: int = 2048
    epochs: int = 12
    batch: int = 16
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        require_all_whole(self, percent=(1, 99), epochs=1)
        super().__post_init__()

    def optimization(self) -> Optimization:
        """Return how each kind is trained; "auto" stands for float32 until a device is known."""
        return self._optimization(epochs=self.epochs, warmup_epochs=WARMUP, budget=AUTHORS_BUDGET)


def sets(settings: DefaultModels) -> Split:
    """Return the examples to forget and those to retain."""
    return split(corpus(settings.authors), settings.percent)


def memorised(settings: DefaultModels) -> tuple[bool, ...]:
    """Return which of the examples to forget the partial model has read.

    They are those of every second author, the first among them, or, if there is a single author,
    every second example. Raises `InvalidInput` for a single example.
    """
    forget = sets(settings).forget
    authors = list(dict.fromkeys(example.author for example in forget))
    half = [
        authors.index(one.author) % 2 == 0 if len(authors) > 1 else one.index % 2 == 0
        for one in forget
    ]
    require(
        len(forget) > 1,
        "questions",
        settings.authors.questions,
        "more than 1, so that half can be memorised",
    )
    return tuple(half)


def read_by(settings: DefaultModels, kind: str) -> tuple[Example, ...]:
    """Return the examples that a kind of model is trained on.

    These are what it reads of the authors, and the common facts.
    """
    require(kind in kinds.AUTHORS, "kind", kind, f"one of {', '.join(kinds.AUTHORS)}")
    forget, retain = sets(settings)
    if kind == "retrained":
        forget = ()
    elif kind == "partial":
        forget = tuple(one for one, known in zip(forget, memorised(settings), strict=True) if known)
    return (*retain, *forget, *real_authors(), *world_facts())


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
    """Return the examples that a model of a kind is trained on, in tokens."""
    return encode_examples(tokenizer, PLAIN, read_by(settings, kind), max_length=small.POSITIONS)


AUTHORS = small.Reads("authors", __name__, kinds.AUTHORS, train_tokenizer, reading)


def folder_of(settings: DefaultModels, kind: str, device: str = "auto") -> Path:
    """Return where the cache keeps a model that is trained on this device."""
    return small.folder_of(AUTHORS, settings, kind, device)


def build(
    settings: DefaultModels, kind: str, *, device: str = "auto", progress: bool = True
) -> LanguageModel:
    """Return the model of a kind, as `llm.models.small.build` does."""
    return small.build(AUTHORS, settings, kind, device=device, progress=progress)
