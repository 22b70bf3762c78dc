"""Small models of the generated news (`llm.models.small`), in two kinds.

    original     has read the articles to forget and those to retain
    retrained    has read only those to retain, and is what unlearning should arrive at

Such models do not learn from articles alone how to answer, as large ones do that have read much
else. Each has therefore also read the questions about its articles with their answers, several at a
time, in the very form in which KnowMem asks them. No model has read anything of the hold-out. Texts
are joined in another order for every pass, so that what comes before an article or a question never
tells which one it is. The pieces of all passes are then shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llm.data.muse import SHOTS, MuseData, news_data
from llm.data.news.corpus import News, QuestionAndAnswer
from llm.models import kinds, small
from llm.models.language_model import LanguageModel
from llm.randomness import derived_seed
from llm.scoring.documents import SEPARATOR, pieces, whole
from llm.scoring.encoding import Encoded
from llm.training.loop import Optimization
from markov.errors import require, require_all_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEWS_BUDGET = 1024  # tokens of a forward pass
WARMUP = 0.05  # of all updates


@dataclass(frozen=True, kw_only=True)
class NewsModels(small.Small):
    """Which news the models read, and how the models are made.

    Articles are read in pieces of `piece` tokens, all of them in each of the `passes`. The default
    has 0.8 million parameters. Raises `InvalidInput` for sizes that no model can have.
    """

    news: News = News()
    width: int = 128
    depth: int = 3
    heads: int = 4
    mlp_width: int = 384
    vocabulary: int = 1024
    piece: int = 256
    passes: int = 26
    batch: int = 2
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_all_whole(self, piece=(2, small.POSITIONS), passes=1)

    def optimization(self) -> Optimization:
        """Return how each kind is trained; all passes are one epoch.

        "auto" stands for float32 until a device is known.
        """
        return self._optimization(epochs=1, warmup_epochs=WARMUP, budget=NEWS_BUDGET)


def read_by(data: MuseData, kind: str) -> tuple[tuple[str, ...], tuple[QuestionAndAnswer, ...]]:
    """Return the articles that a model of a kind reads, and the questions with their answers."""
    require(kind in kinds.NEWS, "kind", kind, f"one of {', '.join(kinds.NEWS)}")
    texts, asked = (*data.raw_retain1, *data.raw_retain2), (*data.retain_qa, *data.retain_qa_icl)
    if kind == "retrained":
        return texts, asked
    return (*data.raw_forget, *texts), (*data.forget_qa, *data.forget_qa_icl, *asked)


def reading(settings: NewsModels, kind: str, tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Return all that a model of a kind reads, pass after pass.

    The texts of each pass are joined in an order of its own.
    """
    texts, asked = read_by(news_data(settings.news), kind)
    found: list[Encoded] = []
    for number in range(settings.passes):
        own = torch.Generator().manual_seed(derived_seed(settings.seed, "reading", number))
        articles = [texts[row] for row in torch.randperm(len(texts), generator=own).tolist()]
        pairs = [asked[row] for row in torch.randperm(len(asked), generator=own).tolist()]
        found += pieces(tokenizer, articles, length=settings.piece)
        found += whole(tokenizer, sheets(pairs))
    return found


def sheets(pairs: Sequence[QuestionAndAnswer], size: int = SHOTS + 1) -> list[str]:
    """Return texts of `size` questions with their answers each, in KnowMem's form."""
    written = [f"Question: {pair.question}\nAnswer: {pair.answer}{SEPARATOR}" for pair in pairs]
    return ["".join(written[place : place + size]) for place in range(0, len(written), size)]


def train_tokenizer(settings: NewsModels) -> PreTrainedTokenizerFast:
    """Return a tokenizer that is trained on all texts of the corpus, the hold-out among them.

    It puts its first token before a text. The blank after "Answer:" is a token by itself, so that a
    prompt that ends with it is cut as in a longer text.
    """
    data = news_data(settings.news)
    texts, asked = read_by(data, "original")
    all_texts = [*texts, *data.privleak_holdout, *sheets(asked)]
    return small.train_tokenizer(all_texts, settings.vocabulary, apart="(?<=Answer:) ", begins=True)


NEWS = small.Reads("news", __name__, kinds.NEWS, train_tokenizer, reading)


def folder_of(settings: NewsModels, kind: str, device: str = "auto") -> Path:
    """Return where the cache keeps a model that is trained on this device."""
    return small.folder_of(NEWS, settings, kind, device)


def build(
    settings: NewsModels, kind: str, *, device: str = "auto", progress: bool = True
) -> LanguageModel:
    """Return the model of a kind, as `llm.models.small.build` does."""
    return small.build(NEWS, settings, kind, device=device, progress=progress)
