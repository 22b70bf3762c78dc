"""Where tasks are done: in processes of this machine, or by the workers of a dask or ray cluster.

joblib hands the tasks over. Which backend it uses changes the time, never a result: a task writes
what it makes into a folder that all workers share, and what lies there is not made again. So
whatever dies, a worker, the scheduler or the command itself, costs what was not finished.
"""

# joblib, dask and ray are imported where they are used, so that --help answers at once.

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from markov.console.progress import bar
from markov.errors import InvalidInput, require
from markov.files import leftovers, storage

Result = TypeVar("Result")
TRIALS = 3  # how often tasks are given to workers, if these die
ANSWER, WAIT = 10, 60  # seconds in which a scheduler must answer, and have a worker
PACKAGES = {"dask": "distributed", "ray": "ray"}
INSTALL = {"dask": "pip install 'dask[distributed]'", "ray": "pip install ray"}


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Who does the work of a command that has several processes."""

    backend: Literal["loky", "dask", "ray"] = "loky"
    """Who does the work: processes of this machine, or the workers of dask or ray.
    Changes the time, never a number. dask and ray are packages of their own.
    """
    scheduler: str | None = None
    """Address of a running scheduler of dask, such as tcp://HOST:8786, or of ray.
    Its workers then do the work, whatever --jobs says.
    They need one thread each, and the folders of this machine.
    Default: a cluster of --jobs processes here, for this command alone.
    """


def check_backend(asked: BackendOptions) -> None:
    """Raise `InvalidInput` for a backend that is not installed, and a scheduler without its kind.

    Nothing is imported or reached for, so that it takes no time.
    """
    clustered = asked.backend in PACKAGES
    there = not clustered or importlib.util.find_spec(PACKAGES[asked.backend]) is not None
    allowed = f"loky, or installed first: {INSTALL.get(asked.backend)}"
    require(there, "backend", asked.backend, allowed)
    allowed = "left out, since loky has no scheduler, or given with --backend dask or ray"
    require(clustered or asked.scheduler is None, "scheduler", asked.scheduler, allowed)
    text, allowed = asked.scheduler, "an address such as tcp://HOST:8786"
    require(text is None or re.fullmatch(r"\S+", text) is not None, "scheduler", text, allowed)


@contextmanager
def workers(
    asked: BackendOptions, jobs: int, shared: Sequence[Path], *sources: str
) -> Iterator[None]:
    """Let joblib hand tasks to the workers that are asked for, until the block ends.

    Without a scheduler these are `jobs` processes of this machine. Those of a scheduler must find
    this folder, the cache and the folders `shared`, and have the same code behind `sources` as
    here. Raises `InvalidInput` where they do not, for a scheduler that does not answer, and for one
    that is lost meanwhile.
    """
    check_backend(asked)
    if asked.backend == "loky":
        yield
        return
    opened = _dask if asked.backend == "dask" else _ray
    with opened(asked.scheduler, jobs, shared, sources):
        yield


def elsewhere() -> bool:
    """Return whether joblib was told of a cluster, by `workers` or by its own `parallel_config`."""
    return not type(_active()).__module__.startswith("joblib._parallel_backends")


def _active() -> Any:
    from joblib.parallel import get_active_backend

    return get_active_backend()[0]


def together(
    tasks: Sequence[Callable[[], Result]],
    n_jobs: int,
    progress: bool,
    label: str,
    *,
    leave: bool = True,
) -> list[Result]:
    """Return what the tasks return, several at a time, in their order.

    Those that a dying worker took along are given again: here by this function, on dask by its
    scheduler. What is raised is the error of the first task that fails.
    """
    import joblib

    found: dict[int, Result] = {}
    away = elsewhere()
    here = (os.getcwd(), str(storage.cache_dir().absolute())) if away else None
    # A cluster is given all tasks at once, since workers may come that are not there yet.
    ways = {"n_jobs": n_jobs, "pre_dispatch": "all" if away else "2*n_jobs"}
    # That of ray gives results only when all are there.
    if _active().supports_return_generator:
        ways["return_as"] = "generator_unordered"
    with bar(len(tasks), label, show=progress and len(tasks) > 0, leave=leave) as done:
        for left in reversed(range(TRIALS)):
            numbers = [number for number in range(len(tasks)) if number not in found]
            results: Any = joblib.Parallel(**ways)(
                joblib.delayed(_numbered)(number, tasks[number], here) for number in numbers
            )
            try:
                for number, result in results:
                    found[number] = result
                    done.update()
            except _deaths():
                if not left:
                    raise
    return [found[number] for number in range(len(tasks))]


def _numbered(
    number: int, task: Callable[[], Result], here: tuple[str, str] | None
) -> tuple[int, Result]:
    # A worker of a cluster was begun in another folder, and knows of no cache or of another one.
    if here is not None:
        os.chdir(here[0])
        os.environ["SIMNPO_LAB_CACHE"] = here[1]
    return number, task()


def _deaths() -> tuple[type[BaseException], ...]:
    """Return the errors that say that a worker died, and that its tasks may be given again.

    Those of dask are not among them, since its scheduler has given them again before it says so.
    """
    known: list[type[BaseException]] = [BrokenProcessPool]
    if "ray" in sys.modules:
        from ray.exceptions import RayActorError, WorkerCrashedError  # pyright: ignore[reportMissingImports]

        known += [RayActorError, WorkerCrashedError]
    return tuple(known)


@contextmanager
def _dask(
    scheduler: str | None, jobs: int, shared: Sequence[Path], sources: Sequence[str]
) -> Iterator[None]:
    import joblib
    from dask.config import set as configured  # pyright: ignore[reportMissingImports]
    from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]

    if scheduler is None:
        count = joblib.cpu_count() if jobs == -1 else jobs
        # No page of the scheduler's, for which every command would need a port of its own.
        page = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
        # As often as on loky a task that takes its worker along is tried.
        with (
            configured({"distributed.scheduler.allowed-failures": TRIALS - 1}),
            LocalCluster(n_workers=count, threads_per_worker=1, **page) as cluster,
            Client(cluster, set_as_default=False) as client,
            joblib.parallel_config(backend=_on_workers(client)),
        ):
            yield
        return
    try:
        client = Client(scheduler, timeout=ANSWER, set_as_default=False)
        try:
            client.wait_for_workers(1, timeout=WAIT)
        except BaseException:
            client.close()
            raise
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        why = " ".join(str(error).split()) or type(error).__name__
        allowed = f"one that answers and has a worker ({why})"
        raise InvalidInput("scheduler", scheduler, allowed) from None
    with client:
        _check_workers(client, scheduler, shared, sources)
        try:
            with joblib.parallel_config(backend=_on_workers(client)):
                yield
        except CancelledError:
            allowed = (
                "one that lives until the work is done; it is gone, what was finished is kept, "
                "and the same command makes the rest"
            )
            raise InvalidInput("scheduler", scheduler, allowed) from None


def _on_workers(client: Any) -> Any:
    """Return joblib's backend of dask, with two cases of joblib's own put right.

    Where joblib counts one worker it would do the work in this process, though the worker may have
    the GPU. And it would wait forever for a task that dask gives up, as one whose workers all died.
    """
    from joblib._dask import DaskDistributedBackend

    class OnWorkers(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

        async def _collect(self) -> None:
            while self._continue:
                async for future, result in self.waiting_futures:
                    waiting, callback = self._results.pop(future), self._callbacks.pop(future)
                    given_up = future.status == "error"
                    found = GivenUp(result[1]) if given_up else result
                    waiting.set_result(found)
                    callback(found)
                await asyncio.sleep(0.01)

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, GivenUp):
                raise out.error
            return super().retrieve_result_callback(out)

    return OnWorkers(client=client)


class GivenUp(NamedTuple):
    """Why dask gave a task up."""

    error: BaseException


def _check_workers(
    client: Any, scheduler: str, shared: Sequence[Path], sources: Sequence[str]
) -> None:
    """Refuse workers that would write elsewhere, would compute something else, or in threads."""
    threads = max(client.nthreads().values())
    # Threads of a process share torch's number of threads, by which long sums are divided.
    allowed = f"one whose workers have one thread each (--nthreads 1), not {threads}"
    require(threads == 1, "scheduler", scheduler, allowed)
    own = storage.code_version(*sources)
    for folder in dict.fromkeys(one.absolute() for one in (Path(), storage.cache_dir(), *shared)):
        place = next(one for one in (folder, *folder.parents) if one.is_dir())
        probe = place / leftovers.partial_name("shared")
        probe.touch()
        try:
            found = client.run(_seen_by_a_worker, str(probe), tuple(sources))
        except ImportError as error:
            allowed = f"one whose workers have this package ({error})"
            raise InvalidInput("scheduler", scheduler, allowed) from None
        finally:
            probe.unlink()
        blind = [worker for worker, (there, _) in found.items() if not there]
        allowed = f"one whose workers find {folder}, which {', '.join(blind)} does not"
        require(not blind, "scheduler", scheduler, allowed)
        others = [worker for worker, (_, code) in found.items() if code != own]
        allowed = f"one whose workers have the same code as here, which {', '.join(others)} has not"
        require(not others, "scheduler", scheduler, allowed)


def _seen_by_a_worker(probe: str, sources: tuple[str, ...]) -> tuple[bool, str]:
    return Path(probe).exists(), storage.code_version(*sources)


@contextmanager
def _ray(
    address: str | None, jobs: int, shared: Sequence[Path], sources: Sequence[str]
) -> Iterator[None]:
    import joblib
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util.joblib import register_ray  # pyright: ignore[reportMissingImports]

    here = {"num_cpus": joblib.cpu_count() if jobs == -1 else jobs, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, **({} if address else here))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise InvalidInput("scheduler", address, f"one that answers ({why})") from None
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()
