"""Count the work of jobs, in passes and tokens, from the very tokens that they would pass.

What is counted is what the loops of `llm.training`, `llm.unlearning` and `llm.evaluation` do in one
process. Padding depends on how an epoch is shuffled: every epoch counts as the first one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from llm.data.splits import TofuSets
from llm.data.tofu import Example
from llm.evaluation.attacks import Relearning
from llm.models.answers import distinct, encoded_columns, responses
from llm.models.language_model import LanguageModel
from llm.models.speed import Passes, Work
from llm.randomness import derived_seed, shuffled
from llm.scoring import shared
from llm.scoring.encoding import MAX_LENGTH, Encoded
from llm.scoring.limits import BUDGET, NEW_TOKENS, writing_budget
from llm.scoring.logprobs import logits_budget
from llm.training.adapters import Lora, adapted
from llm.training.loop import Optimization
from llm.unlearning.epoch import probed
from llm.unlearning.retaining import RETAIN_LOSSES
from llm.unlearning.unlearn import Unlearning
from llm.writing.continuations import STRETCH, TRIED, planned
from llm.writing.ways import WAYS
from markov.preferences import paired

Some = Sequence[Encoded]


class Size(NamedTuple):
    """How large a model is: words, bytes of its weights, and bytes of a state of its training."""

    vocab: int
    weights: int
    state: int

    @classmethod
    def of(cls, language: LanguageModel, lora: Lora | None = None) -> Size:
        """Return the size of a model all of whose parameters are trained, or adapters of it."""
        every = list(language.model.parameters())
        with adapted(language.model, lora, 0) as model:
            trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        # A state has the float32 parameters that are trained, and two moments of each.
        return cls(
            language.model.config.get_text_config().vocab_size,
            sum(one.numel() * one.element_size() for one in every),
            12 * trained,
        )


def learning(
    encoded: Some,
    settings: Optimization,
    watched: Sequence[Some],
    size: Size,
    *,
    done: int = 0,
) -> Work:
    """Return the work of fine-tuning on examples into a folder, after the epochs that are `done`.

    The sets that are `watched` are measured before the first epoch and after each (see
    `llm.training.memorising`).
    """
    epochs = settings.epochs - done
    budget = logits_budget(size.vocab, settings.budget)
    probe = _sum(Passes.over(own, budget) for own in watched)
    return (
        Work(
            watched=probe * (epochs + (not done)),
            # The model is read, a digest of it is taken, and it is written.
            stored=3 * size.weights + epochs * size.state,
        )
        + _taught(encoded, settings) * epochs
    )


def _taught(encoded: Some, settings: Optimization) -> Work:
    """Return the work of an epoch of fine-tuning, without what is measured after it."""
    updates = shuffled(len(encoded), settings.batch, settings.seed, 1)
    passes = (Passes.over([encoded[row] for row in rows], settings.budget) for rows in updates)
    return Work(trained=_sum(passes), updates=len(updates))


def unlearning(
    forget: Some,
    retain: Some,
    settings: Unlearning,
    size: Size,
    *,
    preferred: Some | None = None,
    answers: Passes | None = None,
    done: int = 0,
) -> Work:
    """Return the work of a run of unlearning into a folder, after the epochs that are `done`.

    `answers` are the passes over all answers to the forget data (see `answering`), which the run
    scores at its start and end.
    """
    every = settings.optimization
    epochs = every.epochs - done
    kinds = (forget,) if preferred is None else (forget, preferred)
    watched = [*(Passes.over(own, every.budget) for own in kinds)]
    if retain:
        watched.append(Passes.over(probed(retain, settings), every.budget))
    one = _forgotten(forget, retain, settings, size, preferred)
    return Work(
        watched=_sum(watched) * (epochs + (not done)),
        scored=(answers or Passes()) * 2,
        stored=3 * size.weights + epochs * size.state,
    ) + (one * epochs)


def _forgotten(
    forget: Some, retain: Some, settings: Unlearning, size: Size, preferred: Some | None
) -> Work:
    """Return the work of the updates of an epoch of unlearning."""
    every, law = settings.optimization, paired(settings.objective)
    kinds = (forget,) if preferred is None else (forget, preferred)
    used = [own for own, factor in zip(kinds, (law.forget, law.prefer), strict=False) if factor]
    # Of two responses that are passed together both are as wide as the longer one.
    longest = [max(both, key=lambda one: len(one.tokens)) for both in zip(*used, strict=True)]
    budget, order = max(1, every.budget // len(used)), (every.batch, every.seed, 1)
    updates = shuffled(len(forget), *order, label="forget")
    passes = _sum(Passes.over([longest[row] for row in rows], budget) for rows in updates)
    found = Work(trained=Passes(passes.count, passes.tokens * len(used)), updates=len(updates))
    if not (settings.retain_term in RETAIN_LOSSES and settings.retain_weight):
        return found
    twice = settings.retain_term == "kl"  # the original model passes the same
    own = logits_budget(size.vocab, every.budget) if twice else every.budget
    rows = shuffled(len(retain), *order, label="retain", total=len(forget))
    kept = _sum(Passes.over([retain[row] for row in part], own) for part in rows)
    return found + Work(trained=kept, watched=kept if twice else Passes())


def evaluating(
    language: LanguageModel,
    sets: TofuSets,
    size: Size,
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
) -> Work:
    """Return the work of TOFU's measures of a model: answers scored, and answers written."""
    ways = {"max_new_tokens": max_new_tokens, "max_length": max_length, "budget": budget}
    return Work(stored=2 * size.weights) + measuring(language, sets, sets.tasks, **ways)


def answering(language: LanguageModel, columns: Sequence[Some], budget: int = BUDGET) -> Passes:
    """Return the passes over all answers to some examples, as `llm.models.answers` scores them.

    `columns` are the tokens of the answers (see `llm.models.answers.encoded_columns`).
    """
    texts, _ = distinct(columns)
    plan = shared.plan_of(language.model, texts, budget)
    if plan is None:
        return Passes.over(texts, budget)
    return _sum(
        Passes(2, sum(shared.Parts.of([texts[row] for row in rows]).passes)) for rows in plan
    )


def measuring(
    language: LanguageModel,
    sets: TofuSets,
    written: Collection[str],
    *,
    max_new_tokens: int = NEW_TOKENS,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
) -> Work:
    """Return the work of D and utility along a run: answers to those sets are `written`."""
    found = Work()
    for task in sets.tasks:
        columns = encoded_columns(language, getattr(sets, task), max_length)
        found += Work(scored=answering(language, columns, budget))
        if task in written:
            found += _written(columns[0], max_new_tokens, writing_budget(budget))
    return found


def _written(encoded: Some, new: int, budget: int) -> Work:
    """Return the work of writing answers to prompts, where the true answers are known."""
    prompts = [one.tokens[: one.prompt] for one in encoded]
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    # Whether texts can be written together is tried first, on two of them.
    tried = Passes(4, 4 * len(prompts[order[0]]) + 4 * TRIED)
    found = Work(scored=tried, written=Passes(TRIED, 2 * TRIED), most=Passes(TRIED, 2 * TRIED))
    for rows in planned(order, prompts, new, budget, WAYS[0]):
        wide = len(prompts[rows[0]])
        # Texts that have ended are dropped after a stretch.
        each = [len(encoded[row].tokens) - encoded[row].prompt for row in rows]
        each = [min(new, -(-one // STRETCH) * STRETCH) for one in each]
        found += Work(
            # The prompts are read, and two texts are read again when they are written.
            scored=Passes(3, len(rows) * wide + 2 * (wide + new)),
            written=Passes(max(each), sum(each)),
            most=Passes(new, new * len(rows)),
        )
    return found


def attacking(
    language: LanguageModel,
    forget: Sequence[Example],
    wanted: Sequence[Relearning],
    size: Size,
    *,
    max_length: int = MAX_LENGTH,
) -> Work:
    """Return the work of relearning attacks on a model, which is read for them."""
    columns = encoded_columns(language, forget, max_length)
    encoded, found = columns[0], Work(stored=size.weights)
    known: dict[int, Passes] = {}
    for place, one in enumerate(wanted):
        taught = one.chosen([len(own.tokens) - own.prompt for own in encoded])
        ordered = replace(one.optimization, seed=derived_seed(one.seed, "order"))
        if ordered.budget not in known:
            known[ordered.budget] = answering(language, columns, ordered.budget)
        scored = known[ordered.budget]
        if place == 0:  # all attacks begin with the same model
            found += Work(scored=scored)
        found += (_taught([encoded[row] for row in taught], ordered) + Work(scored=scored)) * (
            ordered.epochs
        )
    return found


def runs(
    language: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    wanted: Sequence[Unlearning],
    *,
    max_length: int = MAX_LENGTH,
) -> Work:
    """Return the work of a run of unlearning for each of the settings, on single responses."""
    sizes = {one.lora: Size.of(language, one.lora) for one in wanted}
    columns = encoded_columns(language, forget, max_length)
    kept = responses(language, retain, max_length=max_length)
    answers, found = answering(language, columns, BUDGET), Work()
    for one in wanted:
        found += unlearning(columns[0], kept, one, sizes[one.lora], answers=answers)
    return found


def _sum(passes: Iterable[Passes]) -> Passes:
    return sum(passes, Passes())
