"""The command that does everything: from a pretrained model to the table of all methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm.jobs.studying import Study, checked, studied

if TYPE_CHECKING:
    import pandas as pd


def print_gate(gate: pd.DataFrame, floor: tuple[float, ...]) -> None:
    """Print whether the models of a study are fit to compare methods by."""
    print(gate.to_string(index=False, float_format="{:.3f}".format))
    for value in floor:
        print(f"D between two retrained models: {value:.3f}, which no method can be asked to beat")


def study(command: Study) -> None:
    """Make what is not there, and print the gate, the table and what comes back."""
    from llm.logs.summaries import markdown

    command = checked(command)
    print(
        f"{command.model} learns and forgets {command.data}, seeds "
        f"{' '.join(map(str, command.seeds))}: {len(command.methods)} methods"
    )
    found = studied(command, on_gate=print_gate)
    print(markdown(found.summary))
    last = found.attacks[found.attacks["epoch"] == found.attacks["epoch"].max()]
    print(f"after {command.attack_epochs} epochs of relearning {command.share:.0%}:")
    print(last.to_string(index=False, float_format="{:.3f}".format))
    print(f"{len(found.measures)} rows: {command.out / 'measures.parquet'}")
