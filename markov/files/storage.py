"""Results on disk: written whole or not at all, and carrying what made them.

Tables are parquet files and parameters safetensors files; both hold their provenance, and a seal by
which a changed byte is noticed (see `markov.files.seals`). Equal contents give equal bytes. A
`fingerprint` of settings and code names a cached result: a changed setting, or a change in what the
code behind it does, asks for a new one.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import markov
from markov.errors import InvalidInput, first_line, require
from markov.files import closure, inputs, leftovers, seals
from markov.files.inputs import Location as Location

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

Kept = TypeVar("Kept")
KEY = "provenance"
VERSIONED = ("torch", "numpy", "pandas", "pyarrow")
# What libraries raise for files that others wrote, beside errors of their own.
UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError),
    *(NotImplementedError, OverflowError),
)
UNCHANGED = "a file as it was written (its digest is another one: it was damaged, or changed)"


def cache_dir() -> Path:
    """Return the folder of recomputable results, made where it is missing.

    It is $SIMNPO_LAB_CACHE, or one in the user's own cache folder. Raises `InvalidInput` if it
    cannot be written.
    """
    chosen = os.environ.get("SIMNPO_LAB_CACHE")
    try:
        folder = Path(chosen).expanduser() if chosen else _user_cache() / "simnpo-lab"
        # Made before it is tried, because processes that start together must not take it away from
        # each other.
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no home folder to be found
        raise InvalidInput(
            "SIMNPO_LAB_CACHE", chosen, f"a folder that can be written ({error})"
        ) from None
    return check_writable(folder, "SIMNPO_LAB_CACHE", folder=True)


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    # The XDG convention asks that a relative path be ignored.
    return Path(named) if os.path.isabs(named) else Path.home() / ".cache"


def check_writable(path: Location, field: str, *, folder: bool = False) -> Path:
    """Return the path if a file (or `folder`) can be written there, else raise `InvalidInput`.

    Writing is tried out before any work, and nothing is left behind.
    """
    path, what = inputs.expanded(path, field), "folder" if folder else "file"
    try:
        # Of a link what it points to is written. A name that no file can have is an error here, and
        # so are links in a circle.
        target = Path(os.path.realpath(path))
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(target)
        if target.exists() and not (target.is_dir() if folder else target.is_file()):
            raise FileExistsError(errno.EEXIST, f"{inputs.kind_of(target)} lies there")
        # Files are replaced, never rewritten, so what a file needs is a folder that takes a new
        # one. A folder that is not there yet is not made for the trial either: whoever finds it
        # would take it for a result.
        place = target if folder and target.exists() else target.parent
        leftovers.clear(place, target.name)
        _try_creating(place / leftovers.partial_name(target.name))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(field, str(path), f"a {what} that can be written ({reason})") from None
    return path


def _try_creating(probe: Path, trials: int = 3) -> None:
    made: list[Path] = []
    try:
        for folder in reversed([parent for parent in probe.parents if not parent.exists()]):
            folder.mkdir(exist_ok=True)
            made.append(folder)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    # Another process has just removed a folder that it had made for its own trial.
    except FileNotFoundError:
        if trials == 1:
            raise
        _try_creating(probe, trials - 1)
    finally:
        for folder in reversed(made):
            # Another process may have begun to use a folder that was made here.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def atomic_path(path: Location) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place when the block ends.

    It is removed when anything is raised. What killed processes left of the same file is cleared.
    """
    # So that a link keeps pointing at its target, and is not replaced.
    target = Path(os.path.realpath(inputs.expanded(path, "path")))
    require(
        not target.exists() or target.is_file(), "path", str(path), "a file that can be written"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    leftovers.clear(target.parent, target.name)
    # Only a name: whoever writes creates the file, with the rights of the user's umask. Some
    # writers go by the suffix.
    partial = target.with_name(leftovers.partial_name(target.name) + target.suffix)
    try:
        yield partial
        # What has a name must be there in whole, also after the power failed.
        with open(partial, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def settings_of(value: object) -> Any:
    """Return `value` in the vocabulary of JSON.

    Dataclasses and named tuples keep their name under "class", which no field can be called. Raises
    `InvalidInput` for values of other kinds.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"class": "float", "value": str(value)}
    names = getattr(value, "_fields", None)  # of a named tuple
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
    if names is not None:
        return {
            "class": type(value).__qualname__,
            **{name: settings_of(getattr(value, name)) for name in names},
        }
    if isinstance(value, Mapping):
        require(
            all(isinstance(name, str) for name in value),
            "settings",
            value,
            "mappings with strings as keys",
        )
        return {name: settings_of(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [settings_of(item) for item in value]
    dtype, tolist = getattr(value, "dtype", None), getattr(value, "tolist", None)
    if dtype is not None and tolist is not None:  # arrays, tensors and their scalars
        return {
            "class": "array",
            "dtype": str(dtype).split(".")[-1],
            "values": settings_of(tolist()),
        }
    raise InvalidInput(
        "settings", value, "plain values, arrays, tuples, mappings, dataclasses or named tuples"
    )


def _canonical(rendered: object) -> str:
    return json.dumps(rendered, sort_keys=True, allow_nan=False)


def _digest(rendered: object) -> str:
    return hashlib.sha256(_canonical(rendered).encode()).hexdigest()[:32]


def code_version(*sources: str, without: Collection[str] = ()) -> str:
    """Return a digest of the code that modules and packages depend on.

    That is what they import, however indirectly: see `markov.files.closure`. A source is a module
    ("markov.training") or a package ("markov": every module in it).
    """
    return _digest(closure.digests(*sources, without=without))


def fingerprint(value: object, *sources: str, without: Collection[str] = ()) -> str:
    """Return the name of a result.

    It changes with every setting and with the code behind `sources`, and with nothing else.
    """
    return _digest([settings_of(value), code_version(*sources, without=without)])


def provenance(
    settings: object,
    *sources: str,
    without: Collection[str] = (),
    seeds: Iterable[int] | None = None,
) -> dict[str, Any]:
    """Return how a result came about: its settings, its seeds and the versions behind it.

    The versions are those of the code in `sources` and of what it stands on.
    """
    sources = sources or ("markov",)
    return {
        "package": "simnpo-lab",
        "version": markov.__version__,
        "commit": git_commit(),
        "sources": sorted(sources),
        "code": code_version(*sources, without=without),
        "fingerprint": fingerprint(settings, *sources, without=without),
        "python": platform.python_version(),
        # Asked of the installation, because importing all of these would take seconds.
        **{name: importlib.metadata.version(name) for name in VERSIONED},
        "seeds": None if seeds is None else [int(seed) for seed in seeds],
        "settings": settings_of(settings),
    }


def git_commit() -> str | None:
    """Return the commit checked out around this package.

    It is None outside the project's own checkout.
    """
    folder = Path(__file__).parents[1]
    command = ["git", "-C", str(folder), "rev-parse", "HEAD", "--show-prefix"]
    try:
        # Words of this module alone, and no shell.
        said = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=10)  # nosec B603
        answer = said.decode("utf-8", "replace").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    # A package that is installed into an environment inside some other checkout would see the
    # commit of that one.
    return answer[0] if answer[1:] == [f"{folder.name}/"] else None


@leftovers.beside_others
def write_table(frame: DataFrame, path: Location, provenance: Mapping[str, Any]) -> None:
    """Write `frame` with its provenance; the bytes depend on these two alone."""
    import pyarrow
    import pyarrow.parquet

    frame = frame.copy(deep=False)
    frame.attrs = {}  # a frame that was read carries its old provenance here
    # Frames that are equal may be chunked differently, for example after a concatenation, and the
    # file would show it.
    table = pyarrow.Table.from_pandas(frame).combine_chunks()
    described = {
        **(table.schema.metadata or {}),
        KEY.encode(): _described(provenance).encode(),
    }
    content = io.BytesIO()
    pyarrow.parquet.write_table(
        table.replace_schema_metadata(described), content, compression="zstd"
    )
    with atomic_path(path) as partial:
        partial.write_bytes(seals.sealed(content.getvalue()))


def read_table(path: Location) -> DataFrame:
    """Return the frame that `write_table` wrote, with its provenance under `attrs["provenance"]`.

    Raises `InvalidInput` for a file that is missing, damaged or not written by `write_table`.
    """
    import pyarrow
    import pyarrow.parquet

    known = read_provenance(path)
    try:
        place = inputs.expanded(path, "file")
        require(not seals.broken(place), "file", os.fspath(path), UNCHANGED)
        # Opened here, because pyarrow takes only names that are text.
        with open(place, "rb") as file:
            frame = pyarrow.parquet.read_table(file).to_pandas()
    except InvalidInput:
        raise
    except (*UNREADABLE, pyarrow.ArrowException) as error:
        reason = first_line(error)
        raise InvalidInput(
            "file", os.fspath(path), f"a table that can be read ({reason})"
        ) from None
    frame.attrs = {KEY: known}
    return frame


def read_provenance(path: Location) -> dict[str, Any]:
    """Return the provenance inside a table or, by its suffix, a safetensors file.

    The rest of the file is not read.
    """
    import pyarrow
    import pyarrow.parquet
    from safetensors import SafetensorError, safe_open

    allowed, name = "an existing file that carries its provenance", os.fspath(path)
    place = inputs.existing_file(path, "file", allowed)
    try:
        if place.suffix == ".safetensors":
            with safe_open(place, framework="pt") as file:
                said = file.metadata()[KEY].encode()
        else:
            with open(place, "rb") as file:
                said = pyarrow.parquet.read_schema(file).metadata[KEY.encode()]
    except (*UNREADABLE, pyarrow.ArrowException, SafetensorError):
        # a file without any metadata reads as None, which is a TypeError
        raise InvalidInput("file", name, allowed) from None
    found = inputs.parsed(said, "file", name, allowed)
    require(isinstance(found, dict), "file", name, allowed)
    found.pop(seals.KEY, None)
    return found


def _described(provenance: Mapping[str, Any]) -> str:
    """Return a provenance as it stands in a file, with a place for the seal."""
    return _canonical({**settings_of(provenance), seals.KEY: seals.BLANK})


def read_kept(path: Path, read: Callable[[Path], Kept]) -> Kept | None:
    """Return what `read` makes of a cached file or folder, or None where it has to be made now.

    What `read` refuses is set aside, so that it never stops a second command.
    """
    if not path.exists():
        return None
    try:
        return read(path)
    except InvalidInput as error:
        leftovers.set_aside(path, error)
        return None


def unfinished(key: object, *sources: str) -> Path:
    """Return the cache folder for the finished parts of a result that is not whole yet.

    It is named by what the result depends on. Whoever has written the result discards it
    (`leftovers.discard`).
    """
    folder = cache_dir() / "unfinished"
    leftovers.clear(folder)
    return folder / fingerprint(key, *sources)


@leftovers.beside_others
def save_parameters(
    path: Location, parameters: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write named tensors, with `metadata` as their provenance."""
    from safetensors.torch import save

    # Copies, because views of one tensor (the members of an ensemble, tied weights) are refused;
    # one metadata entry, because several would be written in random order; and `save`, because
    # `save_file` hides files from other users.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in parameters.items()
    }
    with atomic_path(path) as partial:
        partial.write_bytes(seals.sealed(save(tensors, {KEY: _described(metadata)})))


def load_parameters(path: Location) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raise `InvalidInput` for any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    allowed = "an existing safetensors file"
    place = inputs.existing_file(path, "parameters", allowed)
    try:
        require(not seals.broken(place), "parameters", os.fspath(path), UNCHANGED)
        return load_file(place)
    except InvalidInput:
        raise
    except (*UNREADABLE, SafetensorError):
        raise InvalidInput("parameters", os.fspath(path), allowed) from None
