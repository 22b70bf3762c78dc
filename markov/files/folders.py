"""Folders that commands write: claimed before anything else is written in them.

A claim is a file in the folder, `.simnpo-lab.json`. It says which job with which settings the
folder belongs to, and which names that job writes. A folder is written to only if it is new, if it
is empty, or if it carries the claim of the same job with the same settings. Then the job goes on,
or its result is read where it was finished. Two jobs may share a folder if they write different
names, as a run and the evaluation of its model do. Nothing that a claim does not name is ever
removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from markov.errors import InvalidInput, require
from markov.files import inputs, leftovers, storage
from markov.files.storage import Location
from markov.files.turns import turn

CLAIM = ".simnpo-lab.json"
ALLOWED = "an empty folder, or that of a run of these settings, data and models"


def check_place(
    out: Location,
    field: str = "out",
    inputs: Iterable[Location | None] = (),
    finished: str | None = None,
) -> Path:
    """Return the folder `out` if a command may write there, as far as can be known before any work.

    `inputs` are what the command reads: paths, or words that name none. A folder with a file
    `finished` is accepted without a claim, to be read. Raises `InvalidInput` for a folder that
    cannot be written, that holds something without a claim, or that is an input, lies within one or
    has one within it.
    """
    place = storage.check_writable(out, field, folder=True)
    own = Path(os.path.realpath(place))
    for source in _existing(inputs):
        apart = own != source and own not in source.parents and source not in own.parents
        require(apart, field, str(out), f"a folder apart from {source}, which is read")
    if not _claims(place, field) and not (finished and (place / finished).is_file()):
        _check_empty(place, field)
    return place


def check_table(out: Location, field: str = "out", inputs: Iterable[Location | None] = ()) -> Path:
    """Return the path `out` if a table may be written there: a new one, or in place of our own.

    Raises `InvalidInput` for a path that cannot be written, that is or lies within an input, and
    for a file that no command of this project wrote.
    """
    path = storage.check_writable(out, field)
    own = Path(os.path.realpath(path))
    for source in _existing(inputs):
        apart = own != source and source not in own.parents
        require(apart, field, str(out), f"a file apart from {source}, which is read")
    if path.exists() and path.stat().st_size:
        try:
            storage.read_provenance(path)
        except InvalidInput:
            allowed = "a new file, or a table that this program wrote: another file is not replaced"
            raise InvalidInput(field, str(out), allowed) from None
    return path


def claim(
    folder: Location,
    job: str,
    settings: object,
    *,
    names: Sequence[str],
    passing: Sequence[str] = (),
    field: str = "out",
) -> None:
    """Claim a folder for a job that writes `names` there, or go on under an earlier claim.

    The earlier claim must be of the same job and settings. Names that are `passing` are kept for
    the time of the job only (see `tidy`); an earlier claim decides which these are. What killed
    processes left under passing names is cleared. Raises `InvalidInput` for a folder that holds
    something without a claim, the claim of other settings, or one of the names without a claim to
    it. A claim by a process that has ended without writing anything else is replaced.
    """
    place, rendered = inputs.expanded(folder, field), storage.settings_of(settings)
    made = {
        "settings": rendered,
        "names": list(names),
        "passing": list(passing),
        "process": leftovers.process(),
    }
    # What is read here must be what is replaced.
    with turn(place, CLAIM):
        _claim(folder, place, job, made, field)
    leftovers.clear(place)


def _claim(folder: Location, place: Path, job: str, made: Mapping[str, Any], field: str) -> None:
    claims = _claims(place, field)
    other = _other(claims, job, made["settings"])
    if job in claims and not other:
        return
    if not claims:
        _check_empty(place, field)
    claimed = {name for own in claims.values() for name in own.get("names", ())}
    taken = [name for name in made["names"] if name in claimed or os.path.lexists(place / name)]
    if other or taken:
        require(
            _abandoned(place, claims),
            field,
            str(folder),
            f"{ALLOWED} ({other or f'{taken[0]} lies there'})",
        )
        claims = {}
    _write(place, {**claims, job: made})


def check_claim(folder: Location, job: str, settings: object, field: str = "out") -> None:
    """Raise `InvalidInput` for a folder that the same job has claimed with other settings.

    Nothing is written. It is what `claim` would refuse, known before any work.
    """
    place = inputs.expanded(folder, field)
    claims = _claims(place, field)
    other = _other(claims, job, storage.settings_of(settings))
    fits = not other or _abandoned(place, claims)
    require(fits, field, str(folder), f"{ALLOWED} ({other})")


def _other(claims: Mapping[str, Mapping[str, Any]], job: str, rendered: Any) -> str:
    """Return in words how the settings of a job's earlier claim differ; "" if nothing does."""
    return _difference(claims[job].get("settings"), rendered) if job in claims else ""


@contextmanager
def given_back(folder: Location, job: str, parts: str | None = None) -> Iterator[None]:
    """Give back a claim that is made meanwhile if the job is refused.

    That is, if it is refused before it has written anything but `parts`, the name of what is of use
    to this job alone, which is discarded. So such a job, for example one for a model that cannot be
    scored, leaves the folder to another. An earlier claim stays, and so does a folder that was
    there before.
    """
    place = inputs.expanded(folder, "out")
    fresh = [one for one in (place, *place.parents) if not one.exists()]
    earlier = (place / CLAIM).exists() and job in _claims(place, "out")
    try:
        yield
    except InvalidInput:
        if not earlier:
            _give_back(place, job, parts)
            for one in fresh:
                with suppress(OSError):  # something was written there
                    one.rmdir()
        raise


@contextmanager
def working(
    folder: Location,
    job: str,
    settings: object,
    *,
    names: Sequence[str],
    passing: Sequence[str] = (),
    parts: str | None = None,
) -> Iterator[None]:
    """Claim a folder for a job and do it alone: see `claim` and, if it is refused, `given_back`.

    Where another process of this machine does the same, it is waited for. What it has finished is
    to be looked for then.
    """
    with given_back(folder, job, parts):
        # First, so that nobody waits for a job of other settings only to be refused.
        claim(folder, job, settings, names=names, passing=passing)
        with turn(inputs.expanded(folder, "out"), job, note=True):
            # The other process may have given the claim back.
            claim(folder, job, settings, names=names, passing=passing)
            yield


def _give_back(place: Path, job: str, parts: str | None) -> None:
    with turn(place, CLAIM):
        _give_back_alone(place, job, parts)


def _give_back_alone(place: Path, job: str, parts: str | None) -> None:
    claims = _claims(place, "out")
    own = claims.pop(job, {})
    names = {*own.get("names", ()), *own.get("passing", ())}
    if not own or any(os.path.lexists(place / name) for name in names - {parts}):
        return
    if parts in names:
        leftovers.discard(place / str(parts))
    if claims:
        _write(place, claims)
    else:
        (place / CLAIM).unlink()


def claimed(folder: Location, job: str) -> bool:
    """Return whether a folder carries the claim of a job, whatever its settings."""
    return job in _claims(inputs.expanded(folder, "out"), "out")


def tidy(folder: Location, job: str) -> None:
    """Remove what a finished job wrote for its own time only, as its claim says.

    Without a claim nothing is removed.
    """
    place = inputs.expanded(folder, "out")
    own = _claims(place, "out").get(job, {})
    for name in own.get("passing", ()):
        leftovers.discard(place / name)
    if own:
        leftovers.clear(place)


def _existing(inputs: Iterable[Location | None]) -> list[Path]:
    found = []
    for source in inputs:
        try:
            path = None if source is None else Path(os.path.expanduser(source)).resolve(strict=True)
        # a word that names no path, such as authors:original
        except (OSError, ValueError, RuntimeError):
            path = None
        found += [path] if path else []
    return found


def _check_empty(place: Path, field: str) -> None:
    others = (name for name in sorted(_listed(place)) if not leftovers.is_partial(name))
    held = next(others, None)
    if held is not None and _claims(place, field):  # another process has just claimed it
        return
    allowed = f"a new folder, an empty one, or one that this program began ({held} lies there)"
    require(held is None, field, str(place), allowed)


def _abandoned(place: Path, claims: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether a folder holds claims only, whose makers have ended or are this process."""
    only = [name for name in _listed(place) if not leftovers.is_partial(name)] == [CLAIM]
    return only and not any(
        leftovers.alive_elsewhere(own.get("process")) for own in claims.values()
    )


def _listed(place: Path) -> list[str]:
    try:
        return os.listdir(place)
    except FileNotFoundError:
        return []


def _claims(place: Path, field: str) -> dict[str, dict[str, Any]]:
    """Return the claims on a folder by job; raise `InvalidInput` for a file that is no claim.

    In the cache, where nobody else writes, a folder with such a file is set aside.
    """
    try:
        if not os.path.lexists(place / CLAIM):
            return {}
        found = inputs.read_json(place / CLAIM, CLAIM)
        if not isinstance(found, dict) or not all(map(_is_claim, found.values())):
            raise ValueError("it is no claim of this program")
    except (OSError, ValueError) as error:
        if not os.path.lexists(place / CLAIM):  # another process has just given it back
            return {}
        if Path(os.path.realpath(storage.cache_dir())) in Path(os.path.realpath(place)).parents:
            leftovers.set_aside(place, f"{CLAIM}: {error}")
            return {}
        raise InvalidInput(
            field, str(place), f"a folder whose {CLAIM} can be read ({error})"
        ) from None
    return found


def _is_claim(own: Any) -> bool:
    """Return whether JSON is a claim that `claim` could have made.

    What its names stand for may be removed, so none of them leads out of the folder.
    """
    if not isinstance(own, dict) or not isinstance(own.get("process", ""), str):
        return False
    lists = (own.get("names", []), own.get("passing", []))
    return all(isinstance(names, list) and all(map(_is_inside, names)) for names in lists)


def _is_inside(name: object) -> bool:
    if not isinstance(name, str) or "\0" in name:
        return False
    path = PurePath(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts


class _Absent:
    """A setting that is not there, which None is not."""

    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _difference(there: Any, wanted: Any, name: str = "") -> str:
    """Return in words where two settings differ first; an empty text where they are the same."""
    if isinstance(there, Mapping) and isinstance(wanted, Mapping):
        for key in sorted({*there, *wanted}):
            inner = f"{name}.{key}" if name else str(key)
            found = _difference(there.get(key, _ABSENT), wanted.get(key, _ABSENT), inner)
            if found:
                return found
        return ""
    if there == wanted:
        return ""
    shown = [text if len(text) <= 60 else f"{text[:57]}..." for text in map(repr, (there, wanted))]
    return f"its {name or 'settings'} is {shown[0]}, not {shown[1]}"


def _write(place: Path, claims: Mapping[str, Any]) -> None:
    content = json.dumps(claims, indent=1, sort_keys=True) + "\n"
    with storage.atomic_path(place / CLAIM) as partial:
        partial.write_text(content, "utf-8")
