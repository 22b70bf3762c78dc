"""The table of times in the book: each path as it is started, beside its products of matrices.

`make speed` writes it to figures/gallery/speed.csv, row by row, and `tests/test_speed.py` holds the
page to it. Nothing else should run meanwhile. `python -m tests.benchmarks.table run figure5` is one
of the paths itself, those for which there is no command.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import joblib
import pandas as pd

from figures.scale import Scale
from figures.theory.phase_runs import blocks
from figures.theory.phase_runs import experiments as of_block
from markov.experiments import Experiment
from markov.files.storage import atomic_path
from markov.objectives import npo
from markov.running.models import needed, train
from markov.running.run import run
from tests.benchmarks.gpu.chains import products as of_runs
from tests.benchmarks.test_markov import figure_5, matmul_rate, trivial

KEPT = Path(__file__).parents[2] / "figures" / "gallery" / "speed.csv"
CORES = 2


class Timed(NamedTuple):
    """A path that is timed: what it is, its command, what it computes, and how much of it is there.

    `experiments` are those whose products of matrices are its bound.
    `models`: whether those of an earlier row are in the cache already. `estimated`: the command
    does a part of the path, and prints in the end how many seconds the whole would take.
    """

    what: str
    command: tuple[str, ...]
    experiments: Callable[[], Sequence[Experiment]]
    models: bool = False
    estimated: bool = False


def unlearning() -> list[Experiment]:
    """Return what `python -m markov unlearn` makes."""
    return [Experiment(objective=npo(0.2))]


def phase() -> list[Experiment]:
    """Return the runs of the figure `phase`."""
    from figures.cache import Context

    return [one for block in blocks(Context(scale=Scale())) for one in of_block(*block)]


MADE = {"figure5": figure_5, "trivial": trivial}
OWN = ("python", "-m", "tests.benchmarks.table")
ROWS = (
    Timed(
        "Figure 5 of one seed, 51 evaluations of all test data", (*OWN, "run", "figure5"), figure_5
    ),
    Timed(
        "the same in the way of the released code, from its parts",
        ("python", "-m", "tests.benchmarks.released"),
        figure_5,
        estimated=True,
    ),
    Timed("one unlearning, nothing cached", ("python", "-m", "markov", "unlearn"), unlearning),
    Timed("one unlearning, models cached", ("python", "-m", "markov", "unlearn"), unlearning, True),
    Timed("1,000 trivial runs", (*OWN, "run", "trivial"), trivial),
    Timed("the figure phase, models cached", ("python", "-m", "figures", "phase"), phase, True),
)


def products(experiments: Sequence[Experiment], *, models: bool) -> float:
    """Return the floating-point operations of the linear layers, those of training `models` too."""
    trained = 0.0 if models else sum(job.cost for job in needed(experiments))
    return of_runs(experiments) + 2.0 * trained


def rate(cores: int) -> float:
    """Return the operations per second of products of matrices, on so many cores at once."""
    found = joblib.Parallel(cores)([joblib.delayed(matmul_rate)()] * cores)
    return float(sum(one for one in found if one))


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def taken(row: Timed, cache: Path, out: Path) -> tuple[float, float, float]:
    """Run a command, and return its seconds, those of all cores, and its largest process in GB.

    Of the last two nothing is known (nan) where the seconds are estimated.
    """
    command = row.command
    words = [sys.executable, *command[1:]]
    places = {"figures": str(out), "markov": str(out / "run.parquet")}
    words += ["--out", places[command[2]]] if command[2] in places else []
    environment = {**os.environ, "SIMNPO_LAB_CACHE": str(cache), "OMP_NUM_THREADS": str(CORES)}
    if row.estimated:
        said = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return float(said.stdout.split()[-1]), math.nan, math.nan
    began = time.perf_counter()
    started = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(started.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)} failed")
    seconds = time.perf_counter() - began
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main(wanted: Sequence[str], pool: Path) -> None:
    """Time the paths, or those whose names hold one of some words, and keep the others' rows.

    Trained models are gathered in `pool`, for the paths that find them there.
    """
    known = pd.read_csv(KEPT).to_dict("records") if wanted and KEPT.exists() else []
    for row in ROWS:
        if wanted and not any(word in row.what for word in wanted):
            continue
        known = [one for one in known if one["what"] != row.what]
        with tempfile.TemporaryDirectory() as folder:
            cache, out = Path(folder) / "cache", Path(folder) / "out"
            if row.models:
                train_one = joblib.delayed(train)
                jobs = needed(row.experiments())
                joblib.Parallel(CORES)(train_one(pool, job, progress=False) for job in jobs)
                shutil.copytree(pool, cache / "models")
            speed = rate(CORES)
            seconds, busy, memory = taken(row, cache, out)
            if (cache / "models").exists():
                shutil.copytree(cache / "models", pool, dirs_exist_ok=True)
        bound = products(row.experiments(), models=row.models) / speed
        known.append(
            {
                "what": row.what,
                "command": " ".join(row.command),
                "seconds": round(seconds, 1),
                "of_all_cores": round(busy, 1),
                "bound": round(bound, 1),
                "ratio": round(bound / seconds, 2),
                "memory_gb": round(memory, 2),
                "gflops": round(speed / 1e9),
                "machine": f"{CORES} cores, {processor()}",
            }
        )
        print(known[-1], flush=True)
        order = {one.what: place for place, one in enumerate(ROWS)}
        frame = pd.DataFrame(known).sort_values("what", key=lambda names: names.map(order))
        with atomic_path(KEPT) as partial:
            frame.to_csv(partial, index=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(MADE[sys.argv[2]](), n_jobs=CORES, progress=False)
    else:
        with tempfile.TemporaryDirectory() as place:
            main(sys.argv[1:], Path(place) / "models")
