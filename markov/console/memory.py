"""How much memory this machine has for what is yet to come, and how sizes are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
GROUP_OF = Path("/proc/self/cgroup")


def gigabytes(size: float) -> str:
    """Return a size in units of 10^9 bytes; one below 0.1 is not 0.0 but has its first digit."""
    return f"{size / 1e9:.1f}" if size >= 5e7 or size <= 0 else f"{size / 1e9:.1g}"


def free_beside(processes: int = 1) -> int:
    """Return the bytes that this process may still take of the machine's own memory."""
    import psutil

    return min(psutil.virtual_memory().available, *_left_by_groups()) // processes


def _left_by_groups() -> Iterator[int]:
    """Yield what the control groups that hold this process leave of their limits, in bytes.

    Files that were read and can be read again count as free, as they do for the system.
    """
    yield 2**62
    try:
        lines = GROUP_OF.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file ")
        root = GROUPS
        if "memory" in kinds.split(","):  # the first version of control groups
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        elif kinds:
            continue
        place = root / path.lstrip("/")
        for folder in (place, *place.parents):
            if folder == root.parent:
                break
            left = _left(folder, *names)
            if left is not None:
                yield left


def _left(folder: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most, now = (folder / limit).read_text(), int((folder / used).read_text())
        stat = (folder / "memory.stat").read_text().splitlines()
        if not most.strip().isdigit():
            return None
        files = sum(int(line.split()[1]) for line in stat if line.startswith(cached))
        return max(0, int(most) - now + files)
    except (OSError, ValueError):
        return None
