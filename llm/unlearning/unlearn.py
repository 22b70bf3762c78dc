"""Unlearning of a language model under any objective of the family, recorded every epoch.

    minimise   mean over forget examples of loss(logp, length, ref)
               +  retain_weight * mean over retain examples

or, averaged over "tokens", both sums over the examples of an update divided by the number of their
tokens. The loss may be that of a pair: the response to forget, and one that is preferred to it,
such as a refusal. The reference is scored once and not kept, since the law needs only one number
per example of it. What is recorded is the log-probability of every forget example after every
epoch, so that the weights under any grid of objectives follow from one run. (Paper, section 2 and
4; the retain term's factor is its lambda.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm.diagnostics.weights import weights_table
from llm.scoring.encoding import Encoded
from llm.scoring.logprobs import check_fits, check_model
from llm.training.adapters import Lora, adapted, original_of
from llm.training.checkpointing import Pace, find_state, parameters_digest, restore, save_state
from llm.training.duration import check_ends
from llm.training.loop import Optimization, check_finite, looping
from llm.training.masters import widened
from llm.unlearning.epoch import COLLAPSED, NAN, NOT_FORGETTING, OK, Measure, Unlearner
from llm.unlearning.retaining import Average, RetainTerm
from markov.console.choices import WeightingName
from markov.errors import require, require_all_whole, require_epochs
from markov.files.storage import Location, fingerprint, settings_of
from markov.numerics import SINGLE_MARGIN, exceeds
from markov.objectives import Objective, SequenceLogProbs
from markov.preferences import Forgetting, paired, validate_pair


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """How a model unlearns: an objective, the optimisation, and what holds the model back.

    The defaults of the optimisation are the paper's for TOFU. `retain_weight` multiplies the retain
    loss, as published. `average` says what both losses of an update are averaged over (see
    `llm.unlearning.retaining`). It multiplies all examples of an update by one number and leaves d
    loss / d logp of each, which the law gives, as it is: the `forget_loss` and the weights of
    tables do not depend on it. After every epoch the first `retain_probe` retain examples are
    measured, in an order that follows from the seed. `gradients` are the epochs (0 is before the
    first update) after which the norm of each forget example's gradient of logp is recorded, over
    the adapters if there are any. `weighting` is what the forget examples of an update keep of
    their d loss / d logp (see `markov.weighting`); the retain term and what is recorded know
    nothing of it. It is of an objective of single responses, before `average` divides. Anything
    but "own" takes one more forward pass over the forget examples of an update, and weighs by what
    that finds, without dropout. Raises `InvalidInput` for values that are not allowed.
    """

    objective: Forgetting
    optimization: Optimization = Optimization(epochs=10, batch=32, learning_rate=1e-5)
    retain_term: RetainTerm = "none"
    retain_weight: float = 1.0
    average: Average = "examples"
    retain_probe: int = 400
    lora: Lora | None = None
    gradients: tuple[int, ...] = ()
    weighting: WeightingName = "own"

    def __post_init__(self) -> None:
        numbers = all(
            torch.as_tensor(value).ndim == 0 for value in validate_pair(paired(self.objective))
        )
        require(numbers, "objective", self.objective, "single numbers")
        object.__setattr__(self, "objective", type(self.objective)(*map(float, self.objective)))
        terms = get_args(RetainTerm)
        require(
            self.retain_term in terms, "retain_term", self.retain_term, f"one of {', '.join(terms)}"
        )
        averages = get_args(Average)
        require(self.average in averages, "average", self.average, f"one of {', '.join(averages)}")
        # A loss per token has been divided by a length already, and a loss of two responses has no
        # single length to divide by.
        summed = isinstance(self.objective, Objective) and float(self.objective.normalize) == 0
        allowed = (
            "examples with this objective: over tokens only losses of summed "
            "log-probabilities are averaged"
        )
        require(self.average == "examples" or summed, "average", self.average, allowed)
        require(
            0 <= self.retain_weight < math.inf,
            "retain_weight",
            self.retain_weight,
            "a finite number >= 0",
        )
        weightings = get_args(WeightingName)
        allowed = f"one of {', '.join(weightings)}"
        require(self.weighting in weightings, "weighting", self.weighting, allowed)
        single = self.weighting == "own" or isinstance(self.objective, Objective)
        allowed = "own with an objective of pairs, which has two weights for each"
        require(single, "weighting", self.weighting, allowed)
        require_all_whole(self, retain_probe=1)
        last = self.optimization.epochs
        require_epochs(self.gradients, "gradients", last)
        object.__setattr__(self, "gradients", tuple(map(int, self.gradients)))


def as_kept(settings: Unlearning) -> dict[str, Any]:
    """Return the settings of a run as they are kept beside its tables.

    A weighting of "own" is left out, so that runs from before there were others are still known.
    """
    known = settings_of(settings)
    if settings.weighting == "own":
        del known["weighting"]
    return known


class Unlearned(NamedTuple):
    """What a run leaves behind, beside the model.

    `examples` has a row per epoch (0 is before the first update) and forget example:

        epoch, index
        logp, length, ref     as in `llm.diagnostics.weights`
        preferred_logp, preferred_length, preferred_ref
                              the same of the preferred response, where there is one
        gradient_norm         where asked for

    `epochs` has a row per epoch:

        epoch
        step                  updates so far
        learning_rate         of the last of them
        forget_loss           after the epoch: mean over the forget examples
        forget_nll            after the epoch: mean of -logp/length over the forget examples, nats
                              per token
        retain_loss           after the epoch: mean of -logp/length over the retain probe, nats per
                              token
        gradient_norm         mean over the updates of the epoch, before clipping
        status                ok; not forgetting, where forget_nll is not above that of epoch 0:
                              the responses are as likely as before, or likelier; collapsed,
                              from where the retain loss exceeds log(vocabulary), that of
                              guessing; or nan, in the last row of a run that stopped
                              because a number ceased to be finite

    Numbers of a `Measure` follow, nan in such a last row and where they could not be taken. After
    such a stop `examples` ends with the epoch before.

    All of these are numbers of the model as it would be saved at that moment. Of a model of 16-bit
    parameters that is its masters rounded (see `llm.training.masters`), computed in those 16 bits.
    Its updates are computed from the masters, under autocast, so that the log-probabilities which
    they see differ from the recorded ones by rounding.
    """

    examples: pd.DataFrame
    epochs: pd.DataFrame


def unlearn(
    model: nn.Module,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    settings: Unlearning,
    *,
    preferred: Sequence[Encoded] | None = None,
    ref: Float[Tensor, " examples"] | None = None,
    index: Int[np.ndarray, "examples"] | None = None,
    importance: Float[Tensor, " examples"] | None = None,
    measure: Measure[nn.Module] | None = None,
    state: Location | None = None,
    state_minutes: float = 0.0,
    parameters: str | None = None,
    progress: bool = True,
) -> Unlearned:
    """Unlearn the forget examples in place, and return what was recorded.

    Adapters are added into the model's weights at the end. Every update takes `batch` forget
    examples and as many retain examples, both in an order that follows from (seed, epoch).

        preferred     the responses that are preferred to those of the forget examples, in their
                      order; an objective that prefers any needs them, and with another one they are
                      only recorded
        ref           another reference than the model itself, such as a perturbed one (nats)
        index         names the examples; from 0 if not given
        importance    multiplies the loss of each forget example in every update, >= 0 and of mean
                      1, so that the retain term weighs what it does without; what is recorded
                      is of the objective alone, without it. It goes with no `weighting`, since
                      either says what an example weighs
        measure       called after every epoch, 0 included, in evaluation mode, without gradients
                      and with random numbers that follow from (seed, epoch)
        state         a folder: a run that was killed goes on from its last whole epoch when it is
                      started again with the same arguments and the same model as at first, and
                      gives the same tables and weights. The folder is left to the caller; for a run
                      that is finished it gives the result without work
        state_minutes  how many minutes at least lie between two writings of the state, which is
                      written at the end of an epoch: 0 for every epoch, infinity for never
        parameters    `parameters_digest` of the model as it is now, where the caller has it; it is
                      taken here if not, and a large model takes a while to read

    Divergence is warned of and recorded in `status`. It ends the run at the first number that is
    not finite, before the update that it would spoil. A collapse does not end the run.

    Raises `InvalidInput` as `score_encoded` does, for a model whose parameters are not finite or
    whose losses before the first update are not, for a retain term without retain examples, for a
    `ref`, `index`, `importance` or `preferred` of another shape or with values that they cannot
    have, for names of measures that the table has already, and for a state of another run.
    """
    index = np.arange(len(forget)) if index is None else np.asarray(index)
    _check(model, forget, retain, preferred, settings)
    _check_numbers(len(forget), settings, ref, index)
    _check_importance(len(forget), importance, settings)
    every, vocab, found, digest = settings.optimization, _vocabulary(model), None, ""
    if state is not None:
        others = (preferred and list(preferred), measure and measure.name)
        given = (
            settings,
            list(forget),
            list(retain),
            ref,
            index,
            *others,
            parameters or parameters_digest(model),
            *(() if importance is None else (importance,)),
        )
        digest = fingerprint(given, __name__)
        found = find_state(state, digest)
    examples = pd.DataFrame() if found is None else found.tables["examples"]
    rows: list[Any] = [] if found is None else found.tables["epochs"].to_dict("records")
    with (
        adapted(model, settings.lora, every.seed) as trained,
        widened(trained, narrow_updates=every.narrow_updates) as masters,
    ):
        # A copy is widened as well, so that both are computed alike and their KL starts at 0.
        original = original_of(trained, settings.lora) if settings.retain_term == "kl" else None
        past = max(0, len(rows) - 1)
        with (
            looping(trained, every, masters) as loop,
            loop.bar(len(forget), "unlearn", show=progress, past=past) as bar,
        ):
            others = (preferred, measure, importance)
            run = Unlearner(loop, forget, retain, settings, original, vocab, bar, *others)
            pace = Pace(state_minutes)
            columns = ("ref", "preferred_ref")[: len(run.responses)]
            refs = [ref, None][: len(run.responses)]
            if found is not None:
                restore(loop, found)
            for epoch in range(len(rows), every.epochs + 1):
                if epoch > 0:
                    refs = [
                        torch.tensor(examples[name].to_numpy()[: len(forget)]) for name in columns
                    ]
                row, logp = run.epoch(epoch, refs)
                allowed = "one that gives finite losses before the first update, of all examples"
                require(epoch > 0 or logp is not None, "model", type(model).__name__, allowed)
                if epoch > 0 and row["status"] == OK and not _forgets(row, rows[0]):
                    row["status"] = NOT_FORGETTING
                rows.append(row)
                if loop.accelerator.is_main_process:
                    _warn(rows, vocab, last=epoch == every.epochs)
                if logp is None:
                    break
                examples = pd.concat(
                    [examples, run.table(epoch, logp, refs, index)], ignore_index=True
                )
                if state is not None and epoch > 0 and pace.due():
                    save_state(
                        state,
                        loop,
                        digest,
                        epoch,
                        {"examples": examples, "epochs": pd.DataFrame(rows)},
                    )
    return Unlearned(examples, pd.DataFrame(rows))


def weights_by_epoch(examples: pd.DataFrame, objectives: Mapping[str, Objective]) -> pd.DataFrame:
    """Return the `examples` of a run with a column `weight_<name>`, d loss / d logp, per objective.

    One run gives the weights under any objectives. Raises `InvalidInput` as
    `llm.diagnostics.weights.weights_table` does.
    """
    numbers = (torch.tensor(examples[name].to_numpy()) for name in SequenceLogProbs._fields)
    table = weights_table(SequenceLogProbs(*numbers), objectives, examples["index"].to_numpy())
    weights = table.drop(columns=["index", *SequenceLogProbs._fields])
    return pd.concat([examples.reset_index(drop=True), weights], axis=1)


def _check(
    model: nn.Module,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    preferred: Sequence[Encoded] | None,
    settings: Unlearning,
) -> None:
    require(len(forget) > 0, "forget", forget, "at least one example")
    if preferred is None:
        require(
            not paired(settings.objective).prefer,
            "preferred",
            None,
            "a response that is preferred, per example",
        )
    else:
        require(
            len(preferred) == len(forget),
            "preferred",
            len(preferred),
            f"{len(forget)} responses, one per example",
        )
    allowed = f"examples to retain, for the retain term {settings.retain_term}"
    require(len(retain) > 0 or settings.retain_term == "none", "retain", retain, allowed)
    check_model(model)
    check_finite(model)
    check_fits(model, [*forget, *retain, *(preferred or ())])
    check_ends(model, forget, settings.optimization.epochs)


def _check_numbers(count: int, settings: Unlearning, ref: Tensor | None, index: np.ndarray) -> None:
    law = paired(settings.objective)
    alone = not (law.prefer and law.reference)
    require(
        ref is None or alone,
        "ref",
        "given",
        "None with an objective of pairs, whose reference is the model itself",
    )
    allowed = f"{count} finite numbers, one per forget example"
    if ref is not None:
        require(ref.shape == (count,), "ref", tuple(ref.shape), allowed)
        require(bool(ref.isfinite().all()), "ref", ref[~ref.isfinite()][:1].tolist(), allowed)
    require(
        index.shape == (count,), "index", index.shape, f"{count} values, one per forget example"
    )
    require(len(set(index.tolist())) == len(index), "index", index.tolist(), "each value once")


def _check_importance(count: int, importance: Tensor | None, settings: Unlearning) -> None:
    """Raise `InvalidInput` unless it is None, or numbers >= 0 of mean 1, one per example."""
    if importance is None:
        return
    allowed = f"None with the weighting {settings.weighting}"
    require(settings.weighting == "own", "importance", "given", allowed)
    require(importance.shape == (count,), "importance", tuple(importance.shape), f"{count} numbers")
    found = importance.double()
    fits = bool(found.isfinite().all() and (found >= 0).all())
    allowed = "finite numbers >= 0 whose mean is 1"
    require(
        fits and abs(float(found.mean()) - 1) < 1e-6, "importance", float(found.mean()), allowed
    )


def _forgets(row: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    """Return whether the forget examples are less likely than before, by more than rounding."""
    return bool(exceeds(row["forget_nll"], start["forget_nll"], SINGLE_MARGIN))


def _warn(rows: Sequence[Mapping[str, Any]], vocab: int, *, last: bool) -> None:
    """Warn once where a run diverges or collapses, and at the end of one that forgot nothing."""
    row, before = rows[-1], rows[-2]["status"] if len(rows) > 1 else OK
    if last and row["status"] == NOT_FORGETTING:
        found = f"{rows[0]['forget_nll']:.4g} nats per token before, {row['forget_nll']:.4g} after"
        warnings.warn(f"nothing was forgotten: {found}", RuntimeWarning, stacklevel=3)
    if row["status"] == before:
        return
    when = f"in epoch {row['epoch']}, at update {row['step']}"
    if row["status"] == NAN:
        warnings.warn(
            f"unlearning ends {when}: not all losses and gradients are finite",
            RuntimeWarning,
            stacklevel=3,
        )
    if row["status"] == COLLAPSED:
        found = f"retain loss {row['retain_loss']:.3g} > log({vocab}), that of guessing"
        warnings.warn(f"the model has collapsed {when}: {found}", RuntimeWarning, stacklevel=3)


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return config.get_text_config().vocab_size
