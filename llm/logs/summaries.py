"""One table of several models in the paper's layout: a row per model and columns per set.

Beside the sets stand forget quality and model utility.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from llm.logs.log import EvaluationLog
from llm.logs.measures import EXTRACTION, MEASURES, TofuLogs, measures
from markov.errors import require

GROUPS = {
    "forget": "Forget",
    "real_authors": "Real authors",
    "world_facts": "World facts",
    "retain": "Retain",
}
SHORT = {"probability": "Prob.", "rouge": "ROUGE-L", "truth_ratio": "Truth ratio"}
TOLERANCE = 0.05  # of utility
OVERALL = {"forget_quality": "FQ", "ks_statistic": "D", "model_utility": "MU"}


def long_table(
    models: Mapping[str, TofuLogs],
    retrained: EvaluationLog | None,
    *,
    variant: str,
    per_author: int | None = None,
) -> pd.DataFrame:
    """Return all measures (`llm.logs.measures`) of each model, with intervals and a column `model`.

    The retrained model, compared with itself, has forget quality 1. Raises `InvalidInput` as
    `measures` does.
    """
    frames = [
        measures(logs, retrained, variant=variant, per_author=per_author).assign(model=name)
        for name, logs in models.items()
    ]
    return pd.concat(frames, ignore_index=True)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of several runs with one row per model, measure and task.

    The column `seeds` is the number of runs behind a row: as many for all measures of a model, so
    that one which some of its runs lack is left out. A row of several runs has the mean over
    them with a Student interval, and `model` is followed by " x" and their number. For forget
    quality it has the median with the least and the largest value instead, since a mean of p-values
    has no meaning. A row of one run stays as it is.
    """
    rows, keys = [], ["model", "measure", "task"]
    most = table.groupby(keys, sort=False).size().groupby(level="model").max()
    for _, own in table.groupby(keys, sort=False):
        if len(own) < most[own["model"].iloc[0]]:
            continue
        values, row = own["value"].to_numpy(dtype=float), own.iloc[0].to_dict()
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
            bounds = (values.mean(), values.mean() - half, values.mean() + half)
            if row["measure"] == "forget_quality":
                bounds = (float(np.median(values)), values.min(), values.max())
            row |= dict(zip(("value", "low", "high"), bounds, strict=True)) | {
                "model": f"{row['model']} x{len(values)}"
            }
        rows.append(row | {"seeds": len(values)})
    return pd.DataFrame(rows)


def best(table: pd.DataFrame, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Return the best settings of each method: the smallest D within `tolerance` of the utility.

    D is the Kolmogorov-Smirnov statistic behind forget quality, which it determines when the
    numbers of examples are equal. Settings are within the tolerance if their model utility is at
    least (1 - tolerance) of the original model's. If no settings of a method are, those with the
    largest utility are taken. All numbers are means over seeds. There is a row per title with the
    columns `model`, the word of the model, `ks_statistic`, `model_utility`, `within`, and `runs`,
    the number of settings that were tried; and `extraction_strength` of the forget set, if the
    table has it.
    """
    require(0 <= tolerance < 1, "tolerance", tolerance, "a share >= 0, below 1")
    wanted = table[table["measure"].isin(["ks_statistic", "model_utility", EXTRACTION])]
    if "task" in wanted:  # where it is told, more than one set has an extraction strength
        wanted = wanted[wanted["task"].eq("forget") | wanted["measure"].ne(EXTRACTION)]
    # A mean over seeds is nan if one of them is nan, and comes last: pandas by itself would leave
    # that seed out.
    grouped = wanted.groupby(["title", "model", "measure"], sort=False)["value"]
    wide: Any = (
        grouped.mean().where(grouped.count() == grouped.size()).unstack("measure", sort=False)
    )
    if EXTRACTION in wide:
        runs = grouped.size().unstack("measure", sort=False)
        wide[EXTRACTION] = wide[EXTRACTION].where(runs[EXTRACTION] == runs["model_utility"])
    utility = wide["model_utility"]
    wide["within"] = utility >= (1 - tolerance) * float(
        utility.xs("original", level="title").iloc[0]
    )
    rows = []
    for _, own in wide.reset_index("model").groupby(level="title", sort=False):
        good = own[own["within"]].sort_values("ks_statistic", kind="stable")
        found = (
            good if len(good) else own.sort_values("model_utility", ascending=False, kind="stable")
        )
        rows.append(found.head(1).assign(runs=len(own)))
    return pd.concat(rows).reset_index()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return `long_table`'s table in the paper's layout: a row per model, columns of two levels.

    Models keep their order. Each set (forget, real authors, world facts, retain) has probability,
    ROUGE-L recall and truth ratio. Then come FQ, the p-value of forget quality, D, its statistic,
    MU, model utility, ES, the extraction strength of the forget set, and n, the number of examples
    compared. What was not measured is nan. Lower is better on forget and for ES, and higher is
    better on the other sets and for FQ.
    """
    rows: dict[str, dict[tuple[str, str], float | None]] = {}
    for model, own in table.groupby("model", sort=False):
        at = own.set_index(["measure", "task"])["value"]
        row = {
            (group, SHORT[kind]): at.get((kind, task))
            for task, group in GROUPS.items()
            for kind in MEASURES
        }
        overall = {name: own[own["measure"] == name] for name in OVERALL}
        row |= {
            ("", OVERALL[name]): found["value"].iloc[0] if len(found) else None
            for name, found in overall.items()
        }
        row["", "ES"] = at.get((EXTRACTION, "forget"))
        compared = overall["ks_statistic"]
        row["", "n"] = compared["examples"].iloc[0] if len(compared) else None
        rows[str(model)] = row
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float).rename_axis("Method")
    frame.columns = pd.MultiIndex.from_tuples(list(next(iter(rows.values()))))
    return frame


def lacking(table: pd.DataFrame) -> list[str]:
    """Return what a table of `long_table` does not have of all that can be measured, in words."""
    there = set(zip(table["measure"], table["task"], strict=True))
    found = []
    for kind in MEASURES:
        tasks = [GROUPS[task].lower() for task in GROUPS if (kind, task) not in there]
        found += [f"{SHORT[kind]} of {' and '.join(tasks)}"] if tasks else []
    measured = set(table["measure"])
    return found + [name for measure, name in OVERALL.items() if measure not in measured]


def markdown(frame: pd.DataFrame) -> str:
    """Return a summary as a table in Markdown."""
    names = [" ".join(part for part in column if part) for column in frame.columns]
    lines = [f"| Method | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for model, row in frame.iterrows():
        cells = [_number(name, value) for (_, name), value in zip(frame.columns, row, strict=True)]
        lines.append(f"| {str(model).replace('|', chr(92) + '|')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """Return a summary as a tabular in LaTeX, with the rules of booktabs."""
    escaped = {mark: f"\\{mark}" for mark in "&%$#_{}"} | {
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
    }
    escaped["\\"] = "\\textbackslash{}"
    groups = list(dict.fromkeys(group for group, _ in frame.columns))
    spans = [(group, sum(own == group for own, _ in frame.columns)) for group in groups]
    head = " & ".join(f"\\multicolumn{{{count}}}{{c}}{{{group}}}" for group, count in spans)
    lines = [f"\\begin{{tabular}}{{l{'r' * len(frame.columns)}}}", "\\toprule", f" & {head} \\\\"]
    lines += [f"Method & {' & '.join(name for _, name in frame.columns)} \\\\", "\\midrule"]
    for model, row in frame.iterrows():
        cells = [_number(name, value) for (_, name), value in zip(frame.columns, row, strict=True)]
        name = "".join(escaped.get(mark, mark) for mark in str(model))
        lines.append(f"{name} & {' & '.join(cell.replace('_', '') for cell in cells)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _number(name: str, value: float) -> str:
    """Return a number as text: two digits, a power of ten for a small p-value, a whole count."""
    if pd.isna(value):
        return "-"
    if name == "n":
        return f"{value:.0f}"
    return f"{value:.0e}" if name == "FQ" and 0 < value < 0.005 else f"{value:.2f}"
