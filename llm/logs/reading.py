"""Read evaluation logs of TOFU runs, in any of the layouts in which they are found.

    lists             one JSON file per task (`TASKS`): measure -> values in the order of the
                      examples
    mapping           the same files: measure -> {index: value}
    open-unlearning   one file for all tasks: metric -> {"value_by_index": {index: {...}}}

The first two also come merged, file name -> content, in `AGGREGATED`. In these gt_loss,
paraphrased_loss and perturb_loss are sums over an answer's scored tokens, num_token_* are the
numbers of these tokens, and avg_gt_loss, avg_paraphrased_loss and average_perturb_loss are the
quotients. open-unlearning stores the quotients only (avg_loss); if its entries also have `loss` and
`num_token`, these are read as sum and number.

All three layouts store the prompt as the model was given it. What this project writes also stores
the bare `question`. Whatever the layout, the values are then checked by `llm.schemas.Log`.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from llm.logs.log import MEMORISED, Answers, EvaluationLog
from markov.errors import InvalidInput, require
from markov.files import inputs

if TYPE_CHECKING:
    from llm.schemas import Log

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
ROUGE, TEXTS, QUESTION = ("rouge1_recall", "rougeL_recall"), "generated_text", "question"
KNOWN = {
    *(name for names in MEASURES.values() for name in names),
    *(*ROUGE, *MEMORISED, TEXTS, QUESTION),
}
# What open-unlearning stores beside the mean loss: the probability per token, exp(-mean).
PROBABILITIES = {"gold": "gt_prob", "paraphrased": "paraphrased_prob", "perturbed": "perturb_prob"}
# open-unlearning's metric of each kind of answer. Two tasks have no paraphrase: there the answer
# takes its place.
METRICS = {
    task: {
        "gold": f"{short}_Q_A_Prob",
        "paraphrased": f"{short}_Q_A_{para}Prob",
        "perturbed": f"{short}_Q_A_PERT_Prob",
    }
    for task, short, para in (
        ("retain", "retain", "PARA_"),
        ("forget", "forget", "PARA_"),
        ("real_authors", "ra", ""),
        ("world_facts", "wf", ""),
    )
}
# Read where the manifest says what they count, as it does here: open-unlearning's own values, which
# it has of the forget set, leave out the last token of an answer.
MEMORISED_METRICS = {
    task: {name: f"{short}{name}" for name in MEMORISED}
    for task, short in (
        ("retain", "retain_"),
        ("forget", ""),
        ("real_authors", "ra_"),
        ("world_facts", "wf_"),
    )
}
MANIFEST = "manifest"
WIDEST = 10**1000  # a number of a log: what is too large for a measure is said by its name
# A model that computes in bfloat16 rounds sum and mean to 8 bits each.
ROUNDING = 0.02

# Each number is written in one way only: "00" and "0" are not two examples.
INDEX = re.compile(r"0|[1-9][0-9]{0,14}")

Columns = dict[str, dict[int, Any]]


def read_log(path: str | os.PathLike[str], task: str = "forget") -> EvaluationLog:
    """Return one task of a log, examples by ascending index, from a file or folder of any layout.

    In a folder the task's own file goes before `AGGREGATED`, and that before `OPEN_UNLEARNING`.
    Raises `InvalidInput`, which names file, measure, counts and example, for a file that is no such
    log, for a key that comes twice, for measures of unequal counts (runs of several processes
    repeat padded examples, and which value belongs to which example is then lost), for values that
    `llm.schemas.Log` does not allow, and for numbers that do not fit together: sum = mean * number
    of tokens.

    Warns if stored probabilities are not those of the losses; the losses are used.
    """
    require(task in TASKS, "task", task, f"one of {', '.join(TASKS)}")
    file, names = inputs.expanded(path, "logs"), (TASKS[task], AGGREGATED, OPEN_UNLEARNING)
    if inputs.is_folder(file):
        found = [file / name for name in names if (file / name).is_file()]
        require(
            bool(found), "logs", str(path), f"a folder with {', '.join(names[:-1])} or {names[-1]}"
        )
        file = found[0]
    holds = {name: other for other, name in TASKS.items()}.get(file.name, task)
    require(holds == task, "task", task, f"{holds}, which is what {file} holds")
    content = _content(file)
    content = _object(content, "log", file)
    if TASKS[task] in content:
        content = _object(content[TASKS[task]], TASKS[task], file)
    if METRICS[task]["gold"] in content:
        return _log(file, "open-unlearning", *_open_unlearning(content, task, file))
    expected = (
        f"{TASKS[task]}, {MEASURES['gold'][0]} or {METRICS[task]['gold']} among the keys of {file}"
    )
    require(MEASURES["gold"][0] in content, "log", list(content)[:4], expected)
    layout = "mapping" if isinstance(content[MEASURES["gold"][0]], dict) else "lists"
    return _log(
        file,
        layout,
        {name: _by_index(content[name], name, file) for name in content if name in KNOWN},
        {},
    )


def _content(file: Path) -> Any:
    """Return what the JSON in a file says, in any encoding that JSON may have."""
    allowed = "a readable JSON file"
    data = inputs.read_bytes(file, "log", allowed)
    try:
        data = data.decode(json.detect_encoding(data)).encode()
    except ValueError as error:
        raise InvalidInput("log", str(file), f"{allowed} ({error})") from None
    return inputs.parsed(data, "log", str(file), allowed, _each_key_once, WIDEST)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raises `ValueError` for a key that comes twice.

    Python's reader would silently keep the last value.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return found


def _object(value: Any, name: str, file: Path) -> dict[str, Any]:
    require(isinstance(value, dict), name, type(value).__name__, f"a JSON object in {file}")
    return value


def _by_index(values: Any, name: str, file: Path) -> dict[int, Any]:
    """Return a list, or a mapping from index, as {index: value} by ascending index."""
    require(
        isinstance(values, dict | list),
        name,
        type(values).__name__,
        f"a list or a mapping from index in {file}",
    )
    if isinstance(values, list):
        return dict(enumerate(values))
    odd = next((key for key in values if not INDEX.fullmatch(key)), None)
    if odd is not None:
        raise InvalidInput(
            f"{name}, key", odd, f"indices as keys, whole numbers in their usual form, in {file}"
        )
    return dict(sorted((int(key), value) for key, value in values.items()))


def _open_unlearning(
    content: Mapping[str, Any], task: str, file: Path
) -> tuple[Columns, dict[str, str]]:
    """Return the metrics of a task under the names that the other layouts use.

    Also returned is what each column is called in the file.
    """
    keys = ("avg_loss", "loss", "num_token", "prob")
    metrics = [
        (metric, (*MEASURES[kind], PROBABILITIES[kind]), keys)
        for kind, metric in METRICS[task].items()
    ]
    rouge = METRICS[task]["gold"].replace("Prob", "ROUGE")
    columns: Columns = {}
    called: dict[str, str] = {}
    about, own = content.get(MANIFEST), MEMORISED_METRICS[task].items()
    told = about if isinstance(about, dict) else {}
    shares = [(metric, (name,), ("score",)) for name, metric in own if name in told]
    for metric, names, keys in (
        *(*metrics, *shares),
        (rouge, (*ROUGE, QUESTION), (*ROUGE, QUESTION)),
    ):
        if metric not in content:
            continue
        entries = _by_index(
            _object(content[metric], metric, file).get("value_by_index"), metric, file
        )
        for index, entry in entries.items():
            fits = isinstance(entry, dict) and entry.get(keys[0]) is not None
            require(
                fits, f"{metric} of example {index}", entry, f"an entry with {keys[0]} in {file}"
            )
        for name, key in zip(names, keys, strict=True):
            if column := {index: entry[key] for index, entry in entries.items() if key in entry}:
                columns[name], called[name] = column, f"{key} of {metric}"
        if metric == rouge and any("input" in entry for entry in entries.values()):
            keys = ("input", "generation", "ground_truth")
            columns[TEXTS] = {
                index: [entry.get(key) for key in keys] for index, entry in entries.items()
            }
            called[TEXTS] = f"input, generation and ground_truth of {metric}"
    return columns, called


def _log(file: Path, layout: str, columns: Columns, called: Mapping[str, str]) -> EvaluationLog:
    """Return the log of one task.

    `called` maps a column to what it is called in the file, if that is not its own name.
    """
    # Here, because building the schemas takes as long as answering --help.
    from llm.schemas import Log, checked

    first = MEASURES["gold"][0]
    indices = columns[first].keys()
    require(len(indices) > 0, first, "0 values", f"at least one example in {file}")
    for name, column in columns.items():
        odd = sorted(column.keys() ^ indices)[:1]
        allowed = (
            f"one for each of the {len(indices)} of {first} in {file} (index {odd} is the "
            "first in only one of"
        )
        allowed += " them; runs of several processes repeat padded examples)"
        require(not odd, called.get(name, name), f"{len(column)} values", allowed)
    found = checked(Log, columns, str(file), row=lambda _, index: f"example {index}", names=called)
    _warn_of_probabilities(found, file, called)
    gold, paraphrased, perturbed = (_answers(kind, found, file, called) for kind in MEASURES)
    assert gold is not None
    texts: list[Any] = [None, None, None]
    if found.generated_text is not None:
        texts = list(
            zip(*(map(_single_spaced, row) for row in found.generated_text.values()), strict=True)
        )
    question = (
        None if found.question is None else tuple(map(_single_spaced, found.question.values()))
    )
    return EvaluationLog(
        file=str(file),
        layout=layout,
        index=np.array(list(indices), dtype=np.int64),
        gold=gold,
        paraphrased=paraphrased,
        perturbed=perturbed,
        rouge=_by_name(found, ROUGE, file),
        memorised=_by_name(found, MEMORISED, file),
        question=question,
        prompt=texts[0],
        generation=texts[1],
        answer=texts[2],
    )


def _by_name(found: Log, names: Sequence[str], file: Path) -> dict[str, np.ndarray]:
    return {name: _numbers(own, name, file) for name in names if (own := getattr(found, name))}


def _single_spaced(text: str) -> str:
    """Return a text with single blanks: decoders differ in the blanks around a template's marks."""
    return " ".join(text.split())


def _answers(kind: str, found: Log, file: Path, called: Mapping[str, str]) -> Answers | None:
    """Return the losses of one kind of answer, or None if the log has none.

    If only mean and number are stored, the sum is their product.
    """
    names = MEASURES[kind]
    columns = [getattr(found, name) for name in names]
    if columns[0] is None:
        return None
    index = list(columns[0])
    titles = [called.get(name, name) for name in names]
    parts = [
        _numbers(column, name, file) if column is not None else None
        for name, column in zip(titles, columns, strict=True)
    ]
    average, total, length = parts
    assert average is not None
    for title, values in zip(titles, parts, strict=True):
        shape = average.shape if values is None else values.shape
        require(
            shape == average.shape,
            title,
            shape,
            f"the shape {average.shape} of {titles[0]} in {file}",
        )
    if length is not None and total is not None:
        fits = np.abs(average * length - total) <= ROUNDING * total + 1e-3
        if not fits.all():
            at = tuple(int(place) for place in np.argwhere(~fits)[0])
            allowed = f"the sum {titles[0]} * {titles[2]}, {average[at] * length[at]:g} in {file}"
            raise InvalidInput(f"{titles[1]} of example {index[at[0]]}", float(total[at]), allowed)
    return Answers(
        average, average * length if total is None and length is not None else total, length
    )


def _warn_of_probabilities(found: Log, file: Path, called: Mapping[str, str]) -> None:
    """Warn, once for a log, of stored probabilities that are not those of the losses."""
    for kind, name in PROBABILITIES.items():
        mean = MEASURES[kind][0]
        if getattr(found, name) is None or getattr(found, mean) is None:
            continue
        stored, losses = (
            _numbers(getattr(found, column), called.get(column, column), file)
            for column in (name, mean)
        )
        known = np.exp(-losses)
        require(
            stored.shape == known.shape,
            called.get(name, name),
            stored.shape,
            f"the shape {known.shape} in {file}",
        )
        odd = np.argwhere(np.abs(stored - known) > ROUNDING)
        if len(odd):
            at = tuple(int(place) for place in odd[0])
            index = list(getattr(found, name))[at[0]]
            said = (
                f"{called.get(name, name)} of example {index} is {stored[at]:g} where the loss "
                f"says {known[at]:g}"
            )
            warnings.warn(
                f"{said} ({len(odd)} differ) in {file}: the losses are used", stacklevel=4
            )
            return


def _numbers(column: Mapping[int, Any], name: str, file: Path) -> Float[np.ndarray, "..."]:
    """Return the values of a measure by example: numbers, or lists of numbers of one length."""
    width = next((len(row) for row in column.values() if isinstance(row, list)), 1)
    for index, row in column.items():
        if isinstance(row, list) and len(row) != width:
            allowed = f"{width} finite numbers, as for the first example, in {file}"
            raise InvalidInput(f"{name} of example {index}", row, allowed)
    return np.array(list(column.values()), dtype=np.float64)
