"""Who does the work changes no byte, and whoever dies costs what was not finished."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from markov.__main__ import cli
from markov.errors import InvalidInput
from markov.experiments import grid
from markov.files import storage
from markov.models import Tabular
from markov.objectives import npo, simnpo
from markov.running import run as running
from markov.running.backends import BackendOptions, elsewhere, together, workers
from markov.running.run import parts_missing, run
from tests.deaths import cluster, killed_with_its_workers
from tests.markov.fatal import BASE, Dies, Fails, fatal, made
from tests.markov.test_cli import GRID


def need_dask() -> None:
    """Dask is an extra of its own."""
    pytest.importorskip("distributed", reason="dask is not installed")


# --- refusals ---


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--scheduler", "tcp://here:1"],
            "error: scheduler = 'tcp://here:1' is not allowed: left out, since loky has no "
            "scheduler, or given with --backend dask or ray\n",
        ),
        (
            ["--backend", "dask", "--scheduler", ""],
            "error: scheduler = '' is not allowed: an address such as tcp://HOST:8786\n",
        ),
    ],
)
def test_a_scheduler_that_cannot_be_one_is_refused(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "dask" in words:
        need_dask()
    assert cli([*GRID, *words]) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("backend", "package", "install"),
    [("dask", "distributed", "pip install 'dask[distributed]'"), ("ray", "ray", "pip install ray")],
)
def test_a_backend_that_is_not_installed_is_refused_before_any_work(
    backend: str,
    package: str,
    install: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = "importlib.util.find_spec"
    monkeypatch.setattr(found, lambda name: None if name == package else 1 / 0)
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / "cache"))
    assert cli([*GRID, "--backend", backend, "--out", str(tmp_path / "out" / "t.parquet")]) == 2
    assert capsys.readouterr().err == (
        f"error: backend = '{backend}' is not allowed: loky, or installed first: {install}\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_does_not_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_dask()
    monkeypatch.setattr("markov.running.backends.ANSWER", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://127.0.0.1:1"):
        assert cli([*GRID, "--backend", "dask", "--scheduler", address]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: scheduler = '{address}' is not allowed: one that answers ")


@pytest.mark.slow
def test_workers_of_several_threads_without_the_folder_or_with_other_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_dask()
    hidden = tmp_path / "hidden"
    hidden.mkdir()

    def opened(address: str, *shared: Path) -> None:
        with workers(BackendOptions(backend="dask", scheduler=address), 2, shared, "markov.errors"):
            assert elsewhere()

    threads = pytest.raises(InvalidInput, match="one thread each")
    with cluster(tmp_path / "threads", workers=1, threads=2) as two, threads:
        opened(two.address)
    with cluster(tmp_path / "one", workers=1) as one:
        opened(one.address, hidden, tmp_path / "not there yet")
        assert list(hidden.iterdir()) == [] and not (tmp_path / "not there yet").exists()
        # As if the folder that a worker finds by this name were another one.
        monkeypatch.setattr(Path, "touch", lambda *_: None)
        monkeypatch.setattr(Path, "unlink", lambda *_: None)
        with pytest.raises(InvalidInput, match=r"one whose workers find .*, which tcp://.* do"):
            opened(one.address, hidden)
        monkeypatch.undo()
        monkeypatch.setattr(storage, "code_version", lambda *_: "another")
        with pytest.raises(InvalidInput, match=r"the same code as here, which tcp://.* has not"):
            opened(one.address)
    assert not elsewhere()


# --- the same bytes ---

PARTS = ("--part 2/3", "--part 0/3 --backend dask --jobs 2", "--part 1/3")


@pytest.mark.slow
def test_parts_loky_dask_and_one_process_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_dask()

    def written(name: str, *calls: str) -> bytes:
        monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / name))
        out = tmp_path / f"{name}.parquet"
        for more in calls:
            assert cli([*GRID, "--out", str(out), *more.split()]) == 0
        return out.read_bytes()

    whole = written("one", "--jobs 1")
    assert written("parts", *PARTS, "--collect") == whole
    assert written("dask", "--backend dask --jobs 2") == whole
    monkeypatch.setattr(running, "LITTLE", 0.0)  # as if there were much to do
    assert written("loky", "--jobs 2") == whole


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray warns of what it will do in later versions
def test_ray_writes_the_bytes_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    found = []
    for name, more in {"one": ["--jobs", "1"], "ray": ["--backend", "ray", "--jobs", "2"]}.items():
        monkeypatch.setenv("SIMNPO_LAB_CACHE", str(tmp_path / name))
        out = tmp_path / f"{name}.parquet"
        assert cli([*GRID, "--out", str(out), *more]) == 0
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_a_seed_more_changes_no_byte_of_the_others(tmp_path: Path) -> None:
    base = replace(BASE, precision="float32", gradient_examples=3)
    few, more = (
        run(grid(base, objective=[npo(0.2), simnpo(4.0)], seed=range(count)), progress=False)
        for count in (3, 8)
    )
    assert len(more) > len(few)
    old = more[more["seed"] < 3].assign(run=few["run"].to_numpy()).reset_index(drop=True)
    for name, frame in {"few": few, "old": old}.items():
        storage.write_table(frame, tmp_path / name, {})
    assert (tmp_path / "few").read_bytes() == (tmp_path / "old").read_bytes()


# --- deaths ---


def check_restart(place: Path, victim: int, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there at a death is never made again, and a restart makes the others only.

    `left` says whether there are others.
    """
    monkeypatch.setenv("SIMNPO_LAB_CACHE", str(place / "cache"))
    experiments, death = fatal(place, victim)
    kept, there = death.kept(), death.results()
    assert len(kept) >= 2 and kept.items() <= there.items()
    assert parts_missing(experiments, place / "parts") == len(experiments) - len(there)
    assert (len(there) < len(experiments)) == left
    calls = []
    table = running._table
    monkeypatch.setattr(running, "_table", lambda *given: calls.append(given) or table(*given))
    found = run(experiments, parts=place / "parts", progress=False)
    assert len(calls) == len(experiments) - len(there)
    assert there.items() <= death.results().items()
    whole = run([replace(one, model=Tabular()) for one in experiments], progress=False)
    assert len(whole) > 0
    found, whole = (frame.drop(columns="architecture") for frame in (found, whole))
    pd.testing.assert_frame_equal(found, whole, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_a_worker_that_is_killed_costs_what_it_had_not_finished(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "dask":
        need_dask()
    made(tmp_path, 0, backend)
    check_restart(tmp_path, 0, False, monkeypatch)


@pytest.mark.slow
def test_the_death_of_the_scheduler_is_one_line_and_leaves_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_dask()
    with cluster(tmp_path / "dask") as dask:
        victim = dask.scheduler.pid
        with pytest.raises(InvalidInput, match="it is gone, what was finished is kept"):
            made(tmp_path, victim, "dask", dask.address)
        assert dask.scheduler.wait(20) == -signal.SIGKILL
    check_restart(tmp_path, victim, True, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_the_death_of_the_command_leaves_what_was_finished(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "dask":
        need_dask()

    def killed(scheduler: str) -> int:
        words = ", ".join(map(repr, (str(tmp_path), backend, scheduler)))
        return killed_with_its_workers(f"from tests.markov.fatal import client; client({words})")

    if backend == "loky":
        assert killed("") == -signal.SIGKILL
    else:
        with cluster(tmp_path / "dask") as dask:
            assert killed(dask.address) == -signal.SIGKILL
    victim = int((tmp_path / "client").read_text("utf-8"))
    check_restart(tmp_path, victim, True, monkeypatch)


@pytest.mark.slow
def test_an_error_of_a_task_comes_back_from_dask_as_it_is() -> None:
    need_dask()
    from distributed import KilledWorker

    with workers(BackendOptions(backend="dask"), 1, [], "markov"):
        with pytest.raises(InvalidInput, match="task = 'Fails' is not allowed: another one"):
            together([Fails()], 1, False, "")
        with pytest.raises(KilledWorker):
            together([Dies()], 1, False, "")
        assert together([os.getpid], 1, False, "") != [os.getpid()]


@pytest.mark.slow
def test_a_task_finds_the_folder_and_the_cache_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_dask()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMNPO_LAB_CACHE", "cache")
    with cluster(tmp_path / "dask", workers=1) as one:
        asked = BackendOptions(backend="dask", scheduler=one.address)
        with contextlib.ExitStack() as stack:
            stack.enter_context(workers(asked, 1, [], "markov.errors"))
            found = together([os.getpid, os.getcwd, storage.cache_dir], 1, False, "")
    assert found[0] != os.getpid()
    assert found[1:] == [str(tmp_path), tmp_path / "cache"]
