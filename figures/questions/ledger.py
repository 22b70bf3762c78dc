"""The ledger: every claim that was judged, of the paper and of this project, with its verdicts.

A line is a claim, and a point in it what one kind of model says: the number that is claimed to lie
above no effect, with its 95% interval. What the interval is over, and how many models or trainings
are behind it, stands in the table beside. A verdict goes by an interval that Holm's procedure
widens over the claims of one figure and setting. What was run once has no verdict: its interval is
over answers, and says nothing of another training. Numbers that are factors are drawn as
logarithms. The axis is linear near 0.

Nothing is computed here but verdicts: the numbers are the tables that other figures tell, those
kept with the code or, with --evidence, those that lie in another folder.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import style
from figures.cache import Context
from figures.questions.evidence import Found, Missing
from figures.questions.statements import STATEMENTS, Statement
from figures.scale import EVIDENCE, TRAINED
from figures.statistics import judged
from llm.intervals import Estimate
from markov.errors import require

KEPT = Path(__file__).parents[1] / "gallery"
RUNGS = {"chains": "chains", "small": "small language model", "smollm2": "SmolLM2"}
SHAPES = dict(zip(RUNGS, "osD", strict=True))
USUAL = {"chains": EVIDENCE, "small": TRAINED}  # how many models or trainings are behind a number
ONCE = "one run"  # in place of a verdict
EXACT = "exact"
LINEAR = 0.05
SIZES = (0, LINEAR, 0.2, 0.5, 1, 2)


class Cell(NamedTuple):
    """What one kind of model says of a statement, in words: the verdict and the number."""

    verdict: str
    number: str


def data(context: Context) -> pd.DataFrame:
    """Return the rows of the ledger, from the tables in the context's folder of evidence.

    See `rows`. Raises `InvalidInput` where the folder holds none of them.
    """
    folder = KEPT if context.evidence is None else context.evidence
    frame = rows(folder)
    allowed = "a folder with tables that figures tell, as `python -m figures` writes into told/"
    require(len(frame) > 0, "evidence", str(folder), allowed)
    return frame


def rows(folder: Path) -> pd.DataFrame:
    """Return a row for each statement, kind of model and setting, as far as there are tables.

    Columns `claim`, `panel` (of the paper, or ""), `text`, `brief` (whether the README has it);
    `rung`, `setting` (the primary one has none); `value`, `low`, `high` and `unit`; `none`, the
    number without an effect (1 of a factor), and `threshold`; `count` and what the interval is
    `over`; `p`, `level` and `verdict`; `command`, which makes the table anew.
    """
    tables = Kept(folder)
    found = [(statement, one) for statement in STATEMENTS for one in _found(statement, tables)]
    known = [_judged(statement, one) for statement, one in found]
    frame = pd.DataFrame(known)
    return frame if frame.empty else _by_holm(frame)


class Kept(Mapping[tuple[str, str], pd.DataFrame]):
    """The tables that figures tell, by figure and part, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.known = folder, dict[tuple[str, str], pd.DataFrame]()

    def __getitem__(self, key: tuple[str, str]) -> pd.DataFrame:
        if key not in self.known:
            path = self.folder / key[0] / f"{key[1]}.csv"
            if not path.is_file():
                raise Missing(str(path))
            self.known[key] = pd.read_csv(path)
        return self.known[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _found(statement: Statement, tables: Mapping[tuple[str, str], pd.DataFrame]) -> Iterable[Found]:
    """Yield what the tables say of a statement; of what is not there, nothing."""
    for find in statement.evidence:
        try:
            yield from find(tables)
        except Missing:
            continue


def _judged(statement: Statement, one: Found) -> dict[str, Any]:
    known = statement._asdict() | one._asdict()
    del known["evidence"]
    none = 1.0 if one.factor else 0.0
    return {**known, "none": none, "threshold": one.threshold if one.threshold else none}


def _by_holm(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with verdicts: those that their figure gave, or else by Holm's procedure.

    Claims are judged together that share a figure, a kind of model and a setting.
    """
    frame = frame.astype({"verdict": object, "p": float, "level": float})
    open_ones = frame[frame["verdict"].isna()]
    for _, own in open_ones.groupby(["family", "rung", "setting"], sort=False):
        estimates = [_linear(row) for row in own.to_dict("records")]
        thresholds = [_threshold(row) for row in own.to_dict("records")]
        for place, said in zip(own.index, judged(estimates, thresholds), strict=True):
            frame.loc[place, ["p", "level", "verdict"]] = list(said)
    return frame.drop(columns=["factor", "family"])


def _threshold(row: Mapping[Any, Any]) -> float:
    """Return what the estimate of `_linear` is claimed to exceed."""
    threshold = float(np.log(row["threshold"]) if row["factor"] else row["threshold"])
    return threshold * (1 if row["above"] else -1)


def _linear(row: Mapping[Any, Any]) -> Estimate:
    """Return the estimate of what is claimed to lie above 0."""
    ends = [float(row[name]) for name in ("value", "low", "high")]
    value, low, high = np.log(ends) if row["factor"] else ends
    if not row["above"]:
        value, low, high = -value, -high, -low
    return Estimate(float(value), float(low), float(high), int(row["count"]))


def told(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the ledger, which README and findings quote."""
    return {"ledger": frame}


def cell(row: Mapping[Any, Any]) -> Cell:
    """Return the verdict and the number of a row as text, with its interval.

    It says of how many models or trainings it is where these are not as many as usual.
    """
    unit = "×" if row["none"] == 1 else f" {row['unit']}" if row["unit"] else ""
    digits = 2 if max(abs(row["value"]), abs(row["high"] or 0)) >= 0.1 else 3
    value, low, high = (f"{row[name]:.{digits}f}" for name in ("value", "low", "high"))
    interval = f" ({low} to {high})" if np.isfinite(row["low"]) and row["low"] < row["high"] else ""
    if 1 < row["count"] != USUAL.get(row["rung"]):
        interval += f", of {row['count']:.0f}"
    if row["verdict"] == EXACT:
        return Cell(EXACT, "by the law")
    return Cell(str(row["verdict"]), f"{value}{unit}{interval}".replace("-", "−"))


def markdown(frame: pd.DataFrame, *, brief: bool = False) -> str:
    """Return the ledger as a table in Markdown, a line for each claim, a column per kind of model.

    `brief`: only what the README tells, at the primary settings.
    """
    if brief:
        frame = frame[frame["brief"] & frame["setting"].eq("")]
    lines = [f"| claim | {' | '.join(RUNGS.values())} |", "|---" * (1 + len(RUNGS)) + "|"]
    for (_, panel, text), own in frame.groupby(["claim", "panel", "text"], sort=False):
        cells = []
        for rung in RUNGS:
            parts = []
            for row in own[own["rung"] == rung].to_dict("records"):
                said = cell(row)
                setting = f"{row['setting']}: " if row["setting"] else ""
                shown = said.verdict if said.verdict == ONCE else f"**{said.verdict}**"
                parts.append(f"{setting}{shown} {said.number}".strip())
            cells.append("; ".join(parts))
        source = f" ({panel})" if panel else ""
        lines.append(f"| {text}{source} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def text(frame: pd.DataFrame) -> str:
    """Return the ledger as lines for a terminal."""
    lines = []
    for (_, panel, claimed), own in frame.groupby(["claim", "panel", "text"], sort=False):
        lines.append(f"{claimed}{f' (paper: {panel})' if panel else ''}")
        for row in own.to_dict("records"):
            said = cell(row)
            where = RUNGS[row["rung"]] + (f", {row['setting']}" if row["setting"] else "")
            behind = f"{row['count']:.0f} {row['over']}" if row["over"] else ""
            lines.append(f"    {said.verdict:<13} {where}: {said.number}; {behind}".rstrip("; "))
    return "\n".join(lines)


def plot(frame: pd.DataFrame) -> Figure:
    """Draw the frame of `data`, a line for each claim."""
    frame = frame[frame["verdict"] != EXACT]
    claims = list(frame.groupby(["claim", "panel", "text"], sort=False))
    figure, ((axes,),) = style.grid_figure(1, 1, 9.5, 0.4 * len(claims) + 1.2)
    names = []
    for place, ((_, panel, claimed), own) in enumerate(claims):
        names.append("\n".join(textwrap.wrap(f"{panel}: {claimed}" if panel else str(claimed), 56)))
        for at, row in enumerate(own.to_dict("records")):
            one = _linear({**row, "factor": row["none"] == 1})
            shade = style.VERDICTS.get(row["verdict"], "black")
            look: Any = {"color": shade, "fmt": SHAPES[row["rung"]], "mec": "black", "mew": 0.6}
            error: Any = [[one.value - one.low], [one.high - one.value]]
            height = -place + 0.3 - 0.6 * (at + 0.5) / len(own)
            bars = error if np.isfinite(one.low) else None
            axes.errorbar(one.value, height, xerr=bars, capsize=2, lw=1, **look)
        axes.axhline(-place - 0.5, color="0.9", lw=0.6, zorder=0)
    axes.axvline(0, color="grey", lw=0.8)
    axes.set_yticks([-place for place in range(len(names))], names, fontsize=7)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    style.around_zero(axes, LINEAR, SIZES)
    axes.set_xlabel("above 0: as claimed (factors: natural logarithms)")
    for rung in dict.fromkeys(frame["rung"]):
        axes.plot([], [], SHAPES[rung], color="black", mfc="white", label=RUNGS[rung])
    for name, color in {**style.VERDICTS, ONCE: "black"}.items():
        axes.plot([], [], "o", color=color, label=name)
    style.room_for_labels(figure)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=7)
    return figure
