"""The memory that experiments will take, by a formula, known before any of them is begun.

What cannot fit into the memory of this machine is refused, with the setting that takes most of it
and the largest number of that setting that would fit. Bytes are counted for each process, in the
phase that takes most:

    sampling    the uniform numbers of a component, and a row of its chain for each of its sequences
    pretraining the sequences of all components, parameters, gradients, two moments, and the
                activations of one piece of a batch
    unlearning  the same for every run of an ensemble, its batches of all steps, the laws of three
                models at every test token, and the log-probabilities of all recorded steps

The formula is right to a factor of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from markov.batching import PROCESSOR
from markov.cases import Case
from markov.console.memory import free_beside, gigabytes
from markov.errors import InvalidInput, require
from markov.experiments import Experiment
from markov.models import Transformer
from markov.recording import CHUNK
from markov.running.dividing import Share

Sizes = Mapping[str, int]
PROGRAM = 400_000_000  # bytes of a process that has torch and pandas loaded
CACHED = 16  # pretrained models whose data and goals are kept, as `markov.running.run` does
ROW = 3 * 30 * 8  # bytes of a row of the table, which is copied where tables are joined and sorted
# The settings by which a study may be made smaller, with the least number of each, in the order in
# which they are named where several help as much.
SMALLER = {
    **{"steps": 1, "batch": 1, "gradient_examples": 0, "width": 1, "depth": 1, "states": 4},
    **{"test_examples": 1, "retain_count": 5, "forget_count": 5},
    **{"retain_length": 2, "forget_length": 2},
}


class Ensemble(NamedTuple):
    """What decides how much memory an ensemble takes.

    That is the numbers of its study, how many `runs` lie side by side, and the data of how many
    seeds or cases, `starts`, are held for them.
    """

    sizes: Sizes
    runs: int = 1
    starts: int = 1


def ensembles_of(divided: Sequence[Share]) -> list[Ensemble]:
    """Return what decides the memory of each share; those that are alike come once."""
    studies = {(one.case, one.pretraining) for share in divided for one in share.experiments}
    rows = sum(
        len(share.experiments) * len(share.recorded) * len(share.experiments[0].case.lengths)
        for share in divided
    )
    found: dict[tuple[object, ...], Ensemble] = {}
    for share in divided:
        recorded = len(share.recorded)
        sizes = sizes_of(share.experiments[0]) | {"recorded": recorded, "rows": rows // recorded}
        own = {(one.case, one.pretraining) for one in share.experiments}
        # Those of earlier shares may still be kept.
        starts = max(len(own), min(CACHED, len(studies)))
        key = (*sizes.items(), len(share.experiments), starts)
        found[key] = Ensemble(sizes, len(share.experiments), starts)
    return list(found.values())


def sizes_of(experiment: Experiment) -> dict[str, int]:
    """Return the numbers that decide how much memory an experiment takes, by their names."""
    case, model = experiment.case, experiment.model
    found = {name: getattr(experiment, name) for name in ("steps", "batch", "gradient_examples")}
    found |= {"states": case.states, "recorded": len(experiment.steps_recorded)}
    found |= {"number": 8 if experiment.precision == "float64" else 4}
    if isinstance(model, Transformer):
        shape = ("width", "depth", "mlp_width", "context", "heads")
        found |= {name: getattr(model, name) for name in shape}
    most = max(case.tested.values())
    found["test_examples"] = min(experiment.test_examples or most, most)
    for number, (name, length) in enumerate(case.lengths.items()):
        own = "retain" if number == 0 else f"forget{number}"
        found |= {f"{own}_length": length, f"{own}_count": _drawn(experiment, name)}
    return found


def _drawn(experiment: Experiment, component: str) -> int:
    """Return how many sequences are drawn of a component."""
    case = experiment.case
    if isinstance(case, Case):
        return case.counts[component]
    tokens = case.retain_tokens if component == "retain" else case.tokens
    return tokens // (case.lengths[component] - 1) + case.test_count


def host_peak(one: Ensemble) -> int:
    """Return the bytes of the machine's own memory that an ensemble takes, wherever it is run."""
    sizes, parts = one.sizes, _components(one.sizes)
    drawing = max(count * (24 * length + 26 * sizes["states"]) for count, length in parts)
    held = sum(count * length * 8 for count, length in parts)
    longest, rows = max(length for _, length in parts), sizes["steps"] * sizes["batch"]
    forgotten = sum(count for count, _ in parts[1:])
    drawn = rows * (18 * longest + 90) + 32 * max(rows, forgotten)
    # Of each example and recorded step: log-probability, weight, and copies of both in float64.
    kept = (
        sizes["recorded"] * sum(count for count, _ in _tested(sizes)) * (5 * sizes["number"] + 16)
    )
    unlearning = one.starts * (_data(sizes) + 4 * sum(_laws(sizes))) + one.runs * (drawn + kept)
    return max(drawing + held, 2 * _data(sizes), unlearning)


def device_peak(one: Ensemble) -> int:
    """Return the bytes that an ensemble takes where it is run, beside those of `host_peak`."""
    sizes, number = one.sizes, one.sizes["number"]
    parameters, laws = _parameters(sizes) * number, _laws(sizes)
    longest = max(length for _, length in _components(sizes))
    forgotten, kept = [length for _, length in _components(sizes)[1:]], _activations(sizes)
    # A batch is cut where its sequences get shorter.
    batch = sizes["batch"] * sum(forgotten) // len(forgotten)
    tokens = max(batch, max(sizes["gradient_examples"], CHUNK // 4) * longest)
    own = 7 * parameters + 6 * sum(laws) + 4 * max(laws) + tokens * kept
    return max(6 * parameters + PROCESSOR.rows * longest * kept, one.runs * own)


def peak(one: Ensemble) -> int:
    """Return the bytes that a process takes at most for an ensemble on the processor.

    The table of all runs is not among them.
    """
    return host_peak(one) + device_peak(one)


def check_table_size(runs: int, steps: int, record_every: int) -> None:
    """Raise `InvalidInput` for more recorded steps of more runs than a table may hold.

    Nothing is made for it: lists of the runs and steps themselves may be too large. `steps` are
    those that each run takes, every `record_every`-th of which is recorded.
    """
    room = free_beside()
    most = room // (3 * ROW * runs)  # recorded steps of a run
    fits = max(1, -(-steps // max(1, most - 2)))
    allowed = f"at least {fits}: a table of {runs} runs with {steps // record_every + 1} recorded"
    require(
        steps // record_every + 2 <= max(2, most),
        "record_every",
        record_every,
        f"{allowed} steps is larger than the {gigabytes(room)} GB that are free",
    )


def table_bytes(one: Ensemble) -> int:
    """Return the bytes of the whole table, of which an ensemble makes a part.

    `rows` are those of a recorded step.
    """
    return one.sizes.get("rows", 0) * one.sizes["recorded"] * ROW


def _components(sizes: Sizes) -> list[tuple[int, int]]:
    """Return the count of sequences and the tokens of a sequence of each component."""
    names = [name.removesuffix("_count") for name in sizes if name.endswith("_count")]
    return [(sizes[f"{name}_count"], sizes[f"{name}_length"]) for name in names]


def _tested(sizes: Sizes) -> list[tuple[int, int]]:
    """Return the count of test sequences and their scored tokens of each component."""
    return [
        (min(count, sizes["test_examples"]), length - 1) for count, length in _components(sizes)
    ]


def _laws(sizes: Sizes) -> list[int]:
    """Return the bytes of one model's laws at the test tokens of each component."""
    row = sizes["states"] * sizes["number"]
    return [count * length * row for count, length in _tested(sizes)]


def _data(sizes: Sizes) -> int:
    """Return the bytes of all sequences as they are drawn, and of corpora that hold them again."""
    parts = _components(sizes)
    longest = max(length for _, length in parts)
    return sum(count * (8 * length + 9 * longest) for count, length in parts)


def _parameters(sizes: Sizes) -> int:
    if "width" not in sizes:
        return sizes["states"] ** 2
    width, inner = sizes["width"], sizes["mlp_width"]
    block = 4 * width * (width + 2) + 2 * width * inner + inner
    return sizes["depth"] * block + width * (2 * sizes["states"] + sizes["context"] + 4)


def _activations(sizes: Sizes) -> int:
    """Return the bytes that a pass keeps of a token for the pass back."""
    inner = 0
    if "width" in sizes:
        inner = sizes["depth"] * (12 * sizes["width"] + 5 * sizes["mlp_width"])
    return sizes["number"] * (inner + 6 * sizes["states"])


def fitting_jobs(divided: Sequence[Share], jobs: int, asked: int) -> int:
    """Return how many of `jobs` processes memory has room for.

    `asked` is what the user gave for jobs: -1 leaves the number to this function. Raises
    `InvalidInput` where there is no room for one process, or for as many as were asked for.
    """
    if not divided:
        return jobs
    found, free = ensembles_of(divided), free_beside()
    device = divided[0].experiments[0].device
    if device != "cpu":
        _check_room(found, device_peak, torch.cuda.mem_get_info(device)[0], device)
    own = peak if device == "cpu" else host_peak
    _check_room(found, lambda one: own(one) + table_bytes(one), free, "this machine")
    each, room = max(map(own, found)) + PROGRAM, free - max(map(table_bytes, found))
    if jobs == 1 or jobs * each <= room:
        return jobs
    fewer = max(1, room // each)
    allowed = f"at most {fewer}, since each takes about {gigabytes(each)} GB of {gigabytes(free)}"
    require(asked == -1, "jobs", asked, f"{allowed} GB that are free")
    return fewer


def _check_room(
    found: Sequence[Ensemble], own: Callable[[Ensemble], int], room: int, where: str
) -> None:
    """Raise `InvalidInput` unless each ensemble fits, with the largest number that would."""

    def taken(name: str, number: int) -> int:
        return max(own(one._replace(sizes=_with(one.sizes, name, number))) for one in found)

    needed = max(map(own, found))
    if needed <= room:
        return
    sizes = max(found, key=own).sizes
    known = {name: size for name in SMALLER if (size := _size(sizes, name)) > SMALLER[name]}
    name = min(known, key=lambda one: taken(one, SMALLER[one]), default="steps")
    low, high = SMALLER[name], known.get(name, 1)
    while high - low > 1:  # `high` does not fit
        middle = (low + high) // 2
        low, high = (middle, high) if taken(name, middle) <= room else (low, middle)
    most = low // sizes["heads"] * sizes["heads"] if name == "width" else low
    fits = most > 0 and taken(name, low) <= room
    less = f"at most {most}" if fits else f"{SMALLER[name]}, and less of other settings too"
    told = f"{gigabytes(needed)} GB are needed and {gigabytes(room)} GB free on {where}"
    raise InvalidInput(name, _size(sizes, name), f"{less}, since about {told}")


def _names(sizes: Sizes, name: str) -> list[str]:
    """Return the sizes that a setting stands for: one, or those of all forget components."""
    if not name.startswith("forget_"):
        return [name] if name in sizes else []
    return [one for one in sizes if one.startswith("forget") and one.endswith(name[6:])]


def _size(sizes: Sizes, name: str) -> int:
    return max((sizes[one] for one in _names(sizes, name)), default=0)


def _with(sizes: Sizes, name: str, number: int) -> Sizes:
    """Return the sizes with at most so many of one setting."""
    changed = {one: min(sizes[one], number) for one in _names(sizes, name)}
    if name == "steps":  # of which the same share is recorded
        share = min(1.0, changed["steps"] / sizes["steps"])
        changed["recorded"] = max(2, round(sizes["recorded"] * share))
    return {**sizes, **changed}
