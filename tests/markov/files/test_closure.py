"""What a cached result depends on: everything that is computed for it, and nothing that is only
said or drawn.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from figures.cache import DRAWING
from figures.catalogue import CATALOGUE
from markov.errors import InvalidInput
from markov.files import closure, storage
from tests.test_architecture import PACKAGES, ROOT

# Where a change shows in a module, as it stands there and as it is changed.
SOURCE = '''"""What this is."""
from __future__ import annotations
from typing import TYPE_CHECKING
from made_up.inner import two
if TYPE_CHECKING:
    from made_up import never

class Law:
    """A law."""
    def value(self, x: int) -> int:
        """Its value."""
        return x + two.VALUE  # and no more

def lazily() -> int:
    from made_up.lazy import VALUE
    return VALUE if Law().value(1) in {1, 2, 3} else 0
'''


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package: one imports inner.two, which imports three; lazy is imported in a function,
    never when it runs.
    """
    folder = tmp_path / "made_up"
    (folder / "inner").mkdir(parents=True)
    texts = {
        "__init__": "VERSION = 1\n",
        "one": SOURCE,
        "inner/__init__": "",
        "inner/two": "from ..three import NUMBER\nVALUE = NUMBER\n",
        "three": "import made_up.one\nNUMBER = 3\n",
        "lazy": "VALUE = 4\n",
        "never": "VALUE = 5\n",
        "apart": "VALUE = 6\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_imports_are_followed_however_indirect_and_in_functions_but_not_for_types_alone(
    made_up: Path,
) -> None:
    found = closure.digests("made_up.one")
    assert set(found) == {"made_up.one", "made_up.inner.two", "made_up.three", "made_up.lazy"}
    assert closure.digests("made_up.three") == found  # a circle
    assert set(closure.digests("made_up.one", without=["made_up.inner.two"])) == {
        "made_up.one",
        "made_up.lazy",
    }


def keys_around(path: Path, old: str, new: str) -> tuple[str, str]:
    """The key of made_up.one before and after an edit of a module."""
    before = storage.code_version("made_up.one")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return before, storage.code_version("made_up.one")


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("one", "x + two", "x - two"),
        ("one", "{1, 2, 3}", "{1, 2, 4}"),
        ("one", "lazily() -> int", "lazily(y=0) -> int"),
        ("one", "VALUE if Law()", "VALUE if not Law()"),
        ("inner/two", "VALUE = NUMBER", "VALUE = -NUMBER"),
        ("three", "NUMBER = 3", "NUMBER = 3.0"),
        ("lazy", "4", "5"),
    ],
)
def test_what_is_computed_changes_the_key_two_imports_away_too(
    made_up: Path, module: str, old: str, new: str
) -> None:
    before, after = keys_around(made_up / f"{module}.py", old, new)
    assert after != before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("one", "What this is.", "What that was."),
        ("one", "A law.", "The law."),
        ("one", "Its value.", ""),
        ("one", "# and no more", "# and so on"),
        ("one", "return x + two.VALUE", "return (\n            x\n            + two.VALUE)"),
        ("one", "\n\ndef lazily", "\n\n\n\n# Later\ndef lazily"),
        ("three", "NUMBER = 3", "NUMBER = (3)"),
        ("never", "5", "6"),
        ("apart", "6", "7"),
        ("__init__", "1", "2"),
    ],
)
def test_what_is_said_or_not_reached_leaves_the_key(
    made_up: Path, module: str, old: str, new: str
) -> None:
    before, after = keys_around(made_up / f"{module}.py", old, new)
    assert after == before


def test_a_package_is_all_of_its_modules(made_up: Path) -> None:
    names = {
        "made_up",
        *(
            f"made_up.{name}"
            for name in ("one", "inner", "inner.two", "three", "lazy", "never", "apart")
        ),
    }
    assert set(closure.digests("made_up")) == names
    assert set(closure.digests("made_up.inner")) == names - {
        "made_up",
        "made_up.never",
        "made_up.apart",
    }


def test_the_key_is_the_same_in_every_process(made_up: Path) -> None:
    code = (
        "from markov.files.storage import code_version; print(code_version('made_up.one', "
        "'figures.language.best'))"
    )
    seen = {storage.code_version("made_up.one", "figures.language.best")}
    for seed in ("0", "1"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}:{made_up.parent}"}
        seen.add(
            subprocess.check_output(
                [sys.executable, "-c", code], env=environment, text=True
            ).strip()
        )
    assert len(seen) == 1


def test_every_figure_depends_on_what_it_computes_with_and_on_no_colour(tmp_path: Path) -> None:
    """In a copy of the project: a constant, a docstring, a colour, each for the table of every
    figure.
    """
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    code = "import sys; from markov.files import storage; (*modules, apart) = sys.argv[1:]\n"
    code += "print(*(storage.fingerprint(0, name, without=apart.split()) for name in modules))"
    modules = [entry.module for entry in CATALOGUE]

    def keys() -> dict[str, str]:
        command = [sys.executable, "-c", code, *modules, " ".join(DRAWING)]
        printed = subprocess.check_output(
            command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, text=True
        )
        return dict(zip(modules, printed.split(), strict=True))

    def after(file: str, old: str, new: str) -> set[str]:
        text = (tmp_path / file).read_text("utf-8")
        assert text.count(old) == 1
        (tmp_path / file).write_text(text.replace(old, new), "utf-8")
        found = keys()
        (tmp_path / file).write_text(text, "utf-8")
        return {name for name in modules if found[name] != before[name]}

    before = keys()
    assert len(set(before.values())) == len(modules)
    caption = '"""Does 1/|y| undo the growth'
    assert after("figures/theory/effective_push.py", caption, f"{caption} or shrinking") == set()
    assert after("figures/style.py", "from __future__ import annotations", "import math") == set()
    assert "figures.theory.effective_push" in after(
        "figures/theory/rungs.py", "from __future__ import annotations", "import math"
    )
    changed = after("llm/scoring/logprobs.py", "from __future__ import annotations", "import math")
    asked_of_both = {"reference_or_length", "push_and_need"}
    assert changed == {
        entry.module
        for entry in CATALOGUE
        if entry.name.startswith(("llm_", "muse_")) or entry.name in asked_of_both
    }
    changed = after("markov/training.py", "from __future__ import annotations", "import math")
    assert {
        "figures.chains.tradeoff",
        "figures.theory.optimizer",
        "figures.chains.claims",
    } <= changed


@pytest.mark.parametrize(
    "name", ["markov.no_such_module", "no_such_package", "", "sys", "made.up.name"]
)
def test_what_is_no_module_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="source"):
        closure.digests(name)
