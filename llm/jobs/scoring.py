"""Score data: how likely a model finds each response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm.arguments import checked_job
from llm.jobs.values import data_for, examples_of, language_of
from llm.scoring.limits import BUDGET, MAX_LENGTH
from markov.errors import require
from markov.files.storage import Location

if TYPE_CHECKING:
    import pandas as pd

    from llm.data.tofu import Example
    from llm.models.language_model import LanguageModel


@checked_job
def score(
    model: LanguageModel | Location,
    data: Sequence[Example] | Location | None = None,
    *,
    gradients: bool = False,
    noise: float | None = None,
    noise_seed: int = 0,
    max_length: int = MAX_LENGTH,
    budget: int = BUDGET,
    progress: bool = True,
) -> pd.DataFrame:
    """Return the log-probability of each response of the data, and its number of tokens.

    The table has the columns `index`, `logp` (nats, summed over the scored tokens) and `length`;
    with `gradients` also `gradient_norm`, the norm of the gradient of each logp. With `noise` a
    perturbed model is scored instead: its weights are averaged with Gaussian ones, of this many
    times the standard deviation of each tensor (the paper's A1). `budget` is the number of tokens
    of a batch, and changes no number beyond rounding.

    Without `data` those that go with a small model are scored. Raises `InvalidInput` for words that
    name nothing, for responses longer than `max_length` tokens, and for numbers that are not
    finite.
    """
    from llm.models.answers import responses, scores
    from llm.models.language_model import perturbed
    from llm.scoring.finite import Named, check_finite
    from llm.scoring.gradients import gradient_norms

    require(
        noise is not None or noise_seed == 0, "noise_seed", noise_seed, "left out without noise"
    )
    examples = examples_of(data_for(model, data))
    language = language_of(model, progress=progress)
    if noise is not None:
        language = language._replace(model=perturbed(language.model, scale=noise, seed=noise_seed))
    frame = scores(language, examples, max_length=max_length, budget=budget, progress=progress)
    if gradients:
        encoded = responses(language, examples, max_length=max_length)
        norms = gradient_norms(language.model, encoded, progress=progress).double()
        named = Named([example.index for example in examples], language.name)
        check_finite("gradient_norm", norms, language.model, range(len(norms)), named)
        frame["gradient_norm"] = norms.numpy()
    return frame
