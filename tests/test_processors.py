"""Frames of every rung, in the arithmetic of several processors, agree within stated tolerances.

Each setting takes a process of its own, since the libraries read it once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from figures.scale import quick_scale
from figures.theory.rungs import forget_mixture, tabular_flow
from markov.diagnostics import crossings
from markov.experiments import grid
from markov.flow import kl_to_truth, logp_per_token
from markov.flow import time_to_forget as flow_time
from markov.logistic import Descent, LogisticWorld
from markov.logistic import run as run_logistic
from markov.objectives import CORNERS, Objective, npo, simnpo
from markov.running.run import run
from markov.sweeps import ComponentSweep
from markov.theory import theta, time_to_forget

# What each library may use of the processor; the second setting also has two threads.
OLDEST = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
}
AVX2 = {
    "MKL_CBWR": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OMP_NUM_THREADS": "2",
}
SETTINGS = {"own": {}, "oldest": OLDEST, "avx2": AVX2}
# The largest difference allowed, relative to the largest number of the column. What is computed in
# float64 without training, or by descent on a convex loss, differed by 1e-14 at most. Training in
# float32 amplifies rounding step by step: the differences were below 2e-6 for chains and below 6e-6
# for a language model. The rest of each tolerance is room for processors that were not tried.
# Longer runs (the paper's settings) amplify more; these tolerances are those of quick scale.
EXACT, TRAINED = 1e-10, 1e-4
TOLERANCES = {
    "scalar": EXACT,
    "tabular": EXACT,
    "logistic": EXACT,
    "chains": TRAINED,
    "crossed": TRAINED,
    "language": TRAINED,
}
# Shares and verdicts: not near, but the same.
SAME = ("risen", "reached", "status")


def scalar() -> pd.DataFrame:
    """The closed forms, for every corner, length and time."""
    rows = []
    for corner, place in CORNERS.items():
        law = Objective(0.2, 0.0, *place)
        for length in (1, 5, 20, 80):
            time = np.geomspace(1e-3, 1e4, 20)
            known = {
                "corner": corner,
                "length": length,
                "forget": float(time_to_forget(law, length, 0.5)),
            }
            rows.append(
                pd.DataFrame({"time": time, "theta": theta(law, length, time)}).assign(**known)
            )
    return pd.concat(rows, ignore_index=True)


def tabular() -> pd.DataFrame:
    """The gradient flow of a table at quick scale."""
    case, rows = quick_scale().sweep().case, []
    assert isinstance(case, ComponentSweep)
    for law in (npo(0.1), simnpo(2.0)):
        flow = tabular_flow(case, law, seed=0, horizon=30.0)
        logp, kl = (
            logp_per_token(flow.loss.bank, flow.tables),
            kl_to_truth(flow.tables, forget_mixture(case)),
        )
        for component, forgotten in enumerate(flow_time(flow, 0.5)):
            known = {"beta": law.beta, "component": component, "forget": forgotten}
            own = {
                "time": flow.times,
                "logp_per_token": logp[:, component],
                "kl_to_truth": kl[:, component],
            }
            rows.append(pd.DataFrame(own).assign(**known))
    return pd.concat(rows, ignore_index=True)


def logistic() -> pd.DataFrame:
    """The logistic study, smaller than at quick scale."""
    looks = {"learning_rate": 0.05, "recorded": (0, 1, 10, 100, 300)}
    runs = [
        Descent(objective=law, retain_weight=kept, **looks)
        for law in (npo(2.0), simnpo(2.0))
        for kept in (0, 1)
    ]
    return run_logistic([LogisticWorld(alpha=alpha, steps=300) for alpha in (0.0, 1.0)], runs)


@cache
def chains() -> pd.DataFrame:
    """Two methods on the case of two lengths, at quick scale: pretraining, then fifty steps."""
    scale = quick_scale()
    base = replace(scale.experiment(), case=scale.cases()["length"])
    return run(grid(base, objective=[npo(0.2), simnpo(4.0)], seed=[0, 1]), progress=False)


def crossed() -> pd.DataFrame:
    """When the same runs reach their goals, and what that costs."""
    return crossings(chains())


def language() -> pd.DataFrame:
    """A tiny Llama that learns a few sequences, then unlearns some of them."""
    from tests.llm.unlearning.test_unlearning import llama, with_
    from tests.llm.unlearning.test_unlearning import run as unlearnt

    found = unlearnt(llama(), with_(epochs=4))
    return found.examples.merge(found.epochs, on="epoch")


FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    one.__name__: one for one in (scalar, tabular, logistic, chains, crossed, language)
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], pd.DataFrame]:
    """Every frame under every setting."""
    found = {}
    for setting, variables in SETTINGS.items():
        folder = tmp_path_factory.mktemp(setting)
        surroundings = os.environ | {"SIMNPO_LAB_CACHE": str(folder / "cache")} | variables
        command = [sys.executable, "-m", "tests.test_processors", str(folder)]
        subprocess.run(command, check=True, env=surroundings, cwd=Path(__file__).parents[1])
        found |= {(setting, name): pd.read_parquet(folder / f"{name}.parquet") for name in FRAMES}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "own"])
@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_is_the_same_on_another_processor(
    frames: dict[tuple[str, str], pd.DataFrame], name: str, setting: str
):
    own, other = frames["own", name], frames[setting, name]
    assert list(own.columns) == list(other.columns) and len(own) == len(other) > 0
    for column in own:
        if own[column].dtype.kind != "f" or column in SAME:
            pd.testing.assert_series_equal(own[column], other[column], check_exact=True)
            continue
        known = own[column].to_numpy()
        scale = np.abs(known[np.isfinite(known)]).max(initial=0.0)
        bound = TOLERANCES[name] * float(scale)
        np.testing.assert_allclose(
            other[column], known, rtol=0, atol=bound, err_msg=f"{name}, {column}, {setting}"
        )


@pytest.mark.slow
def test_the_settings_are_heeded(frames: dict[tuple[str, str], pd.DataFrame]):
    """Else the frames would agree because nothing was changed: their last digits differ."""
    names = [name for name in SETTINGS if name != "own"]
    for name in ("logistic", "chains", "language"):
        assert any(not frames["own", name].equals(frames[setting, name]) for setting in names), name


def write(folder: Path) -> None:
    """All frames, as the libraries were told to compute when they were loaded."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for name, make in FRAMES.items():
        make().to_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
