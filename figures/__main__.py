"""Draw the paper's figures and this project's own: `python -m figures [NAME ...]`.

`--all` draws the heavy ones too.
"""

# torch, pandas and matplotlib are imported where figures are drawn, so that --help answers at once.

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from figures import catalogue
from figures.catalogue import ALL, BY_NAME, FIGURES, GALLERY, STUDY, module_of
from figures.checks import (
    OWN,
    check_gallery,
    check_memory,
    check_out,
    check_own,
    check_read,
    check_used,
)
from figures.drawn_of import unstudied
from llm.scoring.limits import BUDGET, MAX_LENGTH
from markov.console import ending
from markov.errors import require, require_jobs, require_whole
from markov.files import inputs, storage

if TYPE_CHECKING:
    import pandas as pd

    from figures.cache import Context
    from figures.language.own_model import OwnModel

MOST_SEEDS = 1000  # each of them takes minutes
TOLD = "told"  # folder for the tables that README and findings tell of a figure


@dataclass(frozen=True)
class Arguments:
    """What is drawn, of which runs, how large, and where it is written."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Figures to draw, of either group (default: all of the first one)."""
    all: bool = False
    """Draw the second group too: more than two hours on two cores."""
    quick: bool = False
    """Small models and little data: a few minutes at most, right in kind, not in numbers."""
    fresh: bool = False
    """Recompute tables even where they are cached (trained models are kept)."""
    seeds: int | None = None
    """Number of pretrained models, each unlearned in several orders of batches, and of trainings of
    the default language model. Default: 3 and 2 for a first look, 8 and 5 with --all and --gallery
    to judge by; 4 for theory.
    """
    out: Path = Path("out")
    """Output folder."""
    jobs: int = -1
    """Processes; -1 is one per core. Changes the time, never a number."""
    architectures: bool = False
    """For claims: also pretrain and unlearn the architecture of the released code.
    With --gallery that is done anyway.
    """
    whole: bool = False
    """For the figures of theory: a transformer of the paper's width and depth, not half of each.
    It is ten times slower.
    """
    runs: tuple[Path, ...] = ()
    """For the figures of language models: folders that `python -m llm unlearn` wrote.
    They take the place of the default model.
    """
    model: str | None = None
    """For the figures of language models: a folder or hub id to unlearn under the four corners."""
    retrained: str | None = None
    """With --model: the same retrained without the forget data.
    llm_bias and llm_truth_ratio need it.
    """
    data: str | None = None
    """With --model: what is to be forgotten, tofu:SPLIT, authors:SPLIT or a file.
    Default: for small models authors:forget20.
    """
    retain_data: str | None = None
    """With --model: what is to stay.
    Default: what goes with a forget split, such as tofu:retain90 with tofu:forget10.
    """
    learning_rate: float | None = None
    """With --model: largest step size of AdamW.
    Default: 1e-3 for small models, below 100 MB as those made here are, 1e-4 for others below
    500 million parameters, 1e-5 for larger ones and for an id of the hub.
    """
    epochs: int | None = None
    """With --model: passes over the forget data (default: 10, or 5 with --quick)."""
    batch: int = 32
    """With --model: forget examples per update, and as many retain examples."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """With --model: precision of the products in training; bfloat16 by autocast."""
    lora_rank: int | None = None
    """With --model: train adapters of this rank in all linear layers, not the model itself."""
    gradient_checkpointing: bool = False
    """With --model: save memory by computing activations twice."""
    template: Literal["auto", "plain", "llama2_chat", "chat"] = "auto"
    """With --model: how prompt and response are written (default: as the model was trained)."""
    system: str | None = None
    """With --model: what a chat template is given as the system's turn; "" leaves it out."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """With --model: floating-point numbers of the model."""
    device: str = "auto"
    """With --model: cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    revision: str | None = None
    """With --model: commit, tag or branch of a model from the hub."""
    trust_remote_code: bool = False
    """With --model: run code that comes with it; only where you trust its authors."""
    max_length: int = MAX_LENGTH
    """With --model: tokens that prompt and response may have; a longer one is refused."""
    budget: int = BUDGET
    """With --model: tokens of a batch, padding included, which changes speed and memory."""
    memory: str | None = None
    """With --model: plan for a device with so much free memory, such as 24GB."""
    logs: tuple[Path, Path] | None = None
    """For llm_bias and llm_truth_ratio: evaluation logs before unlearning, and retrained."""
    study: Path | None = None
    """A folder that `python -m llm study` wrote: figures of language models are drawn of it.
    Without a NAME, draw all that it has the runs and measures for, and name the others.
    """
    evidence: Path | None = None
    """For ledger: the folder of tables to judge, such as out/told. Default: those kept with the
    code.
    """
    gallery: bool = False
    """Also refresh the small pictures of README and findings, and the numbers that these tell;
    without a NAME, draw those.
    With --study those of the NAMEs, and their frames.
    """


DESCRIPTION = f"""Draw figures; each NAME writes NAME.pdf, NAME.png and NAME.parquet (the frame it
draws) to the output folder.

Without a NAME the first group is drawn, in about {catalogue.minutes()} minutes on two cores: the
Markov study, exact theory, and language models, a small one that needs no download or --runs of
your own.

{catalogue.described(heavy=False)}

The second group takes longer; --all draws both groups, a NAME any figure of either.

{catalogue.described(heavy=True)}

Some of those that take minutes are there at once, roughly, if they come first: the picture says so,
and the full one takes its place. A second drawing of anything takes seconds: trained models and
tables are cached and rebuilt when settings or code change; $SIMNPO_LAB_CACHE chooses where.
llm_truth_ratio and llm_bias also show evaluation logs: your own (--logs) or, where $SIMNPO_LAB_TOFU
names a clone of the public repository locuslab/tofu, those of Llama-2-7B in it. With --debug a
failure also prints where it happened.
"""


def main(arguments: Arguments) -> None:
    """Draw the figures that were asked for."""
    names = chosen(arguments)
    require_jobs(arguments.jobs)
    if arguments.seeds is not None:
        require_whole(arguments.seeds, "seeds", 1, MOST_SEEDS)
    check_gallery(arguments)
    check_own(arguments)
    check_used(arguments, names)
    check_out(arguments, names)
    if arguments.study is not None:
        names = of_study(arguments.study, names, named=bool(arguments.names))

    # What is refused above need not wait for these.
    from figures import drawing, progress
    from figures.cache import Context
    from figures.scale import EVIDENCE, TRAINED, Scale, quick_scale
    from llm.training.memory import keep_what_is_freed

    own = own_model(arguments)
    if own is not None:
        check_memory(own, names)
    else:
        keep_what_is_freed()
    scale = quick_scale() if arguments.quick else Scale()
    if (arguments.all or arguments.gallery) and not arguments.quick:
        scale = replace(scale, pretrained=EVIDENCE, trained=TRAINED)
    if arguments.seeds is not None:
        many = arguments.seeds
        scale = replace(scale, pretrained=many, sweep_pretrained=many, trained=many)
    scale = replace(scale, whole=arguments.whole)
    check_read(arguments, names, own)
    context = Context(
        scale=scale,
        n_jobs=arguments.jobs,
        since=time.time() if arguments.fresh else 0.0,
        runs=arguments.runs,
        own=own,
        logs=arguments.logs,
        study=arguments.study,
        evidence=arguments.evidence,
    )
    # The gallery's table of claims is of both architectures.
    arguments = replace(arguments, architectures=arguments.architectures or arguments.gallery)
    both = {"architectures": arguments.architectures}
    expected = progress.expected(names, context, **both)
    with progress.display(expected) as shown:
        for name in names:
            shown.start(name)
            began = time.perf_counter()
            wanted = name == names[0] and not (arguments.quick or expected[name].cached)
            if wanted and BY_NAME[name].rough and drawing.roughly(name, context, arguments.out):
                taken = f"{time.perf_counter() - began:.0f} s; the full one takes its place"
                shown.say(f"{name}: {arguments.out / name}.png, roughly, in {taken}")
            with progress.timed(name, context, **both):
                frame = draw(name, context, arguments)
            if BY_NAME[name].asked and hasattr(module_of(name), "text"):
                shown.say(module_of(name).text(frame))
            written = f"{arguments.out / name}.{{pdf,png,parquet}}"
            shown.done(f"{name}: {written} in {time.perf_counter() - began:.0f} s")


def chosen(arguments: Arguments) -> tuple[str, ...]:
    """Return the figures that the arguments ask for, each once.

    Raises `InvalidInput` for a name that no figure has.
    """
    for name in arguments.names:
        require(name in BY_NAME, "figure", name, f"one of {', '.join(BY_NAME)}")
    require(
        not (arguments.names and arguments.all), "all", True, "left out where figures are named"
    )
    whole = ALL if arguments.all else GALLERY if arguments.gallery else FIGURES
    whole = STUDY if arguments.study else whole
    names = tuple(dict.fromkeys(arguments.names or whole))
    if not arguments.quick or arguments.study:
        return names
    full = [name for name in names if BY_NAME[name].full]
    refused = full if arguments.names else []
    require(not refused, "quick", True, f"left out with {' '.join(refused[:1])}: full scale only")
    if full:
        print(f"left out at quick scale: {', '.join(full)}")
    return tuple(name for name in names if name not in full)


def of_study(place: Path, names: Sequence[str], *, named: bool) -> tuple[str, ...]:
    """Return the figures that can be drawn of a study, and print why panels of the paper cannot.

    Raises `InvalidInput` for no study, and where a figure that was `named` cannot be drawn of it.
    """
    from figures.language.studies import lacking

    missing = lacking(place)
    why = {name: unstudied(name, missing) for name in (names if named else BY_NAME)}
    for name, reason in why.items():
        panel = BY_NAME[name].panel
        require(not (named and reason), "study", str(place), f"left out with {name}: {reason}")
        if reason and panel:
            print(f"{name} (paper: {panel}) is not drawn: {reason}")
    return tuple(name for name in names if not why[name])


def draw(name: str, context: Context, arguments: Arguments) -> pd.DataFrame:
    """Compute, or read, the frame of a figure, write it with its pictures, and return it.

    The numbers that README and findings tell of a figure are written beside, in the folder told.
    """
    from figures import drawing
    from figures.chains import claims

    module, own = module_of(name), context.study is not None
    if BY_NAME[name].trained:
        from figures.language.sweeps import with_default

        context = with_default(context)
    both = arguments.architectures and module is claims
    frame = claims.both_architectures(context) if both else module.data(context)
    if context.study is not None:
        from figures.language import studies

        frame = studies.signed(context.study, frame)
    kept = Path(__file__).parent / "gallery"
    small = kept / f"{name}.png" if arguments.gallery and name in GALLERY else None
    if arguments.gallery and own:
        small = kept / "study" / f"{name}.png"
    drawing.write(name, module, frame, context.scale, arguments.out, small)
    if small is not None and own:
        # What is said of the study is compared with this.
        with storage.atomic_path(small.with_suffix(".csv")) as partial:
            frame.to_csv(partial, index=False, float_format="%.6g")
    folders = [arguments.out / TOLD, *([kept] if arguments.gallery and not own else [])]
    drawing.tell(name, module, frame, context.scale, folders)
    if hasattr(module, "markdown"):
        with storage.atomic_path(arguments.out / f"{name}.md") as partial:
            partial.write_text(module.markdown(frame), "utf-8")
    return frame


def own_model(arguments: Arguments) -> OwnModel | None:
    """Return the language model that the arguments name, or None."""
    if arguments.model is None:
        return None
    from figures.language.own_model import own_model as read_own

    own = read_own(**{name: getattr(arguments, name) for name in OWN})
    print(
        f"{own.model} unlearns {own.data} and keeps {own.retain_data}; learning rate "
        f"{own.learning_rate:g}"
    )
    return own


def cli(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments (default: the process's own), draw, and return the exit code."""
    given, debug = ending.debugged(arguments)

    def run() -> None:
        parsed = tyro.cli(Arguments, prog="python -m figures", description=DESCRIPTION, args=given)
        main(inputs.expand_all(parsed))

    return ending.exit_code(run, debug=debug)


if __name__ == "__main__":
    sys.exit(cli())
