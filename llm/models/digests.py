"""Whether what lies in the folder of a model is still what was written there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from markov.errors import InvalidInput
from markov.files import inputs

PROVENANCE = "provenance.json"
DIGESTS = "digests"  # in it: those of all other files
WEIGHTS = "*.safetensors"


def digest_of(file: Path) -> str:
    """Return the digest of a file, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests(folder: Path, which: str = "*") -> dict[str, str]:
    """Return the digest of each file in a folder but of its provenance, by its name."""
    files = (one for one in sorted(folder.glob(which)) if one.is_file())
    return {file.name: digest_of(file) for file in files if file.name != PROVENANCE}


def unchanged(folder: Path, which: str = "*") -> Path:
    """Return a folder whose files are those that its provenance tells of, or those of a pattern.

    A folder of which nobody noted any digests is passed over. Raises `InvalidInput` for a file that
    is another one, or gone.
    """
    try:
        known = inputs.read_json(folder / PROVENANCE, "model").get(DIGESTS)
    except (InvalidInput, AttributeError):
        return folder
    if isinstance(known, dict):
        found = digests(folder, which)
        wanted = sorted(name for name in known if Path(name).match(which))
        for name in (one for one in wanted if found.get(one) != known[one]):
            allowed = f"a folder with the {name} that its {PROVENANCE} is of (it was damaged, or "
            raise InvalidInput("model", str(folder), f"{allowed}changed)")
    return folder
