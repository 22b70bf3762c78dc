"""The conditions under which every test runs: one thread, one seed of examples, its own cache,
and no network.
"""

from __future__ import annotations

import os

# Read when torch is first imported, so set before anything can do that. Workers share the cores,
# one thread each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

import signal
import socket
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples at every run, so that a failure is the change's fault; one other profile goes
# looking for new ones, and one has few, for what rounding decides, which shows in any. No deadline:
# how long an example takes says more about the machine than about the code.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("few", settings.get_profile("default"), max_examples=25)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# A shell that starts tests in the background has them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Modules that take longest, begun first: so that at the end no worker is left with one of them
# while the others are idle.
LONGEST = (
    *("book", "default_models", "ranks", "parts", "study_figure", "kills", "llm_attack_figures"),
    *("llm_sweep_figures", "sweep_figures", "backends", "llm_run_figures", "plan", "gpu"),
    *("processors", "damage", "unlearning", "figures", "phase", "sweep", "llm_processes", "hammer"),
    *("company", "logistic", "llm_cli", "llm_training", "training", "relearning"),
)
PLACES = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda one: PLACES.get(one.path.name, len(PLACES)))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache folder, so that no test reads what an earlier run or the user computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMNPO_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Sockets reach this machine and no other: process pools need them, tests of this project
    nothing further.
    """
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test reached for the network: {address}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        yield
