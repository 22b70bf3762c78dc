"""What a model in training knows by heart, and the state from which its training goes on.

nats_per_token    mean over examples of -logp / length
probability       mean over examples of exp(logp / length), the geometric mean over an answer's
                  tokens; TOFU's measure of that name
recited           mean over examples of the share of tokens before the first that is not the
                  likeliest: 1 where greedy decoding writes the whole answer, its end included
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import logits_budget, scored_logits
from llm.training.checkpointing import Pace, find_state, restore, save_state
from llm.training.fine_tuning import Epoch
from llm.training.loop import Loop

COLUMNS = ("nats_per_token", "probability", "recited")


class Memorising:
    """A recorder of `fine_tune`: it measures sets of examples after every epoch, from epoch 0.

    Its `table` has a row per epoch and set: `epoch`, `set`, `examples` and `COLUMNS`. With a folder
    `state` the tables and the state of the training are kept there, under a `fingerprint` of all
    that determines them, and at least `state_minutes` apart. Raises `InvalidInput` as `find_state`
    does.
    """

    def __init__(
        self,
        sets: Mapping[str, Sequence[Encoded]],
        *,
        state: Path | None = None,
        fingerprint: str = "",
        state_minutes: float = 0.0,
    ) -> None:
        self.sets, self.state, self.fingerprint = sets, state, fingerprint
        self.table, self.pace = pd.DataFrame(), Pace(state_minutes)

    def begin(self, loop: Loop) -> list[Epoch]:
        """Return the epochs that are done, and give the loop the state after the last of them."""
        found = None if self.state is None else find_state(self.state, self.fingerprint)
        if found is None:
            self.table = self._measured(loop, 0)
            return []
        restore(loop, found)
        self.table = found.tables["memorised"]
        return [Epoch(*row) for row in found.tables["epochs"].itertuples(index=False, name=None)]

    def record(self, loop: Loop, epochs: Sequence[Epoch]) -> None:
        """Measure all sets after an epoch, and keep the state."""
        now = epochs[-1].epoch
        self.table = pd.concat([self.table, self._measured(loop, now)], ignore_index=True)
        if self.state is not None and self.pace.due():
            tables = {"memorised": self.table, "epochs": pd.DataFrame(list(epochs))}
            save_state(self.state, loop, self.fingerprint, now, tables)

    def _measured(self, loop: Loop, epoch: int) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for name, encoded in self.sets.items():
            means = memorised(loop, encoded).double().mean(0).tolist()
            rows.append(
                {"epoch": epoch, "set": name, "examples": len(encoded)}
                | dict(zip(COLUMNS, means, strict=True))
            )
        return pd.DataFrame(rows, columns=["epoch", "set", "examples", *COLUMNS])


def memorised(loop: Loop, encoded: Sequence[Encoded]) -> Float[Tensor, "examples measures"]:
    """Return the `COLUMNS` of each example, under the model as it would be saved now."""
    model: Any = loop.accelerator.unwrap_model(loop.model)
    vocab = model.config.get_text_config().vocab_size
    # The likeliest token is found among all logits of a pass, which are therefore kept few.
    budget = logits_budget(vocab, loop.settings.budget)
    return loop.evaluate(encoded, by_heart, budget)


def by_heart(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Float[Tensor, "rows measures"]:
    """Return the `COLUMNS` of each row of a batch."""
    logits = scored_logits(model, batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scored = batch.scored.to(logits.device)
    targets = batch.tokens[:, 1:][batch.scored].to(logits.device)
    each = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
    places = scored.nonzero(as_tuple=True)
    length = scored.sum(-1)
    mean = each.new_zeros(scored.shape).index_put(places, each).sum(-1) / length
    # Places that are not scored neither end a run of right tokens nor count as one.
    right = scored.new_ones(scored.shape).index_put(places, logits.argmax(-1) == targets)
    run = (right.cumprod(-1) * scored).sum(-1)
    return torch.stack([-mean, mean.exp(), run / length], dim=-1)
