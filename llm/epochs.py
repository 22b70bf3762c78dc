"""One epoch of unlearning: the terms of its updates, and what is measured after them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from tqdm.auto import tqdm

from llm.adapters import Original
from llm.diagnostics import weights_table
from llm.encoding import Batch, Encoded
from llm.gradients import gradient_norms
from llm.optimization import Loop, Term, shuffled
from llm.retaining import RETAIN_LOSSES, cross_entropy, kl_budget
from llm.scoring import response_logprobs
from markov.errors import require
from markov.objectives import SequenceLogProbs

if TYPE_CHECKING:
    from llm.unlearning import Unlearning

OK, COLLAPSED, NAN = "ok", "collapsed", "nan"


@dataclass(frozen=True)
class Run:
    """What the epochs of a run share."""

    loop: Loop
    forget: Sequence[Encoded]
    retain: Sequence[Encoded]
    settings: Unlearning
    original: Original | None
    vocab: int
    bar: tqdm

    def __post_init__(self) -> None:
        shards = self.loop.accelerator.distributed_type == DistributedType.FSDP
        allowed = "no epochs where the model is in shards: no process has a whole gradient"
        require(not (shards and self.settings.gradients), "gradients", self.settings.gradients, allowed)

    def epoch(self, epoch: int, ref: Tensor | None) -> tuple[dict[str, Any], Tensor | None]:
        """Make the updates of an epoch: its row of the table, and logp after it, None if not all was finite."""
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
        row |= dict(forget_loss=math.nan, retain_loss=math.nan, gradient_norm=norm, status=NAN)
        logp = self.loop.evaluate(self.forget, _logp) if finite else None
        if logp is None or not bool(logp.isfinite().all()):
            return row, None
        row["forget_loss"] = float(self.settings.objective.loss(self.seq(logp, ref)).double().mean())
        if self.retain:
            row["retain_loss"] = float(self.loop.evaluate(self.probe(), cross_entropy).double().mean())
            if not math.isfinite(row["retain_loss"]):
                return row, None
        return row | dict(status=COLLAPSED if row["retain_loss"] > math.log(self.vocab) else OK), logp

    def updates(self, epoch: int, ref: Tensor | None) -> Iterator[list[Term]]:
        """The terms of each update of an epoch: forget examples, beside as many to retain. None in epoch 0."""
        if epoch == 0 or ref is None:
            return
        every, weight = self.settings.optimization, self.settings.retain_weight
        keep = RETAIN_LOSSES.get(self.settings.retain_term) if weight else None
        budget = kl_budget(self.vocab, every.budget) if self.original else None

        def forgetting(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
            return self.settings.objective.loss(response_logprobs(model, batch, ref[list(rows)]))

        def retaining(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
            assert keep is not None
            return keep(model, batch, self.original)

        count, order = len(self.forget), (every.batch, every.seed, epoch)
        forget = shuffled(count, *order, label="forget")
        retain = shuffled(len(self.retain), *order, label="retain", total=count) if keep else []
        for rows, kept in zip_longest(forget, retain):
            terms = [Term(self.forget, rows, forgetting, 1 / len(rows))]
            if keep is not None:
                terms.append(Term(self.retain, kept, retaining, weight / len(kept), budget))
            yield terms

    def probe(self) -> list[Encoded]:
        """The examples to retain that are measured."""
        order = shuffled(len(self.retain), len(self.retain), self.settings.optimization.seed, 0, label="probe")[0]
        return [self.retain[row] for row in order[: self.settings.retain_probe]]

    def table(self, epoch: int, logp: Tensor, ref: Tensor | None, index: np.ndarray) -> pd.DataFrame:
        """The rows of the examples after an epoch."""
        table = weights_table(self.seq(logp, ref), {}, index)
        table.insert(0, "epoch", epoch)
        if self.settings.gradients:
            model, budget = self.loop.accelerator.unwrap_model(self.loop.model), self.settings.optimization.budget
            wanted = epoch in self.settings.gradients
            norms = gradient_norms(model, self.forget, budget=budget, progress=False).numpy() if wanted else math.nan
            table["gradient_norm"] = np.float64(norms)
        return table

    def seq(self, logp: Tensor, ref: Tensor | None) -> SequenceLogProbs:
        """What the law needs of the forget examples; where there is no reference yet, the model itself is it."""
        length = torch.tensor([len(one.tokens) - one.prompt for one in self.forget])
        found = SequenceLogProbs(logp, length, logp if ref is None else ref)
        return SequenceLogProbs(*(values.double() for values in found))


def _logp(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
    return response_logprobs(model, batch).logp
