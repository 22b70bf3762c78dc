"""What became of a case: one class per way to end, and the reason for it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markov.files import leftovers
from markov.files.folders import CLAIM
from tests.hammer.children import Ended

OK, REFUSED = "ok", "refused"
# Each of these is a defect.
DEFECTS = ("traceback", "hang", "memory", "partial", "success", "died", "untidy")
CLASSES = (OK, REFUSED, *DEFECTS)
# What may stand on standard error beside the one line of a refusal.
BESIDE = ("note: ", "warning: ", "memory: ", "state: ")
LARGE = 1 << 22

Tree = dict[str, str]


class Verdict(NamedTuple):
    """The class of a case, and what there is to say about it."""

    kind: str
    why: str = ""


def tree(*folders: Path) -> Tree:
    """What lies in folders, by its path: the kind of each, and of a file the digest of its bytes.

    Claims are left out: they say who writes a folder, and are made before anything is.
    """
    return {str(path): _told(path) for folder in folders for path in _walk(folder)}


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for one in sorted(entries, key=lambda one: os.fsencode(one.name)):
            if one.name == CLAIM:
                continue
            yield Path(one.path)
            if one.is_dir(follow_symlinks=False):
                yield from _walk(Path(one.path))


def _told(path: Path) -> str:
    known = path.lstat()
    if stat.S_ISLNK(known.st_mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(known.st_mode):
        return f"{stat.S_IFMT(known.st_mode):o}"
    if known.st_size > LARGE:
        return f"{known.st_size} bytes"
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def changed(before: Tree, after: Tree) -> list[str]:
    """Paths that are new, gone or other than before.

    What lies below a folder with a claim is the state of a job that can go on there. A folder that
    is new and empty is nothing.
    """
    new = {path for path in after.keys() - before.keys() if not after[path].startswith("40")}
    other = {path for path in before if after.get(path) != before[path]}
    return sorted(other | {path for path in new if not _claimed(Path(path))})


def _claimed(path: Path) -> bool:
    return any((folder / CLAIM).exists() for folder in path.parents)


def passing(*folders: Path) -> list[str]:
    """What lies in folders under the name of something that is still being written."""
    return [str(path) for one in folders for path in _walk(one) if leftovers.is_partial(path.name)]


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def ended(found: Ended, *, disk: bool = False) -> Verdict:
    """The class of a process by how it ended and by what it said, whatever it wrote.

    On a `disk` that fails the last line may say so, with the exit code of a failure.
    """
    if found.killed:
        return Verdict(found.killed, f"stopped after {found.seconds:.1f} s")
    if found.code < 0:
        return Verdict("died", f"signal {-found.code}: {last_line(found.err)}")
    if "Traceback (most recent call last)" in found.err or found.how == "raised":
        return Verdict("traceback", last_line(found.err))
    if found.code == 0:
        return Verdict(OK)
    if found.how == "parser" and found.code == 2:
        return Verdict(REFUSED, "by the parser")
    if found.code == 1 and not (disk and "cannot be used (" in last_line(found.err)):
        return Verdict("traceback", last_line(found.err) or "exit code 1")
    if found.code not in (1, 2):
        return Verdict("died", f"exit code {found.code}: {last_line(found.err)}")
    return said(found.err)


def said(err: str) -> Verdict:
    """Whether standard error has one line about what is wrong, and nothing that is not ours."""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("error: ")]
    if len(wrong) != 1:
        return Verdict("untidy", f"{len(wrong)} lines of an error: {last_line(err)}")
    if "out of memory" in wrong[0]:
        return Verdict("memory", wrong[0][:300])
    others = [line for line in lines if not line.startswith((*BESIDE, "error: ")) and ours(line)]
    if others:
        return Verdict("untidy", f"beside the error: {others[0][:200]}")
    return Verdict(REFUSED, wrong[0][:300])


def ours(line: str) -> bool:
    """Whether a line is none of a progress bar's or of a line that says how far a job is."""
    return not any(word in line for word in ("it/s", "s/it", "|", "%"))


def judged(
    found: Ended, before: Tree, after: Tree, left: Sequence[str], *, must_refuse: bool, wrong: str
) -> Verdict:
    """The class of a case, from how its process ended and what it changed.

    `left` are passing names that it left behind. `wrong` says what is wrong with the outputs of a
    case that succeeded, and is empty where nothing is.
    """
    verdict = ended(found)
    if verdict.kind in DEFECTS:
        return verdict
    if left:
        return Verdict("partial", f"left behind: {left[0]}")
    if found.code == 0:
        if must_refuse:
            return Verdict("success", "what has to be refused was accepted")
        return Verdict("success", wrong) if wrong else Verdict(OK)
    names = changed(before, after)
    return Verdict("partial", f"refused, but changed: {', '.join(names[:3])}") if names else verdict
