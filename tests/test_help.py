"""Every --help, and every option that is refused, is answered before anything heavy is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from llm.__main__ import ACTIONS
from tests.test_architecture import ROOT

COMMANDS = {
    "markov": [[], ["unlearn"], ["grid"]],
    "llm": [[], *([action.__name__.lower()] for action in ACTIONS)],
    "figures": [[]],
}
# These take seconds to import, or import what does.
HEAVY = ("torch", "pandas", "transformers", "matplotlib", "scipy", "sympy", "accelerate", "joblib")
CODE = """
import contextlib, io, json, sys
from {module}.__main__ import cli
{before}
answers = []
for words in json.loads(sys.argv[1]):
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = cli(words)
        except SystemExit as ended:
            code = ended.code
    answers.append([code, said.getvalue(), [name for name in {heavy} if name in sys.modules]])
print(json.dumps(answers))
"""


def answers(module: str, calls: list[list[str]], before: str = "") -> list[list]:
    """For each call of a program the exit code, what it printed, and what heavy was imported."""
    code = CODE.format(module=module, before=before, heavy=HEAVY)
    words = [sys.executable, "-c", code, json.dumps(calls)]
    return json.loads(subprocess.check_output(words, cwd=ROOT, text=True))


@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_answered_before_anything_heavy_is_imported(module: str) -> None:
    calls = [[*words, "--help"] for words in COMMANDS[module]]
    for call, (code, said, heavy) in zip(calls, answers(module, calls), strict=True):
        usage = " ".join(["usage: python -m", module, *call[:-1]])
        assert code == 0 and said.startswith(usage), (call, said)
        assert heavy == [], call
        # A line that begins with a sign is not joined to the one before, and breaks an example.
        broken = re.findall(r"(?m)^[^\w\s].*", said.partition("╭")[0])
        assert broken == [], call


def test_what_is_imported_would_be_seen() -> None:
    ((_, _, heavy),) = answers("markov", [["--help"]], before="import pandas")
    assert heavy == ["pandas"]


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("markov", ["unlearn", "--objective", "nobody"], "--objective"),
        ("markov", ["grid", "--no-such-option"], "--no-such-option"),
        ("llm", ["score", "--model", "a/b/c"], "model"),
        ("llm", ["score", "--noise-seed", "1"], "noise_seed"),
        ("llm", ["unlearn", "--epochs", "many"], "--epochs"),
        ("llm", ["evaluate", "--model", "authors:nobody"], "kind"),
        ("llm", ["relearn", "--share", "2"], "share"),
        ("llm", ["relearn", "--repeats", "0"], "repeats"),
        ("llm", ["relearn", "--epochs", "0"], "epochs"),
        ("llm", ["relearn", "--learning-rate", "0"], "learning_rate"),
        ("figures", ["nobody"], "figure"),
        ("figures", ["tradeoff", "--seeds", "0"], "seeds"),
        ("figures", ["llm_bias", "--retrained", "authors:retrained"], "retrained"),
        ("figures", ["tradeoff", "--jobs", "0"], "jobs"),
    ],
)
def test_what_is_refused_is_refused_before_anything_heavy_is_imported(
    module: str, words: list[str], told: str
) -> None:
    ((code, said, heavy),) = answers(module, [words])
    assert code == 2 and told in said and "Traceback" not in said
    assert heavy == []
