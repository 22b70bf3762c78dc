"""The commands that make the default models and score a data set.

What takes seconds to import is imported when a command runs, so that --help answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from llm.commands.options import left_out, write
from llm.models.names import Made, data_of, made
from llm.models.source import ModelOptions, load_model
from markov.errors import require
from markov.files import folders, storage

Kind = Literal["original", "retrained", "partial"]
DATA = "data"


@dataclass(frozen=True, kw_only=True)
class Build:
    """Make the default models, which need no download: a small Llama that knows fictional authors by heart.

    They are kept in the cache ($SIMNPO_LAB_CACHE chooses where) and known to every command by the words that are
    printed: authors:KIND, or with another percent or seed authors:KIND:PERCENT[:SEED], whose data are authors:SPLIT and
    authors:SPLIT:SEED. With --out they are also written to a folder, beside the data as files in TOFU's format.
    """

    kinds: tuple[Kind, ...] = ("original", "retrained", "partial")
    """original: trained on all; retrained: never saw the forget data; partial: saw half of it."""
    percent: int = 10
    """How much of the authors is to be forgotten: 1, 5 or 10 percent."""
    seed: int = 0
    """Seed of the corpus and of the training."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU where there is one."""
    out: Path | None = None
    """Folder for copies: OUT/KIND the models, OUT/data the splits."""


@dataclass(frozen=True, kw_only=True)
class Score(ModelOptions):
    """Log-probabilities of the responses of a data set: a table with the columns index, logp (nats) and length.

    Example: python -m llm score --model authors:original --data authors:forget10 --out original.parquet
    """

    data: str | None = None
    """authors:SPLIT[:SEED], tofu:SPLIT, or a file or folder in TOFU's JSON (default: for small models
    authors:forget10)."""
    split: str | None = None
    """Split of a folder."""
    gradients: bool = False
    """Also the norm of the gradient of each logp, in the column gradient_norm; takes about as long as a training step
    on each batch."""
    noise: float | None = None
    """Score a perturbed model instead (the paper's A1): its weights averaged with Gaussian ones, of this many times
    the standard deviation of each tensor's own."""
    noise_seed: int = 0
    """Seed of the Gaussian weights."""
    out: Path = Path("out/scores.parquet")
    """Table to write."""


def build(command: Build) -> None:
    """Train what is not cached, and copy."""
    from llm.data import tofu as corpora
    from llm.data.authors.corpus import Authors, splits
    from llm.models.saving import save, saved_settings
    from llm.models.source import load

    require(len(command.kinds) > 0, "kinds", command.kinds, "at least one")
    words = {kind: Made("authors", kind, command.percent, command.seed).word for kind in command.kinds}
    for word in words.values():
        made(word)  # refuses a percent of which there are no splits
    authors = Authors(seed=command.seed)
    described = {kind: {"model": word, "percent": command.percent, "authors": authors} for kind, word in words.items()}
    if command.out is not None:
        folders.check_place(command.out)
        claimed = {"percent": command.percent, "authors": authors}
        folders.claim(command.out, "build", claimed, names=(*get_args(Kind), DATA))
        for kind in command.kinds:
            copy = command.out / kind
            ours = not copy.exists() or saved_settings(copy) == storage.settings_of(described[kind])
            require(ours, "out", str(command.out), f"a folder whose {kind} is of these settings, or not there")
    for kind, word in words.items():
        language = load(word, device=command.device)
        if command.out is not None and not (command.out / kind).exists():
            save(language, command.out / kind, storage.provenance(described[kind], __name__, seeds=[command.seed]))
        print(f"{kind}: {language.name}" if command.out is None else f"{kind}: {command.out / kind}")
    if command.out is not None:
        for name, examples in splits(authors).items():
            path = command.out / DATA / f"{name}.json"
            if not path.exists():  # what is there may have been edited since
                corpora.write(examples, path)


def score(command: Score) -> None:
    """Score a data set."""
    from llm.data.sources import read
    from llm.models.answers import responses, scores
    from llm.models.language_model import perturbed
    from llm.scoring.gradients import gradient_norms
    from llm.scoring.logprobs import Named, check_finite

    command = replace(command, data=data_of(command.model, command.data))
    if command.noise is None:
        left_out(command, ["noise_seed"], "left out without --noise")
    folders.check_table(command.out, inputs=(command.model, command.data))
    examples = read(command.data or "", command.split)
    language = load_model(command)
    if command.noise is not None:
        language = language._replace(model=perturbed(language.model, scale=command.noise, seed=command.noise_seed))
    frame = scores(language, examples, max_length=command.max_length, budget=command.budget)
    if command.gradients:
        encoded = responses(language, examples, max_length=command.max_length)
        norms = gradient_norms(language.model, encoded).double()
        named = Named([example.index for example in examples], language.name)
        check_finite("gradient_norm", norms, language.model, range(len(norms)), named)
        frame["gradient_norm"] = norms.numpy()
    write(frame, command.out, command)
    # Sums of numpy, unlike those of pandas, do not pass over a nan.
    length = frame["length"]
    mean = -frame["logp"].to_numpy().sum() / length.to_numpy().sum()
    shown = f"{len(frame)} responses of {length.min()} to {length.max()} tokens, {mean:.4f} nats per token"
    print(f"{shown}: {command.out}")
