"""The command that does everything: from a pretrained model to the table of all methods."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llm.jobs.planning import planned, runs_at_a_time
from llm.jobs.study_settings import Study, checked
from llm.jobs.studying import studied
from markov.errors import require

if TYPE_CHECKING:
    import pandas as pd


def print_gate(
    gate: pd.DataFrame, floor: tuple[float, ...], over: pd.DataFrame | None = None
) -> None:
    """Print whether the models of a study are fit to compare methods by, each seed and all."""
    from llm.evaluation.gate import INCONCLUSIVE

    print(gate.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    if (gate["verdict"] == INCONCLUSIVE).any():
        print(
            "inconclusive: by so few questions the utilities may be alike or not. Judge no method "
            "by its utility; more --measured-answers tell more, with another --out"
        )
    if over is not None:
        print(over.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
        return
    for value in floor:
        print(f"D between two retrained models: {value:.3f}; a smaller D is no better")


def study(command: Study) -> None:
    """Make what is not there, and print an estimate, the gate, the table and what comes back."""
    from llm.logs.summaries import markdown

    command = checked(command)
    runs = runs_at_a_time(command.jobs, len(command.methods))
    planned(command, training=True, writing=command.max_new_tokens, runs=runs)
    print(
        f"{command.model} learns and forgets {command.data}, seeds "
        f"{' '.join(map(str, command.seeds))}: {len(command.methods)} methods"
    )
    print_estimate(command)
    if command.estimate_only:
        return
    found = studied(command, on_gate=print_gate)
    print(markdown(found.summary))
    last = found.attacks[found.attacks["epoch"] == found.attacks["epoch"].max()]
    if len(last):
        print(f"after {command.attack_epochs} epochs of relearning {command.share:.0%}:")
        print(last.to_string(index=False, float_format="{:.3f}".format))
    print(f"{len(found.measures)} rows: {command.out / 'measures.parquet'}")
    if command.draw:
        draw(command.out)


def print_estimate(command: Study) -> None:
    """Print how long what is left of a study takes on this machine.

    Raises `InvalidInput`, unless no more than that is asked for, where nobody would wait so long.
    """
    from llm.jobs.estimating import check_ends, estimated, lines

    found = estimated(command)
    print("\n".join(lines(found, command.jobs)), flush=True)
    if not command.estimate_only:
        check_ends(command, found)


def draw(out: Path) -> None:
    """Draw the figures of a study by a process of its own, where they are installed.

    This package knows nothing of figures, and works without them.
    """
    if find_spec("figures") is None:
        print("figures are not drawn: the package figures of this project is not installed")
        return
    command = [sys.executable, "-m", "figures", "--study", str(out), "--out", str(out / "figures")]
    # This interpreter and a module of ours, and no shell.
    drawn = subprocess.run(command).returncode == 0  # nosec B603
    allowed = f"figures that can be drawn (said above); the tables in {out} are written"
    require(drawn, "draw", True, allowed)
