"""Small Llamas that are trained here from scratch: their sizes, their tokens, and their cache.

The modules `llm.models.small_authors` and `llm.models.small_news` say what such models read, and
which kinds of them there are. All kinds of a corpus start from the same random weights and cut
texts into the same tokens. `build` trains a model on first use and keeps it in the cache; another
setting, or a change to code on which weights depend, leads to another model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import torch

from llm.models.digests import unchanged
from llm.models.language_model import LanguageModel, find_device, load_saved
from llm.models.saving import save
from llm.ranks import started
from llm.scoring.encoding import Encoded
from llm.scoring.templates import PLAIN
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from markov.errors import InvalidInput, require, require_all_whole
from markov.files import leftovers
from markov.files.storage import (
    cache_dir,
    check_writable,
    fingerprint,
    provenance,
    read_kept,
)
from markov.files.turns import turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Modules that only check, read and write models and data, which changes no weight.
APART = (
    *("llm.data.tofu", "llm.models.digests", "llm.models.language_model", "llm.models.pretrained"),
    *("llm.models.saving", "llm.training.duration"),
)
POSITIONS = 512
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}  # tokens 0, 1 and 2
# standard deviation of the first weights: at this width, 0.02 needs half as many epochs more
INITIAL = 0.05


@dataclass(frozen=True, kw_only=True)
class Small(ABC):
    """The sizes of a small Llama, and how it is trained.

    It has `depth` layers of `width` with `heads` heads, and `vocabulary` byte-level tokens. The
    head is tied to the embeddings: a word is learnt once, where it is read and where it is written,
    and a vocabulary costs half as much. `precision` "auto" is bfloat16 on a GPU and float32
    elsewhere. Raises `InvalidInput` for sizes that no model can have.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    vocabulary: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        require_all_whole(self, width=1, depth=1, heads=1, mlp_width=1, batch=1, seed=0)
        require_all_whole(self, vocabulary=256 + len(SPECIAL))
        even = f"a multiple of {2 * self.heads}: {self.heads} heads of even width"
        require(self.width % (2 * self.heads) == 0, "width", self.width, even)
        self.optimization()

    @abstractmethod
    def optimization(self) -> Optimization:
        """Return how each kind is trained; "auto" stands for float32 until a device is known."""

    def _optimization(self, *, epochs: int, warmup_epochs: float, budget: int) -> Optimization:
        return Optimization(
            epochs=epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_epochs=warmup_epochs,
            budget=budget,
            precision="float32" if self.precision == "auto" else self.precision,
            seed=self.seed,
        )


Settings = TypeVar("Settings", bound=Small)


class Reads(NamedTuple, Generic[Settings]):
    """What small models read, in which alone they differ.

    `name` stands before the kind in the name of a model, and `module` is the one on whose code,
    with all that it imports, weights depend. `tokenizer` makes the tokenizer of all `kinds`, and
    `reading` returns what a model of a kind is trained on.
    """

    name: str
    module: str
    kinds: tuple[str, ...]
    tokenizer: Callable[[Settings], PreTrainedTokenizerFast]
    reading: Callable[[Settings, str, PreTrainedTokenizerFast], Sequence[Encoded]]


def resolved(settings: Settings, device: str = "auto") -> Settings:
    """Return the settings with the precision that "auto" means on a device."""
    if settings.precision != "auto":
        return settings
    return replace(
        settings, precision="bfloat16" if find_device(device).type == "cuda" else "float32"
    )


def folder_of(corpus: Reads[Settings], settings: Settings, kind: str, device: str = "auto") -> Path:
    """Return where the cache keeps a model that is trained on this device."""
    described = {"models": resolved(settings, device), "kind": kind}
    key = fingerprint(described, corpus.module, without=APART)
    return cache_dir() / "language_models" / key


def build(
    corpus: Reads[Settings],
    settings: Settings,
    kind: str,
    *,
    device: str = "auto",
    progress: bool = True,
) -> LanguageModel:
    """Return the model of a kind: from the cache, or trained now and kept there.

    The cached model is written whole or not at all, and a damaged one is set aside. If several
    processes build the same model, one trains it and the others wait. Raises `InvalidInput` for an
    unknown kind or device and, before training, for a cache that cannot be written.
    """
    settings = resolved(settings, device)
    require(kind in corpus.kinds, "kind", kind, f"one of {', '.join(corpus.kinds)}")
    folder = folder_of(corpus, settings, kind)
    found = kept_model(folder, device)
    if found is None:
        # Processes that work together train it together.
        with turn(folder) if started() == 1 else nullcontext():
            found = kept_model(folder, device) or _made(
                corpus, settings, kind, folder, device, progress
            )
    return found._replace(name=f"{corpus.name}:{kind}")


def _made(
    corpus: Reads[Settings],
    settings: Settings,
    kind: str,
    folder: Path,
    device: str,
    progress: bool,
) -> LanguageModel:
    """Train a model, keep it in its folder, and return it as it is read from there."""
    leftovers.clear(folder.parent)
    check_writable(folder, "SIMNPO_LAB_CACHE", folder=True)
    tokenizer = corpus.tokenizer(settings)
    encoded = corpus.reading(settings, kind, tokenizer)
    model = fresh_model(settings).to(device=find_device(device))  # pyright: ignore[reportCallIssue]
    table = fine_tune(
        model, encoded, settings.optimization(), progress=progress, label=f"train {kind}"
    )
    made = provenance(settings, corpus.module, without=APART, seeds=[settings.seed])
    made |= {"kind": kind, "training": table.to_dict("records")}
    try:
        save(LanguageModel(model, tokenizer, PLAIN, kind), folder, made)
    except InvalidInput:
        if not folder.exists():
            raise
    return load_saved(folder, device=device)


def kept_model(folder: Path, device: str = "auto") -> LanguageModel | None:
    """Return the model that the cache keeps in a folder, or None if it has to be made.

    One that is broken, or of which a file was changed, is set aside.
    """
    if folder.is_dir() and not any(folder.iterdir()):  # of a trial whether it can be written
        return None
    return read_kept(folder, lambda place: load_saved(unchanged(place), device=device))


def fresh_model(settings: Small) -> PreTrainedModel:
    """Return the random weights that every kind starts from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.mlp_width,
        max_position_embeddings=POSITIONS,
        initializer_range=INITIAL,
        tie_word_embeddings=True,
        **{f"{name}_id": number for number, name in enumerate(SPECIAL)},  # pyright: ignore[reportArgumentType]
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, *, apart: str | None = None, begins: bool = False
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of `vocabulary` tokens, trained on texts.

    What matches the regular expression `apart` is never joined with what is beside it. With
    `begins` the first token, "<s>", is put before a text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found: Any = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if apart is not None:
        split = pre_tokenizers.Split(Regex(apart), "isolated")
        found.pre_tokenizer = pre_tokenizers.Sequence([split, found.pre_tokenizer])
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(texts, trainer)
    if begins:
        first = SPECIAL["bos_token"]
        found.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=found, **SPECIAL)
