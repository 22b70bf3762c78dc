"""A part of a data set, for machines that cannot learn all of it: a folder laid out as TOFU's.

The part has the last answers to forget and the first ones to retain. In TOFU, where each author
has 20 rows, whole authors stay together if the counts are multiples of 20, and a smaller part to
forget lies within a larger one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from llm.data.sources import read
from llm.data.splits import TofuSets, retain_word, some_of, tofu_sets
from llm.data.tofu import Example, write
from markov.errors import require, require_whole
from markov.files.storage import Location


@dataclass(frozen=True, kw_only=True)
class Part:
    """How many answers a part has; what is None is taken whole.

    `forget` and `retain` are learnt; of each set by which utility is measured at most `measured`
    are asked. Raises `InvalidInput` for numbers below 2.
    """

    forget: int | None = None
    retain: int | None = None
    measured: int | None = None

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "measured"):
            if getattr(self, name) is not None:
                require_whole(getattr(self, name), f"{name}_answers", 2)


class Learnt(NamedTuple):
    """What is learnt, to be forgotten and to stay, and the sets that a model is measured by."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    sets: TofuSets


def write_part(folder: Path, data: Location, part: Part) -> str:
    """Write a part of a forget split and of what goes with it; return the word of its forget split.

    The files have TOFU's names, with the share to forget in percent, and are read by
    `llm.data.splits.tofu_sets`. A file that is there is not written again. Raises `InvalidInput`
    for counts above those of the data, and where none of the questions about what is to stay is
    among those that are kept.
    """
    own = part_of(data, part)
    percent = min(99, max(1, round(100 * len(own.forget) / (len(own.forget) + len(own.retain)))))
    files = {
        f"forget{percent:02}": own.forget,
        f"forget{percent:02}_perturbed": own.sets.forget,
        f"retain{100 - percent:02}": own.retain,
        "retain_perturbed": own.sets.retain,
        "real_authors_perturbed": own.sets.real_authors,
        "world_facts_perturbed": own.sets.world_facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in files.items():
        path = folder / f"{name}.json"
        if not path.exists():
            write([replace(one, index=row) for row, one in enumerate(examples)], path)
    return str(folder / f"forget{percent:02}")


def part_of(data: Location, part: Part) -> Learnt:
    """Return a part of a forget split and of what goes with it.

    Raises `InvalidInput` as `write_part` does.
    """
    sets = tofu_sets(data)
    forget = _some(read(data), part.forget, "forget_answers", last=True)
    retain = _some(read(retain_word(data)), part.retain, "retain_answers", last=False)
    asked = _among(sets.retain, retain)
    allowed = "enough for some of the questions that utility is measured by to be among them"
    require(len(asked) > 0, "retain_answers", part.retain, allowed)
    count = part.measured or len(asked) + len(sets.real_authors) + len(sets.world_facts)
    rest = (asked, sets.real_authors, sets.world_facts)
    measured = TofuSets(_among(sets.forget, forget), *(some_of(one, count) for one in rest))
    return Learnt(forget, retain, measured)


def _some(
    examples: tuple[Example, ...], count: int | None, field: str, *, last: bool
) -> tuple[Example, ...]:
    """Return the first or the last of the examples; raises `InvalidInput` for too few."""
    if count is None:
        return examples
    require(count <= len(examples), field, count, f"at most {len(examples)}")
    return examples[-count:] if last else examples[:count]


def _among(examples: tuple[Example, ...], kept: tuple[Example, ...]) -> tuple[Example, ...]:
    """Return the examples whose question and response are among those kept."""
    known = {(one.prompt, one.response) for one in kept}
    return tuple(one for one in examples if (one.prompt, one.response) in known)
