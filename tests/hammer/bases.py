"""One small command line of each command, which takes a second or two, and what it writes.

A case changes up to three of its options. Every option can be changed, whether the small command
has it or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

Options = dict[str, tuple[str, ...]]


class Base(NamedTuple):
    """A command, its options by name, and what lies at OUT when it has succeeded.

    `writes` are names in the folder OUT with the schema of each, or of a table at OUT itself "".
    `often` says how many times as often as others it is chosen. A `slow` one takes too long for any
    change that does not have to be refused.
    """

    command: str
    options: Options
    writes: Mapping[str, str]
    often: int = 1
    slow: bool = False

    @property
    def folder(self) -> bool:
        return "" not in self.writes


CHAINS: Options = {
    "epochs": ("1",),
    "width": ("8",),
    "depth": ("1",),
    "heads": ("1",),
    "steps": ("2",),
    "retain_count": ("60",),
    "forget_count": ("60",),
    "jobs": ("1",),
}


def bases(given: Path) -> dict[str, Base]:
    """Return the small command lines by a name of each."""
    model: Options = {"model": (str(given / "model"),), "device": ("cpu",)}
    data: Options = {"data": (str(given / "data" / "forget10.json"),)}
    kept: Options = {"retain_data": (str(given / "data" / "retain90.json"),)}
    split: Options = {"data": (str(given / "data" / "forget10"),)}
    retrained: Options = {"retrained": (str(given / "retrained"),)}
    few: Options = {"epochs": ("1",), "batch": ("2",), "learning_rate": ("1e-3",)}
    two: Options = {"max_new_tokens": ("2",)}
    table, logs = given / "tables", given / "logs"
    out: Options = {"out": ("found",)}
    at: Options = {"out": ("found.parquet",)}
    run = {"examples.parquet": "ByEpoch", "epochs.parquet": "Epochs", "answers.parquet": "Answered"}
    methods: Options = {"methods": ("npo:0.1@1",), "jobs": ("1",)}
    study: Options = {"seeds": ("0",), "learning_epochs": ("1",), "attacked": ()}
    return {
        "markov unlearn": Base(
            "markov unlearn", CHAINS | {"objective": ("npo",)} | at, {"": ""}, often=3
        ),
        "markov grid": Base("markov grid", CHAINS | {"objective": ("npo",)} | at, {"": ""}, 3),
        "llm build": Base("llm build", {"device": ("cpu",), "kinds": ("original",)} | out, {}),
        "llm score": Base("llm score", model | data | at, {"": "Scores"}, 2),
        "llm weights": Base(
            "llm weights",
            {
                "scores": (str(table / "model.parquet"),),
                "reference": (str(table / "model.parquet"),),
                "retrained": (str(table / "retrained.parquet"),),
            }
            | at,
            {"": "Scores"},
            2,
        ),
        "llm unlearn": Base(
            "llm unlearn",
            model | data | kept | few | retrained | {"objective": ("npo:0.2",)} | out,
            run,
            3,
        ),
        "llm finetune": Base(
            "llm finetune", model | data | few | out, {"epochs.parquet": "Learning"}, 2
        ),
        "llm known": Base("llm known", model | split | two | {"share": ("None",)} | out, {}),
        "llm evaluate": Base("llm evaluate", model | split | two | retrained | out, {}, 2),
        "llm evaluate logs": Base(
            "llm evaluate",
            {
                "logs": (str(logs / "model"),),
                "retrained_logs": (str(logs / "retrained"),),
            },
            {},
            2,
        ),
        "llm relearn": Base(
            "llm relearn", model | data | few | retrained | {"repeats": ("1",)} | at, {"": ""}, 2
        ),
        "llm sweep": Base(
            "llm sweep", model | split | two | few | retrained | methods | out, {}, 2
        ),
        "llm study": Base(
            "llm study",
            model | split | two | few | methods | study | {"despite_gate": (), "draw": ()} | out,
            {},
        ),
        "llm estimate": Base(
            "llm study", model | split | two | few | methods | study | {"estimate_only": ()}, {}
        ),
        "llm gate": Base(
            "llm gate",
            {"percent": ("10",), "seeds": ("0", "1"), "device": ("cpu",), "jobs": ("1",)} | out,
            {},
            slow=True,
        ),
        "llm muse": Base(
            "llm muse",
            {
                "unlearn": ("npo:0.5",),
                "retrained": ("news:retrained",),
                "epochs": ("1",),
                "batch": ("4",),
                "learning_rate": ("3e-3",),
                "piece": ("32",),
                "device": ("cpu",),
            }
            | out,
            {},
            2,
        ),
        "llm diagnose": Base(
            "llm diagnose",
            {
                "logs": (str(logs / "model"),),
                "retrained_logs": (str(logs / "retrained"),),
            }
            | at,
            {"": ""},
            2,
        ),
        "figures": Base(
            "figures", {"names": ("weights",), "quick": (), "jobs": ("1",)} | out, {}, 4
        ),
    }
