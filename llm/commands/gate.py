"""The command that asks whether the models made here are fit to compare methods by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm.data.authors.corpus import PERCENT

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Ask whether the small models that are made here are fit to compare methods by.
    It trains the original and the retrained one once per seed, evaluates both as TOFU does, and
    compares no method.

    Printed are the checks of every seed and those over all seeds: whether both kinds are alike in
    utility and in each of its nine components (two one-sided tests), how much utility varies,
    whether the originals know the answers to forget and the retrained ones do not, and whether two
    retrained models are told apart by forget quality. D between these is the floor.

    Writes to OUT what `study` writes, which can go on from there:
    python -m llm study --model authors:original --data authors:forget20 --seeds 0 1 2 3 4 --out OUT
    """

    percent: int = PERCENT
    """Percent of the authors that is to be forgotten: 1, 5, 10 or 20."""
    seeds: tuple[int, ...] = SEEDS
    """Seeds of the training, of which there are at least two. The authors stay the same."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU where there is one."""
    jobs: int = -1
    """Models trained at a time; -1 is one per core. Changes no number."""
    out: Path = Path("out/gate")
    """Folder to write, or to go on in."""


def gate(command: Gate) -> None:
    """Make what models are not there, and print what the gate finds of them."""
    from llm.commands.study import print_gate
    from llm.jobs.study_settings import Study, checked
    from llm.jobs.studying import studied
    from markov.errors import require

    require(len(command.seeds) > 1, "seeds", command.seeds, "at least two")
    data = f"authors:forget{command.percent:02}"
    options = {name: getattr(command, name) for name in ("seeds", "device", "jobs", "out")}
    asked = Study(
        model="authors:original", data=data, methods=(), attacked=(), despite_gate=True, **options
    )
    studied(checked(asked), on_gate=print_gate)
    print(f"the gate and what it is taken from: {command.out}/gate_over_seeds.parquet")
