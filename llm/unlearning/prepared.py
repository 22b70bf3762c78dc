"""What a run unlearns, made ready, and the tables that it leaves, wherever they are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import nn

from llm.data.tofu import Example
from llm.diagnostics.weights import with_needed
from llm.logs.log import EvaluationLog, total_loss
from llm.logs.questions import matched
from llm.models.answers import answer_log, log_table, responses
from llm.models.language_model import LanguageModel
from llm.scoring.encoding import Encoded
from llm.unlearning.epoch import Measure
from llm.unlearning.unlearn import Unlearned, Unlearning, as_kept, unlearn
from markov.errors import InvalidInput, require
from markov.files import storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prepared(NamedTuple):
    """What a run unlearns, in tokens, and all that determines its numbers."""

    index: Int[np.ndarray, "examples"]
    forget: list[Encoded]
    retain: list[Encoded]
    preferred: list[Encoded] | None
    logps: dict[str, Float[np.ndarray, "examples"]]
    importance: Float[np.ndarray, "examples"] | None
    measure: Measure[LanguageModel] | None
    described: dict[str, Any]


def prepared(
    language: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    settings: Unlearning,
    reference: EvaluationLog | None,
    retrained: EvaluationLog | None,
    preferred: Sequence[Example] | None,
    measure: Measure[LanguageModel] | None,
    importance: Float[np.ndarray, "examples"] | None,
    max_length: int,
    parameters: str,
) -> Prepared:
    """Return what a run unlearns; raises `InvalidInput` for logs of other examples or tokens."""
    index = np.array([example.index for example in forget])
    encoded, kept = (
        responses(language, examples, max_length=max_length) if len(examples) > 0 else []
        for examples in (forget, retain)
    )
    better = None if preferred is None else responses(language, preferred, max_length=max_length)
    others = (("reference", reference), ("retrained", retrained))
    logps = {name: _logp_of(log, name, index, encoded) for name, log in others if log is not None}
    described: dict[str, Any] = {
        "model": language.name,
        "unlearning": as_kept(settings),
        "forget": storage.fingerprint([one.tokens for one in encoded]),
        "retain": storage.fingerprint([one.tokens for one in kept]),
    }
    if better is not None:
        described["preferred"] = storage.fingerprint([one.tokens for one in better])
    if measure is not None:
        described["measure"] = measure.name
    if importance is not None:
        importance = np.asarray(importance, dtype=float)
        described["importance"] = storage.fingerprint(importance)
    described |= {name: storage.fingerprint(logp) for name, logp in logps.items()}
    described["parameters"] = parameters
    return Prepared(index, encoded, kept, better, logps, importance, measure, described)


def unlearned(
    run: Prepared,
    language: LanguageModel,
    forget: Sequence[Example],
    settings: Unlearning,
    original: EvaluationLog | None,
    retrained: EvaluationLog | None,
    state: Path | None,
    max_length: int,
    progress: bool,
    state_minutes: float = 0.0,
) -> tuple[Unlearned, pd.DataFrame, pd.DataFrame]:
    """Unlearn, and return what was recorded with the tables of examples and of answers.

    In the folder `state`, if there is one, it goes on where it was stopped.
    """

    def answers() -> EvaluationLog:
        return answer_log(language, forget, max_length=max_length, progress=progress)

    before = answers() if original is None else original
    found = _trained(run, language, settings, state, state_minutes, progress)
    return (found, *_tables(run, found, before, retrained, answers))


def _trained(
    run: Prepared,
    language: LanguageModel,
    settings: Unlearning,
    state: Path | None,
    state_minutes: float,
    progress: bool,
) -> Unlearned:
    """Return what unlearning records; with the folder `state` it goes on where it was stopped."""
    ref, measure = run.logps.get("reference"), run.measure
    return unlearn(
        language.model,
        run.forget,
        run.retain,
        settings,
        preferred=run.preferred,
        ref=None if ref is None else torch.tensor(ref),
        index=run.index,
        importance=None if run.importance is None else torch.tensor(run.importance),
        measure=None if measure is None else _of_model(measure, language),
        state=state,
        state_minutes=state_minutes,
        parameters=run.described["parameters"],
        progress=progress,
    )


def _tables(
    run: Prepared,
    found: Unlearned,
    original: EvaluationLog,
    retrained: EvaluationLog | None,
    answers: Callable[[], EvaluationLog],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of examples and of answers; the unlearned model answers now."""
    examples = found.examples
    if retrained is not None:
        epochs = examples["epoch"].nunique()
        examples = with_needed(examples, np.tile(run.logps["retrained"], epochs))
    logs = {"original": original, "retrained": retrained, "unlearned": _if_finite(answers)}
    tables = [log_table(log).assign(model=model) for model, log in logs.items() if log is not None]
    return examples, pd.concat(tables, ignore_index=True)


def _if_finite(answers: Callable[[], EvaluationLog]) -> EvaluationLog | None:
    """Return the log of a model that has unlearned, or None where it cannot be scored any more.

    Warns where it is None.
    """
    try:
        found = answers()
        kinds = (found.gold, found.paraphrased, found.perturbed)
        reason = (
            ""
            if all(bool(np.isfinite(one.average).all()) for one in kinds if one is not None)
            else "not finite"
        )
    except InvalidInput as error:  # could be scored before the first update
        found, reason = None, str(error)
    if reason:
        warnings.warn(
            f"answers of the unlearned model are left out: {reason}", RuntimeWarning, stacklevel=3
        )
    return None if reason else found


def _of_model(measure: Measure[LanguageModel], language: LanguageModel) -> Measure[nn.Module]:
    """Return the same measure, as one of the bare model."""

    def call(epoch: int, model: nn.Module) -> Mapping[str, float]:
        return measure.call(epoch, language._replace(model=cast("PreTrainedModel", model)))

    return Measure(measure.name, call)


def _logp_of(
    log: EvaluationLog, field: str, index: Int[np.ndarray, "examples"], encoded: Sequence[Encoded]
) -> Float[np.ndarray, "examples"]:
    """Return log pi of each response (nats) in the order of `index`.

    Raises `InvalidInput` for a log of other examples or tokens.
    """
    order, lacking = matched(index, log.index)
    require(
        not lacking and len(log.index) == len(index),
        field,
        lacking[:1],
        f"all forget examples in {log.file}",
    )
    loss, length = (
        total_loss(log)[order],
        np.array([len(one.tokens) - one.prompt for one in encoded]),
    )
    uneven = int((np.asarray(log.gold.length)[order] != length).sum())
    require(
        not uneven,
        field,
        log.file,
        f"scores of the same tokens of each response ({uneven} have other lengths)",
    )
    return -loss
