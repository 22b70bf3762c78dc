"""`python -m llm score` says where there is nothing to forget."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from llm.__main__ import cli
from llm.diagnostics.scores import UNREAD, unread_note


@pytest.mark.parametrize(("nats", "noted"), [(0.009, False), (0.99, False), (2.2, True)])
def test_responses_look_unread_where_they_cost_over_a_nat_per_token(nats: float, noted: bool):
    length = [1, 50]  # the mean is over responses, of each its mean over tokens
    scores = pd.DataFrame({"index": [0, 1], "logp": [-nats, -nats * 50], "length": length})
    found = unread_note(scores)
    assert bool(found) == noted == (nats > UNREAD)
    assert not noted or "2.20 nats per token" in found


def test_score_notes_what_a_model_has_never_read(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    data = ["--data", str(place / "forget10.json"), "--device", "cpu", "--out", str(out)]
    assert cli(["score", "--model", str(place / "retrained"), *data]) == 0
    shown = capsys.readouterr()
    assert "note: the responses look unread" in shown.err and "unread" not in shown.out
    assert shown.err.splitlines()[-1].endswith(unread_note(pd.read_parquet(out)))
