"""TOFU's measures of a model kept in a folder, and taken along a run of unlearning."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from llm.data.splits import TofuSets, checked, fitting
from llm.evaluation.tofu import PARTS, evaluate, task_log, unfinished
from llm.logs.log import EvaluationLog
from llm.logs.measures import EXTRACTION, TofuLogs, check_variant, forget_quality, model_utility
from llm.logs.reading import OPEN_UNLEARNING, read_log
from llm.logs.writing import MANIFEST, SUMMARY, restore_summary, write_tofu_eval
from llm.models.answers import answer_log
from llm.models.language_model import LanguageModel
from llm.models.saving import with_source
from llm.scoring.limits import BUDGET, MAX_LENGTH, NEW_TOKENS
from llm.training.checkpointing import parameters_digest
from llm.unlearning.epoch import Measure
from markov.errors import InvalidInput, require
from markov.files import folders, inputs, storage
from markov.files.storage import Location

JOB, NAMES = "evaluation", (OPEN_UNLEARNING, SUMMARY, PARTS)
COLUMNS = ("forget_quality", "ks_statistic", EXTRACTION, "model_utility")  # of `tofu_measure`


def manifest(
    settings: Mapping[str, Any],
    language: LanguageModel,
    max_new_tokens: int,
    parameters: str | None = None,
) -> dict[str, Any]:
    """Return what an evaluation was made with; `parameters` is the model's digest, if known."""
    return {
        **with_source(storage.provenance(settings, __name__), language),
        "model": language.name,
        "parameters": parameters or parameters_digest(language.model),
        "template": asdict(language.template),
        "generation": {"decoding": "greedy", "max_new_tokens": max_new_tokens},
    }


def evaluate_into(
    folder: Location,
    start: Callable[[], LanguageModel],
    sets: TofuSets,
    settings: Mapping[str, Any],
    *,
    variant: str = "geometric",
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> TofuLogs:
    """Return the logs of a model, evaluated into TOFU_EVAL.json of the folder or read from there.

    `start` loads the model, and `llm.evaluation.tofu.evaluate` evaluates it. Where the folder holds
    an evaluation of the same sets, `settings` and options, it is read, and no model is loaded; one
    that is damaged is set aside. One that was stopped goes on. Raises `InvalidInput` as `evaluate`
    does, and for a folder that cannot be written, or that holds another evaluation or what this
    program did not make.
    """
    check_variant(variant)
    path = storage.check_writable(folder, "out", folder=True) / OPEN_UNLEARNING
    read = partial(_read, tasks=sets.tasks)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_length": max_length}
    asked = {"of": settings, "sets": storage.fingerprint(sets), **options, "variant": variant}

    def there() -> TofuLogs | None:
        if folders.claimed(folder, JOB):
            found = storage.read_kept(path, read)
        else:
            found = read(path) if path.exists() else None
        if found is None:
            return None
        logs, made = found
        require(made == storage.settings_of(asked), "out", str(folder), "one of these settings")
        restore_summary(path)
        folders.tidy(folder, JOB)
        return logs

    logs = there()
    if logs is not None:
        return logs
    kept: dict[str, Any] = {"names": NAMES, "passing": (PARTS,), "parts": PARTS}
    with folders.working(folder, JOB, asked, **kept):
        logs = there()
        if logs is not None:  # made by another process meanwhile
            return logs
        language = start()
        # The words of `settings` may name another model by now.
        digest = parameters_digest(language.model)
        where = [str(language.model.dtype), language.model.device.type]
        parts = unfinished(folder, [asked, digest, language.template, budget, *where])
        ways: dict[str, Any] = {"budget": budget, "parts": parts, "progress": progress}
        logs = evaluate(language, fitting(sets), **options, **ways)
        about = manifest(asked, language, max_new_tokens, digest)
        write_tofu_eval(logs, folder, about, variant=variant)
        folders.tidy(folder, JOB)
        return logs


def _read(path: Path, tasks: Sequence[str]) -> tuple[TofuLogs, Any]:
    """Return the logs of an evaluation of these sets, and the settings that it was written with."""
    made = evaluation_settings(path)
    return TofuLogs(**{task: read_log(path, task) for task in tasks}), made


def evaluation_settings(path: Path) -> Any:
    """Return the settings that an evaluation was written with; None for a file that has none.

    Raises `InvalidInput` for a file that cannot be read.
    """
    allowed = "an evaluation that can be read"
    found = inputs.read_json(path, "out", allowed)
    known = found.get(MANIFEST, {}) if isinstance(found, dict) else None
    if not isinstance(known, dict):
        raise InvalidInput("out", str(path), f"{allowed} (its {MANIFEST} is no object)")
    return known.get("settings")


def tofu_measure(
    sets: TofuSets,
    retrained: EvaluationLog | None,
    epochs: Collection[int],
    *,
    variant: str = "geometric",
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
) -> Measure[LanguageModel]:
    """Return a measure of forget quality, extraction strength and utility after some epochs.

    Its numbers are `forget_quality` and `ks_statistic`, nan without `retrained`, the
    `extraction_strength` of the forget set and `model_utility`; after other epochs all are nan.
    Answers are written for the sets of utility only, because the others need none. Raises
    `InvalidInput` as `llm.data.splits.checked` does, and for a log of the retrained model without
    wrong answers.
    """
    check_variant(variant)
    checked(sets)
    if retrained is not None:
        known = retrained.perturbed is not None
        require(
            known,
            "retrained",
            retrained.file,
            "a model, or its log, that says how likely wrong answers are",
        )
    options: dict[str, Any] = {"max_length": max_length, "budget": budget, "progress": False}
    name = storage.fingerprint(
        [sets, sorted(epochs), variant, max_new_tokens, max_length, retrained is None]
    )

    def call(epoch: int, language: LanguageModel) -> Mapping[str, float]:
        found: dict[str, float] = dict.fromkeys(COLUMNS, math.nan)
        if epoch not in epochs:
            return found
        log = answer_log(language, sets.forget, **options)
        found[EXTRACTION] = float(log.memorised[EXTRACTION].mean())
        if retrained is not None:
            quality = forget_quality(log, retrained, variant=variant)
            found |= {"forget_quality": quality.p_value, "ks_statistic": quality.statistic}
        kept = {
            task: task_log(language, getattr(sets, task), max_new_tokens=max_new_tokens, **options)
            for task in TofuSets._fields
            if task != "forget"
        }
        return found | {"model_utility": model_utility(TofuLogs(**kept), variant)}

    return Measure(f"tofu {name}", call)
