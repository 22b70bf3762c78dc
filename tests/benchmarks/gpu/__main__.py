"""Try language models on a GPU, or the Markov lab: `make gpu` and `make gpu-markov`.

`python3 tests/benchmarks/gpu --help` lists the options.

Numbers are compared with the processor's, speed with the card's products of matrices, and memory
with its plan. The table is written row by row to gpu.md, gpu.json and gpu.parquet, so that what was
measured is kept however the run ends. A measurement that fails is a row that says why, and those
for which no time is left are rows too. The most valuable ones come first.

The machine's own torch and transformers are used. What else is needed, `needs.py` asks for.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
sys.path[0] = str(ROOT)
# Some machines have a package called tests among their own, which would hide this folder.
ours = ModuleType("tests")
ours.__path__ = [str(ROOT / "tests")]
sys.modules["tests"] = ours

from tests.benchmarks.gpu.needs import CHAINS, NEEDED, refusal  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    found = argparse.ArgumentParser(
        prog="make gpu", description="Correctness, speed and memory of language models on one GPU."
    )
    add = found.add_argument
    add("--model", default="smollm2-135m", help="the pretrained model: a name, a folder or a file")
    add("--data", default="authors:forget10", help="answers whose scores are compared")
    add("--device", default="auto", help="auto is the GPU; cpu tries this script itself")
    add("--quick", action="store_true", help="tiny models, which measure nothing worth knowing")
    add("--chains", action="store_true", help="the Markov lab in the place of language models")
    add("--models", type=Path, help="the folder that keeps trained chains; none is kept without")
    add("--minutes", type=float, default=7.5, help="what is not begun or done by then is left out")
    add("--out", type=Path, default=Path("out/gpu"), help="the folder of the table")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, and return 0, 1 where a bound does not hold, or 2 where nothing can be measured."""
    options = parser().parse_args(arguments)
    told = refusal(CHAINS if options.chains else NEEDED)
    if told:
        print(f"error: {told}", file=sys.stderr)
        return 2
    import torch

    word = "cuda" if options.device == "auto" else options.device
    if word.startswith("cuda") and not torch.cuda.is_available():
        print("error: torch sees no GPU; --device cpu --quick tries the script", file=sys.stderr)
        return 2
    if word == "cuda":
        word = f"cuda:{torch.cuda.current_device()}"

    from markov.files.storage import git_commit
    from tests.benchmarks.gpu.bench import Bench
    from tests.benchmarks.gpu.card import about
    from tests.benchmarks.gpu.rows import FAILS, Table
    from tests.benchmarks.gpu.steps import STEPS, work
    from tests.benchmarks.gpu.subjects import FULL, QUICK

    if options.chains:  # which needs more packages
        from tests.benchmarks.gpu import chains

    device = torch.device(word)
    scale = QUICK if options.quick else FULL
    known = {
        **about(device),
        "commit": str(git_commit()),
        "model": options.model,
        "scale": "quick: tiny models" if options.quick else "full",
    }
    table = Table(options.out, known)
    for name, one in known.items():
        print(f"{name}: {one}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
        bench = Bench(device, options.model, options.data, scale, options.models)
        work(bench, table, options.minutes, chains.STEPS if options.chains else STEPS)
    print(f"{len(table.rows)} rows: {options.out / 'gpu.md'}")
    return int(any(row["verdict"].startswith(FAILS) for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
