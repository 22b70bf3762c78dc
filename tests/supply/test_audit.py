"""The audit of the pins: what is affected fails, what is not passes, a broken list is a line."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supply.audit import (
    ADVISORIES,
    COLUMNS,
    CONSTRAINTS,
    OLD,
    ROOT,
    Malformed,
    main,
    read_advisories,
    read_pins,
)

DAY = datetime.date(2026, 3, 4)
HEAD = f"# as of {DAY}: what is known\n{','.join(COLUMNS)}\n"
ROW = 'tool,">=1.0,<1.5",CVE-2026-12345 GHSA-abcd-1234-ef56,1.5,it runs what it reads,a record,'


def audited(tmp_path: Path, pins: str, *rows: str, head: str = HEAD, age: int = 0) -> int:
    (tmp_path / "pins.txt").write_text(pins)
    (tmp_path / "list.csv").write_text(head + "".join(f"{row}\n" for row in rows))
    places = [str(tmp_path / name) for name in ("pins.txt", "list.csv")]
    return main(places, DAY + datetime.timedelta(days=age))


@pytest.mark.parametrize("version", ["1.0", "1.4.9", "1.2rc1", "1.2.post1"])
def test_a_pin_that_is_affected_is_one_line_and_fails(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, f"# pins\nother==1.2\ntool=={version}\n", ROW) == 1
    said = capsys.readouterr().err
    assert said == (
        f"tool=={version}: CVE-2026-12345 GHSA-abcd-1234-ef56, it runs what it reads "
        "(fixed in 1.5)\n"
    )


@pytest.mark.parametrize("version", ["0.9", "1.5", "1.10", "2.0"])
def test_a_pin_outside_the_range_passes_and_the_age_of_the_list_is_told(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, f"tool=={version}\n", ROW, age=12) == 0
    said = capsys.readouterr()
    assert said.out == f"1 pins, 1 advisories known 12 days ago, {DAY}\n" and not said.err


def test_an_old_list_says_that_it_is_time_to_look_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, "tool==2.0\n", ROW, age=OLD + 1) == 0
    assert "time to look for more" in capsys.readouterr().out


def test_an_accepted_fault_is_told_with_its_reason_and_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, "tool==1.2\n", f"{ROW}nothing is read") == 0
    assert "accepted: tool==1.2: CVE-2026-12345" in (said := capsys.readouterr().out)
    assert "nothing is read" in said


@pytest.mark.parametrize("pins", ["tool==1.5\n", "other==1.2\n"])
def test_a_reason_that_no_pin_needs_any_longer_fails(
    pins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, pins, f"{ROW}nothing is read") == 1
    assert "is accepted, and no pin is affected" in capsys.readouterr().err


BROKEN = {
    "no date": ("package\n", ROW, "line 1: a comment with the date"),
    "impossible date": (HEAD.replace("2026-03-04", "2026-13-04"), ROW, "2026-13-04 is no date"),
    "other columns": (HEAD.replace("fixed", "mended"), ROW, "line 2: the columns"),
    "a field short": (HEAD, ROW.removesuffix(","), "line 3: 6 fields"),
    "no range": (HEAD, ROW.replace(">=1.0,<1.5", ""), "line 3: affected"),
    "an odd range": (HEAD, ROW.replace("<1.5", "below 1.5"), "line 3: Invalid specifier"),
    "an odd version": (HEAD, ROW.replace(",1.5,", ",soon,"), "line 3: Invalid version"),
    "a fix inside": (HEAD, ROW.replace(",1.5,", ",1.4,"), "line 3: 1.4 is said to be fixed"),
    "an odd name": (HEAD, ROW.replace("tool", "My_Tool"), "line 3: 'My_Tool' is not written"),
    "an identifier": (HEAD, ROW.replace("CVE-2026-12345", "CVE-26"), "line 3: 'CVE-26' is no CVE"),
    "no summary": (HEAD, ROW.replace("it runs what it reads", " "), "line 3: affected, summary"),
    "open quotes": (HEAD, ROW.replace('<1.5"', "<1.5"), "line"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_list_that_cannot_be_read_is_one_clear_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, row, expected = BROKEN[name]
    assert audited(tmp_path, "tool==2.0\n", row, head=head) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "list.csv" in said and expected in said


@pytest.mark.parametrize("line", ["tool", "tool>=1", "tool==1,<2", "tool==1.*", "== 1"])
def test_a_line_that_is_no_pin_is_named(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audited(tmp_path, f"other==1\n{line}\n", ROW) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pins.txt, line 2" in said and "is no pin" in said


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/nowhere/pins.txt"]) == 2
    assert capsys.readouterr().err == "/nowhere/pins.txt: No such file or directory\n"
    with pytest.raises(Malformed, match="No such file"):
        read_advisories(Path("/nowhere/list.csv"))


def test_the_pins_of_this_project_pass_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.supply.audit"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "advisories known" in done.stdout


def test_the_list_is_about_packages_that_are_pinned_and_looked_at_not_long_ago() -> None:
    known, pins = read_advisories(ADVISORIES), read_pins(CONSTRAINTS)
    assert {one.package for one in known.advisories} <= pins.keys()
    assert known.day >= datetime.date(2026, 11, 29) and len(known.advisories) >= 50
    # A fault may have several ranges; none is written twice.
    told = [(one.identifiers, str(one.affected)) for one in known.advisories]
    assert len(told) == len(set(told))
    accepted = [one for one in known.advisories if one.accepted]
    assert all(len(one.accepted) > 20 for one in accepted)
