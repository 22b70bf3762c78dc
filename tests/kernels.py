"""Kernels of notebooks as copies of a process that has imported everything already.

A kernel of its own begins with seconds of imports, which for most notebooks is most of the time.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.kills import forked

INLINE = "module://matplotlib_inline.backend_inline"  # of a kernel for which no other is named


class Copy:
    """A copy of this process, as `subprocess.Popen` would have it."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self._ended(os.waitpid(self.pid, os.WNOHANG))
        return self.returncode

    def wait(self) -> int | None:
        if self.returncode is None:
            self._ended(os.waitpid(self.pid, 0))
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def _ended(self, found: tuple[int, int]) -> None:
        if found[0]:
            self.returncode: int | None = os.waitstatus_to_exitcode(found[1])


def import_everything() -> None:
    """Import what notebooks do, but for what a kernel has to set up first."""
    import figures

    for module in pkgutil.walk_packages(figures.__path__, "figures."):
        importlib.import_module(module.name)
    for name in ("transformers", "seaborn", "peft", "ipykernel.kernelapp"):
        importlib.import_module(name)


def launch(words: Sequence[str], *, env: Mapping[str, str], cwd: str, **_: Any) -> Copy:
    """Begin the kernel of a command line `python -m ipykernel_launcher ...` in a copy."""
    pid = forked()
    if pid:
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # as the copy does itself: signals are sent to its group
        return Copy(pid)
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        warnings.resetwarnings()
        asyncio.set_event_loop(asyncio.new_event_loop())
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        import matplotlib
        from ipykernel.kernelapp import IPKernelApp

        matplotlib.rcParams["backend"] = env.get("MPLBACKEND", INLINE)
        IPKernelApp.launch_instance(argv=list(words[words.index("ipykernel_launcher") + 1 :]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
