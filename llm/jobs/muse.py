"""Measure as MUSE does: what a model still recites, knows and gives away of texts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from llm.arguments import checked_job
from llm.jobs.settings import Word, rate_of
from llm.jobs.values import language_of, model_beside, word_of
from llm.models.names import check, is_small, made
from llm.scoring.limits import BUDGET
from llm.unlearning.methods import Method, objective, retaining
from llm.unlearning.methods import method as method_of
from markov.errors import require
from markov.files.storage import Location

if TYPE_CHECKING:
    from llm.data.muse import MuseData
    from llm.evaluation.membership import Membership
    from llm.evaluation.muse import Measured, Measuring
    from llm.evaluation.rouge import Words
    from llm.models.language_model import LanguageModel
    from llm.unlearning.retaining import RetainTerm
    from llm.unlearning.unlearn import Unlearning

WEIGHT = 0.1  # lambda where neither the word nor an option gives it
RATE = 5e-4  # largest step size for small models
MAX_LENGTH = 2048  # tokens of a text that PrivLeak looks at
# tokens of a piece, by whether the texts are generated here (True) or MUSE's own (False)
PIECES = {True: 256, False: 2048}


@checked_job
def muse(
    model: LanguageModel | Location = "news:original",
    data: MuseData | Location | None = None,
    *,
    retrained: LanguageModel | Location | None = None,
    method: Method | str | None = None,
    retain_term: RetainTerm | None = None,
    retain_weight: float | None = None,
    epochs: int = 10,
    batch: int = 8,
    learning_rate: float | None = None,
    piece: int | None = None,
    words: Words = "latin",
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> Measured:
    """Return MUSE's measures of a model, with 95% intervals.

    They are VerbMem and KnowMem on the texts to forget and to retain, the AUC of membership, and,
    with the `retrained` model, PrivLeak. `data` is news (generated here), muse:News, muse:Books, a
    folder of such files, or what was read of one. With a `method`, such as simnpo:0.7, a copy of
    the model forgets the texts first, in pieces of `piece` tokens.

    Raises `InvalidInput` for words that name nothing or do not go together, and for numbers that
    are not allowed.
    """
    from llm.data.muse import generated, read_muse
    from llm.evaluation.muse import Measuring, evaluate_muse, unlearn_texts

    known = data is not None or (is_small(model) if isinstance(model, Word) else False)
    require(known, "data", None, f"named beside {word_of(model)}")
    source = "news" if data is None else data
    own = generated(str(source)) is not None if isinstance(source, Word) else False
    if isinstance(source, Word):
        if isinstance(model, Word):
            model = of_news(str(model), str(source), "model")
        if isinstance(retrained, Word):
            retrained = of_news(str(retrained), str(source), "retrained")
    texts = read_muse(source) if isinstance(source, Word) else source
    measuring = Measuring(max_length=max_length, budget=budget, words=words)
    settings = None
    if method is not None:
        rate = rate_of(learning_rate, model, small=RATE)
        settings = settings_of(method, retain_term, retain_weight, epochs, batch, rate, budget)
    language, theirs = language_of(model, progress=progress), None
    if retrained is not None:
        other = model_beside(retrained, language, "retrained", progress=progress)
        theirs = scores_of_texts(other, texts, measuring, progress=progress)
    if settings is not None:
        if not isinstance(model, Word):  # what a word names was loaded for this alone
            language = language._replace(model=copy.deepcopy(language.model))
        length = piece or PIECES[own]
        unlearn_texts(language, texts, settings, length=length, progress=progress)
    return evaluate_muse(language, texts, retrained=theirs, settings=measuring, progress=progress)


def scores_of_texts(
    language: LanguageModel, data: MuseData, measuring: Measuring, *, progress: bool = True
) -> Membership:
    """Return the membership scores of a model, which is all that the retrained one gives."""
    from llm.evaluation.membership import membership

    options: dict[str, Any] = dict(
        k=measuring.k,
        max_length=measuring.max_length,
        budget=measuring.budget,
        progress=progress,
    )
    return membership(language, data.privleak_forget, data.privleak_holdout, **options)


def settings_of(
    method: Method | str,
    term: RetainTerm | None,
    weight: float | None,
    epochs: int,
    batch: int,
    rate: float,
    budget: int,
    *,
    field: str = "method",
) -> Unlearning:
    """Return the settings of unlearning texts; raises `InvalidInput` for values not allowed."""
    from llm.training.loop import Optimization

    every = Optimization(
        epochs=epochs,
        batch=batch,
        learning_rate=rate,
        warmup_epochs=min(1.0, epochs / 2),
        budget=budget,
    )
    word = method if isinstance(method, str) else method.word
    objective(word, field=field)  # refuses methods of pairs: there are no refusals to a text
    term, weight = retaining(word, term, weight, otherwise=WEIGHT, field=field)
    chosen = method_of(word, field=field)
    return chosen.unlearning(every, retain_term=term, retain_weight=weight)


def of_news(word: str, data: str, field: str) -> str:
    """Return the word of a small model, with the seed of the news `data` where it has none.

    Other words are returned as they are. Raises `InvalidInput` for a small model that has not read
    these data.
    """
    from llm.data.muse import GENERATED, HUB, generated

    check(word, field)
    own, news = made(word, field), generated(data)
    if own is None:
        return word
    allowed = f"a model that has read {data}"
    require(own.corpus == GENERATED and data not in HUB, field, word, allowed)
    if news is None:
        return word
    wanted = own._replace(seed=news.seed)
    require(word.count(":") == 1 or own == wanted, field, word, f"{allowed}, {wanted.word}")
    return wanted.word
