"""Two processes that do the same work at once: the first to finish takes the parts away, and the
other one finishes all the same.
"""

from __future__ import annotations

import os
import shutil  # noqa: F401  (looked up by its name)
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from markov.cases import LENGTH
from markov.experiments import Experiment, Pretraining
from markov.files import leftovers, storage
from markov.models import Tabular
from markov.running import run as running

ONE = Experiment(
    case=replace(LENGTH, retain_count=20, forget1_count=10, forget2_count=10),
    model=Tabular(),
    pretraining=Pretraining(epochs=1),
    steps=2,
)


@pytest.mark.parametrize("moment", ["while it is made", "while it is written", "when it is there"])
def test_parts_that_another_process_discards_are_found_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts, cache, taken = tmp_path / "parts", tmp_path / "models", list[str]()
    expected = running.run([ONE], cache=cache, progress=False)
    write, table, replace_file = storage.write_table, running._table, os.replace

    def discard(*_: object) -> None:
        taken.append(moment)
        leftovers.discard(parts)

    def made(*arguments: Any) -> pd.DataFrame:
        found = table(*arguments)
        parts.mkdir(exist_ok=True)
        if moment == "while it is made":
            discard()
        return found

    def replaced(partial: Path, target: Path) -> None:
        if moment == "while it is written" and len(taken) < 2:
            discard()
        replace_file(partial, target)

    def written(*arguments: Any) -> None:
        write(*arguments)
        if moment == "when it is there":
            discard()

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(running, "_table", made)
    monkeypatch.setattr(storage, "write_table", written)
    found = running.run([ONE], cache=cache, progress=False, parts=parts)
    assert taken
    pd.testing.assert_frame_equal(found, expected)


def test_a_file_is_written_again_five_times_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tried, replace_file = tmp_path / "parts", list[Path](), os.replace

    def taken_away(partial: Path, target: Path) -> None:
        tried.append(target)
        leftovers.discard(folder)
        replace_file(partial, target)

    monkeypatch.setattr(os, "replace", taken_away)
    with pytest.raises(FileNotFoundError):
        storage.write_table(pd.DataFrame({"x": [1]}), folder / "part.parquet", {})
    assert len(tried) == leftovers.TRIALS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["os.rename", "shutil.rmtree"])
def test_what_is_interrupted_while_it_is_discarded_is_gone_all_the_same(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = call.split(".")
    own: Any = getattr(sys.modules[module], name)

    def interrupted(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(call, own)  # once
        if call == "os.rename":
            own(*arguments)
        raise KeyboardInterrupt

    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "file").write_text("x")
    monkeypatch.setattr(call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        leftovers.discard(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []
