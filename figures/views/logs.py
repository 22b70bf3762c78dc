"""Evaluation logs in notebooks, and logs that are always at hand.

They show what a test of so many examples can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets
import numpy as np
import pandas as pd

from figures import style
from figures.cache import Context
from figures.language import sources
from figures.language.runs import study
from figures.scale import quick_scale
from figures.views.sliders import RoundSlider, lengths
from figures.views.view import WIDTH, Picture, View, plain_log_axis, room_for_a_line
from llm.data import tofu
from llm.data.splits import tofu_sets
from llm.evaluation.folders import evaluate_into
from llm.logs.log import EvaluationLog, align, take, truth_ratio
from llm.logs.measures import VARIANTS, TofuLogs, forget_quality
from llm.logs.reading import read_log
from llm.models.small_authors import build, folder_of, sets
from markov.errors import require, require_whole
from markov.files import storage

SIZES, DRAWS = (10, 20, 40, 80, 150, 300, 400), 12
NEW_TOKENS = 60  # of a model's own answers, where they are written for a notebook


def quality_view(
    log: EvaluationLog,
    retrained: EvaluationLog,
    *,
    examples: int = 40,
    variant: str = "geometric",
    draw: int = 0,
) -> View:
    """View the forget quality of so many examples, drawn without replacement.

    Left, the distributions of truth ratios: the share of examples below a ratio, of which D is the
    largest distance. Right, their test: the p-value against the number of examples, in several
    draws (grey) and in this one. Raises `InvalidInput` as `forget_quality` does.
    """
    other, count = align(log, retrained), len(log.index)
    sizes = [size for size in SIZES if size < count] + [count]
    require_whole(examples, "examples", 3, count)
    look = {"style": {"description_width": "76px"}, "layout": widgets.Layout(width="98%")}
    controls = {
        "examples": RoundSlider(examples, lengths(3, count), "examples"),
        "draw": widgets.IntSlider(draw, min=0, max=100, description="draw", **look),
        "variant": widgets.Dropdown(
            options=list(VARIANTS), value=variant, description="variant", **look
        ),
    }
    cloud = subsampled(log, other, sizes, variant=variant)
    with style.look():
        figure, ((left, right),) = style.grid_figure(1, 2, WIDTH, 3.3)
        colors = (style.COLORS["npo"], "black")
        curves = [left.plot([], [], drawstyle="steps-post", color=color)[0] for color in colors]
        left.legend(handles=curves, labels=["the model", "retrained"], loc="upper left")
        left.set(
            xscale="log",
            xlim=(0.05, 20),
            ylim=(0, 1),
            xlabel="truth ratio R",
            ylabel="share of examples below",
        )
        plain_log_axis(left.xaxis, (0.1, 0.3, 1, 3, 10))
        right.plot(cloud["examples"], cloud["log10_p"], "o", color="grey", ms=3, alpha=0.6)
        (here,) = right.plot([], [], "o", ms=10, color=colors[0], mec="black")
        right.axhline(np.log10(0.05), color="grey", ls=":", lw=1)
        right.set(xscale="log", xlabel="examples in the test", ylabel="log10 of the p-value")
        plain_log_axis(right.xaxis, [3, *sizes])
        right.set_xlim(2.7, 1.15 * count)
        right.set_ylim(1.12 * min(cloud["log10_p"].min(), -2.0), 0.4)
        said = room_for_a_line(figure)

    def update(examples: int, draw: int, variant: str) -> None:
        both = [take(one, _drawn(count, examples, draw)) for one in (log, other)]
        for curve, one in zip(curves, both, strict=True):
            ratio = np.sort(truth_ratio(one, variant))
            curve.set_data([1e-9, *ratio, 1e9], [0, *np.arange(1, examples + 1) / examples, 1])
        found = forget_quality(*both, variant=variant)
        here.set_data([examples], [found.log10_p])
        said.set_text(
            f"{examples} beside {examples} examples:  D = {found.statistic:.2f},  p = "
            f"{found.p_value:.2g}"
        )

    return View(Picture(figure=figure, moving=[*curves, here, said], update=update), controls)


def subsampled(
    log: EvaluationLog,
    retrained: EvaluationLog,
    sizes: Sequence[int],
    *,
    draws: int = DRAWS,
    variant: str = "geometric",
) -> pd.DataFrame:
    """Return the forget quality of examples drawn without replacement.

    Columns: `examples`, `draw`, `p_value`, `log10_p`, `statistic`.
    """
    other, rows = align(log, retrained), []
    for size in sizes:
        for draw in range(draws):
            at = _drawn(len(log.index), size, draw)
            found = forget_quality(take(log, at), take(other, at), variant=variant)
            rows.append((size, draw, found.p_value, found.log10_p, found.statistic))
    return pd.DataFrame(rows, columns=["examples", "draw", "p_value", "log10_p", "statistic"])


def _drawn(count: int, examples: int, draw: int) -> np.ndarray:
    return np.random.default_rng([draw, examples]).permutation(count)[:examples]


def tofu_logs(context: Context, kind: str = "original") -> TofuLogs:
    """Return Llama-2-7B's public evaluation logs, or those that the default model makes.

    The public ones are taken where SIMNPO_LAB_TOFU is set; else the same files are made by the
    default model. `kind` is original or retrained. Raises `InvalidInput` for another, and for a
    folder without such logs.
    """
    require(kind in ("original", "retrained"), "kind", kind, "original or retrained")
    found = sources.real_logs()
    if found is not None:
        return TofuLogs(*(read_log(getattr(found, kind), task) for task in TofuLogs._fields))
    models = study(context.scale).models
    folder = (
        storage.cache_dir()
        / "evaluations"
        / storage.fingerprint([models, kind], "llm.models.small_authors", "llm.evaluation.folders")
    )
    sets = tofu_sets(f"authors:forget{models.percent:02}", authors=models.authors)
    return evaluate_into(
        folder,
        lambda: build(models, kind, progress=context.progress),
        sets,
        {"models": storage.settings_of(models), "kind": kind},
        max_new_tokens=NEW_TOKENS,
        progress=context.progress,
    )


class Files(NamedTuple):
    """What a template starts from: two models' folders, and files of what to forget and retain."""

    checkpoint: Path
    retrained: Path
    forget: Path
    retain: Path


def example_files() -> Files:
    """Return the folders of the quick default model, made now if it is not in the cache.

    Its data are written there as TOFU's JSON.
    """
    models = study(quick_scale()).models
    for kind in ("original", "retrained"):
        build(models, kind)
    folder = storage.cache_dir() / "example_files"
    original, retrained = (folder_of(models, kind) for kind in ("original", "retrained"))
    files = Files(original, retrained, folder / "forget.json", folder / "retain.json")
    for examples, path in zip(sets(models), files[2:], strict=True):
        tofu.write(examples, path)
    return files


def run_folder(*choices: object) -> Path:
    """Return a folder in the cache whose name follows from all that was chosen, for a run of it."""
    return storage.cache_dir() / "your_model" / storage.fingerprint(list(choices), "llm")
