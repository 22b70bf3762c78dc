"""How far a long job is: what the lines tell, when they come, and where there is a bar instead."""

from __future__ import annotations

import io
import itertools
import re
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import joblib
import pytest
from tqdm import tqdm

from figures import progress as figures_progress
from llm.sweeps.parallel import several
from markov.__main__ import cli
from markov.console import progress
from markov.console.progress import Count, Outermost, Report, bar, lines


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that stands still until it is moved, in minutes."""

    def __init__(self) -> None:
        self.minutes = 0.0

    def __call__(self) -> float:
        return 60 * self.minutes


def test_a_line_tells_what_was_done_since_when_and_how_long_the_rest_takes() -> None:
    clock = Clock()
    report = Report(clock)
    with Count(report, 400, "unlearn", "update", 0) as count:
        assert report.line() == "unlearn: 0 of 400 updates"
        count.update(120)
        clock.minutes = 3
        assert report.line() == "unlearn: 120 of 400 updates, 3 min, about 7 min left"
        count.update(280)
        count.set_description("unlearned")
        clock.minutes = 10
        assert report.line() == "unlearned: 400 of 400 updates, 10 min"


def test_what_was_done_by_an_earlier_call_says_nothing_of_the_pace() -> None:
    clock = Clock()
    report = Report(clock)
    with Count(report, 400, "unlearn", "", 300) as count:
        clock.minutes = 2
        assert report.line() == "unlearn: 300 of 400, 2 min"
        count.update(50)
        assert report.line() == "unlearn: 350 of 400, 2 min, about 2 min left"


def test_a_line_tells_of_all_open_bars_from_the_outermost() -> None:
    clock = Clock()
    report = Report(clock)
    assert report.line() == "at work for 0 min"
    with Count(report, 2, "pretraining", "", 0):
        clock.minutes = 5
        with Count(report, 10, "retain", "step", 0) as inner:
            inner.update(5)
            clock.minutes = 6
            assert report.line() == (
                "pretraining: 0 of 2, 6 min; retain: 5 of 10 steps, 1 min, about 60 s left"
            )
        assert report.line() == "pretraining: 0 of 2, 6 min"
    assert report.line() == "at work for 6 min"
    assert Report(clock, lambda: "figure 1 of 2").line() == "figure 1 of 2"


def until(stream: io.StringIO, count: int) -> None:
    """Wait until so many lines were printed."""
    end = time.monotonic() + 30
    while stream.getvalue().count("\n") < count and time.monotonic() < end:
        time.sleep(0.01)


def test_lines_come_while_the_work_itself_tells_nothing() -> None:
    stream, clock = io.StringIO(), itertools.count(0, 60)
    with lines(file=stream, clock=lambda: next(clock), every=0.02):
        with bar(3, "baselines") as done:
            done.update()
            until(stream, 2)
        until(stream, stream.getvalue().count("\n") + 2)
    said = stream.getvalue().splitlines()
    assert re.fullmatch(r"baselines: 1 of 3, \d+ min, about \d+ min left", said[0]), said
    assert re.fullmatch(r"at work for \d+ min", said[-1]), said
    time.sleep(0.1)
    assert stream.getvalue().splitlines() == said  # none comes after the end


def test_nothing_is_printed_within_a_minute_and_no_bar_is_drawn() -> None:
    stream = io.StringIO()
    assert progress.MINUTE == 60
    with lines(file=stream), bar(3, "score", unit="token") as done:
        done.update()
        done.set_postfix(loss="0.1", refresh=False)
        assert isinstance(done, Count) and done.n == 1
        assert isinstance(bar(3, "score", show=False), tqdm)
    assert stream.getvalue() == ""


def test_on_a_terminal_and_outside_of_a_command_bars_are_those_of_tqdm() -> None:
    stream = Terminal()
    with lines(file=stream, every=0.01):
        assert isinstance(bar(3, "score", file=stream), tqdm)
        with bar(3, "score", unit="token", file=stream) as done:
            done.update()
    assert "score" in stream.getvalue() and "at work" not in stream.getvalue()
    with bar(3, "score", file=stream) as done:
        assert isinstance(done, tqdm) and not done.disable
    with bar(3, "score", show=False, file=stream) as done:
        assert isinstance(done, tqdm) and done.disable


def test_off_a_terminal_a_script_has_a_line_from_each_minute_of_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    with bar(3, "score", file=stream) as done:  # less than a minute
        assert isinstance(done, Outermost)
    monkeypatch.setattr(progress, "MINUTE", 0.02)
    with bar(2, "evaluate", unit="set", file=stream), bar(9, "score", unit="token") as inner:
        inner.update(3)
        until(stream, 2)
    said = stream.getvalue().splitlines()
    assert len(said) >= 2 and said[0].startswith("evaluate: 0 of 2 sets"), said
    assert "; score: 3 of 9 tokens" in said[0]
    time.sleep(0.1)
    assert stream.getvalue().splitlines() == said  # none comes after the end
    assert progress.REPORT.get() is None
    with bar(3, "score"):
        time.sleep(0.1)
    with bar(3, "score", show=False):
        time.sleep(0.1)
    assert "score: 0 of 3" in capsys.readouterr().err


def test_what_is_not_to_be_shown_is_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.01)
    with bar(3, "score", show=False) as done:
        time.sleep(0.05)
        done.update()
    assert capfd.readouterr() == ("", "")


class Kernel:
    """What IPython is in a notebook, and what was shown there by each of its places."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self.shown = object(), list[list[dict[str, str]]]()
        display = ModuleType("IPython.display")
        monkeypatch.setattr(display, "DisplayHandle", partial(Place, self.shown), raising=False)
        ipython = ModuleType("IPython")
        monkeypatch.setattr(ipython, "get_ipython", lambda: self, raising=False)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)


class Place:
    """A place beneath a cell, whose contents are replaced."""

    def __init__(self, shown: list[list[dict[str, str]]]) -> None:
        self.shown, self.own = shown, list[dict[str, str]]()

    def display(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw and not self.own
        self.shown.append(self.own)
        self.own.append(data)

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.own.append(data)


def test_a_notebook_shows_one_bar_and_a_line_for_all_and_in_the_end_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = Kernel(monkeypatch)
    monkeypatch.setattr(progress, "SECOND", 0.02)
    with bar(4, "evaluate", unit="set") as outer, bar(9, "<write>", unit="answer") as inner:
        outer.update()
        inner.update(3)
        end = time.monotonic() + 30
        while (not kernel.shown or len(kernel.shown[0]) < 2) and time.monotonic() < end:
            time.sleep(0.01)
    (place,) = kernel.shown
    text, drawn = place[1]["text/plain"], place[1]["text/html"]
    assert re.fullmatch(r"evaluate: 1 of 4 sets, about \d+ s left; <write>: 3 of 9.*", text), text
    assert drawn.startswith('<progress value="0.250"></progress> evaluate: 1 of 4 sets')
    assert "&lt;write&gt;" in drawn
    assert re.fullmatch(r"evaluate: 1 of 4 sets in \d+ s", place[-1]["text/plain"])
    assert "progress" not in place[-1]["text/html"]
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_nothing_of_what_takes_less_than_a_second_or_is_not_to_be_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel(monkeypatch)
    with bar(4, "score") as done:
        done.update()
    monkeypatch.setattr(progress, "SECOND", 0.01)
    with bar(4, "score", show=False):
        time.sleep(0.05)
    assert kernel.shown == []


def test_a_job_that_is_stopped_leaves_beneath_its_cell_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Kernel(monkeypatch)
    monkeypatch.setattr(progress, "SECOND", 0.01)
    with pytest.raises(KeyboardInterrupt), bar(0, "score"):
        end = time.monotonic() + 30
        while not kernel.shown and time.monotonic() < end:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert re.fullmatch(r"score: 0 of 0 in \d+ s", kernel.shown[0][-1]["text/plain"])
    assert progress.REPORT.get() is None


def test_a_real_kernel_shows_the_bar_beneath_the_cell_that_it_belongs_to() -> None:
    nbformat = pytest.importorskip("nbformat", reason="the notebooks' packages are missing")
    nbclient = pytest.importorskip("nbclient", reason="the notebooks' packages are missing")
    code = """
import time
from markov.console import progress
progress.SECOND = 0.05
with progress.bar(4, "unlearn", unit="update") as done:
    done.update(4)
    time.sleep(1)
"""
    cells = [nbformat.v4.new_code_cell(source) for source in (code, "1 + 1")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (shown,), (result,) = (cell.outputs for cell in notebook.cells)
    assert re.fullmatch(r"unlearn: 4 of 4 updates in \d+ s", shown.data["text/plain"])
    assert result.data["text/plain"] == "2"


def test_a_stream_that_is_closed_does_not_end_the_work() -> None:
    stream = io.StringIO()
    with lines(file=stream, every=0.01):
        stream.close()
        time.sleep(0.1)
    assert progress.REPORT.get() is None


def test_an_error_of_the_work_passes_and_ends_the_lines() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), lines(file=stream, every=3600), bar(2, "work"):
        raise KeyboardInterrupt
    assert progress.REPORT.get() is None


def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The line after every update of any bar of a command, collected in a list."""
    said: list[str] = []
    update = Count.update

    def noted(self: Count, n: int = 1) -> None:
        update(self, n)
        said.append(self.report.line())

    monkeypatch.setattr(Count, "update", noted)
    return said


def test_the_markov_command_counts_models_and_runs_and_the_steps_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    said = told(monkeypatch)
    sizes = {"--retain-count": 40, "--forget-count": 20, "--epochs": 1, "--steps": 2}
    small = [*map(str, itertools.chain(*sizes.items())), "--width", "8", "--depth", "1"]
    assert cli(["unlearn", *small, "--out", str(tmp_path / "run.parquet")]) == 0
    first = r"pretraining and unlearning: 0 of 3; retain.*: \d+ of \d+ steps"
    assert any(re.match(first, line) for line in said), said
    last = r"pretraining and unlearning: 2 of 3.*; 1 runs: 2 of 2 steps"
    assert any(re.match(last, line) for line in said), said
    assert said[-1].startswith("pretraining and unlearning: 3 of 3")
    assert capsys.readouterr().err == ""


def test_several_long_calls_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = told(monkeypatch)
    with lines(file=io.StringIO()):
        several("models", [joblib.delayed(abs)(one) for one in (1, 2)], n_jobs=1)
    assert [line.partition(",")[0] for line in said] == ["models: 1 of 2", "models: 2 of 2"]


def test_figures_say_which_of_them_the_work_is_for() -> None:
    stream, expected = io.StringIO(), {"a": figures_progress.Expected(600, cached=False)}
    with figures_progress.display(expected, file=stream, every=0.02) as shown:
        shown.start("a")
        with bar(3, "unlearning") as done:
            done.update()
            until(stream, 1)
    assert stream.getvalue().startswith("figure 1 of 1: a, about 10 min left; unlearning: 1 of 3")
