"""Where a language model comes from, in one word, and how it is run.

Importing transformers takes seconds, and commands without a model need not wait for that: it is
imported where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llm.arguments import checked_job
from llm.models.names import Made, made
from llm.scoring.limits import BUDGET, MAX_LENGTH
from llm.scoring.templates import TEMPLATES, Template
from markov.errors import require
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: str = "authors:original"
    """A folder, a GGUF file, a hub id, a ready-made name, or a model made here.
    Made here are authors:KIND[:PERCENT[:SEED]] and news:KIND[:SEED].
    authors:original saw all, authors:retrained nothing of the fifth to forget.
    authors:partial saw half of it.
    """
    template: Literal["auto", "plain", "llama2_chat", "chat"] = "auto"
    """How prompt and response are written (default: as the model was trained)."""
    system: str | None = None
    """What a chat template is given as the system's turn; "" leaves the turn out."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Floating-point numbers of the model; log-probabilities are float32 in any case."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    revision: str | None = None
    """Commit, tag or branch of a model from the hub."""
    trust_remote_code: bool = False
    """Run code that comes with a model; only for those whose authors you trust."""
    max_length: int = MAX_LENGTH
    """Tokens that prompt and response may have; a longer one is refused, never cut silently."""
    budget: int = BUDGET
    """Tokens of a batch, padding included.
    It changes speed and memory, never a number beyond rounding.
    """


@checked_job
def load(
    source: Location,
    *,
    dtype: str = "float32",
    device: str = "auto",
    template: Template | None = None,
    system: str | None = None,
    tokenizer: Location | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Return the model that a word names (see `llm.models.names`), in evaluation mode.

    A model that is made here is trained on first use. For any other the arguments mean what they do
    for `llm.models.language_model.load_saved`. Raises `InvalidInput` as that does, and for a
    revision of a model made here.
    """
    from llm.models.language_model import find_dtype, fitting, load_saved

    own = made(source)
    known = template is None or isinstance(template, Template)
    require(known, "template", template, "a Template, such as llm.scoring.templates.CHAT")
    if own is None:
        options: dict[str, Any] = {
            "template": template,
            "system": system,
            "tokenizer": tokenizer,
            "revision": revision,
        }
        return load_saved(
            source, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **options
        )
    kind = find_dtype(dtype)  # before it is trained
    require(revision is None, "revision", revision, f"left out, since {source} is made here")
    builder, settings = _builder(own)
    built = builder.build(settings, own.kind, device=device, progress=progress)
    model = built.model.to(dtype=kind)
    written = fitting(built.tokenizer, template or built.template, system)
    return built._replace(model=model, template=written, name=own.word)


def load_model(options: ModelOptions, source: str | None = None) -> LanguageModel:
    """Return the model of the options, or another one loaded in the same way."""
    return load(
        source or options.model,
        dtype=options.dtype,
        device=options.device,
        template=None if options.template == "auto" else TEMPLATES[options.template],
        system=options.system,
        revision=None if source else options.revision,
        trust_remote_code=options.trust_remote_code,
    )


def is_cached(own: Made, device: str = "auto") -> bool:
    """Return whether a model that is made here is in the cache, so that `load` trains nothing."""
    builder, settings = _builder(own)
    return builder.folder_of(settings, own.kind, device).exists()


def _builder(own: Made) -> tuple[Any, Any]:
    """Return the module that makes the models of a corpus, and its settings for this one."""
    if own.corpus == "news":
        from llm.data.news.corpus import News
        from llm.models import small_news

        return small_news, small_news.NewsModels(news=News(seed=own.seed))
    from llm.data.authors.corpus import Authors
    from llm.models import small_authors

    authors = Authors(seed=own.seed)
    return small_authors, small_authors.DefaultModels(
        authors=authors, percent=own.percent, seed=own.seed
    )
