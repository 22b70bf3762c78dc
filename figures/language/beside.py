"""Three language models beside each other: forget quality against utility (the paper's Figure 1c).

Left: what the paper reports of Llama-2-7B on TOFU's forget05; its 0.00 stands at the bottom.
Middle: the default model, on the authors that are made here, or the user's own model. Right: a
pretrained model on a part of TOFU, SmolLM2-135M as `make real` found it. Upper right is better.
Forget quality is the p-value of the test between the truth ratios of forget answers under a model
and under the retrained one. It falls with the number of answers that are compared, which stands
above each panel, so that heights are compared within a panel, not between panels. Bars: 95%
intervals of the utility, over trainings of the default model and over examples of one run
elsewhere; the paper gives none. Grey: the p-values between the retrained models of any two
trainings; a larger one is no better.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.language import plane, studies
from figures.language.runs import source_of, study
from figures.language.sweeps import swept, table_words
from llm.logs.measures import forget_quality
from markov.errors import require

# What `make real` found: the frame of the figure llm_tradeoff.
REAL = Path(__file__).parents[1] / "gallery" / "study" / "llm_tradeoff.csv"
NAME = "model_name"
MEASURES = ("forget_quality", "model_utility")
METHODS = ("gradient_ascent", "grad_diff", "npo", "simnpo")
# Forget quality and model utility on forget05, of 200 answers: arXiv 2410.07163, table of TOFU.
PAPER = {
    "original": (0.00, 0.62),
    "retrained": (1.00, 0.62),
    "gradient_ascent": (1.9e-9, 0.00),
    "grad_diff": (3.6e-9, 0.56),
    "npo": (0.79, 0.57),
    "simnpo": (0.99, 0.58),
}
ANSWERS = 200


def data(context: Context) -> pd.DataFrame:
    """Return forget quality and model utility of the methods that all three tables have.

    The columns are `panel` (paper, default or real), `kind`, `model_name`, `model` (original,
    retrained, or the method in a word), `method`, `measure`, `value`, `low`, `high` and `examples`:
    how many answers are compared. The paper has no intervals. Rows of kind floor have the p-value
    of two retrained models of a study.
    """
    # First what may be missing: the others are trained for minutes.
    allowed = "there: `python -m figures llm_tradeoff --study out/real --gallery` writes it"
    require(REAL.is_file(), "study", str(REAL), allowed)
    real = pd.read_csv(REAL).query("kind == 'measure'").rename(columns={"study": NAME})
    here = swept(context, table_words(study(context.scale)))
    parts = [
        reported().assign(panel="paper", **{NAME: "Llama-2-7B, forget05 (the paper)"}),
        here.assign(panel="default", **{NAME: source_of(replace(context, runs=()))}),
        real.assign(panel="real"),
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.assign(method=frame["model"].map(plane.method_of), kind="measure")
    kept = frame["measure"].isin(MEASURES) & frame["method"].isin([*plane.BASELINES, *METHODS])
    names = [
        "panel",
        "kind",
        NAME,
        "model",
        "method",
        "measure",
        "value",
        "low",
        "high",
        "examples",
    ]
    floor = pd.DataFrame({"value": _p_values(context)}).assign(panel="default", kind="floor")
    return pd.concat([frame.loc[kept, names], floor], ignore_index=True)


def _p_values(context: Context) -> list[float]:
    """Return the forget quality of any two retrained models, each beside the other, of a study."""
    if context.study is None:
        return []
    logs = [studies.log_of(seed) for seed in studies.retrained_of(context.study)]
    return [forget_quality(*pair).p_value for pair in itertools.combinations(logs, 2)]


def reported() -> pd.DataFrame:
    """Return the paper's table of forget05, a row per model and measure."""
    rows = [
        (model, measure, value, ANSWERS)
        for model, found in PAPER.items()
        for measure, value in zip(MEASURES, found, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["model", "measure", "value", "examples"])
    return table.assign(low=float("nan"), high=float("nan"))


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, (every,) = style.grid_figure(1, 3, 12.0, 4.2)
    utility = frame.loc[frame["measure"] == "model_utility", ["value", "high"]]
    most = float(utility.max().max())
    for axes, (_, own) in zip(every, frame.groupby("panel", sort=False), strict=True):
        for _, row in plane.points(own).iterrows():
            plane.mark(axes, row, "forget_quality")
        plane.quality_axis(axes)
        floor = own.loc[own["kind"] == "floor", "value"]
        if len(floor):
            look = {"color": "0.6", "alpha": 0.3, "lw": 0, "zorder": 0}
            axes.axhspan(floor.min(), floor.max(), label="two retrained models", **look)
        axes.set(xlabel=plane.UTILITY, xlim=(-0.02, most + 0.05))
        count = own.loc[own["measure"] == "forget_quality", "examples"].max()
        axes.set_title(f"{own[NAME].iloc[0]}\np-value of {count:.0f} answers")
    for axes in every[1:]:
        axes.set_ylabel("")
    handles: dict[str, Any] = {}
    for axes in every:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=7)
    return figure
