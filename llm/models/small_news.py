"""The models for the generated news that need no download: small Llamas trained from scratch, in
two kinds.

original     has read the articles to forget and those to retain
retrained    has read those to retain only: what unlearning should arrive at

No such model learns from articles alone how to answer, as large ones do that have read much else.
So each has also read the questions about the articles that it has read, with their answers, several
at a time, in the very form in which KnowMem asks them. Of the hold-out none has read anything. Both
start from the same random weights and cut texts into the same tokens; for every pass texts are
joined in another order, so that what comes before an article or a question never tells which one it
is, and the pieces of all passes are then shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from llm.data.muse import SHOTS, MuseData, news_data
from llm.data.news.corpus import News, QuestionAndAnswer
from llm.models.language_model import LanguageModel, find_device, kept_model, load_saved
from llm.models.saving import save
from llm.models.small_authors import APART, POSITIONS, SPECIAL, DefaultModels, fresh_model
from llm.randomness import derived_seed
from llm.scoring.documents import SEPARATOR, pieces, whole
from llm.scoring.encoding import Encoded
from llm.scoring.templates import PLAIN
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from markov.errors import InvalidInput, require, require_all_whole
from markov.files import leftovers
from markov.files.storage import cache_dir, check_writable, fingerprint, provenance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KINDS = ("original", "retrained")
BUDGET = 1024  # tokens of a forward pass
WARMUP = 0.05  # of all updates


@dataclass(frozen=True, kw_only=True)
class NewsModels:
    """Which news the models read, and how the models are made: see `DefaultModels` for the sizes.

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
    weight_decay: float = 0.01
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        self.llama()
        self.optimization()
        require_all_whole(self, piece=(2, POSITIONS), passes=1)

    def llama(self) -> DefaultModels:
        """The sizes of the model."""
        return DefaultModels(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            vocabulary=self.vocabulary,
            seed=self.seed,
        )

    def optimization(self) -> Optimization:
        """How each kind is trained, all passes being one epoch; "auto" stands for float32 until
        a device is known.
        """
        return Optimization(
            epochs=1,
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_epochs=WARMUP,
            budget=BUDGET,
            precision="float32" if self.precision == "auto" else self.precision,
            seed=self.seed,
        )


def resolved(settings: NewsModels, device: str = "auto") -> NewsModels:
    """The settings with the precision that "auto" means on a device."""
    if settings.precision != "auto":
        return settings
    return replace(
        settings, precision="bfloat16" if find_device(device).type == "cuda" else "float32"
    )


def folder_of(settings: NewsModels, kind: str, device: str = "auto") -> Path:
    """Where the cache keeps a model that a device trains."""
    settings = resolved(settings, device)
    return (
        cache_dir()
        / "language_models"
        / fingerprint({"news_models": settings, "kind": kind}, __name__, without=APART)
    )


def build(
    settings: NewsModels, kind: str, *, device: str = "auto", progress: bool = True
) -> LanguageModel:
    """The model of a kind: from the cache, or trained now and kept there, as
    `llm.models.small_authors.build` does.

    Raises `InvalidInput` for an unknown kind or device and, before training, for a cache that
    cannot be written.
    """
    place, settings = find_device(device), resolved(settings, device)
    require(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
    folder = folder_of(settings, kind)
    found = kept_model(folder, device)
    if found is None:
        leftovers.clear(folder.parent)
        check_writable(folder, "SIMNPO_LAB_CACHE", folder=True)
        tokenizer = train_tokenizer(settings)
        model = fresh_model(settings.llama()).to(device=place)  # pyright: ignore[reportCallIssue]
        encoded = reading(settings, kind, tokenizer)
        table = fine_tune(
            model, encoded, settings.optimization(), progress=progress, label=f"train {kind}"
        )
        made = provenance(settings, __name__, without=APART, seeds=[settings.seed])
        made |= {"kind": kind, "training": table.to_dict("records")}
        try:
            save(LanguageModel(model, tokenizer, PLAIN, kind), folder, made)
        except InvalidInput:
            if not folder.exists():
                raise
        found = load_saved(folder, device=device)
    return found._replace(name=f"news:{kind}")


def read_by(data: MuseData, kind: str) -> tuple[tuple[str, ...], tuple[QuestionAndAnswer, ...]]:
    """The articles that a model of a kind reads, and the questions with their answers."""
    require(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
    texts, asked = (*data.raw_retain1, *data.raw_retain2), (*data.retain_qa, *data.retain_qa_icl)
    if kind == "retrained":
        return texts, asked
    return (*data.raw_forget, *texts), (*data.forget_qa, *data.forget_qa_icl, *asked)


def reading(settings: NewsModels, kind: str, tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """All that a model of a kind reads, pass after pass, each with its texts joined in an order
    of its own.
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
    """Questions with their answers in KnowMem's form, `size` of them together."""
    written = [f"Question: {pair.question}\nAnswer: {pair.answer}{SEPARATOR}" for pair in pairs]
    return ["".join(written[place : place + size]) for place in range(0, len(written), size)]


def train_tokenizer(settings: NewsModels) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on all texts of the corpus, the hold-out among them; puts its first
    token before a text.

    The blank after "Answer:" is a token by itself, so that a prompt that ends with it is cut as in
    a longer text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    apart = pre_tokenizers.Split(Regex("(?<=Answer:) "), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [apart, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = decoders.ByteLevel()
    start = SPECIAL["bos_token"]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    data = news_data(settings.news)
    texts, asked = read_by(data, "original")
    found.train_from_iterator([*texts, *data.privleak_holdout, *sheets(asked)], trainer)
    found.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=found, **SPECIAL)
