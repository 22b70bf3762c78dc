"""The four corners on a model of the user's own, for the figures of language models."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from figures.cache import Context, cache_key, discard_stale
from llm.data.sources import read
from llm.data.splits import retain_of
from llm.data.tofu import Example
from llm.jobs.estimating import seconds_of_runs, spoken
from llm.jobs.planning import MemoryOption
from llm.jobs.settings import RATE, lora_of, rate_of
from llm.logs.log import EvaluationLog
from llm.models.answers import answer_log, log_of, scores
from llm.models.language_model import LanguageModel, check_same_vocabulary, perturbed
from llm.models.names import check_retrained, data_of, is_small
from llm.models.source import ModelOptions, load_model
from llm.training.checkpointing import parameters_digest
from llm.training.settings import Optimization
from llm.unlearning.runs import EPOCHS, Run, finished, unlearn_into
from llm.unlearning.unlearn import Unlearning
from markov.errors import require, require_whole
from markov.files import storage


@dataclass(frozen=True, kw_only=True)
class OwnModel(ModelOptions, MemoryOption):
    """What unlearns what, in the words of `python -m llm unlearn`.

    The optimisation is one that a large model takes. `batch` is the paper's for Llama-2-7B.
    `own_model` says what follows from what, and `model` is never left out. Without `epochs` they
    are those of the figures.
    """

    retrained: str | None
    data: str
    retain_data: str
    learning_rate: float
    epochs: int | None = None
    batch: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    lora_rank: int | None = None

    def options(self) -> ModelOptions:
        """Return how the model is loaded and run."""
        return ModelOptions(**{one.name: getattr(self, one.name) for one in fields(ModelOptions)})

    def optimization(self, every: Optimization) -> Optimization:
        """Return the optimisation of the figures with what this model has of its own."""
        return replace(
            every,
            epochs=self.epochs or every.epochs,
            learning_rate=self.learning_rate,
            batch=self.batch,
            budget=self.budget,
            precision=self.precision,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def own_model(
    model: str,
    retrained: str | None,
    data: str | None,
    retain_data: str | None,
    learning_rate: float | None,
    **options: Any,
) -> OwnModel:
    """Return a model of the user's own.

    What is to stay follows from the data, the step size from the model. `options` are further
    fields of `OwnModel`. Raises `InvalidInput` for words that do not go together and for numbers
    that are not allowed, before anything is loaded.
    """
    data = data_of(model, data)
    check_retrained(retrained, data)
    rate = rate_of(learning_rate, model, small=RATE)
    found = OwnModel(
        model=model,
        retrained=retrained,
        data=data,
        retain_data=retain_of(data, retain_data),
        learning_rate=rate,
        **options,
    )
    require_whole(1 if found.epochs is None else found.epochs, "epochs", 1)
    require_whole(found.max_length, "max_length", 1)
    found.optimization(Optimization(epochs=1, batch=1, learning_rate=1.0))
    lora_of(found.lora_rank)
    return found


class Perturbation(NamedTuple):
    """How the reference is perturbed: averaged with Gaussian weights.

    See `llm.models.language_model.perturbed`.
    """

    scale: float
    share: float = 0.5

    def log(
        self, language: LanguageModel, forget: Sequence[Example], seed: int, **ways: Any
    ) -> EvaluationLog:
        """Return what the perturbed model says of the forget data; `ways` are as of `scores`."""
        model = perturbed(language.model, scale=self.scale, share=self.share, seed=seed)
        found = scores(language._replace(model=model), forget, **ways)
        return log_of(found.assign(answer="gold"), "the perturbed reference")


def runs_of_own(
    context: Context,
    own: OwnModel,
    wanted: Sequence[Unlearning],
    noises: Sequence[Perturbation | None] = (),
) -> list[Run]:
    """Return a run for each of the settings, with the optimisation of `own`.

    `noises` say by how much the reference of each run is perturbed, if it is. Runs come from the
    cache or are made now; how long that takes for a large model is printed first, at the speed that
    is measured for it. Raises `InvalidInput` as `load_model`, `read` and `unlearn_into` do, and for
    a retrained model of another vocabulary.
    """
    forget, retain = read(own.data), read(own.retain_data)
    options, lora = own.options(), lora_of(own.lora_rank)
    language, retrained = load_model(options), None
    if own.retrained is not None:
        other = load_model(options, own.retrained)
        check_same_vocabulary(language.tokenizer, other.tokenizer, "retrained")
        retrained = answer_log(
            other,
            forget,
            max_length=own.max_length,
            budget=own.budget,
            progress=context.progress,
        )
        del other  # its memory is needed
    digest, found = parameters_digest(language.model), []
    described = {**vars(own), "memory": None}  # which only says what is refused
    asked: list[tuple[Path, Unlearning, Perturbation | None]] = []
    for one, noise in zip(wanted, noises or [None] * len(wanted), strict=True):
        settings = replace(one, optimization=own.optimization(one.optimization), lora=lora)
        key = {"own": described, "parameters": digest, "unlearning": settings, "noise": noise}
        folder = storage.cache_dir() / "unlearning" / cache_key(key, __name__)
        discard_stale(context, folder, folder / EPOCHS)
        asked.append((folder, settings, noise))
    left = [settings for folder, settings, _ in asked if not (folder / EPOCHS).exists()]
    if left and not is_small(own.model):
        length = own.max_length
        seconds = seconds_of_runs(language, forget, retain, left, max_length=length)
        print(f"runs of {own.model} to make: {len(left)}, {spoken(seconds)}", file=sys.stderr)
    changed = False
    for folder, settings, noise in asked:
        kept = finished(folder) if (folder / EPOCHS).exists() else None
        if kept is not None:
            found.append(kept)
            continue
        if changed:  # the run before changed the model in place
            language = load_model(options)
            same = parameters_digest(language.model) == digest
            require(same, "model", own.model, "one that stays as it is meanwhile")
        changed = True
        reference = None
        if noise is not None:
            ways = {"budget": own.budget, "progress": context.progress}
            seed, length = settings.optimization.seed, own.max_length
            reference = noise.log(language, forget, seed, max_length=length, **ways)
        found.append(
            unlearn_into(
                folder,
                language,
                forget,
                retain,
                settings,
                reference=reference,
                retrained=retrained,
                max_length=own.max_length,
                parameters=digest,
                progress=context.progress,
            )
        )
    return found
