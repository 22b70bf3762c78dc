"""A job in two processes that work together, as torchrun starts them.

They are copies of this process, which has imported everything: torchrun begins three that import
torch anew, which takes most of the time of a small job. Torchrun itself starts those of
`test_llm_processes.test_two_processes_unlearn_from_the_command_line_as_one_does`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.hammer.children import Limits, begin, end

LIMITS = Limits(seconds=300.0, idle=60.0, memory=8 << 30, file=1 << 30)


class Together(NamedTuple):
    """What both said, and 0 if both ended well."""

    returncode: int
    stdout: str
    stderr: str


def in_two(job: Callable[[], int | None], place: Path, *, cpu: bool = True) -> Together:
    """Do a job in each of two processes, and return how they ended.

    What they say is kept in a folder of the folder `place`. `cpu` says that they are told to leave
    GPUs alone, as accelerate is where there are any.
    """
    logs = place / "said"
    with socket.socket() as free:  # the address at which they find each other
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        **({"ACCELERATE_USE_CPU": "1"} if cpu else {}),
    }
    running = [
        begin(
            lambda: _alone(job),
            place,
            logs / str(rank),
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            limits=LIMITS,
        )
        for rank in range(2)
    ]
    found = end(running, LIMITS, one_for_all=True)
    ended = [
        f"process {rank} was ended by {signal.Signals(-one.code).name}"
        for rank, one in enumerate(found)
        if one.code < 0
    ]
    said = "".join(one.err for one in found) + "\n".join(ended)
    return Together(int(any(one.code for one in found)), "".join(one.out for one in found), said)


def _alone(job: Callable[[], int | None]) -> int:
    """Forget what accelerate knew in the process that this is a copy of."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    return job() or 0
