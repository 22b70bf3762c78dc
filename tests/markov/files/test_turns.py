"""Turns: of several processes that do one job at one place, one works and the others wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from markov.errors import InvalidInput
from markov.files import folders
from markov.files.turns import turn
from tests.test_architecture import ROOT

HOLDING = """
import sys, time
from markov.files.turns import turn
with turn(sys.argv[1], "learn"):
    print("there", flush=True)
    time.sleep(300)
"""


@contextmanager
def held(place: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process whose turn it is."""
    words = [sys.executable, "-c", HOLDING, str(place)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_turn_of_a_process_that_is_killed_goes_to_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(tmp_path) as process:
        killer = threading.Timer(0.3, process.send_signal, (signal.SIGKILL,))
        killer.start()
        with turn(tmp_path, "learn", note=True):
            assert process.wait() == -signal.SIGKILL
    said = f"note: waiting for another process that works on {tmp_path}\n"
    assert capsys.readouterr() == ("", said)


def test_other_jobs_and_places_are_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "same").symlink_to(tmp_path)
    with held(tmp_path) as process:
        for place, job in ((tmp_path, "other"), (tmp_path, ""), (tmp_path / "x", "learn")):
            with turn(place, job, note=True):
                assert process.poll() is None
        assert capsys.readouterr() == ("", "")
        threading.Timer(0.3, process.kill).start()
        by_another_name = tmp_path / "same" / "." / "same"
        with turn(by_another_name, "learn", note=True):
            assert process.wait() == -signal.SIGKILL
    assert capsys.readouterr().err


def test_nothing_is_left_in_the_place(tmp_path: Path) -> None:
    with turn(tmp_path / "x", "learn"):
        pass
    assert list(tmp_path.iterdir()) == []


def both_at_once(folder: Path, first_ends: Exception | None) -> list[str]:
    """What two threads see that work in one folder: how one ended, and what the other found."""
    seen, inside = [], threading.Event()

    def first() -> None:
        try:
            with folders.working(folder, "learn", {"of": 1}, names=("table",)):
                inside.set()
                waiting.wait()
                if first_ends is not None:
                    raise first_ends
                (folder / "table").write_text("done")
                seen.append("made")
        except InvalidInput:
            seen.append("refused")

    waiting = threading.Event()
    one = threading.Thread(target=first)
    one.start()
    assert inside.wait(30)
    threading.Timer(0.2, waiting.set).start()
    with folders.working(folder, "learn", {"of": 1}, names=("table",)):
        seen.append("found" if (folder / "table").exists() else "nothing there")
        assert folders.claimed(folder, "learn")
    one.join()
    return seen


def test_who_waited_finds_what_the_other_made(tmp_path: Path) -> None:
    assert both_at_once(tmp_path / "out", None) == ["made", "found"]


def test_who_waited_claims_again_what_the_other_gave_back(tmp_path: Path) -> None:
    refusal = InvalidInput("model", "x", "one that can be scored")
    assert both_at_once(tmp_path / "out", refusal) == ["refused", "nothing there"]


def test_a_job_of_other_settings_is_refused_at_once(tmp_path: Path) -> None:
    def other() -> None:
        with folders.working(tmp_path / "out", "learn", {"of": 2}, names=("table",)):
            raise AssertionError("it has no place here")

    with folders.working(tmp_path / "out", "learn", {"of": 1}, names=("table",)):
        (tmp_path / "out" / "table").write_text("begun")
        with pytest.raises(InvalidInput, match="its of is 1, not 2"):
            other()
