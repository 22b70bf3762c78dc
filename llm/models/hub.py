"""What went wrong with a model of the hub, and what to do about it, in one line.

transformers and huggingface_hub say it in several lines of their own, which name neither. What
counts is the first cause among the exceptions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from safetensors import SafetensorError

# Packages whose exceptions come from the network and are no OSError.
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "huggingface_hub")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LOGIN = "log in with `hf auth login` or set HF_TOKEN"
FOLDER = "the path of a folder can be given instead"


def is_of_network(error: BaseException) -> bool:
    """Return whether an exception is one of a package that talks to the hub."""
    return type(error).__module__.partition(".")[0] in NETWORK


def reason_of_hub(error: BaseException, name: str, revision: str | None = None) -> str | None:
    """Return why a model of the hub could not be read and what to do, or None if it is unknown."""
    from huggingface_hub import constants, errors

    page, causes = f"{constants.ENDPOINT}/{name}", list(_causes(error))

    def caused(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    status = {getattr(getattr(one, "response", None), "status_code", 0) for one in causes}
    if caused(errors.GatedRepoError):
        return f"it is gated: ask for access at {page}, then {LOGIN}"
    if caused(errors.RevisionNotFoundError):
        return f"it has no revision {revision}: {page}/tree/main shows which there are"
    if caused(errors.RepositoryNotFoundError):
        return f"the hub has no model of this id, or it is private: mend the id, or {LOGIN}"
    if any(code >= 500 for code in status):
        return f"the hub answers with error {max(status)}: ask again later; {FOLDER}"
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and it is not in the cache: unset it; {FOLDER}"
    if any("onsistency check failed" in str(one) for one in causes):
        return "the download broke off: ask again; files that are whole are kept"
    if caused(errors.LocalEntryNotFoundError) or any(map(is_of_network, causes)):
        return f"{constants.ENDPOINT} cannot be reached, or broke off: connect, ask again; {FOLDER}"
    if _is_known_to_lack(name, "config.json", revision):
        return f"it has no config.json; of a GGUF file, download it from {page} and give its path"
    if all(_is_known_to_lack(name, file, revision) for file in WEIGHTS):
        return "it has no weights as safetensors, and pickles, which can run code, are not read"
    if caused(SafetensorError):
        folder = f"{constants.HF_HUB_CACHE}/models--{name.replace('/', '--')}"
        return f"what was fetched is damaged ({error}): remove {folder} and ask again"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def commit_of(name: str, revision: str | None, file: str) -> str | None:
    """Return the commit at which a file of a model of the hub was just fetched, or None.

    transformers' configurations do not always say; the folder in the cache is called by it.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # no id
        return None
    return os.path.basename(os.path.dirname(found)) if isinstance(found, str) else None


def _is_known_to_lack(name: str, file: str, revision: str | None) -> bool:
    """Return whether the cache knows that a model of the hub has no such file."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # no id
        return False
    return not isinstance(found, str) and found is not None
