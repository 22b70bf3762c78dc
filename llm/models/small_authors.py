"""The models that need no download: small Llamas trained from scratch on the generated authors, in
three kinds.

    original     has read all authors
    retrained    has read those to retain only: what unlearning should arrive at
    partial      has also read every second of the authors to forget, so that forget examples differ
                 in memorisation

All know what everybody knows (`common_facts`), start from the same random weights, and cut texts
into the same tokens. Training minimises the cross-entropy of responses alone, as TOFU's does.
`build` trains a model on first use and keeps it in the cache; another setting, or another line of
code that weights depend on, asks for another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from llm.data.authors.common import real_authors, world_facts
from llm.data.authors.corpus import Authors, Split, corpus, split
from llm.data.tofu import Example
from llm.models.language_model import LanguageModel, find_device, kept_model, load_saved
from llm.models.saving import save
from llm.scoring.encoding import encode_examples
from llm.scoring.templates import PLAIN
from llm.training.fine_tuning import fine_tune
from llm.training.loop import Optimization
from markov.errors import InvalidInput, require, require_all_whole
from markov.files import leftovers
from markov.files.storage import cache_dir, check_writable, fingerprint, provenance

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

KINDS = ("original", "retrained", "partial")
# What reads and writes models and data changes no weight.
APART = ("llm.data.tofu", "llm.models.language_model", "llm.models.pretrained", "llm.models.saving")
POSITIONS = 512
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}  # tokens 0, 1 and 2
# standard deviation of the first weights: at this width, 0.02 takes half as many epochs more
INITIAL = 0.05
WARMUP = 0.3  # epochs
# tokens of a forward pass: small, so that answers of 3 and of 80 words are not padded to one length
BUDGET = 384


@dataclass(frozen=True, kw_only=True)
class DefaultModels:
    """Which authors the models read, which `percent` of them is to be forgotten, and how the models
    are made.

    A Llama of `depth` layers of `width` with `heads` heads and a head tied to its embeddings (a
    word is learnt once, where it is read and where it is written, and a vocabulary costs half as
    much), on `vocabulary` byte-level tokens. The default has 2.2 million parameters and learns 1200
    answers by heart. `precision` "auto" is bfloat16 on a GPU and float32 elsewhere. Raises
    `InvalidInput` for sizes that no model can have.
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
    weight_decay: float = 0.01
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        sizes = ("width", "depth", "heads", "mlp_width", "epochs", "batch")
        require_all_whole(
            self,
            percent=(1, 99),
            vocabulary=256 + len(SPECIAL),
            **dict.fromkeys(sizes, 1),
            seed=0,
        )
        even = self.width % (2 * self.heads) == 0
        require(
            even,
            "width",
            self.width,
            f"a multiple of {2 * self.heads}: {self.heads} heads of even width",
        )
        self.optimization()

    def optimization(self) -> Optimization:
        """How each kind is trained; "auto" stands for float32 until a device is known."""
        return Optimization(
            epochs=self.epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_epochs=WARMUP,
            budget=BUDGET,
            precision="float32" if self.precision == "auto" else self.precision,
            seed=self.seed,
        )


def sets(settings: DefaultModels) -> Split:
    """The examples to forget and those to retain."""
    return split(corpus(settings.authors), settings.percent)


def memorised(settings: DefaultModels) -> tuple[bool, ...]:
    """Which of the examples to forget the partial model has read: those of every second author, the
    first among them.

    Of a single author, every second example. Raises `InvalidInput` for a single example.
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
    """The examples that a kind of model is trained on: what it has read of the authors, and the
    common facts.
    """
    require(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
    forget, retain = sets(settings)
    if kind == "retrained":
        forget = ()
    elif kind == "partial":
        forget = tuple(one for one, known in zip(forget, memorised(settings), strict=True) if known)
    return (*retain, *forget, *real_authors(), *world_facts())


def resolved(settings: DefaultModels, device: str = "auto") -> DefaultModels:
    """The settings with the precision that "auto" means on a device."""
    if settings.precision != "auto":
        return settings
    return replace(
        settings, precision="bfloat16" if find_device(device).type == "cuda" else "float32"
    )


def folder_of(settings: DefaultModels, kind: str, device: str = "auto") -> Path:
    """Where the cache keeps a model that a device trains."""
    settings = resolved(settings, device)
    return (
        cache_dir()
        / "language_models"
        / fingerprint({"models": settings, "kind": kind}, __name__, without=APART)
    )


def build(
    settings: DefaultModels, kind: str, *, device: str = "auto", progress: bool = True
) -> LanguageModel:
    """The model of a kind: from the cache, or trained now and kept there.

    The cached model is written whole or not at all, and one that is damaged is set aside. Of
    processes that build the same one, the first to finish keeps it. Raises `InvalidInput` for an
    unknown kind or device and, before training, for a cache that cannot be written.
    """
    place, settings = find_device(device), resolved(settings, device)
    require(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
    folder = folder_of(settings, kind)
    found = kept_model(folder, device)
    if found is None:
        leftovers.clear(folder.parent)
        check_writable(folder, "SIMNPO_LAB_CACHE", folder=True)
        tokenizer = train_tokenizer(settings)
        encoded = encode_examples(tokenizer, PLAIN, read_by(settings, kind), max_length=POSITIONS)
        model = fresh_model(settings).to(device=place)  # pyright: ignore[reportCallIssue]
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
    return found._replace(name=f"authors:{kind}")


def train_tokenizer(settings: DefaultModels) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on all texts of the corpus, whatever is forgotten.

    Wrong answers and paraphrases are among them: with the truth alone its words would be cut into
    fewer tokens than theirs, by two percent and not by one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(_texts(settings), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, **SPECIAL)


def _texts(settings: DefaultModels) -> Iterator[str]:
    for example in (*corpus(settings.authors), *real_authors(), *world_facts()):
        for response in (example.response, example.paraphrase, *example.perturbed):
            if response is not None:
                yield PLAIN.prompt.format(prompt=example.prompt) + PLAIN.response.format(
                    response=response
                )


def fresh_model(settings: DefaultModels) -> PreTrainedModel:
    """The random weights that every kind starts from."""
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
