"""What of an objective's weights survives Adam?

An objective reaches the parameters through its weights alone. Here NPO and SimNPO, at the paper's
betas, keep of them what they are (own), only how they compare within a batch (allocation: scaled to
a mean of 1), only how large they are (magnitude: each is the mean of its batch), or nothing (1,
which is gradient ascent, GA, whichever the objective).

Upper row: what it costs to bring a chain to the retrained model's forget distance, and how far the
never memorised chain is over-forgotten when the memorised one is there, under AdamW; beside the
paper's two methods the two that have one of their factors alone. Lower row: by how much NPO exceeds
SimNPO, paired by model and order of batches, with all of their weights and with each part alone,
for several ways to minimise them; without weights the two are one method, so that the difference is
none by construction and is not drawn. The interaction is what all weights do beyond the two parts
together: none where they add up. Bars are 95% intervals over pretrained models, each in two orders
of batches at the first setting and in one at the others; hollow markers are inconclusive by the
verdicts of the table, which go by Holm's wider intervals.

AdamW, where nothing else is said that of transformers before its version 5, has the paper's step
size for all. With steps of one length (a third of GA's first under AdamW) only the direction is
left of a rule. Under SGD first steps are on average equally long (a sixth of GA's), so that the
magnitude is what falls along the path. Clipped gradients have a norm of at most 1. The retain term
has a weight of 1 or, balanced, one of each run's own with which its gradient is on average as long
as the forget loss' at the start. Batches are of four: their mean weight says which chains they
hold, so that magnitude still compares batches. Panels are as wide as the values ask for; wider
intervals are cut.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from figures import style
from figures.cache import Context
from figures.questions.weighting_runs import (
    ALONE,
    ASCENT,
    BESIDE,
    KEPT,
    METHODS,
    NOTHING,
    PRIMARY,
    SETTINGS,
    rates,
    reached,
)
from figures.statistics import (
    geometric_over_models,
    holm_levels,
    lookup,
    over_models,
    p_value,
    ratio,
)
from llm.intervals import Estimate


class Outcome(NamedTuple):
    """A number of a run at the moment when a chain has reached its goal.

    With `log` it is a cost, of which factors are compared, and else in nats.
    """

    label: str
    case: str
    component: str
    column: str
    log: bool


OUTCOMES = {
    "short chain": Outcome(
        "retain distance, short chain", "length", "forget2", "retain_distance", True
    ),
    "long chain": Outcome(
        "retain distance, long chain", "length", "forget1", "retain_distance", True
    ),
    "memorised chain": Outcome(
        "retain distance, memorised chain", "memorisation", "forget1", "retain_distance", True
    ),
    "gap": Outcome(
        "never memorised, beyond its goal", "memorisation", "forget1", "other_gap", False
    ),
}
INTERACTION = "interaction"
PARTS = (*KEPT, INTERACTION)
STATEMENTS = {
    "own": "with all weights, NPO exceeds SimNPO",
    "allocation": "allocation alone leaves at least half of it",
    "magnitude": "magnitude alone leaves at least half of it",
    INTERACTION: "all weights do more than the two parts together",
}
HALF = 0.5  # of the difference: less than that is left weakly
PART_COLORS = {
    "own": "#000000",
    "allocation": "#56B4E9",
    "magnitude": "#CC79A7",
    INTERACTION: "#999999",
}
PART_MARKERS = {"own": "o", "allocation": "^", "magnitude": "s", INTERACTION: "D"}


def data(context: Context) -> pd.DataFrame:
    """Return where each run first reaches its goals: see `figures.questions.weighting_runs`."""
    return reached(context)


def parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return by how much NPO exceeds SimNPO in each outcome, with each part of the weights.

    Columns `setting`, `outcome`, `part`, `statement`; `value`, `low`, `high` of the difference, a
    factor or nats (`none` where there is none), over `count` models of `models`; `share`, the
    difference over that of all weights (of its logarithm, where it is a factor); `runs` compared,
    in which both methods reach the goal with this part; `p`, two-sided against no difference;
    `level`, by Holm within a setting; `verdict`, by the rule of `figures.chains.claims`, where a
    part *holds* that leaves at least half of the difference, and holds *weakly* if it leaves some.
    """
    rows = []
    for setting in dict.fromkeys(frame["setting"]):
        own = frame[frame["setting"] == setting]
        found = [
            (name, part, each[part], each[part] - _wanted(part) * each["own"], each["own"])
            for name, outcome in OUTCOMES.items()
            for each in [differences(own, outcome)]
            for part in PARTS
        ]
        estimates = [_over(difference) for _, _, difference, _, _ in found]
        p_values = [p_value(one) for one in estimates]
        for (name, part, difference, beyond, whole), estimate, p, level in zip(
            found, estimates, p_values, holm_levels(p_values), strict=True
        ):
            log = OUTCOMES[name].log
            rows.append(
                {
                    "setting": setting,
                    "outcome": name,
                    "part": part,
                    "statement": STATEMENTS[part],
                    **(ratio(estimate) if log else estimate)._asdict(),
                    "none": 1.0 if log else 0.0,
                    "share": estimate.value / _over(whole).value,
                    "models": own["pretrain_seed"].nunique(),
                    "runs": int(np.isfinite(difference.to_numpy()).sum()),
                    "p": p,
                    "level": level,
                    "verdict": _verdict(_over(difference, level), _over(beyond, level)),
                }
            )
    return pd.DataFrame(rows)


def differences(frame: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """Return NPO's number minus SimNPO's for each part: a row per model and order of batches.

    Of costs it is the difference of logarithms. It is nan where one of the two does not reach its
    goal.
    """
    own = frame[(frame["case"] == outcome.case) & (frame["component"] == outcome.component)]
    wide = own.pivot(
        index=["pretrain_seed", "seed"], columns=["method", "weighting"], values=outcome.column
    ).astype(float)
    if outcome.log:
        wide = wide.transform(np.log)
    npo, simnpo = METHODS
    found = pd.DataFrame({kept: wide[npo, kept] - wide[simnpo, kept] for kept in KEPT})
    apart = found["allocation"] + found["magnitude"]
    return found.assign(**{INTERACTION: found["own"] - apart})


def _wanted(part: str) -> float:
    return HALF if part in ("allocation", "magnitude") else 0.0


def _over(difference: pd.Series, level: float = 0.95) -> Estimate:
    models = difference.index.get_level_values("pretrain_seed").to_numpy()
    return over_models(difference, models, level)


def _verdict(difference: Estimate, beyond: Estimate) -> str:
    if difference.low > 0:
        return "holds" if beyond.low > 0 else "holds weakly"
    return "contradicted" if difference.high < 0 else "inconclusive"


def levels(frame: pd.DataFrame) -> pd.DataFrame:
    """Return each outcome of every method with what it keeps of its weights, over models.

    Costs are geometric means. `reached` is the share of runs that get there, `step` their mean step
    when they do.
    """
    rows = []
    for name, outcome in OUTCOMES.items():
        own = frame[(frame["case"] == outcome.case) & (frame["component"] == outcome.component)]
        mean = geometric_over_models if outcome.log else over_models
        for key, runs in own.groupby(["setting", "method", "weighting"], sort=False):
            rows.append(
                {
                    "outcome": name,
                    **dict(zip(["setting", "method", "weighting"], key, strict=True)),
                    **mean(runs[outcome.column], runs["pretrain_seed"])._asdict(),
                    "step": runs["step"].mean(),
                    "reached": runs["reached"].mean(),
                }
            )
    return pd.DataFrame(rows)


def beside(frame: pd.DataFrame) -> pd.DataFrame:
    """Return by how much gradient ascent exceeds each method, in every outcome, with intervals.

    It is what each part of the weights does beyond having none, paired as in `parts`. Where the
    retain term was run alone, it stands in gradient ascent's place as well: `than` says which of
    the two is compared with. Near 1 (or 0 nats) it is the retain term that forgets.
    """
    rows = []
    keys = ["setting", "method", "weighting"]
    for name, outcome in OUTCOMES.items():
        own = frame[(frame["case"] == outcome.case) & (frame["component"] == outcome.component)]
        wide = own.pivot(index=["pretrain_seed", "seed"], columns=keys, values=outcome.column)
        wide = wide.astype(float).transform(np.log) if outcome.log else wide.astype(float)
        for setting, method, weighting in wide.columns:
            for than, kept in ((ASCENT, NOTHING), (ALONE, "own")):
                if method in (ASCENT, ALONE) or (setting, than, kept) not in wide.columns:
                    continue
                more = wide[setting, than, kept] - wide[setting, method, weighting]
                found = ratio(_over(more)) if outcome.log else _over(more)
                known = {"setting": setting, "method": method, "weighting": weighting}
                rows.append({"outcome": name, **known, "than": than, **found._asdict()})
    return pd.DataFrame(rows)


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the numbers that the findings tell of the frame."""
    return {
        "parts": parts(frame),
        "levels": levels(frame),
        "beside": beside(frame),
        "rates": rates(frame),
    }


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`."""
    figure, (upper, lower) = style.grid_figure(2, len(OUTCOMES), 13, 7.2, height_ratios=(3, 4))
    costs, summary = (
        lookup(levels(frame), ["outcome", "setting", "method", "weighting"]),
        parts(frame),
    )
    for axes, below, (name, outcome) in zip(upper, lower, OUTCOMES.items(), strict=True):
        own = {key[2:]: one for key, one in costs.items() if key[:2] == (name, PRIMARY)}
        _levels(axes, outcome, own)
        _forest(below, outcome, summary[summary["outcome"] == name])
    shown = list(dict.fromkeys(summary["setting"]))
    for axes in lower:
        axes.set_yticks(range(len(shown)), [""] * len(shown))
    lower[0].set_yticks(range(len(shown)), [SETTINGS[name].label for name in shown], fontsize=7)
    models = int(summary["models"].max())
    intervals = f"95% intervals over {models} pretrained models; hollow: inconclusive"
    look = {"ncols": 5, "fontsize": 7, "title_fontsize": 7}
    figure.legend(*upper[0].get_legend_handles_labels(), loc="outside upper center", **look)
    figure.legend(
        *lower[0].get_legend_handles_labels(), loc="outside lower center", title=intervals, **look
    )
    return figure


def _levels(axes: Axes, outcome: Outcome, found: dict[tuple[str, str], Estimate]) -> None:
    """Draw an outcome of each method with each part of its weights, at the primary setting."""
    methods = (*METHODS, *BESIDE)
    for place, kept in enumerate(KEPT):
        for at, method in enumerate(methods):
            if (method, kept) in found:
                shift = 0.16 * (at - (len(methods) - 1) / 2)
                _point(axes, place + shift, found[method, kept], style.COLORS[method], "o")
    _point(axes, len(KEPT), found[ASCENT, NOTHING], style.COLORS[ASCENT], "D")
    for method in (*methods, ASCENT):
        marker = "D" if method == ASCENT else "o"
        axes.plot([], [], marker, color=style.COLORS[method], label=style.LABELS[method])
    axes.set_xticks(range(len(KEPT) + 1), [*KEPT, NOTHING], fontsize=7)
    axes.set(ylabel="nats", xlabel="what is kept of the weights")
    axes.set_title(outcome.label, fontsize=8)
    if outcome.log:
        axes.set_yscale("log")
        style.plain_log_ticks(axes)
    else:
        axes.axhline(0, color="grey", lw=0.8, zorder=0)


def _point(axes: Axes, x: float, found: Estimate, color: str, marker: str) -> None:
    error = [[found.value - found.low], [found.high - found.value]]
    axes.errorbar(x, found.value, error, fmt=marker, color=color, ms=4, capsize=2, lw=1)


def _forest(axes: Axes, outcome: Outcome, summary: pd.DataFrame) -> None:
    """Draw NPO's excess over SimNPO with each part, a row per setting."""
    settings = list(dict.fromkeys(summary["setting"]))
    for row in summary.to_dict("records"):
        place = PARTS.index(row["part"])
        y = settings.index(row["setting"]) + 0.19 * (place - (len(PARTS) - 1) / 2)
        color = PART_COLORS[row["part"]]
        axes.errorbar(
            row["value"],
            y,
            xerr=[[row["value"] - row["low"]], [row["high"] - row["value"]]],
            fmt=PART_MARKERS[row["part"]],
            color=color,
            mfc="white" if row["verdict"] == "inconclusive" else color,
            ms=4,
            capsize=2,
            lw=1,
        )
    for part in PARTS:
        name = part if part == INTERACTION else f"NPO beyond SimNPO: {part}"
        axes.plot([], [], PART_MARKERS[part], color=PART_COLORS[part], label=name)
    none = 1.0 if outcome.log else 0.0
    axes.axvline(none, color="grey", lw=0.8, zorder=0)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    values = summary["value"].dropna()
    least, most = min(values.min(), none), max(values.max(), none)
    if outcome.log:
        axes.set(xscale="log", xlabel="NPO's cost / SimNPO's", xlim=(least / 2, most * 2))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.3g}")
    else:
        room = 0.5 * (most - least)
        axes.set(xlabel="NPO's excess over SimNPO's, nats", xlim=(least - room, most + room))
