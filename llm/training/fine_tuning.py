"""Fine-tuning of a language model on prompts and responses, by the loop of `llm.training.loop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor, nn

from llm.randomness import shuffled
from llm.scoring.encoding import Batch, Encoded
from llm.scoring.logprobs import check_fits, check_model, evaluating, response_logprobs
from llm.training.loop import Optimization, Term, looping
from llm.training.masters import widened
from markov.errors import require


def fine_tune(
    model: nn.Module,
    encoded: Sequence[Encoded],
    settings: Optimization,
    *,
    progress: bool = True,
    label: str = "train",
    after: Callable[[int], object] | None = None,
) -> pd.DataFrame:
    """Fine-tune the model in place and return a table with one row per epoch.

    Each update minimises the mean cross-entropy over its response tokens. The columns are `epoch`
    and `step`, both counted from 1, the `learning_rate` of the epoch's last update, and `loss`, the
    mean over the epoch's tokens (nats) as they were seen. `after` is called with the number of each
    epoch once it is over, while the model is without dropout and in its own dtype. Raises
    `InvalidInput` as `score_encoded` and `looping` do, and for a learning rate under which the loss
    or its gradient stops being finite.
    """
    check_model(model)
    check_fits(model, encoded)
    steps, table = settings.updates(len(encoded)), []
    length = [len(one.tokens) - one.prompt for one in encoded]

    def losses(model: nn.Module, batch: Batch, rows: Sequence[int]) -> Tensor:
        return -response_logprobs(model, batch).logp

    with (
        widened(model, narrow_updates=settings.narrow_updates) as masters,
        looping(model, settings, masters) as loop,
        loop.bar(len(encoded), label, show=progress) as bar,
    ):
        for epoch in range(1, settings.epochs + 1):
            total, rate, step = 0.0, 0.0, (epoch - 1) * steps
            for rows in shuffled(len(encoded), settings.batch, settings.seed, epoch):
                step, tokens = step + 1, sum(length[row] for row in rows)
                rate = settings.rate(step, steps)
                done = loop.update(step, rate, [Term(encoded, rows, losses, 1 / tokens)])
                allowed = f"one that keeps the loss finite (epoch {epoch}, step {step})"
                require(done.finite, "learning_rate", settings.learning_rate, allowed)
                total += done.terms[0] * tokens
                bar.update()
            table.append((epoch, step, rate, total / sum(length)))
            bar.set_postfix(loss=f"{table[-1][-1]:.3f}", refresh=False)
            if after is not None:
                with loop.as_saved(), evaluating(model):
                    after(epoch)
    return pd.DataFrame(table, columns=["epoch", "step", "learning_rate", "loss"])
