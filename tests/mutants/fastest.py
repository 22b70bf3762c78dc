"""A plugin of pytest: the fastest tests first, so that a mutant is killed as soon as can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TIMES = "mutmut-stats.json"  # what mutmut has measured, in the folder in which it runs tests


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by the seconds that they took, once these are known."""
    if (file := Path(TIMES)).is_file():
        seconds = json.loads(file.read_text("utf-8"))["duration_by_test"]
        items.sort(key=lambda one: seconds.get(one.nodeid, 0.0))
