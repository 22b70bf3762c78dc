"""`python -m llm muse`: what a model still recites, knows and gives away of the texts that it was to forget."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.options import ModelOptions, load_model, objective, write
from markov import storage
from markov.errors import require

if TYPE_CHECKING:
    import pandas as pd

    from llm.membership import Membership
    from llm.models import LanguageModel
    from llm.muse import Measured, Measuring
    from llm.muse_data import MuseData
    from llm.unlearning import Unlearning

PREFIX = "news:"
PIECES = {True: 256, False: 2048}  # tokens of a piece of the generated news, and of MUSE's own texts
TABLE, ITEMS, EPOCHS, MODEL = "measures.parquet", "items.parquet", "epochs.parquet", "model"
UNITS = {"verbmem": "% ROUGE-L F1", "knowmem": "% ROUGE-L F1", "privleak": "%", "auc": "", "auc_retrained": ""}
ORIENTATION = "AUC: share of pairs in which the held-out text looks better known; 0: forget texts known by heart"
DIRECTION = (
    "PrivLeak: change of the AUC from the retrained model's; 0 is ideal, below too little forgotten, above too much"
)


@dataclass(frozen=True, kw_only=True)
class Muse(ModelOptions):
    """Measure as MUSE does, with 95% intervals: VerbMem, KnowMem on forget and retain data, the AUC behind PrivLeak.

    PrivLeak itself needs --retrained, the model that never read what is to be forgotten. With --unlearn the model
    first forgets the texts, in pieces. Writes measures.parquet and items.parquet, a row per passage, question and text,
    to OUT, and of an unlearned model epochs.parquet and model/.
    Example: python -m llm muse --retrained news:retrained --unlearn simnpo:0.7 --learning-rate 5e-4
    """

    model: str = "news:original"
    """A folder, a hub id such as muse-bench/MUSE-News_target, or a model made here: news:original (read all articles)
    or news:retrained (never read those to forget)."""
    data: str = "news"
    """news (generated, news:SEED for others), muse:News, muse:Books, or a folder of such files, CONFIG/SPLIT.json."""
    retrained: str | None = None
    """The model retrained without the forget data, for PrivLeak."""
    unlearn: str | None = None
    """Unlearn first: CORNER:BETA[:GAMMA] of npo, simnpo, length_normalized_npo, reference_free_npo, or
    gradient_ascent."""
    retain_term: Literal["none", "cross_entropy", "kl"] = "cross_entropy"
    """With --unlearn: loss on the texts to retain that is added; kl: from the model before unlearning."""
    retain_weight: float = 0.1
    """With --unlearn: its factor, lambda, as published."""
    epochs: int = 10
    """With --unlearn: passes over the forget texts."""
    batch: int = 8
    """With --unlearn: pieces per update."""
    learning_rate: float = 1e-5
    """With --unlearn: largest step size of AdamW. The default is for billions of parameters; for news:original 5e-4."""
    piece: int | None = None
    """With --unlearn: tokens of a piece of text (default: MUSE's 2048, and 256 for generated news)."""
    max_length: int = 2048
    """Tokens of a text that PrivLeak looks at; a longer one is cut there."""
    json: bool = False
    """Print one JSON object and nothing else."""
    out: Path = Path("out/muse")
    """Folder to write."""


def muse(command: Muse) -> None:
    """Measure, after unlearning if that is asked for, and print what was found."""
    from llm.models import check_same_vocabulary, check_savable
    from llm.muse import Measuring, evaluate_muse, unlearn_texts
    from llm.muse_data import generated, read_muse

    settings = None if command.unlearn is None else unlearning(command)
    measuring = Measuring(max_length=command.max_length, budget=command.budget)
    require(command.piece is None or command.piece >= 2, "piece", command.piece, "at least 2 tokens")
    storage.check_writable(command.out, "out", folder=True)
    taken = settings is not None and (command.out / MODEL).exists()
    require(not taken, "out", str(command.out), "a folder without an unlearned model in it")
    data = read_muse(command.data)
    language, retrained = _model(command, command.model), None
    if command.retrained is not None:
        other = _model(command, command.retrained)
        check_same_vocabulary(language.tokenizer, other.tokenizer, "retrained")
        retrained = _scores(other, data, measuring)
        del other
    if settings is not None:
        length = command.piece or PIECES[generated(command.data) is not None]
        check_savable(language, command.out / MODEL)
        run = unlearn_texts(language, data, settings, length=length)
        _keep(command, language, run.epochs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate_muse(language, data, retrained=retrained, settings=measuring)
    for message in dict.fromkeys(str(one.message) for one in caught):
        print(f"warning: {message}", file=sys.stderr)
    write(found.table, command.out / TABLE, command)
    write(found.items, command.out / ITEMS, command)
    print(json.dumps(as_json(found), allow_nan=False) if command.json else f"{report(found)}\n{command.out}")


def _scores(language: LanguageModel, data: MuseData, measuring: Measuring) -> Membership:
    """All that is needed of the retrained model."""
    from llm.membership import membership

    options: dict[str, Any] = dict(k=measuring.k, max_length=measuring.max_length, budget=measuring.budget)
    return membership(language, data.privleak_forget, data.privleak_holdout, **options)


def unlearning(command: Muse) -> Unlearning:
    """The settings of the unlearning that a command describes; raises `InvalidInput` for what they cannot be."""
    from llm.optimization import Optimization
    from llm.unlearning import Unlearning

    every = Optimization(
        epochs=command.epochs,
        batch=command.batch,
        learning_rate=command.learning_rate,
        warmup_epochs=min(1.0, command.epochs / 2),
        budget=command.budget,
    )
    return Unlearning(
        objective=objective(command.unlearn or ""),
        optimization=every,
        retain_term=command.retain_term,
        retain_weight=command.retain_weight,
    )


def _model(command: Muse, word: str) -> LanguageModel:
    """A model by its word; of the small ones those that read the very news that are asked about."""
    if not word.startswith(PREFIX):
        return load_model(command, None if word == command.model else word)
    from llm.models import DTYPES
    from llm.muse_data import generated
    from llm.news import News
    from llm.news_models import NewsModels, build

    require(command.dtype in DTYPES, "dtype", command.dtype, f"one of {', '.join(DTYPES)}")
    settings = NewsModels(news=generated(command.data) or News())
    built = build(settings, word.removeprefix(PREFIX), device=command.device)
    dtype = DTYPES[command.dtype]
    model = built.model if dtype is None else built.model.to(dtype=dtype)  # pyright: ignore[reportCallIssue]
    return built._replace(model=model)


def _keep(command: Muse, language: LanguageModel, epochs: pd.DataFrame) -> None:
    from llm.models import save

    described = {name: str(value) if isinstance(value, Path) else value for name, value in vars(command).items()}
    save(language, command.out / MODEL, storage.provenance(described, "markov.objectives", "llm"))
    write(epochs, command.out / EPOCHS, command)


def as_json(found: Measured) -> dict[str, Any]:
    """What was measured, as plain values: MEASURE_SPLIT, with intervals and numbers of items under the same names."""
    rows = {_name(row): row for row in found.table.to_dict("records")}
    return {name: row["value"] for name, row in rows.items()} | {
        "intervals": {name: [row["low"], row["high"]] for name, row in rows.items()},
        "items": {name: int(row["items"]) for name, row in rows.items()},
        "empty": {name: int(row["empty"]) for name, row in rows.items()},
        "orientation": ORIENTATION,
    }


def _name(row: dict[Any, Any]) -> str:
    with_split = row["measure"] in ("verbmem", "knowmem")
    return f"{row['measure']}_{row['split']}" if with_split else str(row["measure"])


def report(found: Measured) -> str:
    """What was measured, to read."""
    lines = ["in brackets 95% intervals over items"]
    for row in found.table.to_dict("records"):
        held = f"({row['low']:.3f} to {row['high']:.3f})"
        empty = f", {row['empty']} answered by nothing" if row["empty"] else ""
        name, unit = row["measure"], UNITS[row["measure"]]
        lines.append(f"{name:<15}{row['split']:<8}{row['value']:>9.3f} {held:<22}{unit:<14}{row['items']} items{empty}")
    lines.append(ORIENTATION)
    privleak = "privleak" in set(found.table["measure"])
    lines.append(DIRECTION if privleak else "no PrivLeak: name the model that never read the forget texts, --retrained")
    return "\n".join(lines)
