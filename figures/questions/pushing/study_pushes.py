"""What weightings push and what is needed, of a study's own models, computed.

It is what `figures.questions.pushing.pushes` does of the default model, before the first update: of
each seed the model that has learnt all and the one that was retrained, with the corners that the
study ran, at its betas and retain weights. No run is followed, since that would take other runs.

The model may be large, so that gradients are taken a part of the parameters at a time (see
`llm.scoring.gram.grams`), and of a sample of the answers to retain.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

from figures.cache import Context, cached
from figures.language import studies
from figures.questions.pushing.pushes import Given, Steps, of_point
from llm.data.sources import read
from llm.data.splits import retain_of
from llm.data.tofu import Example
from llm.jobs.replicates import KINDS
from llm.models.answers import responses
from llm.models.language_model import LanguageModel, check_same_vocabulary
from llm.models.source import ModelOptions, load_model
from llm.randomness import shuffled
from llm.scoring.logprobs import score_encoded
from llm.training.checkpointing import parameters_digest
from llm.unlearning.runs import MODEL, Run
from markov.errors import require
from markov.objectives import method_name

RETAINED = 40  # retain answers of the sample, of which half stand for the retain loss
HELD = 3 * 2**29  # numbers of gradients in memory: 6 GiB in float32
SAVED = ("model", "template", "revision")  # options that a saved model brings along


def compared(context: Context, place: Path) -> pd.DataFrame:
    """Return the rows of `figures.questions.pushing.pushes.of_point` of each seed, with its `seed`.

    Raises `InvalidInput` for a study that trained adapters, since its steps are not of the models'
    own parameters, and for a model that cannot be loaded or scored.
    """
    rank = studies.settings_of(place)["lora_rank"]
    require(rank is None, "study", str(place), "one whose runs trained all parameters, no adapters")
    answers = studies.forget_of(place), retained_of(place)
    frames = [
        _of_seed(context, place, seed, runs, *answers)
        for seed, runs in zip(studies.seeds_of(place), studies.corners(place), strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def retained_of(place: Path) -> tuple[Example, ...]:
    """Return the answers to retain: the part of the data that the study took, or all."""
    parts = (place / "data").glob("retain*.json")
    own = [path for path in parts if not path.stem.endswith("_perturbed")]
    settings = studies.settings_of(place)
    word = str(own[0]) if own else retain_of(settings["data"], settings["retain_data"])
    return tuple(read(word))


def steps_of(runs: list[Run]) -> Steps:
    """Return what is asked of the start: the study's corners, and batches of its NPO.

    Where a corner was run at several settings it is the first. Without NPO the batches are those
    of the first corner.
    """
    corners: dict[str, Run] = {}
    for run in runs:
        corners.setdefault(method_name(run.objective), run)
    first = corners.get("npo", runs[0])
    unlearning = first.settings["unlearning"]
    return Steps(
        {name: run.objective for name, run in corners.items()},
        first.objective,
        float(unlearning["retain_weight"]),
        int(unlearning["optimization"]["batch"]),
        int(unlearning["optimization"]["seed"]),
    )


def _of_seed(
    context: Context,
    place: Path,
    seed: Path,
    runs: list[Run],
    forget: tuple[Example, ...],
    retain: tuple[Example, ...],
) -> pd.DataFrame:
    language, retrained = (_loaded(place, seed / kind / MODEL) for kind in KINDS)
    check_same_vocabulary(language.tokenizer, retrained.tokenizer, "retrained")
    number = int(seed.name.removeprefix("seed"))
    rows = shuffled(len(retain), len(retain), number, 0, label="pushes")[0][:RETAINED]
    examples, steps = [*forget, *(retain[row] for row in rows)], steps_of(runs)
    length = int(studies.settings_of(place)["max_length"])
    encoded = responses(language, examples, max_length=length)
    ref, other = (
        score_encoded(one.model, encoded, progress=False).logp.double().numpy()
        for one in (language, retrained)
    )
    key = {
        "models": [parameters_digest(one.model) for one in (language, retrained)],
        "encoded": encoded,
        "steps": steps,
    }
    del retrained  # its memory is needed
    lengths = np.array([len(one.tokens) - one.prompt for one in encoded], dtype=float)
    given = Given(encoded, len(forget), lengths, ref, other)
    found = cached(
        context,
        __name__,
        key,
        lambda: of_point(language.model, given, steps, held=HELD, progress=context.progress),
    )
    return found.assign(seed=number)


def _loaded(place: Path, folder: Path) -> LanguageModel:
    settings = studies.settings_of(place)
    names = [one.name for one in fields(ModelOptions) if one.name not in SAVED]
    return load_model(ModelOptions(model=str(folder), **{name: settings[name] for name in names}))
