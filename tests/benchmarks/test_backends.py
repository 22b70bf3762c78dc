"""What loky and dask add to a thousand trivial partitions, beside one process: `make benchmark`."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from markov.running.backends import BackendOptions, together, workers

COUNT, WORKERS = 1000, 2
BOUNDS = {"loky": 5.0, "dask": 10.0}  # ms per partition


def keep(folder: Path, number: int) -> int:
    """Leave a small result in a folder, as a share does, and return its key."""
    (folder / f"{number}").write_bytes(b"0" * 100)
    return number


@pytest.mark.parametrize("backend", list(BOUNDS))
def test_trivial_partitions(benchmark: BenchmarkFixture, tmp_path: Path, backend: str) -> None:
    """A partition writes a hundred bytes; the workers are there before, and have done some."""
    if backend == "dask":
        pytest.importorskip("distributed", reason="dask is not installed")
    tasks = [partial(keep, tmp_path, number) for number in range(COUNT)]
    began = time.perf_counter()
    together(tasks, 1, False, "")
    alone = time.perf_counter() - began
    asked = BackendOptions(backend=backend)  # pyright: ignore[reportArgumentType]
    began = time.perf_counter()
    with workers(asked, WORKERS, [], "markov"):
        together(tasks[: 2 * WORKERS], WORKERS, False, "")
        start = time.perf_counter() - began
        found = benchmark.pedantic(lambda: together(tasks, WORKERS, False, ""), rounds=3)
    assert found == list(range(COUNT)) and len(list(tmp_path.iterdir())) == COUNT
    if benchmark.stats:  # not where benchmarks are switched off
        added = (benchmark.stats["mean"] - alone) * 1000 / COUNT
        load = os.getloadavg()[0]
        print(
            f"\n    {backend}: {added:.2f} ms added per partition beside one process, which takes "
            f"{alone * 1000 / COUNT:.2f} ms; bound {BOUNDS[backend]:.0f} ms; {start:.1f} s to "
            f"begin with {WORKERS} workers; load of the machine {load:.1f}"
        )
        assert added < BOUNDS[backend]
