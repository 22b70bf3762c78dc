"""Write evaluation logs of a model in open-unlearning's layout and in that of TOFU's released code.

    TOFU_EVAL.json      metric -> {"agg_value": mean, "value_by_index": {index: {...}}}, and a
                        `manifest`: which model, which data, how it was generated, which variant of
                        the truth ratio, which versions
    TOFU_SUMMARY.json   metric -> mean

Some keys are added to open-unlearning's own, so that nothing is lost and
`llm.logs.reading.read_log` reads exactly what was written. Each loss also has `loss`, its sum, and
`num_token`. Each generation also has the bare `question`, beside `input`, the prompt that the model
was given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.logs.log import MEMORISED, Answers, EvaluationLog, log_truth_ratio
from llm.logs.measures import TofuLogs, check_variant, example_values
from llm.logs.reading import (
    AGGREGATED,
    MANIFEST,
    MEASURES,
    MEMORISED_METRICS,
    METRICS,
    OPEN_UNLEARNING,
    QUESTION,
    ROUGE,
    TASKS,
    TEXTS,
)
from markov.files import inputs, storage
from markov.files.storage import Location

SUMMARY = "TOFU_SUMMARY.json"
# What both shares are of: open-unlearning's own leave out the last token.
COUNTED = "all scored tokens of an answer, its end included"
# JSON has no infinity: a ratio whose logarithm is beyond this is written as the one at the bound.
LARGEST_LOG = math.log(np.finfo(float).max) - 1
SHORT = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}


def write_tofu_eval(
    logs: TofuLogs,
    folder: Location,
    manifest: Mapping[str, Any],
    *,
    variant: str = "geometric",
    aggregates: Mapping[str, float] | None = None,
) -> Path:
    """Write `TOFU_SUMMARY.json` and `TOFU_EVAL.json`, and return the path of the latter.

    `aggregates` are values for all tasks together, such as model_utility. TOFU_EVAL.json is written
    last, so that a folder that contains it is complete. Raises `InvalidInput` for an unknown
    variant and for a folder that cannot be written.
    """
    check_variant(variant)
    path = storage.check_writable(folder, "out", folder=True)
    content: dict[str, Any] = {}
    for task, log in logs._asdict().items():
        if log is not None:
            content |= _task(task, log, variant)
    content |= {name: {"agg_value": value} for name, value in (aggregates or {}).items()}
    summary = {metric: entry["agg_value"] for metric, entry in content.items()}
    content[MANIFEST] = {**manifest, "truth_ratio": variant}
    if any(log is not None and log.memorised for log in logs):
        content[MANIFEST] |= dict.fromkeys(MEMORISED, COUNTED)
    _write(path / SUMMARY, summary)
    _write(path / OPEN_UNLEARNING, content)
    return path / OPEN_UNLEARNING


def restore_summary(path: Path) -> None:
    """Write a missing `TOFU_SUMMARY.json` again from the `TOFU_EVAL.json` beside it."""
    if not (path.parent / SUMMARY).exists():
        content = inputs.read_json(path, "out", "an evaluation that can be read")
        known = [(name, own) for name, own in content.items() if isinstance(own, Mapping)]
        summary = {name: own["agg_value"] for name, own in known if "agg_value" in own}
        _write(path.parent / SUMMARY, summary)


def _task(task: str, log: EvaluationLog, variant: str) -> dict[str, Any]:
    """Return the metrics of one task."""
    short, found = SHORT[task], {}
    for kind, metric in METRICS[task].items():
        answers = getattr(log, kind)
        # On real authors and world facts the answer also serves as its paraphrase, under one name.
        if answers is not None and metric not in found:
            found[metric] = _metric(
                log, {"prob": np.exp(-answers.average), **_losses(answers)}, "prob"
            )
    for name, values in log.memorised.items():
        found[MEMORISED_METRICS[task][name]] = _metric(log, {"score": values}, "score")
    if log.rouge:
        texts: dict[str, Any] = {} if log.question is None else {QUESTION: log.question}
        asked = log.prompt or log.question
        if asked and log.generation and log.answer:
            texts |= {"input": asked, "ground_truth": log.answer, "generation": log.generation}
        found[f"{short}_Q_A_ROUGE"] = _metric(log, {**log.rouge, **texts}, "rougeL_recall")
    if log.perturbed is not None:
        scored = log if log.paraphrased is not None else log._replace(paraphrased=log.gold)
        name = f"{short}_truth_ratio" if task == "forget" else f"{short}_Truth_Ratio"
        entry = _metric(log, {"score": _ratio(scored, variant)}, "score")
        found[name] = entry | {
            "agg_value": float(example_values(log, task, "truth_ratio", variant).mean())
        }
        if task in ("real_authors", "world_facts"):
            values = example_values(log, task, "probability")
            found[f"{short}_Q_A_Prob_normalised"] = _metric(log, {"prob": values}, "prob")
    return found


def _losses(answers: Answers) -> dict[str, np.ndarray]:
    named = {"avg_loss": answers.average, "loss": answers.total, "num_token": answers.length}
    return {name: values for name, values in named.items() if values is not None}


def _metric(log: EvaluationLog, columns: Mapping[str, Any], mean_of: str) -> dict[str, Any]:
    rows = {
        str(index): {name: _plain(column[row]) for name, column in columns.items()}
        for row, index in _rows(log)
    }
    return {"agg_value": float(np.mean(columns[mean_of])), "value_by_index": rows}


def _rows(log: EvaluationLog) -> list[tuple[int, int]]:
    return [(row, int(index)) for row, index in enumerate(log.index)]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else np.asarray(value).tolist()


def write_legacy(logs: TofuLogs, folder: Location) -> Path:
    """Write the files of TOFU's released code, and return the folder.

    There is one file per task, measure -> {index: value}, and one file with all tasks. Raises
    `InvalidInput` for a folder that cannot be written.
    """
    path = storage.check_writable(folder, "out", folder=True)
    merged = {}
    for task, log in logs._asdict().items():
        if log is None:
            continue
        columns: dict[str, Any] = {}
        for kind, names in MEASURES.items():
            answers = getattr(log, kind)
            if answers is not None:
                pairs = zip(names, (answers.average, answers.total, answers.length), strict=True)
                columns |= {name: values for name, values in pairs if values is not None}
        columns |= {name: log.rouge[name] for name in ROUGE if name in log.rouge} | log.memorised
        asked = log.prompt or log.question
        if asked and log.generation and log.answer:
            columns[TEXTS] = [
                list(row) for row in zip(asked, log.generation, log.answer, strict=True)
            ]
        if log.question is not None:
            columns[QUESTION] = log.question
        rows = {
            name: {str(i): _plain(column[row]) for row, i in _rows(log)}
            for name, column in columns.items()
        }
        merged[TASKS[task]] = rows | _named(log)
        _write(path / TASKS[task], merged[TASKS[task]])
    _write(path / AGGREGATED, merged)
    return path


def _named(log: EvaluationLog) -> dict[str, Any]:
    """Return the truth ratio as the released code stores it: geometric, wrong / right."""
    if log.perturbed is None or log.paraphrased is None:
        return {}
    ratio = _ratio(log, "geometric")
    return {"truth_ratio": {str(index): float(ratio[row]) for row, index in _rows(log)}}


def _ratio(log: EvaluationLog, variant: str) -> np.ndarray:
    """Return each example's truth ratio as a finite number."""
    return np.exp(np.clip(log_truth_ratio(log, variant), -LARGEST_LOG, LARGEST_LOG))


def _write(path: Path, content: Any) -> None:
    with storage.atomic_path(path) as partial:
        partial.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), "utf-8"
        )
