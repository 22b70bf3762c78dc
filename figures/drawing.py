"""How a figure is written: its frame, its pictures, and at first a rough one of small models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd

from figures import style
from figures.cache import DRAWING, Context
from figures.catalogue import module_of
from figures.scale import Scale, quick_scale
from markov.files import storage

PROVENANCE = "provenance.json"  # of the tables that a figure tells
ROUGH = "rough: small models and little data\nright in kind, not in numbers"


def roughly(name: str, context: Context, folder: Path) -> bool:
    """Draw a picture of small models, which says so, and return whether that was done.

    It is drawn only where there is none, so that it takes the place of nothing.
    """
    path = folder / f"{name}.png"
    if path.exists():
        return False
    module = module_of(name)
    frame = module.data(replace(context, scale=quick_scale()))
    with style.look():
        figure = module.plot(frame)
        figure.text(0.5, 0.5, ROUGH, rotation=20, alpha=0.35, size=26, ha="center", va="center")
        with storage.atomic_path(path) as partial:
            style.save(figure, partial)
    return True


def write(
    name: str,
    module: ModuleType,
    frame: pd.DataFrame,
    scale: Scale,
    folder: Path,
    small: Path | None = None,
) -> None:
    """Write a figure's frame and both pictures, and a small picture if a path for one is given."""
    storage.write_table(
        frame, folder / f"{name}.parquet", storage.provenance(scale, seeds=range(scale.pretrained))
    )
    pictures: list[tuple[Path, int | None]] = [
        (folder / f"{name}.{suffix}", None) for suffix in ("pdf", "png")
    ]
    frame.attrs = {}  # pandas would copy the attributes with every part of the frame that is drawn
    with style.look():
        figure = module.plot(frame)
        if "study" in frame:
            from figures.language import studies

            studies.note(figure, frame)
        for path, dpi in pictures if small is None else [*pictures, (small, 80)]:
            with storage.atomic_path(path) as partial:
                style.save(figure, partial, dpi)
            # One layout serves all pictures, and finding it takes half of the time.
            figure.set_layout_engine("none")


def tell(
    name: str, module: ModuleType, frame: pd.DataFrame, scale: Scale, folders: Sequence[Path]
) -> None:
    """Write the tables that README and findings tell of a figure, where it has any.

    They are FOLDER/NAME/PART.csv, as the figure `ledger` reads them, in each of the folders, and
    beside them FOLDER/NAME/provenance.json says which code and which settings made them.
    """
    tables = module.told(frame) if hasattr(module, "told") else {}
    if not tables:
        return
    seeds = range(max(scale.pretrained, scale.trained))
    made = storage.provenance(scale, module.__name__, without=DRAWING, seeds=seeds)
    for folder in folders:
        with storage.atomic_path(folder / name / PROVENANCE) as partial:
            partial.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")
    for part, numbers in tables.items():
        for folder in folders:
            with storage.atomic_path(folder / name / f"{part}.csv") as partial:
                numbers.to_csv(partial, index=False, float_format="%.6g")
