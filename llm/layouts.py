"""The layouts in which evaluation logs of TOFU runs are found -> `EvaluationLog`.

    lists             one JSON file per task (`TASKS`): measure -> values in the order of the examples
    mapping           the same files: measure -> {index: value}
    open-unlearning   one file for all tasks: metric -> {"value_by_index": {index: {...}}}

The first two also come merged, file name -> content, in `AGGREGATED`. Of the losses, gt_loss, paraphrased_loss and
perturb_loss are sums over an answer's scored tokens, num_token_* the numbers of these, and avg_gt_loss,
avg_paraphrased_loss and average_perturb_loss the quotients. open-unlearning stores the quotients only (avg_loss);
where its entries also have `loss` and `num_token`, these are read as sum and number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from llm.logs import Answers, EvaluationLog
from markov.errors import InvalidInput, require

TASKS = {
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
AGGREGATED, OPEN_UNLEARNING = "eval_log_aggregated.json", "TOFU_EVAL.json"
# Mean, sum and number of tokens of the losses of each kind of answer.
MEASURES = {
    "gold": ("avg_gt_loss", "gt_loss", "num_token_gt"),
    "paraphrased": ("avg_paraphrased_loss", "paraphrased_loss", "num_token_paraphrased"),
    "perturbed": ("average_perturb_loss", "perturb_loss", "num_token_perturb"),
}
ROUGE, TEXTS = ("rouge1_recall", "rougeL_recall"), "generated_text"
KNOWN = {*(name for names in MEASURES.values() for name in names), *ROUGE, TEXTS}
# open-unlearning's metric of each kind of answer. Two tasks have no paraphrase: there the answer stands for it.
METRICS = {
    task: {"gold": f"{short}_Q_A_Prob", "paraphrased": f"{short}_Q_A_{para}Prob", "perturbed": f"{short}_Q_A_PERT_Prob"}
    for task, short, para in (
        ("retain", "retain", "PARA_"),
        ("forget", "forget", "PARA_"),
        ("real_authors", "ra", ""),
        ("world_facts", "wf", ""),
    )
}
# A model that computes in bfloat16 rounds sum and mean to 8 bits each.
ROUNDING = 0.02

Columns = dict[str, dict[int, Any]]


def read_log(path: str | os.PathLike[str], task: str = "forget") -> EvaluationLog:
    """Read one task of a log, examples by ascending index: from a file of any layout, or from a folder that holds one.

    In a folder the task's own file goes before `AGGREGATED`, and that before `OPEN_UNLEARNING`. Raises `InvalidInput`,
    naming file, measure, counts and example, for what is no such log, for measures of unequal counts (runs of several
    processes repeat padded examples, and which value belongs to which example is then lost), and for numbers that are
    not finite or do not fit together: sum = mean * number of tokens.
    """
    require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
    file, names = Path(path), (TASKS[task], AGGREGATED, OPEN_UNLEARNING)
    if file.is_dir():
        found = [file / name for name in names if (file / name).is_file()]
        require(bool(found), "logs", str(path), f"a folder with {', '.join(names[:-1])} or {names[-1]}")
        file = found[0]
    holds = {name: other for other, name in TASKS.items()}.get(file.name, task)
    require(holds == task, "task", task, f"{holds}, which is what {file} holds")
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput("log", str(file), f"a readable JSON file ({error})") from None
    content = _object(content, "log", file)
    if TASKS[task] in content:
        content = _object(content[TASKS[task]], TASKS[task], file)
    if METRICS[task]["gold"] in content:
        return _log(file, "open-unlearning", _open_unlearning(content, task, file))
    expected = f"{TASKS[task]}, {MEASURES['gold'][0]} or {METRICS[task]['gold']} among the keys of {file}"
    require(MEASURES["gold"][0] in content, "log", list(content)[:4], expected)
    layout = "mapping" if isinstance(content[MEASURES["gold"][0]], dict) else "lists"
    return _log(file, layout, {name: _by_index(content[name], name, file) for name in content if name in KNOWN})


def _object(value: Any, name: str, file: Path) -> dict[str, Any]:
    require(isinstance(value, dict), name, type(value).__name__, f"a JSON object in {file}")
    return value


def _by_index(values: Any, name: str, file: Path) -> dict[int, Any]:
    """A list, or a mapping from index, as {index: value} by ascending index."""
    require(isinstance(values, dict | list), name, type(values).__name__, f"a list or a mapping from index in {file}")
    pairs = enumerate(values) if isinstance(values, list) else values.items()
    try:
        return dict(sorted(((int(key), value) for key, value in pairs), key=lambda pair: pair[0]))
    except ValueError as error:
        raise InvalidInput(name, str(error), f"whole numbers as keys in {file}") from None


def _open_unlearning(content: Mapping[str, Any], task: str, file: Path) -> Columns:
    """The metrics of a task under the names that the other layouts use."""
    metrics = [(metric, MEASURES[kind], ("avg_loss", "loss", "num_token")) for kind, metric in METRICS[task].items()]
    rouge = METRICS[task]["gold"].replace("Prob", "ROUGE")
    columns: Columns = {}
    for metric, names, keys in (*metrics, (rouge, ROUGE, ROUGE)):
        if metric not in content:
            continue
        entries = _by_index(_object(content[metric], metric, file).get("value_by_index"), metric, file)
        for index, entry in entries.items():
            fits = isinstance(entry, dict) and entry.get(keys[0]) is not None
            require(fits, f"{metric} of example {index}", entry, f"an entry with {keys[0]} in {file}")
        for name, key in zip(names, keys, strict=False):  # of ROUGE there are two
            if column := {index: entry[key] for index, entry in entries.items() if key in entry}:
                columns[name] = column
        if metric == rouge and any("input" in entry for entry in entries.values()):
            keys = ("input", "generation", "ground_truth")
            columns[TEXTS] = {index: [entry.get(key) for key in keys] for index, entry in entries.items()}
    return columns


def _log(file: Path, layout: str, columns: Columns) -> EvaluationLog:
    first = MEASURES["gold"][0]
    indices = columns[first].keys()
    require(len(indices) > 0, first, "0 values", f"at least one example in {file}")
    for name, column in columns.items():
        odd = sorted(column.keys() ^ indices)[:1]
        allowed = f"one for each of the {len(indices)} of {first} in {file} (index {odd} is the first in only one of"
        allowed += " them; runs of several processes repeat padded examples)"
        require(not odd, name, f"{len(column)} values", allowed)
    gold, paraphrased, perturbed = (_answers(kind, columns, file) for kind in MEASURES)
    assert gold is not None
    texts = [None, None, None]
    if TEXTS in columns:
        for index, row in columns[TEXTS].items():
            fits = isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row)
            require(fits, f"{TEXTS} of example {index}", row, f"prompt, generation and truth in {file}")
        # Decoders differ in the blanks that they leave around a template's marks.
        rows = ((" ".join(text.split()) for text in row) for row in columns[TEXTS].values())
        texts = list(zip(*rows, strict=True))
    return EvaluationLog(
        file=str(file),
        layout=layout,
        index=np.array(list(indices), dtype=np.int64),
        gold=gold,
        paraphrased=paraphrased,
        perturbed=perturbed,
        rouge={name: _numbers(columns[name], name, file) for name in ROUGE if name in columns},
        question=texts[0],
        generation=texts[1],
        answer=texts[2],
    )


def _answers(kind: str, columns: Columns, file: Path) -> Answers | None:
    """The losses of one kind of answer; the sum is taken from the mean where only that and the number are stored."""
    names = MEASURES[kind]
    if names[0] not in columns:
        return None
    axes = 2 if kind == "perturbed" else 1
    found = [_numbers(columns[name], name, file, axes) if name in columns else None for name in names]
    average, total, length = found
    assert average is not None
    for name, values in zip(names, found, strict=True):
        if values is not None:
            require(
                values.shape == average.shape, name, values.shape, f"the shape {average.shape} of {names[0]} in {file}"
            )
            fits = values >= 1 if name == names[2] else values >= 0
            _check_each(fits, name, values, "a number >= 1" if name == names[2] else "a loss >= 0", file)
    if length is not None and total is not None:
        fits = np.abs(average * length - total) <= ROUNDING * total + 1e-3
        _check_each(fits, names[1], total, f"the sum {names[0]} * {names[2]}", file)
    return Answers(average, average * length if total is None and length is not None else total, length)


def _numbers(column: Mapping[int, Any], name: str, file: Path, axes: int = 1) -> Float[np.ndarray, "..."]:
    """The values of a measure by example: finite numbers, or equally long lists of them (`axes` = 2)."""
    width = next((len(row) for row in column.values() if isinstance(row, list)), 1)
    shape = "one finite number" if axes == 1 else f"{width} finite numbers, as for the first example,"
    for index, row in column.items():
        cells: list[Any] = row if isinstance(row, list) and axes == 2 else [row]
        numbers = all(type(cell) in (int, float) and math.isfinite(cell) for cell in cells)
        require(
            numbers and len(cells) == (width if axes == 2 else 1),
            f"{name} of example {index}",
            row,
            f"{shape} in {file}",
        )
    values = np.array(list(column.values()), dtype=np.float64)
    return values[:, None] if values.ndim < axes else values


def _check_each(fits: Any, name: str, values: np.ndarray, allowed: str, file: Path) -> None:
    """`fits` says of each value whether it may stand; positions are by ascending index."""
    if not fits.all():
        at = tuple(int(place) for place in np.argwhere(~fits)[0])
        raise InvalidInput(f"{name} at position {at[0]}", float(values[at]), f"{allowed} in {file}")
