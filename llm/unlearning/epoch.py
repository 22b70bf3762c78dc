"""One epoch of unlearning: the terms of its updates, and what is measured after them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from llm.diagnostics.weights import weights_table
from llm.randomness import own_randomness, shuffled
from llm.scoring.encoding import Batch, Encoded
from llm.scoring.gradients import gradient_norms
from llm.scoring.logprobs import evaluating, logits_budget, response_logprobs
from llm.training.adapters import Original
from llm.training.loop import Loop, Term
from llm.unlearning.retaining import RETAIN_LOSSES, cross_entropy, divisor
from markov.console.progress import Bar
from markov.errors import InvalidInput, require
from markov.objectives import Objective, SequenceLogProbs
from markov.preferences import PairLogProbs, paired
from markov.weighting import WEIGHTINGS, reweighted

if TYPE_CHECKING:
    from llm.unlearning.unlearn import Unlearning

OK, NOT_FORGETTING, COLLAPSED, NAN = "ok", "not forgetting", "collapsed", "nan"
Model = TypeVar("Model")


def probed(retain: Sequence[Encoded], settings: Unlearning) -> list[Encoded]:
    """Return the retain examples on which the retain loss is measured after every epoch."""
    seed = settings.optimization.seed
    order = shuffled(len(retain), len(retain), seed, 0, label="probe")[0]
    return [retain[row] for row in order[: settings.retain_probe]]


class Measure(NamedTuple, Generic[Model]):
    """What else is measured after every epoch, besides the losses.

    `call` takes the number of the epoch and the model, and returns numbers by name. `name` says
    what is measured, its settings included: a run is continued, or read, under the same name only.
    """

    name: str
    call: Callable[[int, Model], Mapping[str, float]]


@dataclass(frozen=True)
class Unlearner:
    """What the epochs of a run share."""

    loop: Loop
    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    settings: Unlearning
    original: Original | None
    vocab: int
    bar: Bar
    preferred: Sequence[Encoded] | None = None
    measure: Measure[nn.Module] | None = None
    importance: Tensor | None = None  # what multiplies each forget example's loss

    def __post_init__(self) -> None:
        shards = self.loop.accelerator.distributed_type == DistributedType.FSDP
        allowed = "no epochs where the model is in shards: no process has a whole gradient"
        require(
            not (shards and self.settings.gradients), "gradients", self.settings.gradients, allowed
        )
        name, allowed = (
            self.measure and self.measure.name,
            "none where the model is in shards: no process has all of it",
        )
        require(not (shards and self.measure), "measure", name, allowed)

    @property
    def responses(self) -> tuple[Sequence[Encoded], ...]:
        """The responses to forget and, where there are any, the responses preferred to them."""
        return (self.forget,) if self.preferred is None else (self.forget, self.preferred)

    def epoch(
        self, epoch: int, ref: Sequence[Tensor | None]
    ) -> tuple[dict[str, Any], list[Tensor] | None]:
        """Make the updates of an epoch, and return its row of the table and the logp after it.

        The logp is that of each of `responses`, and None if a number was not finite. `ref` holds
        the reference of each of `responses`; before the first update it may be None, for the model
        itself.
        """
        steps = self.settings.optimization.updates(len(self.forget))
        step, rate, norms, finite = max(0, epoch - 1) * steps, math.nan, [], True
        for terms in self.updates(epoch, ref):
            step, rate = step + 1, self.settings.optimization.rate(step + 1, steps)
            done = self.loop.update(step, rate, terms)
            norms.append(done.gradient_norm)
            finite = done.finite
            self.bar.update()
            if not finite:
                break
        norm = float(np.mean(norms)) if norms else math.nan
        row: dict[str, Any] = dict(epoch=epoch, step=step, learning_rate=rate)
        row |= dict.fromkeys(("forget_loss", "forget_nll", "retain_loss"), math.nan)
        row |= dict(gradient_norm=norm, status=NAN)
        logp = [self.loop.evaluate(one, _logp) for one in self.responses] if finite else None
        if logp is None or not all(bool(one.isfinite().all()) for one in logp):
            return row, None
        seqs = self.seqs(logp, ref)
        loss = paired(self.settings.objective).loss(PairLogProbs(seqs[0], seqs[-1]))
        row["forget_loss"] = float(loss.double().mean())
        row["forget_nll"] = float(-(seqs[0].logp / seqs[0].length).double().mean())
        if self.retain:
            row["retain_loss"] = float(
                self.loop.evaluate(probed(self.retain, self.settings), cross_entropy)
                .double()
                .mean()
            )
        if not all(
            math.isfinite(row[name])
            for name in ("forget_loss", "retain_loss")[: 2 if self.retain else 1]
        ):
            return row, None
        row["status"] = COLLAPSED if row["retain_loss"] > math.log(self.vocab) else OK
        return row | self.measured(epoch, row), logp

    def updates(self, epoch: int, ref: Sequence[Tensor | None]) -> Iterator[list[Term]]:
        """Yield the terms of each update of an epoch; epoch 0 has no updates.

        An update takes forget examples and, where there is a retain term, as many retain examples.
        """
        if epoch == 0:
            return
        every, weight = self.settings.optimization, self.settings.retain_weight
        keep = RETAIN_LOSSES.get(self.settings.retain_term) if weight else None
        budget = logits_budget(self.vocab, every.budget) if self.original else None
        average = self.settings.average

        law, sides = paired(self.settings.objective), list(zip(self.responses, ref, strict=True))
        # Nothing is computed for a response that does not enter the law; the other one stands in
        # its place.
        used = [
            side for side, factor in zip(sides, (law.forget, law.prefer), strict=False) if factor
        ]
        longest = [
            max(both, key=lambda one: len(one.tokens))
            for both in zip(*(one for one, _ in used), strict=True)
        ]

        def forgetting(
            model: nn.Module, _: Batch, rows: Sequence[int], weights: Tensor | None = None
        ) -> Tensor:
            # One forward pass takes both, because with several processes a second pass would spoil
            # what the first one left.
            batch = Batch.pad([one[row] for one, _ in used for row in rows])
            seq = response_logprobs(
                model, batch, torch.cat([own[list(rows)] for _, own in used if own is not None])
            )
            parts = [
                SequenceLogProbs(*part)
                for part in zip(*(x.split(len(rows)) for x in seq), strict=True)
            ]
            each = law.loss(PairLogProbs(parts[0], parts[-1]))
            if weights is not None:
                each = self.reweighted(each, parts[0], weights[list(rows)])
            if self.importance is None:
                return each
            return each * self.importance[list(rows)].to(each)

        def retaining(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
            assert keep is not None
            each = keep(model, batch, self.original)  # already a mean over tokens
            return each * batch.scored.sum(-1).to(each) if average == "tokens" else each

        count, order = len(self.forget), (every.batch, every.seed, epoch)
        forget = shuffled(count, *order, label="forget")
        retain = shuffled(len(self.retain), *order, label="retain", total=count) if keep else []
        for rows, kept in zip_longest(forget, retain):
            share = 1 / divisor(average, [self.forget[row] for row in rows])
            weights = self.weights(rows, ref[0])
            losses = forgetting if weights is None else partial(forgetting, weights=weights)
            terms = [Term(longest, rows, losses, share, max(1, every.budget // len(used)))]
            if keep is not None:
                share = weight / divisor(average, [self.retain[row] for row in kept])
                terms.append(Term(self.retain, kept, retaining, share, budget))
            yield terms

    def weights(self, rows: Sequence[int], ref: Tensor | None) -> Tensor | None:
        """Return the weights that an update takes in place of its objective's, by forget example.

        It is None where the objective keeps its own. Otherwise they are made of those of the model
        as it is before the update, without dropout, in a pass of their own over all rows: a
        micro-batch, or one of several processes, sees only a part of them.
        """
        objective, name = self.settings.objective, self.settings.weighting
        if name == "own" or not isinstance(objective, Objective):
            return None
        chosen = [self.forget[row] for row in rows]
        logp, places = self.loop.evaluate(chosen, _logp), torch.tensor(rows)
        before = logp if ref is None else ref[places].to(logp)
        length = torch.tensor([len(one.tokens) - one.prompt for one in chosen]).to(logp)
        found = WEIGHTINGS[name](objective.weight(SequenceLogProbs(logp, length, before)))
        return logp.new_zeros(len(self.forget)).index_put((places,), found)

    def reweighted(self, each: Tensor, seq: SequenceLogProbs, weights: Tensor) -> Tensor:
        """Return losses whose d loss / d logp are the given weights (`markov.weighting`)."""
        objective = self.settings.objective
        assert isinstance(objective, Objective)
        own = objective.weight(SequenceLogProbs(*(values.detach() for values in seq)))
        return reweighted(each, seq.logp, own, weights.to(own))

    def measured(self, epoch: int, row: Mapping[str, Any]) -> dict[str, float]:
        """Return what `measure` finds, without dropout and gradients and with its own randomness.

        Where it raises `InvalidInput` after an update, the epoch has no such numbers, and this
        warns.
        """
        if self.measure is None:
            return {}
        device = self.loop.accelerator.device
        own = own_randomness(self.settings.optimization.seed, "measure", epoch, device=device)
        try:
            with self.loop.as_saved() as model, evaluating(model), torch.no_grad(), own:
                found = {
                    name: float(value) for name, value in self.measure.call(epoch, model).items()
                }
        except InvalidInput as error:
            if epoch == 0:
                raise
            # A model on its way to divergence may be beyond measuring, but its run is kept as far
            # as it came.
            if self.loop.accelerator.is_main_process:
                warnings.warn(
                    f"epoch {epoch} is not measured: {error}", RuntimeWarning, stacklevel=4
                )
            return {}
        allowed = f"names other than those of the table, {', '.join(row)}"
        require(found.keys().isdisjoint(row), "measure", sorted(found.keys() & row.keys()), allowed)
        return found

    def table(
        self, epoch: int, logp: Sequence[Tensor], ref: Sequence[Tensor | None], index: np.ndarray
    ) -> pd.DataFrame:
        """Return the rows of the examples after an epoch."""
        own, *other = self.seqs(logp, ref)
        table = weights_table(own, {}, index)
        table.insert(0, "epoch", epoch)
        for preferred in other:
            table = table.assign(
                **{f"preferred_{name}": x.numpy() for name, x in preferred._asdict().items()}
            )
        if self.settings.gradients:
            budget, norms = self.settings.optimization.budget, math.nan
            if epoch in self.settings.gradients:
                with self.loop.as_saved() as model:
                    norms = gradient_norms(
                        model, self.forget, budget=budget, progress=False
                    ).numpy()
            table["gradient_norm"] = np.float64(norms)
        return table

    def seqs(self, logp: Sequence[Tensor], ref: Sequence[Tensor | None]) -> list[SequenceLogProbs]:
        """Return what the law needs of each of `responses`.

        Where there is no reference yet, the model itself is the reference.
        """
        found = []
        for encoded, now, before in zip(self.responses, logp, ref, strict=True):
            length = torch.tensor([len(one.tokens) - one.prompt for one in encoded])
            seq = SequenceLogProbs(now, length, now if before is None else before)
            found.append(SequenceLogProbs(*(values.double() for values in seq)))
        return found


def _logp(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
    return response_logprobs(model, batch).logp
