"""What would take more than a month, however well it is done, is refused before any work, with the
number that would fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from markov.__main__ import cli
from markov.console import duration
from markov.console.duration import Part, check_ends, products_a_second
from markov.errors import InvalidInput
from markov.experiments import Experiment, Pretraining
from markov.models import Transformer
from markov.running.run import run, trajectory

RATE = 10**9  # products a second of the core of this file


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A core that makes so few products that anything takes more than the longest time."""
    monkeypatch.setattr(duration, "products_a_second", lambda _: 1.0)
    monkeypatch.setattr(duration, "LITTLE", 0.0)
    yield


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(duration, "products_a_second", lambda _: float(RATE))
    yield


@given(
    number=st.integers(2, 10**5),
    one=st.floats(1e12, 1e17),
    other=st.floats(0.0, 2e15),
    cores=st.integers(1, 64),
)
def test_the_number_that_is_named_is_the_largest_that_fits(
    number: int, one: float, other: float, cores: int
) -> None:
    def parts(steps: int) -> dict[str, Part]:
        return {"epochs": Part(3, other), "steps": Part(steps, one * steps)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duration, "products_a_second", lambda _: float(RATE))
        try:
            check_ends(parts(number), cores=cores)
        except InvalidInput as error:
            assert (error.field, error.value) == ("steps", number)
            assert one * number + other > duration.LONGEST * RATE * cores
            found = re.match(r"at most (\d+), since at least \d+ days are needed", error.allowed)
            if found is None:
                assert error.allowed.startswith("1, and less of other settings too")
                assert other + one > duration.LONGEST * RATE * cores * (1 - 1e-9)
                return
            most = int(found[1])
            assert most < number
            # but for rounding, which may decide where one more would just fit
            assert one * most + other <= duration.LONGEST * RATE * cores * (1 + 1e-9)
            assert one * (most + 1) + other >= duration.LONGEST * RATE * cores * (1 - 1e-9)
        else:
            assert one * number + other <= duration.LONGEST * RATE * cores


def test_what_is_named_is_in_proportion_to_most_of_the_work(known: None) -> None:
    with pytest.raises(
        InvalidInput, match=r"^epochs = 7 is not allowed: at most 4, since at least"
    ):
        check_ends({"epochs": Part(7, 3.5e15), "steps": Part(9, 1e14)}, cores=1)


def test_how_fast_a_core_is_lies_between_what_any_has() -> None:
    threads = torch.get_num_threads()
    assert 1e8 < products_a_second() < 1e13
    assert torch.get_num_threads() == threads
    with pytest.raises(InvalidInput, match="at most"):  # of any machine, years
        check_ends({"steps": Part(10**5, 1e21)})
    check_ends({"steps": Part(10**5, 1e12)})


@pytest.mark.parametrize("field", ["steps", "epochs"])
def test_experiments_that_would_not_end_are_not_begun(
    slow: None, tmp_path: Path, field: str
) -> None:
    short = Experiment(steps=2, model=Transformer(width=8, depth=1, heads=1, mlp_width=8))
    passes = 1 if field == "steps" else 10**4
    more = {"steps": 10**5} if field == "steps" else {}
    one = replace(short, pretraining=Pretraining(epochs=passes), recorded=(0,), **more)
    with pytest.raises(InvalidInput, match=f"^{field} = "):
        run([one], cache=tmp_path / "cache", progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    if field == "steps":
        with pytest.raises(InvalidInput, match=r"^steps = "):
            trajectory([one], cache=tmp_path / "cache", progress=False)


def test_a_command_says_so_in_a_line(
    slow: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.parquet"
    words = "--steps 100000 --record-every 100000 --epochs 1 --width 8 --depth 1 --heads 1"
    assert cli(["unlearn", *words.split(), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.match(r"error: (steps|epochs) = \d+ is not allowed: (at most \d+|1, and less)", line)
    assert not out.exists()
