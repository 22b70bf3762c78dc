"""How much of 1/|y| does a language model need?

Drawn is the effective push, weight x |grad log pi(y|x)|, against length.

A dot per forget answer, a column per corner of the family, each along its own run; rows: before the
first update, after one epoch, at the end. Grey: the norm of the gradient itself, which the model
sets and the objective does not. Lines: power laws fitted to the answers, norm ~ |y|^q and push ~
|y|^p, with 95% intervals. Gradients of tokens that all point the same way would add up to q = 1,
independent ones to q = 1/2; it takes a weight ~ |y|^-q to push all answers alike, so that 1/|y|
over-corrects by what q lacks to 1. At the reference NPO's weight is 1, and its push is the norm.
Later p sums up what is no power law: once an answer has fallen far, its weight is exponentially
small in how far.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from figures import style
from figures.cache import Context, cached
from figures.fits import power_law
from figures.language import studies
from figures.language.runs import runs, trajectories
from figures.language.trajectories import KNOWN, at_epochs, panels_of
from figures.statistics import interval_text
from llm.data.tofu import Example
from llm.intervals import Estimate
from llm.models.answers import responses
from llm.models.source import load
from llm.scoring.gradients import gradient_norms
from llm.scoring.limits import MAX_LENGTH
from llm.unlearning.runs import Run
from markov.errors import require
from markov.files import storage

QUANTITIES = {"gradient_norm": "norm, q", "push": "push, p"}


def data(context: Context) -> pd.DataFrame:
    """Return the frame of the user's runs, or of the four corners on the default model.

    See `frame_of_runs`. A study's runs record no gradients. Those of its saved models are computed
    now: the original one, and the last one of each run whose model is kept. Of several seeds the
    exponents are means over them, and all else is of the first.
    """
    if context.study is None:
        return frame_of_runs(runs(context))
    forget = studies.forget_of(context.study)
    longest = int(studies.settings_of(context.study)["max_length"])
    seeds = [
        frame_of_runs([with_norms(context, run, forget, longest) for run in own])
        for own in studies.corners(context.study)
    ]
    keys = ["run", "epoch", "kind", "quantity", "length"]
    return studies.over(seeds, keys, {"value": ("low", "high")})


def with_norms(
    context: Context, run: Run, forget: Sequence[Example], max_length: int = MAX_LENGTH
) -> Run:
    """Return a study's run with the gradient norms of its saved models, and their epochs only."""
    made, frames = run.epochs.attrs[storage.KEY]["fingerprint"], []
    budget = run.settings["unlearning"]["optimization"]["budget"]
    for epoch, place in studies.saved_models(run).items():
        # The original is the same for all runs of a seed.
        of = {"run": made} if epoch else {"parameters": run.settings["parameters"]}
        known = {**of, "forget": run.settings["forget"]}

        def compute(place: Path = place) -> pd.DataFrame:
            language = load(place, progress=context.progress)
            encoded = responses(language, forget, max_length=max_length)
            same = storage.fingerprint([one.tokens for one in encoded]) == run.settings["forget"]
            require(same, "study", str(place), "a folder whose data are still those of its runs")
            norms = gradient_norms(
                language.model, encoded, budget=budget, progress=context.progress
            )
            index = [one.index for one in forget]
            return pd.DataFrame({"index": index, "gradient_norm": norms.double().numpy()})

        norms = cached(context, __name__, known, compute)
        own = run.examples[run.examples["epoch"] == epoch]
        frames.append(own.merge(norms, on="index", validate="one_to_one"))
    return run._replace(examples=pd.concat(frames, ignore_index=True))


def frame_of_runs(found: Sequence[Run]) -> pd.DataFrame:
    """Return weights and gradient norms at the start, after the first epoch and at the end.

    Columns `run`, `method`, `beta`, `gamma`, `epoch`, `kind`, and by kind:

        example   `index`, `length`, `weight`, `gradient_norm`, `push` (their product)
        fit       `quantity` (gradient_norm or push), its exponent in the length with `low`, `high`
                  and `count`, and how many answers are `missing`, having a push of 0
        line      `quantity`, `length`, `value`: the two ends of the fitted law

    Raises `InvalidInput` for a run that did not record gradient norms after these epochs.
    """
    for run in found:
        epochs = stages(run.examples)
        known = (
            "gradient_norm" in run.examples
            and at_epochs(run.examples, epochs)["gradient_norm"].notna().all()
        )
        allowed = (
            f"a run with gradient norms after epochs {', '.join(map(str, epochs))}: unlearn "
            "with --gradients"
        )
        require(bool(known), "run", str(run.folder), allowed)
    frame = trajectories(found)
    own = [at_epochs(part, stages(part)) for _, part in frame.groupby("run", sort=False)]
    examples = pd.concat(own, ignore_index=True)
    examples = examples[[*KNOWN, "index", "length", "weight", "gradient_norm"]].assign(
        kind="example"
    )
    examples["push"] = examples["weight"] * examples["gradient_norm"]
    fits = [_fits(part) for _, part in examples.groupby(KNOWN)]
    return pd.concat([examples, *fits], ignore_index=True)


def stages(examples: pd.DataFrame) -> list[int]:
    """Return the epochs shown: 0, 1 and the last that was run, as far as there are examples."""
    known = set(examples["epoch"].astype(int))
    return sorted({0, 1, max(known)} & known)


def _fits(own: pd.DataFrame) -> pd.DataFrame:
    length, rows, known = own["length"].to_numpy(dtype=float), [], own[KNOWN].iloc[0].to_dict()
    for quantity in QUANTITIES:
        law = power_law(length, own[quantity].to_numpy(dtype=float))
        rows.append(
            {
                **known,
                "kind": "fit",
                "quantity": quantity,
                **law.exponent._asdict(),
                "missing": law.missing,
            }
        )
        for end in (length.min(), length.max()):
            value = float(np.exp(law.log_prefactor.value + law.exponent.value * np.log(end)))
            rows.append(
                {**known, "kind": "line", "quantity": quantity, "length": end, "value": value}
            )
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    found = panels_of(frame)
    rows = max(frame.groupby("run")["epoch"].nunique())
    size = (3.3 * len(found), 3 * rows)
    figure, panels = style.grid_figure(rows, len(found), *size, sharex=True, sharey="row")
    for column, (run, label) in enumerate(found):
        own = frame[frame["run"] == run]
        epochs = sorted(own["epoch"].unique())
        for place, line in enumerate(panels):
            if place < len(epochs):
                _panel(
                    line[column], own[own["epoch"] == epochs[place]], f"epoch {epochs[place]:.0f}"
                )
            else:
                line[column].set_visible(False)
        panels[0][column].set_title(label, pad=38, fontweight="bold")
        panels[len(epochs) - 1][column].tick_params(labelbottom=True)
        panels[len(epochs) - 1][column].set_xlabel("|y|, scored tokens")
    for line in panels:
        line[0].set_ylabel("weight × |grad log π(y|x)|")
    return figure


def _panel(axes: Axes, own: pd.DataFrame, title: str) -> None:
    examples = own[own["kind"] == "example"]
    color = style.COLORS.get(examples["method"].iloc[0], "black")
    looks = {
        "gradient_norm": ("0.6", {"ms": 4.5, "mfc": "none", "mew": 0.8}),
        "push": (color, {"ms": 3.5, "mew": 0}),
    }
    for quantity, name in QUANTITIES.items():
        shade, look = looks[quantity]
        part = own[own["quantity"] == quantity]
        fit, ends = part[part["kind"] == "fit"].iloc[0], part[part["kind"] == "line"]
        estimate = Estimate(fit["value"], fit["low"], fit["high"], int(fit["count"]))
        lacking = f", {fit['missing']:.0f} at 0" if fit["missing"] else ""
        text = f"{name} = {interval_text(estimate)}{lacking}"
        axes.plot(ends["length"], ends["value"], color=shade, lw=1.2, label=text)
        axes.plot(examples["length"], examples[quantity], "o", alpha=0.7, color=shade, **look)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    # Above the panel, since no corner of it is free of dots.
    above = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 0.98),
        "alignment": "left",
        "borderaxespad": 0.0,
    }
    axes.legend(title=title, fontsize=7, **above)
