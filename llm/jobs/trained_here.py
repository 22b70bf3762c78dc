"""Pairs of models that are made here, for a study that has nothing to teach.

A seed of such a study is another training of both models, from other random weights and in another
order, on the same texts. They are made in the cache, by as many processes as the study may have,
and copied to where a study keeps the models that it taught.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm.data import sources
from llm.models.names import check_has_read, made
from markov.errors import require
from markov.files import folders, storage

if TYPE_CHECKING:
    from llm.jobs.study_settings import Study
    from llm.models.small_authors import DefaultModels

JOB = "copy"
# What a study decides where it teaches, and what is decided here by how the models are made.
DECIDED = ("forget_answers", "retain_answers", "learning_epochs", "learning_batch", "learning_rate")


def is_trained_here(asked: Study) -> bool:
    """Return whether a study is of models made here that have read the data: other trainings of it.

    Raises `InvalidInput` for a model that has read other authors, and for what it would decide of
    the teaching.
    """
    own, (corpus, colon, _) = made(asked.model), str(asked.data).partition(":")
    if own is None or own.kind != "original" or own.corpus != sources.PREFIX:
        return False
    if not colon or corpus != sources.PREFIX:
        return False
    check_has_read(asked.model, asked.data)
    for name in DECIDED:
        value, default = getattr(asked, name), getattr(type(asked), name)
        require(value == default, name, value, f"left out: {asked.model} has read its data already")
    return True


def make(asked: Study, seeds: Sequence[int], kinds: Collection[str], progress: bool) -> None:
    """Train the models of some seeds that are not in the cache yet, several at a time.

    For any other study, which teaches its models, nothing is done.
    """
    if not is_trained_here(asked):
        return
    import joblib

    from llm.models.small import kept_model
    from llm.models.small_authors import build, folder_of
    from llm.sweeps.parallel import several

    wanted = [(settings_of(asked, seed), kind) for seed in seeds for kind in kinds]
    absent = [
        (settings, kind)
        for settings, kind in wanted
        if kept_model(folder_of(settings, kind, asked.device)) is None
    ]
    ways = {"device": asked.device, "progress": progress and len(absent) == 1}
    jobs = [joblib.delayed(build)(settings, kind, **ways) for settings, kind in absent]
    several("models", jobs, n_jobs=asked.jobs, progress=progress)


def copy(asked: Study, place: Path, seed: int, kinds: Collection[str], progress: bool) -> int:
    """Put models of a seed where a study keeps them, and return how many parameters one has."""
    from llm.models.finetuned import MODEL
    from llm.models.saving import save
    from llm.models.small_authors import build

    size, settings = 0, settings_of(asked, seed)
    for kind in kinds:
        described = {"models": settings, "kind": kind}
        with folders.working(place / kind, JOB, described, names=(MODEL,)):
            language = build(settings, kind, device=asked.device, progress=progress)
            size = sum(one.numel() for one in language.model.parameters())
            if not (place / kind / MODEL).exists():
                save(language, place / kind / MODEL, storage.provenance(described, seeds=[seed]))
    return size


def settings_of(asked: Study, seed: int) -> DefaultModels:
    """Return how the two models of a seed are made."""
    from llm.data.authors.corpus import Authors
    from llm.data.splits import split_of
    from llm.models.small_authors import DefaultModels

    own = made(asked.model)
    assert own is not None
    percent = split_of(asked.data).percent
    return DefaultModels(authors=Authors(seed=own.seed), percent=percent, seed=seed)
