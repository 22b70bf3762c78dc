"""Freed memory that is kept: a process of small arrays meets fewer fresh pages, and no number
changes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

WORK = """
import resource, sys
import torch
from llm.training.memory import keep_what_is_freed
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_what_is_freed()
own = torch.Generator().manual_seed(0)
weight, total = torch.randn(1024, 1024, generator=own), 0.0
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    parts = [weight * 0.5 for _ in range(6)]
    total += float(sum(parts).sum())
    del parts
print(total.hex(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep memory otherwise")
def test_kept_memory_spares_fresh_pages_and_changes_no_number() -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = {}
    for way in ("given back", "kept"):
        command = [sys.executable, "-c", WORK, way]
        done = subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True, check=True
        )
        found[way] = done.stdout.split()
    assert found["kept"][0] == found["given back"][0]
    assert int(found["kept"][1]) < int(found["given back"][1]) / 2
