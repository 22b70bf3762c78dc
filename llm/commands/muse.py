"""`python -m llm muse`: what a model still recites, knows and gives away of texts to forget."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.commands.options import plain_warnings, spread, write
from llm.jobs.planning import MemoryOption, planned
from llm.jobs.settings import left_out, rate_of
from llm.models.names import check, is_small
from llm.models.source import ModelOptions, load_model
from llm.ranks import in_shards
from llm.training.processes import held, in_first
from markov.errors import require, require_whole
from markov.files import folders, storage

if TYPE_CHECKING:
    from llm.data.muse import MuseData
    from llm.evaluation.membership import Membership
    from llm.evaluation.muse import Measured, Measuring
    from llm.models.language_model import LanguageModel
    from llm.unlearning.unlearn import Unlearning

# options that go with --unlearn
UNLEARN = ("retain_term", "retain_weight", "epochs", "batch", "learning_rate", "piece")
TABLE, ITEMS, EPOCHS, MODEL = "measures.parquet", "items.parquet", "epochs.parquet", "model"
STATE = "state"
JOB, NAMES = "muse", (TABLE, ITEMS, EPOCHS, MODEL, STATE)


@dataclass(frozen=True, kw_only=True)
class Muse(ModelOptions, MemoryOption):
    """Measure as MUSE does, with 95% intervals: VerbMem, KnowMem and the AUC behind PrivLeak.

    KnowMem is measured on forget and retain data. PrivLeak itself needs --retrained, the model that
    never read what is to be forgotten. With --unlearn the model first forgets the texts, in pieces.
    Writes measures.parquet and items.parquet, a row per passage, question and text, to OUT, and of
    an unlearned model epochs.parquet and model/. A command that was stopped goes on where it was,
    and one that is finished is read. Example:
    python -m llm muse --retrained news:retrained --unlearn simnpo:0.7
    """

    model: str = "news:original"
    """A folder, a GGUF file, a hub id, or a model made here.
    An id is such as muse-bench/MUSE-News_target.
    news:original is made here, and has read all articles of the news of --data.
    news:retrained has never read those to forget; news:KIND:SEED has read other news.
    """
    data: str | None = None
    """Texts to measure by: news, muse:News, muse:Books or a folder.
    news are generated, news:SEED others; a folder has such files, CONFIG/SPLIT.json.
    Default: for small models news.
    """
    retrained: str | None = None
    """The model retrained without the forget data, for PrivLeak."""
    unlearn: str | None = None
    """Unlearn first, by a method in the words of `sweep`.
    It is NAME[:BETA[:GAMMA]][@RETAIN_WEIGHT].
    NAME is npo, simnpo, length_normalized_npo, reference_free_npo, gradient_ascent or grad_diff.
    """
    retain_term: Literal["none", "cross_entropy", "kl"] | None = None
    """With --unlearn: loss on the texts to retain that is added.
    kl: from the model before unlearning.
    Default: the method's: none for gradient_ascent, kl for names with kl, else cross_entropy.
    """
    retain_weight: float | None = None
    """With --unlearn: factor of the retain loss, lambda, as published.
    For a method whose word does not say it.
    Default: 0.1.
    """
    epochs: int = 10
    """With --unlearn: passes over the forget texts."""
    batch: int = 8
    """With --unlearn: pieces per update."""
    learning_rate: float | None = None
    """With --unlearn: largest step size of AdamW.
    Default: 5e-4 for small models, below 100 MB as those made here are, 1e-4 for others below
    500 million parameters, 1e-5 for larger ones and for an id of the hub.
    """
    piece: int | None = None
    """With --unlearn: tokens of a piece of text, at least 2.
    Default: MUSE's 2048, and 256 for generated news.
    """
    max_length: int = 2048
    """Tokens of a text that PrivLeak looks at, as in MUSE; a longer one is cut there."""
    words: Literal["latin", "any"] = "latin"
    """What ROUGE takes for words.
    latin: runs of a to z and 0 to 9, as MUSE has it; any: words of every script.
    """
    json: bool = False
    """Print one JSON object and nothing else."""
    out: Path = Path("out/muse")
    """Folder to write."""


def muse(command: Muse) -> None:
    """Measure, after unlearning if that is asked for, and print what was found."""
    from llm.data.muse import read_muse
    from llm.evaluation.muse import Measuring, as_json, report
    from llm.jobs.muse import scores_of_texts
    from llm.jobs.values import model_beside
    from llm.training.checkpointing import parameters_digest
    from llm.unlearning.methods import described as in_words

    command = resolved(command)
    source = command.data or ""
    settings = None if command.unlearn is None else unlearning(command)
    measuring = Measuring(max_length=command.max_length, budget=command.budget, words=command.words)
    if command.piece is not None:
        require_whole(command.piece, "piece", 2)
    inputs = (command.model, command.data, command.retrained)
    in_first(lambda: folders.check_place(command.out, inputs=inputs))
    planned(command, training=settings is not None, writing=measuring.verbmem_tokens)
    data = read_muse(source)
    if settings is not None and not command.json:
        print(f"{command.model} unlearns {source}: {in_words(command.unlearn or '', settings)}")
    here = spread(command)
    language, other = load_model(here), None
    described = _described(command) | {"data": storage.fingerprint(data)}
    described |= {"parameters": parameters_digest(language.model)}
    if command.retrained is not None:
        load = partial(load_model, here)
        other = model_beside(command.retrained, language, "retrained", load=load)
        described |= {"retrained_parameters": parameters_digest(other.model)}
    with held(folders.working(command.out, JOB, described, names=NAMES, passing=(STATE,))):
        found = in_first(
            lambda: storage.read_kept(command.out / TABLE, lambda path: _read(path.parent))
        )
        if found is None:
            retrained = None if other is None else scores_of_texts(other, data, measuring)
            del other
            if settings is not None:
                language = _unlearn(command, language, data, settings, described)
            found = _measure(language, data, retrained, measuring)
            write(found.items, command.out / ITEMS, command, language)
            # Written last, so that where it exists all other tables exist.
            write(found.table, command.out / TABLE, command, language)
        in_first(lambda: folders.tidy(command.out, JOB))
    print(
        json.dumps(as_json(found), allow_nan=False)
        if command.json
        else f"{report(found)}\n{command.out}"
    )


def _described(command: Muse) -> dict[str, Any]:
    """Return the settings from which the numbers of a command follow.

    Options of where results go, how they are printed and on which device are not among them.
    """
    others = ("out", "json", "device", "memory")
    return {name: value for name, value in vars(command).items() if name not in others}


def _read(folder: Path) -> Measured:
    """Return what was measured in a folder that is finished."""
    from llm.evaluation.membership import Membership
    from llm.evaluation.muse import Measured

    table, items = storage.read_table(folder / TABLE), storage.read_table(folder / ITEMS)
    scores = items[items["measure"] == "min_k"].groupby("split")["value"]
    return Measured(
        items, table, Membership(**{str(split): own.to_numpy() for split, own in scores})
    )


def _unlearn(
    command: Muse,
    language: LanguageModel,
    data: MuseData,
    settings: Unlearning,
    described: dict[str, Any],
) -> LanguageModel:
    """Unlearn the texts, keep the model and its table, and return the model.

    The run goes on where an earlier call was stopped.
    """
    from llm.data.muse import generated
    from llm.evaluation.muse import unlearn_texts
    from llm.jobs.muse import PIECES
    from llm.models.saving import check_savable, check_whole, save, saved_settings
    from llm.training.checkpointing import FILE, gathered

    place = command.out / MODEL

    def begin() -> bool:
        kept = storage.read_kept(place, check_whole)
        ours = kept is None or saved_settings(place) == storage.settings_of(described)
        allowed = f"a folder whose {MODEL} is of this command, or not there"
        require(ours, "out", str(command.out), allowed)
        if kept is None:
            check_savable(language, place)
        # A state that was cut short is set aside.
        storage.read_kept(command.out / STATE / FILE, storage.read_provenance)
        return kept is not None

    kept = in_first(begin)
    length = command.piece or PIECES[generated(command.data or "") is not None]
    run = unlearn_texts(
        language,
        data,
        settings,
        length=length,
        state=command.out / STATE,
        parameters=described["parameters"],
    )
    whole = gathered(language.model)
    if not kept:
        known = storage.provenance(described, "markov.objectives", "llm")
        in_first(lambda: save(language, place, known, whole))
    write(run.epochs, command.out / EPOCHS, command, language)
    if not in_shards(language.model):
        return language
    here = replace(command, device=str(language.model.device))
    return load_model(here, str(place))._replace(name=language.name)  # whole, to write texts alone


def _measure(
    language: LanguageModel, data: MuseData, retrained: Membership | None, measuring: Measuring
) -> Measured:
    """Return all measures; each warning is printed as one line."""
    from llm.evaluation.muse import evaluate_muse

    with plain_warnings():
        return evaluate_muse(language, data, retrained=retrained, settings=measuring)


def unlearning(command: Muse) -> Unlearning:
    """Return the settings of the unlearning that a command describes.

    Raises `InvalidInput` for values that are not allowed.
    """
    from llm.jobs.muse import RATE, settings_of

    return settings_of(
        command.unlearn or "",
        command.retain_term,
        command.retain_weight,
        command.epochs,
        command.batch,
        rate_of(command.learning_rate, command.model, small=RATE),
        command.budget,
        field="objective",
    )


def resolved(command: Muse) -> Muse:
    """Return the same command with nothing left open.

    Raises `InvalidInput` for options that do not go together.
    """
    from llm.jobs.muse import RATE, of_news

    if command.unlearn is None:
        left_out(command, UNLEARN, "left out without --unlearn")
    check(command.model)
    require(
        command.data is not None or is_small(command.model),
        "data",
        None,
        f"named beside {command.model}",
    )
    data = "news" if command.data is None else command.data
    words = {
        name: of_news(word, data, name)
        for name in ("model", "retrained")
        if (word := getattr(command, name))
    }
    rate = rate_of(command.learning_rate, command.model, small=RATE)
    return replace(command, **words, data=data, learning_rate=rate)
