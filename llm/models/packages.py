"""Models that come in a package of the package index, found without importing the package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.models.digests import digest_of
from llm.models.names import Package
from markov.errors import InvalidInput, require


def find_packaged(name: str, package: Package | None) -> Path | None:
    """Return the file of a model's package, or None if that is not installed.

    The package is not imported, since what it imports need not be there. Raises `InvalidInput` for
    a file that is not the one that is known, by its sha256.
    """
    if package is None:
        return None
    module, _, inside = package.file.partition("/")
    found = importlib.util.find_spec(module)
    places = [Path(place, inside) for place in (found and found.submodule_search_locations) or ()]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None
    digest = digest_of(file)
    allowed = (
        f"the file of {package.word}: the sha256 of {file} begins with "
        f"{digest[:12]}, not with {package.sha256[:12]}; `{package.install} --force-reinstall` "
        "puts it right"
    )
    require(digest == package.sha256, "model", name, allowed)
    return file


@contextmanager
def hinted(package: Package | None) -> Iterator[None]:
    """Add to a refusal inside the block that the model can also be had from a package."""
    try:
        yield
    except InvalidInput as error:
        if package is None or error.field != "model":
            raise
        allowed = f"{error.allowed}; without the hub, `{package.install}` brings it"
        raise InvalidInput(error.field, error.value, allowed) from None
