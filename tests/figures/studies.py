"""The tiny scale of chains and study of language models that tests of figures put in place of full
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from figures import style
from figures.language.runs import AuthorsStudy
from figures.scale import Scale
from llm.data.authors.corpus import Authors
from llm.models.small_authors import DefaultModels
from markov.cases import Case
from markov.experiments import Experiment, Pretraining
from markov.files import storage
from markov.models import Transformer


class Tiny(Scale):
    """Large enough to draw, too small to mean anything."""

    def cases(self) -> dict[str, Case]:
        counts = {"retain_count": 60, "forget1_count": 30, "forget2_count": 30}
        return {name: replace(case, **counts) for name, case in super().cases().items()}

    def experiment(self) -> Experiment:
        model = Transformer(width=8, depth=1, heads=2, mlp_width=8)
        settings = Pretraining(epochs=1, batch=32, learning_rate=1e-2)
        return replace(
            super().experiment(), model=model, pretraining=settings, steps=4, learning_rate=1e-2
        )


def tiny_study(*, questions: int, percent: int, **changes: Any) -> AuthorsStudy:
    """A study of six authors, whose models have a width of 16; `changes` are fields of it."""
    models = DefaultModels(
        authors=Authors(authors=6, questions=questions),
        percent=percent,
        width=16,
        depth=1,
        heads=2,
        mlp_width=16,
        vocabulary=300,
        passes=3,
        batch=32,
        precision="float32",
    )
    return AuthorsStudy(models=models, epochs=2, own_epochs=2, batch=4, **changes)


@contextmanager
def in_place(chosen: AuthorsStudy, cache: Path, *modules: ModuleType) -> Iterator[None]:
    """While it lasts, the study of these modules is the chosen one, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(cache))
        for module in modules:
            patch.setattr(module, "study", lambda scale: chosen)
        yield


@contextmanager
def without_models() -> Iterator[None]:
    """While it lasts, the cache has no small models and no room for any: what needs one is refused
    for `SIMNPO_LAB_CACHE`.
    """
    folder = storage.cache_dir() / "language_models"
    aside = folder.rename(folder.with_name("set aside"))
    folder.write_text("a file in the way")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


def drawn(module: ModuleType, frame: pd.DataFrame) -> Figure:
    """The figure of a frame, which is left as it was."""
    before = frame.copy(deep=True)
    with style.look():
        figure = module.plot(frame)
        figure.canvas.draw()
    pd.testing.assert_frame_equal(frame, before)
    return figure
