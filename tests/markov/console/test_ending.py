"""How commands end: exit codes, one line, and a traceback only where it is asked for."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import figures.__main__
import llm.__main__
import markov.__main__
from markov.console.ending import Terminated, debugged, exit_code, terminable
from markov.errors import InvalidInput
from tests.test_architecture import ROOT

RAISED = [
    (InvalidInput("steps", -1, "at least 0"), 2, "error: steps = -1 is not allowed: at least 0"),
    (OSError(errno.ENOSPC, "No space left", "a.txt"), 2, "error: a.txt has no room left (No space"),
    (MemoryError(), 2, "error: out of memory (MemoryError); fewer runs or examples at a time take"),
    (PermissionError(errno.EACCES, "Permission denied", "a"), 1, "error: a cannot be used (Perm"),
    (KeyError("x"), 1, "error: KeyError: 'x' (this should not happen; --debug shows where"),
    (RuntimeError("one\ntwo"), 1, "error: RuntimeError: one (this should not happen"),
    (ValueError("a" * 10**6), 1, "error: ValueError: aaaa"),
    (KeyboardInterrupt(), 130, "stopped; nothing is half-written"),
    (Terminated(), 143, "stopped; nothing is half-written"),
]


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(("error", "code", "said"), RAISED, ids=lambda one: type(one).__name__)
def test_what_is_raised_is_one_line_and_one_code(
    error: BaseException, code: int, said: str, debug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    assert exit_code(fails, debug=debug) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(said) and len(lines[-1]) < 500
    assert (lines[0] == "Traceback (most recent call last):") is debug
    assert debug or len(lines) == 1


def test_what_steers_a_terminal_and_what_is_no_text_are_printed_as_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails() -> None:
        print("found/\udcff.parquet")
        raise InvalidInput("data", "\x1b", "named beside a\x01\x1b[31m\r\n\tb, and Müller")

    assert exit_code(fails) == 2
    said = capsys.readouterr()
    assert said.out == "found/\\udcff.parquet\n"
    allowed = r"named beside a\x01\x1b[31m\r\n\tb, and Müller"
    assert said.err == rf"error: data = '\x1b' is not allowed: {allowed}" + "\n"


@pytest.mark.parametrize("program", ["markov", "llm", "figures"])
def test_ctrl_c_while_arguments_are_read_is_one_line(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tyro.cli", interrupted)
    assert importlib.import_module(f"{program}.__main__").cli([]) == 130
    assert capsys.readouterr().err.startswith("stopped; ")


def test_a_command_that_succeeds_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_debug_is_taken_from_anywhere_among_the_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert debugged(["score", "--debug", "--model", "x"]) == (["score", "--model", "x"], True)
    assert debugged(["score"]) == (["score"], False)
    monkeypatch.setattr(sys, "argv", ["llm", "--debug"])
    assert debugged(None) == ([], True)


@pytest.mark.parametrize("program", [markov, llm, figures])
def test_every_program_shows_where_it_failed_only_if_asked(
    program: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = program.__main__  # pyright: ignore[reportAttributeAccessIssue]

    def broken(*_: object, **__: object) -> None:
        raise LookupError("lost")

    monkeypatch.setattr(main, "act" if program is llm else "main", broken)
    words = {markov: ["unlearn"], llm: ["build"], figures: []}[program]  # pyright: ignore[reportArgumentType]
    assert main.cli(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: LookupError: lost")
    assert main.cli([*words, "--debug"]) == 1
    assert "in broken\n" in capsys.readouterr().err


def test_sigterm_is_handled_only_while_a_command_is_at_work() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before
    found: list[object] = []

    def elsewhere() -> None:
        with terminable():
            found.append(signal.getsignal(signal.SIGTERM))

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert found == [before]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_one_line_and_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    words = ["unlearn", "--epochs", "1", "--width", "8", "--depth", "1", "--heads", "1", "--jobs"]
    words += ["1", "--steps", "100000", "--retain-count", "60", "--forget-count", "60"]
    own = {"PYTHONPATH": str(ROOT), "SIMNPO_LAB_CACHE": str(tmp_path / "cache")}
    started = subprocess.Popen(
        [sys.executable, "-m", "markov", *words, "--record-every", "50000"],
        cwd=tmp_path,
        env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    models = tmp_path / "cache" / "models"
    with started as process:
        try:
            for _ in range(600):  # until it unlearns
                if models.exists() and len(list(models.glob("*.safetensors"))) == 2:
                    break
                time.sleep(0.1)
            time.sleep(0.5)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == code, said
    assert said.splitlines() == ["stopped; nothing is half-written, and what was finished is kept"]
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
