"""Requests to forget that arrive one after another, each unlearned from what the one before left.

What was forgotten earlier may come back while something else is forgotten, and what nobody asked to
forget wears away with every request. So after each request all requests are scored, those still to
come included. The reference of a request is the model at its arrival, as in a service that keeps
one model. (Paper, Figure A5.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from llm.data.tofu import Example
from llm.logs.log import EvaluationLog, align, take
from llm.logs.measures import EXTRACTION, forget_quality
from llm.models.answers import answer_log, log_of, log_table
from llm.models.language_model import LanguageModel
from llm.models.source import load
from llm.scoring.encoding import MAX_LENGTH
from llm.training.checkpointing import parameters_digest
from llm.unlearning.runs import EPOCHS, MODEL, unlearn_into
from llm.unlearning.unlearn import Unlearning, as_kept
from markov.errors import is_whole, require
from markov.files import folders, storage
from markov.files.storage import Location

STAGE, REQUESTS = "request_{}", "requests.parquet"


class Sequential(NamedTuple):
    """What requests in turn leave behind, stage by stage.

    A stage is the number of requests done by then, from 0. `answers` has a row per `stage`,
    `request` (from 0) and answer, with the columns of `llm.models.answers.log_table`. `stages` has
    a row per `stage`: `forget_loss`, of its own request, `retain_loss` and `status` of its last
    epoch.
    """

    answers: pd.DataFrame
    stages: pd.DataFrame


def requests(examples: Sequence[Example], count: int) -> tuple[tuple[Example, ...], ...]:
    """Return a forget set cut into `count` requests of about equally many authors, in order.

    Authors stay whole where examples have them; an example without an author counts as one. Raises
    `InvalidInput` for fewer authors, or examples, than requests.
    """
    names = [example.author or str(place) for place, example in enumerate(examples)]
    units = list(dict.fromkeys(names))
    require(
        is_whole(count, 1, len(units)),
        "requests",
        count,
        f"from 1 to {len(units)}, the authors or examples there are",
    )
    part = {unit: place * count // len(units) for place, unit in enumerate(units)}
    return tuple(
        tuple(
            example for example, name in zip(examples, names, strict=True) if part[name] == number
        )
        for number in range(count)
    )


def sequential(
    folder: Location,
    start: Callable[[], LanguageModel],
    wanted: Sequence[Sequence[Example]],
    retain: Sequence[Example],
    settings: Unlearning,
    *,
    max_length: int = MAX_LENGTH,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Sequential:
    """Unlearn the requests in turn, each in a folder of its own, and return what they left.

    A call goes on where an earlier one was stopped; `trust_remote_code` says whether code that
    comes with the model is run when it is loaded from there. Raises `InvalidInput` as
    `unlearn_into` does, for a folder of other requests or of anything else, and for an example that
    occurs in two requests.
    """
    folder = storage.check_writable(folder, "out", folder=True)
    indices = [example.index for request in wanted for example in request]
    repeated = sorted({index for index in indices if indices.count(index) > 1})
    require(
        bool(wanted) and not repeated,
        "requests",
        repeated[:1],
        "at least one, each example in one of them",
    )
    language = start()
    parameters: str | None = parameters_digest(language.model)
    described = {
        "model": language.name,
        "parameters": parameters,
        "unlearning": as_kept(settings),
    }
    # The requests are not part of it, since there may be more than an earlier call had.
    described |= {"retain": storage.fingerprint(retain)}
    places = [STAGE.format(stage) for stage in range(1, len(wanted) + 1)]
    with folders.working(folder, "sequential", described, names=(REQUESTS, *places)):
        answers, stages = [_scored(folder, 0, language, wanted, max_length)], []
        for stage, request in enumerate(wanted, start=1):
            place = folder / STAGE.format(stage)
            done = (place / EPOCHS).exists()
            run = unlearn_into(
                place,
                language,
                request,
                retain,
                settings,
                max_length=max_length,
                parameters=parameters,
                progress=progress,
            )
            parameters = None  # the next stage begins from other parameters
            if done:  # the run was read, and the model was not touched
                device = str(language.model.device)
                found = load(place / MODEL, device=device, trust_remote_code=trust_remote_code)
                language = found._replace(name=language.name)
            stages += [run.epochs.iloc[[0]].assign(stage=0)] if stage == 1 else []
            stages.append(run.epochs.iloc[[-1]].assign(stage=stage))
            answers.append(_scored(place, stage, language, wanted, max_length))
    kept = pd.concat(stages, ignore_index=True).drop(
        columns=["epoch", "step", "learning_rate", "gradient_norm"]
    )
    return Sequential(pd.concat(answers, ignore_index=True), kept)


def _scored(
    folder: Path,
    stage: int,
    language: LanguageModel,
    wanted: Sequence[Sequence[Example]],
    max_length: int,
) -> pd.DataFrame:
    """Return how the model of a stage scores all requests, read from its folder if it is there."""
    path = folder / REQUESTS
    if storage.read_kept(path, storage.read_table) is None:
        own = [
            answer_log(language, request, max_length=max_length, progress=False)
            for request in wanted
        ]
        tables = [
            log_table(log).assign(stage=stage, request=number) for number, log in enumerate(own)
        ]
        known = storage.provenance({"model": language.name, "stage": stage})
        storage.write_table(pd.concat(tables, ignore_index=True), path, known)
    found = storage.read_table(path)
    there = found[["request", "index"]].drop_duplicates().to_numpy().tolist()
    asked = [
        [number, example.index] for number, request in enumerate(wanted) for example in request
    ]
    require(
        sorted(there) == sorted(asked),
        "out",
        str(folder),
        "an empty folder, or that of these requests",
    )
    return found


def by_stage(found: Sequential, retrained: EvaluationLog) -> pd.DataFrame:
    """Return the measures of each request at each stage, beside a model that never saw any request.

    The table has a row per `stage` and `request`: `requested` (whether it was among those done by
    then), `logp` (mean of logp/length, nats per token), `forget_quality` and `ks_statistic` against
    the retrained model, `extraction_strength`, nan where it was not taken, `examples`, and the
    columns of `found.stages`. Raises `InvalidInput` as `forget_quality` does.
    """
    rows = []
    for (stage, request), frame in found.answers.groupby(["stage", "request"]):
        log = log_of(frame, f"the model of stage {stage}")
        theirs = take(retrained, np.flatnonzero(np.isin(retrained.index, log.index)))
        quality = forget_quality(log, align(log, theirs))
        own = {"stage": stage, "request": request, "requested": int(request) < int(stage)}  # pyright: ignore[reportArgumentType]
        own |= {"logp": -log.gold.average.mean(), "forget_quality": quality.p_value}
        own |= {"ks_statistic": quality.statistic, "examples": quality.examples}
        rows.append(own | {EXTRACTION: np.mean(log.memorised.get(EXTRACTION, np.nan))})
    return pd.DataFrame(rows).merge(found.stages, on="stage", how="left")
