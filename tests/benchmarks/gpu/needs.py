"""The packages that must be there before a GPU is put to work, named in one line where they lack.

This module needs nothing but Python itself. The environment is the machine's own, with its torch
and its transformers, so that nothing is installed from here. `python3 needs.py study` also asks for
what a whole study needs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OLDEST = (3, 11)
OWN = ("torch", "transformers", "numpy", "tokenizers")  # those that a machine with a GPU has
# Names to import, and those of the packages that bring them; what these need in turn is named too.
ALWAYS = {
    **{name: name for name in OWN},
    **{name: name for name in ("accelerate", "peft", "safetensors", "pandas", "pyarrow", "tqdm")},
    **{name: name for name in ("psutil", "jaxtyping", "jinja2", "scipy")},
    "wadler_lindig": "wadler-lindig",
    "lazy_loader": "lazy-loader",
    "huggingface_hub": "huggingface-hub",
}
# Of language models: what says how the files in a model's folder have to look.
NEEDED = {
    **ALWAYS,
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
    "typing_extensions": "typing-extensions",
}
# Of the Markov lab.
CHAINS = {**ALWAYS, **{name: name for name in ("joblib", "cloudpickle", "filelock")}}
STUDY = {
    **NEEDED,
    **CHAINS,
    **{name: name for name in ("tyro", "typeguard", "nltk", "six", "regex")},
    **{name: name for name in ("click", "defusedxml")},
    "docstring_parser": "docstring-parser",
    "rouge_score": "rouge-score",
    "absl": "absl-py",
    "matplotlib": "matplotlib",
    "seaborn": "seaborn",
}


def missing(needed: Mapping[str, str]) -> list[str]:
    """Return the packages that are not there, in the order of `needed`."""
    return [package for name, package in needed.items() if find_spec(name) is None]


def advice(packages: Iterable[str], pins: str) -> str:
    """Return one line that says how to install packages, in the versions that are pinned.

    What a machine with a GPU has to have by itself is never suggested: another torch may not fit
    the card.
    """
    lacking = list(packages)
    own = [package for package in lacking if package in OWN]
    if own:
        return f"not there: {', '.join(own)}; the machine's own are used: PYTHON says which Python"
    known = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", pins, re.MULTILINE))
    words = (f"{one}=={known[one]}" if one in known else one for one in lacking)
    command = f"{sys.executable} -m pip install --no-deps {' '.join(words)}"
    return f"not there: {', '.join(lacking)}; {command}"


def refusal(needed: Mapping[str, str]) -> str | None:
    """Return what is missing, in one line, or None where all is there."""
    if sys.version_info < OLDEST:
        return f"{sys.executable} is too old: Python {'.'.join(map(str, OLDEST))} or newer"
    lacking = missing(needed)
    if not lacking:
        return None
    return advice(lacking, (ROOT / "constraints.txt").read_text("utf-8"))


if __name__ == "__main__":
    told = refusal(STUDY if sys.argv[1:] == ["study"] else NEEDED)
    if told:
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
