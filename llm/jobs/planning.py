"""Say how much memory a command will take, and refuse what cannot fit, before weights are read."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm.models.names import SMALL_BYTES, is_small, made
from llm.models.source import ModelOptions
from llm.ranks import started
from llm.scoring.limits import writing_budget
from llm.training.processes import in_first
from markov.errors import InvalidInput, require_number

if TYPE_CHECKING:
    from llm.training.plan import Plan, Planner, Work

LARGE = 10**9  # parameters from which products are in bfloat16 on a GPU
OFTEN = 4 * 10**9  # bytes of a state that is written after every epoch
# A larger state is written so seldom that at 10^9 bytes a second it takes a twentieth of the time.
SHARE = 20 / 1e9 / 60
WORDS = {"epoch": 0.0, "never": math.inf}
# Of full training, bytes per parameter: a float32 master, its gradient and two moments.
TRAINED = 4 * (1 + 1 + 2)
WIDTHS = {"float32": 4}  # bytes of a number; of other dtypes 2
# What weights of a suggestion leave of the memory to the rest, as a share and in bytes.
REST, LEAST_REST = 0.3, 2 * 10**9
SMALLER = {  # an option's words, and its value where nobody has asked for less
    "lora_rank": ("--lora-rank 8", None),
    "gradient_checkpointing": ("--gradient-checkpointing", False),
    "dtype": ("--dtype bfloat16", "float32"),
}


@dataclass(frozen=True, kw_only=True)
class MemoryOption:
    """How large the device is taken to be."""

    memory: str | None = None
    """Plan for a device with so much free memory, such as 24GB, and not for what is free here.
    What does not fit is refused before weights are read, with what would.
    """


def planned(
    command: Any, *, training: bool = False, writing: int = 0, copies: int = 0, runs: int = 1
) -> Plan | None:
    """Print what the work of a command takes at its peak, and return it.

    The options of the command say the model and how it is run. `training` says whether all its
    parameters, or adapters, are trained; `writing` how many tokens of an answer it writes; `copies`
    how many whole copies of the parameters are held besides; `runs` how many such runs share the
    processor at a time. It is None, and nothing is printed, for small models, such as those made
    here, and for others whose size is not known.

    Raises `InvalidInput` for what takes more than is free, with the options that would fit.
    """
    from llm.training.memory import size_of

    room = None if command.memory is None else size_of(command.memory)
    if made(command.model) is not None or (room is None and is_small(command.model)):
        return None
    planner = _planner(command, always=room is not None)
    if planner is None or (room is None and planner.count() * 4 < SMALL_BYTES):
        return None
    work = _work(command, training, writing, copies)
    return _checked(command, planner, room, work, runs)


def check_weights(command: Any, *, training: bool = False) -> None:
    """Raise `InvalidInput` if the weights alone take more than there is, with what would fit.

    This needs neither torch nor transformers, so that it takes no time. It knows what lies in files
    (see `llm.models.counted`), and the memory of the machine itself or what --memory says. What it
    lets pass, `planned` looks at closely.
    """
    from llm.models.counted import least_count
    from llm.training.memory import free_beside, gigabytes, size_of

    if started() > 1 or (command.memory is None and command.device != "cpu"):
        return
    free = free_beside() if command.memory is None else size_of(command.memory)
    count = least_count(command.model)
    if count is None:
        return
    width, narrow = WIDTHS.get(command.dtype, 2), getattr(command, "narrow_updates", False)
    full = training and getattr(command, "lora_rank", None) is None
    least = count * (4 * width if narrow else TRAINED) if full else count * width
    if least <= free:
        return
    words = [
        word
        for name, (word, unset) in SMALLER.items()
        if _options(command).get(name, word) == unset and (training or name == "dtype")
    ]
    shrinks = not training or "lora_rank" in _options(command)
    less = count * 2 if shrinks else least
    # Between these, and where several devices may do, only a closer look can tell.
    fits = less + max(REST * free, LEAST_REST) <= free
    if not fits and (less <= free or (training and shrinks)):
        return
    instead = f"{' '.join(words)} fits: parameters {gigabytes(less)} GB, and what passes hold"
    instead = instead if fits else "no option makes it fit"
    parts = "parameters, gradients and moments" if full else "parameters"
    where = "free on this processor" if command.memory is None else "as --memory says"
    allowed = f"at most {gigabytes(free)} GB {where}; {instead}"
    raise InvalidInput("memory", f"at least {gigabytes(least)} GB ({parts})", allowed)


def _work(command: Any, training: bool, writing: int, copies: int) -> Work:
    from llm.training.plan import Work

    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1")
    return Work(
        dtype=command.dtype,
        way=_way(command) if training else None,
        budget=command.budget,
        max_length=command.max_length,
        writing=writing,
        writing_budget=writing_budget(command.budget) if writing else 0,
        copies=copies,
        processes=started(),
        shards=sharded and started() > 1,
    )


def _checked(command: Any, planner: Planner, given: int | None, work: Work, runs: int) -> Plan:
    import torch

    from llm.models.language_model import find_device
    from llm.training.memory import free_memory, gigabytes, give_back_at_once
    from llm.training.plan import fitting

    device = find_device(command.device)
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", started()))
    free = given if given is not None else free_memory(device, shared)
    plan = planner.plan(work)
    runs = 1 if torch.cuda.is_available() else runs  # beside a GPU one follows the other
    all_runs = f"{runs} x {gigabytes(plan.total)} GB, each " if runs > 1 else ""
    kind = "processor" if device.type == "cpu" else "GPU" if device.type == "cuda" else device.type
    where = f"free on this {kind}" if given is None else "as --memory says"
    if free is None or runs * plan.total <= free:
        if free is not None and runs * plan.total > free / 2 and device.type == "cpu":
            give_back_at_once()
        left = "" if free is None else f", {gigabytes(free)} GB {where}"
        in_first(lambda: print(f"memory: {all_runs}{plan}{left}", file=sys.stderr))
        return plan
    if runs > 1 and (fewer := free // plan.total):
        instead = f"--jobs {fewer} fits"
    else:
        found = fitting(planner, work, _options(command), lambda _: free)
        one = "--jobs 1 " if runs > 1 else ""
        instead = "no option makes it fit" if found is None else f"{one}{found[0]} fits: {found[1]}"
    allowed = f"at most {gigabytes(free)} GB {where}; {instead}"
    raise InvalidInput("memory", f"{all_runs}{plan}", allowed)


def runs_at_a_time(jobs: int, count: int) -> int:
    """Return how many of `count` runs are made at a time; `jobs` is joblib's number."""
    import joblib

    return max(1, min(joblib.effective_n_jobs(jobs), count))


def _options(command: Any) -> dict[str, Any]:
    """Return the options that a command can be given; task vectors cannot be made of adapters."""
    free = {} if getattr(command, "task_vectors", ()) else {"lora_rank"}
    return {name: one for name, one in vars(command).items() if name != "lora_rank" or name in free}


def _planner(command: ModelOptions, *, always: bool = False) -> Planner | None:
    from llm.models.size import planner_of

    trusted = {"revision": command.revision, "trust_remote_code": command.trust_remote_code}
    return planner_of(command.model, trusted, always=always)


def _way(command: Any) -> Any:
    """Return how a command trains; what it has no option for is as in `Optimization`."""
    from llm.training.adapters import Lora
    from llm.training.rehearsal import Way

    rank = getattr(command, "lora_rank", None)
    return Way(
        bfloat16=getattr(command, "precision", None) == "bfloat16",
        gradient_checkpointing=getattr(command, "gradient_checkpointing", False),
        narrow_updates=getattr(command, "narrow_updates", False),
        lora=None if rank is None else Lora(rank=rank),
    )


def precision_of(command: Any) -> str:
    """Return the precision of products that a command asks for, or else the default.

    The default is bfloat16 on a GPU for models from 10^9 parameters, and float32 otherwise.
    """
    if command.precision is not None:
        return command.precision
    if made(command.model) is not None or not _on_gpu(command.device):
        return "float32"
    planner = _planner(command)
    large = planner is not None and planner.count() >= LARGE
    return "bfloat16" if large else "float32"


def _on_gpu(device: str) -> bool:
    import torch

    return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")


def state_minutes_of(asked: str | float | None, plan: Plan | None) -> float:
    """Return after how many minutes at least the state of a run is written again, and print it.

    It is 0 for every epoch, and infinite for never. Where nothing was asked for, a state of up to
    4 GB is written after every epoch, and a larger one so seldom that writing takes little time.
    Nothing is printed without a plan, which knows how large the state is. Raises `InvalidInput` for
    negative minutes.
    """
    if asked is None:
        state = 0 if plan is None else plan.state
        minutes = 0.0 if state <= OFTEN else float(round(state * SHARE))
    else:
        if asked not in WORDS:
            require_number(
                asked, "keep_state", lambda one: one >= 0, "epoch, never or minutes >= 0"
            )
        minutes = WORDS[asked] if isinstance(asked, str) else float(asked)
    if plan is not None:
        from llm.training.memory import gigabytes

        often = f"at most every {minutes:g} minutes" if minutes else "after every epoch"
        often = "never written" if minutes == math.inf else f"written {often}"
        line = f"state: {gigabytes(plan.state)} GB on disk until the run is finished, {often}"
        in_first(lambda: print(line, file=sys.stderr))
    return minutes
