"""Fine-tuning of a language model on prompts and responses, by the loop of `llm.training.loop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import pandas as pd
from torch import Tensor, nn

from llm.randomness import shuffled
from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import check_fits, check_model, evaluating, response_logprobs
from llm.training.duration import check_ends
from llm.training.loop import Loop, Optimization, Term, looping
from llm.training.masters import widened
from markov.errors import require


class Epoch(NamedTuple):
    """A row of the table of `fine_tune`."""

    epoch: int
    step: int
    learning_rate: float
    loss: float


class Recorder(Protocol):
    """What goes along with a fine-tuning: it measures, and keeps a state to go on from."""

    def begin(self, loop: Loop) -> Sequence[Epoch]:
        """Return the epochs that are done already; the loop is brought to where they ended."""
        ...

    def record(self, loop: Loop, epochs: Sequence[Epoch]) -> None:
        """Measure after an epoch, and keep the state."""
        ...


def fine_tune(
    model: nn.Module,
    encoded: Sequence[Encoded],
    settings: Optimization,
    *,
    progress: bool = True,
    label: str = "train",
    after: Callable[[int], object] | None = None,
    recorder: Recorder | None = None,
) -> pd.DataFrame:
    """Fine-tune the model in place and return a table with one row per epoch.

    Each update minimises the mean cross-entropy over its response tokens. The columns are `epoch`
    and `step`, both counted from 1, the `learning_rate` of the epoch's last update, and `loss`, the
    mean over the epoch's tokens (nats) as they were seen. `after` is called with the number of each
    epoch once it is over, while the model is without dropout and in its own dtype. A `recorder` may
    know of epochs that an earlier call made: these are not made again, and the table and the model
    are in the end those of a call that was never stopped. Raises `InvalidInput` as `score_encoded`
    and `looping` do, and for a learning rate under which the loss or its gradient stops being
    finite.
    """
    check_model(model)
    check_fits(model, encoded)
    check_ends(model, encoded, settings.epochs)
    steps = settings.updates(len(encoded))
    length = [len(one.tokens) - one.prompt for one in encoded]

    def losses(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
        return -response_logprobs(model, batch).logp

    with (
        widened(model, narrow_updates=settings.narrow_updates) as masters,
        looping(model, settings, masters) as loop,
    ):
        table = [] if recorder is None else list(recorder.begin(loop))
        with loop.bar(len(encoded), label, show=progress, past=len(table)) as bar:
            for epoch in range(len(table) + 1, settings.epochs + 1):
                total, rate, step = 0.0, 0.0, (epoch - 1) * steps
                for rows in shuffled(len(encoded), settings.batch, settings.seed, epoch):
                    step, tokens = step + 1, sum(length[row] for row in rows)
                    rate = settings.rate(step, steps)
                    done = loop.update(step, rate, [Term(encoded, rows, losses, 1 / tokens)])
                    allowed = f"one that keeps the loss finite (epoch {epoch}, step {step})"
                    require(done.finite, "learning_rate", settings.learning_rate, allowed)
                    total += done.terms[0] * tokens
                    bar.update()
                table.append(Epoch(epoch, step, rate, total / sum(length)))
                bar.set_postfix(loss=f"{table[-1].loss:.3f}", refresh=False)
                if after is not None:
                    with loop.as_saved(), evaluating(model):
                        after(epoch)
                if recorder is not None:
                    recorder.record(loop, table)
    return pd.DataFrame(table, columns=list(Epoch._fields))
