"""The paper's claims about its Figure 5, each as a number with a verdict.

The number has a 95% interval over pretrained models: Student's t, orders of batches of one model
averaged first. A factor on the retain distance is a ratio of levels, so that the same is said as a
difference of what was paid, in nats above the start (`nats`).

Not tuned to agree: every run is listed in the table of `tradeoff`. Several claims are judged
together, so each verdict goes by an interval that Holm's procedure widens (see
`figures.statistics.holm_levels`), and not by the 95% interval that is drawn. A claim *holds* where
the whole interval lies beyond its threshold, holds *weakly* where the interval excludes no effect
but not the threshold, is *contradicted* where the whole interval lies on the other side of no
effect, and is *inconclusive* otherwise (`figures.statistics.verdict`). One setting is the primary
one (`PRIMARY`), that of the paper with the optimiser of its code; the others show whether it
matters.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.chains.runs import paper_runs
from figures.statistics import (
    between_models,
    judged,
    over_models,
    ratio,
)
from markov.diagnostics import crossings

PRIMARY = ("paper", "adamw_transformers")  # architecture and optimiser
INTERVAL = "t over pretrained models"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about runs: a number per run that is claimed to exceed `threshold`.

    Without the effect the number is 0. `nats` is the same as a difference in nats.
    """

    name: str
    text: str
    case: str
    per_run: Callable[[pd.DataFrame], pd.Series]
    nats: Callable[[pd.DataFrame], pd.Series]
    threshold: float = 0.0
    ratio: bool = False  # the number is a log, to be shown as a factor


def _log_cost(wide: pd.DataFrame, method: str, component: str) -> pd.Series:
    return pd.Series(np.log(wide["retain_distance", method, component]))


def _more_paid(wide: pd.DataFrame, one: str, other: str, component: str) -> pd.Series:
    """Return what one method pays for a component beyond what the other pays, in nats."""
    return wide["retain_paid", one, component] - wide["retain_paid", other, component]


def _gap(wide: pd.DataFrame) -> pd.Series:
    return wide["other_gap", "npo", "forget1"]


def _narrowed(wide: pd.DataFrame) -> pd.Series:
    return _gap(wide) - wide["other_gap", "simnpo", "forget1"]


CLAIMS = (
    Claim(
        name="A1",
        text="short chain: NPO pays several times (at least 2) SimNPO's retain distance",
        case="length",
        per_run=lambda wide: (
            _log_cost(wide, "npo", "forget2") - _log_cost(wide, "simnpo", "forget2")
        ),
        nats=lambda wide: _more_paid(wide, "npo", "simnpo", "forget2"),
        threshold=float(np.log(2)),
        ratio=True,
    ),
    Claim(
        name="A2",
        text="long chain: SimNPO pays more than NPO",
        case="length",
        per_run=lambda wide: (
            _log_cost(wide, "simnpo", "forget1") - _log_cost(wide, "npo", "forget1")
        ),
        nats=lambda wide: _more_paid(wide, "simnpo", "npo", "forget1"),
        ratio=True,
    ),
    Claim(
        name="A3",
        text="costs of the two lengths differ by a larger factor under NPO than under SimNPO",
        case="length",
        per_run=lambda wide: _unevenness(wide, "npo") - _unevenness(wide, "simnpo"),
        nats=lambda wide: _difference(wide, "npo") - _difference(wide, "simnpo"),
        ratio=True,
    ),
    Claim(
        name="B1",
        text=(
            "when NPO has forgotten the memorised chain, it has over-forgotten the other (nats "
            "beyond the goal)"
        ),
        case="memorisation",
        per_run=_gap,
        nats=_gap,
    ),
    Claim(
        name="B2",
        text="SimNPO narrows that gap (nats)",
        case="memorisation",
        per_run=_narrowed,
        nats=_narrowed,
    ),
)


def _unevenness(wide: pd.DataFrame, method: str) -> pd.Series:
    return (_log_cost(wide, method, "forget1") - _log_cost(wide, method, "forget2")).abs()


def _difference(wide: pd.DataFrame, method: str) -> pd.Series:
    return (wide["retain_paid", method, "forget1"] - wide["retain_paid", method, "forget2"]).abs()


def data(context: Context) -> pd.DataFrame:
    """Return one row per claim and optimiser, for the architecture of the context."""
    return assess(paper_runs(context)).assign(architecture=context.scale.architecture)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame: all of it."""
    return {"claims": frame}


def both_architectures(context: Context) -> pd.DataFrame:
    """Return the rows of `data` for the paper's architecture and for that of its released code."""
    contexts = [
        replace(context, scale=replace(context.scale, architecture=name))
        for name in ("paper", "released")
    ]
    return pd.concat([data(own) for own in contexts], ignore_index=True)


def assess(frame: pd.DataFrame) -> pd.DataFrame:
    """Estimate every claim from a table of runs, per optimiser.

    Columns `claim`, `text`, `optimizer`; `value`, `low`, `high` of the claimed number, a factor or
    nats, and `nats`, `nats_low`, `nats_high` of the same as a difference; `interval`, what the
    intervals are over; `count` pretrained models in which the number is known, of `models`; the
    `runs` behind them, and the share of their variance that lies `between` models; `p`, two-sided
    against no effect; `level`, that of the interval by which the
    `verdict` goes; `none`, `threshold`.
    """
    found, rows = crossings(frame), []
    for optimizer in found["optimizer"].unique():
        tables = [_numbers(claim, found, optimizer) for claim in CLAIMS]
        values = [claim.per_run(wide) for claim, wide in zip(CLAIMS, tables, strict=True)]
        estimates = [over_models(own, _models(own)) for own in values]
        found_of = judged(estimates, [claim.threshold for claim in CLAIMS])
        columns = tables, values, estimates, found_of
        for claim, wide, own, estimate, said in zip(CLAIMS, *columns, strict=True):
            models, nats = _models(wide), over_models(claim.nats(wide), _models(wide))
            rows.append(
                {
                    "claim": claim.name,
                    "text": claim.text,
                    "optimizer": optimizer,
                    **(ratio(estimate) if claim.ratio else estimate)._asdict(),
                    "nats": nats.value,
                    "nats_low": nats.low,
                    "nats_high": nats.high,
                    "interval": INTERVAL,
                    "models": len(np.unique(models)),
                    "runs": len(wide),
                    "between": between_models(own, models),
                    "p": said.p,
                    "level": said.level,
                    "none": 1.0 if claim.ratio else 0.0,
                    "threshold": float(np.exp(claim.threshold)) if claim.ratio else claim.threshold,
                    "verdict": said.verdict,
                }
            )
    rows.sort(key=lambda row: row["claim"])
    return pd.DataFrame(rows)


def _numbers(claim: Claim, found: pd.DataFrame, optimizer: str) -> pd.DataFrame:
    """Return what was paid and how far the other part went: a row per run, a column per method."""
    part = found[(found["case"] == claim.case) & (found["optimizer"] == optimizer)]
    return part.pivot(
        index=["pretrain_seed", "seed"],
        columns=["method", "component"],
        values=["retain_distance", "retain_paid", "other_gap"],
    ).astype(float)


def _models(runs: pd.DataFrame | pd.Series) -> np.ndarray:
    return runs.index.get_level_values("pretrain_seed").to_numpy()


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown.

    It has one row per claim and one column per architecture and optimiser. Factors are followed by
    the same as a difference in nats.
    """
    settings = (
        frame[["architecture", "optimizer"]].drop_duplicates().itertuples(index=False, name=None)
    )
    columns = list(settings)
    named = [f"{a}, `{o}`{' (primary)' if (a, o) == PRIMARY else ''}" for a, o in columns]
    lines = [
        "| claim | " + " | ".join(named) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for claim, own in frame.groupby("claim", sort=False):
        cells = []
        for architecture, optimizer in columns:
            (row,) = own[
                (own["architecture"] == architecture) & (own["optimizer"] == optimizer)
            ].to_dict("records")
            unit = "×" if row["none"] == 1 else ""
            few = "" if row["count"] == row["models"] else f", {row['count']} models"
            interval = f"{row['low']:.2f} to {row['high']:.2f}".replace("-", "−")
            cell = f"{row['value']:.2f}{unit} ({interval}{few})"
            if unit:
                cell += f", {_signed(row['nats'])} nats"
                cell += f" ({_signed(row['nats_low'])} to {_signed(row['nats_high'])})"
            cells.append(f"{cell} **{row['verdict']}**")
        lines.append(f"| {claim}: {own['text'].iloc[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _signed(number: float) -> str:
    return f"{number:+.3f}".replace("-", "−")


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`, one panel per claim."""
    figure, panels = style.grid_figure(1, len(CLAIMS), 2.5 * len(CLAIMS), 2.8)
    for axes, claim in zip(panels[0], CLAIMS, strict=True):
        own = frame[frame["claim"] == claim.name].reset_index(drop=True)
        for place, (_, row) in enumerate(own.iterrows()):
            error = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
            axes.errorbar(
                row["value"],
                -place,
                xerr=error,
                fmt="o",
                color=style.VERDICTS[row["verdict"]],
                capsize=3,
            )
        axes.axvline(own["none"].iloc[0], color="grey", lw=0.8)
        axes.axvline(own["threshold"].iloc[0], color="grey", lw=0.8, ls=":")
        ticks = [f"{a}\n{o}" for a, o in zip(own["architecture"], own["optimizer"], strict=True)]
        axes.set_yticks(
            [-place for place in own.index],
            ticks if claim is CLAIMS[0] else [""] * len(own),
            fontsize=7,
        )
        axes.set_ylim(-len(own) + 0.5, 0.5)
        axes.set_xlabel("factor" if claim.ratio else "nats")
        axes.set_title(f"{claim.name}: " + _wrapped(claim.text), fontsize=7)
    for name, color in style.VERDICTS.items():
        panels[0][-1].plot([], [], "o", color=color, label=name)
    handles, labels = panels[0][-1].get_legend_handles_labels()
    models = int(frame["models"].max())
    title = f"95% intervals over {models} pretrained models; verdicts go by Holm's, which are wider"
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(style.VERDICTS),
        fontsize=7,
        title=title,
        title_fontsize=7,
    )
    return figure


def _wrapped(text: str, width: int = 32) -> str:
    return "\n".join(textwrap.wrap(text, width))
